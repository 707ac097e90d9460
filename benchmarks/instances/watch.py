"""A server from outside while things break: is it ready, how many instances are up, what does its process hold.

Called by the parts that break something. Not aware of: what breaks, the load.
"""

import asyncio
import json
import os
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path
from time import perf_counter
from typing import NamedTuple, Self
from urllib.parse import urlsplit

from benchmarks.harness.live import Served
from benchmarks.harness.processes import BenchmarkError

POLL_S = 0.005
HANG_S = 30.0  # what is not back by then never will be


async def until(condition: Callable[[], Awaitable[bool]], since: float, *, holds: bool = True) -> float:
    """Seconds from `since` (of perf_counter) until it holds, or does not. Raises BenchmarkError if it takes for ever."""
    while await condition() != holds:
        if perf_counter() - since > HANG_S:
            raise BenchmarkError(f"what was waited for did not come about within {HANG_S:.0f} s")
        await asyncio.sleep(POLL_S)
    return perf_counter() - since


def port_of(url: str) -> int:
    """A server's, always given."""
    port = urlsplit(url).port
    assert port is not None
    return port


class Watch:
    """One model of a server. `count`: its instances when all is well."""

    def __init__(self, served: Served, model: str, count: int) -> None:
        self._inference = _Asker(served.url)
        self._control = _Asker(served.control_url)
        self._model = model
        self._count = count

    async def __aenter__(self) -> Self:
        await self._inference.connect()
        await self._control.connect()
        return self

    async def __aexit__(self, *_: object) -> None:
        self._inference.close()
        self._control.close()

    async def ready(self) -> bool:
        """What a load balancer hears."""
        status, _ = await self._inference.get("/v2/health/ready")
        return status == 200

    async def complete(self) -> bool:
        """Whether all instances are up."""
        return sum(instance["state"] == "up" for instance in await self._instances()) == self._count

    async def _instances(self) -> list[dict[str, object]]:
        _, body = await self._control.get(f"/models/{self._model}")
        found: list[dict[str, object]] = json.loads(body)["instances"]
        return found


class _Asker:
    """Sends GETs to one port, on one keep-alive connection."""

    def __init__(self, url: str) -> None:
        self._port = port_of(url)

    async def connect(self) -> None:
        self._reader, self._writer = await asyncio.open_connection("127.0.0.1", self._port)

    def close(self) -> None:
        self._writer.close()

    async def get(self, path: str) -> tuple[int, bytes]:
        """Status and body. Raises OSError or EOFError where there is no answer."""
        self._writer.write(f"GET {path} HTTP/1.1\r\nHost: benchmark\r\n\r\n".encode())
        head = (await self._reader.readuntil(b"\r\n\r\n")).decode("latin-1").lower()
        size = int(head.partition("content-length:")[2].partition("\r\n")[0])
        return int(head.split()[1]), await self._reader.readexactly(size)


class Holdings(NamedTuple):
    """What a process holds of the system. Two that are equal but for the memory mean that nothing leaked."""

    children: int
    descriptors: int
    slots: int
    """Shared segments of worker processes that it has mapped."""
    shared_files: int
    """In /dev/shm, of all processes."""
    resident_mb: float


def children_of(pid: int) -> list[int]:
    """Child processes, the oldest first; zombies count."""
    born: dict[int, int] = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):  # one that has just ended
            fields = path.read_text().rpartition(")")[2].split()
            if int(fields[1]) == pid:
                born[int(path.parent.name)] = int(fields[19])
    return sorted(born, key=born.__getitem__)


def holdings(pid: int) -> Holdings:
    process = Path("/proc") / str(pid)
    pages = int((process / "statm").read_text().split()[1])
    return Holdings(
        children=len(children_of(pid)),
        descriptors=len(os.listdir(process / "fd")),
        slots=(process / "maps").read_text(errors="replace").count("dlproxy-slot"),
        shared_files=len(os.listdir("/dev/shm")),
        resident_mb=pages * os.sysconf("SC_PAGE_SIZE") / 1e6,
    )

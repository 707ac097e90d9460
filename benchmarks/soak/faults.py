"""What breaks while the soak's clients ask: each fault inflicted, its end awaited, and which failures of requests it explains.

Called by soaking.py. Not aware of: when, the load, how requests end.
"""

import asyncio
import os
import re
import shutil
import signal
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path
from time import monotonic
from typing import Any

from msgspec import Struct, field

from benchmarks.harness.processes import BenchmarkError
from benchmarks.soak.clients import Book, Ending, connect, infer, post
from benchmarks.soak.site import BACK_S, WRITE_TIMEOUT_S, Site

AWAY_S = 6.0  # for which something is gone, paused or dead
GRACE_S = 1.0  # after a fault, in which what it explains may still come
VANISHING, SLOW = 30, 3  # clients
WIDE, MANY = 50_000, 2_000  # numbers of a part, parts: more than all buffers on the way hold


class Strike(Struct):
    """A fault, once. `ports`: of clients whose connections it ended. `note`: what came of it; `problem`: what did not."""

    fault: str
    began: float
    ended: float = 0.0
    note: str = ""
    problem: str = ""
    ports: set[int] = field(default_factory=set)
    answered: int = 0
    explained: int = 0

    def spans(self, ending: Ending) -> bool:
        return ending.at >= self.began and ending.asked_at <= self.ended + GRACE_S


Inflict = Callable[[Site, Book, Strike], Awaitable[None]]


class Fault(Struct):
    """`explains`: patterns of "kind model words" of failures while it lasts. `cuts`: it ends the connections of `ports`.
    `gateways`: whether it ends gateways, so that their memory begins anew.
    """

    name: str
    about: str
    inflict: Inflict
    explains: tuple[str, ...] = ()
    cuts: bool = False
    gateways: bool = False

    def explained(self, strike: Strike, ending: Ending) -> bool:
        """Whether this request failed for it."""
        if not strike.spans(ending):
            return False
        if self.cuts and ending.kind in ("cut", "unconnected"):
            return ending.port in strike.ports or ending.door != "http" or ending.kind == "unconnected"
        return any(re.match(each, f"{ending.kind} {ending.model} {ending.words}", re.DOTALL) for each in self.explains)


# Processes


async def _worker_killed(site: Site, _book: Book, strike: Strike) -> None:
    before = {one["pid"] for one in await site.instances("twice")}
    victim = min(before)
    os.kill(victim, signal.SIGKILL)

    async def back() -> bool:
        now = await site.instances("twice")
        return victim not in {one["pid"] for one in now} and all(one["state"] == "up" for one in now)

    await site.until(back, "two workers are up again")
    strike.note = "worker replaced"


async def _gateway_killed(site: Site, _book: Book, strike: Strike) -> None:
    victim = max(await site.gateways(), key=lambda one: one["for_s"] or 0.0)
    strike.ports = clients_of(victim["pid"], {site.http, site.grpc})
    os.kill(victim["pid"], signal.SIGKILL)

    async def back() -> bool:
        now = await site.gateways()
        return all(one["state"] == "up" for one in now) and victim["pid"] not in {one["pid"] for one in now}

    await site.until(back, "two gateways are up again")
    strike.note = f"it held {len(strike.ports)} connections"


async def _gateways_restarted(site: Site, _book: Book, strike: Strike) -> None:
    before = {one["pid"] for one in await site.gateways()}
    after = {one["pid"] for one in await site.ask(site.control.gateways, restart=True)}
    if before & after:
        raise BenchmarkError(f"still there after a restart: {before & after}")


# Redis


async def _redis_killed(site: Site, _book: Book, strike: Strike) -> None:
    await asyncio.to_thread(site.redis.kill)
    await asyncio.sleep(AWAY_S)
    await asyncio.to_thread(site.redis.start)
    await site.until(lambda: _stores_more_than(site, 0), "answers are stored in Redis again")


async def _redis_paused(site: Site, _book: Book, strike: Strike) -> None:
    site.redis.pause()
    await asyncio.sleep(AWAY_S)
    site.redis.go_on()
    before = await _stored(site)
    await site.until(lambda: _stores_more_than(site, before), "answers are stored in Redis again")


async def _stored(site: Site) -> int:
    """Commands that wrote something there, since it started."""
    reader, writer = await asyncio.open_connection("127.0.0.1", site.redis.port)
    try:
        writer.write(b"INFO commandstats\r\n")
        size = int((await reader.readline())[1:])
        found = re.search(rb"cmdstat_set:calls=(\d+)", await reader.readexactly(size))
        return int(found[1]) if found else 0
    finally:
        writer.close()


async def _stores_more_than(site: Site, count: int) -> bool:
    return await _stored(site) > count


# Upstreams


async def _upstream_killed(site: Site, _book: Book, strike: Strike) -> None:
    await asyncio.to_thread(site.kill_upstream, 0)
    await asyncio.sleep(AWAY_S / 2)
    await site.start_upstream(0)
    await site.until(lambda: site.all_up("far"), "both upstreams are up again")


async def _upstream_paused(site: Site, _book: Book, strike: Strike) -> None:
    child = site.upstreams[0]
    assert child is not None
    os.killpg(child.process.pid, signal.SIGSTOP)
    await asyncio.sleep(1.5 * AWAY_S)
    os.killpg(child.process.pid, signal.SIGCONT)
    await site.until(lambda: site.all_up("far"), "both upstreams are up again")


async def _upstream_half_open(site: Site, _book: Book, strike: Strike) -> None:
    site.line.die()
    await asyncio.sleep(1.5 * AWAY_S)
    site.line.live()
    await site.until(lambda: site.all_up("far"), "both upstreams are up again")


# What is served


async def _certificate_renewed(site: Site, _book: Book, strike: Strike) -> None:
    before = await _serial(site)
    site.renew_certificate()

    async def shown() -> bool:
        return all([await _serial(site) != before for _ in range(6)])  # the kernel shares them out: both gateways

    await site.until(shown, "the new certificate is shown")


async def _serial(site: Site) -> str:
    _, writer = await connect(site)
    serial: str = writer.get_extra_info("ssl_object").getpeercert()["serialNumber"]
    writer.close()
    return serial


async def _new_version(site: Site, book: Book, strike: Strike) -> None:
    site.put_version()
    await site.until(lambda: _answers(book, site.version), f"version {site.version} answers")
    await asyncio.sleep(1.0)
    shutil.rmtree(site.folder / "repository" / "shop" / str(site.version - 1))


async def _broken_version(site: Site, book: Book, strike: Strike) -> None:
    site.put_version(b"no model")
    broken = str(site.version + 1)

    async def failed() -> bool:
        states = site.control.states(await site.ask(site.control.models))
        return any((state.name, state.version, state.phase) == ("shop", broken, "failed") for state in states)

    await site.until(failed, f"version {broken} is said to have failed")
    await asyncio.sleep(1.0)
    shutil.rmtree(site.folder / "repository" / "shop" / broken)
    await site.until(lambda: _answers(book, site.version), f"version {site.version} answers")


async def _model_removed(site: Site, book: Book, strike: Strike) -> None:
    models, away = site.folder / "repository" / "shop", site.folder / "away"
    models.rename(away)

    async def gone() -> bool:
        states = site.control.states(await site.ask(site.control.models))
        return all(state.name != "shop" for state in states)

    await site.until(gone, "the model is gone")
    await asyncio.sleep(2.0)
    away.rename(models)
    book.version = 0
    await site.until(lambda: _answers(book, site.version), "the model answers again")


async def _answers(book: Book, version: int) -> bool:
    return book.version == version


async def _knobs_changed(site: Site, _book: Book, strike: Strike) -> None:
    changes: list[tuple[str, dict[str, Any]]] = [
        ("plus", {"max_batch": 4, "max_wait_s": 0.002, "discipline": "fcfs"}),
        ("twice", {"max_batch": 2, "balancer": "round-robin"}),
        ("far", {"hedge": True, "balancer": "power-of-two"}),
        ("both", {"max_queue_rows": 64}),
        ("plus", {"max_batch": 256, "max_wait_s": 0.0, "discipline": "edf"}),
        ("twice", {"max_batch": 256, "balancer": "peak-ewma"}),
        ("far", {"hedge": False, "balancer": "peak-ewma"}),
        ("both", {"max_queue_rows": 8192}),
    ]
    for model, knobs in changes:
        await site.ask(site.control.change, model, knobs)
        await asyncio.sleep(AWAY_S / len(changes))


# Clients


async def _clients_vanish(site: Site, _book: Book, strike: Strike) -> None:
    for number in range(VANISHING):
        _, writer = await connect(site)
        model = ("plus", "twice", "both", "known", "far", "count")[number % 6]
        if model == "count":
            writer.write(_wide(site, 1))
        else:
            writer.write(infer(site, "clients", model, 0, 0.5))
        await asyncio.sleep(0.001 * (number % 10))
        writer.transport.abort()


async def _slow_readers(site: Site, _book: Book, strike: Strike) -> None:
    whole = await asyncio.gather(*(_read_slowly(site) for _ in range(SLOW)))
    if any(whole):
        raise BenchmarkError(f"{sum(whole)} of {SLOW} who read nothing were not cut off")


async def _read_slowly(site: Site) -> bool:
    """Whether all came in the end."""
    reader, writer = await connect(site, limit=1024)
    writer.write(_wide(site, MANY))
    await asyncio.sleep(WRITE_TIMEOUT_S + 4.0)
    last = b""
    with suppress(OSError):
        async with asyncio.timeout(BACK_S):
            while piece := await reader.read(1 << 20):
                last = piece
    writer.close()
    return last.endswith(b"0\r\n\r\n")


def _wide(site: Site, parts: int) -> bytes:
    return post(site, "clients", "/predict/count", {"inputs": [[1.0, float(parts), float(WIDE)]]})


def clients_of(pid: int, ports: set[int]) -> set[int]:
    """Ports of the clients whose connections to one of these ports this process holds, as the kernel knows."""
    held = set()
    for path in Path(f"/proc/{pid}/fd").iterdir():
        with suppress(OSError):
            held.add(os.readlink(path))
    found = set()
    for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
        _, local, remote, state, *more = line.split()
        if state == "01" and f"socket:[{more[5]}]" in held and int(local.partition(":")[2], 16) in ports:
            found.add(int(remote.partition(":")[2], 16))
    return found


UPSTREAM = r"(refused|cut) far .*(503|UNAVAILABLE) .*(upstream|no live instance)"
GONE = r"refused shop .*(404|503|NOT_FOUND|UNAVAILABLE) .*(is not found|is being unloaded|is being loaded)"
# Closed as idle by a gateway that drained: the client was silent for longer than the grace, and too late.
STALE = r"cut .*(IncompleteReadError 0 bytes|BrokenPipe|ConnectionReset).*\(silent for (0\.[3-9]|[1-9])"
FAULTS = [  # those that end gateways first: see soaking.py's plan
    Fault("worker killed", "SIGKILL of a worker process; both are up again", _worker_killed),
    Fault("gateway killed", "SIGKILL of one of two; it is up again", _gateway_killed, cuts=True, gateways=True),
    Fault("Redis killed", f"SIGKILL, and started {AWAY_S:.0f} s later; answers are stored again", _redis_killed),
    Fault("gateways restarted", "one after the other, over the control port", _gateways_restarted, (STALE,), gateways=True),
    Fault("upstream killed", "SIGKILL of one of two; it is started again", _upstream_killed, (UPSTREAM,)),
    Fault("certificate renewed", "another certificate in its file; both gateways show it", _certificate_renewed),
    Fault("new version", "in the repository; it answers, the one before it is removed", _new_version),
    Fault("knobs changed", "eight changes over the control port", _knobs_changed),
    Fault("upstream paused", f"SIGSTOP of one of two for {1.5 * AWAY_S:.0f} s", _upstream_paused, (UPSTREAM,)),
    Fault("clients vanish", f"{VANISHING} connections end with a request under way", _clients_vanish),
    Fault("broken version", "in the repository; it is said to have failed, and is removed", _broken_version),
    Fault("Redis paused", f"SIGSTOP for {AWAY_S:.0f} s; answers are stored again", _redis_paused),
    Fault("upstream half open", f"the line to one of two is dead for {1.5 * AWAY_S:.0f} s", _upstream_half_open, (UPSTREAM,)),
    Fault("model removed", "from the repository, and put back; it answers again", _model_removed, (GONE,)),
    Fault("slow readers", f"{SLOW} read nothing of very long streams; they are cut off", _slow_readers),
]


async def inflict(fault: Fault, strike: Strike, site: Site, book: Book) -> None:
    """Returns when all is well again; what went wrong with that is the strike's `problem`."""
    before = book.answered.total()
    try:
        async with asyncio.timeout(3 * BACK_S):
            await fault.inflict(site, book, strike)
    except Exception as error:  # the soak goes on
        strike.problem = f"{type(error).__name__}: {error}"
    finally:
        strike.ended = monotonic()
        strike.answered = book.answered.total() - before

"""Workers of a real server killed while clients ask: every request gets its own answer once, and readiness tells the truth."""

import asyncio
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from time import monotonic

import pytest

from tests.clients.raw import Connect
from tests.clients.server import HANG_S, ServerProcess, asked, write_config
from tests.faults.echoes import CLIENTS, Load

KILLS = 3
BETWEEN = 20 * CLIENTS  # answers before each kill
READY_WITHIN_S = 5.0  # or as long as the server's own start took: benchmarks/instances holds it to 2 s


@pytest.fixture(params=[2, 1], ids=["two instances", "one instance"])
def server(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[ServerProcess]:
    settings = {"path": "sleep:base=5ms", "run": "process", "instances": request.param, "outage_wait_s": HANG_S}
    with ServerProcess("--config", write_config(tmp_path / "dlproxy.toml", {"m": settings})) as process:
        yield process


async def test_workers_killed_in_the_middle_of_batches_cost_no_request(server: ServerProcess, connect: Connect) -> None:
    count = len(server.instances("m"))
    load = Load()
    await load.start(connect, server.http_port)
    for _ in range(KILLS):
        await load.more(BETWEEN)
        victim = await asyncio.to_thread(_busy_worker, server)
        killed_at = monotonic()
        os.kill(victim, signal.SIGKILL)
        await asyncio.to_thread(_until, lambda pid=victim: pid not in _workers_up(server))
        assert await asyncio.to_thread(_readiness, server) == (200 if count > 1 else 503)
        await asyncio.to_thread(_until, lambda: len(_workers_up(server)) == count)
        assert monotonic() - killed_at < max(READY_WITHIN_S, server.start_s)
        assert await asyncio.to_thread(_readiness, server) == 200
    await load.more(BETWEEN)
    await load.stop()
    assert load.failures == set()
    assert all(connection.sent == connection.received for connection in load.connections)
    assert server.errors().count("killed by SIGKILL") == KILLS


def _busy_worker(server: ServerProcess) -> int:
    while True:  # under load one is busy at almost every look
        for instance in server.instances("m"):
            if instance["state"] == "up" and instance["in_flight"]:
                return int(instance["pid"])


def _workers_up(server: ServerProcess) -> set[int]:
    return {instance["pid"] for instance in server.instances("m") if instance["state"] == "up"}


def _readiness(server: ServerProcess) -> int:
    """The status that a load balancer sees."""
    return asked(f"http://{server.address}/v2/health/ready").status


def _until(condition: Callable[[], bool]) -> None:
    """Ask again until it holds; each look is a request to the server, which paces the loop."""
    deadline = monotonic() + HANG_S
    while not condition():
        assert monotonic() < deadline, "the server did not come back"

"""`dlproxy models scale` while clients keep a server busy: no request is lost, and the event log replays."""

import asyncio
from collections import Counter
from pathlib import Path

import pytest

from dlproxy.cli import main
from dlproxy.policy.events import InstanceRetired, InstanceUp
from dlproxy.telemetry.event_log import read, replay
from tests.clients import raw
from tests.clients.server import ServerProcess, write_config

CLIENTS = 64
REQUEST = raw.post("/predict/m", b'{"inputs":[[1]]}')


@pytest.mark.parametrize("run", ["process", "thread"])
async def test_growing_and_shrinking_under_load_loses_no_request(tmp_path: Path, connect: raw.Connect, run: str) -> None:
    model = {"path": "sleep:base=2ms", "run": run, "max_batch": 8}
    config = write_config(tmp_path / "dlproxy.toml", {"m": model}, event_log=str(tmp_path))
    statuses: Counter[int] = Counter()
    scaled = asyncio.Event()

    async def client(connection: raw.RawConnection) -> None:
        while not scaled.is_set():
            statuses[(await connection.ask(REQUEST)).status] += 1

    with ServerProcess("--config", config) as server:
        crowd, one_more = [await connect(server.http_port) for _ in range(CLIENTS)], await connect(server.http_port)
        loads = [asyncio.create_task(client(connection)) for connection in crowd]
        for count in ("2", "1", "3", "1"):
            command = ("models", "scale", "m", count, "--control", f"http://127.0.0.1:{server.control_port}")
            assert await asyncio.to_thread(main, command) == 0
            assert server.metric("dlproxy_instances", model="m", state="up") == int(count)
            for _ in range(8):  # let the load go on for a while
                statuses[(await one_more.ask(REQUEST)).status] += 1
        scaled.set()
        await asyncio.gather(*loads)
        assert server.stop() == 0
    assert set(statuses) == {200}
    log = tmp_path / "m-1.dlog"
    assert replay(log).first_difference is None
    events = [type(entry.event) for entry in read(log)[1]]
    assert (events.count(InstanceUp), events.count(InstanceRetired)) == (4, 3)

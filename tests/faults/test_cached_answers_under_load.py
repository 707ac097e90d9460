"""Requests that ask the same at the same time, of a real server: run once, whatever becomes of clients, workers and versions.

The model says with each answer how many rows it had run, so equal numbers show that it was the same run.
"""

import asyncio
import os
import signal
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dlproxy import AsyncClient, FailureKind, InferenceError
from tests.clients.raw import RawConnection, RawReply, binary_infer, binary_output, connect
from tests.clients.server import HANG_S, ServerProcess, write_config

CLIENTS, JOINED = 256, 64
CONNECTIONS, KEYS = 32, 8
WAITS, FAILS = 100_000.0, 1_000_000.0  # from these values on
GONE = ("is being unloaded", "no model is served", "is being loaded")
MODEL = """\
from pathlib import Path
from time import sleep

import numpy as np

gate = Path(__file__).with_name("gate")
ran = 0


class Net:
    inputs = {{"x": "FP32[-1,1]"}}
    outputs = {{"y": "FP32[-1,2]"}}

    def predict(self, batch):
        global ran
        x = batch["x"]
        ran += len(x)
        number = ran
        while (x >= {waits}).any() and gate.exists():
            sleep(0.002)
        if (x >= {fails}).any():
            raise ValueError(f"it failed in run {{number}}")
        return {{"y": np.concatenate([x * {factor}, np.full_like(x, number)], 1)}}
"""


def write_model(path: Path, factor: int) -> str:
    path.parent.mkdir(exist_ok=True)
    path.write_text(MODEL.format(waits=WAITS, fails=FAILS, factor=factor))
    return f"{path}:Net"


class Site:
    """A server, and the gate that holds up what its model runs."""

    def __init__(self, folder: Path, process: ServerProcess) -> None:
        self.folder = folder
        self.process = process
        self._gate = folder / "gate"
        self._next = 0.0

    def new(self, least: float) -> float:
        """A value that nobody has asked for."""
        self._next += 1.0
        return least + self._next

    def close_gate(self) -> None:
        self._gate.touch()

    def open_gate(self) -> None:
        self._gate.unlink(missing_ok=True)

    def operate(self, action: str, **terms: Any) -> None:
        self.process.control(f"/models/m/{action}", terms)

    def workers(self) -> list[int]:
        return [one["pid"] for one in self.process.instances("m") if one["state"] == "up"]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    folder = tmp_path_factory.mktemp("cached")
    settings = {"path": write_model(folder / "net.py", 2), "run": "process", "instances": 1, "batching": "off", "cache": "on"}
    config = write_config(folder / "dlproxy.toml", {"m": {**settings, "outage_wait_s": HANG_S}})
    with ServerProcess("--config", config, "--grpc-port", "0") as process:
        yield Site(folder, process)


class Crowd:
    """Clients of which each asks for one value, all at once. Entered when their connections are there."""

    def __init__(self, site: Site, scheme: str) -> None:
        self._site = site
        address = {"http": site.process.address, "grpc": site.process.grpc_address}[scheme]
        self._client = AsyncClient(f"{scheme}://{address}", connections=CLIENTS, retry_budget=0.0)
        self._other = AsyncClient(f"http://{site.process.address}")

    async def __aenter__(self) -> "Crowd":
        await asyncio.gather(*[self.ask(self._site.new(1.0)) for _ in range(CLIENTS)])
        self._site.close_gate()
        return self

    async def __aexit__(self, *error: object) -> None:
        self._site.open_gate()
        await self._client.close()
        await self._other.close()

    async def ask(self, value: float) -> list[float]:
        """The value times the version's factor, and the number of the run."""
        answer = await self._client.infer("m", np.array([[value]], np.float32))
        row: list[float] = answer["y"][0].tolist()
        return row

    async def all_ask(self, value: float, clients: int) -> "list[asyncio.Task[list[float]]]":
        """Returns when the server has all of these requests."""
        tasks = [asyncio.create_task(self.ask(value)) for _ in range(clients)]
        await self.see_to_it()
        return tasks

    async def see_to_it(self) -> None:
        """Returns when the server has what was sent before this: in each turn of its loop it looks at all connections."""
        for client in 3 * (self._client if self._is_grpc else self._other, self._other):
            assert await client.ready("m")

    @property
    def _is_grpc(self) -> bool:  # one connection, in whose order everything comes
        return self._client.url.startswith("grpc")


async def failure_of(task: "asyncio.Task[list[float]]") -> str:
    with pytest.raises(InferenceError) as error:
        await task
    assert error.value.failure.kind is FailureKind.MODEL_FAILED
    return error.value.failure.message


both = pytest.mark.parametrize("scheme", ["http", "grpc"])


@both
async def test_they_are_run_once(site: Site, scheme: str) -> None:
    async with Crowd(site, scheme) as crowd:
        value = site.new(WAITS)
        tasks = await crowd.all_ask(value, CLIENTS)
        site.open_gate()
        rows = await asyncio.gather(*tasks)
        assert {row[0] for row in rows} == {2 * value}
        assert len({row[1] for row in rows}) == 1
        assert await crowd.ask(value) == rows[0], "it is remembered"


@both
async def test_their_failure_reaches_all_and_is_not_remembered(site: Site, scheme: str) -> None:
    async with Crowd(site, scheme) as crowd:
        value = site.new(FAILS)
        tasks = await crowd.all_ask(value, CLIENTS)
        site.open_gate()
        (reason,) = {await failure_of(task) for task in tasks}
        assert "it failed in run" in reason
        assert await failure_of(asyncio.create_task(crowd.ask(value))) != reason


@both
async def test_who_vanishes_takes_nobody_along(site: Site, scheme: str) -> None:
    """The first, then some of the others; the answer is remembered although the one that it was computed for has gone."""
    async with Crowd(site, scheme) as crowd:
        value = site.new(WAITS)
        tasks = await crowd.all_ask(value, JOINED)
        for task in (tasks[0], *tasks[10:20]):
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task
        await crowd.see_to_it()
        site.open_gate()
        rows = [await task for task in tasks if not task.cancelled()]
        assert len(rows) == JOINED - 11
        assert {row[0] for row in rows} == {2 * value}
        assert len({row[1] for row in rows}) == 1
        assert await crowd.ask(value) == rows[0]


async def test_a_worker_is_killed_while_they_wait(site: Site) -> None:
    async with Crowd(site, "http") as crowd:
        value = site.new(WAITS)
        tasks = await crowd.all_ask(value, JOINED)
        (worker,) = await asyncio.to_thread(site.workers)
        os.kill(worker, signal.SIGKILL)
        site.open_gate()
        rows = await asyncio.gather(*tasks)
        assert {row[0] for row in rows} == {2 * value}
        assert len({row[1] for row in rows}) == 1
        assert await asyncio.to_thread(site.workers) != [worker]


class Load:
    """CONNECTIONS that ask for KEYS values again and again. Each answer is held against the version that was asked last.

    `least`: factors of versions that may answer what is asked from now on. `refused`: how many got no answer, and why.
    """

    def __init__(self, port: int) -> None:
        self.least = 2
        self.wrong: list[str] = []
        self.refused: Counter[str] = Counter()
        self._port = port
        self._asked: dict[RawConnection, tuple[float, int]] = {}
        self._connections: list[RawConnection] = []
        self._answered = 0
        self._wanted = 0
        self._enough = asyncio.Event()
        self._stopping = False

    async def start(self) -> None:
        for _ in range(CONNECTIONS):
            connection = await connect(self._port, self._on_reply)
            self._connections.append(connection)
            self._ask(connection)

    async def more(self, count: int) -> None:
        self._wanted = self._answered + count
        self._enough.clear()
        await asyncio.wait_for(self._enough.wait(), HANG_S)

    async def stop(self) -> None:
        self._stopping = True
        await self.more(CONNECTIONS)
        for connection in self._connections:
            connection.transport.abort()
            await connection.ended

    def _ask(self, connection: RawConnection) -> None:
        value = float(self._answered % KEYS) + 500.0
        self._asked[connection] = value, self.least
        connection.send(binary_infer("m", "x", "FP32", np.array([[value]], np.float32)))

    def _on_reply(self, connection: RawConnection, reply: RawReply) -> None:
        value, least = self._asked[connection]
        if reply.status != 200:
            self.refused[f"{reply.status} {reply.json()['error']}"] += 1
        elif (got := binary_output(reply, np.float32)[0, 0]) < least * value or got % value:
            self.wrong.append(f"{got} for {value} where version {least} is up")
        self._answered += 1
        if not self._stopping:
            self._ask(connection)
        if self._answered >= self._wanted:
            self._enough.set()


async def test_no_version_answers_for_the_next(site: Site) -> None:
    """Replaced three times, then unloaded and loaded again: all under load, which misses only the model that is not there."""
    load = Load(site.process.http_port)

    async def bring(factor: int) -> None:
        path = write_model(site.folder / f"v{factor}" / "net.py", factor)
        await asyncio.to_thread(site.operate, "load", path=path, version="1")
        load.least = factor
        await load.more(300)

    await load.start()
    await load.more(300)
    for factor in (3, 4, 5):
        await bring(factor)
    assert not load.refused
    await asyncio.to_thread(site.operate, "unload")
    await load.more(100)
    await bring(6)
    await load.stop()
    assert load.wrong == []
    assert load.refused
    assert not [reason for reason in load.refused if not reason.endswith(GONE)]

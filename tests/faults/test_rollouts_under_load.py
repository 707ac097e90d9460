"""A server under 64 connections whose models are updated, labelled, tried, taken back, unloaded: nothing is lost or misled.

Each version of the model adds its own number to what it gets, so every answer shows which one gave it.
DLPROXY_ROUNDS sets how often (make prove-rollouts).
"""

import asyncio
import json
import os
from collections import Counter
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from dlproxy.message import DType
from tests import models
from tests.clients.raw import RawConnection, RawReply, binary_infer, binary_output, connect, post
from tests.clients.server import HANG_S, ServerProcess

ROUNDS = int(os.environ.get("DLPROXY_ROUNDS", "2"))
CLIENTS = 64
COUNTED = 20_000 if ROUNDS > 2 else 4000  # requests over which a share is counted
BREAKS = """
from pathlib import Path

class M:
    inputs, outputs = {"x": "FP32[N,1]"}, {"y": "FP32[N,1]"}

    def predict(self, batch):
        if Path(__file__).with_name("break").exists():
            raise ValueError("broken")
        return {"y": batch["x"] + 2} if isinstance(batch, dict) else batch + 2
"""


def adds(number: int, folder: Path) -> Path:
    x = models.value("x", DType.FP32, ("N", 1))
    y = models.value("y", DType.FP32, ("N", 1))
    node = onnx.helper.make_node("Add", ["x", "number"], ["y"])
    made = models.model([node], [x], [y], [models.constant("number", np.array([number], np.float32))])
    return models.save(made, folder / f"adds{number}.onnx")


class Clients:
    """Each connection asks the next thing as soon as it is answered, until `stop`. Every answer is checked.

    `asked`: targets that requests go to, in turn. `may`: which versions may answer a target.
    """

    def __init__(self, server: ServerProcess) -> None:
        self._server = server
        self._request = binary_infer("m", "x", "FP32", np.zeros((1, 1), np.float32))
        self.targets = ["/v2/models/m/infer"]
        self.answered: Counter[tuple[str, int]] = Counter()
        self.wrong: list[str] = []
        self._asked: dict[RawConnection, str] = {}
        self._stopping = False
        self._count = 0
        self._replied = asyncio.Event()

    async def start(self) -> None:
        for _ in range(CLIENTS):
            self._ask(await connect(self._server.http_port, self._on_reply))

    def _ask(self, connection: RawConnection) -> None:
        self._count += 1
        target = self.targets[self._count % len(self.targets)]
        self._asked[connection] = target
        connection.send(self._request.replace(b"/v2/models/m/infer", target.encode(), 1))

    def _on_reply(self, connection: RawConnection, reply: RawReply) -> None:
        target = self._asked[connection]
        if reply.status != 200:
            self.wrong.append(f"{target}: {reply.status} {reply.body!r}")
        else:
            version, answer = reply.json()["model_version"], int(binary_output(reply, np.float32)[0, 0])
            if int(version) != answer:
                self.wrong.append(f"{target}: version {version} answered {answer}")
            self.answered[target, answer] += 1
        self._replied.set()
        if not self._stopping:
            self._ask(connection)

    async def some_more(self, count: int) -> Counter[tuple[str, int]]:
        """Who answered the next so many requests, those that were under way before left out."""
        await self.each_once()
        self.answered.clear()
        await self._until(lambda: self.answered.total() >= count)
        return Counter(self.answered)

    async def each_once(self) -> None:
        """Returns when every connection has been answered."""
        before = {connection: connection.received for connection in self._asked}
        await self._until(lambda: all(connection.received > count for connection, count in before.items()))

    async def _until(self, done: Callable[[], bool]) -> None:
        async with asyncio.timeout(HANG_S):
            while not done():
                self._replied.clear()
                await self._replied.wait()

    async def stop(self) -> None:
        self._stopping = True
        for connection in self._asked:
            await self._until(lambda connection=connection: connection.received == connection.sent)  # type: ignore[misc]
            connection.close()


class Operator:
    """Asks the control port, as `dlproxy models` does."""

    def __init__(self, connection: RawConnection) -> None:
        self._connection = connection

    async def __call__(self, action: str, *, status: int = 200, **arguments: Any) -> Any:
        reply = await self._connection.ask(post(f"/models/m/{action}", json.dumps(arguments).encode()))
        assert reply.status == status, reply.body
        return reply.json()


@pytest.fixture
async def served(tmp_path: Path) -> AsyncIterator[tuple[Clients, Operator, Path]]:
    with ServerProcess(f"m={adds(1, tmp_path)}") as server:
        clients = Clients(server)
        await clients.start()
        yield clients, Operator(await connect(server.control_port)), tmp_path
        await clients.stop()
        assert not clients.wrong, clients.wrong[:20]


PLAIN = "/v2/models/m/infer"


async def test_models_change_in_every_way_and_nobody_notices(served: tuple[Clients, Operator, Path]) -> None:
    clients, operate, folder = served
    number = 1
    for _ in range(ROUNDS):
        number += 1
        before, now = number - 1, number
        await operate("load", path=str(adds(now, folder)), version=str(now))
        assert set(await clients.some_more(1000)) == {(PLAIN, now)}, "all go to the update"

        await operate("load", path=str(folder / "missing.onnx"), version=str(now + 1000), status=400)
        assert set(await clients.some_more(500)) == {(PLAIN, now)}, "a failed update changes nothing"

        await operate("label", label="stable", version=str(before))
        labelled = "/v2/models/m/versions/stable/infer"
        clients.targets = [PLAIN, labelled]
        assert set(await clients.some_more(1000)) == {(PLAIN, now), (labelled, before)}
        await operate("label", label="stable", version=str(now))
        assert set(await clients.some_more(1000)) == {(PLAIN, now), (labelled, now)}
        clients.targets = [PLAIN]

        await operate("canary", version=str(before), share=0.1)
        counted = await clients.some_more(COUNTED)
        assert abs(counted[PLAIN, before] / counted.total() - 0.1) < 0.01
        await operate("rollback")
        assert set(await clients.some_more(500)) == {(PLAIN, now)}

        await operate("shadow", version=str(before))
        assert set(await clients.some_more(500)) == {(PLAIN, now)}, "a shadow answers nobody"
        await operate("shadow")

        await operate("promote", version=str(before))
        assert set(await clients.some_more(500)) == {(PLAIN, before)}
        await operate("rollback")
        assert set(await clients.some_more(500)) == {(PLAIN, now)}
        await operate("unload", version=str(before))
        assert set(await clients.some_more(500)) == {(PLAIN, now)}


async def test_a_broken_canary_is_taken_back_by_itself(served: tuple[Clients, Operator, Path]) -> None:
    clients, operate, folder = served
    (folder / "breaks.py").write_text(BREAKS)
    await operate("load", path=f"{folder / 'breaks.py'}:M", share=0.1)
    counted = await clients.some_more(1000)
    assert abs(counted[PLAIN, 2] / counted.total() - 0.1) < 0.045  # each is drawn: nearly five standard deviations
    assert await _share_of(operate, "2") == 0.1
    (folder / "break").touch()
    for _ in range(10_000):
        await clients.some_more(100)
        if not await _share_of(operate, "2"):
            break
    assert not await _share_of(operate, "2")
    await clients.each_once()  # what was under way has been answered
    assert all(": 500 " in answer for answer in clients.wrong)
    clients.wrong.clear()
    assert set(await clients.some_more(500)) == {(PLAIN, 1)}


async def _share_of(operate: Operator, version: str) -> float:
    states = await operate("label", label="seen", version="1")
    return float(next(state["share"] for state in states if state["version"] == version))

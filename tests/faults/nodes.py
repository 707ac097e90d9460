"""Nodes with one store, asked over both ports: what the tests of several nodes, and of repositories, share."""

import asyncio
import json
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import numpy as np

from tests.clients.raw import RawConnection, RawReply, binary_infer, binary_output, connect, post
from tests.clients.server import HANG_S, ServerProcess, write_config
from tests.serve.rig import pass_time

X = np.zeros((1, 1), np.float32)
GAP_S = 0.01  # between an answer and the next request: light load
LOOKS = 100  # at a server, GAP_S apart; on a busy machine they take as much longer as all else does

State = dict[str, Any]


def node(folder: Path, name: str, store: str | Path, models: dict[str, dict[str, Any]] | None = None) -> ServerProcess:
    """One that has started; `models` as its configuration has them."""
    config = write_config(folder / f"{name}.toml", models or {}, store=store, drain_s=5.0, calibration_folder="")
    return ServerProcess("--config", config)


async def ask(port: int, target: str, **arguments: Any) -> RawReply:
    """The answer to a POST with this object, or a GET of a target that ends in a question mark."""
    connection = await connect(port)
    request = post(target, json.dumps(arguments).encode())
    if target.endswith("?"):
        request = f"GET {target[:-1]} HTTP/1.1\r\nhost: test\r\n\r\n".encode()
    try:
        return await asyncio.wait_for(connection.ask(request), HANG_S)
    finally:
        connection.close()


async def operate(server: ServerProcess, model: str, action: str, *, status: int = 200, **arguments: Any) -> Any:
    """What the control port says of an action, as it is given to `dlproxy models`."""
    reply = await ask(server.control_port, f"/models/{model}/{action}", **arguments)
    assert reply.status == status, reply.body
    return reply.json()


async def states(server: ServerProcess) -> dict[tuple[str, str], State]:
    """GET /models, by name and version."""
    told = (await ask(server.control_port, "/models?")).json()
    return {(state["name"], state["version"]): state for state in told}


async def until(holds: Callable[[dict[tuple[str, str], State]], Any], *servers: ServerProcess, within_s: float = 2.0) -> None:
    """Returns once what each server says of its models is so: within so long, or so many LOOKS of a busy machine."""
    clock = asyncio.get_running_loop().time
    for server in servers:
        began_at, looks = clock(), 0
        while not holds(told := await states(server)):
            looks += 1
            late = looks > LOOKS and clock() > began_at + within_s
            assert not late, f"after {within_s:g} s a node still says {told}\n{server.errors()}"
            await pass_time(GAP_S)


def serving(told: dict[tuple[str, str], State]) -> set[tuple[str, str]]:
    return {key for key, state in told.items() if state["phase"] == "serving" and state["ready"]}


async def answer(server: ServerProcess, target: str) -> int:
    """What the model there adds to 0; the status, below zero, if it does not answer."""
    connection = await connect(server.http_port)
    reply = await asyncio.wait_for(connection.ask(_infer(target)), HANG_S)
    connection.close()
    return int(binary_output(reply, np.float32)[0, 0]) if reply.status == 200 else -reply.status


class LightLoad:
    """One client of a server, which asks again soon after each answer. `wrong`: whatever was no answer."""

    def __init__(self, server: ServerProcess, target: str) -> None:
        self._server = server
        self._target = target
        self._stopping = False
        self.answered: Counter[int] = Counter()
        self.wrong: list[str] = []

    async def start(self) -> None:
        self._connection = await connect(self._server.http_port, self._on_reply)
        self._connection.send(_infer(self._target))

    def _on_reply(self, connection: RawConnection, reply: RawReply) -> None:
        if reply.status == 200:
            self.answered[int(binary_output(reply, np.float32)[0, 0])] += 1
        else:
            self.wrong.append(f"{reply.status} {reply.body!r}")
        if not self._stopping:
            asyncio.get_running_loop().call_later(GAP_S, connection.send, _infer(self._target))

    async def stop(self) -> None:
        self._stopping = True
        self._connection.close()
        await self._connection.ended
        assert not self._connection.was_reset


def _infer(target: str) -> bytes:
    return binary_infer("m", "x", "FP32", X).replace(b"/v2/models/m/infer", target.encode(), 1)


@asynccontextmanager
async def light_load(*servers: ServerProcess, target: str = "/v2/models/m/infer") -> AsyncIterator[list[LightLoad]]:
    """On each of them, for as long as the block takes; then nothing must have gone wrong."""
    loads = [LightLoad(server, target) for server in servers]
    for load in loads:
        await load.start()
    yield loads
    for load in loads:
        await load.stop()
        assert not load.wrong, load.wrong[:5]
        assert load.answered

"""Two real servers with one store: a change through either is so on both, whatever fails meanwhile, and no request does.

Each version of a model adds its own number to what it gets, so every answer shows which one gave it.
"""

import asyncio
import json
import signal
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from dlproxy.cli import USER_ERROR, main
from tests.clients.raw import connect, post
from tests.clients.server import HANG_S, ServerProcess
from tests.faults.nodes import State, answer, ask, light_load, node, operate, serving, states, until
from tests.faults.test_rollouts_under_load import adds
from tests.fleet.redis_server import RedisServer

M = "/v2/models/m/infer"


class Nodes:
    """`url`: of their store. `start`: one whose configuration has these models, each of which adds 1."""

    def __init__(self, folder: Path, url: str, stack: ExitStack) -> None:
        self.folder = folder
        self.url = url
        self._stack = stack

    def start(self, name: str, *models: str) -> ServerProcess:
        configured = {model: {"path": adds(1, self.folder)} for model in models}
        return self._stack.enter_context(node(self.folder, name, self.url, configured))


@pytest.fixture
def redis(tmp_path: Path) -> Iterator[RedisServer]:
    folder = tmp_path / "redis"
    folder.mkdir()
    server = RedisServer(folder)
    yield server
    server.kill()


@pytest.fixture(params=["folder", "redis"])
def nodes(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Nodes]:
    url = str(tmp_path / "store") if request.param == "folder" else request.getfixturevalue("redis").url
    with ExitStack() as stack:
        yield Nodes(tmp_path, url, stack)


@pytest.fixture
def with_redis(redis: RedisServer, tmp_path: Path) -> Iterator[Nodes]:
    with ExitStack() as stack:
        yield Nodes(tmp_path, redis.url, stack)


@pytest.fixture
def with_folder(tmp_path: Path) -> Iterator[Nodes]:
    with ExitStack() as stack:
        yield Nodes(tmp_path, str(tmp_path / "store"), stack)


def _default(told: dict[tuple[str, str], State]) -> str:
    return next((version for (name, version), state in told.items() if name == "m" and state["default"]), "")


async def test_what_one_node_is_told_is_so_on_both(nodes: Nodes) -> None:
    a, b = nodes.start("a", "m"), nodes.start("b", "m")
    async with light_load(a, b) as loads:
        await operate(a, "m", "load", path=str(adds(2, nodes.folder)))
        await until(lambda told: _default(told) == "2", a, b)
        await operate(b, "m", "label", label="old", version="1")
        await until(lambda told: told["m", "1"]["labels"] == ["old"], a, b)
        assert await answer(a, "/v2/models/m/versions/old/infer") == 1
        await operate(a, "m", "canary", version="1", share=0.25)
        await until(lambda told: told["m", "1"]["share"] == 0.25, a, b)
        await operate(b, "m", "rollback")
        await until(lambda told: told["m", "1"]["share"] == 0.0, a, b)
        await operate(b, "n", "load", path="sleep:base=1ms", config={"run": "thread"})
        await operate(a, "n", "scale", instances=2)
        await until(lambda told: len(told["n", "1"]["instances"]) == 2, a, b)
        await operate(b, "n", "unload")
        await until(lambda told: ("n", "1") not in told, a, b)
        await operate(b, "m", "unload", version="1")
        await until(lambda told: serving(told) == {("m", "2")}, a, b)
    assert all({1, 2} == load.answered.keys() for load in loads)


async def test_changes_at_once_are_all_kept(nodes: Nodes) -> None:
    a, b = nodes.start("a", "m"), nodes.start("b", "m")
    path = str(adds(2, nodes.folder))
    async with light_load(a, b):
        changes = [operate((a, b)[number % 2], f"n{number}", "load", path=path) for number in range(8)]
        changes += [operate((a, b)[number % 2], "m", "label", label=f"l{number}", version="1") for number in range(8)]
        changes += [
            operate(a, "m", "load", path=path, version="2", share=0.0),
            operate(b, "m", "set", version="1", knobs={"max_batch": 7}),
        ]
        changes += [operate(a, "m", "load", path="missing.onnx", version="9", status=400)]
        await asyncio.gather(*changes)
        everything = {("m", "1"), ("m", "2"), *((f"n{number}", "1") for number in range(8))}
        await until(lambda told: serving(told) == everything, a, b, within_s=5.0)
        await until(lambda told: told["m", "1"]["knobs"]["max_batch"] == 7, a, b)
        await until(lambda told: set(told["m", "1"]["labels"]) == {f"l{number}" for number in range(8)}, a, b)
        both = await asyncio.gather(
            *(ask(server.control_port, "/models/m/load", path=path) for server in (a, b)),
        )
        assert [reply.status for reply in both] == [200, 200]
        await until(lambda told: serving(told) == everything | {("m", "3"), ("m", "4")}, a, b)


@pytest.mark.parametrize("way", ["paused", "killed"])
async def test_without_redis_nodes_go_on_and_refuse_changes(
    way: str, redis: RedisServer, with_redis: Nodes, capsys: pytest.CaptureFixture[str]
) -> None:
    a, b = with_redis.start("a", "m"), with_redis.start("b", "m")
    async with light_load(a, b):
        redis.pause() if way == "paused" else redis.kill()
        told = await operate(a, "m", "load", path=str(adds(2, with_redis.folder)), status=503)
        assert f"store {with_redis.url}" in told["error"]
        assert "cannot be reached" in told["error"]
        code = await asyncio.to_thread(
            main, ["models", "label", "m", "x", "1", "--control", f"http://127.0.0.1:{b.control_port}"]
        )
        (line,) = capsys.readouterr().err.splitlines()
        assert code == USER_ERROR
        assert "cannot be reached" in line
        assert serving(await states(a)) == serving(await states(b)) == {("m", "1")}
        redis.go_on() if way == "paused" else redis.start()
        await operate(b, "m", "load", path=str(adds(3, with_redis.folder)), version="3")
        await until(lambda told: _default(told) == "3", a, b, within_s=8.0)
    assert "Traceback" not in a.errors() + b.errors()


async def test_a_broken_canary_while_redis_is_away_loses_its_share_when_it_is_back(
    redis: RedisServer, with_redis: Nodes
) -> None:
    broken = with_redis.folder / "breaks.py"
    broken.write_text(
        "from pathlib import Path\n\n\nclass M:\n    inputs, outputs = {'x': 'FP32[N,1]'}, {'y': 'FP32[N,1]'}\n\n"
        "    def predict(self, batch):\n        if Path(__file__).with_name('break').exists():\n"
        "            raise ValueError('broken')\n        return {'y': batch['x'] + 2}\n"
    )
    a = with_redis.start("a", "m")
    await operate(a, "m", "load", path=f"{broken}:M", share=0.5)
    redis.kill()
    (with_redis.folder / "break").touch()
    async with asyncio.timeout(HANG_S):
        while "keeps its share" not in a.errors():
            assert await answer(a, M) in (1, -500)
    redis.start()
    async with asyncio.timeout(HANG_S):
        while (await states(a))["m", "2"]["share"]:
            await answer(a, M)
    assert {await answer(a, M) for _ in range(20)} == {1}
    assert "never retrieved" not in a.errors()


async def test_a_killed_node_takes_up_what_is_wanted(nodes: Nodes) -> None:
    a, b = nodes.start("a", "m"), nodes.start("b", "m")
    await operate(a, "m", "load", path=str(adds(2, nodes.folder)))
    await operate(a, "m", "label", label="old", version="1")
    await operate(b, "other", "load", path=str(adds(5, nodes.folder)))
    await until(lambda told: len(serving(told)) == 3, a, b)
    async with light_load(a):
        b.kill()
        await operate(a, "later", "load", path=str(adds(7, nodes.folder)))
        b = nodes.start("b", "m")
        told = await states(b)
        assert serving(told) == {("m", "1"), ("m", "2"), ("other", "1"), ("later", "1")}, "when it is ready"
        assert _default(told) == "2"
        assert told["m", "1"]["labels"] == ["old"]
        assert [await answer(b, f"/v2/models/{name}/infer") for name in ("m", "other", "later")] == [2, 5, 7]
        assert serving(await states(a)) == serving(told), "what starts undoes nothing"


async def test_a_node_without_models_of_its_own(nodes: Nodes) -> None:
    a = nodes.start("a")
    await operate(a, "m", "load", path=str(adds(3, nodes.folder)))
    b = nodes.start("b")
    assert await answer(b, M) == 3


async def test_a_node_that_lacks_a_file_says_so_and_gets_it_later(with_folder: Nodes) -> None:
    a, b = with_folder.start("a", "m"), with_folder.start("b", "m")
    model, only_here = adds(4, with_folder.folder), with_folder.folder / "only_here.onnx"
    model.rename(only_here)
    await operate(a, "n", "load", path=str(only_here))
    await until(lambda told: ("n", "1") in serving(told), a, b)
    b.kill()
    only_here.rename(model)  # which the other has loaded already
    b = with_folder.start("b", "m")
    told = await states(b)
    assert told["n", "1"]["phase"] == "failed"
    assert f"{only_here} does not exist" in told["n", "1"]["reason"]
    assert await answer(a, "/v2/models/n/infer") == 4
    assert await answer(b, M) == 1
    assert ("n", "1") in serving(await states(a)), "what fails on one node is not taken back on the others"
    model.rename(only_here)
    await until(lambda told: ("n", "1") in serving(told), b, within_s=10.0)
    assert await answer(b, "/v2/models/n/infer") == 4


async def test_a_node_that_ends_while_it_changes_something_leaves_the_other_be(with_folder: Nodes) -> None:
    a, b = with_folder.start("a", "m"), with_folder.start("b", "m")
    async with light_load(a):
        for number in (0, 2, 4):
            connection = await connect(b.control_port)
            body = json.dumps({"path": str(adds(2, with_folder.folder))}).encode()
            connection.send(post(f"/models/n{number}/load", body))
            for _ in range(number):
                await states(a)  # which takes a moment
            b.send_signal(signal.SIGKILL)
            b.wait()
            await connection.ended
            connection.close()
            b = with_folder.start("b", "m")
            await operate(a, "m", "label", label=f"l{number}", version="1")
        await until(lambda told: len(told["m", "1"]["labels"]) == 3, a, b)

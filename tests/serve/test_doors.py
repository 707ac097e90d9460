"""The doors through which operators and clients change what is served, under garbage: answers, and no change after errors."""

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path
from time import monotonic
from urllib.parse import quote

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from dlproxy.autopilot.host import Autopilot
from dlproxy.config import CacheConfig, ModelConfig, ServerConfig
from dlproxy.config.knobs import HttpLimits
from dlproxy.fleet.control import Control
from dlproxy.fleet.repository.watcher import Repository
from dlproxy.instance.runtime import ModelError
from dlproxy.policy.changes import check_instances
from dlproxy.policy.wanted import Traffic, WantedModel, WantedVersion
from dlproxy.serve.caching.caches import Caches
from dlproxy.serve.operations import ACTIONS, ServerOperations, ServerRepository
from dlproxy.wire.catalog import Catalog
from dlproxy.wire.control.http import MOST_BODY, control_app
from dlproxy.wire.oip.http import OipApp
from tests.fleet.repository.fixtures import much_later, put
from tests.fleet.test_control import FakeModels
from tests.wire.fixtures import Client, Running, post, running
from tests.wire.test_control_http import ask

FIELDS = sorted({field for action in ACTIONS.values() for field in action.__struct_fields__})
NAMES = ["m", "m", "m", "r", "r", "new", "", "..", "a/b", "\0", "\ud800", "x" * 3000]
VERSIONS = {number: WantedVersion(ModelConfig(path="m.onnx", version=number)) for number in ("1", "2", "3")}
START = WantedModel(VERSIONS, default="2", labels={"stable": "2"}, traffic=Traffic({"3": 0.25}, guarded=True))

plausible = st.sampled_from(["1", "2", "m.onnx", "stable", "tenant", "", 0.5, 1, True, None, {"max_batch": 3}, {"speed": 1}])
leaves = st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(exclude_categories=()), max_size=8)
values = st.recursive(
    leaves, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner, max_size=4)
)
arguments = st.dictionaries(st.sampled_from(FIELDS) | st.text(max_size=4), plausible | values, max_size=4)
huge = st.sampled_from(
    [b"[" * 5000, b'{"knobs":' * 5000, b'{"share":1e999}', b'{"instances":%s}' % (b"9" * 5000), b" " * (MOST_BODY + 1)]
)
bodies = (
    arguments.map(lambda made: json.dumps(made).encode())
    | values.map(lambda made: json.dumps(made).encode())
    | huge
    | st.binary()
)
names = st.sampled_from(NAMES) | st.text(max_size=4)


class QuickModels(FakeModels):
    """Loads what is called m.onnx or model.onnx, at once."""

    async def load(self, name: str, config: ModelConfig) -> None:
        await asyncio.sleep(0)
        if Path(config.path).name not in ("m.onnx", "model.onnx"):
            raise ModelError(f"{config.path} is broken")
        self.up[name, config.version] = config

    async def unload(self, name: str, version: str, *, reason: str) -> None:
        del self.up[name, version]

    def check_knobs(self, name: str, version: str, knobs: object) -> None:
        pass

    def holds(self, name: str, version: str) -> dict[str, object]:
        return {}


class Doors:
    """Both, over one control plane that serves m, and can serve r from its repository."""

    def __init__(self, folder: Path) -> None:
        put(folder, "r/1/model.onnx")
        self.control = Control(QuickModels())
        repository = Repository(
            ServerConfig(repository=str(folder), repository_mode="explicit"), self.control.change, wall_ns=much_later
        )
        operations = ServerOperations(self.control, self.control._models, repository)  # type: ignore[arg-type]
        self.port = control_app(Catalog(), lambda: 0, operations, Autopilot(monotonic), Caches(CacheConfig(), monotonic))
        clients = ServerRepository(self.control, repository, "explicit")
        self.app = OipApp(Catalog(), HttpLimits(), clock=lambda: 0.0, server_timing=False, repository=clients)
        self.site: Running
        self.client: Client

    async def begin(self) -> None:
        await self.control.start()
        self._running = running(self.app)
        self.site = await self._running.__aenter__()
        self.client = await self.site.connect()

    async def end(self) -> None:
        await self.client.close()
        await self._running.__aexit__(None, None, None)
        await self.control.stop()

    async def operate(self, name: str, action: str, body: bytes) -> tuple[int, object]:
        target = f"/models/{quoted(name)}/{quoted(action)}"
        return await ask(self.port, "POST", target, body)

    async def load(self, name: str, action: str, body: bytes) -> tuple[int, object]:
        self.client.send(post(f"/v2/repository/models/{quoted(name)}/{quoted(action)}", body))
        reply = await self.client.reply()
        return reply.status, json.loads(reply.body or b"null")

    async def as_at_start(self) -> None:
        await self.control.change(lambda wanted: replace(wanted, models={"m": START}))
        for name in ("m", "r", "new"):
            await self.control.settled(name)


def quoted(text: str) -> str:
    return quote(text.encode("utf-8", "surrogatepass"), safe="")


@pytest.fixture(scope="module")
def doors(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[asyncio.Runner, Doors]]:
    with asyncio.Runner() as runner:
        made = Doors(tmp_path_factory.mktemp("repository"))
        runner.run(made.begin())
        yield runner, made
        runner.run(made.end())


def check(status: int, told: object, allowed: set[int]) -> bool:
    """Whether it was done; else it must say why not."""
    assert status in {200, *allowed}, (status, told)
    assert status == 200 or (isinstance(told, dict) and told["error"]) or told in ("Not Found", "Method Not Allowed"), told
    return status == 200


@settings(max_examples=75, deadline=None)
@given(names, st.sampled_from([*ACTIONS, "none"]) | st.text(max_size=4), bodies)
def test_the_control_port(doors: tuple[asyncio.Runner, Doors], name: str, action: str, body: bytes) -> None:
    async def one() -> None:
        await here.as_at_start()
        before = here.control.wanted.models
        status, told = await here.operate(name, action, body)
        if not check(status, told, {400, 404, 405, 503}):
            assert here.control.wanted.models == before
        for each in here.control.wanted.models.values():
            for version in each.versions.values():
                check_instances(version.instances or 0)

    runner, here = doors
    runner.run(one())


@settings(max_examples=40, deadline=None)
@given(names, st.sampled_from(["load", "load", "unload"]), bodies)
def test_the_repository_routes(doors: tuple[asyncio.Runner, Doors], name: str, action: str, body: bytes) -> None:
    async def one() -> None:
        await here.as_at_start()
        before = here.control.wanted.models
        status, told = await here.load(name, action, body)
        if not check(status, told, {400, 404, 501, 503}):
            assert here.control.wanted.models == before

    runner, here = doors
    runner.run(one())

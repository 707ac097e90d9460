"""What is wanted becomes what is served: in order, again after failures, and without a moment with nothing in place."""

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from functools import partial

import msgspec
import pytest

from dlproxy.config import ConfigError, ModelConfig
from dlproxy.config.pipelines import PIPELINE, StepConfig
from dlproxy.fleet.control import Control, Facts
from dlproxy.fleet.store import MemoryStore
from dlproxy.instance.runtime import ModelError
from dlproxy.policy.changes import scaled, with_versions
from dlproxy.policy.planner import Key, Routes
from dlproxy.policy.wanted import Wanted, WantedModel, WantedVersion

pytestmark = pytest.mark.looptime(idle_step=0.1, idle_timeout=1.0)  # whoever waits for ever fails, and does not hang

LOAD_S = 2.0


class FakeModels:
    """Loads within two seconds, unless its path says otherwise."""

    def __init__(self) -> None:
        self.up: dict[Key, ModelConfig] = {}
        self.routes: dict[str, Routes] = {}
        self.did: list[str] = []
        self.broken: set[str] = set()
        self.coming: dict[Key, asyncio.Task[None]] = {}
        self.loading = self.unmeasured = 0

    async def load(self, name: str, config: ModelConfig) -> None:
        await asyncio.wait_for(asyncio.Event().wait(), LOAD_S) if config.path == "hangs.onnx" else await later(LOAD_S)
        if config.path in self.broken:
            raise ModelError(f"{config.path} is broken")
        self.up[name, config.version] = config
        self.did.append(f"load {name}/{config.version}")

    async def replace(self, name: str, version: str, config: ModelConfig) -> None:
        self.coming[name, version] = asyncio.ensure_future(self.load(name, config))
        await self.coming[name, version]
        self.did[-1] = f"replace {name}/{version}"

    def give_up(self, name: str, version: str) -> None:
        self.coming[name, version].cancel()

    async def adjust(self, name: str, version: str, before: WantedVersion, after: WantedVersion) -> None:
        self.did.append(f"adjust {name}/{version}")

    async def unload(self, name: str, version: str, *, reason: str) -> None:
        assert (
            len([key for key in self.up if key[0] == name]) > 1
            or name not in self.routes
            or "wanted" in reason
            or "memory" in reason
        )
        await later(1.0)
        del self.up[name, version]
        self.did.append(f"unload {name}/{version}")

    def route(self, name: str, routes: Routes) -> None:
        assert (name, routes.default) in self.up
        self.routes[name] = routes
        self.did.append(f"route {name} to {routes.default}")

    def facts(self) -> Mapping[Key, Facts]:
        return {key: Facts(self.size_of(config), 0.0, busy=False) for key, config in self.up.items()}

    def size_of(self, config: ModelConfig) -> int:
        return 100

    def loading_bytes(self, config: ModelConfig) -> int:
        return self.loading

    def unmeasured_bytes(self) -> int:
        return self.unmeasured


async def later(seconds: float) -> None:
    done = asyncio.Event()
    asyncio.get_running_loop().call_later(seconds, done.set)
    await done.wait()


@pytest.fixture
async def models() -> FakeModels:
    return FakeModels()


@pytest.fixture
async def control(models: FakeModels) -> AsyncIterator[Control]:
    made = Control(models, clock=asyncio.get_running_loop().time)
    await made.start()
    yield made
    await made.stop()


def a_model(*versions: str, path: str = "m.onnx", **fields: object) -> WantedModel:
    found = {version: WantedVersion(ModelConfig(path=path, version=version)) for version in versions}
    return WantedModel(found, **fields)  # type: ignore[arg-type]


def having(name: str, model: WantedModel | None) -> Callable[[Wanted], Wanted]:
    return lambda wanted: wanted.having(name, model)


async def test_whoever_shows_states_hears_when_to_look_again(control: Control) -> None:
    seen: dict[int, object] = {}
    await control.change(having("m", a_model("1")))
    for _ in range(60):
        states = [(state.phase, state.default, state.share) for state in control.states()]
        assert seen.setdefault(control.changes, states) == states
        await later(0.1)
    assert [state.phase for state in control.states()] == ["serving"]
    assert len(seen) > 1


async def test_an_update_loads_then_switches_then_unloads(models: FakeModels, control: Control) -> None:
    await control.change(having("m", a_model("1")))
    await control.settled("m")
    await control.change(having("m", a_model("2")))
    await control.settled("m")
    assert models.did == ["load m/1", "route m to 1", "load m/2", "route m to 2", "unload m/1"]
    await control.change(having("m", None))
    await control.settled("m")
    assert not models.up
    assert control.states() == []


async def test_a_load_that_takes_long_is_in_the_log(
    models: FakeModels, control: Control, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level("INFO"), pytest.MonkeyPatch.context() as patch:
        patch.setattr("tests.fleet.test_control.LOAD_S", 40.0)
        await control.change(having("m", a_model("1")))
        await control.settled("m")
        await later(100.0)
    said = [line for line in caplog.messages if "still loading" in line]
    assert said == [f"model 'm' version 1: still loading after {seconds} s" for seconds in (5, 15, 35)]


async def test_a_failed_update_says_why_and_keeps_what_serves(
    models: FakeModels, control: Control, caplog: pytest.LogCaptureFixture
) -> None:
    await control.change(having("m", a_model("1")))
    await control.settled("m")
    models.broken.add("new.onnx")
    await control.change(having("m", a_model("2", path="new.onnx")))
    with pytest.raises(ModelError, match=r"new\.onnx is broken"):
        await control.settled("m")
    assert {(state.version, state.phase, state.reason) for state in control.states()} == {
        ("1", "serving", ""),
        ("2", "failed", "new.onnx is broken"),
    }
    await later(10.0)
    assert "next attempt in 2 s" in caplog.text
    assert "the one that serves stays" not in caplog.text
    models.broken.clear()
    await later(20.0)
    assert list(models.up) == [("m", "2")]


async def test_mended_content_need_not_wait(models: FakeModels, control: Control) -> None:
    models.broken.add("bad.onnx")
    await control.change(having("m", a_model("1", path="bad.onnx")))
    await later(100.0)
    before = asyncio.get_running_loop().time()
    await control.change(having("m", a_model("1", path="good.onnx")))
    await control.settled("m")
    assert asyncio.get_running_loop().time() - before < 2 * LOAD_S + 0.1


async def test_what_loads_and_is_no_longer_wanted_goes_again(models: FakeModels, control: Control) -> None:
    await control.change(having("m", a_model("1")))
    await later(0.5)
    await control.change(having("m", None))
    await control.settled("m")
    assert not models.up


async def test_knobs_and_instances_change_in_place(models: FakeModels, control: Control) -> None:
    await control.change(having("m", a_model("1")))
    await control.settled("m")
    await control.change(lambda wanted: wanted.having("m", scaled(wanted.model("m"), "", 3)))
    await control.settled("m")
    assert models.did[-1] == "adjust m/1"
    await control.change(lambda wanted: wanted.having("m", with_versions(wanted.model("m"), a_model("1").versions)))
    assert control.wanted.model("m").versions["1"].instances == 3


async def test_demand_loads_and_memory_decides_who_stays(models: FakeModels, caplog: pytest.LogCaptureFixture) -> None:
    control = Control(models, memory_bytes=250, clock=asyncio.get_running_loop().time)
    await control.start()
    for name in "abc":
        await control.change(having(name, a_model("1", on_demand=True)))
    await control.settled("a")
    await asyncio.gather(control.demand("a"), control.demand("a"), control.demand("b"))
    with caplog.at_level("INFO"):
        await control.demand("c")
    assert "its memory is needed" not in caplog.text, "which happens all the time"
    assert set(models.up) == {("b", "1"), ("c", "1")}
    await control.demand("c")
    assert models.did.count("load c/1") == 1
    await control.stop()


@pytest.mark.parametrize(("loading", "unmeasured", "stay"), [(50, 0, 2), (51, 0, 1), (30, 37, 2), (30, 38, 1), (0, 1000, 1)])
async def test_a_load_has_room_for_what_it_needs_besides(models: FakeModels, loading: int, unmeasured: int, stay: int) -> None:
    models.loading, models.unmeasured = loading, unmeasured
    control = Control(models, memory_bytes=350, clock=asyncio.get_running_loop().time)
    await control.start()
    for name in "abc":
        await control.change(having(name, a_model("1", on_demand=True)))
        await control.demand(name)
    assert len(models.up) == stay + 1
    await control.stop()


async def test_whoever_waits_for_what_cannot_be_loaded_hears_why(models: FakeModels, control: Control) -> None:
    models.broken.add("bad.onnx")
    await control.change(having("m", a_model("1", path="bad.onnx", on_demand=True)))
    for _ in range(2):  # the second one is told at once
        with pytest.raises(ModelError, match="is broken"):
            await control.demand("m")
    assert asyncio.get_running_loop().time() < 2 * LOAD_S
    await control.demand("unknown")


async def test_a_demand_for_a_version_or_label_waits_for_that_one(models: FakeModels, control: Control) -> None:
    await control.change(having("m", a_model("1", "2", labels={"canary": "2"}, on_demand=True)))
    assert [control.may_come("m", version) for version in ("", "1", "canary", "3")] == [True, True, True, False]
    assert not control.may_come("unknown")
    await asyncio.gather(control.demand("m", "canary"), control.demand("m", "2"))
    assert set(models.up) == {("m", "1"), ("m", "2")}
    await control.demand("m", "3")


async def test_a_demand_for_what_is_leaving_loads_it_again(models: FakeModels) -> None:
    control = Control(models, memory_bytes=150, clock=asyncio.get_running_loop().time)
    await control.start()
    for name in "ab":
        await control.change(having(name, a_model("1", on_demand=True)))
    await control.demand("a")
    other = asyncio.create_task(control.demand("b"))
    await later(0.5)
    assert [state.phase for state in control.states()] == ["leaving", "wanted"]
    await control.demand("a")
    assert models.did[-1] == "route a to 1"
    assert ("a", "1") in models.up
    await other
    await control.stop()


async def test_two_who_change_at_once_lose_nothing(models: FakeModels) -> None:
    store = MemoryStore()
    controls = [Control(FakeModels(), store, clock=asyncio.get_running_loop().time) for _ in range(2)]
    for control in controls:
        await control.start()
    edits = [partial(control.change, having(f"m{number}", a_model("1"))) for number, control in enumerate(controls * 5)]
    await asyncio.gather(*(edit() for edit in edits))
    for number in range(10):
        for control in controls:
            await control.settled(f"m{number}")
    assert all(len(control.states()) == 10 and control.wanted.revision == 10 for control in controls)
    for control in controls:
        await control.stop()


async def test_an_edit_that_makes_no_sense_changes_nothing(control: Control) -> None:
    with pytest.raises(ConfigError, match="label 'x' is version 3"):
        await control.change(having("m", a_model("1", labels={"x": "3"})))
    assert control.wanted == Wanted()


@pytest.mark.parametrize("instead", ["m.onnx", "other.onnx", ""])
@pytest.mark.parametrize("first", ["m.onnx", ""])
async def test_a_load_that_hangs_is_given_up_when_something_else_is_wanted(
    models: FakeModels, control: Control, first: str, instead: str
) -> None:
    """`first`: what serves already as this version; `instead`: what is wanted then. Empty: nothing."""
    if first:
        await control.change(having("m", a_model("1", path=first)))
        await control.settled("m")
    await control.change(having("m", a_model("1", path="hangs.onnx")))
    begun = asyncio.get_running_loop().time()
    await later(0.1)
    assert control.states()[0].phase == ("changing" if first else "loading")
    await control.change(having("m", a_model("1", path=instead) if instead else None))
    await control.settled("m")
    assert {config.path for config in models.up.values()} == ({instead} if instead else set())
    took = asyncio.get_running_loop().time() - begun
    assert took == pytest.approx(0.1 + LOAD_S * (instead not in ("", first)) + 1.0 * bool(first and not instead))


async def test_stopping_gives_up_what_loads(models: FakeModels, control: Control) -> None:
    await control.change(having("m", a_model("1", path="hangs.onnx")))
    waiting = asyncio.create_task(control.settled("m"))
    await later(0.1)
    await control.stop()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert not models.up


async def test_a_pipeline_waits_for_its_models_and_says_which(
    models: FakeModels, control: Control, caplog: pytest.LogCaptureFixture
) -> None:
    steps = {"read": StepConfig(model="rec", inputs={"x": "x"})}
    ocr = WantedVersion(ModelConfig(path=PIPELINE, outputs={"y": "read.y"}, steps=steps))
    models.broken.add("m.onnx")
    await control.change(having("ocr", WantedModel({"1": ocr}, on_demand=True)))
    with pytest.raises(ConfigError, match="stage 'read': model 'rec' is not served here; there is no other model"):
        await control.demand("ocr")
    await control.change(having("rec", a_model("1", on_demand=True)))
    with pytest.raises(ConfigError, match=r"stage 'read': model 'rec' is not loaded: m\.onnx is broken"):
        await control.demand("ocr")
    models.broken.clear()
    await later(4.0)
    assert not models.up
    await control.demand("ocr")
    assert models.did == ["load rec/1", "route rec to 1", "load ocr/1", "route ocr to 1"]
    assert "next attempt in inf" not in caplog.text


async def test_what_a_pipeline_waits_for_is_told(models: FakeModels, control: Control) -> None:
    steps = {name: StepConfig(model=name, inputs={"x": "x"}) for name in ("det", "rec")}
    ocr = WantedVersion(ModelConfig(path=PIPELINE, outputs={"y": "rec.y"}, steps=steps))
    added = {"ocr": WantedModel({"1": ocr}), "det": a_model("1"), "rec": a_model("1")}
    await control.change(lambda wanted: msgspec.structs.replace(wanted, models=added))
    told = []
    for seconds in (0.0, LOAD_S + 0.1, LOAD_S + 0.1):
        await later(seconds)
        told += [(state.phase, state.reason) for state in control.states() if state.name == "ocr"]
    assert told == [("wanted", "waits for det, rec"), ("wanted", "waits for rec"), ("loading", "")]

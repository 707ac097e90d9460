"""Models come, go and are replaced while others serve; what fails changes nothing, and what goes leaves nothing behind."""

import asyncio
import gc
import os
import re
import threading
import weakref
from collections.abc import AsyncIterator
from contextlib import suppress
from pathlib import Path
from random import Random

import msgspec
import numpy as np
import pytest

from dlproxy.config import ConfigError, ModelConfig, ServerConfig
from dlproxy.fleet.control import Control
from dlproxy.fleet.local import LocalFleet
from dlproxy.instance.runtime import ModelError
from dlproxy.message import DType, FailureKind, InferenceError, Request, Tensor, Ticket
from dlproxy.policy.planner import Routes
from dlproxy.policy.wanted import Traffic, WantedModel, WantedVersion
from dlproxy.serve.assemble import LoadedModel
from dlproxy.serve.models import Models
from dlproxy.telemetry.event_log import LogError, replay
from tests import models
from tests.serve.rig import Reply, turns

SLEEP = "sleep:base=5ms"


@pytest.fixture
async def some() -> AsyncIterator[Models]:
    made = Models(ServerConfig(calibration_folder="", drain_s=5.0))
    yield made
    await made.drain()


def instance_threads() -> list[str]:
    """Of models named by a letter; the runtimes of other tests have threads too."""
    return [thread.name for thread in threading.enumerate() if re.fullmatch(r"dlproxy-[a-z]-\d+", thread.name)]


def sleeping(version: str = "1", path: str = SLEEP) -> ModelConfig:
    return ModelConfig(path=path, version=version, run="thread", threads=1)


def ask(model: LoadedModel) -> Reply:
    tensor = Tensor("x", DType.FP32, (1, 1), np.ones((1, 1), np.float32).tobytes())
    reply = Reply(Request(Ticket(next(_ids), asyncio.get_running_loop().time()), "m", [tensor], (0,)))
    model.driver.submit(reply.request, reply)
    return reply


_ids = iter(range(1, 10**6))


def phases(some: Models) -> dict[str, str]:
    """Of what is up: "serving", "serving default" or "being unloaded"."""
    found = {f"{name}/{version}": "being unloaded" for name, version in some.facts()}
    for name, version in names(some):
        found[f"{name}/{version}"] = "serving default" if some.catalog.get(name).version == version else "serving"
    return found


def names(some: Models) -> list[tuple[str, str]]:
    return [(served.name, served.version) for served in some.catalog]


async def test_a_model_is_in_the_catalog_when_it_is_warm_and_out_of_it_when_it_goes(some: Models) -> None:
    loading = asyncio.ensure_future(some.load("m", sleeping()))
    await asyncio.sleep(0)
    assert (names(some), phases(some)) == ([], {})
    assert what_is_heard_of(some, "m") == "unavailable: model 'm' version 1 is being loaded"
    model = await loading
    assert (names(some), phases(some), list(some)) == ([("m", "1")], {"m/1": "serving default"}, [model])
    running, queued = ask(model), ask(model)
    await asyncio.sleep(0)
    unloading = asyncio.ensure_future(some.unload("m"))
    await turns()
    assert (names(some), phases(some)) == ([], {"m/1": "being unloaded"})
    assert what_is_heard_of(some, "m") == "unavailable: model 'm' version 1 is being unloaded"
    late = ask(model)
    await unloading
    assert running.answered
    assert queued.answered
    assert (running.kind, queued.kind) == (None, None), "what is under way is finished"
    assert late.failure is not None
    assert (late.kind, late.failure.message) == (FailureKind.UNAVAILABLE, "model 'm' is being unloaded")
    assert phases(some) == {}
    assert what_is_heard_of(some, "m") == "not_found: Request for unknown model: 'm' is not found; no model is served"


async def test_a_load_that_hangs_fails_and_does_not_hold_up_others(some: Models, tmp_path: Path) -> None:
    (tmp_path / "hangs.py").write_text(HANGS)
    hangs = ModelConfig(path=f"{tmp_path / 'hangs.py'}:M", run="thread", load_timeout_s=0.2)
    hanging = asyncio.ensure_future(some.load("h", hangs))
    await asyncio.sleep(0)
    loading = asyncio.ensure_future(some.load("m", sleeping()))
    with pytest.raises(ModelError, match=r"model 'h' did not load within 0\.2 s \(load_timeout_s\)"):
        await hanging
    await loading
    assert names(some) == [("m", "1")]
    (tmp_path / "go").touch()  # so that its thread ends


async def test_a_replacement_that_hangs_is_given_up_and_nothing_has_changed(some: Models, tmp_path: Path) -> None:
    (tmp_path / "hangs.py").write_text(HANGS)
    old = await some.load("m", sleeping())
    some.give_up("m", "1")
    hanging = asyncio.ensure_future(some.replace("m", "", ModelConfig(path=f"{tmp_path / 'hangs.py'}:M", run="thread")))
    while not (tmp_path / "begun").exists():
        await turns(20)
    some.give_up("m", "1")
    with pytest.raises(asyncio.CancelledError):
        await hanging
    assert list(some) == [old]
    assert some.hangs, "its thread does"
    assert (await ask(old).wait()).kind is None
    await some.replace("m", "", sleeping())
    (tmp_path / "go").touch()  # so that its thread ends


HANGS = """
from pathlib import Path
from threading import Event

class M:
    inputs = outputs = {"x": "FP32[N,1]"}

    def __init__(self):
        Path(__file__).with_name("begun").touch()
        while not Path(__file__).with_name("go").exists():
            Event().wait(0.01)

    def predict(self, batch):
        return batch
"""


def what_is_heard_of(some: Models, name: str) -> str:
    """By clients who ask for what is not served."""
    with pytest.raises(InferenceError) as caught:
        some.catalog.get(name)
    return f"{caught.value.failure.kind.value}: {caught.value.failure.message}"


async def test_a_replacement_is_up_before_the_old_one_goes(some: Models) -> None:
    old = await some.load("m", sleeping())
    under_way = ask(old)
    await asyncio.sleep(0)
    replacing = asyncio.ensure_future(some.replace("m", "", sleeping()))
    while not replacing.done():
        assert some.catalog.get("m").ready
        await turns(1)
    new = await replacing
    assert under_way.kind is None
    assert under_way.answered
    assert names(some) == [("m", "1")]
    assert list(some) == [new]
    assert not old.driver.ready
    newer = await some.replace("m", "1", sleeping("2"))
    assert names(some) == [("m", "2")]
    assert some.catalog.get("m") is newer.served


async def test_another_max_batch_is_taken_up_in_place_or_by_loading_again(some: Models) -> None:
    control = Control(some)
    await control.start()
    first = None
    for most, again in ((8, False), (2, False), (8, False), (16, True)):
        wanted = WantedVersion(msgspec.structs.replace(sleeping(), max_batch=most, max_queue_rows=most))
        await control.change(lambda before, wanted=wanted: before.having("m", WantedModel({"1": wanted})))  # type: ignore[misc]
        await control.settled("m")
        (model,) = some
        assert (model.served.max_batch, model.control.state()["knobs"]["max_batch"]) == (most, most)
        assert (model is not (first or model)) is again
        first = first or model
    await control.stop()


async def test_the_default_version_is_the_last_unless_told_otherwise(some: Models) -> None:
    for version in ("1", "2", "3"):
        await some.load("m", sleeping(version))
    assert some.catalog.get("m").version == "3"
    some.route("m", Routes("1", {}, Traffic()))
    assert phases(some) == {"m/1": "serving default", "m/2": "serving", "m/3": "serving"}
    await some.unload("m", "1")
    assert some.catalog.get("m").version in ("2", "3")
    with pytest.raises(InferenceError, match="version 9 is not found"):
        some.route("m", Routes("9", {}, Traffic()))
    await some.unload("m")
    assert names(some) == []


async def test_a_load_that_fails_leaves_everything_as_it_was(some: Models, tmp_path: Path) -> None:
    (tmp_path / "broken.onnx").write_bytes(b"nonsense")
    model = await some.load("m", sleeping())
    for attempt in (some.load("n", sleeping(path=str(tmp_path / "broken.onnx"))), some.replace("m", "", broken(tmp_path, "2"))):
        with pytest.raises(ModelError, match=r"broken\.onnx"):
            await attempt
    with pytest.raises(ConfigError, match="'m' version 1 is served already"):
        await some.load("m", sleeping())
    with pytest.raises(InferenceError, match="'n' is not found"):
        await some.replace("n", "", sleeping())
    with pytest.raises(InferenceError, match="version 7 is not found"):
        await some.unload("m", "7")
    assert phases(some) == {"m/1": "serving default"}
    assert what_is_heard_of(some, "n").startswith("not_found: ")
    reply = await ask(model).wait()
    assert reply.kind is None


def broken(folder: Path, version: str) -> ModelConfig:
    return ModelConfig(path=str(folder / "broken.onnx"), version=version)


async def test_what_was_up_of_a_model_that_failed_in_the_end_is_stopped(tmp_path: Path) -> None:
    before = instance_threads()
    (tmp_path / "taken").write_text("a file where the folder should be")
    some = Models(ServerConfig(calibration_folder="", event_log=str(tmp_path / "taken")))
    with pytest.raises(LogError):
        await some.load("m", sleeping())
    assert instance_threads() == before
    assert phases(some) == {}


async def test_one_change_of_a_version_at_a_time(some: Models) -> None:
    model = await some.load("m", sleeping())
    under_way = ask(model)
    replacing = asyncio.ensure_future(some.replace("m", "", sleeping("2")))
    await asyncio.sleep(0)
    with pytest.raises(ConfigError, match="'m' version 1 is being replaced: wait"):
        await some.unload("m")
    with pytest.raises(ConfigError, match="'m' version 2 is loading: wait"):
        await some.load("m", sleeping("2"))
    await replacing
    assert under_way.answered
    await some.unload("m")


async def test_unloading_waits_no_longer_than_it_may(some: Models) -> None:
    model = await some.load("m", sleeping(path="sleep:base=100ms"))
    first, second = ask(model), ask(model)
    await asyncio.sleep(0)
    third = ask(model)
    await asyncio.sleep(0)
    await some.unload("m", drain_s=0.0)
    assert {first.kind, second.kind, third.kind} == {FailureKind.UNAVAILABLE}
    assert third.failure is not None
    assert "being unloaded" in third.failure.message


async def test_an_unload_that_nobody_waits_for_any_more_goes_on(some: Models) -> None:
    model = await some.load("m", sleeping())
    under_way = ask(model)
    unloading = asyncio.ensure_future(some.unload("m"))
    await asyncio.sleep(0)
    unloading.cancel()
    await under_way.wait()
    await some.drain()
    assert not model.driver.ready
    assert phases(some) == {}


async def test_nothing_is_loaded_once_everything_stops(some: Models) -> None:
    loading = asyncio.ensure_future(some.load("m", sleeping()))
    await asyncio.sleep(0)
    await some.drain()
    with pytest.raises(ModelError, match="shutting down"):
        await loading
    with pytest.raises(ModelError, match="shutting down"):
        await some.load("n", sleeping())
    assert phases(some) == {}


@pytest.mark.parametrize("run", ["inline", "thread"])
async def test_weights_are_freed_without_a_collection(some: Models, run: str) -> None:
    config = ModelConfig(path=str(models.DIGITS), run=run, threads=1)  # type: ignore[arg-type]
    await some.load("steady", config)
    gc.collect()
    gc.disable()
    try:
        model = await some.load("digits", config)
        assert isinstance(model.fleet, LocalFleet)
        runtimes = [weakref.ref(warm.runtime) for warm in model.fleet._warm]
        assert all(runtime() is not None for runtime in runtimes)
        await some.replace("digits", "", config)  # `model` is still held here: whoever looks at it keeps no weights
        assert [runtime() for runtime in runtimes] == [None]
    finally:
        gc.enable()


async def test_worker_processes_end_with_their_model(some: Models) -> None:
    model = await some.load("m", ModelConfig(path=SLEEP, run="process"))
    (place,) = model.roster.places()
    os.kill(place["pid"], 0)
    under_way = ask(model)
    await turns()
    await some.unload("m")
    assert under_way.answered
    assert under_way.kind is None
    with pytest.raises(ProcessLookupError):
        os.kill(place["pid"], 0)


async def test_every_life_of_a_model_has_its_own_recording(tmp_path: Path) -> None:
    some = Models(ServerConfig(calibration_folder="", event_log=str(tmp_path)))
    for answers in (1, 2):
        model = await (some.load("m", sleeping()) if answers == 1 else some.replace("m", "", sleeping()))
        for _ in range(answers):
            await ask(model).wait()
    await some.unload("m")
    assert sorted(os.listdir(tmp_path)) == ["m-1.2.dlog", "m-1.dlog"]
    first, second = replay(tmp_path / "m-1.dlog"), replay(tmp_path / "m-1.2.dlog")
    assert first.first_difference is second.first_difference is None
    assert first.entries < second.entries


@pytest.mark.parametrize("arbiter", ["off", "on"])
async def test_any_changes_in_any_order_leave_nothing_behind(arbiter: str) -> None:
    """Several at a time, some of them refused, some not waited for; requests that are taken are answered."""
    before, random = instance_threads(), Random(7)
    settings = ServerConfig(calibration_folder="", cores=1, arbiter=arbiter, drain_s=5.0)  # type: ignore[arg-type]
    some = Models(settings)
    replies: list[Reply] = []

    async def change() -> None:
        name, version = random.choice("ab"), random.choice("12")
        run = random.choice(("inline", "thread"))
        config = ModelConfig(path="sleep:base=1ms", version=version, run=run, threads=1)  # type: ignore[arg-type]
        what = random.choice(("load", "load", "replace", "unload", "default", "scale"))
        with suppress(ConfigError, InferenceError):
            if what == "load":
                await some.load(name, config)
            elif what == "replace":
                await some.replace(name, random.choice(("", version)), config)
            elif what == "unload":
                await some.unload(name, random.choice(("", version)))
            elif what == "default":
                some.route(name, Routes(version, {}, Traffic()))
            else:
                control = some.catalog.get(name).control
                assert control is not None
                await control.scale(random.randint(1, 3))

    async def changes() -> None:
        for _ in range(40):
            changing = asyncio.ensure_future(change())
            replies.extend(ask(model) for model in some)
            if random.random() < 0.1:
                await turns(random.randint(1, 20))
                changing.cancel()
            with suppress(asyncio.CancelledError):
                await changing

    await asyncio.gather(*(changes() for _ in range(4)))
    await some.drain()
    assert len(replies) > 100
    assert {reply.kind for reply in replies if reply.answered} <= {None, FailureKind.UNAVAILABLE}
    assert all(reply.answered for reply in replies)
    answered = sum(reply.kind is None for reply in replies)
    assert answered > 0.9 * len(replies), f"{answered} of {len(replies)} were answered"
    assert phases(some) == {}
    assert some._turns is None or (some._turns.free == {"cores": 1} and not some._turns._takers)
    assert instance_threads() == before

"""Stages of pipelines that leave, come back, are replaced, or are pipelines themselves; and what code is told."""

import numpy as np
import pytest
from msgspec.structs import replace

from dlproxy.instance.runtime import ModelError
from dlproxy.message import DType, FailureKind, TensorSpec
from dlproxy.serve.pipelines.code import SEEN, CodeStage
from tests.serve.pipelines.rig import Answer, Floor, rows, step, times
from tests.serve.pipelines.test_runs import chain
from tests.serve.rig import SIGNATURE, pass_time, turns

pytestmark = pytest.mark.looptime(idle_step=0.1, idle_timeout=1.0)


async def test_a_stage_that_leaves_takes_the_pipeline_down_and_what_runs_may_end() -> None:
    floor = Floor()
    pipeline = chain(floor)
    passed, early = pipeline.send({"x": rows(1)}), pipeline.send({"x": rows(1)}, priority=1)
    await pass_time(0.015)
    floor.catalog.remove("m", "1")
    assert not pipeline.served.ready
    assert np.array_equal((await passed.wait()).outputs["y"], rows(4)), "it had passed that stage"
    await early.wait()
    answer = await pipeline.send({"x": rows(1)}).wait()
    assert (answer.kind, answer.at) == (FailureKind.UNAVAILABLE, answer.request.ticket.arrived_at)
    assert answer.why.startswith("stage 'a': model 'm' is not served: ")
    (place,) = pipeline.roster.places()
    assert (place["state"], place["last_problem"]) == ("lost", answer.why)
    floor.catalog.add(floor.stages["m"].served)
    assert pipeline.served.ready
    assert np.array_equal((await pipeline.ask({"x": rows(1)}))["y"], rows(4))
    assert [place["state"] for place in pipeline.roster.places()] == ["up"]
    await floor.rest()


async def test_what_has_not_reached_a_stage_that_left_fails_by_its_name() -> None:
    floor = Floor()
    pipeline = chain(floor)
    answer = pipeline.send({"x": rows(1)})
    await pass_time(0.005)
    await floor.stages["n"].driver.stop(0.0, "model 'n' is being unloaded")
    floor.catalog.remove("n", "1")
    assert (await answer.wait()).kind is FailureKind.UNAVAILABLE
    assert answer.why == "stage 'b' (model 'n'): model 'n' is being unloaded"
    await floor.rest()


async def test_a_version_that_takes_over_is_asked_at_once_if_it_fits() -> None:
    floor = Floor()
    pipeline = chain(floor)
    floor.model("m", times(100), version="2")
    assert (await pipeline.ask({"x": rows(1)}))["y"][0, 0] == 200
    other = replace(SIGNATURE, inputs=(TensorSpec("image", DType.FP32, (-1, -1)),))
    floor.model("m", signature=other, version="3")
    answer = await pipeline.send({"x": rows(1)}).wait()
    assert answer.why == "stage 'a': model 'm' takes no input 'x'; its inputs are image"
    floor.catalog.remove("m", "3")
    assert (await pipeline.ask({"x": rows(1)}))["y"][0, 0] == 200


async def test_a_stage_may_name_a_version_or_a_label() -> None:
    floor = Floor()
    floor.model("m")
    floor.model("m", times(100), version="2")
    floor.catalog.route("m", "2", {"old": "1"})
    steps = {"a": step("m:1", x="x"), "b": step("m:old", x="a.y"), "c": step("m", x="b.y")}
    assert (await floor.pipeline(steps, {"y": "c.y"}).ask({"x": rows(1)}))["y"][0, 0] == 400


async def test_a_pipeline_may_be_a_stage_and_is_cancelled_with_the_outer_one() -> None:
    floor = Floor()
    inner = chain(floor)
    outer = floor.pipeline({"in": step("p", x="x"), "m": step("m", x="in.y")}, {"y": "m.y"}, name="outer")
    assert np.array_equal((await outer.ask({"x": rows(1, 2)}))["y"], rows(8, 16))
    answer = outer.send({"x": rows(1)})
    await pass_time(0.005)
    outer.service.cancel(answer.request)
    await turns(5)
    assert not inner.fleet.runs
    floor.catalog.remove("m", "1")
    why = (await outer.send({"x": rows(1)}).wait()).why
    assert why.startswith("stage 'm': model 'm' is not served")
    await floor.rest()


async def test_a_pipeline_that_would_ask_itself_is_refused() -> None:
    floor = Floor()
    chain(floor)
    floor.pipeline({"in": step("p", x="x")}, {"y": "in.y"}, name="outer")
    with pytest.raises(ModelError, match="stage 'again': model 'outer' asks this pipeline itself, which is a circle"):
        floor.pipeline({"again": step("outer", x="x")}, {"y": "again.y"})


async def test_stopping_it_cancels_what_runs() -> None:
    floor = Floor()
    pipeline = chain(floor)
    answer = pipeline.send({"x": rows(1)})
    await pass_time(0.005)
    await pipeline.driver.stop(0.001, "the model is being unloaded")
    await pipeline.fleet.stop()
    assert answer.kind is FailureKind.UNAVAILABLE
    await floor.rest()


async def test_a_long_chain_of_cheap_code_runs_on_the_loop_and_lets_others_in_between() -> None:
    floor = Floor()
    steps = {f"s{number}": step(":plus_one", x=f"s{number - 1}.y" if number else "x") for number in range(150)}
    pipeline = floor.pipeline(steps, {"y": "s149.y"})
    for stage in pipeline.fleet.stages.values():
        assert isinstance(stage, CodeStage)
        for _ in range(SEEN):
            stage.pace.took(0.0, inline=False)
    assert (await pipeline.ask({"x": rows(0)}))["y"][0, 0] == 150
    assert floor.now() == 0.0
    await floor.rest()


async def test_code_is_told_of_the_request() -> None:
    floor = Floor()
    pipeline = floor.pipeline({"a": {**step(":names", x="x"), "headers": ["X-Lang", "X-Other"]}}, {"text": "a.text"})
    request = pipeline.request({"x": rows(1)})
    request.params, request.headers = {"k": 3}, {"x-lang": "de"}
    answer = Answer(request)
    pipeline.service.submit(request, answer)
    assert (await answer.wait()).outputs["text"].tolist() == [b"k=3", b"x-lang=de"]
    assert pipeline.fleet.headers == ("X-Lang", "X-Other", "x-dlproxy-via")

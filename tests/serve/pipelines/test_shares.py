"""A served pipeline's objective is shared out: its stages are told what to make their batches for, and when that ends."""

import pytest

from dlproxy.message import FailureKind
from tests.serve.rig import turns

from .rig import Floor, Pipeline, step

pytestmark = pytest.mark.looptime(idle_step=0.1, idle_timeout=1.0)  # whoever waits for ever fails, and does not hang

X = [[1.0]]


def shared(floor: Floor) -> tuple[Pipeline, dict[str, float | None]]:
    """A chain of a quick and a slow model, and what the models were told last."""
    told: dict[str, float | None] = {}
    for name, seconds in (("quick", 0.002), ("slow", 0.020)):
        stage = floor.model(name, service_s=seconds)
        stage.served.would_wait_s, stage.served.stage = stage.lane.would_wait_s, stage.lane.stage
        stage.served.aim = told.__setitem__
    steps = {"one": step("quick", x="x"), "two": step("slow", x="one.y")}
    pipeline = floor.pipeline(steps, {"y": "two.y"})
    pipeline.fleet.objective_s = lambda: 0.2
    return pipeline, told


async def test_the_stages_share_the_objective_until_the_pipeline_goes() -> None:
    floor = Floor()
    pipeline, told = shared(floor)
    await pipeline.ask({"x": X}, timeout_s=0.2)
    await turns()
    one_s, two_s = told["p.one"], told["p.two"]
    assert one_s is not None
    assert two_s is not None
    assert one_s + two_s == pytest.approx(0.2)
    assert two_s > 5 * one_s
    await pipeline.fleet.stop()
    assert told == {"p.one": None, "p.two": None}


async def test_without_an_objective_nothing_is_shared_out() -> None:
    floor = Floor()
    pipeline, told = shared(floor)
    pipeline.fleet.objective_s = lambda: None
    await pipeline.ask({"x": X}, timeout_s=0.2)
    await turns()
    assert told == {"p.one": None, "p.two": None}


async def test_who_would_be_late_at_the_last_stage_does_not_begin_the_first() -> None:
    floor = Floor()
    pipeline, _ = shared(floor)
    await pipeline.ask({"x": X}, timeout_s=1.0)
    answers = [pipeline.send({"x": X}, timeout_s=1.0) for _ in range(300)]
    await turns()
    late = pipeline.send({"x": X}, timeout_s=0.003)
    await late.wait()
    assert late.failure is not None
    assert late.failure.kind is FailureKind.DEADLINE
    assert "it would wait about" in late.failure.message
    for answer in answers:
        await answer.wait()
    await floor.rest()

"""Pipelines in virtual time: they go through their steps as wired, and online deadlines keep up with the best static split."""

from math import inf

import pytest

from benchmarks.pipelines.deadlines import CASES, Case, grid, online, run, static
from dlproxy.config.pipelines import StepConfig, wired
from dlproxy.lab.simulate.engine import Call
from dlproxy.lab.simulate.pipelines import SimulatedPipeline, StepPlan
from dlproxy.lab.simulate.service_times import Fitted
from dlproxy.lab.simulate.threads import SimulatedThreads
from dlproxy.message import FailureKind
from dlproxy.policy.knobs import LaneKnobs
from dlproxy.policy.pipelines import Pacing

from .fixtures import Planned, make_model, run_calls

BEST = {  # of `python -m benchmarks.pipelines.deadlines`
    "cheap, dear": (1 / 12, 11 / 12),
    "dear, cheap": (11 / 12, 1 / 12),
    "equal": (0.5, 0.5),
    "1 to 20 items": (5 / 12, 7 / 12),
    "3 stages": (1 / 8, 3 / 4, 1 / 8),
    "one core": (1 / 3, 2 / 3),
    "a stage of two": (2 / 3, 1 / 3),
}


def through(
    steps: dict[str, StepConfig],
    plans: dict[str, StepPlan],
    calls: list[Call],
    output: str = "last.y",
    threads: SimulatedThreads | None = None,
) -> tuple[SimulatedPipeline, dict[int, tuple[FailureKind | None, float]]]:
    """The pipeline "p" over models "quick" (10 ms) and "slow" (30 ms): 1 ms more for each row."""
    models = [
        make_model(name, Planned(base_s, 0.001, [1.0]), knobs=LaneKnobs(max_batch=8))
        for name, base_s in (("quick", 0.010), ("slow", 0.030))
    ]
    hung = wired(steps, ["x"], {"y": output})
    door = make_model("p", Fitted(0.001, 0.0), knobs=LaneKnobs(max_batch=1), instances=64 if threads else 1)
    door.pipeline = SimulatedPipeline(hung, plans, Pacing(hung), threads)
    simulation, _ = run_calls([*models, door], calls)
    return door.pipeline, simulation.ends


def test_steps_side_by_side_run_so_and_those_after_them_wait_for_both() -> None:
    steps = {
        "one": StepConfig(model="quick", inputs={"x": "x"}),
        "two": StepConfig(model="slow", inputs={"x": "x"}),
        "last": StepConfig(call="code", inputs={"a": "one.y", "b": "two.y"}),
    }
    plans = {"one": StepPlan("quick"), "two": StepPlan("slow"), "last": StepPlan(seconds=0.005)}
    pipeline, ends = through(steps, plans, [Call("p", 1, inf, 0.0)])
    assert ends[1] == (None, pytest.approx(0.031 + 0.005))
    assert {name: times.computed_s for name, times in pipeline.times.items()} == {
        "one": [pytest.approx(0.011)],
        "two": [pytest.approx(0.031)],
        "last": [pytest.approx(0.005)],
    }


def test_items_share_batches_and_come_together_again() -> None:
    steps = {
        "first": StepConfig(model="quick", inputs={"x": "x"}),
        "each": StepConfig(model="slow", inputs={"x": "first.y"}, each=True),
        "last": StepConfig(model="quick", inputs={"x": "each.y"}),
    }
    plans = {"first": StepPlan("quick"), "each": StepPlan("slow", items=(4,)), "last": StepPlan("quick", items=(0,))}
    pipeline, ends = through(steps, plans, [Call("p", 1, inf, 0.0)])
    assert len(pipeline.times["each"].computed_s) == 1
    assert ends[1][0] is None
    assert 0.011 + 0.034 <= ends[1][1] <= 0.011 + 4 * 0.031


def test_what_is_skipped_has_no_time_and_its_alternative_answers() -> None:
    steps = {
        "first": StepConfig(model="quick", inputs={"x": "x"}),
        "more": StepConfig(model="slow", inputs={"x": "first.y"}, when="first.unsure"),
    }
    plans = {"first": StepPlan("quick"), "more": StepPlan("slow", chance=0.0)}
    pipeline, ends = through(steps, plans, [Call("p", 1, inf, 0.0)], output="more.y | first.y")
    assert ends[1] == (None, pytest.approx(0.011))
    assert not pipeline.times["more"].computed_s
    _, ends = through(steps, plans, [Call("p", 1, inf, 0.0)], output="more.y")
    assert ends[1] == (FailureKind.MODEL_FAILED, pytest.approx(0.011))


def test_a_step_that_refuses_fails_the_request_and_takes_its_other_items_out() -> None:
    steps = {"last": StepConfig(model="slow", inputs={"x": "x"}, each=True)}
    calls = [Call("p", 1, 0.050, 0.0), Call("p", 1, 0.050, 0.0), Call("p", 1, inf, 0.001)]
    _, ends = through(steps, {"last": StepPlan("slow", items=(8,))}, calls)
    assert [ends[number][0] for number in (1, 2, 3)].count(FailureKind.DEADLINE) >= 1
    assert ends[3][0] is None


def code_alone(*names: str, each: bool = False) -> dict[str, StepConfig]:
    sources = ("x", *(f"{name}.y" for name in names))
    return {
        name: StepConfig(call="code", inputs={"x": source}, each=each) for name, source in zip(names, sources, strict=False)
    }


def test_code_waits_for_a_thread_and_what_needs_nothing_else_runs_behind_it() -> None:
    plans = {"first": StepPlan(seconds=0.010), "last": StepPlan(seconds=0.0001)}
    threads = SimulatedThreads(2)
    calls = [Call("p", 1, inf, 0.0) for _ in range(3)] + [Call("p", 1, 0.005, 0.001)]
    pipeline, ends = through(code_alone("first", "last"), plans, calls, threads=threads)
    assert [ends[number] for number in (1, 2, 3)] == [(None, pytest.approx(at)) for at in (0.0101, 0.0101, 0.0202)]
    assert ends[4][0] is FailureKind.DEADLINE
    assert pipeline.times["first"].waited_s == [pytest.approx(wait_s) for wait_s in (0.0, 0.0, 0.0101)]
    assert pipeline.times["last"].waited_s == [0.0, 0.0, 0.0]


@pytest.mark.parametrize("overload", [0.9, 2.0, 5.0])
def test_threads_do_what_they_can_in_time(overload: float) -> None:
    plans = {name: StepPlan(seconds=0.004, items=(2,)) for name in ("first", "last")}
    seconds, can = 4.0, 2 / 0.008
    calls = [Call("p", 1, 0.05, number / (overload * can)) for number in range(int(overload * can * seconds))]
    _, ends = through(code_alone("first", "last", each=True), plans, calls, threads=SimulatedThreads(2))
    in_time = [failure for failure, _ in ends.values() if failure is None]
    assert len(in_time) >= 0.9 * min(overload, 1.0) * can * seconds


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_online_deadlines_reach_the_goodput_of_the_best_static_split(case: Case) -> None:
    """At twice the capacity; nine tenths are promised (docs/internals/pipelines.md has the sweep)."""
    best = run(case, static(BEST[case.name], relative=False, entrance=False))
    ours = run(case, online)
    assert ours.goodput >= 0.9 * best.goodput


def test_the_first_stage_does_not_compute_what_dies_at_the_second() -> None:
    case = CASES[0]
    without = run(case, static(BEST[case.name], relative=False, entrance=False))
    assert without.lost > 0.5
    assert run(case, online).lost < 0.5 * without.lost


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_nobody_is_refused_without_need(case: Case) -> None:
    """At about half of what is reached under overload."""
    ours = run(case, online, load=0.3)
    assert ours.answered >= 0.995
    assert ours.refused <= 0.001


def test_static_splits_leave_nothing_out() -> None:
    assert grid(2, 3) == [(0.25, 0.75), (0.5, 0.5), (0.75, 0.25)]
    assert len(grid(3, 3)) == 3
    assert all(sum(shares) == pytest.approx(1.0) and min(shares) > 0.0 for shares in grid(3, 11))

"""The live phase on servers that are simulated with other batch times than the tuner believes in."""

from collections.abc import Mapping
from types import TracebackType

import pytest

from dlproxy.lab.load.run import Interrupt
from dlproxy.lab.tune.search.predict import Predictor
from dlproxy.lab.tune.search.problem import Layout, Outcome, Point, Problem, TuneError
from dlproxy.lab.tune.search.state import State
from dlproxy.lab.tune.search.times import Times
from dlproxy.lab.tune.search.trials import MOST_RUNS, Trials
from tests.lab.tune.search.fixtures import ONE, TWO, line, problem

RATE = 250.0
REQUESTS = 400


class TrueServer:
    """Answers as its true batch times have it, and `seconds` pass for each run. Teaches those times if it records."""

    def __init__(self, world: "World", point: Point, *, record: bool) -> None:
        self.world, self.point, self.record = world, point, record

    def __enter__(self) -> "TrueServer":
        if self.point.layout not in self.world.true.times:
            raise TuneError("it does not start")
        self.world.starts += 1
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        pass

    def turn(self, point: Point) -> None:
        assert point.layout == self.point.layout
        self.point = point

    def load(self, rate: float, seconds: float, seed: int, interrupt: Interrupt) -> Outcome:
        self.world.left_s -= seconds
        self.world.runs.append((self.point, rate, seconds))
        return self.world.true.at(self.point, rate)

    def memory_bytes(self) -> int:
        return 1 << 20

    def learn(self, before: Times) -> Times:
        assert self.record
        return self.world.true.times[self.point.layout] if self.world.teaches else before


class World:
    """What is true, and what a tuning does about it."""

    def __init__(self, true: Mapping[Layout, Times], *, teaches: bool = True, left_s: float = 1000.0) -> None:
        self.true = Predictor(problem(RATE), true, requests=REQUESTS)
        self.teaches, self.left_s = teaches, left_s
        self.runs: list[tuple[Point, float, float]] = []
        self.starts = 0

    def serve(self, problem: Problem, point: Point, *, record: bool) -> TrueServer:
        return TrueServer(self, point, record=record)

    def trials(self, believed: Mapping[Layout, Times], state: State | None = None) -> Trials:
        predictor = Predictor(problem(RATE), believed, requests=REQUESTS)
        points = [Point(layout, rows) for layout in believed for rows in (4, 16)]
        archive = {point: predictor.at(point, RATE) for point in points}
        state = state or State(None, {})
        said: list[str] = []
        return Trials(predictor, state, archive, RATE, lambda: self.left_s, said.append, Interrupt(), self.serve)


def test_the_choice_is_one_that_meets_the_objective_live() -> None:
    world = World({ONE: line(0.060), TWO: line()})  # one instance turns out to be far too slow
    trials = world.trials({ONE: line(), TWO: line()})
    trials.run()
    assert trials.best().layout == TWO
    assert trials.measured[trials.best()].outcome.meets(0.05)


@pytest.mark.parametrize("teaches", [True, False])
def test_what_runs_show_makes_the_last_prediction_right(teaches: bool) -> None:
    world = World({ONE: line(0.006, 0.0015), TWO: line(0.006, 0.0015)}, teaches=teaches)
    trials = world.trials({ONE: line(), TWO: line()})
    before = trials.predictor.at(Point(ONE, 16), RATE)
    trials.run()
    run = trials.measured[trials.best()]
    assert before.p99_s < 0.75 * world.true.at(Point(ONE, 16), RATE).p99_s
    assert run.predicted.p99_s == pytest.approx(run.outcome.p99_s, rel=0.15)


def test_what_nobody_tried_is_expected_to_be_as_far_off() -> None:
    world = World({ONE: line(0.008, 0.002), TWO: line(0.008, 0.002)}, left_s=20.0)  # time for one layout only
    trials = world.trials({ONE: line(), TWO: line()})
    trials.run()
    assert {point.layout for point, _, _ in world.runs} == {ONE}
    assert trials.predictor.off_by[TWO] > 0.2
    assert trials.measured[trials.best()].predicted.p99_s == pytest.approx(
        trials.measured[trials.best()].outcome.p99_s, rel=0.15
    )


def test_better_points_get_longer_runs_and_layouts_are_started_once_a_round() -> None:
    world = World({ONE: line(), TWO: line()})
    trials = world.trials({ONE: line(), TWO: line()})
    trials.run()
    seconds = [length for _, _, length in world.runs]
    assert seconds == sorted(seconds)
    assert len(set(seconds)) == 3
    assert trials.runs == len(world.runs) <= MOST_RUNS
    assert world.starts <= 6
    assert trials.best() in [point for point, _, length in world.runs if length == seconds[-1]]


def test_a_layout_that_does_not_start_is_left_out() -> None:
    world = World({TWO: line()})
    trials = world.trials({ONE: line(), TWO: line()})
    trials.run()
    assert trials.best().layout == TWO
    assert trials.failures == {ONE: "it does not start"}


def test_little_time_gives_few_runs_and_none_gives_two_one_to_learn_from() -> None:
    world = World({ONE: line(), TWO: line()}, left_s=20.0)
    world.trials({ONE: line(), TWO: line()}).run()
    assert 2 <= len(world.runs) <= 4
    late = World({ONE: line()}, left_s=-1.0)
    late.trials({ONE: line()}).run()
    assert len(late.runs) == 2


def test_runs_that_are_known_are_not_made_again() -> None:
    state = State(None, {})
    world = World({ONE: line(), TWO: line()})
    world.trials({ONE: line(), TWO: line()}, state).run()
    again = World({ONE: line(), TWO: line()})
    trials = again.trials({ONE: line(), TWO: line()}, state)
    trials.run()
    assert again.runs == []
    assert trials.best() in trials.measured


def test_the_highest_rate_is_climbed_to_from_either_side() -> None:
    for true in (line(0.003, 0.0008), line(0.006, 0.0025)):
        world = World({ONE: true})
        trials = world.trials({ONE: line()})
        trials.run()
        found = trials.climb()
        tried = [(rate, world.true.at(point, rate).meets(0.05)) for point, rate, _ in world.runs]
        assert found == max((rate for rate, met in tried if met), default=0.0)

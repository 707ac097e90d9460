"""The search beside an exhaustive one, the front, its volume, and what the simulator says of points."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as some

from dlproxy.lab.tune.search.evolve import evolve, front, hypervolume
from dlproxy.lab.tune.search.predict import Predictor
from dlproxy.lab.tune.search.problem import Layout, Outcome, Point, make_space
from dlproxy.lab.tune.search.times import Contention
from tests.lab.tune.search.fixtures import INLINE, ONE, TWO, line, predictor, problem


def _bumpy(point: Point) -> Outcome:
    """Best at 16 rows on two threads, waiting and CoDel cost a little."""
    off = abs(point.max_batch.bit_length() - 5)
    good = max(1.0 - 0.08 * off - 2.0 * point.max_wait_s - point.codel_target_s, 0.0)
    good *= {1: 0.6, 2: 1.0}[point.layout.cores] * (0.9 if point.layout.run == "process" else 1.0)
    return Outcome(1000.0, good, 0.02 / max(good, 0.01))


LAYOUTS = [Layout(run, *pair) for run in ("thread", "process") for pair in ((1, 1), (1, 2), (2, 1))]


@pytest.mark.parametrize("seed", range(3))
def test_a_tenth_of_the_points_is_enough(seed: int) -> None:
    pytest.importorskip("optuna")
    space = make_space(problem(), LAYOUTS, batched=True)
    everything = {point: _bumpy(point) for point in space.points()}
    most = len(everything) // 10
    found = evolve(space, _bumpy, objective_s=0.05, most=most, going=lambda: True, seed=seed)
    best = max(outcome.goodput for outcome in everything.values())
    assert len(found) <= most
    assert max(outcome.goodput for outcome in found.values()) >= 0.95 * best


def test_the_search_ends_when_it_is_told_or_finds_nothing_better() -> None:
    pytest.importorskip("optuna")
    space = make_space(problem(), LAYOUTS, batched=True)
    turns = iter([True] * 10 + [False])
    assert len(evolve(space, _bumpy, objective_s=0.05, most=10_000, going=lambda: next(turns, False))) <= 10
    flat = evolve(space, lambda point: Outcome(1.0, 1.0, 0.01), objective_s=0.05, most=10_000, going=lambda: True)
    assert len(flat) < 150


outcomes = some.builds(Outcome, some.just(100.0), some.floats(0.1, 1.0), some.floats(0.001, 1.0))
archives = some.dictionaries(some.builds(Point, some.sampled_from(LAYOUTS), some.integers(1, 64)), outcomes, min_size=1)


@given(archives)
@settings(max_examples=50, deadline=None)
def test_nothing_beats_the_front_and_the_front_beats_the_rest(archive: dict[Point, Outcome]) -> None:
    kept = front(archive)

    def beats(one: Point, other: Point) -> bool:
        a, b = archive[one], archive[other]
        return a.goodput > b.goodput * 1.03 and a.p99_s < b.p99_s and one.layout.cores <= other.layout.cores

    assert kept
    assert not any(beats(other, one) for one in kept for other in archive)
    for point in archive:
        if point not in kept:
            worse = [archive[one].p99_s <= archive[point].p99_s and one.layout.cores <= point.layout.cores for one in kept]
            assert any(worse)


def test_the_volume_of_a_front_is_that_of_the_boxes_it_dominates() -> None:
    archive = {Point(ONE, 1): Outcome(100.0, 1.0, 1e-4)}
    assert hypervolume(archive, 0.05) == pytest.approx(1.0)
    archive = {Point(TWO, 1): Outcome(100.0, 1.0, 1e-4)}
    assert hypervolume(archive, 0.05) == pytest.approx(0.5)
    archive[Point(ONE, 1)] = Outcome(100.0, 0.5, 1e-4)
    assert hypervolume(archive, 0.05) == pytest.approx(0.5 + 0.5 * 0.5)
    assert hypervolume({}, 0.05) == 0.0


# The simulator


def test_two_instances_serve_more_and_less_if_they_slow_each_other() -> None:
    for slowdown, least, most in ((1.0, 1.8, 2.2), (1.6, 1.05, 1.4)):
        both = predictor(slowdown=slowdown)
        one, two = both.peak(Point(ONE, 16)), both.peak(Point(TWO, 16))
        assert least < two / one < most


def test_a_batch_beside_another_takes_longer_and_one_alone_does_not() -> None:
    machine = Contention(1.5, 2)
    assert machine.begin(0.010, 1, 0.0) == pytest.approx(0.010)
    assert machine.begin(0.010, 1, 0.005) == pytest.approx(0.015)
    assert machine.begin(0.010, 1, 0.030) == pytest.approx(0.010)


def test_a_point_is_valued_the_same_each_time_and_load_makes_it_worse() -> None:
    one = predictor()
    calm, busy = one.at(Point(ONE, 32), 100.0), one.at(Point(ONE, 32), 2000.0)
    assert calm == predictor().at(Point(ONE, 32), 100.0)
    assert calm.meets(0.05)
    assert not busy.meets(0.05)
    assert busy.good < calm.good


def test_what_live_runs_showed_is_added_to_p99() -> None:
    one = predictor()
    before = one.at(Point(ONE, 32), 100.0).p99_s
    one.off_by[ONE] = 0.2
    assert one.at(Point(ONE, 32), 100.0).p99_s == pytest.approx(before * 1.2214, rel=1e-3)


def test_a_batch_on_the_loop_holds_up_reading() -> None:
    both = Predictor(problem(), {ONE: line(), INLINE: line()})
    assert both.at(Point(INLINE, 1), 150.0).p99_s >= both.at(Point(ONE, 1), 150.0).p99_s

"""The simulator and the live driver, given the same requests and service times, do the same at the same instants."""

from math import inf

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dlproxy.lab.simulate.engine import Call, LoopCosts
from dlproxy.message import FailureKind
from dlproxy.policy.knobs import LaneKnobs

from .fixtures import NANO, Outcome, Scene, live, live_on_a_busy_loop, random_scene, simulated


def assert_same(first: Outcome, second: Outcome) -> None:
    """The same commands in the same order, each within a nanosecond, and the same end of every request."""
    for (live_at, live_line), (simulated_at, simulated_line) in zip(first.said, second.said, strict=False):
        assert simulated_line.partition(" at ")[0] == live_line.partition(" at ")[0], f"at {live_at} and {simulated_at}"
        assert simulated_at == pytest.approx(live_at, abs=NANO), live_line
    assert len(first.said) == len(second.said)
    assert first.ends.keys() == second.ends.keys()
    for number, (kind, at) in first.ends.items():
        assert second.ends[number][0] is kind, f"request {number} at {at}"
        assert second.ends[number][1] == pytest.approx(at, abs=NANO), f"request {number}"


@settings(max_examples=12, deadline=None)
@given(
    seed=st.integers(0, 2**32),
    instances=st.integers(1, 3),
    max_batch=st.sampled_from([1, 2, 4, 16, 100]),
    load=st.sampled_from([0.2, 0.7, 0.95, 3.0]),
    deadlines=st.booleans(),
    max_wait_s=st.sampled_from([0.0, 0.0, 0.0037, 0.0203]),  # no whole milliseconds: rounding ends those now or one later
)
def test_the_simulator_does_what_the_driver_does_when_it_does(
    seed: int, instances: int, max_batch: int, load: float, deadlines: bool, max_wait_s: float
) -> None:
    scene = random_scene(seed, instances=instances, max_batch=max_batch, load=load, deadlines=deadlines, max_wait_s=max_wait_s)
    assert_same(live(scene), simulated(scene))


@settings(max_examples=12, deadline=None)
@given(
    seed=st.integers(0, 2**32),
    max_batch=st.sampled_from([1, 2, 4, 16, 100]),
    load=st.sampled_from([0.2, 0.7, 0.95, 3.0]),
    costs=st.sampled_from([LoopCosts(), LoopCosts(20e-6, 15e-6), LoopCosts(0.002, 0.0), LoopCosts(0.0, 0.003)]),
    deadlines=st.booleans(),
)
def test_a_loop_that_reads_writes_and_computes_does_so_in_the_drivers_order(
    seed: int, max_batch: int, load: float, costs: LoopCosts, deadlines: bool
) -> None:
    """A timer that is due while the loop reads (or runs what it gathered meanwhile) is seen a turn later: none here."""
    deadlines = deadlines and costs == LoopCosts() and max_batch <= 4
    burst = 20 if deadlines else 80
    scene = random_scene(
        seed, instances=1, max_batch=max_batch, load=load, deadlines=deadlines, max_wait_s=0.0, largest_burst=burst
    )
    assert_same(live_on_a_busy_loop(scene, costs, inline=True), simulated(scene, costs=costs, inline=True))


def scene(*calls: Call, **settings: float) -> Scene:
    knobs = LaneKnobs(max_batch=100, max_queue_rows=1000, slo_s=100.0, max_wait_s=settings.get("max_wait_s", 0.0))
    return Scene(knobs=knobs, calls=list(calls), base_s=settings.get("base_s", 0.010), row_s=0.0)


def starts(outcome: Outcome) -> list[tuple[float, str]]:
    return [(at, line) for at, line in outcome.said if line.startswith("run ")]


def test_requests_of_one_instant_share_a_batch_up_to_what_one_turn_gathers() -> None:
    burst = scene(*[Call("m", 1, inf, 1.0)] * 70, Call("m", 1, inf, 2.0))
    assert_same(live(burst), simulated(burst))
    sizes = [line.count(" ") - 3 for _, line in starts(simulated(burst))]
    assert sizes == [64, 6, 1]


def test_a_wait_ends_with_the_whole_millisecond_as_the_drivers_timer_does() -> None:
    waiting = scene(Call("m", 1, inf, 1.0), Call("m", 1, inf, 2.0), max_wait_s=0.0033)
    assert_same(live(waiting), simulated(waiting))
    assert starts(simulated(waiting))[0] == (pytest.approx(1.004), "run #1 on m-0: 1")


def test_a_deadline_ends_with_the_whole_millisecond_too() -> None:
    late = scene(Call("m", 1, inf, 0.0), Call("m", 1, 0.5004, 0.000001), base_s=10.0)
    assert_same(live(late), simulated(late))
    assert simulated(late).ends[2] == (FailureKind.DEADLINE, pytest.approx(0.501001))


def test_a_timer_that_another_has_replaced_does_not_go_off() -> None:
    calls = [Call("m", 1, inf, 0.0), Call("m", 1, 0.9, 0.001), Call("m", 1, 0.3, 0.002), Call("m", 1, 0.6, 0.003)]
    late = scene(*calls, base_s=10.0)
    assert_same(live(late), simulated(late))
    assert [simulated(late).ends[number][1] for number in (3, 4, 2)] == pytest.approx([0.302, 0.603, 0.901], abs=0.0011)


def test_a_comparison_finds_a_batch_that_is_a_microsecond_longer() -> None:
    one = random_scene(1, instances=2, max_batch=4, load=0.7, deadlines=True, max_wait_s=0.0)
    other = random_scene(1, instances=2, max_batch=4, load=0.7, deadlines=True, max_wait_s=0.0)
    other.base_s += 1e-6
    with pytest.raises(AssertionError):
        assert_same(live(one), simulated(other))


@settings(max_examples=12, deadline=None)
@given(
    seed=st.integers(0, 2**32),
    instances=st.integers(1, 3),
    part_rows=st.sampled_from([1, 3, 8]),
    load=st.sampled_from([0.2, 0.7, 3.0]),
    deadlines=st.booleans(),
    rows=st.lists(st.integers(1, 40), min_size=1, max_size=7),
)
def test_large_requests_are_split_alike_and_end_alike(
    seed: int, instances: int, part_rows: int, load: float, deadlines: bool, rows: list[int]
) -> None:
    """Those that find too little room fail whole; a part that is late takes the others with it."""
    scene = random_scene(
        seed, instances=instances, max_batch=8, load=load, deadlines=deadlines, max_wait_s=0.0, largest_burst=9
    )
    calls = [msgspec.structs.replace(call, rows=rows[number % len(rows)]) for number, call in enumerate(scene.calls)]
    scene = msgspec.structs.replace(scene, part_rows=part_rows, calls=calls)
    assert_same(live(scene), simulated(scene))


def test_two_instances_share_a_large_request_and_answer_in_half_the_time() -> None:
    def took_s(rows: int, part_rows: int | None) -> float:
        knobs = LaneKnobs(max_batch=64, max_queue_rows=1000)
        scene = Scene(knobs=knobs, instances=2, part_rows=part_rows, calls=[Call("m", rows, inf, 0.0)], base_s=0.001)
        ((kind, at),) = simulated(scene).ends.values()
        assert kind is None
        return at

    assert took_s(64, None) == pytest.approx(0.065)
    assert took_s(64, 32) == pytest.approx(0.033)

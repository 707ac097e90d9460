"""What pipelines decide: deadlines of steps, shares of the objective, who is let in, and how wrong measurements heal."""

from itertools import pairwise
from math import inf

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dlproxy.config.pipelines import StepConfig, wired
from dlproxy.message import FailureKind, Ticket
from dlproxy.policy.events import Arrived, InstanceUp
from dlproxy.policy.knobs import LaneKnobs
from dlproxy.policy.lane import Lane
from dlproxy.policy.pipelines import DOUBT_S, MEMORY, SPLIT_EVERY_S, Pacing, Stage

DIAMOND = wired(
    {
        "a": StepConfig(model="a", inputs={"x": "x"}),
        "left": StepConfig(model="left", inputs={"x": "a.y"}),
        "right": StepConfig(model="right", inputs={"x": "a.y"}, when="a.long"),
        "last": StepConfig(model="last", inputs={"l": "left.y", "r": "right.y"}),
    },
    ["x"],
    {"y": "last.y"},
)
NOBODY = dict.fromkeys(DIAMOND.order, 0.0)
SLOW = Stage(0.020, 0.005, most=32, instances=1)
NOBODY_OF_TWO = {"a": 0.0, "b": 0.0}
QUICK = Stage(0.002, 0.0005, most=32, instances=1)


def chain(*names: str) -> Pacing:
    sources = ["x", *(f"{name}.y" for name in names)]
    steps = {name: StepConfig(model=name, inputs={"x": source}) for name, source in zip(names, sources, strict=False)}
    return Pacing(wired(steps, ["x"], {"y": sources[-1]}))


def observed(pacing: Pacing, computed_s: dict[str, float], *, times: int = 50, waited_s: float = 0.0, items: int = 1) -> Pacing:
    for _ in range(times):
        for step, seconds in computed_s.items():
            pacing.begun(step)
            pacing.observed(step, waited_s=waited_s, computed_s=seconds, items=items)
    return pacing


def ticket(left_s: float, now: float = 0.0) -> Ticket:
    return Ticket(1, now, now + left_s)


def test_a_step_leaves_time_for_the_longest_way_to_the_end() -> None:
    pacing = observed(Pacing(DIAMOND), {"a": 0.010, "left": 0.020, "right": 0.050, "last": 0.005})
    until = {step: pacing.deadline_at(step, ticket(0.2), 0.0) for step in DIAMOND.order}
    assert until["a"] == pytest.approx(0.2 - 0.055, abs=1e-3)
    assert until["left"] == until["right"] == pytest.approx(0.2 - 0.005, abs=1e-3)
    assert until["last"] == 0.2
    assert pacing.deadline_at("a", ticket(inf), 0.0) == inf


def test_a_step_that_is_slower_now_is_given_more_at_the_cost_of_those_before() -> None:
    pacing = observed(chain("a", "b"), {"a": 0.010, "b": 0.010})
    before = pacing.deadline_at("a", ticket(0.2), 0.0)
    observed(pacing, {"a": 0.010, "b": 0.050}, times=200)
    assert pacing.deadline_at("a", ticket(0.2), 0.0) < before - 0.03


def test_what_comes_after_takes_longer_for_more_items() -> None:
    pacing = chain("a", "b")
    for items in [1, 5, 10, 20] * 20:
        observed(pacing, {"a": 0.010}, times=1, items=items)
        observed(pacing, {"b": 0.002 + 0.004 * items}, times=1, items=items)
    few, many = (pacing.deadline_at("a", ticket(0.5), 0.0, items) for items in (2, 20))
    assert 0.5 - few == pytest.approx(0.010, abs=2e-3)
    assert 0.5 - many == pytest.approx(0.082, abs=2e-3)


def test_shares_go_where_they_let_the_most_through() -> None:
    pacing = observed(chain("a", "b"), {"a": 0.010, "b": 0.010})
    shares = pacing.split(0.3, {"a": QUICK, "b": SLOW})
    assert sum(shares.values()) == pytest.approx(0.3)
    assert shares["b"] > 5 * shares["a"]
    even = observed(chain("a", "b"), {"a": 0.010, "b": 0.010}).split(0.3, {"a": SLOW, "b": SLOW})
    assert even["a"] == pytest.approx(even["b"])


def test_a_step_that_few_requests_run_is_not_taken_for_the_bottleneck() -> None:
    pacing = Pacing(DIAMOND)
    for number in range(200):
        assert pacing.refusal(ticket(1.0), NOBODY, 0.0) is None
        steps = DIAMOND.order if number % 10 == 0 else [step for step in DIAMOND.order if step not in ("right", "last")]
        observed(pacing, dict.fromkeys(steps, 0.010), times=1)
    stages = dict.fromkeys(DIAMOND.order, QUICK) | {"a": SLOW, "right": SLOW}
    often = observed(Pacing(DIAMOND), dict.fromkeys(DIAMOND.order, 0.010)).split(0.4, stages)
    seldom = pacing.split(0.4, stages)
    assert often["right"] == pytest.approx(often["a"])
    assert seldom["right"] < 0.6 * seldom["a"]


def test_shares_move_only_for_news() -> None:
    pacing = observed(chain("a", "b"), {"a": 0.010, "b": 0.010})
    first = dict(pacing.split(0.3, {"a": QUICK, "b": SLOW}))
    assert pacing.split(0.3, {"a": QUICK, "b": Stage(0.0201, 0.005, most=32, instances=1)}) == first
    assert pacing.split(0.3, {"a": SLOW, "b": QUICK}) != first


def test_the_objective_is_shared_out_often_at_first() -> None:
    pacing = chain("a")
    times = [now for now in (number / 16 for number in range(16 * 8)) if pacing.splits(now)]
    gaps = [later - earlier for earlier, later in pairwise(times)]
    assert gaps[0] < 0.2
    assert gaps[-1] == SPLIT_EVERY_S


@pytest.mark.parametrize(
    ("waits", "left_s", "refused"),
    [
        ({"a": 0.0, "b": 0.0}, 0.001, False),  # nobody waits: a prediction alone keeps nobody out
        ({"a": 0.0, "b": 0.050}, 0.069, True),
        ({"a": 0.0, "b": 0.050}, 0.071, False),
        ({"a": 0.030, "b": 0.030}, 0.071, True),
        ({"a": 0.0, "b": 0.050}, inf, False),
    ],
)
def test_who_would_be_late_at_a_later_step_does_not_begin(waits: dict[str, float], left_s: float, refused: bool) -> None:
    pacing = observed(chain("a", "b"), {"a": 0.010, "b": 0.010}, waited_s=0.0)
    failure = pacing.refusal(ticket(left_s), waits, 0.0)
    assert (failure is not None) is refused
    if failure is not None:
        assert failure.kind is FailureKind.DEADLINE
        assert "most of it for step" in failure.message
        assert failure.retry_after_s == pytest.approx(sum(waits.values()))


def test_ways_that_run_side_by_side_are_not_added() -> None:
    pacing = observed(Pacing(DIAMOND), {"a": 0.010, "left": 0.020, "right": 0.050, "last": 0.005})
    waits = NOBODY | {"left": 0.020}
    assert pacing.refusal(ticket(0.066), waits, 0.0) is None  # right takes longer than left with its queue
    assert pacing.refusal(ticket(0.066), NOBODY | {"right": 0.020}, 0.0) is not None


def test_what_requests_waited_beyond_what_was_foretold_is_expected_of_the_next() -> None:
    pacing = chain("a", "b")
    waits = {"a": 0.0, "b": 0.010}
    for _ in range(50):
        assert pacing.refusal(ticket(1.0), waits, 0.0) is None
        observed(pacing, {"a": 0.010, "b": 0.010}, times=1, waited_s=0.100)
    assert pacing.refusal(ticket(0.060), waits, 0.0) is not None
    assert pacing.refusal(ticket(0.060), {"a": 0.0, "b": 0.0}, 0.0) is None  # and nothing where nobody waits


def test_wrong_measurements_heal_although_others_keep_a_stage_busy() -> None:
    pacing = observed(chain("a", "b"), {"a": 0.010, "b": 10.0})
    busy = {"a": 0.001, "b": 0.0}
    now, let_in = 100.0, 0
    for _ in range(1000):
        now += 0.010
        here = ticket(0.2, now)
        if pacing.refusal(here, busy, now) is None:
            let_in += 1
            observed(pacing, {"a": 0.010, "b": 0.010}, times=1)
    assert let_in > 0
    assert now - 100.0 > 0.2 + DOUBT_S
    for _ in range(3):  # each that gets through counts
        assert pacing.refusal(ticket(0.2, now + 10.0), NOBODY_OF_TWO, now + 10.0) is None
        observed(pacing, {"a": 0.010, "b": 0.010}, times=round(5 / (1 - MEMORY)))
    assert pacing.refusal(ticket(0.2, now + 10.0), busy, now + 10.0) is None


@given(
    st.lists(st.tuples(st.sampled_from(DIAMOND.order), st.floats(0, 100), st.floats(0, 100), st.integers(0, 100)), max_size=50),
    st.floats(0.001, 10.0),
    st.sampled_from(DIAMOND.order),
)
def test_whatever_was_measured(seen: list[tuple[str, float, float, int]], left_s: float, step: str) -> None:
    """A step's deadline is never after the request's, and with nobody waiting it may run; shares add up to the objective."""
    pacing = Pacing(DIAMOND)
    for name, waited_s, computed_s, items in seen:
        pacing.begun(name)
        pacing.observed(name, waited_s=waited_s, computed_s=computed_s, items=items)
    shares = pacing.split(left_s, {"a": QUICK, "right": SLOW})
    deadline_at = pacing.deadline_at(step, ticket(left_s), 0.0, 3)
    assert 0.0 <= deadline_at <= left_s
    assert shares["a"] + max(shares["left"], shares["right"]) + shares["last"] == pytest.approx(left_s)
    assert pacing.refusal(ticket(left_s), NOBODY, 0.0) is None


def test_a_stage_says_what_its_lane_knows() -> None:
    lane = Lane(LaneKnobs(max_batch=8), [(rows, 0.010 + 0.002 * rows) for rows in (1, 2, 4, 8)])
    assert lane.would_wait_s(ticket(1.0), 0.0) == 0.0  # no instance: nothing is known
    lane.on(InstanceUp("m-0"), 0.0)
    assert lane.stage() == Stage(pytest.approx(0.010), pytest.approx(0.002), 8, 1, pytest.approx(1.0))
    assert lane.would_wait_s(ticket(1.0), 0.0) == 0.0
    lane.on(Arrived([Ticket(number, 0.0, 1.0) for number in range(2, 20)]), 0.0)
    later, sooner = (lane.would_wait_s(ticket(left_s), 0.0) for left_s in (2.0, 0.5))
    assert later > 0.030
    assert sooner == pytest.approx(0.012)  # before all that waits: for the batch that runs

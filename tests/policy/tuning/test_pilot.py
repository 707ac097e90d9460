"""The pilot's guard rails: one trial at a time, in turns, kept only if it helps, whatever the policy and the host do."""

from collections.abc import Callable, Mapping
from math import nan
from typing import Any

import numpy as np
import pytest
from hypothesis import settings
from msgspec.structs import replace

from dlproxy.policy.tuning.pilot import AGAIN_S, DWELL_S, SAFE_S, TICK_S, Order, Pilot
from dlproxy.policy.tuning.protocol import Knobs, Proposal, Space
from tests.policy.tuning.lanes import KNOBS, SPACE, window
from tests.policy.tuning.machine import Fickle, Host

TestHost = Host.TestCase
TestHost.settings = settings(max_examples=40, stateful_step_count=30, deadline=None)

MORE = {**KNOBS, "instances": 2}
WIDE = {**KNOBS, "threads": 2}


class Flight:
    """A host that does what it is told at once. `share`: of a hundred requests a window, those that miss under these knobs."""

    def __init__(self, share: Callable[[Knobs], int], space: Space = SPACE, *, advise: bool = False) -> None:
        self.policy = Fickle()
        self.pilot = Pilot(self.policy, space, KNOBS, 0.0, advise=advise)
        self.now = 0.0
        self.held: Knobs = KNOBS
        self.orders: list[Order] = []
        self.share = share
        self.arrived: Callable[[], int] = lambda: 100

    def wants(self, knobs: Mapping[str, Any], *, harmless: bool = False) -> None:
        self.policy.wants = Proposal(knobs=knobs, reason="it may help", gain=0.1, harmless=harmless)

    def fly(self, for_s: float, /, **strange: Any) -> None:
        for _ in range(round(for_s / TICK_S)):
            self.now += TICK_S
            arrived = self.arrived()
            missed = self.share(self.held) * arrived // 100
            self.carry_out(self.pilot.look(window(self.now, **{"arrived": arrived, "missed": missed, **strange}), self.now))

    def carry_out(self, order: Order | None) -> None:
        if order is None:
            return
        self.orders.append(order)
        if order.act == "prepare":
            self.carry_out(self.pilot.ready(order.knobs, self.now))
        else:
            self.held = order.knobs

    @property
    def kinds(self) -> list[str]:
        return [entry.kind for entry in self.pilot.log]


def where(knobs: Knobs, then: int, otherwise: int) -> Callable[[Knobs], int]:
    return lambda held: then if held == knobs else otherwise


def test_what_helps_is_tried_in_turns_and_kept() -> None:
    flight = Flight(where(MORE, 10, 30))
    flight.wants(MORE)
    flight.fly(15.0)
    acts = [(order.act, order.knobs) for order in flight.orders]
    assert acts[:3] == [("prepare", MORE), ("apply", MORE), ("apply", KNOBS)]
    assert acts[-1] == ("finish", MORE)
    assert flight.pilot.knobs == flight.held == MORE
    tries, keeps = flight.pilot.log
    assert (tries.kind, keeps.kind) == ("tries", "keeps")
    assert tries.changes == keeps.changes == {"instances": (1, 2)}
    assert "10.00%" in keeps.measured
    assert "30.00%" in keeps.measured
    assert flight.policy.learned == [(MORE, True)]
    flight.wants(KNOBS)
    flight.fly(AGAIN_S / 2.0)
    assert not flight.pilot.trying, "nothing goes to and fro"
    assert flight.kinds == ["tries", "keeps"]


@pytest.mark.parametrize(
    ("new", "old", "reason"), [(30, 30, "it did not help"), (60, 10, "it did harm")], ids=["no help", "harm"]
)
def test_what_does_not_help_is_undone_and_tried_again_after_longer_and_longer(new: int, old: int, reason: str) -> None:
    flight = Flight(where(MORE, new, old))
    flight.wants(MORE)
    flight.fly(2_000.0)
    entries = [entry for entry in flight.pilot.log if entry.kind in ("tries", "undoes")]
    assert [entry.reason for entry in entries[1::2]] == [reason] * (len(entries) // 2)
    gaps = [tries.at - undoes.at for undoes, tries in zip(entries[1::2], entries[2::2], strict=False)]
    assert len(gaps) >= 3
    assert gaps == sorted(gaps)
    for number, gap in enumerate(gaps):
        assert gap >= AGAIN_S * 2**number
    assert flight.pilot.knobs == flight.held == KNOBS
    assert flight.policy.learned == [(MORE, False)] * (len(entries) // 2)


def test_what_cannot_be_had_is_not_asked_for_again_at_once() -> None:
    policy = Fickle()
    pilot = Pilot(policy, SPACE, KNOBS, 0.0)
    policy.wants = Proposal(knobs=MORE, reason="it may help")
    prepared_at = []
    for number in range(1, 400):
        now = number * TICK_S
        order = pilot.look(window(now, missed=30), now)
        if order is not None:
            prepared_at.append(now)
            assert order == Order("prepare", MORE)
            assert pilot.not_ready(MORE, "no memory", now) == Order("finish", KNOBS)
            assert (pilot.log[-1].kind, pilot.log[-1].reason) == ("gives up", "no memory")
    assert len(prepared_at) == 3
    assert prepared_at[1] - prepared_at[0] >= AGAIN_S
    assert prepared_at[2] - prepared_at[1] >= 2 * AGAIN_S


def test_what_makes_room_is_kept_if_nothing_gets_worse() -> None:
    flight = Flight(lambda knobs: 0)
    flight.wants(MORE)
    flight.fly(60.0)
    assert flight.kinds == ["tries", "undoes"]
    flight.wants(WIDE, harmless=True)
    flight.fly(100.0)
    assert flight.kinds[2:] == ["tries", "keeps"]
    assert flight.held == WIDE


def test_after_two_harmful_changes_in_a_row_nothing_is_tried_for_a_while_and_then_for_longer() -> None:
    flight = Flight(lambda knobs: 5 if knobs == KNOBS else 70)
    for rows in range(1, 200):
        flight.wants({**KNOBS, "max_batch": 10 + rows % 40})
        flight.fly(5.0)
    log = list(flight.pilot.log)
    safe = [number for number, entry in enumerate(log) if entry.kind == "safe mode"]
    assert len(safe) >= 2
    for times, number in enumerate(safe[:2]):
        assert [entry.reason for entry in log[number - 4 : number] if entry.kind == "undoes"] == ["it did harm"] * 2
        assert log[number + 1].at >= log[number].at + SAFE_S * 2**times


def test_another_load_does_not_end_safe_mode() -> None:
    flight = Flight(lambda knobs: 5 if knobs == KNOBS else 70)
    for rows in (16, 32):
        flight.wants({**KNOBS, "max_batch": rows})
        flight.fly(10.0)
    assert flight.kinds[-1] == "safe mode"
    flight.arrived = lambda: 400
    flight.fly(SAFE_S - 20.0)
    assert flight.kinds[-1] == "safe mode"
    flight.fly(30.0)
    assert flight.kinds[-1] == "undoes"


def test_what_was_kept_and_does_harm_a_moment_later_is_undone() -> None:
    flight = Flight(where(MORE, 0, 40))
    flight.wants(MORE)
    while flight.pilot.knobs != MORE:
        flight.fly(TICK_S)
    flight.wants(KNOBS)
    flight.share = lambda knobs: 90
    flight.fly(5.0)
    last = flight.pilot.log[-1]
    assert (last.kind, last.reason, last.changes) == ("undoes", "after some seconds it did harm", {"instances": (2, 1)})
    assert flight.held == flight.pilot.knobs == KNOBS
    flight.wants(MORE)
    flight.fly(AGAIN_S / 2.0)
    assert flight.pilot.log[-1] == last, "what did harm is not tried again at once"


def test_harm_that_follows_a_change_that_is_good_still_counts() -> None:
    """The end of that one's probation must not forget the harm that came after it."""
    flight = Flight(lambda knobs: {1: 50, 2: 20}.get(int(str(knobs["instances"])), 90) if knobs["threads"] == 1 else 90)
    flight.wants(MORE)
    while flight.pilot.knobs != MORE:
        flight.fly(TICK_S)
    for knobs in ({**MORE, "threads": 2}, {**MORE, "instances": 4}):
        flight.wants(knobs)
        flight.fly(12.0)
    assert flight.kinds[-3:] == ["tries", "undoes", "safe mode"]


@pytest.mark.parametrize(
    "knobs",
    [
        {},
        {"max_batch": 16},
        {**KNOBS, "no_such_knob": 1},
        *({**KNOBS, "max_batch": value} for value in (0, 65, "many", 2.5, nan, True, None)),
        *({**KNOBS, "max_wait_s": value} for value in (-1.0, nan, float("inf"), "long")),
        *({**KNOBS, "instances": value} for value in (0, 3, 4.0)),
        {**KNOBS, "instances": 4, "threads": 4},
        KNOBS,
    ],
    ids=str,
)
def test_nonsense_is_not_tried(knobs: Mapping[str, Any]) -> None:
    flight = Flight(lambda held: 30)
    flight.wants(knobs)
    flight.fly(30.0)
    assert flight.orders == []
    assert flight.kinds == []


@pytest.mark.parametrize("name", ["instances", "max_batch"])
def test_what_is_pinned_is_not_tried(name: str) -> None:
    flight = Flight(lambda held: 30, replace(SPACE, pinned=frozenset({name})))
    flight.wants({**KNOBS, name: 2})
    flight.fly(30.0)
    assert flight.orders == []
    flight.wants(WIDE)
    flight.fly(30.0)
    assert flight.orders[0] == Order("prepare", WIDE)


def test_an_adviser_does_nothing_and_says_it_once() -> None:
    flight = Flight(where(MORE, 0, 40), advise=True)
    flight.wants(MORE)
    flight.fly(AGAIN_S)
    assert flight.orders == []
    assert flight.kinds == ["advises"]
    assert flight.held == KNOBS


@pytest.mark.parametrize(
    ("strange", "words"),
    [
        pytest.param({"seconds": 30.0}, "clock", id="a clock that jumped"),
        pytest.param({"seconds": -0.5}, "clock", id="a clock that went back"),
        pytest.param({"up": 0}, "instances are up", id="a crash"),
        pytest.param({"arrived": 0}, "no counter moves", id="counters that stand still"),
    ],
)
def test_a_trial_ends_without_blame_when_its_windows_cannot_be_believed(strange: dict[str, Any], words: str) -> None:
    flight = Flight(where(MORE, 20, 22))
    flight.wants(MORE)
    flight.fly(2.0)
    assert flight.pilot.trying
    flight.fly(TICK_S, **strange)
    assert words in flight.pilot.log[-1].reason
    assert flight.pilot.log[-1].kind == "holds"
    assert flight.orders[-1] == Order("finish", KNOBS)
    flight.fly(4.0)
    assert not flight.pilot.trying, "it waits until it has seen enough again"
    flight.fly(4.0)
    assert flight.pilot.trying, "and then may try the same again"


def test_an_operator_ends_a_trial_and_pausing_does_as_well() -> None:
    flight = Flight(where(MORE, 20, 22))
    flight.wants(MORE)
    flight.fly(2.0)
    flight.carry_out(flight.pilot.configure(replace(SPACE, pinned=frozenset({"instances"})), WIDE, flight.now))
    assert flight.orders[-1] == Order("finish", WIDE)
    flight.wants({**WIDE, "max_batch": 16})
    flight.fly(10.0)
    assert flight.pilot.trying
    flight.carry_out(flight.pilot.pause(flight.now))
    assert flight.orders[-1] == Order("finish", WIDE)
    assert flight.pilot.state == "paused"
    flight.fly(60.0)
    assert not flight.pilot.trying
    before = flight.kinds.count("tries")
    flight.pilot.resume()
    flight.fly(10.0)
    assert flight.kinds.count("tries") == before + 1


def test_another_load_lets_all_be_tried_anew() -> None:
    flight = Flight(where(MORE, 30, 30))
    flight.wants(MORE)
    flight.fly(25.0)
    assert flight.kinds == ["tries", "undoes"]
    flight.arrived = lambda: 400
    flight.fly(5.0)
    assert flight.kinds == ["tries", "undoes", "tries"]


def test_a_change_is_given_time_while_the_objective_is_met() -> None:
    flight = Flight(lambda held: 0)
    flight.wants(MORE, harmless=True)
    while flight.pilot.knobs != MORE:
        flight.fly(TICK_S)
    kept_at = flight.now
    flight.wants({**MORE, "threads": 2}, harmless=True)
    flight.fly(60.0)
    assert flight.pilot.log[2].at >= kept_at + DWELL_S


@pytest.mark.parametrize("dispersion", [1.0, 20.0])
def test_changes_that_change_nothing_are_seldom_kept(dispersion: float) -> None:
    """Not never: what was promised to help needs no more than a likely gain."""
    draw = np.random.default_rng(1)
    flight = Flight(lambda held: 0)
    for number in range(400):
        flight.wants({**KNOBS, "max_batch": 9 + number % 50})
        for _ in range(25):
            mean = 100.0 if dispersion == 1.0 else draw.gamma(100.0 / (dispersion - 1.0), dispersion - 1.0)
            arrived = int(draw.poisson(mean))
            missed = min(4 * int(draw.binomial(arrived // 4, 0.1)), arrived)
            flight.fly(TICK_S, arrived=arrived, missed=missed, dispersion=dispersion)
    tried, kept = flight.kinds.count("tries"), flight.kinds.count("keeps")
    assert tried >= 50
    assert kept < 0.15 * tried


def test_what_a_fork_is_told_does_not_change_the_pilot() -> None:
    """Twins, of which one is forked before every window: they do the same, and the forks what they do."""
    one, other = Flight(where(MORE, 10, 30)), Flight(where(MORE, 10, 30))
    for flight in (one, other):
        flight.wants(MORE)
    for number in range(1, 41):
        seen = window(number * TICK_S, missed=one.share(one.held))
        forked = one.pilot.fork(one.policy).look(seen, number * TICK_S)
        for flight in (one, other):
            flight.fly(TICK_S)
        assert one.orders == other.orders
        assert forked is None or forked in one.orders
    assert list(one.pilot.log) == list(other.pilot.log)
    assert one.kinds == ["tries", "keeps"]

"""The arbiter: never more than there is, nobody starves, each discipline's order, the reserved part, and what lanes pay."""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from heapq import heappop, heappush
from itertools import count
from math import inf

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from dlproxy.policy.arbiter import Arbiter, Lease, Want
from dlproxy.policy.knobs import LaneKnobs
from dlproxy.policy.queueing import DISCIPLINES

STARVATION_S = 2.0


def cores(number: float) -> Mapping[str, float]:
    return {"cores": number}


def lanes(leases: list[Lease]) -> list[str]:
    return [lease.lane for lease in leases]


def run_now(arbiter: Arbiter, now: float = 0.0) -> list[str]:
    """The order in which all that is wanted runs, one after the other."""
    order = []
    while leases := arbiter.grants(now):
        order += lanes(leases)
        for lease in leases:
            arbiter.release(lease.id, now, 1.0)
    return order


# What fits


def test_grants_all_that_fit_in_order_and_each_want_once() -> None:
    arbiter = Arbiter(cores(4), discipline="fcfs")
    for lane, needs in (("a", 2), ("b", 1), ("c", 1), ("d", 1)):
        arbiter.want(Want(lane, cores(needs), 0.01), 0.0)
    first = arbiter.grants(0.0)
    assert lanes(first) == ["a", "b", "c"]
    assert arbiter.free == cores(0)
    assert arbiter.grants(0.0) == []
    arbiter.release(first[1].id, 0.01, 0.01)
    assert lanes(arbiter.grants(0.01)) == ["d"]


@pytest.mark.parametrize("discipline", DISCIPLINES)
def test_needs_that_change_hold_for_what_is_wanted_already(discipline: str) -> None:
    arbiter = Arbiter(cores(2), discipline=discipline)
    for lane in ("a", "b", "c"):
        arbiter.want(Want(lane, cores(1), 0.01), 0.0)
    first, second = arbiter.grants(0.0)
    arbiter.change_needs("c", cores(2), 0.0)
    arbiter.change_needs("a", cores(2), 0.0)  # which wants nothing now
    arbiter.release(first.id, 0.01, 0.01)
    assert arbiter.grants(0.01) == []
    arbiter.release(second.id, 0.02, 0.01)
    (third,) = arbiter.grants(0.02)
    assert (third.lane, third.needs) == ("c", cores(2))


def test_a_wide_one_at_the_front_is_not_overtaken() -> None:
    arbiter = Arbiter(cores(4), discipline="fcfs")
    arbiter.want(Want("light", cores(1), 0.01), 0.0)
    (running,) = arbiter.grants(0.0)
    arbiter.want(Want("wide", cores(4), 0.01), 1.0)
    arbiter.want(Want("light", cores(1), 0.01), 2.0)
    assert arbiter.grants(2.0) == [], "although light would fit"
    arbiter.release(running.id, 3.0, 0.01)
    assert lanes(arbiter.grants(3.0)) == ["wide"]


def test_every_resource_counts() -> None:
    arbiter = Arbiter({"cores": 4, "memory_bytes": 100}, discipline="fcfs")
    arbiter.want(Want("a", {"cores": 1, "memory_bytes": 60}, 0.01), 0.0)
    arbiter.want(Want("b", {"cores": 1, "memory_bytes": 41}, 0.01), 0.0)
    (running,) = arbiter.grants(0.0)
    assert arbiter.free == {"cores": 3, "memory_bytes": 40}
    arbiter.release(running.id, 0.0, 0.01)
    assert lanes(arbiter.grants(0.0)) == ["b"]


def test_fractions_add_up_exactly() -> None:
    arbiter = Arbiter({"gpu": 1.0})
    for lane in range(11):
        arbiter.want(Want(str(lane), {"gpu": 0.1}, 0.01), 0.0)
    assert len(arbiter.grants(0.0)) == 10
    assert arbiter.free == {"gpu": 0.0}


@pytest.mark.parametrize(
    ("want", "words"),
    [
        pytest.param(Want("a", cores(5), 0.01), "needs 5 cores, it can never have more than 3", id="more than there is"),
        pytest.param(Want("a", cores(4), 0.01), "can never have more than 3", id="some of it is reserved"),
        pytest.param(Want("a", cores(5), 0.01, priority=1), "can never have more than 4", id="for the urgent too"),
        pytest.param(Want("a", {"gpu": 1}, 0.01), "needs 1 gpu, it can never have more than 0", id="no such resource"),
        pytest.param(Want("a", cores(-1), 0.01), "needs -1 cores", id="less than nothing"),
        pytest.param(Want("a", cores(float("nan")), 0.01), "needs nan cores", id="no number"),
        pytest.param(Want("a", cores(1), inf), "a cost of inf s", id="endless"),
        pytest.param(Want("a", cores(1), 0.01, weight=0.0), "a weight of 0.0", id="no share"),
    ],
)
def test_a_want_that_could_never_run_is_refused_and_leaves_no_trace(want: Want, words: str) -> None:
    arbiter = Arbiter(cores(4), reserved=cores(1))
    with pytest.raises(ValueError, match=words):
        arbiter.want(want, 0.0)
    assert arbiter.grants(0.0) == []


def test_no_more_is_reserved_than_there_is() -> None:
    with pytest.raises(ValueError, match="3 cores cannot be reserved: there are 2"):
        Arbiter(cores(2), reserved=cores(3))


# Wants that change


@pytest.mark.parametrize("discipline", DISCIPLINES)
def test_a_want_is_replaced_or_withdrawn(discipline: str) -> None:
    arbiter = Arbiter(cores(4), discipline=discipline)
    arbiter.want(Want("a", cores(4), 0.01), 0.0)
    arbiter.want(Want("a", cores(3), 0.02), 0.0)
    arbiter.want(Want("b", cores(1), 0.01), 0.0)
    arbiter.withdraw("b")
    arbiter.withdraw("b")
    (lease,) = arbiter.grants(0.0)
    assert (lease.lane, lease.needs, arbiter.free) == ("a", cores(3), cores(1))


@pytest.mark.parametrize("discipline", ["fcfs", "fair", "hrrn", "mlfq", "priority"])
def test_a_replaced_want_keeps_its_place(discipline: str) -> None:
    arbiter = Arbiter(cores(1), discipline=discipline)
    for lane, now in (("a", 0.0), ("b", 1.0), ("a", 2.0)):
        arbiter.want(Want(lane, cores(1), 0.01), now)
    assert run_now(arbiter, 2.0) == ["a", "b"]


def test_what_a_lane_that_has_gone_uses_stays_used_until_it_is_released() -> None:
    arbiter = Arbiter(cores(2))
    arbiter.want(Want("a", cores(2), 0.01), 0.0)
    (running,) = arbiter.grants(0.0)
    arbiter.want(Want("a", cores(2), 0.01), 0.0)
    arbiter.want(Want("b", cores(1), 0.01), 0.0)
    arbiter.forget("a")
    assert arbiter.grants(0.0) == []
    arbiter.want(Want("a", cores(2), 0.01), 0.0)  # another lane of that name
    arbiter.release(running.id, 1.0, 1.0)
    assert lanes(arbiter.grants(1.0)) == ["b"]


# Orders


@pytest.mark.parametrize(
    ("discipline", "order"),
    [
        pytest.param("fcfs", "abcd", id="as they came"),
        pytest.param("edf", "bcad", id="by deadline, two levels of priority are worth 2 s"),
        pytest.param("sjf", "dbca", id="by predicted time"),
        pytest.param("priority", "bacd", id="by priority, then as they came"),
        pytest.param("mlfq", "dbca", id="by levels of predicted time"),
        pytest.param("hrrn", "dbca", id="by waiting time over predicted time"),
        pytest.param("fair", "abcd", id="all have had nothing yet"),
    ],
)
def test_orders(discipline: str, order: str) -> None:
    arbiter = Arbiter(cores(1), discipline=discipline)
    arbiter.want(Want("a", cores(1), 0.100, deadline_at=3.0), 0.00)
    arbiter.want(Want("b", cores(1), 0.006, deadline_at=2.0, priority=2), 0.00)
    arbiter.want(Want("c", cores(1), 0.013, deadline_at=1.0), 0.00)
    arbiter.want(Want("d", cores(1), 0.001), 0.00)
    assert "".join(run_now(arbiter, 0.01)) == order


def test_a_tighter_deadline_moves_a_want_up() -> None:
    arbiter = Arbiter(cores(1), discipline="edf")
    for lane, deadline_at in (("a", 2.0), ("b", 3.0), ("b", 1.0)):
        arbiter.want(Want(lane, cores(1), 0.01, deadline_at=deadline_at), 0.0)
    assert run_now(arbiter) == ["b", "a"]


# The reserved part


def test_an_urgent_want_overtakes_a_front_that_does_not_fit() -> None:
    arbiter = Arbiter(cores(2), discipline="fcfs")
    for lane, needs, priority in (("a", 1, 0), ("wide", 2, 0), ("light", 1, 0), ("urgent", 1, 1)):
        arbiter.want(Want(lane, cores(needs), 0.01, priority=priority), 0.0)
    assert lanes(arbiter.grants(0.0)) == ["a", "urgent"]


def test_an_urgent_front_that_does_not_fit_is_overtaken_by_nobody() -> None:
    arbiter = Arbiter(cores(2), discipline="fcfs", reserved=cores(1))
    for lane, needs, priority in (("a", 1, 0), ("wide", 2, 1), ("urgent", 1, 1), ("light", 1, 0)):
        arbiter.want(Want(lane, cores(needs), 0.01, priority=priority), 0.0)
    assert lanes(arbiter.grants(0.0)) == ["a"]


def test_nor_by_an_older_urgent_one_behind_it() -> None:
    arbiter = Arbiter(cores(2), discipline="edf")
    arbiter.want(Want("a", cores(1), 0.01), 0.0)
    arbiter.grants(0.0)
    arbiter.want(Want("older", cores(1), 0.01, priority=1, deadline_at=9.0), 0.0)
    arbiter.want(Want("first", cores(2), 0.01, priority=1, deadline_at=5.0), 0.0)
    assert arbiter.grants(0.0) == []


def test_the_most_urgent_overtakes_first() -> None:
    arbiter = Arbiter(cores(3), discipline="fcfs", reserved_for=4)
    for lane, needs, priority in (("a", 2, 9), ("wide", 3, 9), ("b", 1, 0), ("c", 1, 3), ("d", 1, 1)):
        arbiter.want(Want(lane, cores(needs), 0.01, priority=priority), 0.0)
    assert lanes(arbiter.grants(0.0)) == ["a", "d"]


@pytest.mark.parametrize("discipline", DISCIPLINES)
def test_others_never_touch_the_reserved_part(discipline: str) -> None:
    arbiter = Arbiter(cores(4), discipline=discipline, reserved=cores(1))
    for lane in "abcde":
        arbiter.want(Want(lane, cores(1), 0.01, priority=2), 0.0)
    assert len(arbiter.grants(0.0)) == 3
    arbiter.want(Want("urgent", cores(1), 5.0, priority=1), 0.0)
    assert lanes(arbiter.grants(0.0)) == ["urgent"]


def test_a_front_that_stood_for_long_is_overtaken_in_the_reserved_part_only() -> None:
    arbiter = Arbiter(cores(4), discipline="fcfs", reserved=cores(1), starvation_s=STARVATION_S)
    arbiter.want(Want("u", cores(1), 0.01, priority=1), 0.0)
    (first,) = arbiter.grants(0.0)
    arbiter.want(Want("other", cores(1), 0.01), 0.0)
    arbiter.grants(0.0)
    arbiter.want(Want("wide", cores(3), 0.01), 0.0)
    arbiter.want(Want("u", cores(1), 0.01, priority=1), STARVATION_S - 0.1)
    (second,) = arbiter.grants(STARVATION_S - 0.1)
    arbiter.want(Want("u", cores(1), 0.01, priority=1), STARVATION_S)
    assert arbiter.grants(STARVATION_S) == []
    arbiter.release(first.id, STARVATION_S, 0.01)
    assert arbiter.grants(STARVATION_S) == []
    arbiter.release(second.id, STARVATION_S, 0.01)
    assert lanes(arbiter.grants(STARVATION_S)) == ["u"]


# Over time


@dataclass
class Load:
    """A lane that always wants its next batch, `copies` of them at a time; batches really take `takes_s`."""

    want: Want
    copies: int = 1
    takes_s: float = 0.0  # as predicted
    from_s: float = 0.0


@dataclass
class Start:
    lane: str
    at: float
    waited_s: float
    takes_s: float


def simulate(arbiter: Arbiter, loads: list[Load], until_s: float) -> list[Start]:
    """Each lane wants anew when a batch of its starts, as long as it has an instance for it, and when one ends."""
    by_lane = {load.want.lane: load for load in loads}
    running = Counter[str]()
    wanted_at: dict[str, float] = {}
    starts: list[Start] = []
    events: list[tuple[float, int, Callable[[float], None]]] = []
    number = count()

    def at(time: float, do: Callable[[float], None]) -> None:
        heappush(events, (time, next(number), do))

    def want(lane: str, now: float) -> None:
        if running[lane] < by_lane[lane].copies and lane not in wanted_at:
            wanted_at[lane] = now
            arbiter.want(by_lane[lane].want, now)

    def end(lease: Lease, takes_s: float, now: float) -> None:
        running[lease.lane] -= 1
        want(lease.lane, now)
        arbiter.release(lease.id, now, takes_s)

    for load in loads:
        at(load.from_s, partial(want, load.want.lane))
    while events[0][0] < until_s:
        now = events[0][0]
        while events and events[0][0] == now:
            heappop(events)[2](now)
        while leases := arbiter.grants(now):
            for lease in leases:
                load = by_lane[lease.lane]
                takes_s = load.takes_s or load.want.cost_s
                starts.append(Start(lease.lane, now, now - wanted_at.pop(lease.lane), takes_s))
                running[lease.lane] += 1
                at(now + takes_s, partial(end, lease, takes_s))
                want(lease.lane, now)
    return starts


def used_s(starts: list[Start], lane: str, until_s: float = inf) -> float:
    return sum(start.takes_s for start in starts if start.lane == lane and start.at < until_s)


@pytest.mark.parametrize("discipline", DISCIPLINES)
def test_a_stream_of_light_batches_does_not_starve_a_wide_one(discipline: str) -> None:
    light = [Load(Want(f"light{n}", cores(1), 0.003, deadline_at=0.0), from_s=n * 0.001, copies=2) for n in range(6)]
    wide = Load(Want("wide", cores(4), 0.1))
    starts = simulate(Arbiter(cores(4), discipline=discipline, starvation_s=STARVATION_S), [*light, wide], 3 * STARVATION_S)
    waits = [start.waited_s for start in starts if start.lane == "wide"]
    assert len(waits) >= 2
    assert max(waits) <= STARVATION_S + 0.1, "what ran before it has to end"
    assert sum(start.lane != "wide" for start in starts) > len(waits)


@pytest.mark.parametrize("reserved", [0.0, 1.0])
@pytest.mark.parametrize(("discipline", "longest_s"), [("fcfs", STARVATION_S), ("priority", 3 * LaneKnobs().ageing_s)])
def test_not_even_a_stream_of_urgent_batches_starves_a_wide_one(reserved: float, discipline: str, longest_s: float) -> None:
    urgent = [Load(Want(f"urgent{n}", cores(1), 0.003, priority=1), from_s=n * 0.001) for n in range(6)]
    wide = Load(Want("wide", cores(3), 0.1), from_s=0.0005)
    arbiter = Arbiter(cores(4), discipline=discipline, reserved=cores(reserved), starvation_s=STARVATION_S)
    starts = simulate(arbiter, [*urgent, wide], 4 * longest_s)
    waits = [start.waited_s for start in starts if start.lane == "wide"]
    assert len(waits) >= 2
    assert max(waits) <= longest_s + 0.1, "by waiting, or by what it ages: it is three levels below"


def test_fair_lets_a_light_lane_wait_for_one_heavy_batch_at_most() -> None:
    light, heavy = Load(Want("light", cores(1), 0.001)), Load(Want("heavy", cores(1), 0.1))
    starts = simulate(Arbiter(cores(1)), [light, heavy], 20.0)
    assert max(start.waited_s for start in starts if start.lane == "light") <= 0.1 + 1e-9
    assert used_s(starts, "light") == pytest.approx(used_s(starts, "heavy"), abs=0.101)


@pytest.mark.parametrize(
    ("weights", "costs_s", "needs"),
    [
        pytest.param((3, 1), (0.01, 0.01), (1, 1), id="equal batches"),
        pytest.param((3, 1), (0.05, 0.01), (1, 1), id="the favoured has larger ones"),
        pytest.param((3, 1), (0.007, 0.1), (1, 1), id="and smaller ones"),
        pytest.param((1, 1), (0.01, 0.01), (2, 1), id="one takes both cores, the other leaves one idle"),
        pytest.param((2, 1), (0.01, 0.02), (2, 2), id="both take both"),
    ],
)
def test_fair_gives_time_by_weight_within_a_batch_of_each(
    weights: tuple[float, float], costs_s: tuple[float, float], needs: tuple[int, int]
) -> None:
    total = max(needs)
    loads = [
        Load(Want(lane, cores(need), cost_s, weight=weight))
        for lane, need, cost_s, weight in zip("ab", needs, costs_s, weights, strict=True)
    ]
    starts = simulate(Arbiter(cores(total)), loads, 10.0)
    slack = sum(cost_s * need / total / weight for cost_s, need, weight in zip(costs_s, needs, weights, strict=True))
    for until_s in (0.5, 1.0, 3.0, 10.0):
        a, b = (
            used_s(starts, lane, until_s) * need / total / weight
            for lane, need, weight in zip("ab", needs, weights, strict=True)
        )
        assert abs(a - b) <= slack + 1e-6


def test_fair_charges_what_was_used_not_what_was_predicted() -> None:
    honest, modest = Load(Want("honest", cores(1), 0.01)), Load(Want("modest", cores(1), 0.001), takes_s=0.01)
    grand = Load(Want("grand", cores(1), 0.1), takes_s=0.01)
    starts = simulate(Arbiter(cores(1)), [honest, modest, grand], 30.0)
    times = [used_s(starts, lane) for lane in ("honest", "modest", "grand")]
    assert times == pytest.approx([10.0] * 3, abs=0.15), "one batch as predicted: 0.1 s"


def test_fair_charges_an_urgent_lane_for_overtaking() -> None:
    """It overtakes the wide one again and again; when both fit in turn, it has had more and the wide one goes first."""
    arbiter = Arbiter(cores(4))
    arbiter.want(Want("blocker", cores(1), 1.0), 0.0)
    (blocker,) = arbiter.grants(0.0)
    arbiter.want(Want("wide", cores(4), 0.01), 0.0)
    for step in range(10):
        arbiter.want(Want("urgent", cores(3), 0.01, priority=1), step * 0.01)
        (lease,) = arbiter.grants(step * 0.01)
        assert lease.lane == "urgent"
        arbiter.release(lease.id, (step + 1) * 0.01, 0.01)
    arbiter.want(Want("urgent", cores(3), 0.01, priority=1), 0.1)
    arbiter.release(blocker.id, 0.1, 1.0)
    order = []
    for _ in range(8):
        for lane, needs, priority in (("wide", 4, 0), ("urgent", 3, 1)):
            arbiter.want(Want(lane, cores(needs), 0.01, priority=priority), 0.1)
        order += (granted := lanes(leases := arbiter.grants(0.1)))
        assert len(granted) == 1
        arbiter.want(Want(granted[0], cores(3), 0.01, priority=int(granted[0] == "urgent")), 0.1)
        arbiter.release(leases[0].id, 0.1, 0.01)
    assert order[:1] == ["wide"]
    assert order.count("wide") >= 6, "urgent had ten before"


def test_fair_gives_no_credit_for_idle_time() -> None:
    early, late = Load(Want("early", cores(1), 0.01)), Load(Want("late", cores(1), 0.01), from_s=5.0)
    starts = simulate(Arbiter(cores(1)), [early, late], 6.0)
    after = [start.lane for start in starts if start.at >= 5.0]
    assert abs(after.count("early") - after.count("late")) <= 2


@pytest.mark.parametrize("wants_first", [True, False])
def test_a_pass_costs_nothing(wants_first: bool) -> None:
    """The requests of one lane expire before each of its turns; both predict the same, so they take turns all the same."""
    arbiter = Arbiter(cores(1))
    order = []
    for step in range(100):
        now = step * 0.01
        for lane in ("works", "passes"):
            arbiter.want(Want(lane, cores(1), 1.0), now)
        (lease,) = arbiter.grants(now)
        order.append(lease.lane)
        if wants_first:
            arbiter.want(Want(lease.lane, cores(1), 1.0), now)
        arbiter.release(lease.id, now, 1.0 if lease.lane == "works" else 0.0)
    assert order.count("works") == 1, "it used a second, the other nothing yet"


def test_an_urgent_want_within_the_reserved_part_never_waits() -> None:
    others = [Load(Want(f"other{n}", cores(1 + n % 3), 0.02 + n * 0.01, priority=2), from_s=n * 0.013) for n in range(6)]
    urgent = Load(Want("urgent", cores(1), 0.005, priority=1), from_s=0.5)
    for discipline in DISCIPLINES:
        starts = simulate(Arbiter(cores(4), discipline=discipline, reserved=cores(1)), [*others, urgent], 3.0)
        waits = [start.waited_s for start in starts if start.lane == "urgent"]
        assert len(waits) >= 450, "one after the other, without a pause"
        assert max(waits) == 0.0


@pytest.mark.parametrize("discipline", DISCIPLINES)
def test_the_same_wants_give_the_same_grants(discipline: str) -> None:
    loads = [Load(Want(f"{n}", cores(1 + n % 4), 0.01 * (n + 1), priority=n % 3), copies=1 + n % 2) for n in range(5)]
    first, second = (simulate(Arbiter(cores(4), discipline=discipline), loads, 5.0) for _ in range(2))
    assert first == second


class Arbitration(RuleBasedStateMachine):
    """Lanes want, withdraw and go in any order; under FCFS the grants are foreseen one by one."""

    LANES = "abcdef"
    RESOURCES: Mapping[str, float] = {"cores": 4, "streams": 3}

    @initialize(
        discipline=st.sampled_from(["fcfs", *DISCIPLINES]),
        reserved=st.sampled_from([{}, {"cores": 1}, {"cores": 2, "streams": 1}]),
    )
    def start(self, discipline: str, reserved: Mapping[str, float]) -> None:
        self.discipline, self.reserved = discipline, reserved
        self.arbiter = Arbiter(self.RESOURCES, discipline=discipline, reserved=reserved, starvation_s=STARVATION_S)
        self.now = 0.0
        self.wants: dict[str, tuple[float, Want]] = {}  # in the order of their places, with since when
        self.held: dict[int, tuple[Want, bool]] = {}

    @rule(
        lane=st.sampled_from(LANES),
        needs=st.tuples(st.integers(0, 5), st.integers(0, 3)),
        cost_s=st.sampled_from([0.0, 0.001, 0.02, 3.0]),
        deadline_s=st.sampled_from([inf, 0.1, 20.0]),
        priority=st.integers(0, 3),
        weight=st.sampled_from([1.0, 3.0]),
    )
    def want(self, lane: str, needs: tuple[int, int], cost_s: float, deadline_s: float, priority: int, weight: float) -> None:
        amounts = {"cores": needs[0], "streams": needs[1]}
        want = Want(lane, amounts, cost_s, self.now + deadline_s, priority, weight)
        limits = {name: most - (priority != 1) * self.reserved.get(name, 0) for name, most in self.RESOURCES.items()}
        if any(amounts[name] > most for name, most in limits.items()):
            with pytest.raises(ValueError, match=lane):
                self.arbiter.want(want, self.now)
            return
        self.arbiter.want(want, self.now)
        self.wants[lane] = (self.wants.get(lane, (self.now,))[0], want)

    @rule(lane=st.sampled_from(LANES), gone=st.booleans())
    def withdraw(self, lane: str, gone: bool) -> None:
        (self.arbiter.forget if gone else self.arbiter.withdraw)(lane)
        self.wants.pop(lane, None)

    @rule()
    def grants(self) -> None:
        leases = self.arbiter.grants(self.now)
        if self.discipline == "fcfs":
            assert lanes(leases) == self.foreseen()
        for lease in leases:
            _, want = self.wants.pop(lease.lane)
            assert lease.needs == want.needs
            assert lease.id not in self.held
            self.held[lease.id] = (want, want.priority == 1)
        assert not self.wants or self.held, "something starts when nothing runs"
        assert self.arbiter.grants(self.now) == []

    @precondition(lambda self: self.held)
    @rule(data=st.data(), used_s=st.sampled_from([0.0, 0.01, 5.0]))
    def release(self, data: st.DataObject, used_s: float) -> None:
        lease_id = data.draw(st.sampled_from(sorted(self.held)))
        del self.held[lease_id]
        self.arbiter.release(lease_id, self.now, used_s)

    @rule(step_s=st.sampled_from([0.001, 0.5, 1.9]))
    def wait(self, step_s: float) -> None:
        self.now += step_s

    @invariant()
    def never_more_than_there_is(self) -> None:
        for name, most in self.RESOURCES.items():
            assert self.arbiter.free[name] == most - self.used(name, self.held.values()) >= 0
            others = [entry for entry in self.held.values() if not entry[1]]
            assert self.used(name, others) <= most - self.reserved.get(name, 0)

    @staticmethod
    def used(name: str, held: Iterable[tuple[Want, bool]]) -> float:
        return sum(want.needs[name] for want, _ in held)

    def foreseen(self) -> list[str]:
        """What the rules say, told in another way: go through the wants by place; after the first that waits, only the
        first urgent one may start, and another time around."""
        wants, held, order = dict(self.wants), list(self.held.values()), []

        def fits(want: Want, *, in_reserved: bool) -> bool:
            urgent = want.priority == 1
            for name, most in self.RESOURCES.items():
                reserved, need = self.reserved.get(name, 0), want.needs[name]
                of_class = self.used(name, [entry for entry in held if entry[1] is urgent]) + need
                if self.used(name, held) + need > most or (not urgent and of_class > most - reserved):
                    return False
                if in_reserved and of_class > reserved:
                    return False
            return True

        while wants:
            since, first = next(iter(wants.values()))
            urgent = next((want for _, want in wants.values() if want.priority == 1), None)
            patient = self.now - since < STARVATION_S
            if fits(first, in_reserved=False):
                chosen = first
            elif first.priority != 1 and urgent is not None and fits(urgent, in_reserved=False):
                if not patient and not fits(urgent, in_reserved=True):
                    break
                chosen = urgent
            else:
                break
            del wants[chosen.lane]
            held.append((chosen, chosen.priority == 1))
            order.append(chosen.lane)
        return order


TestArbitration = Arbitration.TestCase
TestArbitration.settings = settings(max_examples=30, stateful_step_count=40, deadline=None)

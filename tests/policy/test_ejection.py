"""Ejection: when an instance is taken out, for how long, what brings it back, and that most are never out."""

from math import inf

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from dlproxy.policy.ejection import BASE_S, LONGEST_S, RECOVERY_S, WINDOW_S, Circuit, OutlierEjection

CLOSED, OPEN, HALF_OPEN = Circuit.CLOSED, Circuit.OPEN, Circuit.HALF_OPEN


def ejection(instances: str = "ab", *, after: int = 3) -> OutlierEjection:
    """One instance per letter."""
    made = OutlierEjection(after=after)
    for name in instances:
        made.add(name, 0.0)
    return made


def feed(made: OutlierEjection, instance: str, outcomes: str, now: float = 0.0) -> list[bool]:
    """`+` is a batch that went well, `-` one that failed."""
    return [made.observe(instance, ok=outcome == "+", now=now) for outcome in outcomes]


def probe(made: OutlierEjection, instance: str, *, ok: bool) -> float:
    """Wait until it is due, try it, and return when that was."""
    now = made.next_due_at()
    assert made.due(now) == [instance]
    assert made.available(instance)
    made.dispatched(instance)
    assert made.observe(instance, ok=ok, now=now)
    return now


@pytest.mark.parametrize(
    ("after", "outcomes", "state"),
    [
        pytest.param(3, "--", CLOSED, id="one error is missing"),
        pytest.param(3, "---", OPEN, id="three in a row"),
        pytest.param(3, "--+--", CLOSED, id="a success in between"),
        pytest.param(3, "+++---", OPEN, id="earlier successes do not help"),
        pytest.param(1, "-", OPEN, id="at the first"),
        pytest.param(0, "-" * 100, CLOSED, id="never"),
    ],
)
def test_errors_in_a_row_eject(after: int, outcomes: str, state: Circuit) -> None:
    made = ejection(after=after)
    changed = feed(made, "a", outcomes)
    assert (made.state("a"), made.state("b")) == (state, CLOSED)
    assert changed == [False] * (len(outcomes) - 1) + [state is OPEN], "it says so when it happens, and only then"
    assert made.available("a") is (state is CLOSED)


@pytest.mark.parametrize(("instances", "most"), [("a", 0), ("ab", 1), ("abc", 1), ("abcd", 2), ("abcde", 2)])
def test_at_most_half_are_ever_out(instances: str, most: int) -> None:
    made = ejection(instances)
    for name in instances:
        feed(made, name, "-" * 10)
    assert [made.state(name) for name in instances] == [OPEN] * most + [CLOSED] * (len(instances) - most)


def test_who_was_kept_in_by_the_limit_is_ejected_by_its_next_error_once_there_is_room() -> None:
    made = ejection("ab")
    feed(made, "a", "---")
    feed(made, "b", "---")
    probe(made, "a", ok=True)
    assert feed(made, "b", "-", now=BASE_S) == [True]
    assert (made.state("a"), made.state("b")) == (CLOSED, OPEN)


def test_an_ejected_one_gets_one_batch_as_a_probe() -> None:
    made = ejection()
    feed(made, "a", "---", now=5.0)
    assert made.next_due_at() == 5.0 + BASE_S
    assert made.due(4.9 + BASE_S) == []
    assert made.due(5.0 + BASE_S) == ["a"]
    assert made.due(5.0 + BASE_S) == [], "told once"
    assert (made.state("a"), made.available("a"), made.next_due_at()) == (HALF_OPEN, True, inf)
    made.dispatched("a")
    assert not made.available("a"), "no second one before the first has ended"
    assert feed(made, "a", "+", now=16.0) == [True]
    assert (made.state("a"), made.available("a")) == (CLOSED, True)


def test_a_success_of_a_batch_that_began_before_the_ejection_changes_nothing() -> None:
    made = ejection()
    feed(made, "a", "---")
    assert feed(made, "a", "+-+") == [False] * 3
    assert (made.state("a"), made.next_due_at()) == (OPEN, BASE_S)
    probe(made, "a", ok=True)
    assert made.state("a") is CLOSED


def test_the_streak_starts_again_after_a_good_probe() -> None:
    made = ejection()
    feed(made, "a", "---")
    probe(made, "a", ok=True)
    assert feed(made, "a", "---", now=BASE_S) == [False, False, True]


def test_each_failed_probe_doubles_the_time_out_up_to_the_longest() -> None:
    made = ejection()
    feed(made, "a", "---")
    ends = [probe(made, "a", ok=False) for _ in range(8)]
    out_s = [later - earlier for earlier, later in zip([0.0, *ends], ends, strict=False)]
    assert out_s == [10.0, 20.0, 40.0, 80.0, 160.0, LONGEST_S, LONGEST_S, LONGEST_S]
    well_at = probe(made, "a", ok=True) + 5 * RECOVERY_S
    feed(made, "a", "---", now=well_at)
    assert made.next_due_at() == well_at + BASE_S, "five doublings, and five steps back"


@pytest.mark.parametrize(
    ("healthy_s", "out_s"),
    [
        pytest.param(0.0, 80.0, id="no time: it goes on where it was"),
        pytest.param(RECOVERY_S - 0.1, 80.0, id="not long enough"),
        pytest.param(RECOVERY_S, 40.0, id="one step"),
        pytest.param(2.5 * RECOVERY_S, 20.0, id="two steps"),
        pytest.param(1e6, BASE_S, id="all is forgotten"),
    ],
)
def test_time_spent_closed_shortens_the_next_ejection(healthy_s: float, out_s: float) -> None:
    made = ejection()
    feed(made, "a", "---")
    probe(made, "a", ok=False)
    probe(made, "a", ok=False)
    again_at = probe(made, "a", ok=True) + healthy_s
    feed(made, "a", "---", now=again_at)
    assert made.next_due_at() == pytest.approx(again_at + out_s)


def test_the_one_due_longest_comes_first() -> None:
    made = ejection("abcd")
    feed(made, "a", "---")
    probe(made, "a", ok=False)  # out from 10 to 30
    feed(made, "c", "---", now=11.0)
    assert made.due(100.0) == ["c", "a"]


def test_when_healthy_ones_leave_the_next_due_comes_back() -> None:
    made = ejection("abcd")
    feed(made, "b", "---", now=1.0)
    feed(made, "a", "---", now=2.0)
    assert made.forget("c") == ["b"], "two of three would be out"
    assert (made.state("b"), made.state("a"), made.next_due_at()) == (CLOSED, OPEN, 2.0 + BASE_S)
    assert made.forget("d") == []
    assert made.forget("b") == ["a"], "the only one is never out"
    assert feed(made, "a", "-", now=3.0) == [False]


def test_coming_back_early_is_not_time_spent_healthy() -> None:
    made = ejection()
    feed(made, "a", "---")
    probe(made, "a", ok=False)  # out from 10 to 30
    assert made.forget("b") == ["a"]
    made.add("c", 11.0)
    assert feed(made, "a", "-", now=12.0) == [True], "its streak stands"
    assert made.next_due_at() == 12.0 + 4 * BASE_S


def test_forgetting_an_ejected_one_leaves_nothing_of_it() -> None:
    made = ejection()
    feed(made, "a", "---")
    assert made.forget("a") == []
    assert made.next_due_at() == inf
    assert feed(made, "a", "---") == [False] * 3, "its batches may outlive it"
    made.add("a", 1.0)
    assert made.state("a") is CLOSED
    assert feed(made, "a", "--", now=1.0) == [False, False]


def test_configure_holds_from_now_on_and_zero_closes_all() -> None:
    made = ejection(after=3)
    feed(made, "a", "--")
    assert made.configure(after=2) == []
    assert feed(made, "a", "-") == [True]
    assert made.configure(after=0) == ["a"]
    assert (made.state("a"), made.next_due_at()) == (CLOSED, inf)
    assert not any(feed(made, "a", "-" * 50))


def test_nothing_is_dispatched_to_an_ejected_one() -> None:
    made = ejection()
    feed(made, "a", "---")
    with pytest.raises(AssertionError, match="a is ejected"):
        made.dispatched("a")


def rated(instances: str, *, batches: int, bad: int, lasts_s: float = WINDOW_S, after: int = 5) -> OutlierEjection:
    """A window in which each instance ran so many batches; `bad` of the first one's failed, never two in a row."""
    made = ejection(instances, after=after)
    feed(made, "a", "-+")  # a window begins after an error
    for name in instances[1:]:
        feed(made, name, "+" * batches)
    feed(made, "a", "-+" * (bad - 1) + "+" * (batches - 2 * bad + 1), now=1.0)
    feed(made, "a", "-", now=lasts_s)
    return made


@pytest.mark.parametrize(
    ("instances", "batches", "bad", "lasts_s", "state"),
    [
        pytest.param("abcde", 100, 20, WINDOW_S, OPEN, id="one of five fails a fifth of its batches"),
        pytest.param("abcd", 100, 20, WINDOW_S, CLOSED, id="four tell nothing of what is usual"),
        pytest.param("abcde", 99, 20, WINDOW_S, CLOSED, id="nor do 99 batches"),
        pytest.param("abcde", 100, 20, WINDOW_S - 0.1, CLOSED, id="the window is not over"),
        pytest.param("abcde", 100, 20, 2 * WINDOW_S, CLOSED, id="a window with no error in its second half"),
        pytest.param("abcdefghij", 100, 1, WINDOW_S, CLOSED, id="one error in 100 among flawless others"),
        pytest.param("abcdefghij", 100, 9, WINDOW_S, OPEN, id="nine errors in 100 among flawless others"),
    ],
)
def test_a_success_rate_far_below_the_others_ejects(
    instances: str, batches: int, bad: int, lasts_s: float, state: Circuit
) -> None:
    assert rated(instances, batches=batches, bad=bad, lasts_s=lasts_s).state("a") is state


def test_a_rate_that_all_share_ejects_nobody() -> None:
    made = ejection("abcde")
    for now in (0.0, WINDOW_S, 2 * WINDOW_S):
        for _ in range(60):
            for name in "abcde":
                feed(made, name, "-+", now=now)
    assert [made.state(name) for name in "abcde"] == [CLOSED] * 5


def test_an_outlier_found_by_anothers_error_leaves_at_its_own_next_one() -> None:
    made = ejection("abcde")
    feed(made, "b", "-")
    for name in "bcde":
        feed(made, name, "+" * 100)
    feed(made, "a", "-+" * 60, now=1.0)
    assert feed(made, "b", "-", now=WINDOW_S) == [False]
    assert feed(made, "a", "+-", now=WINDOW_S) == [False, True]


def test_each_window_counts_anew() -> None:
    made = ejection("abcde", after=5)
    feed(made, "a", "-+")
    for name in "abcde":
        feed(made, name, "+" * 2000)
    feed(made, "a", "-+", now=WINDOW_S)
    for name in "bcde":
        feed(made, name, "+" * 100, now=WINDOW_S)
    feed(made, "a", "-+" * 20 + "+" * 60, now=WINDOW_S + 1.0)
    assert feed(made, "a", "-", now=2 * WINDOW_S) == [True]


def test_zero_switches_success_rates_off_too() -> None:
    assert rated("abcde", batches=100, bad=40, after=0).state("a") is CLOSED


class Ejections(RuleBasedStateMachine):
    """Instances come, go, fail and recover in any order."""

    NAMES = "abcdefg"

    def __init__(self) -> None:
        super().__init__()
        self.ejection = OutlierEjection(after=2)
        self.states: dict[str, Circuit] = {}
        self.now = 0.0

    @rule(name=st.sampled_from(NAMES))
    def add_or_forget(self, name: str) -> None:
        if name not in self.states:
            self.ejection.add(name, self.now)
            self.states[name] = CLOSED
            return
        del self.states[name]
        closed = self.ejection.forget(name)
        assert all(self.states[other] is not CLOSED for other in closed)
        self.states.update(dict.fromkeys(closed, CLOSED))

    @rule(name=st.sampled_from(NAMES), ok=st.booleans(), times=st.integers(1, 3))
    def observe(self, name: str, ok: bool, times: int) -> None:
        for _ in range(times):
            changed = self.ejection.observe(name, ok=ok, now=self.now)
            if name not in self.states:
                assert not changed
                continue
            before, after = self.states[name], self.ejection.state(name)
            assert changed is (before is not after)
            assert changed or before is not HALF_OPEN, "a probe decides"
            if changed:
                assert after is (CLOSED if ok else OPEN)
                assert before is HALF_OPEN or (before is CLOSED and not ok)
            self.states[name] = after

    @precondition(lambda self: self.states)
    @rule(data=st.data())
    def dispatch(self, data: st.DataObject) -> None:
        name = data.draw(st.sampled_from(sorted(self.states)))
        if self.ejection.available(name):
            self.ejection.dispatched(name)
            assert self.ejection.available(name) is (self.states[name] is CLOSED)

    @rule(step_s=st.sampled_from([0.0, 1.0, 9.0, 10.0, 40.0]))
    def wait(self, step_s: float) -> None:
        self.now += step_s
        promised_at = self.ejection.next_due_at()
        due = self.ejection.due(self.now)
        assert bool(due) is (promised_at <= self.now)
        for name in due:
            assert self.states[name] is OPEN
            self.states[name] = HALF_OPEN

    @invariant()
    def agrees_and_keeps_half(self) -> None:
        assert {name: self.ejection.state(name) for name in self.states} == self.states
        out = [name for name, state in self.states.items() if state is not CLOSED]
        assert len(out) <= len(self.states) / 2
        if self.states:
            assert any(self.ejection.available(name) for name in self.states)
        assert self.now < self.ejection.next_due_at()
        assert self.ejection.next_due_at() <= self.now + LONGEST_S or OPEN not in self.states.values()


TestEjections = Ejections.TestCase
TestEjections.settings = settings(max_examples=30, stateful_step_count=40, deadline=None)

"""Whose turn it is in a sequence, what waits, fails with another, is refused or forgotten: as a table, and with Hypothesis."""

from collections.abc import Sequence as Many
from math import inf

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dlproxy.message import Failure, FailureKind, InSequence, Ticket
from dlproxy.policy.sequences import MOST_WAITING, Sequence, Sequences, Turn

BROKEN = Failure(FailureKind.MODEL_FAILED, "bad index")
IDLE_S = 60.0


class Rig:
    """`answered`, `failed`: tickets' ids in their order."""

    def __init__(self, *, most: int = 4, most_waiting: int = 100) -> None:
        self.policy: Sequences[str] = Sequences("m", most=most, idle_s=IDLE_S, most_waiting=most_waiting)
        self.now = 0.0
        self.failed: dict[int, Failure] = {}
        self.answered: list[int] = []
        self.turns: list[Turn[str]] = []

    def add(
        self, key: int = 5, *, start: bool = False, end: bool = False, timeout_s: float = inf, home: str = "v1"
    ) -> Sequence[str] | Failure:
        ticket = Ticket(len(self.turns), self.now, self.now + timeout_s)
        turn = Turn(ticket, InSequence(key, start, end), home)
        self.turns.append(turn)
        self.lapse()
        added = self.policy.add(key, turn, self.now)
        if isinstance(added, Failure):
            self.failed[ticket.id] = added
        return added

    def begin(self, key: int = 5, *, home: str = "v1") -> Sequence[str]:
        sequence = self.add(key, start=True, home=home)
        assert isinstance(sequence, Sequence)
        self.answer(sequence)
        return sequence

    def answer(self, sequence: Sequence[str]) -> None:
        assert sequence.running is not None
        self.answered.append(sequence.running.ticket.id)
        self.policy.answered(sequence, self.now)

    def fail(self, sequence: Sequence[str]) -> None:
        assert sequence.running is not None
        self.note([(sequence.running, BROKEN), *self.policy.unanswered(sequence, BROKEN, self.now)])

    def note(self, failed: Many[tuple[Turn[str], Failure]]) -> None:
        for turn, failure in failed:
            assert turn.ticket.id not in self.failed, "failed twice"
            self.failed[turn.ticket.id] = failure

    def lapse(self) -> None:
        self.note(self.policy.lapse(self.now)[1])


@pytest.fixture
def rig() -> Rig:
    return Rig()


def kind_of(added: Sequence[str] | Failure) -> FailureKind | None:
    return added.kind if isinstance(added, Failure) else None


def test_one_that_never_began_is_refused_in_tritons_words(rig: Rig) -> None:
    refused = rig.add()
    assert isinstance(refused, Failure)
    assert refused.kind is FailureKind.INVALID_ARGUMENT
    assert refused.message.startswith(
        "inference request for sequence 5 to model 'm' must specify the START flag on the first request of the sequence"
    )
    assert not rig.policy


def test_after_its_end_nothing_follows_even_before_that_is_answered(rig: Rig) -> None:
    sequence = rig.begin()
    rig.add(end=True)
    assert kind_of(rig.add()) is FailureKind.INVALID_ARGUMENT
    assert not isinstance(rig.add(start=True), Failure)
    rig.answer(sequence)
    assert sequence.running is not None
    assert sequence.running.of.start
    rig.add(end=True)
    rig.answer(sequence)
    rig.answer(sequence)
    assert kind_of(rig.add()) is FailureKind.INVALID_ARGUMENT
    assert not rig.policy


def test_requests_of_one_sequence_run_one_after_the_other_and_of_two_side_by_side(rig: Rig) -> None:
    one, other = rig.begin(1), rig.begin(2)
    for key in (1, 1, 2):
        rig.add(key)
    assert [sequence.running is not None for sequence in (one, other)] == [True, True]
    assert rig.policy.waiting == 1
    rig.answer(one)
    rig.answer(one)
    assert one.running is None


def test_a_failure_takes_those_behind_it_along_but_not_what_starts_anew(rig: Rig) -> None:
    sequence = rig.begin()
    for start in (False, False, False, True, False):
        rig.add(start=start)
    rig.fail(sequence)
    assert sorted(rig.failed) == [1, 2, 3]
    assert rig.failed[2] == Failure(
        FailureKind.MODEL_FAILED, "not run, as an earlier request of sequence 5 was not answered: bad index"
    )
    rig.answer(sequence)
    rig.answer(sequence)
    assert rig.answered == [0, 4, 5]


def test_after_a_failure_the_client_may_repeat(rig: Rig) -> None:
    sequence = rig.begin()
    rig.add()
    rig.fail(sequence)
    assert rig.add() is sequence


def test_a_first_request_that_fails_leaves_nothing(rig: Rig) -> None:
    sequence = rig.add(start=True)
    assert isinstance(sequence, Sequence)
    rig.fail(sequence)
    assert not rig.policy


def test_a_new_start_that_fails_leaves_the_sequence_as_it_was(rig: Rig) -> None:
    sequence = rig.begin(home="v1")
    sequence.state = "before"
    rig.add(start=True, home="v2")
    assert sequence.runs_at == "v2"
    rig.fail(sequence)
    rig.add()
    assert (sequence.runs_at, sequence.state) == ("v1", "before")


def test_idle_ones_are_forgotten_and_busy_ones_are_not(rig: Rig) -> None:
    rig.begin(1)
    busy = rig.begin(2)
    rig.add(2)
    assert rig.policy.next_at() == IDLE_S
    rig.now = IDLE_S
    gone, _ = rig.policy.lapse(rig.now)
    assert [sequence.key for sequence in gone] == [1]
    assert list(rig.policy) == [busy]
    assert rig.policy.next_at() == inf
    rig.answer(busy)
    assert rig.policy.next_at() == 2 * IDLE_S


def test_one_more_than_fits_is_refused_and_told_when_to_try_again(rig: Rig) -> None:
    for key in range(4):
        rig.begin(key)
        rig.now += 1.0
    refused = rig.add(7, start=True)
    assert isinstance(refused, Failure)
    assert (refused.kind, refused.retry_after_s) == (FailureKind.QUEUE_FULL, 56.0)
    assert "keeps 4 at most (max_sequences)" in refused.message
    assert not isinstance(rig.add(3, start=True), Failure)
    rig.now += 56.0
    assert not isinstance(rig.add(7, start=True), Failure)


@pytest.mark.parametrize("most_waiting", [3, 10_000])
def test_no_more_wait_than_may_and_none_takes_the_place_of_one_refused(most_waiting: int) -> None:
    rig = Rig(most_waiting=most_waiting)
    sequence = rig.begin()
    waiting = min(MOST_WAITING, most_waiting)
    for _ in range(1 + waiting):
        assert rig.add() is sequence
    assert kind_of(rig.add()) is FailureKind.QUEUE_FULL
    rig.answer(sequence)
    assert kind_of(rig.add()) is FailureKind.QUEUE_FULL
    for _ in range(waiting):
        rig.answer(sequence)
    assert rig.add() is sequence


def test_who_waits_for_too_long_fails_with_those_behind(rig: Rig) -> None:
    sequence = rig.begin()
    rig.add()
    rig.add(timeout_s=1.0)
    rig.add()
    assert rig.policy.next_at() == 1.0
    rig.now = 1.0
    rig.lapse()
    assert {number: failure.kind for number, failure in rig.failed.items()} == {
        2: FailureKind.DEADLINE,
        3: FailureKind.DEADLINE,
    }
    rig.answer(sequence)
    assert rig.add() is sequence


def test_entries_of_deadlines_do_not_pile_up(rig: Rig) -> None:
    sequence = rig.begin()
    rig.add()
    for _ in range(1000):
        rig.add(timeout_s=3600.0)
        rig.answer(sequence)
    assert len(rig.policy._due) < 200


def test_a_sequence_that_cannot_go_on_says_so_once(rig: Rig) -> None:
    sequence = rig.begin()
    rig.note(rig.policy.end(sequence, "it burnt", rig.now))
    refused = rig.add()
    assert refused == Failure(FailureKind.UNAVAILABLE, "sequence 5 of model 'm' has ended, start it again: it burnt")
    assert kind_of(rig.add()) is FailureKind.INVALID_ARGUMENT
    assert not rig.policy


def test_one_that_moves_goes_on_elsewhere_with_what_waits(rig: Rig) -> None:
    sequence = rig.begin()
    sequence.state = "state"
    rig.add()
    rig.add()
    rig.add(2, start=True)
    assert not rig.policy.move("v1", "v2", "", rig.now)
    rig.answer(sequence)
    assert (sequence.runs_at, sequence.state) == ("v2", "state")
    assert {one.runs_at for one in rig.policy} == {"v2"}


def test_what_can_move_nowhere_ends_but_what_runs_is_answered(rig: Rig) -> None:
    sequence = rig.begin()
    sequence.state = "state"
    for start in (False, False, True, False):
        rig.add(start=start)
    rig.note(rig.policy.move("v1", None, "v1 is gone", rig.now))
    assert sorted(rig.failed) == [2, 3, 4]
    rig.answer(sequence)
    assert sequence.state is None
    assert not list(rig.policy)
    refused = rig.add()
    assert isinstance(refused, Failure)
    assert refused.message.endswith("v1 is gone")


OPS = st.one_of(
    st.tuples(
        st.just("add"), st.integers(0, 3), st.booleans(), st.sampled_from([False, False, True]), st.sampled_from([inf, 9.0])
    ),
    st.tuples(st.sampled_from(["answer", "answer", "fail", "leave", "end", "move", "away"]), st.integers(0, 9)),
    st.tuples(st.just("pass"), st.sampled_from([1.0, 10.0, 70.0])),
)


@given(st.lists(OPS, max_size=60))
def test_whatever_comes_each_request_ends_once_and_nothing_is_left_out_between_two_that_ran(ops: list[tuple]) -> None:  # type: ignore[type-arg]
    rig = Rig(most=3, most_waiting=6)
    told: list[tuple[str, int]] = []  # what has become of requests, in that order
    accepted: dict[int, list[int]] = {}

    def look() -> None:
        known = {number for _, number in told}
        told.extend(("answered", number) for number in rig.answered if number not in known)
        told.extend(("failed", number) for number in rig.failed if number not in known)

    def busy() -> list[Sequence[str]]:
        return [sequence for sequence in rig.policy if sequence.running is not None]

    before: dict[int, tuple[int | None, set[int]]] = {}  # of each request: the one before it, and which had failed by then
    for op, *args in ops:
        if op == "add":
            key, start, end, timeout_s = args
            look()
            if not isinstance(rig.add(key, start=start, end=end, timeout_s=timeout_s), Failure):
                of_key = accepted.setdefault(key, [])
                before[len(rig.turns) - 1] = (of_key[-1] if of_key else None, set(rig.failed))
                of_key.append(len(rig.turns) - 1)
        elif op == "pass":
            rig.now += args[0]
            rig.lapse()
        elif op == "move":
            rig.note(rig.policy.move("v1", "v1", "", rig.now))
        elif op == "away":
            rig.note(rig.policy.move("v1", None, "gone", rig.now))
        elif op == "leave":
            waiting = [turn for sequence in rig.policy for turn in sequence.waiting]
            if waiting:
                rig.note(rig.policy.leave(waiting[args[0] % len(waiting)].ticket, BROKEN))
        elif op == "end" and len(rig.policy):
            sequence = list(rig.policy)[args[0] % len(rig.policy)]
            rig.note(rig.policy.end(sequence, "it burnt", rig.now))
        elif op in ("answer", "fail") and busy():
            sequence = busy()[args[0] % len(busy())]
            rig.answer(sequence) if op == "answer" else rig.fail(sequence)
        assert len(rig.policy) <= 3
        assert rig.policy.waiting == sum(len(sequence.waiting) for sequence in rig.policy) <= 6
    while busy():
        rig.answer(busy()[0])
    look()
    assert sorted(number for _, number in told) == list(range(len(rig.turns)))
    for of_key in accepted.values():
        answered = [number for number in rig.answered if number in of_key]
        assert answered == sorted(answered)
    for number in rig.answered:
        last, failed_then = before[number]
        if rig.turns[number].follows and last is not None and last in rig.failed:
            assert last in failed_then, "it ran although one before it was left out unnoticed"
    rig.now += 2 * IDLE_S
    rig.lapse()
    assert not rig.policy
    assert rig.policy.next_at() == inf

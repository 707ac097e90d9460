"""Second runs: their order, what is remembered of whom, and that notes of deadlines, arrivals and levels stay true."""

from math import inf

from hypothesis import given
from hypothesis import strategies as st
from msgspec import Struct

from dlproxy.message import Ticket
from dlproxy.policy.queueing import level
from dlproxy.policy.second_runs import SecondRuns


class Instances(Struct):
    """Those that are ready, and those that are up and trusted."""

    ready: dict[str, None]
    trusted: str

    def __len__(self) -> int:
        return len(self.trusted)

    def has_other(self, avoided: str) -> bool:
        return any(name != avoided for name in self.trusted)


def tickets(*ids: int, rows: int = 1, deadline_at: float = inf) -> list[Ticket]:
    return [Ticket(number, 0.0, deadline_at, rows) for number in ids]


def instances(ready: str, trusted: str = "ab") -> Instances:
    return Instances(dict.fromkeys(ready), trusted)


def take(again: SecondRuns, ready: str = "a", max_batch: int = 8) -> list[int]:
    batch = again.runnable(instances(ready))
    assert batch is not None
    return [ticket.id for ticket in again.take(batch, max_batch)]


def test_batches_run_in_order_and_halves_before_them() -> None:
    again = SecondRuns(1.0)
    again.add(tickets(1))
    again.add(tickets(2))
    again.halve(tickets(3, 4, 5))
    assert [take(again) for _ in range(4)] == [[3, 4], [5], [1], [2]]
    assert not again.waiting


def test_the_half_of_one_is_one() -> None:
    again = SecondRuns(1.0)
    again.halve(tickets(1))
    assert take(again) == [1]
    assert not again.waiting


def test_an_avoided_instance_is_no_choice_unless_there_is_no_other() -> None:
    again = SecondRuns(1.0)
    again.add(tickets(1), avoided="a")
    assert again.runnable(instances("a")) is None
    assert again.runnable(instances("a", trusted="a")) is not None
    assert again.runnable(instances("ab")) is not None
    again.add(tickets(2), avoided="b")
    batch = again.runnable(instances("a"))
    assert batch is not None
    assert [ticket.id for ticket in batch.tickets] == [2], "the first one that can run"


def test_a_batch_that_is_too_large_by_now_runs_in_parts() -> None:
    again = SecondRuns(1.0)
    again.add(tickets(1, 2, rows=3), avoided="")
    assert take(again, max_batch=2) == [1], "one request is never split"
    assert take(again, max_batch=2) == [2]
    assert not again.waiting


def test_who_ran_twice_is_remembered_until_answered() -> None:
    again = SecondRuns(1.0)
    first, second = tickets(1, 2)
    again.add([first, second])
    take(again)
    assert again.ran_twice(first)
    again.finished([first])
    assert not again.ran_twice(first)
    assert again.ran_twice(second)
    assert again.notes == 1


def test_who_left_while_running_is_told_once_and_forgotten_with_the_batch() -> None:
    again = SecondRuns(1.0)
    running = tickets(1, 2)
    assert again.abandon(1, running) is running[0]
    assert again.abandon(1, running) is None
    assert again.abandon(9, running) is None
    assert again.not_abandoned(running) == running[1:]
    assert again.still_wanted(running) == running[1:]
    assert again.notes == 0


def test_who_was_answered_is_forgotten_with_who_left() -> None:
    again = SecondRuns(1.0)
    running = tickets(1, 2, 3)
    again.add(running[:2])
    again.crashed(running[1])
    take(again)
    again.abandon(3, running)
    assert again.answered(running) == running[:2]
    assert again.notes == 0


def test_the_lists_of_its_callers_stay_as_they_are() -> None:
    again = SecondRuns(1.0)
    mine = tickets(1, 2)
    again.add(mine)
    again.remove(1)
    again.expired(5.0)
    assert [ticket.id for ticket in mine] == [1, 2]


steps = st.one_of(
    st.tuples(st.sampled_from(["add", "halve"]), st.integers(1, 6)),
    st.tuples(st.just("remove"), st.integers(0, 30)),
    st.tuples(st.just("expire"), st.integers(0, 20)),
    st.tuples(st.just("take"), st.integers(1, 4)),
)


@given(steps=st.lists(steps, max_size=30), deadlines=st.lists(st.integers(0, 20), min_size=1, max_size=7))
def test_notes_are_true_whatever_happens(steps: list[tuple[str, int]], deadlines: list[int]) -> None:
    again = SecondRuns(1.0)
    waiting: dict[int, Ticket] = {}
    made = 0
    for step, number in steps:
        if step in ("add", "halve"):
            new = [
                Ticket(made + k, float(made), deadlines[(made + k) % len(deadlines)] or inf, 1 + k % 3, priority=k % 9)
                for k in range(number)
            ]
            made += number
            waiting |= {ticket.id: ticket for ticket in new}
            again.add(new) if step == "add" else again.halve(new)
        elif step == "remove":
            assert again.remove(number) is waiting.pop(number, None)
        elif step == "expire":
            expired = {ticket.id for ticket in again.expired(float(number))}
            assert expired == {ticket.id for ticket in waiting.values() if ticket.deadline_at <= number}
            waiting = {ticket_id: ticket for ticket_id, ticket in waiting.items() if ticket_id not in expired}
        elif again.waiting:
            for ticket_id in take(again, max_batch=number):
                again.finished([waiting.pop(ticket_id)])
        assert sorted(ticket.id for batch in again.waiting for ticket in batch.tickets) == sorted(waiting)
        assert again.next_deadline() == min((ticket.deadline_at for ticket in waiting.values()), default=inf)
        for batch in again.waiting:
            assert batch.rows == sum(ticket.rows for ticket in batch.tickets)
            assert batch.arrived_at == min(ticket.arrived_at for ticket in batch.tickets)
            assert batch.level == min(level(ticket) for ticket in batch.tickets)
    assert {ticket.id for ticket in again.drain()} == set(waiting)
    assert again.notes == 0

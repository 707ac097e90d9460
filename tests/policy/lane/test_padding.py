"""Lengths that share a batch: the order of the discipline holds, the knob too, and what is learned is of the longest."""

from math import inf

from hypothesis import given
from hypothesis import strategies as st

from dlproxy.message import Ticket
from dlproxy.policy.events import Arrived, BatchDone, Command, Complete, Dispatch, InstanceUp, KnobsChanged, Reject
from dlproxy.policy.knobs import LaneKnobs
from dlproxy.policy.lane import Lane

BASE_S, ELEMENT_S = 0.010, 1e-6
PRIOR = [(rows, length, BASE_S + ELEMENT_S * rows * length) for rows in (1, 4, 16) for length in (8, 64, 512)]
KNOBS = LaneKnobs(max_batch=16, max_queue_rows=1000, max_padding=0.5, slo_s=0.5)


def _ticket(number: int, length: int, arrived_at: float = 0.0, deadline_at: float = inf) -> Ticket:
    return Ticket(number, arrived_at, deadline_at, shape_key=(length,), length=length, family=(0,))


def _lane(knobs: LaneKnobs = KNOBS) -> Lane:
    """With one instance, and batches of up to sixteen rows that ran as expected."""
    lane = Lane(knobs, PRIOR)
    lane.on(InstanceUp("a"), 0.0)
    for rows in (1, 2, 4, 8, 16):
        lane.batching.observe(rows, lane.model.mean(rows, 512), 0.0, 512)
    return lane


def _batch(commands: list[Command]) -> Dispatch:
    (dispatch,) = [command for command in commands if isinstance(command, Dispatch)]
    return dispatch


def _lengths(dispatch: Dispatch) -> list[int]:
    return sorted(ticket.length for ticket in dispatch.tickets)


def test_lengths_share_a_batch_until_the_knob_says_no() -> None:
    lane = _lane()
    first = _batch(lane.on(Arrived([_ticket(1, 10)]), 1.0))
    lane.on(Arrived([_ticket(number, length) for number, length in ((2, 10), (3, 12), (4, 15), (5, 400))]), 1.0)
    together = _batch(lane.on(BatchDone(first.batch_id, BASE_S), 1.01))
    assert _lengths(together) == [10, 12, 15]
    lane.on(Arrived([_ticket(number, length) for number, length in ((6, 400), (7, 390), (8, 12))]), 1.01)
    lane.on(KnobsChanged(LaneKnobs(max_batch=16, max_queue_rows=1000, slo_s=0.5)), 1.015)
    apart = [_batch(lane.on(BatchDone(together.batch_id, BASE_S), 1.02))]
    for at in (1.03, 1.04):
        apart.append(_batch(lane.on(BatchDone(apart[-1].batch_id, BASE_S), at)))
    assert [_lengths(dispatch) for dispatch in apart] == [[400, 400], [390], [12]]


def test_a_padded_batch_teaches_what_its_longest_costs() -> None:
    lane = _lane()
    first = _batch(lane.on(Arrived([_ticket(1, 200)]), 1.0))
    lane.on(Arrived([_ticket(2, 100), _ticket(3, 200)]), 1.0)
    before = lane.model.mean(2, 200)
    padded = _batch(lane.on(BatchDone(first.batch_id, lane.model.mean(1, 200)), 1.02))
    assert _lengths(padded) == [100, 200]
    lane.on(BatchDone(padded.batch_id, lane.model.mean(2, 200)), 1.04)
    assert abs(lane.model.mean(2, 200) / before - 1) < 1e-6, "it took what two rows of 200 take"


def test_admission_learns_what_padding_saves() -> None:
    """Forty lengths wait, in all 0.4 s of batches of their own: the next must be done within 0.2 s, and can be."""
    lane, now = _lane(), 1.0
    running = _batch(lane.on(Arrived([_ticket(1000, 100)]), now))
    for round_number in range(30):
        tickets = [_ticket(2000 + 40 * round_number + number, 100 + number) for number in range(15)]
        lane.on(Arrived(tickets), now)
        now += BASE_S
        running = _batch(lane.on(BatchDone(running.batch_id, BASE_S), now))
        assert len(running.tickets) == 15
    waiting = [_ticket(10 + number, 100 + number) for number in range(40)]
    assert not [command for command in lane.on(Arrived(waiting), now) if isinstance(command, Reject)]
    urgent = _ticket(1, 120, now, now + 0.2)
    assert not [command for command in lane.on(Arrived([urgent]), now) if isinstance(command, Reject)]


@given(
    calls=st.lists(
        st.tuples(st.integers(1, 300), st.sampled_from([0.0, 0.001, 0.02]), st.sampled_from([inf, 0.3, 2.0, 20.0])),
        min_size=1,
        max_size=60,
    ),
    discipline=st.sampled_from(["edf", "fcfs"]),
)
def test_every_batch_begins_with_whom_the_discipline_puts_first(calls: list[tuple[int, float, float]], discipline: str) -> None:
    """So no length starves: whoever is the head is in the next batch, whoever else is."""
    knobs = LaneKnobs(max_batch=16, max_queue_rows=1000, max_padding=0.5, discipline=discipline, starvation_s=10.0)
    lane, waiting, now = _lane(knobs), dict[int, Ticket](), 1.0
    running: Dispatch | None = None
    answered: set[int] = set()

    def rank(ticket: Ticket) -> tuple[float, int]:
        due_at = min(ticket.deadline_at, ticket.arrived_at + 10.0) if discipline == "edf" else 0.0
        return due_at, ticket.id

    def take(commands: list[Command]) -> None:
        nonlocal running
        for command in commands:
            if isinstance(command, Reject):
                waiting.pop(command.ticket.id, None)
                answered.add(command.ticket.id)
            elif isinstance(command, Complete):
                answered.update(ticket.id for ticket in command.tickets)
        for command in commands:
            if isinstance(command, Dispatch):
                assert command.tickets[0].id == min(waiting.values(), key=rank).id
                rows, longest = len(command.tickets), max(ticket.length for ticket in command.tickets)
                assert rows * longest - sum(ticket.length for ticket in command.tickets) <= 0.5 * rows * longest
                for ticket in command.tickets:
                    del waiting[ticket.id]
                running = command

    for number, (length, gap_s, timeout_s) in enumerate(calls):
        now += gap_s
        while running is not None and gap_s:
            done, running = running, None
            take(lane.on(BatchDone(done.batch_id, 1e-9), now))
        waiting[number] = _ticket(number, length, now, now + timeout_s)
        take(lane.on(Arrived([waiting[number]]), now))
    while running is not None:
        now += 0.001
        done, running = running, None
        take(lane.on(BatchDone(done.batch_id, 0.001), now))
    assert answered == set(range(len(calls)))

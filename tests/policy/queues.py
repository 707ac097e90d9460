"""Queues for the tests of the disciplines: knobs and costs that floats hold exactly, tickets in, ids out."""

from collections.abc import Iterable

from dlproxy.message import Ticket
from dlproxy.policy.knobs import LaneKnobs
from dlproxy.policy.queueing import QueueDiscipline, make_queue

STARVATION_S = 8.0
AGEING_S = 0.5
WEIGHTS = {"gold": 4.0, "tin": 0.5}


def cost_s(rows: int, length: int = 1) -> float:
    """Half a second for the batch and as much for each row: 1 s for one row."""
    return 0.5 + 0.5 * rows * length


def knobs(discipline: str, weights: dict[str, float] = WEIGHTS) -> LaneKnobs:
    return LaneKnobs(
        max_batch=64,
        max_queue_rows=1 << 20,
        discipline=discipline,
        starvation_s=STARVATION_S,
        ageing_s=AGEING_S,
        tenant_weights=weights,
    )


def queue_of(discipline: str, *tickets: Ticket, weights: dict[str, float] = WEIGHTS) -> QueueDiscipline:
    """A queue that holds these tickets, each pushed when it arrived."""
    queue = make_queue(knobs(discipline, weights), cost_s)
    for ticket in tickets:
        queue.push(ticket, ticket.arrived_at)
    return queue


def ids(tickets: Iterable[Ticket]) -> list[int]:
    return [ticket.id for ticket in tickets]


def drain(queue: QueueDiscipline, now: float) -> list[Ticket]:
    """All that waits, taken one by one."""
    served: list[Ticket] = []
    while len(queue):
        served += queue.pop(1, now)
    return served

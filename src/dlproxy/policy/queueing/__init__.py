"""Queue disciplines: in which order the requests of a lane are served. Made by policy/lane.py through make_queue().

Not aware of: batching limits, deadlines' feasibility (admission and batching judge that), instances.
"""

from collections.abc import Callable

from dlproxy.message import Ticket
from dlproxy.policy.knobs import LaneKnobs
from dlproxy.policy.queueing.classed import Feedback, HighestResponseRatio, ShortestJob
from dlproxy.policy.queueing.fair import FairQueue
from dlproxy.policy.queueing.protocol import DEFAULT_LEVEL, LOWEST_LEVEL, Cost, QueueDiscipline, level
from dlproxy.policy.queueing.ranked import EarliestDeadline, Fcfs, Priority

__all__ = ["DEFAULT_LEVEL", "DISCIPLINES", "LOWEST_LEVEL", "Cost", "QueueDiscipline", "level", "make_queue", "refill"]

_MAKERS: dict[str, Callable[[LaneKnobs, Cost], QueueDiscipline]] = {
    "edf": lambda knobs, _: EarliestDeadline(knobs),
    "fcfs": lambda knobs, _: Fcfs(),
    "sjf": ShortestJob,
    "hrrn": lambda _, cost_s: HighestResponseRatio(cost_s),
    "mlfq": Feedback,
    "priority": lambda knobs, _: Priority(knobs),
    "fair": FairQueue,
}
DISCIPLINES: tuple[str, ...] = tuple(_MAKERS)


def make_queue(knobs: LaneKnobs, cost_s: Cost) -> QueueDiscipline:
    """An empty queue of the discipline that `knobs` name. `cost_s(rows)`: predicted seconds of a batch (LatencyModel.mean).

    Raises ValueError for an unknown name.
    """
    assert knobs.starvation_s > 0.0
    maker = _MAKERS.get(knobs.discipline)
    if maker is None:
        raise ValueError(f"unknown queue discipline {knobs.discipline!r}: it is one of {', '.join(DISCIPLINES)}")
    return maker(knobs, cost_s)


def refill(old: QueueDiscipline, new: QueueDiscipline, now: float) -> QueueDiscipline:
    """Move all that waits from one queue to another, oldest first, and return that other one.

    So a change of discipline, or of the knobs that it took when it was made, loses nothing.
    """
    waiting: list[Ticket] = []
    while len(old):
        waiting += old.pop(old.rows, now)
    for ticket in sorted(waiting, key=lambda ticket: ticket.id):
        new.push(ticket, now)
    return new

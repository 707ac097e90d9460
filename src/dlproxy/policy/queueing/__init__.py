"""Queue disciplines: in which order the requests of a lane are served. Made by policy/lane.py through make_queue().

Not aware of: batching limits, deadlines' feasibility (admission and batching judge that), instances.
"""

from collections.abc import Callable

from dlproxy.message import Ticket
from dlproxy.policy.knobs import LaneKnobs
from dlproxy.policy.queueing.classed import Feedback, HighestResponseRatio, ShortestJob
from dlproxy.policy.queueing.fair import FairQueue
from dlproxy.policy.queueing.pins import Pins
from dlproxy.policy.queueing.protocol import DEFAULT_LEVEL, LOWEST_LEVEL, Ahead, Cost, QueueDiscipline, level
from dlproxy.policy.queueing.ranked import EarliestDeadline, Fcfs, Priority

__all__ = [
    "DEFAULT_LEVEL",
    "DISCIPLINES",
    "LOWEST_LEVEL",
    "Ahead",
    "Cost",
    "Pins",
    "QueueDiscipline",
    "level",
    "make_queue",
    "refill",
    "same_order",
]

_MAKERS: dict[str, Callable[[LaneKnobs, Cost, Cost], QueueDiscipline]] = {
    "edf": lambda knobs, _, line_s: EarliestDeadline(knobs, line_s),
    "fcfs": lambda knobs, _, line_s: Fcfs(line_s),
    "sjf": ShortestJob,
    "hrrn": lambda _, cost_s, line_s: HighestResponseRatio(cost_s, line_s),
    "mlfq": Feedback,
    "priority": lambda knobs, _, line_s: Priority(knobs, line_s),
    "fair": FairQueue,
}
DISCIPLINES: tuple[str, ...] = tuple(_MAKERS)


def make_queue(knobs: LaneKnobs, cost_s: Cost, line_s: Cost | None = None) -> QueueDiscipline:
    """An empty queue of the discipline that `knobs` name.

    `cost_s(rows, length)`: predicted seconds of a batch (LatencyModel.mean); `line_s`: of so many waiting rows of one shape, in
    the batches that they make; in one batch, if not given.

    Raises ValueError for an unknown name.
    """
    assert knobs.starvation_s > 0.0
    maker = _MAKERS.get(knobs.discipline)
    if maker is None:
        raise ValueError(f"unknown queue discipline {knobs.discipline!r}: it is one of {', '.join(DISCIPLINES)}")
    return maker(knobs, cost_s, line_s or cost_s)


def same_order(before: LaneKnobs, after: LaneKnobs) -> bool:
    """Whether both make the same queue."""
    names = ("discipline", "starvation_s", "ageing_s", "tenant_weights")
    return all(getattr(before, name) == getattr(after, name) for name in names)


def refill(old: QueueDiscipline, new: QueueDiscipline, now: float) -> QueueDiscipline:
    """Move all that waits from one queue to another, oldest first, and return that other one.

    So a change of discipline, or of the knobs that it took when it was made, loses nothing.
    """
    waiting: list[Ticket] = []
    if old.pins is not None:
        new.tell_apart(old.pins)
        old.pins = None
    while len(old):
        waiting += old.pop(old.rows, now)
    for ticket in sorted(waiting, key=lambda ticket: ticket.id):
        new.push(ticket, now)
    return new

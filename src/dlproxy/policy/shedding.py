"""Which tickets of a batch that is about to start are given up, so that others are in time. Called by policy/lane.py.

Not aware of: arrivals (policy/admission.py refuses those), instances.
"""

from collections.abc import Sequence
from math import inf
from typing import Protocol

from dlproxy.message import Ticket
from dlproxy.policy.overload import CoDel
from dlproxy.policy.queueing import DEFAULT_LEVEL, QueueDiscipline, level
from dlproxy.policy.refusals import Refusal, expired, stood_too_long

Shed = list[tuple[Ticket, Refusal]]


class Predicts(Protocol):
    """The fitted latency of a batch of so many rows of one length, at the 99th percentile."""

    def p99(self, rows: int, length: int = 1) -> float: ...


class Shedding:
    """Early drop: shed what would be late even if it started now, rather than shrink the batch for it (Nexus).

    CoDel sheds what waited too long in a queue that does not drain: `codel`, None where it is off.
    """

    def __init__(self, codel_target_s: float) -> None:
        self.configure(codel_target_s)

    def configure(self, codel_target_s: float) -> None:
        self.codel = CoDel(codel_target_s) if codel_target_s else None

    def sift(self, tickets: list[Ticket], queue: QueueDiscipline, model: Predicts, now: float) -> tuple[list[Ticket], Shed]:
        """Those of the batch that may start now, with those that took the places of the shed.

        The last ticket at hand is shed only if its deadline has passed: it makes nobody late, and running it is what
        corrects a prediction that was wrong.
        """
        room = sum([ticket.rows for ticket in tickets])
        alone = len(tickets) == 1 and not queue.rows
        finish_at = now if alone else now + model.p99(room, longest(tickets))
        came_after = -inf if self.codel is None else self._came_after(self.codel, tickets, now)
        kept: list[Ticket] = []
        shed: Shed = []
        while True:
            left = len(kept) + len(tickets) + len(queue)
            for ticket in tickets:
                refusal = None
                if (ticket.deadline_at < finish_at and left > 1) or ticket.deadline_at <= now:
                    refusal = expired(ticket, now)
                elif ticket.arrived_at < came_after and left > 1 and level(ticket) >= DEFAULT_LEVEL:
                    refusal = stood_too_long(ticket, now)
                if refusal is None:
                    kept.append(ticket)
                    room -= ticket.rows
                else:
                    shed.append((ticket, refusal))
                    left -= 1
            head = queue.head(now) if kept and room else None
            if head is None or head.rows > room or head.shape_key != kept[0].shape_key:
                return kept, shed
            tickets = queue.pop(room, now)  # those next in line take the places of those shed

    def _came_after(self, codel: CoDel, tickets: list[Ticket], now: float) -> float:
        """When the oldest one arrived that has not stood too long."""
        codel.observe(now - max([ticket.arrived_at for ticket in tickets]), now)
        return now - codel.shed_above_s(now)


def longest(tickets: Sequence[Ticket]) -> int:
    """All are of the length of the first, but in a padded batch."""
    return max([ticket.length for ticket in tickets]) if tickets[0].family else tickets[0].length


def unexpired(tickets: list[Ticket], now: float) -> tuple[list[Ticket], Shed]:
    """Those whose deadlines have not passed: all that a batch that runs again loses, as predictions are no reason."""
    shed = [(ticket, expired(ticket, now)) for ticket in tickets if ticket.deadline_at <= now]
    return ([ticket for ticket in tickets if ticket.deadline_at > now] if shed else tickets), shed

"""How many requests without a deadline may be under way, sized by batches and instances. Called by policy/lane.py.

Not aware of: queues, how many are under way (the lane says it).
"""

from collections.abc import Sequence
from math import inf

from dlproxy.message import Ticket
from dlproxy.policy.overload import Gradient2
from dlproxy.policy.refusals import Refusal, above_limit

BATCHES = 2  # the limit never falls below two batches per instance: one runs, one is ready (Triton's rule)


class AdaptiveLimit:
    """Those with a deadline are admission's matter: it knows whether they can be in time."""

    def __init__(self, *, goal: int, instances: int) -> None:
        self._gradient = Gradient2(least=_least(goal, instances))

    @property
    def limit(self) -> int:
        return self._gradient.limit

    def size(self, *, goal: int, instances: int) -> None:
        """Batches of so many rows are what is aimed at, on so many instances."""
        self._gradient.configure(least=_least(goal, instances))

    def refuse(self, ticket: Ticket, under_way: int) -> Refusal | None:
        """None to take it beside so many."""
        limit = self._gradient.limit
        return above_limit(under_way, limit) if ticket.deadline_at == inf and under_way >= limit else None

    def observe(self, tickets: Sequence[Ticket], under_way: int, now: float) -> None:
        """A batch gave these their answers, beside so many others."""
        latency_s = now - sum([ticket.arrived_at for ticket in tickets]) / len(tickets)
        self._gradient.observe(latency_s, len(tickets) + under_way, now)


def _least(goal: int, instances: int) -> int:
    return BATCHES * goal * max(instances, 1)

"""What the steps of a pipeline take, and what follows for the deadlines of each and for who is let in.

Asked by serve/pipelines for every request, and by lab/simulate. Not aware of: how steps run, clocks, tensors.
"""

from collections.abc import Mapping

from dlproxy.config.pipelines import Wiring
from dlproxy.message import Failure, Ticket


class Pacing:
    """Of one pipeline, from what its steps were measured to take. All times in seconds."""

    def __init__(self, wiring: Wiring) -> None:
        self._wiring = wiring

    def observed(self, step: str, *, waited_s: float, computed_s: float) -> None:
        """A step of one request has ended well: it waited so long, for a lane or a thread, and computed so long."""

    def deadline_at(self, step: str, ticket: Ticket, now: float) -> float:
        """What scheduling aims at for this step, of a request of the pipeline with this ticket; +inf for nothing."""
        return ticket.deadline_at

    def refusal(self, ticket: Ticket, waits: Mapping[str, float], now: float) -> Failure | None:
        """Why the request need not begin: it would be late. `waits`: by step, what a new request would wait there now."""
        return None

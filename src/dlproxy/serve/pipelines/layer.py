"""Before the lane of a pipeline: refuses requests that no stage is there for, or that would be late at some stage, and cancels
what runs of those that leave.

Put together by serve/assemble.py. Not aware of: protocols, lanes.
"""

import logging
from collections.abc import Callable, Mapping
from math import inf
from typing import Protocol

from dlproxy.message import Failure, FailureKind, Request, Ticket
from dlproxy.policy.pipelines import Pacing
from dlproxy.service import ReplyTo, Service
from dlproxy.telemetry.stats import ModelStats

log = logging.getLogger(__name__)


class Stages(Protocol):
    """What must be known of them: a PipelineFleet."""

    pacing: Pacing
    clock: Callable[[], float]
    problem: str
    """Why no request can be answered now; empty if they can."""

    def waits(self, ticket: Ticket, now: float) -> Mapping[str, float]:
        """By step, what this request would wait if it came there now, in seconds."""
        ...

    def cancel(self, request: Request) -> None:
        """End what runs of it, soon."""
        ...


class PipelineLayer:
    """A Service around the driver of a pipeline."""

    def __init__(self, inner: Service, stages: Stages, stats: ModelStats) -> None:
        self._inner = inner
        self._stages = stages
        self._stats = stats

    def submit(self, request: Request, reply: ReplyTo) -> None:
        ticket = request.ticket
        failure = self._refusal(request)
        if failure is None:
            self._inner.submit(request, reply)
            return
        if ticket.of_client:
            self._stats.failed(failure.kind, 0.0)
            self._stats.lost(request, failure, "stages", self._stages.clock())
        try:
            reply.failed(failure)
        except Exception:  # submit never raises
            log.exception("model %s: could not hand over the failure of request %d", request.model, ticket.id)

    def cancel(self, request: Request) -> None:
        self._inner.cancel(request)
        self._stages.cancel(request)

    def _refusal(self, request: Request) -> Failure | None:
        stages, ticket = self._stages, request.ticket
        if stages.problem:
            return Failure(FailureKind.UNAVAILABLE, stages.problem, retry_after_s=1.0)
        if ticket.deadline_at == inf:
            return None
        now = stages.clock()
        return stages.pacing.refusal(ticket, stages.waits(ticket, now), now)

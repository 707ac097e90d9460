"""Layers: Services around a Service, which answer some requests themselves. Put together by serve/assemble.py.

Not aware of: what the inner service is, over which protocol a request came.
"""

import logging
from collections.abc import Callable
from functools import partial

from dlproxy.fleet.autoscale import Autoscaler
from dlproxy.message import Failure, PartTo, Request, Response, Rest, Tensor
from dlproxy.policy.quota import Quotas
from dlproxy.service import ReplyTo, Service

log = logging.getLogger(__name__)


class WakeLayer:
    """Before a model that may be scaled to none: a request that finds it so has an instance started, and waits for that.

    The model's objective does not count for such a request: a start takes longer than any. Its client's own deadline does.
    """

    def __init__(self, inner: Service, autoscaler: Autoscaler) -> None:
        self._inner = inner
        self._autoscaler = autoscaler
        self.cancel = inner.cancel

    def submit(self, request: Request, reply: ReplyTo) -> None:
        if self._autoscaler.asleep:
            request.ticket.deadline_at = request.ticket.answer_by
            self._autoscaler.wake()
        self._inner.submit(request, reply)


class QuotaLayer:
    """Refuses, at once, what exceeds the quota of its tenant or its key; everything else goes on to `inner`.

    Layers of several models may share one `quotas`, which then limits over all of them. `on_refused` counts.
    """

    def __init__(
        self,
        inner: Service,
        quotas: Quotas,
        *,
        clock: Callable[[], float],
        on_refused: Callable[[Failure, Request], None],
    ) -> None:
        self._inner = inner
        self._quotas = quotas
        self._clock = clock
        self._on_refused = on_refused
        self._by_tenant = quotas.by_tenant

    def submit(self, request: Request, reply: ReplyTo) -> None:
        if request.charged or (not self._by_tenant and request.principal.quota is None):
            self._inner.submit(request, reply)
            return
        ticket, quotas = request.ticket, self._quotas
        failure = quotas.admit(ticket, self._clock(), request.principal)
        if failure is None:
            self._inner.submit(request, _Counted(reply, partial(quotas.ended, ticket)) if quotas.counts(ticket) else reply)
            return
        self._on_refused(failure, request)
        try:
            reply.failed(failure)
        except Exception:  # submit never raises: the client of one request must not harm the caller
            log.exception(
                "model %s: could not hand over the failure of request %d", request.model, request.ticket.id, extra=request.named
            )

    def cancel(self, request: Request) -> None:
        """One that was refused is not known to `inner`, which ignores it."""
        self._inner.cancel(request)
        self._quotas.ended(request.ticket)


class _Counted:
    """In place of the ReplyTo of a request that takes a place: `ended` gives it back, before the client hears of the end."""

    __slots__ = ("_ended", "_reply")

    def __init__(self, reply: ReplyTo, ended: Callable[[], None]) -> None:
        self._reply = reply
        self._ended = ended

    def completed(self, response: Response) -> None:
        if response.rest is None:
            self._ended()
        else:
            response.rest = WatchedRest(response.rest, self._ended)
        try:
            self._reply.completed(response)
        except Exception:
            self._ended()  # nobody reads the rest
            raise

    def failed(self, failure: Failure) -> None:
        self._ended()
        self._reply.failed(failure)


class WatchedRest:
    """In place of the Rest of an answer, and of the PartTo that its parts go to. `ended` may be called more than once."""

    __slots__ = ("_ended", "_rest", "_to")

    def __init__(self, rest: Rest, ended: Callable[[], None]) -> None:
        self._rest = rest
        self._ended = ended
        self._to: PartTo | None = None

    def ask(self, to: PartTo) -> None:
        self._to = to
        self._rest.ask(self)

    def stop(self) -> None:
        self._ended()
        self._rest.stop()

    def part(self, outputs: list[Tensor]) -> None:
        to = self._taken()
        if to is not None:
            to.part(outputs)

    def ended(self) -> None:
        self._ended()
        to = self._taken()
        if to is not None:
            to.ended()

    def failed(self, failure: Failure) -> None:
        self._ended()
        to = self._taken()
        if to is not None:
            to.failed(failure)

    def _taken(self) -> PartTo | None:
        to, self._to = self._to, None
        return to

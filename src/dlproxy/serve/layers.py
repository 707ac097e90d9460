"""Layers: Services around a Service, which answer some requests themselves. Put together by serve/assemble.py.

Not aware of: what the inner service is, over which protocol a request came.
"""

import logging
from collections.abc import Callable

from dlproxy.fleet.autoscale import Autoscaler
from dlproxy.message import Failure, Request
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
    """Refuses, at once, what exceeds its tenant's quota; everything else goes on to `inner`.

    Layers of several models may share one `quotas`, which then limits a tenant over all of them. `on_refused` counts.
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

    def submit(self, request: Request, reply: ReplyTo) -> None:
        failure = self._quotas.admit(request.ticket, self._clock())
        if failure is None:
            self._inner.submit(request, reply)
            return
        self._on_refused(failure, request)
        try:
            reply.failed(failure)
        except Exception:  # submit never raises: the client of one request must not harm the caller
            log.exception("model %s: could not hand over the failure of request %d", request.model, request.ticket.id)

    def cancel(self, request: Request) -> None:
        """One that was refused is not known to `inner`, which ignores it."""
        self._inner.cancel(request)

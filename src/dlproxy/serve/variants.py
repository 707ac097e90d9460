"""Variants of a model answer in its place while it has no time: a layer before its lane sends each request to whom it should.

Put together by assemble.py where `variants` is set. Not aware of: who should answer which class of priority (degrading.py
says that), protocols.
"""

import asyncio
from collections.abc import Callable, Mapping
from itertools import zip_longest
from math import inf
from typing import TYPE_CHECKING

from dlproxy.config import ConfigError, ModelConfig
from dlproxy.message import Failure, FailureKind, InferenceError, Request, Response, Signature
from dlproxy.policy.queueing import DEFAULT_LEVEL, LOWEST_LEVEL, level
from dlproxy.service import ReplyTo, Service
from dlproxy.telemetry.stats import ModelStats, VariantCounts
from dlproxy.wire.checks import RequestChecker

if TYPE_CHECKING:
    from dlproxy.serve.assemble import LoadedModel
    from dlproxy.serve.driver import Driver

NO_TIME = frozenset((FailureKind.QUEUE_FULL, FailureKind.OVERLOADED, FailureKind.DEADLINE))
"""Why a lane refuses a request that another may still answer."""
CANCELLED = Failure(FailureKind.CANCELLED, "the client disconnected")


def check_variants(name: str, config: ModelConfig, signature: Signature) -> None:
    """Raises ConfigError for variants that this model cannot have."""
    if name in config.variants:
        raise ConfigError(f"variants: '{name}' is the model itself; name others that are served here", "variants")
    if config.variants and signature.streams:
        raise ConfigError(f"variants: model '{name}' answers in parts, which no variant can go on with", "variants")
    names = ("auto", name, *config.variants)
    if config.variant not in names:
        raise ConfigError(f"variant = {config.variant!r} is none of {', '.join(names)}", "variant")


def difference(ours: Signature, theirs: Signature) -> str:
    """Why requests of one model cannot be answered by another; empty if they can. Whether rows may share a batch is its own
    affair.
    """
    if theirs.streams or theirs.sequences:
        return "it answers in parts" if theirs.streams else "it has sequences, whose state is its own"
    for what, our_specs, their_specs in (("input", ours.inputs, theirs.inputs), ("output", ours.outputs, theirs.outputs)):
        for one, other in zip_longest(our_specs, their_specs):
            if one is None or other is None:
                return f"only one of them has the {what} '{(one or other).name}'"
            fits = len(one.shape) == len(other.shape) and all(
                what == "output" or there in (-1, here) for here, there in zip(one.shape, other.shape, strict=True)
            )
            if (one.name, one.dtype, one.text) != (other.name, other.dtype, other.text) or not fits:
                shown = [f"'{spec.name}', {spec.dtype.value}[{','.join(spec.sizes)}]" for spec in (one, other)]
                return f"its {what} is {shown[1]} where the model has {shown[0]}"
    return ""


class Variant:
    """A model that may answer for another. Each request is checked anew: batches of the two may be made otherwise."""

    def __init__(self, model: "LoadedModel") -> None:
        self.model = model
        self.name = model.served.name
        self.service = model.service
        self.answered_rows = 0
        """Of requests for the other model."""
        self._checker = RequestChecker(model.served)

    @property
    def ready(self) -> bool:
        """An instance is up, or one is started for the next request."""
        scaler = self.model.autoscaler
        return self.model.driver.ready or (scaler is not None and scaler.asleep)

    def request(self, asked: Request) -> Request:
        """The same, of this model. Raises InferenceError if it has more rows than this one takes."""
        terms = asked.ticket
        request = self._checker.request(
            asked.inputs, asked.outputs, ticket_id=terms.id, request_id=None, params=asked.params, now=terms.arrived_at
        )
        ticket = request.ticket
        ticket.deadline_at, ticket.answer_by, ticket.priority = terms.deadline_at, terms.answer_by, terms.priority
        ticket.tenant, ticket.affinity, ticket.once = terms.tenant, terms.affinity, terms.once
        request.id, request.principal, request.trace, request.headers = asked.id, asked.principal, asked.trace, asked.headers
        return request


class VariantLayer:
    """A Service around `inner`, the model's own. While nothing is overloaded it counts what comes, and hands it on.

    `standing`: who answers each level of priority, None for the model itself; `after(None or a variant)`: who may answer what
    that one has no time for. Both are for degrading.py to say.
    """

    def __init__(
        self,
        inner: Service,
        name: str,
        config: ModelConfig,
        stats: ModelStats,
        driver: "Driver",
        clock: Callable[[], float],
    ) -> None:
        self.inner = inner
        self.name = name
        self.version = config.version
        self.stats = stats
        self.counts = stats.variants = VariantCounts(name, config.variants)
        self.clock = clock
        self.standing: list[Variant | None] = [None] * (LOWEST_LEVEL + 1)
        self.after: Callable[[Variant | None], Variant | None] = lambda variant: None
        self.room = 1
        """Requests under way below which the lane refuses none for want of time, but those whose clients have less of it."""
        self.rows = [0] * (LOWEST_LEVEL + 1)
        """That came, by level, of so many `requests`. `late`: variants' answers after what scheduling aims at."""
        self.requests = self.late = 0
        self.under_way: dict[int, _Asked] = {}
        self._driver = driver

    def submit(self, request: Request, reply: ReplyTo) -> None:
        ticket = request.ticket
        urgency = level(ticket) if ticket.priority else DEFAULT_LEVEL
        self.rows[urgency] += ticket.rows
        self.requests += 1
        standing = self.standing[urgency]
        calm = self._driver.open_requests < (self.room if ticket.answer_by == inf else 1)
        if (standing is None and calm) or ticket.id < 0:  # below: a comparison of our own with what the model itself says
            self.inner.submit(request, reply)
        else:
            asked = self.under_way[ticket.id] = _Asked(self, request, reply)
            asked.ask(standing)

    def cancel(self, request: Request) -> None:
        asked = self.under_way.get(request.ticket.id)
        if asked is None:
            self.inner.cancel(request)
        else:
            asked.cancel()


class _Asked:
    """A request that a variant answers, or may still. A ReplyTo, of whoever is asked: `_by`, None for the model itself."""

    __slots__ = ("_again", "_by", "_layer", "_reply", "_request", "_sent")

    def __init__(self, layer: VariantLayer, request: Request, reply: ReplyTo) -> None:
        self._layer = layer
        self._request = request
        self._reply = reply
        self._by: Variant | None = None
        self._sent: Request | None = None  # None: nobody has it just now
        self._again = False  # whether somebody else was asked before

    def ask(self, variant: Variant | None) -> None:
        """The model itself, where the variant is not there or does not take it."""
        self._by, self._sent, service = None, self._request, self._layer.inner
        if variant is not None and variant.ready:
            try:
                self._sent = variant.request(self._request)
            except InferenceError:  # it takes fewer rows
                pass
            else:
                self._by, service = variant, variant.service
        service.submit(self._sent, self)

    def cancel(self) -> None:
        if self._sent is None:
            self._count(FailureKind.CANCELLED)
            self._end().failed(CANCELLED)
        else:
            service = self._layer.inner if self._by is None else self._by.service
            service.cancel(self._sent)

    # ReplyTo

    def completed(self, response: Response) -> None:
        layer, by, ticket = self._layer, self._by, self._request.ticket
        reply = self._end()
        if by is not None:
            now = layer.clock()
            response.model, response.version, response.variant = layer.name, layer.version, by.name
            by.answered_rows += ticket.rows
            layer.late += now > ticket.deadline_at
            layer.counts.answers[by.name] = layer.counts.answers.get(by.name, 0) + 1
            layer.stats.request_remembered(now - ticket.arrived_at)
        reply.completed(response)

    def failed(self, failure: Failure) -> None:
        if self._by is not None and failure.kind is FailureKind.UNAVAILABLE and not self._again:
            self._ask_again(None)  # it is not the model's fault
            return
        if failure.kind in NO_TIME and not self._again:
            other = self._layer.after(self._by)
            if other is not None and self._has_time_for(other):
                if self._by is None:  # its lane has counted it
                    self._count(failure.kind, -1)
                    self._layer.stats.answered_after_all(self._request)
                self._layer.counts.spilled += 1
                self._ask_again(other)
                return
        if self._by is not None:
            self._count(failure.kind)
        self._end().failed(failure)

    def _has_time_for(self, variant: Variant) -> bool:
        ticket = self._request.ticket
        return self._layer.clock() + variant.model.lane.model.mean(ticket.rows, ticket.length) <= ticket.deadline_at

    def _ask_again(self, other: Variant | None) -> None:
        """Later: a lane's commands may be in the midst of being carried out."""
        self._again, self._sent = True, None
        asyncio.get_running_loop().call_soon(self._go_on, other)

    def _go_on(self, other: Variant | None) -> None:
        if self._layer.under_way.get(self._request.ticket.id) is self:  # else its client has left
            self.ask(other)

    def _end(self) -> ReplyTo:
        del self._layer.under_way[self._request.ticket.id]
        return self._reply

    def _count(self, kind: FailureKind, times: int = 1) -> None:
        layer = self._layer
        layer.stats.failed(kind, layer.clock() - self._request.ticket.arrived_at, times)


def found(variants: Mapping[str, Variant], name: str) -> Variant | None:
    """That of this name, if it can be asked now."""
    variant = variants.get(name)
    return variant if variant is not None and variant.ready else None

"""The front desk, the same for every protocol: who asks which model for what, and by when, until a Service takes the request.

A protocol finds what it keeps of a model in its FrontDesk, makes tensors of bytes, has them checked, and submits; or counts
the refusal. Called by oip/http.py and serve/proxy.py. Not aware of: bytes, sockets, how a model runs.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from hashlib import blake2b
from math import inf
from types import MappingProxyType
from typing import Any, Generic, TypeVar

from dlproxy.message import (
    ANONYMOUS,
    NO_TRACE,
    Failure,
    FailureKind,
    InferenceError,
    Principal,
    Request,
    Response,
    Tensor,
    Ticket,
)
from dlproxy.policy.hops import load_text
from dlproxy.policy.queueing import LOWEST_LEVEL
from dlproxy.service import FutureReply, ReplyTo, Service
from dlproxy.wire.catalog import Catalog, ServedModel
from dlproxy.wire.checks import RequestChecker
from dlproxy.wire.rights import demand
from dlproxy.wire.terms import NO_TERMS, HeaderTerms, Terms, checked_sequence
from dlproxy.wire.trace import trace_of

TENANT_HEADER = "x-tenant-id"
NO_BYTES: Mapping[bytes, bytes] = MappingProxyType({})

Kept = TypeVar("Kept")


class Endpoint:
    """Inference of one version of one model."""

    def __init__(self, model: ServedModel, ticket_ids: Iterator[int], clock: Callable[[], float], tenant_header: str) -> None:
        self.model = model
        self.checker = RequestChecker(model)
        self.ticket_ids = ticket_ids
        self.clock = clock
        terms = HeaderTerms(tenant_header=tenant_header, sticky=model.sticky, wanted=model.headers, hop=model.hop)
        self.read_headers = terms.read
        self.cancel = model.service.cancel
        self._service = model.service
        self._sticky = model.sticky

    def request(self, inputs: list[Tensor], outputs: Sequence[int], params: dict[str, Any] | None = None) -> Request:
        """The checked request, which arrives now. Raises InferenceError(INVALID_ARGUMENT)."""
        ticket_id, now = next(self.ticket_ids), self.clock()
        return self.checker.request(inputs, outputs, ticket_id=ticket_id, request_id=None, params=params or {}, now=now)

    def submit(self, request: Request, reply: ReplyTo, terms: Terms = NO_TERMS) -> None:
        """Hand a checked request on, with the deadline that follows from its terms and the model's objective."""
        slo_s, by_level = self.model.slo_s, self.model.slo_s_by_level
        if by_level is not None:
            slo_s = by_level[min(terms.priority or 0, LOWEST_LEVEL)]
        if slo_s is not None:
            ticket = request.ticket
            ticket.deadline_at = ticket.arrived_at + slo_s
        if terms is not NO_TERMS:
            if terms.sequence is not None:
                try:
                    request.sequence = checked_sequence(terms.sequence, self.model.signature)
                except InferenceError as error:
                    reply.failed(self.refused(error).failure)
                    return
            ticket, timeout_s = request.ticket, terms.timeout_s
            if timeout_s != inf:
                ticket.answer_by = answer_by = ticket.arrived_at + timeout_s
                if slo_s is None or timeout_s < slo_s:
                    ticket.deadline_at = answer_by
            if terms.priority:
                ticket.priority = terms.priority
            if terms.tenant:
                ticket.tenant = terms.tenant
            if terms.once:
                ticket.once = True
            if terms.principal is not ANONYMOUS:
                request.principal = terms.principal
            if terms.trace is not NO_TRACE:
                request.trace = terms.trace
            request.max_age_s = terms.max_age_s
            request.headers = terms.headers
            if terms.of_node:
                reply = _Told(reply, self.model)
        if self._sticky:
            request.ticket.affinity = self._affinity(request, terms)
        self._service.submit(request, reply)

    async def infer(self, request: Request, terms: Terms = NO_TERMS) -> Response:
        """Submit and await. Cancelling the awaiting task cancels the request. Raises InferenceError."""
        reply = FutureReply()
        self.submit(request, reply, terms)
        return await reply.answer(self._service, request)

    def refused(self, error: InferenceError, headers: Mapping[bytes, bytes] = NO_BYTES) -> InferenceError:
        """The error why a request is not submitted, counted. `headers`: as it came with them."""
        model, now = self.model, self.clock()
        model.stats.failed(error.failure.kind, 0.0)
        request = Request(Ticket(next(self.ticket_ids), now), model.name, [], (), trace=trace_of(headers))
        model.stats.lost(request, error.failure, "bad_request", now)
        return error

    def _affinity(self, request: Request, terms: Terms) -> str:
        if self._sticky == "tenant":
            return terms.tenant
        if self._sticky != "input":
            return terms.affinity
        digest = blake2b(digest_size=8)
        for tensor in request.inputs:
            digest.update(tensor.data)
        return digest.hexdigest()


class _Told:
    """A ReplyTo that adds how busy the model is here, for the node that asked."""

    __slots__ = ("_model", "_reply")

    def __init__(self, reply: ReplyTo, model: ServedModel) -> None:
        self._reply = reply
        self._model = model

    def completed(self, response: Response) -> None:
        response.load = load_text(self._model.load(), leaves=self._model.leaves)
        self._reply.completed(response)

    def failed(self, failure: Failure) -> None:
        self._reply.failed(failure)


def in_parts(model: str, door: str = "") -> InferenceError:
    """For a door that gives whole answers only. `door`: its name where Triton has a text for it."""
    message = (
        f"model '{model}' answers in parts, which are read by POST /v2/models/{model}/generate_stream, POST /predict/{model}, "
        "gRPC's ModelStreamInfer, or proxy.stream(...) of the Python library"
    )
    if door:
        message = f"{door} doesn't support models with decoupled transaction policy: {message}"
    return InferenceError(Failure(FailureKind.UNSUPPORTED, message))


class FrontDesk(Generic[Kept]):
    """What a protocol keeps of each served model, made of its endpoint by `make`; follows the catalog at once."""

    def __init__(
        self,
        catalog: Catalog,
        make: Callable[[Endpoint], Kept],
        *,
        clock: Callable[[], float],
        tenant_header: str = TENANT_HEADER,
    ) -> None:
        self._catalog = catalog
        self._make = make
        self._clock = clock
        self._tenant_header = tenant_header
        self._kept: dict[ServedModel, Kept] = {}
        self._services: dict[ServedModel, Service] = {}
        catalog.subscribe(self._follow)
        self._follow()

    def find(self, name: str, version: str = "", who: Principal = ANONYMOUS) -> Kept:
        """For a request of the model; `version`: a number, a label or nothing. Raises InferenceError.

        Whoever remembers what is found asks `demand` for others. Nothing of the request is looked at before.
        """
        demand(who, "infer", name)
        return self._kept[self._catalog.asked(name, version, who)]

    def _follow(self) -> None:
        known, services = self._kept, self._services
        self._services = {model: model.service for model in self._catalog.doors()}
        self._kept = {
            model: known[model] if services.get(model) is service else self._new(model)
            for model, service in self._services.items()
        }

    def _new(self, model: ServedModel) -> Kept:
        return self._make(Endpoint(model, self._catalog.ticket_ids, self._clock, self._tenant_header))

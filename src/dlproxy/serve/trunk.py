"""A trunk and heads: one model computes what the versions of another take, so that all their requests share its batches.

Put together by serve/rollout.py. Not aware of: which head gets a request (that is the heads' service), protocols.
"""

from collections.abc import Callable, Sequence

import msgspec

from dlproxy.config import ConfigError
from dlproxy.message import Failure, FailureKind, InferenceError, Request, Response, Signature, Tensor, TensorSpec, Timing
from dlproxy.service import ReplyTo, Service
from dlproxy.wire.catalog import ServedModel
from dlproxy.wire.checks import RequestChecker


class TrunkLayer:
    """A Service for requests of `signature`: the trunk's inputs, the heads' outputs.

    `head`: whichever of them, as all take the same. Quotas are the trunk's to charge, and not the heads'.
    """

    def __init__(self, trunk: ServedModel, head: ServedModel, heads: Service, clock: Callable[[], float]) -> None:
        self.signature, self._features = joined(trunk, head)
        self._names = [spec.name for spec in head.signature.inputs]
        self._trunk_name, self._trunk = trunk.name, trunk.service
        self._checker = RequestChecker(head)
        self._heads = heads
        self._clock = clock
        self._under_way: dict[int, _Chain] = {}

    def submit(self, request: Request, reply: ReplyTo) -> None:
        asked = Request(
            request.ticket,
            self._trunk_name,
            request.inputs,
            self._features,
            request.id,
            request.params,
            request.principal,
            request.trace,
            request.max_age_s,
            request.headers,
        )
        chain = self._under_way[request.ticket.id] = _Chain(self, request, reply, self._trunk, asked)
        self._trunk.submit(asked, chain)

    def cancel(self, request: Request) -> None:
        chain = self._under_way.get(request.ticket.id)
        if chain is not None:
            chain.service.cancel(chain.asked)

    def end(self, chain: "_Chain") -> None:
        """It has its answer, or never will."""
        del self._under_way[chain.request.ticket.id]

    def to_head(self, chain: "_Chain", features: Sequence[Tensor]) -> None:
        """The second half of its way, under the terms of the first."""
        request = chain.request
        terms = request.ticket
        inputs = [
            Tensor(name, tensor.dtype, tensor.shape, tensor.data) for name, tensor in zip(self._names, features, strict=True)
        ]
        try:
            asked = self._checker.request(
                inputs, request.outputs, ticket_id=terms.id, request_id=None, params=request.params, now=self._clock()
            )
        except InferenceError as error:
            message = f"what model '{self._trunk_name}' gives is not what '{request.model}' takes: {error.failure.message}"
            chain.failed(Failure(FailureKind.MODEL_FAILED, message))
            return
        ticket = asked.ticket
        ticket.deadline_at, ticket.answer_by, ticket.priority = terms.deadline_at, terms.answer_by, terms.priority
        ticket.tenant, ticket.affinity, ticket.once = terms.tenant, terms.affinity, terms.once
        asked.id, asked.principal, asked.trace, asked.headers = request.id, request.principal, request.trace, request.headers
        chain.service, chain.asked = self._heads, asked
        self._heads.submit(asked, chain)


class _Chain:
    """A request on its way through both. A ReplyTo, of each in turn: `asked` is what `service` has been sent."""

    __slots__ = ("_layer", "_reply", "_timing", "asked", "request", "service")

    def __init__(self, layer: TrunkLayer, request: Request, reply: ReplyTo, service: Service, asked: Request) -> None:
        self._layer = layer
        self._reply = reply
        self._timing: Timing | None = None
        self.request = request
        self.service = service
        self.asked = asked

    def completed(self, response: Response) -> None:
        first, second = self._timing, response.timing
        if first is None:
            self._timing = second
            self._layer.to_head(self, response.outputs)
            return
        response.timing = Timing(
            first.queue_s + second.queue_s, first.batch_s + second.batch_s, first.compute_s + second.compute_s
        )
        self._layer.end(self)
        self._reply.completed(response)

    def failed(self, failure: Failure) -> None:
        self._layer.end(self)
        self._reply.failed(failure)


def joined(trunk: ServedModel, head: ServedModel) -> tuple[Signature, list[int]]:
    """What both take and give together, and which of the trunk's outputs are the head's inputs, in their order: those of the
    same name, or the only one.

    Raises ConfigError where they do not fit, or answer in parts.
    """
    ours, theirs = trunk.signature, head.signature
    for why, so in (
        ("answers in parts", ours.streams or theirs.streams),
        ("has sequences", ours.sequences or theirs.sequences),
    ):
        if so:
            raise ConfigError(f"model '{head.name}' cannot have the trunk '{trunk.name}': one of them {why}")
    names = [spec.name for spec in ours.outputs]
    features = []
    for spec in theirs.inputs:
        name = names[0] if len(names) == len(theirs.inputs) == 1 else spec.name
        found = ours.outputs[names.index(name)] if name in names else None
        if found is None or found.dtype is not spec.dtype or len(found.shape) != len(spec.shape):
            gives = "; ".join(map(_shown, ours.outputs))
            raise ConfigError(f"model '{head.name}' takes {_shown(spec)}, but its trunk '{trunk.name}' gives {gives}")
        features.append(names.index(name))
    return msgspec.structs.replace(ours, outputs=theirs.outputs), features


def _shown(spec: TensorSpec) -> str:
    return f"'{spec.name}', {spec.dtype.value}[{','.join(spec.sizes)}]"

"""Sends each request of a model to one of its versions, and copies of requests to a shadow, whose answers are only compared.

Put together by serve/rollout.py; stands where protocols see the model's default version. Not aware of: protocols, lanes, why
shares are what they are.
"""

from collections.abc import Callable, Mapping, Sequence
from itertools import zip_longest
from math import inf

from dlproxy.message import Failure, Request, Response, Signature, Tensor, Ticket
from dlproxy.policy.queueing import LOWEST_LEVEL
from dlproxy.policy.traffic import Splitter
from dlproxy.serve.recheck import differing_outputs
from dlproxy.service import ReplyTo, Service
from dlproxy.wire.catalog import ServedModel

MOST_SHADOWS = 64  # requests that a shadow has under way: their inputs, and the answers to compare with, are kept so long
BELOW = -(2**40)  # ids of shadows' requests count down from here: those of re-checks never get there


class TrafficLayer:
    """A Service over those of versions, of which `splitter` names one for each request. Another split is another layer: this
    one still cancels what it has sent.
    """

    def __init__(self, splitter: Splitter, services: Mapping[str, Service], shadow: "Shadow | None" = None) -> None:
        self.splitter = splitter
        self._services = services
        self._shadow = shadow

    def submit(self, request: Request, reply: ReplyTo) -> None:
        version = self.splitter.choose(request.ticket)
        shadow = self._shadow
        if shadow is None or shadow.version == version or request.sequence is not None:  # a copy would be of no sequence
            self._services[version].submit(request, reply)
        else:
            shadow.submit(request, reply, self._services[version])

    def cancel(self, request: Request) -> None:
        """Who does not know it ignores it."""
        for service in self._services.values():
            service.cancel(request)


class Shadow:
    """Asks `service` what another version is asked, while it has nothing else to do, last in line and with no deadline.

    `served`: what is asked; its statistics count how the answers compare. `service` is not behind quotas: no tenant pays twice.
    """

    def __init__(self, served: ServedModel, service: Service) -> None:
        self.version = served.version
        self._served = served
        self._service = service
        self._counts = served.stats.shadows
        self._under_way = 0

    def submit(self, request: Request, reply: ReplyTo, real: Service) -> None:
        """To the real service, which answers `reply`, and here, if there is room."""
        view = self._served.view()
        if self._under_way >= MOST_SHADOWS or view.queued_rows >= view.batch_goal or not view.instances:
            self._counts["dropped"] += 1
            real.submit(request, reply)
            return
        self._under_way += 1
        pair = _Pair(self._counts, self._ended)
        real.submit(request, _Real(reply, pair))
        self._service.submit(_copy(request), pair)

    def _ended(self) -> None:
        self._under_way -= 1


class _Pair:
    """Where the answers to a request and to its copy meet. A ReplyTo, of the copy. What a variant answered in place of either
    version says nothing of that, and is not compared.
    """

    __slots__ = ("_counts", "_ended", "_real", "_shadow")

    def __init__(self, counts: dict[str, int], ended: Callable[[], None]) -> None:
        self._counts = counts
        self._ended = ended
        self._real: Sequence[Tensor] | None = None
        self._shadow: Sequence[Tensor] | None = None

    def completed(self, response: Response) -> None:
        self._ended()
        if response.rest is not None:
            response.rest.stop()
        if not response.variant:
            self._shadow = response.outputs
            self._compare()

    def failed(self, failure: Failure) -> None:
        self._ended()
        self._counts["failed"] += 1

    def answered(self, outputs: Sequence[Tensor]) -> None:
        """The client has its answer: this one."""
        self._real = outputs
        self._compare()

    def _compare(self) -> None:
        if self._real is not None and self._shadow is not None:
            self._counts["different" if differing_outputs(self._real, self._shadow) else "same"] += 1


class _Real:
    """A ReplyTo that lets the pair know the answer when the client has it."""

    __slots__ = ("_pair", "_reply")

    def __init__(self, reply: ReplyTo, pair: _Pair) -> None:
        self._reply = reply
        self._pair = pair

    def completed(self, response: Response) -> None:
        outputs = response.outputs
        self._reply.completed(response)
        if not response.variant:
            self._pair.answered(outputs)

    def failed(self, failure: Failure) -> None:
        self._reply.failed(failure)


def _copy(request: Request) -> Request:
    """It shares batches with other copies only, so that no client's request waits for it or is counted with it."""
    ticket = request.ticket
    family = (BELOW, *ticket.family) if ticket.family else ()
    copy = Ticket(
        BELOW - ticket.id,
        ticket.arrived_at,
        inf,
        ticket.rows,
        LOWEST_LEVEL,
        shape_key=(BELOW, *ticket.shape_key),
        affinity=ticket.affinity,
        length=ticket.length,
        family=family,
    )
    return Request(copy, request.model, request.inputs, request.outputs, params=request.params)


def difference_between(ours: Signature, theirs: Signature) -> str:
    """Why requests that were checked for one model may not be what the other takes; empty if they are."""
    for what, our_specs, their_specs in (("input", ours.inputs, theirs.inputs), ("output", ours.outputs, theirs.outputs)):
        for one, other in zip_longest(our_specs, their_specs):
            if one is None or other is None:
                return f"only one of them has the {what} '{(one or other).name}'"
            for field in one.__struct_fields__:
                here, there = getattr(one, field), getattr(other, field)
                if field != "axes" and here != there:
                    return f"the {field} of {what} '{one.name}' is {here!r} in one, {there!r} in the other"
    for field in _FLAGS:
        if bool(getattr(ours, field)) != bool(getattr(theirs, field)):
            return f"only one of them {_FLAGS[field]}"
    return ""


_FLAGS = {
    "batched": "batches",
    "even": "has equally many rows in all inputs",
    "streams": "answers in parts",
    "sequences": "has sequences",
}

"""Remembers rows by themselves: of a request whose rows are known in part, the others alone are run.

Asked by layer.py for requests of several rows, where the model's rows are independent. A row's key is that of a request which
has only that row. Not aware of: which rows are worth keeping, requests that ask the same at the same time.
"""

import asyncio
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import msgspec

from dlproxy.message import Failure, Request, Response, Signature, Tensor, Ticket, Timing
from dlproxy.serve.caching.keys import Key
from dlproxy.serve.partition import cut_tensors, joined
from dlproxy.service import ReplyTo, Service

if TYPE_CHECKING:
    from dlproxy.serve.caching.layer import Kept

ONE_ROW = Ticket(0, 0.0)


def has_rows(signature: Signature) -> bool:
    """Whether each row of an answer depends on the same row of the inputs alone, and stands where that does."""
    specs = (*signature.inputs, *signature.outputs)
    return signature.batched and signature.even and all(spec.rows == 0 and not spec.counts for spec in specs)


class RowLayer:
    """A Service around `inner`. `known`: the answer to a row that is remembered and suits the request; `keep`: a new one."""

    def __init__(
        self,
        inner: Service,
        signature: Signature,
        key_of: Callable[[Request], Key],
        known: Callable[[Key, Request], "Kept | None"],
        keep: Callable[[Key, Response, Sequence[Tensor]], None],
    ) -> None:
        self.inner = inner
        self.signature = signature
        self.keep = keep
        self.cleared = 0  # times: what was under way then is not kept
        self.asked: dict[int, Request] = {}  # what is run of a request, by the id of its ticket
        self._key_of = key_of
        self._known = known

    def submit(self, request: Request, reply: ReplyTo) -> None:
        inputs = cut_tensors(request.inputs, self.signature.inputs, [1] * request.ticket.rows)
        tenant = request.ticket.tenant
        ticket = Ticket(0, 0.0, tenant=tenant) if tenant else ONE_ROW
        keys = [self._key_of(Request(ticket, request.model, row, request.outputs)) for row in inputs]
        known = [self._known(key, request) for key in keys]
        missing = [row for row, kept in enumerate(known) if kept is None]
        if not missing:
            self._answer(request, reply, known)
            return
        asked = request if len(missing) == len(known) else self._part(request, [inputs[row] for row in missing])
        self.asked[request.ticket.id] = asked
        self.inner.submit(asked, _Rows(self, request, reply, keys, known))

    def cancel(self, request: Request) -> None:
        self.inner.cancel(self.asked.get(request.ticket.id, request))

    def _part(self, request: Request, rows: Sequence[Sequence[Tensor]]) -> Request:
        """A request of these rows, in the place of the whole one."""
        inputs = [
            Tensor(first.name, first.dtype, (len(rows), *first.shape[1:]), b"".join([row[place].data for row in rows]))
            for place, first in enumerate(rows[0])
        ]
        ticket = msgspec.structs.replace(request.ticket, rows=len(rows))
        return msgspec.structs.replace(request, ticket=ticket, inputs=inputs)

    def _answer(self, request: Request, reply: ReplyTo, known: Sequence["Kept | None"]) -> None:
        kept = [one for one in known if one is not None]
        try:
            outputs = joined([one.outputs for one in kept], [1] * len(kept), request.outputs, self.signature)
        except ValueError:  # their sizes differ, which only a run of them all can settle
            self.inner.submit(request, reply)
            return
        first = kept[0]
        reply.completed(Response(request.id, first.model, first.version, outputs, Timing(0.0, 0.0, 0.0), None, "hit"))


class _Rows:
    """A ReplyTo of what was run of a request: its rows are remembered, and put between those that were known."""

    __slots__ = ("_cleared", "_keys", "_known", "_layer", "_reply", "_request")

    def __init__(
        self, layer: RowLayer, request: Request, reply: ReplyTo, keys: Sequence[Key], known: Sequence["Kept | None"]
    ) -> None:
        self._layer = layer
        self._request = request
        self._reply = reply
        self._keys = keys
        self._known = known
        self._cleared = layer.cleared

    def completed(self, response: Response) -> None:
        layer, request = self._layer, self._request
        asked = layer.asked.pop(request.ticket.id)
        specs = [layer.signature.outputs[index] for index in request.outputs]
        computed = cut_tensors(response.outputs, specs, [1] * asked.ticket.rows)
        new = iter(computed)
        rows: list[Sequence[Tensor]] = []
        for key, kept in zip(self._keys, self._known, strict=True):
            if kept is not None:
                rows.append(kept.outputs)
                continue
            rows.append(row := next(new))
            if self._cleared == layer.cleared and not response.variant:
                layer.keep(key, response, row)
        if asked is not request:
            try:
                outputs = joined(rows, [1] * len(rows), request.outputs, layer.signature)
            except ValueError:  # as above; later: a lane's commands may be in the midst of being carried out
                asyncio.get_running_loop().call_soon(layer.inner.submit, request, self._reply)
                return
            response = msgspec.structs.replace(response, outputs=outputs, cache="partial")
        self._reply.completed(response)

    def failed(self, failure: Failure) -> None:
        del self._layer.asked[self._request.ticket.id]
        self._reply.failed(failure)

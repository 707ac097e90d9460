"""`ModelStreamInfer`: many requests on one call, with answers that may come in parts, in the order that Triton keeps.

Answers of models that give one leave in the order of their requests; parts leave as they come, as fast as the client reads.
Called by oip.py. Not aware of: frames, lanes.
"""

import logging
from collections import deque
from collections.abc import Callable
from functools import lru_cache, partial
from math import inf

from dlproxy.config import HttpLimits
from dlproxy.message import Failure, FailureKind, InferenceError, Response, Tensor, encodable
from dlproxy.policy.why import Phase
from dlproxy.protos.oip import IN_STREAM, oip
from dlproxy.protos.raw import before
from dlproxy.wire.catalog import Catalog, NotServedError
from dlproxy.wire.grpc.call import MAX_ERROR, Call
from dlproxy.wire.grpc.messages import Piece
from dlproxy.wire.grpc.oip_codec import Asked, InferDecoder, encode, id_of, timeout_s
from dlproxy.wire.relay import Relay
from dlproxy.wire.terms import DEADLINE, deadline_of, in_milliseconds
from dlproxy.wire.waiting import answer_once_up

STRICT = b"triton_grpc_error"  # a header: the call ends at the first error

log = logging.getLogger(__name__)


def _flag(*, final: bool) -> bytes:
    value = oip.InferParameter(bool_param=final)
    flag: bytes = oip.ModelInferResponse(parameters={"triton_final_response": value}).SerializeToString()
    return flag


@lru_cache
def _variant(name: str) -> bytes:
    """A parameter as well: the end of the call comes too late, and may be that of other answers, too."""
    parameter: bytes = oip.ModelInferResponse(parameters={"x-dlproxy-variant": {"string_param": name}}).SerializeToString()
    return parameter


FINAL, NOT_FINAL = _flag(final=True), _flag(final=False)


class InferStream:
    """One call, of which at most `max_pipelined` requests are worked on at a time."""

    def __init__(self, call: Call, decoder: InferDecoder, catalog: Catalog, limits: HttpLimits) -> None:
        self.call = call
        self.decoder = decoder
        self.catalog = catalog
        self.limits = limits
        self._half_closed = False
        self._under_way: dict[StreamedRequest, None] = {}
        self._in_order: deque[StreamedRequest] = deque()  # of those under way: whose answers wait for the ones before
        self._strict = call.headers.get(STRICT) == b"true"
        call.on_message = self._message
        call.on_half_closed = self._half_close
        call.on_abandoned = self._stop
        call.on_writable = self._go_on

    def _message(self, message: bytes) -> None:
        request = StreamedRequest(self, message)
        self._under_way[request] = None
        self._in_order.append(request)
        if len(self._under_way) >= self.limits.max_pipelined:
            self.call.pause()
        request.begin()

    def _half_close(self) -> None:
        self._half_closed = True
        self._end_if_done()

    def _end_if_done(self) -> None:
        if self._half_closed and not self._under_way:
            self.call.end()

    def _go_on(self) -> None:
        """The client takes more: a part of each answer in turn."""
        for request in list(self._under_way):
            if request.relay is not None:
                request.relay.go_on()
                if not self.writable():
                    if request in self._under_way:  # the next one is the first the next time
                        del self._under_way[request]
                        self._under_way[request] = None
                    return

    def _stop(self) -> None:
        """Nobody reads any more."""
        requests, self._under_way = self._under_way, {}
        self._in_order.clear()
        for request in requests:
            request.stop()

    def _end(self, failure: Failure) -> None:
        self.call.refuse(failure)
        self._stop()

    # For its requests

    def writable(self) -> bool:
        return self.call.writable and not self.call.ended

    def send(self, message: list[Piece]) -> None:
        """Now, before the answers that wait for their turn."""
        if self.call.ended:
            self._stop()
        else:
            self.call.send(*message)

    def send_in_order(self) -> None:
        """The answers whose turn it is."""
        in_order = self._in_order
        while in_order and in_order[0].answer is not None:
            request = in_order.popleft()
            self.send(request.answer or [])
            self.over(request)

    def flows(self, request: "StreamedRequest") -> None:
        """Its answer comes in parts: it waits for no other's, nor they for it."""
        if request in self._in_order:
            self._in_order.remove(request)
            self.send_in_order()

    def over(self, request: "StreamedRequest") -> None:
        """All of its answer is sent."""
        was_full = len(self._under_way) >= self.limits.max_pipelined
        self._under_way.pop(request, None)
        if was_full:
            self.call.resume()
        self._end_if_done()

    def error(self, failure: Failure, request_id: str) -> list[Piece]:
        """The message that says so. Ends the call instead if the client wants that."""
        if self._strict:
            self._end(failure)
        else:
            self.call.note(failure)
        text = failure.message if len(failure.message) <= MAX_ERROR else f"{failure.message[:MAX_ERROR]}…"
        message = oip.ModelStreamInferResponse(error_message=encodable(text), infer_response={"id": request_id})
        return [message.SerializeToString()]


class StreamedRequest:
    """One request of a stream, and where its answer goes. A Place, and a ReplyTo.

    `answer`: a whole one that waits for its turn. `relay`: of one in parts, after its first.
    """

    def __init__(self, stream: InferStream, message: bytes) -> None:
        self.answer: list[Piece] | None = None
        self.relay: Relay | None = None
        self.on_abandoned: Callable[[], object] | None = None
        self.waited: dict[Phase, float] | None = None
        self._stream = stream
        self._message = message
        self._headers = stream.call.headers
        self._asked: Asked | None = None
        self._first: Response | None = None
        self._flows = False
        self._stopped = False

    def begin(self) -> None:
        try:
            self._infer()
        except NotServedError as missing:
            self._wait_for(missing)
        except InferenceError as error:
            self.refuse(error.failure)
        except Exception:
            self.give_up()

    def _infer(self) -> None:
        stream = self._stream
        asked = self._asked = stream.decoder.decode(self._message, self._headers, stream.call.asks_again())
        endpoint, request = asked.endpoint, asked.request
        self.on_abandoned = partial(endpoint.cancel, request)
        if self.waited is not None:
            stream.call.connection.journal.note(request.ticket.id, self.waited)
        if endpoint.model.signature.streams:
            self._flows = True
            stream.flows(self)
        endpoint.submit(request, self, asked.terms)

    def _wait_for(self, missing: NotServedError) -> None:
        def again(left_s: float) -> None:
            if left_s < inf:
                self._headers = {**self._headers, DEADLINE: in_milliseconds(left_s)}
            self._infer()

        def until_s() -> float:
            return min(deadline_of(self._headers), timeout_s(self._message, self._stream.limits.max_json_bytes))

        waiting = self._stream.catalog.waiting
        answer_once_up(waiting, missing, self, again, timeout_s=until_s, size_bytes=len(self._message))

    def stop(self) -> None:
        """The client has gone."""
        self._stopped = True
        told, self.on_abandoned = self.on_abandoned, None
        if self.relay is not None:
            self.relay.stop()
        elif told is not None:
            told()

    # ReplyTo, Place

    def completed(self, response: Response) -> None:
        rest = response.rest
        if self._stopped:
            if rest is not None:
                rest.stop()
            return
        try:
            self._first = response
            self._give(self._encoded(response.outputs, FINAL if rest is None else NOT_FINAL), flows=rest is not None)
            if rest is not None:
                self.relay = Relay(rest, self._write, self._finish, self._stream.writable)
                self.relay.go_on()
            elif self._flows:
                self._stream.over(self)
        except InferenceError as error:
            if rest is not None:
                rest.stop()
            self.failed(error.failure)
        except Exception:
            if rest is not None:
                rest.stop()
            self.give_up()

    def failed(self, failure: Failure) -> None:
        if self._stopped:
            return
        message = self._stream.error(failure, id_of(self._message) if self._asked is None else self._asked.request.id)
        if not self._stopped:
            self._give(message)
            if self._flows:
                self._stream.over(self)

    refuse = failed

    def give_up(self) -> None:
        log.exception("a request of a stream failed")
        self.failed(Failure(FailureKind.MODEL_FAILED, "internal error; the server's log has the details"))

    def _give(self, message: list[Piece], *, flows: bool = False) -> None:
        if flows and not self._flows:
            self._flows = True
            self._stream.flows(self)
        if self._flows:
            self._stream.send(message)
        else:
            self.answer = message
            self._stream.send_in_order()

    # Of an answer in parts

    def _write(self, outputs: list[Tensor]) -> None:
        try:
            message = self._encoded(outputs, NOT_FINAL)
        except InferenceError as error:
            if self.relay is not None:
                self.relay.stop()
            self.failed(error.failure)
            return
        self._stream.send(message)

    def _finish(self, failure: Failure | None) -> None:
        if failure is not None:
            self.failed(failure)
            return
        if self._asked is not None and self._asked.empty_final:
            self._stream.send(self._encoded([], FINAL))
        self._stream.over(self)

    def _encoded(self, outputs: list[Tensor], flag: bytes) -> list[Piece]:
        first, asked = self._first, self._asked
        assert first is not None
        assert asked is not None
        response = Response(first.id, first.model, first.version, outputs, first.timing)
        if first.variant:
            flag += _variant(first.variant)
        pieces = encode(response, asked.memo, flag, asked.forms) if outputs else encode(response, None, flag)
        return [before(IN_STREAM, sum(map(len, pieces))), *pieces]

"""Answers in parts over HTTP: each part is one JSON text, written as it comes and as fast as the client reads.

Called by the doors (oip_http.py, generate.py), which say what the JSON of a part is. Not aware of: routes, models.
"""

from collections.abc import Callable

import msgspec
from msgspec import Struct

from dlproxy.message import Failure, FailureKind, Response, Tensor, encodable, text_of
from dlproxy.wire.http_exchange import MAX_ERROR, Exchange, ReplyStream
from dlproxy.wire.relay import Relay

EVENTS = b"text/event-stream"
LIVE = b"cache-control: no-cache\r\nx-accel-buffering: no\r\n"  # nginx would gather parts before it passes them on


class Framing(Struct, frozen=True):
    """How one JSON text is told from the next."""

    content_type: bytes
    before: bytes
    after: bytes


SSE = Framing(EVENTS + b"; charset=utf-8", b"data: ", b"\n\n")
NDJSON = Framing(b"application/x-ndjson", b"", b"\n")

Encode = Callable[[Response, list[Tensor]], bytes]
"""The JSON of a part of this response. Raises UnicodeDecodeError for BYTES that are no text."""


class PartsReply:
    """Where an answer goes, in however many parts it comes. A ReplyTo.

    What fails before the first part has its status; what fails later is a last part, {"error": text}, in an answer of 200.
    `extra`: header lines, made of the response.
    """

    __slots__ = ("_encode", "_exchange", "_extra", "_framing", "_relay", "_response", "_stream")

    def __init__(
        self, exchange: Exchange, framing: Framing, encode: Encode, extra: Callable[[Response], bytes] | None = None
    ) -> None:
        self._exchange = exchange
        self._framing = framing
        self._encode = encode
        self._extra = extra
        self._response: Response
        self._stream: ReplyStream | None = None
        self._relay: Relay | None = None

    def completed(self, response: Response) -> None:
        self._response = msgspec.structs.replace(response, outputs=[])  # what is written need not be kept till the end
        exchange, rest = self._exchange, response.rest
        try:
            first = self._framed(self._encode(response, response.outputs))
            extra = LIVE if self._extra is None else LIVE + self._extra(response)
            self._stream = stream = exchange.begin(200, self._framing.content_type, extra)
            exchange.on_abandoned = self._leave
            stream.write(first)
            if rest is None:
                self._end(None)
            elif not exchange.connection.has_begun(exchange):  # nobody will say again that the client has gone
                self._leave()
            else:
                self._relay = relay = Relay(rest, self._write, self._end, lambda: stream.writable)
                stream.on_writable = relay.go_on
                relay.go_on()
        except UnicodeDecodeError as error:
            self._stop()
            exchange.fail(500, no_text(error))
        except Exception:
            self._give_up()

    def failed(self, failure: Failure) -> None:
        self._exchange.refuse(failure)

    def _write(self, outputs: list[Tensor]) -> None:
        assert self._stream is not None
        try:
            self._stream.write(self._framed(self._encode(self._response, outputs)))
        except UnicodeDecodeError as error:
            self._stop()
            self._end(Failure(FailureKind.MODEL_FAILED, no_text(error)))
        except Exception:
            self._give_up()

    def _end(self, failure: Failure | None) -> None:
        assert self._stream is not None
        if failure is not None:
            self._stream.write(self._framed(error_json(failure.message)))
        self._stream.end()
        self._let_go()

    def _leave(self) -> None:
        """The client has gone."""
        self._stop()
        self._end(None)

    def _stop(self) -> None:
        rest = self._response.rest
        if self._relay is not None:
            self._relay.stop()
        elif rest is not None:
            rest.stop()

    def _give_up(self) -> None:
        """Within an exception's handler: a defect."""
        self._stop()
        self._exchange.give_up()
        if self._stream is not None:
            self._stream.break_off()
            self._let_go()

    def _let_go(self) -> None:
        """Of what refers back to this: all would stay for the garbage collector."""
        self._relay = self._exchange.on_abandoned = None
        if self._stream is not None:
            self._stream.on_writable = None

    def _framed(self, text: bytes) -> bytes:
        return b"%b%b%b" % (self._framing.before, text, self._framing.after)


def takes_events(exchange: Exchange) -> bool:
    """Whether its client asks for server-sent events."""
    return EVENTS in exchange.headers.get(b"accept", b"").lower()


def error_json(message: str) -> bytes:
    """As every route says it."""
    return msgspec.json.encode({"error": encodable(message if len(message) <= MAX_ERROR else f"{message[:MAX_ERROR]}…")})


def no_text(error: UnicodeDecodeError) -> str:
    return f"an output is not valid UTF-8, which JSON cannot carry: {text_of(error)}"

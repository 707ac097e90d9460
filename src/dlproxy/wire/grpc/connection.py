"""One gRPC client's connection: an asyncio.Protocol over HTTP/2 frames, no task per call.

Header blocks are decoded by hpack; one that repeats, and changes no table, is known by its bytes. Whatever RFC 9113 leaves
unbounded is bounded here. Made by server.py; hands each call to its method. Not aware of: services, models.
"""

import asyncio
from collections.abc import Sequence
from typing import TYPE_CHECKING, cast

import hpack

from dlproxy.message import ANONYMOUS, InferenceError, invalid
from dlproxy.wire.grpc import frames
from dlproxy.wire.grpc.call import BEGIN, END_OK, PREFIX, Call, Piece, Status, decompressed, message_size
from dlproxy.wire.grpc.frames import (
    ACK,
    DATA,
    END_HEADERS,
    END_STREAM,
    GOAWAY,
    HEADERS,
    PADDED,
    PING,
    RST_STREAM,
    SETTINGS,
    WINDOW_UPDATE,
    WITH_PRIORITY,
    ErrorCode,
    frame,
    head,
    number,
)
from dlproxy.wire.listening import DRAIN_GRACE_S

if TYPE_CHECKING:
    from dlproxy.wire.grpc.server import GrpcServer

WINDOW = 1 << 20  # bytes that a client may send of one call before it is told to go on
CONNECTION_WINDOW = 1 << 24
MAX_FRAME = 1 << 18
MAX_BLOCKS = 256  # header blocks that are remembered of one connection
MOST_CONTROL_FRAMES = 2000  # from one sweep to the next: pings, settings, resets, empty data; more are an attack
LINGER_S = 2.0  # after a refusal, how long the client may take to read why
SMALL_PIECE = 1024  # bytes; smaller pieces of a message are gathered: as objects of their own they could take 20 times that

_BEGIN_HEAD = head(len(BEGIN), HEADERS, END_HEADERS, 0)[:5]
_END_HEAD = head(len(END_OK), HEADERS, END_HEADERS | END_STREAM, 0)[:5]
_TABLE_EMPTY = b"\x20"  # says that the table of what is sent shrinks to nothing, which nothing here needs
_NOT_GRPC = frames.header_block([(b":status", b"415"), (b"content-type", b"text/plain")])


class _BrokenError(Exception):
    """The connection cannot go on: it breaks the protocol, or a limit."""

    def __init__(self, code: ErrorCode, message: str) -> None:
        super().__init__(message)
        self.code = code


class GrpcConnection(asyncio.Protocol):
    """One client. `age` is called by the server's sweep."""

    def __init__(self, server: "GrpcServer") -> None:
        self.server = server
        self._limits = server.limits
        self._calls: dict[int, Call] = {}
        self._holding: dict[int, Call] = {}  # calls with answers for which there is no window
        self._last = 0  # the newest stream
        self._decoder = hpack.Decoder(max_header_list_size=self._limits.max_header_bytes)
        self._blocks: dict[bytes, dict[bytes, bytes]] = {}
        self._block: tuple[int, int, bytearray] | None = None  # stream, flags and what has come of an unfinished block
        self._begun = False  # the preface is there
        self._rest = bytearray()  # of the last read: what is no whole frame
        self._need = len(frames.PREFACE)  # bytes of it that make one
        self._taken = 0  # bytes of data for which the client has got no new window
        self._window = frames.DEFAULT_WINDOW  # bytes that may be sent on all calls together
        self._first_window = frames.DEFAULT_WINDOW  # and on a new one
        self._max_frame = frames.DEFAULT_FRAME
        self._prelude = b""  # of the next header block that is sent
        self._control_frames = 0
        self._waited_s = 0.0  # since the last step forward
        self._write_paused = False
        self._closing = False

    # asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self.server.connection_made(self)
        offer = {
            frames.MAX_STREAMS: self.server.max_streams,
            frames.INITIAL_WINDOW: WINDOW,
            frames.MAX_FRAME: MAX_FRAME,
            frames.MAX_HEADER_LIST: self._limits.max_header_bytes,
        }
        more = frames.window_update(0, CONNECTION_WINDOW - frames.DEFAULT_WINDOW)
        self._transport.write(frames.settings(offer) + more)
        if len(self.server.connections) > self._limits.max_connections:
            self._go_away(ErrorCode.ENHANCE_YOUR_CALM, f"connection limit ({self._limits.max_connections}) reached")

    def connection_lost(self, exc: Exception | None) -> None:
        self._closing = True
        self.server.connection_closed(self)
        self._abandon()

    def data_received(self, data: bytes) -> None:
        if self._closing:
            return
        if self._rest:
            self._rest += data
            if len(self._rest) < self._need:
                return
            data, self._rest = bytes(self._rest), bytearray()
        try:
            at = self._read(data)
        except _BrokenError as error:
            self._go_away(error.code, str(error))
        except hpack.OversizedHeaderListError:
            self._go_away(ErrorCode.ENHANCE_YOUR_CALM, f"the header is larger than {self._limits.max_header_bytes} bytes")
        except (hpack.HPACKError, UnicodeDecodeError) as error:
            self._go_away(ErrorCode.COMPRESSION_ERROR, f"malformed header block: {error}")
        else:
            if at < len(data):
                self._rest += memoryview(data)[at:]
            if self._taken > CONNECTION_WINDOW // 2:
                self._transport.write(frames.window_update(0, self._taken))
                self._taken = 0

    def pause_writing(self) -> None:
        self._write_paused = True
        self._waited_s = 0.0
        self._transport.pause_reading()

    def resume_writing(self) -> None:
        self._write_paused = False
        self._waited_s = 0.0
        if not self._closing:
            self._transport.resume_reading()
            self._flush_all()

    @property
    def writable(self) -> bool:
        return not self._write_paused and self._window > 0

    # What comes

    def _read(self, data: bytes) -> int:
        """Act on the frames in `data`; returns where what is no whole frame begins."""
        at, size = 0, len(data)
        if not self._begun:
            if data[: len(frames.PREFACE)] != frames.PREFACE[:size]:
                raise _BrokenError(
                    ErrorCode.PROTOCOL_ERROR, "gRPC needs HTTP/2 from the first byte on; HTTP/1.1 has another port"
                )
            if size < len(frames.PREFACE):
                return 0
            self._begun, at = True, len(frames.PREFACE)
        while size - at >= frames.HEADER:
            length = data[at] << 16 | data[at + 1] << 8 | data[at + 2]
            end = at + frames.HEADER + length
            if length > MAX_FRAME:
                raise _BrokenError(ErrorCode.FRAME_SIZE_ERROR, f"a frame of {length} bytes; at most {MAX_FRAME} are accepted")
            if end > size:
                self._need = end - at
                return at
            kind, flags = data[at + 3], data[at + 4]
            stream = int.from_bytes(data[at + 5 : at + 9], "big") & frames.MOST_WINDOW
            payload = data[at + frames.HEADER : end]
            at = end
            if self._block is not None and (kind != frames.CONTINUATION or stream != self._block[0]):
                raise _BrokenError(ErrorCode.PROTOCOL_ERROR, "a header block was interrupted")
            if kind == DATA:
                self._data(stream, flags, payload)
            elif kind == HEADERS:
                self._headers(stream, flags, payload)
            else:
                self._control(kind, flags, stream, payload)
            if self._closing:
                return size
        self._need = frames.HEADER
        return at

    def _headers(self, stream: int, flags: int, payload: bytes) -> None:
        if flags & (PADDED | WITH_PRIORITY):
            if flags & PADDED:
                payload = _unpadded(payload)
            if flags & WITH_PRIORITY:
                payload = payload[5:]
        if flags & END_HEADERS:
            self._take_block(stream, flags, payload)
        else:
            self._block = (stream, flags, bytearray(payload))

    def _continuation(self, flags: int, payload: bytes) -> None:
        if self._block is None:
            raise _BrokenError(ErrorCode.PROTOCOL_ERROR, "a continuation of no header block")
        stream, begun, block = self._block
        block += payload
        if len(block) > self._limits.max_header_bytes or not payload:
            raise _BrokenError(ErrorCode.ENHANCE_YOUR_CALM, "the header block is too long")
        if flags & END_HEADERS:
            self._block = None
            self._take_block(stream, begun, bytes(block))

    def _take_block(self, stream: int, flags: int, block: bytes) -> None:
        headers = self._decoded(block)
        if stream <= self._last or not stream & 1:
            self._trailers(stream, flags)
            return
        self._last = stream
        self._waited_s = 0.0
        if len(self._calls) >= self.server.max_streams or self.server.draining:
            self._reset(stream, ErrorCode.REFUSED_STREAM)
            return
        path = headers.get(b":path", b"")
        if headers.get(b":method") != b"POST" or not headers.get(b"content-type", b"").startswith(b"application/grpc"):
            self._write_block(stream, _NOT_GRPC, END_STREAM)
            return
        call = self._calls[stream] = Call(self, stream, path, headers, ANONYMOUS, self._first_window)
        server = self.server
        try:
            if server.identify is not None:
                call.principal = server.identify(b"POST", path, headers)
            unary = call.method = server.methods.unary.get(path)
            if unary is None:
                streaming = server.methods.streaming.get(path)
                if streaming is None:
                    call.end(Status.UNIMPLEMENTED, f"unknown method {path.decode('latin-1')}")
                    return
                streaming(call)
        except InferenceError as error:
            call.refuse(error.failure)
        except Exception:
            call.give_up()
        if flags & END_STREAM and not call.ended:
            self._half_close(call)

    def _decoded(self, block: bytes) -> dict[bytes, bytes]:
        """As HTTP has it: fields that repeat are joined by commas. Equal blocks give one object while the table stays."""
        known = self._blocks.get(block)
        if known is not None:
            return known
        table = self._decoder.header_table.dynamic_entries
        before = (len(table), table[0] if table else None)
        headers: dict[bytes, bytes] = {}
        fields = list(self._decoder.decode(block, raw=True))
        if len(fields) > self._limits.max_headers:
            raise _BrokenError(
                ErrorCode.ENHANCE_YOUR_CALM, f"too many header fields; at most {self._limits.max_headers} are accepted"
            )
        for name, value in fields:
            headers[name] = headers[name] + b", " + value if name in headers else value
        if before[0] != len(table) or (table and table[0] is not before[1]) or len(self._blocks) >= MAX_BLOCKS:
            self._blocks = {}
        else:
            self._blocks[block] = headers
        return headers

    def _trailers(self, stream: int, flags: int) -> None:
        """A header block on a stream that has begun: a client sends one at its end. Of a call that is over it may pass."""
        if not stream & 1:
            raise _BrokenError(ErrorCode.PROTOCOL_ERROR, f"stream {stream} is not the client's to begin")
        call = self._calls.get(stream)
        if call is not None and not call.half_closed:
            if not flags & END_STREAM:
                raise _BrokenError(ErrorCode.PROTOCOL_ERROR, "a second header block that does not end its stream")
            self._half_close(call)

    def _data(self, stream: int, flags: int, payload: bytes) -> None:
        size = len(payload)
        self._taken += size
        call = self._calls.get(stream)
        if call is None:
            if stream > self._last or not stream & 1:
                raise _BrokenError(ErrorCode.PROTOCOL_ERROR, f"data on stream {stream}, which has not begun")
            return  # it is over; the client may not know yet
        if call.half_closed:
            raise _BrokenError(ErrorCode.STREAM_CLOSED, f"data on stream {stream} after its end")
        if flags & PADDED:
            payload = _unpadded(payload)
        if not size and not flags & END_STREAM:
            self._count_control()
        self._waited_s = call.waited_s = 0.0
        try:
            if payload:
                self._feed(call, payload)
        except InferenceError as error:
            call.refuse(error.failure)
            _tell_abandoned(call)
            return
        if call.ended:
            return
        if flags & END_STREAM:
            self._half_close(call)
        else:
            call.taken += size
            if call.taken > WINDOW // 2:
                self._transport.write(frames.window_update(stream, call.taken))
                call.taken = 0

    def _feed(self, call: Call, payload: bytes) -> None:
        """Raises InferenceError for a message that cannot be taken."""
        pieces = call.pieces
        if not pieces and len(payload) >= PREFIX:
            size = message_size(payload, self._limits.max_body_bytes)
            if len(payload) == PREFIX + size:
                self._message(call, payload)
                return
        if pieces and len(payload) < SMALL_PIECE:
            if type(pieces[-1]) is bytearray:
                pieces[-1] += payload
            else:
                pieces.append(bytearray(payload))
        else:
            pieces.append(payload)
        call.received += len(payload)
        while call.received >= PREFIX and not call.ended:
            if len(pieces[0]) < PREFIX:
                pieces[:] = [b"".join(pieces)]
            size = message_size(pieces[0], self._limits.max_body_bytes) + PREFIX
            if call.received < size:
                return
            whole = b"".join(pieces)
            pieces[:] = [whole[size:]] if call.received > size else []
            call.received -= size
            self._message(call, whole[:size] if pieces else whole)

    def _message(self, call: Call, message: bytes) -> None:
        """`message`: with its prefix."""
        plain = message[PREFIX:]
        if message[0]:
            plain = decompressed(plain, call.headers.get(b"grpc-encoding", b"identity"), self._limits.max_body_bytes)
        if call.method is None:
            call.undelivered.append(plain)
            self.go_on(call)
        elif call.whole is not None:
            raise invalid("more than one message for a method that takes one")
        else:
            call.whole = plain

    def go_on(self, call: Call) -> None:
        """Deliver what has come of a streaming call, if its service lets it."""
        if call.delivering:
            return
        call.delivering = True
        try:
            while call.undelivered and not call.paused and not call.ended and call.on_message is not None:
                call.on_message(call.undelivered.pop(0))
            if call.half_closed and not call.paused and not call.ended and call.on_half_closed is not None:
                told, call.on_half_closed = call.on_half_closed, None
                told()
        except InferenceError as error:
            call.refuse(error.failure)
            _tell_abandoned(call)
        except Exception:
            call.give_up()
        call.delivering = False

    def _half_close(self, call: Call) -> None:
        """The client sends no more of it."""
        call.half_closed = True
        try:
            if call.received:
                raise invalid("the last message is incomplete")
            if call.method is not None:
                if call.whole is None:
                    raise invalid("the message is missing")
                whole, call.whole = call.whole, None
                call.method(call, whole)
            else:
                self.go_on(call)
        except InferenceError as error:
            call.refuse(error.failure)
            _tell_abandoned(call)
        except Exception:
            call.give_up()

    def _control(self, kind: int, flags: int, stream: int, payload: bytes) -> None:
        if kind == WINDOW_UPDATE:
            self._widen(stream, payload)
            return
        if kind == frames.CONTINUATION:
            self._continuation(flags, payload)
            return
        self._count_control()
        if kind == PING:
            if stream or len(payload) != 8:
                raise _BrokenError(ErrorCode.FRAME_SIZE_ERROR if not stream else ErrorCode.PROTOCOL_ERROR, "malformed PING")
            if not flags & ACK:
                self._transport.write(frame(PING, ACK, 0, payload))
        elif kind == SETTINGS:
            self._settings(flags, stream, payload)
        elif kind == RST_STREAM:
            if len(payload) != 4 or not stream or stream > self._last:
                raise _BrokenError(ErrorCode.PROTOCOL_ERROR, "malformed RST_STREAM")
            call = self._calls.get(stream)
            if call is not None:
                self._over(call)
                _tell_abandoned(call)
        elif kind == frames.PUSH_PROMISE:
            raise _BrokenError(ErrorCode.PROTOCOL_ERROR, "a client cannot push")

    def _count_control(self) -> None:
        self._control_frames += 1
        if self._control_frames > MOST_CONTROL_FRAMES:
            raise _BrokenError(ErrorCode.ENHANCE_YOUR_CALM, "too many control frames")

    def _settings(self, flags: int, stream: int, payload: bytes) -> None:
        if stream or len(payload) % 6 or (flags & ACK and payload):
            raise _BrokenError(ErrorCode.FRAME_SIZE_ERROR if not stream else ErrorCode.PROTOCOL_ERROR, "malformed SETTINGS")
        if flags & ACK:
            return
        for at in range(0, len(payload), 6):
            name, value = int.from_bytes(payload[at : at + 2], "big"), int.from_bytes(payload[at + 2 : at + 6], "big")
            if name == frames.INITIAL_WINDOW:
                if value > frames.MOST_WINDOW:
                    raise _BrokenError(ErrorCode.FLOW_CONTROL_ERROR, "the initial window is too large")
                for call in self._calls.values():
                    call.window += value - self._first_window
                self._first_window = value
            elif name == frames.MAX_FRAME:
                if not frames.DEFAULT_FRAME <= value < 1 << 24:
                    raise _BrokenError(ErrorCode.PROTOCOL_ERROR, "SETTINGS_MAX_FRAME_SIZE is out of range")
                self._max_frame = min(value, MAX_FRAME)
            elif name == frames.TABLE_SIZE:
                self._prelude = _TABLE_EMPTY
            elif name == frames.ENABLE_PUSH and value > 1:
                raise _BrokenError(ErrorCode.PROTOCOL_ERROR, "SETTINGS_ENABLE_PUSH is neither 0 nor 1")
        self._transport.write(frame(SETTINGS, ACK, 0))
        self._flush_all()

    def _widen(self, stream: int, payload: bytes) -> None:
        if len(payload) != 4:
            raise _BrokenError(ErrorCode.FRAME_SIZE_ERROR, "malformed WINDOW_UPDATE")
        more = int.from_bytes(payload, "big") & frames.MOST_WINDOW
        if not stream:
            self._window += more
            if not more or self._window > frames.MOST_WINDOW:
                raise _BrokenError(ErrorCode.FLOW_CONTROL_ERROR, "a window of the connection that is out of range")
            if self._holding:
                self._flush_all()
            return
        if stream > self._last:
            raise _BrokenError(ErrorCode.PROTOCOL_ERROR, f"a window of stream {stream}, which has not begun")
        call = self._calls.get(stream)
        if call is None:
            return
        call.window += more
        if not more or call.window > frames.MOST_WINDOW:
            self._over(call)
            self._reset(stream, ErrorCode.FLOW_CONTROL_ERROR)
            _tell_abandoned(call)
        elif call.held:
            self._flush(call)
        elif call.on_writable is not None and call.writable:
            call.on_writable()

    # What leaves

    def send(self, call: Call, message: Sequence[Piece], trailers: bytes | None) -> None:
        """A message, and with `trailers` the end. Does nothing once the call is over."""
        if call.ended:
            return
        size = sum(map(len, message))
        whole = PREFIX + size
        prefix = b"\x00" + number(size)
        at_once = whole <= call.window and whole <= self._window and whole <= self._max_frame
        if at_once and not call.held and not self._prelude and not self._write_paused:
            stream = number(call.id)
            begin = () if call.begun else (_BEGIN_HEAD, stream, BEGIN)
            end = () if trailers is None else (self._end_head(trailers), stream, trailers)
            self._transport.write(b"".join((*begin, head(whole, DATA, 0, call.id), prefix, *message, *end)))
            call.begun = True
            call.window -= whole
            self._window -= whole
            if trailers is not None:
                self._finish(call)
            return
        if not call.begun:
            call.begun = True
            self._write_block(call.id, BEGIN)
        call.held += [memoryview(prefix), *[memoryview(piece) for piece in message if len(piece)]]
        call.trailers = trailers
        call.ended = trailers is not None
        self._holding[call.id] = call
        self._flush(call)

    def end(self, call: Call, trailers: bytes) -> None:
        """Does nothing once the call is over."""
        if call.ended:
            return
        call.ended = True
        if call.held:
            call.trailers = trailers
            return
        block = trailers if call.begun else BEGIN + trailers
        self._write_block(call.id, block, END_STREAM)
        self._finish(call)

    def _end_head(self, trailers: bytes) -> bytes:
        return _END_HEAD if trailers is END_OK else head(len(trailers), HEADERS, END_HEADERS | END_STREAM, 0)[:5]

    def _write_block(self, stream: int, block: bytes, flags: int = 0) -> None:
        block, self._prelude = self._prelude + block, b""
        self._transport.write(frame(HEADERS, END_HEADERS | flags, stream, block))

    def _flush(self, call: Call) -> None:
        """Send of what is held what the windows allow, and then the trailers."""
        held = call.held
        while held and not self._write_paused:
            room = min(call.window, self._window, self._max_frame)
            if room <= 0:
                return
            pieces, size = [], 0
            while held and size < room:
                piece = held[0][: room - size]
                pieces.append(piece)
                size += len(piece)
                if len(piece) == len(held[0]):
                    del held[0]
                else:
                    held[0] = held[0][len(piece) :]
            call.window -= size
            self._window -= size
            call.waited_s = self._waited_s = 0.0
            self._transport.write(head(size, DATA, 0, call.id))
            for piece in pieces:
                self._transport.write(piece)
        if held:
            return
        self._holding.pop(call.id, None)
        if call.trailers is not None:
            self._write_block(call.id, call.trailers, END_STREAM)
            self._finish(call)
        elif call.on_writable is not None and call.writable:
            call.on_writable()

    def _flush_all(self) -> None:
        for call in list(self._holding.values()):
            self._flush(call)

    def _finish(self, call: Call) -> None:
        """All of it has been sent."""
        if not call.half_closed:
            self._reset(call.id, ErrorCode.NO_ERROR)
        self._over(call)

    def _over(self, call: Call) -> None:
        call.ended = True
        call.held.clear()
        call.pieces.clear()
        self._calls.pop(call.id, None)
        self._holding.pop(call.id, None)
        if not self._calls:
            self._waited_s = 0.0

    def _reset(self, stream: int, code: ErrorCode) -> None:
        self._transport.write(frame(RST_STREAM, 0, stream, number(code)))

    def _abandon(self) -> None:
        """Whatever is under way gets no answer."""
        abandoned = list(self._calls.values())
        for call in abandoned:
            self._over(call)
        for call in abandoned:
            _tell_abandoned(call)

    # Ends and limits

    def _go_away(self, code: ErrorCode, why: str = "") -> None:
        """Nothing more is taken on this connection, nor answered."""
        if self._closing:
            return
        self._closing = True
        self._waited_s = 0.0
        self._abandon()
        self._transport.write(frame(GOAWAY, 0, 0, number(self._last) + number(code) + why.encode()))
        self._transport.close()

    def begin_grace(self) -> None:
        """The server drains: tell the client so, and go on with what has begun."""
        self._waited_s = 0.0
        if not self._closing:
            self._transport.write(frame(GOAWAY, 0, 0, number(frames.MOST_WINDOW) + number(ErrorCode.NO_ERROR)))

    def age(self, seconds: float) -> None:
        """Called by the sweep: act on what has waited too long."""
        self._control_frames = 0
        self._waited_s += seconds
        waited_s, limits = self._waited_s, self._limits
        if self._closing:
            if waited_s > LINGER_S:
                self._transport.abort()
        elif self._write_paused:
            if waited_s > limits.write_timeout_s:
                self._transport.abort()
        elif not self._begun or self._rest or self._block:
            if waited_s > limits.header_timeout_s:
                self._go_away(ErrorCode.PROTOCOL_ERROR, f"a frame did not arrive within {limits.header_timeout_s:g} s")
        elif not self._calls:
            if waited_s > (DRAIN_GRACE_S if self.server.draining else limits.idle_timeout_s):
                self._go_away(ErrorCode.NO_ERROR)
        else:
            self._age_calls(seconds)

    def _age_calls(self, seconds: float) -> None:
        limits = self._limits
        for call in list(self._calls.values()):
            call.waited_s += seconds
            if call.held:
                if call.waited_s > limits.write_timeout_s:
                    self._over(call)
                    self._reset(call.id, ErrorCode.CANCEL)
                    _tell_abandoned(call)
            elif call.method is not None and not call.half_closed and call.waited_s > limits.body_timeout_s:
                call.end(Status.CANCELLED, f"the message did not arrive within {limits.body_timeout_s:g} s")

    def abort(self) -> None:
        """End the connection now, whatever is under way."""
        self._transport.abort()


def _unpadded(payload: bytes) -> bytes:
    if not payload or payload[0] >= len(payload):
        raise _BrokenError(ErrorCode.PROTOCOL_ERROR, "more padding than payload")
    return payload[1 : len(payload) - payload[0]]


def _tell_abandoned(call: Call) -> None:
    told, call.on_abandoned = call.on_abandoned, None
    if told is not None:
        told()

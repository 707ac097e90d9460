"""One gRPC client's connection: an asyncio.Protocol over HTTP/2 frames, no task per call.

Here is what comes in, frame by frame, and when the connection ends; whatever RFC 9113 leaves unbounded is bounded.
Made by server.py; hands each call to its method. Not aware of: services, models.
"""

import asyncio
import logging
from math import inf, isnan
from typing import TYPE_CHECKING, cast

import hpack

from dlproxy.message import ANONYMOUS, Failure, FailureKind, InferenceError, Principal, invalid
from dlproxy.wire.grpc import frames
from dlproxy.wire.grpc.call import Call, Status
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
)
from dlproxy.wire.grpc.header_blocks import PROTOBUF, Head, HeaderBlocks, TooLargeError
from dlproxy.wire.grpc.lifetime import LAST_CALL, MIN_PING_S, Lifetime
from dlproxy.wire.grpc.receiving import MOST_STORED, WINDOW
from dlproxy.wire.listening import address_of, peer_of
from dlproxy.wire.rights import demand

if TYPE_CHECKING:
    from dlproxy.wire.grpc.server import GrpcServer

CONNECTION_WINDOW = 1 << 24  # bytes that a client may send of all calls before it is told to go on
MAX_FRAME = 1 << 18
MOST_CONTROL_FRAMES = 2000  # from one sweep to the next: pings, resets, empty data; more are an attack
SETTINGS_WEIGHT = 20  # control frames that one SETTINGS counts as: it may change the windows of all calls
MOST_SETTINGS = 64  # in a frame
SMALL_WINDOW = 256  # bytes; a client that asks for its answers in smaller pieces costs more than it gets
MOST_STRIKES = 2  # pings of a client without calls that come too soon, as gRPC's servers have it

_NOT_GRPC = frames.header_block([(b":status", b"415"), (b"content-type", b"text/plain")])
_NOT_POST = frames.header_block([(b":status", b"405"), (b"allow", b"POST")])
_TABLE_EMPTY = b"\x20"  # says that the table of what is sent shrinks to nothing, which nothing here needs

log = logging.getLogger(__name__)


class _BrokenError(Exception):
    """The connection cannot go on: it breaks the protocol, or a limit."""

    def __init__(self, code: ErrorCode, message: str) -> None:
        super().__init__(message)
        self.code = code


class GrpcConnection(Lifetime, asyncio.Protocol):
    """One client. `age` is called by the server's sweep."""

    def __init__(self, server: "GrpcServer") -> None:
        super().__init__(server)
        self._blocks = HeaderBlocks(self.limits.max_header_bytes, self.limits.max_headers)
        self._known = self._blocks.known
        self._begun = False  # the preface is there
        self._need = len(frames.PREFACE)  # bytes of it that make one
        self._taken = 0  # bytes of data for which the client has got no new window
        self._control_frames = 0
        self._pinged = (0, 0)  # the newest stream and the window when the last ping came
        self._strikes = 0

    # asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        if not self.server.connection_made(self, transport):
            self._closing = True
            self.transport.abort()
            return
        self._peer = peer_of(transport) if self.server.identify is not None else None
        offer = {
            frames.MAX_STREAMS: self.server.max_streams,
            frames.INITIAL_WINDOW: WINDOW,
            frames.MAX_FRAME: MAX_FRAME,
            frames.MAX_HEADER_LIST: self.limits.max_header_bytes,
        }
        more = frames.window_update(0, CONNECTION_WINDOW - frames.DEFAULT_WINDOW)
        self.transport.write(frames.settings(offer) + more)
        if len(self.server.connections) > self.limits.max_connections:
            self._go_away(ErrorCode.ENHANCE_YOUR_CALM, f"connection limit ({self.limits.max_connections}) reached")

    def connection_lost(self, exc: Exception | None) -> None:
        self._closing = True
        self.server.connection_closed(self)
        self._abandon_all()
        self._rest, self._block = bytearray(), None

    def data_received(self, data: bytes) -> None:
        if self._closing:
            return
        self._silent_s = 0.0
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
            self._go_away(ErrorCode.ENHANCE_YOUR_CALM, f"the header is larger than {self.limits.max_header_bytes} bytes")
        except TooLargeError as error:
            self._go_away(ErrorCode.ENHANCE_YOUR_CALM, str(error))
        except hpack.HPACKError as error:
            self._go_away(ErrorCode.COMPRESSION_ERROR, f"malformed header block: {error}")
        except Exception:
            log.exception("a connection is closed because of a defect of the server")
            self._go_away(ErrorCode.INTERNAL_ERROR)
        else:
            if at < len(data):
                self._rest += memoryview(data)[at:]
                if self._block is None:
                    self._partial_s = 0.0
            if self._taken > CONNECTION_WINDOW // 2:
                self._give_connection_window()

    def _give_connection_window(self) -> None:
        if self._taken > CONNECTION_WINDOW:
            self._go_away(ErrorCode.FLOW_CONTROL_ERROR, "more data than the connection's window")
        elif not self._closing:
            self.transport.write(frames.window_update(0, self._taken))
            self._taken = 0

    def refused(self, call: Call, failure: Failure) -> None:
        """For the audit log."""
        self.server.audit.refusal(failure, self.address, call.path.decode("latin-1"), call.principal)

    @property
    def address(self) -> str:
        """The client's; empty on a Unix socket."""
        return address_of(self.transport)

    def pause_writing(self) -> None:
        self.write_paused = True
        self._stuck_s = 0.0
        if not self._closing:
            self.transport.pause_reading()

    def resume_writing(self) -> None:
        self.write_paused = False
        self._partial_s = 0.0
        if not self._closing:
            self.transport.resume_reading()
            self.wake_all()

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
                self._interrupted(kind, flags)
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

    def _interrupted(self, kind: int, flags: int) -> None:
        """A frame that is not the one which must come now."""
        if self._greeted:
            raise _BrokenError(ErrorCode.PROTOCOL_ERROR, "a header block was interrupted")
        if kind != SETTINGS or flags & ACK:
            raise _BrokenError(ErrorCode.PROTOCOL_ERROR, "the first frame is not SETTINGS")
        self._greeted, self._block = True, None

    def _headers(self, stream: int, flags: int, payload: bytes) -> None:
        if flags & (PADDED | WITH_PRIORITY):
            if flags & PADDED:
                payload = _unpadded(payload)
            if flags & WITH_PRIORITY:
                if len(payload) < 5:
                    raise _BrokenError(ErrorCode.FRAME_SIZE_ERROR, "HEADERS without the priority that it announces")
                payload = payload[5:]
        if flags & END_HEADERS:
            self._take_block(stream, flags, payload)
        else:
            self._block = (stream, flags, bytearray(payload))
            self._partial_s = 0.0

    def _continuation(self, stream: int, flags: int, payload: bytes) -> None:
        self._count_control()
        if self._block is None:
            raise _BrokenError(ErrorCode.PROTOCOL_ERROR, "a continuation of no header block")
        _, begun, block = self._block
        block += payload
        if len(block) > self.limits.max_header_bytes:
            raise _BrokenError(ErrorCode.ENHANCE_YOUR_CALM, "the header block is too long")
        if flags & END_HEADERS:
            self._block = None
            self._take_block(stream, begun, bytes(block))

    def _take_block(self, stream: int, flags: int, block: bytes) -> None:
        if not stream & 1:
            raise _BrokenError(ErrorCode.PROTOCOL_ERROR, f"stream {stream} is not the client's to begin")
        head = self._known.get(block) or self._blocks.read(block)
        if stream <= self._last:
            self._trailers(stream, flags, head)
            return
        self._last = stream
        self._idle_s = 0.0
        server = self.server
        if len(self.calls) >= server.max_streams or self._final is not None:
            self._refuse_stream(stream, flags, ErrorCode.REFUSED_STREAM)
            return
        if not head.plain and not self._is_call(stream, flags, head):
            return
        call = self.calls[stream] = Call(self, stream, head.path, head.headers, ANONYMOUS, self.first_window)
        call.method = server.methods.unary.get(head.path)
        call.left = head.length
        try:
            if server.identify is not None and self._peer is not None:
                who = call.principal = self.principal_of(call)
                if (right := server.methods.rights.get(head.path)) is not None:
                    demand(who, right, None if head.path in server.methods.naming else "")
            if call.method is None or not head.plain or self.held_bytes:
                self._begin(call, head)
            if flags & END_STREAM:
                call.half_closed = True
                if call.left > 0:
                    self._malformed(call)
                elif not call.ended:
                    self.half_close(call)
        except InferenceError as error:
            call.refuse(error.failure)
        except Exception:
            call.give_up()

    def principal_of(self, call: Call) -> Principal:
        """Who asks, as of now. Raises InferenceError."""
        if self.server.identify is None or self._peer is None:
            return call.principal
        return self.server.identify(self._peer, b"POST", call.path, call.headers)

    def _is_call(self, stream: int, flags: int, head: Head) -> bool:
        """Else it is answered as HTTP has it."""
        if head.problem:
            log.debug("stream %d is reset: %s", stream, head.problem)
            self._refuse_stream(stream, flags, ErrorCode.PROTOCOL_ERROR)
            return False
        content = head.headers.get(b"content-type", b"")
        no_post = head.headers[b":method"] != b"POST"
        if no_post or content[:16] != b"application/grpc" or content[16:17] not in b"+;":
            self.write_block(stream, _NOT_POST if no_post else _NOT_GRPC, END_STREAM)
            if not flags & END_STREAM:
                self._refuse_stream(stream, flags, ErrorCode.NO_ERROR)
            return False
        return True

    def _begin(self, call: Call, head: Head) -> None:
        """What is not the same for all calls. Raises InferenceError, and whatever a method raises."""
        streaming = None if call.method is not None else self.server.methods.streaming.get(call.path)
        if call.method is None and streaming is None:
            call.end(Status.UNIMPLEMENTED, f"unknown method {call.path.decode('latin-1')}")
        elif head.headers[b"content-type"].partition(b";")[0].strip() not in PROTOBUF:
            call.end(Status.UNIMPLEMENTED, f"messages must be protobuf: content-type {PROTOBUF[0].decode()}")
        elif isnan(head.timeout_s):
            raise invalid("grpc-timeout is malformed; it must be up to 8 digits and one of H, M, S, m, u, n")
        elif self.held_bytes > MOST_STORED * self.limits.max_body_bytes:
            text = "this client does not read its answers; no call is taken meanwhile"
            raise InferenceError(Failure(FailureKind.QUOTA, text, retry_after_s=1.0))
        elif streaming is not None:
            if head.timeout_s < inf:
                call.timer = asyncio.get_running_loop().call_later(head.timeout_s, self._late, call)
            streaming(call)

    def _refuse_stream(self, stream: int, flags: int, code: ErrorCode) -> None:
        if code is not ErrorCode.NO_ERROR:
            self._count_control()
        self.reset(stream, code)
        if not flags & END_STREAM:
            self.cut(stream)

    def _malformed(self, call: Call) -> None:
        """What came of it breaks HTTP."""
        self.reset(call.id, ErrorCode.PROTOCOL_ERROR)
        if not call.half_closed:
            self.cut(call.id)
        self.abandon(call)

    def _trailers(self, stream: int, flags: int, head: Head) -> None:
        """A header block on a stream that has begun: a client sends one at its end. Of a call that is over it may pass."""
        call = self.calls.get(stream)
        if call is None or call.half_closed:
            if call is not None or not self.was_cut(stream):
                raise _BrokenError(ErrorCode.STREAM_CLOSED, f"a header block on stream {stream}, which is closed")
            self._count_control()
            if flags & END_STREAM:
                self.client_ended(stream)
        elif not flags & END_STREAM or not head.trailers or call.left > 0:
            self._count_control()
            self._malformed(call)
        else:
            call.half_closed = True
            if not call.ended:
                try:
                    self.half_close(call)
                except InferenceError as error:
                    call.refuse(error.failure)

    def _data(self, stream: int, flags: int, payload: bytes) -> None:
        size = len(payload)
        self._taken += size
        if flags & PADDED:
            payload = _unpadded(payload)
        if not payload and not flags & END_STREAM:
            self._count_control()
        call = self.calls.get(stream)
        if call is None:
            self._late_data(stream, flags)
            return
        if call.half_closed:
            self._count_control()
            self.reset(stream, ErrorCode.STREAM_CLOSED)
            self.abandon(call)
            return
        self._idle_s = 0.0
        call.taken += size
        if call.taken > WINDOW:
            self._count_control()
            self.reset(stream, ErrorCode.FLOW_CONTROL_ERROR)
            self.cut(stream)
            self.abandon(call)
            return
        ends = flags & END_STREAM
        if call.left >= 0:
            call.left -= len(payload)
            if call.left < 0 or (ends and call.left):
                self._malformed(call)
                return
        if call.ended:
            call.half_closed = bool(ends)
        elif ends and not call.received and call.method is not None:
            self.take_only(call, payload)
        else:
            self.take(call, payload, bool(ends))

    def _late_data(self, stream: int, flags: int) -> None:
        """Data of a stream that is over or has not begun: the client may not know yet that it was cut."""
        if stream > self._last or not stream & 1:
            raise _BrokenError(ErrorCode.PROTOCOL_ERROR, f"data on stream {stream}, which has not begun")
        if not self.was_cut(stream):
            raise _BrokenError(ErrorCode.STREAM_CLOSED, f"data on stream {stream}, which is closed")
        if flags & END_STREAM:
            self.client_ended(stream)

    def _control(self, kind: int, flags: int, stream: int, payload: bytes) -> None:
        if kind == WINDOW_UPDATE:
            self._widen(stream, payload)
            return
        if kind == frames.CONTINUATION:
            self._continuation(stream, flags, payload)
            return
        self._count_control()
        if kind == PING:
            self._ping(flags, stream, payload)
        elif kind == SETTINGS:
            self._settings(flags, stream, payload)
        elif kind == RST_STREAM:
            _check(kind, stream != 0 and stream & 1 and stream <= self._last, len(payload) == 4)
            self.client_ended(stream)
            call = self.calls.get(stream)
            if call is not None:
                self.abandon(call)
        elif kind == frames.PRIORITY:
            _check(kind, stream != 0, len(payload) == 5)
        elif kind == GOAWAY:
            _check(kind, not stream, len(payload) >= 8)
        elif kind == frames.PUSH_PROMISE:
            raise _BrokenError(ErrorCode.PROTOCOL_ERROR, "a client cannot push")

    def _count_control(self, weight: int = 1) -> None:
        self._control_frames += weight
        if self._control_frames > MOST_CONTROL_FRAMES:
            raise _BrokenError(ErrorCode.ENHANCE_YOUR_CALM, "too many control frames")

    def _ping(self, flags: int, stream: int, payload: bytes) -> None:
        _check(PING, not stream, len(payload) == 8)
        if flags & ACK:
            if payload == LAST_CALL and self._grace_s is not None:
                self._close_door()
            return
        if self.calls or self._pinged != (self._last, self.window):
            self._strikes = 0
        elif self._ping_s < MIN_PING_S:
            self._strikes += 1
            if self._strikes > MOST_STRIKES:
                raise _BrokenError(ErrorCode.ENHANCE_YOUR_CALM, "too_many_pings")
        self._pinged, self._ping_s = (self._last, self.window), 0.0
        self.transport.write(frame(PING, ACK, 0, payload))

    def _settings(self, flags: int, stream: int, payload: bytes) -> None:
        _check(SETTINGS, not stream, not len(payload) % 6 and not (flags & ACK and payload))
        if flags & ACK:
            return
        self._count_control(SETTINGS_WEIGHT)
        if len(payload) > 6 * MOST_SETTINGS:
            raise _BrokenError(ErrorCode.ENHANCE_YOUR_CALM, "too many settings in a frame")
        window = self.first_window
        for at in range(0, len(payload), 6):
            name, value = int.from_bytes(payload[at : at + 2], "big"), int.from_bytes(payload[at + 2 : at + 6], "big")
            if name == frames.INITIAL_WINDOW:
                if value > frames.MOST_WINDOW:
                    raise _BrokenError(ErrorCode.FLOW_CONTROL_ERROR, "the initial window is too large")
                window = value
            elif name == frames.MAX_FRAME:
                if not frames.DEFAULT_FRAME <= value < 1 << 24:
                    raise _BrokenError(ErrorCode.PROTOCOL_ERROR, "SETTINGS_MAX_FRAME_SIZE is out of range")
                self.max_frame = min(value, MAX_FRAME)
            elif name == frames.TABLE_SIZE:
                self.prelude = _TABLE_EMPTY
            elif name == frames.ENABLE_PUSH and value > 1:
                raise _BrokenError(ErrorCode.PROTOCOL_ERROR, "SETTINGS_ENABLE_PUSH is neither 0 nor 1")
        self.transport.write(frame(SETTINGS, ACK, 0))
        change, self.first_window = window - self.first_window, window
        if change:
            self._shift_windows(change)

    def _shift_windows(self, change: int) -> None:
        for call in self.calls.values():
            call.window += change
            if call.window > frames.MOST_WINDOW:
                raise _BrokenError(ErrorCode.FLOW_CONTROL_ERROR, f"the window of stream {call.id} overflows")
        for call in list(self.calls.values()):
            self.widened(call)

    def _widen(self, stream: int, payload: bytes) -> None:
        _check(WINDOW_UPDATE, stream <= self._last and (not stream or stream & 1), len(payload) == 4)
        more = int.from_bytes(payload, "big") & frames.MOST_WINDOW
        call = self.calls.get(stream)
        if more < SMALL_WINDOW and (call.held if call is not None else self.dribbles):
            self._count_control()
        if not stream:
            if not more:
                raise _BrokenError(ErrorCode.PROTOCOL_ERROR, "WINDOW_UPDATE by nothing")
            was, self.window = self.window, self.window + more
            if self.window > frames.MOST_WINDOW:
                raise _BrokenError(ErrorCode.FLOW_CONTROL_ERROR, "the connection's window overflows")
            if was <= 0:
                self.wake_all()
        elif call is not None:
            call.window += more
            if not more or call.window > frames.MOST_WINDOW:
                self._count_control()
                self.reset(stream, ErrorCode.FLOW_CONTROL_ERROR if more else ErrorCode.PROTOCOL_ERROR)
                if not call.half_closed:
                    self.cut(stream)
                self.abandon(call)
            else:
                self.widened(call)


def _check(kind: int, right_stream: object, right_size: bool) -> None:
    if not right_stream:
        raise _BrokenError(ErrorCode.PROTOCOL_ERROR, f"a frame of kind {kind} on a stream where it makes no sense")
    if not right_size:
        raise _BrokenError(ErrorCode.FRAME_SIZE_ERROR, f"a frame of kind {kind} in a size that it cannot have")


def _unpadded(payload: bytes) -> bytes:
    if not payload:
        raise _BrokenError(ErrorCode.FRAME_SIZE_ERROR, "a padded frame without the length of its padding")
    if payload[0] >= len(payload):
        raise _BrokenError(ErrorCode.PROTOCOL_ERROR, "more padding than payload")
    return payload[1 : len(payload) - payload[0]]

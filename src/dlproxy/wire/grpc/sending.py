"""What leaves on one gRPC connection: answers as frames, within the client's windows; what does not fit is held back.

The base of connection.py's GrpcConnection. Not aware of: what comes in.
"""

import asyncio
from collections import deque
from collections.abc import Sequence

from dlproxy.telemetry.journal import Journal
from dlproxy.wire.grpc import frames
from dlproxy.wire.grpc.call import BEGIN, BEGIN_IN, END_OK, NOTHING, Call
from dlproxy.wire.grpc.frames import (
    DATA,
    END_HEADERS,
    END_STREAM,
    HEADERS,
    RST_STREAM,
    ErrorCode,
    frame,
    head,
    number,
)
from dlproxy.wire.grpc.messages import PREFIX, Piece, packed

MAX_CUT = 256  # streams that were ended before the client ended them, and about which it may not know yet

_BEGIN_HEAD = head(len(BEGIN), HEADERS, END_HEADERS, 0)[:5]
_END_HEAD = head(len(END_OK), HEADERS, END_HEADERS | END_STREAM, 0)[:5]


class Sending:
    """The half of a connection that sends."""

    transport: asyncio.Transport
    journal: Journal

    def __init__(self) -> None:
        self.calls: dict[int, Call] = {}
        self.window = frames.DEFAULT_WINDOW  # bytes that may be sent on all calls together
        self.first_window = frames.DEFAULT_WINDOW  # and on a new one
        self.max_frame = frames.DEFAULT_FRAME
        self.prelude = b""  # of the next header block that is sent
        self.write_paused = False
        self.held_bytes = 0  # of all calls
        self._ready: dict[int, Call] = {}  # calls that hold answers and have a window of their own, in turns
        self._flushing = False
        self._cut: dict[int, None] = {}
        self._cut_before = 0  # of streams up to this one it is forgotten whether they were cut

    @property
    def writable(self) -> bool:
        return not self.write_paused and self.window > 0

    def send(self, call: Call, message: Sequence[Piece], trailers: bytes | None) -> None:
        """A message, and with `trailers` the end. Does nothing once the call is over."""
        if call.ended:
            return
        size = sum(map(len, message))
        whole = PREFIX + size
        prefix = b"\x00" + number(size)
        at_once = whole <= call.window and whole <= self.window and whole <= self.max_frame
        if at_once and not call.held and not self.prelude and not self.write_paused and call.coding is None:
            stream = number(call.id)
            begin = () if call.begun else (_BEGIN_HEAD, stream, BEGIN)
            end = () if trailers is None else (_end_head(trailers), stream, trailers)
            call.begun = True
            call.window -= whole
            self.window -= whole
            self.transport.write(b"".join((*begin, head(whole, DATA, 0, call.id), prefix, *message, *end)))
            if trailers is not None:
                self._finish(call)
            return
        if call.coding is not None and (small := packed(message, call.coding)) is not None:
            prefix, message = b"\x01" + number(len(small)), (small,)
        if not call.begun:
            call.begun = True
            self.write_block(call.id, BEGIN if call.coding is None else BEGIN_IN[call.coding])
        self._hold(call, (prefix, *message))
        if trailers is not None:
            self._end_behind(call, trailers)
        self.flush()
        for last in range(1, min(len(message) + 1, len(call.held)) + 1):  # what is left of this message
            call.held[-last] = _own(call.held[-last])
        if call.held and call.ticket is not None:
            call.since = self.journal.clock()
            self.journal.sending(call.ticket.id)

    def end(self, call: Call, trailers: bytes) -> None:
        """Does nothing once the call is over."""
        if call.ended:
            return
        if call.held:
            self._end_behind(call, trailers)
            return
        self.write_block(call.id, trailers if call.begun else BEGIN + trailers, END_STREAM)
        self._finish(call)

    def _end_behind(self, call: Call, trailers: bytes) -> None:
        """It ends when what is held of it has left."""
        call.ended = True
        call.trailers = trailers
        call.on_abandoned = None
        if call.received:
            self.forget(call)

    def write_block(self, stream: int, block: bytes, flags: int = 0) -> None:
        """A header block."""
        block, self.prelude = self.prelude + block, b""
        self.transport.write(frame(HEADERS, END_HEADERS | flags, stream, block))

    def reset(self, stream: int, code: ErrorCode) -> None:
        """Tell the client that nothing more is sent or taken on this stream."""
        self.transport.write(frame(RST_STREAM, 0, stream, number(code)))

    def cut(self, stream: int) -> None:
        """The stream is over before the client has ended it: what it sends of it meanwhile is no mistake."""
        self._cut[stream] = None
        if len(self._cut) > MAX_CUT:
            oldest = next(iter(self._cut))
            del self._cut[oldest]
            self._cut_before = max(oldest, self._cut_before)

    def was_cut(self, stream: int) -> bool:
        return stream in self._cut or stream <= self._cut_before

    def client_ended(self, stream: int) -> None:
        """It knows now that the stream is over."""
        self._cut.pop(stream, None)

    # What is held back

    def _hold(self, call: Call, pieces: Sequence[Piece]) -> None:
        if not call.held:
            call.held = deque()
            call.waited_s = 0.0
        for piece in pieces:
            if len(piece):
                call.held.append(memoryview(piece))
                call.held_bytes += len(piece)
                self.held_bytes += len(piece)
        if call.window > 0:
            self._ready[call.id] = call

    def flush(self) -> None:
        """Send what is held and the windows allow, a frame of each call in turn, and the trailers of those that are done."""
        if self._flushing:  # by what one of the calls was told below; the loop there goes on
            return
        self._flushing = True
        try:
            self._flush(self._ready)
        finally:
            self._flushing = False

    def _flush(self, ready: dict[int, Call]) -> None:
        while ready and self.window > 0 and not self.write_paused:
            stream = next(iter(ready))
            call = ready.pop(stream)
            self._send_frame(call)
            if call.held:
                if call.window > 0:
                    ready[stream] = call
                continue
            call.held = NOTHING
            call.waited_s = 0.0
            self._sent(call)
            if call.trailers is not None:
                self.write_block(stream, call.trailers, END_STREAM)
                self._finish(call)
            else:
                self.woken(call)
                self.go_on(call)

    def _sent(self, call: Call) -> None:
        """What was held back of a model's answer has left, or nobody waits for it any more."""
        if call.ticket is not None and call.since >= 0.0:
            self.journal.sent(call.ticket.id, self.journal.clock() - call.since)
            call.since = -1.0

    def _send_frame(self, call: Call) -> None:
        held, pieces, size = call.held, [], 0
        room = min(call.window, self.window, self.max_frame)
        while held and size < room:
            piece = held.popleft()
            if len(piece) > room - size:
                held.appendleft(piece[room - size :])
                piece = piece[: room - size]
            pieces.append(piece)
            size += len(piece)
        call.window -= size
        self.window -= size
        call.held_bytes -= size
        self.held_bytes -= size
        call.waited_s = 0.0
        self.transport.writelines([head(size, DATA, 0, call.id), *pieces])

    def widened(self, call: Call) -> None:
        """The window of the call has changed."""
        if not call.held:
            self.woken(call)
        elif call.window > 0:
            self._ready[call.id] = call
            self.flush()
        else:
            self._ready.pop(call.id, None)

    def woken(self, call: Call) -> None:
        """Tell its service that it may send, if it may."""
        if call.on_writable is not None and call.writable:
            try:
                call.on_writable()
            except Exception:
                call.give_up()

    def wake_all(self) -> None:
        """All calls together may send again."""
        self.flush()
        for call in list(self.calls.values()):
            self.woken(call)

    @property
    def dribbles(self) -> bool:
        """Answers are held back although their calls have windows: the connection's lets no more pass."""
        return bool(self._ready)

    # The end of a call

    def _finish(self, call: Call) -> None:
        """All of it has been sent."""
        if not call.half_closed:
            self.reset(call.id, ErrorCode.NO_ERROR)
            self.cut(call.id)
        self.over(call)

    def over(self, call: Call) -> None:
        """Nothing more is sent or taken of it, and nobody is told."""
        call.ended = True
        call.on_abandoned = None
        if call.received:
            self.forget(call)
        if call.held:
            self.held_bytes -= call.held_bytes
            call.held = NOTHING
            self._sent(call)
            self._ready.pop(call.id, None)
        if call.method is None:
            call.on_message = call.on_half_closed = call.on_writable = None  # they may refer back to it
            if call.timer is not None:
                call.timer.cancel()
        self.calls.pop(call.id, None)
        if not self.calls:
            self.all_over()

    def abandon(self, call: Call) -> None:
        """The same, and its service is told that nobody waits for it any more."""
        told = call.on_abandoned
        self.over(call)
        if told is not None:
            try:
                told()
            except Exception:
                call.give_up()

    def all_over(self) -> None:
        """No call is under way any more."""
        raise NotImplementedError

    def forget(self, call: Call) -> None:
        """What has come of it and was not delivered is let go of."""
        raise NotImplementedError

    def go_on(self, call: Call) -> None:
        """Deliver what has come of it."""
        raise NotImplementedError


def _own(piece: memoryview) -> memoryview:
    """A slow client would keep the rows of others in its batch, too, which are more than its own."""
    return memoryview(bytes(piece)) if memoryview(piece.obj).nbytes > 2 * len(piece) else piece


def _end_head(trailers: bytes) -> bytes:
    return _END_HEAD if trailers is END_OK else head(len(trailers), HEADERS, END_HEADERS | END_STREAM, 0)[:5]

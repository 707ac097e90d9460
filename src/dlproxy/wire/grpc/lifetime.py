"""How a gRPC connection grows old and ends: time-outs, refusals, the server's drain.

A base of connection.py's GrpcConnection. Not aware of: the frames that come in.
"""

import logging
from math import inf
from typing import TYPE_CHECKING

from dlproxy.wire.grpc import frames
from dlproxy.wire.grpc.call import Call, Status
from dlproxy.wire.grpc.frames import GOAWAY, PING, ErrorCode, frame, number
from dlproxy.wire.grpc.receiving import WINDOW, Receiving
from dlproxy.wire.listening import DRAIN_GRACE_S

if TYPE_CHECKING:
    from dlproxy.wire.grpc.server import GrpcServer

MIN_PING_S = 5.0  # between pings of a client that has no calls
LINGER_S = 2.0  # after a refusal, how long the client may take to read why
MOST_DEBUG = 200  # bytes of the reason in a GOAWAY
LAST_CALL = b"last one"  # a ping behind the first GOAWAY: what comes after its answer was begun knowing of the end

log = logging.getLogger(__name__)


class Lifetime(Receiving):
    """The connection as what ends. `age` is called by the server's sweep."""

    def __init__(self, server: "GrpcServer") -> None:
        super().__init__(server.limits)
        self.server = server
        self.journal = server.journal
        self._last = 0  # the newest stream
        self._final: int | None = None  # while draining, the last stream that is served
        self._closing = False
        self._greeted = False  # the client's preface is there
        self._rest = bytearray()  # of the last read: what is no whole frame
        self._block: tuple[int, int, bytearray] | None = (-1, 0, bytearray())
        """Stream, flags and what has come of an unfinished block; before the client's first frame, none that can go on."""
        # Seconds since
        self._idle_s = 0.0  # a call began or ended, or its data came; of an ending connection, since it was told so
        self._partial_s = 0.0  # the frame or block that is not complete began
        self._stuck_s = 0.0  # the client stopped reading
        self._silent_s = 0.0  # anything came
        self._ping_s = MIN_PING_S  # the last ping
        self._grace_s: float | None = None  # the client was told that the server drains

    def all_over(self) -> None:
        """No call is under way any more."""
        self._idle_s = 0.0
        if self._final is not None:
            self._go_away(ErrorCode.NO_ERROR)

    def _abandon_all(self) -> None:
        """Whatever is under way gets no answer."""
        for call in list(self.calls.values()):
            self.abandon(call)

    def _go_away(self, code: ErrorCode, why: str = "") -> None:
        """Nothing more is taken on this connection, nor answered. The client may be sending still: closing at once would
        reset the connection, and that would destroy what it has not read.
        """
        if self._closing:
            return
        self._closing = True
        self._idle_s = 0.0
        if why:
            log.debug("a connection ends with %s: %s", code.name, why)
        self._abandon_all()
        self._rest, self._block = bytearray(), None
        self.transport.write(frame(GOAWAY, 0, 0, number(self._last) + number(code) + why.encode()[:MOST_DEBUG]))
        if self.write_paused:
            self.transport.resume_reading()
        if self.transport.can_write_eof():
            self.transport.write_eof()
        else:
            self.transport.close()

    def begin_grace(self) -> None:
        """The server drains: tell the client so, and go on with what has begun and what is on its way."""
        self._grace_s = 0.0
        if not self._closing:
            end = frame(GOAWAY, 0, 0, number(frames.MOST_WINDOW) + number(ErrorCode.NO_ERROR))
            self.transport.write(end + frame(PING, 0, 0, LAST_CALL))

    def _close_door(self) -> None:
        """What is begun from now on is refused, and the client knows it."""
        if self._final is None and not self._closing:
            self._final = self._last
            self.transport.write(frame(GOAWAY, 0, 0, number(self._last) + number(ErrorCode.NO_ERROR)))
            if not self.calls:
                self._go_away(ErrorCode.NO_ERROR)

    def age(self, seconds: float) -> None:
        """Called by the sweep: act on what has waited too long."""
        self._control_frames = 0
        self._idle_s += seconds
        self._partial_s += seconds
        self._stuck_s += seconds
        self._silent_s += seconds
        self._ping_s += seconds
        limits = self.limits
        if self._closing:
            unread = self.transport.get_write_buffer_size()
            if self._idle_s > (limits.write_timeout_s if unread else LINGER_S):
                self.transport.abort()
            return
        if self._grace_s is not None:
            self._grace_s += seconds
            if self._grace_s > DRAIN_GRACE_S:
                self._close_door()
        if self.write_paused:
            if self._stuck_s > limits.write_timeout_s:
                self.transport.abort()
        elif self._partial_s > self._frame_timeout_s():
            self._go_away(ErrorCode.PROTOCOL_ERROR, f"a frame did not arrive within {limits.header_timeout_s:g} s")
        elif not self.calls:
            if self._idle_s > limits.idle_timeout_s:
                self._go_away(ErrorCode.NO_ERROR)
        else:
            self._age_calls(seconds)
            self._look_for_client(seconds)

    def _frame_timeout_s(self) -> float:
        """How long what is being received may take; none is: for ever."""
        if self._greeted and not self._rest and self._block is None:
            return inf
        return self.limits.header_timeout_s + len(self._rest) / self.limits.min_body_bytes_per_s

    def _look_for_client(self, seconds: float) -> None:
        """One that is gone without a word would keep its calls: ask, and end the connection if nothing comes."""
        ask_s = self.limits.idle_timeout_s
        if self._silent_s > ask_s + self.limits.write_timeout_s:
            self.transport.abort()
        elif self._silent_s > ask_s >= self._silent_s - seconds:
            self.transport.write(frame(PING, 0, 0, bytes(8)))

    def _age_calls(self, seconds: float) -> None:
        limits = self.limits
        self.give_windows()  # a call that went first may wait for its service now
        for call in list(self.calls.values()):
            call.waited_s += seconds
            if call.held:
                if call.waited_s > limits.write_timeout_s:
                    self.reset(call.id, ErrorCode.CANCEL)
                    if not call.half_closed:
                        self.cut(call.id)
                    self.abandon(call)
            elif not call.ended and not call.half_closed and (call.method is not None or call.received):
                if call.paused or call.resting or call.taken > WINDOW // 2:
                    call.waited_s = 0.0  # it is not the client who keeps us waiting
                elif call.waited_s > limits.body_timeout_s + call.received / limits.min_body_bytes_per_s:
                    call.end(Status.CANCELLED, f"the message did not arrive within {call.waited_s:.0f} s")

    def abort(self) -> None:
        """End the connection now, whatever is under way."""
        self.transport.abort()

    def _late(self, call: Call) -> None:
        """The deadline of a streaming call has passed."""
        told, call.on_abandoned = call.on_abandoned, None
        if call.held:  # behind which the status would wait
            self.over(call)
            self.reset(call.id, ErrorCode.CANCEL)
            self.cut(call.id)
        else:
            call.end(Status.DEADLINE_EXCEEDED, "the deadline has passed")
        if told is not None:
            try:
                told()
            except Exception:
                call.give_up()

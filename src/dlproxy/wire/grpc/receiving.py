"""What becomes of the data of calls: whole messages for their methods, as fast as these take them, in bounded memory.

A base of connection.py's GrpcConnection. Not aware of: frames (but for the window that a client gets back), headers.
"""

import asyncio
from collections.abc import Callable

from dlproxy.config import HttpLimits
from dlproxy.message import Failure, FailureKind, InferenceError, invalid
from dlproxy.wire.grpc import frames
from dlproxy.wire.grpc.call import Call, Status
from dlproxy.wire.grpc.messages import CODINGS, PREFIX, Piece, accepted_coding, message_size, unpacked
from dlproxy.wire.grpc.sending import Sending

WINDOW = 1 << 20  # bytes that a client may send of one call before it is told to go on
SMALL_PIECE = 1024  # bytes; smaller pieces of a message are gathered: as objects of their own they could take 20 times that
BURST = 64  # messages of one call that are delivered in a turn of the event loop
MOST_STORED = 4  # times the largest message: what the incomplete ones of a connection may take together

_ACCEPTED = ((b"grpc-accept-encoding", b"identity, " + b", ".join(CODINGS)),)


class Receiving(Sending):
    """The half of a connection that receives.

    While incomplete messages of all calls are more than one may be large, only the oldest goes on: the others send what their
    windows let them, and then wait. Where even that is too much, the newest of the large ones is refused.
    """

    def __init__(self, limits: HttpLimits) -> None:
        super().__init__()
        self.limits = limits
        self._stored: dict[int, Call] = {}  # calls with data that is not delivered, the oldest first
        self._stored_bytes = 0
        self._withheld = False  # a call got no window because of the others

    def take(self, call: Call, payload: bytes, ends: bool) -> None:
        """Data of a call that has not ended; `ends`: the last. It is refused if its message cannot be taken."""
        call.waited_s = call.waited_s if call.received else 0.0
        try:
            if call.method is None:
                if payload:
                    self._take_of_stream(call, payload)
            elif payload:
                self._store(call, payload)
                self._check_one(call)
            if ends and not call.ended:
                self.half_close(call)
        except InferenceError as error:
            self._turn_away(call, error.failure)
            return
        if not call.ended:
            self._give_window(call)
        while self._stored_bytes > MOST_STORED * self.limits.max_body_bytes:
            self._refuse_one()

    def take_only(self, call: Call, payload: bytes) -> None:
        """All that comes of a unary call, in one piece: most calls are such ones. It is refused if it cannot be taken."""
        call.half_closed = True
        size = len(payload) - PREFIX
        try:
            if payload[:1] == b"\0" and int.from_bytes(payload[1:PREFIX], "big") == size <= self.limits.max_body_bytes:
                call.method(call, payload[PREFIX:])  # type: ignore[misc]
            else:
                self._size_of_only(payload, len(payload))
                self._hand_over(call, payload[PREFIX:], payload[0])
        except InferenceError as error:
            call.refuse(error.failure)
        except Exception:
            call.give_up()

    def half_close(self, call: Call) -> None:
        """The client sends no more of it. Raises InferenceError."""
        call.half_closed = True
        if call.method is None:
            self._deliver(call)
        elif not call.ended:
            self._check_one(call)
            prefix = b"".join(call.pieces) if call.received < PREFIX else call.pieces[0][:PREFIX]
            size = self._size_of_only(prefix, call.received)
            call.pieces[0] = call.pieces[0][PREFIX:]
            message = b"".join(call.pieces)
            self.forget(call)
            assert len(message) == size
            call.waited, call.since = {"receive": self.journal.clock() - call.since}, -1.0
            self._hand_over(call, message, prefix[0])

    def go_on(self, call: Call) -> None:
        """Deliver what has come, if the service and the client let it."""
        if call.method is None and not call.ended and not call.delivering:
            try:
                self._deliver(call)
            except InferenceError as error:
                self._turn_away(call, error.failure)
            if not call.ended:
                self._give_window(call)

    # Unary calls

    def _size_of_only(self, prefix: Piece, received: int) -> int:
        """Of the only message, when everything has come. Raises InferenceError."""
        if not received:
            raise InferenceError(Failure(FailureKind.UNSUPPORTED, "the message is missing"))
        size = message_size(prefix, self.limits.max_body_bytes) if received >= PREFIX else received
        if received < PREFIX + size:
            raise invalid("the message is incomplete")
        if received > PREFIX + size:
            raise _several()
        return size

    def _check_one(self, call: Call) -> None:
        """Refuse early what will not do. Raises InferenceError."""
        if call.received >= PREFIX:
            if len(call.pieces[0]) < PREFIX:
                call.pieces[:] = [b"".join(call.pieces)]
            if call.received > PREFIX + message_size(call.pieces[0], self.limits.max_body_bytes):
                raise _several()

    # Streaming calls

    def _take_of_stream(self, call: Call, payload: bytes) -> None:
        """Raises InferenceError for a message that cannot be taken."""
        size = len(payload) - PREFIX
        if call.received or _waits(call) or size < 0 or message_size(payload, self.limits.max_body_bytes) != size:
            self._store(call, payload)
            self._deliver(call)
        else:
            self._hand_over(call, payload[PREFIX:], payload[0])

    def _deliver(self, call: Call) -> None:
        """Raises InferenceError for a message that cannot be taken."""
        if call.delivering or call.resting:
            return
        call.delivering = True
        try:
            self._deliver_whole(call)
        finally:
            call.delivering = False

    def _deliver_whole(self, call: Call) -> None:
        most, count = self.limits.max_body_bytes, 0
        while call.received >= PREFIX and not (call.ended or call.paused or call.held):
            first, at = call.pieces[0], call.at
            left = len(first) - at
            whole = PREFIX + message_size(first[at : at + PREFIX], most) if left >= PREFIX else PREFIX
            if call.received < whole:
                break
            if left < whole:
                call.pieces[:] = [b"".join((memoryview(first)[at:], *call.pieces[1:]))]
                call.at = 0
                continue
            count += 1
            if count > BURST:
                call.resting = True
                asyncio.get_running_loop().call_soon(self._rested, call)
                return
            message, compressed = bytes(first[at + PREFIX : at + whole]), first[at]
            self._delivered(call, whole)
            self._hand_over(call, message, compressed)
        self._check_end(call)

    def _rested(self, call: Call) -> None:
        call.resting = False
        self.go_on(call)

    def _delivered(self, call: Call, size: int) -> None:
        call.waited_s = 0.0
        call.at += size
        call.received -= size
        self._stored_bytes -= size
        if call.at == len(call.pieces[0]):
            del call.pieces[0]
            call.at = 0
        if not call.received:
            self.forget(call)

    def _check_end(self, call: Call) -> None:
        if call.half_closed and not (call.ended or call.paused or call.held):
            if call.received:
                raise invalid("the last message is incomplete")
            told, call.on_half_closed = call.on_half_closed, None
            if told is not None:
                try:
                    told()
                except InferenceError:
                    raise
                except Exception:
                    abandoned = call.on_abandoned
                    call.give_up()
                    _tell(call, abandoned)

    # Both

    def _hand_over(self, call: Call, message: bytes, compressed: int) -> None:
        """Raises InferenceError."""
        if compressed:
            coding = call.headers.get(b"grpc-encoding", b"identity")
            if coding not in CODINGS:
                self._refuse_coding(call, coding)
                return
            if not call.begun:
                call.coding = accepted_coding(call.headers.get(b"grpc-accept-encoding", b""))
            message = unpacked(message, coding, self.limits.max_body_bytes)
        try:
            if call.method is not None:
                call.method(call, message)
            elif call.on_message is not None:
                call.on_message(message)
        except InferenceError as error:
            self._turn_away(call, error.failure)
        except Exception:
            told = call.on_abandoned
            call.give_up()
            _tell(call, told)

    def _refuse_coding(self, call: Call, coding: bytes) -> None:
        if coding == b"identity":
            call.end(Status.INTERNAL, "a message is marked as compressed, but grpc-encoding says that none is")
        else:
            text = f"grpc-encoding {coding.decode('latin-1')!r} is not supported; use gzip, deflate or identity"
            call.end(Status.UNIMPLEMENTED, text, _ACCEPTED)

    def _store(self, call: Call, payload: bytes) -> None:
        pieces, size = call.pieces, len(payload)
        if not call.received:
            call.since = self.journal.clock()
        if pieces and size < SMALL_PIECE:
            if type(pieces[-1]) is bytearray:
                pieces[-1] += payload
            else:
                pieces.append(bytearray(payload))
        else:
            pieces.append(payload)
        call.received += size
        self._stored_bytes += size
        self._stored[call.id] = call

    def forget(self, call: Call) -> None:
        """What has come of it and was not delivered is let go of."""
        call.pieces = []
        self._stored_bytes -= call.received
        call.received = call.at = 0
        if self._stored.pop(call.id, None) is not None:
            self.give_windows()

    def _give_window(self, call: Call) -> None:
        """What the client has sent it may send again, if this call goes on."""
        if call.taken <= WINDOW // 2 or call.half_closed or _waits(call):
            return
        if call.received and self._crowded and next((c for c in self._stored.values() if not _waits(c)), call) is not call:
            self._withheld = True
        else:
            self.transport.write(frames.window_update(call.id, call.taken))
            call.taken = 0

    @property
    def _crowded(self) -> bool:
        return self._stored_bytes > self.limits.max_body_bytes

    def give_windows(self) -> None:
        """To calls that got none because of others, if they may go on now."""
        if self._withheld:
            self._withheld = False
            for call in list(self._stored.values()):
                self._give_window(call)
                if self._withheld:
                    return

    def _refuse_one(self) -> None:
        share = self._stored_bytes / len(self._stored)  # small ones are spared: they are not the cause, nor would it help
        large = max((call for call in self._stored.values() if call.received >= share / 2), key=lambda call: call.id)
        text = "the incomplete messages of this connection take too much memory; send fewer large ones at a time"
        self._turn_away(large, Failure(FailureKind.TOO_LARGE, text, retry_after_s=1.0))

    def _turn_away(self, call: Call, failure: Failure) -> None:
        """Refuse what the client has sent. The service of a stream may have answers under way, which nobody waits for now."""
        told = call.on_abandoned
        call.refuse(failure)
        _tell(call, told)


def _waits(call: Call) -> bool:
    """It is not the client that keeps it from going on."""
    return bool(call.paused or call.resting or call.held)


def _tell(call: Call, abandoned: Callable[[], object] | None) -> None:
    if abandoned is not None:
        try:
            abandoned()
        except Exception:
            call.give_up()


def _several() -> InferenceError:
    return InferenceError(Failure(FailureKind.UNSUPPORTED, "more than one message for a method that takes one"))

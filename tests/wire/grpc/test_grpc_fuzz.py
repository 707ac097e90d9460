"""gRPC broken at random is refused, never crashes, hangs or leaks. A longer run: make prove-grpc."""

import asyncio
import gc
import gzip
import logging
import os
import random
import time
from collections.abc import Iterator

import hpack
import pytest

from dlproxy.config import HttpLimits
from dlproxy.wire.grpc import frames
from dlproxy.wire.grpc.call import Call
from dlproxy.wire.grpc.connection import GrpcConnection
from dlproxy.wire.grpc.frames import ErrorCode, frame, settings, window_update
from dlproxy.wire.grpc.server import Methods
from tests.wire.test_http_fuzz import mutate, pieces_of

from .fixtures import ECHO, KEEP, TALK, Methodical, grpc_server
from .framed import GREETING, GrpcWire, data, headers, message, unary

MUTATIONS = int(os.environ.get("DLPROXY_MUTATIONS", "2000"))
LIMITS = HttpLimits(max_body_bytes=5000, max_headers=20)
GZIPPED = ((b"grpc-encoding", b"gzip"), (b"grpc-accept-encoding", b"gzip"))
SNIPPETS = [
    *[
        frame(kind, flags, stream, bytes(size))
        for kind in range(11)
        for flags, stream, size in ((0, 1, 4), (0xFF, 0, 5), (4, 3, 8))
    ],
    *[settings({name: value}) for name, value in ((1, 0), (4, 0), (4, 2**31 - 1), (5, 16384), (6, 1))],
    *[window_update(stream, size) for stream, size in ((0, 2**31 - 1), (1, 1), (3, 0))],
    *[
        b"\x80",
        b"\x20",
        b"\x3f\xe1\x1f",
        b"\xff" * 9,
        b"\0\0\0\0\5",
        b"\1\0\0\0\5",
        b"\x40\x01a\x01b",
        b"\0\0\x09",
        frames.PREFACE,
    ],
]


def corpus() -> list[bytes]:
    encoder = hpack.Encoder()
    fields = [(b":method", b"POST"), (b":scheme", b"http"), (b":path", ECHO), (b":authority", b"a")]
    fields += [(b"content-type", b"application/grpc"), (b"te", b"trailers")]
    indexed = b"".join([frame(1, 4, n, encoder.encode(fields)) + data(n, message(b"x" * n), ends=True) for n in (1, 3, 5)])
    small = gzip.compress(b"y" * 300)
    return [
        unary(1),
        unary(1) + unary(3, bytes(3000)) + unary(5, path=KEEP),
        indexed,
        headers(1, TALK) + data(1, message(b"a") + message(b"bc")) + data(1, message(b"d")[:3]) + data(1, b"", ends=True),
        headers(1, TALK) + b"".join([data(1, bytes((byte,))) for byte in message(b"ab") * 3]),
        headers(1, TALK, (b"grpc-timeout", b"5S")) + data(1, message(b"x" * 100) * 30, ends=True),
        headers(1, ECHO, *GZIPPED) + data(1, message(small, compressed=1), ends=True),
        settings({4: 10, 5: 20000}) + unary(1, bytes(100)) + window_update(1, 50) + settings({4: 500}),
        headers(1, flags=0) + frame(frames.CONTINUATION, 4, 1) + data(1, message(), ends=True),
        frame(1, 0x2C, 1, b"\x02" + bytes(5) + headers(1)[9:] + b"\0\0") + frame(0, 9, 1, b"\x01" + message() + b"\0"),
        unary(1, path=KEEP) + frame(3, 0, 1, bytes(4)) + frame(6, 0, 0, bytes(8)) + frame(7, 0, 0, bytes(8)),
        headers(1, KEEP) + data(1, message()) + frame(1, 5, 1, b"\0\1a\1b"),
        headers(1, b"/no.Such/Method") + data(1, message(), ends=True),
        headers(1, ECHO, (b"content-length", b"5")) + data(1, message(), ends=True),
    ]


class Answering(Methodical):
    """Streaming calls pause now and then; kept calls are answered by the test, or never."""

    def __init__(self, rng: random.Random) -> None:
        super().__init__()
        self._rng = rng

    def talk(self, call: Call) -> None:
        super().talk(call)
        hear = call.on_message
        assert hear is not None

        def hear_and_pause(message: bytes) -> None:
            hear(message)
            if self._rng.random() < 0.2:
                call.pause()

        call.on_message = hear_and_pause


def check(wire: GrpcWire, answering: Answering) -> None:
    """The connection has ended with a reason, or serves another call; afterwards nothing is left."""
    for call, sent in answering.kept:
        call.reply(sent)
    for call in answering.talks:
        call.resume()
    wire.deliver()
    goaway = wire.goaway
    if goaway is None:
        unfinished = wire.connection._rest or wire.connection._block is not None
        wire.connection.age(0)
        wire.feed(settings({4: 1 << 20}), window_update(0, 1 << 20), unary(2**31 - 1))
        last = wire.answers.get(2**31 - 1)
        assert unfinished or wire.goaway is not None or (last is not None and last.ended)
    else:
        assert goaway.error_code != ErrorCode.INTERNAL_ERROR
        assert wire.transport.eof
        assert not wire.connection.calls
    wire.lose()
    assert not wire.server.connections
    assert not wire.connection.calls
    assert wire.connection._stored_bytes == wire.connection.held_bytes == 0
    assert not wire.connection._stored
    assert not wire.connection._ready
    assert all(call.ended for call in (*answering.talks, *[call for call, _ in answering.kept]))


@pytest.fixture
def no_defects(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """Whatever the server logs as a defect of its own fails the test."""
    caplog.set_level(logging.ERROR)
    yield
    assert caplog.records == []


async def test_mutated_frames_and_messages_are_answered_or_refused_in_good_order(no_defects: None) -> None:
    rng = random.Random(20260502)
    found = corpus()
    ends: set[str] = set()
    slowest = 0.0
    for _ in range(MUTATIONS):
        sent = mutate(rng, rng.choice(found), found, SNIPPETS)
        answering = Answering(rng)
        whole = rng.random() < 0.1
        before = time.thread_time()
        wire = GrpcWire(answering.methods, LIMITS, greeting=b"" if whole else GREETING)
        wire.feed(*pieces_of(rng, mutate(rng, GREETING, found, SNIPPETS) + sent if whole else sent))
        slowest = max(slowest, time.thread_time() - before)
        check(wire, answering)
        ends.add(wire.outcome)
    assert len(ends) > 10  # what is refused is refused for many reasons
    assert slowest < 0.5


async def test_mutated_messages_within_sound_frames(no_defects: None) -> None:
    """Sizes, flags and compressed bytes broken, in frames of any size, for every kind of method."""
    rng = random.Random(20260503)
    sound = [message(b"x" * 50), message(b"a") * 3, message(gzip.compress(b"z" * 500), compressed=1), message(bytes(4000))]
    for _ in range(MUTATIONS):
        sent = mutate(rng, rng.choice(sound), sound, [b"\0\0\0\0\0", b"\1\0\0\0\1x", b"\0\xff\xff\xff\xff", gzip.compress(b"")])
        answering = Answering(rng)
        wire = GrpcWire(answering.methods, LIMITS)
        more = GZIPPED if rng.random() < 0.5 else ()
        wire.feed(headers(1, rng.choice((ECHO, KEEP, TALK)), *more))
        pieces = pieces_of(rng, sent)
        for piece in pieces:
            wire.feed(data(1, piece))
        wire.feed(data(1, b"", ends=True))
        assert wire.goaway is None
        check(wire, answering)


class Dialogue:
    """A client of sound frames that does everything in any order: opens, sends, resets, gives windows, does not read, waits."""

    def __init__(self, rng: random.Random) -> None:
        self.rng = rng
        self.answering = Answering(rng)
        self.wire = GrpcWire(self.answering.methods, LIMITS)
        self._next = 1
        self._open: list[int] = []

    def step(self) -> None:
        rng, wire = self.rng, self.wire
        stream = rng.choice(self._open) if self._open else 0
        match rng.randrange(12):
            case 0 | 1:
                more = rng.choice(((), GZIPPED, ((b"grpc-timeout", b"1H"),)))
                wire.feed(headers(self._next, rng.choice((ECHO, KEEP, TALK, TALK, b"/no.Such/Method")), *more))
                self._open.append(self._next)
                self._next += 2
            case 2 | 3 | 4 if stream:
                wire.feed(data(stream, message(bytes(rng.choice((0, 1, 500, 4000)))) * rng.choice((1, 1, 3))))
            case 5 if stream:
                self._open.remove(stream)
                wire.feed(data(stream, rng.choice((b"", message(b"end"), b"\0")), ends=True))
            case 6 if stream and rng.random() < 0.3:
                self._open.remove(stream)
                wire.feed(frame(3, 0, stream, bytes(4)))
            case 7:
                wire.feed(window_update(rng.choice((0, 0, stream)) if stream else 0, rng.choice((1, 1000, 100_000))))
            case 8:
                wire.feed(settings({4: rng.choice((0, 100, 65535, 1 << 20)), 5: rng.choice((16384, 1 << 18))}))
            case 9:
                wire.transport.stuck = rng.random() < 0.3
                if not wire.transport.stuck:
                    wire.transport.unstick()
                    wire.deliver()
            case 10:
                wire.age(rng.choice((0.0, 0.5, 5.0)))
            case _:
                self._answer()

    def _answer(self) -> None:
        rng, answering = self.rng, self.answering
        if answering.kept:
            call, sent = answering.kept.pop(rng.randrange(len(answering.kept)))
            call.reply(sent)
        if answering.talks:
            call = rng.choice(answering.talks)
            rng.choice(
                (call.resume, call.pause, lambda: call.send(bytes(2000)), call.end if rng.random() < 0.2 else call.resume)
            )()

    def check_books(self) -> None:
        connection = self.wire.connection
        calls = list(connection.calls.values())
        assert connection._stored_bytes == sum(call.received for call in calls)
        assert set(connection._stored) == {call.id for call in calls if call.received}
        assert all(call.received == sum(map(len, call.pieces)) - call.at for call in calls)
        assert connection.held_bytes == sum(sum(map(len, call.held)) for call in calls)
        assert set(connection._ready) == {call.id for call in calls if call.held and call.window > 0}
        assert not any(call.ended and not call.held for call in calls)


async def test_the_books_are_right_whatever_happens_in_whatever_order(no_defects: None) -> None:
    rng = random.Random(20260505)
    steps = 0
    for _ in range(MUTATIONS // 50):
        dialogue = Dialogue(rng)
        for _ in range(200):
            dialogue.step()
            dialogue.check_books()
            await asyncio.sleep(0)
            if dialogue.wire.transport.closing or dialogue.wire.transport.eof:
                break
            steps += 1
        dialogue.wire.transport.unstick()
        dialogue.wire.lose()
        assert not dialogue.wire.connection.calls
        assert dialogue.wire.connection._stored_bytes == dialogue.wire.connection.held_bytes == 0
    assert steps > MUTATIONS  # most dialogues go on to their end


async def test_connections_leave_nothing_behind() -> None:
    rng = random.Random(7)
    found = corpus()
    for _ in range(300):
        wire = GrpcWire(Answering(rng).methods, LIMITS).feed(mutate(rng, rng.choice(found), found, SNIPPETS))
        wire.lose()
    del wire
    gc.collect()
    left = [found for found in gc.get_objects() if type(found) in (GrpcConnection, Call)]
    assert not left


async def test_mutations_over_a_socket(no_defects: None) -> None:
    """Between them others are served; in the end no connection is left."""
    rng = random.Random(20260504)
    found = corpus()
    methods = Methods({ECHO: lambda call, message: call.reply(message)}, {TALK: Answering(rng).talk})
    async with grpc_server(methods, LIMITS) as run:
        for _ in range(MUTATIONS // 50):
            writers = []
            for _ in range(10):
                _, writer = await asyncio.open_connection("127.0.0.1", run.port)
                writer.write(GREETING + mutate(rng, rng.choice(found), found, SNIPPETS))
                writers.append(writer)
            reader, good = await asyncio.open_connection("127.0.0.1", run.port)
            good.write(GREETING + unary(1))
            async with asyncio.timeout(10):
                while b"hello" not in await reader.read(1 << 16):
                    pass
            for writer in (*writers, good):
                if rng.random() < 0.5:
                    writer.transport.abort()
                else:
                    writer.close()
        await run.until(lambda: not run.server.connections)

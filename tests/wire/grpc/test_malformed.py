"""What breaks HTTP/2 or gRPC, and the exact error of the connection, the stream or the call (RFC 9113, 7541)."""

import struct

import hpack
import pytest

from dlproxy.wire.grpc import frames
from dlproxy.wire.grpc.connection import MAX_FRAME, MOST_CONTROL_FRAMES, SETTINGS_WEIGHT
from dlproxy.wire.grpc.frames import (
    ACK,
    DATA,
    END_HEADERS,
    END_STREAM,
    GOAWAY,
    HEADERS,
    PADDED,
    PING,
    PRIORITY,
    PUSH_PROMISE,
    RST_STREAM,
    SETTINGS,
    WINDOW_UPDATE,
    WITH_PRIORITY,
    frame,
    header_block,
    number,
    settings,
    window_update,
)
from dlproxy.wire.grpc.receiving import WINDOW
from dlproxy.wire.grpc.sending import MAX_CUT

from .fixtures import ECHO, KEEP, TALK, Methodical
from .framed import GREETING, GrpcWire, block, data, headers, message, unary

CONTINUATION = frames.CONTINUATION
WHOLE = END_HEADERS | END_STREAM
OPENED = headers(1, KEEP)
HALF_CLOSED = unary(1, path=KEEP)
OVER = unary(1)  # answered at once
CUT = headers(1, b"/no.Such/Method")  # refused before the client has ended it


def setting(name: int, value: int) -> bytes:
    return settings({name: value})


CONNECTION = {
    # sizes of frames and where they may stand
    "settings of 5 bytes": (frame(SETTINGS, 0, 0, bytes(5)), "FRAME_SIZE_ERROR"),
    "settings on a stream": (frame(SETTINGS, 0, 1), "PROTOCOL_ERROR"),
    "settings acknowledged with content": (frame(SETTINGS, ACK, 0, bytes(6)), "FRAME_SIZE_ERROR"),
    "ping of 7 bytes": (frame(PING, 0, 0, bytes(7)), "FRAME_SIZE_ERROR"),
    "ping on a stream": (OPENED + frame(PING, 0, 1, bytes(8)), "PROTOCOL_ERROR"),
    "window update of 3 bytes": (frame(WINDOW_UPDATE, 0, 0, bytes(3)), "FRAME_SIZE_ERROR"),
    "window update by nothing": (window_update(0, 0), "PROTOCOL_ERROR"),
    "window update of an idle stream": (window_update(1, 1), "PROTOCOL_ERROR"),
    "window update of a stream of the server": (OPENED + window_update(2, 1), "PROTOCOL_ERROR"),
    "connection window too large": (window_update(0, frames.MOST_WINDOW), "FLOW_CONTROL_ERROR"),
    "reset of 3 bytes": (OPENED + frame(RST_STREAM, 0, 1, bytes(3)), "FRAME_SIZE_ERROR"),
    "reset of the connection": (frame(RST_STREAM, 0, 0, bytes(4)), "PROTOCOL_ERROR"),
    "reset of an idle stream": (frame(RST_STREAM, 0, 1, bytes(4)), "PROTOCOL_ERROR"),
    "priority of 4 bytes": (frame(PRIORITY, 0, 1, bytes(4)), "FRAME_SIZE_ERROR"),
    "priority of the connection": (frame(PRIORITY, 0, 0, bytes(5)), "PROTOCOL_ERROR"),
    "goaway on a stream": (OPENED + frame(GOAWAY, 0, 1, bytes(8)), "PROTOCOL_ERROR"),
    "goaway of 7 bytes": (frame(GOAWAY, 0, 0, bytes(7)), "FRAME_SIZE_ERROR"),
    "push": (frame(PUSH_PROMISE, END_HEADERS, 1, bytes(4)), "PROTOCOL_ERROR"),
    "frame too large": (frames.head(MAX_FRAME + 1, DATA, 0, 1), "FRAME_SIZE_ERROR"),
    "continuation of nothing": (frame(CONTINUATION, END_HEADERS, 1, block()), "PROTOCOL_ERROR"),
    # settings
    "push enabled by 2": (setting(frames.ENABLE_PUSH, 2), "PROTOCOL_ERROR"),
    "initial window too large": (setting(frames.INITIAL_WINDOW, 2**31), "FLOW_CONTROL_ERROR"),
    "frames too small": (setting(frames.MAX_FRAME, 16383), "PROTOCOL_ERROR"),
    "frames too large": (setting(frames.MAX_FRAME, 1 << 24), "PROTOCOL_ERROR"),
    "initial window makes a stream's overflow": (
        OPENED + window_update(1, frames.MOST_WINDOW - 65535) + setting(frames.INITIAL_WINDOW, 65536),
        "FLOW_CONTROL_ERROR",
    ),
    "too many settings": (frame(SETTINGS, 0, 0, struct.pack(">HI", 4, 1) * 100), "ENHANCE_YOUR_CALM"),
    # streams
    "data on stream 0": (data(0, b"x"), "PROTOCOL_ERROR"),
    "data on an idle stream": (data(1, b"x"), "PROTOCOL_ERROR"),
    "data on a stream of the server": (OPENED + data(2, b"x"), "PROTOCOL_ERROR"),
    "header on stream 0": (headers(0), "PROTOCOL_ERROR"),
    "header on a stream of the server": (headers(2), "PROTOCOL_ERROR"),
    "header on a closed stream": (OVER + headers(1), "STREAM_CLOSED"),
    "header on a half-closed stream": (HALF_CLOSED + headers(1), "STREAM_CLOSED"),
    "header on a stream that was passed over": (headers(5) + headers(3), "STREAM_CLOSED"),
    "data on a closed stream": (OVER + data(1, b"x"), "STREAM_CLOSED"),
    "data after a reset by the client": (OPENED + frame(RST_STREAM, 0, 1, bytes(4)) + data(1, b"x"), "STREAM_CLOSED"),
    # header blocks
    "block interrupted by data": (headers(1, flags=0) + data(1, b""), "PROTOCOL_ERROR"),
    "block interrupted by another stream": (headers(1, flags=0) + frame(CONTINUATION, 4, 3, b""), "PROTOCOL_ERROR"),
    "block interrupted by an unknown frame": (headers(1, flags=0) + frame(0xAA, 0, 1, b""), "PROTOCOL_ERROR"),
    "padding longer than the block": (frame(HEADERS, END_HEADERS | PADDED, 1, b"\xff" + block()), "PROTOCOL_ERROR"),
    "padding without a length": (frame(HEADERS, END_HEADERS | PADDED, 1), "FRAME_SIZE_ERROR"),
    "priority cut off": (frame(HEADERS, END_HEADERS | WITH_PRIORITY, 1, bytes(4)), "FRAME_SIZE_ERROR"),
    "padding longer than the data": (OPENED + frame(DATA, PADDED, 1, b"\x06hello"), "PROTOCOL_ERROR"),
    "index 0": (frame(HEADERS, WHOLE, 1, b"\x80"), "COMPRESSION_ERROR"),
    "index beyond the tables": (frame(HEADERS, WHOLE, 1, b"\xff\x00"), "COMPRESSION_ERROR"),
    "integer without an end": (frame(HEADERS, WHOLE, 1, b"\xff" + b"\x80" * 100), "COMPRESSION_ERROR"),
    "literal cut off": (frame(HEADERS, WHOLE, 1, b"\x00\x05abc"), "COMPRESSION_ERROR"),
    "Huffman code of EOS": (frame(HEADERS, WHOLE, 1, b"\x00\x01a\x84\xff\xff\xff\xff"), "COMPRESSION_ERROR"),
    "table too large": (frame(HEADERS, WHOLE, 1, b"\x3f\xe2\x1f" + block()), "COMPRESSION_ERROR"),
    "table changed behind a field": (frame(HEADERS, WHOLE, 1, block() + b"\x20"), "COMPRESSION_ERROR"),
    "three changes of the table": (frame(HEADERS, WHOLE, 1, b"\x20\x3f\xe1\x1f\x20" + block()), "COMPRESSION_ERROR"),
    "too many fields": (headers(1, ECHO, *[(b"a%d" % n, b"") for n in range(100)]), "ENHANCE_YOUR_CALM"),
    "too large a header": (headers(1, ECHO, (b"a", bytes(40_000))), "ENHANCE_YOUR_CALM"),
    "a large field, named many times": (
        frame(HEADERS, END_HEADERS, 1, block() + b"\x40\x01a\x7f\xa1\x1e" + b"x" * 4000 + b"\xbe" * 20),
        "ENHANCE_YOUR_CALM",
    ),
    "too large a header, spread": (
        headers(1, flags=0) + frame(CONTINUATION, 0, 1, bytes(20_000)) * 2,
        "ENHANCE_YOUR_CALM",
    ),
    # floods
    "pings": (OPENED + frame(PING, 0, 0, bytes(8)) * (MOST_CONTROL_FRAMES + 1), "ENHANCE_YOUR_CALM"),
    "settings": (settings({}) * (MOST_CONTROL_FRAMES // SETTINGS_WEIGHT + 1), "ENHANCE_YOUR_CALM"),
    "empty data": (OPENED + data(1, b"") * (MOST_CONTROL_FRAMES + 1), "ENHANCE_YOUR_CALM"),
    "padding": (OPENED + frame(DATA, PADDED, 1, b"\x00") * (MOST_CONTROL_FRAMES + 1), "ENHANCE_YOUR_CALM"),
    "priorities": (frame(PRIORITY, 0, 1, bytes(5)) * (MOST_CONTROL_FRAMES + 1), "ENHANCE_YOUR_CALM"),
    "unknown frames": (frame(0xAA, 0, 0, b"") * (MOST_CONTROL_FRAMES + 1), "ENHANCE_YOUR_CALM"),
    "continuations": (headers(1, flags=0) + frame(CONTINUATION, 0, 1) * (MOST_CONTROL_FRAMES + 1), "ENHANCE_YOUR_CALM"),
    "rapid resets": (
        b"".join([headers(n, KEEP) + frame(RST_STREAM, 0, n, bytes(4)) for n in range(1, 2 * MOST_CONTROL_FRAMES + 3, 2)]),
        "ENHANCE_YOUR_CALM",
    ),
    "streams beyond the limit": (
        b"".join([headers(n, KEEP) for n in range(1, 2 * MOST_CONTROL_FRAMES + 2051, 2)]),
        "ENHANCE_YOUR_CALM",
    ),
    "malformed headers": (
        b"".join([headers(n, method=b"") for n in range(1, 2 * MOST_CONTROL_FRAMES + 3, 2)]),
        "ENHANCE_YOUR_CALM",
    ),
    # by the letter, what a client without calls may not do (as gRPC's servers)
    "too many pings": (frame(PING, 0, 0, bytes(8)) * 4, "ENHANCE_YOUR_CALM"),
}


@pytest.mark.parametrize(("sent", "code"), CONNECTION.values(), ids=CONNECTION.keys())
def test_a_broken_connection_ends_with_the_right_code(sent: bytes, code: str) -> None:
    methodical = Methodical()
    wire = GrpcWire(methodical.methods).feed(sent)
    assert wire.outcome == f"GOAWAY {code}"
    assert wire.transport.eof
    assert not wire.connection.calls
    assert len(methodical.told) == len(methodical.kept)
    wire.feed(unary(99_999)).age(2.5)
    assert wire.transport.aborted
    wire.lose()
    assert not wire.server.connections


STREAM = {
    **{
        f"without {name.decode()}": (frame(HEADERS, END_HEADERS, 1, block(without=name)), "PROTOCOL_ERROR")
        for name in (b":method", b":scheme", b":path")
    },
    "empty path": (headers(1, b""), "PROTOCOL_ERROR"),
    "path twice": (headers(1, ECHO, (b":path", ECHO)), "PROTOCOL_ERROR"),
    "path twice at once": (
        frame(HEADERS, END_HEADERS, 1, header_block([(b":path", ECHO)]) + block()),
        "PROTOCOL_ERROR",
    ),
    "pseudo-header of answers": (headers(1, ECHO, status=b"200"), "PROTOCOL_ERROR"),
    "unknown pseudo-header": (headers(1, ECHO, protocol=b"x"), "PROTOCOL_ERROR"),
    "pseudo-header behind a field": (
        frame(HEADERS, END_HEADERS, 1, header_block([(b"te", b"trailers")]) + block(without=b"te")),
        "PROTOCOL_ERROR",
    ),
    "upper case": (headers(1, ECHO, (b"Upper", b"x")), "PROTOCOL_ERROR"),
    "no name": (headers(1, ECHO, (b"", b"x")), "PROTOCOL_ERROR"),
    "space in a name": (headers(1, ECHO, (b"a b", b"x")), "PROTOCOL_ERROR"),
    "line feed in a value": (headers(1, ECHO, (b"a", b"x\ny")), "PROTOCOL_ERROR"),
    "zero in a value": (headers(1, ECHO, (b"a", b"x\0")), "PROTOCOL_ERROR"),
    "connection": (headers(1, ECHO, (b"connection", b"close")), "PROTOCOL_ERROR"),
    "transfer-encoding": (headers(1, ECHO, (b"transfer-encoding", b"chunked")), "PROTOCOL_ERROR"),
    "te of something else": (headers(1, ECHO, (b"te", b"gzip")), "PROTOCOL_ERROR"),
    "content-length no number": (headers(1, ECHO, (b"content-length", b"-1")), "PROTOCOL_ERROR"),
    "content-length of two values": (headers(1, ECHO, (b"content-length", b"5"), (b"content-length", b"5")), "PROTOCOL_ERROR"),
    "less content than announced": (
        headers(1, ECHO, (b"content-length", b"9")) + data(1, message(b"abc"), ends=True),
        "PROTOCOL_ERROR",
    ),
    "more content than announced": (headers(1, ECHO, (b"content-length", b"5")) + data(1, message(b"a")), "PROTOCOL_ERROR"),
    "no content, but announced": (headers(1, ECHO, (b"content-length", b"5"), flags=WHOLE), "PROTOCOL_ERROR"),
    "content announced, but trailers": (
        headers(1, ECHO, (b"content-length", b"5")) + frame(HEADERS, WHOLE, 1, b""),
        "PROTOCOL_ERROR",
    ),
    "second header that does not end": (OPENED + frame(HEADERS, END_HEADERS, 1, b""), "PROTOCOL_ERROR"),
    "trailers with a pseudo-header": (OPENED + frame(HEADERS, WHOLE, 1, header_block([(b":path", b"/")])), "PROTOCOL_ERROR"),
    "trailers that are not valid": (OPENED + frame(HEADERS, WHOLE, 1, header_block([(b"A", b"")])), "PROTOCOL_ERROR"),
    "data behind its end": (HALF_CLOSED + data(1, b"x"), "STREAM_CLOSED"),
    "window by nothing": (OPENED + window_update(1, 0), "PROTOCOL_ERROR"),
    "window too large": (OPENED + window_update(1, frames.MOST_WINDOW), "FLOW_CONTROL_ERROR"),
    "refused, open": (CUT, "NO_ERROR"),
}


@pytest.mark.parametrize(("sent", "code"), STREAM.values(), ids=STREAM.keys())
def test_a_broken_stream_is_reset_with_the_right_code_and_others_go_on(sent: bytes, code: str) -> None:
    methodical = Methodical()
    wire = GrpcWire(methodical.methods).feed(sent)
    assert wire.outcome == f"RST 1 {code}"
    assert not wire.connection.calls
    assert len(methodical.told) == len(methodical.kept)
    wire.feed(unary(3))
    assert wire.answers[3].messages == [b"hello"]


FINE = {
    "nothing": b"",
    "padded": frame(HEADERS, END_HEADERS | PADDED, 1, b"\x02" + block() + bytes(2)) + data(1, message(), ends=True),
    "priority": frame(HEADERS, END_HEADERS | WITH_PRIORITY, 1, bytes(5) + block()) + data(1, message(), ends=True),
    "both": frame(HEADERS, WHOLE | PADDED | WITH_PRIORITY, 1, b"\x01" + bytes(5) + block() + b"\0"),
    "padded data": headers(1) + frame(DATA, END_STREAM | PADDED, 1, b"\x05" + message() + bytes(5)),
    "in pieces": frame(HEADERS, 0, 1, block()[:5])
    + frame(CONTINUATION, 0, 1)
    + frame(CONTINUATION, END_HEADERS, 1, block()[5:])
    + data(1, message(), ends=True),
    "trailers": headers(1) + data(1, message()) + frame(HEADERS, WHOLE, 1, header_block([(b"a", b"b")])),
    "unknown frame": frame(0xAA, 0xFF, 5, b"abc"),
    "unknown setting": setting(0xAA, 5),
    "goaway": frame(GOAWAY, 0, 0, bytes(8)) + unary(1),
    "settings acknowledged": frame(SETTINGS, ACK, 0),
    "ping answered": frame(PING, ACK, 0, bytes(8)),
    "priority of an idle stream": frame(PRIORITY, 0, 7, bytes(5)),
    "reset of a closed stream": OVER + frame(RST_STREAM, 0, 1, bytes(4)),
    "window of a closed stream": OVER + window_update(1, 5),
    "reserved bit": unary(1)[:5] + b"\x80" + unary(1)[6:],
    "content-length": headers(1, ECHO, (b"content-length", b"5")) + data(1, message(), ends=True),
    "smaller table": setting(frames.TABLE_SIZE, 0) + unary(1) + unary(3),
    "few pings": frame(PING, 0, 0, bytes(8)) * 3,
    "pings between calls": b"".join([unary(n) + frame(PING, 0, 0, bytes(8)) for n in range(1, 41, 2)]),
}


@pytest.mark.parametrize("sent", FINE.values(), ids=FINE.keys())
def test_what_is_allowed_passes(sent: bytes) -> None:
    wire = GrpcWire(Methodical().methods).feed(sent)
    assert wire.outcome == "open"
    wire.feed(unary(99))
    assert all(answer.ended for answer in wire.answers.values())


@pytest.mark.parametrize("late", [data(1, b"x" * 100), data(1, b"", ends=True), frame(HEADERS, WHOLE, 1, b"")])
def test_what_a_client_sends_before_it_knows_that_a_stream_was_cut_is_no_mistake(late: bytes) -> None:
    wire = GrpcWire(Methodical().methods).feed(CUT, late, unary(3))
    assert wire.goaway is None
    assert wire.answers[3].messages == [b"hello"]


def test_of_streams_cut_long_ago_late_data_is_no_mistake_either() -> None:
    wire = GrpcWire(Methodical().methods)
    for stream in range(1, 2 * MAX_CUT + 101, 2):
        wire.feed(headers(stream, b"/no.Such/Method"))
    assert len(wire.connection._cut) <= MAX_CUT
    wire.feed(data(1, b"x"), data(2 * MAX_CUT + 99, b"x"))
    assert wire.goaway is None


def test_space_around_a_value_is_no_part_of_it() -> None:
    methodical = Methodical()
    GrpcWire(methodical.methods).feed(headers(1, KEEP, (b"a", b" x y\t")) + data(1, message(), ends=True))
    assert methodical.kept[0][0].headers[b"a"] == b"x y"


def test_the_first_frame_is_the_settings() -> None:
    for first in (frame(PING, 0, 0, bytes(8)), unary(1), frame(SETTINGS, ACK, 0), frame(CONTINUATION, END_HEADERS, 1)):
        wire = GrpcWire(Methodical().methods, greeting=frames.PREFACE + first)
        assert wire.outcome == "GOAWAY PROTOCOL_ERROR"
    for preface in (b"GET / HTTP/1.1\r\n", frames.PREFACE[:-1] + b"x", b"\x16\x03\x01\x02\x00"):
        assert GrpcWire(Methodical().methods, greeting=preface).outcome == "GOAWAY PROTOCOL_ERROR"


def test_more_data_than_the_windows_is_a_flow_control_error() -> None:
    methodical = Methodical()
    wire = GrpcWire(methodical.methods)
    wire.feed(headers(1, TALK))
    methodical.talks[0].pause()
    piece = data(1, bytes(MAX_FRAME))
    wire.feed(*[piece] * (WINDOW // MAX_FRAME))
    assert wire.outcome == "open"
    wire.feed(data(1, b"x"))
    assert wire.outcome == "RST 1 FLOW_CONTROL_ERROR"
    assert methodical.told == ["abandoned"]


NOT_CALLS = {
    "GET": ({"method": b"GET"}, {":status": "405"}),
    "json": ({"kind": b"application/json"}, {":status": "415"}),
    "web": ({"kind": b"application/grpc-web"}, {":status": "415"}),
    "no content-type": ({"kind": b""}, {":status": "415"}),
    "proto": ({"kind": b"application/grpc+proto"}, {":status": "200", "grpc-status": "0"}),
    "with a parameter": ({"kind": b"application/grpc; charset=x"}, {":status": "200", "grpc-status": "0"}),
    "another format": ({"kind": b"application/grpc+json"}, {":status": "200", "grpc-status": "12"}),
    "unknown method": ({"path": b"/no.Such/Method"}, {":status": "200", "grpc-status": "12"}),
    "malformed time-out": ({"timeout": b"5"}, {":status": "200", "grpc-status": "3"}),
    "two time-outs": ({"timeout": b"5S, 6S"}, {":status": "200", "grpc-status": "3"}),
}


@pytest.mark.parametrize(("other", "expected"), NOT_CALLS.values(), ids=NOT_CALLS.keys())
def test_what_is_no_call_of_grpc_is_told_so(other: dict[str, bytes], expected: dict[str, str]) -> None:
    kind, timeout = other.pop("kind", b"application/grpc"), other.pop("timeout", b"")
    more = [(b"content-type", kind)] if kind else []
    more += [(b"grpc-timeout", timeout)] if timeout else []
    path = other.pop("path", ECHO)
    sent = frame(HEADERS, END_HEADERS, 1, block(path, *more, without=b"content-type", **other))
    wire = GrpcWire(Methodical().methods).feed(sent + data(1, message(), ends=True))
    fields = wire.answers[1].fields
    assert {name: fields.get(name) for name in expected} == expected
    assert wire.answers[1].ended


MESSAGES = {
    "missing": (b"", 12),
    "two": (message(b"a") * 2, 12),
    "incomplete": (message(b"abc")[:-1], 3),
    "prefix incomplete": (b"\0\0", 3),
    "unknown flag": (message(b"abc", compressed=2), 3),
    "too large": (b"\0" + number(1 << 30), 8),
    "compressed, but not said how": (message(b"abc", compressed=1), 13),
}


@pytest.mark.parametrize("pieces", [1, 2, 100])
@pytest.mark.parametrize(("sent", "status"), MESSAGES.values(), ids=MESSAGES.keys())
def test_a_message_that_cannot_be_taken_ends_its_call(sent: bytes, status: int, pieces: int) -> None:
    step = max(1, len(sent) // pieces)
    parts = [sent[at : at + step] for at in range(0, len(sent), step)] or [b""]
    wire = GrpcWire(Methodical().methods).feed(headers(1))
    for part in parts[:-1]:
        wire.feed(data(1, part))
    wire.feed(data(1, parts[-1], ends=True))
    assert wire.answers[1].status == status
    assert not wire.connection.calls
    assert not wire.connection._stored_bytes
    assert wire.goaway is None


def test_a_coding_that_is_not_known_is_answered_with_those_that_are() -> None:
    wire = GrpcWire(Methodical().methods)
    wire.feed(headers(1, ECHO, (b"grpc-encoding", b"zstd")) + data(1, message(b"abc", compressed=1), ends=True))
    assert wire.answers[1].status == 12
    assert wire.answers[1].fields["grpc-accept-encoding"] == "identity, gzip, deflate"
    wire.feed(headers(3, ECHO, (b"grpc-encoding", b"zstd")) + data(3, message(b"abc"), ends=True))
    assert wire.answers[3].messages == [b"abc"]  # it is not compressed, so it does not matter


def test_the_table_of_header_fields_stays_right_whatever_is_remembered() -> None:
    """Blocks that are known by their bytes must not be taken for what they meant before the table changed."""
    encoder = hpack.Encoder()
    methodical = Methodical()
    wire = GrpcWire(methodical.methods)
    seen = []
    for number_, stream in enumerate(range(1, 121, 2)):
        if number_ % 7 == 3:
            encoder.header_table_size = (0, 4096, 100)[number_ % 3]
        value = b"%d" % (number_ % 4)
        fields = [(b":method", b"POST"), (b":scheme", b"http"), (b":path", KEEP), (b"te", b"trailers")]
        sent = encoder.encode([*fields, (b"content-type", b"application/grpc"), (b"x", value)])
        wire.feed(frame(HEADERS, END_HEADERS, stream, sent) + data(stream, message(), ends=True))
        seen.append(value)
    assert [call.headers[b"x"] for call, _ in methodical.kept] == seen


def test_byte_by_byte_means_the_same_as_at_once() -> None:
    for sent in (*FINE.values(), *[sent for sent, _ in STREAM.values()]):
        at_once = GrpcWire(Methodical().methods).feed(sent)
        slowly = GrpcWire(Methodical().methods, greeting=b"").feed(*[bytes((byte,)) for byte in GREETING + sent])
        assert slowly.outcome == at_once.outcome
        assert {s: (a.fields, a.data) for s, a in slowly.answers.items()} == {
            s: (a.fields, a.data) for s, a in at_once.answers.items()
        }

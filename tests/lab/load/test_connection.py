"""One connection against a socket that the test writes to: every shape of answer ends in exactly one of the owner's calls."""

import selectors
import socket
from collections.abc import Iterator
from time import monotonic

import pytest

from dlproxy.lab.load.connection import CLOSED, CUT_SHORT, NOT_HTTP, Connection, LastHead
from tests.lab.load.fake import http, silent_port

ANSWER = http(b"0123456789", "200 OK", "server: x")
CHUNKED = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n4\r\n0123\r\n6\r\n456789\r\n0\r\n\r\n"
HANG_S = 10.0


class Peer:
    """The owner of one connection, and the server's end of it."""

    def __init__(self) -> None:
        self.selector = selectors.DefaultSelector()
        self.last = LastHead()
        self.heard: list[tuple[str, ...]] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.connection = Connection((socket.AF_INET, self._listener.getsockname()), self.selector, self, self.last)
        self.server, _ = self._listener.accept()
        self.server.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        while not self.connection.up:
            self.turn()

    def turn(self) -> None:
        for key, mask in self.selector.select(0.05):
            key.data(mask)

    def until(self, count: int) -> list[tuple[str, ...]]:
        """What was heard, once it is this much."""
        give_up_at = monotonic() + HANG_S
        while len(self.heard) < count and monotonic() < give_up_at:
            self.turn()
        return self.heard

    def close(self) -> None:
        self.connection.close()
        self.server.close()
        self._listener.close()
        self.selector.close()

    def answered(self, connection: Connection, now: float) -> None:
        self.heard.append(("answered",))

    def refused(self, connection: Connection, kind: str, text: str, now: float) -> None:
        self.heard.append(("refused", kind, text))

    def failed(self, connection: Connection, kind: str, now: float) -> None:
        self.heard.append(("failed", kind))

    def dropped(self, connection: Connection) -> None:
        self.heard.append(("dropped",))


@pytest.fixture
def peer() -> Iterator[Peer]:
    made = Peer()
    yield made
    made.close()


def test_answers_of_one_kind_are_recognised_by_their_head(peer: Peer) -> None:
    for round_ in range(1, 4):
        peer.connection.send(b"ask", 1.5)
        assert peer.server.recv(10) == b"ask"
        peer.server.sendall(ANSWER)
        assert peer.until(round_) == [("answered",)] * round_
        assert peer.connection.usable
        assert not peer.connection.busy
    assert peer.connection.due_at == 1.5
    assert (peer.last.line, peer.last.body_bytes) == (b"\r\ncontent-length: 10\r\n", 10)


def test_each_answer_says_for_itself_which_variant_gave_it(peer: Peer) -> None:
    """Whether its head is recognised or parsed."""
    for number, variant in enumerate(("", "m-int8", "m-int8", "", "m-small", ""), start=1):
        peer.connection.send(b"ask", 0.0)
        lines = [f"x-dlproxy-variant: {variant}"] if variant else []
        peer.server.sendall(http(b"0123456789", "200 OK", "server: x", *lines))
        assert peer.until(number) == [("answered",)] * number
        assert peer.connection.variant.decode() == variant
    peer.last.line = b"\0"
    peer.connection.send(b"ask", 0.0)
    peer.server.sendall(http(b"0123456789", "200 OK", "X-Dlproxy-Variant: m-small"))
    peer.until(7)
    assert peer.connection.variant == b"m-small"


@pytest.mark.parametrize("answer", [ANSWER, CHUNKED], ids=["length", "chunked"])
@pytest.mark.parametrize("known", [False, True], ids=["first", "after another"])
def test_an_answer_byte_by_byte_counts_once_and_at_its_end(peer: Peer, answer: bytes, known: bool) -> None:
    if known:
        peer.connection.send(b"ask", 0.0)
        peer.server.sendall(ANSWER)
        peer.until(1)
        peer.heard.clear()
    peer.connection.send(b"ask", 0.0)
    for at in range(len(answer)):
        assert peer.heard == []
        peer.server.sendall(answer[at : at + 1])
        peer.turn()
    assert peer.until(1) == [("answered",)]
    peer.connection.send(b"ask", 0.0)
    peer.server.sendall(ANSWER)
    assert peer.until(2) == [("answered",)] * 2


def test_a_body_of_another_length_is_not_taken_for_the_last_one(peer: Peer) -> None:
    for number, body in enumerate((b"0123456789", b"012", b"0123456789" * 30_000, b"0123456789"), start=1):
        peer.connection.send(b"ask", 0.0)
        peer.server.sendall(http(body, "200 OK", "server: x"))
        assert peer.until(number) == [("answered",)] * number


def test_interim_answers_are_passed_over(peer: Peer) -> None:
    peer.connection.send(b"ask", 0.0)
    peer.server.sendall(b"HTTP/1.1 100 Continue\r\n\r\n" + ANSWER)
    assert peer.until(1) == [("answered",)]


def test_another_status_is_refused_with_its_reason_and_text_and_keeps_the_connection(peer: Peer) -> None:
    peer.connection.send(b"ask", 0.0)
    peer.server.sendall(ANSWER)
    peer.until(1)
    peer.connection.send(b"ask", 0.0)
    peer.server.sendall(http(b"queue full", "503 Service Unavailable"))
    assert peer.until(2)[1] == ("refused", "503 Service Unavailable", "queue full")
    assert peer.connection.usable
    peer.connection.send(b"ask", 0.0)
    peer.server.sendall(ANSWER)
    assert peer.until(3)[2] == ("answered",)


@pytest.mark.parametrize(
    "answer",
    [
        http(b"0123456789", "200 OK", "connection: close"),
        http(b"0123456789", "200 OK", "server: x", "Connection: Close"),
        b"HTTP/1.0 200 OK\r\ncontent-length: 10\r\n\r\n0123456789",
    ],
)
def test_a_connection_that_the_server_wants_closed_is_not_used_again(peer: Peer, answer: bytes) -> None:
    peer.connection.send(b"ask", 0.0)
    peer.server.sendall(answer)
    assert peer.until(1) == [("answered",)]
    assert not peer.connection.usable


def test_a_close_is_seen_behind_a_head_that_is_otherwise_known(peer: Peer) -> None:
    peer.connection.send(b"ask", 0.0)
    peer.server.sendall(ANSWER)
    peer.until(1)
    peer.connection.send(b"ask", 0.0)
    peer.server.sendall(http(b"0123456789", "200 OK", "server: x", "connection: close"))
    peer.until(2)
    assert not peer.connection.usable


def test_a_body_without_length_ends_with_the_connection(peer: Peer) -> None:
    peer.connection.send(b"ask", 0.0)
    assert peer.server.recv(10) == b"ask"  # unread bytes would make the close a reset
    peer.server.sendall(b"HTTP/1.1 200 OK\r\n\r\nsome")
    peer.turn()
    assert peer.heard == []
    peer.server.close()
    assert peer.until(1) == [("answered",)]
    assert not peer.connection.usable


@pytest.mark.parametrize("cut", [1, 20, len(ANSWER) - 1])
@pytest.mark.parametrize("answer", [ANSWER, CHUNKED], ids=["length", "chunked"])
def test_an_answer_that_is_cut_short_fails(peer: Peer, answer: bytes, cut: int) -> None:
    peer.connection.send(b"ask", 0.0)
    assert peer.server.recv(10) == b"ask"
    peer.server.sendall(answer[:cut])
    peer.server.close()
    assert peer.until(1) == [("failed", CUT_SHORT)]


def test_a_connection_closed_instead_of_an_answer_fails(peer: Peer) -> None:
    peer.connection.send(b"ask", 0.0)
    assert peer.server.recv(10) == b"ask"
    peer.server.close()
    assert peer.until(1) == [("failed", CLOSED)]
    assert not peer.connection.usable


@pytest.mark.parametrize(
    "answer", [b"SSH-2.0-OpenSSH_9.6\r\n", b"\0" * 100, b"HTTP/1.1 200 OK\r\ncontent-length: -5\r\n\r\n", ANSWER + ANSWER]
)
def test_what_is_no_answer_is_named(peer: Peer, answer: bytes) -> None:
    peer.connection.send(b"ask", 0.0)
    peer.server.sendall(answer)
    assert peer.until(1) == [("failed", NOT_HTTP)]


def test_a_connection_lost_while_idle_is_no_error(peer: Peer) -> None:
    peer.server.close()
    assert peer.until(1) == [("dropped",)]


def test_a_request_larger_than_the_buffers_is_sent_whole(peer: Peer) -> None:
    request = bytes(range(256)) * 40_000
    peer.connection.send(request, 0.0)
    peer.server.setblocking(False)
    got = bytearray()
    while len(got) < len(request):
        peer.turn()
        try:
            got += peer.server.recv(1 << 20)
        except BlockingIOError:
            continue
    assert got == request
    peer.server.setblocking(True)
    peer.server.sendall(ANSWER)
    assert peer.until(1) == [("answered",)]


def test_a_refused_connection_fails_the_request_that_waits_for_it(peer: Peer) -> None:
    with silent_port() as port:
        connection = Connection((socket.AF_INET, ("127.0.0.1", port)), peer.selector, peer, peer.last)
        connection.send(b"ask", 0.0)
        assert peer.until(1) == [("failed", "connection refused")]

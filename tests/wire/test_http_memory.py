"""What the HTTP server keeps of requests that are over, and of connections that are gone: little, and no body."""

import gc
import tracemalloc
import weakref

from dlproxy.config import HttpLimits
from dlproxy.wire.http.connection import HttpConnection
from dlproxy.wire.http.server import MAX_SEEN, MAX_SEEN_BYTES, HttpServer

from .fixtures import Answers, FakeTransport, Wire, post


def test_an_idle_connection_keeps_no_body() -> None:
    answers = Answers()
    wire = Wire(answers)
    tracemalloc.start()
    try:
        for size in (1_000_000, 1_100_000):
            wire.feed(post("/", bytes(size)))
        answers.seen.clear()
        wire.exchanges.clear()
        assert tracemalloc.get_traced_memory()[0] < 500_000
    finally:
        tracemalloc.stop()


def test_a_closed_connection_goes_without_the_garbage_collector() -> None:
    connection = HttpConnection(HttpServer(lambda exchange: exchange.reply(200, b"text/plain", b""), HttpLimits()))
    connection.connection_made(FakeTransport())
    for data in (post("/", b"whole"), post("/", b"broken off")[:-1]):
        connection.data_received(data)
    gone = weakref.ref(connection)
    connection.connection_lost(None)
    gc.disable()
    try:
        del connection
        assert gone() is None
    finally:
        gc.enable()


def test_connections_with_equal_heads_share_them_and_large_heads_are_not_kept() -> None:
    server = HttpServer(lambda exchange: exchange.reply(200, b"text/plain", b""), HttpLimits())
    for _ in range(3):
        connection = HttpConnection(server)
        connection.connection_made(FakeTransport())
        connection.data_received(post("/same", b"aaaa"))
        connection.data_received(post("/same", b"a", **{"X-Long": "x" * MAX_SEEN_BYTES}))
    assert [seen.target for seen in server._seen.values()] == [b"/same"]
    for number in range(2 * MAX_SEEN):
        connection.data_received(post(f"/{number}", b"a"))
        assert len(server._seen) <= MAX_SEEN

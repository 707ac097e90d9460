"""The HTTP client of remote instances against servers that misbehave in every way, on real sockets."""

import asyncio
import gc
import os
from collections.abc import AsyncIterator, Callable

import pytest

from dlproxy.instance.remote.failures import UpstreamError
from dlproxy.instance.remote.http_client import MAX_OVERHEAD, HttpClient, Outcome, Reply, Server
from dlproxy.message import FailureKind
from tests.instance.upstreams import Asked, ScriptedUpstream, until

POST = b"POST /x HTTP/1.1\r\nhost: a\r\ncontent-length: 3\r\n\r\n"
OK = b"HTTP/1.1 200 OK\r\n"


async def _ok(asked: Asked) -> None:
    asked.reply(asked.body)


class Rig:
    """A client and the server that it talks to."""

    def __init__(self) -> None:
        self.upstream = ScriptedUpstream({}, _ok)
        self.dropped = 0

    async def start(self, *, connections: int = 1, max_reply_bytes: int = 10_000) -> "Rig":
        await self.upstream.start()
        self.client = HttpClient(
            Server("127.0.0.1", self.upstream.port),
            connections=connections,
            connect_timeout_s=5.0,
            max_reply_bytes=max_reply_bytes,
            on_dropped=self._count,
        )
        return self

    def _count(self) -> None:
        self.dropped += 1

    async def ask(self, body: bytes = b"abc", *, timeout_s: float = 5.0) -> Reply:
        return await self.client.fetch([POST, body], timeout_s=timeout_s)

    def post(self, done: Callable[[Outcome], None], *, timeout_s: float = 5.0) -> None:
        self.client.call([POST, b"abc"], done, timeout_s=timeout_s)

    async def stop(self) -> None:
        await self.client.close()
        await self.upstream.stop()


@pytest.fixture
async def rig() -> AsyncIterator[Rig]:
    made = await Rig().start()
    yield made
    await made.stop()


def _sends(*pieces: bytes, close: bool = False) -> Callable[[Asked], object]:
    async def behave(asked: Asked) -> None:
        for piece in pieces:
            asked.send(piece)
            await asked.writer.drain()
            await asyncio.sleep(0)
        if close:
            asked.hang_up()

    return behave


async def test_connections_are_kept_and_used_again(rig: Rig) -> None:
    for body in (b"one", b"two", b"six"):
        reply = await rig.ask(body)
        assert (reply.status, bytes(reply.body)) == (200, body)
    assert rig.upstream.accepted == 1
    assert rig.upstream.posts[0].head.startswith(b"POST /x HTTP/1.1\r\nhost: a\r\n")


GOOD = {
    "plain": OK + b"Content-Length: 4\r\n\r\nbody",
    "chunked": OK + b"transfer-encoding: chunked\r\n\r\n1\r\nb\r\n3;x=y\r\nody\r\n0\r\ntrailer: 1\r\n\r\n",
    "after interim replies": b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early\r\nx: 1\r\n\r\n"
    + OK
    + b"content-length: 4\r\n\r\nbody",
    "said to be as it is": OK + b"content-encoding: identity\r\ncontent-length: 4\r\n\r\nbody",
}


@pytest.mark.parametrize("byte_by_byte", [False, True], ids=["whole", "bytes"])
@pytest.mark.parametrize("wire", GOOD.values(), ids=GOOD)
async def test_replies_are_read_however_they_come(rig: Rig, wire: bytes, byte_by_byte: bool) -> None:
    rig.upstream.behave = _sends(*([wire[at : at + 1] for at in range(len(wire))] if byte_by_byte else [wire]))
    for _ in range(2):
        reply = await rig.ask()
        assert (reply.status, bytes(reply.body)) == (200, b"body")
    assert rig.upstream.accepted == 1, "the connection was not kept"


@pytest.mark.parametrize(
    ("wire", "body"),
    [
        (b"HTTP/1.1 200 OK\r\n\r\nuntil the end", b"until the end"),
        (b"HTTP/1.0 200 OK\r\ncontent-length: 2\r\n\r\nhi", b"hi"),
        (OK + b"connection: close\r\ncontent-length: 2\r\n\r\nhi", b"hi"),
    ],
)
async def test_connections_that_end_are_replaced(rig: Rig, wire: bytes, body: bytes) -> None:
    rig.upstream.behave = _sends(wire, close=True)
    for number in range(1, 4):
        reply = await rig.ask()
        assert bytes(reply.body) == body
        assert rig.upstream.accepted == number


BAD = [
    (b"\x00\x01garbage", "not HTTP"),
    (b"SSH-2.0-OpenSSH\r\n", "not HTTP"),
    (OK + b"content-length: -2\r\n\r\nab", "not HTTP"),
    (OK + b"content-length: 2\r\ncontent-length: 3\r\n\r\nabc", "not HTTP"),
    (OK + b"content-length: 3\r\ncontent-length: 3\r\n\r\nabc", "not HTTP"),
    (OK + b"content-length: 3, 3\r\n\r\nabc", "not HTTP"),
    (OK + b"content-length: +3\r\n\r\nabc", "not HTTP"),
    (OK + b"content-length: 0x3\r\n\r\nabc", "not HTTP"),
    (OK + b"content-length : 3\r\n\r\nabc", "not HTTP"),
    (OK + b"x: 1\r\n content-length: 9\r\ncontent-length: 3\r\n\r\nabc", "not HTTP"),
    (OK + b"x: 1\0\r\ncontent-length: 3\r\n\r\nabc", "not HTTP"),
    (OK + b"x: 1\rcontent-length: 9\r\ncontent-length: 3\r\n\r\nabc", "not HTTP"),
    (OK + b"x: 1\ncontent-length: 3\n\nabc", "not HTTP"),
    (OK + b"transfer-encoding: chunked\r\ncontent-length: 3\r\n\r\n0\r\n\r\n", "not HTTP"),
    (OK + b"transfer-encoding: chunked\r\n\r\n+3\r\nabc\r\n0\r\n\r\n", "not HTTP"),
    (OK + b"transfer-encoding: chunked\r\n\r\n10000000000000003\r\nabc\r\n0\r\n\r\n", "not HTTP"),
    (OK + b"transfer-encoding: chunked\r\n\r\n3\nabc\n0\n\n", "not HTTP"),
    (OK + b"content-length: 2\r\ntransfer-encoding: chunked\r\n\r\nab", "not HTTP"),
    (OK + b"transfer-encoding: chunked\r\n\r\nzz\r\n", "not HTTP"),
    (OK + b"content-length: 2\r\n\r\nabcdef", "longer than it says"),
    (OK + b"content-length: 0\r\n\r\n" + OK + b"content-length: 0\r\n\r\n", "longer than it says"),
    (OK + b"content-encoding: gzip\r\ncontent-length: 2\r\n\r\nab", "encoded as 'gzip', which was not asked for"),
    (OK + b"content-length: 10001\r\n\r\n", "at most 10000 are accepted"),
    (OK + b"transfer-encoding: chunked\r\n\r\n2711\r\n" + bytes(10001), "more than 10000 bytes"),
    (b"HTTP/1.1 101 Switching\r\nupgrade: x\r\nconnection: upgrade\r\n\r\n", "change the protocol"),
    (OK + b"x: " + bytes(b"y" * (MAX_OVERHEAD + 100)), "header or framing"),
    (OK + b"transfer-encoding: chunked\r\n\r\n1;" + b"y" * (MAX_OVERHEAD + 100), "header or framing"),
]


@pytest.mark.parametrize(("wire", "clue"), BAD)
async def test_what_is_no_answer_fails_with_a_reason(rig: Rig, wire: bytes, clue: str) -> None:
    rig.upstream.behave = _sends(wire)
    with pytest.raises(UpstreamError, match=clue) as caught:
        await rig.ask()
    assert caught.value.failure.kind is FailureKind.UNAVAILABLE
    assert not caught.value.gone
    await until(lambda: rig.client.connections == 0)
    rig.upstream.behave = _ok
    assert (await rig.ask()).status == 200, "one bad answer broke the client"


@pytest.mark.parametrize("cut", range(len(GOOD["plain"])))
async def test_an_answer_cut_anywhere_fails(rig: Rig, cut: int) -> None:
    rig.upstream.behave = _sends(GOOD["plain"][:cut], close=True)
    with pytest.raises(UpstreamError, match="closed the connection"):
        await rig.ask()
    assert len(rig.upstream.posts) == 1, "a fresh connection that broke is no stale one: it is not asked again"


async def test_a_reset_fails_too(rig: Rig) -> None:
    async def behave(asked: Asked) -> None:
        asked.reset()

    rig.upstream.behave = behave
    with pytest.raises(UpstreamError, match="closed the connection instead of an answer"):
        await rig.ask()


@pytest.mark.parametrize("end", [Asked.hang_up, Asked.reset])
async def test_a_kept_connection_that_closed_is_retried_once(rig: Rig, end: Callable[[Asked], None]) -> None:
    await rig.ask()

    async def behave(asked: Asked) -> None:
        if len(rig.upstream.posts) == 2:  # as if it had closed while the request was under way
            end(asked)
        else:
            asked.reply(b"again")

    rig.upstream.behave = behave
    assert bytes((await rig.ask()).body) == b"again"
    assert (rig.upstream.accepted, len(rig.upstream.posts)) == (2, 3)


async def test_a_kept_connection_is_retried_no_more_than_once(rig: Rig) -> None:
    await rig.ask()

    async def behave(asked: Asked) -> None:
        asked.hang_up()

    rig.upstream.behave = behave
    with pytest.raises(UpstreamError, match="instead of an answer"):
        await rig.ask()
    assert len(rig.upstream.posts) == 3


async def test_a_kept_connection_that_broke_in_an_answer_is_not_retried(rig: Rig) -> None:
    await rig.ask()
    rig.upstream.behave = _sends(b"H", close=True)
    with pytest.raises(UpstreamError, match="in the middle of its answer"):
        await rig.ask()
    assert len(rig.upstream.posts) == 2


async def test_an_idle_connection_that_closes_is_noticed(rig: Rig) -> None:
    await rig.ask()
    rig.upstream.asked[0].hang_up()
    await until(lambda: rig.dropped == 1)
    assert rig.client.connections == 0


async def test_what_comes_unasked_ends_the_connection(rig: Rig) -> None:
    await rig.ask()
    rig.upstream.asked[0].send(b"HTTP/1.1 408 Request Timeout\r\ncontent-length: 0\r\n\r\n")
    await until(lambda: rig.client.connections == 0)
    assert (await rig.ask()).status == 200


async def test_silence_has_an_end(rig: Rig) -> None:
    rig.upstream.behave = _sends(GOOD["plain"][:-1])
    with pytest.raises(UpstreamError, match=r"no answer from the upstream within 0\.05 s") as caught:
        await rig.ask(timeout_s=0.05)
    assert caught.value.failure.kind is FailureKind.UNAVAILABLE
    await until(lambda: rig.client.connections == 0)


async def test_a_refused_connection_says_so() -> None:
    rig = await Rig().start()
    await rig.upstream.stop()
    with pytest.raises(UpstreamError, match="no connection to the upstream: connection refused") as caught:
        await rig.ask()
    assert caught.value.gone
    await rig.client.close()


async def test_never_more_connections_than_allowed() -> None:
    rig = await Rig().start(connections=3)
    gate = asyncio.Event()

    async def behave(asked: Asked) -> None:
        await gate.wait()
        asked.reply(b"late")

    rig.upstream.behave = behave
    outcomes: list[Outcome] = []
    for _ in range(20):
        rig.post(outcomes.append)
    await until(lambda: len(rig.upstream.posts) == 3)
    assert rig.client.connections == 3
    gate.set()
    await until(lambda: len(outcomes) == 20)
    assert all(isinstance(outcome, Reply) for outcome in outcomes)
    assert (rig.upstream.most_open, rig.upstream.accepted) == (3, 3)
    await rig.stop()


async def test_waiting_calls_have_the_same_limit(rig: Rig) -> None:
    rig.upstream.behave = _sends()
    outcomes: list[Outcome] = []
    rig.post(outcomes.append, timeout_s=5.0)
    rig.post(outcomes.append, timeout_s=0.05)
    await until(lambda: len(outcomes) == 1)
    assert isinstance(outcomes[0], UpstreamError)
    assert rig.client.connections == 1, "the call that waits for its answer was cut off with the one that waited behind it"


async def test_waiting_calls_fail_with_the_connection_that_they_wait_for() -> None:
    rig = await Rig().start()
    await rig.upstream.stop()
    outcomes: list[Outcome] = []
    for _ in range(3):
        rig.post(outcomes.append)
    assert not outcomes, "told before the call returned"
    await until(lambda: len(outcomes) == 3)
    assert all(isinstance(outcome, UpstreamError) and outcome.gone for outcome in outcomes)
    await rig.client.close()


async def test_an_answer_to_half_a_request_ends_the_connection(rig: Rig) -> None:
    body = bytes(8_000_000)  # more than sockets buffer
    head = b"POST /x HTTP/1.1\r\ncontent-length: %d\r\n\r\n" % len(body)
    early = asyncio.Event()

    async def refuse_early(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 413 Too Large\r\ncontent-length: 0\r\n\r\n")
        await early.wait()
        writer.transport.abort()

    server = await asyncio.start_server(refuse_early, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    client = HttpClient(Server("127.0.0.1", port), connections=1, connect_timeout_s=5.0, max_reply_bytes=100)
    reply = await client.fetch([head, body], timeout_s=5.0)
    assert reply.status == 413
    await until(lambda: client.connections == 0)
    early.set()
    server.close()
    await client.close()
    await asyncio.sleep(0)


async def test_closing_fails_what_is_under_way() -> None:
    rig = await Rig().start()
    rig.upstream.behave = _sends()
    outcomes: list[Outcome] = []
    rig.post(outcomes.append)
    rig.post(outcomes.append)
    await until(lambda: len(rig.upstream.posts) == 1)
    await rig.client.close()
    assert len(outcomes) == 2
    rig.post(outcomes.append)
    await until(lambda: len(outcomes) == 3)
    assert all(isinstance(outcome, UpstreamError) for outcome in outcomes)
    await rig.upstream.stop()


async def test_closing_while_connecting_ends_the_call() -> None:
    rig = await Rig().start()
    outcomes: list[Outcome] = []
    rig.post(outcomes.append)
    await rig.client.close()
    assert len(outcomes) == 1
    assert rig.client.connections == 0
    await rig.upstream.stop()


async def test_two_hundred_reconnects_leave_nothing_behind(rig: Rig) -> None:
    async def behave(asked: Asked) -> None:
        if len(rig.upstream.posts) % 2:
            asked.reset()
        else:
            asked.send(OK + b"connection: close\r\ncontent-length: 2\r\n\r\nhi")
            asked.hang_up()

    rig.upstream.behave = behave
    await asyncio.gather(rig.ask(), return_exceptions=True)
    await until(lambda: rig.upstream.open == 0)
    files, tasks = len(os.listdir("/proc/self/fd")), len(asyncio.all_tasks())
    for _ in range(200):
        await asyncio.gather(rig.ask(), return_exceptions=True)
    await until(lambda: rig.client.connections == 0 and rig.upstream.open == 0)
    assert rig.upstream.accepted == 201
    assert len(os.listdir("/proc/self/fd")) <= files
    assert len(asyncio.all_tasks()) <= tasks
    gc.collect()
    left = [found for found in gc.get_objects() if type(found).__name__ in ("_Connection", "_Call")]
    assert len(left) <= 2

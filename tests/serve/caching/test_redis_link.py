"""The connection to Redis: its protocol in any pieces, the seed that nodes agree on, and what may be at the other end."""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from redis import Redis

from dlproxy.config import ConfigError
from dlproxy.config.redis_address import parse_redis
from dlproxy.fleet.redis_wire import LOST, Parser, Refusal, Reply, command
from dlproxy.serve.caching import redis_link
from dlproxy.serve.caching.redis_link import MOST_COMMANDS, SEED_KEY, RedisLink
from tests.certificates import make_certificate, server_context
from tests.fleet.redis_server import NO_REDIS, RedisServer, answering, tls_relay
from tests.serve.caching.redis_nodes import redis, until

__all__ = ["redis"]

PING = command(b"PING")


class Opened:
    """A link, and the seeds that it told."""

    def __init__(self, url: str, seed: int) -> None:
        self.seeds: list[int] = []
        self.link = RedisLink(parse_redis(url, "redis"), seed, self.seeds.append)

    async def up(self) -> "Opened":
        await until(lambda: self.link.up)
        return self

    async def ask(self, *parts: bytes) -> Reply:
        future: asyncio.Future[Reply] = asyncio.get_running_loop().create_future()
        assert self.link.ask(command(*parts), future.set_result)
        return await asyncio.wait_for(future, 10)


@pytest.fixture
async def opened() -> AsyncIterator[Callable[..., Opened]]:
    links: list[Opened] = []

    def open_one(url: str, seed: int = 1) -> Opened:
        links.append(Opened(url, seed))
        return links[-1]

    yield open_one
    for one in links:
        await one.link.close()


Open = Callable[..., Opened]

replies = st.recursive(
    st.one_of(st.none(), st.integers(-(2**62), 2**62), st.binary(max_size=40), st.just(Refusal("ERR no"))),
    lambda inner: st.lists(inner, max_size=4),
    max_leaves=8,
)


def _encoded(reply: Reply) -> bytes:
    if reply is None:
        return b"$-1\r\n"
    if isinstance(reply, Refusal):
        return b"-" + reply.text.encode() + b"\r\n"
    if isinstance(reply, int):
        return b":%d\r\n" % reply
    if isinstance(reply, bytes):
        return b"$%d\r\n%b\r\n" % (len(reply), reply)
    return b"*%d\r\n" % len(reply) + b"".join(map(_encoded, reply))


def _depth(reply: Reply) -> int:
    return 1 + max(map(_depth, reply), default=0) if isinstance(reply, list) else 0


@given(st.lists(replies.filter(lambda reply: _depth(reply) <= 4), max_size=5), st.lists(st.integers(1, 30), max_size=40))
def test_replies_arrive_in_any_pieces(sent: list[Reply], pieces: list[int]) -> None:
    data, parser, got = b"".join(map(_encoded, sent)), Parser(), []
    for size in pieces:
        got += parser.feed(data[:size])
        data = data[size:]
    assert got + parser.feed(data) == sent


@given(st.binary(max_size=60))
def test_what_is_no_protocol_is_refused_or_waited_for(junk: bytes) -> None:
    with suppress(ValueError):
        Parser().feed(junk)


@pytest.mark.parametrize("junk", [b"$99999999999\r\n", b"x" * 5000, b"?\r\n", b"*1\r\n" * 9, b":a\r\n"])
def test_what_can_be_no_answer_is_not_waited_for(junk: bytes) -> None:
    with pytest.raises(ValueError, match=r"answer|line|int"):
        Parser().feed(junk)


async def test_the_first_node_says_the_seed(redis: RedisServer, opened: Open) -> None:
    one = await opened(redis.url, 7).up()
    two = await opened(redis.url, 8).up()
    assert one.seeds == two.seeds == [7]


async def test_a_seed_that_was_lost_is_put_back(redis: RedisServer, opened: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(redis_link, "REFRESH_S", 0.02)
    one = await opened(redis.url, 7).up()
    with Redis(port=redis.port) as client:
        client.flushall()
        await until(lambda: client.get(SEED_KEY))
        two = await opened(redis.url, 8).up()
        assert two.seeds == [7]
        client.set(SEED_KEY, (9).to_bytes(8, "little"))
        await until(lambda: one.seeds == two.seeds[-2:] == [7, 9])


@pytest.mark.parametrize("junk", ["short", "list", "long"])
async def test_junk_in_the_seeds_place_is_replaced(redis: RedisServer, opened: Open, junk: str) -> None:
    with Redis(port=redis.port) as client:
        if junk == "list":
            client.lpush(SEED_KEY, "x")
        else:
            client.set(SEED_KEY, b"x" if junk == "short" else b"x" * 9)
        assert (await opened(redis.url, 7).up()).seeds == [7]
        assert (await opened(redis.url, 8).up()).seeds == [7]


async def test_answers_come_in_order_and_are_lost_with_the_connection(redis: RedisServer, opened: Open) -> None:
    one = await opened(redis.url).up()
    got: list[Reply] = []
    for number in range(5):
        assert one.link.ask(command(b"ECHO", b"%d" % number), got.append)
    await until(lambda: len(got) == 5)
    assert got == [b"0", b"1", b"2", b"3", b"4"]
    redis.pause()
    assert one.link.ask(PING, got.append)
    redis.kill()
    await until(lambda: len(got) == 6)
    assert got[-1] == LOST
    assert not one.link.ask(PING, got.append)
    redis.start()
    await one.up()
    assert await one.ask(b"PING") == b"PONG"
    assert one.seeds == [1], "which is put back, and nothing new"


async def test_no_more_is_under_way_than_there_may_be(redis: RedisServer, opened: Open) -> None:
    one = await opened(redis.url).up()
    redis.pause()
    got: list[Reply] = []
    sent = sum(one.link.ask(PING, got.append) for _ in range(2 * MOST_COMMANDS))
    assert sent == MOST_COMMANDS
    assert one.link.dropped == MOST_COMMANDS
    redis.go_on()
    await until(lambda: len(got) == sent)
    assert one.link.ask(PING, got.append)
    assert not one.link.ask(bytes(redis_link.MOST_BYTES), got.append)


async def test_one_that_stands_still_is_left_and_found_again(
    redis: RedisServer, opened: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(redis_link, "REFRESH_S", 0.02)
    monkeypatch.setattr(redis_link, "PATIENCE_S", 0.1)
    one = await opened(redis.url).up()
    redis.pause()
    await until(lambda: not one.link.up)
    redis.go_on()
    await one.up()
    assert one.link.connected == 2


async def test_the_password_opens_and_is_never_shown(tmp_path: Path, opened: Open, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    server = RedisServer(tmp_path, "--requirepass", "s3cret@/", "--appendonly", "no")
    try:
        await opened(server.url.replace("//", "//:s3cret%40%2F@")).up()
        for wrong in (server.url, server.url.replace("//", "//:s3cret-but-wrong@")):
            one = opened(wrong)
            await until(lambda one=one: one.link.trouble)
            assert "AUTH" in one.link.trouble or "WRONGPASS" in one.link.trouble
            assert not one.link.up
    finally:
        server.kill()
    assert "redis://127.0.0.1" in caplog.text
    assert "s3cret" not in caplog.text


async def test_databases_are_apart(redis: RedisServer, opened: Open) -> None:
    one, two = await opened(redis.url, 7).up(), await opened(redis.url.replace("/0", "/1"), 8).up()
    assert (one.seeds, two.seeds) == ([7], [8])


async def test_tls_verifies_the_certificate(
    redis: RedisServer, opened: Open, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    certificate = make_certificate(tmp_path)
    context = server_context(certificate)
    async with tls_relay(redis.port, context) as port:
        doubtful = opened(f"rediss://127.0.0.1:{port}/0")
        await until(lambda: "certificate" in doubtful.link.trouble)
        monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
        trusted = await opened(f"rediss://127.0.0.1:{port}/0").up()
        assert await trusted.ask(b"PING") == b"PONG"
        await trusted.link.close()
        await doubtful.link.close()


@pytest.mark.parametrize("answer", NO_REDIS)
async def test_what_is_no_redis_is_never_up(opened: Open, answer: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(redis_link, "PATIENCE_S", 0.1)
    async with answering(answer * 7) as url:
        one = opened(url)
        await until(lambda: one.link.trouble)
        assert not one.link.up
        await one.link.close()


async def test_trouble_is_told_once(opened: Open, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(redis_link, "AGAIN_S", (0.001, 0.002))
    tries = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        tries.append(writer)
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        one = opened(f"redis://127.0.0.1:{server.sockets[0].getsockname()[1]}/0")
        await until(lambda: len(tries) > 10)
        await one.link.close()
    assert caplog.text.count("cannot be used") == 1


@pytest.mark.parametrize("url", ["redis://", "redis://s3cret@:9x", "http://s3cret@host", "redis://h/x", "redis://h?key=s3cret"])
def test_an_address_that_is_none_is_refused_without_being_shown(url: str) -> None:
    with pytest.raises(ConfigError, match="the address of redis is not understood") as raised:
        parse_redis(url, "redis")
    assert "s3cret" not in str(raised.value)


def test_an_address_shows_no_password() -> None:
    address = parse_redis("rediss://me:s3cret@[::1]:6380/2", "redis")
    assert f"{address}" == address.shown == "rediss://[::1]:6380/2"

"""A store in Redis, and what may happen to it: killed, stopped, emptied, protected, or something else altogether."""

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import pytest

from dlproxy.config import ConfigError
from dlproxy.fleet import redis_store
from dlproxy.fleet.redis_store import RedisStore
from dlproxy.fleet.store import StoreError, open_store
from tests.certificates import make_certificate, server_context
from tests.fleet.redis_server import NO_REDIS, RedisServer, answering, tls_relay
from tests.fleet.store_editor import add
from tests.fleet.store_places import RedisPlace

HOURS = 10_000.0


@pytest.fixture
def place(tmp_path: Path) -> Iterator[RedisPlace]:
    place = RedisPlace(tmp_path)
    yield place
    place.end()


@pytest.fixture
async def handle() -> AsyncIterator[Callable[..., RedisStore]]:
    """A handle at an address; it is closed at the end."""
    opened: list[RedisStore] = []

    def open_one(url: str, poll_s: float = HOURS) -> RedisStore:
        opened.append(redis_store.redis_store(url, poll_s))
        return opened[-1]

    yield open_one
    for store in opened:
        await store.close()


Handle = Callable[..., RedisStore]


async def test_a_change_is_told_at_once_and_again_after_redis_came_back(place: RedisPlace, handle: Handle) -> None:
    listening, other = handle(place.server.url), handle(place.server.url)
    for revision, name in enumerate("abc"):
        waiting = asyncio.create_task(listening.changed(revision))
        await asyncio.wait([waiting], timeout=0.05)
        assert not waiting.done()
        if name == "c":
            place.server.kill()
            place.server.start()
        await add(other, name)
        await asyncio.wait_for(waiting, 10)
        assert name in (await listening.read()).models


async def test_keys_and_databases_are_stores_of_their_own(place: RedisPlace, handle: Handle) -> None:
    urls = [place.server.url, f"{place.server.url}?key=test", f"redis://127.0.0.1:{place.server.port}/1"]
    for url in urls:
        await add(handle(url), url)
    for url in urls:
        assert list((await handle(url).read()).models) == [url]
    assert sorted(place.client.keys()) == [b"dlproxy", b"test"]


async def test_a_key_of_another_kind_is_said_and_left(place: RedisPlace, handle: Handle) -> None:
    store = handle(place.server.url)
    await add(store, "m")
    place.client.delete("dlproxy")
    place.client.lpush("dlproxy", "theirs")
    for refused in (handle(place.server.url).read(), add(store, "n")):
        with pytest.raises(ConfigError, match="something else keeps it") as raised:
            await refused
        assert not isinstance(raised.value, StoreError)
    assert list((await store.read()).models) == ["m"]
    assert place.client.lrange("dlproxy", 0, -1) == [b"theirs"]


async def test_emptied_redis_gets_back_what_a_node_has_seen(place: RedisPlace, handle: Handle) -> None:
    store = handle(place.server.url)
    await add(store, "m")
    waiting = asyncio.create_task(store.changed(1))
    await asyncio.wait([waiting], timeout=0.05)
    place.server.kill()
    place.server.start(empty=True)
    async with asyncio.timeout(10):
        while place.get() is None:
            await asyncio.wait([waiting], timeout=0.02)
    await add(handle(place.server.url), "n")
    await asyncio.wait_for(waiting, 10)
    assert list((await store.read()).models) == ["m", "n"]


async def test_redis_that_stands_still_is_given_up_on_until_it_goes_on(
    place: RedisPlace, handle: Handle, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(redis_store, "PATIENCE_S", 0.2)
    store = handle(place.server.url, poll_s=0.05)
    await add(store, "m")
    seen = await store.read()
    place.server.pause()
    began = time.monotonic()
    assert await store.read() == seen
    with pytest.raises(StoreError, match="cannot be reached: Timeout"):
        await add(store, "n")
    with pytest.raises(StoreError):
        await handle(place.server.url).read()
    assert time.monotonic() - began < 30, "it waited for as long as redis stood still"
    waiting = asyncio.create_task(store.changed(1))
    done, _ = await asyncio.wait([waiting], timeout=0.3)
    assert not done
    place.server.go_on()
    await add(handle(place.server.url), "n")
    await asyncio.wait_for(waiting, 10)
    assert list((await store.read()).models) == ["m", "n"]


async def test_passwords_open_and_are_never_shown(tmp_path: Path, handle: Handle, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    server = RedisServer(tmp_path, "--requirepass", "s3cret@/")
    try:
        right = handle(server.url.replace("//", "//:s3cret%40%2F@"))
        await add(right, "m")
        waiting = asyncio.create_task(right.changed(1))
        wrong = handle(server.url.replace("//", "//:s3cret-but-wrong@"), poll_s=0.01)
        for refused in (wrong.read(), add(wrong, "n"), handle(server.url).read()):
            with pytest.raises(
                StoreError, match=r"(?i)store redis://127.0.0.1:\d+/0\?key=dlproxy cannot be .*(auth|password)"
            ) as raised:
                await refused
            assert "s3cret" not in str(raised.value)
        server.kill()
        await right.read()
        waiting.cancel()
    finally:
        server.kill()
    assert "store redis://127.0.0.1" in caplog.text
    assert "s3cret" not in caplog.text + repr(right)


async def test_tls_verifies_the_certificate(
    place: RedisPlace, handle: Handle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    certificate = make_certificate(tmp_path)
    context = server_context(certificate)
    async with tls_relay(place.server.port, context) as port:
        with pytest.raises(StoreError, match=r"cannot be reached: .*certificate"):
            await handle(f"rediss://127.0.0.1:{port}/0").read()
        monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
        await add(handle(f"rediss://127.0.0.1:{port}/0"), "m")
    assert list((await handle(place.server.url).read()).models) == ["m"]


@pytest.mark.parametrize("answer", NO_REDIS)
async def test_what_is_no_redis_is_an_error(handle: Handle, answer: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(redis_store, "PATIENCE_S", 0.2)
    async with answering(answer * 3) as url:
        store = handle(url)
        with pytest.raises(ConfigError, match=r"^store redis://"):
            await store.read()
        await store.close()


async def test_it_is_opened_by_its_address(place: RedisPlace) -> None:
    store = open_store(place.server.url)
    assert isinstance(store, RedisStore)
    await add(store, "m")
    await store.close()

"""The dashboard's routes over sockets: what needs no key, what a key may see; a server that stops waits for no reader."""

import asyncio
import socket
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import pytest

from dlproxy.message import Failure, FailureKind, Grant, InferenceError, Principal
from dlproxy.wire.control.http import control_app
from dlproxy.wire.control.server import ControlServer
from dlproxy.wire.dashboard.http import dashboard_routes
from dlproxy.wire.terms import Identify

from ..fixtures import Client, Reply, request
from ..test_control_http import Pilots, Port, Remembered
from .rig import Rig, read

KEYS = {
    b"Bearer all": Principal("all", grant=Grant(frozenset({"admin"}))),
    b"Bearer mine": Principal("mine", grant=Grant(frozenset({"read"}), ("mine-*",))),
    b"Bearer infer": Principal("infer", grant=Grant(frozenset({"infer"}))),
}


def identify(peer: Any, method: bytes, target: bytes, headers: dict[bytes, bytes]) -> Principal:
    try:
        return KEYS[headers.get(b"authorization", b"")]
    except KeyError:
        raise InferenceError(Failure(FailureKind.UNAUTHENTICATED, "a key is needed")) from None


class Dashboard:
    """A control port with the dashboard of these models."""

    def __init__(self, names: Sequence[str], asks: Identify | None) -> None:
        self.rig = Rig(*names)
        routes = dashboard_routes(self.rig.feed)
        app = control_app(self.rig.catalog, lambda: 0, Port(), Pilots(), Remembered(), routes, asks)
        self.server, self.listener = ControlServer(app), socket.create_server(("127.0.0.1", 0))
        self.listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 8192)  # which connections inherit
        self.server.start(self.listener)
        self.clients: list[Client] = []

    async def open(self, path: str, key: str = "", method: str = "GET", **headers: str) -> Client:
        self.clients.append(client := Client(*await asyncio.open_connection(*self.listener.getsockname(), limit=2048)))
        client.send(request(path, method, headers | ({"Authorization": f"Bearer {key}"} if key else {})))
        return client

    async def ask(self, path: str, key: str = "", method: str = "GET", **headers: str) -> Reply:
        return await (await self.open(path, key, method, **headers)).reply()

    async def read(self, key: str = "") -> Client:
        """The stream, behind its header."""
        client = await self.open("/dashboard/feed", key)
        head = (await client.reader.readuntil(b"\r\n\r\n")).lower()
        assert head.startswith(b"http/1.1 200 ok")
        assert b"content-type: text/event-stream" in head
        assert b"cache-control: no-store" in head
        return client


@asynccontextmanager
async def dashboard(*names: str, asks: Identify | None = None) -> AsyncIterator[Dashboard]:
    made = Dashboard(names, asks)
    try:
        yield made
    finally:
        made.rig.feed.close()
        for client in made.clients:
            await client.close()
        await made.server.stop()


async def told(client: Client) -> tuple[str, dict[str, Any]]:
    """One event; each is a chunk of its own."""
    size = int(await client.reader.readline(), 16)
    event = await client.reader.readexactly(size)
    await client.reader.readexactly(2)
    return read(event)


async def test_the_page_and_its_files_need_no_key_and_load_nothing_from_elsewhere() -> None:
    async with dashboard(asks=identify) as here:
        for path in ("/", "/dashboard/static/index.html"):
            page = await here.ask(path)
            assert (page.status, page.headers["content-type"]) == (200, "text/html; charset=utf-8")
            assert page.headers["content-security-policy"].startswith("default-src 'self'; ")
            assert page.headers["x-content-type-options"] == "nosniff"
        again = await here.open("/", **{"If-None-Match": page.headers["etag"], "Connection": "close"})
        head, _, body = (await again.rest()).partition(b"\r\n\r\n")
        assert (head.startswith(b"HTTP/1.1 304 "), body) == (True, b"")
        assert (await here.ask("/", **{"If-None-Match": '"another"'})).status == 200


@pytest.mark.parametrize("name", ["nothing.js", "../http.py", "..%2fhttp.py", "", "."])
async def test_of_other_files_none_is_given(name: str) -> None:
    async with dashboard() as here:
        reply = await here.ask(f"/dashboard/static/{name}")
        assert reply.status in (400, 404)


@pytest.mark.parametrize(("key", "status"), [("", 401), ("wrong", 401), ("infer", 403)])
async def test_the_data_need_the_right_to_read(key: str, status: int) -> None:
    async with dashboard("mine-1", asks=identify) as here:
        for path in ("/dashboard/feed", "/dashboard/history?model=mine-1"):
            assert (await here.ask(path, key)).status == status


async def test_a_key_is_told_of_its_models_alone_and_what_it_may_do() -> None:
    async with dashboard("mine-1", "theirs", asks=identify) as here:
        here.rig.second()
        for key, models, may_change in (("mine", ["mine-1/1"], False), ("all", ["mine-1/1", "theirs/1"], True)):
            kind, whole = await told(await here.read(key))
            assert (kind, list(whole["models"]), whole["server"]["may_change"]) == ("whole", models, may_change)
        assert (await here.ask("/dashboard/history?model=theirs", "mine")).status == 403
        assert (await here.ask("/dashboard/history?model=unknown", "mine")).status == 403
        assert (await here.ask("/dashboard/history?model=mine-1", "mine")).status == 200


async def test_the_hour_is_told_in_columns() -> None:
    async with dashboard("m") as here:
        here.rig.models["m/1"].answers(7, here.rig.now)
        here.rig.second(3)
        reply = await here.ask("/dashboard/history?model=m&seconds=60")
        assert reply.json()["rate"] == [7.0, 0.0, 0.0]
        assert reply.json() == (await here.ask("/dashboard/history?model=m&version=1")).json()
        assert (await here.ask("/dashboard/history?model=m&seconds=1")).json()["rate"] == [0.0]


async def test_what_was_asked_in_the_hour_is_told_and_all_of_now_to_who_asks_once() -> None:
    async with dashboard("mine-1", "mine-2", "mine-3", "theirs", asks=identify) as here:
        here.rig.models["mine-1/1"].answers(1, here.rig.now)
        here.rig.models["mine-2/1"].answers(2, here.rig.now)
        here.rig.models["theirs/1"].answers(3, here.rig.now)
        here.rig.second()
        here.rig.remove("mine-2/1")
        here.rig.second()
        told = (await here.ask("/dashboard/history", "mine")).json()
        assert told == [
            {"name": "mine-2", "version": "1", "answered": 2},
            {"name": "mine-1", "version": "1", "answered": 1},
        ]
        now = (await here.ask("/dashboard/feed", "mine", Accept="application/json")).json()
        assert list(now["models"]) == ["mine-1/1", "mine-3/1"]
        here.rig.second(3700)
        assert (await here.ask("/dashboard/history", "all")).json() == []


@pytest.mark.parametrize(
    ("query", "status", "words"),
    [
        ("model=m&seconds=-5", 400, "seconds"),
        ("model=x", 404, "'x' is not found"),
        ("model=m&version=9", 404, "version 9 is not found"),
    ],
)
async def test_what_is_asked_wrongly_is_answered_with_what_would_be_right(query: str, status: int, words: str) -> None:
    async with dashboard("m") as here:
        reply = await here.ask(f"/dashboard/history?{query}")
        assert (reply.status, words in reply.json()["error"]) == (status, True)


async def test_a_head_request_does_not_stream() -> None:
    async with dashboard("m") as here:
        client = await here.open("/dashboard/feed", method="HEAD", Connection="close")
        assert (await client.rest()).startswith(b"HTTP/1.1 200 OK")


async def test_a_stream_goes_on_second_by_second_and_ends_with_the_server() -> None:
    async with dashboard("m") as here:
        client = await here.read()
        assert (await told(client))[0] == "whole"
        for _ in range(3):
            here.rig.models["m/1"].answers(1, here.rig.now)
            here.rig.second()
            assert (await told(client))[0] == "delta"
        here.rig.feed.close()
        assert await client.reader.readline() == b"0\r\n"
        assert (await here.ask("/dashboard/feed")).status == 503


async def test_a_server_that_stops_waits_for_no_reader(caplog: pytest.LogCaptureFixture) -> None:
    """Nor for one that does not read what it was sent, nor for one who has gone."""
    async with dashboard(*map(str, range(1000))) as here:
        reading, stuck, gone = [await here.read() for _ in range(3)]
        await told(reading)
        await gone.close()
        here.rig.feed.close()
        await here.server.stop()
        assert "graceful shutdown exceeded" not in caplog.text  # for which uvicorn would wait, and then say so
        assert here.rig.feed.readers == 0
        assert not stuck.reader.at_eof()


async def test_a_reader_that_has_gone_is_forgotten() -> None:
    async with dashboard("m") as here:
        client = await here.read()
        await told(client)
        assert here.rig.feed.readers == 1
        await client.close()
        async with asyncio.timeout(5.0):
            while here.rig.feed.readers:  # noqa: ASYNC110 - no event tells
                await asyncio.sleep(0)

"""The page to try requests: it loads nothing from elsewhere; what it sends goes to the inference port and back unchanged."""

import asyncio
import re
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from starlette.routing import Route

from dlproxy.hosts import nearby
from dlproxy.wire.catalog import Catalog
from dlproxy.wire.control.docs_page import InferencePort, docs_routes
from dlproxy.wire.control.http import control_app
from dlproxy.wire.control.server import ControlServer
from dlproxy.wire.http.exchange import Exchange

from .fixtures import Client, Reply, request, running
from .test_control_http import Pilots, Port, Remembered


class Seen:
    """An application that keeps what it was asked and answers with it, in parts where the path says so."""

    def __init__(self) -> None:
        self.asked: list[Exchange] = []

    def __call__(self, exchange: Exchange) -> None:
        self.asked.append(exchange)
        if exchange.target.startswith(b"/parts"):
            stream = exchange.begin(200, b"text/event-stream")
            for number in range(3):
                stream.write(b"data: %d\n\n" % number)
            stream.end()
        elif exchange.target.startswith(b"/none"):
            exchange.connection.abort()
        else:
            exchange.reply(418 if exchange.target == b"/odd" else 200, b"text/plain", exchange.body, b"x-more: 1\r\n")


@asynccontextmanager
async def control_port(*more: Route) -> AsyncIterator[Client]:
    app = control_app(Catalog(), lambda: 0, Port(), Pilots(), Remembered(), more)
    server, listener = ControlServer(app), socket.create_server(("127.0.0.1", 0))
    server.start(listener)
    client = Client(*await asyncio.open_connection(*listener.getsockname()))
    try:
        yield client
    finally:
        await client.close()
        await server.stop()


def routes(port: InferencePort) -> list[Route]:
    return docs_routes(lambda who, server: {"servers": [{"url": server}]}, port)


async def fetched(client: Client, target: str, method: str = "GET", body: bytes | None = None, **headers: str) -> Reply:
    client.send(request(target, method, headers, body))
    return await client.reply()


async def test_the_page_loads_nothing_and_asks_only_this_port() -> None:
    async with control_port(*routes(InferencePort("127.0.0.1", 1))) as client:
        page = await fetched(client, "/docs")
    assert page.headers["content-type"].startswith("text/html")
    assert "default-src 'none'" in page.headers["content-security-policy"]
    assert "connect-src 'self'" in page.headers["content-security-policy"]
    text = page.body.decode()
    assert not re.findall(r"(?:src|href)=\"(?!data:|/)", text), "everything is in the page itself"
    assert not re.findall(r"https?://(?!localhost)", text)
    assert "innerHTML" not in text, "what a server says is text"
    for name in set(re.findall(r"\bid\(\"([a-z-]+)\"\)", text)):
        assert f'id="{name}"' in text, name


async def test_what_is_tried_reaches_the_inference_port_and_comes_back() -> None:
    seen = Seen()
    async with running(seen) as run, control_port(*routes(InferencePort("127.0.0.1", run.port))) as client:
        reply = await fetched(
            client, "/docs/try/v2/models/a%20b/infer?x=1", "POST", b"hello", **{"X-Request-Id": "abc", "Cookie": "secret"}
        )
        assert (reply.status, reply.body) == (200, b"hello")
        assert (reply.headers["x-more"], reply.headers["x-request-id"]) == ("1", "abc")
        (asked,) = seen.asked
        assert (asked.method, asked.target, asked.body) == (b"POST", b"/v2/models/a%20b/infer?x=1", b"hello")
        assert b"cookie" not in asked.headers
        assert (await fetched(client, "/docs/try")).status == 200
        assert (await fetched(client, "/docs/try/")).status == 200
        assert [exchange.target for exchange in seen.asked[1:]] == [b"/", b"/"]


async def test_an_answer_in_parts_is_passed_on() -> None:
    async with running(Seen()) as run, control_port(*routes(InferencePort("127.0.0.1", run.port))) as client:
        client.send(request("/docs/try/parts", headers={"Connection": "close"}))
        answer = await client.rest()
    assert answer.startswith(b"HTTP/1.1 200 OK\r\n")
    assert b"content-type: text/event-stream" in answer
    assert [int(number) for number in re.findall(rb"data: (\d)", answer)] == [0, 1, 2]


async def test_without_an_answer_it_says_so() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    async with control_port(*routes(InferencePort("127.0.0.1", port))) as client:
        reply = await fetched(client, "/docs/try/v2")
        assert (reply.status, "no answer from the inference port" in reply.error) == (502, True)
    async with running(Seen()) as run, control_port(*routes(InferencePort("127.0.0.1", run.port))) as client:
        assert (await fetched(client, "/docs/try/none")).status == 502


@pytest.mark.parametrize(("site", "status"), [("cross-site", 403), ("same-site", 403), ("same-origin", 200), ("none", 200)])
async def test_pages_of_other_sites_have_no_way_through(site: str, status: int) -> None:
    seen = Seen()
    async with running(seen) as run, control_port(*routes(InferencePort("127.0.0.1", run.port))) as client:
        assert (await fetched(client, "/docs/try/v2", "POST", b"{}", **{"Sec-Fetch-Site": site})).status == status
        assert len(seen.asked) == (status == 200)


async def test_over_a_unix_socket_too(tmp_path: Path) -> None:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: text/plain\r\n\r\n" + head.split(b"\r\n")[0])
        writer.close()

    path = str(tmp_path / "s")
    server = await asyncio.start_unix_server(answer, path)
    async with control_port(*routes(InferencePort(path=path))) as client:
        found = (await fetched(client, "/openapi.json")).json()
        assert found == {"servers": [{"url": "http://localhost"}], "x-unix-socket": path}
        client.send(request("/docs/try/v2", headers={"Connection": "close"}))
        assert b"GET /v2 HTTP/1.0" in await client.rest()
    server.close()
    await server.wait_closed()


@pytest.mark.parametrize(
    ("host", "url"),
    [
        ("127.0.0.1:8002", "http://127.0.0.1:8000"),
        ("[::1]:8002", "http://[::1]:8000"),
        ("gpu.example", "http://gpu.example:8000"),
    ],
)
async def test_the_document_says_where_inference_is(host: str, url: str) -> None:
    async with control_port(*routes(InferencePort("127.0.0.1", 8000))) as client:
        found: dict[str, Any] = (await fetched(client, "/openapi.json", Host=host)).json()
    assert found["servers"] == [{"url": url}]


@pytest.mark.parametrize(
    ("host", "reached"),
    [("0.0.0.0", "127.0.0.1"), ("::", "::1"), ("[::]", "::1"), ("", "localhost"), ("[fe80::1]", "fe80::1"), ("h", "h")],
)
def test_what_listens_everywhere_is_reached_at_home(host: str, reached: str) -> None:
    assert nearby(host) == reached

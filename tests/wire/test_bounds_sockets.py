"""Connections and handshakes by address, on real sockets: who has too many is cut, slow handshakes hold nobody up, and all of
it counts down again.
"""

import asyncio
import os
import socket
import ssl
import stat
from collections.abc import AsyncIterator
from contextlib import ExitStack, asynccontextmanager, suppress

import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from dlproxy.config import ConfigError, HttpLimits
from dlproxy.config.security import TlsConfig
from dlproxy.wire.bounds import Bounds
from dlproxy.wire.control.server import ControlServer
from dlproxy.wire.grpc import frames
from dlproxy.wire.grpc.server import GrpcServer, Methods
from dlproxy.wire.handshakes import PATIENCE_S
from dlproxy.wire.http.server import HttpServer
from dlproxy.wire.listening import Listening
from dlproxy.wire.tls import HTTP, Certificates
from tests.certificates import make_certificate, trusting
from tests.instance.upstreams import until

from .fixtures import Answers, request

HERE, THERE = "127.0.0.2", "127.0.0.3"  # two clients of this machine
HELLO = request("/")


@pytest.fixture(scope="module")
def tls(tmp_path_factory: pytest.TempPathFactory) -> ssl.SSLContext:
    return Certificates(TlsConfig(cert=str(make_certificate(tmp_path_factory.mktemp("tls"))))).context(HTTP)


class Doors:
    """An HTTP and a gRPC port with the same bounds."""

    def __init__(self, limits: HttpLimits) -> None:
        self.refused: list[str] = []
        self.bounds = Bounds(limits, self.refused.append)
        self.http = HttpServer(Answers(), limits, bounds=self.bounds)
        self.grpc = GrpcServer(Methods({}, {}), limits, bounds=self.bounds)
        self.ports: dict[Listening, int] = {}
        self.open = ExitStack()

    async def start(self, tls: ssl.SSLContext | None) -> None:
        for door in (self.http, self.grpc):
            listener = socket.create_server(("127.0.0.1", 0))
            await door.start(listener, tls)
            self.ports[door] = listener.getsockname()[1]

    async def connect(self, address: str = HERE, door: Listening | None = None) -> socket.socket:
        """A connection of which nobody has sent anything."""
        sock = self.open.enter_context(socket.socket())
        sock.bind((address, 0))
        sock.setblocking(False)
        await asyncio.get_running_loop().sock_connect(sock, ("127.0.0.1", self.ports[door or self.http]))
        return sock

    async def ask(self, address: str = HERE, *, encrypted: bool = False) -> bool:
        """Whether one request over a connection of its own is answered."""
        tls = trusting() if encrypted else None
        async with asyncio.timeout(10):
            try:
                reader, writer = await asyncio.open_connection(
                    "127.0.0.1", self.ports[self.http], local_addr=(address, 0), ssl=tls
                )
            except OSError:
                return False
            try:
                writer.write(HELLO)
                return (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 200")
            except (OSError, asyncio.IncompleteReadError):
                return False
            finally:
                writer.close()
                with suppress(OSError):
                    await writer.wait_closed()


@asynccontextmanager
async def doors(tls: ssl.SSLContext | None = None, **limits: object) -> AsyncIterator[Doors]:
    """At the end nothing is left: no connection, no handshake, no file descriptor."""
    run = Doors(HttpLimits(**{"unlimited_addresses": [], **limits}))  # type: ignore[arg-type]
    await run.start(tls)
    before = _sockets() - len(run.ports)
    try:
        yield run
    finally:
        run.open.close()
        for door in run.ports:
            await door.drain(0.5)
        run.bounds.handshakes.close()
        await until(lambda: not len(run.bounds) and not len(run.bounds.handshakes))
        await until(lambda: _sockets() <= before)


def _sockets() -> int:
    """That this process has."""
    found = 0
    for number in os.listdir("/dev/fd"):
        with suppress(OSError):  # of the listing itself
            found += stat.S_ISSOCK(os.fstat(int(number)).st_mode)
    return found


async def _ended(sock: socket.socket) -> bool:
    """Reads until the server ends the connection; False if it does not."""
    loop = asyncio.get_running_loop()
    try:
        async with asyncio.timeout(10):
            while await loop.sock_recv(sock, 1 << 16):
                pass
    except ConnectionError:
        return True
    except TimeoutError:
        return False
    return True


@pytest.mark.parametrize("encrypted", [False, True])
async def test_an_address_gets_so_many_connections_over_all_ports_and_gets_them_back(
    tls: ssl.SSLContext, *, encrypted: bool
) -> None:
    async with doors(tls if encrypted else None, max_connections_per_address=4) as run:
        held = [await run.connect(HERE, door) for door in (run.http, run.grpc, run.http, run.grpc)]
        await until(lambda: not _has_room(run))
        run.refused.clear()
        assert not await run.ask(encrypted=encrypted)
        for door in (run.http, run.grpc):
            assert await _ended(await run.connect(HERE, door))
        assert await run.ask(THERE, encrypted=encrypted), "another address is not touched"
        assert run.refused == [HERE] * 3
        held[1].close()
        await until(lambda: _has_room(run))
        assert await run.ask(encrypted=encrypted)


def _has_room(run: Doors) -> bool:
    place = run.bounds.place(HERE)
    if place is not None:
        place.leave()
    return place is not None


async def test_slow_handshakes_by_hundreds_hold_nobody_up(tls: ssl.SSLContext) -> None:
    """From one address, more than there are places: silent ones, and ones that send a byte now and then."""
    async with doors(tls, max_handshakes=16, handshake_timeout_s=3.0) as run:
        loop = asyncio.get_running_loop()
        slow = [await run.connect(HERE) for _ in range(300)]
        await until(lambda: len(run.bounds.handshakes) == 300)
        for sock in slow[::2]:
            with suppress(OSError):
                sock.send(b"\x16")
        for _ in range(5):
            began_at = loop.time()
            assert await run.ask(THERE, encrypted=True)
            assert loop.time() - began_at < PATIENCE_S, "other addresses do not notice"
        began_at = loop.time()
        assert all(await asyncio.gather(*[run.ask(HERE, encrypted=True) for _ in range(3)]))
        assert loop.time() - began_at < PATIENCE_S + 2.0, "nor does an honest client of the same address wait long"
        assert all(await asyncio.gather(*map(_ended, slow)))
        assert loop.time() - began_at < 12.0, "and each slow one is cut, whether it waited or ran"


async def test_a_drain_hears_of_who_is_shaking_hands(tls: ssl.SSLContext) -> None:
    async with doors(tls) as run:
        sock = await run.connect()
        await until(lambda: len(run.bounds.handshakes) == 1)
        drain = asyncio.ensure_future(run.http.drain(5.0))
        for _ in range(50):
            await asyncio.sleep(0)
        assert not drain.done()
        reader, writer = await asyncio.open_connection(sock=sock, ssl=trusting(), server_hostname="127.0.0.1")
        writer.write(HELLO)
        assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 200")
        writer.close()
        assert await drain == 0


async def test_a_drain_does_not_wait_for_who_never_shakes_hands(tls: ssl.SSLContext, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dlproxy.wire.listening.PATIENCE_S", 0.1)
    async with doors(tls) as run:
        await run.connect()
        await until(lambda: len(run.bounds.handshakes) == 1)
        async with asyncio.timeout(5.0):
            assert await run.http.drain(60.0) == 0


async def test_a_byte_now_and_then_does_not_prolong_a_handshake(tls: ssl.SSLContext) -> None:
    async with doors(tls, handshake_timeout_s=0.6) as run:
        loop = asyncio.get_running_loop()
        sock, began_at = await run.connect(), loop.time()
        sent = 0

        def drip() -> None:
            nonlocal sent
            with suppress(OSError):
                sent += sock.send(bytes([(0x16, 3, 1, 0x7F, 0xFF)[sent]]) if sent < 5 else b"\x01")
                loop.call_later(0.1, drip)

        drip()
        assert await _ended(sock)
        assert sent > 2
        assert loop.time() - began_at < 3.0


async def test_all_places_taken_by_many_addresses_are_cleared_for_who_comes(tls: ssl.SSLContext) -> None:
    async with doors(tls, max_handshakes=8) as run:
        loop = asyncio.get_running_loop()
        for number in range(16):
            await run.connect(f"127.0.1.{number + 1}")
        began_at = loop.time()
        assert await run.ask(THERE, encrypted=True)
        assert loop.time() - began_at < PATIENCE_S * 3 + 1.0


async def test_those_that_wait_are_bounded_too(tls: ssl.SSLContext, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dlproxy.wire.handshakes.MOST_WAITING", 20)
    async with doors(tls, max_handshakes=4) as run:
        slow = [await run.connect(f"127.0.1.{number + 1}") for number in range(60)]
        await until(lambda: len(run.bounds.handshakes) == 24)
        assert all(await asyncio.gather(*map(_ended, slow[40:]))), "at once"
        assert len(run.bounds) == 24


async def test_a_handshake_that_fails_gives_its_place_back(tls: ssl.SSLContext) -> None:
    async with doors(tls, max_connections_per_address=3) as run:
        for rubbish in (b"GET / HTTP/1.1\r\n\r\n", b"\x16\x03\x01\xff\xff" + bytes(70000), b"", frames.PREFACE):
            for _ in range(3):
                sock = await run.connect()
                with suppress(OSError):
                    sock.send(rubbish)
                sock.shutdown(socket.SHUT_WR)
                assert await _ended(sock)
        await until(lambda: not len(run.bounds))
        assert await run.ask(encrypted=True)


async def test_many_honest_clients_of_one_address_at_once_all_come_in(tls: ssl.SSLContext) -> None:
    """As behind a load balancer that has lost all its connections."""
    async with doors(tls, max_handshakes=8) as run:
        assert all(await asyncio.gather(*[run.ask(HERE, encrypted=True) for _ in range(100)]))


@pytest.mark.parametrize(
    "sent",
    [
        b"",
        b"GET /healthz HT",
        b"POST /models/m/unload HTTP/1.1\r\nhost: localhost\r\ncontent-length: 100\r\n\r\n{",
        b"GET /large HTTP/1.1\r\nhost: localhost\r\n\r\n",
    ],
    ids=["silent", "half a header", "half a body", "does not read"],
)
async def test_nobody_keeps_a_connection_of_the_control_port_for_ever(sent: bytes) -> None:
    async def read_all(asked: Request) -> Response:
        return Response(await asked.body())

    async def large(_: Request) -> Response:
        return Response(bytes(1 << 24))

    routes = [Route("/healthz", read_all), Route("/models/m/unload", read_all, methods=["POST"]), Route("/large", large)]
    limits = HttpLimits(
        header_timeout_s=0.3, body_timeout_s=0.3, write_timeout_s=0.3, max_connections_per_address=1, unlimited_addresses=[]
    )
    bounds = Bounds(limits)
    server, listener = ControlServer(Starlette(routes=routes), None, limits, bounds), socket.create_server(("127.0.0.1", 0))
    port = listener.getsockname()[1]
    server.start(listener)
    _, writer = await asyncio.open_connection("127.0.0.1", port, limit=1024)
    writer.write(sent)
    await until(lambda: len(bounds) == 1)
    other, another = await asyncio.open_connection("127.0.0.1", port)
    with suppress(ConnectionError):
        assert await other.read() == b"", "one too many"
    await until(lambda: not len(bounds))
    writer.close()
    with suppress(ConnectionError):
        await writer.wait_closed()
    again, honest = await asyncio.open_connection("127.0.0.1", port)
    honest.write(b"GET /healthz HTTP/1.1\r\nhost: localhost\r\n\r\n")
    assert (await again.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 200")
    for one in (another, honest):
        one.close()
        with suppress(ConnectionError):
            await one.wait_closed()
    await server.stop()
    await until(lambda: not len(bounds))


async def test_this_machine_is_not_limited_by_default() -> None:
    limits = HttpLimits(max_connections_per_address=1)
    bounds = Bounds(limits)
    assert all(bounds.place(address) for address in ("127.0.0.1", "127.9.9.9", "::1", "::ffff:127.0.0.1", "") for _ in range(3))
    assert len(bounds) == 0
    assert [bounds.place("10.0.0.1") is not None for _ in range(2)] == [True, False]


async def test_addresses_are_counted_as_those_who_give_them_out_do() -> None:
    bounds = Bounds(HttpLimits(max_connections_per_address=2, unlimited_addresses=["10.1.0.0/16", "2001:db8:1::7"]))
    assert [bounds.place(f"2001:db8::{number}") is not None for number in range(3)] == [True, True, False]
    assert bounds.place("2001:db8:0:1::1") is not None, "of the next /64"
    assert [bounds.place(address) is not None for address in ("192.0.2.1", "::ffff:192.0.2.1", "192.0.2.1")] == [
        *(True, True, False)
    ]
    assert all(bounds.place(address) for address in ("10.1.2.3", "2001:db8:1::9", "fe80::1%eth0") for _ in range(2))
    place = bounds.place("198.51.100.1")
    assert place is not None
    for _ in range(3):
        place.leave()
    assert [bounds.place("198.51.100.1") is not None for _ in range(3)] == [True, True, False]
    with pytest.raises(ConfigError, match="'here' is no address or network"):
        Bounds(HttpLimits(unlimited_addresses=["here"]))


def test_refused_connections_are_warned_of_now_and_then(caplog: pytest.LogCaptureFixture) -> None:
    now = [0.0]
    bounds = Bounds(HttpLimits(max_connections_per_address=1), clock=lambda: now[0])
    for number in range(100):
        now[0] = number * 0.15
        bounds.place("192.0.2.1")
    assert [record.args for record in caplog.records] == [(1, "192.0.2.1", 1), (67, "192.0.2.1", 1)]

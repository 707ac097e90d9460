"""Locks on a running server: TLS on every port; certificates renewed and keys revoked under load. See test_lock_matrix.py."""

import asyncio
import http.client
import json
import ssl
from collections.abc import Iterator
from contextlib import suppress

import pytest

from dlproxy.wire.identity import key_file

from ..serve.rig import pass_time
from .locked_server import Credentials, LockedServer

INFER = {"inputs": [[1.0]]}
CLIENTS = 64
CONFIG = """
[tls]
cert = "server.pem"
[auth]
keys = "keys.toml"
[models.m]
path = "sleep:base=1ms"
"""


@pytest.fixture(scope="module")
def has(tmp_path_factory: pytest.TempPathFactory) -> Credentials:
    return Credentials(tmp_path_factory.mktemp("locked"))


@pytest.fixture(scope="module")
def server(has: Credentials) -> Iterator[LockedServer]:
    (has.folder / "dlproxy.toml").write_text(CONFIG)
    made = LockedServer(has, unix=False)
    yield made
    made.close()


@pytest.mark.parametrize(
    ("method", "path", "who", "status"),
    [
        ("GET", "/healthz", "nothing", 200),
        ("GET", "/metrics", "nothing", 401),
        ("GET", "/metrics", "wrong scope", 200),
        ("GET", "/models", "wrong scope", 403),
        ("GET", "/models", "ops", 200),
        ("PATCH", "/models/m", "wrong scope", 403),
        ("PATCH", "/models/m", "ops", 200),
        ("GET", "/cache", "wrong scope", 403),
        ("GET", "/cache/m", "ops", 200),
        ("POST", "/cache/clear", "nothing", 401),
        ("POST", "/cache/clear", "key", 403),
        ("POST", "/cache/clear", "ops", 200),
    ],
)
def test_what_one_may_do_on_the_control_port(server: LockedServer, method: str, path: str, who: str, status: int) -> None:
    """A key whose scope is wrong for models is that of a scraper of metrics."""
    body = {"max_wait_s": 0.0} if method == "PATCH" else None
    assert server.http("control", path, body, who=who, method=method)[0] == status


@pytest.mark.parametrize("door", ["http_port", "grpc_port", "control_port"])
@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1, ssl.TLSVersion.TLSv1_1])
def test_old_tls_and_none_are_refused(server: LockedServer, door: str, version: ssl.TLSVersion) -> None:
    port, context = getattr(server.process, door), server.has.tls()
    context.set_ciphers("ALL:@SECLEVEL=0")
    with pytest.warns(DeprecationWarning, match="TLSv1"):
        context.minimum_version = context.maximum_version = version
    connection = http.client.HTTPSConnection("127.0.0.1", port, context=context, timeout=10)
    with pytest.raises((ssl.SSLError, ConnectionError)):
        connection.connect()
    plain = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    plain.request("GET", "/v2/health/live")
    with pytest.raises((http.client.BadStatusLine, ConnectionError)):
        plain.getresponse()
    plain.close()


@pytest.mark.alone
async def test_renewed_certificates_and_revoked_keys_under_load(has: Credentials, server: LockedServer) -> None:
    revoked_at: list[float] = []
    loop, port, data = asyncio.get_running_loop(), server.process.http_port, json.dumps(INFER)
    assert server.http("http", "/predict/m", INFER, who="going")[0] == 200
    keys = [has.sent["key"], has.sent["going"]]
    late: list[float] = []
    answers = {200: 0, 401: 0}
    done = asyncio.Event()

    async def client(number: int) -> None:
        going, context = number % 2, has.tls()
        reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=context)
        ask = f"POST /predict/m HTTP/1.1\r\nhost: m\r\nx-api-key: {keys[going]}\r\ncontent-length: {len(data)}\r\n\r\n{data}"
        while not done.is_set():
            sent_at = loop.time()
            writer.write(ask.encode())
            head = await reader.readuntil(b"\r\n\r\n")
            length = int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0])
            await reader.readexactly(length)
            status = int(head.split()[1])
            answers[status] += 1
            assert status == 200 or (going and revoked_at)
            if going and status == 200 and revoked_at and sent_at - revoked_at[0] > 0.0:
                late.append(sent_at - revoked_at[0])
            if status == 401:  # the connection ends with it
                await _closed(writer)
                reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=context)
        await _closed(writer)

    async def operator() -> None:
        for number in range(3):
            await pass_time(0.7)
            await loop.run_in_executor(None, lambda number=number: has.authority.issue(f"renewed-{number}", file="server"))
        revoked_at.append(loop.time())
        await loop.run_in_executor(None, key_file.revoke, has.keys, "going")
        await pass_time(2.0)
        done.set()

    async with asyncio.TaskGroup() as group:
        for number in range(CLIENTS):
            group.create_task(client(number))
        group.create_task(operator())
    assert answers[200] > 4 * CLIENTS
    assert answers[401] > CLIENTS
    assert max(late, default=0.0) <= 1.0
    _, writer = await asyncio.open_connection("127.0.0.1", port, ssl=has.tls())
    shown = writer.get_extra_info("peercert")["subject"]
    await _closed(writer)
    assert shown == ((("commonName", "renewed-2"),),)


async def _closed(writer: asyncio.StreamWriter) -> None:
    """TLS takes a while to end; a loop that is closed before leaves the socket behind."""
    writer.close()
    with suppress(ssl.SSLError, ConnectionError):
        await writer.wait_closed()

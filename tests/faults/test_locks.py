"""Locks on a running server: TLS on every port; certificates renewed and keys revoked under load. See test_lock_matrix.py."""

import asyncio
import http.client
import json
import ssl
from collections.abc import Iterator
from contextlib import suppress
from math import inf

import pytest

from dlproxy.wire.identity import key_file

from ..serve.rig import pass_time
from .locked_server import Credentials, LockedServer

INFER = {"inputs": [[1.0]]}
CLIENTS = 64
HANG_S = 120.0
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


async def test_renewed_certificates_and_revoked_keys_under_load(has: Credentials, server: LockedServer) -> None:
    """Each step waits for what the last has brought about, for however long that takes: nobody is ever refused wrongly."""
    revoking = False
    revoked_at = inf
    loop, port, data = asyncio.get_running_loop(), server.process.http_port, json.dumps(INFER)
    assert server.http("http", "/predict/m", INFER, who="going")[0] == 200
    keys = [has.sent["key"], has.sent["going"]]
    late = [0.0]
    answers = [{200: 0, 401: 0} for _ in range(CLIENTS)]
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
            answers[number][status] += 1
            assert status == 200 or (going and revoking)
            if going and status == 200:
                late.append(sent_at - revoked_at)
            if status == 401:  # the connection ends with it
                await _closed(writer)
                reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=context)
        await _closed(writer)

    async def each_hears(status: int, numbers: range) -> None:
        heard = {number: answers[number][status] for number in numbers}
        while any(answers[number][status] == before for number, before in heard.items()):
            await pass_time(0.02)

    async def operator() -> None:
        nonlocal revoking, revoked_at
        for name in ("renewed-0", "renewed-1", "renewed-2"):
            await each_hears(200, range(CLIENTS))
            await loop.run_in_executor(None, lambda name=name: has.authority.issue(name, file="server"))
            while await _shown(port, has) != name:
                await pass_time(0.1)
        await each_hears(200, range(CLIENTS))
        revoking = True
        await loop.run_in_executor(None, key_file.revoke, has.keys, "going")
        revoked_at = loop.time()
        await each_hears(401, range(1, CLIENTS, 2))
        await pass_time(1.0)  # whoever is still let in asks once more
        await each_hears(401, range(1, CLIENTS, 2))
        await each_hears(200, range(0, CLIENTS, 2))
        done.set()

    async with asyncio.timeout(HANG_S), asyncio.TaskGroup() as group:
        for number in range(CLIENTS):
            group.create_task(client(number))
        group.create_task(operator())
    assert max(late) <= 1.0, "what was sent a second after the key was revoked was answered"


async def _shown(port: int, has: Credentials) -> str:
    """The name on the certificate that a new connection is shown."""
    _, writer = await asyncio.open_connection("127.0.0.1", port, ssl=has.tls())
    (((_, name),),) = writer.get_extra_info("peercert")["subject"]
    await _closed(writer)
    return str(name)


async def _closed(writer: asyncio.StreamWriter) -> None:
    """TLS takes a while to end; a loop that is closed before leaves the socket behind."""
    writer.close()
    with suppress(ssl.SSLError, ConnectionError):
        await writer.wait_closed()

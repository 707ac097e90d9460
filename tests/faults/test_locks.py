"""Locks on a running server: TLS on every port; certificates renewed and keys revoked under load. See test_lock_matrix.py."""

import asyncio
import http.client
import json
import ssl
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from dlproxy.wire.identity import key_file

from ..certificates import Authority
from ..clients.server import ServerProcess

INFER = json.dumps({"inputs": [[1.0]]})
CLIENTS = 64


class Locked:
    """A server with TLS, keys and rules; and those who try to get in."""

    def __init__(self, folder: Path) -> None:
        self.authority = Authority(folder, "ours")
        self.folder, self.keys = folder, folder / "keys.toml"
        self.key = {
            "infer": key_file.create(self.keys, "infer", scopes=["infer"], models=["*"]),
            "ops": key_file.create(self.keys, "ops", scopes=["admin"], models=["*"]),
            "scraper": key_file.create(self.keys, "scraper", scopes=["metrics"], models=["*"]),
        }
        self.authority.issue("server")
        (folder / "dlproxy.toml").write_text(
            """
[tls]
cert = "server.pem"
[auth]
keys = "keys.toml"
[models.m]
path = "sleep:base=1ms"
"""
        )

    def trust(self) -> ssl.SSLContext:
        return ssl.create_default_context(cafile=str(self.authority.path))

    def ask(self, port: int, method: str, path: str, *, key: str = "", body: str | None = None) -> int:
        """Its status."""
        connection = http.client.HTTPSConnection("127.0.0.1", port, context=self.trust(), timeout=10)
        try:
            connection.request(method, path, body, {"authorization": f"Bearer {self.key[key]}"} if key else {})
            return connection.getresponse().status
        finally:
            connection.close()


@pytest.fixture(scope="module")
def locked(tmp_path_factory: pytest.TempPathFactory) -> Locked:
    return Locked(tmp_path_factory.mktemp("locked"))


@pytest.fixture(scope="module")
def server(locked: Locked) -> Iterator[ServerProcess]:
    with ServerProcess("--config", locked.folder / "dlproxy.toml") as running:
        yield running


@pytest.mark.parametrize(
    ("method", "path", "key", "status"),
    [
        ("GET", "/healthz", "", 200),
        ("GET", "/metrics", "", 401),
        ("GET", "/metrics", "scraper", 200),
        ("GET", "/models", "scraper", 403),
        ("GET", "/models", "ops", 200),
        ("PATCH", "/models/m", "scraper", 403),
        ("PATCH", "/models/m", "ops", 200),
        ("GET", "/cache", "scraper", 403),
        ("GET", "/cache/m", "ops", 200),
        ("POST", "/cache/clear", "", 401),
        ("POST", "/cache/clear", "infer", 403),
        ("POST", "/cache/clear", "ops", 200),
    ],
)
def test_what_one_may_do_on_the_control_port(
    locked: Locked, server: ServerProcess, method: str, path: str, key: str, status: int
) -> None:
    body = '{"max_wait_s": 0.0}' if method == "PATCH" else None
    assert locked.ask(server.control_port, method, path, key=key, body=body) == status


@pytest.mark.parametrize("door", ["http_port", "grpc_port", "control_port"])
@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1, ssl.TLSVersion.TLSv1_1])
def test_old_tls_and_none_are_refused(locked: Locked, server: ServerProcess, door: str, version: ssl.TLSVersion) -> None:
    port = getattr(server, door)
    context = locked.trust()
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
async def test_renewed_certificates_and_revoked_keys_under_load(locked: Locked, server: ServerProcess) -> None:
    revoked_at: list[float] = []
    loop = asyncio.get_running_loop()
    locked.key["going"] = key_file.create(locked.keys, "going", scopes=["infer"], models=["*"])
    await asyncio.wait_for(_until_known(locked, server), 10)
    keys = [locked.key["infer"], locked.key["going"]]
    late: list[float] = []
    answers = {200: 0, 401: 0}
    done = asyncio.Event()

    async def client(number: int) -> None:
        going, context = number % 2, locked.trust()
        reader, writer = await asyncio.open_connection("127.0.0.1", server.http_port, ssl=context)
        ask = f"POST /predict/m HTTP/1.1\r\nhost: m\r\nx-api-key: {keys[going]}\r\ncontent-length: {len(INFER)}\r\n\r\n{INFER}"
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
                reader, writer = await asyncio.open_connection("127.0.0.1", server.http_port, ssl=context)
        await _closed(writer)

    async def operator() -> None:
        for number in range(3):
            await _after(loop, 0.7)
            await loop.run_in_executor(None, lambda number=number: locked.authority.issue(f"renewed-{number}", file="server"))
        revoked_at.append(loop.time())
        await loop.run_in_executor(None, key_file.revoke, locked.keys, "going")
        await _after(loop, 2.0)
        done.set()

    async with asyncio.TaskGroup() as group:
        for number in range(CLIENTS):
            group.create_task(client(number))
        group.create_task(operator())
    assert answers[200] > 4 * CLIENTS
    assert answers[401] > CLIENTS
    assert max(late, default=0.0) <= 1.0
    _, writer = await asyncio.open_connection("127.0.0.1", server.http_port, ssl=locked.trust())
    shown = writer.get_extra_info("peercert")["subject"]
    await _closed(writer)
    assert shown == ((("commonName", "renewed-2"),),)


async def _closed(writer: asyncio.StreamWriter) -> None:
    """TLS takes a while to end; a loop that is closed before leaves the socket behind."""
    writer.close()
    with suppress(ssl.SSLError, ConnectionError):
        await writer.wait_closed()


async def _until_known(locked: Locked, server: ServerProcess) -> None:
    loop = asyncio.get_running_loop()
    while (
        await loop.run_in_executor(None, lambda: locked.ask(server.http_port, "POST", "/predict/m", key="going", body=INFER))
        != 200
    ):
        await _after(loop, 0.2)


async def _after(loop: asyncio.AbstractEventLoop, seconds: float) -> None:
    passed = loop.create_future()
    loop.call_later(seconds, passed.set_result, None)
    await passed

"""Locks on a running server, on every port: TLS, clients' certificates, keys and rights; renewed and revoked under load."""

import asyncio
import http.client
import json
import ssl
from collections.abc import Iterator
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import grpc
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID

from dlproxy.protos.oip import oip
from dlproxy.wire.identity import key_file

from ..clients.server import ServerProcess

INFER = json.dumps({"inputs": [[1.0]]})
DAY = timedelta(days=1)
CLIENTS = 64


def _asks(model: str) -> Any:
    tensor = oip.ModelInferRequest.InferInputTensor(name="x", datatype="FP32", shape=[1, 1])
    return oip.ModelInferRequest(model_name=model, inputs=[tensor], raw_input_contents=[bytes(4)])


class Authority:
    """Signs certificates, which are files in a folder."""

    def __init__(self, folder: Path, name: str) -> None:
        self._folder, self._name = folder, name
        self._key = ec.generate_private_key(ec.SECP256R1())
        self.certificate = self._signed(name, self._key, authority=True)
        self.path = folder / f"{name}.ca.pem"
        self.path.write_bytes(self.certificate.public_bytes(Encoding.PEM))

    def issue(self, name: str, *, file: str = "", days: float = 1.0) -> Path:
        """A certificate with its key, in one file."""
        key = ec.generate_private_key(ec.SECP256R1())
        certificate = self._signed(name, key, days=days)
        path = self._folder / f"{file or name}.pem"
        pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()) + certificate.public_bytes(Encoding.PEM)
        path.with_suffix(".new").write_bytes(pem)
        path.with_suffix(".new").replace(path)
        return path

    def _signed(
        self, name: str, key: ec.EllipticCurvePrivateKey, *, authority: bool = False, days: float = 1.0
    ) -> x509.Certificate:
        now = datetime.now(UTC)
        made = (
            x509.CertificateBuilder()
            .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)]))
            .issuer_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, self._name)]))
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - 2 * DAY)
            .not_valid_after(now + days * DAY)
            .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ip_address("127.0.0.1"))]), critical=False)
            .add_extension(x509.BasicConstraints(ca=authority, path_length=None), critical=True)
        )
        return made.sign(self._key, hashes.SHA256())


class Locked:
    """A server with TLS, keys and rules; and those who try to get in."""

    def __init__(self, folder: Path) -> None:
        self.authority, self.stranger = Authority(folder, "ours"), Authority(folder, "theirs")
        self.folder, self.keys = folder, folder / "keys.toml"
        self.key = {
            name: key_file.create(self.keys, name, scopes=[scope], models=[models])
            for name, scope, models in (
                *(("infer", "infer", "m"), ("other", "infer", "other"), ("ops", "admin", "*"), ("scraper", "metrics", "*")),
                ("revoked", "infer", "*"),
            )
        }
        self.key["expired"] = key_file.create(
            self.keys, "expired", scopes=["infer"], models=["*"], expires=datetime.now(UTC) - DAY
        )
        key_file.revoke(self.keys, "revoked")
        self.key["wrong"] = self.key["infer"][:-2] + "xx"
        self.authority.issue("server")
        (folder / "dlproxy.toml").write_text(
            f"""
[tls]
cert = "server.pem"
clients = "optional"
client_ca = "{self.authority.path.name}"
[auth]
keys = "keys.toml"
[grants.shops]
who = "cert:shop-*"
models = ["m"]
[models.m]
path = "sleep:base=1ms"
[models.n]
path = "sleep:base=1ms"
"""
        )

    def trust(self, certificate: Path | None = None) -> ssl.SSLContext:
        context = ssl.create_default_context(cafile=str(self.authority.path))
        if certificate is not None:
            context.load_cert_chain(certificate)
        return context

    def ask(
        self, port: int, method: str, path: str, *, key: str = "", body: str | None = None, certificate: Path | None = None
    ) -> int:
        """Its status."""
        connection = http.client.HTTPSConnection("127.0.0.1", port, context=self.trust(certificate), timeout=10)
        try:
            connection.request(method, path, body, {"authorization": f"Bearer {self.key[key]}"} if key else {})
            return connection.getresponse().status
        finally:
            connection.close()

    def call(
        self, port: int, method: str = "ModelInfer", message: bytes = b"", *, key: str = "", certificate: Path | None = None
    ) -> grpc.StatusCode:
        pem = certificate.read_bytes() if certificate is not None else None
        credentials = grpc.ssl_channel_credentials(self.authority.path.read_bytes(), pem, pem)
        metadata = (("authorization", f"Bearer {self.key[key]}"),) if key else ()
        with grpc.secure_channel(f"127.0.0.1:{port}", credentials) as channel:
            try:
                channel.unary_unary(f"/inference.GRPCInferenceService/{method}")(message, metadata=metadata, timeout=10)
            except grpc.RpcError as error:
                return error.code()
        return grpc.StatusCode.OK


@pytest.fixture(scope="module")
def locked(tmp_path_factory: pytest.TempPathFactory) -> Locked:
    return Locked(tmp_path_factory.mktemp("locked"))


@pytest.fixture(scope="module")
def server(locked: Locked) -> Iterator[ServerProcess]:
    with ServerProcess("--config", locked.folder / "dlproxy.toml") as running:
        yield running


@pytest.mark.parametrize(
    ("key", "status"),
    [("", 401), ("wrong", 401), ("revoked", 401), ("expired", 401), ("other", 403), ("ops", 403), ("infer", 200)],
)
def test_who_may_infer(locked: Locked, server: ServerProcess, key: str, status: int) -> None:
    assert locked.ask(server.http_port, "POST", "/predict/m", key=key, body=INFER) == status


@pytest.mark.parametrize(
    ("method", "path", "key", "status"),
    [
        ("GET", "/v2/health/live", "", 200),
        ("GET", "/v2/models/m", "", 401),
        ("GET", "/v2/models/m", "infer", 403),
        ("GET", "/v2/models/m", "ops", 200),
        ("POST", "/v2/repository/models/m/load", "infer", 403),
        ("POST", "/predict/n", "infer", 403),
    ],
)
def test_what_one_may_do_on_the_inference_port(
    locked: Locked, server: ServerProcess, method: str, path: str, key: str, status: int
) -> None:
    body = INFER if path.startswith("/predict") else None
    assert locked.ask(server.http_port, method, path, key=key, body=body) == status


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


M, N, NAMED = (
    *(_asks(name).SerializeToString() for name in ("m", "n")),
    oip.ModelMetadataRequest(name="m").SerializeToString(),
)


@pytest.mark.parametrize(
    ("method", "message", "key", "code"),
    [
        ("ServerLive", b"", "", grpc.StatusCode.OK),
        ("ModelInfer", M, "", grpc.StatusCode.UNAUTHENTICATED),
        ("ModelInfer", M, "wrong", grpc.StatusCode.UNAUTHENTICATED),
        ("ModelInfer", M, "revoked", grpc.StatusCode.UNAUTHENTICATED),
        ("ModelInfer", M, "expired", grpc.StatusCode.UNAUTHENTICATED),
        ("ModelInfer", M, "infer", grpc.StatusCode.OK),
        ("ModelInfer", N, "infer", grpc.StatusCode.PERMISSION_DENIED),
        ("ModelInfer", M, "ops", grpc.StatusCode.PERMISSION_DENIED),
        ("ModelMetadata", NAMED, "infer", grpc.StatusCode.PERMISSION_DENIED),
        ("ModelMetadata", NAMED, "ops", grpc.StatusCode.OK),
        ("RepositoryModelUnload", b"", "infer", grpc.StatusCode.PERMISSION_DENIED),
    ],
)
def test_what_one_may_do_over_grpc(
    locked: Locked, server: ServerProcess, method: str, message: bytes, key: str, code: grpc.StatusCode
) -> None:
    assert locked.call(server.grpc_port, method, message, key=key) is code


def test_clients_certificates(locked: Locked, server: ServerProcess) -> None:
    shop, bank = locked.authority.issue("shop-1"), locked.authority.issue("bank")
    assert locked.ask(server.http_port, "POST", "/predict/m", body=INFER, certificate=shop) == 200
    assert locked.ask(server.http_port, "POST", "/predict/n", body=INFER, certificate=shop) == 403
    assert locked.ask(server.http_port, "POST", "/predict/m", body=INFER, certificate=bank) == 403
    assert locked.call(server.grpc_port, message=M, certificate=shop) is grpc.StatusCode.OK
    for bad in (locked.authority.issue("shop-2", days=-1), locked.stranger.issue("shop-3")):
        with pytest.raises((ssl.SSLError, ConnectionError, http.client.RemoteDisconnected)):
            locked.ask(server.http_port, "POST", "/predict/m", body=INFER, certificate=bad)
        assert locked.call(server.grpc_port, certificate=bad) is grpc.StatusCode.UNAVAILABLE


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
                writer.close()
                reader, writer = await asyncio.open_connection("127.0.0.1", server.http_port, ssl=context)
        writer.close()
        with suppress(ssl.SSLError, ConnectionError):
            await writer.wait_closed()

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
    assert answers[200] > 1000
    assert answers[401] > 100
    assert max(late, default=0.0) <= 1.0
    _, writer = await asyncio.open_connection("127.0.0.1", server.http_port, ssl=locked.trust())
    shown = writer.get_extra_info("peercert")["subject"]
    writer.close()
    assert shown == ((("commonName", "renewed-2"),),)


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


def test_nothing_that_was_written_holds_a_secret(locked: Locked, server: ServerProcess) -> None:
    for key in ("wrong", "infer"):
        locked.ask(server.http_port, "POST", f"/predict/m?{key}", key=key, body=INFER)
    page = http.client.HTTPSConnection("127.0.0.1", server.control_port, context=locked.trust(), timeout=10)
    page.request("GET", "/metrics", headers={"authorization": f"Bearer {locked.key['scraper']}"})
    written = page.getresponse().read() + server.errors().encode() + server.report.encode()
    page.close()
    for key in locked.key.values():
        assert key.split("_", 2)[2].encode() not in written

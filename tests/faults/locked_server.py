"""A server with every lock on every door, and clients that try to get in: for the tests of locks."""

import base64
import hashlib
import hmac
import http.client
import itertools
import json
import socket
import ssl
import threading
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import grpc
import jwt
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from dlproxy.wire.identity import key_file

from ..certificates import DAY, Authority
from ..clients.server import ServerProcess

HANG_S = 20.0
SECRET_MODEL = "vault-7f3a"  # whose name nobody but the operators may learn
_addresses = (f"127.77.{high}.{low}" for high, low in itertools.product(range(1, 250), range(1, 250)))


class Credentials:
    """Of every kind, by names: what is sent, and the certificates that are shown."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.keys = folder, folder / "keys.toml"
        self.authority, self.stranger = Authority(folder, "ours"), Authority(folder, "theirs")
        self.sent: dict[str, str] = {"nothing": ""}
        now = datetime.now(UTC)
        for name, scopes, models, more in (
            *(("key", ["infer", "read"], ["m"], {}), ("revoked", ["infer", "read"], ["*"], {})),
            ("expired", ["infer", "read"], ["*"], {"expires": now - DAY}),
            ("not valid yet", ["infer", "read"], ["*"], {"not_before": now + DAY}),
            ("going", ["infer"], ["m"], {}),
            *(("wrong scope", ["metrics"], ["*"], {}), ("wrong model", ["infer", "read"], ["n*"], {})),
            *(("shop", ["infer", "admin"], ["m*"], {}), ("ops", ["infer", "admin"], ["*"], {})),
        ):
            self.sent[name] = key_file.create(self.keys, name.replace(" ", "-"), scopes=scopes, models=models, **more)  # type: ignore[arg-type]
        key_file.revoke(self.keys, "revoked")
        self.sent["wrong key"] = self.sent["key"][:-3] + "xyz"
        self._add_tokens(now.timestamp())
        self.certificates = {
            "shop": self.authority.issue("shop-1"),
            "nobody": self.authority.issue("bank"),
            "expired": self.authority.issue("shop-2", days=-1),
            "not valid yet": self.authority.issue("shop-3", days=3, from_days=2),
            "of others": self.stranger.issue("shop-4"),
        }
        self.authority.issue("server")

    def _add_tokens(self, now: float) -> None:
        private = rsa.generate_private_key(65537, 2048)
        jwk = {**json.loads(jwt.algorithms.RSAAlgorithm.to_jwk(private.public_key())), "kid": "one"}
        (self.folder / "jwks.json").write_text(json.dumps({"keys": [jwk]}))
        claims = {"sub": "ann", "iss": "https://login.example", "aud": "dlproxy", "exp": now + 3600}

        def token(key: Any = private, algorithm: str = "RS256", **changed: Any) -> str:
            return jwt.encode({**claims, **changed}, key, algorithm=algorithm, headers={"kid": "one"})

        def part(value: dict[str, Any]) -> str:
            return base64.urlsafe_b64encode(json.dumps(value).encode()).rstrip(b"=").decode()

        public = private.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
        confused = f"{part({'alg': 'HS256', 'kid': 'one'})}.{part(claims)}"
        digest = base64.urlsafe_b64encode(hmac.digest(public, confused.encode(), hashlib.sha256)).rstrip(b"=").decode()
        self.sent |= {
            "token": token(),
            "expired token": token(exp=now - 600),
            "token not valid yet": token(nbf=now + 3600),
            "wrong issuer": token(iss="https://evil.example"),
            "wrong audience": token(aud="another"),
            "alg: none": token(None, "none"),
            "RS/HS confusion": f"{confused}.{digest}",
            "another's signature": token(rsa.generate_private_key(65537, 2048)),
            "token for something else": token(scope="metrics"),
            "token of nobody": token(sub="eve"),
        }

    @property
    def secrets(self) -> dict[str, str]:
        """What nobody may find anywhere: of keys the part after the id, of tokens the signature, of private keys a line."""
        found = {name: text.rpartition(".")[2] or text for name, text in self.sent.items() if text.count(".") == 2}
        found |= {name: text.split("_", 2)[2] for name, text in self.sent.items() if text.startswith("dlp_")}
        lines = {name: path.read_text().splitlines()[1] for name, path in self.certificates.items()}
        server = (self.folder / "server.pem").read_text().splitlines()[1]
        return {**found, "server's private key": server, **{f"private key: {name}": line for name, line in lines.items()}}

    def tls(self, certificate: str = "") -> ssl.SSLContext:
        context = ssl.create_default_context(cafile=str(self.authority.path))
        if certificate:
            context.load_cert_chain(self.certificates[certificate])
        return context


class Relay:
    """A port that passes on to another, and comes there from a new address each time: who guesses has to wait by address."""

    def __init__(self, port: int) -> None:
        self._to = port
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self._accepting = threading.Thread(target=self._serve)
        self._accepting.start()

    def close(self) -> None:
        """Once nobody uses it any more."""
        self._listener.shutdown(socket.SHUT_RDWR)
        self._accepting.join()

    def _serve(self) -> None:
        connections = []
        with self._listener, suppress(OSError):
            while True:
                near, _ = self._listener.accept()
                connections.append(threading.Thread(target=self._connect, args=(near,)))
                connections[-1].start()
        for connection in connections:
            connection.join()

    def _connect(self, near: socket.socket) -> None:
        with near, socket.create_connection(("127.0.0.1", self._to), source_address=(next(_addresses), 0)) as far:
            back = threading.Thread(target=_pass_on, args=(far, near))
            back.start()
            _pass_on(near, far)
            back.join()


def _pass_on(source: socket.socket, target: socket.socket) -> None:
    with suppress(OSError):
        while data := source.recv(65536):
            target.sendall(data)
    with suppress(OSError):
        target.shutdown(socket.SHUT_WR)


class _Connection(http.client.HTTPSConnection):
    """Over a Unix socket, if a path is given; else from an address of its own."""

    def __init__(self, port: int, path: str, context: ssl.SSLContext) -> None:
        super().__init__("127.0.0.1", port, context=context, timeout=HANG_S)
        self._path, self._tls = path, context

    def connect(self) -> None:
        if self._path:
            plain = socket.socket(socket.AF_UNIX)
            plain.settimeout(HANG_S)
            plain.connect(self._path)
        else:
            plain = socket.create_connection((self.host, self.port), HANG_S, source_address=(next(_addresses), 0))
        self.sock = self._tls.wrap_socket(plain, server_hostname=self.host)


CUT = "cut"
"""Instead of a status: there was no connection."""


class LockedServer:
    """TLS on every port; HTTP on a socket where `unix`. `who`: what is sent of Credentials, `certificate`: what is shown."""

    def __init__(self, has: Credentials, *arguments: str, unix: bool = True) -> None:
        self.has = has
        self.path = str(has.folder / "s")
        ports = [word for name in ("grpc", "tfs-grpc", "tfs-http") for word in (f"--{name}-port", "0")]
        ports += ["--uds", self.path] if unix else []
        self.process = ServerProcess("--config", has.folder / "dlproxy.toml", "--tfs", *ports, *arguments)
        self._relays = {port: Relay(port) for port in (self.process.grpc_port, self.process.tfs_grpc_port)}

    def close(self) -> None:
        self.process.__exit__(None, None, None)
        for relay in self._relays.values():
            relay.close()

    def http(
        self, door: str, target: str, body: Any = None, *, who: str = "nothing", certificate: str = "", method: str = ""
    ) -> tuple[int | str, bytes]:
        """`door`: unix, or the name of a port. Status and body."""
        port = 0 if door == "unix" else getattr(self.process, f"{door}_port")
        connection = _Connection(port, self.path if door == "unix" else "", self.has.tls(certificate))
        data = body if isinstance(body, bytes | None) else json.dumps(body).encode()
        headers = {"authorization": f"Bearer {self.has.sent[who]}"} if self.has.sent[who] else {}
        try:
            connection.request(method or ("GET" if data is None else "POST"), target, data, headers)
            reply = connection.getresponse()
            return reply.status, reply.read()
        except (ssl.SSLError, ConnectionError, http.client.RemoteDisconnected):
            return CUT, b""
        finally:
            connection.close()

    def rpc(
        self, door: str, method: str, message: bytes, *, who: str = "nothing", certificate: str = "", stream: bool = False
    ) -> tuple[str, str, bytes]:
        """Status, its words, and the last message of the answer."""
        pem = self.has.certificates[certificate].read_bytes() if certificate else None
        credentials = grpc.ssl_channel_credentials(self.has.authority.path.read_bytes(), pem, pem)
        metadata = [("triton_grpc_error", "true")]
        metadata += [("authorization", f"Bearer {self.has.sent[who]}")] if self.has.sent[who] else []
        port = self._relays[getattr(self.process, f"{door}_port")].port
        with grpc.secure_channel(f"127.0.0.1:{port}", credentials) as channel:
            try:
                if stream:
                    answers = channel.stream_stream(method)(iter([message]), metadata=metadata, timeout=HANG_S)
                    return "OK", "", list(answers)[-1]
                return "OK", "", channel.unary_unary(method)(message, metadata=metadata, timeout=HANG_S)
            except grpc.RpcError as error:
                status = error.code().name
                return CUT if status == "UNAVAILABLE" else status, error.details() or "", b""

    def channel(self) -> grpc.Channel:
        """To the gRPC port."""
        credentials = grpc.ssl_channel_credentials(self.has.authority.path.read_bytes())
        return grpc.secure_channel(f"127.0.0.1:{self.process.grpc_port}", credentials)

    def process_ids(self) -> list[int]:
        """The server's, and those of its workers."""
        children = Path(f"/proc/{self.process.process.pid}/task/{self.process.process.pid}/children").read_text().split()
        return [self.process.process.pid, *map(int, children)]

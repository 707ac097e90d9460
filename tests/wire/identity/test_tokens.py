"""JSON Web Tokens: which are taken, and that none is which should not be."""

import base64
import hashlib
import hmac
import json
import threading
from collections.abc import Iterator
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from time import monotonic
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from dlproxy.config import ConfigError
from dlproxy.config.security import AuthConfig
from dlproxy.message import FailureKind, InferenceError
from dlproxy.wire.identity.tokens import AGAIN_S, LEEWAY_S, Tokens

ISSUER, AUDIENCE = "https://login.example", "dlproxy"
ELLIPTIC, OTHER = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
RSA = rsa.generate_private_key(65537, 2048)


def _now() -> float:
    return datetime.now(UTC).timestamp()


def _jwk(key: Any, kid: str) -> dict[str, Any]:
    kind = jwt.algorithms.ECAlgorithm if isinstance(key, ec.EllipticCurvePrivateKey) else jwt.algorithms.RSAAlgorithm
    return {**json.loads(kind.to_jwk(key.public_key())), "kid": kid}


def _claims(**changed: Any) -> dict[str, Any]:
    claims = {"sub": "ann", "iss": ISSUER, "aud": AUDIENCE, "exp": _now() + 600, **changed}
    return {name: value for name, value in claims.items() if value is not None}


def _token(key: Any = ELLIPTIC, algorithm: str = "ES256", kid: str = "one", **changed: Any) -> str:
    return jwt.encode(_claims(**changed), key, algorithm=algorithm, headers={"kid": kid})


class Clock:
    def __init__(self) -> None:
        self.late_s = 0.0

    def monotonic(self) -> float:
        return monotonic() + self.late_s

    def time(self) -> float:
        return _now() + self.late_s


class Issued:
    """Tokens of one issuer whose keys are in a file."""

    def __init__(self, path: Path, **changed: Any) -> None:
        self.path, self.clock = path, Clock()
        self.publish(_jwk(ELLIPTIC, "one"), _jwk(RSA, "two"))
        config = {"jwks": str(path), "jwt_issuer": ISSUER, "jwt_audience": AUDIENCE, **changed}
        self.tokens = Tokens(AuthConfig(**config), self.clock.monotonic, self.clock.time)

    def publish(self, *keys: dict[str, Any]) -> None:
        self.path.write_text(json.dumps({"keys": keys}))

    def refusal(self, text: str) -> str:
        with pytest.raises(InferenceError) as refused:
            self.tokens.said(text)
        assert refused.value.failure.kind is FailureKind.UNAUTHENTICATED
        return refused.value.failure.message


@pytest.fixture
def issued(tmp_path: Path) -> Issued:
    return Issued(tmp_path / "jwks.json")


def test_a_token_says_who_and_what_for(issued: Issued) -> None:
    said = issued.tokens.said(_token(scope="infer read other"))
    assert (said.subject, said.scopes) == ("ann", frozenset({"infer", "read", "other"}))
    assert issued.tokens.said(_token(RSA, "RS256", "two")).scopes is None
    assert issued.tokens.said(_token(scp=["infer"])).scopes == frozenset({"infer"})


@pytest.mark.parametrize(
    ("changed", "clue"),
    [
        ({"iss": "https://evil.example"}, "issuer"),
        ({"iss": None}, "iss"),
        ({"aud": "another"}, "udience"),
        ({"aud": None}, "aud"),
        ({"exp": _now() - 60}, "expired"),
        ({"exp": None}, "exp"),
        ({"sub": None}, "sub"),
        ({"nbf": _now() + 86_400}, "not valid yet"),
        ({"key": OTHER}, "ignature"),
        ({"kid": "three"}, "not known"),
    ],
)
def test_a_token_that_does_not_hold_is_refused(issued: Issued, changed: dict[str, Any], clue: str) -> None:
    assert clue in issued.refusal(_token(**changed))


def test_no_token_chooses_how_it_is_checked(issued: Issued) -> None:
    unsigned = jwt.encode(_claims(), None, algorithm="none", headers={"kid": "one"})
    critical = jwt.encode(_claims(), ELLIPTIC, algorithm="ES256", headers={"kid": "one", "crit": ["b64"], "b64": False})
    public = ELLIPTIC.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    head, body = (_part(part) for part in ({"alg": "HS256", "kid": "one"}, _claims()))
    signature = base64.urlsafe_b64encode(hmac.digest(public, f"{head}.{body}".encode(), hashlib.sha256)).rstrip(b"=").decode()
    for forged in (unsigned, critical, f"{head}.{body}.{signature}", _token(RSA, "PS256", "two"), _token(RSA, "RS256", "one")):
        assert "not valid" in issued.refusal(forged)


def _part(value: dict[str, Any]) -> str:
    return base64.urlsafe_b64encode(json.dumps(value).encode()).rstrip(b"=").decode()


@pytest.mark.parametrize("place", [0, 1, 2])
def test_a_changed_character_breaks_it(issued: Issued, place: int) -> None:
    parts = _token().split(".")
    middle = len(parts[place]) // 2
    parts[place] = parts[place][:middle] + ("A" if parts[place][middle] != "A" else "B") + parts[place][middle + 1 :]
    assert issued.refusal(".".join(parts))


@pytest.mark.parametrize("text", ["..", "a.b.c", "x" * 10_000, "é.é.é", "eyJhbGciOiJub25lIn0.e30."])
def test_garbage_is_refused(issued: Issued, text: str) -> None:
    assert issued.refusal(text)


def test_what_was_valid_expires_although_it_is_remembered(issued: Issued) -> None:
    token = _token(exp=_now() + 30)
    issued.tokens.said(token)
    issued.clock.late_s = 29 + LEEWAY_S
    issued.tokens.said(token)
    issued.clock.late_s = 31 + LEEWAY_S
    assert issued.refusal(token) == "the token has expired"


def test_keys_that_are_replaced_in_the_file_hold_within_a_second(issued: Issued) -> None:
    old, new = _token(), _token(OTHER, kid="new")
    issued.tokens.said(old)
    assert "not known" in issued.refusal(new)
    issued.publish(_jwk(OTHER, "new"))
    issued.clock.late_s = 1.1
    assert issued.tokens.said(new).subject == "ann"
    assert "not known" in issued.refusal(old)


class _Server(HTTPServer):
    keys: bytes = b""
    asked = 0


class _Handler(BaseHTTPRequestHandler):
    server: _Server

    def do_GET(self) -> None:
        self.server.asked += 1
        self.send_response(302 if self.path == "/elsewhere" else 200)
        if self.path == "/elsewhere":
            self.send_header("location", "/")
        self.end_headers()
        self.wfile.write(self.server.keys)

    def log_message(self, *_: object) -> None:
        """Not to the terminal."""


@pytest.fixture
def key_server() -> Iterator[_Server]:
    with _Server(("127.0.0.1", 0), _Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def test_keys_are_fetched_anew_for_a_token_with_a_new_one_but_not_for_each(key_server: _Server, tmp_path: Path) -> None:
    key_server.keys = json.dumps({"keys": [_jwk(ELLIPTIC, "one")]}).encode()
    url = f"http://127.0.0.1:{key_server.server_address[1]}/"
    clock = Clock()
    config = AuthConfig(jwks=url, jwt_issuer=ISSUER, jwt_audience=AUDIENCE)
    tokens = Tokens(config, clock.monotonic, clock.time)
    assert tokens.said(_token()).subject == "ann"
    key_server.keys = json.dumps({"keys": [_jwk(OTHER, "new")]}).encode()
    for _ in range(20):
        with pytest.raises(InferenceError):
            tokens.said(_token(OTHER, kid="new"))
    assert key_server.asked == 1
    clock.late_s = AGAIN_S + 1
    with pytest.raises(InferenceError):
        tokens.said(_token(OTHER, kid="new"))
    for thread in threading.enumerate():
        if thread.name == "dlproxy-jwks":
            thread.join()
    assert tokens.said(_token(OTHER, kid="new")).subject == "ann"
    assert key_server.asked == 2


@pytest.mark.parametrize(
    ("changed", "clue"),
    [
        ({"jwt_algorithms": ["HS256"]}, "'HS256' is none of"),
        ({"jwt_algorithms": ["none"]}, "'none' is none of"),
        ({"jwt_issuer": ""}, "jwt_issuer is missing"),
        ({"jwt_audience": ""}, "jwt_audience is missing"),
        ({"jwks": "/no/such/file"}, "cannot be read"),
        ({"jwks": "http://127.0.0.1:1/"}, "cannot be read"),
    ],
)
def test_a_configuration_that_would_let_too_much_in_is_refused(tmp_path: Path, changed: dict[str, Any], clue: str) -> None:
    with pytest.raises(ConfigError, match=clue):
        Issued(tmp_path / "jwks.json", **changed)


@pytest.mark.parametrize(
    "text", ["", "[" * 3000, "[]", "{}", '{"keys":[]}', '{"keys":[{"kty":"oct","k":"c2VjcmV0","kid":"one"}]}']
)
def test_a_set_without_public_keys_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "jwks.json"
    path.write_text(text)
    with pytest.raises(ConfigError, match=r"no JSON Web Key Set|no public key"):
        Tokens(AuthConfig(jwks=str(path), jwt_issuer=ISSUER, jwt_audience=AUDIENCE), monotonic, _now)


def test_keys_come_from_where_the_configuration_says(key_server: _Server) -> None:
    key_server.keys = json.dumps({"keys": [_jwk(ELLIPTIC, "one")]}).encode()
    for url, clue in (
        (f"http://127.0.0.1:{key_server.server_address[1]}/elsewhere", "302"),
        ("http://login.example/jwks.json", "can be exchanged on their way"),
        ("ftp://login.example/jwks.json", "cannot be read"),
    ):
        with pytest.raises(ConfigError, match=clue):
            Tokens(AuthConfig(jwks=url, jwt_issuer=ISSUER, jwt_audience=AUDIENCE), monotonic, _now)

"""Whatever is sent or stands in a file: somebody is known or refused, in bounded time, and nothing else is ever raised."""

import base64
import json
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from time import process_time
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from dlproxy.config import ConfigError, HttpLimits
from dlproxy.config.security import AuthConfig, GrantConfig
from dlproxy.message import InferenceError
from dlproxy.wire.http.server import HttpServer
from dlproxy.wire.identity import key_file
from dlproxy.wire.identity.desk import IdentityDesk
from dlproxy.wire.identity.keys import Keys
from dlproxy.wire.identity.tokens import MOST_BYTES, Tokens
from dlproxy.wire.listening import peer_of
from dlproxy.wire.terms import Peer

from ..fixtures import Answers, Wire

LONGEST_S = 2.0  # of CPU time for one request: other programs cost none
ISSUER, AUDIENCE = "https://login.example", "dlproxy"
SIGNER = ec.generate_private_key(ec.SECP256R1())

fuzzed = settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)


class Door:
    """A desk that knows a key, an issuer and certificates."""

    def __init__(self, folder: Path) -> None:
        self.clock_s = 0.0
        keys, jwks = folder / "keys.toml", folder / "jwks.json"
        self.key = key_file.create(keys, "ann", scopes=["infer"], models=["*"])
        public = json.loads(jwt.algorithms.ECAlgorithm.to_jwk(SIGNER.public_key()))
        jwks.write_text(json.dumps({"keys": [{**public, "kid": "one"}]}))
        auth = AuthConfig(keys=str(keys), jwks=str(jwks), jwt_issuer=ISSUER, jwt_audience=AUDIENCE)
        grants = {"shops": GrantConfig(who="cert:shop-*"), "people": GrantConfig(who="token:*")}
        self.desk = IdentityDesk(auth, grants, self.clock)
        self.tokens = Tokens(auth, self.clock, _now)
        self.token = signed()

    def clock(self) -> float:
        self.clock_s += 60.0  # nobody waits
        return self.clock_s


def _now() -> float:
    return datetime.now(UTC).timestamp()


def signed(header: Any = "one", **claims: Any) -> str:
    said = {"sub": "ann", "iss": ISSUER, "aud": AUDIENCE, "exp": _now() + 600, **claims}
    return _token({"alg": "ES256", "typ": "JWT", "kid": header}, said, sign=True)


def _token(header: Any, claims: Any, *, sign: bool = False) -> str:
    """Also one that jwt.encode would not make."""
    text = ".".join([_encoded(json.dumps(part).encode()) for part in (header, claims)])
    signature = jwt.algorithms.ECAlgorithm(jwt.algorithms.ECAlgorithm.SHA256).sign(text.encode(), SIGNER) if sign else b"x" * 64
    return f"{text}.{_encoded(signature)}"


def _encoded(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


@pytest.fixture(scope="module")
def door(tmp_path_factory: pytest.TempPathFactory) -> Door:
    return Door(tmp_path_factory.mktemp("door"))


NESTED = ".".join([_encoded(b"[" * 3000), _encoded(b"{}"), "x"])
visible = st.binary(max_size=100) | st.sampled_from(
    [b"Bearer ", b"bearer\t", b"Basic YTpi", b"Bearer a.b.c", b"Bearer \xff\xfe.\x00."]
)


@fuzzed
@given(st.sampled_from([b"authorization", b"x-api-key"]), visible, st.integers(0, 3), st.binary(max_size=20))
@example(b"authorization", b"Bearer " + NESTED.encode(), 0, b"")
@example(b"x-api-key", b"Bearer " + b"." * 60_000, 0, b"")
@example(b"x-api-key", "dlp_aaaaaaaa_ß".encode(), 0, b"")
def test_whatever_a_header_says_the_request_is_answered(door: Door, name: bytes, value: bytes, kind: int, tail: bytes) -> None:
    known = [b"", b"", b"Bearer " + door.key.encode(), b"Bearer " + door.token.encode()][kind]
    wire = Wire(Answers(), server=HttpServer(Answers(), HttpLimits(), door.desk))
    began_at = process_time()
    for _ in range(2):
        if not wire.ended:
            wire.feed(b"GET / HTTP/1.1\r\nHost: a\r\n" + name + b": " + known + value + tail + b"\r\n\r\n")
    assert process_time() - began_at < LONGEST_S
    replies = wire.take()
    assert replies
    assert {reply.status for reply in replies} <= {200, 400, 401, 403, 429, 431}


def _judged(door: Door, text: str) -> None:
    began_at = process_time()
    for _ in range(2):
        with suppress(InferenceError):
            door.tokens.said(text)
    assert process_time() - began_at < LONGEST_S


@fuzzed
@given(st.text(max_size=100) | st.lists(st.text(max_size=30), min_size=3, max_size=3).map(".".join))
@example(NESTED)
@example("." * MOST_BYTES)
@example("é" * (MOST_BYTES + 1))
def test_whatever_is_no_token_is_refused(door: Door, text: str) -> None:
    _judged(door, text.encode("utf-8", "replace").decode("latin-1"))


@fuzzed
@given(values, values, st.booleans())
def test_whatever_a_token_holds_it_is_refused(door: Door, header: Any, claims: Any, unsigned: bool) -> None:
    _judged(door, _token({"alg": "none" if unsigned else "ES256", "kid": header} if unsigned else header, claims))


@fuzzed
@given(values, st.dictionaries(st.sampled_from(["sub", "iss", "aud", "exp", "nbf", "iat", "scope", "scp", "jti"]), values))
@example("one", {"exp": 10**400})
@example("one", {"exp": float("inf")})
@example("one", {"nbf": float("nan")})
@example(["one"], {})
@example("one", {"scope": [["infer"], None, 3]})
def test_whatever_the_issuer_has_signed_is_taken_or_refused(door: Door, kid: Any, claims: dict[str, Any]) -> None:
    text = signed(kid, **claims)
    _judged(door, text)
    with suppress(InferenceError):
        door.desk(Peer("10.0.0.1"), b"POST", b"/v2", {b"authorization": f"Bearer {text}".encode()})


class Transport:
    """What peer_of looks at, with this subject in the client's certificate."""

    def __init__(self, *subject: tuple[tuple[str, str], ...]) -> None:
        self._known = {"peername": ("10.0.0.1", 5), "peercert": {"subject": subject}}

    def get_extra_info(self, name: str) -> Any:
        return self._known.get(name)


@fuzzed
@given(st.lists(st.lists(st.tuples(st.sampled_from(["commonName", "organizationName"]), st.text()), max_size=3).map(tuple)))
@example([(("commonName", "shop-\0evil"),)])
@example([(("commonName", "shop-" + "x" * 100_000),)])
@example([(("commonName", "bank"),), (("commonName", "shop-1"),)])
@example([(("commonName", "shop-*\n\x1b[2J\ud800"),)])
def test_whatever_a_certificate_says_somebody_is_known_or_refused(
    door: Door, subject: list[tuple[tuple[str, str], ...]]
) -> None:
    peer = peer_of(Transport(*subject))  # type: ignore[arg-type]
    names = [value for part in subject for field, value in part if field == "commonName"]
    assert peer.name in {"", *(f"cert:{name}" for name in names[:1])}
    began_at = process_time()
    if peer.name.startswith("cert:shop-"):
        assert door.desk(peer, b"POST", b"/v2", {}).name == peer.name
    elif peer.name:
        grant = door.desk(peer, b"POST", b"/v2", {}).grant
        assert grant is not None
        assert not grant.scopes
    else:
        with pytest.raises(InferenceError):
            door.desk(peer, b"POST", b"/v2", {})
    assert process_time() - began_at < LONGEST_S


ENTRY = """[keys.a]
id = "aaaaaaaa"
hash = "scrypt:1:8:AAAA:AAAA"
scopes = ["infer"]
models = ["*"]
created = 2026-01-01T00:00:00Z
"""
FIELDS = (
    *("id", "hash", "scopes", "models", "tenant", "concurrent", "rows_per_s"),
    *("created", "not_before", "expires", "revoked", "other"),
)
written = st.sampled_from(
    [
        *(
            '""',
            "3",
            "-1",
            "inf",
            "true",
            "[]",
            '["infer"]',
            '["*", ""]',
            "{}",
            '"a"',
            '"scrypt:12:8:?:?"',
            '"scrypt:٣:8:AAAA:AAAA"',
        ),
        *(
            "2026-01-01",
            "2026-01-01T00:00:00",
            "2026-01-01T00:00:00Z",
            "9999-12-31T23:59:59-23:59",
            "0001-01-01T00:00:00+23:59",
        ),
        *("07:32:00", '"dlp"', "[" * 2000, "1" * 5000),
    ]
)


@fuzzed
@given(st.dictionaries(st.sampled_from(FIELDS), written, max_size=4), st.integers(0, len(ENTRY)), st.binary(max_size=3))
@example({"expires": "2026-01-01T00:00:00"}, 0, b"")
@example({"other": "[" * 2000}, 0, b"")
def test_whatever_a_file_of_keys_holds_it_is_taken_or_refused(
    tmp_path: Path, changed: dict[str, str], at: int, inserted: bytes
) -> None:
    kept = "".join(line for line in ENTRY.splitlines(keepends=True) if line.split(" ")[0] not in changed)
    data = (kept + "".join(f"{field} = {value}\n" for field, value in changed.items())).encode()
    path = tmp_path / "keys.toml"
    path.write_bytes(data[:at] + inserted + data[at:])
    began_at = process_time()
    with suppress(ConfigError):
        known = Keys(path, lambda: 0.0)
        for secret in ("A" * 43, "B" * 43):
            with suppress(InferenceError):
                known.principal(f"dlp_aaaaaaaa_{secret}")
    assert process_time() - began_at < LONGEST_S


@fuzzed
@given(st.text(max_size=70), st.text(), st.lists(st.text(), max_size=3))
@example("a", "\x7f", ["*"])
@example("a", "\ud800", ["*"])
@example("a", '"""\n[keys.b]', ["'''"])
def test_a_key_is_written_as_it_is_read_or_refused(tmp_path: Path, name: str, tenant: str, models: list[str]) -> None:
    path = tmp_path / "keys.toml"
    path.unlink(missing_ok=True)
    key_file.create(path, "first", scopes=["infer"], models=["*"])
    try:
        text = key_file.create(path, name, scopes=["infer"], models=models, tenant=tenant)
    except ConfigError:
        assert list(key_file.read(path)) == ["first"]
        return
    found = key_file.read(path)
    assert (list(found), found[name].tenant, found[name].models) == (["first", name], tenant, models)
    assert Keys(path, lambda: 0.0).principal(text).name == name

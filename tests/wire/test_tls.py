"""What a port takes and gives in a TLS handshake, asked as scanners do; and what becomes of it when files change."""

import ssl
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import pytest

from dlproxy.config.security import TlsConfig
from dlproxy.wire.tls import GRPC, HTTP, Certificates

from ..certificates import Authority

HANDSHAKE, ALERT, HEARTBEAT = 22, 21, 24
SSL_3, TLS_1_0, TLS_1_1, TLS_1_2 = 0x0300, 0x0301, 0x0302, 0x0303
PROTOCOL_VERSION, HANDSHAKE_FAILURE, INAPPROPRIATE_FALLBACK = 70, 40, 86
GOOD = (0xC02B, 0xC02F)  # ECDHE with AES-128-GCM, by ECDSA and by RSA
SCSV = 0x5600  # says that this hello is a second try, with less (RFC 7507)
GROUPS, FORMATS, SIGNATURES, SERVED_BEAT, ALPN, MASTER_SECRET, RENEGOTIATION = 10, 11, 13, 15, 16, 23, 0xFF01
X25519, P256, P521, P192, K256, BRAINPOOL = 29, 23, 25, 19, 22, 26
ECDSA_SHA256, RSA_SHA256, ECDSA_SHA1, RSA_MD5 = 0x0403, 0x0401, 0x0203, 0x0101


def _sized(data: bytes, size: int) -> bytes:
    return len(data).to_bytes(size, "big") + data


def _numbers(*numbers: int) -> bytes:
    return _sized(b"".join(number.to_bytes(2, "big") for number in numbers), 2)


USUAL = {GROUPS: _numbers(X25519, P256), FORMATS: b"\1\0", SIGNATURES: _numbers(ECDSA_SHA256, RSA_SHA256)}


def _hello(*ciphers: int, version: int = TLS_1_2, compression: bytes = b"\0", extensions: Mapping[int, bytes] = USUAL) -> bytes:
    more = b"".join(kind.to_bytes(2, "big") + _sized(data, 2) for kind, data in extensions.items())
    body = version.to_bytes(2, "big") + bytes(range(32)) + b"\0" + _numbers(*ciphers) + _sized(compression, 1) + _sized(more, 2)
    return b"\x16\3\1" + _sized(b"\1" + _sized(body, 3), 2)


class Answer(NamedTuple):
    """To a hello: an alert, or what was chosen."""

    alert: int = 0
    version: int = 0
    cipher: int = 0
    compression: int = 0
    extensions: Mapping[int, bytes] = {}
    kinds: frozenset[int] = frozenset()
    """Of all records."""


def _asked(context: ssl.SSLContext, *records: bytes) -> Answer:
    """The server's answer to these bytes."""
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    server = context.wrap_bio(incoming, outgoing, server_side=True)
    for record in records:
        incoming.write(record)
        try:
            server.do_handshake()
        except ssl.SSLWantReadError:
            continue
        except ssl.SSLError:
            break
    data, found = outgoing.read(), []
    while data:
        end = 5 + int.from_bytes(data[3:5], "big")
        found.append((data[0], data[5:end]))
        data = data[end:]
    kinds = frozenset(kind for kind, _ in found)
    alerts = [body[1] for kind, body in found if kind == ALERT]
    if alerts or not found:
        return Answer(alerts[0] if alerts else -1, kinds=kinds)
    body = found[0][1]
    assert body[0] == 2  # ServerHello
    at = 39 + body[38]  # behind the session's id
    extensions, rest = {}, body[at + 5 : 4 + int.from_bytes(body[1:4], "big")]
    while rest:
        end = 4 + int.from_bytes(rest[2:4], "big")
        extensions[int.from_bytes(rest[:2], "big")] = rest[4:end]
        rest = rest[end:]
    version, cipher = (int.from_bytes(body[start : start + 2], "big") for start in (4, at))
    return Answer(0, version, cipher, body[at + 2], extensions, kinds)


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("tls"), "ours")


@pytest.fixture(scope="module")
def context(authority: Authority) -> ssl.SSLContext:
    return Certificates(TlsConfig(cert=str(authority.issue("server")))).context(HTTP)


def test_a_usual_hello_is_answered(context: ssl.SSLContext) -> None:
    answer = _asked(context, _hello(*GOOD, extensions={**USUAL, MASTER_SECRET: b"", RENEGOTIATION: b"\0"}))
    assert (answer.alert, answer.version, answer.cipher) == (0, TLS_1_2, GOOD[0])
    assert {MASTER_SECRET, RENEGOTIATION} <= answer.extensions.keys()


@pytest.mark.parametrize("version", [SSL_3, TLS_1_0, TLS_1_1])
def test_old_protocols_are_refused(context: ssl.SSLContext, version: int) -> None:
    assert _asked(context, _hello(*GOOD, 0xC009, 0x002F, version=version)).alert in (PROTOCOL_VERSION, HANDSHAKE_FAILURE)


def test_ssl_2_is_not_understood(context: ssl.SSLContext) -> None:
    assert _asked(
        context, b"\x80\x2e\1\0\2\0\x15\0\0\0\x10" + b"\1\0\x80\2\0\x80\3\0\x80\4\0\x80\5\0\x80\6\0\x40\7\0\xc0" + bytes(16)
    ).alert


@pytest.mark.parametrize(
    ("kind", "ciphers"),
    [
        ("no encryption", (0x0001, 0x0002, 0x003B, 0xC006, 0xC010)),
        ("no certificate", (0x0018, 0x0034, 0x00A6, 0xC018)),
        ("export", (0x0003, 0x0006, 0x0008, 0x0014)),
        ("RC4", (0x0004, 0x0005, 0xC007, 0xC011)),
        ("3DES", (0x000A, 0x0016, 0xC008, 0xC012)),
        ("CBC", (0xC009, 0xC00A, 0xC013, 0xC014, 0xC023, 0xC024, 0xC027)),
        ("no forward secrecy", (0x002F, 0x0035, 0x003C, 0x009C, 0x009D)),
        ("DHE", (0x0033, 0x0039, 0x0067, 0x009E, 0x009F)),
        ("eight bytes of CCM's tag", (0xC0AE, 0xC0AF)),
    ],
)
def test_weak_ciphers_are_refused(context: ssl.SSLContext, kind: str, ciphers: tuple[int, ...]) -> None:
    assert _asked(context, _hello(*ciphers)).alert == HANDSHAKE_FAILURE, kind


@pytest.mark.parametrize(
    "changed",
    [{GROUPS: _numbers(P192, K256, BRAINPOOL)}, {SIGNATURES: _numbers(ECDSA_SHA1, RSA_MD5)}],
    ids=["curves", "hashes"],
)
def test_weak_curves_and_hashes_are_refused(context: ssl.SSLContext, changed: Mapping[int, bytes]) -> None:
    assert _asked(context, _hello(*GOOD, extensions={**USUAL, **changed})).alert == HANDSHAKE_FAILURE


def test_nothing_is_compressed(context: ssl.SSLContext) -> None:  # CRIME
    assert _asked(context, _hello(*GOOD, compression=b"\1\0"))[:4] == (0, TLS_1_2, GOOD[0], 0)


def test_heartbeats_are_not_answered(context: ssl.SSLContext) -> None:  # Heartbleed
    bleed = bytes([HEARTBEAT]) + b"\3\3\0\3\1\x40\0"
    answer = _asked(context, _hello(*GOOD, extensions={**USUAL, SERVED_BEAT: b"\1"}), bleed)
    assert SERVED_BEAT not in answer.extensions
    assert HEARTBEAT not in answer.kinds


def test_keys_cannot_be_changed_before_there_are_any(context: ssl.SSLContext) -> None:  # CVE-2014-0224
    assert _asked(context, _hello(*GOOD), b"\x14\3\3\0\1\1").alert


def test_a_client_is_not_talked_down(context: ssl.SSLContext) -> None:
    assert _asked(context, _hello(*GOOD, SCSV)).alert == INAPPROPRIATE_FALLBACK


@pytest.mark.parametrize(
    "data", [b"", b"GET / HTTP/1.1\r\n\r\n", bytes(1000), b"\x16\3\1\xff\xff" + b"\1" * 65535, _hello(*GOOD)[:-1]]
)
def test_what_is_no_hello_gets_none(context: ssl.SSLContext, data: bytes) -> None:
    assert not _asked(context, data).version


class Client:
    """Connects to a context, through memory."""

    def __init__(self, authority: Authority, certificate: Path | None = None, alpn: str = "") -> None:
        self._context = ssl.create_default_context(cafile=str(authority.path))
        if certificate is not None:
            self._context.load_cert_chain(certificate)
        if alpn:
            self._context.set_alpn_protocols([alpn])
        self._session: ssl.SSLSession | None = None

    def connect(self, context: ssl.SSLContext) -> ssl.SSLObject:
        """What it has of the connection, which resumes the last one if it can. Raises ssl.SSLError, from either side."""
        there, back = ssl.MemoryBIO(), ssl.MemoryBIO()
        client = self._context.wrap_bio(back, there, server_hostname="127.0.0.1", session=self._session)
        server = context.wrap_bio(there, back, server_side=True)
        waiting = [client, server]
        for _ in range(10):
            for side in waiting[:]:
                try:
                    side.do_handshake()
                    waiting.remove(side)
                except ssl.SSLWantReadError:
                    continue
        assert not waiting
        server.write(b"x")
        assert client.read(1) == b"x"  # and the tickets before it
        self._session = client.session
        return client


def _certificates(authority: Authority, name: str, client_ca: Path | None = None) -> Certificates:
    mutual = {"clients": "required", "client_ca": str(client_ca)} if client_ca else {}
    return Certificates(TlsConfig(cert=str(authority.issue("server", file=name)), **mutual))


def test_sessions_are_resumed_unless_clients_show_certificates(authority: Authority) -> None:
    shop = authority.issue("shop")
    for client_ca, resumed in ((None, True), (authority.path, False)):  # else an expired certificate would go on for hours
        context = _certificates(authority, "resumed", client_ca).context(HTTP)
        client = Client(authority, shop)
        client.connect(context)
        assert client.connect(context).session_reused is resumed
        assert (context.minimum_version is ssl.TLSVersion.TLSv1_2) is resumed


def test_an_authority_that_is_taken_away_is_trusted_no_longer(authority: Authority, tmp_path: Path) -> None:
    former, trusted = Authority(tmp_path, "former"), tmp_path / "trusted.pem"
    trusted.write_bytes(former.path.read_bytes())
    certificates = _certificates(authority, "mutual", trusted)
    contexts = {protocol: certificates.context(protocol) for protocol in (HTTP, GRPC)}
    shops = [who.issue("shop") for who in (former, authority)]
    for change, let_in in ((b"", 0), (authority.path.read_bytes(), 1), (b"nothing", 1)):
        if change:
            trusted.write_bytes(change)
            certificates._look()
        for protocol, context in contexts.items():
            connected = Client(authority, shops[let_in], protocol).connect(context)
            assert connected.selected_alpn_protocol() == protocol
            with pytest.raises(ssl.SSLError):
                Client(authority, shops[1 - let_in]).connect(context)


def test_a_renewed_certificate_is_shown(authority: Authority) -> None:
    certificates = _certificates(authority, "renewed")
    context = certificates.context(HTTP)
    before = Client(authority).connect(context).getpeercert()
    authority.issue("another", file="renewed")
    certificates._look()
    after = Client(authority).connect(context).getpeercert()
    assert before is not None
    assert after is not None
    assert (before["subject"], after["subject"]) == (((("commonName", "server"),),), ((("commonName", "another"),),))

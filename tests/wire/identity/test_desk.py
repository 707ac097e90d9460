"""Who asks, by headers and connections together; rules; and how long those who guess have to wait."""

from collections.abc import Mapping
from pathlib import Path

import pytest

from dlproxy.config import ConfigError
from dlproxy.config.security import AuthConfig, GrantConfig
from dlproxy.message import FailureKind, Grant, InferenceError, Principal, Quota, fits
from dlproxy.testing import ManualClock
from dlproxy.wire.identity import key_file
from dlproxy.wire.identity.attempts import FIRST_S, FREE, LONGEST_S, Attempts
from dlproxy.wire.identity.desk import AUTHORIZATION, MOST_RECENT, MOST_RECENT_BYTES, IdentityDesk
from dlproxy.wire.identity.rules import Rules
from dlproxy.wire.terms import Peer

HERE = Peer("127.0.0.1")
NONE: Mapping[bytes, bytes] = {}


class Known:
    """A desk that knows one key, and certificates of shops."""

    def __init__(self, folder: Path, **auth: str) -> None:
        path = folder / "keys.toml"
        self.key = key_file.create(path, "ann", scopes=["infer"], models=["*"])
        self.clock = ManualClock()
        grants = {"shops": GrantConfig(who="cert:shop-*", models=["ocr"], tenant="retail")}
        self.desk = IdentityDesk(AuthConfig(keys=str(path), **auth), grants, self.clock)

    def ask(self, headers: Mapping[bytes, bytes] = NONE, peer: Peer = HERE) -> Principal:
        return self.desk(peer, b"POST", b"/v2", headers)

    def refused(self, headers: Mapping[bytes, bytes] = NONE, peer: Peer = HERE) -> FailureKind:
        with pytest.raises(InferenceError) as refused:
            self.ask(headers, peer)
        return refused.value.failure.kind


@pytest.fixture
def known(tmp_path: Path) -> Known:
    return Known(tmp_path)


@pytest.mark.parametrize("name", [b"x-api-key", b"authorization"])
def test_a_key_counts_in_both_headers(known: Known, name: bytes) -> None:
    key = known.key.encode()
    assert known.ask({name: key if name == b"x-api-key" else b"bEaReR   " + key}).name == "ann"


@pytest.mark.parametrize(
    "headers",
    [
        NONE,
        {b"authorization": b""},
        {b"authorization": b"Basic YTpi"},
        {b"authorization": b"Bearer"},
        {b"authorization": b"Bearer \xff\xfe"},
        {b"x-api-key": b""},
        {b"x-api-key": b"a.b.c"},
    ],
)
def test_who_shows_nothing_that_is_known_is_not_let_in(known: Known, headers: Mapping[bytes, bytes]) -> None:
    assert known.refused(headers) is FailureKind.UNAUTHENTICATED


def test_without_a_key_the_connections_certificate_counts_and_a_key_goes_before(known: Known) -> None:
    shop = known.ask(peer=Peer("10.0.0.1", "cert:shop-1"))
    assert (shop.name, shop.tenant) == ("cert:shop-1", "retail")
    assert known.ask({b"x-api-key": known.key.encode()}, Peer("10.0.0.1", "cert:shop-1")).name == "ann"
    assert known.ask(peer=Peer("10.0.0.1", "cert:bank")).grant == Grant(frozenset(), ()), "no rule is no right"
    assert known.refused({b"x-api-key": b"wrong"}, Peer("10.0.0.1", "cert:shop-1")) is FailureKind.UNAUTHENTICATED


def test_clients_in_turn_are_who_they_are_until_their_keys_are_revoked(known: Known, tmp_path: Path) -> None:
    other = key_file.create(tmp_path / "keys.toml", "bob", scopes=["infer"], models=["*"])
    known.clock.advance(1.0)
    ann, bob = {b"x-api-key": known.key.encode()}, {b"authorization": f"Bearer {other}".encode()}
    assert [known.ask(headers).name for headers in (ann, bob, dict(ann), dict(bob))] == ["ann", "bob", "ann", "bob"]
    assert known.refused({b"x-api-key": bob[b"authorization"]}) is FailureKind.UNAUTHENTICATED
    key_file.revoke(tmp_path / "keys.toml", "ann")
    for _ in range(10):
        known.clock.advance(0.1)
        known.ask(bob)
    assert known.refused(ann) is FailureKind.UNAUTHENTICATED


def test_what_is_remembered_of_headers_is_bounded(known: Known) -> None:
    for number in range(2 * MOST_RECENT):
        known.ask({b"authorization": b"Bearer " + b" " * number + known.key.encode()})
    remembered = known.desk._recent[AUTHORIZATION]
    assert 0 < len(remembered) <= MOST_RECENT
    known.ask({b"authorization": b"Bearer " + b" " * MOST_RECENT_BYTES + known.key.encode()})
    assert max(map(len, remembered)) <= MOST_RECENT_BYTES


def test_anonymous_clients_may_do_what_is_said(tmp_path: Path) -> None:
    known = Known(tmp_path, anonymous="infer")
    grant = known.ask().grant
    assert grant is not None
    assert [grant.allows(scope) for scope in ("infer", "read", "metrics", "admin")] == [True, True, True, False]


def test_whoever_guesses_waits_longer_each_time_and_whose_key_is_known_does_not(known: Known) -> None:
    wrong, right = {b"x-api-key": b"dlp_guess"}, {b"x-api-key": known.key.encode()}
    for _ in range(FREE + 1):
        assert known.refused(wrong) is FailureKind.UNAUTHENTICATED
    assert known.refused(right) is FailureKind.QUOTA  # it could be a guess
    assert known.ask(right, Peer("10.0.0.2")).name == "ann"
    assert known.ask(right).name == "ann"
    known.clock.advance(FIRST_S)
    assert known.refused(wrong) is FailureKind.UNAUTHENTICATED
    known.clock.advance(FIRST_S)
    assert known.refused(wrong) is FailureKind.QUOTA
    known.clock.advance(FIRST_S)
    assert known.refused(wrong) is FailureKind.UNAUTHENTICATED


def test_a_wait_has_an_end_and_addresses_are_forgotten() -> None:
    clock = ManualClock()
    attempts = Attempts(clock)
    for number in range(20_000):
        attempts.failed(f"10.0.{number}")
    assert len(attempts._tries) == 10_000
    for _ in range(100):
        attempts.failed("a")
    clock.advance(LONGEST_S + 0.001)
    attempts.check("a")


def test_a_whole_network_of_ipv6_is_one_address() -> None:
    attempts = Attempts(ManualClock())
    for number in range(FREE + 1):
        attempts.failed(f"2001:db8::{number}")
    with pytest.raises(InferenceError, match="too many wrong keys"):
        attempts.check("2001:db8:0:0:ffff::1")
    attempts.check("2001:db8:0:1::1")
    assert len(attempts._tries) == 1
    for _ in range(FREE + 1):
        attempts.failed("::ffff:10.0.0.1")
    with pytest.raises(InferenceError, match="too many wrong keys"):
        attempts.check("10.0.0.1")


@pytest.mark.parametrize(
    ("config", "clue"),
    [
        (GrantConfig(who="certificate:a"), "is not understood; it is one of cert:NAME"),
        (GrantConfig(who="cert:"), "is not understood"),
        (GrantConfig(who="cert:a", scopes=["inver"]), "no scope 'inver'"),
    ],
)
def test_a_rule_that_makes_no_sense_is_refused(config: GrantConfig, clue: str) -> None:
    with pytest.raises(ConfigError, match=clue):
        Rules({"a": config})


def test_a_rule_may_have_a_quota_for_each_whom_it_fits() -> None:
    rules = Rules({"all": GrantConfig(who="token:*", rows_per_s=10.0)})
    assert rules.principal("token", "ann").quota == Quota(rows_per_s=10.0)
    with pytest.raises(ConfigError, match=r"\[grants.all\] requests_per_s is 1e-09"):
        Rules({"all": GrantConfig(who="token:*", requests_per_s=1e-9)})


def test_a_token_can_be_for_less_than_its_rule_allows() -> None:
    rules = Rules({"all": GrantConfig(who="token:*", scopes=["infer", "admin"])})
    grant = rules.principal("token", "ann", frozenset({"infer", "email"})).grant
    assert grant is not None
    assert grant.scopes == {"infer"}


@pytest.mark.parametrize(
    ("pattern", "name", "does"),
    [
        *(("a", "a", True), ("a", "ab", False), ("", "", True), ("*", "", True), ("*", "a.b", True)),
        *(("a*", "a", True), ("a*a", "a", False), ("a*a", "aa", True), ("*a*", "bab", True), ("*a*", "b", False)),
        *(("a*b*c", "axbxc", True), ("a*b*c", "acb", False), ("a*bc*c", "abc", False), ("[a]", "a", False), ("?", "a", False)),
    ],
)
def test_patterns(pattern: str, name: str, does: bool) -> None:
    assert fits(pattern, name) is does

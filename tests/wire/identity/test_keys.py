"""API keys: what a file of them holds, who is known by one, and what wrong ones cost."""

import stat
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import msgspec
import pytest

from dlproxy.config import ConfigError
from dlproxy.message import FailureKind, InferenceError, Quota
from dlproxy.testing import ManualClock
from dlproxy.wire.identity import key_file, keys
from dlproxy.wire.identity.keys import SLOW_BURST, Keys

NOW = datetime.now(UTC).replace(microsecond=0)
DAY = timedelta(days=1)
ENTRY = '[keys.a]\nid="x"\nhash="y"\nscopes=["infer"]\nmodels=[]\ncreated=2026-01-01T00:00:00Z\n'


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "keys.toml"


def _refusal(known: Keys, text: str) -> tuple[FailureKind, str]:
    with pytest.raises(InferenceError) as refused:
        known.principal(text)
    return refused.value.failure.kind, refused.value.failure.message


def test_a_key_is_known_by_its_name_and_what_it_may_do(path: Path) -> None:
    first = key_file.create(path, "shop", scopes=["infer"], models=["ocr-*"], tenant="retail")
    second = key_file.create(path, "ops", scopes=["admin", "metrics"], models=["*"])
    known = Keys(path, ManualClock())
    shop, ops = known.principal(first), known.principal(second)
    assert (shop.name, shop.tenant, ops.name, ops.tenant) == ("shop", "retail", "ops", "")
    assert shop.grant is not None
    assert [shop.grant.allows("infer", model) for model in ("ocr-1", "speech", "")] == [True, False, True]
    assert not shop.grant.allows("read")
    assert ops.grant is not None
    assert [ops.grant.allows(scope) for scope in ("admin", "read", "metrics", "infer")] == [True, True, True, False]
    assert known.principal(first) is shop  # the same object every time: what its headers said is remembered by it


def test_the_file_holds_no_key_and_is_its_owners_alone(path: Path) -> None:
    key = key_file.create(path, "shop", scopes=["infer"], models=["*"])
    parts = key_file.parts_of(key)
    assert parts is not None
    assert parts[1] not in path.read_text()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert not [other for other in path.parent.iterdir() if other != path]


@pytest.mark.parametrize(
    "text",
    ["", "dlp", "dlp_aaaaaaaa_" + "A" * 43, "dlp_AAAAAAAA_" + "A" * 43, "x" * 100_000, "dlp_aaaaaaaa_é", "\udcff", "a.b.c"],
)
def test_what_is_no_key_is_not_known(path: Path, text: str) -> None:
    key_file.create(path, "shop", scopes=["infer"], models=["*"])
    assert _refusal(Keys(path, ManualClock()), text.encode("utf-8", "replace").decode()) == (
        FailureKind.UNAUTHENTICATED,
        "the API key is not known",
    )


def test_a_wrong_secret_behind_a_known_id_is_not_known(path: Path) -> None:
    key = key_file.create(path, "shop", scopes=["infer"], models=["*"])
    wrong = key[:-1] + ("A" if key[-1] != "A" else "B")
    assert _refusal(Keys(path, ManualClock()), wrong)[1] == "the API key is not known"


@pytest.mark.parametrize(
    ("dates", "words"),
    [
        ({"expires": NOW - DAY}, "the API key has expired"),
        ({"not_before": NOW + DAY}, "the API key is not valid yet"),
        ({"expires": NOW + DAY, "not_before": NOW - DAY}, ""),
    ],
)
def test_a_key_holds_between_its_dates(path: Path, dates: dict[str, datetime], words: str) -> None:
    key = key_file.create(path, "shop", scopes=["infer"], models=["*"], **dates)
    known = Keys(path, ManualClock())
    if words:
        assert _refusal(known, key) == (FailureKind.UNAUTHENTICATED, words)
    else:
        assert known.principal(key).name == "shop"


def test_a_revoked_key_is_refused_within_a_second_and_the_others_are_not(path: Path) -> None:
    first, second = (key_file.create(path, name, scopes=["infer"], models=["*"]) for name in ("a", "b"))
    clock = ManualClock()
    known = Keys(path, clock)
    before = known.principal(second)
    known.principal(first)
    key_file.revoke(path, "a")
    clock.advance(1.0)
    assert _refusal(known, first) == (FailureKind.UNAUTHENTICATED, "the API key is revoked")
    assert known.principal(second) is before


def test_a_file_that_breaks_while_it_serves_changes_nothing(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    key = key_file.create(path, "shop", scopes=["infer"], models=["*"])
    clock = ManualClock()
    known = Keys(path, clock)
    for broken in (b"[keys", None):
        if broken is None:
            path.unlink()
        else:
            path.write_bytes(broken)
        clock.advance(1.0)
        assert known.principal(key).name == "shop"
        assert "the API keys stay as they were" in caplog.text
        caplog.clear()


def test_a_slow_hash_is_computed_once_for_each_key(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    key = key_file.create(path, "shop", scopes=["infer"], models=["*"])
    known, asked = Keys(path, ManualClock()), []
    monkeypatch.setattr(keys, "matches", lambda key, secret: asked.append(secret) or key_file.matches(key, secret))
    for _ in range(10):
        known.principal(key)
    for _ in range(5):
        _refusal(known, "dlp_aaaaaaaa_" + "A" * 43)
    assert len(asked) == 1


def test_guesses_of_one_keys_secret_cost_a_bounded_number_of_slow_hashes(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    key = key_file.create(path, "shop", scopes=["infer"], models=["*"])
    clock, tried = ManualClock(), []
    known = Keys(path, clock)
    known.principal(key)
    monkeypatch.setattr(keys, "matches", lambda key, secret: bool(tried.append(secret)))
    kinds = [_refusal(known, key[:13] + f"{number:043}")[0] for number in range(100)]
    assert len(tried) == SLOW_BURST - 1  # one was for the right one
    assert kinds[-1] is FailureKind.QUOTA
    assert known.principal(key).name == "shop"  # whoever has it is known already
    clock.advance(1.0)
    _refusal(known, key[:13] + "B" * 43)
    assert len(tried) == SLOW_BURST


@pytest.mark.parametrize(
    ("text", "clue"),
    [
        ("[keys", "is no file of API keys"),
        ("keys = 3", "is no file of API keys"),
        (ENTRY.replace("infer", "everything"), "Invalid enum value"),
        (
            '[keys.a]\nid="x"\nhash="y"\nscopes=["infer"]\nmodels=[]\ncreated=2026-01-01T00:00:00Z\nsecret="z"\n',
            "unknown field",
        ),
    ],
)
def test_a_file_that_is_none_is_refused(path: Path, text: str, clue: str) -> None:
    path.write_text(text)
    with pytest.raises(ConfigError, match=clue):
        Keys(path, ManualClock())


def test_a_hash_that_somebody_has_edited_matches_nothing(path: Path) -> None:
    key = key_file.create(path, "shop", scopes=["infer"], models=["*"])
    for broken in ("", "md5:1:2:3:4", "scrypt:99:8:AAAA:AAAA", "scrypt:12:8:?:?", "scrypt:x:8:AAAA:AAAA"):
        entry = next(iter(key_file.read(path).values()))
        parts = key_file.parts_of(key)
        assert parts is not None
        assert not key_file.matches(msgspec.structs.replace(entry, hash=broken), parts[1])


def test_a_name_is_taken_once_and_what_is_not_there_cannot_be_revoked(path: Path) -> None:
    key_file.create(path, "shop", scopes=["infer"], models=["*"])
    with pytest.raises(ConfigError, match="has a key 'shop' already"):
        key_file.create(path, "shop", scopes=["infer"], models=["*"])
    with pytest.raises(ConfigError, match="no key 'shopp'; it has shop"):
        key_file.revoke(path, "shopp")
    with pytest.raises(ConfigError, match="cannot be a key's name"):
        key_file.create(path, "two words", scopes=["infer"], models=["*"])


def test_a_keys_quota_is_kept_and_follows_the_file(path: Path) -> None:
    key = key_file.create(path, "shop", scopes=["infer"], models=["*"], requests_per_s=5.0, concurrent=2, burst_s=3.0)
    clock = ManualClock()
    known = Keys(path, clock)
    assert known.principal(key).quota == Quota(requests_per_s=5.0, concurrent=2, burst_s=3.0)
    path.write_text(path.read_text().replace("requests_per_s = 5.0", "requests_per_s = 50.0"))
    clock.advance(1.0)
    assert known.principal(key).quota == Quota(requests_per_s=50.0, concurrent=2, burst_s=3.0)
    plain = key_file.create(path, "plain", scopes=["infer"], models=["*"])
    clock.advance(1.0)
    assert known.principal(plain).quota is None
    assert "burst_s" not in path.read_text().partition("plain")[2], "what is as by default is not written"


@pytest.mark.parametrize("wrong", [{"requests_per_s": -1.0}, {"rows_per_s": 1e-9}, {"concurrent": -1}])
def test_a_quota_that_makes_no_sense_is_refused_where_it_is_written_and_read(path: Path, wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="must be at least"):
        key_file.create(path, "shop", scopes=["infer"], models=["*"], **wrong)
    assert not path.exists()
    key_file.create(path, "shop", scopes=["infer"], models=["*"])
    name, value = next(iter(wrong.items()))
    path.write_text(f"{path.read_text()}{name} = {value:.{9 * isinstance(value, float)}f}\n")
    with pytest.raises(ConfigError, match=r"the key 'shop'.*must be at least"):
        key_file.read(path)

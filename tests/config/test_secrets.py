"""Keys for other servers: where they lie, how they are sent, and that they are not shown."""

from pathlib import Path

import pytest

from dlproxy.config import ConfigError
from dlproxy.config.secrets import hidden, read_key, with_key, without_secrets

KEY = "dlp_abcdefgh_" + "s3cr3t-" * 6 + "x"
TOKEN = "eyJhbGciOiJSUzI1NiJ9.eyJzdWIiOiJhbm4ifQ.c2lnbmF0dXJl"


def test_a_key_is_in_a_file_or_a_variable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "key").write_text(f"{KEY}\n")
    monkeypatch.setenv("FAR_KEY", KEY)
    assert read_key(str(tmp_path / "key"), "x") == read_key("env:FAR_KEY", "x") == KEY
    assert without_secrets({"FAR_KEY": KEY, "DLPROXY_API_KEY": KEY, "PATH": "/bin"}) == {"PATH": "/bin"}


@pytest.mark.parametrize(
    ("text", "clue"),
    [
        ("", "one word of ASCII"),
        ("two words", "one word"),
        ("dlp\nx: y", "one word"),
        ("schlüssel", "one word"),
        (None, "no variable"),
    ],
)
def test_what_is_no_key_is_refused_and_not_repeated(text: str | None, clue: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if text is not None:
        monkeypatch.setenv("WRONG_KEY", text)
    with pytest.raises(ConfigError, match=f"upstream_api_key: .*{clue}") as refused:
        read_key("env:WRONG_KEY", "upstream_api_key")
    assert not text or text not in str(refused.value)


def test_files_that_hold_no_key(tmp_path: Path) -> None:
    (tmp_path / "binary").write_bytes(b"\xff\xfe")
    for name, clue in (("none", "cannot be read"), ("binary", "is no text")):
        with pytest.raises(ConfigError, match=clue):
            read_key(str(tmp_path / name), "x")


def test_headers_of_ones_own_go_before() -> None:
    assert with_key({"x-more": "1"}, KEY) == {"x-more": "1", "authorization": f"Bearer {KEY}"}
    for own in ({"Authorization": "Basic abc"}, {"X-API-Key": "abc"}):
        assert with_key(own, KEY) == own
    assert with_key({}, "") == {}


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        (f"/predict/m?key={KEY}&x=1", "/predict/m?key=dlp_abcdefgh_***&x=1"),
        (f"a token {TOKEN}, it says", "a token ***, it says"),
        ("authorization: Bearer abcdefghij", "authorization: Bearer ***"),
        ("authorization: Basic YW5uOnBhNTU=, basic knowledge", "authorization: Basic ***, basic knowledge"),
        ("send 'Authorization: Bearer KEY'", "send 'Authorization: Bearer KEY'"),
        ("redis://ann:pa55@host:6379/0 is gone", "redis://***@host:6379/0 is gone"),
        ("-----BEGIN EC PRIVATE KEY-----\nMHcC\n-----END EC PRIVATE KEY-----\nrest", "***\nrest"),
        ("GET /v2/models/m/versions/1", "GET /v2/models/m/versions/1"),
    ],
)
def test_what_looks_like_a_secret_is_not_logged(text: str, shown: str) -> None:
    assert hidden(text) == shown

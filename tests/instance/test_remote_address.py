"""Addresses of upstreams: what they mean, and what is told to whoever writes one wrong."""

import pytest

from dlproxy.config import is_address
from dlproxy.instance.remote.address import Address, parse_address, parse_addresses
from dlproxy.instance.runtime import ModelError


@pytest.mark.parametrize(
    ("text", "expected", "authority"),
    [
        ("http://h:8000/v2/models/m", Address("oip", False, "h", 8000, "/v2", "/v2/models/m", "m"), "h:8000"),
        ("https://h/v2/models/m/", Address("oip", True, "h", 443, "/v2", "/v2/models/m", "m"), "h"),
        (
            "http://[::1]:80/a/b/v2/models/m/versions/7",
            Address("oip", False, "::1", 80, "/a/b/v2", "/a/b/v2/models/m/versions/7", "m", version="7"),
            "[::1]",
        ),
        ("http://h:8501/v1/models/half", Address("tfs", False, "h", 8501, "/v1", "/v1/models/half", "half"), "h:8501"),
        (
            "http://h/v1/models/half/labels/stable?signature=classify",
            Address("tfs", False, "h", 80, "/v1", "/v1/models/half/labels/stable", "half", "classify", label="stable"),
            "h",
        ),
        (
            "grpc://h:8001/v2/models/m/versions/3",
            Address("oip", False, "h", 8001, "/v2", "/v2/models/m/versions/3", "m", transport="grpc", version="3"),
            "h:8001",
        ),
        (
            "grpcs://[::1]:443/v1/models/a%20b?signature=classify",
            Address("tfs", True, "::1", 443, "/v1", "/v1/models/a%20b", "a b", "classify", "grpc"),
            "[::1]:443",
        ),
    ],
)
def test_understood(text: str, expected: Address, authority: str) -> None:
    assert is_address(text)
    assert parse_address(text) == expected
    assert parse_address(text).authority == authority


@pytest.mark.parametrize(
    ("text", "clue"),
    [
        ("ftp://h/v2/models/m", "not understood"),
        ("http:///v2/models/m", "not understood"),
        ("http://h:99999/v2/models/m", "[Pp]ort"),
        ("http://h:8000/", "names no model"),
        ("http://h:8000/v2/models/", "names no model"),
        ("http://h/v2/models/m/infer", "names no model"),
        ("http://h/v2/models/a b", "not understood"),
        ("http://h/v2/models/m?x=1", "only .signature"),
        ("http://h/v1/models/m?signature=", "only .signature"),
        ("http://user:secret@h/v2/models/m", "passwords do not belong"),
        ("grpc://h:8001/m", "names no model"),
        ("grpc://h/v2/models/m", "gRPC needs a port"),
        ("grpc://h:8001/a/v2/models/m", "nothing before /v1 or /v2"),
    ],
)
def test_refused(text: str, clue: str) -> None:
    with pytest.raises(ModelError, match=clue) as caught:
        parse_address(text)
    assert "secret" not in str(caught.value)


def test_files_are_no_addresses() -> None:
    assert not any(map(is_address, ("model.onnx", "sleep:base=1ms", "C:\\models\\m.onnx", "/http/x.onnx")))


def test_replicas_stand_in_one_line() -> None:
    both = parse_addresses("http://a:1/v2/models/m, http://b:1/v2/models/m")
    assert [address.host for address in both] == ["a", "b"]
    with pytest.raises(ModelError, match="a:1/v2/models/m is named twice"):
        parse_addresses("http://a:1/v2/models/m,http://a:1/v2/models/m")
    with pytest.raises(ModelError, match="not understood"):
        parse_addresses("http://a:1/v2/models/m,")

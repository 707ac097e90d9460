"""Addresses of servers as users write them, and what is said of those that are none."""

import sys

import pytest

from dlproxy import AsyncClient, Client
from dlproxy.client.address import model_path, parse


@pytest.mark.parametrize(
    ("url", "transport", "tls", "authority", "base"),
    [
        ("http://h:8000", "http", False, "h:8000", "/v2"),
        ("h:8000", "http", False, "h:8000", "/v2"),
        ("http://h", "http", False, "h", "/v2"),
        ("https://h/serving/", "http", True, "h", "/serving/v2"),
        ("http://[::1]:80/", "http", False, "[::1]", "/v2"),
        ("grpc://h", "grpc", False, "h:8001", "/v2"),
        ("grpcs://h:9", "grpc", True, "h:9", "/v2"),
    ],
)
def test_addresses(url: str, transport: str, tls: bool, authority: str, base: str) -> None:
    address = parse(url).address
    assert (address.transport, address.tls, address.authority, address.base) == (transport, tls, authority, base)


@pytest.mark.parametrize("url", ["unix:/run/d.sock", "unix:///run/d.sock"])
def test_a_socket_of_this_machine(url: str) -> None:
    assert parse(url).socket == "/run/d.sock"
    assert parse(url).address.authority == "localhost"


@pytest.mark.parametrize(
    ("url", "complaint"),
    [
        ("", "is no address"),
        ("ftp://h", "is no address"),
        ("http://h:eighty", "is no address"),
        ("http://h\r\nx: y", "is no address"),
        ("http://u:p@h", "passwords do not belong"),
        ("http://h/v2/models/m", "more than where the server is"),
        ("http://h?x=1", "more than where the server is"),
        ("grpc://h/x", "more than where the server is"),
        ("unix:", "names no socket"),
    ],
)
def test_what_is_no_address_is_refused_when_the_client_is_made(url: str, complaint: str) -> None:
    for kind in (AsyncClient, Client):
        with pytest.raises(ValueError, match=complaint):
            kind(url)


@pytest.mark.parametrize(
    "settings", [{"timeout_s": 0.0}, {"timeout_s": float("nan")}, {"connections": 0}, {"connect_timeout_s": -1.0}]
)
def test_settings_out_of_range_are_refused(settings: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=r"must be|are seconds"):
        AsyncClient(**settings)  # type: ignore[arg-type]


def test_names_are_escaped() -> None:
    assert model_path("/v2/models", "a/b ü", "stable") == "/v2/models/a%2Fb%20%C3%BC/versions/stable"


def test_grpc_without_its_extra_names_it(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("dlproxy.client.grpc", "dlproxy.instance.remote.grpc_channel"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.setitem(sys.modules, "grpc", None)
    with pytest.raises(ValueError, match=r"pip install 'dlproxy\[grpc\]'"):
        Client("grpc://h")


def test_headers_that_cannot_be_sent_are_refused_when_the_client_is_made() -> None:
    for url in ("http://h", "grpc://h"):
        with pytest.raises(ValueError, match="cannot be sent"):
            Client(url, headers={"content-length": "3"})

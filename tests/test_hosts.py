"""Hosts as addresses write them, IPv6 in brackets, wherever one is printed, read or sent."""

import socket
from urllib.parse import urlsplit

import pytest

from dlproxy.cli.control_port import ControlPort
from dlproxy.config import ServerConfig
from dlproxy.hosts import authority, plain_host
from dlproxy.instance.remote.address import parse_address
from dlproxy.lab.load.target import Target
from dlproxy.serve.listeners import Listeners, PortError

HOSTS = {
    "127.0.0.1": "127.0.0.1",
    "0.0.0.0": "0.0.0.0",
    "models.example": "models.example",
    "::1": "[::1]",
    "::": "[::]",
    "fe80::abcd": "[fe80::abcd]",
    "2001:db8::8000": "[2001:db8::8000]",
    "fe80::1%eth0": "[fe80::1%25eth0]",
}


@pytest.mark.parametrize(("host", "written"), HOSTS.items())
def test_a_host_is_written_so_that_it_can_be_read_back(host: str, written: str) -> None:
    assert authority(host) == authority(written) == written
    assert authority(host, 8000) == authority(written, 8000) == f"{written}:8000"
    assert plain_host(host) == plain_host(written) == host
    parts = urlsplit(f"http://{authority(host, 8000)}/v2")
    assert (plain_host(parts.hostname or ""), parts.port) == (host, 8000)


@pytest.mark.parametrize(("host", "written"), HOSTS.items())
@pytest.mark.parametrize("port", [None, 1234])
def test_every_client_takes_it(host: str, written: str, port: int | None) -> None:
    url = f"http://{written}" + (f":{port}" if port else "")
    target = Target(url)
    assert (target._host, target.host_header) == (host, f"{written}:{port or 80}")
    assert (ControlPort(url)._host, ControlPort(url)._port) == (host, port or 8002)
    address = parse_address(f"{url}/v2/models/m")
    assert (address.host, address.port) == (host, port or 80)
    assert address.authority == (f"{written}:{port}" if port else written)


@pytest.mark.parametrize("host", ["::1", "[::1]"])
def test_a_taken_port_is_named_as_an_address(host: str) -> None:
    with socket.create_server(("::1", 0), family=socket.AF_INET6) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(PortError, match=rf"cannot listen on \[::1\]:{port}: "):
            Listeners(ServerConfig(host=host, http_port=port))

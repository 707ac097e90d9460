"""Where a server is, as users write it: http://host:8000, https://…, grpc://host:8001, grpcs://…, unix:/path of a socket.

Called by the clients. Not aware of: connections.
"""

import re
from urllib.parse import quote, urlsplit

from msgspec import Struct

from dlproxy.hosts import plain_host
from dlproxy.instance.remote.address import Address

_SCHEMES = {"http": 80, "https": 443, "grpc": 8001, "grpcs": 8001}
_FORMS = "http://HOST:8000, https://HOST, grpc://HOST:8001, grpcs://HOST:8001 or unix:/PATH"
_PLAIN = re.compile(r"[!-~]+")  # nothing that could end a line of a request


class Place(Struct, frozen=True):
    """`socket`: the path of a Unix socket, which then is connected to."""

    address: Address
    socket: str = ""

    @property
    def shown(self) -> str:
        return self.socket or f"{self.address.authority}{self.address.path}"


def parse(url: str) -> Place:
    """Raises ValueError for what is no such address."""
    if url.startswith("unix:"):
        path = url.removeprefix("unix:")
        path = f"/{path.lstrip('/')}" if path.startswith("//") else path  # unix:///path means the same
        if not path:
            raise ValueError(f"{url!r} names no socket; write it like unix:/run/dlproxy.sock")
        return Place(_address("http", "localhost", 80, ""), path)
    try:
        parts = urlsplit(url if "://" in url else f"http://{url}")
        host, port = parts.hostname, parts.port
    except ValueError as error:
        raise ValueError(f"{url!r} is no address of a server: {error}") from None
    if parts.scheme not in _SCHEMES or not host or not _PLAIN.fullmatch(url):
        raise ValueError(f"{url!r} is no address of a server; write it like {_FORMS}")
    if "@" in parts.netloc:
        raise ValueError("passwords do not belong in the address; give an authorization header")
    path = parts.path.rstrip("/")
    if parts.query or parts.fragment or "/v2" in path or (path and parts.scheme.startswith("grpc")):
        raise ValueError(f"{url!r} says more than where the server is; write it like {_FORMS}")
    return Place(_address(parts.scheme, plain_host(host), port or _SCHEMES[parts.scheme], path))


def model_path(base: str, model: str, version: str) -> str:
    """`base`: what comes before, such as /v2/models."""
    return f"{base}/{quote(model, safe='')}" + (f"/versions/{quote(version, safe='')}" if version else "")


def _address(scheme: str, host: str, port: int, path: str) -> Address:
    transport = "grpc" if scheme.startswith("grpc") else "http"
    return Address("oip", scheme.endswith("s"), host, port, f"{path}/v2", path, "", transport=transport)  # type: ignore[arg-type]

"""Where an upstream's model is: `http://host:8000/v2/models/NAME` (Open Inference Protocol), `/v1/models/NAME` (TF Serving).

The same with grpc:// for their gRPC ports. Called by whoever reads a configuration. Not aware of: connections.
"""

import re
from typing import Literal
from urllib.parse import parse_qsl, unquote, urlsplit

from msgspec import Struct

from dlproxy.hosts import authority, plain_host
from dlproxy.instance.runtime import ModelError

_PATHS: tuple[tuple[Literal["oip", "tfs"], re.Pattern[str]], ...] = (
    ("oip", re.compile(r"(?P<prefix>(?:/[^/]+)*)/v2/models/(?P<model>[^/]+)(?:/versions/(?P<version>[0-9]+))?")),
    (
        "tfs",
        re.compile(
            r"(?P<prefix>(?:/[^/]+)*)/v1/models/(?P<model>[^/:]+)(?:/versions/(?P<version>[0-9]+)|/labels/(?P<label>[^/:]+))?"
        ),
    ),
)
_PLAIN = re.compile(r"[!-~]+")  # nothing that could end a line of a request
_FORMS = (
    "http://HOST:8000/v2/models/NAME (Open Inference Protocol) or http://HOST:8501/v1/models/NAME (TensorFlow Serving), "
    "or with grpc:// and the gRPC port, 8001 or 8500"
)
_SCHEMES: dict[str, tuple[Literal["http", "grpc"], bool]] = {
    "http": ("http", False),
    "https": ("http", True),
    "grpc": ("grpc", False),
    "grpcs": ("grpc", True),
}
DEFAULT_SIGNATURE = "serving_default"


class Address(Struct, frozen=True):
    """`base` is the path before `/models`, `path` all of it. `signature`: which of a SavedModel's signatures. `at`: the IP
    address of the host, where that has several; empty: whichever it has. `zone`: where it is, as a directory says.

    `model`, `version` and `label` are plain text, the version a number; empty for none.
    """

    protocol: Literal["oip", "tfs"]
    tls: bool
    host: str
    port: int
    base: str
    path: str
    model: str
    signature: str = DEFAULT_SIGNATURE
    transport: Literal["http", "grpc"] = "http"
    version: str = ""
    label: str = ""
    at: str = ""
    zone: str = ""

    @property
    def place(self) -> str:
        """For people, and to tell replicas apart."""
        return authority(self.at, self.port) if self.at else self.authority

    @property
    def authority(self) -> str:
        """For the Host header; for gRPC, whom to connect to."""
        usual = self.transport == "http" and self.port == (443 if self.tls else 80)
        return authority(self.host, None if usual else self.port)


def parse_addresses(text: str) -> list[Address]:
    """Those of one model's replicas, separated by commas. Raises ModelError."""
    addresses = [parse_address(part.strip()) for part in text.split(",")]
    for number, address in enumerate(addresses):
        if address in addresses[:number]:
            raise ModelError(f"upstream {address.authority}{address.path} is named twice")
    return addresses


def parse_address(text: str) -> Address:
    """Raises ModelError for what is no such address."""
    try:
        parts = urlsplit(text)
        host, port = parts.hostname, parts.port
    except ValueError as error:
        raise ModelError(f"upstream {text!r}: {error}") from None
    if parts.scheme not in _SCHEMES or not host or not _PLAIN.fullmatch(text):
        raise ModelError(f"upstream {text!r} is not understood; write it like {_FORMS}")
    if "@" in parts.netloc:
        raise ModelError(f"upstream of host {host!r}: passwords do not belong in the address; give an authorization header")
    transport, tls = _SCHEMES[parts.scheme]
    path = parts.path.rstrip("/")
    for protocol, pattern in _PATHS:
        match = pattern.fullmatch(path)
        if match is None:
            continue
        found = {name: unquote(value or "") for name, value in match.groupdict().items()}
        if transport == "grpc" and (match["prefix"] or not port):
            raise ModelError(f"upstream {text!r}: gRPC needs a port, and nothing before /v1 or /v2; write it like {_FORMS}")
        return Address(
            protocol,
            tls,
            plain_host(host),
            port or (443 if tls else 80),
            f"{match['prefix']}/{'v2' if protocol == 'oip' else 'v1'}",
            path,
            found["model"],
            _signature(text, parts.query, protocol),
            transport,
            found["version"],
            found.get("label", ""),
        )
    raise ModelError(f"upstream {text!r} names no model; write it like {_FORMS}")


def _signature(text: str, query: str, protocol: str) -> str:
    given = dict(parse_qsl(query, keep_blank_values=True))
    signature = given.pop("signature", DEFAULT_SIGNATURE) if protocol == "tfs" else DEFAULT_SIGNATURE
    if given or not signature:
        raise ModelError(
            f"upstream {text!r}: only ?signature=NAME may follow, and only the address of a TensorFlow Serving model"
        )
    return signature

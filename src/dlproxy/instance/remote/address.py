"""Where an upstream's model is: `http://host:8000/v2/models/NAME` (Open Inference Protocol), `/v1/models/NAME` (TF Serving).

Called by whoever reads a configuration. Not aware of: connections.
"""

import re
from typing import Literal
from urllib.parse import parse_qsl, urlsplit

from msgspec import Struct

from dlproxy.instance.runtime import ModelError

_PATHS: tuple[tuple[Literal["oip", "tfs"], re.Pattern[str]], ...] = (
    ("oip", re.compile(r"(?P<prefix>(?:/[^/]+)*)/v2/models/(?P<model>[^/]+)(?:/versions/[0-9]+)?")),
    ("tfs", re.compile(r"(?P<prefix>(?:/[^/]+)*)/v1/models/(?P<model>[^/:]+)(?:/versions/[0-9]+|/labels/[^/:]+)?")),
)
_PLAIN = re.compile(r"[!-~]+")  # nothing that could end a line of a request
_FORMS = "http://HOST:8000/v2/models/NAME (Open Inference Protocol) or http://HOST:8501/v1/models/NAME (TensorFlow Serving)"
DEFAULT_SIGNATURE = "serving_default"


class Address(Struct, frozen=True):
    """`base` is the path before `/models`, `path` all of it. `signature`: which of a SavedModel's signatures."""

    protocol: Literal["oip", "tfs"]
    tls: bool
    host: str
    port: int
    base: str
    path: str
    model: str
    signature: str = DEFAULT_SIGNATURE

    @property
    def authority(self) -> str:
        """For the Host header."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == (443 if self.tls else 80) else f"{host}:{self.port}"


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
    if parts.scheme in ("grpc", "grpcs"):
        raise ModelError(f"upstream {text!r}: gRPC is not spoken to upstreams yet; give their HTTP port: {_FORMS}")
    if parts.scheme not in ("http", "https") or not host or not _PLAIN.fullmatch(text):
        raise ModelError(f"upstream {text!r} is not understood; write it like {_FORMS}")
    if "@" in parts.netloc:
        raise ModelError(f"upstream of host {host!r}: passwords do not belong in the address; give an authorization header")
    path = parts.path.rstrip("/")
    tls = parts.scheme == "https"
    for protocol, pattern in _PATHS:
        match = pattern.fullmatch(path)
        if match is not None:
            base = f"{match['prefix']}/{'v2' if protocol == 'oip' else 'v1'}"
            signature = _signature(text, parts.query, protocol)
            return Address(protocol, tls, host, port or (443 if tls else 80), base, path, match["model"], signature)
    raise ModelError(f"upstream {text!r} names no model; write it like {_FORMS}")


def _signature(text: str, query: str, protocol: str) -> str:
    given = dict(parse_qsl(query, keep_blank_values=True))
    signature = given.pop("signature", DEFAULT_SIGNATURE) if protocol == "tfs" else DEFAULT_SIGNATURE
    if given or not signature:
        raise ModelError(
            f"upstream {text!r}: only ?signature=NAME may follow, and only the address of a TensorFlow Serving model"
        )
    return signature

"""Header blocks of a connection (RFC 7541) as what they say, checked as HTTP/2 and gRPC want it (RFC 9113, section 8).

Decoded by hpack; a block that repeats, and changes no table, is known by its bytes. Called by connection.py.
Not aware of: frames, streams.
"""

import re
from math import inf, isnan

import hpack
from msgspec import Struct

from dlproxy.message import InferenceError
from dlproxy.wire.terms import GRPC_TIMEOUT, grpc_timeout

MAX_BLOCKS = 128  # that are remembered of one connection, and the largest block and list of fields among them
MAX_BLOCK, MAX_FIELDS = 1024, 4096

PROTOBUF = (b"application/grpc", b"application/grpc+proto")  # content-types

_PSEUDO = frozenset({b":method", b":scheme", b":path", b":authority"})
_NEEDED = (b":method", b":scheme", b":path")
_OF_CONNECTIONS = frozenset({b"connection", b"keep-alive", b"proxy-connection", b"transfer-encoding", b"upgrade"})
_NAME = re.compile(rb":?[!#$%&'*+\-.^_`|~0-9a-z]+")
_VALUE = re.compile(rb"[^\0\r\n]*")
_SIZE_UPDATE = 0x20  # the first three bits of one: 001


class Head(Struct, frozen=True):
    """What one says. Equal blocks give one object while the table stays.

    `headers`: fields that repeat are joined by commas. `plain`: it begins a call, and nothing about it is unusual. Else
    `problem`: why no request of HTTP/2 may have it, empty if one may; `trailers`: whether a request may end with it; `length`:
    of the content, -1 if it is not said; `timeout_s`: nan where it is malformed.
    """

    headers: dict[bytes, bytes]
    path: bytes
    plain: bool
    problem: str
    trailers: bool
    length: int
    timeout_s: float


class TooLargeError(Exception):
    """Of a block, or the number of its fields."""


class HeaderBlocks:
    """Of one connection, in the order in which they come."""

    def __init__(self, max_bytes: int, max_fields: int) -> None:
        self._decoder = hpack.Decoder(max_header_list_size=max_bytes)
        self._max_bytes, self._max_fields = max_bytes, max_fields
        self.known: dict[bytes, Head] = {}
        """Whoever finds a block here need not have it read."""

    def read(self, block: bytes) -> Head:
        """Of a block that is not known. Raises hpack.HPACKError or TooLargeError, after which no other can be read."""
        if len(block) > self._max_bytes:
            raise TooLargeError(f"the header block is larger than {self._max_bytes} bytes")
        _check_updates(block)
        table = self._decoder.header_table
        entries = table.dynamic_entries
        before = (table.maxsize, len(entries), entries[0] if entries else None)
        fields = list(self._decoder.decode(block, raw=True))
        if len(fields) > self._max_fields:
            raise TooLargeError(f"too many header fields; at most {self._max_fields} are accepted")
        head = _head([(bytes(name), bytes(value)) for name, value in fields])
        now = (table.maxsize, len(entries), entries[0] if entries else None)
        if now[:2] != before[:2] or now[2] is not before[2] or len(self.known) >= MAX_BLOCKS:
            self.known.clear()
        elif len(block) <= MAX_BLOCK and sum(map(len, (*head.headers, *head.headers.values()))) <= MAX_FIELDS:
            self.known[block] = head
        return head


def _check_updates(block: bytes) -> None:
    """At most two updates of the table's size begin a block (RFC 7541, section 4.2); each costs, and says nothing."""
    at = 0
    for _ in range(3):
        if at >= len(block) or block[at] & 0xE0 != _SIZE_UPDATE:
            return
        more = block[at] & 0x1F == 0x1F
        at += 1
        while more and at < len(block):
            more = block[at] >= 0x80
            at += 1
    raise hpack.HPACKDecodingError("more than two updates of the table's size")


def _head(fields: list[tuple[bytes, bytes]]) -> Head:
    headers: dict[bytes, bytes] = {}
    problem, regular = "", False
    for name, value in fields:
        if _NAME.fullmatch(name) is None or _VALUE.fullmatch(value) is None:
            problem = problem or f"the header field {_shown(name)} is not valid"
        if name[:1] != b":":
            regular = True
            value = value.strip(b" \t")  # HTTP/2 has none there, but gRPC's own client sends it, and gRPC lets it be stripped
            headers[name] = headers[name] + b", " + value if name in headers else value
            continue
        if regular or name in headers or name not in _PSEUDO:
            problem = problem or f"the pseudo-header {_shown(name)} is unknown, repeated or late"
        headers[name] = value
    if not _OF_CONNECTIONS.isdisjoint(headers) or headers.get(b"te", b"trailers") != b"trailers":
        problem = problem or "a header field that HTTP/2 does not allow"
    length = headers.get(b"content-length", b"")
    if length and not (length.isdigit() and len(length) < 20):
        problem = problem or "content-length is no number"
    trailers = not problem and not any(name[:1] == b":" for name in headers)
    for needed in _NEEDED:
        if not headers.get(needed):
            problem = problem or f"the pseudo-header {needed.decode()} is missing"
    timeout_s = _timeout_s(headers)
    plain = not problem and headers[b":method"] == b"POST" and headers.get(b"content-type") in PROTOBUF
    plain = plain and not isnan(timeout_s)
    size = int(length) if length and not problem else -1
    return Head(headers, headers.get(b":path", b""), plain, problem, trailers, size, timeout_s)


def _timeout_s(headers: dict[bytes, bytes]) -> float:
    try:
        return grpc_timeout(headers[GRPC_TIMEOUT]) if GRPC_TIMEOUT in headers else inf
    except InferenceError:
        return float("nan")


def _shown(name: bytes) -> str:
    return repr(name[:40].decode("latin-1"))

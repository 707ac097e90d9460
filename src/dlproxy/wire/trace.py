"""Under which names a request is known elsewhere: `x-request-id`, and `traceparent` with `tracestate` (W3C Trace Context).

What does not keep to its form is ignored, as that standard says. Called by terms.py, http/exchange.py and grpc/call.py.
Not aware of: spans of this server (serve/tracing.py): it reads and hands on what came.
"""

import re
from collections.abc import Mapping

from dlproxy.message import NO_TRACE, Trace

REQUEST_ID = b"x-request-id"
TRACE_PARENT = b"traceparent"
TRACE_STATE = b"tracestate"
MOST_STATE = 512  # bytes; what has to be handed on at least (section 3.3.1.5)

_ID = re.compile(rb"[!-~](?:[ -~]{0,126}[!-~])?")
_PARENT = re.compile(
    rb"(?P<version>(?!ff)[0-9a-f]{2})-(?P<known>(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2})(?P<more>-.*)?",
    re.DOTALL,
)
_KEY = rb"[a-z0-9][a-z0-9_*/@-]{0,255}"
_MEMBER = rb"(?:%b=[ -+\--<>-~]{0,255}[!-+\--<>-~])?" % _KEY
_STATE = re.compile(rb"[ \t]*%b(?:[ \t]*,[ \t]*%b){0,31}[ \t]*" % (_MEMBER, _MEMBER))


def trace_of(headers: Mapping[bytes, bytes]) -> Trace:
    """NO_TRACE itself if they say nothing that can be used."""
    request_id, parent = headers.get(REQUEST_ID), headers.get(TRACE_PARENT)
    if request_id is None and parent is None:
        return NO_TRACE
    shown = request_id_of(headers)
    place = _parent(parent)
    if not shown and not place:
        return NO_TRACE
    state = headers.get(TRACE_STATE, b"") if place else b""
    kept = len(state) <= MOST_STATE and _STATE.fullmatch(state)
    return Trace(shown, place, state.decode("ascii") if kept else "")


def request_id_of(headers: Mapping[bytes, bytes]) -> str:
    """Empty if there is none, or none that can be shown: at most 128 characters of ASCII."""
    value = headers.get(REQUEST_ID)
    return value.decode("ascii") if value and _ID.fullmatch(value) else ""


def named(headers: Mapping[bytes, bytes]) -> Mapping[str, Mapping[str, str]]:
    """As `extra` of a line in the log about a request with these: its client's id for it, if it has one."""
    name = request_id_of(headers)
    return {"request": {"id": name}} if name else {}


def echo(headers: Mapping[bytes, bytes]) -> bytes:
    """The header lines of an answer to a request with these."""
    request_id, parent = request_id_of(headers).encode(), _parent(headers.get(TRACE_PARENT)).encode()
    id_line = b"x-request-id: %b\r\n" % request_id if request_id else b""
    return id_line + (b"traceparent: %b\r\n" % parent if parent else b"")


def _parent(value: bytes | None) -> str:
    """As version 00, whatever later version it came in (section 3.2.4.1); empty for one that is invalid."""
    match = None if value is None else _PARENT.fullmatch(value)
    if match is None or (match["version"] == b"00" and match["more"] is not None):
        return ""
    return f"00-{match['known'].decode()}"

"""The way to one upstream and back, whatever the transport. Implemented by http_channel.py and grpc_channel.py.

Called by remote.py, which takes one together with a codec of the same asks and answers. Not aware of: models, health.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol, TypeVar

from dlproxy.instance.remote.failures import UpstreamError
from dlproxy.instance.runtime import ModelError
from dlproxy.message import NO_TRACE, Request


class Answer(Protocol):
    """Whatever an upstream said, yes or no."""

    @property
    def variant(self) -> str:
        """The name of the model that answered in place of the one asked for, where a dlproxy says so."""
        ...

    @property
    def load(self) -> str:
        """What a node says of itself (policy/hops.py); empty for nothing."""
        ...

    def refusal(self) -> UpstreamError | None:
        """The error that it stands for; None for an answer proper."""
        ...


Fields = Sequence[tuple[str, str]]
"""Headers, or gRPC's metadata: names in lower case, and values."""

CACHE = "x-dlproxy-cache"  # what a server's result cache had to do with an answer
VARIANT = "x-dlproxy-variant"  # the name, as in a path, of the model that answered in place of the one asked for
DEADLINE = "x-request-deadline-ms"  # how long clients wait yet; dlproxy's own (wire/terms.py), which other servers ignore
MOST_IDS = 1024  # characters of the clients' ids that go with a batch


def trace_fields(requests: Sequence[Request]) -> Fields:
    """How others know what is in a batch: the ids of all its requests, and the place in a trace of the first that is traced
    here or, where none is, that has one.
    """
    traces = [request.trace for request in requests if request.trace is not NO_TRACE]
    if not traces:
        return ()
    fields, ids = [], ""
    for request_id in dict.fromkeys(trace.request_id for trace in traces):  # parts of one request share it
        if request_id and len(ids) + len(request_id) + 2 <= MOST_IDS:
            ids += f", {request_id}" if ids else request_id
    if ids:
        fields.append(("x-request-id", ids))
    placed = [trace for trace in traces if trace.parent]
    first = next((trace for trace in placed if trace.span is not None), placed[0] if placed else NO_TRACE)
    if first.parent:
        fields.append(("traceparent", first.parent))
    if first.state:
        fields.append(("tracestate", first.state))
    return fields


Ask_contra = TypeVar("Ask_contra", contravariant=True)
Answer_co = TypeVar("Answer_co", bound=Answer, covariant=True)


class Channel(Protocol[Ask_contra, Answer_co]):
    """Made without an event loop, used on one. Connections are made when they are needed, and kept.

    Implementations tell whoever made them when a kept connection was closed by the server.
    """

    @property
    def connections(self) -> int:
        """Open or being opened."""
        ...

    def widen(self, batches: int) -> None:
        """So many calls may be under way at a time; further ones may wait."""
        ...

    def call(
        self, ask: Ask_contra, done: Callable[[Answer_co | UpstreamError], None], *, timeout_s: float, fields: Fields = ()
    ) -> None:
        """Send a batch. `done` is called once, never before this returns, within `timeout_s` from now.

        `fields`: headers of this call, except those of which the operator has set another value for all.
        """
        ...

    def stream(self, ask: Ask_contra, *, timeout_s: float, fields: Fields = ()) -> "Messages[Answer_co]":
        """A request that has many answers, to be sent when the first is asked for. `timeout_s`: for each of them. `fields`: as
        `call` has them.
        """
        ...

    async def fetch(self, ask: Ask_contra, *, timeout_s: float) -> Answer_co:
        """Send a check, whatever batches are under way. Raises UpstreamError."""
        ...

    async def close(self) -> None:
        """End every connection; calls under way fail."""
        ...


class Messages(Protocol[Answer_co]):
    """The answers to one ask, in the order in which they come."""

    def ask(self, done: Callable[[Answer_co | UpstreamError | None], None]) -> None:
        """For the next one; None: there are no more. `done` is called once, never before this returns, in the time allowed."""
        ...

    def stop(self) -> None:
        """No more is wanted; who waits is told None. May be called at any time, and again."""
        ...


OURS = frozenset(
    {
        *("content-length", "content-type", "content-encoding", "inference-header-content-length", "accept-encoding", "expect"),
        *("connection", "keep-alive", "proxy-connection", "te", "trailer", "transfer-encoding", "upgrade", "http2-settings"),
    }
)
"""Header names of which each request has its own, or which are about the connection."""
_NAME = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]+")
_HOST = re.compile(r"(?:[A-Za-z0-9._-]+|\[[0-9A-Fa-f:.]+\])(?::[0-9]{1,5})?")


def checked_headers(headers: Mapping[str, str]) -> dict[str, str]:
    """What an operator adds to every request, with names in lower case. Raises ModelError for what no request may have."""
    checked: dict[str, str] = {}
    for name, value in headers.items():
        if not _NAME.fullmatch(name) or not value.isascii() or not value.isprintable():
            raise ModelError(f"header {name!r} cannot be sent: names and values are one line of ASCII, names without spaces")
        lower = name.lower()
        if lower in OURS:
            raise ModelError(f"header {name!r} cannot be sent, because dlproxy sets it itself; omit it")
        if lower in checked:
            raise ModelError(f"header {name!r} cannot be sent twice; give its values in one, with commas between them")
        if lower == "host" and not _HOST.fullmatch(value.strip()):
            raise ModelError(
                f"header {name!r} cannot be sent: {value!r} is not a host; write it like models.example or host:8000"
            )
        checked[lower] = value.strip()
    return checked

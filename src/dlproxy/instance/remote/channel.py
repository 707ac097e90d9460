"""The way to one upstream and back, whatever the transport. Implemented by http_channel.py and grpc_channel.py.

Called by remote.py, which takes one together with a codec of the same asks and answers. Not aware of: models, health.
"""

from collections.abc import Callable, Mapping
from typing import Protocol, TypeVar

from dlproxy.instance.remote.failures import UpstreamError
from dlproxy.instance.runtime import ModelError


class Answer(Protocol):
    """Whatever an upstream said, yes or no."""

    def refusal(self) -> UpstreamError | None:
        """The error that it stands for; None for an answer proper."""
        ...


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

    def call(self, ask: Ask_contra, done: Callable[[Answer_co | UpstreamError], None], *, timeout_s: float) -> None:
        """Send a batch. `done` is called once, never before this returns, within `timeout_s` from now."""
        ...

    async def fetch(self, ask: Ask_contra, *, timeout_s: float) -> Answer_co:
        """Send a check, whatever batches are under way. Raises UpstreamError."""
        ...

    async def close(self) -> None:
        """End every connection; calls under way fail."""
        ...


def check_headers(headers: Mapping[str, str]) -> None:
    """Raises ModelError for headers that are none."""
    for name, value in headers.items():
        if not name.isascii() or not value.isascii() or not name.isprintable() or not value.isprintable() or ":" in name:
            raise ModelError(f"header {name!r} cannot be sent: names and values are one line of ASCII")

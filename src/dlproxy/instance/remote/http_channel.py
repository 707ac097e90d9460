"""HTTP/1.1 to one upstream: connections for batches, one more for checks, and the heads of requests. Made by protocols.py.

Not aware of: models, what the bodies hold.
"""

import asyncio
from collections.abc import Callable, Coroutine, Mapping, Sequence
from typing import Any

from dlproxy.instance.remote.address import Address
from dlproxy.instance.remote.channel import Fields, checked_headers
from dlproxy.instance.remote.http_client import HttpClient, Outcome, Part, Reply, Server
from dlproxy.instance.remote.http_stream import HttpMessages
from dlproxy.instance.remote.settings import RemoteSettings
from dlproxy.instance.remote.tls import context_of

Lines = Sequence[Part]
"""A request, as parts to be written one after the other."""


class HttpChannel:
    """At most as many connections as batches under way, and one for checks."""

    def __init__(self, address: Address, settings: RemoteSettings, on_dropped: Callable[[], None]) -> None:
        """Raises ModelError for authorities that cannot be loaded."""
        self._fixed = {name.lower() for name in settings.headers}
        self._server = server = Server(
            address.at or address.host, address.port, context_of(settings) if address.tls else None, name=address.host
        )
        self._settings = settings
        self._streams: set[HttpMessages] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._checks, self._batches = (
            HttpClient(
                server,
                connections=1,
                connect_timeout_s=settings.connect_timeout_s,
                max_reply_bytes=settings.max_reply_bytes,
                on_dropped=on_dropped,
            )
            for _ in range(2)
        )

    @property
    def connections(self) -> int:
        return self._checks.connections + self._batches.connections + len(self._streams)

    def widen(self, batches: int) -> None:
        self._batches.most = batches

    def call(self, ask: Lines, done: Callable[[Outcome], None], *, timeout_s: float, fields: Fields = ()) -> None:
        self._batches.call(self._with(fields, ask), done, timeout_s=timeout_s)

    def _with(self, fields: Fields, ask: Lines) -> Lines:
        added = "".join(f"{name}: {value}\r\n" for name, value in fields if name not in self._fixed)
        if not added:
            return ask
        line, end, head = bytes(ask[0]).partition(b"\r\n")
        return [line + end + added.encode() + head, *ask[1:]]

    def stream(self, ask: Lines, *, timeout_s: float, fields: Fields = ()) -> HttpMessages:
        messages = HttpMessages(
            self._server,
            self._with(fields, ask),
            connect_timeout_s=self._settings.connect_timeout_s,
            timeout_s=timeout_s,
            max_reply_bytes=self._settings.max_reply_bytes,
            begin=self._begin,
            on_end=self._streams.discard,
        )
        self._streams.add(messages)
        return messages

    def _begin(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def fetch(self, ask: Lines, *, timeout_s: float) -> Reply:
        return await self._checks.fetch(ask, timeout_s=timeout_s)

    async def close(self) -> None:
        for messages in list(self._streams):
            messages.stop()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._checks.close()
        await self._batches.close()


class Heads:
    """Request heads for one server."""

    def __init__(self, address: Address, headers: Mapping[str, str]) -> None:
        """`headers` replace ours of the same names. Raises ModelError for those that cannot be sent."""
        fields = {"host": address.authority, "user-agent": "dlproxy", **checked_headers(headers)}
        self._common = "".join(f"{name}: {value}\r\n" for name, value in fields.items())

    def get(self, path: str) -> Lines:
        return (f"GET {path} HTTP/1.1\r\n{self._common}\r\n".encode(),)

    def post(self, path: str) -> bytes:
        """Without its end: content type, length and an empty line are to follow."""
        return f"POST {path} HTTP/1.1\r\n{self._common}".encode()

"""A small server of the Open Inference Protocol in a thread, whose answers a test decides. Model "m": FP32 [-1,4] to [-1,2]."""

import asyncio
import json
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from time import monotonic
from typing import Any

METADATA = {
    "name": "m",
    "platform": "fake",
    "inputs": [{"name": "x", "datatype": "FP32", "shape": [-1, 4]}],
    "outputs": [{"name": "y", "datatype": "FP32", "shape": [-1, 2]}],
}
REPLY = {"model_name": "m", "outputs": [{"name": "y", "datatype": "FP32", "shape": [1, 2], "data": [0.25, 0.75]}]}


def http(body: Any, status: str = "200 OK", *headers: str) -> bytes:
    """A whole answer; `body` is made JSON unless it is bytes."""
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    lines = [f"HTTP/1.1 {status}", *headers, f"content-length: {len(content)}", "", ""]
    return "\r\n".join(lines).encode() + content


OK = http(REPLY)


class Asked:
    """One request as the server got it."""

    def __init__(self, connection: "_Connection", head: str, body: bytes) -> None:
        self.at = monotonic()
        self.line = head.partition("\r\n")[0]
        self.head, self.body = head, body
        self._connection = connection

    @property
    def json(self) -> Any:
        size = re.search(r"inference-header-content-length: (\d+)", self.head, re.IGNORECASE)
        return json.loads(self.body[: int(size[1])] if size else self.body)

    def reply(self, data: bytes = OK, *, after_s: float = 0.0, close: bool = False) -> None:
        """Write this, now or later, and close the connection if asked to."""

        def write() -> None:
            self._connection.transport.write(data)
            if close:
                self._connection.transport.close()

        if after_s > 0.0:
            self._connection.loop.call_later(after_s, write)
        else:
            write()


Infer = Callable[[Asked], None]


class FakeServer:
    """`infer` answers inference requests; `pages` replaces other answers, by path."""

    def __init__(self, infer: Infer = Asked.reply, pages: dict[str, bytes] | None = None) -> None:
        self.infer = infer
        self.pages = {
            "/v2": http({"name": "fake"}),
            "/v2/models/m": http(METADATA),
            "/v2/repository/index": http([{"name": "m"}, {"name": "other"}]),
            **(pages or {}),
        }
        self.asked: list[Asked] = []
        self.connections: set[_Connection] = set()
        self.port = 0
        self._loop = asyncio.new_event_loop()
        self._server: asyncio.Server | None = None
        self._ready = threading.Event()
        self._thread = threading.Thread(target=self._run)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def _run(self) -> None:
        async def listen() -> None:
            make = self._loop.create_server(lambda: _Connection(self, self._loop), "127.0.0.1", 0, backlog=2048)
            self._server = await make
            self.port = self._server.sockets[0].getsockname()[1]

        self._loop.run_until_complete(listen())
        self._loop.call_soon(self._ready.set)  # not before: a stop that came earlier would be forgotten
        self._loop.run_forever()
        self._loop.run_until_complete(self._end())
        self._loop.close()

    async def _end(self) -> None:
        """Connections that are just being accepted come in first: a server that has closed would leave them open."""
        while accepting := asyncio.all_tasks() - {asyncio.current_task()}:
            await asyncio.wait(accepting)
        self._die()
        await asyncio.sleep(0)

    def die(self) -> None:
        """Refuse connections from now on and break those that are open. For calls from a test or from `infer`."""
        self._loop.call_soon_threadsafe(self._die)

    def _die(self) -> None:
        assert self._server is not None
        self._server.close()
        for connection in list(self.connections):
            connection.transport.abort()

    def __enter__(self) -> "FakeServer":
        self._thread.start()
        self._ready.wait()
        return self

    def __exit__(self, *error: object) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()


class _Connection(asyncio.Protocol):
    def __init__(self, server: FakeServer, loop: asyncio.AbstractEventLoop) -> None:
        self._server, self.loop = server, loop
        self._buffer = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        self._server.connections.add(self)

    def connection_lost(self, exc: Exception | None) -> None:
        self._server.connections.discard(self)

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        while (end := self._buffer.find(b"\r\n\r\n")) >= 0:
            head = self._buffer[:end].decode("latin-1")
            size = re.search(r"content-length: (\d+)", head.replace("Inference-Header-Content-Length", ""), re.IGNORECASE)
            body_end = end + 4 + (int(size[1]) if size else 0)
            if len(self._buffer) < body_end:
                return
            asked = Asked(self, head, self._buffer[end + 4 : body_end])
            self._buffer = self._buffer[body_end:]
            path = asked.line.split()[1]
            if path == "/v2/models/m/infer":
                self._server.asked.append(asked)
                self._server.infer(asked)
            else:
                asked.reply(self._server.pages.get(path, http({"error": "no such thing"}, "404 Not Found")))


def one_at_a_time(service_s: float) -> Infer:
    """Answers as a server would that works on one request at a time, each for so long."""
    free_at = 0.0

    def infer(asked: Asked) -> None:
        nonlocal free_at
        free_at = max(free_at, asked.at) + service_s
        asked.reply(after_s=free_at - asked.at)

    return infer


@contextmanager
def silent_port() -> Iterator[int]:
    """A port on which nobody listens."""
    import socket

    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        yield held.getsockname()[1]

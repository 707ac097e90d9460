"""A small asyncio HTTP/1.1 client that shows what really happens on a connection: replies, close, reset.

Not a test of HTTP parsing: it takes replies as dlproxy writes them (always with Content-Length).
"""

import asyncio
import json
from collections.abc import Awaitable, Callable
from typing import Any, Protocol

import numpy as np
from msgspec import Struct
from numpy.typing import NDArray


class RawReply(Struct):
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def closes(self) -> bool:
        """The server said that it closes the connection after this reply."""
        return self.headers.get("connection") == "close"

    def json(self) -> Any:
        size = self.headers.get("inference-header-content-length")
        return json.loads(self.body if size is None else self.body[: int(size)])


class RawConnection(asyncio.Protocol):
    """One connection. `on_reply` is called for every reply; without it they wait in `replies`."""

    def __init__(self, on_reply: "OnReply | None" = None) -> None:
        self._on_reply = on_reply
        self._buffer = bytearray()
        self.replies: asyncio.Queue[RawReply] = asyncio.Queue()
        self.sent = 0
        self.received = 0
        self.ended = asyncio.get_running_loop().create_future()
        self.was_reset = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport

    def send(self, request: bytes) -> None:
        self.sent += 1
        self.transport.write(request)

    async def ask(self, request: bytes) -> RawReply:
        self.send(request)
        return await self.replies.get()

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        while (end := self._buffer.find(b"\r\n\r\n")) >= 0:
            status_line, *lines = bytes(self._buffer[:end]).decode("latin-1").split("\r\n")
            headers = {name.lower(): text.strip() for name, _, text in (line.partition(":") for line in lines)}
            size = int(headers["content-length"])
            if len(self._buffer) < end + 4 + size:
                return
            body = bytes(self._buffer[end + 4 : end + 4 + size])
            del self._buffer[: end + 4 + size]
            self.received += 1
            reply = RawReply(int(status_line.split()[1]), headers, body)
            if self._on_reply is None:
                self.replies.put_nowait(reply)
            else:
                self._on_reply(self, reply)

    def connection_lost(self, exc: Exception | None) -> None:
        self.was_reset = exc is not None
        if not self.ended.done():
            self.ended.set_result(None)

    @property
    def partial(self) -> int:
        """Bytes of a reply that is not complete."""
        return len(self._buffer)

    def close(self) -> None:
        self.transport.close()


OnReply = Callable[[RawConnection, RawReply], None]


class Connect(Protocol):
    def __call__(self, port: int, on_reply: OnReply | None = None) -> Awaitable[RawConnection]: ...


async def connect(port: int, on_reply: OnReply | None = None) -> RawConnection:
    loop = asyncio.get_running_loop()
    _, connection = await loop.create_connection(lambda: RawConnection(on_reply), "127.0.0.1", port)
    return connection


def post(target: str, body: bytes, *headers: str) -> bytes:
    lines = [f"POST {target} HTTP/1.1", "host: test", *headers, f"content-length: {len(body)}"]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


def json_infer(model: str, name: str, datatype: str, array: Any, **params: Any) -> bytes:
    """An infer request with everything in JSON."""
    array = np.asarray(array)
    tensor = {"name": name, "datatype": datatype, "shape": array.shape, "data": array.ravel().tolist()}
    body: dict[str, Any] = {"inputs": [tensor]}
    if params:
        body["parameters"] = params
    return post(f"/v2/models/{model}/infer", json.dumps(body).encode(), "content-type: application/json")


def binary_infer(model: str, name: str, datatype: str, array: NDArray[Any], **params: Any) -> bytes:
    """An infer request with binary input and output."""
    data = np.ascontiguousarray(array).tobytes()
    tensor = {"name": name, "datatype": datatype, "shape": array.shape, "parameters": {"binary_data_size": len(data)}}
    head = json.dumps({"inputs": [tensor], "parameters": {"binary_data_output": True, **params}}).encode()
    return post(f"/v2/models/{model}/infer", head + data, f"inference-header-content-length: {len(head)}")


def binary_output(reply: RawReply, dtype: Any) -> NDArray[Any]:
    """The single binary output of a reply."""
    head = reply.json()
    data = reply.body[int(reply.headers["inference-header-content-length"]) :]
    return np.frombuffer(data, dtype).reshape(head["outputs"][0]["shape"])


def json_output(reply: RawReply) -> NDArray[Any]:
    """The single JSON output of a reply."""
    output = reply.json()["outputs"][0]
    return np.array(output["data"]).reshape(output["shape"])

"""Tensors pass through unparsed: from a client's request to the upstream's socket, and back, as views of what was received.

No sockets: transports that keep the objects they are given.
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any

import msgspec
import numpy as np
import pytest

from dlproxy.config import HttpLimits
from dlproxy.instance import Instance
from dlproxy.instance.remote import RemoteInstance, parse_address
from dlproxy.message import Signature
from dlproxy.testing import FakeRuntime
from tests.instance.test_remote import METADATA, OIP
from tests.instance.upstreams import DlproxyUpstream, until
from tests.wire.fixtures import FakeTransport, Wire, post

SIZE = 50_000  # numbers a row: large enough not to be copied into one piece with its head
INFER = "/v2/models/m/infer"
WIDE = {
    "inputs": [{"name": "x", "datatype": "FP32", "shape": [-1, SIZE]}],
    "outputs": [{"name": "y", "datatype": "FP32", "shape": [-1, SIZE]}],
}
PAGES = OIP | {"/v2/models/m": METADATA | WIDE}


class Kept(FakeTransport):
    """Keeps the objects that are written."""

    def __init__(self) -> None:
        super().__init__()
        self.parts: list[Any] = []

    def write(self, data: Any) -> None:
        self.parts.append(data)

    def writelines(self, list_of_data: Any) -> None:
        self.parts += list_of_data


class Upstream(Kept):
    """The way to a server that answers GET at once; what is sent by POST is kept for the test to answer."""

    def __init__(self, protocol: Any) -> None:
        super().__init__()
        self.protocol = protocol
        self.sent = asyncio.Event()

    def writelines(self, list_of_data: Any) -> None:
        method, path = bytes(list_of_data[0]).split(b" ", 2)[:2]
        if method == b"GET":
            asyncio.get_running_loop().call_soon(self.answer, msgspec.json.encode(PAGES[path.decode()]))
        else:
            super().writelines(list_of_data)
            self.sent.set()

    def answer(self, body: bytes, extra: str = "") -> None:
        self.protocol.data_received(f"HTTP/1.1 200 OK\r\n{extra}content-length: {len(body)}\r\n\r\n".encode() + body)


class Relay(DlproxyUpstream):
    """dlproxy's HTTP server over a remote instance, between transports of these kinds."""

    def __init__(self, instance: RemoteInstance, signature: Signature) -> None:
        super().__init__(FakeRuntime(signature, _no_model))
        self.instance = instance
        self.client = Wire(self.app(HttpLimits()))
        self.client.transport = self.kept = Kept()
        self.client.connection.connection_made(self.kept)

    def instances(self) -> Sequence[Instance]:
        return [self.instance]


def _no_model(inputs: object) -> list[Any]:
    raise AssertionError("there is no model here")


@pytest.fixture
async def ways(monkeypatch: pytest.MonkeyPatch) -> list[Upstream]:
    """Every connection that is made on this loop: one for checks, then one for batches."""
    made: list[Upstream] = []

    async def connect(factory: Callable[[], Any], *_: object, **__: object) -> tuple[Upstream, Any]:
        protocol = factory()
        made.append(Upstream(protocol))
        protocol.connection_made(made[-1])
        return made[-1], protocol

    monkeypatch.setattr(asyncio.get_running_loop(), "create_connection", connect)
    return made


@pytest.fixture
async def relay(ways: list[Upstream]) -> AsyncIterator[Relay]:
    instance = RemoteInstance("m-0", parse_address("http://h:1/v2/models/m"))
    yield Relay(instance, await instance.start())
    await instance.stop()


def _noise(rows: int, seed: int) -> bytes:
    """Whatever bits: NaN of every kind among them."""
    return np.random.default_rng(seed).bytes(4 * SIZE * rows)


def _asked(data: bytes, rows: int) -> bytes:
    described = {"name": "x", "shape": [rows, SIZE], "datatype": "FP32", "parameters": {"binary_data_size": len(data)}}
    head = msgspec.json.encode({"inputs": [described], "parameters": {"binary_data_output": True}})
    return post(INFER, head + data, **{"Inference-Header-Content-Length": str(len(head))})


def _origin(part: Any) -> Any:
    """The object whose memory it shows."""
    while True:
        if isinstance(part, memoryview):
            part = part.obj
        elif isinstance(part, np.ndarray) and part.base is not None:
            part = part.base
        else:
            return part


def _answer(data: bytes, rows: int) -> tuple[bytes, str]:
    described = {"name": "y", "shape": [rows, SIZE], "datatype": "FP32", "parameters": {"binary_data_size": len(data)}}
    head = msgspec.json.encode({"model_name": "m", "outputs": [described]})
    return head + data, f"Inference-Header-Content-Length: {len(head)}\r\n"


async def _sent(ways: list[Upstream]) -> Upstream:
    """The connection for batches, once one was sent."""
    await until(lambda: len(ways) == 2 and ways[1].sent.is_set())
    return ways[1]


async def test_a_request_and_its_answer_pass_as_views_of_what_was_received(relay: Relay, ways: list[Upstream]) -> None:
    there, back = _noise(1, 1), _noise(1, 2)
    relay.client.feed(_asked(there, 1))
    upstream = await _sent(ways)
    head, tensor = upstream.parts
    received = relay.client.exchanges[0].body
    assert _origin(tensor) is received, "the request was copied on its way"
    assert tensor == there
    assert bytes(head).startswith(b"POST /v2/models/m/infer HTTP/1.1\r\n")

    body, header = _answer(back, 1)
    upstream.answer(body, header)
    await until(lambda: len(relay.kept.parts) > 1)
    head, json, tensor = relay.kept.parts
    assert _origin(tensor) == body, "the answer was copied on its way: what it shows is not what the upstream sent"
    assert tensor == back
    assert bytes(head).startswith(b"HTTP/1.1 200 OK\r\n")
    assert f"content-length: {len(json) + len(back)}\r\n".encode() in head


async def test_a_batch_is_gathered_by_writing_one_request_after_the_other(relay: Relay, ways: list[Upstream]) -> None:
    rows = [_noise(1, number) for number in range(3)]
    relay.client.feed(*(_asked(row, 1) for row in rows))
    upstream = await _sent(ways)
    _, *tensors = upstream.parts
    assert tensors == rows
    origins = zip(tensors, relay.client.exchanges, strict=True)
    assert all(_origin(tensor) is exchange.body for tensor, exchange in origins), "copied"

    body, header = _answer(b"".join(rows), 3)
    upstream.answer(body, header)
    await until(lambda: len(relay.kept.parts) >= 6)
    for row, reply in zip(rows, relay.kept.parts[1::2], strict=True):
        assert reply.endswith(row)
        assert len(reply) < 2 * len(row), "a client that reads slowly would keep the rows of others in memory"

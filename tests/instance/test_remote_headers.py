"""Headers that an operator adds: merged into ours whatever their case, or refused at start; no request ever has one twice."""

import asyncio
from collections.abc import Callable
from contextlib import suppress

import numpy as np
import pytest

from dlproxy.instance.remote.address import parse_address
from dlproxy.instance.remote.channel import OURS, checked_headers
from dlproxy.instance.remote.codec import UpstreamModel
from dlproxy.instance.remote.grpc_channel import GrpcChannel
from dlproxy.instance.remote.http_channel import Heads
from dlproxy.instance.remote.oip import OipCodec
from dlproxy.instance.remote.remote import RemoteInstance
from dlproxy.instance.remote.rpc import Rpc
from dlproxy.instance.remote.settings import RemoteSettings
from dlproxy.instance.runtime import ModelError
from dlproxy.message import DType, Signature, TensorSpec

from .remote_cases import joined, request

ADDRESSES = [f"{scheme}://h:8001/{path}/models/m" for scheme in ("http", "grpc") for path in ("v1", "v2")]
BOTH = (TensorSpec("x", DType.FP32, (-1, 2)),)
BINARY = UpstreamModel(Signature(BOTH, BOTH, batched=True, platform="p"), 8, binary=True)
CASES: list[Callable[[str], str]] = [str.lower, str.upper, str.title, str.swapcase]
BROKEN = {
    "value of two lines": {"a": "b\r\nc: d"},
    "value with a line feed": {"a": "b\nc"},
    "value with a null": {"a": "b\0"},
    "value beyond ASCII": {"a": "zürich"},
    "value with a lone surrogate": {"a": "\udce9"},
    "name of two lines": {"a\r\nb": "c"},
    "name with a line feed": {"a\n": "b"},
    "name with a colon": {"a:": "b"},
    "name with a space": {"a b": "c"},
    "name that begins with a space": {" a": "c"},
    "name with a tab": {"a\t": "b"},
    "name beyond ASCII": {"ä": "b"},
    "name that is empty": {"": "b"},
    "twice in two cases": {"Authorization": "a", "authorization": "b"},
    "host twice": {"Host": "a", "HOST": "b"},
    "host with a path": {"host": "h/v2"},
    "host with a space": {"host": "a b"},
    "host with a user": {"Host": "me@h"},
    "host that is none": {"host": ""},
}


def made(address: str, headers: dict[str, str]) -> RemoteInstance:
    return RemoteInstance("u", parse_address(address), RemoteSettings(headers=headers))


@pytest.mark.parametrize("address", ADDRESSES)
@pytest.mark.parametrize("headers", BROKEN.values(), ids=BROKEN)
def test_what_is_no_header_is_refused_at_start(headers: dict[str, str], address: str) -> None:
    with pytest.raises(ModelError, match="cannot be sent"):
        made(address, headers)


@pytest.mark.parametrize("address", ADDRESSES)
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("name", sorted(OURS))
def test_what_each_request_has_of_its_own_is_refused_at_start(name: str, case: Callable[[str], str], address: str) -> None:
    with pytest.raises(ModelError, match=f"'{case(name)}' cannot be sent, .*omit it"):
        made(address, {case(name): "5"})


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize(
    ("name", "value"),
    [("host", "models.example"), ("host", "[::1]:80"), ("user-agent", "shop/1"), ("x-a", ""), ("cookie", "a=b; c")],
)
def test_the_rest_replaces_ours_and_stands_once_in_every_request(name: str, value: str, case: Callable[[str], str]) -> None:
    codec = OipCodec(parse_address("http://h:8000/v2/models/m"), RemoteSettings(headers={case(name): value}))
    asks = [
        *codec.questions.values(),
        codec.readiness,
        codec.encode(BINARY, [request(("x", DType.FP32, np.zeros((1, 2), np.float32)))]),
    ]
    for ask in asks:
        head = b"".join(map(bytes, ask)).partition(b"\r\n\r\n")[0].decode("latin-1")
        names = [line.partition(":")[0].lower() for line in head.split("\r\n")[1:]]
        assert sorted(set(names)) == sorted(names)
        headers, _ = joined(ask)
        assert headers[name] == value
        assert {"host", "user-agent"} <= headers.keys()


def test_without_any_the_address_is_the_host() -> None:
    (line,) = Heads(parse_address("http://[::1]:8000/v2/models/m"), {}).get("/v2")
    assert line == b"GET /v2 HTTP/1.1\r\nhost: [::1]:8000\r\nuser-agent: dlproxy\r\n\r\n"
    assert checked_headers({"X-A": " b "}) == {"x-a": "b"}


async def test_over_grpc_a_host_is_the_authority_and_a_user_agent_comes_first() -> None:
    received = bytearray()
    seen, gone = asyncio.Event(), asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(bytes([0, 0, 0, 4, 0, 0, 0, 0, 0]))  # empty SETTINGS
        with suppress(ConnectionError):
            while data := await reader.read(65536):
                received.extend(data)
                if b"shop/1" in received:
                    seen.set()
        writer.transport.abort()
        gone.set()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    settings = RemoteSettings(headers={"Host": "models.example", "User-Agent": "shop/1", "X-A": "b"})
    channel = GrpcChannel(parse_address(f"grpc://127.0.0.1:{port}/v2/models/m"), settings, lambda: None)
    channel.call(Rpc("/a/b", (b"",)), lambda _: None, timeout_s=10)
    await asyncio.wait_for(seen.wait(), 10)
    assert received.count(b"models.example") == received.count(b"shop/1") == 1
    assert f"127.0.0.1:{port}".encode() not in received
    await channel.close()
    await asyncio.wait_for(gone.wait(), 10)  # before Python 3.12, a closed server leaves its connections as they are
    server.close()
    await server.wait_closed()

"""Real clients on real sockets, on both event loops."""

import asyncio

import grpc
import pytest

from dlproxy.wire.grpc.call import Call
from dlproxy.wire.grpc.server import Methods

from .conftest import Channels
from .fixtures import grpc_server

ECHO = "/test.Echo/Unary"


def echo(call: Call, message: bytes) -> None:
    call.reply(message)


METHODS = Methods({ECHO.encode(): echo}, {})
SIZES = (0, 1, 100, 16_379, 16_380, 70_000, 1 << 20, 30 << 20)


@pytest.mark.parametrize("compression", [grpc.Compression.NoCompression, grpc.Compression.Gzip, grpc.Compression.Deflate])
async def test_messages_of_any_size_come_back(channel: Channels, compression: grpc.Compression) -> None:
    async with grpc_server(METHODS) as run:
        method = channel(run.address).unary_unary(ECHO)
        for size in SIZES:
            message = b"x" * size
            assert await asyncio.to_thread(method, message, timeout=20, compression=compression) == message

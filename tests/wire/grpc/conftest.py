"""Fixtures of the gRPC tests: a blocking channel of grpcio, closed at the end."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack

import grpc
import pytest

Channels = Callable[..., grpc.Channel]


@pytest.fixture
def channel() -> Iterator[Channels]:
    """A channel to an address, without limits on messages, and further options. Call its methods in `asyncio.to_thread`."""
    with ExitStack() as stack:
        options = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]
        yield lambda address, more=(): stack.enter_context(grpc.insecure_channel(address, options=[*options, *more]))

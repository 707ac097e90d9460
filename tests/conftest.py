"""For all tests: no event loop but those that tests ask for, and raw connections that are cut at the end."""

import asyncio
from collections.abc import AsyncIterator

import pytest

from tests.clients import raw


def pytest_configure() -> None:
    """Else looptime's look at the current loop, before the first plain test, makes one that nobody closes."""
    asyncio.set_event_loop(None)


@pytest.fixture
async def connect() -> AsyncIterator[raw.Connect]:
    """raw.connect, with whatever is still open cut at the end of the test."""
    opened: list[raw.RawConnection] = []

    async def open_one(port: int, on_reply: raw.OnReply | None = None) -> raw.RawConnection:
        connection = await raw.connect(port, on_reply)
        opened.append(connection)
        return connection

    yield open_one
    for connection in opened:
        connection.transport.abort()
        await connection.ended

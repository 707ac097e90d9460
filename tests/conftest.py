"""For all tests: no event loop but those that tests ask for, Ctrl-C heard, and raw connections that are cut at the end."""

import asyncio
import gc
import os
import signal
from collections.abc import AsyncIterator, Iterator

import pytest
from hypothesis import settings

from dlproxy.instance.runtime import TELEMETRY_OFF
from tests.clients import raw


def pytest_configure() -> None:
    """Mends four things for the whole suite.

    Looptime's look at the current loop, before the first plain test, would make one that nobody closes. And what a shell
    starts in the background ignores SIGINT, as do its children: a command that a test interrupts would never end.
    Some tests import ONNX Runtime by themselves, which shall report nothing then either. How long an example takes says
    how busy the machine is.
    """
    settings.register_profile("suite", deadline=None)
    settings.load_profile("suite")
    os.environ.setdefault(*TELEMETRY_OFF)
    os.environ["XDG_CACHE_HOME"] = os.devnull  # no test shall know what another has found out, nor leave it in a home
    asyncio.set_event_loop(None)
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="module", autouse=True)
def nothing_left_open() -> Iterator[None]:
    """What a module leaves open is its own failure, not that of whoever is running when the garbage is collected.

    What survives is put aside, so that each collection looks at one module's objects only: milliseconds.
    """
    yield
    gc.collect()
    gc.freeze()


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

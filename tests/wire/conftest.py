"""Tests on real sockets run on both event loops: asyncio's own, for Windows and tests, and uvloop, which serves."""

import asyncio
from collections.abc import Callable, Mapping

import pytest
import uvloop

asyncio.set_event_loop(None)  # else pytest-asyncio, asking which loop it replaces, makes one that nobody closes


def pytest_asyncio_loop_factories(
    config: pytest.Config, item: pytest.Item
) -> Mapping[str, Callable[[], asyncio.AbstractEventLoop]]:
    plain = {"asyncio": asyncio.new_event_loop}
    return {**plain, "uvloop": uvloop.new_event_loop} if "sockets" in item.nodeid else plain

"""For all tests: no event loop but those that tests ask for."""

import asyncio


def pytest_configure() -> None:
    """Else looptime's look at the current loop, before the first plain test, makes one that nobody closes."""
    asyncio.set_event_loop(None)

"""Ends tasks for sure. Called by control.py and redis_store.py.

Before Python 3.12, asyncio.wait_for, which Redis's client calls, swallows a cancellation that comes when what it waits for is
done (CPython issue 81839): a task that loops then goes on.
"""

import asyncio
from collections.abc import Collection
from typing import Any

AGAIN_S = 0.1


async def end_all(tasks: Collection[asyncio.Task[Any]]) -> None:
    """Cancel them, again and again, until they have ended. What they raise is dropped."""
    left = set(tasks)
    while left:
        for task in left:
            task.cancel()
        ended, left = await asyncio.wait(left, timeout=AGAIN_S)
        for task in ended:
            task.cancelled() or task.exception()

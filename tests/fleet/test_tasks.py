"""Tasks that do not end at the first cancellation."""

import asyncio

import pytest

from dlproxy.fleet.tasks import end_all

pytestmark = pytest.mark.looptime(idle_step=0.1, idle_timeout=1.0)


async def test_a_task_that_swallows_a_cancellation_is_ended_all_the_same() -> None:
    swallowed = []

    async def stubborn() -> None:
        while True:
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                swallowed.append(1)
                if len(swallowed) == 3:
                    raise

    async def failing() -> None:
        raise ValueError("broken")

    tasks = [asyncio.create_task(stubborn()), asyncio.create_task(failing())]
    await asyncio.sleep(0)
    await asyncio.wait_for(end_all(tasks), 5)
    assert all(task.done() for task in tasks)
    assert len(swallowed) == 3
    await end_all([])

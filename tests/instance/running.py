"""One batch on an instance, for tests of every kind of it."""

import asyncio

from dlproxy.instance import Instance
from dlproxy.instance.batch import BatchResult
from dlproxy.message import Request

HANG_S = 60.0


async def run(instance: Instance, *requests: Request) -> BatchResult:
    """To its end."""
    future: asyncio.Future[BatchResult] = asyncio.get_running_loop().create_future()
    instance.run(requests, future.set_result)
    return await asyncio.wait_for(future, HANG_S)

"""The instance of a pipeline: each batch is one request, which runs through the steps. Made by fleet.py.

Not aware of: what the steps are.
"""

import asyncio
from collections.abc import Callable, Sequence

from dlproxy.instance.batch import BatchResult
from dlproxy.message import Request
from dlproxy.serve.pipelines.run import Run, Site

CAPACITY = 256  # requests that are under way: what waits beyond that is ordered by the pipeline's own lane


class PipelineInstance:
    """One life of it, from when all stages are served until one is not; what runs then may still end well."""

    inline = False
    capacity = CAPACITY

    def __init__(self, name: str, site: Site) -> None:
        self.name = name
        self._site = site

    def run(self, requests: Sequence[Request], done: Callable[[BatchResult], None]) -> None:
        (request,) = requests
        run = self._site.runs[request.ticket.id] = Run(self._site, request, done, asyncio.get_running_loop())
        run.begin()

    async def stop(self) -> None:
        """Whatever still runs is cancelled: nobody waits for it."""
        for run in list(self._site.runs.values()):
            run.cancel()

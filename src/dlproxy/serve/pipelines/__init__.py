"""Pipelines: models whose answers are made by steps, which ask other models of this process or run Python code.

Made by serve/models.py. Not aware of: how models are loaded, protocols.
"""

import asyncio
from collections.abc import Callable

from dlproxy.config import ModelConfig
from dlproxy.config.pipelines import wired
from dlproxy.cores import usable_cores
from dlproxy.fleet.start import heed
from dlproxy.instance.integrity import Trust
from dlproxy.instance.runtime import ModelError
from dlproxy.serve.pipelines.code import CodeStage
from dlproxy.serve.pipelines.fleet import PipelineFleet, stages_of
from dlproxy.serve.pipelines.threads import Threads
from dlproxy.wire.catalog import Catalog

__all__ = ["PipelineFleet", "Pipelines"]


class Pipelines:
    """Those of one process, which find their stages in its catalog and share the threads that code runs on."""

    def __init__(self, catalog: Catalog, clock: Callable[[], float]) -> None:
        self.threads = Threads(usable_cores(), clock)
        self._catalog = catalog
        self._clock = clock
        self._fleets: list[PipelineFleet] = []
        catalog.subscribe(self._follow)

    async def start(self, name: str, config: ModelConfig, trust: Trust) -> PipelineFleet:
        """Raises ConfigError, ModelError."""
        heed(name, config, "pipeline")
        try:
            return await self._started(name, config, trust)
        except ModelError as error:
            raise ModelError(f"pipeline '{name}': {error}") from error

    async def _started(self, name: str, config: ModelConfig, trust: Trust) -> PipelineFleet:
        wiring = wired(config.steps, config.inputs, config.outputs)
        stages = await asyncio.to_thread(stages_of, config, wiring, trusted=not trust.signers)
        try:
            fleet = PipelineFleet(
                name, config, stages, self._catalog, self.threads, self._clock, self._stages_of, self._fleets.remove
            )
        except BaseException:
            for stage in stages.values():
                if isinstance(stage, CodeStage):
                    stage.close()
            raise
        self._fleets.append(fleet)
        return fleet

    async def stop(self) -> None:
        """When the last of them is gone."""
        await self.threads.stop()

    def _stages_of(self, model: str) -> frozenset[str]:
        found: frozenset[str] = frozenset()
        for fleet in self._fleets:
            if fleet.name == model:
                found |= fleet.models
        return found

    def _follow(self) -> None:
        for fleet in list(self._fleets):
            fleet.follow()

"""Instances of one model under a supervisor, which replaces those that die: worker processes, and kinds that packages add.

Started by fleet/start.py, fleet/processes.py and fleet/ray.py. Not aware of: lanes, requests, what an instance is.
"""

import asyncio
from collections.abc import Callable, Mapping

from msgspec import Struct

from dlproxy.config import ModelConfig, parse_devices
from dlproxy.config.paths import INSTANCE_KINDS
from dlproxy.fleet.memory import resident_bytes
from dlproxy.fleet.roster import Roster
from dlproxy.fleet.supervisor import Startable, Supervisor
from dlproxy.instance.runtime import ModelError
from dlproxy.instance.runtime.devices import CPU, in_words
from dlproxy.instance.runtime.plugins import plugin
from dlproxy.instance.trial import Way
from dlproxy.instance.warmup import Calibration
from dlproxy.message import Signature


class InstanceKind(Struct, frozen=True, kw_only=True):
    """A way of running batches that another package knows, in a configuration `run = NAME`.

    `make`: the instance of this name for a model, not started; a new one for each of its lives. `resources`: as Way has them.
    """

    make: Callable[[str, ModelConfig], Startable]
    resources: Mapping[str, float] = {}


class SupervisedFleet:
    """Each instance with weights of its own."""

    most_rows: int | None = None

    def __init__(self, run: str, supervisor: Supervisor, signature: Signature, calibration: Calibration, way: Way) -> None:
        self.run = run
        self.signature = signature
        self.calibration = calibration
        self.way = way
        self._supervisor = supervisor

    def attach(self, roster: Roster) -> None:
        self._supervisor.attach(roster)

    async def scale(self, count: int) -> None:
        await self._supervisor.scale(count)

    async def stop(self) -> None:
        await self._supervisor.stop()

    def elsewhere_bytes(self) -> int:
        workers = [getattr(instance, "pid", None) for instance in self._supervisor.instances]
        return sum(resident_bytes(pid) for pid in workers if pid is not None)

    def describe(self) -> str:
        instances = self._supervisor.instances
        count, where = len(instances), in_words([getattr(instance, "device", CPU) for instance in instances])
        if self.run == "process":
            return f"in {count} worker process{'es' * (count > 1)}{where}"
        return f"by {self.run}, {count} instance{'s' * (count > 1)}{where}"


async def start_supervised(name: str, run: str, way: Way, make: Callable[[str], Startable]) -> SupervisedFleet:
    """As many instances as `way` says. Raises ModelError, or what `make` and the first instances raise."""
    return SupervisedFleet(run, *await start_all(name, way.instances, make), way)


async def start_all(name: str, count: int, make: Callable[[str], Startable]) -> tuple[Supervisor, Signature, Calibration]:
    """So many under a supervisor, and what they found out. Raises as `start_supervised`."""
    supervisor = Supervisor(name, make)
    signature = await supervisor.start(count)
    found = (instance.calibration for instance in supervisor.instances if instance.calibration is not None)
    return supervisor, signature, next(found, Calibration((), signature.batched))


async def start_added(name: str, config: ModelConfig) -> SupervisedFleet:
    """Instances of another package's kind. Raises ModelError. Their batches take as many cores here as `threads` says."""
    kind = await asyncio.to_thread(plugin, INSTANCE_KINDS, config.run, InstanceKind)
    if kind is None:
        raise ModelError(f"run = {config.run!r} is gone: no installed package adds it any more")
    count = config.instances or len(parse_devices(config.device))
    way = Way(inline=False, instances=count, threads=config.threads, resources=kind.resources)
    try:
        return await start_supervised(name, config.run, way, lambda instance: kind.make(instance, config))
    except ModelError:
        raise
    except Exception as error:
        raise ModelError(f"model {name}: run = {config.run!r} raised {type(error).__name__}: {error}") from error

"""Instances of one model in worker processes, under a supervisor, which replaces those that die.

Started by fleet/start.py. Not aware of: lanes, requests, what a worker does.
"""

import os
from collections.abc import Mapping

from dlproxy.config import ModelConfig, parse_devices
from dlproxy.cores import allowed_cores, usable_cores
from dlproxy.fleet.names import number_of
from dlproxy.fleet.roster import Roster
from dlproxy.fleet.supervisor import Supervisor
from dlproxy.fleet.warm_model import device_of, how_to_warm_up, options
from dlproxy.instance.process.instance import ProcessInstance, WorkerSettings
from dlproxy.instance.runtime import Format
from dlproxy.instance.runtime.content import Content
from dlproxy.instance.runtime.devices import CPU, in_words, visible_gpus
from dlproxy.instance.runtime.specs import PythonSpec
from dlproxy.instance.trial import Way
from dlproxy.instance.warmup import Calibration
from dlproxy.message import Signature


async def start_processes(name: str, config: ModelConfig, kind: Format) -> "ProcessFleet":
    """As many as the configuration wants. Raises ModelError."""
    count = config.instances or max(len(parse_devices(config.device)), 1 if config.autoscale == "off" else config.min_instances)
    threads = threads_of(config, count)
    content = Content(config.path)

    def make(instance: str) -> ProcessInstance:
        number = number_of(instance)
        device = device_of(config, number)
        environment: Mapping[str, str] = {}
        if kind.finds_device:
            environment, device = visible_gpus(device, os.environ), "auto"
        spec = PythonSpec(
            "dlproxy.instance.runtime.formats:open_runtime", {"path": config.path, **options(config, threads, device)}
        )
        settings = WorkerSettings(
            warm_up=how_to_warm_up(config),
            threads=threads,
            cores=_cores_of(number, threads) if config.pin else (),
            environment=environment,
            memory_limit_bytes=config.memory_limit_mb * 2**20,
            batch_timeout_s=config.batch_timeout_s,
            content=content,
        )
        return ProcessInstance(instance, spec, settings)

    supervisor = Supervisor(name, make)
    signature = await supervisor.start(count)
    found = [instance.calibration for instance in supervisor.instances if isinstance(instance, ProcessInstance)]
    calibration = next((each for each in found if each is not None), Calibration((), signature.batched))
    return ProcessFleet(
        supervisor, signature, calibration, Way(inline=False, instances=count, threads=threads if kind.name != "sleep" else 1)
    )


def threads_of(config: ModelConfig, count: int) -> int:
    """Of each of so many instances, or of as many as autoscaling may start: all that there are cores for."""
    cores = usable_cores()
    if config.autoscale != "off":
        count = config.max_instances or cores
    return config.threads or max(cores // count, 1)


def _cores_of(number: int, threads: int) -> tuple[int, ...]:
    cores = allowed_cores()
    return tuple(cores[(number * threads + offset) % len(cores)] for offset in range(min(threads, len(cores)))) if cores else ()


class ProcessFleet:
    """Worker processes, each with weights of its own."""

    run = "process"
    most_rows: int | None = None

    def __init__(self, supervisor: Supervisor, signature: Signature, calibration: Calibration, way: Way) -> None:
        self.signature = signature
        self.calibration = calibration
        self.way = way
        self._supervisor = supervisor
        self._device: str = getattr(next(iter(supervisor.instances), None), "device", CPU)

    def attach(self, roster: Roster) -> None:
        self._supervisor.attach(roster)

    async def scale(self, count: int) -> None:
        await self._supervisor.scale(count)

    async def stop(self) -> None:
        await self._supervisor.stop()

    @property
    def device(self) -> str:
        """Where the instances compute, or the first of them."""
        return self._device

    def describe(self) -> str:
        instances = self._supervisor.instances
        where = in_words([getattr(instance, "device", CPU) for instance in instances])
        return f"in {len(instances)} worker process{'es' * (len(instances) > 1)}{where}"

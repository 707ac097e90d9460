"""Instances of one model in worker processes: which model each loads, on which device and cores, within which limits.

Called by fleet/start.py. Not aware of: lanes, requests, what a worker does.
"""

import asyncio
import os
from collections.abc import Mapping, Sequence

from dlproxy.config import ModelConfig, parse_devices
from dlproxy.cores import allowed_cores, usable_cores
from dlproxy.fleet.names import number_of
from dlproxy.fleet.supervised import SupervisedFleet, start_supervised
from dlproxy.fleet.warm_model import device_of, how_to_warm_up, options
from dlproxy.instance.integrity import Trust
from dlproxy.instance.process.instance import ProcessInstance, WorkerSettings
from dlproxy.instance.runtime.content import Content
from dlproxy.instance.runtime.devices import visible_gpus
from dlproxy.instance.runtime.formats import format_of
from dlproxy.instance.runtime.specs import PythonSpec
from dlproxy.instance.trial import Way


def count_of(config: ModelConfig) -> int:
    """How many there are at first."""
    return config.instances or max(len(parse_devices(config.device)), 1 if config.autoscale == "off" else config.min_instances)


def shared_at(folder: str, number: int) -> str:
    """Where the worker of this number is reached, if processes share them in this folder."""
    return f"{folder}/worker-{number}" if folder else ""


async def start_processes(
    name: str, config: ModelConfig, trust: Trust, graphs: str = "", shared_in: str = ""
) -> SupervisedFleet:
    """As many as the configuration wants. `graphs`: the folder of optimised ones. Raises ModelError."""
    kind = await asyncio.to_thread(format_of, config.path, pickle=trust.pickle)
    count = count_of(config)
    threads = threads_of(config, count)
    content = Content(config.path)

    def make(instance: str) -> ProcessInstance:
        number = number_of(instance)
        device = device_of(config, number)
        environment: Mapping[str, str] = {}
        if kind.finds_device:
            environment, device = visible_gpus(device, os.environ), "auto"
        model = {"path": config.path, **options(config, threads, device, graphs)}
        spec = PythonSpec("dlproxy.instance.runtime.formats:open_runtime", model)
        if trust.key_variable:
            environment = {**environment, trust.key_variable: ""}
        settings = WorkerSettings(
            warm_up=how_to_warm_up(config),
            threads=threads,
            cores=_cores_of(number, threads, config.cores or allowed_cores()) if config.pin or config.cores else (),
            environment=environment,
            memory_limit_bytes=config.memory_limit_mb * 2**20,
            start_timeout_s=config.load_timeout_s,
            batch_timeout_s=config.batch_timeout_s,
            content=content,
            trust=trust,
            shared_at=shared_at(shared_in, number),
        )
        return ProcessInstance(instance, spec, settings)

    way = Way(inline=False, instances=count, threads=threads if kind.name != "sleep" else 1)
    return await start_supervised(name, "process", way, make)


def threads_of(config: ModelConfig, count: int) -> int:
    """Of each of so many instances, or of as many as autoscaling may start: all that there are cores for."""
    cores = usable_cores()
    if config.autoscale != "off":
        count = config.max_instances or cores
    return config.threads or max(cores // count, 1)


def _cores_of(number: int, threads: int, cores: Sequence[int]) -> tuple[int, ...]:
    return tuple(cores[(number * threads + offset) % len(cores)] for offset in range(min(threads, len(cores)))) if cores else ()

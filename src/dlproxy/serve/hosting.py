"""Where the instances of one model run: on the event loop, on threads, in worker processes, on other servers.

Each way starts them, tells the roster of them, changes their number and stops them. Made by serve/assemble.py.
Not aware of: lanes, requests, protocols.
"""

import asyncio
import os
from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING, Protocol

from dlproxy.config import ConfigError, ModelConfig, is_address, parse_devices
from dlproxy.cores import allowed_cores, usable_cores
from dlproxy.instance.runtime import ModelError
from dlproxy.instance.runtime.content import Content
from dlproxy.instance.runtime.devices import CPU, in_words, visible_gpus
from dlproxy.instance.runtime.formats import Kind, runtime_kind
from dlproxy.instance.runtime.specs import PythonSpec
from dlproxy.instance.trial import Way
from dlproxy.instance.warmup import Calibration
from dlproxy.message import Signature
from dlproxy.serve.local import LocalHosting, device_of, how_to_warm_up, options, warm_up
from dlproxy.serve.remembered import Memory
from dlproxy.serve.roster import Roster

if TYPE_CHECKING:
    from dlproxy.instance.remote import RemoteInstance
    from dlproxy.serve.supervisor import Supervisor

OF_OTHERS: tuple[Kind, ...] = ("python", "torchscript", "torch_export", "saved_model", "keras")  # run in processes by default:
# their code is the user's, or holds the GIL, or sets the threads of the whole process


class Hosting(Protocol):
    """The instances of one model, started."""

    signature: Signature
    calibration: Calibration
    run: str
    """inline, thread or process, as the knob has it; upstream for other servers."""
    way: Way
    """Both may change while serving. No threads: what runs elsewhere takes no cores here."""
    most_rows: int | None
    """Rows that no batch may exceed, whatever the knob says."""

    def attach(self, roster: Roster) -> None:
        """The roster, and through it the driver, hears of every instance from now on, beginning with how each is."""
        ...

    async def scale(self, count: int) -> None:
        """Keep so many. Returns when they are up, or gone. Raises ConfigError, ModelError."""
        ...

    async def stop(self) -> None:
        """End what the driver has not stopped yet."""
        ...

    def describe(self) -> str:
        """Where they run, in words for the start-up report."""
        ...


async def start_hosting(name: str, config: ModelConfig, memory: Memory | None = None) -> Hosting:
    """Load and calibrate a model where its configuration says. Raises ModelError, ConfigError.

    `memory`: of what was found out about models in earlier lives of the server.
    """
    if is_address(config.path):
        return await _remote(name, config)
    kind = await asyncio.to_thread(runtime_kind, config.path)
    if config.run == "process" or (config.run == "auto" and kind in OF_OTHERS):
        return await _processes(name, config, kind)
    places = 1 if config.run == "inline" else len(parse_devices(config.device))
    only = memory if places == 1 else None
    return LocalHosting(name, config, [await asyncio.to_thread(warm_up, config, number, only) for number in range(places)])


# In worker processes


async def _processes(name: str, config: ModelConfig, kind: Kind) -> "ProcessHosting":
    from dlproxy.instance.process.instance import ProcessInstance, WorkerSettings  # most servers start without these
    from dlproxy.serve.supervisor import Supervisor

    cores = usable_cores()
    count = config.instances or len(parse_devices(config.device))
    threads = config.threads or max(cores // count, 1)
    content = Content(config.path)

    def make(instance: str) -> ProcessInstance:
        number = int(instance.rpartition("-")[2])
        device = device_of(config, number)
        environment: Mapping[str, str] = {}
        if kind == "python":  # which finds its GPU by itself
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
    return ProcessHosting(
        supervisor, signature, calibration, Way(inline=False, instances=count, threads=threads if kind != "sleep" else 1)
    )


def _cores_of(number: int, threads: int) -> tuple[int, ...]:
    cores = allowed_cores()
    return tuple(cores[(number * threads + offset) % len(cores)] for offset in range(min(threads, len(cores)))) if cores else ()


class ProcessHosting:
    """Worker processes under a supervisor, which replaces those that die."""

    run = "process"
    most_rows: int | None = None

    def __init__(self, supervisor: "Supervisor", signature: Signature, calibration: Calibration, way: Way) -> None:
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

    def describe(self) -> str:
        instances = self._supervisor.instances
        where = in_words([getattr(instance, "device", CPU) for instance in instances])
        return f"in {len(instances)} worker process{'es' * (len(instances) > 1)}{where}"


# On other servers


async def _remote(name: str, config: ModelConfig) -> "RemoteHosting":
    from dlproxy.instance.remote import RemoteInstance, RemoteSettings, calibrate_upstream, parse_addresses, start_upstreams

    if config.samples:
        raise ModelError(f"model {name} runs on another server ({config.path}), which is warmed up there: omit samples")
    if config.padding == "on":
        raise ModelError(f"model {name} runs on another server ({config.path}), where no request is padded: omit padding")
    if config.run != "auto":
        raise ModelError(f"model {name} runs on another server ({config.path}): omit run = {config.run!r}")
    settings = RemoteSettings(response_timeout_s=config.batch_timeout_s, headers=config.upstream_headers)
    addresses = parse_addresses(config.path)
    instances = [RemoteInstance(f"{name}-{number}", address, settings) for number, address in enumerate(addresses)]
    model = await start_upstreams(instances)
    try:
        calibration = await calibrate_upstream(next(instance for instance in instances if instance.up), config.batching)
    except BaseException:
        await asyncio.gather(*(instance.stop() for instance in instances))
        raise
    if not calibration.independent_rows:
        for instance in instances:
            instance.go_single()
    return RemoteHosting(name, instances, instances[0].model.signature, model.max_batch, calibration)


class RemoteHosting:
    """Upstream servers, each an instance that comes and goes."""

    run = "upstream"

    def __init__(
        self,
        name: str,
        instances: "list[RemoteInstance]",
        signature: Signature,
        most_rows: int | None,
        calibration: Calibration,
    ) -> None:
        self.signature = signature
        self.calibration = calibration
        self.most_rows = most_rows
        self.way = Way(inline=False, instances=len(instances), threads=0)
        self._name = name
        self._instances = instances

    def attach(self, roster: Roster) -> None:
        for instance in self._instances:
            instance.on_lost = partial(roster.lose_instance, instance.name)
            instance.on_up = partial(roster.add_instance, instance)
            if instance.up:
                roster.add_instance(instance)
            else:
                roster.instance_failed(instance, "it could not be used when the server started")

    async def scale(self, count: int) -> None:
        raise ConfigError(f"model {self._name} runs on other servers: its path names them")

    async def stop(self) -> None:
        await asyncio.gather(*(instance.stop() for instance in self._instances))

    def describe(self) -> str:
        places = ", ".join(instance.address.authority for instance in self._instances)
        return f"on {places}"

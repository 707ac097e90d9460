"""Where the instances of one model run: on the event loop, on threads, in worker processes, on other servers.

Each way starts them, tells the roster of them, changes their number and stops them. Made by serve/assemble.py.
Not aware of: lanes, requests, protocols.
"""

import asyncio
import os
from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol

from msgspec import Struct

from dlproxy.config import ConfigError, ModelConfig, is_address, parse_devices
from dlproxy.cores import allowed_cores, usable_cores
from dlproxy.instance import Instance
from dlproxy.instance.inline import InlineInstance
from dlproxy.instance.runtime import ModelError, Runtime
from dlproxy.instance.runtime.content import Content
from dlproxy.instance.runtime.devices import CPU, in_words, visible_gpus
from dlproxy.instance.runtime.formats import Kind, open_runtime, runtime_kind
from dlproxy.instance.runtime.specs import PythonSpec
from dlproxy.instance.samples import read_samples
from dlproxy.instance.thread import ThreadInstance
from dlproxy.instance.warmup import Calibration, WarmUp, calibrate
from dlproxy.message import Signature
from dlproxy.serve.roster import Roster

if TYPE_CHECKING:
    from dlproxy.instance.remote import RemoteInstance
    from dlproxy.serve.supervisor import Supervisor

INLINE_BELOW_S = 200e-6  # a batch of one quicker than this runs on the loop: a hand-over to a thread costs 50 to 75 us
MANY_THREADS_ABOVE_S = 2e-3  # quicker models stay at one thread and are not loaded twice to find out
MANY_THREADS_GAIN = 1.2  # further threads must make a batch of one this much quicker to be kept
OF_OTHERS: tuple[Kind, ...] = ("python", "torchscript", "torch_export", "saved_model", "keras")  # run in processes by default:
# their code is the user's, or holds the GIL, or sets the threads of the whole process
THREADS_PAY: tuple[Kind, ...] = ("onnx", "torchscript", "torch_export")  # whose number of threads can be tried out


class Hosting(Protocol):
    """The instances of one model, started. `cores`: how many a batch takes here, 0 if none."""

    signature: Signature
    calibration: Calibration
    run: str
    """inline, thread or process, as the knob has it; upstream for other servers."""
    inline: bool
    cores: int
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


async def start_hosting(name: str, config: ModelConfig) -> Hosting:
    """Load and calibrate a model where its configuration says. Raises ModelError, ConfigError."""
    if is_address(config.path):
        return await _remote(name, config)
    kind = await asyncio.to_thread(runtime_kind, config.path)
    if config.run == "process" or (config.run == "auto" and kind in OF_OTHERS):
        return await _processes(name, config, kind)
    places = 1 if config.run == "inline" else len(parse_devices(config.device))
    return LocalHosting(name, config, [await asyncio.to_thread(warm_up, config, number) for number in range(places)])


def device_of(config: ModelConfig, number: int) -> str:
    """The device of the instance with this number: each gets the next of those configured. Raises ConfigError."""
    devices = parse_devices(config.device)
    return devices[number % len(devices)]


# In this process


class WarmModel(Struct):
    """A model that is loaded and calibrated. `threads`: those that its runtime computes with."""

    runtime: Runtime
    calibration: Calibration
    threads: int

    @property
    def device(self) -> str:
        """Where it computes, in words."""
        device: str = getattr(self.runtime, "device", CPU)
        return device


def warm_up(config: ModelConfig, number: int = 0) -> WarmModel:
    """Load and calibrate in this process, where the instance with this number shall be. Blocks meanwhile. Raises ModelError."""
    return _calibrated(config, device_of(config, number))


def _calibrated(config: ModelConfig, device: str) -> WarmModel:
    """With `threads` 0, more than one thread is used only if that is measured to pay, and never beside a GPU."""
    threads, cores = config.threads, usable_cores()
    runtime = _open(config, threads or 1, device)
    threads_now = getattr(runtime, "threads", threads or 1)  # TensorFlow fixes them once per process
    samples = read_samples(config.samples, runtime.signature.inputs)
    how: dict[str, Any] = {"batching": config.batching, "padding": config.padding, "pad_value": config.pad_value}
    warm = WarmModel(runtime, calibrate(runtime, **how, samples=samples), threads_now)
    single_s = warm.calibration.single_s
    if threads or cores == 1 or single_s is None or single_s < MANY_THREADS_ABOVE_S or warm.device != CPU:
        return warm
    if runtime_kind(config.path) not in THREADS_PAY:
        return warm
    wide = _open(config, cores, CPU)
    calibration = calibrate(wide, **how, samples=samples)
    if calibration.single_s is not None and calibration.single_s * MANY_THREADS_GAIN < single_s:
        return WarmModel(wide, calibration, cores)
    return warm


def _open(config: ModelConfig, threads: int, device: str) -> Runtime:
    return open_runtime(config.path, **_options(config, threads, device))


def _options(config: ModelConfig, threads: int, device: str) -> dict[str, Any]:
    """What `open_runtime` takes besides the path, as plain data."""
    return {
        "threads": threads,
        "device": device,
        "gpu_memory_limit_mb": config.gpu_memory_limit_mb,
        "max_batch": config.max_batch,
        "inputs": dict(config.inputs),
        "outputs": dict(config.outputs),
    }


def runs_inline(config: ModelConfig, calibration: Calibration, device: str = CPU) -> bool:
    """Whether batches run on the event loop: if that is asked for, or one row is quick enough on the CPU.

    Whoever waits for a GPU must not stop the loop, which has time meanwhile to gather a larger batch.
    """
    if config.run != "auto":
        return config.run == "inline"
    single_s = calibration.single_s
    return config.instances == 1 and device == CPU and single_s is not None and single_s < INLINE_BELOW_S


class LocalHosting:
    """Instances that share a loaded model: sessions take concurrent calls, and the weights exist once on each device.

    `warm`: the model on each of the configured devices.
    """

    most_rows: int | None = None

    def __init__(self, name: str, config: ModelConfig, warm: Sequence[WarmModel]) -> None:
        signatures = [one.runtime.signature for one in warm]
        self.signature = min(signatures, key=lambda signature: (signature.batched, signature.pads))
        for one in warm:
            one.runtime.signature = self.signature
        self.calibration = warm[0].calibration
        self.inline = runs_inline(config, self.calibration, warm[0].device)
        self.run = "inline" if self.inline else "thread"
        self.cores = warm[0].threads
        self._name = name
        self._warm = warm
        self._instances: dict[str, Instance] = {}
        self._wanted = 1 if self.inline else config.instances
        self._roster: Roster | None = None
        self._scaling = asyncio.Lock()

    def attach(self, roster: Roster) -> None:
        self._roster = roster
        for number in range(self._wanted):
            self._add(number)

    async def scale(self, count: int) -> None:
        if self.inline:
            raise ConfigError(f"model {self._name} runs on the event loop, one batch at a time: set run = 'thread' for more")
        async with self._scaling:  # a name is free again when its instance has finished its last batch
            for number in range(count):
                if f"{self._name}-{number}" not in self._instances:
                    self._add(number)
            leaving = [name for name in self._instances if int(name.rpartition("-")[2]) >= count]
            await asyncio.gather(*(self._remove(name) for name in leaving))

    async def stop(self) -> None:
        self._instances.clear()  # the driver has stopped them
        for one in self._warm:
            close = getattr(one.runtime, "close", None)
            if close is not None:
                await asyncio.to_thread(close)

    def describe(self) -> str:
        count = self._wanted
        where = in_words([one.device for one in self._warm])
        return ("inline on the event loop" if self.inline else f"on {count} thread{'s' * (count > 1)}") + where

    def _add(self, number: int) -> None:
        name = f"{self._name}-{number}"
        runtime = self._warm[number % len(self._warm)].runtime
        instance: Instance = InlineInstance(name, runtime) if self.inline else ThreadInstance(name, runtime)
        self._instances[name] = instance
        assert self._roster is not None
        self._roster.add_instance(instance)

    async def _remove(self, name: str) -> None:
        assert self._roster is not None
        self._roster.retire_instance(name)
        await self._instances.pop(name).stop()


# In worker processes


async def _processes(name: str, config: ModelConfig, kind: Kind) -> "ProcessHosting":
    from dlproxy.instance.process.instance import ProcessInstance, WorkerSettings  # most servers start without these
    from dlproxy.serve.supervisor import Supervisor

    cores = usable_cores()
    threads = config.threads or max(cores // config.instances, 1)
    content = Content(config.path)

    def make(instance: str) -> ProcessInstance:
        number = int(instance.rpartition("-")[2])
        device = device_of(config, number)
        environment: Mapping[str, str] = {}
        if kind == "python":  # which finds its GPU by itself
            environment, device = visible_gpus(device, os.environ), "auto"
        options = {"path": config.path, **_options(config, threads, device)}
        spec = PythonSpec("dlproxy.instance.runtime.formats:open_runtime", options)
        settings = WorkerSettings(
            warm_up=WarmUp(config.batching, config.samples, config.padding, config.pad_value),
            threads=threads,
            cores=_cores_of(number, threads) if config.pin else (),
            environment=environment,
            memory_limit_bytes=config.memory_limit_mb * 2**20,
            batch_timeout_s=config.batch_timeout_s,
            content=content,
        )
        return ProcessInstance(instance, spec, settings)

    supervisor = Supervisor(name, make)
    signature = await supervisor.start(config.instances)
    found = [instance.calibration for instance in supervisor.instances if isinstance(instance, ProcessInstance)]
    calibration = next((each for each in found if each is not None), Calibration((), signature.batched))
    return ProcessHosting(supervisor, signature, calibration, threads if kind != "sleep" else 1)


def _cores_of(number: int, threads: int) -> tuple[int, ...]:
    cores = allowed_cores()
    return tuple(cores[(number * threads + offset) % len(cores)] for offset in range(min(threads, len(cores)))) if cores else ()


class ProcessHosting:
    """Worker processes under a supervisor, which replaces those that die."""

    run = "process"
    inline = False
    most_rows: int | None = None

    def __init__(self, supervisor: "Supervisor", signature: Signature, calibration: Calibration, cores: int) -> None:
        self.signature = signature
        self.calibration = calibration
        self.cores = cores
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
        raise ModelError(f"model {name} runs on another server ({config.path}), which is warmed up there: leave samples out")
    if config.padding == "on":
        raise ModelError(f"model {name} runs on another server ({config.path}), where no request is padded: leave padding out")
    if config.run != "auto":
        raise ModelError(f"model {name} runs on another server ({config.path}): leave run = {config.run!r} out")
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
    inline = False
    cores = 0

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

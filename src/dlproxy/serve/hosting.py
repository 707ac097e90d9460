"""Where the instances of one model run: on the event loop, on threads, in worker processes, on other servers.

Each way starts them, tells the driver of them, changes their number and stops them. Made by serve/assemble.py.
Not aware of: lanes, requests, protocols.
"""

import asyncio
import os
from functools import partial
from typing import TYPE_CHECKING, Protocol

import msgspec
from msgspec import Struct

from dlproxy.config import ConfigError, ModelConfig, is_address
from dlproxy.instance import Instance
from dlproxy.instance.inline import InlineInstance
from dlproxy.instance.runtime import ModelError, Runtime
from dlproxy.instance.runtime.formats import Kind, open_runtime, runtime_kind
from dlproxy.instance.runtime.specs import PythonSpec
from dlproxy.instance.thread import ThreadInstance
from dlproxy.instance.warmup import Calibration, calibrate
from dlproxy.message import Signature
from dlproxy.serve.driver import Driver

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
    inline: bool
    cores: int
    most_rows: int | None
    """Rows that no batch may exceed, whatever the knob says."""

    def attach(self, driver: Driver) -> None:
        """The driver hears of every instance from now on, beginning with those that are up."""
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
    """Load and calibrate a model where its configuration says. Raises ModelError."""
    if is_address(config.path):
        return await _remote(name, config)
    kind = await asyncio.to_thread(runtime_kind, config.path)
    if config.run == "process" or (config.run == "auto" and kind in OF_OTHERS):
        return await _processes(name, config, kind)
    return LocalHosting(name, config, await asyncio.to_thread(warm_up, config))


# In this process


class WarmModel(Struct):
    """A model that is loaded and calibrated. `threads`: those that its runtime computes with."""

    runtime: Runtime
    calibration: Calibration
    threads: int


def warm_up(config: ModelConfig) -> WarmModel:
    """Load and calibrate in this process. Blocks for as long as that takes. Raises ModelError."""
    warm = _calibrated(config)
    if not warm.calibration.independent_rows:
        warm.runtime.signature = msgspec.structs.replace(warm.runtime.signature, batched=False)
    return warm


def _calibrated(config: ModelConfig) -> WarmModel:
    """With `threads` 0, more than one thread is used only if that is measured to pay."""
    threads, cores = config.threads, usable_cores()
    runtime = _open(config, threads or 1)
    threads_now = getattr(runtime, "threads", threads or 1)  # TensorFlow fixes them once per process
    warm = WarmModel(runtime, calibrate(runtime), threads_now)
    single_s = warm.calibration.single_s
    if threads or cores == 1 or single_s is None or single_s < MANY_THREADS_ABOVE_S:
        return warm
    if runtime_kind(config.path) not in THREADS_PAY:
        return warm
    wide = _open(config, cores)
    calibration = calibrate(wide)
    if calibration.single_s is not None and calibration.single_s * MANY_THREADS_GAIN < single_s:
        return WarmModel(wide, calibration, cores)
    return warm


def _open(config: ModelConfig, threads: int) -> Runtime:
    return open_runtime(config.path, threads=threads, device=config.device, inputs=config.inputs, outputs=config.outputs)


def runs_inline(config: ModelConfig, calibration: Calibration) -> bool:
    """Whether batches run on the event loop: if that is asked for, or one row is quick enough."""
    if config.run != "auto":
        return config.run == "inline"
    single_s = calibration.single_s
    return config.instances == 1 and single_s is not None and single_s < INLINE_BELOW_S


class LocalHosting:
    """Instances that share one loaded model: sessions take concurrent calls, and the weights exist once."""

    most_rows: int | None = None

    def __init__(self, name: str, config: ModelConfig, warm: WarmModel) -> None:
        self.signature = warm.runtime.signature
        self.calibration = warm.calibration
        self.inline = runs_inline(config, warm.calibration)
        self.cores = warm.threads
        self._name = name
        self._runtime = warm.runtime
        self._instances: dict[str, Instance] = {}
        self._wanted = 1 if self.inline else config.instances
        self._driver: Driver | None = None

    def attach(self, driver: Driver) -> None:
        self._driver = driver
        for number in range(self._wanted):
            self._add(number)

    async def scale(self, count: int) -> None:
        if self.inline:
            raise ConfigError(f"model {self._name} runs on the event loop, one batch at a time: set run = 'thread' for more")
        for number in range(count):
            if f"{self._name}-{number}" not in self._instances:
                self._add(number)
        leaving = [name for name in self._instances if int(name.rpartition("-")[2]) >= count]
        await asyncio.gather(*(self._remove(name) for name in leaving))

    async def stop(self) -> None:
        self._instances.clear()  # the driver has stopped them
        close = getattr(self._runtime, "close", None)
        if close is not None:
            await asyncio.to_thread(close)

    def describe(self) -> str:
        count = self._wanted
        return "inline on the event loop" if self.inline else f"on {count} thread{'s' * (count > 1)}"

    def _add(self, number: int) -> None:
        name = f"{self._name}-{number}"
        instance: Instance = InlineInstance(name, self._runtime) if self.inline else ThreadInstance(name, self._runtime)
        self._instances[name] = instance
        assert self._driver is not None
        self._driver.add_instance(instance)

    async def _remove(self, name: str) -> None:
        assert self._driver is not None
        self._driver.retire_instance(name)
        await self._instances.pop(name).stop()


# In worker processes


async def _processes(name: str, config: ModelConfig, kind: Kind) -> "ProcessHosting":
    from dlproxy.instance.process.instance import ProcessInstance, WorkerSettings  # most servers start without these
    from dlproxy.serve.supervisor import Supervisor

    cores = usable_cores()
    threads = config.threads or max(cores // config.instances, 1)
    options = {
        "path": config.path,
        "threads": threads,
        "device": config.device,
        "inputs": dict(config.inputs),
        "outputs": dict(config.outputs),
    }
    spec = PythonSpec("dlproxy.instance.runtime.formats:open_runtime", options)

    def make(instance: str) -> ProcessInstance:
        number = int(instance.rpartition("-")[2])
        settings = WorkerSettings(
            warm_up=True,
            threads=threads,
            cores=_cores_of(number, threads) if config.pin else (),
            memory_limit_bytes=config.memory_limit_mb * 2**20,
            batch_timeout_s=config.batch_timeout_s,
        )
        return ProcessInstance(instance, spec, settings)

    supervisor = Supervisor(name, make)
    signature = await supervisor.start(config.instances)
    found = [instance.calibration for instance in supervisor.instances if isinstance(instance, ProcessInstance)]
    calibration = next((each for each in found if each is not None), Calibration((), signature.batched))
    return ProcessHosting(supervisor, signature, calibration, threads if kind != "sleep" else 1)


def _cores_of(number: int, threads: int) -> tuple[int, ...]:
    cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
    return tuple(cores[(number * threads + offset) % len(cores)] for offset in range(min(threads, len(cores)))) if cores else ()


class ProcessHosting:
    """Worker processes under a supervisor, which replaces those that die."""

    inline = False
    most_rows: int | None = None

    def __init__(self, supervisor: "Supervisor", signature: Signature, calibration: Calibration, cores: int) -> None:
        self.signature = signature
        self.calibration = calibration
        self.cores = cores
        self._supervisor = supervisor

    def attach(self, driver: Driver) -> None:
        self._supervisor.attach(driver)

    async def scale(self, count: int) -> None:
        await self._supervisor.scale(count)

    async def stop(self) -> None:
        await self._supervisor.stop()

    def describe(self) -> str:
        count = len(self._supervisor.instances)
        return f"in {count} worker process{'es' * (count > 1)}"


# On other servers


async def _remote(name: str, config: ModelConfig) -> "RemoteHosting":
    from dlproxy.instance.remote import RemoteInstance, RemoteSettings, calibrate_upstream, parse_addresses, start_upstreams

    if config.run != "auto":
        raise ModelError(f"model {name} runs on another server ({config.path}): leave run = {config.run!r} out")
    settings = RemoteSettings(response_timeout_s=config.batch_timeout_s, headers=config.upstream_headers)
    addresses = parse_addresses(config.path)
    instances = [RemoteInstance(f"{name}-{number}", address, settings) for number, address in enumerate(addresses)]
    model = await start_upstreams(instances)
    try:
        calibration = await calibrate_upstream(next(instance for instance in instances if instance.up))
    except BaseException:
        await asyncio.gather(*(instance.stop() for instance in instances))
        raise
    if not calibration.independent_rows:
        for instance in instances:
            instance.go_single()
    return RemoteHosting(name, instances, instances[0].model.signature, model.max_batch, calibration)


class RemoteHosting:
    """Upstream servers, each an instance that comes and goes."""

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

    def attach(self, driver: Driver) -> None:
        for instance in self._instances:
            instance.on_lost = partial(driver.lose_instance, instance.name)
            instance.on_up = partial(driver.add_instance, instance)
            if instance.up:
                driver.add_instance(instance)

    async def scale(self, count: int) -> None:
        raise ConfigError(f"model {self._name} runs on other servers: its path names them")

    async def stop(self) -> None:
        await asyncio.gather(*(instance.stop() for instance in self._instances))

    def describe(self) -> str:
        places = ", ".join(instance.address.authority for instance in self._instances)
        return f"on {places}"


def usable_cores() -> int:
    """Those that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1

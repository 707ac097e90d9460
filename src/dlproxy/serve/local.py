"""Instances of one model in this process: on the event loop or on threads. Which of them, and how many, is measured.

At start on samples or made-up inputs, then on what clients sent. Made by serve/hosting.py. Not aware of: lanes, protocols.
"""

import asyncio
import logging
from collections.abc import Callable, Sequence
from math import inf
from typing import Any

import msgspec
from msgspec import Struct

from dlproxy.config import ConfigError, ModelConfig, parse_devices
from dlproxy.cores import usable_cores
from dlproxy.instance import Instance
from dlproxy.instance.batch import gather
from dlproxy.instance.inline import InlineInstance
from dlproxy.instance.padding import without_padding
from dlproxy.instance.runtime import Runtime
from dlproxy.instance.runtime.devices import CPU, in_words, instance_maker
from dlproxy.instance.runtime.formats import format_of, open_runtime
from dlproxy.instance.samples import read_samples
from dlproxy.instance.thread import ThreadInstance
from dlproxy.instance.trial import INLINE_BELOW_S, Inputs, Measured, Way, best_way, measure, measure_again
from dlproxy.instance.warmup import Calibration, WarmUp, warmed
from dlproxy.message import Request, Signature
from dlproxy.serve.remembered import Memory, Remembered
from dlproxy.serve.roster import Roster

TRIED_AGAIN = 8  # of the requests that clients sent: a trial takes time from them
OTHERWISE = 2.0  # times quicker or slower than what was tried before: then all is tried again

log = logging.getLogger(__name__)


class WarmModel(Struct):
    """A model that is loaded and calibrated. `threads`: those that its runtime computes with; `way`: how it is to run.

    `found`: what every way was seen to take, None if nothing was to be found out. `key`: under which `memory` keeps it.
    """

    runtime: Runtime
    calibration: Calibration
    threads: int
    way: Way
    found: Measured | None = None
    memory: Memory | None = None
    key: str = ""

    def remember(self) -> None:
        """Keep it for the next start, if there is a memory."""
        if self.memory is not None:
            points, warning = self.calibration.points, self.calibration.warning
            self.memory.keep(self.key, Remembered(self.runtime.signature, points, warning, self.way, self.found))

    @property
    def device(self) -> str:
        """Where it computes, in words."""
        device: str = getattr(self.runtime, "device", CPU)
        return device


def device_of(config: ModelConfig, number: int) -> str:
    """The device of the instance with this number: each gets the next of those configured. Raises ConfigError."""
    devices = parse_devices(config.device)
    return devices[number % len(devices)]


def stated_way(config: ModelConfig, single_s: float | None, *, threads: int = 1, device: str = CPU) -> Way:
    """What the configuration and the time of one row make of it, where nothing is tried.

    Whoever waits for a GPU must not stop the loop, which has time meanwhile to gather a larger batch.
    """
    quick = single_s is not None and single_s < INLINE_BELOW_S and device == CPU
    if config.run == "inline" or (config.run == "auto" and config.instances < 2 and quick):
        return Way(inline=True, instances=1, threads=threads)
    return Way(inline=False, instances=config.instances or len(parse_devices(config.device)), threads=threads)


def warm_up(config: ModelConfig, number: int = 0, memory: Memory | None = None) -> WarmModel:
    """Load and calibrate in this process, where the instance with this number shall be. Blocks meanwhile. Raises ModelError.

    `memory`: what was found out when the same model was loaded before is not found out again.
    """
    key = memory.key(config) if memory is not None and format_of(config.path).name == "onnx" else ""
    found = memory.recall(key) if memory is not None and key else None
    if found is not None:
        runtime = open_model(config, found.way.threads, device_of(config, number))
        runtime.signature = found.signature
        calibration = Calibration(found.points, found.signature.batched, found.warning)
        return WarmModel(runtime, calibration, found.way.threads, found.way, found.found, memory, key)
    warm = _found_out(config, number)
    if key:
        warm.memory, warm.key = memory, key
        warm.remember()
    return warm


def _found_out(config: ModelConfig, number: int) -> WarmModel:
    cores = usable_cores()
    given = config.threads or (max(cores // config.instances, 1) if config.instances > 1 else 1)
    runtime = open_model(config, given, device_of(config, number))
    threads = getattr(runtime, "threads", given)  # TensorFlow fixes them once per process
    samples = read_samples(config.samples, runtime.signature.inputs)
    calibration, requests = warmed(runtime, how_to_warm_up(config), samples)
    warm = WarmModel(runtime, calibration, threads, stated_way(config, calibration.single_s, threads=threads))
    if warm.device != CPU:
        warm.way = stated_way(config, None, threads=threads, device=warm.device)
    elif requests and _is_open(config) and not (warm.way.inline and config.run == "auto"):
        _try(config, warm, requests)
    return warm


def how_to_warm_up(config: ModelConfig) -> WarmUp:
    """As the knobs have it."""
    return WarmUp(config.batching, config.samples, config.padding, config.pad_value)


def _is_open(config: ModelConfig) -> bool:
    """Whether there is something to find out: the configuration leaves threads or instances open, and there are cores."""
    settled = (config.threads and (config.instances or config.run == "inline")) or config.instances > 1
    one_device = len(parse_devices(config.device)) == 1
    return not settled and one_device and usable_cores() > 1 and format_of(config.path).threads_pay


def _try(config: ModelConfig, warm: WarmModel, requests: Sequence[Inputs]) -> None:
    """Find the best way, and the runtime that it needs. The signature stays: what rows are does not depend on threads."""
    loaded: list[Runtime] = []

    def wide() -> Runtime:
        loaded.append(_like(warm, open_model(config, usable_cores(), CPU)))
        return loaded[0]

    found = measure(requests, warm.runtime, _side(config), None if config.threads or config.instances > 1 else wide)
    _choose(config, warm, found, loaded)


def _choose(config: ModelConfig, warm: WarmModel, found: Measured, loaded: Sequence[Runtime] = ()) -> None:
    """What these findings make the best, with the runtime that it needs, from those loaded already if it is among them."""
    may_inline = config.run == "inline" or (config.run == "auto" and config.instances < 2)
    cores, threads, objective_s = usable_cores(), config.threads or 1, config.slo_s
    way = best_way(found, cores=cores, side=_side(config), threads=threads, objective_s=objective_s, may_inline=may_inline)
    if config.run == "inline":
        way = Way(inline=True, instances=1, threads=way.threads)
    if way.threads != warm.threads:
        warm.runtime = loaded[0] if loaded else _like(warm, open_model(config, way.threads, CPU))
    warm.threads, warm.way, warm.found = way.threads, way, found


def _side(config: ModelConfig) -> int:
    """How many instances the cores have room for, if that is left open."""
    fixed = config.instances or config.run == "inline"
    return 1 if fixed else max(usable_cores() // (config.threads or 1), 1)


def _like(warm: WarmModel, runtime: Runtime) -> Runtime:
    runtime.signature = warm.runtime.signature
    return runtime


def open_model(config: ModelConfig, threads: int, device: str) -> Runtime:
    """Load it. Raises ModelError."""
    return open_runtime(config.path, **options(config, threads, device))


def options(config: ModelConfig, threads: int, device: str) -> dict[str, Any]:
    """What `open_runtime` takes besides the path, as plain data."""
    return {
        "threads": threads,
        "device": device,
        "gpu_memory_limit_mb": config.gpu_memory_limit_mb,
        "max_batch": config.max_batch,
        "inputs": dict(config.inputs),
        "outputs": dict(config.outputs),
    }


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
        self.way = warm[0].way
        self.run = _run(self.way)
        self.on_moved: Callable[[Way], None] | None = None
        """Called, on the event loop, when instances run in another way from now on."""
        self._name = name
        self._config = config
        self._warm = list(warm)
        self._instances: dict[str, Instance] = {}
        self._next = 0  # the number of the next instance, once the way has changed
        self._roster: Roster | None = None
        self._scaling = asyncio.Lock()
        self._moving: asyncio.Task[None] | None = None
        self._shown = False  # service has shown what warm-up had not, and that is remembered

    def attach(self, roster: Roster) -> None:
        self._roster = roster
        for number in range(self.way.instances):
            self._add(number)

    async def scale(self, count: int) -> None:
        if self.way.inline:
            raise ConfigError(f"model {self._name} runs on the event loop, one batch at a time: set run = 'thread' for more")
        async with self._scaling:  # a name is free again when its instance has finished its last batch
            for number in range(count):
                if f"{self._name}-{number}" not in self._instances:
                    self._add(number)
            leaving = [name for name in self._instances if int(name.rpartition("-")[2]) >= count]
            await asyncio.gather(*(self._remove(name) for name in leaving))
            self._config = msgspec.structs.replace(
                self._config, instances=max(count, 1)
            )  # so many are wanted, whatever is measured

    async def stop(self) -> None:
        if self._moving is not None:
            self._moving.cancel()
        self._instances.clear()  # the driver has stopped them
        for one in self._warm:
            close = getattr(one.runtime, "close", None)
            if close is not None:
                await asyncio.to_thread(close)

    def describe(self) -> str:
        count = self.way.instances
        where = in_words([one.device for one in self._warm])
        return ("inline on the event loop" if self.way.inline else f"on {count} thread{'s' * (count > 1)}") + where

    def rows_are_not_independent(self, reason: str) -> None:
        """Service has shown it: the next start is to know."""
        warm = self._warm[0]
        signature = msgspec.structs.replace(self.signature, batched=False)
        calibration = Calibration(warm.calibration.points[:1], False, f"{reason} (seen in service): batching is off")
        self._remember(signature, calibration)

    def padding_changes_answers(self, reason: str) -> None:
        """The same of requests of different lengths."""
        calibration = self._warm[0].calibration
        warning = "; ".join(filter(None, (calibration.warning, f"{reason} (seen in service): padding is off")))
        self._remember(without_padding(self.signature), msgspec.structs.replace(calibration, warning=warning))

    def _remember(self, signature: Signature, calibration: Calibration) -> None:
        warm = self._warm[0]
        self._shown = True
        if warm.memory is not None:
            found = Remembered(signature, calibration.points, calibration.warning, warm.way, warm.found)
            warm.memory.keep(warm.key, found)

    # Another way, while serving

    def try_again(self, requests: Sequence[Request]) -> None:
        """Clients have sent these: find out whether the way it runs is right for them, and change it if it is not."""
        if self._moving is None or self._moving.done():
            self._moving = asyncio.get_running_loop().create_task(self._try_again(requests))

    def may_move(self) -> bool:
        """Whether anything about the way is left to be measured."""
        warm = self._warm[0]
        narrow = warm.threads == (self._config.threads or 1)  # of several threads the processor time does not tell
        return warm.device == CPU and narrow and self._config.run == "auto" and _is_open(self._config)

    async def _try_again(self, requests: Sequence[Request]) -> None:
        warm = self._warm[0]
        real = [gather(self.signature, [request]) for request in requests[:TRIED_AGAIN]]
        again = msgspec.structs.replace(warm)
        try:
            await asyncio.to_thread(self._tried, again, real)
        except Exception as error:  # a request that the model refuses, memory for a second session: it runs on as it does
            log.warning("model %s: could not be tried on its clients' requests: %s", self._name, error)
            return
        if again.way != self.way:
            await self._move(again)

    def _tried(self, warm: WarmModel, real: Sequence[Inputs]) -> None:
        """Nothing is changed where requests take about what those took that the way was found with."""
        before = warm.found or _only_single(warm.calibration)
        now = measure_again(real, warm.runtime, before, _side(self._config))
        quick = now.slow_s < INLINE_BELOW_S
        if warm.way.inline is not quick or not before.narrow_cpu_s / OTHERWISE < now.narrow_s < before.narrow_cpu_s * OTHERWISE:
            _choose(self._config, warm, now)

    def _leave_the_loop(self, seconds: float) -> None:
        """A batch held the event loop for too long: the next ones run on a thread, before anything is measured."""
        if self.way.inline and self._config.run == "auto" and (self._moving is None or self._moving.done()):
            log.warning(
                "model %s: a batch held the event loop for %.1f ms: it runs on a thread from now on", self._name, seconds * 1e3
            )
            warm = self._warm[0]
            way = Way(inline=False, instances=1, threads=warm.threads)
            away = msgspec.structs.replace(warm, way=way)
            self._moving = asyncio.get_running_loop().create_task(self._move(away))

    async def _move(self, warm: WarmModel) -> None:
        """New instances take over before those that run in the old way leave, so that no request is without one."""
        async with self._scaling:
            leaving = list(self._instances)
            self._next = max(int(name.rpartition("-")[2]) for name in leaving) + 1 if leaving else 0
            self._warm, self.way, self.run = [warm], warm.way, _run(warm.way)
            for _ in range(warm.way.instances):
                self._add(self._next)
                self._next += 1
            if self.on_moved is not None:
                self.on_moved(warm.way)
            if not self._shown:
                await asyncio.to_thread(warm.remember)
            log.info("model %s: runs %s, %d thread(s) each", self._name, self.describe(), warm.threads)
            await asyncio.gather(*(self._remove(name) for name in leaving))

    def _add(self, number: int) -> None:
        name = f"{self._name}-{number}"
        runtime = self._warm[number % len(self._warm)].runtime
        instance: Instance
        if self.way.inline:
            instance = InlineInstance(name, runtime, self._leave_the_loop)
        else:
            instance = (instance_maker(device_of(self._config, number)) or ThreadInstance)(name, runtime)
        self._instances[name] = instance
        assert self._roster is not None
        self._roster.add_instance(instance)

    async def _remove(self, name: str) -> None:
        assert self._roster is not None
        self._roster.retire_instance(name)
        await self._instances.pop(name).stop()


def _run(way: Way) -> str:
    """As the knob has it."""
    return "inline" if way.inline else "thread"


def _only_single(calibration: Calibration) -> Measured:
    """Of a model that was so quick that nothing was tried."""
    single_s = calibration.single_s or 0.0
    return Measured(single_s, single_s, single_s, inf, inf)

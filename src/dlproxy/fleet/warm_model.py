"""A model loaded and calibrated in this process, and the way in which it is to run there: stated, remembered or measured.

Called by the rest of fleet/ and by lab/simulate, on a thread: everything here blocks. Not aware of: instances, lanes.
"""

import logging
import os
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

from msgspec import Struct

from dlproxy.config import ModelConfig, parse_devices
from dlproxy.cores import usable_cores
from dlproxy.fleet.remembered import Memory, Remembered
from dlproxy.instance.integrity import Trust
from dlproxy.instance.integrity.files import is_secret
from dlproxy.instance.made_up import NORMAL, SIZES, Known, row_of
from dlproxy.instance.runtime import ModelError, Runtime
from dlproxy.instance.runtime.content import model_files
from dlproxy.instance.runtime.devices import CPU
from dlproxy.instance.runtime.formats import ANY, format_of, open_runtime
from dlproxy.instance.runtime.processor import working_set
from dlproxy.instance.samples import read_samples
from dlproxy.instance.trial import INLINE_BELOW_S, PATIENCE_S, Inputs, Measured, Way, best_way, measure
from dlproxy.instance.warmup import Calibration, WarmUp, keep_graph, requests_of, warmed
from dlproxy.message import Signature

WARM_RUNS = 3  # of a second session, whose first runs allocate

log = logging.getLogger(__name__)


class WarmModel(Struct):
    """A model that is loaded and calibrated. `threads`: those that its runtime computes with; `way`: how it is to run.

    `found`: what every way was seen to take, None if nothing was to be found out. `key`: under which `memory` keeps it.
    `trust`, `graphs`: by which it was loaded, and is loaded again.
    """

    runtime: Runtime
    calibration: Calibration
    threads: int
    way: Way
    found: Measured | None = None
    memory: Memory | None = None
    key: str = ""
    trust: Trust = ANY
    graphs: str = ""

    def remember(self) -> None:
        """Keep it for the next start, if there is a memory."""
        if self.memory is not None:
            self.memory.keep(self.key, self.as_found(self.runtime.signature, self.calibration))

    def as_found(self, signature: Signature, calibration: Calibration) -> Remembered:
        """To be kept with what service has shown."""
        points, warning = calibration.points, calibration.warning
        return Remembered(signature, points, warning, self.way, self.found, calibration.known)

    @property
    def disturbed(self) -> bool:
        """Whether the way is a guess, for others had the cores when it was looked for."""
        return self.found is not None and self.found.disturbed

    @property
    def device(self) -> str:
        """Where it computes, in words."""
        device: str = getattr(self.runtime, "device", CPU)
        return device


def device_of(config: ModelConfig, number: int) -> str:
    """The device of the instance with this number: each gets the next of those configured. Raises ConfigError."""
    devices = parse_devices(config.device)
    return devices[number % len(devices)]


def stated_way(
    config: ModelConfig, single_s: float | None, *, threads: int = 1, device: str = CPU, streams: bool = False
) -> Way:
    """What the configuration and the time of one row make of it, where nothing is tried. Raises ModelError.

    Whoever waits for a GPU must not stop the loop, which has time meanwhile to gather a larger batch. `streams`: answers come
    in parts, of which nobody knows how many.
    """
    if streams:
        if config.run == "inline":
            raise ModelError(
                f"{config.path} answers in parts, which the event loop cannot wait for: run = 'thread' or 'process'"
            )
        single_s = None
    quick = single_s is not None and single_s < INLINE_BELOW_S and device == CPU
    if config.run == "inline" or (config.run == "auto" and config.instances < 2 and quick):
        return Way(inline=True, instances=1, threads=threads)
    return Way(inline=False, instances=config.instances or len(parse_devices(config.device)), threads=threads)


def warm_up(config: ModelConfig, number: int = 0, memory: Memory | None = None, trust: Trust = ANY) -> WarmModel:
    """Load and calibrate in this process, where the instance with this number shall be. Blocks meanwhile. Raises ModelError.

    `memory`: what was found out when the same model was loaded before is not found out again. It keeps nothing of a model that
    is encrypted, whose defaults and names would be in it.
    """
    onnx = memory is not None and format_of(config.path, pickle=trust.pickle).name == "onnx"
    key = memory.key(config) if memory is not None and onnx and not is_secret(config.path) else ""
    graphs = memory.graphs if memory is not None else ""
    found = memory.recall(key) if memory is not None and key else None
    warm = _found_out(config, number, trust, graphs) if found is None else _recalled(config, number, trust, graphs, found)
    _forget_graph(warm.runtime)
    if onnx and warm.device == CPU and log.isEnabledFor(logging.DEBUG):
        log.debug("%s: %s", config.path, working_set(sum(os.path.getsize(file) for file in model_files(config.path))))
    if key:
        warm.memory, warm.key = memory, key
        if found is None or warm.found != found.found:
            warm.remember()
    return warm


def _found_out(config: ModelConfig, number: int, trust: Trust, graphs: str) -> WarmModel:
    given = _threads_of(config)
    runtime = open_model(config, given, device_of(config, number), trust, graphs)
    threads = getattr(runtime, "threads", given)  # TensorFlow fixes them once per process
    samples = read_samples(config.samples, runtime.signature.inputs)
    calibration, requests = warmed(runtime, how_to_warm_up(config), samples)
    streams = runtime.signature.streams
    way = stated_way(config, calibration.single_s, threads=threads, streams=streams)
    warm = WarmModel(runtime, calibration, threads, way, trust=trust, graphs=graphs)
    if warm.device != CPU:
        warm.way = stated_way(config, None, threads=threads, device=warm.device, streams=streams)
    elif requests and is_open(config) and not (warm.way.inline and config.run == "auto"):
        try_ways(config, warm, requests)
    return warm


def _recalled(config: ModelConfig, number: int, trust: Trust, graphs: str, found: Remembered) -> WarmModel:
    """As an earlier start found it, or service; but which way is the best is tried again if others disturbed that."""
    again = found.found is not None and found.found.disturbed and found.known is not None
    threads = _threads_of(config) if again else found.way.threads
    runtime = open_model(config, threads, device_of(config, number), trust, graphs)
    runtime.signature = found.signature
    requests = []
    if found.known is not None:
        requests = requests_of(found.signature.inputs, found.known, read_samples(config.samples, found.signature.inputs))
    keep_graph(runtime, requests)
    warm = WarmModel(runtime, found.calibration, threads, found.way, found.found, trust=trust, graphs=graphs)
    if again:
        try_ways(config, warm, requests)
    return warm


def _threads_of(config: ModelConfig) -> int:
    """Before anything is known."""
    return config.threads or (max(usable_cores() // config.instances, 1) if config.instances > 1 else 1)


def how_to_warm_up(config: ModelConfig) -> WarmUp:
    """As the knobs have it."""
    return WarmUp(config.batching, config.samples, config.padding, config.pad_value)


def is_open(config: ModelConfig) -> bool:
    """Whether there is something to find out: the configuration leaves threads or instances open, and there are cores."""
    settled = (config.threads and (config.instances or config.run == "inline")) or config.instances > 1
    one_device = len(parse_devices(config.device)) == 1
    return not settled and one_device and usable_cores() > 1 and format_of(config.path, pickle=True).threads_pay


def try_ways(config: ModelConfig, warm: WarmModel, requests: Sequence[Inputs], patience_s: float = PATIENCE_S) -> None:
    """Find the best way, and the runtime that it needs. The signature stays: what rows are does not depend on threads."""
    loaded: list[Runtime] = []

    def wide() -> Runtime:
        loaded.append(_opened_like(warm, config, usable_cores()))
        return loaded[0]

    make_wide = None if config.threads or config.instances > 1 else wide
    found = measure(requests, warm.runtime, room(config), make_wide, patience_s)
    choose_way(config, warm, found, loaded)


def choose_way(config: ModelConfig, warm: WarmModel, found: Measured, loaded: Sequence[Runtime] = ()) -> None:
    """What these findings make the best, with the runtime that it needs, from those loaded already if it is among them."""
    may_inline = config.run == "inline" or (config.run == "auto" and config.instances < 2)
    cores, threads, objective_s = usable_cores(), config.threads or 1, config.slo_s
    way = best_way(found, cores=cores, side=room(config), threads=threads, objective_s=objective_s, may_inline=may_inline)
    if config.run == "inline":
        way = Way(inline=True, instances=1, threads=way.threads)
    if way.threads != warm.threads:
        warm.runtime = loaded[0] if loaded else _opened_like(warm, config, way.threads)
    warm.threads, warm.way, warm.found = way.threads, way, found


def room(config: ModelConfig) -> int:
    """How many instances the cores have room for, if that is left open."""
    fixed = config.instances or config.run == "inline"
    return 1 if fixed else max(usable_cores() // (config.threads or 1), 1)


def open_like(warm: WarmModel, config: ModelConfig, threads: int) -> Runtime:
    """The same model on so many threads, ready for its first batch. Raises ModelError."""
    runtime = _opened_like(warm, config, threads)
    with suppress(Exception):  # made-up inputs do not suit every model, and this one is known to run
        row = row_of(runtime.signature.inputs, NORMAL, Known(SIZES[0]))
        for _ in range(WARM_RUNS):
            runtime.run(row)
    return runtime


def _opened_like(warm: WarmModel, config: ModelConfig, threads: int) -> Runtime:
    runtime = open_model(config, threads, CPU, warm.trust, warm.graphs)
    runtime.signature = warm.runtime.signature
    _forget_graph(runtime)
    return runtime


def _forget_graph(runtime: Runtime) -> None:
    forget = getattr(runtime, "forget_graph", None)
    if forget is not None:
        forget()


def open_model(config: ModelConfig, threads: int, device: str, trust: Trust, graphs: str = "") -> Runtime:
    """Load it. Raises ModelError."""
    return open_runtime(config.path, **options(config, threads, device, graphs), trust=trust)


def options(config: ModelConfig, threads: int, device: str, graphs: str = "") -> dict[str, Any]:
    """What `open_runtime` takes besides the path, as plain data."""
    return {
        "threads": threads,
        "device": device,
        "gpu_memory_limit_mb": config.gpu_memory_limit_mb,
        "max_batch": config.max_batch,
        "inputs": dict(config.inputs),
        "outputs": dict(config.outputs),
        "graphs": graphs,
    }

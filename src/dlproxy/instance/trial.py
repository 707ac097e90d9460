"""How quickly a model answers in each way of running it, tried on real or made-up requests, and which way is best.

Called by fleet/ at start and again, with what clients sent, while serving. Blocks: call it on a thread.
Not aware of: instances, lanes.
"""

from collections.abc import Callable, Mapping, Sequence
from math import isfinite
from threading import Barrier, Thread
from time import perf_counter, thread_time

import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

from dlproxy.instance.runtime import Runtime

Array = NDArray[np.generic]
Inputs = Sequence[Array]

INLINE_BELOW_S = 200e-6  # a request quicker than this runs on the loop: a hand-over to a thread costs 50 to 75 us
SHARED_ABOVE_S = 300e-6  # from here on cores side by side gain more than the hand-overs between them cost
WIDE_ABOVE_S = 2e-3  # quicker models are not loaded twice to find out what more threads would give
WIDE_GAIN = 1.2  # several threads must be so much quicker to be chosen: they wait for each other, and leave nothing to others
TRY_S = 0.25  # a turn of all requests that takes longer is taken twice, one four times as long once
SIDE_GAIN = 1.1  # of what several side by side would gain if none of them waited for another
TURNS = 4  # the first one warms up what is loaded on first use


class Way(Struct, frozen=True):
    """How a model runs: on the event loop or on so many instances, with so many threads each.

    `resources`: what else its batches compute on, by name, and how much of it there is; a batch takes 1 of each.
    """

    inline: bool
    instances: int
    threads: int
    resources: Mapping[str, float] = {}


class Measured(Struct, frozen=True):
    """Seconds a request: one after the other, of processor time too, and by each way of using more cores. inf: not tried.

    `slow_s`: processor time of a slow one (of twenty, one takes longer); `beside_s`: several side by side, each with a request;
    `wide_s`: all cores for one request.
    """

    narrow_s: float
    narrow_cpu_s: float
    slow_s: float
    beside_s: float
    wide_s: float


def measure(requests: Sequence[Inputs], narrow: Runtime, side: int, make_wide: Callable[[], Runtime] | None) -> Measured:
    """Run the requests in every way that is worth a try: one by one, `side` at a time, and on what `make_wide` loads.

    The ways take turns, and the best turn of each counts: a machine that is busy for a while is no reason for or against one.
    Raises what the model raises, or ModelError.
    """
    each = [(float("inf"), float("inf"))] * len(requests)
    beside_s = wide_s = float("inf")
    wide: Runtime | None = None
    for turn in range(TURNS):
        each = [_least(before, _times(narrow, inputs)) for before, inputs in zip(each, requests, strict=True)]
        narrow_s = float(np.mean(each, axis=0)[0])
        if side > 1 and narrow_s >= SHARED_ABOVE_S:
            beside_s = min(beside_s, _beside(narrow, requests, side, narrow_s))
        if make_wide is not None and narrow_s >= WIDE_ABOVE_S:
            wide = wide or make_wide()
            wide_s = min(wide_s, float(np.mean([_times(wide, inputs)[0] for inputs in requests])))
        taken_s = narrow_s * len(requests)
        if taken_s > (TRY_S if turn else 4 * TRY_S):
            break
    narrow_s, narrow_cpu_s = np.mean(each, axis=0).tolist()
    return Measured(narrow_s, narrow_cpu_s, float(np.quantile(each, 0.95, axis=0)[1]), beside_s, wide_s)


def measure_again(requests: Sequence[Inputs], narrow: Runtime, before: Measured, side: int) -> Measured:
    """What the ways take for other requests, as far as can be told while the machine serves: by processor time.

    What the others gained over one thread they are taken to gain again; side by side, not tried before, to gain nearly all.
    """
    repeats = 2 if before.narrow_s > WIDE_ABOVE_S else 5  # quick ones cost little, and are as quick as caches are warm
    each = [min(_times(narrow, inputs)[1] for _ in range(repeats)) for inputs in requests]
    narrow_s = float(np.mean(each))
    beside = before.beside_s / before.narrow_s
    if not isfinite(beside) and side > 1 and narrow_s >= SHARED_ABOVE_S:
        beside = SIDE_GAIN / side
    wide = before.wide_s / before.narrow_s
    return Measured(narrow_s, narrow_s, float(np.quantile(each, 0.95)), narrow_s * beside, narrow_s * wide)


def best_way(found: Measured, *, cores: int, side: int, threads: int, objective_s: float | None, may_inline: bool) -> Way:
    """The way with the most requests a second that keeps to the objective, if there is one.

    `side`: how many ran side by side when that was tried, with `threads` each.
    """
    if may_inline and found.slow_s < INLINE_BELOW_S:
        return Way(inline=True, instances=1, threads=threads)
    late = objective_s is not None and found.narrow_s > objective_s / 2 > found.wide_s
    if late or found.wide_s * WIDE_GAIN < min(found.narrow_s, found.beside_s):
        return Way(inline=False, instances=1, threads=cores)
    return Way(inline=False, instances=side if found.beside_s < found.narrow_s else 1, threads=threads)


def _times(runtime: Runtime, inputs: Inputs) -> tuple[float, float]:
    """Seconds of a run, by the clock and by this thread's processor time."""
    began_at, cpu_at = perf_counter(), thread_time()
    runtime.run(inputs)
    return perf_counter() - began_at, thread_time() - cpu_at


def _least(a: tuple[float, float], b: tuple[float, float]) -> tuple[float, float]:
    return min(a[0], b[0]), min(a[1], b[1])


def _beside(runtime: Runtime, requests: Sequence[Inputs], side: int, single_s: float) -> float:
    """Seconds a request with so many threads, each of which runs the requests from another one on."""
    count = max(min(int(TRY_S / TURNS / max(single_s, 1e-6)), 100), len(requests), 2)
    start = Barrier(side + 1)
    failed: list[Exception] = []

    def work(first: int) -> None:
        start.wait()
        try:
            for number in range(count):
                runtime.run(requests[(first + number) % len(requests)])
        except Exception as error:  # told by who waits for it
            failed.append(error)

    step = max(len(requests) // side, 1)
    threads = [Thread(target=work, args=(core * step,), daemon=True) for core in range(side)]
    for thread in threads:
        thread.start()
    start.wait()
    began_at = perf_counter()
    for thread in threads:
        thread.join()
    if failed:
        raise failed[0]
    return (perf_counter() - began_at) / (count * side)

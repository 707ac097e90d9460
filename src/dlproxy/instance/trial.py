"""How quickly a model answers in each way of running it, tried on real or made-up requests, and which way is best.

Called by fleet/ at start and again, with what clients sent, while serving. Blocks: call it on a thread.
Not aware of: instances, lanes.
"""

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import reduce
from itertools import count
from math import inf, isfinite
from threading import Barrier
from time import perf_counter, thread_time

import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

from dlproxy.cores import all_waited_s, waited_s
from dlproxy.instance.runtime import Runtime

Array = NDArray[np.generic]
Inputs = Sequence[Array]

INLINE_BELOW_S = 200e-6  # a request quicker than this runs on the loop: a hand-over to a thread costs 50 to 75 us
SHARED_ABOVE_S = 300e-6  # from here on cores side by side gain more than the hand-overs between them cost
WIDE_ABOVE_S = 2e-3  # quicker models are not loaded twice to find out what more threads would give
WIDE_GAIN = 1.2  # several threads must be so much quicker to be chosen: they wait for each other, and leave nothing to others
TRY_S = 0.25  # a turn of all requests that takes longer is taken twice, one four times as long once
SIDE_GAIN = 1.1  # of what several side by side would gain if none of them waited for another
REPEATS = 5  # of quick requests, which cost little and are as quick as caches are warm
TURNS = 4  # the first one warms up what is loaded on first use
DISTURBED = 0.1  # of its time a thread waited for a core that others had: such a turn tells nothing about more threads
PATIENCE_S = 1.0  # a start waits so long for turns that nobody disturbs


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
    `wide_s`: all cores for one request. `disturbed`: others had the cores meanwhile, so that the last two are not sure.
    """

    narrow_s: float
    narrow_cpu_s: float
    slow_s: float
    beside_s: float
    wide_s: float
    disturbed: bool = False


def measure(
    requests: Sequence[Inputs],
    narrow: Runtime,
    side: int,
    make_wide: Callable[[], Runtime] | None,
    patience_s: float = PATIENCE_S,
) -> Measured:
    """Run the requests in every way that is worth a try: one by one, `side` at a time, and on what `make_wide` loads.

    The ways take turns, and the best turn of each counts, of those that nobody disturbed if there are any: for these it goes on
    until `patience_s` are over. Raises what the model raises, or ModelError.
    """
    each = [(inf, inf)] * len(requests)
    alones: list[tuple[bool, float]] = []  # disturbed, seconds a request
    besides: list[tuple[bool, float]] = []
    wides: list[tuple[bool, float]] = []
    wide: Runtime | None = None
    repeats = 1
    began_at = perf_counter()
    for turn in count(1):
        waited, turn_at = waited_s(), perf_counter()
        each = [_least(before, alone(narrow, inputs, repeats)) for before, inputs in zip(each, requests, strict=True)]
        narrow_s, narrow_cpu_s = np.mean(each, axis=0).tolist()
        alones.append((waited_s() - waited > DISTURBED * (perf_counter() - turn_at), narrow_s))
        taken_s = narrow_s * len(requests)
        repeats = REPEATS if narrow_s < SHARED_ABOVE_S and taken_s < TRY_S / REPEATS else 1
        wanted = 1 if taken_s > 4 * TRY_S else 2 if taken_s > TRY_S else TURNS
        calm = _undisturbed(alones)
        if side > 1 and narrow_s >= SHARED_ABOVE_S:
            besides.append(_beside(narrow, requests, side, narrow_s))
            calm = _undisturbed(besides)
        impatient = perf_counter() - began_at > patience_s
        if make_wide is not None and narrow_s >= WIDE_ABOVE_S and (calm or not impatient):
            wide = wide or make_wide()
            wides.append(_together(wide, requests))
            calm = min(calm, _undisturbed(wides))
        if turn >= wanted and (calm >= wanted or impatient):
            break
    beside_s, wide_s = (min(turns, default=(True, inf))[1] for turns in (besides, wides))
    slow_s = float(np.quantile(each, 0.95, axis=0)[1])
    return Measured(narrow_s, narrow_cpu_s, slow_s, beside_s, wide_s, disturbed=calm < min(wanted, 2))


def measure_again(requests: Sequence[Inputs], narrow: Runtime, before: Measured, side: int) -> Measured:
    """What the ways take for other requests, as far as can be told while the machine serves: by processor time.

    What the others gained over one thread they are taken to gain again; side by side, not tried before, to gain nearly all.
    """
    repeats = 2 if before.narrow_s > WIDE_ABOVE_S else REPEATS
    each = [min(times(narrow, inputs)[1] for _ in range(repeats)) for inputs in requests]
    narrow_s = float(np.mean(each))
    beside = before.beside_s / before.narrow_s
    if not isfinite(beside) and side > 1 and narrow_s >= SHARED_ABOVE_S:
        beside = SIDE_GAIN / side
    wide = before.wide_s / before.narrow_s
    return Measured(narrow_s, narrow_s, float(np.quantile(each, 0.95)), narrow_s * beside, narrow_s * wide, before.disturbed)


def best_way(found: Measured, *, cores: int, side: int, threads: int, objective_s: float | None, may_inline: bool) -> Way:
    """The way with the most requests a second that keeps to the objective, if there is one.

    `side`: how many ran side by side when that was tried, with `threads` each. Several threads for a request, which wait for
    each other and so for whoever disturbs one of them, are never chosen on a guess.
    """
    if may_inline and found.slow_s < INLINE_BELOW_S:
        return Way(inline=True, instances=1, threads=threads)
    late = objective_s is not None and found.narrow_s > objective_s / 2 > found.wide_s
    if not found.disturbed and (late or found.wide_s * WIDE_GAIN < min(found.narrow_s, found.beside_s)):
        return Way(inline=False, instances=1, threads=cores)
    return Way(inline=False, instances=side if found.beside_s < found.narrow_s else 1, threads=threads)


def times(runtime: Runtime, inputs: Inputs) -> tuple[float, float]:
    """Seconds of a run, by the clock and by this thread's processor time."""
    began_at, cpu_at = perf_counter(), thread_time()
    runtime.run(inputs)
    return perf_counter() - began_at, thread_time() - cpu_at


def alone(runtime: Runtime, inputs: Inputs, repeats: int = 1) -> tuple[float, float]:
    """The least of some runs, without the time that others had the core meanwhile, which is no part of its processor time."""
    waited = waited_s()
    seconds, cpu_s = reduce(_least, [times(runtime, inputs) for _ in range(repeats)])
    return max(seconds - (waited_s() - waited), cpu_s), cpu_s


def _least(a: tuple[float, float], b: tuple[float, float]) -> tuple[float, float]:
    return min(a[0], b[0]), min(a[1], b[1])


def _undisturbed(turns: Sequence[tuple[bool, float]]) -> int:
    return sum(not disturbed for disturbed, _ in turns)


def _beside(runtime: Runtime, requests: Sequence[Inputs], side: int, single_s: float) -> tuple[bool, float]:
    """Seconds a request with so many threads, from different requests on; before them: whether disturbed."""
    runs = max(min(int(TRY_S / TURNS / max(single_s, 1e-6)), 100), len(requests), 2)
    start = Barrier(side)

    def work(first: int) -> tuple[float, float]:
        start.wait()
        waited, began_at = waited_s(), perf_counter()
        for number in range(first, first + runs):
            runtime.run(requests[number % len(requests)])
        waited = waited_s() - waited
        return perf_counter() - began_at - waited, waited

    step = max(len(requests) // side, 1)
    with ThreadPoolExecutor(side) as pool:
        took = list(pool.map(work, range(0, side * step, step)))
    busy_s, waited = np.sum(took, axis=0).tolist()
    return waited > DISTURBED * (busy_s + waited), max(took)[0] / (runs * side)


def _together(runtime: Runtime, requests: Sequence[Inputs]) -> tuple[bool, float]:
    """Seconds a request by the clock; before them: whether a thread, for which the others wait, was disturbed."""
    before, began_at = all_waited_s(), perf_counter()
    for inputs in requests:
        runtime.run(inputs)
    seconds = perf_counter() - began_at
    waited = max((after - before.get(thread, 0.0) for thread, after in all_waited_s().items()), default=0.0)
    return waited > DISTURBED * seconds, seconds / len(requests)

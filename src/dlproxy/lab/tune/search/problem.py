"""What is tuned: one model under one load with an objective, the ways in which it may run, and the knobs that are turned.

Used by everything beside it. Not aware of: how a point is valued, servers.
"""

import itertools
from collections.abc import Iterator
from math import inf
from pathlib import Path

import msgspec
from msgspec import Struct

from dlproxy.config import ConfigError, ModelConfig, is_address
from dlproxy.config.table import space
from dlproxy.instance.runtime.formats import format_of
from dlproxy.lab.load.arrivals import Arrivals, make_arrivals, read_trace

GOOD_SHARE = 0.99  # of the requests that must be answered within the objective, which is a p99
NEVER_S = 1e6  # the p99 of what is never answered
SAME_GOODPUT = 0.01  # goodput this close counts as the same: cores and latency decide then
SAME_P99 = 0.05  # of the objective: p99 this close counts as the same
WAITS = (128, 64, 32, 16, 8, 4)  # max_wait_s is the objective divided by these, or 0
CODEL = (8, 4, 2)  # and codel_target_s
MOST_BATCH = 256
SEED = 7  # of the arrivals that every point is valued with


class TuneError(Exception):
    """The model cannot be tuned so; the message says why, and what would be right."""


class Layout(Struct, frozen=True, order=True):
    """Where the model's instances run, how many there are, and the threads of each."""

    run: str
    instances: int
    threads: int

    @property
    def cores(self) -> int:
        """That its batches take when all instances are busy."""
        return self.instances * self.threads

    def __str__(self) -> str:
        if self.run == "inline":
            return "inline"
        threads = f" of {self.threads} threads" if self.threads > 1 else ""
        several = "es" if self.run == "process" else "s"
        return f"{self.instances} {self.run}{several if self.instances > 1 else ''}{threads}"


class Point(Struct, frozen=True, order=True):
    """One configuration: a layout, and the knobs that may be changed while it serves."""

    layout: Layout
    max_batch: int
    max_wait_s: float = 0.0
    codel_target_s: float = 0.0
    hedge: bool = False

    @property
    def turned(self) -> int:
        """How many of its knobs are on that are usually off; a process of its own counts as one."""
        return sum(map(bool, (self.max_wait_s, self.codel_target_s, self.hedge, self.layout.run == "process")))

    @property
    def live_knobs(self) -> dict[str, int | float | bool]:
        """What the control port changes."""
        return {
            "max_batch": self.max_batch,
            "max_wait_s": self.max_wait_s,
            "codel_target_s": self.codel_target_s,
            "hedge": self.hedge,
        }

    def on(self, config: ModelConfig) -> ModelConfig:
        """The configuration with this point's values."""
        layout = self.layout
        return msgspec.structs.replace(
            config, run=layout.run, instances=layout.instances, threads=layout.threads, **self.live_knobs
        )


class Outcome(Struct, frozen=True):
    """What became of a load. `rate`: requests offered per second; `good`: the share of them answered within the objective;
    `p99_s`: of those that were answered, NEVER_S if none was.
    """

    rate: float
    good: float
    p99_s: float

    @property
    def goodput(self) -> float:
        """Answers within the objective per second."""
        return self.rate * self.good

    def meets(self, objective_s: float) -> bool:
        return self.good >= GOOD_SHARE and self.p99_s <= objective_s


class Load(Struct, frozen=True, kw_only=True):
    """The requests to come: at a rate, or at the instants of a trace. `rate`: None where the highest is looked for."""

    rate: float | None = None
    kind: str = "poisson"
    trace: Path | None = None

    def arrivals(self, rate: float, seed: int = SEED) -> Arrivals:
        """Raises ArrivalsError."""
        return make_arrivals(self.kind, rate=rate, seed=seed) if self.trace is None else read_trace(self.trace)

    def __str__(self) -> str:
        if self.trace is not None:
            return f"the requests of {self.trace.name}"
        kind = "" if self.kind == "poisson" else f" ({self.kind})"
        return f"the highest rate{kind}" if self.rate is None else f"{self.rate:g} requests/s{kind}"


class Problem(Struct, frozen=True, kw_only=True):
    """One model, what it is asked for, and the cores that there are."""

    name: str
    config: ModelConfig
    objective_s: float
    load: Load
    cores: int


class Space(Struct, frozen=True):
    """The values among which a search chooses, each in rising order."""

    layouts: tuple[Layout, ...]
    batches: tuple[int, ...]
    waits: tuple[float, ...]
    codels: tuple[float, ...]

    def point(self, layout: int, batch: int, wait: int, codel: int, hedge: int) -> Point:
        """By the positions of its values. One instance has no other to hedge on, and a batch of one row does not wait."""
        where = self.layouts[layout]
        rows = self.batches[batch]
        return Point(
            where, rows, self.waits[wait] if rows > 1 else 0.0, self.codels[codel], bool(hedge) and where.instances > 1
        )

    def sizes(self) -> dict[str, int]:
        """How many values each of `point`'s arguments has."""
        sizes = {"layout": len(self.layouts), "batch": len(self.batches), "wait": len(self.waits), "codel": len(self.codels)}
        return {**sizes, "hedge": 2}

    def points(self) -> Iterator[Point]:
        """All of them, each once."""
        choices = (range(size) for size in self.sizes().values())
        yield from dict.fromkeys(self.point(*chosen) for chosen in itertools.product(*choices))

    def neighbours(self, point: Point) -> Iterator[Point]:
        """Those that differ from this one in a single knob by one step, in the same layout."""
        knobs = (("max_batch", self.batches), ("max_wait_s", self.waits), ("codel_target_s", self.codels))
        for knob, values in knobs:
            at = values.index(getattr(point, knob))
            for value in values[max(at - 1, 0) : at + 2]:
                other = msgspec.structs.replace(point, **{knob: value})
                if other.max_batch == 1:
                    other = msgspec.structs.replace(other, max_wait_s=0.0)
                if other != point:
                    yield other
        if point.layout.instances > 1:
            yield msgspec.structs.replace(point, hedge=not point.hedge)

    def defaults(self) -> list[dict[str, int]]:
        """Each layout with what a server has without configuration, as arguments of `point`."""
        most = len(self.batches) - 1
        return [{"layout": n, "batch": most, "wait": 0, "codel": 0, "hedge": 0} for n in range(len(self.layouts))]


def layouts(config: ModelConfig, cores: int) -> list[Layout]:
    """Those that the configuration allows and the cores have room for. Raises ConfigError, ModelError, TuneError."""
    if is_address(config.path):
        raise TuneError(f"{config.path} runs on another server: tune it there")
    if config.autoscale != "off":
        raise TuneError("autoscale changes the number of instances, which is what is tuned: set autoscale = 'off' to tune")
    kind = format_of(config.path)
    runs = (config.run,) if config.run != "auto" else ("process",) if kind.apart else ("inline", "thread", "process")
    wide = kind.threads_pay or (kind.apart and kind.name != "sleep")
    found = []
    for run in runs:
        counts = [1] if run == "inline" else [config.instances] if config.instances else _powers(cores)
        threads = [config.threads] if config.threads else _powers(cores) if wide and run != "inline" else [1]
        pairs = [(i, t) for i, t in itertools.product(counts, threads) if i * t <= cores or (i, t) == (counts[0], threads[0])]
        found += [Layout(run, *pair) for pair in pairs]
    return found


def _powers(most: int) -> list[int]:
    """1, 2, 4 and so on, and the most."""
    return sorted({*(2**power for power in range(most.bit_length()) if 2**power <= most), most})


def make_space(problem: Problem, usable: list[Layout], *, batched: bool) -> Space:
    """What is worth trying for this model and objective, within the knobs' own bounds."""
    bounds = {dimension.name: dimension for dimension in space(ModelConfig)}
    most = min(problem.config.max_batch, MOST_BATCH) if batched else 1
    waits = tuple(problem.objective_s / part for part in WAITS) if batched and problem.config.batching != "off" else ()
    codels = tuple(problem.objective_s / part for part in CODEL)
    return Space(
        tuple(usable),
        tuple(_powers(most)),
        (0.0, *(value for value in waits if value >= (bounds["max_wait_s"].low or 0.0))),
        (0.0, *(value for value in codels if value >= (bounds["codel_target_s"].low or 0.0))),
    )


def better_first(point: Point, outcome: Outcome, objective_s: float, best_goodput: float) -> tuple[bool, int, int, int, int]:
    """Sorts: what meets the objective, then the goodput in steps of SAME_GOODPUT of the best, fewer cores, the lower p99 in
    steps of SAME_P99 of the objective; below that, what is simpler.
    """
    lost = 1.0 - outcome.goodput / best_goodput if best_goodput > 0.0 else inf
    step = int(lost / SAME_GOODPUT) if lost < inf else 1 << 30
    late = int(outcome.p99_s / (SAME_P99 * objective_s))
    return not outcome.meets(objective_s), step, point.layout.cores, late, point.turned


def objective_of(config: ModelConfig) -> float:
    """Seconds. Raises TuneError where there is none."""
    try:
        slo_s = config.slo_s
    except ConfigError as error:
        raise TuneError(str(error)) from None
    if slo_s is None:
        raise TuneError("no objective given; try --slo p99=20ms")
    return slo_s

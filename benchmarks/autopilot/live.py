"""The autopilot on a live server: started badly, then three times the load, beside the best of a sweep of static servers.

Called by __main__.py (`--live`). Client, server and batches share this machine's cores: rates are below what these can carry.
"""

from collections.abc import Sequence
from pathlib import Path
from statistics import median

import msgspec
from msgspec import Struct

from benchmarks.harness.running import progress, workplace
from benchmarks.models import build_cnn, build_mlp, build_small_resnet, build_transformer
from dlproxy.config import ModelConfig
from dlproxy.cores import usable_cores
from dlproxy.lab.load.run import Interrupt
from dlproxy.lab.tune.search.live import LiveServer
from dlproxy.lab.tune.search.problem import Layout, Load, Outcome, Point, Problem

MODELS = {"mlp": build_mlp, "cnn": build_cnn, "resnet": build_small_resnet, "transformer": build_transformer}
BAD_STARTS = ({"max_batch": 1, "max_wait_s": 0.05, "instances": 1}, {"max_batch": 512, "max_wait_s": 0.05, "instances": 1})
OBJECTIVE_S = 0.02
LAYOUTS = (Layout("inline", 1, 1), Layout("thread", 1, 1), Layout("thread", 1, 2), Layout("thread", 2, 1))
BATCHES = (1, 8, 64, 256)
SEARCH_S, SETTLED_S = 30.0, 12.0  # of each phase: it may look for a configuration, then it counts
BRIEF_S, LONG_S, BEST = 1.5, 6.0, 2  # the sweep: all for so long, then the best of them
STEP = 3.0
MOST_RATE = 900.0  # requests/s in the second phase
HIGH_LOAD = 0.5  # of the rate at which one-row batches would fill one core, in the second phase
HEAD = (
    "| model | start | rate | best static: goodput | in time | autopilot: goodput | in time | of the best static "
    "| missed while searching |\n|---|---|---:|---:|---:|---:|---:|---:|---:|"
)


class Phase(Struct):
    """One model under one rate from one start. `searching`: its first part, `settled` the rest; `best`: of the sweep."""

    model: str
    start: str
    rate: float
    best: Outcome
    searching: Outcome
    settled: Outcome

    @property
    def ratio(self) -> float:
        return self.settled.goodput / max(self.best.goodput, 1e-9)

    def row(self) -> str:
        cells = [self.model, self.start, f"{self.rate:,.0f}/s", f"{self.best.goodput:,.0f}/s", f"{self.best.good:.2%}"]
        cells += [f"{self.settled.goodput:,.0f}/s", f"{self.settled.good:.2%}", f"{self.ratio:.1%}"]
        return "| " + " | ".join([*cells, f"{1.0 - self.searching.good:.2%}"]) + " |"


def measure(names: Sequence[str], found: list[Phase]) -> None:
    with workplace("autopilot") as (_, folder), Interrupt() as interrupt:
        for name in names:
            with progress(name):
                path = folder / f"{name}.onnx"
                MODELS[name](path)
                phases = list(_of_model(name, path, interrupt))
            found += phases
            print("\n".join(phase.row() for phase in phases), flush=True)


def _of_model(name: str, path: Path, interrupt: Interrupt) -> list[Phase]:
    config = ModelConfig(path=str(path), slo=f"p99={OBJECTIVE_S * 1e3:g}ms", max_batch=max(BATCHES))
    problem = Problem(name=name, config=config, objective_s=OBJECTIVE_S, load=Load(), cores=usable_cores())
    rates = _rates(problem, interrupt)
    best = [_best_static(problem, rate, interrupt) for rate in rates]
    phases = []
    for start in BAD_STARTS:
        free = msgspec.structs.replace(config, max_batch=ModelConfig(path="").max_batch, start=start)
        trial = msgspec.structs.replace(problem, config=free)
        with LiveServer(trial, None, record=False) as server:
            for rate, reference in zip(rates, best, strict=True):
                searching = server.load(rate, SEARCH_S, 1, interrupt)
                settled = server.load(rate, SETTLED_S, 2, interrupt)
                phases.append(Phase(name, f"max_batch {start['max_batch']}", rate, reference, searching, settled))
    return phases


def _rates(problem: Problem, interrupt: Interrupt) -> tuple[float, float]:
    """Of both phases, by what one row takes on one thread."""
    with LiveServer(problem, Point(LAYOUTS[1], 1), record=False) as server:
        single_s = server.load(20.0, BRIEF_S, 0, interrupt).p99_s
    high = float(f"{min(HIGH_LOAD / single_s, MOST_RATE):.2g}")
    return high / STEP, high


def _best_static(problem: Problem, rate: float, interrupt: Interrupt) -> Outcome:
    brief: dict[Point, Outcome] = {}
    for layout in LAYOUTS:
        points = [Point(layout, batch) for batch in BATCHES]
        with LiveServer(problem, points[0], record=False) as server:
            for point in points:
                server.turn(point)
                brief[point] = server.load(rate, BRIEF_S, 0, interrupt)
    long = []
    for point in sorted(brief, key=lambda point: -brief[point].goodput)[:BEST]:
        with LiveServer(problem, point, record=False) as server:
            long.append(server.load(rate, LONG_S, 1, interrupt))
    return max(long, key=lambda outcome: outcome.goodput)


def live_page(found: Sequence[Phase], *, date: str, command: str) -> str:
    shared = f"client, server and batches share {usable_cores()} cores"
    about = f"`{command}` on {date}: objective p99 = {OBJECTIVE_S * 1e3:g} ms; {shared}."
    ratios = sorted(phase.ratio for phase in found)
    said = f"Settled, of the best static: median {median(ratios):.1%}, worst {ratios[0]:.1%} of {len(ratios)} phases."
    return "\n\n".join(["# The autopilot on live servers", about, as_live_table(found), said]) + "\n"


def as_live_table(found: Sequence[Phase]) -> str:
    return "\n".join([HEAD, *(phase.row() for phase in found)])

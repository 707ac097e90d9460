"""Scenarios fitted to what a server has recorded of its models: what batches cost there, how much came, and how bursty it was.

Used by training.py where an experiment names `records` ([autopilot] record). Not aware of: agents.
"""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from math import isfinite, sqrt
from pathlib import Path

import msgspec
import numpy as np
from msgspec import Struct

from dlproxy.autopilot.records import ENDING
from dlproxy.lab.learn.agent.scenarios import MOST_RATE, TRAINING, Draw
from dlproxy.lab.learn.experiment import LearnError
from dlproxy.lab.simulate.machine import PARALLEL, stretch
from dlproxy.lab.simulate.scenario import MOST_BATCH, Phase, Scenario
from dlproxy.policy.tuning.protocol import Knobs, Space
from dlproxy.policy.tuning.rules import load_in
from dlproxy.policy.tuning.window import Window, added, fitted

LEAST_ENDED = 30  # requests of a stretch that tells anything
HEAVY_ROWS = 8  # of the simulator's large requests
DOUBT = 0.2  # relative: loads and costs are drawn from so far around what was recorded
LEAST_CV, MOST_CV = 0.3, 8.0


class Stretch(Struct):
    """A line of a record that has a window."""

    window: Window
    knobs: dict[str, int | float | str | bool]
    space: Space


class _Line(Struct):
    window: Window | None = None
    knobs: dict[str, int | float | str | bool] = {}
    space: Space | None = None


class Fit(Struct, frozen=True):
    """One model: a batch of b rows takes base_s + row_s * b on one thread alone; what it was seen to do."""

    name: str
    base_s: float
    row_s: float
    stretches: Sequence[Stretch]


def read(folder: Path) -> Iterator[tuple[str, list[Stretch]]]:
    """The stretches of each model, in order, older files first. Raises LearnError."""
    paths = sorted(folder.glob(f"*{ENDING}"))
    if not paths:
        raise LearnError(f"{folder} has no records ({ENDING}): set record in [autopilot], and let models serve for a while")
    for path in paths:
        lines: list[_Line] = []
        for part in (path.with_name(f"{path.name}.1"), path):
            if part.exists():
                try:
                    lines += [msgspec.json.decode(line, type=_Line) for line in part.read_bytes().splitlines()]
                except msgspec.MsgspecError as error:
                    raise LearnError(f"{part} cannot be read: {error}") from None
        yield (
            path.name.removesuffix(ENDING),
            [Stretch(line.window, line.knobs, line.space) for line in lines if line.window and line.space],
        )


def fit(name: str, stretches: Sequence[Stretch]) -> Fit | None:
    """None for a model of which too little was seen."""
    told = [one for one in stretches if one.window.ended >= LEAST_ENDED and isfinite(fitted(one.window.costs)[0])]
    by_threads = defaultdict(list)
    for one in told:
        by_threads[int(one.knobs["threads"])].append(one.window.costs)
    if not told:
        return None
    threads, costs = max(by_threads.items(), key=lambda pair: len(pair[1]))
    base_s, row_s = fitted(added(costs))
    return Fit(name, base_s / stretch(threads), row_s / stretch(threads), told)


def recorded(folder: Path) -> Draw:
    """Draws a model, two of its stretches as the two phases, and what is not known of either. Raises LearnError."""
    fits = [found for name, stretches in read(folder) if (found := fit(name, stretches)) is not None]
    if not fits:
        raise LearnError(f"{folder}: too few requests were recorded to learn from")

    def draw(number: int) -> Scenario:
        random = np.random.default_rng((TRAINING, number))
        model = fits[int(random.integers(len(fits)))]
        one, other = (model.stretches[int(random.integers(len(model.stretches)))] for _ in range(2))
        phases = [_phase(model, stretch_, random) for stretch_ in (one, other)]
        slower = max(max(phase.rate for phase in phases) / MOST_RATE, 1.0)  # features have no scale: see scenarios.py
        first, second = (msgspec.structs.replace(phase, rate=phase.rate / slower) for phase in phases)
        return Scenario(
            number,
            model.base_s * slower,
            model.row_s * slower,
            float(random.uniform(0.05, 0.35)),
            one.space.objective_s * slower,
            _start(one.knobs),
            f"to what was seen of {model.name}",
            (first, second),
            parallel=float(random.uniform(PARALLEL - DOUBT, PARALLEL + DOUBT)),
            start_s=float(random.uniform(0.2, 3.0)),
            prefers=one.space.prefers,
        )

    return draw


def _phase(model: Fit, seen: Stretch, random: np.random.Generator) -> Phase:
    load, costs = load_in(seen.window), seen.window.costs
    expected_s = sum([count * (model.base_s + model.row_s * rows) for rows, (count, _) in costs.items()])
    took_s = sum([seconds for _, seconds in costs.values()]) / stretch(int(seen.knobs["threads"]))
    cv = min(max(sqrt(load.dispersion), LEAST_CV), MOST_CV)
    return Phase(
        rate=load.rate * float(random.uniform(1.0 - DOUBT, 1.0 + DOUBT)),
        arrivals="poisson" if load.dispersion <= 1.0 else f"gamma:cv={cv:.2f}",
        heavy=min((load.rows - 1.0) / (HEAVY_ROWS - 1.0), 1.0),
        slow=took_s / expected_s * float(random.uniform(1.0 - DOUBT, 1.0 + DOUBT)),
        cores=seen.space.cores,
    )


def _start(knobs: Knobs) -> tuple[int, int, int, float]:
    rows = min(int(knobs["max_batch"]), MOST_BATCH)
    return int(knobs["instances"]), int(knobs["threads"]), rows, float(knobs["max_wait_s"])

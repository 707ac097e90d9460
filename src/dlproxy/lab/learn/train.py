"""One experiment, seed after seed, into a folder: models, result.json, curves.svg. What is there already is not trained again.

Called by cli/learn.py and benchmarks/learn. Not aware of: what the kinds do.
"""

import shutil
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from math import sqrt
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING

import msgspec
from msgspec import Struct, structs

from dlproxy.lab.learn.experiment import KINDS, Experiment, LearnError, Place, Run
from dlproxy.lab.report.chart import Chart, linear, standalone

if TYPE_CHECKING:
    from dlproxy.lab.learn.parallel.workers import Parallel, Workers

LEFT = ("model.onnx", "synthetic.csv")  # by a seed, for whoever uses it

# Student's t for 95 %, two-sided, by degrees of freedom; from 30 on the normal distribution's is near enough.
_T = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131)


class Result(Struct, kw_only=True):
    """What is in result.json."""

    experiment: Experiment
    runs: list[Run]

    def figures(self) -> dict[str, tuple[float, float]]:
        """Mean over the seeds and half of its 95 % interval; 0 of one seed alone."""
        return {name: interval([run.figures[name] for run in self.runs]) for name in self.runs[0].figures}


def interval(values: Sequence[float]) -> tuple[float, float]:
    """Mean and half of its 95 % interval by Student's t; half is 0 if there is one value."""
    count = len(values)
    mean = sum(values) / count
    if count < 2:
        return mean, 0.0
    deviation = sqrt(sum([(value - mean) ** 2 for value in values]) / (count - 1))
    return mean, (_T[count - 2] if count - 2 < len(_T) else 2.0) * deviation / sqrt(count)


def train(
    experiment: Experiment,
    folder: Path,
    *,
    threads: int,
    tell: Callable[[str], None],
    parallel: "Parallel | None" = None,
) -> Result:
    """The first seed's model is the result's: the best of several by their figures would flatter. Raises LearnError."""
    one = KINDS[experiment.kind].train()
    folder.mkdir(parents=True, exist_ok=True)
    record = folder / "result.json"
    done = {run.seed: run for run in _before(record, experiment)}
    missing = [seed for seed in range(1, experiment.seeds + 1) if seed not in done]
    with _workers(parallel, experiment, missing, threads, tell) as workers:
        for seed in range(1, experiment.seeds + 1):
            if seed not in missing:
                tell(f"seed {seed} of {experiment.seeds}: trained before")
                continue
            place = Place(folder=folder / f"seed-{seed}", seed=seed, threads=threads, tell=tell, workers=workers)
            place.folder.mkdir(exist_ok=True)
            began_at = perf_counter()
            tell(f"seed {seed} of {experiment.seeds}")
            run = one(experiment, place)
            done[seed] = structs.replace(run, seconds=perf_counter() - began_at)
            result = Result(experiment=experiment, runs=[done[number] for number in sorted(done)])
            _write(record, result)
    result = Result(experiment=experiment, runs=[done[seed] for seed in range(1, experiment.seeds + 1)])
    for name in LEFT:
        if (folder / "seed-1" / name).exists():
            shutil.copy2(folder / "seed-1" / name, folder / name)
    picture = curves(result)
    if picture:
        (folder / "curves.svg").write_text(picture, "utf-8")
    return result


def _workers(
    parallel: "Parallel | None", experiment: Experiment, seeds: list[int], threads: int, tell: Callable[[str], None]
) -> "AbstractContextManager[Workers | None]":
    if parallel is None or not seeds:
        return nullcontext()
    from dlproxy.lab.learn.parallel.workers import opened

    return opened(parallel, experiment, seeds, threads, tell)


def _write(record: Path, result: Result) -> None:
    """Whole or not at all: an interruption costs the seed that is under way, and no other."""
    part = record.with_suffix(".part")
    part.write_bytes(msgspec.json.format(msgspec.json.encode(result)))
    part.replace(record)


def _before(record: Path, experiment: Experiment) -> list[Run]:
    """Of this very experiment, but for the number of seeds. Raises LearnError."""
    if not record.exists():
        return []
    try:
        result = msgspec.json.decode(record.read_bytes(), type=Result)
    except msgspec.MsgspecError as error:
        raise LearnError(f"{record} cannot be read ({error}); remove it, or name another folder (--out)") from error
    if structs.replace(result.experiment, seeds=experiment.seeds) != experiment:
        raise LearnError(f"{record} is of another experiment, or of other settings; remove it, or name another folder (--out)")
    return result.runs


def curves(result: Result) -> str:
    """Each curve's mean over the seeds, in one picture; empty if there are none."""
    means = {}
    for name in result.runs[0].curves:
        lines = [run.curves[name] for run in result.runs if run.curves.get(name)]
        if lines:
            shortest = min(map(len, lines))  # seeds may have ended early
            means[name] = [sum(values) / len(values) for values in zip(*[line[:shortest] for line in lines], strict=True)]
    if not means:
        return ""
    steps = max(map(len, means.values()))
    least, most = min(map(min, means.values())), max(map(max, means.values()))
    x = linear(0.0, float(steps), "epoch", lambda value: f"{value:g}")
    y = linear(min(0.0, least), most, "", lambda value: f"{value:.3g}")
    chart = Chart(x, y, names=True, longest=max(map(len, means)))
    for number, (name, line) in enumerate(means.items(), 1):
        chart.line(list(enumerate(line, 1)), name, f"s{number}")
    about = f"{', '.join(means)} by epoch, means of {len(result.runs)} seeds"
    return standalone(chart.svg("curves", result.experiment.name, about))

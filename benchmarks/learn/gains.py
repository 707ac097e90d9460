"""What one way gives beyond another, seed by seed, as tables have it. Called by the parts that compare what is trained alike.

Not aware of: what is trained.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from msgspec import structs

from benchmarks.harness.running import progress
from dlproxy.lab.learn.experiment import Run, find
from dlproxy.lab.learn.train import Result, interval, train


def trained(name: str, folder: Path, seeds: int, *, also: Mapping[str, Any] | None = None, **changed: Any) -> Result:
    """One of ours, with some of its settings `changed`, which name its folder; and with those of `also`. Raises LearnError."""
    experiment = find(name)
    wanted = structs.replace(experiment, seeds=seeds, settings={**experiment.settings, **changed, **(also or {})})
    differ = [f"{key}={value}" for key, value in changed.items() if experiment.settings.get(key) != value]
    place = folder / "-".join([name, *differ])
    place.parent.mkdir(parents=True, exist_ok=True)
    with progress(place.name):
        return train(wanted, place, threads=1, tell=lambda _line: None)


def share(runs: Sequence[Run], figure: str) -> str:
    """In per cent, with half of the 95 % interval."""
    mean, half = interval([100.0 * run.figures[figure] for run in runs])
    return f"{mean:.1f} ± {half:.1f}"


def value(runs: Sequence[Run], figure: str) -> str:
    mean, half = interval([run.figures[figure] for run in runs])
    return f"{mean:.3f} ± {half:.3f}"


def gain(runs: Sequence[Run], figure: str, beyond: str) -> str:
    """In points of a per cent, of the seeds' differences: none, where their 95 % interval reaches 0."""
    mean, half = interval([100.0 * (run.figures[figure] - run.figures[beyond]) for run in runs])
    said = f"{mean:+.1f} ± {half:.1f}"
    return f"**{said}**" if abs(mean) > half else f"none ({said})"


def seconds(*results: Result) -> str:
    return f"{sum(run.seconds for result in results for run in result.runs):.0f} s"

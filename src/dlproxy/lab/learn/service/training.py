"""Quantiles of service times, learnt and fitted, on batches that neither has seen; and queues and balancing by them.

Called by lab/learn/train.py. Not aware of: where times come from, how a network learns.
"""

from pathlib import Path

import numpy as np
from msgspec import Struct

from dlproxy.lab.learn.experiment import Experiment, LearnError, Place, Run, settings
from dlproxy.lab.learn.service.fitted import QUANTILES, fitted, pinball
from dlproxy.lab.learn.service.times import Numbers, Times, made_up, times_of
from dlproxy.lab.learn.service.waiting import Discipline, balanced, queued

KNOWN, CHOSEN = 0.6, 0.75  # shares of the batches: what is learned from ends here, and what is chosen by
FEWEST = 200
SERVERS, BALANCED = 2, 4
DISCIPLINES: tuple[Discipline, ...] = ("sjf", "hrrn")
LOAD = 0.85  # of what the servers can do


class About(Struct, kw_only=True, forbid_unknown_fields=True):
    """Settings. `times`: a CSV file or a recording; empty: made-up times. `jobs`: in a simulated queue."""

    times: str = ""
    epochs: int = 150
    jobs: int = 6000


def train(experiment: Experiment, place: Place) -> Run:
    """Kind "service". Raises LearnError."""
    import torch

    from dlproxy.lab.learn.service import quantiles

    about: About = settings(experiment, About)
    if min(about.epochs, about.jobs) < 1:
        raise LearnError(f"{experiment.name}: epochs and jobs must be 1 or more")
    torch.set_num_threads(place.threads)
    if not about.times:
        place.tell('no times are named (times = "FILE" in [settings]): made-up ones stand in for them')
    times = times_of(Path(about.times)) if about.times else made_up()
    if len(times.seconds) < FEWEST:
        raise LearnError(f"{about.times}: {len(times.seconds)} batches are too few to learn from; give {FEWEST} or more")
    known, chosen, real = times.part(0.0, KNOWN), times.part(KNOWN, CHOSEN), times.part(CHOSEN, 1.0)
    network, losses = quantiles.train(known, chosen, epochs=about.epochs, seed=place.seed)
    quantiles.save(network, known, place.folder / "model.onnx")
    learnt = quantiles.predict(network, real)
    means, own, spread = fitted(times.part(0.0, CHOSEN), real)
    by = best_feature(known, chosen)
    by_means, _, by_spread = fitted(times.part(0.0, CHOSEN), real, by=by)
    figures = {}
    for name, predicted in (("learnt", learnt), ("fitted", own), ("spread", spread), ("feature", by_spread)):
        for level, loss in zip(QUANTILES, pinball(predicted, real.seconds).tolist(), strict=True):
            figures[f"{name} q{level * 100:g}"] = loss
        figures[f"{name} below q99"] = float((real.seconds <= predicted[:, -1]).mean())
    predictions = {"learnt": learnt[:, 0], "fitted": means, "feature": by_means, "exact": real.seconds}
    figures |= waited(predictions, real.seconds, jobs=about.jobs, seed=place.seed)
    place.tell(f"where the fitted cost takes one feature for the length, that is {by}")
    return Run(seed=place.seed, figures=figures, curves={"pinball loss": losses})


def best_feature(known: Times, chosen: Times) -> str:
    """The one that the fitted cost does best with in the place of the length, which others may be multiplied with."""
    others = [name for name in known.names if name not in ("rows", "length")]
    names = ["length", *others, *(f"length*{name}" for name in others if "length" in known.names)]
    return min(names, key=lambda name: float(pinball(fitted(known, chosen, by=name)[2], chosen.seconds).sum()))


def waited(predictions: dict[str, Numbers], seconds: Numbers, *, jobs: int, seed: int) -> dict[str, float]:
    """Latency by what was predicted, over that of first come first served, or of least connections: below 1 is better."""
    random = np.random.default_rng(seed)
    drawn = random.integers(len(seconds), size=jobs)
    took = seconds[drawn].tolist()
    gaps = random.standard_exponential(jobs) * seconds[drawn].mean() / LOAD
    even = [float(seconds.mean())] * jobs
    figures: dict[str, float] = {}
    at = np.cumsum(gaps / SERVERS).tolist()
    in_turn = queued(at, took, even, "fcfs", SERVERS)
    for discipline in DISCIPLINES:
        for name, predicted in predictions.items():
            found = queued(at, took, predicted[drawn].tolist(), discipline, SERVERS)
            figures |= _beside(f"{discipline} {name}", found, in_turn, seconds[drawn])
    at = np.cumsum(gaps / BALANCED).tolist()
    by_count = balanced(at, took, even, BALANCED)
    for name, predicted in predictions.items():
        found = balanced(at, took, predicted[drawn].tolist(), BALANCED)
        figures |= _beside(f"balancing {name}", found, by_count, seconds[drawn])
    return figures


def _beside(name: str, found: Numbers, reference: Numbers, took: Numbers) -> dict[str, float]:
    """Mean and 99th percentile of latency, and mean slowdown (latency over service time), in shares of the reference's."""
    return {
        f"{name} mean": float(found.mean() / reference.mean()),
        f"{name} p99": float(np.quantile(found, 0.99) / np.quantile(reference, 0.99)),
        f"{name} slowdown": float((found / took).mean() / (reference / took).mean()),
    }

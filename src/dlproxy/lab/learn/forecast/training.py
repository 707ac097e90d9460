"""The kind "forecast": one seed of a network that forecasts arrivals, beside its baselines, on held-out blocks.

Called by lab/learn/experiment.py and benchmarks. Not aware of: autoscaling.
"""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from msgspec import Struct, field, structs
from numpy.typing import NDArray

from dlproxy.lab.learn.experiment import Experiment, LearnError, Place, Run, settings
from dlproxy.lab.learn.forecast.backtest import coverage
from dlproxy.lab.learn.forecast.baselines import Baseline, Channel, Part, baselines, losses, part_of
from dlproxy.lab.learn.forecast.days import DAY_S, counts, habits
from dlproxy.lab.learn.forecast.network import Fit, ForecastNet, export, fit, said
from dlproxy.lab.learn.forecast.series import Block, Site, blocked, site_of
from dlproxy.lab.load.arrivals import ArrivalsError, read_trace
from dlproxy.policy.forecast import Form

Floats = NDArray[np.float64]
TRACE = "LEARN_TRACE"  # the environment variable that names recorded arrivals
LSTM, LINEAR = "LSTM", "linear quantiles"
CHANNELS: tuple[Channel, ...] = ("rate", "burst")
HOUR_S = 3600  # between the blocks of days


class Sources(Struct, frozen=True, kw_only=True):
    """Where arrivals come from. `trace`: a file; `sites`, `others`: made-up ones, with as many `days`, to learn and to test on.

    `origins`, `test`, `gap_s`: of the blocks of a trace. `examples`: of each site.
    """

    trace: str = ""
    origins: int = 4
    test: float = 0.125
    gap_s: int = 120
    sites: int = 8
    others: int = 4
    days: int = 6
    examples: int = 2500


class Settings(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`source`: recorded arrivals or made-up days."""

    source: Literal["trace", "days"]
    form: Form = Form(step_s=5.0, length=60, horizons_s=(2.0, 10.0, 60.0), quantiles=(0.5, 0.9, 0.99))
    arrivals: Sources = Sources()
    fit: Fit = field(default_factory=Fit)


class Tested(Struct, kw_only=True):
    """What one method lost on one test set, [N, horizons, levels] in the order of time, and what its quantiles covered."""

    losses: Floats
    coverage: Floats
    validation: float
    about: str = ""


Scores = dict[str, Tested]
"""By "SET/CHANNEL/METHOD"."""


def train(experiment: Experiment, place: Place) -> Run:
    """Raises LearnError. Leaves model.onnx, and scores.npz with what each method lost."""
    given: Settings = settings(experiment, Settings)
    torch.set_num_threads(place.threads)
    scores, curves = (_on_trace if given.source == "trace" else _on_days)(given, place)
    save(place.folder / "scores.npz", scores)
    figures = {}
    for name, tested in scores.items():
        if "/rate/" in name:
            for number, horizon_s in enumerate(given.form.horizons_s):
                figures[f"{name.replace('/rate/', ': ')}, {horizon_s:g} s"] = float(tested.losses[:, number].mean())
    return Run(seed=place.seed, figures=figures, curves=curves)


def save(path: Path, scores: Scores) -> None:
    parts: dict[str, NDArray[np.generic]] = {}
    for name, tested in scores.items():
        parts[f"{name}|losses"], parts[f"{name}|coverage"] = tested.losses.astype(np.float32), tested.coverage
        parts[f"{name}|validation"], parts[f"{name}|about"] = np.array(tested.validation), np.array(tested.about)
    np.savez_compressed(path, allow_pickle=False, **parts)


def load(path: Path) -> Scores:
    with np.load(path) as kept:
        names = dict.fromkeys(name.partition("|")[0] for name in kept.files)
        return {
            name: Tested(
                losses=kept[f"{name}|losses"].astype(np.float64),
                coverage=kept[f"{name}|coverage"],
                validation=float(kept[f"{name}|validation"]),
                about=str(kept[f"{name}|about"]),
            )
            for name in names
        }


def trace_of(given: Settings) -> Site:
    """Raises LearnError."""
    path = given.arrivals.trace or os.environ.get(TRACE, "")
    if not path:
        raise LearnError(
            f"this learns from recorded arrivals: set {TRACE}=FILE, or arrivals.trace in the settings of an experiment of your "
            "own; the file is a CSV with a time in each line, as `dlproxy bench --trace` takes it"
        )
    try:
        site = site_of(read_trace(Path(path)), given.form)
    except ArrivalsError as error:
        raise LearnError(str(error)) from error
    source, form = given.arrivals, given.form
    blocks = next(iter(blocked(len(site.counts), origins=source.origins, test=source.test, gap=source.gap_s)))
    if any(len(site.places(block)) < form.length for block in (blocks.train, blocks.validation, blocks.test)):
        raise LearnError(f"{path}: {len(site.counts)} seconds are too few for {source.origins} origins of {source.test:g} each")
    return site


def _on_trace(given: Settings, place: Place) -> tuple[Scores, dict[str, list[float]]]:
    site, source = trace_of(given), given.arrivals
    scores: dict[str, list[Tested]] = {}
    curves: dict[str, list[float]] = {}
    for number, split in enumerate(blocked(len(site.counts), origins=source.origins, test=source.test, gap=source.gap_s), 1):
        place.tell(f"origin {number} of {source.origins}")
        learnt, validation, test = (
            part_of([(site, site.places(block))]) for block in (split.train, split.validation, split.test)
        )
        nets, curves = _networks(given, learnt, validation, place)
        for name, tested in _tested("trace", nets, _all_baselines(given, learnt, validation), validation, test).items():
            scores.setdefault(name, []).append(tested)
        if number in (1, source.origins):
            export(nets[LSTM], place.folder / ("model.onnx" if number == source.origins else "early.onnx"))
    return {name: _pooled(parts) for name, parts in scores.items()}, curves


def _pooled(parts: Sequence[Tested]) -> Tested:
    weights = [len(part.losses) for part in parts]
    return Tested(
        losses=np.concatenate([part.losses for part in parts]),
        coverage=np.average([part.coverage for part in parts], axis=0, weights=weights),
        validation=float(np.mean([part.validation for part in parts])),
        about="; ".join(dict.fromkeys(part.about for part in parts)),
    )


def _on_days(given: Settings, place: Place) -> tuple[Scores, dict[str, list[float]]]:
    """Days but for the last two to learn from, then a day to choose by, then one to test on; and others' last days."""
    source, form = given.arrivals, given.form
    random = np.random.default_rng((place.seed, 7))
    last = source.days - 1

    def sites(number: int, *, other: bool) -> list[Site]:
        return [Site(counts(habits(random, other=other), source.days, random), form) for _ in range(number)]

    def part(chosen: Sequence[Site], block: Block, number: int) -> Part:
        step = int(form.step_s)
        found = [(site, site.places(block, step)) for site in chosen]
        return part_of([(site, np.sort(random.choice(at, min(number, len(at)), replace=False))) for site, at in found])

    ours, others = sites(source.sites, other=False), sites(source.others, other=True)
    blocks = (
        Block(DAY_S // 2, (last - 1) * DAY_S - HOUR_S),
        Block((last - 1) * DAY_S, last * DAY_S - HOUR_S),
        Block(last * DAY_S, source.days * DAY_S),
    )
    number = source.examples
    learnt, validation = part(ours, blocks[0], number), part(ours, blocks[1], number // 3)
    nets, curves = _networks(given, learnt, validation, place)
    export(nets[LSTM], place.folder / "model.onnx")
    place.tell("baselines")
    against = _all_baselines(given, learnt, validation)
    scores: Scores = {}
    for name, chosen in (("days", ours), ("other days", others)):
        scores |= _tested(name, nets, against, validation, part(chosen, blocks[2], number // 2))
    return scores, curves


def _networks(
    given: Settings, learnt: Part, validation: Part, place: Place
) -> tuple[dict[str, ForecastNet], dict[str, list[float]]]:
    """The LSTM, and the same without it, trained with the same care."""
    nets: dict[str, ForecastNet] = {}
    curves: dict[str, list[float]] = {}
    for name, how in ((LINEAR, structs.replace(given.fit, hidden=0)), (LSTM, given.fit)):
        nets[name], curves = fit(given.form, learnt.examples, validation.examples, how, seed=place.seed, tell=place.tell)
    return nets, curves


def _all_baselines(given: Settings, learnt: Part, validation: Part) -> dict[Channel, dict[str, Baseline]]:
    return {channel: baselines(channel, given.form.quantiles, learnt, validation) for channel in CHANNELS}


def _tested(
    name: str,
    nets: dict[str, ForecastNet],
    against: dict[Channel, dict[str, Baseline]],
    validation: Part,
    test: Part,
) -> Scores:
    levels = test.form.quantiles
    scores: Scores = {}

    def add(channel: Channel, method: str, held: Floats, quantiles: Floats, about: str) -> None:
        scores[f"{name}/{channel}/{method}"] = Tested(
            losses=losses(quantiles, test, channel, levels),
            coverage=coverage(getattr(test.examples, channel), quantiles),
            validation=float(losses(held, validation, channel, levels).mean()),
            about=about,
        )

    for channel in CHANNELS:
        for method, baseline in against[channel].items():
            add(channel, method, baseline.quantiles(validation), baseline.quantiles(test), baseline.guess.name)
    for method, net in nets.items():
        held, found = said(net, validation.examples), said(net, test.examples)
        for number, channel in enumerate(CHANNELS):
            add(channel, method, held[number], found[number], "")
    return scores

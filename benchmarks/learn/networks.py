"""NETWORKS.md: each reference network beside a method that is simpler; optimisers, regularisers and augmentation side by side.

What a comparison tunes, it tunes by examples set aside from those that are learnt from: the held-out fifth chooses nothing.
"""

import argparse
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from time import process_time
from typing import Any

import numpy as np
import torch
from msgspec import structs

from benchmarks.harness.machine import describe_machine, summary
from benchmarks.harness.options import minute, utc_now
from benchmarks.harness.page import table
from benchmarks.harness.processes import choose_cores
from benchmarks.harness.running import progress
from benchmarks.learn.baselines import baseline, figure
from dlproxy.compress.recipes.torch.training import reproducible
from dlproxy.compress.statistics import most_lost
from dlproxy.lab.learn.experiment import Experiment, ours, settings
from dlproxy.lab.learn.networks import data as sets
from dlproxy.lab.learn.networks.augment import Changes
from dlproxy.lab.learn.networks.data import Data, Places
from dlproxy.lab.learn.networks.fit import Curves, answers
from dlproxy.lab.learn.networks.training import Settings, learn, measured
from dlproxy.lab.learn.train import Result, curves, interval, train
from dlproxy.lab.report.chart import Chart, linear, logarithmic, standalone

PICTURES = Path(__file__).parent / "curves"
RATES: Mapping[str, tuple[dict[str, Any], tuple[float, ...]]] = {
    "gradient descent (all examples a step)": ({"optimiser": "sgd", "batch": "all"}, (0.1, 0.3, 1.0, 3.0)),
    "stochastic (one example a step)": ({"optimiser": "sgd", "batch": 1}, (0.003, 0.01, 0.03)),
    "mini-batches of 32": ({"optimiser": "sgd", "batch": 32}, (0.03, 0.1, 0.3, 1.0)),
    "mini-batches, momentum": ({"optimiser": "momentum", "batch": 32}, (0.003, 0.01, 0.03, 0.1)),
    "mini-batches, Adam": ({"optimiser": "adam", "batch": 32}, (0.001, 0.003, 0.01)),
    "the same, mean squared error": ({"optimiser": "adam", "batch": 32, "loss": "mse"}, (0.001, 0.003, 0.01)),
    "the same, cosine schedule": ({"optimiser": "adam", "batch": 32, "schedule": "cosine"}, (0.001, 0.003, 0.01)),
    "the same, step schedule": ({"optimiser": "adam", "batch": 32, "schedule": "step"}, (0.001, 0.003, 0.01)),
}
PASSES = Settings(data="digits", network="mlp", sizes=(64,), epochs=10)
FEW = Settings(data="digits", network="mlp", sizes=(128,), examples=200, batch=32, rate=2e-3, epochs=60)
VALUES = Settings(data="diabetes", network="mlp", sizes=(64,), batch=32, rate=3e-3, epochs=60)
STRENGTHS: Mapping[str, tuple[dict[str, Any], ...]] = {
    "none": ({},),
    "L1": tuple({"l1": strength} for strength in (1e-4, 1e-3, 1e-2)),
    "L2": tuple({"l2": strength} for strength in (1e-3, 1e-2, 1e-1)),
    "dropout": tuple({"dropout": share} for share in (0.2, 0.5, 0.7)),
    "early stopping": ({"patience": 5, "validation": 0.2}, {"patience": 10, "validation": 0.2}),
}
MOVED: Mapping[str, tuple[dict[str, Any], ...]] = {
    "augmentation (shift)": tuple({"augment": Changes(shift=s)} for s in (0.5, 1.0))
}
NOISE: Mapping[str, tuple[dict[str, Any], ...]] = {
    "augmentation (jitter)": tuple({"augment": Changes(jitter=s)} for s in (0.1, 0.3))
}
IMAGES = Settings(data="digits", network="cnn", sizes=(16, 32), examples=500, batch=64, rate=5e-3, epochs=25, schedule="cosine")
EACH = {"shift": 0.5, "rotate": 10.0, "zoom": 0.1, "brightness": 0.1, "contrast": 0.3, "jitter": 0.1}
FLIP = {"flip": 0.5}
SERIES = Settings(data="loads", network="lstm", sizes=(32,), examples=300, rate=5e-3, epochs=20, schedule="cosine")
PACE = {"jitter": 0.3, "stretch": 0.2}

Outcome = tuple[dict[str, float], Curves, Any]  # figures, curves, answers


def measure(options: argparse.Namespace) -> str:
    machine = summary(describe_machine(choose_cores()))
    seeds = range(1, options.seeds + 1)
    began = process_time()
    parts = [_networks(options, seeds), _optimisers(options, seeds), _regularisers(seeds), _images(seeds), _series(seeds)]
    head = f"""# Reference networks

`python -m benchmarks.learn --only networks --seeds {options.seeds}` on {minute(utc_now())}, {machine}; \
{process_time() - began:.0f} s of one core, what was trained before not counted. Written by `--write`.

Each figure is the mean over {options.seeds} seeds with half of its 95 % interval (Student's t), which is of chance in \
training: weights, order, folds. Accuracy and the share of variance that is explained are of examples not learnt from. \
Settings were chosen by cross-validation among four fifths of each data set; the held-out fifth chose nothing."""
    return "\n\n".join([head, *parts]) + "\n"


def _networks(options: argparse.Namespace, seeds: Sequence[int]) -> str:
    rows, drawn, notes = [], [], []
    for experiment in [one for one in ours() if one.kind == "network"]:
        with progress(experiment.name):
            result = _trained(experiment, options.folder, len(seeds))
        found = result.figures()
        picture = curves(result)
        if options.write:
            PICTURES.mkdir(exist_ok=True)
            (PICTURES / f"{experiment.name}.svg").write_text(picture, "utf-8")
        seconds = sum(run.seconds for run in result.runs) / len(result.runs)
        if "told apart" in found:
            if options.write:
                shutil.copy2(options.folder / experiment.name / "seed-1" / "samples.png", PICTURES / f"{experiment.name}.png")
            drawn.append(_drawings(experiment.name, found, seconds))
            continue
        rows.append(_row(experiment, found, seeds, seconds))
        if "accuracy, held-out fifth" in found and experiment.name == "digits-cnn":
            notes.append(_of_all(found, len(sets.load("digits"))))
    head = ["experiment", "measured on", "network", "unseen when settings were chosen", "beside", "that", "s a seed"]
    pictures = [f"![{one.name}](curves/{one.name}.svg)" for one in ours() if one.kind == "network"]
    return "\n\n".join(["## Networks", table(head, rows), *notes, *drawn, "### Curves", *pictures])


def _trained(experiment: Experiment, folder: Path, seeds: int) -> Result:
    wanted = structs.replace(experiment, seeds=seeds)
    (folder / experiment.name).parent.mkdir(parents=True, exist_ok=True)
    return train(wanted, folder / experiment.name, threads=1, tell=lambda _line: None)


def _row(experiment: Experiment, found: dict[str, tuple[float, float]], seeds: Sequence[int], seconds: float) -> list[str]:
    wanted = settings(experiment, Settings)
    data = sets.load(wanted.data)
    name = "accuracy" if "accuracy" in found else "explained"
    what, method = baseline(data, wanted)
    beside = interval([figure(data, wanted, method, seed) for seed in seeds])
    on = f"all {len(data)}, {wanted.folds} folds" if wanted.folds else f"the held-out {len(sets.held_out(data)[1])}"
    never = _share(found[f"{name}, held-out fifth"]) if wanted.folds else _share(found[name])
    return [f"{experiment.name}, {name}", on, _share(found[name]), never, what, _share(beside), f"{seconds:.0f}"]


def _of_all(found: dict[str, tuple[float, float]], examples: int) -> str:
    wrong = round((1.0 - found["accuracy"][0]) * examples)
    return (
        f"Of {examples:,} digits the convolutional network reads {wrong} wrong, in the mean of the seeds: of all digits by "
        f"these writers it reads {1.0 - most_lost(wrong, examples):.2%} or more (Clopper and Pearson, one-sided, 95 %)."
    )


def _drawings(name: str, found: dict[str, tuple[float, float]], seconds: float) -> str:
    rows = [
        [label, *(_share(found[f"{what}{of}"]) for what in ("taught by it", "recognised", "told apart"))]
        for label, of in (("GAN", ""), ("Gaussians, one a class", ", Gaussians"))
    ]
    head = [
        "images by",
        "real ones read by a network that they taught",
        "recognised as what they shall be",
        "told from real ones",
    ]
    taught = _share(found["taught by real images"])
    return "\n\n".join(
        [
            f"### {name}",
            f"A network taught by real images reads {taught} of the held-out ones. Told from real ones: 50 % is chance, and "
            f"the best there is. {seconds:.0f} s a seed, judges included.",
            table(head, rows),
            f"![images by the generator, a row for each digit](curves/{name}.png)",
        ]
    )


def _one(data: Data, wanted: Settings, learnt: Places, held: Places, seed: int) -> Outcome:
    with reproducible(seed=seed, threads=1):
        trained = learn(data, learnt, wanted, seed=seed)
    found = answers(trained.served, torch.from_numpy(data.inputs[held])).numpy()
    return measured(data, held, found), trained.curves, found


def _tuned(data: Data, base: Settings, choices: Sequence[dict[str, Any]], *, times: int) -> dict[str, Any]:
    """The choice that is best on a fifth of what may be learnt from, several times drawn by seeds that nothing else uses."""
    if len(choices) == 1:
        return dict(choices[0])
    learnt, _ = sets.held_out(data)
    scores = []
    for choice in choices:
        wanted = structs.replace(base, **choice)
        found = [_one(data, wanted, *sets.split(data, learnt, 0.2, seed=seed), seed)[0] for seed in range(101, 101 + times)]
        scores.append(sum(one.get("accuracy", one.get("explained", 0.0)) for one in found))
    return dict(choices[int(np.argmax(scores))])


def _compared(base: Settings, ways: Mapping[str, dict[str, Any]], seeds: Sequence[int]) -> dict[str, list[Outcome]]:
    data = sets.load(base.data)
    learnt, held = sets.held_out(data)
    return {
        name: [_one(data, structs.replace(base, **way), learnt, held, seed) for seed in seeds] for name, way in ways.items()
    }


def _optimisers(options: argparse.Namespace, seeds: Sequence[int]) -> str:
    data = sets.load(PASSES.data)
    ways, seconds = {}, {}
    with progress("optimisers"):
        for name, (way, rates) in RATES.items():
            ways[name] = _tuned(data, PASSES, [way | {"rate": rate} for rate in rates], times=1)
        found = {}
        for name, way in ways.items():
            began = process_time()
            found |= _compared(PASSES, {name: way}, seeds)
            seconds[name] = (process_time() - began) / len(seeds) / PASSES.epochs
    rows = []
    for name, outcomes in found.items():
        accuracy = interval([figures["accuracy"] for figures, _, _ in outcomes])
        loss = interval([one["training loss"][-1] for _, one, _ in outcomes])
        cells = [f"{ways[name]['rate']:g}", _share(accuracy), f"{loss[0]:.3f} ± {loss[1]:.3f}", f"{1e3 * seconds[name]:.0f} ms"]
        rows.append([name, *cells])
    if options.write:
        PICTURES.mkdir(exist_ok=True)
        (PICTURES / "optimisers.svg").write_text(_picture(found), "utf-8")
    about = (
        f"A network of {PASSES.sizes[0]} hidden units on digits, {PASSES.epochs} passes over the data, each way with the rate "
        "that was best for it on examples set aside. Squared error's training loss is another quantity than the others'."
    )
    head = ["way", "rate", "accuracy", "training loss at the end", "a pass"]
    return "\n\n".join(["## Optimisers", about, table(head, rows), "![training loss by pass](curves/optimisers.svg)"])


def _picture(found: dict[str, list[Outcome]]) -> str:
    """Training losses of those that descend cross-entropy at a constant rate, by pass."""
    names = {
        "gradient descent (all examples a step)": "all at once",
        "stochastic (one example a step)": "one by one",
        "mini-batches of 32": "32 at a time",
        "mini-batches, momentum": "momentum",
        "mini-batches, Adam": "Adam",
    }
    means = {
        short: np.mean([one["training loss"] for _, one, _ in found[name]], 0) for name, short in names.items() if name in found
    }
    least, most = min(float(line.min()) for line in means.values()), max(float(line.max()) for line in means.values())
    y = logarithmic(max(least, 1e-4), most, "training loss", lambda value: f"{value:g}")
    chart = Chart(
        linear(0.0, float(PASSES.epochs), "passes over the data", lambda value: f"{value:g}"),
        y,
        names=True,
        longest=max(map(len, means)),
    )
    for number, (short, line) in enumerate(means.items(), 1):
        chart.line(list(enumerate(map(float, line), 1)), short, f"s{number}")
    return standalone(chart.svg("optimisers", "Optimisers", "training loss by pass over the data"))


def _regularisers(seeds: Sequence[int]) -> str:
    rows = []
    with progress("regularisers"):
        for base, more, what in ((FEW, MOVED, "accuracy"), (VALUES, NOISE, "explained")):
            data = sets.load(base.data)
            ways = {name: _tuned(data, base, choices, times=4) for name, choices in (STRENGTHS | more).items()}
            ways["L2 and dropout"] = ways["L2"] | ways["dropout"]
            found = _compared(base, ways, seeds)
            for name, outcomes in found.items():
                rows.append([f"{base.data}: {name}", _setting(ways[name]), *_beside(outcomes, found["none"], what)])
    about = (
        f"{FEW.examples} digits (accuracy) and all of diabetes (share of the variance that is explained): so few that a "
        "network learns them by heart. The strength of each is the one that was best on examples set aside, four times drawn. "
        "Each seed is compared with the same seed without."
    )
    return "\n\n".join(["## Regularisers", about, table(["", "strength", "held-out fifth", "more than none"], rows)])


def _images(seeds: Sequence[int]) -> str:
    alone = {name: {name: value} for name, value in (EACH | FLIP).items()}
    without = {f"all but {name}": {key: value for key, value in EACH.items() if key != name} for name in EACH}
    named = {"none": {}} | alone | {"all but flip": EACH, "all, flip too": EACH | FLIP}
    named |= {name.replace("all but ", "all but flip, "): changes for name, changes in without.items()}
    with progress("augmentation of images"):
        found = _compared(IMAGES, {name: {"augment": Changes(**changes)} for name, changes in named.items()}, seeds)
    rows = [[name, *_beside(outcomes, found["none"], "accuracy")] for name, outcomes in found.items()]
    settings_ = ", ".join(f"{name} {value:g}" for name, value in (EACH | FLIP).items())
    about = f"A convolutional network on {IMAGES.examples} digits, {settings_} where they are on."
    head = ["changed", "held-out fifth", "more than none"]
    return "\n\n".join(["## Augmentation of images", about, table(head, rows), _hurt(found["none"], found["flip"])])


def _hurt(plain: list[Outcome], flipped: list[Outcome]) -> str:
    data = sets.load(IMAGES.data)
    labels = data.targets[sets.held_out(data)[1]]
    shares = []
    for outcomes in (plain, flipped):
        right = np.mean([found.argmax(1) == labels for _, _, found in outcomes], 0)
        shares.append(np.array([right[labels == digit].mean() for digit in range(data.classes)]))
    lost = shares[0] - shares[1]
    worst = [digit for digit in np.argsort(-lost)[:3] if lost[digit] > 0.0]
    if not worst:
        return "No digit is read less well where images are mirrored."
    listed = ", ".join([f"{digit} ({shares[0][digit]:.1%} to {shares[1][digit]:.1%})" for digit in worst])
    return f"Mirrored digits are no digits, or others: with flip alone, {listed} are read less well than with none."


def _series(seeds: Sequence[int]) -> str:
    named = {"none": {}} | {name: {name: value} for name, value in PACE.items()} | {"both": PACE}
    with progress("augmentation of series"):
        found = _compared(SERIES, {name: {"augment": Changes(**changes)} for name, changes in named.items()}, seeds)
    rows = [[name, *_beside(outcomes, found["none"], "accuracy")] for name, outcomes in found.items()]
    about = (
        f"An LSTM that says by which of {len(sets.PROCESSES)} processes a minute's requests were drawn (simulated), "
        f"from {SERIES.examples} windows: jitter {PACE['jitter']:g} deviations, stretch of time by up to {PACE['stretch']:.0%}."
    )
    return "\n\n".join(["## Augmentation of telemetry", about, table(["changed", "held-out fifth", "more than none"], rows)])


def _beside(outcomes: list[Outcome], none: list[Outcome], what: str) -> list[str]:
    """The figure, and by how much it is more than without, seed by seed."""
    values = [figures[what] for figures, _, _ in outcomes]
    more = [value - figures[what] for value, (figures, _, _) in zip(values, none, strict=True)]
    mean, half = interval(more)
    return [_share(interval(values)), "" if outcomes is none else f"{100 * mean:+.2f} ± {100 * half:.2f}"]


def _share(figure: tuple[float, float]) -> str:
    return f"{100 * figure[0]:.2f} %" + (f" ± {100 * figure[1]:.2f}" if figure[1] else "")


def _setting(way: dict[str, Any]) -> str:
    return ", ".join(
        f"{name} {value:g}" if isinstance(value, int | float) else _setting(structs.asdict(value))
        for name, value in way.items()
        if value != 0.0
    )

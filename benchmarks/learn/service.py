"""Service times learnt from what requests are, beside the cost that lanes fit, on models timed here. Called by __main__.py.

Not aware of: how the network learns.
"""

import argparse
import csv
import sys
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from time import perf_counter

import numpy as np
import onnx
import onnxruntime as ort
from msgspec import structs
from numpy.typing import NDArray

from benchmarks.harness.page import paragraph, table
from benchmarks.models import MLP_WIDTHS, TOKEN_WIDTH, build_cnn, build_mlp, build_transformer
from dlproxy.lab.learn.experiment import find
from dlproxy.lab.learn.service.times import Times, write
from dlproxy.lab.learn.train import Result, train
from dlproxy.steps.boxes import Nms

COUNT = 1600  # batches of each
WARM = 20
Batch = tuple[tuple[float, ...], Callable[[], object]]
PREDICTORS = {"fitted": "fitted cost", "spread": "its errors counted", "feature": "told one feature", "learnt": "network"}
INTRO = """
Batches of models timed here, one at a time on one thread, in random order; the last quarter is held out. Each of {seeds}
seeds trains a network (layers of 32) by pinball loss from what a batch is to the 0.5, 0.9 and 0.99 quantiles of its time.
Beside it: the *fitted cost* of lanes, with its own quantiles; the same *with its errors counted* (the quantiles of measured
over expected); the same *told one feature* in place of the length, the best of those that the network sees, or its product
with the length. Mean ± half of the 95 % interval over seeds, where seeds matter; `python -m benchmarks.learn --only service`,
with `--trace FILE` for tokens.
"""
MODELS = """
- mlp, cnn: 1 to 64 and 1 to 16 rows. transformer: 1 to 8 rows of 8 to 96 tokens.
- boxes: non-maximum suppression of 200 to 3000 boxes, a step of pipelines; the feature is the share above its threshold.
- tokens: a language model's 0.2 ms for each token that it reads and 25 ms for each that it writes, with the numbers of tokens
  of a recorded trace; only the first is known beforehand.
"""
WAITING = """
These times as jobs, each served alone, that arrive at random at a load of 0.85, in virtual time: two servers with one of the
lanes' own queues, shortest job or highest response ratio first by what is predicted (by the network: the median), beside
first come first served; and four servers of which each job goes to that with the least predicted work, beside the fewest
jobs. Mean and p99 latency and mean slowdown (latency over service time), as shares of what is beside; *exact* knows each time
beforehand.
"""


def measure(options: argparse.Namespace) -> str:
    results: dict[str, Result] = {}
    folder = options.folder / "service-times"
    folder.mkdir(parents=True, exist_ok=True)
    sources = {name: partial(_timed, names, made) for name, (names, made) in SOURCES.items()}
    if options.trace is not None:
        sources["tokens"] = partial(_tokens, options.trace)
    for name, source in sources.items():
        path = folder / f"{name}.csv"
        if not path.exists():  # else it was timed before, and what was trained on it may be there as well
            write(source(), path)
        experiment = find("service-times")
        experiment = structs.replace(experiment, seeds=options.seeds, settings=experiment.settings | {"times": str(path)})
        results[name] = train(experiment, folder / name, threads=1, tell=_tell(name))
    return page(results, options.seeds)


def page(results: dict[str, Result], seeds: int) -> str:
    figures = {name: result.figures() for name, result in results.items()}
    losses = [
        [
            f"{name}, q{level}",
            *[_both(found[f"{predictor} q{level}"], 100.0) for predictor in PREDICTORS],
        ]
        for name, found in figures.items()
        for level in ("50", "90", "99")
    ]
    below = [[name, *[_both(found[f"{one} below q99"], 100.0) for one in PREDICTORS]] for name, found in figures.items()]
    served = ("fitted", "feature", "learnt", "exact")
    waits = [
        [f"{name}, {rule}, {figure}", *[_both(found[f"{rule} {one} {figure}"], 1.0) for one in served]]
        for name, found in figures.items()
        for rule in ("sjf", "hrrn", "balancing")
        for figure in ("mean", "p99", "slowdown")
    ]
    return "\n\n".join(
        [
            "# Service times: a network beside the fitted cost",
            paragraph(INTRO.format(seeds=seeds)),
            MODELS.strip(),
            "## Held-out pinball loss",
            "In % of the mean time; less is better.",
            table(["model, quantile", *PREDICTORS.values()], losses),
            "Batches that took no longer than their 0.99 quantile, in %; 99 is right.",
            table(["model", *PREDICTORS.values()], below),
            "## What it changes",
            paragraph(WAITING),
            table(["model, rule, figure", "fitted cost", "told one feature", "network", "exact"], waits) + "\n",
        ]
    )


def _timed(names: tuple[str, ...], made: Callable[[np.random.Generator, Path], Iterator[Batch]]) -> Times:
    """Each batch runs once: what the machine does to it belongs to its time."""
    features, seconds = [], []
    with tempfile.TemporaryDirectory() as folder:
        for number, (known, work) in enumerate(made(np.random.default_rng(1), Path(folder))):
            began = perf_counter()
            work()
            if number >= WARM:
                features.append(known)
                seconds.append(perf_counter() - began)
    return Times(names, np.array(features), np.array(seconds))


def _session(path: Path) -> ort.InferenceSession:
    settings = ort.SessionOptions()
    settings.intra_op_num_threads = 1
    return ort.InferenceSession(str(path), settings, providers=["CPUExecutionProvider"])


def _rows(
    build: Callable[[Path], Path], row: tuple[int, ...], most: int, random: np.random.Generator, folder: Path
) -> Iterator[Batch]:
    session = _session(build(folder / "model.onnx"))
    data = random.standard_normal((most, *row), np.float32)
    for _ in range(COUNT + WARM):
        rows = _between(random, 1, most)
        yield (rows,), partial(session.run, None, {"input": data[:rows]})


def _transformer(random: np.random.Generator, folder: Path) -> Iterator[Batch]:
    path = build_transformer(folder / "model.onnx")
    model = onnx.load(path)
    model.graph.input[0].type.tensor_type.shape.dim[1].dim_param = "tokens"  # nothing in it depends on their number
    onnx.save(model, path)
    session = _session(path)
    data = random.standard_normal((8, 96, TOKEN_WIDTH), np.float32)
    for _ in range(COUNT + WARM):
        rows, length = _between(random, 1, 8), _between(random, 8, 96)
        yield (rows, length), partial(session.run, None, {"input": np.ascontiguousarray(data[:rows, :length])})


def _boxes(random: np.random.Generator, folder: Path) -> Iterator[Batch]:
    step = Nms(candidates=65536, most=65536)
    for _ in range(COUNT + WARM):
        count = _between(random, 200, 3000)
        corners = random.uniform(0.0, 1000.0, (count, 2)).astype(np.float32)
        boxes = np.hstack([corners, corners + random.uniform(5.0, 80.0, (count, 2)).astype(np.float32)])
        scores = random.beta(1.0, random.uniform(1.0, 20.0), count).astype(np.float32)
        yield (count, float((scores >= 0.25).mean())), partial(step, boxes, scores)


def _tokens(trace: Path) -> Times:
    """What each request of the trace would take."""
    with trace.open(encoding="utf-8", newline="") as file:
        lines = [(float(line["ContextTokens"]), float(line["GeneratedTokens"])) for line in csv.DictReader(file)]
    tokens: NDArray[np.float64] = np.array(lines[: 2 * COUNT])
    return Times(("length",), tokens[:, :1], 2e-4 * tokens[:, 0] + 25e-3 * tokens[:, 1])


def _between(random: np.random.Generator, least: int, most: int) -> int:
    """As likely between 1 and 2 as between 2 and 4."""
    return round(float(np.exp(random.uniform(np.log(least), np.log(most)))))


SOURCES: dict[str, tuple[tuple[str, ...], Callable[[np.random.Generator, Path], Iterator[Batch]]]] = {
    "mlp": (("rows",), partial(_rows, build_mlp, (MLP_WIDTHS[0],), 64)),
    "cnn": (("rows",), partial(_rows, build_cnn, (1, 28, 28), 16)),
    "transformer": (("rows", "length"), _transformer),
    "boxes": (("length", "above"), _boxes),
}


def _both(found: tuple[float, float], scale: float) -> str:
    mean, half = found
    return f"{mean * scale:.3g}" + (f" ± {half * scale:.2g}" if half > 1e-9 else "")


def _tell(name: str) -> Callable[[str], None]:
    return lambda text: print(f"{name}: {text}", file=sys.stderr)

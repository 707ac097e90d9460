"""The first and the second start of heavy models, with kept graphs and without: `python -m benchmarks.compress.starts`.

Loads and whole starts (`dlproxy serve` until it is ready), in turns, each in a process of its own; and that whatever a graph
depends on makes it another. Exits with 1 if a goal is missed.
"""

import argparse
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from math import inf
from pathlib import Path
from time import perf_counter, process_time
from typing import Any

import numpy as np
import onnxruntime as ort

from benchmarks.harness.checks import Check, as_text
from benchmarks.harness.processes import BenchmarkError, Children, free_ports
from benchmarks.harness.running import EXIT_MISSED, progress, run, workplace
from benchmarks.harness.servers import answers_ready
from benchmarks.harness.turns import in_turn, spread
from benchmarks.models import build_large_transformer, build_resnet50
from dlproxy.instance.made_up import NORMAL, Known, row_of
from dlproxy.instance.runtime import graphs as kept
from dlproxy.instance.runtime.formats import open_runtime
from dlproxy.instance.runtime.graphs import GRAPH, Graphs
from dlproxy.instance.runtime.kept_graph import settings_of
from dlproxy.instance.warmup import keep_graph

MODELS: dict[str, Callable[[Path], Path]] = {"transformer": build_large_transformer, "resnet50": build_resnet50}
GOAL = 2.0  # times as quick: issue 23
LIMIT_S = 300.0  # for a start
Figures = dict[str, list[float]]


def measure(children: Children, folder: Path, models: Sequence[str], repeats: int) -> list[Check]:
    """Of each model: a load, the second start, and what invalidates its graph. Raises BenchmarkError."""
    checks = []
    for name in models:
        path = MODELS[name](folder / f"{name}.onnx") if name in MODELS else Path(name)
        with progress(f"{path.stem}: loads"):
            loads = _loads(path, folder / f"{path.stem}-loads", repeats)
        checks += [
            _times(path.stem, "session load, seconds", loads, "plain", "kept"),
            _times(path.stem, "session load, processor time", loads, "plain cpu", "kept cpu"),
        ]
        with progress(f"{path.stem}: starts"):
            starts = _starts(children, path, folder / f"{path.stem}-starts", repeats)
        checks.append(_times(path.stem, "second start beside the first, until ready", starts, "first", "second"))
        shown = _times(path.stem, "second start beside one without its graph, until ready", starts, "without", "second")
        shown.low = 1.0  # imports and ports are in both
        checks.append(shown)
        with progress(f"{path.stem}: invalidation"):
            checks += _invalidation(path, folder / f"{path.stem}-changes")
    return checks


def _times(model: str, what: str, figures: Figures, slow: str, quick: str) -> Check:
    ratio = statistics.median(one / other for one, other in zip(figures[slow], figures[quick], strict=True))
    note = f"{spread(figures[slow])} s to {spread(figures[quick])} s"
    return Check(f"{model}: {what}", GOAL, inf, ratio, "starts", unit=" x", note=note)


def _loads(path: Path, folder: Path, repeats: int) -> Figures:
    """Seconds by the clock, and of processor time, of a load alone. The first, which writes the graph, is not among them."""
    figures: Figures = {"plain": [], "kept": [], "plain cpu": [], "kept cpu": []}
    _load_apart(path, str(folder))
    if not list(folder.glob(f"*/{GRAPH}")):
        raise BenchmarkError(f"{path}: no graph was kept: {' '.join(one.read_text() for one in folder.glob('*.refused'))}")
    for number in range(repeats):
        for side in in_turn(("plain", "kept"), number):
            seconds, cpu_s = _load_apart(path, str(folder) if side == "kept" else "")
            figures[side].append(seconds)
            figures[f"{side} cpu"].append(cpu_s)
    return figures


def _load_apart(path: Path, graphs: str) -> tuple[float, float]:
    command = [sys.executable, "-m", "benchmarks.compress.starts", "--load", str(path), "--graphs", graphs]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise BenchmarkError(f"{path} cannot be loaded: {done.stderr.strip()[-400:]}")
    seconds, cpu_s = map(float, done.stdout.split())
    return seconds, cpu_s


def _load_here(path: str, graphs: str) -> None:
    """In the child: load, prove, and print what the load took."""
    began, began_cpu = perf_counter(), process_time()
    runtime = open_runtime(path, graphs=graphs)
    print(perf_counter() - began, process_time() - began_cpu)
    keep_graph(runtime, [row_of(runtime.signature.inputs, NORMAL, Known(32))])


def _starts(children: Children, path: Path, folder: Path, repeats: int) -> Figures:
    """Seconds until ready: of a first start, of a second, and of a second with findings but without graphs."""
    figures: Figures = {"first": [], "second": [], "without": []}
    for number in range(repeats):
        for graphs in in_turn((True, False), number):
            cache = folder / f"{number}-{graphs}"
            cache.mkdir(parents=True)
            first, second = (_start(children, path, cache, graphs=graphs) for _ in range(2))
            if graphs:
                figures["first"].append(first)
            figures["second" if graphs else "without"].append(second)
    return figures


def _start(children: Children, path: Path, cache: Path, *, graphs: bool) -> float:
    port, control = free_ports(2)
    setting = "auto" if graphs else ""
    command = ["env", f"XDG_CACHE_HOME={cache}", f"DLPROXY_GRAPH_FOLDER={setting}", sys.executable, "-m", "dlproxy"]
    command += ["serve", f"m={path}", "--grpc", "off", "--http-port", str(port), "--control-port", str(control)]
    child = children.start("dlproxy", command)
    try:
        return child.wait_until(lambda: answers_ready(port), LIMIT_S)
    finally:
        children.stop(child)


def _invalidation(path: Path, folder: Path) -> list[Check]:
    """Whatever the graph depends on, changed: how many of the changes give it another name."""
    graphs, options = Graphs(folder), ort.SessionOptions()

    def name() -> str:
        key = graphs.key(path, settings_of(options))
        if key is None:
            raise BenchmarkError(f"{path} cannot be read")
        return key.name

    before, names = name(), {}
    for changed in ("version", "machine", "format"):
        with _changed(changed):
            names[changed] = name()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_BASIC
    names["options"] = name()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_ALL
    with _flipped(path):
        names["file"] = name()
    different = sum(one != before for one in names.values())
    note = ", ".join(names)
    return [
        Check(
            f"{path.stem}: changes after which its graph is not taken",
            len(names),
            inf,
            different,
            "starts",
            digits=0,
            note=note,
        ),
        Check(f"{path.stem}: it is taken again when all is as before", 1, 1, float(name() == before), "starts", digits=0),
    ]


@contextmanager
def _changed(what: str) -> Iterator[None]:
    place, attribute, value = {
        "version": (ort, "__version__", "another"),
        "machine": (kept, "fingerprint", lambda: "another"),
        "format": (kept, "FORMAT", -1),
    }[what]
    before: Any = getattr(place, attribute)
    setattr(place, attribute, value)
    try:
        yield
    finally:
        setattr(place, attribute, before)


@contextmanager
def _flipped(path: Path) -> Iterator[None]:
    """One bit of one weight; as with any change of a file, not within a tick of its clock."""
    data = np.memmap(path, np.uint8, "r+")
    at = len(data) // 2
    data[at] ^= 1
    data.flush()
    try:
        yield
    finally:
        data[at] ^= 1
        data.flush()


def parse_options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.compress.starts", description=__doc__)
    parser.add_argument("models", nargs="*", default=list(MODELS), help=f"{', '.join(MODELS)}, or an .onnx file")
    parser.add_argument("--repeats", type=int, default=3, help="rounds in which the sides take turns (default 3)")
    parser.add_argument("--load", default="", help=argparse.SUPPRESS)
    parser.add_argument("--graphs", default="", help=argparse.SUPPRESS)
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    options = parse_options(arguments)
    if options.load:
        _load_here(options.load, options.graphs)
        return 0
    checks: list[Check] = []

    def all_of_them() -> None:
        with workplace("starts") as (children, folder):
            checks.extend(measure(children, folder, options.models, options.repeats))

    status = run(all_of_them)
    print(as_text(checks))
    return status or (EXIT_MISSED if any(check.missed for check in checks) else 0)


if __name__ == "__main__":
    sys.exit(main())

"""Every recipe on a model by `dlproxy compress`; then the original and what was accepted, asked everything through the server.

Called by __main__.py. Not aware of: pages, other parts.
"""

import contextlib
import json
import shutil
import statistics
import subprocess
import sys
from collections.abc import Sequence
from http.client import HTTPConnection
from math import inf, sqrt
from pathlib import Path
from time import perf_counter

import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

from benchmarks.compress.models import Made
from benchmarks.harness.checks import Findings
from benchmarks.harness.live import Live
from benchmarks.harness.page import clean_reason, table
from benchmarks.harness.processes import BenchmarkError, Child, Children, Cores
from benchmarks.harness.sample import connect, sample_of
from benchmarks.harness.turns import in_turn
from benchmarks.instances.watch import port_of
from dlproxy.compress import CompressError
from dlproxy.compress.manifest import Candidate, Report, read_report
from dlproxy.compress.measure import file_bytes

LABELS = "labels"
LARGE = 32  # rows of the larger batch
BATCHES = 24  # of about so many
WARM_UPS = 5
LOOK_S = 1.0
READY_S = 180.0
SPARE_S = 600.0  # beyond the budget, for the last candidate and for making again what was accepted
DIFFERENCE = 0.001  # between an accuracy that is reported and one that is served: another batch, another order of sums
ORIGINAL = "original"
TRANSFORMER, TRANSFORMER_RATIO = "minilm", 2.0
TITLE = "Recipes"
KINDS = {
    "pruning": ("prune",),
    "dynamic quantisation": ("dynamic",),
    "static quantisation": ("static",),
    "training that knows of the quantisation": ("qat",),
    "distillation": ("distil",),
}

Array = NDArray[np.generic]


class Tried(Struct):
    """A candidate as the report has it. `ratios`: how many times as quick, batch 1 and the larger. `slower`: one is surely less
    than once. `loss`: and below what it surely is.
    """

    recipe: str
    status: str
    reason: str
    ratios: list[float] = []
    slower: bool = False
    loss: float = 0.0
    most_loss: float = 0.0


class Served(Struct):
    """Through the server. `reported`: its accuracy by the report, if that says. `alone_s`, `batch_s`: medians of a request with
    one row and with LARGE. `ratios`: of the original's times in the same turn, by its own. `alike`: share of rows that get the
    same answer in a batch as alone.
    """

    name: str
    file_bytes: int
    reported: float | None
    accuracy: float
    examples: int
    alone_s: float
    batch_s: float
    ratios: list[float]
    alike: float

    @property
    def margin(self) -> float:
        """Half the width of the 95 % interval of the accuracy, by the normal approximation of Agresti and Coull (1998)."""
        examples = self.examples + 4
        share = (self.accuracy * self.examples + 2) / examples
        return 1.96 * sqrt(share * (1.0 - share) / examples)


class Compressed(Struct):
    """One model's. `command`: what made it."""

    model: str
    command: str
    seconds: float
    most_loss: float
    tried: list[Tried]
    served: list[Served]


def measure(made: Made, out: Path, children: Children, folder: Path, options: Sequence[str], budget_s: float) -> Compressed:
    """`out`: where what is accepted stays, for other parts. `options`: more of dlproxy compress. Raises BenchmarkError."""
    began_at = perf_counter()
    said = compress(made, out, children, options, budget_s)
    try:
        report = read_report(out / "report.json")
    except CompressError as error:
        raise BenchmarkError(str(error)) from error
    served = _serve(made, report, out, Live(children, Cores(None, None), folder, READY_S))
    tried = [_tried(one) for one in report.candidates]
    return Compressed(made.model.name, said, perf_counter() - began_at, report.run.bar.most_loss, tried, served)


def original(made: Made, out: Path) -> Path:
    """As the search saw it: what it made of a network, or the file itself."""
    converted = out / "original" / "model.onnx"
    return converted if converted.exists() else made.onnx


def compress(made: Made, out: Path, children: Children, options: Sequence[str], budget_s: float) -> str:
    """Run `dlproxy compress` with everything, to its end; the command, as a page shows it. Raises BenchmarkError."""
    shutil.rmtree(out, ignore_errors=True)
    which = options or ["--all"]
    more = ["--budget", f"{budget_s:.0f}s", "--batch", str(LARGE), *which]
    examples = ["--data", str(made.training), "--held-out", str(made.held_out), "--out", str(out)]
    child = children.start(
        "compress", [sys.executable, "-m", "dlproxy", "compress", f"{made.model.name}={made.reference}", *examples, *more]
    )
    _follow(child, made.model.name, perf_counter() + budget_s + SPARE_S)
    if child.process.returncode != 0:
        raise BenchmarkError(f"dlproxy compress {made.model.name} ended with {child.process.returncode}: {child.log_tail()}")
    children.stop(child)
    return " ".join(["dlproxy compress", made.model.name, "--data train.npz --held-out heldout.npz", *more])


def _follow(child: Child, name: str, until: float) -> None:
    """Print its lines as they come, until it has ended."""
    said, over = 0, False
    while not over:
        with contextlib.suppress(subprocess.TimeoutExpired):
            child.process.wait(LOOK_S)
        over = child.process.poll() is not None
        lines = child.log_path.read_text("utf-8", errors="replace").splitlines()
        for line in lines[said : None if over else -1]:
            print(f"  {name}: {line}", flush=True)
            said += 1
        if not over and perf_counter() > until:
            raise BenchmarkError(f"dlproxy compress {name} did not end in time: {child.log_tail()}")


def _tried(one: Candidate) -> Tried:
    tried = Tried(one.recipe, one.status, "; ".join(one.reasons))
    if one.measured is not None:
        tried.ratios = [speed.ratio for speed in one.measured.speeds]
        tried.slower = any(speed.high < 1.0 for speed in one.measured.speeds)
        tried.loss, tried.most_loss = one.measured.accuracy.loss, one.measured.accuracy.high
    return tried


def _serve(made: Made, report: Report, out: Path, live: Live) -> list[Served]:
    """All by one server, on one thread each as the report measured them, asked in turn by one client."""
    paths = {ORIGINAL: original(made, out)}
    accuracies = {}
    for one in report.candidates:
        if one.artifact and one.measured:
            name = one.artifact.partition("/")[0]
            paths[name], accuracies[name] = out / one.artifact, one.measured.accuracy.candidate
            accuracies[ORIGINAL] = one.measured.accuracy.original
    tables = [f'[models."{name}"]\npath = "{path}"\nthreads = 1\nmax_batch = {LARGE}\n' for name, path in paths.items()]
    with np.load(made.held_out) as arrays:
        inputs = {name: arrays[name] for name in arrays.files if name != LABELS}
        labels = arrays[LABELS]
    rows = np.arange(len(labels))
    asked = {name: _Asked(name, inputs) for name in paths}
    with live.serve("\n".join(tables)) as server, contextlib.closing(connect(port_of(server.url))) as connection:
        for one in asked.values():
            one.warm_up(connection, report.run.metric.output)
        batches = np.array_split(rows, -(-len(rows) // LARGE))
        for number, batch in enumerate(batches):
            for one in in_turn(list(asked.values()), number):
                one.ask(connection, batch, together=number < BATCHES)
    return [one.served(paths[name], labels, accuracies.get(name), asked[ORIGINAL]) for name, one in asked.items()]


class _Asked:
    """One model: what it has answered, and how long each request took, in a batch and alone."""

    def __init__(self, name: str, inputs: dict[str, Array]) -> None:
        self._name, self._inputs = name, inputs
        rows = len(next(iter(inputs.values())))
        self._together, self._alone = np.full(rows, -1), np.full(rows, -1)
        self.batch_s: list[float] = []
        self.alone_s: list[float] = []

    def warm_up(self, connection: HTTPConnection, output: str) -> None:
        """`output`: what the report judged by; of a network that was converted elsewhere, its only one."""
        connection.request("GET", f"/v2/models/{self._name}")
        names = [one["name"] for one in json.load(connection.getresponse())["outputs"]]
        self._output = output if output in names else names[0]
        for _ in range(WARM_UPS):
            self._classes(connection, np.arange(LARGE))
            self._classes(connection, np.arange(1))

    def ask(self, connection: HTTPConnection, batch: Array, *, together: bool) -> None:
        """These rows one by one, as the report judges what is quantised as it comes; perhaps together before, too."""
        if together:
            self._together[batch], took_s = self._classes(connection, batch)
            self.batch_s.append(took_s)
        for row in batch:
            (self._alone[row],), took_s = self._classes(connection, np.array([row]))
            self.alone_s.append(took_s)

    def served(self, path: Path, labels: Array, reported: float | None, against: "_Asked") -> Served:
        seen = self._together >= 0
        pairs = [(against.alone_s, self.alone_s), (against.batch_s, self.batch_s)]
        return Served(
            name=self._name,
            file_bytes=file_bytes(path),
            reported=reported,
            accuracy=float((self._alone == labels).mean()),
            examples=len(labels),
            alone_s=statistics.median(self.alone_s),
            batch_s=statistics.median(self.batch_s),
            ratios=[statistics.median(np.divide(theirs, mine).tolist()) for theirs, mine in pairs],
            alike=float((self._alone[seen] == self._together[seen]).mean()),
        )

    def _classes(self, connection: HTTPConnection, rows: Array) -> tuple[Array, float]:
        """Of these rows, and the seconds that the answer took."""
        sample = sample_of(self._name, {name: array[rows] for name, array in self._inputs.items()}, {self._output: rows})
        began_at = perf_counter()
        sample.ask(connection)
        outputs, _ = sample.answer(connection)
        took_s = perf_counter() - began_at
        return outputs[self._output].argmax(axis=1), took_s


def judged(found: Sequence[Compressed]) -> Findings:
    """Of all models that were measured."""
    findings = Findings(TITLE)
    for one in found:
        if one.model == TRANSFORMER:
            _judge_transformer(findings, one)
    refused = [(one.model, tried, one.most_loss) for one in found for tried in one.tried if tried.status == "refused"]
    slower = [f"{model} {tried.recipe} {min(tried.ratios):.2f} x" for model, tried, _ in refused if tried.slower]
    losing = [f"{model} {tried.recipe} {tried.loss:.1%}" for model, tried, most in refused if tried.loss > most]
    for what, names in (("recipes refused that are slower here", slower), ("recipes refused that lose too much", losing)):
        findings.at_least(what, 1, len(names), digits=0, note=_some(names))
    gaps = {
        f"{one.model} {served.name}": abs(served.accuracy - served.reported)
        for one in found
        for served in one.served
        if served.reported is not None
    }
    worst = max(gaps, key=lambda name: gaps[name], default="")
    findings.at_most(
        f"accuracy served less accuracy reported, of {len(gaps)} models", DIFFERENCE, gaps.get(worst, inf), digits=4, note=worst
    )
    for kind, words in KINDS.items():
        made = [
            (tried.status, f"{one.model} {tried.recipe} {tried.status}")
            for one in found
            for tried in one.tried
            if tried.ratios and any(word in tried.recipe for word in words)
        ]
        names = [name for _, name in sorted(made)]  # what was accepted comes first
        findings.at_least(f"{kind}: made, judged and measured", 1, len(names), digits=0, note=_some(names))
    return findings


def _judge_transformer(findings: Findings, one: Compressed) -> None:
    kept = [served for served in one.served if served.name != ORIGINAL]
    best = max(kept, key=lambda served: min(served.ratios), default=None)
    for number, rows in enumerate((1, LARGE)):
        ratio = best.ratios[number] if best else 1.0
        what = f"{one.model} at a loss of at most {one.most_loss:.0%}: times as quick, served, {rows} a request"
        findings.at_least(what, TRANSFORMER_RATIO, ratio, note=best.name if best else "nothing was accepted")


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def page(one: Compressed) -> list[str]:
    """Tables of one model."""
    head = ("", "MB", "accuracy, 95 %", "by the report", "L(1), ms", f"L({LARGE}), ms", "times as quick", "in a batch as alone")
    rows = [
        (
            served.name,
            f"{served.file_bytes / 1e6:.2f}",
            f"{served.accuracy:.2%} ± {served.margin:.2%}",
            "-" if served.reported is None else f"{served.reported:.2%}",
            f"{served.alone_s * 1e3:.2f}",
            f"{served.batch_s * 1e3:.1f}",
            " / ".join(f"{ratio:.2f}" for ratio in served.ratios),
            f"{served.alike:.1%}",
        )
        for served in one.served
    ]
    tried = [
        (
            tried.recipe,
            tried.status,
            " / ".join(f"{ratio:.2f}" for ratio in tried.ratios) or "-",
            f"{tried.loss:.2%} (< {tried.most_loss:.2%})" if tried.ratios else "-",
            clean_reason(tried.reason),
        )
        for tried in one.tried
    ]
    below = table(("recipe", "", "times as quick", "loss (95 %)", "because"), tried)
    return [f"`{one.command}`, {one.seconds:.0f} s in all.", "", table(head, rows), "", below]

"""One model: what it takes by itself, dlproxy without configuration beside hand-set ones and beside loops, how long it holds.

A short screening finds the best candidates; then all of them and the default take turns, and a ratio is the median over
these rounds. Everything shares all cores with the clients: that is where threads and instances are to be chosen.
"""

import json
import os
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from time import monotonic

from benchmarks.harness.live import Live
from benchmarks.harness.processes import BenchmarkError, Child, Children, Cores, on_all_cores
from benchmarks.harness.report import Goal, Report, Run
from benchmarks.harness.servers import Launcher
from benchmarks.harness.turns import in_turn
from benchmarks.harness.wrk import Figures
from benchmarks.ort_loop import Feed, measure, open_session, read_feeds
from benchmarks.real.catalog import RealModel
from benchmarks.real.ceiling import Ceiling
from benchmarks.real.fetch import Made, obtain
from benchmarks.real.questions import check_answers, samples_for, write_requests
from benchmarks.real.settings import Loop, finalists, loops, settings

CLIENTS = 16
NOT_PINNED = Cores(None, None)
GOAL = Goal(0.95, at_least=True)
HELD_GOAL = Goal(1.0, at_least=False)
LOOPS_FROM_S = 2e-3  # a quicker model spends more on being asked than on computing
WARM_UP_S = 0.3
SCREENING = 0.6  # of the seconds of a measurement
LONGEST = 6.0  # times the seconds asked for, where a model is so slow that they would see too few rounds of answers
ROUNDS = 3  # of answers to all clients
SPARE_S = 60.0
PROBE_S = 0.4
DEFAULT = "default"
LOOP = "ORT loop"
HELD = "inline batch on the loop, p99.9 of CPU"


@dataclass(frozen=True)
class Facts:
    """A model as the page shows it. `single_ms`: mean milliseconds of a request, by threads; `ran`: what dlproxy chose."""

    kind: str
    title: str
    signature: list[str]
    requests: int
    single_ms: dict[int, float]
    ran: str = ""


@dataclass
class Findings:
    """What was found besides rates."""

    facts: dict[str, Facts] = field(default_factory=dict)
    best: dict[str, dict[str, str]] = field(default_factory=dict)
    held: dict[str, dict[str, float]] = field(default_factory=dict)
    ceiling: Ceiling | None = None


@dataclass(frozen=True)
class Comparison:
    report: Report
    findings: Findings
    children: Children
    folder: Path
    seconds: float
    pairs: int
    cores: int = field(default_factory=lambda: os.cpu_count() or 1)

    def compare(self, model: RealModel) -> None:
        """Raises BenchmarkError."""
        made = obtain(model, self.children)
        facts = self.findings.facts[model.name] = describe(model, made, sorted({1, self.cores}))
        print(f"{model.name}  {'; '.join(facts.signature)}", flush=True)
        print(f"{model.name}  one request: {_milliseconds(facts.single_ms)}", flush=True)
        _Measuring(self, model.name, made, facts).run()


class _Measuring:
    def __init__(self, comparison: Comparison, name: str, made: Made, facts: Facts) -> None:
        self.of, self.name, self.made, self.facts = comparison, name, made, facts
        self.samples = samples_for(made)
        self.requests = write_requests(self.samples, comparison.folder / f"{name}.requests")
        self.single_s = min(facts.single_ms.values()) / 1e3
        round_s = self.single_s * CLIENTS
        self.seconds = min(max(comparison.seconds, ROUNDS * round_s), LONGEST * comparison.seconds)
        self.loops = loops(comparison.cores) if self.single_s >= LOOPS_FROM_S else []
        self.live = Live(comparison.children, NOT_PINNED, comparison.folder)

    def run(self) -> None:
        with ExitStack() as running:
            sides: dict[str, Callable[[float], Run]] = {}
            launcher = Launcher(self.of.children, NOT_PINNED, self.of.folder, Path())
            server = running.enter_context(launcher.dlproxy({self.name: self.made.model}))
            self._check(server.port)
            sides[DEFAULT] = self._side(DEFAULT, server.child, server.port)
            best = self._screen()
            for setting in settings(self.of.cores):
                if setting.label in best["settings"]:
                    served = running.enter_context(self.live.serve(setting.toml(self.name, self.made.model)))
                    port = int(served.url.rpartition(":")[2])
                    self._check(port)
                    sides[setting.label] = self._side(setting.label, served.child, port)
            for loop in self.loops:
                if loop.label in best["loops"]:
                    sides[loop.label] = self._loop_side(loop)
            for label in (DEFAULT, *best["settings"]):
                sides[label](self.seconds)  # not measured: dlproxy tries itself anew on what clients send
            self._rounds(sides, best)
            self.of.findings.facts[self.name] = replace(self.facts, ran=chosen(server.child.log_path.read_text()))
        self._hold()

    def _screen(self) -> dict[str, Sequence[str]]:
        """The labels of the finalists."""
        seconds = self.seconds * SCREENING
        rates: dict[str, float] = {}
        failed: list[str] = []
        for setting in settings(self.of.cores):
            with self.live.serve(setting.toml(self.name, self.made.model)) as served:
                port = int(served.url.rpartition(":")[2])
                try:
                    rates[setting.label] = self._load(port, seconds).requests_per_s
                except BenchmarkError as error:
                    failed.append(f"{self.name}, {setting.label}: {error}")
        if not rates:
            raise BenchmarkError(f"no hand-set dlproxy answered: {failed[0]}")
        self.of.report.notes += failed
        loop_rates = {loop.label: self._loop(loop, seconds).requests_per_s for loop in self.loops}
        for label, rate in (rates | loop_rates).items():
            print(f"{self.name}  screening {label}: {rate:,.1f}/s", flush=True)
        return {"settings": finalists(rates, 2), "loops": finalists(loop_rates, 1)}

    def _rounds(self, sides: Mapping[str, Callable[[float], Run]], best: Mapping[str, Sequence[str]]) -> None:
        labels = list(sides)
        for number in range(self.of.pairs):
            runs = {label: sides[label](self.seconds) for label in in_turn(labels, number)}
            self.of.report.runs += runs.values()
            rates = {label: run.figures.requests_per_s for label, run in runs.items()}
            for label in labels[1:]:
                kind = "settings" if label in best["settings"] else "loops"
                self.of.report.add_ratio(self.name, ratio_of(kind, label), rates[DEFAULT] / rates[label], GOAL)
        self.of.findings.best[self.name] = {kind: labels[0] for kind, labels in best.items() if labels}

    def _hold(self) -> None:
        """How long inline batches hold the loop, where the default runs inline."""
        path = self.of.folder / f"{self.name}.held.json"
        program = ("-m", "benchmarks.real.held", str(path))
        launcher = Launcher(self.of.children, NOT_PINNED, self.of.folder, Path(), program)
        with launcher.dlproxy({self.name: self.made.model}) as server:
            for _ in range(2):  # the second half counts
                self._load(server.port, self.seconds)
            server.child.process.terminate()
            server.child.process.wait(SPARE_S)
        held = self.of.findings.held[self.name] = json.loads(path.read_text())
        if held["batches"]:
            self.of.report.add_ratio(self.name, HELD, held["p999_ms"], HELD_GOAL, "ms")

    def _check(self, port: int) -> None:
        check_answers(self.samples, port, CLIENTS)

    def _side(self, label: str, child: Child, port: int) -> Callable[[float], Run]:
        def measured(seconds: float) -> Run:
            child.wait_until_idle()
            return self._told(Run(self.name, "dlproxy", label, self._load(port, seconds), self._command(port, seconds)))

        return measured

    def _loop_side(self, loop: Loop) -> Callable[[float], Run]:
        return lambda seconds: self._told(
            Run(self.name, LOOP, loop.label, self._loop(loop, seconds), self._loop_command(loop, seconds))
        )

    def _told(self, run: Run) -> Run:
        figures = run.figures
        print(f"{run.scenario}  {run.what}: {figures.requests_per_s:,.1f}/s, p99 {figures.p99_ms:.3f} ms", flush=True)
        return run

    def _command(self, port: int, seconds: float) -> list[str]:
        command = [sys.executable, "-m", "benchmarks.real.client", str(port), str(self.requests), "--connections", str(CLIENTS)]
        return [*command, "--seconds", str(seconds), "--warm-up", str(max(WARM_UP_S, self.single_s * CLIENTS))]

    def _loop_command(self, loop: Loop, seconds: float) -> list[str]:
        program = [sys.executable, "-m", "benchmarks.ort_loop", str(self.made.model), "--inputs", str(self.made.requests)]
        return [*program, "--seconds", str(seconds), *loop.options]

    def _load(self, port: int, seconds: float) -> Figures:
        return run_program(self.of.children, "client", self._command(port, seconds), seconds + SPARE_S)

    def _loop(self, loop: Loop, seconds: float) -> Figures:
        return run_program(self.of.children, "ort_loop", self._loop_command(loop, seconds), seconds + SPARE_S)


def run_program(children: Children, name: str, command: list[str], limit_s: float) -> Figures:
    """A program that prints figures as its last line. Raises BenchmarkError."""
    with on_all_cores():
        child = children.start(name, command)
    try:
        status = child.process.wait(limit_s)
    finally:
        children.stop(child)
    if status != 0:
        raise BenchmarkError(f"{name} failed: {child.log_tail()}")
    return Figures(**json.loads(child.log_tail().splitlines()[-1]))


def describe(model: RealModel, made: Made, threads: Sequence[int]) -> Facts:
    """As ONNX Runtime sees it: what it takes and gives, and how long a request takes alone."""
    feeds = read_feeds(made.requests)
    session = open_session(made.model)
    signature = [f"in {_node(node)}" for node in session.get_inputs()] + [
        f"out {_node(node)}" for node in session.get_outputs()
    ]
    single_ms = {count: _single_ms(made.model, feeds, count) for count in threads}
    return Facts(model.kind, model.title, signature, len(feeds), single_ms)


def _single_ms(model: Path, feeds: Sequence[Feed], threads: int) -> float:
    return 1e3 / measure([open_session(model, threads)], feeds, 1, PROBE_S)["requests_per_s"]


def _node(node: object) -> str:
    kind = node.type.removeprefix("tensor(").removesuffix(")")  # type: ignore[attr-defined]
    sizes = ["any" if size is None else str(size) for size in node.shape]  # type: ignore[attr-defined]
    shown = [size if len(size) <= 24 else f"{size[:21]}..." for size in sizes]
    return f"{node.name} {kind}[{', '.join(shown)}]"  # type: ignore[attr-defined]


def chosen(log: str) -> str:
    """What the start-up report says of where the model runs, or what it said when that changed."""
    found = re.findall(r"runs +((?:inline on the event loop|on \d+ threads?)[^\n]*)", log)
    return str(found[-1]).strip() if found else ""


def _milliseconds(single_ms: Mapping[int, float]) -> str:
    return ", ".join(f"{ms:.3g} ms at {count} thread{'s' * (count > 1)}" for count, ms in single_ms.items())


def ratio_of(kind: str, label: str) -> str:
    """What a ratio is called in the report; `kind` as in `Findings.best`."""
    return f"{DEFAULT} / {'hand-set' if kind == 'settings' else 'loop'}: {label}"


def spent(started_at: float, limit_s: float) -> bool:
    return monotonic() - started_at > limit_s

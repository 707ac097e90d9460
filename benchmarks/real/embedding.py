"""MiniLM, 32 clients, sentences of 3 to 200 tokens: dlproxy without configuration beside other servers and a plain loop.

Every server, and the clients, may use all cores. A screening finds the best way of each; then it and dlproxy take turns, the
other one stopped meanwhile, and a ratio is the median over the pairs.
"""

import json
import os
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from benchmarks.harness.processes import BenchmarkError, Children
from benchmarks.harness.report import Goal, Report, Run
from benchmarks.harness.turns import in_turn
from benchmarks.harness.wrk import Figures
from benchmarks.ort_loop import open_session, read_feeds
from benchmarks.peers import venvs
from benchmarks.peers.comparison import alone
from benchmarks.peers.registry import System
from benchmarks.peers.running import Question, Running, check_answer, run_system
from benchmarks.real.catalog import CATALOG
from benchmarks.real.ceiling import find_ceiling
from benchmarks.real.comparison import LOOP, SPARE_S, Findings, run_program
from benchmarks.real.fetch import Made, obtain
from benchmarks.real.questions import HOST
from benchmarks.real.rivals import Rival, dlproxy, rivals
from benchmarks.real.settings import loops
from benchmarks.real.tokens import INPUTS
from dlproxy.lab.load.payload import whole_request

CLIENTS = 32
LEAST_SECONDS = 3.0  # so that every length is asked several times
WARM_UP_S = 1.0
LOOP_GOAL = Goal(1.05, at_least=True, aim=1.2)
P99_GOAL = Goal(1.0, at_least=False)
NAME = "MiniLM"
LOOP_NAME = "ONNX Runtime in turn"


@dataclass(frozen=True)
class Embedding:
    report: Report
    findings: Findings
    children: Children
    folder: Path
    seconds: float
    pairs: int
    cores: int = field(default_factory=lambda: os.cpu_count() or 1)

    def compare(self) -> None:
        """Raises BenchmarkError where MiniLM itself cannot be had."""
        made = obtain(CATALOG["minilm"], self.children)
        texts = {bytes.fromhex(ids): text for ids, text in json.loads((made.more / "texts.json").read_text()).items()}
        asking = _Asking(self, made)
        asking.find_ceiling()
        for rival in rivals(self.cores, texts, made.more):
            try:
                venvs.ensure(rival.ways[0], self.children, fresh=False)
                asking.compare(rival)
            except BenchmarkError as error:
                self.report.failures.append(f"{NAME}  {rival.name}: {error}")
                print(f"{NAME}  {rival.name} failed: {error}", flush=True)
        asking.beside_loop()


class _Asking:
    """What is asked of all of them."""

    def __init__(self, of: Embedding, made: Made) -> None:
        self.of, self.made = of, made
        session = open_session(made.model)
        self.feeds = read_feeds(made.requests)
        self.questions = [Question(feed[INPUTS[0]], session.run(None, feed)[0].ravel()) for feed in self.feeds]
        self.seconds = max(of.seconds, LEAST_SECONDS)

    def find_ceiling(self) -> None:
        found = self.of.findings.ceiling = find_ceiling(self.made.model, self.feeds, INPUTS[0], self.of.cores)
        print(f"{NAME}  {found.words}", flush=True)

    def compare(self, rival: Rival) -> None:
        """With the set-up of its documentation, and with its best; measured once if that is the same."""
        best = self.screen(rival)
        names = {f"{rival.name}, as documented": rival.documented, f"{rival.name}, at its best": best}
        self.of.findings.best.setdefault(NAME, {}).update({name: way.batching for name, way in names.items()})
        for way in [rival.documented] if best is rival.documented else [rival.documented, best]:
            self.pairs([name for name, found in names.items() if found is way], way, rival.goal)

    def screen(self, rival: Rival) -> System:
        """Its best way."""
        rates: dict[str, float] = {}
        for way in rival.ways:
            with self._run(way) as running:
                rates[way.batching] = self._load(running).requests_per_s
            print(f"{NAME}  screening {way.name}, {way.batching}: {rates[way.batching]:,.1f}/s", flush=True)
        return max(rival.ways, key=lambda way: rates[way.batching])

    def pairs(self, names: Sequence[str], way: System, goal: Goal) -> None:
        """`names`: what this comparison is called."""
        with ExitStack() as entered:
            ours, theirs = (entered.enter_context(self._run(system)) for system in (dlproxy(), way))
            for side, partner in ((ours, theirs), (theirs, ours)):
                with alone(side, partner):
                    self._load(side)  # not measured: BentoML and dlproxy learn from what clients send
            for number in range(self.of.pairs):
                measured: dict[str, Figures] = {}
                for side, partner in in_turn([(ours, theirs), (theirs, ours)], number):
                    with alone(side, partner):
                        side.settle()
                        measured[side.system.name] = self._keep(side, self._load(side))
                mine, other = measured[ours.system.name], measured[theirs.system.name]
                for name in names:
                    self._ratio(name, mine.requests_per_s / other.requests_per_s, goal)
                    self.of.report.add_ratio(NAME, f"p99: dlproxy / {name}", mine.p99_ms / other.p99_ms, P99_GOAL)

    def beside_loop(self) -> None:
        """ONNX Runtime called in turn with all cores, as a program without clients would."""
        loop = loops(self.of.cores)[0]
        command = [sys.executable, "-m", "benchmarks.ort_loop", str(self.made.model), "--inputs", str(self.made.requests)]
        command += ["--seconds", str(self.seconds), *loop.options]
        with self._run(dlproxy()) as ours:
            self._load(ours)
            for _ in range(self.of.pairs):
                ours.settle()
                mine = self._keep(ours, self._load(ours))
                ours.family.wait_until_idle()
                theirs = run_program(self.of.children, "ort_loop", command, self.seconds + SPARE_S)
                self._add(Run(NAME, LOOP, loop.label, theirs, command))
                self._ratio(LOOP_NAME, mine.requests_per_s / theirs.requests_per_s, LOOP_GOAL)

    @contextmanager
    def _run(self, system: System) -> Iterator[Running]:
        """On all cores; it has answered every question rightly, many at a time."""
        with run_system(system, self.made.model, self.questions[0], self.of.children, None) as running:
            with ThreadPoolExecutor(CLIENTS) as pool:
                list(pool.map(lambda question: check_answer(system, running.port, question), self.questions))
            yield running

    def _ratio(self, other: str, value: float, goal: Goal) -> None:
        self.of.report.add_ratio(NAME, f"dlproxy / {other}", value, goal)

    def _load(self, side: Running) -> Figures:
        return run_program(self.of.children, "client", self._command(side), self.seconds + SPARE_S)

    def _command(self, side: Running) -> list[str]:
        path = self.of.folder / f"{side.system.name}.requests"
        if not path.exists():
            messages = [side.system.format.encode(question.item) for question in self.questions]
            bodies = [(message.body, dict(message.headers)) for message in messages]
            path.write_bytes(msgspec.msgpack.encode([whole_request(side.system.path, HOST, body) for body in bodies]))
        command = [sys.executable, "-m", "benchmarks.real.client", str(side.port), str(path), "--connections", str(CLIENTS)]
        return [*command, "--seconds", str(self.seconds), "--warm-up", str(WARM_UP_S)]

    def _keep(self, side: Running, figures: Figures) -> Figures:
        return self._add(Run(NAME, side.system.name, side.system.batching, figures, self._command(side), side.child.command))

    def _add(self, run: Run) -> Figures:
        self.of.report.runs.append(run)
        figures = run.figures
        said = f"{figures.requests_per_s:,.1f}/s, p99 {figures.p99_ms:.1f} ms"
        print(f"{NAME}  {run.subject}, {run.what}: {said}", flush=True)
        return figures

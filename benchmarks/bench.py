"""Single measurements, each with its answer checked first and every figure kept in the report."""

import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

from benchmarks.harness.processes import BenchmarkError, pinned
from benchmarks.harness.report import Report, Run
from benchmarks.harness.sample import sample_for
from benchmarks.harness.servers import Launcher, Server
from benchmarks.harness.stolen import StolenTime
from benchmarks.harness.wrk import Figures, Load, Mode, run_wrk, wrk_command

ORT_LOOP = Path(__file__).with_name("ort_loop.py")
WARM_UP_SECONDS = 2
MOST_TRIES = 10  # rounds for each that is wanted, where many are left out

Runs = TypeVar("Runs", bound=tuple[Run, ...])


@dataclass(frozen=True)
class Bench:
    launcher: Launcher
    report: Report
    mlp: Path
    slow: Path
    seconds: int
    pairs_wanted: int | None
    max_stolen: float | None = None

    def pairs(self, default: int) -> int:
        return self.pairs_wanted or default

    def load(self, connections: int, model: Path, mode: Mode = "same") -> Load:
        return Load(connections, self.seconds, sample_for(model, with_id=mode == "unique"), mode)

    def measure(self, scenario: str, subject: str, what: str, server: Server, load: Load) -> Run:
        server.child.wait_until_idle()
        if load.sample is not None:
            load.sample.check_answer(server.port)
        command = self._wrk_command(server, load)
        stolen = StolenTime(self.launcher.cores)
        run = Run(scenario, subject, what, run_wrk(command, load), command, server.child.command)
        run.stolen_share = stolen.share()
        return self._keep(run)

    def measure_bare(self, scenario: str, what: str, model: Path, load: Load) -> Run:
        """In a fresh process: the server that the yardstick is modelled on hangs once clients have left it."""
        with self.launcher.bare(model) as server:
            return self.measure(scenario, "bare", what, server, load)

    def measure_ort_loop(self, scenario: str, what: str, model: Path, seconds: int) -> Run:
        command = [sys.executable, str(ORT_LOOP), str(model), "--seconds", str(seconds)]
        command = pinned(self.launcher.cores.server, command)
        stolen = StolenTime(self.launcher.cores)
        child = self.launcher.children.start("ort_loop", command)
        try:
            status = child.process.wait()
        finally:
            self.launcher.children.stop(child)
        if status != 0:
            raise BenchmarkError(f"the ONNX Runtime loop failed: {child.log_tail()}")
        figures = Figures(**json.loads(child.log_tail().splitlines()[-1]))
        return self._keep(Run(scenario, "ORT loop", what, figures, command, stolen_share=stolen.share()))

    def rounds(self, wanted: int, measure: Callable[[int], Runs]) -> Iterator[Runs]:
        """The runs of so many rounds that nobody disturbed; `measure` is told which try this is.

        A round is left out whole, so that whoever was faster in it gains nothing. After ten times as many tries it ends.
        """
        kept = 0
        for number in range(MOST_TRIES * wanted):
            runs = measure(number)
            if self.max_stolen is not None and max(run.stolen_share or 0.0 for run in runs) > self.max_stolen:
                for run in runs:
                    run.left_out = True
                continue
            yield runs
            kept += 1
            if kept == wanted:
                return
        raise BenchmarkError(f"only {kept} of {wanted} rounds lost at most {self.max_stolen:.0%} of a core to other guests")

    def warm_up(self, server: Server, load: Load) -> None:
        """An unmeasured run for a server that is kept over several: it may still be tuning itself."""
        if load.sample is not None:
            load.sample.check_answer(server.port)
        short = replace(load, seconds=min(self.seconds, WARM_UP_SECONDS))
        run_wrk(self._wrk_command(server, short), short)

    def beside_idle(self, dlproxy: Server, measure: Callable[[], Run]) -> Run:
        """Measures another subject and notes how much of the core an idle dlproxy took from it meanwhile."""
        dlproxy.child.wait_until_idle()
        before = dlproxy.child.cpu_seconds()
        run = measure()
        after = dlproxy.child.cpu_seconds()
        if before is not None and after is not None:
            run.idle_dlproxy_cpu_share = (after - before) / run.figures.seconds
        return run

    def _wrk_command(self, server: Server, load: Load) -> list[str]:
        path = "/" if load.sample is None else load.sample.path
        return wrk_command(server.url(path), load, self.launcher.cores, self.launcher.work_directory)

    def _keep(self, run: Run) -> Run:
        self.report.runs.append(run)
        figures = run.figures
        lost = f", {run.stolen_share:.0%} of a core stolen" if run.stolen_share else ""
        print(
            f"{run.scenario}  {run.subject}: {run.what}: {figures.requests_per_s:,.1f}/s, "
            f"p50 {figures.p50_ms:.3f} ms, p99 {figures.p99_ms:.3f} ms{lost}",
            flush=True,
        )
        return run

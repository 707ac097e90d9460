"""The live half: a dlproxy on one core, `dlproxy bench` on the other, and what a simulation must be told about the pair.

Called by benchmarks/fidelity/__main__.py. Not aware of: the simulator's results.
"""

import contextlib
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.processes import BenchmarkError, Child, Children, Cores, free_ports, pinned
from benchmarks.servers import answers_ready
from dlproxy.lab.report.result import Result, load
from dlproxy.lab.simulate.engine import LoopCosts
from dlproxy.lab.simulate.recording import Batches

SPARE_SECONDS = 60
CALIBRATION_SECONDS = 4
SWEEP = (0.2, 0.5, 0.8, 1.1)  # loads at which batch times are recorded: small batches and full ones


@dataclass(frozen=True)
class Subject:
    """A model that is served live and simulated. `rows`: of each request; `deadline_s`: of each request, and its objective."""

    name: str
    path: str
    rows: int
    deadline_s: float

    @property
    def toml(self) -> str:
        return f'[models.{self.name}]\npath = "{self.path}"\nslo = "p99={self.deadline_s * 1e3:g}ms"\n'


@dataclass
class Bench:
    """Runs the server and the load, pinned apart."""

    children: Children
    cores: Cores
    directory: Path
    runs: int = field(default=0)

    @contextlib.contextmanager
    def serve(self, subject: Subject, *, record: bool) -> Iterator[tuple[Child, str]]:
        """A server with this model: the child and its URL."""
        port, control_port = free_ports(2)
        lines = ["[server]", f"http_port = {port}", f"control_port = {control_port}"]
        if record:
            lines.append(f'event_log = "{self.directory / "log"}"')
        config = self.directory / f"{subject.name}.toml"
        config.write_text("\n".join([*lines, subject.toml]))
        command = [sys.executable, "-m", "dlproxy", "serve", "--config", str(config)]
        child = self.children.start("dlproxy", pinned(self.cores.server, command))
        try:
            child.wait_until(lambda: answers_ready(port))
            yield child, f"http://127.0.0.1:{port}"
        finally:
            self.children.stop(child)

    def load(self, url: str, subject: Subject, options: Sequence[str], seconds: float) -> Result:
        """One `dlproxy bench` of about so many seconds."""
        self.runs += 1
        path = self.directory / f"run-{self.runs}.json"
        command = [sys.executable, "-m", "dlproxy", "bench", url, "--model", subject.name, "--rows", str(subject.rows)]
        command += ["--warmup", "0", "--json", str(path), *options]
        limit = seconds + SPARE_SECONDS
        try:
            finished = subprocess.run(
                pinned(self.cores.load, command), capture_output=True, text=True, timeout=limit, start_new_session=True
            )
        except subprocess.TimeoutExpired as error:
            raise BenchmarkError(f"dlproxy bench did not end within {limit:.0f} s") from error
        if not path.exists():
            raise BenchmarkError(f"dlproxy bench failed: {(finished.stderr or finished.stdout).strip()[-500:]}")
        return load(path)


@dataclass(frozen=True)
class Calibration:
    """What was measured of the pair before anything is predicted."""

    capacity_rps: float
    costs: LoopCosts
    log: Path
    batches: int


def calibrate(bench: Bench, subject: Subject) -> Calibration:
    """Loop and path costs from one connection and from many, then batch times from a recorded sweep of loads."""
    log = bench.directory / "log" / f"{subject.name}-1.dlog"
    closed = ["--duration", str(CALIBRATION_SECONDS), "--concurrency"]
    with bench.serve(subject, record=False) as (child, url):
        bench.load(url, subject, [*closed, "4"], CALIBRATION_SECONDS)
        one = bench.load(url, subject, [*closed, "1"], CALIBRATION_SECONDS)
        before_s = child.cpu_seconds() or 0.0
        many = bench.load(url, subject, [*closed, "64"], CALIBRATION_SECONDS)
        cpu_s = (child.cpu_seconds() or 0.0) - before_s
    with bench.serve(subject, record=True) as (_, url):
        for load in SWEEP:
            rate = load * many.rate_rps
            options = ["--rate", f"{rate:.6g}", "--duration", str(CALIBRATION_SECONDS), "--seed", "99"]
            bench.load(url, subject, [*options, "--deadline", f"{subject.deadline_s * 1e3:g}ms"], CALIBRATION_SECONDS)
    batches = Batches(log)
    sleeps = subject.path.startswith("sleep:")
    computed_s = 0.0 if sleeps else sum(times * _mean_service(batches, rows) for rows, times in many.batch_sizes.items())
    loop_s = max((cpu_s - computed_s) / max(many.sent, 1), 0.0)
    alone_s = _mean_service(batches, subject.rows) + _mean_hand_over(batches, subject.rows)
    path_s = max(one.latency_ms["p50"] * 1e-3 - alone_s - loop_s, 0.0)
    return Calibration(many.rate_rps, LoopCosts(loop_s / 2, loop_s / 2, path_s), log, len(batches.samples))


def _mean_service(batches: Batches, rows: int) -> float:
    return _median([service for size, service, _ in batches.samples if size == _nearest(batches, rows)])


def _mean_hand_over(batches: Batches, rows: int) -> float:
    return _median([extra for size, _, extra in batches.samples if size == _nearest(batches, rows)])


def _nearest(batches: Batches, rows: int) -> int:
    return min({size for size, _, _ in batches.samples}, key=lambda size: abs(size - rows))


def _median(values: list[float]) -> float:
    return sorted(values)[len(values) // 2]

"""The same requests live and simulated, and how far apart rate, p50 and p99 are: `python -m benchmarks.fidelity`.

Prints one table; exits with 1 if a prediction is outside of its band. The live half needs two cores.
"""

import argparse
import json
import statistics
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from math import inf
from pathlib import Path
from time import monotonic

from benchmarks.fidelity.live import CALIBRATION_SECONDS, SEED, Bench, Calibration, Subject, calibrate
from benchmarks.interrupts import EXIT_INTERRUPTED, interrupt_once
from benchmarks.machine import describe_machine, summary
from benchmarks.processes import BenchmarkError, Children, choose_cores, stay_off_the_servers_core
from dlproxy.config import ModelConfig
from dlproxy.lab import digits
from dlproxy.lab.load.arrivals import Arrivals, ArrivalsError, make_arrivals, read_trace
from dlproxy.lab.report.result import Result
from dlproxy.lab.simulate.engine import LoopCosts
from dlproxy.lab.simulate.run import ModelPlan, Scenario, plan_model, simulate
from dlproxy.lab.simulate.service_times import Measured, Sample

BANDS = {"rate": 0.05, "p50": 0.15, "p99": 0.15}
LOADS = (0.3, 0.7, 0.9, 1.2)
NEAR_S = 0.2  # a batch that explains the run is drawn within so many seconds of its own moment
SUBJECTS = (
    Subject("sleeper", "sleep:base=10ms,row=0.5ms", rows=1, deadline_s=0.1, clients=64),
    Subject("digits", str(Path(digits.__path__[0]) / "digits.onnx"), rows=128, deadline_s=0.06, clients=16),
)


@dataclass(frozen=True)
class Cell:
    """One load, sent live as often as asked for, with when each run began and ended; to be simulated."""

    arrivals: Arrivals
    kind: str
    load: float
    seconds: float
    lives: list[tuple[Result, float, float]]


@dataclass(frozen=True)
class Row:
    """One comparison. Live figures are medians of the repeats; so are the explained ones, as each run has its own batch times.

    `predicted`: simulated with the batch times of the calibration. `explained`: with those that the run itself had at
    the time. `again`: the live run that is farthest from their median, which is how well the machine predicts itself.
    """

    subject: str
    arrivals: str
    load: float
    live: dict[str, float]
    predicted: dict[str, float]
    explained: dict[str, float]
    again: dict[str, float]

    def apart(self, simulated: dict[str, float]) -> dict[str, float]:
        return {name: simulated[name] / self.live[name] - 1.0 if self.live[name] else inf for name in BANDS}

    def passes(self, simulated: dict[str, float]) -> bool:
        return all(abs(difference) <= BANDS[name] for name, difference in self.apart(simulated).items())


class Simulator:
    """Simulates a subject with any batch times. The path outside takes what the quiet run took and its simulation does not."""

    def __init__(self, bench: Bench, subject: Subject, calibration: Calibration) -> None:
        self._subject = subject
        config = ModelConfig(**subject.knobs)
        self._plan = plan_model(subject.name, config, str(bench.log(subject))).plan
        self.costs = LoopCosts()  # what the loop takes is in the batches' recorded times, and must not count twice
        arrivals = make_arrivals("poisson", rate=calibration.quiet_rate, seed=SEED)
        inside = self.run(arrivals, CALIBRATION_SECONDS, calibration.quiet_batches)
        path_ms = calibration.quiet.latency_ms["p50"] - inside.latency_ms["p50"]
        self.costs = LoopCosts(path_s=max(path_ms, 0.0) * 1e-3)

    def run(self, arrivals: Arrivals, seconds: float, batches: list[Sample], *, near_s: float = 0.0) -> Result:
        subject = self._subject
        model = ModelPlan(self._plan, lambda seed: Measured(batches, near_s=near_s, seed=seed), f"{len(batches)} batches")
        return simulate(
            Scenario(
                models={subject.name: model},
                arrivals=arrivals,
                duration_s=seconds,
                costs=self.costs,
                rows=subject.rows,
                timeout_s=subject.deadline_s,
                objective_s=subject.deadline_s,
            )
        )


def _figures(results: list[Result]) -> dict[str, float]:
    def median(figure: Callable[[Result], float]) -> float:
        return statistics.median(figure(result) for result in results)

    return {
        "rate": median(lambda result: result.rate_rps),
        "p50": median(lambda result: result.latency_ms.get("p50", 0.0)),
        "p99": median(lambda result: result.latency_ms.get("p99", 0.0)),
        "shed": median(lambda result: result.failed / result.sent if result.sent else 0.0),
    }


def _live(bench: Bench, url: str, subject: Subject, rate: float, load: float, args: argparse.Namespace, *, trace: bool) -> Cell:
    options = ["--deadline", f"{subject.deadline_s * 1e3:g}ms", "--seed", "7"]
    if trace:
        speed = rate / read_trace(args.trace).rate
        arrivals = read_trace(args.trace, speed=speed)
        seconds = (arrivals.duration_s or 0.0) + 1e-6
        options += ["--trace", str(args.trace), "--speed", repr(speed)]
    else:
        seconds = args.seconds
        arrivals = make_arrivals("poisson", rate=rate, seed=7)
        options += ["--rate", repr(rate), "--duration", repr(seconds)]
    cell = Cell(arrivals, "trace" if trace else "poisson", load, seconds, [])
    for _ in range(args.repeats):
        began_at = monotonic()
        result = bench.load_subject(url, subject, options, seconds)
        cell.lives.append((result, began_at, monotonic()))
    return cell


def _compare(bench: Bench, subject: Subject, calibration: Calibration, simulator: Simulator, cell: Cell) -> Row:
    own = [bench.recorded(subject, began_at, ended_at) for _, began_at, ended_at in cell.lives]
    return Row(
        subject.name,
        cell.kind,
        cell.load,
        _figures([live for live, _, _ in cell.lives]),
        _figures([simulator.run(cell.arrivals, cell.seconds, calibration.batches)]),
        _figures([simulator.run(cell.arrivals, cell.seconds, batches, near_s=NEAR_S) for batches in own]),
        _farthest([_figures([live]) for live, _, _ in cell.lives]),
    )


def _farthest(lives: list[dict[str, float]]) -> dict[str, float]:
    """For each figure the repeat that differs most from the others, on the scale of their median."""
    farthest = {}
    for name in lives[0]:
        values = [live[name] for live in lives]
        middle = statistics.median(values)
        farthest[name] = max(values, key=lambda value: abs(value - middle))
    return farthest


def _measure(args: argparse.Namespace, bench: Bench, subject: Subject) -> list[Row]:
    calibration = calibrate(bench, subject)
    simulator = Simulator(bench, subject, calibration)
    print(
        f"{subject.name}: {subject.rows} rows a request, capacity {calibration.capacity_rps:,.0f} requests/s, "
        f"path {simulator.costs.path_s * 1e6:.0f} us, "
        f"{len(calibration.batches):,} batches recorded",
        flush=True,
    )
    with bench.serve_subject(subject, record=True) as (_, url):
        bench.load_subject(url, subject, ["--concurrency", "8", "--duration", "2"], 2)
        cells = [
            _live(bench, url, subject, load * calibration.capacity_rps, load, args, trace=trace)
            for trace in ((False, True) if args.trace else (False,))
            for load in LOADS
        ]
    rows = []
    for cell in cells:
        rows.append(_compare(bench, subject, calibration, simulator, cell))
        print(_line(rows[-1]), flush=True)
    return rows


HEADING = "model    arrivals load    rate/s   p50 ms   p99 ms   shed" + "".join(
    f" | {name:<10}{'rate':>7}{'p50':>8}{'p99':>8}   shed      " for name in ("predicted", "explained", "live again")
)


def _line(row: Row) -> str:
    live = row.live
    text = f"{row.subject:<8} {row.arrivals:<8} {row.load:<4g} {live['rate']:>9,.1f} {live['p50']:>8.4g} {live['p99']:>8.4g}"
    text += f" {live['shed']:>6.1%}"
    for simulated in (row.predicted, row.explained, row.again):
        apart = row.apart(simulated)
        text += f" | {apart['rate']:>+17.1%} {apart['p50']:>+7.1%} {apart['p99']:>+7.1%} {simulated['shed']:>6.1%}"
        text += "  pass" if row.passes(simulated) else "  MISS"
    return text


def _parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.fidelity", description=__doc__)
    parser.add_argument("--trace", type=Path, help="also replay this trace (CSV), sped up to each load")
    parser.add_argument("--seconds", type=float, default=12.0, help="length of each Poisson run (default 12)")
    parser.add_argument("--repeats", type=int, default=3, help="live runs of each, whose median counts (default 3)")
    parser.add_argument("--only", choices=[subject.name for subject in SUBJECTS], help="one model only")
    parser.add_argument("--json", type=Path, help="keep every figure")
    args = parser.parse_args(arguments)
    if args.seconds <= 0.0 or args.repeats < 1:
        parser.error("--seconds must be above 0 and --repeats at least 1")
    if args.trace is not None:
        try:
            read_trace(args.trace)
        except ArrivalsError as error:
            parser.error(str(error))
    return args


def _conclude(args: argparse.Namespace, machine: dict[str, object], rows: list[Row]) -> int:
    if args.json:
        kept = [
            {**vars(row), "apart": [row.apart(row.predicted), row.apart(row.explained), row.apart(row.again)]} for row in rows
        ]
        args.json.write_text(json.dumps({"machine": machine, "rows": kept}, indent=1))
    predicted = sum(row.passes(row.predicted) for row in rows)
    explained = sum(row.passes(row.explained) for row in rows)
    again = sum(row.passes(row.again) for row in rows)
    print(f"bands: {BANDS['rate']:.0%} of the rate, {BANDS['p50']:.0%} of p50 and of p99")
    print(f"of {len(rows)} rows {predicted} are predicted (batch times measured before), {explained} explained (the run's own)")
    if args.repeats > 1:
        print(f"in {again} of {len(rows)} rows the live runs agree with one another that closely: no simulator can do better")
    return 0 if predicted == len(rows) else 1


def main(arguments: list[str] | None = None) -> int:
    args = _parse(arguments)
    interrupt_once()
    cores = choose_cores()
    machine = describe_machine(cores)
    print(summary(machine))
    stay_off_the_servers_core(cores)
    print(HEADING)
    rows: list[Row] = []
    try:
        with tempfile.TemporaryDirectory(prefix="dlproxy-fidelity-") as directory, Children(Path(directory)) as children:
            bench = Bench(children, cores, Path(directory))
            for subject in SUBJECTS:
                if args.only in (None, subject.name):
                    rows += _measure(args, bench, subject)
    except BenchmarkError as error:
        print(f"failed: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    return _conclude(args, machine, rows)


if __name__ == "__main__":
    sys.exit(main())

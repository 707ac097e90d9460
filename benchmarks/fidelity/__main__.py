"""The same requests live and simulated, and how far apart rate, p50 and p99 are: `python -m benchmarks.fidelity`.

Prints one table and exits with 1 if a figure is outside of its band. The live half needs two cores.
"""

import argparse
import json
import statistics
import sys
import tempfile
from dataclasses import dataclass
from math import inf
from pathlib import Path
from typing import Any

from benchmarks.fidelity.live import Bench, Calibration, Subject, calibrate
from benchmarks.interrupts import EXIT_INTERRUPTED, interrupt_once
from benchmarks.machine import describe_machine, summary
from benchmarks.processes import BenchmarkError, Children, choose_cores, stay_off_the_servers_core
from dlproxy.config import ModelConfig
from dlproxy.lab import digits
from dlproxy.lab.load.arrivals import Arrivals, make_arrivals, read_trace
from dlproxy.lab.report.result import Result
from dlproxy.lab.simulate.run import Scenario, plan_model, simulate

HERE = Path(__file__).parent
BANDS = {"rate": 0.05, "p50": 0.15, "p99": 0.15}
LOADS = (0.3, 0.7, 0.9, 1.2)
SUBJECTS = (
    Subject("sleeper", "sleep:base=10ms,row=0.5ms", rows=1, deadline_s=0.1),
    Subject("digits", str(Path(digits.__path__[0]) / "digits.onnx"), rows=64, deadline_s=0.02),
)


@dataclass(frozen=True)
class Row:
    """One comparison: live figures are medians of the repeats."""

    subject: str
    arrivals: str
    load: float
    live: dict[str, float]
    simulated: dict[str, float]
    shed: tuple[float, float]

    def differences(self) -> dict[str, float]:
        return {name: self.simulated[name] / self.live[name] - 1.0 if self.live[name] else inf for name in BANDS}

    def passes(self) -> bool:
        return all(abs(difference) <= BANDS[name] for name, difference in self.differences().items())


def _figures(result: Result) -> dict[str, float]:
    latency = result.latency_ms
    return {"rate": result.rate_rps, "p50": latency.get("p50", 0.0), "p99": latency.get("p99", 0.0)}


def _shed(result: Result) -> float:
    return result.failed / result.sent if result.sent else 0.0


def _simulated(subject: Subject, calibration: Calibration, arrivals: Arrivals, seconds: float) -> Result:
    config = ModelConfig(path=subject.path, slo=f"p99={subject.deadline_s * 1e3:g}ms")
    return simulate(
        Scenario(
            models={subject.name: plan_model(subject.name, config, str(calibration.log))},
            arrivals=arrivals,
            duration_s=seconds,
            costs=calibration.costs,
            rows=subject.rows,
            timeout_s=subject.deadline_s,
            objective_s=subject.deadline_s,
        )
    )


def _compare(bench: Bench, url: str, subject: Subject, calibration: Calibration, load: float, args: Any, trace: bool) -> Row:
    rate = load * calibration.capacity_rps
    options = ["--deadline", f"{subject.deadline_s * 1e3:g}ms", "--seed", "7"]
    if trace:
        speed = rate / read_trace(args.trace).rate
        arrivals = read_trace(args.trace, speed=speed)
        seconds = (arrivals.duration_s or 0.0) + 1e-9
        options += ["--trace", str(args.trace), "--speed", repr(speed)]
    else:
        seconds = args.seconds
        arrivals = make_arrivals("poisson", rate=rate, seed=7)
        options += ["--rate", repr(rate), "--duration", repr(seconds)]
    lives = [bench.load(url, subject, options, seconds) for _ in range(args.repeats)]
    simulated = _simulated(subject, calibration, arrivals, seconds)
    figures = [_figures(live) for live in lives]
    return Row(
        subject.name,
        "trace" if trace else "poisson",
        load,
        {name: statistics.median(figure[name] for figure in figures) for name in BANDS},
        _figures(simulated),
        (statistics.median(_shed(live) for live in lives), _shed(simulated)),
    )


def _line(row: Row) -> str:
    cells = [f"{row.subject:<8} {row.arrivals:<8} {row.load:<4g}"]
    for name, difference in row.differences().items():
        unit = "/s" if name == "rate" else "ms"
        cells.append(f"{row.live[name]:>9,.4g} {row.simulated[name]:>9,.4g} {unit} {difference:>+7.1%}")
    cells.append(f"{row.shed[0]:>6.1%} {row.shed[1]:>6.1%}  {'pass' if row.passes() else 'MISS'}")
    return "  ".join(cells)


def _parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.fidelity", description=__doc__)
    parser.add_argument("--trace", type=Path, help="also replay this trace (CSV), sped up to each load")
    parser.add_argument("--seconds", type=float, default=12.0, help="length of each Poisson run (default 12)")
    parser.add_argument("--repeats", type=int, default=3, help="live runs of each, whose median counts (default 3)")
    parser.add_argument("--only", choices=[subject.name for subject in SUBJECTS], help="one model only")
    parser.add_argument("--json", type=Path, help="keep every figure")
    return parser.parse_args(arguments)


def _measure(args: argparse.Namespace, bench: Bench) -> list[Row]:
    rows = []
    for subject in SUBJECTS:
        if args.only not in (None, subject.name):
            continue
        calibration = calibrate(bench, subject)
        loop_us = (calibration.costs.read_s + calibration.costs.write_s) * 1e6
        print(
            f"{subject.name}: capacity {calibration.capacity_rps:,.0f} requests/s, loop {loop_us:.0f} us, "
            f"path {calibration.costs.path_s * 1e6:.0f} us, {calibration.batches} batches recorded",
            flush=True,
        )
        with bench.serve(subject, record=False) as (_, url):
            bench.load(url, subject, ["--concurrency", "8", "--duration", "2"], 2)
            for trace in (False, True) if args.trace else (False,):
                for load in LOADS:
                    rows.append(_compare(bench, url, subject, calibration, load, args, trace))
                    print(_line(rows[-1]), flush=True)
    return rows


def main(arguments: list[str] | None = None) -> int:
    args = _parse(arguments)
    interrupt_once()
    cores = choose_cores()
    machine = describe_machine(cores)
    print(summary(machine))
    stay_off_the_servers_core(cores)
    print(
        "model    arrivals load  "
        + "  ".join(f"{name:>7} live {'simulated':>9} {'apart':>10}" for name in BANDS)
        + "    shed  simul."
    )
    try:
        with tempfile.TemporaryDirectory(prefix="dlproxy-fidelity-") as directory, Children(Path(directory)) as children:
            rows = _measure(args, Bench(children, cores, Path(directory)))
    except BenchmarkError as error:
        print(f"failed: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    if args.json:
        kept = [{**vars(row), "differences": row.differences()} for row in rows]
        args.json.write_text(json.dumps({"machine": machine, "rows": kept}, indent=1))
    missed = sum(not row.passes() for row in rows)
    print(f"{len(rows) - missed} of {len(rows)} within {BANDS['rate']:.0%} of the rate and {BANDS['p50']:.0%} of p50 and p99")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())

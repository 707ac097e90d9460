"""The same requests live and simulated, and how far apart rate, p50 and p99 are: `python -m benchmarks.fidelity`.

Prints one table; exits with 1 if a prediction is outside of its band. The live half needs two cores.
"""

import argparse
import json
import sys
from pathlib import Path

from benchmarks.fidelity.live import Bench, Subject
from benchmarks.fidelity.simulated import BANDS, Row, Simulator, agrees, apart
from benchmarks.harness.machine import describe_machine, summary
from benchmarks.harness.options import Names, options_of
from benchmarks.harness.processes import BenchmarkError, choose_cores, stay_off_the_servers_core
from benchmarks.harness.running import run, workplace
from dlproxy.lab import digits
from dlproxy.lab.load.arrivals import ArrivalsError, read_trace

LOADS = (0.3, 0.7, 0.9, 1.2)
SUBJECTS = (
    Subject("sleeper", "sleep:base=10ms,row=0.5ms", rows=1, deadline_s=0.1, clients=120),
    Subject("digits", str(Path(digits.__path__[0]) / "digits.onnx"), rows=128, deadline_s=0.015, clients=8),
)
HEADING = "model    arrivals load    rate/s   p50 ms   p99 ms   shed" + "".join(
    f" | {name:<10}{'rate':>7}{'p50':>8}{'p99':>8}   shed      " for name in ("predicted", "explained", "live again")
)


def _measure(args: argparse.Namespace, bench: Bench, subject: Subject) -> list[Row]:
    recording = bench.record(subject, LOADS, parts=args.parts, seconds=args.seconds, repeats=args.repeats, trace=args.trace)
    simulator = Simulator(subject, recording, bench.log(subject))
    print(
        f"{subject.name}: {subject.rows} rows a request, capacity {recording.capacity_rps:,.0f} requests/s, "
        f"path {simulator.path_s * 1e6:.0f} us, {len(recording.batches):,} batches recorded",
        flush=True,
    )
    rows = []
    for cell, runs in zip(recording.cells, recording.runs, strict=True):
        rows.append(simulator.compare(cell, runs))
        print(_line(rows[-1]), flush=True)
    return rows


def _line(row: Row) -> str:
    live = row.live
    text = f"{row.subject:<8} {row.arrivals:<8} {row.load:<4g} {live['rate']:>9,.1f} {live['p50']:>8.4g} {live['p99']:>8.4g}"
    text += f" {live['shed']:>6.1%}"
    for figures, reference in _comparisons(row):
        differences = apart(figures, reference)
        text += (
            f" | {differences['rate']:>+17.1%} {differences['p50']:>+7.1%} {differences['p99']:>+7.1%} {figures['shed']:>6.1%}"
        )
        text += "  pass" if agrees(figures, reference) else "  MISS"
    return text


def _comparisons(row: Row) -> list[tuple[dict[str, float], dict[str, float]]]:
    return [(row.predicted, row.live), (row.explained, row.live), (row.again, row.first)]


def _parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = options_of("fidelity", __doc__)
    parser.add_argument("--trace", type=Path, help="also replay this trace (CSV), sped up to each load")
    parser.add_argument(
        "--seconds", type=float, default=17.0, help="of Poisson arrivals at load 1, longer at less (default 17)"
    )
    parser.add_argument("--parts", type=int, default=8, help="runs that each load is cut into, in turn with others (default 8)")
    parser.add_argument("--repeats", type=int, default=2, help="how often all of that is sent (default 2)")
    parser.add_argument("--only", action=Names, known=[subject.name for subject in SUBJECTS], help="models")
    parser.add_argument("--json", type=Path, help="keep every figure")
    args = parser.parse_args(arguments)
    if args.repeats < 1 or args.parts < 2 or args.seconds < args.parts:
        parser.error("--repeats must be at least 1, --parts 2 (one is predicted by others), and --seconds 1 for each part")
    if args.trace is not None:
        try:
            read_trace(args.trace)
        except ArrivalsError as error:
            parser.error(str(error))
    return args


def _conclude(args: argparse.Namespace, machine: dict[str, object], rows: list[Row]) -> int:
    if args.json:
        kept = [{**vars(row), "apart": [apart(*pair) for pair in _comparisons(row)]} for row in rows]
        args.json.write_text(json.dumps({"machine": machine, "rows": kept}, indent=1))
    predicted, explained, again = (sum(agrees(*pair) for pair in pairs) for pairs in zip(*map(_comparisons, rows), strict=True))
    print(f"bands: {BANDS['rate']:.0%} of the rate, {BANDS['p50']:.0%} of p50 and of p99")
    print(
        f"of {len(rows)} rows {predicted} are predicted (each part by the parts around it), "
        f"{explained} explained (by its own batches)"
    )
    if args.repeats > 1:
        print(f"in {again} of {len(rows)} rows the last live repeat is that near to the first")
    return 0 if predicted == len(rows) else 1


def main(arguments: list[str] | None = None) -> int:
    args = _parse(arguments)
    cores = choose_cores()
    machine = describe_machine(cores)
    print(summary(machine))
    stay_off_the_servers_core(cores)
    print(HEADING)
    rows: list[Row] = []

    def measure() -> None:
        with workplace("fidelity") as (children, folder):
            bench = Bench(children, cores, folder)
            for subject in SUBJECTS:
                if subject.name in args.only:
                    try:
                        rows.extend(_measure(args, bench, subject))
                    except ArrivalsError as error:  # a part of the trace with a single arrival
                        raise BenchmarkError(str(error)) from error

    if code := run(measure):
        return code
    return _conclude(args, machine, rows)


if __name__ == "__main__":
    sys.exit(main())

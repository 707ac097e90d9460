"""Live: a step to three times the capacity for 30 s, and the same with every tenth request urgent.

Called by __main__.py. The model only takes time, so its capacity is known: `base + row * b` for a batch of b rows.
"""

from functools import partial
from math import inf
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from benchmarks.harness.checks import Check
from benchmarks.harness.live import Live
from dlproxy.lab.report.result import Result

TITLE = "Step overload: 3 times the capacity for 30 s"
ABOUT = """\
`sleep:base=10ms,row=0.5ms`, objective p99 = 100 ms, open loop of Poisson arrivals: 0.5 of the capacity for 10 s, 3 times
for 30 s, 0.5 again for 10 s. Each request has the objective as its deadline. Capacity: what 128 closed-loop clients get
from the same server without a deadline, just before. Goodput counts answers within the objective, in every whole second
of the step. Recovered: the first second after the step in which nothing is refused and p99 is within the objective. Then
again with 10 % of the requests at priority 1 (`x-request-priority: 1`), sent by a second generator."""

MODEL = "sleeper"
OBJECTIVE_S = 0.100
TOML = f'[models.{MODEL}]\npath = "sleep:base=10ms,row=0.5ms"\nslo = "p99={OBJECTIVE_S * 1e3:g}ms"\n'
STEPS = ((0.5, 10.0), (3.0, 30.0), (0.5, 10.0))  # times the capacity, seconds
URGENT_SHARE = 0.1
CAPACITY_SECONDS = 4.0
OPTIONS = ["--objective", f"p99={OBJECTIVE_S * 1e3:g}ms", "--deadline", f"{OBJECTIVE_S * 1e3:g}ms", "--max-connections", "4096"]
_check = partial(Check, group=TITLE)


def run(live: Live, seed: int) -> list[Check]:
    """Both steps against one server."""
    with live.serve(TOML) as served:
        closed = ["--concurrency", "128", "--duration", f"{CAPACITY_SECONDS:g}"]
        capacity = live.load(served.url, MODEL, closed, CAPACITY_SECONDS).rate_rps
        due = step_arrivals(capacity, seed)
        plain = live.load(served.url, MODEL, [*OPTIONS, "--trace", str(_trace(live.directory, "all", due))], due[-1])
        urgent = np.random.default_rng(seed).random(len(due)) < URGENT_SHARE
        others_load = live.start_load(
            served.url, MODEL, [*OPTIONS, "--trace", str(_trace(live.directory, "others", due[~urgent]))], due[-1]
        )
        urgent_trace = _trace(live.directory, "urgent", due[urgent])
        urgent_options = [*OPTIONS, "--header", "x-request-priority: 1", "--trace", str(urgent_trace)]
        urgent_result = live.load(served.url, MODEL, urgent_options, due[-1])
        others = others_load.result()
    note = f"capacity {capacity:,.0f}/s"
    return [
        *_step_checks("", plain, plain, capacity, note),
        *_step_checks("10 % urgent: ", others, urgent_result, capacity, note),
    ]


def step_arrivals(capacity: float, seed: int) -> NDArray[np.float64]:
    """Instants in seconds from 0: Poisson arrivals at the rates of STEPS."""
    random = np.random.default_rng(seed)
    parts, start = [], 0.0
    for factor, seconds in STEPS:
        count = random.poisson(factor * capacity * seconds)
        parts.append(start + np.sort(random.random(count)) * seconds)
        start += seconds
    return np.concatenate(parts)


def _trace(directory: Path, name: str, due: NDArray[np.float64]) -> Path:
    path = directory / f"{name}.csv"
    path.write_text("\n".join(["TIMESTAMP", "0.0", *(f"{instant:.6f}" for instant in due)]) + "\n")
    return path


def _step_checks(label: str, result: Result, other: Result, capacity: float, note: str) -> list[Check]:
    before_s, step_s = STEPS[0][1], STEPS[1][1]
    good: dict[int, int] = {}
    for each in {id(result): result, id(other): other}.values():
        for second in each.timeline:
            in_time = second.ok if second.p99_ms <= OBJECTIVE_S * 1e3 else 0.99 * second.ok
            good[int(second.at_s)] = good.get(int(second.at_s), 0) + int(in_time)
    during = [good.get(second, 0) / capacity for second in range(int(before_s) + 1, int(before_s + step_s))]
    checks = [
        _check(f"{label}goodput / capacity, worst second of the step", 0.9, inf, min(during), digits=3, note=note),
        _check(f"{label}goodput / capacity, mean of the step", 0.9, inf, sum(during) / len(during), digits=3),
        _check(f"{label}p99 of what was accepted", -inf, OBJECTIVE_S * 1e3, result.latency_ms["p99"], unit=" ms", digits=1),
    ]
    recovered = recovered_after_s(result)
    checks.append(_check(f"{label}recovered after the step", -inf, 1.0, recovered, unit=" s", digits=0))
    if other is not result:
        met = other.goodput_rps * other.duration_s / other.sent
        failed = ", ".join(f"{count} {kind}" for kind, count in other.errors.items()) or "no error"
        checks.append(_check(f"{label}urgent requests met", 0.999, inf, met, digits=5, note=f"of {other.sent:,}; {failed}"))
    return checks


def recovered_after_s(result: Result) -> float:
    """Whole seconds from the end of the step to the begin of the first second that is all well."""
    end_s = STEPS[0][1] + STEPS[1][1]
    for second in result.timeline:
        if second.at_s >= end_s and not second.failed and second.p99_ms <= OBJECTIVE_S * 1e3:
            return second.at_s - end_s
    return inf

"""Simulated: one server, service times of CV 4, two classes of deadlines, each queue discipline; SJF against Cobham's formula.

Called by __main__.py. No batching: every request runs alone, so that the formulas of M/G/1 hold.
"""

from functools import partial
from math import inf, log, sqrt

import numpy as np
from numpy.typing import NDArray

from benchmarks.harness.checks import Check, around
from benchmarks.known_results.simulating import MODEL, UNBOUNDED, Latencies
from dlproxy.lab.simulate.engine import Call, SimulatedModel, Simulation
from dlproxy.lab.simulate.service_times import Fitted
from dlproxy.policy.balancing import make_balancer
from dlproxy.policy.knobs import LaneKnobs
from dlproxy.policy.lane import Lane
from dlproxy.policy.queueing import DISCIPLINES

TITLE = "Disciplines, simulated: service times of CV 4 at load 0.8"
ABOUT = """\
Poisson arrivals, log-normal service times of mean 1 ms and CV 4, cut at 200 ms (a request's rows stand for its size, each
request runs alone). Slowdown: response time / own service time, mean over all requests, no deadlines. SJF: mean wait
against Cobham's formula for non-preemptive priorities with a class per size (Cobham 1954; Kleinrock, *Queueing Systems*
II, 3.3), with the run's own sizes. Then every other request is due within 50 ms, the rest within 500 ms, and the share of
all requests answered in time is counted, with early drop and admission as they are served. Uniform: all services 1 ms, no
deadlines; mean response of the worst discipline / FCFS's."""

MEAN_S, CV, LOAD = 1e-3, 4.0, 0.8
ROW_S = 1e-6  # a row stands for a microsecond
MOST_S = 0.2
REQUESTS = 200_000
CLASSES_S = (0.050, 0.500)
_check = partial(Check, group=TITLE)


def run(seed: int, requests: int = REQUESTS) -> list[Check]:
    """Every discipline with the same requests."""
    due, rows = mixed(seed, requests, mean_s=MEAN_S, row_s=ROW_S, load=LOAD, cv=CV)
    calm = {name: _Run(name, due, rows, np.full(requests, inf)) for name in DISCIPLINES}
    classes = np.where(np.arange(requests) % 2 == 0, *CLASSES_S)
    pressed = {name: _Run(name, due, rows, classes) for name in DISCIPLINES}
    return [*_slowdowns(calm), _cobham(calm["sjf"], due, rows), *_met(pressed), _uniform(due, requests)]


def mixed(
    seed: int, requests: int, *, mean_s: float, row_s: float, load: float, cv: float, most_s: float = MOST_S
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """When requests are due, in seconds, and their rows: Poisson, and log-normal sizes of this mean and CV up to most_s."""
    random = np.random.default_rng(seed)
    sigma = sqrt(log(1.0 + cv * cv))
    sizes_s = np.minimum(random.lognormal(log(mean_s) - sigma * sigma / 2, sigma, requests), most_s)
    rows = np.maximum(np.rint(sizes_s / row_s), 1).astype(np.int64)
    return np.cumsum(random.exponential(float(rows.mean()) * row_s / load, requests)), rows


class _Run:
    """One discipline: the waits without, and what was met with deadlines. `response_s`: NaN where there was no answer."""

    def __init__(self, discipline: str, due: NDArray[np.float64], rows: NDArray[np.int64], left_s: NDArray[np.float64]) -> None:
        knobs = LaneKnobs(max_batch=1, max_queue_rows=UNBOUNDED, discipline=discipline)
        lane = Lane(knobs, [(1, ROW_S), (1_000_000, 1.0)])
        tally = _ByRequest()
        simulation = Simulation(tally, balancer=make_balancer("round-robin"))
        simulation.add("node", [SimulatedModel(MODEL, lane, Fitted(0.0, ROW_S), ["instance"])])
        simulation.run(
            Call(MODEL, size, timeout_s, due_at)
            for due_at, size, timeout_s in zip(due.tolist(), rows.tolist(), left_s.tolist(), strict=True)
        )
        self.service_s = rows * ROW_S
        self.response_s = np.array([tally.responses_s.get(due_at, np.nan) for due_at in due.tolist()])
        self.met = float(np.count_nonzero(self.response_s <= left_s)) / len(due)

    @property
    def slowdown(self) -> float:
        return float((self.response_s / self.service_s).mean())

    @property
    def wait_s(self) -> float:
        return float((self.response_s - self.service_s).mean())


class _ByRequest(Latencies):
    """Remembers each request's response by when it was due, which no two share."""

    def __init__(self) -> None:
        super().__init__()
        self.responses_s: dict[float, float] = {}

    def answered(self, due_at: float, now: float) -> None:
        self.responses_s[due_at] = now - due_at


def _slowdowns(runs: dict[str, _Run]) -> list[Check]:
    fcfs = runs["fcfs"].slowdown
    bound = {"sjf": fcfs, "hrrn": fcfs}
    return [
        _check(f"mean slowdown, {name}", -inf, bound.get(name, inf), each.slowdown, digits=1) for name, each in runs.items()
    ]


def _cobham(run: _Run, due: NDArray[np.float64], rows: NDArray[np.int64]) -> Check:
    measured = run.wait_s
    expected = cobham_sjf_s(len(due) / float(due[-1]), rows * ROW_S)
    low, high = around(expected * 1e3, relative=0.05)
    return _check("SJF's mean wait", low, high, measured * 1e3, unit=" ms", digits=3, expected=expected * 1e3)


def cobham_sjf_s(rate: float, sizes_s: NDArray[np.float64]) -> float:
    """Mean wait in seconds of non-preemptive shortest job first, M/G/1, with these sizes as the distribution.

    W(x) = W0 / ((1 - rho(< x)) (1 - rho(<= x))), W0 = rate E[S^2] / 2; equal sizes are served in order of arrival.
    """
    values, counts = np.unique(sizes_s, return_counts=True)
    shares = counts / len(sizes_s)
    load = rate * np.cumsum(values * shares)
    below = np.concatenate([[0.0], load[:-1]])
    residual_s = rate * float((sizes_s**2).mean()) / 2
    return float((shares * residual_s / ((1.0 - below) * (1.0 - load))).sum())


def _met(runs: dict[str, _Run]) -> list[Check]:
    best_other = max(each.met for name, each in runs.items() if name != "edf")
    return [
        _check(f"deadlines met, {name}", best_other if name == "edf" else 0.0, 1.0, each.met, digits=4)
        for name, each in runs.items()
    ]


def _uniform(due: NDArray[np.float64], requests: int) -> Check:
    rows = np.full(requests, round(MEAN_S / ROW_S))
    runs = {name: _Run(name, due, rows, np.full(requests, inf)) for name in DISCIPLINES}
    fcfs = float(runs["fcfs"].response_s.mean())
    worst = max(runs, key=lambda name: abs(float(runs[name].response_s.mean()) / fcfs - 1.0))
    ratio = float(runs[worst].response_s.mean()) / fcfs
    return _check("uniform load: response, worst / FCFS", 0.999, 1.001, ratio, digits=5, expected=1.0, note=worst)

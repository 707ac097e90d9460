"""Early drop against fixed delay, shrink-to-fit, AIMD and deferral: the study that preceded dlproxy's Lane, done again with it.

Called by __main__.py and tests. Not aware of: balancers, several instances.
"""

from collections.abc import Callable
from functools import partial
from math import inf, sqrt

import numpy as np
from msgspec import Struct

from benchmarks.harness.checks import Check, Outcome
from benchmarks.known_results.batch_policies import (
    Aimd,
    Deferral,
    EndToEndAimd,
    FittedLimit,
    FixedDelay,
    ShrinkToFit,
    lane_with,
)
from benchmarks.known_results.simulating import MODEL, Floats, Latencies, calls, instants, seeds
from dlproxy.config import ModelConfig
from dlproxy.lab.load.arrivals import make_arrivals
from dlproxy.lab.simulate.engine import SimulatedModel, Simulation
from dlproxy.lab.simulate.run import plan_model
from dlproxy.lab.simulate.service_times import Fitted
from dlproxy.policy.balancing import RoundRobin
from dlproxy.policy.cost import LatencyModel
from dlproxy.policy.lane import Lane

COUNT = 20_000  # requests of a run, as in the study
SEEDS = 5
NOISE = 0.05
DELAY_S = 0.005
POINT = 1.0
LONGER = 1.034
LASTING = 5
FLOOR = 100.0 * (1.0 - 1.0 / 1.2)

TITLE = "Batches and deadlines: requests late or dropped"
ABOUT = f"""\
One server, L(b) = b0 + a b with 5 % noise, {COUNT:,} requests a run, {SEEDS} seeds; each request's deadline is the objective
(SLO). b_max is the largest b with L(b) <= SLO / 2; rho is relative to b_max / L(b_max). All run in dlproxy's Lane. "dlproxy"
is the Lane as served, with the limit that it chooses itself; "early drop" is its dropping and refilling with the limit b_max
and no admission, as in the study; the others replace its batch policy. They drop what is past its deadline, shrink-to-fit and
deferral also what would be late; the fixed delay drops nothing. AIMD starts at 1 unless said otherwise. The claims are the
reading of the study's table, in ALGORITHMS of the project: early drop (dlproxy's, and the study's) misses no more than fixed
delay, shrink-to-fit and both AIMDs, within a point; shrink-to-fit and AIMD on end-to-end latency collapse; nobody misses
anything at rho 0.3, where deferral triples the latency; nobody beats the floor 1 - 1 / 1.2 at rho 1.2. At rho 0.9 the
collapse of shrink-to-fit waits for a queue that happens to be long, and then lasts: a run of 20,000 requests may see none, so
the claim is put to longer runs."""
_claim = partial(Check, group=TITLE, unit=" %", digits=1)
TABLE_TITLE = "The same beside the study's table"
TABLE_ABOUT = f"""\
Source: the project's own study of 21 November 2026 (docs/internals/batching.md quotes it): one seed, mean latency of what was
served in brackets. Band: 3 standard deviations of one run (over our {SEEDS} seeds) and a point for what a table rounds and a
study leaves open. The study's program was not kept, so the reasons for what differs were tried out, not read. One explains
much: its services seem to have taken {100 * (LONGER - 1):.1f} % longer than L(b) on average, as noise that only adds would
make them. That figure is fitted to one cell, fixed delay at rho 1.2 (1348 ms); the last rows show what it predicts."""


class Case(Struct, frozen=True):
    """A model, an objective and a load."""

    name: str
    base_s: float
    row_s: float
    slo_s: float
    arrivals: str
    rho: float

    @property
    def limit(self) -> int:
        """The largest batch that takes half of the objective."""
        return int((self.slo_s / 2 - self.base_s) / self.row_s + 1e-9)

    @property
    def rate(self) -> float:
        return self.rho * self.limit / (self.base_s + self.row_s * self.limit)

    def model(self) -> LatencyModel:
        """What warm-up would have measured."""
        return LatencyModel([(rows, self.base_s + self.row_s * rows) for rows in (1, 64)])


CASES = {
    "0.9": Case("rho 0.9", 0.010, 0.0005, 0.100, "poisson", 0.9),
    "1.2": Case("rho 1.2", 0.010, 0.0005, 0.100, "poisson", 1.2),
    "bursty": Case("Gamma CV 4.47, rho 0.9", 0.010, 0.0005, 0.100, "gamma:cv=4.47", 0.9),
    "0.3": Case("rho 0.3", 0.010, 0.0005, 0.100, "poisson", 0.3),
    "cpu": Case("like a CPU, rho 0.9", 0.001, 0.004, 0.050, "poisson", 0.9),
    "tight": Case("SLO 3 L(1), Gamma, rho 0.5", 0.010, 0.0005, 0.0315, "gamma:cv=4.47", 0.5),
}


def _dlproxy(case: Case) -> Lane:
    described = f"base={1e3 * case.base_s:g}ms,row={1e3 * case.row_s:g}ms"
    config = ModelConfig(path="described", slo=f"p99={1e3 * case.slo_s:g}ms", run="thread")
    plan = plan_model(MODEL, config, described).plan
    return Lane(plan.knobs, plan.prior)


def _early_drop(case: Case) -> Lane:
    return lane_with(FittedLimit(case.limit, model := case.model()), model)


def _shrink(case: Case) -> Lane:
    return lane_with(ShrinkToFit(case.limit, model := case.model()), model)


def _deferral(case: Case) -> Lane:
    return lane_with(Deferral(case.limit, model := case.model(), case.slo_s), model)


FIXED, SHRINK, AIMD, END_TO_END = f"fixed {1e3 * DELAY_S:g} ms", "shrink-to-fit", "AIMD on execution", "AIMD on end-to-end"
FROM_LIMIT = f"{END_TO_END} from b_max"
EARLY, DEFERRAL, DLPROXY = "early drop", "deferral", "dlproxy"
POLICIES: dict[str, Callable[[Case], Lane]] = {
    FIXED: lambda case: lane_with(FixedDelay(case.limit, DELAY_S)),
    SHRINK: _shrink,
    AIMD: lambda case: lane_with(Aimd(case.slo_s / 2)),
    END_TO_END: lambda case: lane_with(EndToEndAimd(case.slo_s)),
    FROM_LIMIT: lambda case: lane_with(EndToEndAimd(case.slo_s, case.limit)),
    EARLY: _early_drop,
    DEFERRAL: _deferral,
    DLPROXY: _dlproxy,
}
BASELINES = (FIXED, SHRINK, AIMD, END_TO_END)

# missed in per cent, mean latency in ms
STUDY: dict[str, dict[str, tuple[float, float]]] = {
    "0.9": {FIXED: (1.2, 63), SHRINK: (33, 66), EARLY: (0.5, 62), AIMD: (11, 70), END_TO_END: (93, 100), DEFERRAL: (1.7, 73)},
    "1.2": {FIXED: (98, 1348), SHRINK: (94, 94), EARLY: (23, 81), AIMD: (96, 117), END_TO_END: (97, 100), DEFERRAL: (24, 81)},
    "bursty": {FIXED: (26, 82), SHRINK: (18, 67), EARLY: (6.6, 61), AIMD: (24, 73), END_TO_END: (65, 90), DEFERRAL: (10, 76)},
    "0.3": {FIXED: (0, 21), SHRINK: (0, 21), EARLY: (0, 21), AIMD: (0, 21), END_TO_END: (0, 21), DEFERRAL: (0, 63)},
    "cpu": {FIXED: (41, 49), SHRINK: (5.3, 29), EARLY: (4.8, 25), AIMD: (18, 31), END_TO_END: (18, 31), DEFERRAL: (9.3, 37)},
    "tight": {FIXED: (41, 34), EARLY: (29, 23), AIMD: (37, 25), DEFERRAL: (26, 24)},
}
PREDICTED = (("0.9", FIXED), ("cpu", FIXED), ("0.9", EARLY), ("1.2", EARLY), ("cpu", EARLY))  # with LONGER services

_SLOWER = "the study's services were longer, see the last rows"
_START = (
    "AIMD starts at 1 here, as its 11 % on execution time at rho 0.9 suggests (from b_max it would miss 0.1 %); no one start "
    "gives all of the study's figures. From b_max, end-to-end misses 0.1 % at rho 0.9, 97.6 % at 1.2, 83 % in bursts"
)
_TIGHT = (
    "p99(b) <= 0.46 SLO leaves batches of 5 rows, too few for the bursts, where b_max is 11; held to b_max instead it misses "
    "34 %. It was 65 % while admission counted b0 twice for a request that would ride in a batch already queued"
)
CLAIM_DIFFERS = {
    ("cpu", EARLY): "where batching gains at most 1 + b0 / a = 1.25 times, shrinking a batch costs little throughput",
    ("tight", EARLY): "AIMD drains bursts in batches above b_max (held to b_max it misses 44 %); the study has 29 and 37 %",
    ("tight", DLPROXY): _TIGHT,
}
DIFFERS = {
    ("0.9", FIXED): _SLOWER,
    ("1.2", EARLY): "longer services explain about half of the gap (last rows), the rest is not known",
    ("1.2", DEFERRAL): "as early drop at rho 1.2",
    ("1.2", SHRINK): "it drops what cannot be in time even alone; if it ran that, 98 %: the study's rule is not recorded",
    ("1.2", AIMD): _START,
    ("0.9", END_TO_END): _START,
    ("1.2", END_TO_END): _START,
    ("bursty", END_TO_END): _START,
    ("cpu", FIXED): _SLOWER,
    ("cpu", SHRINK): "the study's services were longer: with such, 4.1 %",
    ("tight", AIMD): "the study's services were longer: with such, 35 %",
}


class Missed(Struct):
    """Runs of one policy in one case, one figure per seed: per cent missed, mean latency of what was served in ms."""

    missed: Floats
    latency_ms: Floats


def run(seed: int, size: float = 1.0) -> Outcome:
    """All policies in all cases; `size` scales the requests of a run."""
    count = int(size * COUNT)
    found = {
        key: {name: repeat(case, name, seed, count) for name in POLICIES if name != FROM_LIMIT} for key, case in CASES.items()
    }
    longer = {(key, name): repeat(CASES[key], name, seed, count, LONGER) for key, name in PREDICTED}
    lasting = repeat(CASES["0.9"], SHRINK, seed, LASTING * count)
    from_limit = {key: repeat(CASES[key], FROM_LIMIT, seed, count) for key in ("0.9", "1.2")}
    checks = [*_claims(found, lasting, from_limit), *_beside_study(found), *_longer(longer)]
    runs = len(CASES) * (len(POLICIES) - 1) + len(PREDICTED) + LASTING + len(from_limit)
    return Outcome(checks, SEEDS * count * runs)


def repeat(case: Case, policy: str, seed: int, count: int, longer: float = 1.0) -> Missed:
    """One run per seed. Every policy sees the same arrivals and the same noise."""
    runs = []
    for number in range(SEEDS):
        numbers = seeds(seed, 5, number)
        tally = Latencies()
        simulation = Simulation(tally, balancer=RoundRobin())
        times = Fitted(longer * case.base_s, longer * case.row_s, cv=NOISE, seed=numbers[0])
        simulation.add("node", [SimulatedModel(MODEL, POLICIES[policy](case), times, ["instance"])])
        due = instants(make_arrivals(case.arrivals, rate=case.rate, seed=numbers[1]), count)
        simulation.run(calls(due, inf if policy == FIXED else case.slo_s))
        runs.append((100.0 * (1.0 - tally.share_within(case.slo_s)), 1e3 * float(tally.values().mean())))
    missed, latency_ms = np.array(runs).T
    return Missed(missed, latency_ms)


def _claims(found: dict[str, dict[str, Missed]], lasting: Missed, from_limit: dict[str, Missed]) -> list[Check]:
    checks = []
    for key in ("0.9", "1.2", "bursty", "cpu", "tight"):
        missed = {name: float(runs.missed.mean()) for name, runs in found[key].items()}
        best = min(BASELINES, key=missed.__getitem__)
        for policy in (DLPROXY, EARLY):
            claim = f"{CASES[key].name}: {policy} no worse than the best of the four"
            differs = CLAIM_DIFFERS.get((key, policy), "")
            high = missed[best] + POINT
            checks.append(
                _claim(claim, -inf, high, missed[policy], note=f"best: {best}, {missed[best]:.1f} %", differs=differs)
            )
    checks += _collapses(found, lasting, from_limit)
    worst = max(float(runs.missed.mean()) for runs in found["0.3"].values())
    checks.append(_claim("rho 0.3: the worst of all", -inf, 0.1, worst, expected=0.0))
    ratio = float(found["0.3"][DEFERRAL].latency_ms.mean() / found["0.3"][DLPROXY].latency_ms.mean())
    checks.append(_claim("rho 0.3: latency with deferral, times dlproxy's", 2.5, 3.5, ratio, expected=3.0, unit=""))
    # a finite run may get some rows more through than rho says: 3 standard deviations of the number of arrivals
    slack = 100.0 * 3.0 / sqrt(COUNT) / 1.2
    for policy in (EARLY, DLPROXY):
        missed_mean = float(found["1.2"][policy].missed.mean())
        checks.append(_claim(f"rho 1.2: {policy} not below the floor", FLOOR - slack, inf, missed_mean, expected=FLOOR))
    return checks


def _collapses(found: dict[str, dict[str, Missed]], lasting: Missed, from_limit: dict[str, Missed]) -> list[Check]:
    checks = []
    note = "by seed: " + ", ".join(f"{missed:.0f}" for missed in lasting.missed)
    claim = f"rho 0.9, runs {LASTING} times as long: {SHRINK} collapses"
    checks.append(_claim(claim, 25.0, inf, float(lasting.missed.mean()), note=note))
    for key in ("0.9", "1.2"):
        differs = (
            "started at b_max, it needs a first late batch to spiral, and at rho 0.9 there may be none" if key == "0.9" else ""
        )
        missed_mean, claim = float(from_limit[key].missed.mean()), f"{CASES[key].name}: {FROM_LIMIT} collapses"
        checks.append(_claim(claim, 75.0, inf, missed_mean, differs=differs))
    for key, policy in (("1.2", SHRINK), ("0.9", END_TO_END), ("1.2", END_TO_END)):
        checks.append(_claim(f"{CASES[key].name}: {policy} collapses", 75.0, inf, float(found[key][policy].missed.mean())))
    return checks


def _beside_study(found: dict[str, dict[str, Missed]]) -> list[Check]:
    return [
        _beside(key, policy, found[key][policy], f"{CASES[key].name}: {policy}", DIFFERS.get((key, policy), ""))
        for key, published in STUDY.items()
        for policy in published
    ]


def _longer(found: dict[tuple[str, str], Missed]) -> list[Check]:
    return [
        _beside(
            key,
            policy,
            runs,
            f"{CASES[key].name}: {policy}, services {100 * (LONGER - 1):.1f} % longer",
            DIFFERS.get((key, policy), "") if policy == EARLY else "",
        )
        for (key, policy), runs in found.items()
    ]


def _beside(key: str, policy: str, runs: Missed, result: str, differs: str) -> Check:
    missed, latency_ms = STUDY[key][policy]
    spread = float(runs.missed.std(ddof=1))
    width = 3.0 * spread + POINT
    return Check(
        group=TABLE_TITLE,
        result=result,
        expected=missed,
        low=max(missed - width, 0.0),
        high=min(missed + width, 100.0),
        measured=float(runs.missed.mean()),
        unit=" %",
        digits=1,
        note=f"spread {spread:.1f}; {runs.latency_ms.mean():.0f} ms, there {latency_ms:g}",
        differs=differs,
    )

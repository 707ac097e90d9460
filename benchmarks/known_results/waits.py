"""Waits of one server against Pollaczek and Khinchine's formula, and path by path against Lindley's recursion.

Called by __main__.py and tests. Not aware of: balancers, batches of more than one.
"""

from collections.abc import Sequence
from math import inf, log, sqrt

import numpy as np
from msgspec import Struct

from benchmarks.harness.checks import Check, Outcome, around
from benchmarks.known_results.simulating import MODEL, Floats, Latencies, calls, instants, seeds, serial_lane, standard_error
from dlproxy.lab.load.arrivals import make_arrivals
from dlproxy.lab.simulate.engine import SimulatedModel, Simulation
from dlproxy.lab.simulate.service_times import Fitted
from dlproxy.policy.balancing import RoundRobin

TITLE = "M/G/1: the mean wait"
ABOUT = """\
W = lambda E[S^2] / (2 (1 - rho)) (Pollaczek 1930, Khinchine 1932; Kleinrock, *Queueing Systems* I, 5.6). One instance,
`max_batch` 1, Poisson arrivals, no deadlines; in units of the mean service. The formula is given the run's own lambda, E[S]
and E[S^2]: with what was asked for (in brackets) most of the error would be that of E[S^2], whose estimate has a relative
standard deviation of 29 % after a million log-normal services of CV 4. Band: 3 standard errors of measured / formula
(jackknife over 40 parts of the run, the first 2 % left out), and no less than 2 %. That the services are what was asked for
is checked by itself, within 3 standard errors: their mean, and for log-normal ones the deviation of their logarithm.
Lindley's recursion W' = max(0, W + S - A) on the same services and gaps must give every single answer's instant; there is no
chance in it, so the band is rounding. CV 4 at rho 0.9 is left out: after 800,000 requests measured / formula still has a
standard deviation of 7 % (over 60 seeds)."""

PARTS = 40
WARM_UP = 0.02  # of the requests
LEAST_BAND = 0.02
ROUNDING_S = 1e-9  # an exact match gives 0; this allows for sums in another order
LOADS = {0.5: 200_000, 0.8: 300_000, 0.9: 500_000}  # requests: the more load, the longer a busy period is remembered


class Service(Struct, frozen=True):
    """A distribution of mean 1 with this coefficient of variation."""

    name: str
    cv: float
    exponential: bool = False
    loads: tuple[float, ...] = tuple(LOADS)

    def times(self, seed: int) -> Fitted:
        if self.exponential:
            return Fitted(1.0, 0.0, exponential=True, seed=seed)
        return Fitted(1.0, 0.0, cv=self.cv, seed=seed)


SERVICES = (
    Service("M/D/1", 0.0),
    Service("M/M/1", 1.0, exponential=True),
    Service("M/G/1 log-normal CV 2", 2.0),
    Service("M/G/1 log-normal CV 4", 4.0, loads=(0.5, 0.8)),
)


class Path(Struct):
    """One run: gaps, services, and the waits that the simulator gave them. `off_s`: largest difference from Lindley's."""

    gaps: Floats
    services: Floats
    waits: Floats
    off_s: float


def run(seed: int, size: float = 1.0, services: Sequence[Service] = SERVICES) -> Outcome:
    """Every service at every load; `size` scales the numbers of requests."""
    checks: list[Check] = []
    requests = 0
    for number, service in enumerate(services):
        drawn: list[Floats] = []
        off_s = 0.0
        for rho in service.loads:
            count = int(size * LOADS[rho])
            path = simulate(service, rho, count, seeds(seed, number, int(100 * rho)))
            checks.append(_wait(service, rho, path))
            drawn.append(path.services)
            off_s = max(off_s, path.off_s)
            requests += count
        checks += _draws(service, np.concatenate(drawn))
        checks.append(
            Check(
                group=TITLE,
                result=f"{service.name}: largest difference from Lindley's recursion",
                expected=0.0,
                low=-inf,
                high=ROUNDING_S,
                measured=off_s,
                digits=-1,
                unit=" s",
            )
        )
    return Outcome(checks, requests)


def simulate(service: Service, rho: float, count: int, numbers: Sequence[int]) -> Path:
    """Send so many requests through a lane with one instance."""
    due = instants(make_arrivals("poisson", rate=rho, seed=numbers[0]), count)
    tally = Latencies()
    simulation = Simulation(tally, balancer=RoundRobin())
    simulation.add("node", [SimulatedModel(MODEL, serial_lane(), service.times(numbers[1]), ["instance"])])
    simulation.run(calls(due))
    again = service.times(numbers[1])  # the same draws: first come, first served, so the n-th is the n-th request's
    drawn = [again.draw(1)[0] for _ in due]
    free_at, off_s = 0.0, 0.0
    for due_at, service_s, latency_s in zip(due, drawn, tally.latencies_s, strict=True):
        free_at = max(due_at, free_at) + service_s
        off_s = max(off_s, abs(free_at - due_at - latency_s))
    services = np.array(drawn)
    skipped = int(WARM_UP * count)
    waits = tally.values() - services
    return Path(np.diff(due, prepend=0.0)[skipped:], services[skipped:], waits[skipped:], off_s)


def pollaczek_khinchine(rate: float, mean: float, second_moment: float) -> float:
    """The mean wait in M/G/1."""
    return rate * second_moment / (2.0 * (1.0 - rate * mean))


def _wait(service: Service, rho: float, path: Path) -> Check:
    length = len(path.waits) // PARTS
    columns = np.stack([path.gaps, path.services, path.services**2, path.waits])[:, : length * PARTS]
    parts = columns.reshape(4, PARTS, length).mean(axis=2)
    gap, mean, second, wait = parts.mean(axis=1)
    expected = pollaczek_khinchine(1.0 / gap, mean, second)
    left_out = (parts.sum(axis=1, keepdims=True) - parts) / (PARTS - 1)
    ratios = left_out[3] / pollaczek_khinchine(1.0 / left_out[0], left_out[1], left_out[2])
    error = sqrt((PARTS - 1) / PARTS * float(((ratios - ratios.mean()) ** 2).sum()))
    low, high = around(expected, relative=max(LEAST_BAND, 3.0 * error))
    nominal = pollaczek_khinchine(rho, 1.0, 1.0 + service.cv**2)
    return Check(
        group=TITLE,
        result=f"{service.name}, rho {rho:g}: W",
        expected=float(expected),
        low=float(low),
        high=float(high),
        measured=float(wait),
        digits=3,
        note=f"standard error {100 * error:.1f} %; formula for what was asked: {nominal:.3f}",
    )


def _draws(service: Service, drawn: Floats) -> list[Check]:
    """Whether the services are what was asked for."""
    if not service.cv:
        return []
    figures = [("mean service", 1.0, drawn.mean(), standard_error(drawn))]
    if not service.exponential:
        logs = np.log(drawn)
        sigma = sqrt(log(1.0 + service.cv**2))
        figures.append(("deviation of the logarithm of the service", sigma, logs.std(), sigma / sqrt(2.0 * len(logs))))
    checks = []
    for name, expected, measured, error in figures:
        low, high = around(expected, absolute=3.0 * error)
        result = f"{service.name}: {name}"
        checks.append(Check(result, low, high, float(measured), TITLE, expected, digits=4))
    return checks

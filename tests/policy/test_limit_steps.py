"""How the batch limit gets where it should be, from a thousand wrong calibrations, and that it stays there.

Each truth is a line with noise, met by closed loops or open arrivals. Nothing is run: a batch takes what the truth says.
"""

from math import inf, log, sqrt
from random import Random

import pytest
from msgspec import Struct

from dlproxy.message import Ticket
from dlproxy.policy.batching import DEFAULT_STRETCH, FREE_BATCH_S, MOST_SPREAD, SLO_SHARE, FittedBatching, Take
from dlproxy.policy.cost import LatencyModel
from dlproxy.policy.fitting import SIGMAS
from dlproxy.policy.knobs import LaneKnobs
from dlproxy.policy.queueing import Fcfs

MOST = 256
RAMP = 20  # batches within which the limit is right
SIZES = (1, 2, 4, 8, 16, 32, 64)


class Truth(Struct):
    """What batches take, what warm-up claimed, and who asks: so many clients, or arrivals at `load` where 0."""

    base_s: float
    row_s: float
    noise: float
    prior: list[tuple[int, float]]
    slo_s: float | None
    clients: int
    load: float

    def mean(self, rows: int) -> float:
        return self.base_s + self.row_s * rows

    def p99(self, rows: int) -> float:
        return self.mean(rows) * (1.0 + SIGMAS * self.noise)

    @property
    def budget_s(self) -> float:
        if self.slo_s is not None:
            return SLO_SHARE * self.slo_s
        single_s = max(self.mean(1), self.p99(1) / MOST_SPREAD)
        return max(SLO_SHARE * DEFAULT_STRETCH * single_s, FREE_BATCH_S)

    @property
    def limit(self) -> int:
        """What it would be if all this were known."""
        fitting = max(int((self.budget_s / (1.0 + SIGMAS * self.noise) - self.base_s) / self.row_s + 1e-9), 1)
        second_row = self.slo_s is None and self.mean(2) <= self.budget_s
        return min(max(fitting, 2 if second_row else 1), MOST)

    def is_right(self, limit: int) -> bool:
        """Within a row or 15 %, of rows or of time: where a row costs next to nothing, many limits are alike."""
        near = abs(limit - self.limit) <= max(1.0, 0.15 * self.limit)
        return near or abs(self.p99(limit) / self.budget_s - 1.0) <= 0.15


def draw(random: Random) -> Truth:
    base_s, row_s = 10 ** random.uniform(-5.0, -1.5), 10 ** random.uniform(-5.0, -2.0)
    base_s, row_s = random.choice([(base_s, row_s)] * 8 + [(0.0, row_s), (base_s, 1e-9)])
    single_s = base_s + row_s
    factor, other = 10 ** random.uniform(-2.0, 2.0), 10 ** random.uniform(-2.0, 2.0)
    sizes = SIZES[: random.randint(2, 7)]
    priors = {
        "scaled": [(rows, base_s * factor + row_s * other * rows) for rows in sizes],
        "flat": [(rows, single_s * factor) for rows in sizes],
        "steep": [(rows, single_s * factor * rows) for rows in sizes],
        "one size": [(random.choice([1, 4]), single_s * factor)],
        "none": [],
        "right": [(rows, base_s + row_s * rows) for rows in sizes],
    }
    return Truth(
        base_s,
        row_s,
        noise=random.choice([0.0, 0.0, 0.02, 0.05, 0.1]),
        prior=priors[random.choice(["scaled", *priors])],
        slo_s=random.choice([None, single_s * 10 ** random.uniform(0.3, 2.5)]),
        clients=random.choice([0, 1, 2, 4, 16, 64, 256]),
        load=random.uniform(0.3, 1.5),
    )


def ran(truth: Truth, random: Random, batches: int) -> tuple[float, list[int]]:
    """Seconds of the longest batch, and the limit after each."""
    batching = FittedBatching(LaneKnobs(max_batch=MOST, max_queue_rows=8192, slo_s=truth.slo_s), LatencyModel(truth.prior))
    per_second = truth.load * 50 / truth.mean(50)
    now = longest_s = waiting = 0.0
    rows, limits = 0, []
    for _ in range(batches):
        waits = max(truth.clients - rows, 1) if truth.clients else max(int(waiting), 1)
        rows = min(batching.limit, waits)
        seconds = truth.mean(rows) * max(random.gauss(1.0, truth.noise), 0.3)
        longest_s = max(longest_s, seconds)
        now += seconds
        waiting = max(waiting - rows, 0.0) + per_second * seconds
        batching.observe(rows, seconds, now)
        limits.append(batching.limit)
    return longest_s, limits


def test_from_any_wrong_calibration_no_batch_takes_twice_its_budget_and_the_limit_is_soon_right() -> None:
    random = Random(1)
    noisy = wrong = 0
    for number in range(1000):
        truth = draw(random)
        longest_s, limits = ran(truth, random, 60)
        most_s = 2.0 * max(truth.budget_s, truth.mean(1)) * (1.0 + 4.0 * truth.noise)
        assert longest_s <= most_s * (1.0 + 1e-9), f"{number}, {truth}: {longest_s} s, {limits}"
        if truth.clients < min(2 * truth.limit, MOST):
            continue  # not enough rows wait to fill it
        off = [limit for limit in limits[RAMP:] if not truth.is_right(limit)]
        assert truth.noise or not off, f"{number}, {truth}: {limits}, not {truth.limit}"
        noisy += truth.noise > 0.0
        wrong += len(off) > len(limits[RAMP:]) // 10
    assert noisy > 150
    assert wrong <= 0.03 * noisy, "noise may hide a line for so long in a few"


def test_a_limit_does_not_swing() -> None:
    random = Random(2)
    for number in range(100):
        truth = draw(random)
        _, limits = ran(truth, random, 500)
        least, most = min(limits[100:]), max(limits[100:])
        alike = truth.mean(most) <= 1.2 * truth.mean(least)  # rows for nothing, and a budget that is just that of one
        assert most - least <= 2 or most <= 2 * least or alike, f"{number}, {truth}: from {least} to {most}"


@pytest.mark.parametrize("clients", [16, 64, 256])
@pytest.mark.parametrize("warm_s", [0.43e-3, 11.5e-3, 1.0])
def test_a_model_that_gains_nothing_from_batching_stays_at_two_rows(clients: int, warm_s: float) -> None:
    truth = Truth(0.0, 0.0115, 0.0, [(rows, warm_s * rows) for rows in SIZES], None, clients, 0.0)
    longest_s, limits = ran(truth, Random(3), 1500)
    assert longest_s == pytest.approx(2 * 0.0115)
    assert set(limits) == {2}


def test_a_small_model_reaches_its_limit_within_milliseconds() -> None:
    batching = FittedBatching(LaneKnobs(max_batch=MOST, max_queue_rows=8192), LatencyModel())
    now, batches = 0.0, 0
    while batching.limit < MOST:
        seconds = 20e-6 + 2e-6 * batching.limit
        now += seconds
        batches += 1
        batching.observe(batching.limit, seconds, now)
    assert (batches, now < 0.002) == (8, True), "1, 2, 4 ... 128 rows, each of them learned from"


@pytest.mark.parametrize("spread", [0.3, 0.5])
def test_batches_of_another_server_may_spread_widely(spread: float) -> None:
    random, sigma = Random(3), sqrt(log(1.0 + spread * spread))
    batching = FittedBatching(LaneKnobs(max_batch=MOST, max_queue_rows=8192, slo_s=0.2), LatencyModel())
    now, limits = 0.0, []
    for _ in range(1000):
        seconds = (0.010 + 0.0005 * batching.limit) * random.lognormvariate(-sigma * sigma / 2, sigma)
        now += seconds
        batching.observe(batching.limit, seconds, now)
        limits.append(batching.limit)
    assert min(limits[50:]) >= 32
    assert max(limits[50:]) <= 100


def test_what_fits_is_said_before_the_limit_is_there() -> None:
    """Admission counts with it, and people are told of it: a burst at the start is not refused for the first small batches."""
    batching = FittedBatching(LaneKnobs(max_batch=64, max_queue_rows=100), LatencyModel([(1, 20e-6), (64, 40e-6)]))
    queue = Fcfs()
    queue.push(Ticket(1, 0.0, inf), 0.0)
    assert (batching.goal, batching.decide(queue, 0.0)) == (64, Take(1))

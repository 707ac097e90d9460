"""CoDel tells a standing queue from a burst; Gradient2 finds a limit that keeps the queue short: small simulations."""

from collections import deque
from dataclasses import dataclass, field
from heapq import heappop, heappush
from math import inf
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dlproxy.policy.overload import LEAST_GRADIENT, SMOOTHING, WINDOW_S, CoDel, Gradient2

TARGET_S = 0.005
INTERVAL_S = 0.1
SHED_S = 2 * TARGET_S

# CoDel


@pytest.mark.parametrize(
    ("batches", "asked_at", "shed_above_s"),
    [
        pytest.param([], 0.0, inf, id="nothing seen"),
        pytest.param([(0.0, 0.05)], 0.0, inf, id="one long wait is a burst"),
        pytest.param([(0.0, 0.05), (0.05, 0.05), (0.09, 0.05)], 0.09, inf, id="not yet a whole interval"),
        pytest.param([(0.0, 0.05), (0.05, 0.05), (0.1, 0.05)], 0.1, SHED_S, id="a whole interval above the target"),
        pytest.param([(0.0, 0.005), (0.05, 0.005), (0.1, 0.005)], 0.1, inf, id="at the target is fine"),
        pytest.param([(0.0, 0.05), (0.05, 0.001), (0.1, 0.05)], 0.1, inf, id="the queue was empty once"),
        pytest.param([(0.0, 0.05), (0.05, 0.05), (0.13, 0.001)], 0.13, inf, id="the batch that ends the interval counts"),
        pytest.param([(0.0, 0.05), (0.05, 0.05), (0.1, 0.05)], 0.2, SHED_S, id="holds for an interval of silence"),
        pytest.param([(0.0, 0.05), (0.05, 0.05), (0.1, 0.05)], 0.21, inf, id="silence for longer is no overload"),
        pytest.param([(0.0, 0.05), (0.1, 0.05), (5.0, 0.05)], 5.0, inf, id="after silence it begins anew"),
        pytest.param([(0.0, 0.05), (0.1, 0.05), (0.15, 0.001)], 0.15, SHED_S, id="judged by intervals, not by single batches"),
        pytest.param([(0.0, 0.05), (0.1, 0.05), (0.15, 0.001), (0.2, 0.05)], 0.2, inf, id="over when an interval was not"),
        pytest.param([(0.0, 0.3), (0.3, 0.3), (0.6, 0.3)], 0.6, SHED_S, id="slow batches: the tickets waited all the while"),
    ],
)
def test_overload_is_a_least_delay_above_the_target_for_an_interval(
    batches: list[tuple[float, float]], asked_at: float, shed_above_s: float
) -> None:
    codel = CoDel(TARGET_S, INTERVAL_S)
    for now, queued_s in batches:
        codel.observe(queued_s, now)
    assert codel.shed_above_s(asked_at) == shed_above_s


gaps_s = st.floats(0.0, 0.3)
delays_s = st.sampled_from([0.0, 0.004, 0.006, 0.05, 0.5])


@given(st.lists(st.tuples(gaps_s, delays_s), max_size=60))
def test_sheds_only_after_a_whole_interval_in_which_every_batch_waited(steps: list[tuple[float, float]]) -> None:
    codel, now, seen = CoDel(TARGET_S, INTERVAL_S), 0.0, list[tuple[float, float]]()
    for gap_s, queued_s in steps:
        now += gap_s
        codel.observe(queued_s, now)
        seen.append((now, queued_s))
        if codel.shed_above_s(now) < inf:
            assert any(
                seen[last][0] - seen[first][0] >= INTERVAL_S
                and all(delay_s > TARGET_S for _, delay_s in seen[first : last + 1])
                for last in range(len(seen))
                for first in range(last)
            )


@given(st.lists(gaps_s.filter(lambda gap_s: gap_s <= INTERVAL_S), min_size=1, max_size=60), st.floats(0.006, 1.0))
def test_a_queue_that_stands_for_three_intervals_is_always_seen(gaps: list[float], queued_s: float) -> None:
    codel, now = CoDel(TARGET_S, INTERVAL_S), 0.0
    codel.observe(queued_s, now)
    for gap_s in gaps:
        now += gap_s
        codel.observe(queued_s, now)
    if now >= 2 * INTERVAL_S:  # the first interval ends at most one gap late
        assert codel.shed_above_s(now) == SHED_S


def test_new_values_judge_the_interval_under_way() -> None:
    codel = CoDel(TARGET_S, INTERVAL_S)
    codel.observe(0.05, 0.0)
    codel.configure(target_s=0.02, interval_s=0.05)
    codel.observe(0.05, 0.05)
    assert codel.shed_above_s(0.05) == 0.04


def serve_with_codel(rate: float, *, target_s: float, seconds: float = 20.0, shed: bool = True) -> tuple[list[float], int]:
    """A server of batches of up to 40 in 10 ms + 0.5 ms each, that is 1333 a second. How long the served waited; the shed."""
    codel, draw, queue = CoDel(target_s), Random(1), deque[float]()
    now, arrives_at, free_at = 0.0, 0.0, inf
    waits_s, lost = list[float](), 0
    while now < seconds:
        now = min(arrives_at, free_at)
        if now == arrives_at:
            queue.append(now)
            arrives_at += draw.expovariate(rate)
        else:
            free_at = inf
        batch = list[float]()
        while free_at == inf and queue and len(batch) < 40:
            taken = [queue.popleft() for _ in range(min(40 - len(batch), len(queue)))]
            codel.observe(now - taken[-1], now)
            most_s = codel.shed_above_s(now) if shed else inf
            kept = [at for at in taken if now - at <= most_s]
            lost += len(taken) - len(kept)
            batch += kept
        if batch:
            free_at = now + 0.010 + 0.0005 * len(batch)
            waits_s += [now - at for at in batch]
    return waits_s, lost


@pytest.mark.parametrize("load", [0.3, 0.8, 0.9])
def test_sheds_nothing_below_capacity(load: float) -> None:
    assert serve_with_codel(1333 * load, target_s=0.015)[1] == 0


@pytest.mark.parametrize("load", [1.2, 1.5, 2.0, 6.0])
def test_bounds_the_wait_in_overload_without_losing_throughput(load: float) -> None:
    waits_s, lost = serve_with_codel(1333 * load, target_s=0.015)
    assert lost
    assert max(waits_s) < 0.2, "two targets, and what builds up until an interval has shown it"
    assert len(waits_s) > 0.97 * 1333 * 20.0
    unshed_s = serve_with_codel(1333 * load, target_s=0.015, shed=False)[0]
    assert max(unshed_s) > 2.5, "the queue that would have stood"


def test_a_target_below_half_a_batch_leaves_batches_half_empty() -> None:
    served = {target_s: len(serve_with_codel(2000, target_s=target_s)[0]) for target_s in (0.005, 0.015)}
    assert served[0.015] > 1.05 * served[0.005]


# Gradient2


@dataclass
class Phase:
    """What happened while one load lasted: answers a second, the share refused, latencies."""

    served_per_s: float
    refused: float
    latencies_s: list[float]

    @property
    def mean_s(self) -> float:
        return sum(self.latencies_s) / len(self.latencies_s)


@dataclass
class Server:
    """`width` batches at a time of up to `max_batch` requests, each in base_s + row_s per request, +-5 %, behind a limit."""

    limiter: Gradient2
    width: int = 1
    max_batch: int = 1
    base_s: float = 0.050
    row_s: float = 0.0
    now: float = 0.0
    draw: Random = field(default_factory=lambda: Random(1))
    queue: deque[float] = field(default_factory=deque)
    running: list[tuple[float, list[float]]] = field(default_factory=list)
    in_flight: int = 0

    @property
    def capacity(self) -> float:
        return self.width * self.max_batch / (self.base_s + self.row_s * self.max_batch)

    def run(self, seconds: float, load: float) -> Phase:
        """Poisson arrivals of `load` times the capacity."""
        until, arrived, refused = self.now + seconds, 0, 0
        latencies_s = list[float]()
        arrives_at = self.now + self.draw.expovariate(load * self.capacity)
        while min(arrives_at, until) < until:
            if self.running and self.running[0][0] <= arrives_at:
                latencies_s += self._finish()
            else:
                self.now = arrives_at
                arrives_at += self.draw.expovariate(load * self.capacity)
                arrived += 1
                if self.in_flight < self.limiter.limit:
                    self.queue.append(self.now)
                    self.in_flight += 1
                else:
                    refused += 1
            self._start()
        return Phase(len(latencies_s) / seconds, refused / arrived, latencies_s)

    def _finish(self) -> list[float]:
        self.now, batch = heappop(self.running)
        latencies_s = [self.now - at for at in batch]
        self.limiter.observe(sum(latencies_s) / len(batch), self.in_flight, self.now)
        self.in_flight -= len(batch)
        return latencies_s

    def _start(self) -> None:
        while len(self.running) < self.width and self.queue:
            batch = [self.queue.popleft() for _ in range(min(self.max_batch, len(self.queue)))]
            service_s = (self.base_s + self.row_s * len(batch)) * self.draw.uniform(0.95, 1.05)
            heappush(self.running, (self.now + service_s, batch))


def wide(least: int = 2) -> Server:
    """Ten at a time in 50 ms each, which the limit is not told: it must find out."""
    return Server(Gradient2(least=least), width=10)


def batching() -> Server:
    """Batches of up to 16 in 10 ms + 0.5 ms per row, with Triton's rule for the least."""
    return Server(Gradient2(least=32), max_batch=16, base_s=0.010, row_s=0.0005)


def test_finds_the_limit_of_a_server_that_takes_more_than_the_least() -> None:
    server = wide()
    server.run(10.0, 0.7)
    assert server.run(20.0, 0.7).refused < 0.01
    assert server.limiter.limit > 10


def test_keeps_the_queue_short_however_long_the_overload_lasts() -> None:
    server = wide()
    server.run(20.0, 0.7)
    first = server.run(20.0, 2.0)
    limit = server.limiter.limit
    server.run(140.0, 2.0)
    last = server.run(20.0, 2.0)
    assert 10 <= server.limiter.limit <= 18, "1.5 times the ten that it runs, and the noise of a window"
    assert abs(server.limiter.limit - limit) <= 4
    for phase in (first, last):
        assert phase.served_per_s > 0.95 * server.capacity
        assert phase.mean_s < 1.7 * 0.050


@pytest.mark.parametrize("warm", [False, True], ids=["from a cold start", "after little load"])
def test_batching_costs_no_throughput_and_keeps_the_queue_short(warm: bool) -> None:
    server = batching()
    if warm:
        server.run(20.0, 0.2)
    server.run(5.0, 2.0)
    phase = server.run(20.0, 2.0)
    assert 32 <= server.limiter.limit <= 1.7 * 32
    assert phase.served_per_s > 0.97 * server.capacity
    assert phase.mean_s < 1.7 * 2 * 0.018, "1.5 times that with the least limit: a batch that runs and one that waits"


@pytest.mark.parametrize("load", [0.1, 0.3, 0.6])
def test_throttles_nobody_at_low_load(load: float) -> None:
    phase = batching().run(30.0, load)
    assert phase.refused == 0.0


def test_recovers_at_once_when_load_falls() -> None:
    server = batching()
    server.run(20.0, 0.3)
    server.run(60.0, 3.0)
    server.run(0.5, 0.3)
    assert server.run(30.0, 0.3).refused == 0.0
    server.run(5.0, 2.0)
    assert server.run(10.0, 2.0).mean_s < 1.7 * 2 * 0.018, "and the overload that comes then is treated as the first"


@pytest.mark.parametrize("slower", [2.0, 3.0, 10.0])
def test_a_service_that_has_become_slower_is_adopted_even_in_overload(slower: float) -> None:
    server = wide()
    server.run(20.0, 0.7)
    server.run(10.0, 2.0)
    server.base_s *= slower
    server.run(60.0, 2.0)
    phase = server.run(30.0, 2.0)
    assert phase.served_per_s > 0.9 * server.capacity
    assert phase.mean_s < 1.7 * server.base_s


def test_a_service_that_has_become_slower_is_adopted_at_low_load() -> None:
    server = wide()
    server.run(20.0, 0.7)
    server.base_s *= 2
    server.run(60.0, 0.35)
    assert server.run(20.0, 0.35).refused < 0.01


latencies_s = st.floats(0.0, 1e6) | st.just(0.050)


@given(
    st.integers(1, 5000),
    st.lists(st.tuples(st.floats(0.0, 1.0), latencies_s, st.integers(1, 10_000)), max_size=100),
)
def test_limit_stays_within_its_bounds(least: int, batches: list[tuple[float, float, int]]) -> None:
    limiter, now = Gradient2(least=least, most=1000), 0.0
    for gap_s, latency_s, in_flight in batches:
        now += gap_s
        before = limiter.limit
        limiter.observe(latency_s, in_flight, now)
        assert least <= limiter.limit <= max(least, 1000)
        assert limiter.limit >= (1 - SMOOTHING * (1 - LEAST_GRADIENT)) * before - 1, "one update takes a tenth at most"


def grown() -> tuple[Gradient2, float]:
    """A limit that grew to 100 at a steady latency, and the time."""
    limiter, now = Gradient2(least=10), 0.0
    while limiter.limit < 100:
        now += WINDOW_S
        limiter.observe(0.050, limiter.limit, now)
    return limiter, now


def test_less_than_half_used_does_not_change_it() -> None:
    limiter, now = grown()
    before = limiter.limit
    for latency_s in (0.001, 0.050, 5.0) * 20:
        now += WINDOW_S
        limiter.observe(latency_s, before // 2 - 1, now)
    assert limiter.limit == before


def test_the_most_in_flight_of_a_window_counts() -> None:
    limiter, now = grown()
    before = limiter.limit
    for step in range(1, 4):
        limiter.observe(5.0, 100 if step == 1 else 1, now + step * WINDOW_S)
    assert limiter.limit < before


def test_one_update_per_window() -> None:
    limiter, now = grown()
    limiter.observe(0.050, 100, now + 1.0)
    before = limiter.limit
    for step in range(99):
        limiter.observe(5.0, 100, now + 1.0 + step * WINDOW_S / 100)
    assert limiter.limit == before
    limiter.observe(5.0, 100, now + 1.0 + WINDOW_S)
    assert limiter.limit == pytest.approx(0.9 * before, abs=1.5)


def test_a_new_least_holds_at_once() -> None:
    limiter = Gradient2(least=4)
    limiter.configure(least=64)
    assert limiter.limit == 64
    limiter.configure(least=8)
    assert limiter.limit == 64, "it falls as latency tells"

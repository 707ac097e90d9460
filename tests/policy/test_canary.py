"""The judge of canaries: it says nothing against versions that are no worse, and soon finds those that are."""

from math import comb

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.random import Generator, default_rng

from dlproxy.policy.canary import ALPHA, LEAST_TICKS, PERIOD, Judge, Seen, fisher


class Version:
    """Answers `rate` requests a tick in batches, which fail as a whole and whose requests are equally slow."""

    def __init__(self, random: Generator, rate: float, *, fails: float = 0.002, slower: float = 1.0, batch: int = 8) -> None:
        self.random, self.rate, self.fails, self.slower, self.batch = random, rate, fails, slower, batch
        self.refuses = 0.0

    def tick(self) -> Seen:
        batches = self.random.poisson(self.rate / self.batch)
        failed = self.random.binomial(batches, self.fails)
        refused = self.random.binomial(batches, self.refuses)
        each = self.slower * self.random.lognormal(-5.0, 0.4, batches - failed)
        answered = self.batch * (batches - failed)
        return Seen(answered, self.batch * failed, self.batch * refused, np.repeat(each, self.batch).tolist())


def verdict(judge: Judge, stable: Version, canary: Version, ticks: int) -> tuple[int, str]:
    """When it spoke, and what it said; nothing within so many ticks."""
    for tick in range(1, ticks + 1):
        reason = judge.look(stable.tick(), canary.tick())
        if reason:
            return tick, reason
    return 0, ""


@pytest.mark.parametrize("seed", range(3))
def test_equal_versions_pass(seed: int) -> None:
    random = default_rng(seed)
    assert verdict(Judge(), Version(random, 200.0), Version(random, 20.0), PERIOD) == (0, "")


def test_equal_versions_pass_at_all_looks_of_many_days() -> None:
    """Counts alone, without latencies: it is the same test. 200 days of 500 busy ticks each; 2 would be too many."""
    random = default_rng(1)
    ticks = 500
    alarms = 0
    for _ in range(200):
        judge = Judge()
        stable = 8 * random.binomial(50, 0.01, ticks)
        canary = 8 * random.binomial(5, 0.01, ticks)
        alarms += any(
            judge.look(Seen(400 - bad, bad, 0, ()), Seen(40 - worse, worse, 0, ()))
            for bad, worse in zip(stable.tolist(), canary.tolist(), strict=True)
        )
    assert alarms < 2


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(
    ("worse", "within", "said"),
    [
        ({"fails": 1.0}, LEAST_TICKS + 5, "failed"),
        ({"fails": 0.2}, 20, "failed"),
        ({"fails": 0.02}, 300, "failed"),
        ({"slower": 3.0}, 30, "took longer"),
        ({"slower": 1.5}, 300, "took longer"),
    ],
)
def test_a_worse_one_is_found(seed: int, worse: dict[str, float], within: int, said: str) -> None:
    random = default_rng(seed)
    tick, reason = verdict(Judge(), Version(random, 200.0), Version(random, 20.0, **worse), within)  # type: ignore[arg-type]
    assert tick, "it was not found"
    assert said in reason


def test_requests_that_are_refused_for_lack_of_time_are_slow_ones() -> None:
    random = default_rng(1)
    canary = Version(random, 20.0)
    canary.refuses = 0.3
    tick, reason = verdict(Judge(), Version(random, 200.0), canary, 60)
    assert tick
    assert "refused for lack of time" in reason


def test_one_batch_that_fails_is_one_failure() -> None:
    judge = Judge()
    for tick in range(1000):
        failed = 32 if tick == 11 else 0
        assert not judge.look(Seen(320, 0, 0, ()), Seen(32 - failed, failed, 0, ()))


def test_spells_of_trouble_are_taken_for_the_few_events_that_they_are() -> None:
    """Of 30 seconds each, in which a third of what is asked fails; they strike either version. Nobody can tell at the first
    one; by the dispersion of seconds alone, 18 of these pairs would be parted.
    """
    random = default_rng(6)
    parted = 0
    for _ in range(40):
        judge = Judge()
        struck = [np.repeat(random.random(100) < 0.03, 30) for _ in range(2)]
        bad = [
            8 * random.binomial(batches, np.where(spells, 1 / 3, 0.0)) for batches, spells in zip((50, 5), struck, strict=True)
        ]
        parted += any(
            judge.look(Seen(400 - one, one, 0, ()), Seen(40 - other, other, 0, ()))
            for one, other in zip(bad[0].tolist(), bad[1].tolist(), strict=True)
        )
    assert parted <= 12


def test_one_that_goes_bad_later_is_found_as_quickly() -> None:
    random = default_rng(1)
    judge, stable, canary = Judge(), Version(random, 40.0), Version(random, 20.0)
    assert verdict(judge, stable, canary, PERIOD) == (0, "")
    canary.fails = 0.3
    tick, _ = verdict(judge, stable, canary, 60)
    assert 0 < tick <= 60


def test_a_version_that_nobody_asks_is_not_judged() -> None:
    judge = Judge()
    assert not any(judge.look(Seen(100, 1, 0, ()), Seen(0, 0, 0, ())) for _ in range(100))


def test_a_difference_that_does_not_matter_is_let_pass() -> None:
    judge = Judge()
    for _ in range(PERIOD):
        assert not judge.look(Seen(99_000, 1_000, 0, ()), Seen(98_600, 1_400, 0, ()))


@given(st.integers(0, 12), st.integers(0, 12), st.integers(0, 12), st.integers(0, 12))
def test_fisher_sums_the_hypergeometric_tail(bad: int, good: int, other_bad: int, other_good: int) -> None:
    of, other_of = bad + good, other_bad + other_good
    most = min(of, bad + other_bad)
    tail = sum(comb(of, k) * comb(other_of, bad + other_bad - k) for k in range(bad, most + 1))
    exact = tail / comb(of + other_of, bad + other_bad)
    assert fisher(bad, of, other_bad, other_of) == pytest.approx(exact if bad * other_of > other_bad * of else 1.0)


def test_what_all_looks_may_spend_together_is_small() -> None:
    assert ALPHA < 0.01

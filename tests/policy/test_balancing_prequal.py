"""Prequal: hot and cold, the pool of probes and how they leave it, estimates by level, answers of remote instances."""

from collections import Counter
from collections.abc import Callable
from itertools import cycle
from math import inf

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dlproxy.policy.balancing import Prequal, SplitMix64
from dlproxy.policy.balancing.latency import DECAY_S, INITIAL_S
from dlproxy.policy.balancing.prequal import POOL_SIZE, PROBE_AGE_S, UNTRIED, Levels, reuse_budget
from dlproxy.policy.hops import Load

MANY = [f"i-{number}" for number in range(40)]


def prequal(draw: Callable[[], float] | None = None) -> Prequal:
    return Prequal(SplitMix64() if draw is None else draw)


@pytest.mark.parametrize(
    ("instances", "budget"),
    [
        pytest.param(100, 2.0 / (0.84 * 3 - 1), id="m 16, n 100, r_probe 3, r_remove 1, delta 1"),
        pytest.param(10**6, 1.0, id="a large fleet: each probe once"),
        pytest.param(24, inf, id="(1 - 16 / 24) 3 = 1: removed as fast as new ones are met"),
        pytest.param(3, inf, id="fewer than fit into the pool"),
    ],
)
def test_the_reuse_budget_is_the_papers(instances: int, budget: float) -> None:
    assert reuse_budget(instances) == pytest.approx(budget, rel=1e-4)


def remote(*answers: tuple[str, int, float], now: float = 0.0) -> Prequal:
    balancer = prequal()
    for instance, in_flight, latency_s in answers:
        balancer.probed(instance, in_flight, latency_s, now)
    return balancer


@pytest.mark.parametrize(
    ("answers", "chosen"),
    [
        pytest.param([("a", 2, 0.3), ("b", 2, 0.1), ("c", 2, 0.2)], "b", id="all cold: the quickest"),
        pytest.param([("a", 2, 0.3), ("b", 9, 0.1), ("c", 2, 0.2)], "c", id="the quickest is hot: the quickest of the cold"),
        pytest.param([("a", 0, 0.3), ("b", 1, 0.1), ("c", 1, 0.2)], "b", id="less in flight is no reason among the cold"),
    ],
)
def test_the_cold_by_latency_the_hot_are_passed_over(answers: list[tuple[str, int, float]], chosen: str) -> None:
    balancer = remote(*answers)
    assert balancer.choose(["a", "b", "c"], dict.fromkeys("abc", 0), 0.0) == chosen


def test_if_all_are_hot_the_one_with_least_in_flight_is_chosen() -> None:
    balancer = remote(*[("c", 1, 0.1)] * 60, ("a", 8, 0.5), ("b", 9, 0.1))
    assert balancer.choose(["a", "b"], dict.fromkeys("abc", 0), 0.0) == "a"


def test_the_chosen_counts_one_more_until_it_is_asked_again() -> None:
    balancer = remote(("a", 2, 0.1), ("b", 2, 0.2), ("c", 2, 0.3))
    in_flight = dict.fromkeys("abc", 0)
    assert [balancer.choose(["a", "b", "c"], in_flight, 0.0) for _ in range(2)] == ["a", "b"], "a is hot with 3"
    balancer.probed("a", 2, 0.1, 0.0)
    assert balancer.choose(["a", "b", "c"], in_flight, 0.0) == "a"


def test_old_answers_do_not_count() -> None:
    balancer = remote(("a", 0, 0.1), ("b", 0, 9.0))
    in_flight = {"a": 5, "b": 0}
    assert balancer.choose(["a", "b"], in_flight, PROBE_AGE_S) == "a"
    balancer = remote(("a", 0, 0.1), ("b", 0, 9.0))
    assert balancer.choose(["a", "b"], in_flight, PROBE_AGE_S + 0.01) == "b", "of two drawn the one with less in flight"


def test_answers_of_who_is_not_ready_or_gone_do_not_count() -> None:
    balancer = remote(("a", 0, 0.1), ("b", 0, 0.2), ("c", 0, 0.3), ("d", 0, 0.4))
    in_flight = dict.fromkeys("abcd", 0)
    assert balancer.choose(["b", "c", "d"], in_flight, 0.0) == "b"
    balancer = remote(("a", 0, 0.1), ("b", 0, 0.2), ("c", 0, 0.3), ("d", 0, 0.4))
    balancer.forget("b")
    assert balancer.choose(["b", "c", "d"], in_flight, 0.0) in ("b", "c"), "b answers for itself again, as an unknown one"


def test_a_remote_instance_that_fails_fast_is_not_believed() -> None:
    balancer = prequal()
    sent: Counter[str] = Counter()
    for number in range(1000):
        now = number * 0.01
        for instance in "abc":
            balancer.probed(instance, 0, 0.0001 if instance == "b" else 0.05, now)
        chosen = balancer.choose(["a", "b", "c"], dict.fromkeys("abc", 0), now)
        sent[chosen] += 1
        balancer.observe(chosen, 0.0001 if chosen == "b" else 0.05, ok=chosen != "b", now=now)
    assert 1 <= sent["b"] <= 20


def test_a_weight_divides_latency_and_what_is_in_flight() -> None:
    balancer = prequal()
    balancer.add("b", 0.0, 4.0)
    for instance, in_flight, latency_s in (("a", 2, 0.1), ("b", 8, 0.3), ("c", 2, 0.2)):
        balancer.probed(instance, in_flight, latency_s, 0.0)
    assert balancer.choose(["a", "b", "c"], dict.fromkeys("abc", 0), 0.0) == "b", "8 / 4 is not hot, 0.3 / 4 is the least"


@given(
    steps=st.lists(st.tuples(st.integers(0, 39), st.floats(0.0, 0.5), st.booleans()), min_size=1, max_size=120),
    seed=st.integers(0, 100),
)
def test_the_pool_is_bounded_holds_each_once_from_old_to_young_and_counts_no_use_twice(
    steps: list[tuple[int, float, bool]], seed: int
) -> None:
    balancer, now = prequal(SplitMix64(seed)), 0.0
    in_flight = dict.fromkeys(MANY, 0)
    for number, seconds, ok in steps:
        now += seconds
        in_flight[balancer.choose(MANY, in_flight, now)] += 1
        if in_flight[MANY[number]]:
            in_flight[MANY[number]] -= 1
            balancer.observe(MANY[number], seconds, ok=ok, now=now)
        pool = list(balancer._pool.values())
        assert len(pool) <= POOL_SIZE
        assert [probe.at for probe in pool] == sorted(probe.at for probe in pool)
        assert all(now - probe.at <= PROBE_AGE_S and probe.uses >= 1 for probe in pool)
        assert sorted(balancer._recent) == balancer._recent_sorted


def test_probes_are_of_different_instances_and_everybody_is_asked_sooner_or_later() -> None:
    balancer = prequal()
    asked: Counter[str] = Counter()
    for _ in range(2000):
        places = list(balancer._drawn(len(MANY)))
        assert len(set(places)) == 3
        asked.update(MANY[place] for place in places)
    assert asked.keys() == set(MANY)
    assert max(asked.values()) < 2 * min(asked.values())


def test_a_burst_into_an_idle_fleet_is_spread() -> None:
    balancer, in_flight = prequal(), dict.fromkeys(MANY, 0)
    for _ in range(400):
        in_flight[balancer.choose(MANY, in_flight, 0.0)] += 1
    assert max(in_flight.values()) <= 20, "10 on average"
    assert min(in_flight.values()) >= 2


def test_with_draws_that_always_name_the_same_it_still_chooses() -> None:
    balancer, in_flight = prequal(cycle([0.0]).__next__), dict.fromkeys(MANY, 0)
    assert all(balancer.choose(MANY, in_flight, number * 0.3) in in_flight for number in range(50))


# Levels


def test_estimates_are_of_the_nearest_level_and_void_after_silence() -> None:
    levels = Levels()
    levels.observe("a", 0, 0.1, ok=True, now=0.0)
    levels.observe("a", 9, 0.8, ok=True, now=5.0)
    assert levels.expected_s("a", 1, 5.0) == 0.1
    assert levels.expected_s("a", 15, 5.0) == 0.8
    assert levels.expected_s("a", 0, DECAY_S + 1.0) == 0.8, "the only one left"
    assert levels.expected_s("a", 0, DECAY_S + 6.0) == UNTRIED * INITIAL_S
    levels.observe("a", 0, 0.2, ok=True, now=20.0)
    assert levels.expected_s("a", 0, 20.0) == 0.2


def test_estimates_follow_what_is_observed() -> None:
    levels = Levels()
    for _ in range(30):
        levels.observe("a", 0, 0.1, ok=True, now=0.0)
    levels.observe("a", 0, 0.2, ok=True, now=0.0)
    assert levels.expected_s("a", 0, 0.0) == pytest.approx(0.13)


def test_a_failure_counts_at_once_at_every_level_until_something_succeeds() -> None:
    levels = Levels()
    for level in (0, 1, 2, 4):
        levels.observe("a", level, 0.1, ok=True, now=0.0)
    levels.observe("a", 4, 0.0001, ok=False, now=1.0)
    assert [levels.expected_s("a", level, 1.0) for level in (0, 4, 99)] == [pytest.approx(1.0)] * 3
    assert levels.failed_s("a", 1.0) == pytest.approx(1.0)
    assert levels.failed_s("a", 1.0 + DECAY_S) == 0.0
    assert levels.expected_s("a", 0, 20.0) == pytest.approx(UNTRIED * 0.1), "the usual, not 30 ms"
    levels.observe("a", 4, 0.1, ok=True, now=1.0)
    assert levels.failed_s("a", 1.0) == 0.0


def test_answers_of_nodes_are_probes_that_count_what_others_send_there() -> None:
    balancer = prequal()
    for name in "ab":
        balancer.told(name, Load(8 * (name == "a"), 0.010 + 0.080 * (name == "a"), distance_s=0.001), 0.0)
    assert balancer.choose("ab", {"a": 0, "b": 1}, 0.0) == "b", "a is idle as far as this node knows"

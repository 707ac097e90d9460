"""Weights and slow start: one rule, read directly and seen through the balancers that share by weight."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dlproxy.policy.balancing import WeightedRoundRobin, make_balancer
from dlproxy.policy.balancing.weights import Weights


def test_who_was_never_added_weighs_one() -> None:
    assert Weights(10.0).at("a", 5.0) == 1.0


@pytest.mark.parametrize(
    ("after_s", "weight"),
    [(0.0, 0.4), (5.0, 2.2), (9.0, 3.64), (10.0, 4.0), (1e9, 4.0)],
)
def test_the_weight_rises_in_a_straight_line_from_a_tenth(after_s: float, weight: float) -> None:
    weights = Weights(10.0)
    weights.add("a", 100.0, 4.0)
    assert weights.at("a", 100.0 + after_s) == pytest.approx(weight)
    assert ("a" in weights.rising) is (after_s < 10.0)


def test_without_slow_start_all_of_it_counts_at_once_and_coming_back_begins_anew() -> None:
    none, some = Weights(), Weights(10.0)
    none.add("a", 0.0, 3.0)
    assert none.at("a", 0.0) == 3.0
    some.add("a", 0.0)
    assert some.at("a", 20.0) == 1.0
    some.forget("a")
    some.add("a", 20.0)
    assert some.at("a", 20.0) == pytest.approx(0.1)


def test_even_is_when_everybody_weighs_one() -> None:
    weights = Weights(10.0)
    assert weights.even
    weights.add("a", 0.0)
    assert not weights.even, "it rises"
    assert weights.at("a", 10.0) == 1.0
    assert weights.even
    plain = Weights()
    for instance, weight in (("a", 1.0), ("b", 2.0), ("c", 3.0)):
        plain.add(instance, 0.0, weight)
    plain.forget("b")
    assert not plain.even
    plain.forget("c")
    assert plain.even


@given(ups=st.lists(st.floats(0.0, 20.0), min_size=1, max_size=5), now=st.floats(20.0, 50.0), slow_start_s=st.floats(0.1, 30.0))
def test_the_top_share_is_that_of_whoever_came_first(ups: list[float], now: float, slow_start_s: float) -> None:
    weights = Weights(slow_start_s)
    for number, up_at in enumerate(ups):
        weights.add(str(number), up_at)
    top = weights.top_share(now)
    assert top == pytest.approx(max(weights.at(str(number), now) for number in range(len(ups))))
    assert 0.1 <= top <= 1.0


def test_those_that_start_together_share_evenly_and_one_that_joins_gets_a_tenth_of_a_share() -> None:
    balancer = make_balancer("weighted-round-robin", slow_start_s=10.0)
    in_flight = dict.fromkeys("abc", 0)
    for instance in "ab":
        balancer.add(instance, 0.0)
    assert [balancer.choose(["a", "b"], in_flight, 1.0) for _ in range(4)] == ["a", "b", "a", "b"]
    balancer.add("c", 100.0)
    chosen = [balancer.choose(list("abc"), in_flight, 100.0) for _ in range(210)]
    assert chosen.count("c") == pytest.approx(210 * 0.1 / 2.1, abs=1)
    chosen = [balancer.choose(list("abc"), in_flight, 110.0) for _ in range(300)]
    assert chosen.count("c") == pytest.approx(100, abs=1)


@given(weights=st.dictionaries(st.sampled_from("abcdef"), st.integers(1, 9), min_size=1), cycles=st.integers(1, 4))
def test_smooth_turns_are_exact_over_a_cycle_and_never_a_turn_ahead(weights: dict[str, int], cycles: int) -> None:
    balancer = WeightedRoundRobin()
    for instance, weight in weights.items():
        balancer.add(instance, 0.0, weight)
    in_flight, total = dict.fromkeys(weights, 0), sum(weights.values())
    taken = dict.fromkeys(weights, 0)
    for turn in range(1, cycles * total + 1):
        taken[balancer.choose(list(weights), in_flight, 0.0)] += 1
        for instance, times in taken.items():
            assert times < turn * weights[instance] / total + 1.0, "bunched"
    assert taken == {instance: cycles * weight for instance, weight in weights.items()}


def test_five_one_one_is_spread_as_nginx_does() -> None:
    balancer = WeightedRoundRobin()
    for instance, weight in zip("abc", (5.0, 1.0, 1.0), strict=True):
        balancer.add(instance, 0.0, weight)
    assert "".join(balancer.choose(list("abc"), dict.fromkeys("abc", 0), 0.0) for _ in range(7)) == "aabacaa"

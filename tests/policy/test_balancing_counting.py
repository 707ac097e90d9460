"""Turns, least connections and two choices without latency: tables, and that equals get the same."""

from collections import Counter
from collections.abc import Callable
from itertools import cycle
from random import Random

import pytest

from dlproxy.policy.balancing import Balancer, LeastConnections, PowerOfTwo, RoundRobin, WeightedRoundRobin

FLEET = ["a", "b", "c"]
NONE_RUNNING = dict.fromkeys(FLEET, 0)


def spread(balancer: Balancer, rounds: int, *, at_a_time: int) -> Counter[str]:
    """Requests per instance if so many come at a time, and all end before the next ones come."""
    chosen: Counter[str] = Counter()
    for now in range(rounds):
        in_flight = dict.fromkeys(FLEET, 0)
        for _ in range(at_a_time):
            instance = balancer.choose(FLEET, in_flight, float(now))
            in_flight[instance] += 1
            chosen[instance] += 1
        for instance, times in in_flight.items():
            for _ in range(times):
                balancer.observe(instance, 0.010, ok=True, now=float(now))
    return chosen


def test_round_robin_gives_each_its_turn_whatever_it_does() -> None:
    balancer = RoundRobin()
    balancer.observe("a", 60.0, ok=False, now=0.0)
    balancer.add("b", 0.0, 7.0)
    balancer.forget("b")
    assert [balancer.choose(FLEET, {"a": 99, "b": 0, "c": 0}, 0.0) for _ in range(7)] == ["a", "b", "c", "a", "b", "c", "a"]


def test_round_robin_goes_on_when_some_are_not_ready() -> None:
    balancer = RoundRobin()
    assert [balancer.choose(ready, NONE_RUNNING, 0.0) for ready in (FLEET, ["b"], FLEET, ["a", "c"])] == ["a", "b", "c", "c"]


def test_the_fewest_in_flight_win_whatever_the_latency() -> None:
    balancer = LeastConnections()
    balancer.observe("b", 60.0, ok=False, now=0.0)
    balancer.forget("b")
    for in_flight, expected in (
        ({"a": 2, "b": 0, "c": 1}, "b"),
        ({"a": 2, "b": 3, "c": 1}, "c"),
        ({"a": 0, "b": 3, "c": 1}, "a"),
    ):
        assert [balancer.choose(FLEET, in_flight, 0.0) for _ in range(4)] == [expected] * 4
    assert balancer.choose(["a", "c"], {"a": 5, "b": 0, "c": 6}, 0.0) == "a"


@pytest.mark.parametrize(
    ("in_flight", "chosen"),
    [
        pytest.param({"a": 1, "b": 3, "c": 9}, "b", id="3 of 4 before 1 of 1"),
        pytest.param({"a": 1, "b": 5, "c": 9}, "a", id="5 of 4 after 1 of 1"),
        pytest.param({"a": 9, "b": 9, "c": 1}, "c", id="1 of a half is 2, and 9 of 4 is more"),
    ],
)
def test_in_flight_counts_per_weight(in_flight: dict[str, int], chosen: str) -> None:
    balancer = LeastConnections()
    for instance, weight in (("a", 1.0), ("b", 4.0), ("c", 0.5)):
        balancer.add(instance, 0.0, weight)
    assert balancer.choose(FLEET, in_flight, 0.0) == chosen


def test_equals_take_turns_by_weight() -> None:
    balancer = LeastConnections()
    balancer.add("b", 0.0, 2.0)
    assert Counter(balancer.choose(FLEET, NONE_RUNNING, 0.0) for _ in range(400)) == {"a": 100, "b": 200, "c": 100}


@pytest.mark.parametrize("at_a_time", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("make", [RoundRobin, WeightedRoundRobin, LeastConnections])
def test_among_equals_everybody_gets_the_same(make: Callable[[], Balancer], at_a_time: int) -> None:
    assert spread(make(), 300, at_a_time=at_a_time) == dict.fromkeys(FLEET, 100 * at_a_time)


def draws(*numbers: float) -> Callable[[], float]:
    return cycle(numbers).__next__


@pytest.mark.parametrize(
    ("first", "second", "in_flight", "chosen"),
    [
        pytest.param(0.0, 0.0, {"a": 1, "b": 0, "c": 0}, "b", id="the first and the one after it"),
        pytest.param(0.0, 0.99, {"a": 1, "b": 0, "c": 0}, "c", id="the first and the last"),
        pytest.param(0.5, 0.0, {"a": 0, "b": 1, "c": 0}, "a", id="the one before"),
        pytest.param(0.5, 0.99, {"a": 0, "b": 1, "c": 2}, "b", id="the third is not looked at, nor the first"),
        pytest.param(0.99, 0.5, {"a": 0, "b": 1, "c": 1}, "c", id="of equals the first drawn"),
    ],
)
def test_of_two_drawn_the_one_with_less_in_flight_is_chosen(
    first: float, second: float, in_flight: dict[str, int], chosen: str
) -> None:
    assert PowerOfTwo(draws(first, second)).choose(FLEET, in_flight, 0.0) == chosen
    assert PowerOfTwo(draws(first, second)).choose(dict.fromkeys(FLEET), in_flight, 0.0) == chosen


def test_one_alone_is_chosen_and_two_are_always_compared() -> None:
    assert PowerOfTwo(Random(1).random).choose(["a"], {"a": 99}, 0.0) == "a"
    balancer = PowerOfTwo(Random(1).random)
    assert {balancer.choose(["a", "b"], {"a": 1, "b": 0}, 0.0) for _ in range(100)} == {"b"}


def test_the_power_of_two_choices_spreads_a_burst_far_better_than_chance() -> None:
    names = [str(number) for number in range(1000)]
    in_flight = dict.fromkeys(names, 0)
    balancer = PowerOfTwo(Random(7).random)
    for _ in range(1000):
        in_flight[balancer.choose(names, in_flight, 0.0)] += 1
    assert max(in_flight.values()) <= 4, "log log n; one choice gives 5 to 7"
    assert len({name for name, times in in_flight.items() if times}) > 700

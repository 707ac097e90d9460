"""Consistent hashing: who gets a key, what moves when somebody leaves or comes, and that nobody gets more than the bound."""

import subprocess
import sys
from collections import Counter
from math import ceil, sqrt

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dlproxy.policy.balancing import ConsistentHash
from dlproxy.policy.balancing.consistent_hash import LOAD_FACTOR, POINTS

KEYS = [f"key-{number}" for number in range(2000)]


def fleet(count: int) -> list[str]:
    return [f"instance-{number}" for number in range(count)]


def homes(balancer: ConsistentHash, ready: list[str], now: float = 0.0) -> dict[str, str]:
    """Where each key goes while nothing is in flight."""
    idle = dict.fromkeys(ready, 0)
    return {key: balancer.choose(ready, idle, now, key) for key in KEYS}


def test_a_key_keeps_its_instance_in_every_process() -> None:
    """Python's own hash of a string differs from process to process."""
    code = (
        "from dlproxy.policy.balancing import ConsistentHash; fleet = list('abcde'); balancer = ConsistentHash(); "
        "import sys; sys.stdout.write(''.join(balancer.choose(fleet, dict.fromkeys(fleet, 0), 0.0, str(n)) for n in range(40)))"
    )
    run = [subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout for _ in range(2)]
    assert run[0] == run[1]
    assert len(set(run[0])) == 5


@pytest.mark.parametrize("count", [2, 5, 20])
def test_only_the_leavers_keys_move_and_they_return_with_it(count: int) -> None:
    balancer, names = ConsistentHash(), fleet(count)
    before = homes(balancer, names)
    gone, others = names[1], [name for name in names if name != names[1]]
    balancer.forget(gone)
    after = homes(balancer, others)
    moved = [key for key in KEYS if before[key] != after[key]]
    assert moved == [key for key in KEYS if before[key] == gone]
    balancer.add(gone, 0.0)
    assert homes(balancer, names) == before


@pytest.mark.parametrize("count", [2, 5, 20])
def test_every_share_is_near_one_nth(count: int) -> None:
    """A share of the ring has a relative deviation of 1 / sqrt(POINTS), one of the keys a binomial one more: 4 of both."""
    share = 1 / count
    deviation = sqrt(share**2 / POINTS + share * (1 - share) / len(KEYS))
    got = Counter(homes(ConsistentHash(), fleet(count)).values())
    for name in fleet(count):
        assert abs(got[name] / len(KEYS) - share) < 4 * deviation


def test_who_is_not_ready_keeps_its_keys_for_later() -> None:
    balancer, names = ConsistentHash(), fleet(4)
    before = homes(balancer, names)
    others = homes(balancer, names[1:])
    assert all(others[key] == home for key, home in before.items() if home != names[0])
    assert homes(balancer, names) == before


def test_more_weight_only_gains_keys() -> None:
    names = fleet(5)
    light, heavy = ConsistentHash(), ConsistentHash()
    heavy.add(names[2], 0.0, 3.0)
    before, after = homes(light, names), homes(heavy, names)
    assert {after[key] for key in KEYS if before[key] != after[key]} == {names[2]}
    assert Counter(after.values())[names[2]] > 1.5 * Counter(before.values())[names[2]]


def test_in_slow_start_keys_move_to_the_newcomer_only_and_more_and_more() -> None:
    balancer, names = ConsistentHash(10.0), fleet(4)
    for name in names[:3]:
        balancer.add(name, 0.0)
    before = homes(balancer, names[:3])
    assert homes(balancer, names[:3], 5.0) == before, "those that start together keep their keys"
    assert homes(balancer, names[:3], 20.0) == before
    balancer.add(names[3], 100.0)
    had = 0
    for now in (100.0, 103.0, 106.0, 110.0, 200.0):
        after = homes(balancer, names, now)
        assert {after[key] for key in KEYS if before[key] != after[key]} == {names[3]}
        got = Counter(after.values())[names[3]]
        assert got > had or now == 200.0
        had = got
    assert had == pytest.approx(len(KEYS) / 4, rel=0.4)


@given(
    keys=st.lists(st.sampled_from(["popular", "popular", "popular", "x", "y"]), min_size=1, max_size=120),
    count=st.integers(1, 9),
    ends=st.lists(st.integers(0, 8), max_size=60),
)
def test_nobody_ever_gets_more_than_the_bound(keys: list[str], count: int, ends: list[int]) -> None:
    balancer, names = ConsistentHash(), fleet(count)
    in_flight = dict.fromkeys(names, 0)
    for number, key in enumerate(keys):
        chosen = balancer.choose(names, in_flight, 0.0, key)
        bound = ceil(LOAD_FACTOR * (sum(in_flight.values()) + 1) / count)
        in_flight[chosen] += 1
        assert in_flight[chosen] <= bound
        if number < len(ends):
            ended = names[ends[number] % count]
            in_flight[ended] = max(in_flight[ended] - 1, 0)


@given(
    in_flight=st.dictionaries(st.sampled_from("abcdef"), st.integers(0, 9), min_size=1),
    weights=st.dictionaries(st.sampled_from("abcdef"), st.sampled_from([0.1, 1.0, 2.5])),
    data=st.data(),
)
def test_the_bound_holds_by_weight_among_those_that_are_ready(
    in_flight: dict[str, int], weights: dict[str, float], data: st.DataObject
) -> None:
    ready = data.draw(st.lists(st.sampled_from(sorted(in_flight)), min_size=1, unique=True))
    balancer = ConsistentHash()
    for name, weight in weights.items():
        balancer.add(name, 0.0, weight)
    chosen = balancer.choose(ready, in_flight, 0.0, "key")
    whole = sum(weights.get(name, 1.0) for name in ready)
    busy = sum(in_flight[name] for name in ready) + 1
    assert chosen in ready
    assert in_flight[chosen] + 1 <= ceil(LOAD_FACTOR * busy * weights.get(chosen, 1.0) / whole + 1e-9)


def test_a_popular_key_spills_over_to_the_same_second_choice() -> None:
    balancer, names = ConsistentHash(), fleet(4)
    home = balancer.choose(names, dict.fromkeys(names, 0), 0.0, "popular")
    full = {name: 3 if name == home else 0 for name in names}
    second = balancer.choose(names, full, 0.0, "popular")
    assert second != home
    assert {balancer.choose(names, full, 0.0, "popular") for _ in range(10)} == {second}
    assert balancer.choose(names, dict.fromkeys(names, 0), 0.0, "popular") == home


def test_without_affinity_the_fewest_in_flight_win_and_equals_take_turns() -> None:
    balancer = ConsistentHash()
    assert balancer.choose(["a", "b", "c"], {"a": 2, "b": 1, "c": 2}, 0.0) == "b"
    balancer = ConsistentHash()
    assert Counter(balancer.choose(["a", "b"], {"a": 0, "b": 0}, 0.0) for _ in range(100)) == {"a": 50, "b": 50}


def test_whoever_learnt_of_the_instances_in_another_order_agrees() -> None:
    """As front nodes do that follow one group."""
    names = [f"m-10.0.0.{number}:8000" for number in range(6)]
    rings = [ConsistentHash(), ConsistentHash()]
    for ring, order in zip(rings, (names, [*reversed(names)]), strict=True):
        for name in order:
            ring.add(name, 0.0)
    idle = dict.fromkeys(names, 0)
    for key in map(str, range(200)):
        assert len({ring.choose(order, idle, 0.0, key) for ring, order in zip(rings, (names, [*idle]), strict=True)}) == 1

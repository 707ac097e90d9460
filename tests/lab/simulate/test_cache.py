"""A simulated cache: hits as the policy has them, no batch for a hit, one run for those that ask at once, and one fate."""

from collections.abc import Iterable
from math import inf

import pytest

from dlproxy.lab.load.payload import picks
from dlproxy.lab.report.result import Result
from dlproxy.lab.report.table import table
from dlproxy.lab.simulate.engine import Call, LoopCosts
from dlproxy.lab.simulate.faults import parse
from dlproxy.lab.simulate.run import simulate
from dlproxy.policy.caching import POLICIES
from tests.lab.simulate.test_run import scenario
from tests.policy.caching.hits import Workload, ours

KEYS, ZIPF, ANSWERS = 1_000, 1.0, 100
QUICK = "base=1us"  # so that nobody joins another


def rows_run(result: Result) -> int:
    return sum(size * times for size, times in result.batch_sizes.items())


@pytest.mark.parametrize("policy", POLICIES)
def test_hits_are_those_of_the_policy_and_only_misses_run(policy: str) -> None:
    result = simulate(scenario(service=QUICK, keys=KEYS, zipf=ZIPF, cache=(policy, ANSWERS), rate=1000.0))
    use = result.cache["m"]
    asked = picks(KEYS, ZIPF, (0, 2, 0))
    drawn = [next(asked) for _ in range(result.sent)]
    assert use.joined == 0
    assert use.hits / result.sent == pytest.approx(ours(policy, Workload(drawn, [1] * KEYS, ANSWERS)), abs=0.01)
    assert use.hits + use.misses == result.sent == result.ok
    assert rows_run(result) == use.misses
    share = f"{100 * use.hits / result.sent:.3g} %"
    assert f"cache        m: {share} of {result.sent:,} requests hit" in table(result)


def test_a_model_at_its_limit_answers_more_by_one_over_the_misses() -> None:
    """A row takes 20 ms; three times of what it can run is asked for."""
    model = {"service": "base=1ms,row=19ms", "slo": "p99=200ms", "rate": 150.0, "duration_s": 60.0}
    without = simulate(scenario(**model))
    cached = simulate(scenario(**model, keys=10_000, zipf=1.0, cache=("s3-fifo", 1_000)))
    assert without.rate_rps < 55.0
    missed = cached.cache["m"].misses / cached.sent
    assert missed < 0.4
    assert cached.rate_rps == pytest.approx(without.rate_rps / missed, rel=0.1)


def at_once(count: int, **others: object) -> Result:
    """So many requests for one key at 1 s, and one more at 4 s."""
    calls = [Call("m", 1, inf, 1.0, key=7) for _ in range(count)] + [Call("m", 1, inf, 4.0, key=7)]
    requests: Iterable[Call] = calls
    return simulate(scenario(requests=lambda: requests, cache=("s3-fifo", 100), **others))


@pytest.mark.parametrize("costs", [LoopCosts(), LoopCosts(read_s=20e-6, write_s=15e-6, path_s=100e-6)], ids=["quick", "loop"])
def test_identical_requests_at_once_are_one_run_and_as_many_answers(costs: LoopCosts) -> None:
    result = at_once(256, costs=costs)
    use = result.cache["m"]
    assert (use.misses, use.joined, use.hits) == (1, 255, 1)
    assert result.ok == 257
    assert result.batch_sizes == {1: 1}
    assert result.latency_ms["max"] < 10.5 + 256 * 0.035 + 1.0


def test_a_failure_reaches_all_that_joined_and_is_not_kept() -> None:
    result = at_once(256, faults=[parse("fail:node=node-0,at=0,for=2")])
    use = result.cache["m"]
    assert result.failed == 256
    assert (use.misses, use.joined, use.hits) == (2, 255, 0)
    assert result.ok == 1


def test_requests_of_many_rows_are_answered_as_one() -> None:
    result = simulate(scenario(service="base=1ms", rows=64, keys=10, cache=("lru", 100)))
    use = result.cache["m"]
    assert use.misses == 10
    assert use.hits + use.joined == result.sent - 10
    assert rows_run(result) == 640


def test_keys_alone_change_nothing() -> None:
    plain, keyed = simulate(scenario(slo="p99=50ms")), simulate(scenario(slo="p99=50ms", keys=10, zipf=1.0))
    assert keyed.cache == {}
    assert (keyed.latency_ms, keyed.batch_sizes) == (plain.latency_ms, plain.batch_sizes)


def test_every_node_and_every_model_has_a_cache_of_its_own() -> None:
    both = scenario(service=QUICK, keys=5, cache=("lru", 100), nodes=2, balancer="round-robin")
    both.models["n"] = both.models["m"]
    result = simulate(both)
    assert result.cache["m"].misses == result.cache["n"].misses == 10

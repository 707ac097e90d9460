"""The simulated cluster decides as production code does, decision by decision, and a small one shows what a large one does."""

from itertools import islice
from math import inf
from pathlib import Path

import numpy as np
import pytest

from benchmarks.harness.checks import Findings
from benchmarks.scale import balancers, page
from benchmarks.scale.__main__ import findings, parse_options
from benchmarks.scale.cluster import advance, lose
from benchmarks.scale.fidelity import pairs
from benchmarks.scale.scenarios import Extent, Outcome, caches, region, ring_of, run, storm
from benchmarks.scale.state import (
    ANSWERED,
    FAILED,
    HASHED,
    HITS,
    LEAST,
    LOST,
    ROUND_ROBIN,
    SENT,
    TIMED_OUT,
    TWO,
    Rules,
    rules,
    state,
)
from dlproxy.policy.balancing import ConsistentHash, LeastPeakEwma, PowerOfTwo, RoundRobin
from dlproxy.policy.ejection import OutlierEjection
from dlproxy.policy.retry_budget import RetryBudget

NAMES = [str(number) for number in range(7)]
TINY = Extent(nodes=4, part=4, length=0.05)


def _cluster(policy: int, keys: int = 0, share: float = 0.0) -> tuple[Rules, balancers.State]:
    what = rules(nodes=len(NAMES), fronts=1, rate=1.0, policy=policy, keys=keys, share=share)
    ring = ring_of(len(NAMES), keys) if keys else None
    return what, state(what, 1, np.random.default_rng(0), ring=ring)


@pytest.mark.parametrize("policy", [TWO, LEAST, ROUND_ROBIN, HASHED])
@pytest.mark.parametrize("seed", range(4))
def test_each_choice_is_the_production_balancers(policy: int, seed: int) -> None:
    draws, same_draws, events = (np.random.default_rng(number) for number in (seed, seed, seed + 100))
    made = {
        TWO: lambda: PowerOfTwo(draws.random, latency_aware=True),
        LEAST: LeastPeakEwma,
        ROUND_ROBIN: RoundRobin,
        HASHED: ConsistentHash,
    }
    balancer = made[policy]()
    for name in NAMES:
        balancer.add(name, 0.0)
    what, cluster = _cluster(policy, keys=50)
    in_flight, now, chosen = dict.fromkeys(NAMES, 0), 0.0, set()
    for _ in range(600):
        now += float(events.exponential(0.5 if events.random() < 0.02 else 0.01))
        busy = [name for name in NAMES if in_flight[name]]
        if busy and events.random() < 0.48:
            name, ok = busy[int(events.random() * len(busy))], bool(events.random() < 0.9)
            service_s = float(events.exponential(0.02))
            in_flight[name] -= 1
            cluster.own[0, int(name)] -= 1
            cluster.own_sum[0] -= 1
            balancer.observe(name, service_s, ok=ok, now=now)
            balancers.observe(cluster, 0, int(name), service_s, ok, now)
            continue
        key = int(events.random() * 50)
        name = balancer.choose(NAMES, in_flight, now, str(key))
        assert balancers.choose(what, cluster, 0, key, now, same_draws) == int(name)
        chosen.add(name)
        in_flight[name] += 1
        cluster.own[0, int(name)] += 1
        cluster.own_sum[0] += 1
    assert len(chosen) == len(NAMES)


@pytest.mark.parametrize("share", [0.0, 0.2])
def test_the_retry_budget_is_the_production_one(share: float) -> None:
    budget, events = RetryBudget(share), np.random.default_rng(1)
    what, cluster = _cluster(TWO, share=share)
    now, allowed = 0.0, []
    for _ in range(4000):
        now += float(events.exponential(3.0 if events.random() < 0.01 else 0.005))
        if events.random() < 0.5:
            budget.earn(1, now)
            balancers.earn(cluster, 0, now)
        else:
            allowed.append(budget.spend(1, now))
            assert balancers.spend(what, cluster, 0, now) is allowed[-1]
    assert set(allowed) == ({True, False} if share else {False})


def test_failures_in_a_row_eject_as_in_production_and_never_more_than_half() -> None:
    what, cluster = _cluster(TWO)
    ejection, events = OutlierEjection(), np.random.default_rng(2)
    for name in NAMES:
        ejection.add(name, 0.0)
    for _ in range(300):
        open_ones = {name for name in NAMES if not ejection.available(name)}
        name = NAMES[int(events.random() * len(NAMES))]
        if name in open_ones:
            continue
        ok = bool(events.random() < 0.4)
        ejection.observe(name, ok=ok, now=0.0)
        balancers.ejected_for_s(what, cluster, 0, int(name), ok)
        out = {name for name in NAMES if cluster.place[0, int(name)] < 0}
        assert out == {name for name in NAMES if not ejection.available(name)}
    assert len(out) == len(NAMES) // 2


def test_the_cheap_node_is_the_lane(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("benchmarks.scale.fidelity.POLICIES", {"power-of-two": TWO})
    monkeypatch.setattr("benchmarks.scale.fidelity.LOADS", (0.7,))
    [pair] = pairs(TINY, 1)
    assert all(abs(value) < 0.08 for value in pair.off_by().values()), pair.off_by()
    found = Findings("")
    page.fidelity(found, [pair])
    assert not [check for check in found.checks if check.measured > 8.0]


def test_every_request_ends_once() -> None:
    what = rules(nodes=3, fronts=2, rate=4500.0, share=0.2, most_tries=5)
    outcome = run("overload", what, 2, 3)
    sent, answered, failed = (int(outcome.seconds[:, kind].sum()) for kind in (SENT, ANSWERED, FAILED))
    assert sent == answered + failed
    assert 0 < failed < sent


def test_the_same_seed_gives_the_same() -> None:
    first, second, other = (run("", rules(nodes=2, fronts=2, rate=1000.0), 2, seed).rows.tolist() for seed in (5, 5, 6))
    assert first == second != other


def test_a_lost_region_is_found_out_and_taken_back() -> None:
    outcome = next(region(TINY, 1))
    assert outcome.seconds[:, LOST].sum() > 0
    assert outcome.share(ANSWERED, 0) > 0.99
    assert outcome.seconds[-1, ANSWERED] == outcome.seconds[-1, SENT]
    alone = run(
        "", rules(nodes=4, fronts=1, rate=1000.0), 2, 1, happens={1.0: lambda what, made, now: lose(what, made, 3, 4, now)}
    )
    assert alone.seconds[:, LOST].sum() == alone.seconds[:, FAILED].sum() > 0


@pytest.fixture(scope="module")
def stormy() -> list[Outcome]:
    """Nodes that refuse, with the budget (twice) and without."""
    return list(islice(storm(Extent(nodes=2, part=2, length=0.05), 1), 3))


def test_the_budget_contains_a_storm(stormy: list[Outcome]) -> None:
    contained, _, raging = (one.amplification(3) for one in stormy)
    assert raging > 1.2 * contained


def test_clients_of_nodes_that_queue_give_up_and_are_not_counted_twice() -> None:
    what = rules(nodes=2, fronts=1, rate=4000.0, share=0.2, most_tries=5, refuses=False)
    outcome = run("", what, 2, 1)
    sent, answered, failed = (int(outcome.seconds[:, kind].sum()) for kind in (SENT, ANSWERED, FAILED))
    assert outcome.seconds[:, TIMED_OUT].sum() > 0
    assert sent == answered + failed


def test_affinity_finds_more_in_caches() -> None:
    spread, sticky = (one.share(HITS) for one in islice(caches(TINY, 1), 2))
    assert sticky > 1.1 * spread


def test_a_full_pool_of_slots_is_an_error_and_no_loss() -> None:
    what = rules(nodes=2, fronts=1, rate=5000.0, share=inf, most_tries=5)
    cluster = state(what, 3, np.random.default_rng(0), slots=40)
    with pytest.raises(MemoryError, match="slots"):
        advance(what, cluster, 2.0, np.random.default_rng(0))


def test_the_page_and_its_pictures_are_of_what_was_found(stormy: list[Outcome], tmp_path: Path) -> None:
    made, abouts = findings({"storm": stormy}, [])
    text = page.text(made, abouts, command="it", date="today", summary="much")
    assert "tries over requests, worst 11 s" in text
    assert "| refuses, no budget |" in text
    page.pictures({"storm": stormy}, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["scale-storm.svg"]


def test_a_page_needs_the_whole_size(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse_options(["--small", "--write"])
    assert "leave out --small" in capsys.readouterr().err

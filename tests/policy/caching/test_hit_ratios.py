"""Hit ratios beside libcachesim's, on keys by Zipf's law and of a real trace, and LRU's beside Che's approximation.

Where DLPROXY_LIBCACHESIM names an interpreter that has it, it is asked; else what it said is read (make prove-caching).
"""

import json
import os
import sys
from functools import cache
from pathlib import Path

import numpy as np
import pytest

from dlproxy.policy.caching import POLICIES, make_cache
from tests.policy.caching import hits
from tests.policy.caching.hits import Workload
from tests.policy.caching.their_filter import TheirWTinyLfu

LIVE = os.environ.get("DLPROXY_LIBCACHESIM")
TRACE = os.environ.get("DLPROXY_TRACE")
NEAR = 0.005
EXACT = [policy for policy in POLICIES if policy != "w-tinylfu"]
SIZE = (100_000, 300_000) if LIVE else hits.SMALL
WORKLOADS = [
    f"zipf {alpha}, {share:.0%}{more}" for alpha in hits.ALPHAS for more in ("", ", 10% one-hit") for share in hits.SHARES
]


@cache
def _workloads() -> dict[str, Workload]:
    return dict(hits.workloads(*SIZE))


@cache
def _theirs(name: str) -> dict[str, float]:
    if LIVE:
        return hits.theirs(LIVE, _workloads()[name])
    ratios: dict[str, float] = json.loads(hits.RECORDED.read_text("utf-8"))[name]
    return ratios


@pytest.mark.parametrize("policy", EXACT)
@pytest.mark.parametrize("name", [*WORKLOADS, "zipf 1.0, 10%, sizes"])
def test_hits_as_often_as_libcachesims(name: str, policy: str) -> None:
    assert hits.ours(policy, _workloads()[name]) == pytest.approx(_theirs(name)[policy], abs=NEAR)


@pytest.mark.parametrize("name", [*WORKLOADS, "zipf 1.0, 10%, sizes"])
def test_w_tinylfu_hits_as_often_or_more_often(name: str) -> None:
    """libcachesim's filter raises ten of 14.4 counters per entry for each key: with few entries it tells less."""
    ratio = hits.ours("w-tinylfu", _workloads()[name])
    assert -NEAR <= ratio - _theirs(name)["w-tinylfu"] <= 0.03


@pytest.mark.parametrize("name", WORKLOADS)
def test_w_tinylfu_hits_as_often_with_libcachesims_filter(name: str) -> None:
    """Only the filter differs."""
    workload = _workloads()[name]
    kept = TheirWTinyLfu(workload.budget, {hits.digest(key): key for key in set(workload.keys)})
    assert hits.of(kept, workload) == pytest.approx(_theirs(name)["w-tinylfu"], abs=NEAR)


@pytest.mark.skipif(not (LIVE and TRACE), reason="needs libcachesim and the trace (make prove-caching TRACE=FILE)")
@pytest.mark.parametrize("policy", POLICIES)
def test_so_it_does_on_a_real_trace(policy: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert LIVE
    assert TRACE
    workload = hits.trace(Path(TRACE))
    ours, theirs = hits.ours(policy, workload), hits.theirs(LIVE, workload)[policy]
    with capsys.disabled():
        sys.stdout.write(f"\n{policy}: {ours:.4f}, libcachesim {theirs:.4f}")
    assert ours == pytest.approx(theirs, abs=NEAR)


@pytest.mark.parametrize("alpha", hits.ALPHAS)
@pytest.mark.parametrize("share", hits.SHARES)
def test_lru_hits_as_often_as_che_predicts(alpha: float, share: float) -> None:
    keys, size = 5_000, round(5_000 * share)
    drawn = hits.zipf(keys, alpha, 80_000, seed=5)
    kept, found = make_cache("lru", 10 * size), []  # an entry is at most a tenth of the budget
    for key in drawn:
        found.append(kept.get(hits.digest(key)) is not None)
        if not found[-1]:
            kept.put(hits.digest(key), None, 10, 1.0)
    assert np.mean(found[20_000:]) == pytest.approx(_che(alpha, keys, size), abs=NEAR)


def _che(alpha: float, keys: int, size: int) -> float:
    """Che, Tung and Wang, "Hierarchical web caching systems", 2002: a key is there if it was asked for within a time t."""
    weights = np.arange(1, keys + 1) ** -alpha
    asked = weights / weights.sum()
    low, high = 0.0, 1e3 * keys
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (middle, high) if -np.expm1(-asked * middle).sum() < size else (low, middle)
    return float((asked * -np.expm1(-asked * low)).sum())

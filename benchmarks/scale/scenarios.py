"""What is asked of the simulated cluster: sizes, stale reports, caches, a lost region, a storm of retries.

Called by __main__.py and tests. Not aware of: pages, pictures.
"""

from collections.abc import Callable, Iterator
from hashlib import blake2b
from math import inf
from time import perf_counter
from typing import Any

import numpy as np
from msgspec import Struct

from benchmarks.scale.cluster import advance, lose, revive
from benchmarks.scale.state import (
    BIN_RATIO,
    FIRST_BIN_S,
    HASHED,
    RANDOM,
    REPORTED,
    ROUND_ROBIN,
    SENT,
    TRIES,
    Floats,
    Int32s,
    Ints,
    Rules,
    State,
    rules,
    state,
)
from dlproxy.policy.balancing.consistent_hash import POINTS

PER_NODE, LOAD = 1000.0, 0.7  # requests a second, and the share that they are of what a node can do
PER_FRONT = 10  # nodes for one front: 10,000 requests a second
WARM_S = 1.0
DRAIN_S = 2.0
SHIPPED_SHARE, MOST_TRIES = 0.2, 5  # of the client's retries
ONE_FRONT, SUBSETS = "one front", "20 nodes each"
ANSWERS, KEYS, ZIPF = 1024, 1_000_000, 1.0

Happens = Callable[[Rules, State, float], None]


class Outcome(Struct):
    """Of one run. Latencies in ms, of requests first sent after the warm-up; `rows`: of each node, a second.

    `seconds`: counters by the second, as State has them; `p99_by_second` in ms.
    """

    name: str
    rules: Rules
    requests: int
    p50: float
    p99: float
    p999: float
    rows: Floats
    seconds: Ints
    p99_by_second: list[float]
    mean_batch: float
    took_s: float

    @property
    def spread(self) -> float:
        """How far the busiest of 1,000 nodes is above the mean: the 99.9 % quantile of nodes' rates over their mean, less 1."""
        return float(np.quantile(self.rows, 0.999) / self.rows.mean() - 1.0)

    def share(self, what: int, since: int = 1, until: int | None = None) -> float:
        """Of the requests first sent in these seconds."""
        part = self.seconds[since:until].sum(axis=0)
        return float(part[what] / max(part[SENT], 1))

    def amplification(self, window: int) -> float:
        """Tries over requests, in the worst so many seconds in a row."""
        width = np.ones(window, np.int64)
        tries, sent = (np.convolve(self.seconds[:, what], width, "valid") for what in (TRIES, SENT))
        return float((tries / np.maximum(sent, 1)).max())


def quantiles_ms(latencies: Ints, shares: tuple[float, ...]) -> list[float]:
    """Of binned latencies, at the middle of their bins; 0 without any."""
    summed = latencies.cumsum()
    if not summed[-1]:
        return [0.0 for _ in shares]
    places = np.searchsorted(summed, np.array(shares) * summed[-1])
    return [float(place) for place in FIRST_BIN_S * BIN_RATIO ** (places + 0.5) * 1e3]


def run(
    name: str,
    what: Rules,
    seconds: int,
    seed: int,
    *,
    happens: dict[float, Happens] | None = None,
    popularity: Floats | None = None,
    ring: tuple[Int32s, Int32s] | None = None,
    answers: int = 0,
    slots: int = 0,
) -> Outcome:
    """So many virtual seconds, in which at these instants something happens to the cluster."""
    began = perf_counter()
    random = np.random.default_rng(seed)
    made = state(what, seconds + 1, random, popularity=popularity, ring=ring, answers=answers, slots=slots)
    after_warm_up = made.rows.copy()
    instants = sorted({*np.arange(0.5, seconds, 0.5).tolist(), *(happens or {}), WARM_S, float(seconds)})
    for instant in instants:
        advance(what, made, instant, random)
        if instant == WARM_S:
            after_warm_up = made.rows.copy()
        if happens and instant in happens:
            happens[instant](what, made, instant)
    rows = (made.rows - after_warm_up) / (seconds - WARM_S)
    made.arrival_at = inf
    advance(what, made, seconds + DRAIN_S, random)
    counted, latencies = np.array(made.seconds[:seconds]), np.array(made.latencies[:seconds])
    p50, p99, p999 = quantiles_ms(latencies[int(WARM_S) :].sum(axis=0), (0.5, 0.99, 0.999))
    return Outcome(
        name=name,
        rules=what,
        requests=int(counted[:, SENT].sum()),
        p50=p50,
        p99=p99,
        p999=p999,
        rows=rows,
        seconds=counted,
        p99_by_second=[quantiles_ms(second, (0.99,))[0] for second in latencies],
        mean_batch=float(rows.sum() * (seconds - WARM_S) / max(made.batches.sum(), 1)),
        took_s=perf_counter() - began,
    )


class Extent(Struct, frozen=True):
    """`nodes`: of a whole cluster; `part`: of a slice of it, with as many requests for each; `length`: of runs, as a factor."""

    nodes: int
    part: int
    length: float

    def seconds(self, whole: float) -> int:
        """Of a run that takes so many at length 1."""
        return max(round(whole * self.length), 3)


FULL = Extent(nodes=1000, part=100, length=1.0)
SMALL = Extent(nodes=20, part=10, length=0.05)


def shape(nodes: int) -> dict[str, Any]:
    """So many nodes with a front for each ten."""
    return {"nodes": nodes, "fronts": max(nodes // PER_FRONT, 1), "rate": PER_NODE * nodes}


def sizes(extent: Extent, seed: int) -> Iterator[Outcome]:
    """The shipped policy (two drawn, by peak-EWMA of latency times what is in flight) at 10, 100 and 1,000 nodes."""
    sizes = ((10, 120), (100, 20), (1000, 60)) if extent is FULL else ((extent.part, 60), (extent.nodes, 60))
    for nodes, seconds in sizes:
        part = extent.seconds(min(seconds, 6 * FULL.nodes // nodes))  # as many requests, but for one
        yield run(ONE_FRONT, rules(**{**shape(nodes), "fronts": 1}), extent.seconds(seconds), seed)
        for name, subset in ((SUBSETS, 2 * PER_FRONT), ("10 nodes each", PER_FRONT), ("all nodes", nodes)):
            yield run(name, rules(**shape(nodes), subset=min(subset, nodes)), part, seed)


def policies(extent: Extent, seed: int) -> Iterator[Outcome]:
    """Other policies with as many fronts, to compare."""
    for name, policy in (("random", RANDOM), ("round-robin", ROUND_ROBIN), ("two by what is in flight now", REPORTED)):
        yield run(name, rules(**shape(extent.nodes), policy=policy), extent.seconds(4), seed)


AGES_S = (0.0, 0.01, 0.03, 0.1, 0.3, 1.0)
CHOICES = (2, 3, 10, 0)  # 0: all


def staleness(extent: Extent, seed: int) -> Iterator[Outcome]:
    """Least loaded of d, by reports of an age: on a slice, and some on the whole."""
    for choices in CHOICES:
        for age_s in AGES_S:
            yield stale(extent.part, choices, age_s, extent.seconds(5), seed)
    for age_s in AGES_S[1:]:
        yield stale(extent.part, 2, age_s, extent.seconds(5), seed, corrected=True)
    for choices, age_s in ((2, 0.01), (2, 0.03), (3, 0.03)):
        yield stale(extent.nodes, choices, age_s, extent.seconds(4), seed)


def stale(nodes: int, choices: int, age_s: float, seconds: int, seed: int, *, corrected: bool = False) -> Outcome:
    what = rules(**shape(nodes), policy=REPORTED, choices=choices or nodes, age_s=age_s, corrected=corrected)
    return run(f"least of {choices or 'all'}{', own added' if corrected else ''}", what, seconds, seed)


def zipf(keys: int, exponent: float) -> Floats:
    """Cumulative shares of keys, the k-th in proportion to 1 / k^exponent."""
    weights = np.arange(1, keys + 1) ** -exponent
    shares: Floats = np.cumsum(weights) / weights.sum()
    return shares


def ring_of(nodes: int, keys: int) -> tuple[Int32s, Int32s]:
    """The place of each key, and the node at each place, as ConsistentHash makes them for nodes "0", "1" and so on."""
    points = sorted((hash_of(f"{node}#{number}"), node) for node in range(nodes) for number in range(POINTS))
    places = np.array([point for point, _ in points], np.uint64)
    hashes = np.array([hash_of(str(key)) for key in range(keys)], np.uint64)
    owners = np.array([node for _, node in points], np.int32)
    return np.searchsorted(places, hashes, side="left").astype(np.int32), owners


def hash_of(text: str) -> int:
    return int.from_bytes(blake2b(text.encode(), digest_size=8).digest(), "big")


def caches(extent: Extent, seed: int) -> Iterator[Outcome]:
    """Who gets repeated requests: two drawn, or the node of the key, with and without a bound, by own counts and by all."""
    nodes, keys = extent.part, KEYS * extent.part // FULL.nodes
    popularity, ring = zipf(keys, ZIPF), ring_of(nodes, keys)
    several, alone = {**shape(nodes), "keys": keys}, {**shape(nodes), "keys": keys, "fronts": 1}
    for name, what in (
        ("two drawn", rules(**several)),
        ("no bound", rules(**several, policy=HASHED, bound=inf)),
        ("1.25, one front", rules(**alone, policy=HASHED)),
        ("1.25, own counts", rules(**several, policy=HASHED)),
        ("1.25, all counts", rules(**several, policy=HASHED, bound_by_all=True)),
        ("2, all counts", rules(**several, policy=HASHED, bound=2.0, bound_by_all=True)),
    ):
        yield run(name, what, extent.seconds(12), seed, popularity=popularity, ring=ring, answers=ANSWERS)


def region(extent: Extent, seed: int) -> Iterator[Outcome]:
    """A quarter of the nodes is gone for a while, at three loads, and without ejection or second tries."""
    gone_at, back_at, seconds = (5.0, 15.0, 22) if extent is FULL else (1.0, 2.0, 3)

    def go(what: Rules, made: State, now: float) -> None:
        lose(what, made, what.nodes - what.nodes // 4, what.nodes, now)

    def come_back(what: Rules, made: State, now: float) -> None:
        revive(made, what.nodes - what.nodes // 4, what.nodes)

    def at(load: float, nodes: int = extent.part, **more: Any) -> Rules:
        again = {"share": SHIPPED_SHARE, "most_tries": MOST_TRIES}
        return rules(**{**shape(nodes), "rate": PER_NODE * nodes * load / LOAD, **again, **more})

    for name, what in (
        ("65 %", at(0.65, extent.nodes)),
        ("60 %", at(0.6)),
        ("65 %, slice", at(0.65)),
        ("70 %", at(0.7)),
        ("no ejection", at(0.65, eject_after=0)),
        ("no second tries", at(0.65, share=0.0, most_tries=1)),
    ):
        yield run(name, what, seconds, seed, happens={gone_at: go, back_at: come_back})


def storm(extent: Extent, seed: int) -> Iterator[Outcome]:
    """All batches take twice as long for a while, and clients try again."""
    slow_at, well_at, seconds = (5.0, 10.0, 22) if extent is FULL else (1.0, 2.0, 3)

    def slow(what: Rules, made: State, now: float) -> None:
        made.slow[:] = 2.0

    def well(what: Rules, made: State, now: float) -> None:
        made.slow[:] = 1.0

    def tries(nodes: int = extent.part, **more: Any) -> Rules:
        return rules(**shape(nodes), most_tries=MOST_TRIES, **more)

    for name, what in (
        ("refuses, budget", tries(extent.nodes, share=SHIPPED_SHARE)),
        ("refuses, budget, slice", tries(share=SHIPPED_SHARE)),
        ("refuses, no budget", tries(share=inf)),
        ("queues, budget", tries(share=SHIPPED_SHARE, refuses=False)),
        ("queues, no budget", tries(share=inf, refuses=False)),
    ):
        yield run(name, what, seconds, seed, happens={slow_at: slow, well_at: well}, slots=what.nodes * 6000)


SCENARIOS: dict[str, Callable[[Extent, int], Iterator[Outcome]]] = {
    "sizes": sizes,
    "policies": policies,
    "staleness": staleness,
    "caches": caches,
    "region": region,
    "storm": storm,
}

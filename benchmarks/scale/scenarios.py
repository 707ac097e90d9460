"""What is asked of the simulated cluster: sizes, stale reports, caches, a lost region, a storm of retries.

Called by __main__.py and tests. Not aware of: pages, pictures.
"""

from collections.abc import Callable, Iterator
from hashlib import blake2b
from math import inf

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

PER_NODE = 1000.0  # requests a second: 70 % of what a node can do
PER_FRONT = 10  # nodes for one front: 10,000 requests a second
WARM_S = 1.0
DRAIN_S = 2.0
SHIPPED_SHARE, MOST_TRIES = 0.2, 5  # of the client's retries
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
    )


def sizes(scale: float, seed: int) -> Iterator[Outcome]:
    """The shipped policy (two drawn, by peak-EWMA of latency times what is in flight) at 10, 100 and 1,000 nodes."""
    for nodes, seconds in ((10, 300), (100, 60), (1000, 60)):
        seconds = max(int(seconds * scale), 3)
        nodes = nodes if scale == 1.0 else max(int(nodes * scale), 4)
        rate = PER_NODE * nodes
        fronts = max(nodes // PER_FRONT, 1)
        yield run("one front", rules(nodes=nodes, fronts=1, rate=rate), seconds, seed)
        yield run("all nodes", rules(nodes=nodes, fronts=fronts, rate=rate), seconds, seed)
        subset = min(2 * PER_FRONT, nodes)
        yield run("20 nodes each", rules(nodes=nodes, fronts=fronts, rate=rate, subset=subset), seconds, seed)
        cell = min(PER_FRONT, nodes)
        yield run("10 nodes each", rules(nodes=nodes, fronts=fronts, rate=rate, subset=cell), seconds, seed)


def policies(scale: float, seed: int) -> Iterator[Outcome]:
    """Other policies with as many fronts, to compare."""
    nodes = max(int(1000 * scale), 4)
    shape = {"nodes": nodes, "fronts": max(nodes // PER_FRONT, 1), "rate": PER_NODE * nodes}
    seconds = max(int(20 * scale), 3)
    for name, policy in (("random", RANDOM), ("round-robin", ROUND_ROBIN), ("two, by reports of now", REPORTED)):
        yield run(name, rules(**shape, policy=policy), seconds, seed)


AGES_S = (0.0, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0)
CHOICES = (2, 3, 10, 0)  # 0: all


def staleness(scale: float, seed: int) -> Iterator[Outcome]:
    """Least loaded of d, by reports of an age: on 200 nodes and 20 fronts, and some on all 1,000."""
    part = max(int(200 * scale), 4)
    for choices in CHOICES:
        for age_s in AGES_S:
            yield stale(part, choices, age_s, max(int(11 * scale), 3), seed)
    for corrected in (2, 0):
        for age_s in AGES_S[1:]:
            yield stale(part, corrected, age_s, max(int(11 * scale), 3), seed, corrected=True)
    for choices, age_s in ((2, 0.1), (2, 1.0), (10, 0.03)):
        yield stale(max(int(1000 * scale), 4), choices, age_s, max(int(11 * scale), 3), seed)


def stale(nodes: int, choices: int, age_s: float, seconds: int, seed: int, *, corrected: bool = False) -> Outcome:
    fronts = max(nodes // PER_FRONT, 1)
    what = rules(
        nodes=nodes,
        fronts=fronts,
        rate=PER_NODE * nodes,
        policy=REPORTED,
        choices=choices or nodes,
        age_s=age_s,
        corrected=corrected,
    )
    return run(f"least of {choices or 'all'}{' and own' if corrected else ''}", what, seconds, seed)


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


def caches(scale: float, seed: int) -> Iterator[Outcome]:
    """Who gets repeated requests: two drawn, or the node of the key, with and without a bound, by own counts and by all."""
    nodes = max(int(1000 * scale), 10)
    keys = max(int(KEYS * scale), 1000)
    popularity, ring = zipf(keys, ZIPF), ring_of(nodes, keys)
    shape = {"nodes": nodes, "rate": PER_NODE * nodes, "keys": keys}
    fronts = max(nodes // PER_FRONT, 1)
    seconds = max(int(20 * scale), 3)
    for name, what in (
        ("two drawn", rules(**shape, fronts=fronts)),
        ("hashing, no bound", rules(**shape, fronts=fronts, policy=HASHED, bound=inf)),
        ("hashing, 1.25, one front", rules(**shape, fronts=1, policy=HASHED)),
        ("hashing, 1.25, by own counts", rules(**shape, fronts=fronts, policy=HASHED)),
        ("hashing, 1.25, by all counts", rules(**shape, fronts=fronts, policy=HASHED, bound_by_all=True)),
        ("hashing, 2, by all counts", rules(**shape, fronts=fronts, policy=HASHED, bound=2.0, bound_by_all=True)),
    ):
        yield run(name, what, seconds, seed, popularity=popularity, ring=ring, answers=ANSWERS, slots=nodes * 1000)


def region(scale: float, seed: int) -> Iterator[Outcome]:
    """A quarter of the nodes is gone from the 10th second to the 30th, at three loads, and without ejection or second runs."""
    nodes = max(int(1000 * scale), 8)
    gone_at, back_at, seconds = (10.0, 30.0, 45) if scale >= 0.1 else (2.0, 4.0, 6)
    first = nodes - nodes // 4

    def go(what: Rules, made: State, now: float) -> None:
        lose(what, made, first, nodes, now)

    def come_back(what: Rules, made: State, now: float) -> None:
        revive(made, first, nodes)

    shape = {"nodes": nodes, "fronts": max(nodes // PER_FRONT, 1)}
    again = {"share": SHIPPED_SHARE, "most_tries": MOST_TRIES}
    for name, what in (
        ("60 %", rules(**shape, rate=PER_NODE * nodes * 0.6 / 0.7, **again)),
        ("65 %", rules(**shape, rate=PER_NODE * nodes * 0.65 / 0.7, **again)),
        ("70 %", rules(**shape, rate=PER_NODE * nodes, **again)),
        ("65 %, no ejection", rules(**shape, rate=PER_NODE * nodes * 0.65 / 0.7, eject_after=0, **again)),
        ("65 %, no second tries", rules(**shape, rate=PER_NODE * nodes * 0.65 / 0.7)),
    ):
        yield run(name, what, seconds, seed, happens={gone_at: go, back_at: come_back})


def storm(scale: float, seed: int) -> Iterator[Outcome]:
    """All batches take twice as long from the 10th second to the 15th, and clients try again."""
    nodes = max(int(1000 * scale), 4)
    slow_at, well_at, seconds = (10.0, 15.0, 40) if scale >= 0.1 else (2.0, 4.0, 8)

    def slow(what: Rules, made: State, now: float) -> None:
        made.slow[:] = 2.0

    def well(what: Rules, made: State, now: float) -> None:
        made.slow[:] = 1.0

    shape = {"nodes": nodes, "fronts": max(nodes // PER_FRONT, 1), "rate": PER_NODE * nodes, "most_tries": MOST_TRIES}
    for name, what in (
        ("refuses, budget", rules(**shape, share=SHIPPED_SHARE)),
        ("refuses, no budget", rules(**shape, share=inf)),
        ("queues, budget", rules(**shape, share=SHIPPED_SHARE, refuses=False)),
        ("queues, no budget", rules(**shape, share=inf, refuses=False)),
    ):
        yield run(name, what, seconds, seed, happens={slow_at: slow, well_at: well}, slots=nodes * 8000)


SCENARIOS: dict[str, Callable[[float, int], Iterator[Outcome]]] = {
    "sizes": sizes,
    "policies": policies,
    "staleness": staleness,
    "caches": caches,
    "region": region,
    "storm": storm,
}

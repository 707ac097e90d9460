"""Prequal: probes of what is in flight and how long it takes there, pooled and reused; hot-cold choice among them.

Called through make_balancer. Not aware of: how a remote instance is asked; whoever asks it tells `probed`.
"""

from bisect import bisect_left, insort
from collections import deque
from collections.abc import Callable, Collection, Mapping
from math import floor, inf
from typing import NamedTuple

from msgspec import Struct

from dlproxy.policy.balancing.balancer import nth
from dlproxy.policy.balancing.latency import DECAY_S, Penalty
from dlproxy.policy.balancing.peak_ewma import PowerOfTwo
from dlproxy.policy.balancing.weights import Weights
from dlproxy.policy.hops import Load

# The paper's values: Wydrowski, Kleinberg, Rumble and Archer, "Load is not what you should balance", NSDI 2024
POOL_SIZE = 16
PROBE_AGE_S = 1.0
HOT_ABOVE = 2.0**-0.25  # quantile of recent in-flight counts above which an instance is hot
PROBES_PER_CHOICE = 3
REMOVED_PER_CHOICE = 1
DELTA = 1.0
FEWEST_PROBES = 2  # with fewer in the pool it chooses by other means
RECENT = 128  # in-flight counts that the quantile is taken of
UNTRIED = 0.5  # of what is usual: below what the others of an even fleet show, or it would never be tried
GAIN = 0.3  # weight of one more latency in the estimate at a level (C3's alpha, Suresh et al., NSDI 2015)


def reuse_budget(instances: int) -> float:
    """How often one probe may be used: max(1, (1 + delta) / ((1 - m / n) r_probe - r_remove)), as in the paper.

    Infinite where probes are removed faster than new instances are met, as in small fleets: there their age ends them.
    """
    surplus = (1.0 - POOL_SIZE / instances) * PROBES_PER_CHOICE - REMOVED_PER_CHOICE
    return max(1.0, (1.0 + DELTA) / surplus) if surplus > 0.0 else inf


class _Probe(Struct, eq=False):
    instance: str
    at: float
    in_flight: float  # per weight
    latency_s: float  # per weight
    uses: float  # left


class Levels:
    """What a batch takes on each instance by how much is in flight there: an EWMA per level 0, 1, 2-3, 4-7, 8-15...

    Silence of `DECAY_S` seconds makes an estimate void. An instance without one counts as half of what an unknown one is taken
    for, so that it is tried (again), or half of the usual if it failed last. A failure voids what the instance did before.
    """

    def __init__(self) -> None:
        self._penalty = Penalty()
        self._levels: dict[str, dict[int, tuple[float, float]]] = {}
        self._failed: dict[str, tuple[float, float]] = {}  # what the latest failure counts as, of those that failed last

    def observe(self, instance: str, in_flight: int, service_s: float, *, ok: bool, now: float) -> None:
        """A batch ended there while about so many were in flight."""
        known = self._known_s(instance, in_flight, now)
        counts_s = self._penalty.counts_as(service_s, ok=ok, expected_s=known)
        levels, level = self._levels.setdefault(instance, {}), in_flight.bit_length()
        if not ok:
            levels.clear()
            self._failed[instance] = (counts_s, now)
        else:
            self._failed.pop(instance, None)
            before_s, at = levels.get(level, (0.0, -inf))
            if now - at < DECAY_S:
                counts_s = before_s + GAIN * (counts_s - before_s)
        levels[level] = (counts_s, now)

    def expected_s(self, instance: str, in_flight: int, now: float) -> float:
        known_s = self._known_s(instance, in_flight, now)
        return known_s or UNTRIED * (self._penalty.usual_s if instance in self._failed else self._penalty.unknown_s)

    def failed_s(self, instance: str, now: float) -> float:
        """What its latest failure counts as, 0 if something succeeded or `DECAY_S` seconds passed since."""
        counts_s, at = self._failed.get(instance, (0.0, now))
        return counts_s if now - at < DECAY_S else 0.0

    def forget(self, instance: str) -> None:
        self._levels.pop(instance, None)
        self._failed.pop(instance, None)

    def _known_s(self, instance: str, in_flight: int, now: float) -> float:
        """The estimate at the nearest level that has one, 0 if none has."""
        wanted = in_flight.bit_length()
        nearest, known_s = inf, 0.0
        for level, (value_s, at) in self._levels.get(instance, {}).items():
            if now - at < DECAY_S and abs(level - wanted) < nearest:
                nearest, known_s = abs(level - wanted), value_s
        return known_s


class _Rank(NamedTuple):
    """Less is better: the cold before the hot, those by latency, these by what is in flight."""

    hot: bool
    value: float


class Prequal:
    """Hot-cold lexicographic choice from a pool of at most 16 probes, each up to 1 s old; O(1) for any number of instances.

    Every choice asks three more instances, drawn at random. An instance is hot if more is in flight there than at the 0.84
    quantile of the recent answers. The chosen is the cold one of least latency, or, if all are hot, the one with the least in
    flight; it counts one more in flight from then on. Then the oldest and the worst probe, in turn, leave the pool. With
    fewer than two probes: two drawn at random, by peak-EWMA. Weights divide latency and what is in flight.

    This process answers for its instances from what it sent them and observed. A remote instance that others use too knows
    better: from the first `probed` on only its own answers count. Source: NSDI 2024, as above; one probe per instance here.
    """

    def __init__(self, draw: Callable[[], float], slow_start_s: float = 0.0) -> None:
        self._draw = draw
        self._weights = Weights(slow_start_s)
        self._levels = Levels()
        self._otherwise = PowerOfTwo(draw, latency_aware=True)
        self._pool: dict[str, _Probe] = {}  # from the oldest to the youngest
        self._seen: dict[str, int] = {}  # in flight when last looked at
        self._remote: set[str] = set()
        self._recent: deque[float] = deque()
        self._recent_sorted: list[float] = []
        self._remove_oldest = True
        self._uses = 1.0

    def add(self, instance: str, now: float, weight: float = 1.0) -> None:
        self._weights.add(instance, now, weight)
        self._otherwise.add(instance, now, weight)

    def choose(self, ready: Collection[str], in_flight: Mapping[str, int], now: float, affinity: str = "") -> str:
        self._uses = reuse_budget(len(ready))
        for index in self._drawn(len(ready)):
            instance = nth(ready, index)
            if instance not in self._remote:
                self._ask(instance, in_flight[instance], now)
        self._expire(now)
        here: Collection[str] = in_flight if len(ready) == len(in_flight) else ready  # a dict is quicker to look into
        usable = [probe for probe in self._pool.values() if probe.instance in here]
        if len(usable) < min(FEWEST_PROBES, len(ready)):
            return self._otherwise.choose(ready, in_flight, now)
        hot_above = self._hot_above()
        chosen = min(usable, key=lambda probe: _rank(probe, hot_above))
        self._use(chosen, now)
        self._remove(hot_above)
        return chosen.instance

    def probed(self, instance: str, in_flight: int, latency_s: float, now: float) -> None:
        """A remote instance answered a probe: so many in flight there, and a request would take so long."""
        self._remote.add(instance)
        self._put(instance, in_flight, max(latency_s, self._levels.failed_s(instance, now)), now)

    def told(self, instance: str, load: Load, now: float) -> None:
        """What came with an answer of a node: a probe that costs nothing, and counts what other nodes send there, too."""
        if load.rows >= 0:
            self.probed(instance, load.rows, load.wait_s + load.distance_s, now)

    def observe(self, instance: str, service_s: float, *, ok: bool, now: float) -> None:
        self._otherwise.observe(instance, service_s, ok=ok, now=now)
        self._levels.observe(instance, self._seen.get(instance, 0), service_s, ok=ok, now=now)
        probe = self._pool.get(instance)
        if probe is not None and not ok:  # what it said before it failed is no reason to send it more
            probe.latency_s = max(probe.latency_s, self._levels.failed_s(instance, now) / self._weights.at(instance, now))

    def forget(self, instance: str) -> None:
        self._weights.forget(instance)
        self._levels.forget(instance)
        self._otherwise.forget(instance)
        self._pool.pop(instance, None)
        self._seen.pop(instance, None)
        self._remote.discard(instance)

    def _drawn(self, count: int) -> Collection[int]:
        """Different places below `count` (Floyd's sampling: Bentley and Floyd, CACM 30(9), 1987)."""
        if count <= PROBES_PER_CHOICE:
            return range(count)
        drawn: list[int] = []
        for last in range(count - PROBES_PER_CHOICE, count):
            place = int(self._draw() * (last + 1))
            drawn.append(last if place in drawn else place)
        return drawn

    def _ask(self, instance: str, in_flight: int, now: float) -> None:
        """The answer of an instance that only this process uses."""
        self._seen[instance] = in_flight
        self._put(instance, in_flight, self._levels.expected_s(instance, in_flight, now), now)

    def _put(self, instance: str, in_flight: int, latency_s: float, now: float) -> None:
        weight = self._weights.at(instance, now)
        whole = floor(self._uses) if self._uses < inf else self._uses
        uses = whole + (self._uses > whole and self._draw() < self._uses - whole)  # on average what the budget says
        self._pool.pop(instance, None)
        if len(self._pool) >= POOL_SIZE:
            del self._pool[next(iter(self._pool))]
        self._pool[instance] = _Probe(instance, now, in_flight / weight, latency_s / weight, uses)
        if len(self._recent) >= RECENT:
            del self._recent_sorted[bisect_left(self._recent_sorted, self._recent.popleft())]
        self._recent.append(in_flight / weight)
        insort(self._recent_sorted, in_flight / weight)

    def _hot_above(self) -> float:
        return self._recent_sorted[int(HOT_ABOVE * (len(self._recent_sorted) - 1))]

    def _expire(self, now: float) -> None:
        while self._pool:
            oldest = next(iter(self._pool.values()))
            if now - oldest.at <= PROBE_AGE_S:
                return
            del self._pool[oldest.instance]

    def _use(self, probe: _Probe, now: float) -> None:
        probe.in_flight += 1.0 / self._weights.at(probe.instance, now)
        probe.uses -= 1
        if probe.uses < 1:
            del self._pool[probe.instance]

    def _remove(self, hot_above: float) -> None:
        """One probe fewer: stale ones and bad ones must not fill the pool, which good ones leave by being used."""
        if len(self._pool) <= FEWEST_PROBES:
            return
        if self._remove_oldest:
            gone = next(iter(self._pool))
        else:
            gone = max(self._pool.values(), key=lambda probe: _rank(probe, hot_above)).instance
        self._remove_oldest = not self._remove_oldest
        del self._pool[gone]


def _rank(probe: _Probe, hot_above: float) -> _Rank:
    if probe.in_flight > hot_above:
        return _Rank(True, probe.in_flight)
    return _Rank(False, probe.latency_s)

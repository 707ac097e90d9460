"""Consistent hashing with bounded loads: equal affinities meet on one instance, as long as that one is not overloaded.

Called through make_balancer. Not aware of: what an affinity means, latencies.
"""

from bisect import bisect_left
from collections.abc import Collection, Mapping
from hashlib import blake2b
from math import ceil

from dlproxy.policy.balancing.counting import LeastConnections
from dlproxy.policy.balancing.weights import Weights

LOAD_FACTOR = 1.25  # at most this many times the average in flight: Google's choice (research blog, 2017; paper: any c > 1)
POINTS = 100  # on the ring per unit of weight: shares of the keys then differ by 10 % (1 / sqrt(100)) from one another


class ConsistentHash:
    """A ring of `POINTS` places per unit of weight; a key goes to the first place after its hash whose instance has room.

    Room: after it, no instance has more than ceil(1.25 * (in flight + 1) * its share of the weight) in flight, where in
    flight and weights are summed over those that are ready; so one of these always has room. Without affinity: least
    connections. When an instance leaves only its keys move, when it comes back they return, a heavier one only gains.
    Source: Mirrokni, Thorup and Zadimoghaddam, "Consistent hashing with bounded loads", SODA 2018 (arXiv 1608.01350, 2016).

    A ring, not rendezvous hashing: that would hash the key with every instance, some 0.7 us each, for every choice.
    """

    def __init__(self, slow_start_s: float = 0.0) -> None:
        self._weights = Weights(slow_start_s)
        self._least = LeastConnections(weights=self._weights)
        self._ring: list[int] = []
        self._sorted = True
        self._owners: dict[int, str] = {}
        self._points: dict[str, int] = {}  # how many each instance has

    def add(self, instance: str, now: float, weight: float = 1.0) -> None:
        self._weights.add(instance, now, weight)
        self._remove_points(instance)  # it gets those of its weight when it is first ready

    def choose(self, ready: Collection[str], in_flight: Mapping[str, int], now: float, affinity: str = "") -> str:
        if not affinity:
            return self._least.choose(ready, in_flight, now)
        top = self._weights.top_share(now)  # those that rise together keep their keys
        rising, points = self._weights.rising, self._points
        busy, whole = 1, 0.0
        for instance in ready:
            grows = instance not in points or instance in rising
            weight = self._weights.at(instance, now)
            if grows:
                self._grow(instance, weight / top)
            busy += in_flight[instance]
            whole += weight
        if not self._sorted:
            self._ring.sort()
            self._sorted = True
        return self._first_with_room(ready, in_flight, now, affinity, LOAD_FACTOR * busy / whole)

    def _first_with_room(
        self, ready: Collection[str], in_flight: Mapping[str, int], now: float, affinity: str, per_weight: float
    ) -> str:
        ring, owners, tried = self._ring, self._owners, set()
        start = bisect_left(ring, _hash(affinity))
        for place in range(start, start + len(ring)):
            instance = owners[ring[place % len(ring)]]
            if instance in tried:
                continue
            tried.add(instance)
            if instance in ready and in_flight[instance] < ceil(per_weight * self._weights.at(instance, now)):
                return instance
        raise AssertionError("some ready instance is below the average, or no number is")

    def observe(self, instance: str, service_s: float, *, ok: bool, now: float) -> None:
        """Looks at what is in flight only."""

    def forget(self, instance: str) -> None:
        self._least.forget(instance)
        self._remove_points(instance)

    def _grow(self, instance: str, weight: float) -> None:
        """Give it the points that it is worth now; weights only rise between coming up and leaving."""
        have = self._points.get(instance, 0)
        wanted = max(round(POINTS * weight), 1)
        for number in range(have, wanted):
            point = _hash(f"{instance}#{number}")
            self._owners[point] = instance
            self._ring.append(point)
            self._sorted = False
        self._points[instance] = max(wanted, have)

    def _remove_points(self, instance: str) -> None:
        gone = {_hash(f"{instance}#{number}") for number in range(self._points.pop(instance, 0))}
        if gone:
            self._ring = [point for point in self._ring if point not in gone]
            for point in gone:
                del self._owners[point]


def _hash(text: str) -> int:
    """64 bits, the same in every process (unlike Python's own)."""
    return int.from_bytes(blake2b(text.encode(), digest_size=8).digest(), "big")

"""Balancers by peak-EWMA of latency: times what is in flight (over all or over two drawn), or alone.

Called through make_balancer; LeastPeakEwma is a lane's default. Not aware of: affinity.
"""

from collections.abc import Callable, Collection, Mapping

from dlproxy.policy.balancing.balancer import nth
from dlproxy.policy.balancing.latency import PeakEwma
from dlproxy.policy.balancing.weights import Weights


class _ByLatency:
    """What these balancers keep of the instances."""

    def __init__(self, slow_start_s: float = 0.0) -> None:
        self._weights = Weights(slow_start_s)
        self._latency = PeakEwma()

    def add(self, instance: str, now: float, weight: float = 1.0) -> None:
        self._weights.add(instance, now, weight)

    def observe(self, instance: str, service_s: float, *, ok: bool, now: float) -> None:
        self._latency.observe(instance, service_s, ok=ok, now=now)

    def forget(self, instance: str) -> None:
        self._weights.forget(instance)
        self._latency.forget(instance)


class LeastPeakEwma(_ByLatency):
    """Least (in-flight + 1) * peak-EWMA of batch time / weight. Ties go to the first listed.

    Source: Finagle's and linkerd's peak-EWMA balancer (Buoyant, "Beyond Round Robin", 2016), here over all instances.
    """

    def choose(self, ready: Collection[str], in_flight: Mapping[str, int], now: float, affinity: str = "") -> str:
        expected_s, weight_at = self._latency.expected_s, self._weights.at
        return min(ready, key=lambda instance: (in_flight[instance] + 1) * expected_s(instance, now) / weight_at(instance, now))


class FastestResponse(_ByLatency):
    """Least peak-EWMA of batch time / weight, whatever is in flight; of equals the one with less to do.

    All go to the quickest until a peak shows that it is so no more. The others are tried again as their peaks decay.
    """

    def choose(self, ready: Collection[str], in_flight: Mapping[str, int], now: float, affinity: str = "") -> str:
        expected_s, weight_at = self._latency.expected_s, self._weights.at
        return min(ready, key=lambda instance: (expected_s(instance, now) / weight_at(instance, now), in_flight[instance]))


class PowerOfTwo(_ByLatency):
    """The better of two drawn at random: by in-flight per weight, times peak-EWMA if `latency_aware` (as Finagle does).

    O(1) for any number of instances. `draw` gives uniform numbers in [0, 1). Source: Mitzenmacher, "The power of two choices
    in randomized load balancing", IEEE TPDS 2001.
    """

    def __init__(self, draw: Callable[[], float], *, latency_aware: bool = False, slow_start_s: float = 0.0) -> None:
        super().__init__(slow_start_s)
        self._draw = draw
        self._latency_aware = latency_aware

    def choose(self, ready: Collection[str], in_flight: Mapping[str, int], now: float, affinity: str = "") -> str:
        if len(ready) == 1:
            return nth(ready, 0)
        first, second = two_of(len(ready), self._draw)
        one, other = nth(ready, first), nth(ready, second)
        return one if self._cost(one, in_flight, now) <= self._cost(other, in_flight, now) else other

    def observe(self, instance: str, service_s: float, *, ok: bool, now: float) -> None:
        if self._latency_aware:
            self._latency.observe(instance, service_s, ok=ok, now=now)

    def _cost(self, instance: str, in_flight: Mapping[str, int], now: float) -> float:
        weight = self._weights.at(instance, now)
        if self._latency_aware:
            return (in_flight[instance] + 1) * self._latency.expected_s(instance, now) / weight
        return in_flight[instance] / weight


def two_of(count: int, draw: Callable[[], float]) -> tuple[int, int]:
    """Two different numbers below `count`, which is at least 2."""
    first, second = int(draw() * count), int(draw() * (count - 1))
    return first, second + (second >= first)

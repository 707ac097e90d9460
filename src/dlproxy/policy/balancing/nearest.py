"""Locality: the instance that is near, until its queue costs more than the way to one that is further off.

Called through make_balancer. Not aware of: how distances are measured; an instance without one is taken to be near.
"""

from collections.abc import Collection, Iterable, Mapping

from dlproxy.policy.balancing.latency import PeakEwma
from dlproxy.policy.balancing.weights import Weights
from dlproxy.policy.hops import Load

FRESH_S = 1.0  # what an instance says of its queue, which others fill and empty too, counts so long (Prequal's age of probes)


class Nearest:
    """Least distance + max((in flight + 1) * peak-EWMA of the time beyond the distance / weight, what the instance said).

    Distance is the round trip in seconds, 0 within a host or zone, so that two instances that cost the same are as good as
    one another to whoever waits. Envoy's and Kubernetes' zone awareness go by shares of capacity instead, and send nothing to
    another zone before this one is full, or a fixed share: neither asks what the way costs. Ties go to the first listed.
    """

    def __init__(self, slow_start_s: float = 0.0) -> None:
        self._weights = Weights(slow_start_s)
        self._latency = PeakEwma()
        self._distance: dict[str, float] = {}
        self._said: dict[str, tuple[float, float]] = {}  # how long one more would take there, and when that was said

    def add(self, instance: str, now: float, weight: float = 1.0) -> None:
        self._weights.add(instance, now, weight)

    def choose(self, ready: Collection[str], in_flight: Mapping[str, int], now: float, affinity: str = "") -> str:
        return min(ready, key=lambda instance: self._cost_s(instance, in_flight[instance], now))

    def told(self, instance: str, load: Load, now: float) -> None:
        """What came with an answer."""
        self._distance[instance] = load.distance_s
        if load.rows >= 0:
            self._said[instance] = (load.wait_s, now)

    def observe(self, instance: str, service_s: float, *, ok: bool, now: float) -> None:
        there_s = max(service_s - self.distance_s(instance), 0.0) if ok else service_s
        self._latency.observe(instance, there_s, ok=ok, now=now)

    def forget(self, instance: str) -> None:
        self._weights.forget(instance)
        self._latency.forget(instance)
        self._distance.pop(instance, None)
        self._said.pop(instance, None)

    def worth_waiting_s(self, ready: Iterable[str], busy: Iterable[str], in_flight: Mapping[str, int], now: float) -> float:
        """How much sooner the best busy instance would answer, its queue included, than the best idle one, as far as that is
        because it is nearer; else 0.
        """
        idle_s, off_s = min([(self._cost_s(name, in_flight[name], now), self.distance_s(name)) for name in ready])
        nearer = [self._cost_s(name, in_flight[name], now) for name in busy if self.distance_s(name) < off_s]
        return min(max(idle_s - min(nearer, default=idle_s), 0.0), off_s)

    def distance_s(self, instance: str) -> float:
        return self._distance.get(instance, 0.0)

    def _cost_s(self, instance: str, in_flight: int, now: float) -> float:
        queue_s = (in_flight + 1) * self._latency.expected_s(instance, now) / self._weights.at(instance, now)
        said_s, at = self._said.get(instance, (0.0, now))
        if now - at < FRESH_S:
            queue_s = max(queue_s, said_s)
        return self.distance_s(instance) + queue_s

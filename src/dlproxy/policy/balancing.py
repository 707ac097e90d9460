"""Balancers: which instance of a lane gets the next batch. Called by policy/lane.py.

Not aware of: what the instances are, where they run.
"""

from collections.abc import Iterable, Mapping
from math import exp
from typing import Protocol

INITIAL_S = 0.030  # an unknown instance is taken for this slow (linkerd's default_rtt), so that it is tried but not flooded
DECAY_S = 10.0  # time constant with which an old peak is forgotten (linkerd's default)
ERROR_PENALTY = 10.0  # a failure counts as a batch this many times slower: errors must not look fast (no sinkholing)
MAX_PENALTY_S = 60.0  # failures in a row multiply up to here; forgotten within about 80 s, and never infinite


class Balancer(Protocol):
    """`choose` is never called with no instance ready."""

    def choose(self, ready: Iterable[str], in_flight: Mapping[str, int], now: float) -> str: ...

    def observe(self, instance: str, service_s: float, *, ok: bool, now: float) -> None: ...

    def forget(self, instance: str) -> None: ...


class LeastPeakEwma:
    """Least (in-flight + 1) * peak-EWMA of batch time: rises to a peak at once, decays by exp(-dt / 10 s).

    Source: Finagle's and linkerd's peak-EWMA balancer (Buoyant, "Beyond Round Robin", 2016). Ties go to the first listed.
    """

    def __init__(self) -> None:
        self._ewma: dict[str, tuple[float, float]] = {}

    def choose(self, ready: Iterable[str], in_flight: Mapping[str, int], now: float) -> str:
        return min(ready, key=lambda instance: (in_flight[instance] + 1) * self.expected_s(instance, now))

    def observe(self, instance: str, service_s: float, *, ok: bool, now: float) -> None:
        value, at = self._ewma.get(instance, (0.0, now))
        if not ok:
            service_s = max(service_s, min(ERROR_PENALTY * (value or INITIAL_S), MAX_PENALTY_S))
        if service_s < value:
            keep = exp((at - now) / DECAY_S)
            service_s = keep * value + (1.0 - keep) * service_s
        self._ewma[instance] = (service_s, now)

    def expected_s(self, instance: str, now: float) -> float:
        """The peak-EWMA as it stands now; a silent instance's peak decays too, so it is tried again."""
        if instance not in self._ewma:
            return INITIAL_S
        value, at = self._ewma[instance]
        return value * exp((at - now) / DECAY_S)

    def forget(self, instance: str) -> None:
        self._ewma.pop(instance, None)

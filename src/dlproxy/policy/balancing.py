"""Balancers: which instance of a lane gets the next batch, which simulated node the next request.

Called by policy/lane.py and lab/simulate. Not aware of: what the instances are, where they run.
"""

from collections.abc import Callable, Collection, Mapping
from itertools import islice
from math import exp
from typing import Protocol

INITIAL_S = 0.030  # an unknown instance is taken for this slow (linkerd's default_rtt), so that it is tried but not flooded
DECAY_S = 10.0  # time constant with which an old peak is forgotten (linkerd's default)
ERROR_PENALTY = 10.0  # a failure counts as a batch this many times slower: errors must not look fast (no sinkholing)
MAX_PENALTY_S = 60.0  # failures in a row multiply up to here; forgotten within about 80 s, and never infinite


class Balancer(Protocol):
    """`choose` is never called with no instance ready."""

    def choose(self, ready: Collection[str], in_flight: Mapping[str, int], now: float) -> str: ...

    def observe(self, instance: str, service_s: float, *, ok: bool, now: float) -> None:
        """A batch (or request) ended, well or not, after so many seconds."""
        ...

    def forget(self, instance: str) -> None: ...


class LeastPeakEwma:
    """Least (in-flight + 1) * peak-EWMA of batch time: rises to a peak at once, decays by exp(-dt / 10 s).

    Source: Finagle's and linkerd's peak-EWMA balancer (Buoyant, "Beyond Round Robin", 2016). Ties go to the first listed.
    """

    def __init__(self) -> None:
        self._ewma: dict[str, tuple[float, float]] = {}
        self._met_at: dict[str, float] = {}  # when those that were never observed came into view

    def choose(self, ready: Collection[str], in_flight: Mapping[str, int], now: float) -> str:
        return min(ready, key=lambda instance: (in_flight[instance] + 1) * self.expected_s(instance, now))

    def observe(self, instance: str, service_s: float, *, ok: bool, now: float) -> None:
        value, at = self._ewma.get(instance, (0.0, now))
        self._met_at.pop(instance, None)
        if not ok:
            service_s = max(service_s, min(ERROR_PENALTY * (value or INITIAL_S), MAX_PENALTY_S))
        if service_s < value:
            keep = exp((at - now) / DECAY_S)
            service_s = keep * value + (1.0 - keep) * service_s
        self._ewma[instance] = (service_s, now)

    def expected_s(self, instance: str, now: float) -> float:
        """The peak-EWMA as it stands now; a silent or unknown instance's decays too, so that it is tried (again)."""
        if instance in self._ewma:
            value, at = self._ewma[instance]
        else:
            value, at = INITIAL_S, self._met_at.setdefault(instance, now)
        return value * exp((at - now) / DECAY_S)

    def forget(self, instance: str) -> None:
        self._ewma.pop(instance, None)
        self._met_at.pop(instance, None)


class RoundRobin:
    """Each in turn, whatever it does: the baseline, and what most load balancers are set to."""

    def __init__(self) -> None:
        self._next = 0

    def choose(self, ready: Collection[str], in_flight: Mapping[str, int], now: float) -> str:
        self._next += 1
        return _nth(ready, (self._next - 1) % len(ready))

    def observe(self, instance: str, service_s: float, *, ok: bool, now: float) -> None:
        """Looks at nothing."""

    def forget(self, instance: str) -> None:
        """Remembers nothing."""


class LeastLoaded:
    """The fewest in flight; equals take turns, or an idle fleet would send everything to the first."""

    def __init__(self) -> None:
        self._turn = 0

    def choose(self, ready: Collection[str], in_flight: Mapping[str, int], now: float) -> str:
        names, first = list(ready), self._turn % len(ready)
        in_turn = [*range(first, len(names)), *range(first)]
        chosen: int = min(in_turn, key=lambda index: in_flight[names[index]])
        self._turn = chosen + 1
        return names[chosen]

    def observe(self, instance: str, service_s: float, *, ok: bool, now: float) -> None:
        """Looks at what is in flight only."""

    def forget(self, instance: str) -> None:
        """Remembers nothing."""


class PowerOfTwo:
    """The better of two drawn at random: by in-flight alone, or by in-flight times peak-EWMA if `latency_aware`.

    O(1) for any number of instances. `draw` gives uniform numbers in [0, 1). Source: Mitzenmacher, "The power of two choices
    in randomized load balancing", IEEE TPDS 2001.
    """

    def __init__(self, draw: Callable[[], float], *, latency_aware: bool = False) -> None:
        self._draw = draw
        self._latency = LeastPeakEwma() if latency_aware else None

    def choose(self, ready: Collection[str], in_flight: Mapping[str, int], now: float) -> str:
        first, others = int(self._draw() * len(ready)), len(ready) - 1
        if not others:
            return _nth(ready, 0)
        second = int(self._draw() * others)
        pair = (_nth(ready, first), _nth(ready, second + (second >= first)))
        if self._latency is not None:
            return self._latency.choose(pair, in_flight, now)
        return pair[0] if in_flight[pair[0]] <= in_flight[pair[1]] else pair[1]

    def observe(self, instance: str, service_s: float, *, ok: bool, now: float) -> None:
        if self._latency is not None:
            self._latency.observe(instance, service_s, ok=ok, now=now)

    def forget(self, instance: str) -> None:
        if self._latency is not None:
            self._latency.forget(instance)


def _nth(ready: Collection[str], index: int) -> str:
    return ready[index] if isinstance(ready, list) else next(islice(ready, index, None))

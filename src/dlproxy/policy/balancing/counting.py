"""Balancers that look at turns, weights and what is in flight, never at latency.

Called through make_balancer. Not aware of: how long a batch takes, whether it fails.
"""

from collections.abc import Collection, Mapping
from math import inf

from dlproxy.policy.balancing.balancer import nth
from dlproxy.policy.balancing.weights import Weights


class RoundRobin:
    """Each in turn, whatever it does: the baseline, and what most load balancers are set to. Weights mean nothing to it."""

    def __init__(self) -> None:
        self._next = 0

    def add(self, instance: str, now: float, weight: float = 1.0) -> None:
        """Looks at who is ready only."""

    def choose(self, ready: Collection[str], in_flight: Mapping[str, int], now: float, affinity: str = "") -> str:
        self._next += 1
        return nth(ready, (self._next - 1) % len(ready))

    def observe(self, instance: str, service_s: float, *, ok: bool, now: float) -> None:
        """Looks at nothing."""

    def forget(self, instance: str) -> None:
        """Remembers nothing."""


class WeightedRoundRobin:
    """Smooth weighted turns: all that are ready gain their weight, who has most goes and pays what all gained.

    Weights of 5, 1 and 1 give a a b a c a a: exact over a cycle of the weights' sum, and at no time is anybody a whole turn
    ahead of its share. Source: nginx (ngx_http_upstream_round_robin.c, "smooth weighted round-robin", 2012).
    """

    def __init__(self, slow_start_s: float = 0.0) -> None:
        self._weights = Weights(slow_start_s)
        self._gained: dict[str, float] = {}

    def add(self, instance: str, now: float, weight: float = 1.0) -> None:
        self._weights.add(instance, now, weight)

    def choose(self, ready: Collection[str], in_flight: Mapping[str, int], now: float, affinity: str = "") -> str:
        gained, weight_at = self._gained, self._weights.at
        total, most, chosen = 0.0, -inf, ""
        for instance in ready:
            weight = weight_at(instance, now)
            total += weight
            gained[instance] = value = gained.get(instance, 0.0) + weight
            if value > most:
                most, chosen = value, instance
        gained[chosen] = most - total
        return chosen

    def observe(self, instance: str, service_s: float, *, ok: bool, now: float) -> None:
        """Looks at nothing."""

    def forget(self, instance: str) -> None:
        self._weights.forget(instance)
        self._gained.pop(instance, None)


class LeastConnections:
    """The fewest in flight per weight; equals take turns by weight, or an idle fleet would send everything to the first.

    Turns by stride (Waldspurger and Weihl, "Stride scheduling", 1995): each turn costs 1 / weight, and whoever has paid least
    is next. nginx's smooth turns would not do among ever other equals: with two requests at a time for three instances, one of
    them got half. `weights` are its own, or those of the balancer that falls back on it.
    """

    def __init__(self, slow_start_s: float = 0.0, weights: Weights | None = None) -> None:
        self._weights = Weights(slow_start_s) if weights is None else weights
        self._paid: dict[str, float] = {}
        self._latest = 0.0  # what the latest to have its turn had paid before: nobody is more than a turn behind

    def add(self, instance: str, now: float, weight: float = 1.0) -> None:
        self._weights.add(instance, now, weight)

    def choose(self, ready: Collection[str], in_flight: Mapping[str, int], now: float, affinity: str = "") -> str:
        if self._weights.even:
            fewest = min(map(in_flight.__getitem__, ready))
            return self._take_turn([instance for instance in ready if in_flight[instance] == fewest], now)
        weight_at = self._weights.at
        least, equals = inf, []
        for instance in ready:
            load = in_flight[instance] / weight_at(instance, now)
            if load < least:
                least, equals = load, [instance]
            elif load == least:
                equals.append(instance)
        return self._take_turn(equals, now)

    def observe(self, instance: str, service_s: float, *, ok: bool, now: float) -> None:
        """Looks at what is in flight only."""

    def forget(self, instance: str) -> None:
        self._weights.forget(instance)
        self._paid.pop(instance, None)

    def _take_turn(self, equals: list[str], now: float) -> str:
        paid, weight_at, latest = self._paid, self._weights.at, self._latest
        even, stride = self._weights.even, 1.0
        least, chosen, cost = inf, "", 0.0
        for instance in equals:
            if not even:
                stride = 1.0 / weight_at(instance, now)
            has_paid = paid.get(instance, latest)
            if has_paid < latest - stride:
                has_paid = latest - stride
            if has_paid < least:
                least, chosen, cost = has_paid, instance, stride
        self._latest = max(self._latest, least)
        paid[chosen] = least + cost
        return chosen

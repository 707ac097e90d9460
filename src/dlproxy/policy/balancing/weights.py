"""How much each instance counts: its weight, less of it while it is new. The one place for both, for all balancers.

Called by the balancers beside it. Not aware of: what a balancer does with a weight.
"""

from collections.abc import Collection
from math import inf

SLOW_START_FROM = 0.1  # of its weight an instance begins with (Envoy's default min_weight_percent is 10 %)


class Weights:
    """Slow start: the weight rises in a straight line from a tenth to all of it within `slow_start_s` of coming up.

    That goes for every instance, the first too: only ratios of weights matter, so instances that start together share
    evenly at once, and one that joins others which have been up for long begins with a tenth of its share.
    """

    def __init__(self, slow_start_s: float = 0.0) -> None:
        self._slow_start_s = slow_start_s
        self._weights: dict[str, float] = {}
        self._up_at: dict[str, float] = {}  # of those that may still be in their slow start
        self._all_one = True

    def add(self, instance: str, now: float, weight: float = 1.0) -> None:
        """It came up. Raises ValueError unless 0 < weight < inf."""
        if not 0.0 < weight < inf:
            raise ValueError(f"instance {instance}: weight {weight:g} is impossible, give one above 0")
        self._weights[instance] = weight
        self._all_one = self._all_one and weight == 1.0
        if self._slow_start_s > 0.0:
            self._up_at[instance] = now

    def at(self, instance: str, now: float) -> float:
        """Its weight now; 1 for one that was never added."""
        weight = self._weights.get(instance, 1.0)
        up_at = self._up_at.get(instance) if self._up_at else None
        if up_at is None:
            return weight
        share = self._share(up_at, now)
        if share == 1.0:
            del self._up_at[instance]
        return weight * share

    @property
    def even(self) -> bool:
        """Everybody weighs 1 now: what is most often so, and cheaper to balance."""
        return self._all_one and not self._up_at

    @property
    def rising(self) -> Collection[str]:
        """Those that may still be in their slow start."""
        return self._up_at.keys()

    def top_share(self, now: float) -> float:
        """The share of its weight that the one has which is furthest in its slow start; 1 if any is through."""
        if len(self._up_at) < len(self._weights) or not self._up_at:
            return 1.0
        return self._share(min(self._up_at.values()), now)

    def forget(self, instance: str) -> None:
        if self._weights.pop(instance, 1.0) != 1.0:
            self._all_one = all(weight == 1.0 for weight in self._weights.values())
        self._up_at.pop(instance, None)

    def _share(self, up_at: float, now: float) -> float:
        return min(SLOW_START_FROM + (1.0 - SLOW_START_FROM) * (now - up_at) / self._slow_start_s, 1.0)

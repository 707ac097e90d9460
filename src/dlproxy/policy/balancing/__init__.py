"""Balancers by name: which instance of a lane gets the next batch, which simulated node the next request.

Called by policy/lane.py and lab/simulate. Not aware of: what the instances are, where they run.
"""

from collections.abc import Callable

from dlproxy.policy.balancing.balancer import Balancer
from dlproxy.policy.balancing.consistent_hash import ConsistentHash
from dlproxy.policy.balancing.counting import LeastConnections, RoundRobin, WeightedRoundRobin
from dlproxy.policy.balancing.draws import SplitMix64
from dlproxy.policy.balancing.nearest import Nearest
from dlproxy.policy.balancing.peak_ewma import FastestResponse, LeastPeakEwma, PowerOfTwo
from dlproxy.policy.balancing.prequal import Prequal

__all__ = [
    "BALANCERS",
    "Balancer",
    "ConsistentHash",
    "FastestResponse",
    "LeastConnections",
    "LeastPeakEwma",
    "Nearest",
    "PowerOfTwo",
    "Prequal",
    "RoundRobin",
    "SplitMix64",
    "WeightedRoundRobin",
    "make_balancer",
]

_MAKERS: dict[str, Callable[[float, Callable[[], float]], Balancer]] = {
    "peak-ewma": lambda slow_start_s, draw: LeastPeakEwma(slow_start_s),
    "round-robin": lambda slow_start_s, draw: RoundRobin(),
    "weighted-round-robin": lambda slow_start_s, draw: WeightedRoundRobin(slow_start_s),
    "least-connections": lambda slow_start_s, draw: LeastConnections(slow_start_s),
    "fastest-response": lambda slow_start_s, draw: FastestResponse(slow_start_s),
    "consistent-hash": lambda slow_start_s, draw: ConsistentHash(slow_start_s),
    "power-of-two": lambda slow_start_s, draw: PowerOfTwo(draw, latency_aware=True, slow_start_s=slow_start_s),
    "prequal": lambda slow_start_s, draw: Prequal(draw, slow_start_s),
    "nearest": lambda slow_start_s, draw: Nearest(slow_start_s),
}
BALANCERS: tuple[str, ...] = tuple(_MAKERS)  # the first is the default


def make_balancer(name: str, *, slow_start_s: float = 0.0, draw: Callable[[], float] | None = None) -> Balancer:
    """The balancer of this name. Raises ValueError for an unknown name.

    `slow_start_s`: how long an instance's weight rises after it came up; 0: none. `draw` gives uniform numbers in [0, 1);
    without it they are the same in every run, so that an event log replays.
    """
    if name not in _MAKERS:
        raise ValueError(f"no balancer '{name}'; there are {', '.join(BALANCERS)}")
    return _MAKERS[name](slow_start_s, SplitMix64() if draw is None else draw)

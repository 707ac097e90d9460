"""What a batch is expected to take on each instance, and what a failure counts as. Errors never look fast.

Called by the balancers that look at latency. Not aware of: how they weigh it against what is in flight.
"""

from math import exp

INITIAL_S = 0.030  # an unknown instance is taken for this slow at most (linkerd's default_rtt): tried, but not flooded
DECAY_S = 10.0  # time constant with which an old peak is forgotten (linkerd's default)
ERROR_PENALTY = 10.0  # a failure counts as a batch this many times slower: errors must not look fast (no sinkholing)
MAX_PENALTY_S = 60.0  # failures in a row multiply up to here; forgotten within about 80 s, and never infinite ...
MAX_PENALTY = 1000.0  # ... or up to so many times the usual, if that is more: as many may be in flight elsewhere
USUAL_GAIN = 0.05  # weight of one more success in the fleet's usual time: the last 20 or so count


class Penalty:
    """What an observation counts as, for all latency-aware balancers.

    A failure counts as `ERROR_PENALTY` times what was expected of the instance, or times the fleet's usual if that is more, so
    that a broken instance stays behind where all others take minutes. Failures in a row multiply.
    """

    def __init__(self) -> None:
        self._usual_s = 0.0  # 0: nothing has succeeded yet

    @property
    def usual_s(self) -> float:
        """What a batch that succeeds takes in the fleet."""
        return self._usual_s or INITIAL_S

    @property
    def unknown_s(self) -> float:
        """What an instance is taken for that has shown nothing yet: for no slower than usual, so that it is tried soon.

        With 30 ms always, 50 servers of 20 ms had a 99.9th percentile of 0.7 to 1.3 s in their first seconds (the ramp of
        benchmarks/known_results/prequal.py): whoever had once been quicker than 30 ms got most.
        """
        return min(self.usual_s, INITIAL_S)

    def counts_as(self, service_s: float, *, ok: bool, expected_s: float) -> float:
        """Seconds to reckon with for a batch that ended after `service_s` where `expected_s` was expected (0: unknown)."""
        if ok:
            self._usual_s += (service_s - self._usual_s) * (USUAL_GAIN if self._usual_s else 1.0)
            return service_s
        most_s = max(MAX_PENALTY_S, MAX_PENALTY * self.usual_s)
        return max(service_s, min(ERROR_PENALTY * max(expected_s, self.usual_s), most_s))


class PeakEwma:
    """Peak-EWMA of batch time: rises to a peak at once, decays by exp(-dt / 10 s).

    Source: Finagle's and linkerd's balancer (Buoyant, "Beyond Round Robin", 2016).
    """

    def __init__(self) -> None:
        self._penalty = Penalty()
        self._ewma: dict[str, tuple[float, float]] = {}
        self._met_at: dict[str, float] = {}  # when those that were never observed came into view

    def observe(self, instance: str, service_s: float, *, ok: bool, now: float) -> None:
        value, at = self._ewma.get(instance, (0.0, now))
        self._met_at.pop(instance, None)
        service_s = self._penalty.counts_as(service_s, ok=ok, expected_s=value)
        if service_s < value:
            keep = exp((at - now) / DECAY_S)
            service_s = keep * value + (1.0 - keep) * service_s
        self._ewma[instance] = (service_s, now)

    def expected_s(self, instance: str, now: float) -> float:
        """The peak-EWMA as it stands now; a silent or unknown instance's decays too, so that it is tried (again)."""
        if instance in self._ewma:
            value, at = self._ewma[instance]
        else:
            value, at = self._penalty.unknown_s, self._met_at.setdefault(instance, now)
        return value * exp((at - now) / DECAY_S)

    def forget(self, instance: str) -> None:
        self._ewma.pop(instance, None)
        self._met_at.pop(instance, None)

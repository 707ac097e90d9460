"""The instances of one lane: which are up, which have room, which are trusted, and which gets the next batch.

Called by policy/lane.py. Not aware of: tickets, queues, what a batch holds.
"""

from collections.abc import Callable, Collection, Iterable
from math import inf

from msgspec import Struct

from dlproxy.policy.balancing import Nearest, make_balancer
from dlproxy.policy.ejection import Circuit, OutlierEjection
from dlproxy.policy.hops import Load
from dlproxy.policy.knobs import LaneKnobs
from dlproxy.policy.slowness import Slowness

LATENCY_AWARE = ("peak-ewma", "fastest-response", "power-of-two", "prequal", "nearest")  # that may leave a slow instance idle


class InstanceState(Struct):
    """What a person wants to know of an instance: `circuit` closed (trusted), open (ejected) or half-open (on probation)."""

    name: str
    circuit: Circuit
    in_flight: int
    capacity: int


class InstancePool:
    """`ready` are the instances that may get a batch now.

    `several`: whether there is more than one, so whether anything needs choosing. `probe_at`: when `probe` has something to
    do; +inf for never.
    """

    def __init__(self, knobs: LaneKnobs) -> None:
        self.ready: dict[str, None] = {}
        self.several = False
        self.probe_at = inf
        self._capacity: dict[str, int] = {}
        self._weights: dict[str, float] = {}
        self._in_flight: dict[str, int] = {}
        self._ejection = OutlierEjection(after=knobs.eject_after)
        self._slowness = Slowness()
        self._knobs = knobs
        self._balance(knobs)

    def __len__(self) -> int:
        """Instances that are up."""
        return len(self._capacity)

    def __contains__(self, instance: str) -> bool:
        return instance in self._capacity

    def configure(self, knobs: LaneKnobs, now: float) -> None:
        """New knobs; another balancer begins without memories."""
        before, self._knobs = self._knobs, knobs
        self._ejection.configure(after=knobs.eject_after)
        if (before.balancer, before.slow_start_s) != (knobs.balancer, knobs.slow_start_s):
            self._balance(knobs)
            for instance, weight in self._weights.items():
                self._balancer.add(instance, now, weight)
        self._circuits_changed()

    def add(self, instance: str, capacity: int, weight: float, now: float) -> None:
        """It is up and takes `capacity` batches at a time."""
        assert instance not in self._capacity, f"instance {instance} is up already"
        assert capacity >= 1
        self._capacity[instance] = capacity
        self.several = len(self._capacity) > 1
        self._weights[instance] = weight
        self._in_flight[instance] = 0
        self._ejection.add(instance, now)
        self._balancer.add(instance, now, weight)
        self.ready[instance] = None

    def remove(self, instance: str) -> None:
        """It is gone, with whatever it ran."""
        del self._capacity[instance], self._weights[instance], self._in_flight[instance]
        self.several = len(self._capacity) > 1
        self.ready.pop(instance, None)
        self._ejection.forget(instance)
        self._slowness.forget(instance)
        self._balancer.forget(instance)
        self._circuits_changed()  # the others may no longer be kept out

    def has_other(self, avoided: str) -> bool:
        """Another instance is up and trusted, busy or not."""
        return any(self._ejection.available(name) for name in self._capacity if name != avoided)

    def take(self, now: float, *, affinity: str, avoided: str, pinned: str = "") -> str:
        """The instance for a batch that starts now; `avoided` only if no other is ready. Some instance must be: `pinned`, if
        that is named.
        """
        ready = self.ready
        if pinned:
            assert pinned in ready
            instance = pinned
        elif len(ready) == 1:
            instance = next(iter(ready))
        else:  # in the order of coming up, along which round-robin counts: in that of `ready` one of three would get two turns
            choice: Collection[str] = self._capacity
            if len(ready) < len(self._capacity) or avoided in ready:
                choice = [name for name in self._capacity if name in ready and name != avoided]
            instance = self._balancer.choose(choice, self._in_flight, now, affinity)
        self._in_flight[instance] += 1
        if self.several:
            self._ejection.dispatched(instance)
            self._look_again((instance,))
        elif self._in_flight[instance] >= self._capacity[instance]:
            del ready[instance]
        return instance

    @property
    def only_suspects(self) -> bool:
        """Nobody is ready but instances that were slow when they last ran, and others were not: one row tells whether
        they still are."""
        if not self.several or self._knobs.balancer not in LATENCY_AWARE:
            return False
        return self._slowness.suspects(self.ready) and not self._slowness.suspects(self._capacity)

    def worth_waiting_s(self, batch_s: float, now: float, *, avoided: str) -> float:
        """How long a batch of `batch_s` may wait for a busy instance rather than start now on one that is slow; 0: not at all.

        An `avoided` instance is not waited for. The same for one that is far away, where the balancer knows distances.

        So long is the slow one's batch longer: whoever waits that long and still finds no other has lost nothing much.
        """
        if len(self.ready) == len(self._capacity) or self._knobs.balancer not in LATENCY_AWARE:
            return 0.0
        busy = [name for name in self._capacity if name not in self.ready and name != avoided]
        busy = [name for name in busy if self._ejection.available(name)]
        wait_s = self._slowness.excess(self.ready, busy, now) * batch_s
        if isinstance(self._balancer, Nearest):
            wait_s = max(wait_s, self._balancer.worth_waiting_s(self.ready, busy, self._in_flight, now))
        return wait_s

    def release(self, instance: str, service_s: float, *, predicted_s: float, ok: bool, now: float) -> None:
        """Its batch ended, well or not, after so many seconds; `predicted_s` matters only if there are several instances."""
        self._in_flight[instance] -= 1
        if not self.several:  # nobody to compare it with, nobody to send its work to
            self.ready[instance] = None
            return
        self._balancer.observe(instance, service_s, ok=ok, now=now)
        if isinstance(self._balancer, Nearest):  # being far away is not being slow
            service_s = max(service_s - self._balancer.distance_s(instance), 0.0)
        if ok:
            self._slowness.observe(instance, service_s, predicted_s=predicted_s, now=now)
        if self._ejection.observe(instance, ok=ok, now=now):
            self._circuits_changed()
        else:
            self._look_again((instance,))

    def probe(self, now: float) -> None:
        """Instances whose time out is over may take one batch each, to show whether they are well."""
        self._ejection.due(now)
        self._circuits_changed()

    def states(self) -> list[InstanceState]:
        """Every instance that is up."""
        return [
            InstanceState(name, self._ejection.state(name), self._in_flight[name], capacity)
            for name, capacity in self._capacity.items()
        ]

    def _balance(self, knobs: LaneKnobs) -> None:
        self._balancer = make_balancer(knobs.balancer, slow_start_s=knobs.slow_start_s)
        self.told: Callable[[str, Load, float], None] | None = getattr(self._balancer, "told", None)
        """To be called with what an instance says of itself; None where the balancer does not ask."""

    def _circuits_changed(self) -> None:
        self.probe_at = self._ejection.next_due_at()
        self._look_again(self._capacity)

    def _look_again(self, instances: Iterable[str]) -> None:
        for instance in instances:
            room = self._in_flight[instance] < self._capacity[instance]
            if room and (not self.several or self._ejection.available(instance)):
                self.ready.setdefault(instance)
            else:
                self.ready.pop(instance, None)

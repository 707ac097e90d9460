"""Autoscaling in virtual time: the production policy, instances that take their time to start, and leave when they are done.

Made by lab/simulate/run.py, one for each model of a node that scales. Not aware of: what the load is, reports.
"""

from math import inf

from dlproxy.fleet.autoscale import LOOK_S, LOOKS
from dlproxy.fleet.names import instance_name
from dlproxy.lab.report.result import Scaling
from dlproxy.lab.simulate.engine import Heap, Node, SimulatedModel
from dlproxy.lab.simulate.instance import SimulatedInstance
from dlproxy.lab.simulate.service_times import ServiceTimes
from dlproxy.policy.scaling import Bounds, Meter, ScalePolicy


class Life:
    """One instance from the beginning of its start."""

    def __init__(self, instance: SimulatedInstance, began_at: float) -> None:
        self.instance = instance
        self.began_at = began_at
        self.up = False


class SimulatedAutoscaler:
    """Scales one model of a node from now until `until`. A start takes `start_s`, and costs what an instance costs."""

    def __init__(
        self,
        node: Node,
        model: SimulatedModel,
        heap: Heap,
        policy: ScalePolicy,
        bounds: Bounds,
        *,
        times: ServiceTimes,
        start_s: float,
        since: float = 0.0,
        until: float,
    ) -> None:
        self._node = node
        self._model = model
        self._heap = heap
        self._policy = policy
        self._bounds = bounds
        self._times = times
        self._start_s = start_s
        self._since = since
        self._until = until
        self._meter = Meter(0.0)
        self._lives = [Life(instance, 0.0) for instance in model.instances.values()]
        for life in self._lives:
            life.up = True
        self._gone: list[SimulatedInstance] = []  # whose names are free again when they have finished
        self._looks = 0
        self._instance_s = 0.0
        self._changes = 0
        self._most = 0
        heap.at(LOOK_S, self._look, None)

    def result(self) -> Scaling:
        """From `since` to `until`."""
        still = sum(self._share(life.began_at, self._until) for life in self._lives)
        return Scaling(instance_s=self._instance_s + still, changes=self._changes, most=self._most)

    def _share(self, began_at: float, ended_at: float) -> float:
        return max(min(ended_at, self._until) - max(began_at, self._since), 0.0)

    def _look(self, _: None, now: float) -> None:
        if now >= self._until:
            return
        self._heap.at(now + LOOK_S, self._look, None)
        self._meter.look(self._model.lane.rows_under_way())
        self._looks += 1
        if self._looks == LOOKS:
            self._looks = 0
            self._decide(now)

    def _decide(self, now: float) -> None:
        model = self._model
        load = self._meter.load(
            now,
            arrived=model.arrived_rows,
            missed=model.missed_rows,
            busy_s=sum([instance.busy_s for instance in model.instances.values()]),
            instances=len(self._lives),
            batch=model.lane.batching.goal,
            capacity=model.lane.capacity,
            start_s=self._start_s,
        )
        self._scale(self._policy.decide(load, self._bounds).count, now)
        if now >= self._since:
            self._most = max(self._most, len(self._lives))

    def _scale(self, count: int, now: float) -> None:
        lives = self._lives
        if count == len(lives):
            return
        if now >= self._since:
            self._changes += 1
        if not count:
            self._model.wake = self._wake
            self._node.expect(self._model, now, inf)
        while len(lives) < count:
            life = Life(self._instance(now), now)
            lives.append(life)
            self._heap.at(now + self._start_s, self._up, life)
        while len(lives) > count:
            life = next((life for life in reversed(lives) if not life.up), lives[-1])
            lives.remove(life)
            if life.up:
                self._node.retire(self._model, life.instance, now)
            self._gone.append(life.instance)
            self._instance_s += self._share(life.began_at, max(now, life.instance.busy_until))

    def _wake(self, now: float) -> None:
        if not self._lives:
            self._scale(max(self._bounds.least, 1), now)

    def _up(self, life: Life, now: float) -> None:
        if life in self._lives:
            life.up = True
            self._model.wake = None
            self._node.revive(self._model, life.instance, now)

    def _instance(self, now: float) -> SimulatedInstance:
        """A new one, or one that has long finished under its name."""
        for instance in self._gone:
            if instance.busy_until + self._start_s < now:
                self._gone.remove(instance)
                return instance
        model = self._model
        instance = SimulatedInstance(instance_name(model.name, len(model.instances)), self._times)
        instance.measured_until = self._until
        model.instances[instance.name] = instance
        return instance

"""The autopilot in virtual time: the production pilot turns the knobs of one simulated model, whose machine has so many cores.

Made by benchmarks and lab/tune, one for each model. Not aware of: what the load is, reports.
"""

from collections import deque
from collections.abc import Mapping
from typing import Any

import msgspec

from dlproxy.lab.simulate.engine import Node, SimulatedModel
from dlproxy.lab.simulate.instance import SimulatedInstance
from dlproxy.lab.simulate.machine import Machine
from dlproxy.lab.simulate.service_times import ServiceTimes
from dlproxy.message import FailureKind, Ticket
from dlproxy.policy.events import KnobsChanged
from dlproxy.policy.scaling import MISSED
from dlproxy.policy.tuning.pilot import TICK_S, Order, Pilot
from dlproxy.policy.tuning.protocol import Knobs
from dlproxy.policy.tuning.shares import Member, SharedCores
from dlproxy.policy.tuning.window import Counts, Window, WindowMeter

LOOKS = 5  # in a window
MOST_TIMED = 2000  # latencies of a window


class Ways:
    """The instances of one simulated model, which all may run in another way from one moment to the next."""

    def __init__(self, node: Node, model: SimulatedModel, times: ServiceTimes, machine: Machine) -> None:
        self._node = node
        self._model = model
        self._times = times
        self._machine = machine
        self._up: list[SimulatedInstance] = []
        self.slowed_by = 1.0
        """Of every instance, those to come included."""

    @property
    def cores(self) -> float:
        """That the machine has now, as the operating system tells."""
        return self._machine.cores

    def run(self, instances: int, threads: int, now: float) -> None:
        """So many instances of so many threads take batches from now on; others finish what they run."""
        wanted = [self._instance(number, threads) for number in range(instances)]
        for instance in wanted:
            if instance not in self._up:
                self._node.revive(self._model, instance, now)
        for instance in self._up:
            if instance not in wanted:
                self._node.retire(self._model, instance, now)
        self._up = wanted

    def slow_down(self, factor: float) -> None:
        self.slowed_by = factor
        for instance in self._model.instances.values():
            instance.slowed_by = factor

    def _instance(self, number: int, threads: int) -> SimulatedInstance:
        name = f"{self._model.name}-{number}" if threads == 1 else f"{self._model.name}-{number}x{threads}"
        instance = self._model.instances.get(name)
        if instance is None:
            instance = self._model.instances[name] = SimulatedInstance(name, self._times)
            instance.threads, instance.slowed_by = threads, self.slowed_by
            instance.machine = self._machine
        return instance


class Telemetry:
    """Counts what one simulated model does, as ModelStats do on a server."""

    def __init__(self, objective_s: float) -> None:
        self.counts = Counts()
        self.latencies_s: deque[float] = deque(maxlen=MOST_TIMED)
        self._objective_s = objective_s

    def arrived(self, now: float) -> None:
        self.counts.arrived += 1

    def batch(self, rows: int, seconds: float) -> None:
        self.counts.batch(rows, seconds)

    def ended(self, ticket: Ticket, failure: FailureKind | None, now: float) -> None:
        counts = self.counts
        if failure is None:
            latency_s = now - ticket.arrived_at
            counts.answered += 1
            counts.rows += ticket.rows
            counts.in_time += latency_s <= self._objective_s
            self.latencies_s.append(latency_s)
        elif failure in MISSED:
            counts.refused += 1
        else:
            counts.failed += 1


class SimulatedPilot:
    """Looks every TICK_S / LOOKS. What a pilot wants prepared takes `start_s`, what it applies holds at once."""

    def __init__(
        self, node: Node, model: SimulatedModel, ways: Ways, pilot: Pilot, telemetry: Telemetry, *, start_s: float, until: float
    ) -> None:
        self._node = node
        self._model = model
        self._ways = ways
        self._pilot = pilot
        self._telemetry = telemetry
        self._start_s = start_s
        self._until = until
        self._meter = WindowMeter(0.0)
        self._looks = 0
        self._heap = node.heap
        self._heap.at(TICK_S / LOOKS, self._look, None)

    def turn(self, knobs: Knobs, now: float) -> None:
        """These hold from now on."""
        values: dict[str, Any] = {name: value for name, value in knobs.items() if name not in ("instances", "threads")}
        lane = self._model.lane
        before = lane.view().knobs
        after = msgspec.structs.replace(before, **values)
        if after != before:
            self._node.happen((self._model, KnobsChanged(after)), now)
        self._ways.run(int(knobs["instances"]), int(knobs["threads"]), now)

    def _look(self, _: None, now: float) -> None:
        if now >= self._until:
            return
        self._heap.at(now + TICK_S / LOOKS, self._look, None)
        telemetry = self._telemetry
        self._meter.look(telemetry.counts.arrived, self._model.lane.rows_under_way())
        self._looks += 1
        if self._looks < LOOKS:
            return
        self._looks = 0
        window = self._meter.window(now, telemetry.counts, telemetry.latencies_s, up=len(self._model.lane.pool))
        telemetry.latencies_s.clear()
        self._pilot.space = msgspec.structs.replace(self._pilot.space, cores=int(self._ways.cores))
        self.told(window, now)

    def told(self, window: Window, now: float) -> None:
        """What happened since the last time."""
        self.carry_out(self._pilot.look(window, now), now)

    def carry_out(self, order: Order | None, now: float) -> None:
        if order is None:
            return
        if order.act == "prepare":
            same = all(order.knobs[name] == self._pilot.knobs[name] for name in ("instances", "threads"))
            self._heap.at(now if same else now + self._start_s, self._prepared, order.knobs)
        else:
            self.turn(order.knobs, now)

    def _prepared(self, knobs: Knobs, now: float) -> None:
        self.carry_out(self._pilot.ready(knobs, now), now)


class SimulatedShares:
    """Turns the shares of a node's models, as long as they have requests. `weights`: what each model's answers count."""

    def __init__(
        self, node: Node, telemetries: Mapping[str, Telemetry], weights: Mapping[str, float], cores: int, *, until: float
    ) -> None:
        self._node = node
        self._telemetries = telemetries
        self._weights = weights
        self._until = until
        self._meters = {name: WindowMeter(0.0) for name in telemetries}
        self._looks = 0
        self.shared = SharedCores(cores, 0.0)
        node.heap.at(TICK_S / LOOKS, self._look, None)

    def turn(self, shares: Knobs) -> None:
        """These hold from now on."""
        for name, share in shares.items():
            taker = self._node.models[name].taker
            assert taker is not None
            taker.weight = float(share)

    def _look(self, _: None, now: float) -> None:
        if now >= self._until:
            return
        self._node.heap.at(now + TICK_S / LOOKS, self._look, None)
        for name, meter in self._meters.items():
            meter.look(self._telemetries[name].counts.arrived, self._node.models[name].lane.rows_under_way())
        self._looks += 1
        if self._looks < LOOKS:
            return
        self._looks = 0
        members = {}
        for name, meter in self._meters.items():
            telemetry = self._telemetries[name]
            window = meter.window(now, telemetry.counts, telemetry.latencies_s, up=1)
            telemetry.latencies_s.clear()
            if telemetry.counts.arrived:
                members[name] = Member(window, self._node.models[name].needs["cores"], self._weights[name])
        self._carry_out(self.shared.look(members, now), now)

    def _carry_out(self, order: Order | None, now: float) -> None:
        if order is None:
            return
        if order.act == "prepare":
            self._carry_out(self.shared.pilot.ready(order.knobs, now), now)
        else:
            self.turn(order.knobs)

"""Random scenarios in virtual time: a model under a load that shifts and bursts, perhaps with a cache and an autopilot, and
perhaps a fault that begins at some moment. What a watcher would see of them.

Called by training.py and benchmarks. Not aware of: detectors.
"""

from collections.abc import Iterator
from math import exp, log
from typing import Any, Literal, get_args

import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

from dlproxy.lab.report.result import Tally
from dlproxy.lab.simulate.autopilot import SimulatedPilot, Telemetry, Ways
from dlproxy.lab.simulate.cache import SimulatedCache
from dlproxy.lab.simulate.engine import Call, SimulatedModel, Simulation
from dlproxy.lab.simulate.machine import Machine
from dlproxy.lab.simulate.service_times import Fitted
from dlproxy.message import FailureKind, Ticket
from dlproxy.policy.balancing import make_balancer
from dlproxy.policy.knobs import LaneKnobs
from dlproxy.policy.lane import Lane
from dlproxy.policy.tuning.pilot import Pilot
from dlproxy.policy.tuning.protocol import Knobs, Space
from dlproxy.policy.tuning.rules import Rules
from dlproxy.policy.tuning.window import WindowMeter
from dlproxy.policy.watch.features import Seen
from dlproxy.policy.watch.usual import FIRST
from dlproxy.policy.watch.watcher import WINDOW_S, Watcher

Fault = Literal["slow", "leak", "storm", "poison", "inputs", "stampede", "stalls"]
FAULTS: tuple[Fault, ...] = get_args(Fault)
LOOKS = 10  # in a window, as on a server
CACHED = 300  # answers
KEYS = 2000
STEP_S = 1.0  # of a load's outline
MOST_BUSY = 0.8  # of what the instances can do with batches of one, on average
RETRIES = 3
HICCUP_S = 30.0  # for which a storm's cause lasts: more comes than can be answered


class Recorded(Struct, frozen=True, eq=False):
    """What a watcher saw once it knew what is usual: `off` [windows, features], `wrong` [windows] true during the fault."""

    fault: Fault | None
    off: NDArray[np.float32]
    wrong: NDArray[np.bool_]


class Trace(Struct, frozen=True, eq=False):
    """What a scenario's model did, window by window; its fault was there from the one instant to the other."""

    fault: Fault | None
    from_s: float
    until_s: float
    seen: list[Seen]


class Plan(Struct, frozen=True, kw_only=True):
    """`rate`: of requests, on average; `heavy`: share of them with eight rows; `gap_cv`: variation of the gaps between them.
    `load`: relative, for each STEP_S. `from_s` to `until_s`: the fault; `much` (0 to 1): how bad it is.
    """

    seconds: float
    base_s: float
    row_s: float
    service_cv: float
    objective_s: float
    instances: int
    rate: float
    heavy: float
    gap_cv: float
    load: NDArray[np.float64]
    cached: bool
    tuned: bool
    fault: Fault | None
    from_s: float
    until_s: float
    much: float

    @property
    def busy(self) -> float:
        """Share of the instances' time that batches of one take."""
        return self.rate * (self.base_s + self.row_s * (1.0 + 7.0 * self.heavy)) / self.instances


def plan(random: np.random.Generator, seconds: float, fault: Fault | None) -> Plan:
    """One at random. A fault begins in the middle third and lasts for at most a third."""
    instances = int(random.integers(1, 5))
    rate = exp(random.uniform(log(4.0), log(30.0)))
    heavy = float(random.choice([0.0, 0.05, 0.2]))
    busy = random.uniform(0.1, 0.5)
    single_s = busy * instances / rate / (1.0 + 3.0 * heavy)
    fixed = random.uniform(0.2, 0.95)
    load = _load(random, round(seconds / STEP_S))
    load = np.minimum(load, MOST_BUSY / busy)
    from_s = random.uniform(1 / 3, 1 / 2) * seconds
    return Plan(
        seconds=seconds,
        base_s=single_s * fixed,
        row_s=single_s * (1.0 - fixed),
        service_cv=random.uniform(0.05, 0.3),
        objective_s=single_s * exp(random.uniform(log(4.0), log(20.0))),
        instances=instances,
        rate=rate,
        heavy=heavy,
        gap_cv=float(random.choice([1.0, 1.0, 2.0, 3.0])),
        load=load,
        cached=fault == "stampede" or bool(random.random() < 0.3),
        tuned=bool(random.random() < 0.4),
        fault=fault,
        from_s=from_s,
        until_s=min(from_s + random.uniform(1 / 6, 1 / 3) * seconds, seconds),
        much=float(random.random()),
    )


def _load(random: np.random.Generator, steps: int) -> NDArray[np.float64]:
    """Waves, steps that stay, and bursts of seconds."""
    at = np.arange(steps)
    load = 1.0 + random.uniform(0.0, 0.4) * np.sin(2.0 * np.pi * (at / random.uniform(300.0, 2000.0) + random.random()))
    for _ in range(random.poisson(steps / 600.0)):
        load[random.integers(steps) :] *= exp(random.uniform(-0.8, 0.8))
    for _ in range(random.poisson(steps / 300.0)):
        since = random.integers(steps)
        load[since : since + random.integers(3, 25)] *= random.uniform(1.5, 3.0)
    return np.maximum(load, 0.2)


def simulate(planned: Plan, seed: int) -> Trace:
    """Run it."""
    run = _Run(planned, seed)
    run.run(run.calls(), drain_s=30.0)
    return Trace(planned.fault, planned.from_s, run.until_s, run.seen)


def told(trace: Trace) -> Recorded:
    """What a detector would be told of it, if nothing were unusual to it: what is usual follows all that is seen."""
    keeps = _Keeps()
    watcher = Watcher(keeps)
    at: list[float] = []
    for seen in trace.seen:
        before = len(keeps.off)
        watcher.look(seen, seen.window.at)
        if len(keeps.off) > before:
            at.append(seen.window.at)
    wrong = [trace.fault is not None and trace.from_s < end and end - WINDOW_S < trace.until_s for end in at]
    return Recorded(trace.fault, np.asarray(keeps.off, np.float32), np.asarray(wrong, np.bool_))


class _Keeps:
    """A Detector that finds nothing unusual."""

    def __init__(self) -> None:
        self.off: list[tuple[float, ...]] = []

    def observe(self, off: Any, now: float) -> float:
        self.off.append(tuple(off))
        return 0.0

    def forget(self) -> None:
        self.off.clear()


class _Counts(Telemetry):
    """Leaves out what the cache answers, as on a server."""

    def ended(self, ticket: Ticket, failure: FailureKind | None, now: float) -> None:
        if now > ticket.arrived_at or failure is not None:
            super().ended(ticket, failure, now)
        else:
            self.counts.arrived -= 1


class _Both:
    """Two who hear."""

    def __init__(self, *hear: Telemetry) -> None:
        self._hear = hear

    def arrived(self, now: float) -> None:
        for one in self._hear:
            one.arrived(now)

    def batch(self, rows: int, seconds: float) -> None:
        for one in self._hear:
            one.batch(rows, seconds)

    def ended(self, ticket: Ticket, failure: FailureKind | None, now: float) -> None:
        for one in self._hear:
            one.ended(ticket, failure, now)


class _Run(Simulation):
    def __init__(self, planned: Plan, seed: int) -> None:
        super().__init__(Tally(0.0, planned.seconds, planned.objective_s), balancer=make_balancer("round-robin"))
        self.seen: list[Seen] = []
        self.until_s = planned.until_s
        self._plan = planned
        self._random = np.random.default_rng((seed, 7))
        self._numbers: dict[int, tuple[Call, int]] = {}  # that may be sent again: and how often they were
        self._again = 0
        self._wander = 0.0
        self._factor = 1.0
        self._slow = ""  # the instance that is
        knobs = LaneKnobs(max_batch=64, slo_s=planned.objective_s)
        prior = [(rows, planned.base_s + planned.row_s * rows) for rows in (1, 64)]
        times = Fitted(planned.base_s, planned.row_s, cv=planned.service_cv, seed=seed)
        self._model = model = SimulatedModel("m", Lane(knobs, prior), times, [])
        if planned.cached:
            model.cache = SimulatedCache("s3-fifo", CACHED)
        node = self.add("node-0", [model])
        self._ways = Ways(node, model, times, Machine(4.0))
        self._ways.run(planned.instances, 1, 0.0)
        self._telemetry = _Counts(planned.objective_s)
        hears: list[Telemetry] = [self._telemetry]
        if planned.tuned:
            hears.append(self._fly(node, planned))
        model.hears = _Both(*hears)
        self._meter, self._looks, self._cache_before = WindowMeter(0.0), 0, (0, 0)
        self.heap.at(WINDOW_S / LOOKS, self._look, None)
        self.heap.at(1.0, self._shake, None)
        if planned.fault == "stalls":
            self.heap.at(planned.from_s, self._stall, None)
        elif planned.fault == "poison":
            self.heap.at(planned.from_s, self._poison, None)

    def _fly(self, node: Any, planned: Plan) -> Telemetry:
        ways = tuple((instances, threads) for threads in (1, 2) for instances in (1, 2, 4) if instances * threads <= 4)
        space = Space(cores=4, max_batch=64, ways=ways, objective_s=planned.objective_s)
        knobs: Knobs = {
            "max_batch": 64,
            "max_wait_s": 0.0,
            "instances": planned.instances,
            "threads": 1,
            "discipline": "edf",
        }
        telemetry = Telemetry(planned.objective_s)
        pilot = Pilot(Rules(), space, knobs, 0.0)
        SimulatedPilot(node, self._model, self._ways, pilot, telemetry, start_s=0.5, until=planned.seconds)
        return telemetry

    # Load

    def calls(self) -> Iterator[Call]:
        planned, random = self._plan, self._random
        reached = np.concatenate([[0.0], np.cumsum(planned.load * planned.rate * STEP_S)])
        shape = planned.gap_cv**-2
        gaps = random.gamma(shape, 1.0 / shape, int(reached[-1] * 1.2) + 100)
        due = np.interp(np.cumsum(gaps), reached, np.arange(reached.size) * STEP_S, right=np.inf)
        due = due[np.isfinite(due)]
        drawn, keys = random.random((2, due.size)), random.zipf(1.2, due.size) % KEYS
        longer = planned.fault == "inputs" and planned.much > 0.5
        for at_s, one, other, key in zip(due.tolist(), drawn[0].tolist(), drawn[1].tolist(), keys.tolist(), strict=True):
            drifted = planned.fault == "inputs" and planned.from_s <= at_s < planned.until_s and other < 0.3 + planned.much / 2
            rows = 8 if one < planned.heavy or (drifted and not longer) else 1
            call = Call("m", rows, planned.objective_s, at_s, patience_s=4.0 * planned.objective_s)
            call.length = 4 if drifted and longer else 1
            call.key = key if planned.cached else None
            yield call

    def send(self, call: Call, now: float, tries: int = 0) -> None:
        if self._plan.fault == "storm":
            self._numbers[self._count + 1] = call, tries
        super().send(call, now)

    def _finished(self, number: int, failure: FailureKind | None, now: float) -> None:
        planned, due_at = self._plan, self._open[number][0]
        super()._finished(number, failure, now)
        if planned.fault != "storm":
            return
        call, tries = self._numbers.pop(number)
        late = failure is not None or now - due_at > planned.objective_s
        if planned.from_s <= now < planned.until_s and late and tries < RETRIES:
            self._again += 1
            for _ in range(2):
                again = Call(call.model, call.rows, call.timeout_s, now + 0.05, key=call.key, patience_s=call.patience_s)
                self.heap.at(now + 0.05, self._resend, (again, tries + 1))

    def _resend(self, what: tuple[Call, int], now: float) -> None:
        self.send(what[0], now, what[1])

    # Faults

    def _shake(self, _: None, now: float) -> None:
        """Once a second: machines are never quite as quick as a second ago."""
        planned = self._plan
        if now < planned.seconds:
            self.heap.at(now + 1.0, self._shake, None)
        self._wander = 0.9 * self._wander + self._random.normal(0.0, 0.025)
        here = planned.from_s <= now < planned.until_s
        self._factor = exp(self._wander)
        if here and planned.fault == "leak":
            self._factor *= 1.0 + (0.5 + 3.5 * planned.much) * (now - planned.from_s) / (planned.until_s - planned.from_s)
        elif here and planned.fault == "storm" and now < planned.from_s + HICCUP_S:
            self._factor *= (1.2 + planned.much) / planned.busy
        elif here and planned.fault == "storm":
            self._storm_goes_on(now)
        elif here and planned.fault == "stampede" and self._model.cache is not None and round(now) % 4 == 0:
            self._model.cache._kept = SimulatedCache("s3-fifo", CACHED)._kept  # all that it knew is too old at once
        self._ways.slow_down(self._factor)
        if here and planned.fault == "slow":
            up = self._way()
            self._slow = self._slow if self._slow in up else up[0]
            self._model.instances[self._slow].slowed_by = self._factor * (2.0 + 10.0 * planned.much)

    def _storm_goes_on(self, now: float) -> None:
        """It is over when nobody sends anything again."""
        if self._again == 0:
            self.until_s = min(self.until_s, now)
        self._again = 0

    def _stall(self, _: None, now: float) -> None:
        """Everything stands still for a moment, every few seconds."""
        planned = self._plan
        if now < planned.until_s:
            self.heap.at(now + 4.0, self._stall, None)
            self._ways.slow_down(self._factor * (10.0 + 30.0 * planned.much))
            self.heap.at(now + 0.3, self._goes_on, None)

    def _goes_on(self, _: None, now: float) -> None:
        self._ways.slow_down(self._factor)

    def _poison(self, _: None, now: float) -> None:
        """Some of the batches fail."""
        planned = self._plan
        on = now < planned.until_s
        fails = on and self._random.random() < 0.1 + 0.9 * planned.much
        for instance in self._model.instances.values():
            instance.fails_after_s = 0.001 if fails else None
        if on:
            self.heap.at(now + 0.2, self._poison, None)

    # What is seen

    def _look(self, _: None, now: float) -> None:
        if now < self._plan.seconds:
            self.heap.at(now + WINDOW_S / LOOKS, self._look, None)
        telemetry, model = self._telemetry, self._model
        self._meter.look(telemetry.counts.arrived, model.lane.rows_under_way())
        self._looks += 1
        if self._looks < LOOKS:
            return
        self._looks = 0
        window = self._meter.window(now, telemetry.counts, telemetry.latencies_s, up=len(model.lane.pool))
        telemetry.latencies_s.clear()
        hits = look_ups = 0
        if model.cache is not None:
            cache, before = model.cache, self._cache_before
            self._cache_before = cache.hits + cache.joined, cache.hits + cache.joined + cache.misses
            hits, look_ups = self._cache_before[0] - before[0], self._cache_before[1] - before[1]
        self.seen.append(Seen(window, self._way(), hits, look_ups))

    def _way(self) -> tuple[str, ...]:
        return tuple(sorted([slot.name for slot in self._model.lane.view().instances]))


def traces(count: int, seconds: float, fault: Fault | None, seed: tuple[int, ...]) -> Iterator[Trace]:
    """So many, at random."""
    assert seconds > 2 * FIRST * WINDOW_S, "too short to learn what is usual"
    for number in range(count):
        random = np.random.default_rng((*seed, number))
        yield simulate(plan(random, seconds, fault), int(random.integers(1 << 31)))

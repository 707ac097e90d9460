"""Looks at a model that has variants, asks a Governor which of them should answer whom, and has its VariantLayer do it.

Put together by assemble.py; models.py tells it which models are up. Not aware of: requests, how the Governor decides.
"""

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Sequence
from functools import partial
from math import inf
from typing import TYPE_CHECKING, Any

from dlproxy.autopilot.flight import in_words
from dlproxy.config import ModelConfig
from dlproxy.config.goals import Goal
from dlproxy.policy.batching import SLO_SHARE
from dlproxy.policy.queueing import LOWEST_LEVEL
from dlproxy.policy.reachable import capacity_of as rate_of
from dlproxy.policy.scaling import MISSED
from dlproxy.policy.tuning.pilot import Decision
from dlproxy.policy.variants import TICK_S, Aim, Candidate, Governor, Window
from dlproxy.serve.variants import Variant, VariantLayer, difference, found
from dlproxy.telemetry.stats import Timings

if TYPE_CHECKING:
    from dlproxy.serve.assemble import LoadedModel

log = logging.getLogger(__name__)

NOT_SERVED = "it is not served here"
IN_USE = 8  # ticks in which a model in use runs at least as many batches: what its lane has learned is news then


class Degrading:
    """Of one model, from when it is put together until `close`. `cores`: that models share."""

    def __init__(self, layer: VariantLayer, model: "LoadedModel") -> None:
        self.layer = layer
        self.cores = 1.0
        self.held: Callable[[], bool] = lambda: False
        """Whether an operator has paused what decides here."""
        self.tell: Callable[[Decision, Decision | None], None] = partial(_log, layer.name)
        """Called with each switch; and again with what it did, in place of the one that is the second argument."""
        self._model = model
        self._governor = Governor(layer.name, _aim(model.control.config))
        self._find: Callable[[str], LoadedModel | None] = lambda name: None
        self._names: Sequence[str] = ()
        self._variants: dict[str, Variant] = {}
        self._problems: dict[str, str] = {}
        self._last: Decision | None = None
        self._timings = Timings(0)
        self._others: dict[str, int] = {}  # rows that each variant had answered for others
        self._batches: dict[str, deque[int]] = {}  # that each model had run, tick by tick
        layer.after = self._after
        layer.stats.settle()
        layer.stats.readers.append(self._timings)
        self._computed = layer.stats.computed
        self._seen = self._counted()
        self._seen_at = layer.clock()
        self._timer = asyncio.get_running_loop().call_later(TICK_S, self._tick)

    def close(self) -> None:
        """The model goes: nothing is decided any more. What variants have they answer."""
        self._timer.cancel()
        if self._timings in self.layer.stats.readers:
            self.layer.stats.readers.remove(self._timings)

    def follow(self, find: Callable[[str], "LoadedModel | None"]) -> None:
        """Models have come or gone. `find`: the default version of one, if it is up."""
        self._find = find
        before, self._variants = self._variants, {}
        self._names = self._model.control.config.variants
        problems = {}
        for name in self._names:
            model = find(name)
            problems[name] = NOT_SERVED if model is None else difference(self._model.served.signature, model.served.signature)
            if model is not None and not problems[name]:
                known = before.get(name)
                self._variants[name] = known if known is not None and known.model is model else Variant(model)
        for name, problem in problems.items():
            if problem and self._problems.get(name) != problem:
                say = log.info if problem == NOT_SERVED else log.warning  # it may be about to be
                say("model %s: variant '%s' cannot answer for it: %s", self.layer.name, name, problem)
        self._problems = problems
        self._stand()

    def problems(self) -> list[str]:
        """Why variants are not used, a sentence each."""
        return [f"variant '{name}' is not used: {problem}" for name in self._problems if (problem := self._problem(name))]

    def _problem(self, name: str) -> str:
        """Why this variant is not used; empty if it may be."""
        variant, least = self._variants.get(name), self._model.control.config.goal.least_accuracy
        if variant is None or variant.model.accuracy >= least:
            return self._problems[name]
        accuracy = variant.model.accuracy
        measured = f"its accuracy is {accuracy:g}" if accuracy else "its accuracy is not known (set accuracy)"
        return f"{measured}, and {Goal(least_accuracy=least)} holds"

    def state(self) -> dict[str, Any]:
        """JSON: who may answer; who answers which class of priority, for how long (None: nothing was switched), and why."""
        counts, last = self.layer.counts, self._last
        return {
            "assignment": {str(priority): name for priority, name in counts.assignment.items()},
            "for_s": None if last is None else round(self.layer.clock() - last.at, 3),
            "reason": "" if last is None else last.reason,
            "switches": counts.switches,
            "spilled": counts.spilled,
            "accuracy": self._model.accuracy,
            "candidates": [self._described(name) for name in self._problems],
        }

    def _described(self, name: str) -> dict[str, Any]:
        variant = self._variants.get(name)
        return {
            "name": name,
            "accuracy": 0.0 if variant is None else variant.model.accuracy,
            "up": variant is not None and variant.ready,
            "problem": self._problem(name),
            "answers": self.layer.counts.answers.get(name, 0),
        }

    # What it decides

    def _tick(self) -> None:
        self._timer = asyncio.get_running_loop().call_later(TICK_S, self._tick)
        try:
            self._look()
        except Exception:
            log.exception("model %s: nothing tells which variant should answer: it answers itself from now on", self.layer.name)
            self.layer.standing = [None] * (LOWEST_LEVEL + 1)
            self.layer.after = lambda variant: None
            self.close()

    def _look(self) -> None:
        config, governor, now = self._model.control.config, self._governor, self.layer.clock()
        if config.variants != self._names:
            self.follow(self._find)
        governor.aim = _aim(config)
        decision = governor.look(self._window(now, config.slo_s), now, held=self.held())
        if decision is not None:
            self._last = decision
            self.layer.counts.switches += 1
            self._stand()
            self.tell(decision, None)
        measured = governor.measured(now)
        if measured is not None:
            self.tell(measured[1], measured[0])

    def _stand(self) -> None:
        assignment = self._governor.assignment
        self.layer.standing = [self._variants.get(name) for name in assignment]
        self.layer.counts.assignment = dict(enumerate(assignment[1:], 1))

    def _after(self, variant: Variant | None) -> Variant | None:
        if self.held():
            return None
        return found(self._variants, self._governor.cheaper(self.layer.name if variant is None else variant.name))

    # What it sees

    def _window(self, now: float, slo_s: float | None) -> Window:
        """Since the last one."""
        layer, lane = self.layer, self._model.lane
        rows, requests, goal = layer.rows, layer.requests, lane.batching.goal
        layer.rows, layer.requests = [0] * len(rows), 0
        layer.room = max(goal * requests // sum(rows), 1) if requests else goal
        seconds, self._seen_at = max(now - self._seen_at, 1e-3), now
        self._timings.objective_s = inf if slo_s is None else slo_s
        before, self._seen = self._seen, self._counted()
        models = [self._model, *(variant.model for variant in self._variants.values())]
        candidates = [Candidate(layer.name, self._model.accuracy, self._capacity(self._model, slo_s))]
        candidates += [self._candidate(variant, slo_s, seconds) for variant in self._variants.values()]
        missed, spilled = (now - then for now, then in zip(self._seen, before, strict=True))
        crowded = lane.queue.rows >= goal
        return Window(seconds, rows, requests, missed, spilled, candidates, crowded, share_cores(models, self.cores))

    def _candidate(self, variant: Variant, slo_s: float | None, seconds: float) -> Candidate:
        model = variant.model
        capacity = self._capacity(model, slo_s)
        others = model.served.stats.rows - variant.answered_rows
        rate = max(others - self._others.get(variant.name, others), 0) / seconds
        self._others[variant.name] = others
        return Candidate(variant.name, model.accuracy, capacity, rate, variant.ready)

    def _capacity(self, model: "LoadedModel", slo_s: float | None) -> float:
        """Of one that is not in use as good as it ever was known to be: what one bad moment has taught its lane is corrected by
        running alone.
        """
        stats = model.served.stats
        stats.settle()
        ticks = self._batches.setdefault(model.served.name, deque(maxlen=IN_USE))
        ticks.append(stats.batches)
        return capacity_of(model, slo_s, self.cores, in_use=ticks[-1] - ticks[0] >= IN_USE)

    def _counted(self) -> tuple[int, int]:
        """Requests until now that missed the objective, and those that went to a variant for that."""
        layer, stats = self.layer, self.layer.stats
        stats.settle()
        late = stats.computed - self._computed - self._timings.in_time + layer.late
        return sum([stats.failures[kind] for kind in MISSED]) + late, layer.counts.spilled


def capacity_of(model: "LoadedModel", slo_s: float | None, cores: float, *, in_use: bool = True) -> float:
    """Rows per second that it answers with the cores to itself, in the batches that its lane makes, as far as that has learned
    what they cost; 0 if a row alone takes longer than `slo_s`. Not `in_use`: or as the warm-up has it, if that is more.
    """
    lane = model.lane
    batching, prior = lane.batching, model.fleet.calibration.points
    one = lane.capacity if slo_s is None or lane.model.mean(1, batching.length) <= slo_s else 0.0
    if prior and not in_use:
        within = Goal(min(batching.budget_s() / SLO_SHARE, inf if slo_s is None else slo_s))
        if slo_s is None or min([point[-1] for point in prior]) <= slo_s:
            one = max(one, rate_of(within, prior, 1, model.control.holds("max_batch")))
    side_by_side: float = sum([instance.capacity for instance in lane.pool.states()])
    if not side_by_side and model.autoscaler is not None and model.autoscaler.asleep:
        side_by_side = 1.0
    needs = model.turn_needs.get("cores", 0.0)
    return one * (min(side_by_side, cores // needs) if needs else side_by_side)


def share_cores(models: Sequence["LoadedModel"], cores: float) -> bool:
    """Whether one of these has less to compute with while others compute."""
    if any(model.turn_needs for model in models) or sum([model.fleet.way.inline for model in models]) > 1:
        return True
    return sum([len(model.lane.pool) * model.fleet.way.threads for model in models]) > cores


def _aim(config: ModelConfig) -> Aim:
    goal = config.goal
    return Aim(goal.least_accuracy, goal.latency_s is not None, config.variant)


def _log(name: str, decision: Decision, before: Decision | None) -> None:
    log.info("model %s: %s", name, in_words(decision))

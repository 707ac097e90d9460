"""What the steps of a pipeline take, and what follows for the deadlines of each and for who is let in.

Asked by serve/pipelines for every request, and by lab/simulate. Not aware of: how steps run, clocks, tensors.
"""

from collections.abc import Callable, Mapping
from math import ceil, inf, sqrt

from msgspec import Struct

from dlproxy.config.pipelines import Wiring
from dlproxy.message import Failure, FailureKind, Ticket
from dlproxy.policy.batching import SLO_SHARE
from dlproxy.policy.fitting import SIGMAS

MEMORY = 0.97  # of what was observed, kept at each further observation: about the last 33 count
DOUBT_S = 1.0  # so long after it began to keep requests out, a prediction that no end has confirmed since keeps none out
HEADROOM = 1.5
BIAS = 1.0
HALF = 0.5
RES = 1
ENT = 1.0
MODE = 0

HALVINGS = 24  # of the interval in which the rate is looked for


class Stage(Struct, frozen=True):
    """How a step's model batches, as its lane has it: so many rows take base_s + row_s * rows, `most` at a time on each of
    `instances`; `spread`: the 99th percentile over that.
    """

    base_s: float
    row_s: float
    most: int
    instances: int
    spread: float = 1.0

    def rows(self, rate: float) -> int:
        """Of the smallest batches that keep up with so many rows per second."""
        free = self.instances - rate * self.row_s
        return min(max(ceil(rate * self.base_s / free), 1), self.most) if free > 0.0 else self.most

    def batch_s(self, rows: float) -> float:
        """At the 99th percentile."""
        return self.spread * (self.base_s + self.row_s * rows)

    @property
    def capacity(self) -> float:
        """Rows per second with the largest batches."""
        return self.instances * self.most / max(self.base_s + self.row_s * self.most, 1e-9)


class Took(Struct):
    """What a step computed, by how many items it ran for: decayed sums, through which a line is fitted (least squares)."""

    weight: float = 0.0
    items: float = 0.0
    items2: float = 0.0
    seconds: float = 0.0
    seconds2: float = 0.0
    cross: float = 0.0
    waited_s: float = 0.0
    foretold: float = 0.0
    foretold_s: float = 0.0

    def foretell(self, wait_s: float) -> None:
        self.foretold = self.foretold * MEMORY + 1.0
        self.foretold_s += (wait_s - self.foretold_s) / self.foretold

    def wait(self, wait_s: float) -> float:
        return max(wait_s + BIAS * (self.waited_s - self.foretold_s), 0.0) if wait_s and self.foretold and self.weight else wait_s

    def observe(self, waited_s: float, computed_s: float, items: int) -> None:
        self.weight = self.weight * MEMORY + 1.0
        self.items = self.items * MEMORY + items
        self.items2 = self.items2 * MEMORY + items * items
        self.seconds = self.seconds * MEMORY + computed_s
        self.seconds2 = self.seconds2 * MEMORY + computed_s * computed_s
        self.cross = self.cross * MEMORY + computed_s * items
        self.waited_s += (waited_s - self.waited_s) / self.weight

    @property
    def usual(self) -> float:
        """Items."""
        return self.items / self.weight if self.weight else 1.0

    def expect(self, items: int) -> tuple[float, float]:
        """Mean and variance in seconds. `items`: 0 for as many as there usually are."""
        if not self.weight:
            return 0.0, 0.0
        mean_s, usual = self.seconds / self.weight, self.usual
        spread = self.items2 / self.weight - usual * usual
        variance = max(self.seconds2 / self.weight - mean_s * mean_s, 0.0)
        if not items or spread < 1e-9 * usual * usual:
            return mean_s, variance
        together = self.cross / self.weight - usual * mean_s
        slope_s = max(together / spread, 0.0)
        return max(mean_s + slope_s * (items - usual), 0.0), max(variance - slope_s * slope_s * spread, 0.0)

    def tail(self, items: int) -> float:
        mean_s, variance = self.expect(items)
        return mean_s + SIGMAS * sqrt(variance)


class Pacing:
    """Of one pipeline, from what its steps were measured to take. All times in seconds."""

    def __init__(self, wiring: Wiring) -> None:
        self._wiring = wiring
        self._took = {name: Took() for name in wiring.order}
        self._before = {name: wiring.before(name) for name in wiring.order}
        self.shares: dict[str, float] = {}

    def observed(self, step: str, *, waited_s: float, computed_s: float, items: int = 1) -> None:
        """A step of one request has ended well: it waited so long, for a lane or a thread, and computed so long."""
        self._took[step].observe(waited_s, computed_s, items)

    def split(self, objective_s: float, stages: Mapping[str, Stage]) -> Mapping[str, float]:
        """Shares of the objective: the batches that let the most requests through it, and as much more as is left over."""

        capacities = {step: stage.capacity / self._took[step].usual for step, stage in stages.items()}
        most = min(capacities.values(), default=0.0)
        bottleneck = min(capacities, key=capacities.__getitem__, default="")

        def needs(rate: float) -> dict[str, float]:
            return {
                step: self._needs(step, stages.get(step), rate * min(HEADROOM, capacities.get(step, 0.0) / capacities[bottleneck]))
                for step in self._wiring.order
            }

        if self._longest(needs(most)) > objective_s:
            low = 0.0
            for _ in range(HALVINGS):
                middle = (low + most) / 2
                if self._longest(needs(middle)) <= objective_s:
                    low = middle
                else:
                    most = middle
            most = low
        found = needs(most)
        longest = self._longest(found)
        self.shares = {step: seconds * objective_s / longest for step, seconds in found.items()} if longest else {}
        return self.shares

    def _needs(self, step: str, stage: Stage | None, rate: float) -> float:
        took = self._took[step]
        if stage is None:
            return took.tail(0)
        rows = stage.rows(rate * took.usual)
        return stage.batch_s(min(rows + HALF, stage.most)) * (1.0 + max(took.usual / rows / stage.instances, 1.0)) / (2.0 * SLO_SHARE)

    def _longest(self, seconds: Mapping[str, float]) -> float:
        """Along the way through the steps that takes longest."""
        reached: dict[str, float] = {}
        for step in self._wiring.order:
            reached[step] = max([reached[name] for name in self._before[step]], default=0.0) + seconds[step]
        return max(reached.values())

    def deadline_at(self, step: str, ticket: Ticket, now: float, items: int = 1) -> float:
        """What scheduling aims at for this step, of a request of the pipeline with this ticket; +inf for nothing."""
        final = ticket.deadline_at
        if final == inf:
            return inf
        floor = now + self._took[step].tail(items)
        return min(max(final - self._rest(step, items), floor), final)

    def refusal(self, ticket: Ticket, waits: Mapping[str, float], now: float) -> Failure | None:
        """Why the request need not begin: it would be late. `waits`: by step, what a new request would wait there now."""
        left_s = ticket.deadline_at - now
        if left_s == inf or not any(waits.values()):
            return None
        reached: dict[str, tuple[float, float]] = {}
        for step in self._wiring.order:
            at_s, variance = max([reached[name] for name in self._before[step]], default=(0.0, 0.0))
            mean_s, more = self._took[step].expect(self._took[step].usual if RES else 0)
            reached[step] = at_s + self._took[step].wait(waits[step]) + mean_s, variance + more
        mean_s, variance = max(reached.values())
        if mean_s + ENT * sqrt(variance) <= left_s:
            for step, wait_s in waits.items():
                self._took[step].foretell(wait_s)
            return None
        message = f"late {left_s} {mean_s}"
        return Failure(FailureKind.DEADLINE, message, retry_after_s=sum(waits.values()))

    def _rest(self, step: str, items: int) -> float:
        """Seconds that are kept for what comes after the step."""
        rest: dict[str, float] = {}
        for name in reversed(self._wiring.order):
            longest = 0.0
            for after in self._wiring.after[name]:
                took = self._took[after]
                need_s = took.waited_s + took.tail(items if items > 1 else 0)
                share_s = self.shares.get(after, need_s)
                keep_s = min(need_s, share_s) if MODE == 0 else share_s if MODE == 1 else (min(need_s, share_s) + share_s) / 2
                longest = max(longest, keep_s + rest[after])
            if name == step:
                return longest
            rest[name] = longest
        return 0.0

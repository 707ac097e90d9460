"""Batch policies: how many rows a batch takes, and whether it waits to fill. Called by policy/lane.py.

Not aware of: which tickets (the queue discipline orders them), which instance.
"""

from math import inf
from typing import Protocol

from msgspec import Struct

from dlproxy.policy.cost import LatencyModel
from dlproxy.policy.knobs import LaneKnobs
from dlproxy.policy.queueing import QueueDiscipline

SLO_SHARE = 0.92 / 2  # a request may wait for one whole batch before its own (Nexus); 8 % stay for everything else (Clipper)
DEFAULT_STRETCH = 5.0  # without an objective: p99 = 5 * L(1)
MOST_SPREAD = 1.6  # p99 / mean up to which spread shrinks batches: with more of it (other servers) none but ones would be left
FREE_BATCH_S = 1e-3  # without an objective: nobody notices a batch of 1 ms, so small models are not held to 5 * L(1)
OBSERVE_EVERY_S = 1e-3  # of quicker batches a sample is learned from: a fit costs 2 us, and they follow by the thousand
REFIT_EVERY = 50  # batches between two looks at the limit, so that it moves rarely and explainably
ROUNDING = 1e-9  # relative
MOST_LENGTHS = 1024  # limits that are remembered
RECENT_S = 60.0  # the largest batch in budget counts for so long; then half of it, and so on


class Take(Struct, frozen=True):
    """Dispatch now, up to this many rows."""

    rows: int


class Wait(Struct, frozen=True):
    """Hold the batch until this time, unless something happens before."""

    until: float


class BatchPolicy(Protocol):
    """Asked only while an instance idles and something waits."""

    def decide(self, queue: QueueDiscipline, now: float) -> Take | Wait: ...

    def observe(self, rows: int, service_s: float, now: float, length: int = 1) -> None:
        """One batch ran, of rows of this length. Called once per batch that gave answers."""
        ...


class _Step(Struct):
    """The batch of most work (rows times length) that ran within its budget, and when; `tried`: rows of the largest."""

    rows: int = 0
    length: int = 1
    at: float = -inf
    tried: int = 0
    work: int = 0

    def prove(self, rows: int, length: int) -> None:
        self.rows, self.length, self.work = rows, length, rows * length

    def allows(self, length: int) -> int:
        """Rows of this length that take at most twice as long: what a batch takes grows with rows and with length squared."""
        if length <= self.length:
            return 2 * self.rows
        return int(2 * self.rows * (self.length / length) ** 2)


class FittedBatching:
    """Work-conserving batches, as large as the latency objective allows by the fitted model, never padded by waiting.

    The goal is the largest b with p99(b) <= 0.92 * SLO / 2. The limit goes there by steps from one row: it is never more than
    twice the largest batch that ran within its budget. Batches have a base and grow in proportion to rows at most, so however
    wrong the fit is, none takes more than twice its budget. See docs/internals/batching.md for the measured reasons.

    `limit` and `goal` are those for rows of the length that ran or was asked for last. There is a step for each power of two
    of lengths.
    """

    def __init__(self, knobs: LaneKnobs, model: LatencyModel) -> None:
        self._model = model
        self._since_refit = 0
        self._observe_at = -inf
        self._length = 1
        self._step = _Step()
        self._steps: dict[int, _Step] = {1: self._step}
        self._takes: dict[int, Take] = {}  # by length, as long as nothing changes
        self._goals: dict[int, int] = {}
        self.limit = 1
        self.configure(knobs)

    def configure(self, knobs: LaneKnobs) -> None:
        self._knobs = knobs
        self._refit()

    @property
    def length(self) -> int:
        """Of the rows that ran or were asked for last."""
        return self._length

    @property
    def goal(self) -> int:
        """Rows that the limit aims at."""
        return self.goal_at(self._length)

    def goal_at(self, length: int) -> int:
        """The same for rows of this length."""
        goal = self._goals.get(length)
        if goal is None:
            budget_s, most = self.budget_s(length), self._knobs.max_batch
            goal = self._model.rows_within(budget_s, most=most, length=length)
            if goal == 1 < most and self._knobs.slo_s is None and self._model.mean(2, length) <= budget_s:
                goal = 2  # never more than 2 * L(1): else the noise of a machine would move it to and fro
            if len(self._goals) >= MOST_LENGTHS:
                self._goals.clear()
            self._goals[length] = goal
        return goal

    def decide(self, queue: QueueDiscipline, now: float) -> Take | Wait:
        take, wait_s = self._take, self._knobs.max_wait_s
        if queue.uneven:
            head = queue.head(now)
            if head is not None:
                take = self._take_at(head.length)
                self.limit = take.rows
        if wait_s > 0.0 and (queue.rows < take.rows or queue.pins is not None):
            head = queue.head(now)
            waiting = queue.rows_like(head) if head is not None and head.pinned else queue.rows
            if head is not None and waiting < take.rows and now < head.arrived_at + wait_s:
                return Wait(head.arrived_at + wait_s)
        return take

    def observe(self, rows: int, service_s: float, now: float, length: int = 1) -> None:
        if length != self._length:
            self._turn_to(length)
        step = self._step
        if now < self._observe_at and service_s <= self._within_s and rows * length <= step.work:
            return
        self._observe_at = now + OBSERVE_EVERY_S
        self._model.observe(rows, service_s, length)
        self._since_refit += 1
        if service_s > self._within_s or rows * length > step.work or rows > step.tried or self._model.early:
            self._judge(rows, service_s, now)
        elif rows * 2 > step.rows:
            step.at = now
            if self._since_refit < REFIT_EVERY:
                return
        elif self._since_refit < REFIT_EVERY:
            return
        elif now - step.at > RECENT_S:
            step.prove(max(step.rows // 2, 1), step.length)
            step.at = now
        self._refit()

    def budget_s(self, length: int | None = None) -> float:
        """Seconds that one batch of rows of this length may take at the 99th percentile."""
        length = self._length if length is None else length
        slo_s = self._knobs.slo_s
        if slo_s is not None:
            budget_s = SLO_SHARE * slo_s
        else:
            single_s = max(self._model.mean(1, length), self._model.p99(1, length) / MOST_SPREAD)
            budget_s = max(SLO_SHARE * DEFAULT_STRETCH * single_s, FREE_BATCH_S)
        return min(budget_s, self._knobs.max_batch_s)

    def _turn_to(self, length: int) -> None:
        """Batches of rows of this length are looked at from now on."""
        self._length = length
        step = self._steps.get(length.bit_length())
        self._step = self._steps[length.bit_length()] = _Step() if step is None else step
        self._within_s = self.budget_s() * (1.0 + ROUNDING)

    def _judge(self, rows: int, service_s: float, now: float) -> None:
        """What a batch that is news says of what may run: more, or less."""
        step, length = self._step, self._length
        step.tried = max(step.tried, rows)
        self._within_s = self.budget_s() * (1.0 + ROUNDING)
        if service_s <= self._within_s:
            if rows * length >= step.work:
                step.prove(rows, length)
                step.at = now
            return
        in_time = int(rows * self._within_s / service_s)  # rows: so many may run next, of this length
        for other in self._steps.values():
            allowed = other.allows(length)
            if allowed > in_time:
                other.prove(other.rows * in_time // allowed, other.length)

    def line_s(self, rows: int, length: int) -> float:
        """Seconds that so many waiting rows of one shape take, in the batches that they make."""
        goal = self.goal_at(length)
        full, left_over = divmod(rows, goal)
        seconds = full * self._model.mean(goal, length) if full else 0.0
        return seconds + self._model.mean(left_over, length) if left_over else seconds

    def limit_at(self, length: int) -> int:
        """Rows of this length that a batch takes at most now."""
        return self._take_at(length).rows

    def _take_at(self, length: int) -> Take:
        take = self._takes.get(length)
        if take is None:
            if len(self._takes) >= MOST_LENGTHS:
                self._takes.clear()
            take = self._takes[length] = Take(self._limit_at(length))
        return take

    def _limit_at(self, length: int) -> int:
        allowed = max([step.allows(length) for step in self._steps.values()])
        limit = max(min(self.goal_at(length), allowed), 1)
        step = self._steps.get(length.bit_length())
        if limit == 1 < self._knobs.max_batch and len(self._steps) == 1 and step is not None and step.tried == step.rows == 1:
            limit = 2  # that two rows are too many is no more than warm-up's word: try once
        return limit

    def _refit(self) -> None:
        self._since_refit = 0
        self._takes.clear()
        self._goals.clear()
        self._within_s = self.budget_s() * (1.0 + ROUNDING)
        self.limit = self._limit_at(self._length)
        self._take = Take(self.limit)

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

    def observe(self, rows: int, service_s: float, now: float) -> None:
        """One batch ran. Called once per batch that gave answers."""
        ...


class FittedBatching:
    """Work-conserving batches, as large as the latency objective allows by the fitted model, never padded by waiting.

    The goal is the largest b with p99(b) <= 0.92 * SLO / 2. The limit goes there by steps from one row: it is never more than
    twice the largest batch that ran within its budget. Batches have a base and grow in proportion to rows at most, so however
    wrong the fit is, none takes more than twice its budget. See docs/internals/batching.md for the measured reasons.
    """

    def __init__(self, knobs: LaneKnobs, model: LatencyModel) -> None:
        self._model = model
        self._since_refit = 0
        self._observe_at = -inf
        self._proven = 0  # rows of the largest batch that ran within its budget
        self._proven_at = -inf
        self._tried = 0  # rows of the largest batch that ran at all
        self.limit = self.goal = 1
        self.configure(knobs)

    def configure(self, knobs: LaneKnobs) -> None:
        self._knobs = knobs
        self._refit()

    def decide(self, queue: QueueDiscipline, now: float) -> Take | Wait:
        wait_s = self._knobs.max_wait_s
        if wait_s > 0.0 and queue.rows < self.limit:
            head = queue.head(now)
            if head is not None and now < head.arrived_at + wait_s:
                return Wait(head.arrived_at + wait_s)
        return self._take

    def observe(self, rows: int, service_s: float, now: float) -> None:
        if now < self._observe_at and rows <= self._proven and service_s <= self._within_s:
            return
        self._observe_at = now + OBSERVE_EVERY_S
        self._model.observe(rows, service_s)
        self._since_refit += 1
        if service_s > self._within_s or rows > self._proven or rows > self._tried or self._model.early:
            self._judge(rows, service_s, now)
        elif rows * 2 > self._proven:
            self._proven_at = now
            if self._since_refit < REFIT_EVERY:
                return
        elif self._since_refit < REFIT_EVERY:
            return
        elif now - self._proven_at > RECENT_S:
            self._proven, self._proven_at = max(self._proven // 2, 1), now
        self._refit()

    def _judge(self, rows: int, service_s: float, now: float) -> None:
        """What a batch that is news says of what may run: more, or less."""
        self._tried = max(self._tried, rows)
        self._within_s = self.budget_s() * (1.0 + ROUNDING)
        if service_s <= self._within_s:
            if rows >= self._proven:
                self._proven, self._proven_at = rows, now
        else:  # half of what would just have been in time: twice that much may run next
            self._proven = min(self._proven, int(rows * self._within_s / service_s / 2.0))

    def budget_s(self) -> float:
        """Seconds that one batch may take at the 99th percentile."""
        slo_s = self._knobs.slo_s
        if slo_s is not None:
            budget_s = SLO_SHARE * slo_s
        else:
            single_s = max(self._model.mean(1), self._model.p99(1) / MOST_SPREAD)
            budget_s = max(SLO_SHARE * DEFAULT_STRETCH * single_s, FREE_BATCH_S)
        return min(budget_s, self._knobs.max_batch_s)

    def _refit(self) -> None:
        self._since_refit = 0
        budget_s, most = self.budget_s(), self._knobs.max_batch
        self._within_s = budget_s * (1.0 + ROUNDING)
        self.goal = self._model.rows_within(budget_s, most=most)
        if self.goal < most and self._knobs.slo_s is None and self._model.mean(2) <= budget_s:
            self.goal = max(self.goal, 2)  # never more than 2 * L(1): else the noise of a machine would move it to and fro
        self.limit = max(min(self.goal, 2 * self._proven), 1)
        if self.limit < most and self._tried == self._proven == 1:
            self.limit = 2  # that two rows are too many is no more than warm-up's word: try once
        self._take = Take(self.limit)

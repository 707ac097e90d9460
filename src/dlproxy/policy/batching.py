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

    The limit is the largest b with p99(b) <= 0.92 * SLO / 2; see docs/internals/batching.md for the measured reasons.
    """

    def __init__(self, knobs: LaneKnobs, model: LatencyModel) -> None:
        self._model = model
        self._since_refit = 0
        self._observe_at = -inf
        self.limit = 1
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
        if now < self._observe_at:
            return
        self._observe_at = now + OBSERVE_EVERY_S
        self._model.observe(rows, service_s)
        self._since_refit += 1
        if self._since_refit >= REFIT_EVERY:
            self._refit()

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
        self.limit = self._model.rows_within(budget_s, most=most)
        if self.limit < most and self._knobs.slo_s is None and self._model.mean(2) <= budget_s:
            self.limit = max(self.limit, 2)  # never more than 2 * L(1): else the noise of a machine would move it to and fro
        self._take = Take(self.limit)

"""Batch policies that dlproxy is compared with, put into its Lane: fixed delay, shrink-to-fit, AIMD, deferral.

Called by early_drop.py and closed_loops.py. Not aware of: arrivals, which requests are late.
"""

from benchmarks.known_results.simulating import UNBOUNDED
from dlproxy.policy.batching import BatchPolicy, Take, Wait
from dlproxy.policy.cost import LatencyModel
from dlproxy.policy.knobs import LaneKnobs
from dlproxy.policy.lane import Lane
from dlproxy.policy.queueing import QueueDiscipline

BACK_OFF = 0.9  # AIMD's factor, and +1 for each batch in time (Clipper, NSDI 2017)
DEFERRAL_MARGIN = 0.05  # of the objective: deferral leaves this much before the last moment
FREE = [(1, 1e-9), (2, 2e-9)]  # a lane that believes this refuses nothing and drops only what is past its deadline


class FixedDelay:
    """Up to `limit` rows; a batch that is not full waits until its oldest request has waited `delay_s`. 0: never waits."""

    def __init__(self, limit: int, delay_s: float = 0.0) -> None:
        self.limit = limit
        self._delay_s = delay_s

    @property
    def goal(self) -> int:
        """What the lane takes its batches to be on the whole."""
        return self.limit

    def goal_at(self, length: int) -> int:
        """The same: these policies know rows alone."""
        return self.limit

    def decide(self, queue: QueueDiscipline, now: float) -> Take | Wait:
        head = queue.head(now)
        if head is not None and queue.rows < self.limit and now < head.arrived_at + self._delay_s:
            return Wait(head.arrived_at + self._delay_s)
        return Take(self.limit)

    def observe(self, rows: int, service_s: float, now: float, length: int = 1) -> None:
        """Learns nothing."""

    def configure(self, knobs: LaneKnobs) -> None:
        """Has its own knobs."""


class FittedLimit(FixedDelay):
    """Up to `limit` rows, at once. Learns how long batches take, for a Lane that drops early by the same model."""

    def __init__(self, limit: int, model: LatencyModel) -> None:
        super().__init__(limit)
        self._model = model

    def observe(self, rows: int, service_s: float, now: float, length: int = 1) -> None:
        self._model.observe(rows, service_s, length)


class ShrinkToFit(FittedLimit):
    """The largest batch with which the oldest request is still in time, at least one row."""

    def decide(self, queue: QueueDiscipline, now: float) -> Take | Wait:
        head = queue.head(now)
        left_s = 0.0 if head is None else head.deadline_at - now
        return Take(self._model.rows_within(left_s, most=self.limit))


class Aimd(FixedDelay):
    """The limit grows by 1 after a batch that ran within `target_s` and shrinks to 0.9 of itself after one that did not."""

    def __init__(self, target_s: float, start: int = 1) -> None:
        super().__init__(start)
        self._target_s = target_s
        self._exact = float(start)

    def observe(self, rows: int, service_s: float, now: float, length: int = 1) -> None:
        self._exact = self._exact + 1.0 if self.measure(service_s, now) <= self._target_s else max(1.0, BACK_OFF * self._exact)
        self.limit = int(self._exact)

    def measure(self, service_s: float, now: float) -> float:
        """What is held against the target."""
        return service_s


class EndToEndAimd(Aimd):
    """As Aimd, but driven by the latency of the batch's oldest request. For one instance: batches end as they began."""

    def decide(self, queue: QueueDiscipline, now: float) -> Take | Wait:
        head = queue.head(now)
        self._oldest_at = now if head is None else head.arrived_at
        return super().decide(queue, now)

    def measure(self, service_s: float, now: float) -> float:
        return now - self._oldest_at


class Deferral(FittedLimit):
    """A batch that is not full waits until one more row would make its oldest request late (Symphony, arXiv 2308.07470)."""

    def __init__(self, limit: int, model: LatencyModel, slo_s: float) -> None:
        super().__init__(limit, model)
        self._margin_s = DEFERRAL_MARGIN * slo_s

    def decide(self, queue: QueueDiscipline, now: float) -> Take | Wait:
        head = queue.head(now)
        if head is not None and queue.rows < self.limit:
            until = head.deadline_at - self._model.p99(queue.rows + 1) - self._margin_s
            if now < until:
                return Wait(until)
        return Take(self.limit)


def lane_with(policy: BatchPolicy, model: LatencyModel | None = None) -> Lane:
    """A Lane whose batches are the policy's and which refuses nobody on arrival.

    Given a model, it drops what would be late by it when a batch starts; otherwise only what is past its deadline.
    """
    lane = Lane(LaneKnobs(max_batch=UNBOUNDED, max_queue_rows=UNBOUNDED), FREE)
    lane.batching = policy  # type: ignore[assignment]
    if model is not None:
        lane.model = model
    return lane

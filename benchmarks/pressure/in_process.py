"""Requests in real time to a production Driver in this process: no sockets, so that sizes and instants are exactly as wanted.

Called by bad_instance.py and deadlines.py. Not aware of: what is compared.
"""

import asyncio
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from dlproxy.instance.runtime import Runtime
from dlproxy.instance.thread import ThreadInstance
from dlproxy.message import DType, Failure, Request, Response, Signature, Tensor, TensorSpec, Ticket
from dlproxy.policy.knobs import LaneKnobs
from dlproxy.policy.lane import Lane
from dlproxy.serve.driver import Driver
from dlproxy.telemetry.stats import ModelStats

SIGNATURE = Signature(
    (TensorSpec("x", DType.FP32, (-1, 1)),), (TensorSpec("y", DType.FP32, (-1, 1)),), batched=True, platform="sleep"
)
MODEL = "sleeper"
LEAD_S = 0.2  # before the first request


class Sleeper:
    """A Runtime that sleeps `base_s` and `row_s` for each row, or fails after that if `error` is set."""

    def __init__(self, base_s: float, row_s: float) -> None:
        self.signature = SIGNATURE
        self.base_s = base_s
        self.row_s = row_s
        self.error = False

    def run(self, inputs: Sequence[NDArray[np.generic]]) -> list[NDArray[np.generic]]:
        time.sleep(self.base_s + self.row_s * len(inputs[0]))
        if self.error:
            raise RuntimeError("the instance is broken")
        return [inputs[0]]


class Planned(NamedTuple):
    """A request to send: when (seconds from the start), how many rows, due within how long."""

    at_s: float
    rows: int
    left_s: float


@dataclass
class Outcome:
    """What became of the requests, in the order in which they were sent; None: no answer."""

    latencies_s: list[float | None] = field(default_factory=list)
    failures: dict[str, int] = field(default_factory=dict)
    seconds: float = 0.0
    busy_s: float = 0.0
    """Of all instances together, while they computed."""
    complete: asyncio.Event = field(default_factory=asyncio.Event)
    """Set when every request has its end."""
    ended: int = 0

    def end_one(self) -> None:
        self.ended += 1
        if self.ended == len(self.latencies_s):
            self.complete.set()

    def within(self, limits_s: Iterable[float]) -> float:
        """The share that was answered within its limit."""
        pairs = zip(self.latencies_s, limits_s, strict=True)
        return sum(1 for latency_s, limit_s in pairs if latency_s is not None and latency_s <= limit_s) / len(self.latencies_s)

    @property
    def words(self) -> str:
        answers = sum(1 for latency_s in self.latencies_s if latency_s is not None)
        failed = ", ".join(f"{count:,} {kind}" for kind, count in self.failures.items()) or "no failure"
        return f"{answers:,} answers; {failed}"


class _Reply:
    """A ReplyTo that notes when the answer came."""

    __slots__ = ("_due_at", "_number", "_outcome")

    def __init__(self, outcome: Outcome, number: int, due_at: float) -> None:
        self._outcome = outcome
        self._number = number
        self._due_at = due_at

    def completed(self, response: Response) -> None:
        self._outcome.latencies_s[self._number] = time.monotonic() - self._due_at
        self._outcome.end_one()

    def failed(self, failure: Failure) -> None:
        kind = failure.kind.value
        self._outcome.failures[kind] = self._outcome.failures.get(kind, 0) + 1
        self._outcome.end_one()


class Fleet:
    """A driver with one thread instance for each runtime."""

    def __init__(self, knobs: LaneKnobs, prior: Sequence[tuple[int, float]], runtimes: dict[str, Runtime]) -> None:
        self._stats = ModelStats()
        self.driver = Driver(
            model=MODEL,
            version="1",
            signature=SIGNATURE,
            lane_on=Lane(knobs, prior).on,
            stats=self._stats,
            clock=time.monotonic,
        )
        for name, runtime in runtimes.items():
            self.driver.add_instance(ThreadInstance(name, runtime))

    async def send(self, plan: Sequence[Planned]) -> Outcome:
        """All of them when they are due; returns when nothing is unanswered."""
        outcome = Outcome([None] * len(plan))
        tensors = {rows: _tensor(rows) for rows in {planned.rows for planned in plan}}
        busy_before_s = self._busy_s()
        start_at = time.monotonic() + LEAD_S
        for number, planned in enumerate(plan):
            due_at = start_at + planned.at_s
            await asyncio.sleep(max(due_at - time.monotonic(), 0.0))
            now = time.monotonic()
            ticket = Ticket(number + 1, now, due_at + planned.left_s, planned.rows)
            request = Request(ticket, MODEL, [tensors[planned.rows]], (0,))
            self.driver.submit(request, _Reply(outcome, number, due_at))
        outcome.seconds = time.monotonic() - start_at
        await outcome.complete.wait()
        outcome.busy_s = self._busy_s() - busy_before_s
        return outcome

    async def stop(self) -> None:
        """End the threads."""
        await self.driver.stop(drain_s=5.0)

    def _busy_s(self) -> float:
        return sum(size.compute_s for size in self._stats.batch_sizes.values())


def _tensor(rows: int) -> Tensor:
    return Tensor("x", DType.FP32, (rows, 1), bytes(4 * rows))

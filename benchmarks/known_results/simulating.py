"""What the known results share: a record of every latency, open-loop calls, lanes without limits, error estimates.

Called by the result modules beside it. Not aware of: what is compared with what.
"""

from array import array
from collections.abc import Iterator, Sequence
from itertools import chain, islice
from math import inf, sqrt

import numpy as np
from numpy.typing import NDArray

from dlproxy.lab.load.arrivals import Arrivals
from dlproxy.lab.report.result import Tally
from dlproxy.lab.simulate.engine import Call
from dlproxy.policy.knobs import LaneKnobs
from dlproxy.policy.lane import Lane

MODEL = "model"
UNBOUNDED = 10**9  # rows; a queue that is never full
Floats = NDArray[np.float64]


class Latencies(Tally):
    """Keeps each latency, in the order of the answers, for error estimates; counts requests, not seconds of the run."""

    def __init__(self, start_at: float = 0.0, end_at: float = inf) -> None:
        super().__init__(start_at, end_at)
        self.latencies_s = array("d")

    def sent_one(self, due_at: float, now: float) -> None:
        if self.start_at <= due_at < self.end_at:
            self.sent += 1

    def answered(self, due_at: float, now: float) -> None:
        if self.start_at <= due_at < self.end_at:
            self.ok += 1
            self.latencies_s.append(now - due_at)

    def failed(self, kind: str, due_at: float, now: float) -> None:
        if self.start_at <= due_at < self.end_at:
            self.errors[kind] = self.errors.get(kind, 0) + 1

    def values(self) -> Floats:
        """The latencies in seconds."""
        return np.array(self.latencies_s)

    def share_within(self, seconds: float) -> float:
        """The share of all requests that were answered, and within this time."""
        return float(np.count_nonzero(self.values() <= seconds)) / self.sent


def instants(arrivals: Arrivals, count: int) -> list[float]:
    """The first `count` arrivals of an endless process."""
    return list(islice(chain.from_iterable(chunk.tolist() for chunk in arrivals.chunks(inf)), count))


def calls(due: Sequence[float], timeout_s: float = inf) -> Iterator[Call]:
    """A request of one row at each of these instants."""
    for due_at in due:
        yield Call(MODEL, 1, timeout_s, due_at)


def seeds(*path: int) -> list[int]:
    """Three independent seeds for one run, named by numbers."""
    return [int(number) for number in np.random.SeedSequence(path).generate_state(3)]


def serial_lane() -> Lane:
    """A lane that only queues: one row a batch, no bound that is ever reached."""
    return Lane(LaneKnobs(max_batch=1, max_queue_rows=UNBOUNDED), [(1, 1.0)])


def batch_means(values: Floats, batches: int) -> Floats:
    """Means of consecutive, equally long parts; the rest that does not fill a part is left out."""
    length = len(values) // batches
    means: Floats = values[: length * batches].reshape(batches, length).mean(axis=1)
    return means


def standard_error(means: Floats) -> float:
    """Of the mean of independent values, such as the means of long batches."""
    return float(means.std(ddof=1)) / sqrt(len(means))

"""A day sent to a server as it was drawn, whatever the answers do, with what became of each request.

The open loop of lab/load, in this process. Called by run.py. Not aware of: what is served, which answers are right.
"""

import gc
from collections.abc import Callable, Iterator
from time import monotonic
from typing import Any

import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

from dlproxy.lab.load.connection import Connection
from dlproxy.lab.load.generator import ClosedLoop, OpenLoop, Progress
from dlproxy.lab.load.run import Watch
from dlproxy.lab.load.worker import allow_connections, wake_in_time
from dlproxy.lab.report.histogram import Histogram

NONE, REFUSED, FAILED = -1, -2, -3  # in place of an answer: none came, the server said no, the connection broke
CONNECTIONS = 2048
DRAIN_S = 10.0
START_S = 0.2


class Item(Struct, frozen=True):
    """What is asked about: a picture as it is uploaded, maybe with a text, and the number of its category."""

    jpeg: bytes
    right: int
    text: str = ""


Body = Callable[[Item], tuple[bytes, bytes]]
"""Of an item: further lines of the head, each with its end, and the body."""


def picture_alone(item: Item) -> tuple[bytes, bytes]:
    """No further headers, and the picture as the body."""
    return b"", item.jpeg


class Door(Struct, frozen=True):
    """Where and how a server is asked. `head`: a request's first lines. `read`: the number that an answer's body stands for;
    raises ValueError.
    """

    address: tuple[int, Any]
    head: bytes
    read: Callable[[bytes], int]
    body: Body = picture_alone

    def request(self, item: Item, priority: int) -> bytes:
        """All of it."""
        more, body = self.body(item)
        lines = (self.head, more, priority, len(body), body)
        return b"%b%bx-request-priority: %d\r\nContent-Length: %d\r\n\r\n%b" % lines


class Replayed(Struct, kw_only=True):
    """`latency_s` [n], NaN without an answer, from when it was due; `answer` [n]: the number, or why there is none.

    `variants`: answers by other models than the one asked for. `said`: the first text of each kind of refusal. `start_at`: of
    the day, by time.monotonic.
    """

    start_at: float
    latency_s: NDArray[np.float64]
    answer: NDArray[np.int64]
    variants: dict[str, int]
    said: dict[str, str]
    errors: dict[str, int]
    cpu_share: float
    late_p99_s: float


class _Replay(OpenLoop):
    def __init__(self, at_s: NDArray[np.float64], door: Door, requests: Iterator[bytes], tell: Callable[[Progress], None]):
        rate = at_s.size / max(float(at_s[-1]), 1e-3)
        options: dict[str, Any] = {"connections": CONNECTIONS, "drain_s": DRAIN_S, "objective_s": None}
        super().__init__(iter(at_s.tolist()), rate, door.address, requests, tell, **options)
        self.latency_s = np.full(at_s.size, np.nan)
        self.answer = np.full(at_s.size, NONE, np.int64)
        self.variants: dict[str, int] = {}
        self._read = door.read
        self._number: dict[Connection, int] = {}
        self._next = 0

    def _go(self, connection: Connection, due_at: float, now: float) -> None:
        self._number[connection] = self._next
        self._next += 1
        super()._go(connection, due_at, now)

    def answered(self, connection: Connection, now: float) -> None:
        number = self._number[connection]
        self.latency_s[number] = now - connection.due_at
        try:
            self.answer[number] = self._read(connection.body)
        except ValueError:
            self.answer[number] = FAILED
        if connection.variant:
            name = connection.variant.decode("latin-1")
            self.variants[name] = self.variants.get(name, 0) + 1
        super().answered(connection, now)

    def refused(self, connection: Connection, kind: str, text: str, now: float) -> None:
        self.answer[self._number[connection]] = REFUSED
        super().refused(connection, kind, text, now)

    def failed(self, connection: Connection, kind: str, now: float) -> None:
        self.answer[self._number[connection]] = FAILED
        super().failed(connection, kind, now)

    def _gone(self, connection: Connection, now: float) -> None:
        super()._gone(connection, now)
        self._number.pop(connection, None)


def replay(door: Door, at_s: NDArray[np.float64], items: Iterator[tuple[Item, int]], length_s: float, watch: Watch) -> Replayed:
    """Send each of the items, with its priority, at its time. Raises LoadError where no connection can be opened.

    Ends early where `watch` says so, or everything has begun to fail; what was not sent then has no answer.
    """
    wake_in_time()
    allow_connections()

    def look(progress: Progress) -> None:
        if not watch(progress):
            load.stop()

    requests = (door.request(item, priority) for item, priority in items)
    load = _Replay(at_s, door, requests, look)
    load.connect()
    gc.collect()
    gc.freeze()
    try:
        start_at = monotonic() + START_S
        outcome = load.run(start_at, 0.0, length_s)
    finally:
        gc.unfreeze()
    return Replayed(
        start_at=start_at,
        latency_s=load.latency_s,
        answer=load.answer,
        variants=load.variants,
        said=outcome.said,
        errors=outcome.tally.errors,
        cpu_share=outcome.cpu_share,
        late_p99_s=outcome.lateness.quantile_s(0.99),
    )


def busiest_rps(door: Door, items: Iterator[Item], *, clients: int, seconds: float) -> tuple[float, Histogram]:
    """Answers per second that so many clients get who each wait for the last before they ask again, and their latencies.

    Raises LoadError.
    """
    requests = (door.request(item, 4) for item in items)
    load = ClosedLoop(door.address, requests, lambda progress: None, connections=clients, drain_s=DRAIN_S, objective_s=None)
    load.connect()
    tally = load.run(monotonic(), 0.5, seconds).tally
    tally.timeline()  # closes it: what is left is added
    return tally.ok_by_end / max(tally.duration_s, 1e-3), tally.histogram

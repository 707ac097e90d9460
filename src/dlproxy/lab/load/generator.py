"""The load of one process: a closed loop, where each connection asks again when it is answered, or an open loop by the clock.

Single thread, no task or future per request. Called by worker.py. Not aware of: other processes, what requests hold.
"""

import select
import selectors
from abc import ABC, abstractmethod
from array import array
from collections import deque
from collections.abc import Callable, Iterator
from math import inf
from time import monotonic, process_time
from typing import Any

import numpy as np
from msgspec import Struct

from dlproxy.lab.load.connection import Connection, LastHead, Tls
from dlproxy.lab.load.settings import LoadError
from dlproxy.lab.report.histogram import Histogram
from dlproxy.lab.report.result import Tally

LOOK_S = 0.1  # how often progress is told, and whether anything still succeeds is looked at
CONNECT_S = 5.0  # for the connections that are opened before the load starts
RETRY_S = 0.1  # after which a closed loop tries again to open a connection: a dead server must not be hammered
GIVE_UP_S = 3.0  # without any success, while at least as many requests failed as are under way
HURRY_S = 1.0  # for the last answers when the run was told to stop
BURST = 64  # requests sent before answers are looked at again
TOGETHER = 32  # connections opened at a time before the start: servers have queues of 100 for new ones
FIRST_S, FIRST_LEAST = 0.1, 8  # an open loop starts with what is due in so many seconds, and opens more as needed
NO_ANSWER = "no answer"


class Progress(Struct):
    """How far a process has come; counts include the warm-up. `late`: failed, or answered after the objective."""

    ok: int
    failed: int
    late: int
    under_way: int


class Outcome(Struct):
    """What one process did. `behind`: requests that had not left when the run ended. `said`: an error's text by its kind."""

    tally: Tally
    lateness: Histogram
    cpu_share: float = 0.0
    behind: int = 0
    connections: int = 0
    limited: bool = False
    said: dict[str, str] = {}
    gave_up: bool = False


class Load(ABC):
    """What both loops share: the connections, the clock, what is counted. Instants are those of time.monotonic."""

    precise = False

    def __init__(
        self,
        address: tuple[int, Any],
        requests: Iterator[bytes],
        tell: Callable[[Progress], None],
        *,
        connections: int,
        drain_s: float,
        objective_s: float | None,
        tls: Tls | None = None,
    ) -> None:
        self._tls = tls
        self._address, self._requests, self._tell = address, requests, tell
        self._limit = connections
        self._drain_s = drain_s
        self._objective_s = objective_s
        self.selector = selectors.DefaultSelector()
        self._last = LastHead()
        self._connections: set[Connection] = set()
        self._ok = self._failed = self._most_connections = 0
        self._said: dict[str, str] = {}
        self._stopped = self._gave_up = self._limited = False
        self._ok_before = self._failed_before = 0
        self._ok_at = 0.0
        self._tally = Tally(0.0, 0.0)
        self._end_at = inf

    def stop(self) -> None:
        """Send nothing more; wait only a little for what is under way. For callbacks of the selector."""
        if not self._stopped:
            self._stopped = True
            now = monotonic()
            self._drain_s = min(self._drain_s, HURRY_S) + max(now - self._end_at, 0.0)
            self._tally.cut(now)
            self._end_at = min(self._end_at, now)

    def connect(self) -> None:
        """Open the connections of the start, so that the first requests need not wait for them. Raises LoadError."""
        wanted = self._first_connections()
        until = monotonic() + CONNECT_S
        for opened in range(1, wanted + 1):
            if self._open() is None:
                raise LoadError(f"only {len(self._connections)} of {wanted} connections could be opened: raise `ulimit -n`")
            if opened % TOGETHER == 0 or opened == wanted:
                while not self._all_up() and monotonic() < until:
                    self._turn(min(until, monotonic() + LOOK_S))

    def _all_up(self) -> bool:
        return all(connection.up for connection in self._connections)

    def run(self, start_at: float, warmup_s: float, duration_s: float) -> Outcome:
        """Wait until `start_at`, load, and wait for the last answers."""
        self._tally = Tally(start_at + warmup_s, start_at + warmup_s + duration_s, self._objective_s)
        self._end_at = self._tally.end_at
        if self._stopped:
            self._tally.cut(start_at)
            self._end_at = start_at
        while monotonic() < start_at and not self._stopped:
            self._turn(start_at)
        self._begin(start_at)
        self._ok_at = start_at
        cpu_s, look_at = process_time(), start_at
        while (now := monotonic()) < self._end_at:
            if now >= look_at:
                look_at = now + LOOK_S
                self._look(now)
            self._pump(now)
            self._turn(min(self._next_at(), look_at, self._end_at))
        cpu_share = (process_time() - cpu_s) / max(now - start_at, 1e-3)
        behind = self._behind()
        while (now := monotonic()) < self._end_at + self._drain_s and (self._under_way() or self._waiting()):
            if now >= look_at:
                look_at = now + LOOK_S
                self._look(now)
            self._pump(now)
            self._turn(min(self._next_at(), look_at, self._end_at + self._drain_s))
        self._give_up_the_rest(now)
        for connection in list(self._connections):
            connection.close()
        self.selector.close()
        outcome = Outcome(self._tally, self._lateness(), cpu_share, behind, self._most_connections, self._limited)
        outcome.said, outcome.gave_up = self._said, self._gave_up
        return outcome

    # What the loops do differently

    def _first_connections(self) -> int:
        return self._limit

    @abstractmethod
    def _begin(self, start_at: float) -> None:
        """Send the first requests, or say when they are due."""

    @abstractmethod
    def _pump(self, now: float) -> None:
        """Send what is due."""

    @abstractmethod
    def _next_at(self) -> float:
        """When there is something to send again."""

    def _behind(self) -> int:
        """Requests that are due and have not left."""
        return 0

    def _waiting(self) -> bool:
        """Whether there are any such."""
        return False

    @abstractmethod
    def _never_sent(self, now: float) -> None:
        """Count what has not left at the very end as failed."""

    def _lateness(self) -> Histogram:
        return Histogram()

    # Requests

    def _go(self, connection: Connection, due_at: float, now: float) -> None:
        self._tally.sent_one(due_at, now)
        connection.send(next(self._requests), due_at)

    def answered(self, connection: Connection, now: float) -> None:
        self._ok += 1
        self._tally.answered(connection.due_at, now, connection.variant)
        self._free(connection, now)

    def refused(self, connection: Connection, kind: str, text: str, now: float) -> None:
        self._failed += 1
        self._tally.failed(kind, connection.due_at, now)
        if text and kind not in self._said:
            self._said[kind] = text
        self._free(connection, now)

    def failed(self, connection: Connection, kind: str, now: float) -> None:
        self._failed += 1
        self._tally.failed(kind, connection.due_at, now)
        self._gone(connection, now)

    def dropped(self, connection: Connection) -> None:
        self._gone(connection, monotonic())

    @abstractmethod
    def _free(self, connection: Connection, now: float) -> None:
        """The connection may take another request, if it is usable."""

    def _gone(self, connection: Connection, now: float) -> None:
        self._connections.discard(connection)

    def _open(self) -> Connection | None:
        """A new connection, None if the system gives no more."""
        try:
            connection = Connection(self._address, self.selector, self, self._last, self._tls)
        except OSError:
            return None
        self._connections.add(connection)
        self._most_connections = max(self._most_connections, len(self._connections))
        return connection

    # Time

    def _turn(self, until: float) -> None:
        """Handle what has happened, or wait for something to happen until then."""
        wait_s = until - monotonic()
        if self.precise:
            events = self.selector.select(0)
            if not events and wait_s > 0.0:
                _doze(self.selector, wait_s)
                events = self.selector.select(0)
        else:
            events = self.selector.select(max(wait_s, 0.0))
        for key, mask in events:
            key.data(mask)

    def _under_way(self) -> int:
        return sum(connection.busy for connection in self._connections)

    def _look(self, now: float) -> None:
        tally = self._tally
        under_way = self._under_way()
        late = tally.ok_by_end - tally.in_time_by_end + sum(tally.errors.values())
        self._tell(Progress(self._ok, self._failed, late, under_way))
        if self._ok > self._ok_before:
            self._ok_before, self._failed_before, self._ok_at = self._ok, self._failed, now
        elif now - self._ok_at > GIVE_UP_S and self._failed - self._failed_before > under_way and not self._stopped:
            self._gave_up = True
            self.stop()

    def _give_up_the_rest(self, now: float) -> None:
        for connection in list(self._connections):
            if connection.busy:
                self._tally.failed(NO_ANSWER, connection.due_at, now)
        self._never_sent(now)


class ClosedLoop(Load):
    """As many requests under way as there are connections, always."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._retries: deque[float] = deque()

    def _begin(self, start_at: float) -> None:
        for connection in list(self._connections):
            now = monotonic()
            self._go(connection, now, now)

    def _free(self, connection: Connection, now: float) -> None:
        if not connection.usable:
            self._gone(connection, now - RETRY_S)
        elif now < self._end_at:
            self._go(connection, now, now)

    def _gone(self, connection: Connection, now: float) -> None:
        super()._gone(connection, now)
        self._retries.append(now + RETRY_S)

    def _pump(self, now: float) -> None:
        while self._retries and self._retries[0] <= now < self._end_at:
            self._retries.popleft()
            connection = self._open()
            if connection is None:
                self._retries.append(now + RETRY_S)
                self._limited = True
            else:
                self._go(connection, now, now)

    def _next_at(self) -> float:
        return self._retries[0] if self._retries and self._retries[0] < self._end_at else inf

    def _behind(self) -> int:
        self._retries.clear()
        return 0

    def _never_sent(self, now: float) -> None:
        """Nothing waits to be sent in a closed loop."""


class OpenLoop(Load):
    """Sends at the instants of a stream, in seconds from the start, whatever the answers do."""

    precise = True

    def __init__(self, instants: Iterator[float], rate: float, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._instants, self._rate = instants, rate
        self._start_at = 0.0
        self._due_at = inf
        self._idle: list[Connection] = []
        self._late = array("d")
        self._blocked = False

    def _first_connections(self) -> int:
        return min(self._limit, FIRST_LEAST + int(self._rate * FIRST_S))

    def _begin(self, start_at: float) -> None:
        self._start_at = start_at
        self._idle = list(self._connections)
        self._advance()

    def _advance(self) -> None:
        due_at = self._start_at + next(self._instants, inf)
        self._due_at = due_at if due_at < self._end_at else inf

    def _pump(self, now: float) -> None:
        self._blocked = False
        for _ in range(BURST):
            due_at = self._due_at
            if due_at > now:
                break
            connection = self._any_connection()
            if connection is None:
                self._blocked = True
                break
            now = monotonic()
            if due_at >= self._tally.start_at:
                self._late.append(now - due_at)
            self._go(connection, due_at, now)
            self._advance()

    def _next_at(self) -> float:
        return inf if self._blocked else self._due_at

    def _any_connection(self) -> Connection | None:
        """The one that was used last, as it is the warmest; a new one if all are busy."""
        while self._idle:
            connection = self._idle.pop()
            if connection.usable:
                return connection
        if len(self._connections) < self._limit:
            opened = self._open()
            if opened is not None:
                return opened
        self._limited = True
        return None

    def _free(self, connection: Connection, now: float) -> None:
        if connection.usable:
            self._idle.append(connection)
        else:
            self._gone(connection, now)

    def stop(self) -> None:
        super().stop()
        if self._due_at >= self._end_at:
            self._due_at = inf

    def _behind(self) -> int:
        """Takes the rest of the stream into memory: the run is over."""
        rest: list[float] = []
        while self._due_at < inf:
            rest.append(self._due_at - self._start_at)
            self._advance()
        self._instants = iter(rest)
        self._advance()
        return len(rest)

    def _waiting(self) -> bool:
        return self._due_at < inf

    def _never_sent(self, now: float) -> None:
        while self._due_at < inf:
            self._tally.sent_one(self._due_at, now)
            self._tally.failed("never sent: every connection was busy", self._due_at, now)
            self._advance()

    def _lateness(self) -> Histogram:
        histogram = Histogram()
        histogram.add(np.frombuffer(self._late) if self._late else np.empty(0))
        return histogram


def _doze(selector: selectors.BaseSelector, wait_s: float) -> None:
    """Wait to the microsecond, where epoll itself counts milliseconds: a selector can be selected."""
    fileno = getattr(selector, "fileno", None)
    if fileno is None or fileno() >= 1024:  # select takes no higher ones
        selector.select(wait_s)
    else:
        select.select([fileno()], [], [], wait_s)

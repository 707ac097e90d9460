"""The batches of one lane that run, and which of them run the same tickets. Called by policy/lane.py and policy/hedging.py.

Not aware of: why a batch was started, what becomes of its tickets.
"""

from math import inf
from typing import Protocol

from msgspec import Struct

from dlproxy.message import Ticket


class Predicts(Protocol):
    """The fitted latency."""

    def mean(self, rows: int, length: int = 1) -> float: ...


class Run(Struct, eq=False):
    """A batch that runs. `size`: tickets that it began with. `hedge_at`: when it is late enough for a second run. `twin`: the
    other run of the same tickets, 0 for none. `first_s`: after how many seconds it began to answer in parts, if it does.
    `pinned`: as its tickets have it; then there is no second run.
    """

    instance: str
    tickets: list[Ticket]
    rows: int
    length: int
    size: int
    started_at: float
    hedge_at: float = inf
    twin: int = 0
    first_s: float | None = None
    pinned: str = ""


class Running:
    """`runs` by their numbers, which begin at 1."""

    def __init__(self) -> None:
        self.runs: dict[int, Run] = {}
        self._next = 1

    def add(self, run: Run) -> int:
        """It has begun; its number."""
        number = self._next
        self._next = number + 1
        self.runs[number] = run
        return number

    def pair(self, first: int, second: int) -> None:
        """Both run the same tickets, of which the one that ends well first is to answer."""
        self.runs[first].twin, self.runs[second].twin = second, first

    def end(self, number: int, *, ok: bool) -> Run | None:
        """It has ended; None if it was lost before. Of twins only one keeps the tickets: who ran well, else who still runs."""
        run = self.runs.pop(number, None)
        if run is not None and run.twin:
            twin = self.runs[run.twin]
            twin.twin = 0
            (twin if ok else run).tickets = []
        return run

    def begin_to_answer(self, number: int, first_s: float) -> Run | None:
        """It has the first part of its answers and runs on, and a twin for nobody; None if it was lost before."""
        run = self.runs.get(number)
        if run is not None:
            run.first_s, run.hedge_at = first_s, inf
            if run.twin:
                twin = self.runs[run.twin]
                twin.tickets, run.twin, twin.twin = [], 0, 0
        return run

    def lose(self, instance: str) -> list[Run]:
        """Take out what this instance ran."""
        lost = [number for number, run in self.runs.items() if run.instance == instance]
        return [run for run in [self.end(number, ok=False) for number in lost] if run is not None]

    @property
    def tickets(self) -> list[Ticket]:
        """All that run, those of twins twice."""
        return [ticket for run in self.runs.values() for ticket in run.tickets]

    @property
    def requests(self) -> int:
        """How many run, those of twins once."""
        return sum([len(run.tickets) for number, run in self.runs.items() if run.twin < number])

    def next_end_s(self, model: Predicts, now: float, instance: str = "") -> float:
        """Seconds until the first of them, or of this instance's, is expected to end; 0 if none runs, or it should have."""
        runs = [run for run in self.runs.values() if not instance or run.instance == instance]
        ends = [run.started_at + model.mean(run.rows, run.length) for run in runs]
        return max(min(ends, default=now) - now, 0.0)

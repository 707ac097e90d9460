"""How much work waits where rows differ in length: seconds, by shape, kept up as tickets come and go.

Kept by the disciplines (ranked.py, classed.py) from the first ticket on that is not of length 1; a batch holds one shape.
Not aware of: order.
"""

from collections.abc import Iterable

from msgspec import Struct

from dlproxy.message import Ticket
from dlproxy.policy.queueing.protocol import Cost


def elements(rows: int, length: int) -> float:
    """For a queue that nobody told how long things take."""
    return float(rows * max(length, 1))


ShapeKey = tuple[int, ...]


class _Line(Struct):
    rows: int = 0
    length: int = 1
    seconds: float = 0.0


class Work:
    """`line_s(rows, length)`: seconds that so many waiting rows of one shape take in the batches that they make."""

    def __init__(self, line_s: Cost, tickets: Iterable[Ticket]) -> None:
        self.seconds = 0.0
        self._line_s = line_s
        self._lines: dict[ShapeKey, _Line] = {}
        for ticket in tickets:
            self.add(ticket)

    def add(self, ticket: Ticket) -> None:
        line = self._lines.get(ticket.shape_key)
        if line is None:
            line = self._lines[ticket.shape_key] = _Line(length=ticket.length)
        self._change(line, ticket.rows)

    def take(self, shape_key: ShapeKey, rows: int) -> None:
        """So many rows of the shape wait no more."""
        line = self._lines[shape_key]
        self._change(line, -rows)
        if not line.rows:
            del self._lines[shape_key]
            if not self._lines:
                self.seconds = 0.0  # nor any rounding

    def rows_of(self, shape_key: ShapeKey) -> int:
        line = self._lines.get(shape_key)
        return 0 if line is None else line.rows

    def seconds_of(self, shape_key: ShapeKey) -> float:
        line = self._lines.get(shape_key)
        return 0.0 if line is None else line.seconds

    def _change(self, line: _Line, rows: int) -> None:
        line.rows += rows
        seconds = self._line_s(line.rows, line.length) if line.rows else 0.0
        self.seconds += seconds - line.seconds
        line.seconds = seconds

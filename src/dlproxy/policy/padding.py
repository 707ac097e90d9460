"""Which tickets of other lengths join a batch, padded to the longest: those that cost less there than in a batch of their own.

Called by policy/lane.py when it has taken a batch from the queue. Not aware of: order; the discipline's head is in already.
"""

from bisect import bisect_left
from collections.abc import Callable
from typing import Protocol

from msgspec import Struct

from dlproxy.message import Ticket
from dlproxy.policy.queueing import Cost, QueueDiscipline

LOOKS = 8  # lengths on either side that are looked at: those further away would be padded more


class Predicts(Protocol):
    """The fitted latency of a batch of so many rows of one length."""

    def mean(self, rows: int, length: int = 1) -> float: ...

    def p99(self, rows: int, length: int = 1) -> float: ...


class _Offer(Struct):
    """A line of the queue, the rows of it that would join, and the seconds that this saves."""

    shape_key: tuple[int, ...]
    length: int
    rows: int
    saves_s: float


class _Batch(Struct):
    tickets: list[Ticket]
    rows: int
    longest: int
    real: int
    """Elements that are no padding."""


class Padding:
    """`line_s(rows, length)`: seconds of so many waiting rows of one length in the batches that they make. `limit_at(length)`:
    rows that a batch of this length may have.

    A line joins if L(batch with it) < L(batch) + what it takes by itself, which is TurboTransformers' comparison of cuts
    (Fang et al. 2021) for the two neighbours of a batch at a time. Where a line has more rows than make full batches, what is
    left over saves a batch, the others save nothing and stay.
    """

    def __init__(self, model: Predicts, line_s: Cost, limit_at: Callable[[int], int]) -> None:
        self._model = model
        self._line_s = line_s
        self._limit_at = limit_at

    def join(self, tickets: list[Ticket], queue: QueueDiscipline, now: float, *, most: float) -> list[Ticket]:
        """The batch of these, which are of one length, and of those that join. No more than `most` of it is padding."""
        head = tickets[0]
        lines = queue.relatives(head)
        if not lines:
            return tickets
        rows = sum([ticket.rows for ticket in tickets])
        batch = _Batch(tickets, rows, head.length, rows * head.length)
        time_s = min([ticket.deadline_at for ticket in tickets]) - now
        above = bisect_left(lines, (head.length + 1, ()))
        sides = [lines[bisect_left(lines, (head.length, ())) - 1 :: -1] if lines[0][0] < head.length else [], lines[above:]]
        sides = [side[:LOOKS] for side in sides]
        while sides[0] or sides[1]:
            offers = [self._offer(batch, side, queue, most, time_s) for side in sides]
            best = max([offer for offer in offers if offer is not None], key=lambda offer: offer.saves_s, default=None)
            if best is None:
                break
            side = sides[0] if best.length < head.length else sides[1]
            del side[: side.index((best.length, best.shape_key)) + 1]
            taken = queue.pop_line(best.shape_key, best.rows, now)
            joined = sum([ticket.rows for ticket in taken])
            batch.tickets += taken
            batch.rows += joined
            batch.real += joined * best.length
            if taken:
                batch.longest = max(batch.longest, best.length)
        return batch.tickets

    def _offer(
        self, batch: _Batch, side: list[tuple[int, tuple[int, ...]]], queue: QueueDiscipline, most: float, time_s: float
    ) -> _Offer | None:
        """The nearest line of this side that saves something; those before it do not, and are passed over."""
        for length, shape_key in side:
            longest = max(batch.longest, length)
            room = self._limit_at(longest) - batch.rows
            if room <= 0:
                return None
            waiting = queue.rows_of(shape_key)
            left_over = waiting % self._limit_at(length)
            best = None
            for rows in (min(waiting, room), left_over):
                if not 0 < rows <= room:
                    continue
                together_s = self._model.mean(batch.rows + rows, longest)
                apart_s = self._line_s(waiting, length) - (self._line_s(waiting - rows, length) if waiting > rows else 0.0)
                saves_s = self._model.mean(batch.rows, batch.longest) + apart_s - together_s
                real, whole = batch.real + rows * length, (batch.rows + rows) * longest
                if saves_s <= 0.0 or whole - real > most * whole or (best is not None and saves_s <= best.saves_s):
                    continue
                if self._model.p99(batch.rows + rows, longest) <= time_s:
                    best = _Offer(shape_key, length, rows, saves_s)
            if best is not None:
                return best
        return None

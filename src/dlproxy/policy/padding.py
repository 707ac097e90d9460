"""Which tickets of other lengths join a batch, padded to the longest: those that cost less there than in a batch of their own.

Called by policy/lane.py when it has taken a batch from the queue. Not aware of: order; the discipline's head is in already.
"""

from bisect import bisect_left
from collections.abc import Callable
from typing import Protocol

from msgspec import Struct

from dlproxy.message import Ticket
from dlproxy.policy.queueing import Cost, QueueDiscipline
from dlproxy.policy.queueing.families import Relative

MARGIN = (
    0.05  # of what a line takes by itself must be saved: predictions are no better, and a longer batch is sure to be longer
)
LOOK_S = 1e-5  # and more than this, which is what it costs to look at a line
MEMORY = 0.9  # of each batch for the next, in what padding saves
LOOKS = 64  # lengths on either side of the head's that are looked at,
PASSED_OVER = 4  # of which so many in a row may save nothing


class Predicts(Protocol):
    """The fitted latency of a batch of so many rows of one length."""

    def mean(self, rows: int, length: int = 1) -> float: ...

    def p99(self, rows: int, length: int = 1) -> float: ...


class _Offer(Struct):
    """Rows of a line, of so many that wait, that would join, and the seconds that the batch would take then, that they would
    take by themselves, and that are saved.
    """

    shape_key: tuple[int, ...]
    length: int
    rows: int
    waiting: int
    together_s: float = 0.0
    apart_s: float = 0.0
    saves_s: float = 0.0


class _Batch(Struct):
    """`real`: elements that are no padding; `time_s`: until the first deadline."""

    tickets: list[Ticket]
    rows: int
    longest: int
    real: int
    time_s: float

    def add(self, tickets: list[Ticket], now: float) -> None:
        rows, length = sum([ticket.rows for ticket in tickets]), tickets[0].length
        self.tickets += tickets
        self.rows += rows
        self.real += rows * length
        self.longest = max(self.longest, length)
        self.time_s = min(self.time_s, _time_s(tickets, now))


def _time_s(tickets: list[Ticket], now: float) -> float:
    return min([ticket.deadline_at for ticket in tickets]) - now


class Padding:
    """`line_s(rows, length)`: seconds of so many waiting rows of one length in the batches that they make. `limit_at(length)`:
    rows that a batch of this length may have.

    A line joins if L(batch with it) < L(batch) + what it takes by itself, which is TurboTransformers' comparison of cuts
    (Fang et al. 2021) for the two neighbours of a batch at a time. Where a line has more rows than make full batches, what is
    left over saves a batch, the others save nothing and stay.
    """

    def __init__(self, model: Predicts, line_s: Cost, limit_at: Callable[[int], int]) -> None:
        self.share = 1.0
        """What batches take of the time that each length would by itself, on the average of the latest."""
        self._model = model
        self._line_s = line_s
        self._limit_at = limit_at

    def join(self, tickets: list[Ticket], queue: QueueDiscipline, now: float, *, most: float) -> list[Ticket]:
        """The batch of these, which are of one length, and of those that join. No more than `most` of it is padding."""
        head = tickets[0]
        lines = queue.relatives(head)
        self.share *= MEMORY
        if not lines:
            self.share += 1.0 - MEMORY
            return tickets
        rows, below = sum([ticket.rows for ticket in tickets]), bisect_left(lines, (head.length, ()))
        batch = _Batch(tickets, rows, head.length, rows * head.length, _time_s(tickets, now))
        above = bisect_left(lines, (head.length + 1, ()))
        sides = [lines[max(below - LOOKS, 0) : below][::-1], lines[above : above + LOOKS]]
        saved_s = 0.0
        while True:
            offers = [offer for side in sides if (offer := self._offer(batch, side, queue, most)) is not None]
            best = max(offers, key=_saves, default=None)
            if best is None:
                break
            side = sides[best.length > head.length]
            del side[: side.index((best.length, best.shape_key)) + 1]
            taken = queue.pop_line(best.shape_key, best.rows, now)
            if not self._still_good(batch, best, taken, most):
                for ticket in taken:
                    queue.push(ticket, now)
                continue
            batch.add(taken, now)
            saved_s += best.saves_s
        batch_s = self._model.mean(batch.rows, batch.longest)
        self.share += (1.0 - MEMORY) * batch_s / (batch_s + saved_s)
        return batch.tickets

    def _offer(self, batch: _Batch, side: list[Relative], queue: QueueDiscipline, most: float) -> _Offer | None:
        """The nearest line of this side that saves something; some that do not are passed over."""
        for length, shape_key in side[:PASSED_OVER]:
            longest = max(batch.longest, length)
            room = self._limit_at(longest) - batch.rows
            if room <= 0:
                return None
            waiting = queue.rows_of(shape_key)
            offers = [
                self._saving(batch, _Offer(shape_key, length, rows, waiting), longest)
                for rows in {min(waiting, room): None, waiting % self._limit_at(length): None}
                if 0 < rows <= room
            ]
            best = max([offer for offer in offers if self._is_good(batch, offer, longest, most)], key=_saves, default=None)
            if best is not None:
                return best
        return None

    def _still_good(self, batch: _Batch, offer: _Offer, taken: list[Ticket], most: float) -> bool:
        """Tickets of several rows may not fill what was offered: then what they bring is judged anew."""
        rows = sum([ticket.rows for ticket in taken])
        if rows == offer.rows or not rows:
            return bool(rows)
        longest = max(batch.longest, offer.length)
        fewer = _Offer(offer.shape_key, offer.length, rows, offer.waiting)
        return self._is_good(batch, self._saving(batch, fewer, longest), longest, most)

    def _saving(self, batch: _Batch, offer: _Offer, longest: int) -> _Offer:
        """The same, with what it saves."""
        rows, waiting, length = offer.rows, offer.waiting, offer.length
        offer.together_s = self._model.mean(batch.rows + rows, longest)
        offer.apart_s = self._line_s(waiting, length) - (self._line_s(waiting - rows, length) if waiting > rows else 0.0)
        offer.saves_s = self._model.mean(batch.rows, batch.longest) + offer.apart_s - offer.together_s
        return offer

    def _is_good(self, batch: _Batch, offer: _Offer, longest: int, most: float) -> bool:
        rows = batch.rows + offer.rows
        whole = rows * longest
        padding = whole - batch.real - offer.rows * offer.length
        enough = offer.saves_s > MARGIN * offer.apart_s + LOOK_S and padding <= most * whole
        return enough and self._model.p99(rows, longest) <= batch.time_s


def _saves(offer: _Offer) -> float:
    return offer.saves_s

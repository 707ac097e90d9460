"""Disciplines in which tickets move past one another while they wait: shortest job, highest response ratio, feedback levels.

Made by make_queue() in this package, called by policy/lane.py. Not aware of: deadlines, priorities, how costs are predicted.
"""

from abc import ABC, abstractmethod
from bisect import bisect_left, insort
from collections.abc import Collection, Iterable, Iterator
from heapq import merge
from itertools import islice
from math import inf
from operator import attrgetter

from msgspec import Struct

from dlproxy.message import Ticket
from dlproxy.policy.knobs import LaneKnobs
from dlproxy.policy.queueing.families import Families, Relative
from dlproxy.policy.queueing.pins import Pins
from dlproxy.policy.queueing.protocol import SAMPLED_LINES, Ahead, Cost
from dlproxy.policy.queueing.work import Work

EXACT_CLASSES = 256  # while there are fewer, each number of rows is a class of its own; beyond, sizes are rounded down
ROUNDED_BITS = 5  # to these leading bits: by 6 % at most
LEVELS = 4  # of feedback, each with twice the quantum of the one before, as in FastServe

_by_id = attrgetter("id")


class _Line(Struct, eq=False):
    """The waiting tickets of one shape and class, ascending by id."""

    shape_key: tuple[int, ...]
    kind: int
    tickets: list[Ticket]
    rows: int = 0


class ClassedQueue(ABC):
    """Within a class tickets are served by id, so only the first ones of the classes need comparing, whenever asked.

    A subclass names the class of a ticket and says which key a ticket has now: lowest first, ties by id. Along a class the
    keys never fall, as older tickets are never worse off. Push and remove are O(log n); the rest looks at each class of
    each shape that waits, at about 0.2 us each.
    """

    def __init__(self, line_s: Cost) -> None:
        self.rows = 0
        self.uneven = False
        self.pins: Pins | None = None
        self._line_s = line_s
        self._work = Work(line_s, ())
        self._line_of: dict[int, _Line] = {}
        self._lines: dict[tuple[tuple[int, ...], int], _Line] = {}  # by shape and class; none of them empty
        self._families = Families()

    def __len__(self) -> int:
        return len(self._line_of)

    def __contains__(self, ticket_id: int) -> bool:
        return ticket_id in self._line_of

    def push(self, ticket: Ticket, now: float) -> None:
        key = (ticket.shape_key, self._kind(ticket))
        line = self._lines.get(key)
        if line is None:
            line = self._lines[key] = _Line(*key, [ticket])
        elif line.tickets[-1].id < ticket.id:
            line.tickets.append(ticket)
        else:
            insort(line.tickets, ticket, key=_by_id)
        line.rows += ticket.rows
        self._line_of[ticket.id] = line
        self.rows += ticket.rows
        if ticket.family:
            self._families.add(ticket)
        if self.uneven:
            self._work.add(ticket)
        elif ticket.length != 1:
            self._count_work()

    def head(self, now: float) -> Ticket | None:
        lines: Collection[_Line] = self._lines.values()
        if self.pins is not None:
            lines = [line for line in lines if self.pins.may_start(line.tickets[0])]
        firsts = ((self._key(line.kind, first := line.tickets[0], now), first.id, first) for line in lines)
        return min(firsts)[2] if lines else None

    def pop(self, rows: int, now: float) -> list[Ticket]:
        head = self.head(now)
        return [] if head is None else self._take(head.shape_key, rows, now, larger=True)

    def pop_line(self, shape_key: tuple[int, ...], rows: int, now: float) -> list[Ticket]:
        return self._take(shape_key, rows, now, larger=False)

    def relatives(self, ticket: Ticket) -> list[Relative]:
        return self._families.of(ticket)

    def rows_of(self, shape_key: tuple[int, ...]) -> int:
        return self._families.rows_of(shape_key)

    def _take(self, shape_key: tuple[int, ...], rows: int, now: float, *, larger: bool) -> list[Ticket]:
        """The first ones of a shape; `larger`: the very first even if it has more rows."""
        taken: list[Ticket] = []
        room = rows
        for ticket in self._ordered(shape_key, now):
            if ticket.rows > room and (taken or not larger):
                break
            taken.append(ticket)
            room -= ticket.rows
            if room <= 0:
                break
        self._drop(taken)
        if taken and taken[0].family:
            self._families.take(taken[0], rows - room)
        return taken

    def remove(self, ticket_id: int) -> Ticket | None:
        line = self._line_of.get(ticket_id)
        if line is None:
            return None
        index = bisect_left(line.tickets, ticket_id, key=_by_id)
        ticket = line.tickets[index]
        del self._line_of[ticket_id]
        self._cut(line, index, index + 1, ticket.rows)
        if ticket.family:
            self._families.take(ticket, ticket.rows)
        return ticket

    def rows_before(self, ticket: Ticket, now: float) -> int:
        """Exact for up to SAMPLED_LINES classes (per shape) of one size each; else by the mean rows of those looked at."""
        return self._rows_before_at(ticket, now)

    def last(self, now: float) -> Ticket | None:
        lasts = ((self._key(line.kind, last := line.tickets[-1], now), last.id, last) for line in self._lines.values())
        return max(lasts)[2] if self._line_of else None

    def _rows_before_at(self, ticket: Ticket, at: float) -> int:
        """Rows that go before the ticket by the order that will hold at the time `at`."""
        place = (self._key(self._kind(ticket), ticket, at), ticket.id)
        before = among = 0
        for line in islice(self._lines.values(), SAMPLED_LINES):
            kind, tickets = line.kind, line.tickets
            ahead = bisect_left(tickets, place, key=lambda other: (self._key(kind, other, at), other.id))
            before += line.rows * ahead // len(tickets)
            among += line.rows
        return self.rows * before // among if among else 0

    def work_before(self, ticket: Ticket, now: float) -> Ahead:
        """A shape's work counts by the share of its rows that go before; of SAMPLED_LINES classes, scaled up."""
        return self._work_before_at(ticket, now)

    def tell_apart(self, pins: Pins) -> None:
        self.pins = pins
        self._count_work()

    def _count_work(self) -> None:
        self.uneven, self._work = True, Work(self._line_s, [one for line in self._lines.values() for one in line.tickets])

    def pinned_to(self, instance: str) -> list[Ticket]:
        lines = [line.tickets for line in self._lines.values() if line.tickets[0].pinned == instance]
        return [ticket for tickets in lines for ticket in tickets]

    def rows_like(self, ticket: Ticket) -> int:
        return self._work.rows_of(ticket.shape_key)

    def _work_before_at(self, ticket: Ticket, at: float) -> Ahead:
        place, work, own = (self._key(self._kind(ticket), ticket, at), ticket.id), self._work, ticket.shape_key
        before_s = among_s = 0.0
        mine, pinned = 0, ticket.pinned  # where it is pinned few lines matter, and all are looked at
        for line in self._lines.values() if pinned else islice(self._lines.values(), SAMPLED_LINES):
            kind, tickets = line.kind, line.tickets
            if pinned and tickets[0].pinned != pinned:
                continue
            ahead = bisect_left(tickets, place, key=lambda other: (self._key(kind, other, at), other.id))
            rows = line.rows * ahead // len(tickets)
            if line.shape_key == own:
                mine += rows
            else:
                seconds = work.seconds_of(line.shape_key) / work.rows_of(line.shape_key)
                among_s += seconds * line.rows
                before_s += seconds * rows
        whole_s = among_s if pinned else work.seconds - work.seconds_of(own)
        others_s = whole_s * before_s / among_s if among_s else 0.0
        return Ahead(others_s, mine, work.rows_of(own))

    def _drop(self, taken: list[Ticket]) -> None:
        """Take these out, which are the first ones of their lines."""
        taken_of: dict[int, tuple[_Line, int, int]] = {}  # by class: how many tickets and rows of its line
        for ticket in taken:
            line = self._line_of.pop(ticket.id)
            _, count, rows = taken_of.get(line.kind, (line, 0, 0))
            taken_of[line.kind] = (line, count + 1, rows + ticket.rows)
        for line, count, rows in taken_of.values():
            self._cut(line, 0, count, rows)

    def _cut(self, line: _Line, start: int, stop: int, rows: int) -> None:
        del line.tickets[start:stop]
        line.rows -= rows
        self.rows -= rows
        if self.uneven:
            self._work.take(line.shape_key, rows)
        if not line.tickets:
            del self._lines[line.shape_key, line.kind]

    def _ordered(self, shape_key: tuple[int, ...], now: float) -> Iterable[Ticket]:
        """The tickets of a shape as they would be served."""
        lines = [line for line in self._lines.values() if line.shape_key == shape_key]
        if len(lines) == 1:
            return lines[0].tickets
        return (ticket for _, _, ticket in merge(*[self._keyed(line, now) for line in lines]))

    def _keyed(self, line: _Line, now: float) -> Iterator[tuple[float, int, Ticket]]:
        kind = line.kind
        for ticket in line.tickets:
            yield self._key(kind, ticket, now), ticket.id, ticket

    def _kind(self, ticket: Ticket) -> int:
        """The class: by rows, named after the fewest rows that belong to it."""
        if len(self._lines) < EXACT_CLASSES:
            return ticket.rows
        shift = max(ticket.rows.bit_length() - ROUNDED_BITS, 0)
        return ticket.rows >> shift << shift

    @abstractmethod
    def _key(self, kind: int, ticket: Ticket, now: float) -> float:
        """The place of a class's first ticket among those of the other classes: the lowest is served first."""


class ShortestJob(ClassedQueue):
    """The lowest predicted cost first: the least mean waiting time that is possible without preemption (Smith 1956).

    A ticket that has waited `starvation_s` goes before all that have not, oldest first, so from then on nothing that came
    after it begins a batch before it. More load than the model can bear therefore turns this into FCFS.
    """

    def __init__(self, knobs: LaneKnobs, cost_s: Cost, line_s: Cost) -> None:
        super().__init__(line_s)
        self._starvation_s = knobs.starvation_s
        self._cost_s = cost_s

    def _key(self, kind: int, ticket: Ticket, now: float) -> float:
        return -inf if now - ticket.arrived_at >= self._starvation_s else self._cost_s(kind, ticket.length)


class HighestResponseRatio(ClassedQueue):
    """The highest (waited + cost) / cost first (Brinch Hansen 1971): short jobs go first, but long ones catch up.

    It needs no rule against starvation as long as the queue is bounded, which a lane's is. Say that a full queue is served
    within D seconds and that no cost is below c. A ticket of cost C that has waited W cannot be overtaken by one that comes
    only now before W * c / (C - c) have passed. Once that is D, what waits now is done by then, so it waits D * C / c at
    most. Unlike SJF's, this bound has no knob.
    """

    def __init__(self, cost_s: Cost, line_s: Cost) -> None:
        super().__init__(line_s)
        self._cost_s = cost_s

    def rows_before(self, ticket: Ticket, now: float) -> int:
        """An estimate: by the ratios when all that waits would be served. Now, the newest has the lowest ratio of all."""
        return self._rows_before_at(ticket, now + self._cost_s(max(self.rows, 1), ticket.length))

    def work_before(self, ticket: Ticket, now: float) -> Ahead:
        """As rows_before."""
        return self._work_before_at(ticket, now + self._work.seconds)

    def _key(self, kind: int, ticket: Ticket, now: float) -> float:
        return (ticket.arrived_at - now) / self._cost_s(kind, ticket.length)  # the ratio less 1, negated: lowest first


class Feedback(ClassedQueue):
    """Multi-level feedback with skip-join (FastServe, Wu et al. 2023): lower levels first, FCFS within a level.

    The quantum of level k is 2^k times the cost of one row. A ticket joins the first level whose quantum covers its
    predicted cost; the last level takes all others. Batches run to their end here, so nothing is ever moved down.

    At every multiple of `starvation_s` all that waits moves to level 0. So nothing that comes `starvation_s` or more after
    a ticket goes before it. That bounds how long it is overtaken, not how long it waits behind those before it.
    """

    def __init__(self, knobs: LaneKnobs, cost_s: Cost, line_s: Cost) -> None:
        super().__init__(line_s)
        self._starvation_s = knobs.starvation_s
        self._cost_s = cost_s

    def _kind(self, ticket: Ticket) -> int:
        cost_s, quantum_s, level = self._cost_s(ticket.rows, ticket.length), self._cost_s(1, 1), 0
        while cost_s > quantum_s and level < LEVELS - 1:
            level += 1
            quantum_s *= 2.0
        return level

    def _key(self, kind: int, ticket: Ticket, now: float) -> float:
        boosted_at = now - now % self._starvation_s
        return 0 if ticket.arrived_at < boosted_at else kind

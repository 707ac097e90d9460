"""Disciplines in which a ticket's place is settled when it comes: first come first served, earliest deadline, priority.

Made by make_queue() in this package, called by policy/lane.py; fair.py builds on RankedQueue.
Not aware of: how long batches take, deadlines that pass.
"""

from abc import ABC, abstractmethod
from bisect import bisect_left, insort
from itertools import islice
from operator import itemgetter

from dlproxy.message import Ticket
from dlproxy.policy.knobs import LaneKnobs
from dlproxy.policy.queueing.families import Families, Relative
from dlproxy.policy.queueing.pins import Pins
from dlproxy.policy.queueing.protocol import DEFAULT_LEVEL, SAMPLED_LINES, Ahead, Cost, level
from dlproxy.policy.queueing.work import Work, elements

Entry = tuple[float, int, Ticket]
"""(rank, ticket id, ticket). Ids differ, so comparing two entries never gets as far as the tickets."""


class RankedQueue(ABC):
    """Serves the lowest rank first, ties by id. A subclass says what the rank is.

    Each shape has its line, a list of entries in ascending order. A ticket that goes behind all others of its shape is
    appended, anything else is inserted by bisection (the memmove of 10,000 pointers costs about a microsecond). The first
    entries of all lines make a sorted list of their own, so the cost of a pop does not depend on the number of shapes.
    """

    def __init__(self, line_s: Cost = elements) -> None:
        self.rows = 0
        self.uneven = False
        self.pins: Pins | None = None
        self._line_s = line_s
        self._work = Work(line_s, ())
        self._entries: dict[int, Entry] = {}
        self._lines: dict[tuple[int, ...], list[Entry]] = {}  # none of them empty
        self._heads: list[Entry] = []
        self._families = Families()
        self._served_rank = 0.0  # of the last ticket that was popped

    def __len__(self) -> int:
        return len(self._entries)

    def __contains__(self, ticket_id: int) -> bool:
        return ticket_id in self._entries

    def push(self, ticket: Ticket, now: float) -> None:
        entry = (self._rank(ticket), ticket.id, ticket)
        line = self._lines.get(ticket.shape_key)
        if line is None:
            self._lines[ticket.shape_key] = [entry]
            insort(self._heads, entry)
        elif line[-1] < entry:
            line.append(entry)
        else:
            head = line[0]
            insort(line, entry)
            if line[0] is entry:
                del self._heads[bisect_left(self._heads, head)]
                insort(self._heads, entry)
        self._entries[ticket.id] = entry
        self.rows += ticket.rows
        if ticket.family:
            self._families.add(ticket)
        if self.uneven:
            self._work.add(ticket)
        elif ticket.length != 1:
            self._count_work()

    def head(self, now: float) -> Ticket | None:
        if self.pins is not None:
            return next((entry[2] for entry in self._heads if self.pins.may_start(entry[2])), None)
        return self._heads[0][2] if self._heads else None

    def pop(self, rows: int, now: float) -> list[Ticket]:
        head = self.head(now) if self.pins is not None else self._heads[0][2] if self._heads else None
        return [] if head is None else self._take(head.shape_key, rows, larger=True)

    def pop_line(self, shape_key: tuple[int, ...], rows: int, now: float) -> list[Ticket]:
        return self._take(shape_key, rows, larger=False)

    def relatives(self, ticket: Ticket) -> list[Relative]:
        return self._families.of(ticket)

    def rows_of(self, shape_key: tuple[int, ...]) -> int:
        return self._families.rows_of(shape_key)

    def _take(self, shape_key: tuple[int, ...], rows: int, *, larger: bool) -> list[Ticket]:
        """The first ones of a line; `larger`: the very first even if it has more rows."""
        heads, entries, line = self._heads, self._entries, self._lines[shape_key]
        taken: list[Ticket] = []
        room = rows
        for _, ticket_id, ticket in line:
            if ticket.rows > room and (taken or not larger):
                break
            taken.append(ticket)
            del entries[ticket_id]
            room -= ticket.rows
            if room <= 0:
                break
        if not taken:
            return []
        self.rows -= rows - room
        if taken[0].family:
            self._families.take(taken[0], rows - room)
        if self.uneven:
            self._work.take(shape_key, rows - room)
        self._served_rank = line[len(taken) - 1][0]
        del heads[0 if heads[0] is line[0] else bisect_left(heads, line[0])], line[: len(taken)]
        if line:
            insort(heads, line[0])
        else:
            del self._lines[shape_key]
        return taken

    def remove(self, ticket_id: int) -> Ticket | None:
        entry = self._entries.pop(ticket_id, None)
        if entry is None:
            return None
        ticket = entry[2]
        line = self._lines[ticket.shape_key]
        index = bisect_left(line, entry)
        del line[index]
        if index == 0:
            del self._heads[bisect_left(self._heads, entry)]
            if line:
                insort(self._heads, line[0])
            else:
                del self._lines[ticket.shape_key]
        self.rows -= ticket.rows
        if ticket.family:
            self._families.take(ticket, ticket.rows)
        if self.uneven:
            self._work.take(ticket.shape_key, ticket.rows)
        return ticket

    def rows_before(self, ticket: Ticket, now: float) -> int:
        """Exact if all tickets have as many rows and no more than SAMPLED_LINES shapes; else position times mean rows."""
        place = (self._rank(ticket), ticket.id)
        before = among = 0
        for line in islice(self._lines.values(), SAMPLED_LINES):
            among += len(line)
            before += len(line) if line[-1] < place else bisect_left(line, place)
        return self.rows * before // among if among else 0

    def work_before(self, ticket: Ticket, now: float) -> Ahead:
        """A shape's work counts by the share of its tickets that go before; of SAMPLED_LINES other shapes, scaled up."""
        place, work, own = (self._rank(ticket), ticket.id), self._work, ticket.shape_key
        before_s = among_s = 0.0
        pinned = ticket.pinned  # then few lines matter, and all are looked at
        for shape_key, line in self._lines.items() if pinned else islice(self._lines.items(), SAMPLED_LINES):
            if shape_key != own and (not pinned or line[0][2].pinned == pinned):
                seconds = work.seconds_of(shape_key)
                among_s += seconds
                before_s += seconds if line[-1] < place else seconds * bisect_left(line, place) / len(line)
        whole_s = among_s if pinned else work.seconds - work.seconds_of(own)
        others_s = whole_s * before_s / among_s if among_s else 0.0
        like = work.rows_of(own)
        mine = self._lines.get(own)
        return Ahead(others_s, like * bisect_left(mine, place) // len(mine) if mine else 0, like)

    def tell_apart(self, pins: Pins) -> None:
        self.pins = pins
        self._count_work()

    def _count_work(self) -> None:
        self.uneven, self._work = True, Work(self._line_s, [entry[2] for entry in self._entries.values()])

    def pinned_to(self, instance: str) -> list[Ticket]:
        return [entry[2] for line in self._lines.values() if line[0][2].pinned == instance for entry in line]

    def rows_like(self, ticket: Ticket) -> int:
        return self._work.rows_of(ticket.shape_key)

    def last(self, now: float) -> Ticket | None:
        """Costs a look at every shape: it is asked only when there is no room."""
        return max(map(itemgetter(-1), self._lines.values()))[2] if self._lines else None

    @abstractmethod
    def _rank(self, ticket: Ticket) -> float:
        """Its place in the order: the lowest is served first."""


class Fcfs(RankedQueue):
    """First come, first served."""

    def _rank(self, ticket: Ticket) -> float:
        return 0.0  # ties by id


class EarliestDeadline(RankedQueue):
    """Earliest deadline first (Liu and Layland 1973); one level of priority is worth `ageing_s` of deadline.

    Nobody is due later than `starvation_s` after arrival: a request without a deadline must not wait for ever, nor fare
    better than one with a generous deadline. So what comes later than `starvation_s` after a ticket, plus `ageing_s` for
    each level that it is more urgent by, does not overtake the ticket. Without priorities and with objectives below
    `starvation_s` this is plain EDF, and with one objective for all it is first come, first served.
    """

    def __init__(self, knobs: LaneKnobs, line_s: Cost) -> None:
        super().__init__(line_s)
        self._starvation_s = knobs.starvation_s
        self._ageing_s = knobs.ageing_s

    def _rank(self, ticket: Ticket) -> float:
        return due_at(ticket, ticket.deadline_at, self._starvation_s, self._ageing_s)


def due_at(ticket: Ticket, deadline_at: float, starvation_s: float, ageing_s: float) -> float:
    """Where EarliestDeadline sees this ticket, with that deadline."""
    rank = ticket.arrived_at + starvation_s
    if deadline_at < rank:
        rank = deadline_at
    if ticket.priority:
        rank += (level(ticket) - DEFAULT_LEVEL) * ageing_s
    return rank


class Priority(RankedQueue):
    """The most urgent level first, FCFS within a level, where `ageing_s` of waiting makes up for one level.

    A ticket is overtaken only by those that come within (difference of levels) * `ageing_s` after it. All tickets age
    alike, so who goes before whom never changes (urgency numbers: Jackson 1960).
    """

    def __init__(self, knobs: LaneKnobs, line_s: Cost) -> None:
        super().__init__(line_s)
        self._ageing_s = knobs.ageing_s

    def _rank(self, ticket: Ticket) -> float:
        return ticket.arrived_at + level(ticket) * self._ageing_s

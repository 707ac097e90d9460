"""Sequences of requests that build on each other: which there are, whose turn it is, who waits, what is forgotten and when.

Called by serve/sequences.py. Not aware of: what a state is, how a request is run.
"""

from collections import OrderedDict, deque
from collections.abc import Hashable, Iterator
from heapq import heapify, heappop, heappush
from math import inf
from typing import Any, Generic, TypeVar

from msgspec import Struct

from dlproxy.message import Failure, FailureKind, InSequence, Ticket
from dlproxy.policy.expiry import SLACK
from dlproxy.policy.refusals import expired

MOST_WAITING = 256  # requests of one sequence
SOON_S = 1.0  # when to try again where nobody can tell when there will be room

Home = TypeVar("Home", bound=Hashable)


class Turn(Struct, Generic[Home], eq=False):
    """A request of a sequence. `home`: who runs it if it is the first of its sequence; others run where that has begun."""

    ticket: Ticket
    of: InSequence
    home: Home

    @property
    def follows(self) -> bool:
        """Whether it builds on the one before."""
        return not self.of.start


class Sequence(Struct, Generic[Home], eq=False):
    """`id`: as its client has it. `home`: where it runs. `running`: the request that is under way. `lives`: it has begun and
    not ended. `state`: the caller's, which goes when it ends. `full`: a request was refused, and nothing may take its place
    until all that came before it has its answer.
    """

    key: Hashable
    id: int | str
    home: Home
    running: Turn[Home] | None = None
    waiting: deque[Turn[Home]] = deque()
    lives: bool = False
    idle_at: float = 0.0
    state: Any = None
    full: bool = False

    @property
    def runs_at(self) -> Home:
        """Where its running request belongs."""
        return self.running.home if self.running is not None and self.running.of.start else self.home


Failed = list[tuple[Turn[Home], Failure]]
"""Requests that were waiting and are not run."""


class Sequences(Generic[Home]):
    """Those of one model, by keys. Times in seconds; calls are O(1), amortised, but for those that say otherwise.

    A request has its turn when those before it in its sequence have their answers. One that is not answered takes with it those
    behind it, up to the next that starts anew: to run them on the state before it would give wrong answers.
    """

    def __init__(self, name: str, *, most: int, idle_s: float, most_waiting: int) -> None:
        """`most`: sequences; `idle_s`: after which one is forgotten; `most_waiting`: requests, of all of them."""
        self._name = name
        self._by_key: dict[Hashable, Sequence[Home]] = {}
        self._idle: OrderedDict[Hashable, Sequence[Home]] = OrderedDict()  # the last used at the end
        self._ended: OrderedDict[Hashable, tuple[float, Failure]] = OrderedDict()  # before their time: when, and why
        self._waits: dict[int, tuple[Sequence[Home], Turn[Home]]] = {}  # by the ids of tickets
        self._due: list[tuple[float, int]] = []
        self.configure(most=most, idle_s=idle_s, most_waiting=most_waiting)

    def configure(self, *, most: int, idle_s: float, most_waiting: int) -> None:
        """New values; sequences that are there may be more."""
        self._most, self._idle_s, self._most_waiting = most, idle_s, most_waiting

    def __len__(self) -> int:
        return len(self._by_key)

    def __iter__(self) -> Iterator[Sequence[Home]]:
        return iter(self._by_key.values())

    def __bool__(self) -> bool:
        """Whether there is anything to be forgotten."""
        return bool(self._by_key or self._ended)

    def at(self, key: Hashable) -> Sequence[Home] | None:
        """If it is there."""
        return self._by_key.get(key)

    @property
    def waiting(self) -> int:
        """Requests that wait for others of their sequences."""
        return len(self._waits)

    def add(self, key: Hashable, turn: Turn[Home], now: float) -> Sequence[Home] | Failure:
        """A request has come: it is `running` at once, or waits, or the failure says why not. `lapse` is called before."""
        sequence = self._by_key.get(key)
        if turn.follows and (sequence is None or not _goes_on(sequence)):
            return self._unknown(key, turn)
        if sequence is None:
            if len(self._by_key) >= self._most:
                return self._no_room(now)
            sequence = self._by_key[key] = Sequence(key, turn.of.id, turn.home, waiting=deque())
            self._ended.pop(key, None)
        if sequence.running is None:
            self._idle.pop(key, None)
            sequence.running = turn
        elif sequence.full or len(sequence.waiting) >= MOST_WAITING or len(self._waits) >= self._most_waiting:
            sequence.full = True
            return self._too_many(sequence, turn)
        else:
            self._wait(sequence, turn)
        return sequence

    def answered(self, sequence: Sequence[Home], now: float) -> None:
        """Its running request has its answer, and what it has done to the state holds. The next has its turn."""
        turn = sequence.running
        assert turn is not None
        sequence.lives = not turn.of.end
        if turn.of.start:
            sequence.home = turn.home
        self._next(sequence, now)

    def unanswered(self, sequence: Sequence[Home], why: Failure, now: float) -> Failed[Home]:
        """Its running request has failed, and has done nothing. Returns those that fail with it; the next has its turn."""
        failed = self._behind(sequence, 0, why)
        self._next(sequence, now)
        return failed

    def leave(self, ticket: Ticket, why: Failure) -> Failed[Home]:
        """A request that waits goes. Returns it and those that fail with it; nothing if it does not wait. O(waiting)."""
        sequence, turn = self._waits.get(ticket.id, (None, None))
        if sequence is None or turn is None:
            return []
        place = sequence.waiting.index(turn)
        self._forget(sequence, place)
        return [(turn, why), *self._behind(sequence, place, why)]

    def end(self, sequence: Sequence[Home], reason: str, now: float) -> Failed[Home]:
        """It cannot go on. Returns the requests that fail with it. One that runs may still have its answer."""
        message = f"sequence {sequence.id!r} of model '{self._name}' has ended, start it again: {reason}"
        why = Failure(FailureKind.UNAVAILABLE, message)
        failed = self._behind(sequence, 0, why)
        sequence.lives, sequence.state = False, None
        self._ended[sequence.key] = (now, why)
        if sequence.running is None:
            self._idle.pop(sequence.key, None)
            del self._by_key[sequence.key]
        elif not sequence.running.of.end:  # after it nothing follows
            turn = sequence.running
            turn.of = InSequence(turn.of.id, turn.of.start, end=True)
        return failed

    def move(self, old: Home, new: Home | None, why: str, now: float) -> Failed[Home]:
        """What is at `old` goes on at `new`, or, if that is None, ends and is told why. Returns the requests that fail by that.
        O(n).
        """
        failed: Failed[Home] = []
        for sequence in list(self._by_key.values()):
            if new is None:
                if sequence.runs_at == old:
                    failed += self.end(sequence, why, now)
                gone = [turn for turn in sequence.waiting if turn.home == old and not turn.follows]
                failed += [each for turn in gone for each in self.leave(turn.ticket, Failure(FailureKind.UNAVAILABLE, why))]
                continue
            if sequence.home == old:
                sequence.home = new
            for turn in (sequence.running, *sequence.waiting):
                if turn is not None and turn.home == old:
                    turn.home = new
        return failed

    def lapse(self, now: float) -> tuple[list[Sequence[Home]], Failed[Home]]:
        """What has been idle for too long, and is forgotten; and the requests that have waited for too long."""
        gone, failed = [], []
        while self._idle and (first := next(iter(self._idle.values()))).idle_at + self._idle_s <= now:
            self._idle.popitem(last=False)
            del self._by_key[first.key]
            gone.append(first)
        while self._ended and next(iter(self._ended.values()))[0] + self._idle_s <= now:
            self._ended.popitem(last=False)
        while self._due and self._due[0][0] <= now:
            _, turn = self._waits.get(heappop(self._due)[1], (None, None))
            if turn is not None:
                failed += self.leave(turn.ticket, expired(turn.ticket, now).failure)
        return gone, failed

    def next_at(self) -> float:
        """When `lapse` has something to do; +inf for never. It may be too early."""
        idle_at = next(iter(self._idle.values())).idle_at if self._idle else inf
        ended_at = next(iter(self._ended.values()))[0] if self._ended else inf
        return min(min(idle_at, ended_at) + self._idle_s, self._due[0][0] if self._due else inf)

    # Inside

    def _wait(self, sequence: Sequence[Home], turn: Turn[Home]) -> None:
        ticket = turn.ticket
        sequence.waiting.append(turn)
        self._waits[ticket.id] = (sequence, turn)
        if ticket.deadline_at < inf:
            heappush(self._due, (ticket.deadline_at, ticket.id))
            if len(self._due) > 2 * len(self._waits) + SLACK:
                self._due = [(one.ticket.deadline_at, number) for number, (_, one) in self._waits.items()]
                heapify(self._due)

    def _forget(self, sequence: Sequence[Home], place: int) -> Turn[Home]:
        turn = sequence.waiting[place]
        del sequence.waiting[place]
        del self._waits[turn.ticket.id]
        return turn

    def _behind(self, sequence: Sequence[Home], place: int, why: Failure) -> Failed[Home]:
        """Those that wait from this place on and build on what is not there."""
        message = f"not run, as an earlier request of sequence {sequence.id!r} was not answered: {why.message}"
        failed = []
        while place < len(sequence.waiting) and sequence.waiting[place].follows:
            failed.append((self._forget(sequence, place), Failure(why.kind, message)))
        return failed

    def _next(self, sequence: Sequence[Home], now: float) -> None:
        sequence.running = None
        if not sequence.lives:
            sequence.state = None
        if sequence.waiting:
            sequence.running = turn = self._forget(sequence, 0)
            if not turn.follows:
                self._ended.pop(sequence.key, None)
            return
        sequence.full = False
        if sequence.lives:
            sequence.idle_at = now
            self._idle[sequence.key] = sequence
        else:
            del self._by_key[sequence.key]

    # In words; where Triton says the same, in its words

    def _unknown(self, key: Hashable, turn: Turn[Home]) -> Failure:
        if key in self._ended:
            return self._ended.pop(key)[1]
        message = (
            f"inference request for sequence {turn.of.id} to model '{self._name}' must specify the START flag on the first "
            f"request of the sequence; it has not begun, has ended, or was idle for {self._idle_s:g} s"
        )
        return Failure(FailureKind.INVALID_ARGUMENT, message)

    def _no_room(self, now: float) -> Failure:
        first = next(iter(self._idle.values()), None)
        retry_s = SOON_S if first is None else max(first.idle_at + self._idle_s - now, 0.0)
        message = f"model '{self._name}' has {len(self)} sequences under way, and keeps {self._most} at most (max_sequences)"
        return Failure(FailureKind.QUEUE_FULL, message, retry_after_s=retry_s)

    def _too_many(self, sequence: Sequence[Home], turn: Turn[Home]) -> Failure:
        count = len(sequence.waiting)
        message = f"{count} requests of sequence {turn.of.id!r} of model '{self._name}' wait already; send the next when those"
        return Failure(FailureKind.QUEUE_FULL, f"{message} before it are answered", retry_after_s=SOON_S)


def _goes_on(sequence: Sequence[Home]) -> bool:
    """Whether something can follow on what has come."""
    last = sequence.waiting[-1] if sequence.waiting else sequence.running
    return sequence.lives if last is None else not last.of.end

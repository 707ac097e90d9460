"""The arbiter: which lane of this machine may start a batch now, so that together they never use more than there is.

A lane says what its next batch needs; it forms the batch when its turn comes. Called by serve/ and lab/simulate.
Not aware of: requests, instances, what a resource is. The order is a queue discipline's, as inside a lane.
"""

from collections.abc import Mapping
from math import fsum, inf

import msgspec
from msgspec import Struct

from dlproxy.config.server import DisciplineName
from dlproxy.message import Ticket
from dlproxy.policy.knobs import LaneKnobs
from dlproxy.policy.queueing import QueueDiscipline, level, make_queue
from dlproxy.policy.queueing.fair import FairQueue

MICROSECONDS = 1e6  # a want queues as a ticket whose rows are the microseconds that it will take
QUANTUM_S = 0.004  # the first quantum of feedback levels (a tick of Linux at 250 Hz): 4, 8, 16 ms, and what is longer


class Want(Struct, frozen=True):
    """A lane's next batch: what it needs while it runs (such as {"cores": 2}) and for how long, as predicted.

    `priority` as of a request: 1 is the most urgent, 0 stands for the default. `weight`: the lane's share under "fair".
    """

    lane: str
    needs: Mapping[str, float]
    cost_s: float
    deadline_at: float = inf
    priority: int = 0
    weight: float = 1.0


class Lease(Struct, frozen=True):
    """The right to start one batch and to use `needs` until `release`."""

    id: int
    lane: str
    needs: Mapping[str, float]


class _FairShares(FairQueue):
    """Fair queueing among lanes, which are charged as predicted when they ask and settle when it is known what they used."""

    def settle(self, lane: str, more_s: float) -> None:
        """The lane used so much more (or less, below 0) than it was charged for; no matter if nobody's account is kept."""
        if lane in self._finish:
            self._finish[lane] += more_s


class _Waiting(Struct, eq=False):
    want: Want
    ticket: Ticket
    level: int


class _Held(Struct, eq=False):
    lease: Lease
    urgent: bool
    want: Want


class Arbiter:
    """Grants turns on shared resources. For each of them the sum over all leases never exceeds what there is.

    Call `grants` after every change. A lane that goes on should want before it releases, or its place may go to another.

    `discipline` orders the lanes' wants (policy/queueing); "fair" gives each lane seconds of its dominant resource by weight
    (start-time fair queueing: Goyal, Vin and Cheng, 1996; dominant share: Ghodsi et al., "DRF", NSDI 2011). The first want in
    that order starts as soon as it fits; until then none behind it starts, however small, so that a wide batch gets its turn.

    Only wants of a priority up to `reserved_for` are urgent: they may overtake a first one that does not fit, and use the
    `reserved` part, which others never touch. A want that stood for `starvation_s` is overtaken in the reserved part only.
    """

    def __init__(
        self,
        resources: Mapping[str, float],
        *,
        discipline: DisciplineName = "fair",
        reserved: Mapping[str, float] | None = None,
        reserved_for: int = 1,
        starvation_s: float = 10.0,
    ) -> None:
        self._resources = dict(resources)
        self._reserved = dict(reserved or {})
        for name, amount in self._reserved.items():
            if not 0.0 <= amount <= self._resources.get(name, 0.0):
                raise ValueError(f"{amount:g} {name} cannot be reserved: there are {self._resources.get(name, 0.0):g}")
        self._reserved_for = reserved_for
        self._starvation_s = starvation_s
        knobs = LaneKnobs(max_batch=1, max_queue_rows=1, discipline=discipline, starvation_s=starvation_s)
        self._shares = _FairShares(knobs, _seconds) if discipline == "fair" else None
        self._queue = self._shares if self._shares is not None else _queue(knobs)
        self._waiting: dict[str, _Waiting] = {}
        self._held: dict[int, _Held] = {}
        self._next_want = self._next_lease = 1

    @property
    def free(self) -> dict[str, float]:
        """What no lease holds."""
        return {name: amount - self._used(name) for name, amount in self._resources.items()}

    def provide(self, resources: Mapping[str, float]) -> None:
        """There is so much of these from now on."""
        self._resources.update(resources)

    def want(self, want: Want, now: float) -> None:
        """The lane has a batch to run. Replaces what it wanted before, which leaves it its place in time.

        Raises ValueError, naming the resource, if no such batch could ever run.
        """
        urgency = level(Ticket(0, now, priority=want.priority))
        self._check(want, urgent=urgency <= self._reserved_for)
        before = self._waiting.get(want.lane)
        if before is None:
            ticket_id, since = self._next_want, now
            self._next_want += 1
        elif self._shares is not None:  # a start tag depends on neither cost nor deadline; the cost is settled when it starts
            before.want, before.level = want, urgency
            return
        else:
            ticket_id, since = before.ticket.id, before.ticket.arrived_at
            self._queue.remove(ticket_id)
        rows = max(round(self._charge_s(want, want.cost_s) * MICROSECONDS), 1)
        due_at = max(want.deadline_at, since)  # else lanes that are always late would go before all others for ever
        ticket = Ticket(ticket_id, since, due_at, rows, want.priority, want.lane, shape_key=(ticket_id,))  # shares no turn
        self._waiting[want.lane] = _Waiting(want, ticket, urgency)
        self._queue.push(ticket, now)

    def change_needs(self, lane: str, needs: Mapping[str, float], now: float) -> None:
        """What the lane wants, if it wants anything, takes so much; it keeps its place. Raises ValueError as `want` does."""
        waiting = self._waiting.get(lane)
        if waiting is not None:
            self.want(msgspec.structs.replace(waiting.want, needs=needs), now)

    def withdraw(self, lane: str) -> None:
        """The lane has nothing to run any more. No harm if it wanted nothing."""
        waiting = self._waiting.pop(lane, None)
        if waiting is not None:
            self._queue.remove(waiting.ticket.id)

    def grants(self, now: float) -> list[Lease]:
        """The turns that begin now, in order; each uses up its lane's want."""
        leases = []
        while (head := self._queue.head(now)) is not None:
            first = self._waiting[head.tenant]
            if self._fits(first):
                self._queue.pop(1, now)
                leases.append(self._lease(first, _seconds(first.ticket.rows, 1)))
            elif overtaking := self._overtaking(first, now):
                self._queue.remove(overtaking.ticket.id)
                leases.append(self._lease(overtaking, 0.0))  # a queue does not charge for what is taken out
            else:
                break
        return leases

    def release(self, lease_id: int, now: float, used_s: float) -> None:
        """The batch ended after so many seconds, or there was none (0 s); under "fair" that is what the lane is charged."""
        held = self._held.pop(lease_id)
        if self._shares is None:
            return
        waiting = self._waiting.get(held.lease.lane)
        moves = waiting is not None and len(self._waiting) > 1  # its start depends on what the lane has had
        if waiting is not None and moves:
            self._shares.remove(waiting.ticket.id)
        self._shares.settle(held.lease.lane, self._charge_s(held.want, used_s - held.want.cost_s))
        if waiting is not None and moves:
            self._shares.push(waiting.ticket, now)

    def forget(self, lane: str) -> None:
        """The lane has gone. What its batches use stays theirs until each is released."""
        self.withdraw(lane)

    # What fits

    def _check(self, want: Want, *, urgent: bool) -> None:
        for name, need in want.needs.items():
            most = self._resources.get(name, 0.0) - (0.0 if urgent else self._reserved.get(name, 0.0))
            if not 0.0 <= need <= most:
                raise ValueError(f"a batch of {want.lane} needs {need:g} {name}, it can never have more than {most:g}")
        if not (0.0 <= want.cost_s < inf and 0.0 < want.weight < inf):
            raise ValueError(f"a batch of {want.lane} has a cost of {want.cost_s} s and a weight of {want.weight}")

    def _fits(self, waiting: _Waiting) -> bool:
        urgent = self._urgent(waiting)
        for name, need in waiting.want.needs.items():
            if self._used(name, need) > self._resources[name]:
                return False
            others = self._resources[name] - self._reserved.get(name, 0.0)
            if not urgent and self._used(name, need, urgent=False) > others:
                return False
        return True

    def _overtaking(self, first: _Waiting, now: float) -> _Waiting | None:
        """The urgent want that may start although the first in order has to wait."""
        if self._urgent(first):
            return None
        urgent = filter(self._urgent, self._waiting.values())
        chosen = min(urgent, key=lambda waiting: (waiting.level, waiting.ticket.id), default=None)
        if chosen is None or not self._fits(chosen):
            return None
        if now - first.ticket.arrived_at < self._starvation_s:
            return chosen
        for name, need in chosen.want.needs.items():
            if self._used(name, need, urgent=True) > self._reserved.get(name, 0.0):
                return None
        return chosen

    def _urgent(self, waiting: _Waiting) -> bool:
        return waiting.level <= self._reserved_for

    def _used(self, name: str, more: float = 0.0, urgent: bool | None = None) -> float:
        """What the leases hold of a resource (the urgent ones, the others, or all), and `more`; summed anew, so exactly."""
        held = [held.lease.needs.get(name, 0.0) for held in self._held.values() if urgent is None or held.urgent is urgent]
        return fsum([*held, more])

    def _charge_s(self, want: Want, used_s: float) -> float:
        """What a batch counts for in the order. Under "fair": seconds of all of the lane's dominant resource, at weight 1."""
        if self._shares is None:
            return used_s
        shares = [need / self._resources[name] for name, need in want.needs.items() if need]
        return used_s * max(shares, default=0.0) / want.weight

    def _lease(self, waiting: _Waiting, charged_s: float) -> Lease:
        want = waiting.want
        del self._waiting[want.lane]
        lease = Lease(self._next_lease, want.lane, want.needs)
        self._next_lease += 1
        self._held[lease.id] = _Held(lease, self._urgent(waiting), want)
        if self._shares is not None:
            self._shares.settle(want.lane, self._charge_s(want, want.cost_s) - charged_s)
        return lease


def _queue(knobs: LaneKnobs) -> QueueDiscipline:
    least_s = QUANTUM_S if knobs.discipline == "mlfq" else 0.0
    return make_queue(knobs, lambda rows, length: max(_seconds(rows, length), least_s))


def _seconds(rows: int, _: int) -> float:
    return rows / MICROSECONDS

"""Answers from what was answered before, and joins requests that ask the same at the same time, so that it is run once.

Stands before the lane of one version of a model (put there by caches.py); a hit costs neither queue nor batch. Not aware of:
which answers are worth keeping (policy/caching), protocols, other models.
"""

import asyncio
import logging
from collections.abc import Callable, Sequence
from math import inf
from typing import TYPE_CHECKING, Any, Protocol

import msgspec
from msgspec import Struct

from dlproxy.message import Cached, Failure, FailureKind, Request, Response, Tensor, Timing
from dlproxy.policy.caching import CachePolicy, Entry
from dlproxy.policy.caching.auto import Auto
from dlproxy.policy.caching.worth import Ghost
from dlproxy.serve.caching.copies import copies_of, owned
from dlproxy.serve.caching.keys import Key, MakeKey
from dlproxy.serve.caching.watch import Watch, Watched
from dlproxy.serve.driver import timer_delay_s
from dlproxy.service import ReplyTo, Service
from dlproxy.telemetry.stats import CacheCounts, CacheSize, ModelStats

if TYPE_CHECKING:
    from dlproxy.serve.caching.rows import RowLayer

# What an answer, and each of its outputs, takes beside the elements. Measured of one output and of three: 960 and 1,260 with
# S3-FIFO's ghost full, 700 to 800 and 1,000 to 1,100 with the other policies.
ENTRY_BYTES, OUTPUT_BYTES = 800, 160
OF_ONE = frozenset(
    (
        *(FailureKind.DEADLINE, FailureKind.LATE, FailureKind.CANCELLED, FailureKind.QUOTA),
        *(FailureKind.QUEUE_FULL, FailureKind.OVERLOADED),
    )
)
"""Why one request is not answered that says nothing of others which ask the same."""
CANCELLED = Failure(FailureKind.CANCELLED, "the client disconnected")
LATE = Failure(FailureKind.LATE, "the request's deadline passed before the answer it had joined was there")
NO_TIME = Timing(0.0, 0.0, 0.0)

log = logging.getLogger(__name__)


class Kept(Struct):
    """An answer, of which `outputs` are copies. `at`: when it was computed, which took `cost_s` seconds."""

    model: str
    version: str
    outputs: list[Tensor]
    at: float
    cost_s: float

    @property
    def size(self) -> int:
        """Bytes that it takes here."""
        return sum([len(tensor.data) + OUTPUT_BYTES for tensor in self.outputs]) + ENTRY_BYTES


class SecondLevel(Protocol):
    """Answers that several nodes share. Nothing of it raises or blocks."""

    def find(self, key: Key, then: Callable[[Kept | None], None]) -> None:
        """`then` is called once, on the event loop, after a bounded wait: with the answer, or with None if this node is to
        compute it, and to say what came of that.
        """
        ...

    def keep(self, key: Key, kept: Kept | None) -> None:
        """What came of it; None: no answer."""
        ...

    def clear(self) -> None:
        """Forget the answers, on all nodes."""
        ...

    def close(self) -> None:
        """The model goes: nothing is looked for any more."""
        ...

    def state(self) -> dict[str, Any]:
        """JSON."""
        ...


class RowCosts:
    """What a row takes of its batch, on average of all that ran; looked up anew now and then."""

    EVERY = 64  # answers

    def __init__(self, stats: ModelStats) -> None:
        self._stats = stats
        self._row_s = 0.0
        self._left = 1

    def of(self, rows: int) -> float:
        """Seconds."""
        self._left -= 1
        if not self._left:
            self._left = self.EVERY if self._row_s else 1
            self._stats.settle()
            if self._stats.rows:
                seconds = sum([size.batch_s + size.compute_s for size in self._stats.batch_sizes.values()])
                self._row_s = seconds / self._stats.rows
        return self._row_s * rows


class CacheLayer:
    """A Service around `inner`, which gives whole answers. `auto`: whether it is on; None if it always is.

    Of joined requests each has its own id, deadline and cancellation; a failure of the model reaches all, a failure that is one
    request's own only that one. Failures are not kept.
    """

    def __init__(
        self,
        inner: Service,
        cache: CachePolicy[Kept],
        key_of: MakeKey,
        stats: ModelStats,
        *,
        clock: Callable[[], float],
        ttl_s: float = inf,
        name: str = "",
        auto: Auto[Sequence[Tensor]] | None = None,
        second: SecondLevel | None = None,
    ) -> None:
        self.inner = inner
        self.cache = cache
        self.stats = stats
        self.counts = stats.cache = CacheCounts(self.size)
        self.last_hit_at = -inf
        self.clock = clock
        self.watch = Watch(name, inner, self.counts, auto)
        self.watch.on_off = self.clear
        self.second = second
        self.ghost: Ghost | None = None
        """Knows what has left, where other models' caches could give bytes to this one."""
        self.flights: dict[Key, Flight] = {}
        self.waiting: dict[int, Flight] = {}  # by the ids of tickets
        self._auto = auto
        self._costs = RowCosts(stats)
        self._key_of = key_of
        self._ttl_s = ttl_s
        self.rows: RowLayer | None = None
        """Asked for requests of several rows, which it remembers one by one."""
        self.on_close: Callable[[], None] = lambda: None

    def submit(self, request: Request, reply: ReplyTo) -> None:
        auto, max_age_s = self._auto, request.max_age_s
        if auto is not None and not auto.on:
            self._pass(auto, request, reply)
            return
        if max_age_s < 0.0:
            self.counts.bypassed += 1
            self.inner.submit(request, _Bypassing(reply))
            return
        began_at = self.clock()
        key = self._key_of(request)
        by_rows = self.rows if request.ticket.rows > 1 else None
        if by_rows is None:
            entry = self.cache.get(key)
            if entry is not None and self._is_fresh(entry, began_at, max_age_s):
                self._hit(request, reply, entry.value, began_at)
                return
        flight = self.flights.get(key)
        if flight is not None and max_age_s > 0.0 and flight.takes(request):
            flight.join(request, reply, began_at)
            return
        if self.ghost is not None:
            self.ghost.missed(key)
        self.flights[key] = flight = Flight(self, self.inner if by_rows is None else by_rows, key, request, reply)
        flight.is_kept = by_rows is None
        counts = self.counts
        counts.misses += 1
        counts.miss_s += self.clock() - began_at
        if auto is not None:
            self.watch.looked_up(hit=False)
        if self.second is None or max_age_s < inf or by_rows is not None:
            flight.lead(request)
        else:
            flight.look_elsewhere(self.second)

    def cancel(self, request: Request) -> None:
        flight = self.waiting.get(request.ticket.id)
        if flight is None:
            self.inner.cancel(request)
        else:
            flight.cancel(request)

    def close(self) -> None:
        """The model goes, and will soon take no more requests: nothing is remembered any more."""
        for flight in set(self.waiting.values()):
            flight.part()
        self.on_close()
        if self.second is not None:
            self.second.close()

    def resize(self, budget: int) -> None:
        """Bytes that its answers may take from now on."""
        self._note_gone(self.cache.resize(budget))

    def size(self) -> CacheSize:
        return CacheSize(len(self.cache), self.cache.used, self.cache.budget)

    def state(self) -> dict[str, Any]:
        """JSON."""
        counts = self.counts
        looked_up = counts.hits + counts.joined + counts.misses
        return {
            "state": self.watch.state,
            **msgspec.structs.asdict(self.size()),
            "hit_ratio": round(counts.hits / looked_up, 4) if looked_up else None,
            **{name: getattr(counts, name) for name in ("hits", "misses", "joined", "bypassed", "evicted", "expired")},
            **({} if self.second is None else {"redis": self.second.state()}),
        }

    def clear(self) -> int:
        """Forget everything; returns how many answers that were. What runs is not kept either."""
        count = len(self.cache)
        self.cache.clear()
        if self.ghost is not None:
            self.ghost.clear()
        for flight in self.flights.values():
            flight.is_kept = False
        if self.rows is not None:
            self.rows.cleared += 1
        self.flights.clear()
        return count

    def _pass(self, auto: Auto[Sequence[Tensor]], request: Request, reply: ReplyTo) -> None:
        """While it is off: now and then it is noted what is asked, and what the answer is."""
        if auto.watches() and request.max_age_s > 0.0:
            began_at = self.clock()
            key = self._key_of(request)
            auto.sampled(key)
            auto.cost(self.clock() - began_at)
            reply = Watched(self.watch, key, request.ticket.rows, reply, self._costs.of)
        self.inner.submit(request, reply)

    def _is_fresh(self, entry: Entry[Kept], now: float, max_age_s: float) -> bool:
        age_s = now - entry.value.at
        if age_s > self._ttl_s:
            self.cache.drop(entry.key)
            self.counts.expired += 1
            return False
        return age_s <= max_age_s and max_age_s > 0.0

    def _hit(self, request: Request, reply: ReplyTo, kept: Kept, began_at: float) -> None:
        self.last_hit_at = began_at
        now = self.clock()
        counts = self.counts
        counts.hits += 1
        counts.hit_s += now - began_at
        self.stats.request_remembered(now - request.ticket.arrived_at, request)
        response = Response(request.id, kept.model, kept.version, kept.outputs, NO_TIME, None, "hit")
        try:
            reply.completed(response)
        except Exception:  # submit never raises
            log.exception("model %s: could not hand over the answer to request %d", request.model, request.ticket.id)
        self.watch.hit(request, kept.outputs)

    def known_row(self, key: Key, request: Request) -> Kept | None:
        """The answer to one row of the request, if it is remembered and as new as that wants it."""
        entry = self.cache.get(key)
        fresh = entry is not None and self._is_fresh(entry, self.clock(), request.max_age_s)
        self.counts.known_rows += fresh
        return entry.value if entry is not None and fresh else None

    def keep_row(self, key: Key, response: Response, outputs: Sequence[Tensor]) -> None:
        """The answer to one row of several."""
        self.keep(key, Kept(response.model, response.version, copies_of(outputs), self.clock(), self.cost_s(1)))

    def keep(self, key: Key, kept: Kept) -> None:
        """An answer, if the policy has room for it."""
        self._note_gone(self.cache.put(key, kept, kept.size, kept.cost_s))

    def _note_gone(self, gone: Sequence[Entry[Kept]]) -> None:
        self.counts.evicted += len(gone)
        if self.ghost is not None:
            for entry in gone:
                self.ghost.left(entry.key, entry.size, entry.cost_s, self.cache.budget)

    def cost_s(self, rows: int) -> float:
        """Seconds of an instance's time that so many rows take."""
        return self._costs.of(rows)


class Flight:
    """Requests that ask the same, of which one is asked of the inner service. A ReplyTo, of that one.

    It is known to the layer by its key until it is answered; requests that come then start another.
    """

    __slots__ = ("_asked", "_inner", "_key", "_layer", "_owed", "_requests", "_timers", "is_kept")

    def __init__(self, layer: CacheLayer, inner: Service, key: Key, request: Request, reply: ReplyTo) -> None:
        self._layer = layer
        self._inner = inner
        self._key = key
        self._asked: Request | None = None  # None: nothing runs for it just now
        self._requests: dict[int, tuple[Request, ReplyTo]] = {request.ticket.id: (request, reply)}
        self._timers: dict[int, asyncio.TimerHandle] = {}
        self._owed: SecondLevel | None = None  # which waits to hear what came of it
        self.is_kept = True
        layer.waiting[request.ticket.id] = self

    def takes(self, request: Request) -> bool:
        """Whether it is no more urgent than what is asked for it: it would wait behind others that it should overtake."""
        asked = self._asked
        if asked is None:
            return True
        urgency, other = request.ticket.priority or inf, asked.ticket.priority or inf
        return urgency >= other

    def join(self, request: Request, reply: ReplyTo, now: float) -> None:
        """Wait for the answer with the others, but no longer than its own client does."""
        ticket, layer = request.ticket, self._layer
        layer.counts.joined += 1
        layer.watch.looked_up(hit=True)
        self._requests[ticket.id] = (request, reply)
        layer.waiting[ticket.id] = self
        self._mind_deadline(request, now)

    def _mind_deadline(self, request: Request, now: float) -> None:
        """Its client's own, which no lane minds for it."""
        ticket = request.ticket
        if ticket.answer_by < inf:
            delay_s = timer_delay_s(ticket.answer_by, now)
            self._timers[ticket.id] = asyncio.get_running_loop().call_later(delay_s, self._late, request)

    def look_elsewhere(self, second: SecondLevel) -> None:
        """Other nodes may have the answer, or be about to."""
        for request, _ in self._requests.values():
            self._mind_deadline(request, self._layer.clock())
        self._owed = second
        second.find(self._key, self._looked)

    def _looked(self, kept: Kept | None) -> None:
        layer = self._layer
        if kept is not None:
            self._owed = None
            layer.counts.shared += 1
            if self.is_kept:
                layer.keep(self._key, kept)
            self._answer(Response("", kept.model, kept.version, kept.outputs, NO_TIME), "hit")
        else:
            self._lead_next()

    def lead(self, request: Request) -> None:
        """Ask for this one, and so for all: its inputs must stay as they are, whatever its own client does."""
        self._asked = request
        request.inputs = owned(request.inputs)
        self._forget_timer(request)
        self._inner.submit(request, self)

    def part(self) -> None:
        """Everybody asks at once, if what is asked for all may be refused for a reason of its own: it cannot be tried again."""
        self._lead_next()
        asked = self._asked
        if asked is None or asked.ticket.deadline_at == asked.ticket.answer_by == inf:
            return
        for ticket_id, (request, reply) in list(self._requests.items()):
            if request is not asked:
                del self._requests[ticket_id], self._layer.waiting[ticket_id]
                self._forget_timer(request)
                self._layer.inner.submit(request, _Bypassing(reply))

    def cancel(self, request: Request) -> None:
        """One of them wants no answer any more; the last that does takes what runs with it."""
        asked = self._asked
        if asked is not None and len(self._requests) == 1 and asked is request:
            self._inner.cancel(asked)
            return
        self._leave(request, CANCELLED)

    def _late(self, request: Request) -> None:
        self._timers.pop(request.ticket.id, None)
        self._leave(request, LATE)

    def _leave(self, request: Request, failure: Failure) -> None:
        if self._asked is None or len(self._requests) > 1:  # else the lane counts it
            self._lost(request, failure)
        self._fail(request.ticket.id, failure)
        if not self._requests:
            self._over()
            if self._asked is not None:
                self._inner.cancel(self._asked)
                self._settle(None)

    # ReplyTo

    def completed(self, response: Response) -> None:
        layer, asked = self._layer, self._asked
        assert asked is not None
        if response.cache == "hit":  # of rows that were all known
            layer.counts.misses -= 1
            layer.counts.hits += 1
        if self.is_kept and not response.variant:  # which answers while the model has no time: not what it would say
            cost_s = layer.cost_s(asked.ticket.rows)
            kept = Kept(response.model, response.version, copies_of(response.outputs), layer.clock(), cost_s)
            layer.keep(self._key, kept)
            self._settle(kept)
        else:
            self._settle(None)
        self._answer(response, response.cache or "miss")

    def _answer(self, response: Response, how: Cached) -> None:
        """Everybody, `how` being what the first one is told."""
        layer, asked = self._layer, self._asked
        self._over()
        requests, self._requests = self._requests, {}
        for ticket_id, (request, _) in requests.items():
            del layer.waiting[ticket_id]
            self._forget_timer(request)
        now = layer.clock()
        leader = 0 if asked is None else asked.ticket.id
        counted = asked is not None and response.cache != "hit"  # the lane has counted the one that it ran
        for ticket_id, (request, reply) in requests.items():
            answer = Response(request.id, response.model, response.version, response.outputs, response.timing, None, how)
            answer.variant = response.variant
            how = "joined"
            if not counted:
                layer.stats.request_remembered(now - request.ticket.arrived_at, request, leader)
            counted = False
            try:
                reply.completed(answer)
            except Exception:  # of one client: the others must hear
                log.exception("model %s: could not hand over the answer to request %d", request.model, ticket_id)

    def failed(self, failure: Failure) -> None:
        asked, self._asked = self._asked, None
        assert asked is not None
        if failure.kind not in OF_ONE:
            self._over()
            self._settle(None)
            for number, (ticket_id, (request, _)) in enumerate(list(self._requests.items())):
                if ticket_id not in self._requests:  # one that heard before has taken it along
                    continue
                if number:  # the lane has counted one
                    self._lost(request, failure)
                self._fail(ticket_id, failure)
            return
        if asked.ticket.id in self._requests:
            self._fail(asked.ticket.id, failure)
        elif self._requests:  # counted when it left
            self._layer.stats.failed(failure.kind, self._layer.clock() - asked.ticket.arrived_at, -1)
        if self._requests:  # later: a lane's commands may be in the midst of being carried out
            asyncio.get_running_loop().call_soon(self._lead_next)
        else:
            self._over()
            self._settle(None)

    def _lead_next(self) -> None:
        if self._asked is not None:
            return
        if self._requests:
            self.lead(next(iter(self._requests.values()))[0])
        else:  # all have left since
            self._settle(None)

    def _lost(self, request: Request, failure: Failure) -> None:
        stats, now = self._layer.stats, self._layer.clock()
        stats.failed(failure.kind, now - request.ticket.arrived_at)
        stats.lost(request, failure, "joined", now)

    def _fail(self, ticket_id: int, failure: Failure) -> None:
        request, reply = self._requests.pop(ticket_id)
        del self._layer.waiting[ticket_id]
        self._forget_timer(request)
        try:
            reply.failed(failure)
        except Exception:
            log.exception("model %s: could not hand over the failure of request %d", request.model, ticket_id)

    def _forget_timer(self, request: Request) -> None:
        if self._timers and (timer := self._timers.pop(request.ticket.id, None)) is not None:
            timer.cancel()

    def _settle(self, kept: Kept | None) -> None:
        """Tell other nodes, if one of them may wait."""
        second, self._owed = self._owed, None
        if second is not None:
            second.keep(self._key, kept)

    def _over(self) -> None:
        """Nobody joins it any more."""
        flights = self._layer.flights
        if flights.get(self._key) is self:
            del flights[self._key]


class _Bypassing:
    """A ReplyTo of a request whose client wants no part in the cache."""

    __slots__ = ("_reply",)

    def __init__(self, reply: ReplyTo) -> None:
        self._reply = reply

    def completed(self, response: Response) -> None:
        response.cache = "bypass"
        self._reply.completed(response)

    def failed(self, failure: Failure) -> None:
        self._reply.failed(failure)

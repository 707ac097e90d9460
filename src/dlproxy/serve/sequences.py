"""Keeps the state of sequences: puts it into their requests, takes it out of the answers, one request of each at a time.
Where the model keeps it itself, requests go where it is.

Stands before the lane of a model with `sequences` (put there by assemble.py), to which each request is as any other: it
holds its own state, or is pinned. Not aware of: lanes, protocols, whose turn it is (policy/sequences.py says that).
"""

import asyncio
import logging
from collections.abc import Callable, Hashable
from math import inf
from typing import Any

from dlproxy.config import ModelConfig
from dlproxy.cores import give_back
from dlproxy.message import Failure, FailureKind, InferenceError, InSequence, Request, Response
from dlproxy.policy.sequences import Failed, Sequence, Sequences, Turn
from dlproxy.serve.driver import timer_delay_s
from dlproxy.serve.residence import Residence, may_have_run, told_id
from dlproxy.serve.states import State, StatePlan
from dlproxy.serve.traffic import difference_between
from dlproxy.service import ReplyTo, Service
from dlproxy.telemetry.stats import ModelStats, SequenceCounts

MANY = 1000  # sequences that were forgotten: 10,000 of Silero's leave 19 MiB to the C library, of which the system gets 15 back
CANCELLED = Failure(FailureKind.CANCELLED, "the client disconnected")

log = logging.getLogger(__name__)


class SequenceStore:
    """The sequences of one model, wherever its versions run them: they go on when a version takes the place of another."""

    def __init__(self, name: str, clock: Callable[[], float]) -> None:
        self.clock = clock
        self.policy: Sequences[SequenceLayer] = Sequences(name, most=0, idle_s=0.0, most_waiting=0)
        self.under_way: dict[int, _Asked] = {}  # by the ids of tickets
        self.changed: asyncio.Event | None = None
        """Set whenever a request has ended, while somebody waits for that."""
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at = inf
        self._forgotten = 0

    def fail(self, failed: "Failed[SequenceLayer]") -> None:
        """Requests that waited get no answer."""
        for turn, failure in failed:
            asked = self.under_way[turn.ticket.id]
            asked.over()
            asked.layer.refuse(asked.request, asked.reply, failure)

    def go_on(self, sequence: "Sequence[SequenceLayer]") -> None:
        """Whose turn it is now. Later: a lane's commands may be in the midst of being carried out."""
        turn = sequence.running
        if turn is not None:
            asyncio.get_running_loop().call_soon(self._begin, turn)
        self.arm()

    def lapse(self) -> None:
        """Forget what is to be forgotten."""
        gone, failed = self.policy.lapse(self.clock())
        for sequence in gone:
            sequence.home.counts.expired += 1
            sequence.home.leave(sequence)
        self._forgotten += len(gone)
        if self._forgotten >= MANY and not len(self.policy):
            self._forgotten = 0
            asyncio.get_running_loop().run_in_executor(None, give_back)
        self.fail(failed)

    def arm(self) -> None:
        """Be woken when something lapses."""
        at = self.policy.next_at()
        if at < self._timer_at:
            if self._timer is not None:
                self._timer.cancel()
            self._timer_at = at
            self._timer = asyncio.get_running_loop().call_later(timer_delay_s(at, self.clock()), self._woken)
        elif self._timer is not None and not self.policy:  # it would keep the model in memory
            self._timer.cancel()
            self._timer, self._timer_at = None, inf

    def _woken(self) -> None:
        self._timer, self._timer_at = None, inf
        self.lapse()
        self.arm()

    def _begin(self, turn: "Turn[SequenceLayer]") -> None:
        asked = self.under_way.get(turn.ticket.id)
        if asked is not None and asked.turn is turn:  # else its client has left
            asked.begin()


class SequenceLayer:
    """A Service for one version of a model. `inner` takes requests that hold their state. `residence`: of a model that keeps it
    itself.
    """

    def __init__(
        self,
        inner: Service,
        plan: StatePlan,
        name: str,
        config: ModelConfig,
        stats: ModelStats,
        store: SequenceStore,
        residence: Residence | None = None,
    ) -> None:
        self.inner = inner
        self.plan = plan
        self.store = store
        self.counts = stats.sequences = SequenceCounts(self.active)
        self._name = name
        self._stats = stats
        self._residence = residence
        if residence is not None:
            residence.on_gone = self._lost
        self.configure(config)

    def configure(self, config: ModelConfig) -> None:
        """New bounds, for all versions: those that were set last hold."""
        self._most, self._idle_s = config.max_sequences, config.sequence_idle_s
        if self._residence is not None and config.sequences == "oldest":
            self._residence.places.slots = config.max_sequences
        self.store.policy.configure(most=self._most, idle_s=self._idle_s, most_waiting=config.max_queue_rows)
        self.store.arm()

    def submit(self, request: Request, reply: ReplyTo) -> None:
        of, store = request.sequence, self.store
        store.lapse()
        failure = self._unnamed(of)
        if failure is None and of is not None:
            ticket = request.ticket
            turn = Turn(ticket, of, self)
            key = request.principal.name, ticket.tenant, of.id
            sequence = store.policy.add(key, turn, store.clock())
            if not isinstance(sequence, Failure):
                asked = store.under_way[ticket.id] = _Asked(self, request, reply, sequence, turn)
                if sequence.running is turn:
                    asked.begin()
                else:
                    store.arm()
                return
            failure = sequence
        assert failure is not None
        self.counts.refused += 1
        self.refuse(request, reply, failure)

    def cancel(self, request: Request) -> None:
        asked = self.store.under_way.get(request.ticket.id)
        if asked is not None:
            asked.cancel()

    def refuse(self, request: Request, reply: ReplyTo, failure: Failure) -> None:
        """Counted here, as no lane hears of it."""
        now = self.store.clock()
        self._stats.failed(failure.kind, now - request.ticket.arrived_at)
        self._stats.lost(request, failure, "sequence", now)
        try:
            reply.failed(failure)
        except Exception:  # submit never raises
            log.exception(
                "model %s: could not hand over the failure of request %d", self._name, request.ticket.id, extra=request.named
            )

    def whole(self, request: Request, of: InSequence, state: State, key: Hashable) -> Request:
        """The same, with all that the model takes. `key`: of the sequence. Raises InferenceError."""
        ticket, plan = request.ticket, self.plan
        if ticket.rows != state.rows:
            message = f"sequence {of.id!r} of model '{self._name}' has {state.rows} rows, but this request has {ticket.rows}"
            raise InferenceError(Failure(FailureKind.INVALID_ARGUMENT, message))
        alike = plan.key(state, of)
        if alike:
            ticket.shape_key, ticket.family = (*ticket.shape_key, *alike), (*ticket.family, *alike) if ticket.family else ()
        inputs, outputs = plan.inputs(request.inputs, of, state), plan.outputs(request.outputs)
        sent = Request(ticket, request.model, inputs, outputs, request.id, request.params, request.principal, request.trace)
        if self._residence is not None:
            slot = self._residence.settle(key, ticket, self._name)
            if isinstance(slot, Failure):
                self.counts.refused += 1
                raise InferenceError(slot)
            sent.sequence = InSequence(told_id(request.principal.name, ticket.tenant, of.id), of.start, of.end, slot)
        return sent

    def answered(self, sequence: "Sequence[SequenceLayer]", *, ok: bool) -> None:
        """Before it is known what that does to the sequence."""
        if self._residence is not None:
            self._residence.places.answered(sequence.key, ok=ok)

    def leave(self, sequence: "Sequence[SequenceLayer]", *, alive: bool = False) -> None:
        """Its place here is free, unless it lives here."""
        if self._residence is not None and not (alive and sequence.lives and sequence.home is self):
            self._residence.places.end(sequence.key)

    def spoilt(self, sequence: "Sequence[SequenceLayer]", failure: Failure) -> "Failed[SequenceLayer]":
        """A failed request may have changed the state that only the model has: nobody can go on with it. Returns those that
        fail with it.
        """
        turn = sequence.running
        over = turn is None or (turn.follows and not sequence.lives)  # with its instance
        if self._residence is None or over or not may_have_run(failure):
            return []
        self.counts.broken += sequence.lives
        why = f"a request of it failed, and may have changed its state: {failure.message}"
        return self.store.policy.end(sequence, why, self.store.clock())

    def of_sequence(self, sequence: "Sequence[SequenceLayer]", failure: Failure) -> Failure:
        """The lane does not know which sequence it was."""
        if self._residence is None or failure.kind is not FailureKind.UNAVAILABLE:
            return failure
        message = f"sequence {sequence.id!r} of model '{self._name}': {failure.message}"
        return Failure(failure.kind, message, retry_after_s=failure.retry_after_s)

    def give_way(self, successor: "SequenceLayer", reason: str) -> None:
        """Its sequences go on at the successor or, where that takes another state, end for this reason."""
        why = self.plan.difference(successor.plan)
        self._move(None if why else successor, f"{reason}, and {why}" if why else "")

    async def drain(self, drain_s: float, reason: str) -> float:
        """What is under way is answered, within so many seconds, of which those that are left are returned; then all sequences
        that are here end for this reason.
        """
        store = self.store
        began_at = store.clock()
        store.changed = changed = asyncio.Event()
        try:
            async with asyncio.timeout(drain_s):
                while any(asked.sequence.runs_at is self for asked in store.under_way.values()):
                    changed.clear()
                    await changed.wait()
        except TimeoutError:
            pass  # they fail
        self._move(None, reason)
        return max(drain_s - (store.clock() - began_at), 0.0)

    def active(self) -> int:
        """Sequences that run here."""
        return sum(sequence.home is self for sequence in self.store.policy)

    def state(self) -> dict[str, Any]:
        """JSON."""
        counts, names = self.counts, ("started", "restarted", "ended", "expired", "broken", "refused")
        return {
            "strategy": self.plan.signature.sequences,
            "active": self.active(),
            "most": self._most,
            "idle_s": self._idle_s,
            "waiting_requests": self.store.policy.waiting,
            **{name: getattr(counts, name) for name in names},
        }

    def _move(self, successor: "SequenceLayer | None", why: str) -> None:
        store = self.store
        before = self.active()
        store.fail(store.policy.move(self, successor, why, store.clock()))
        if why:
            self.counts.broken += before
        store.arm()

    def _lost(self, keys: list[Hashable], why: str) -> None:
        """Their state is."""
        store = self.store
        failed: Failed[SequenceLayer] = []
        for key in keys:
            sequence = store.policy.at(key)
            if sequence is None:
                continue
            if sequence.runs_at is self:
                self.counts.broken += 1
                failed += store.policy.end(sequence, why, store.clock())
            elif sequence.home is self:  # it begins anew at another version
                sequence.lives = False
        store.fail(failed)
        store.arm()

    def _unnamed(self, of: InSequence | None) -> Failure | None:
        """Why nobody can tell which sequence it is of."""
        if of is None or not of.id:
            message = (
                f"inference request to model '{self._name}' must specify a non-zero or non-empty correlation ID (sequence_id)"
            )
            return Failure(FailureKind.INVALID_ARGUMENT, message)
        why = self.plan.why_not(of.id)
        return Failure(FailureKind.INVALID_ARGUMENT, why) if why else None


class _Asked:
    """A request that waits for its turn, or is run. A ReplyTo, of the lane that runs it: `_by`'s."""

    __slots__ = ("_by", "_sent", "layer", "reply", "request", "sequence", "turn")

    def __init__(
        self,
        layer: SequenceLayer,
        request: Request,
        reply: ReplyTo,
        sequence: Sequence[SequenceLayer],
        turn: Turn[SequenceLayer],
    ) -> None:
        self.layer = layer
        self.request = request
        self.reply = reply
        self.sequence = sequence
        self.turn = turn
        self._by = layer
        self._sent: Request | None = None  # None: it waits

    def begin(self) -> None:
        request, sequence = self.request, self.sequence
        self._by = by = sequence.runs_at
        try:
            if by is not self.layer and (why := difference_between(self.layer.plan.signature, by.plan.signature)):
                message = f"sequence {sequence.id!r} runs on a version that does not take this request: {why}"
                raise InferenceError(Failure(FailureKind.INVALID_ARGUMENT, message))
            state = by.plan.begin(request.ticket.rows) if self.turn.of.start else sequence.state
            self._sent = by.whole(request, self.turn.of, state, sequence.key)
        except InferenceError as error:
            self._end_unanswered(error.failure, counted=False)
            return
        by.inner.submit(self._sent, self)

    def cancel(self) -> None:
        if self._sent is not None:
            self._by.inner.cancel(self._sent)
        elif self.sequence.running is self.turn:
            self._end_unanswered(CANCELLED, counted=False)
        else:
            self.layer.store.fail(self.layer.store.policy.leave(self.request.ticket, CANCELLED))

    def over(self) -> None:
        """It has its answer, or gets none."""
        store = self.layer.store
        del store.under_way[self.request.ticket.id]
        if store.changed is not None:
            store.changed.set()

    # ReplyTo

    def completed(self, response: Response) -> None:
        store, sequence, of = self.layer.store, self.sequence, self.turn.of
        told = len(self.request.outputs)
        outputs, response.outputs = response.outputs, response.outputs[:told]
        counts = self._by.counts
        self.over()
        now = store.clock()
        if of.start:
            counts.restarted += sequence.lives
            counts.started += 1
        state = self._by.plan.state_of(outputs[told:], self.request.ticket.rows)
        if isinstance(state, State):
            sequence.state = state
            counts.ended += of.end and self.request.sequence == of
        elif not of.end:
            counts.broken += 1
            store.fail(store.policy.end(sequence, state, now))
        by, before = self._by, sequence.home
        by.answered(sequence, ok=True)
        store.policy.answered(sequence, now)
        self._leave(before)
        store.go_on(sequence)
        self.reply.completed(response)

    def failed(self, failure: Failure) -> None:
        self._by.answered(self.sequence, ok=failure.kind is not FailureKind.MODEL_FAILED)
        behind = self._by.spoilt(self.sequence, failure)
        self._end_unanswered(self._by.of_sequence(self.sequence, failure), counted=True, behind=behind)

    def _leave(self, before: SequenceLayer) -> None:
        """Where it lives no more."""
        for layer in {before, self._by}:
            layer.leave(self.sequence, alive=True)

    def _end_unanswered(self, failure: Failure, *, counted: bool, behind: "Failed[SequenceLayer] | None" = None) -> None:
        store, sequence = self.layer.store, self.sequence
        self.over()
        before = sequence.home
        behind = [*(behind or ()), *store.policy.unanswered(sequence, failure, store.clock())]
        self._leave(before)
        store.go_on(sequence)
        try:
            if counted:  # by the lane
                self.reply.failed(failure)
            else:
                self.layer.refuse(self.request, self.reply, failure)
        finally:
            store.fail(behind)

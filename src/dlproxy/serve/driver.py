"""Runs one Lane on the event loop: turns requests into events, carries out the commands. One driver per model.

Called by wire/ (through Service) and serve/proxy.py. Not aware of: wire formats, which kinds of instances there are.
"""

import asyncio
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from functools import partial
from math import ceil, inf
from typing import TYPE_CHECKING

from msgspec import Struct

from dlproxy.fleet.leases import Leases
from dlproxy.instance import Instance
from dlproxy.instance.batch import BatchRest, BatchResult, Cutter, why_uncut
from dlproxy.message import Failure, FailureKind, Request, Response, Signature, Tensor, Timing, text_of
from dlproxy.policy.events import (
    Arrived,
    BatchDone,
    Cancelled,
    Closing,
    Command,
    Complete,
    Dispatch,
    DispatchReason,
    Event,
    FirstPart,
    InstanceExpected,
    InstanceLost,
    InstanceRetired,
    InstanceUp,
    KnobsChanged,
    PassTurn,
    Reject,
    TimerFired,
    TurnGranted,
    WakeAt,
    WantTurn,
)
from dlproxy.policy.knobs import LaneKnobs
from dlproxy.policy.why import Run
from dlproxy.serve.failure_log import FailureLog
from dlproxy.serve.idle_poll import IdlePoll
from dlproxy.serve.leasing import LeaseTaker
from dlproxy.serve.quarantine import Quarantine
from dlproxy.serve.recheck import Recheck
from dlproxy.serve.reservoir import Reservoir
from dlproxy.serve.streams import FirstPartTo, Stream
from dlproxy.serve.turns import Taker, Turns
from dlproxy.service import ReplyTo
from dlproxy.telemetry.exemplars import LATE_S
from dlproxy.telemetry.stats import AnsweredBatch, FailedRun, ModelStats

if TYPE_CHECKING:
    from dlproxy.serve.tracing import Runs

GATHER_MOST = 64  # requests of one turn told to the lane at a time: at 256 clients 5 % or more over all at once, whose memory
# no longer fits the core's cache; 32 would halve the batches of 64 clients (docs/adr/0003)

log = logging.getLogger(__name__)


def timer_delay_s(at: float, now: float) -> float:
    """Seconds until a timer for this instant goes off: uvloop's count whole milliseconds, and must not be early."""
    return max(ceil((at - now) * 1e3) / 1e3, 0.0)


class _Flight(Struct):
    """A batch that runs: its requests in gathering order, and its result once there is one."""

    requests: list[Request]
    instance: str
    dispatched_at: float
    reason: DispatchReason
    result: BatchResult | None = None


class Driver:
    """A Service for one model. Everything happens on one event loop, so there are no locks.

    Requests that arrive in one turn of the loop reach the lane together: that is how batches form when the model is so
    quick that no queue does. `lane_on` is Lane.on, or a recorder around it.
    """

    def __init__(
        self,
        *,
        model: str,
        version: str,
        signature: Signature,
        lane_on: Callable[[Event, float], list[Command]],
        stats: ModelStats,
        clock: Callable[[], float],
        quarantine_s: float = 0.0,
        outage_wait_s: float = 0.0,
        failure_log: FailureLog | None = None,
    ) -> None:
        self._model = model
        self._version = version
        self._signature = signature
        self._pads = signature.pads
        self._lane_on = lane_on
        self._stats = stats
        if signature.streams:
            stats.streaming()
        self._clock = clock
        self._quarantine_s = quarantine_s
        self._outage_wait_s = outage_wait_s
        self._crashed_at = -inf  # if another instance is being started in the place of the one that crashed last
        self._failure_log = failure_log or FailureLog(model)
        self._quarantine: Quarantine | None = None  # there is one only while something is in it
        self._loop = asyncio.get_running_loop()
        self._instances: dict[str, Instance] = {}
        self._inbox: list[Request] = []
        self._waiting: dict[int, tuple[Request, ReplyTo]] = {}
        self._flights: dict[int, _Flight] = {}
        self._streams: dict[int, Stream] = {}  # by batch
        self._timer: asyncio.TimerHandle | None = None
        self._wakes_at = inf
        self._finishing = False
        self._taker: Taker | LeaseTaker | None = None
        self._idle_poll: IdlePoll | None = None
        self._recheck: Recheck | None = None
        self._reservoir: Reservoir | None = None
        self._runs: Runs | None = None
        self.last_event_at = clock()
        self._idle: asyncio.Event | None = None  # set when nothing is unanswered, if somebody waits for that
        self._carry_out: dict[type, Callable[..., None]] = {
            Dispatch: self._dispatch,
            Complete: self._complete,
            Reject: self._reject,
            WakeAt: self._wake_at,
            WantTurn: self._want_turn,
            PassTurn: self._pass_turn,
        }

    # Service

    def submit(self, request: Request, reply: ReplyTo) -> None:
        if self._quarantine is not None and self._is_quarantined(self._quarantine, request, reply):
            return
        self._waiting[request.ticket.id] = (request, reply)
        inbox = self._inbox
        if not inbox:
            self._loop.call_soon(self._take_arrivals)
            if self._idle_poll is not None:
                self._idle_poll.busy(self)
        inbox.append(request)
        if len(inbox) >= GATHER_MOST and not self._finishing:
            self._take_arrivals()

    def cancel(self, request: Request) -> None:
        if self._inbox and request in self._inbox:  # the lane must hear of it before it hears that it was cancelled
            self._take_arrivals()
        if request.ticket.id in self._waiting:
            self._tell_lane(Cancelled(request.ticket.id))
        for stream in list(self._streams.values()):
            stream.leave(request.ticket.id)

    # Control

    def add_instance(self, instance: Instance) -> None:
        """From now on the lane may dispatch to it."""
        self._crashed_at = -inf
        self._instances[instance.name] = instance
        self._tell_lane(InstanceUp(instance.name, instance.capacity))

    def lose_instance(self, name: str, reason: str, *, crashed: bool = False) -> None:
        """The instance has died; what it ran is retried elsewhere or fails. `crashed`: as InstanceLost has it, and another is
        being started in its place, unless it was retired.
        """
        if self._instances.pop(name, None) is not None and crashed:
            self._crashed_at = self._clock()
            self.expect_instance(self._crashed_at + self._outage_wait_s)
        lost = [number for number, flight in self._flights.items() if flight.instance == name]
        for number in lost:
            self._run_failed(number, self._flights.pop(number), 0.0, reason, self._clock())
        streams = [self._streams.pop(number) for number in lost if number in self._streams]
        self._tell_lane(InstanceLost(name, reason, crashed))
        if self._taker is not None:
            for number in lost:
                self._taker.lose(number, self._clock())
        if self._runs is not None:
            for number in lost:
                self._runs.lost(number, reason)
        for stream in streams:
            stream.lose(_broken_off(reason))

    def expect_instance(self, until: float) -> None:
        """One is being started: requests may wait for it until then."""
        self._tell_lane(InstanceExpected(until))

    def retire_instance(self, name: str, reason: str = "") -> None:
        """No more batches for it, for a reason as InstanceRetired has it; one that runs ends well. Unknown ones are ignored."""
        if self._instances.pop(name, None) is not None:
            self._tell_lane(InstanceRetired(name, reason))

    def kept(self, name: str) -> int:
        """No sequence lives in its instances; where some do, Residence stands before it."""
        return 0

    def take_turns(self, turns: Turns, needs: Mapping[str, float]) -> None:
        """Batches need so much of the machine's resources each. Before the lane's knobs say that it is arbitrated; or again."""
        if self._taker is None:
            self._taker = Taker(turns, f"{self._model}/{self._version}", partial(self._tell_lane, TurnGranted()))
        assert isinstance(self._taker, Taker)
        self._taker.join(needs)

    def lease(self, leases: Leases, instances: Sequence[str]) -> None:
        """Each batch leases its instance, as other processes use them, too. Before the lane's knobs say so."""
        self._taker = LeaseTaker(leases, instances, lambda instance: self._tell_lane(TurnGranted(instance)))

    def weigh(self, share: float) -> None:
        """Its turns beside others', under the arbiter's discipline "fair"."""
        if self._taker is not None:
            self._taker.weight = share

    def leave_turns(self) -> None:
        """Batches wait for no turns any more; after the lane's knobs say so. Those that run still give theirs back."""
        assert self._taker is not None
        self._taker.leave()

    def poll_when_idle(self, idle_poll: IdlePoll) -> None:
        """From now on it is told whether anything is unanswered here."""
        self._idle_poll = idle_poll

    def compare_answers(self, recheck: Recheck) -> None:
        """From now on it gets answers that were cut out of batches, when they are due."""
        self._recheck = recheck

    def keep_requests(self, reservoir: Reservoir) -> None:
        """From now on it gets one request of each batch, for as long as it wants any."""
        self._reservoir = reservoir

    def trace_runs(self, runs: "Runs") -> None:
        """From now on it hears of each batch that begins, ends or is lost."""
        self._runs = runs

    def change_knobs(self, knobs: LaneKnobs) -> None:
        """New values, for queued requests too."""
        self._tell_lane(KnobsChanged(knobs))
        if knobs.outage_wait_s != self._outage_wait_s:
            self._outage_wait_s = knobs.outage_wait_s
            if self._crashed_at > -inf:
                self.expect_instance(self._crashed_at + self._outage_wait_s)

    @property
    def ready(self) -> bool:
        """True while at least one instance is up."""
        return bool(self._instances)

    @property
    def unanswered(self) -> int:
        """Clients' requests that are queued or run."""
        return len({request.ticket.part_of or number for number, (request, _) in self._waiting.items() if number >= 0})

    @property
    def open_requests(self) -> int:
        """The same, and the driver's own ones, for whoever looks often."""
        return len(self._waiting)

    async def stop(self, drain_s: float, reason: str = "the model is being unloaded") -> None:
        """Wait up to `drain_s` seconds for what is unanswered or still read, then stop the instances and fail what is left, for
        this reason.
        """
        self._take_arrivals()
        self._tell_lane(Closing(reason))
        if self._waiting or self._streams:
            self._idle = asyncio.Event()
            with suppress(TimeoutError):
                await asyncio.wait_for(self._idle.wait(), drain_s)
        if self._timer is not None:
            self._timer.cancel()
        self.expect_instance(-inf)
        stopping = list(self._instances.values())
        for instance in stopping:
            self.lose_instance(instance.name, reason)
        for stream in list(self._streams.values()):  # on instances that were retired
            stream.lose(_broken_off(reason))
        if self._taker is not None:
            self._taker.leave()
        self._recheck = self._reservoir = self._quarantine = None  # they keep requests
        await asyncio.gather(*(instance.stop() for instance in stopping))

    def running(self) -> Iterator[tuple[Run, list[Request]]]:
        """Batches that run, with their requests."""
        for number, flight in self._flights.items():
            if flight.result is None:
                rows = sum([request.ticket.rows for request in flight.requests])
                yield Run(number, flight.instance, rows, flight.reason, flight.dispatched_at, inf), flight.requests

    # Events

    def _take_arrivals(self) -> None:
        if self._inbox:
            arrived, self._inbox = self._inbox, []
            now = self._clock()
            if now - arrived[0].ticket.arrived_at > LATE_S and self._stats.exemplars is not None:
                self._stats.exemplars.heard_late(arrived, now)
            self._tell_lane(Arrived([request.ticket for request in arrived]), now)

    def _timer_fired(self) -> None:
        self._timer = None
        self._tell_lane(TimerFired())

    def _batch_done(self, batch_id: int, result: BatchResult) -> None:
        if result.rest is not None:
            self._first_part(batch_id, result, result.rest)
            return
        flight = self._flights.get(batch_id)
        if flight is not None:
            if self._signature.batched and result.error is None:
                result = self._attributed(flight.requests, result)
            flight.result = result
            if result.error is not None:
                now = self._clock()
                self._failure_log.batch_failed(flight.instance, flight.requests, result, now)
                self._run_failed(batch_id, flight, result.compute_s, result.error, now)
        self._finishing = True
        try:
            self._tell_lane(BatchDone(batch_id, result.batch_s + result.compute_s, result.error, result.failure, result.load))
        finally:
            self._finishing = False
        self._flights.pop(batch_id, None)
        if self._taker is not None:
            self._taker.end(batch_id, result.batch_s + result.compute_s)

    def _first_part(self, batch_id: int, result: BatchResult, rest: BatchRest) -> None:
        """As `_batch_done`, but the instance stays busy until the answers have ended or nobody reads on."""
        flight = self._flights.get(batch_id)
        if flight is None:
            rest.stop()
            return
        requests = flight.requests
        checked = self._checked(requests, result)
        if checked.error is not None:
            rest.stop()
            self._batch_done(batch_id, checked)
            return
        flight.result = result
        check, on_end = partial(self._checked, requests), partial(self._stream_ended, batch_id)
        stream = Stream(requests, self._signature, rest, check, on_end, self._stats, self._clock, result.compute_s)
        self._streams[batch_id] = stream
        for request in requests:
            waiting = self._waiting.get(request.ticket.id)
            if waiting is not None:
                self._waiting[request.ticket.id] = (request, FirstPartTo(waiting[1], stream, request))
        service_s = result.batch_s + result.compute_s
        self._tell_lane(FirstPart(batch_id, service_s))
        flight.result = None  # which has been handed out; the rest may take long
        if self._taker is not None:
            self._taker.first_part(batch_id, service_s)
        stream.handed_out()

    def _stream_ended(self, batch_id: int, result: BatchResult) -> None:
        self._streams.pop(batch_id, None)
        flight = self._flights.pop(batch_id)
        now = self._clock()
        if result.error is not None:
            self._failure_log.batch_failed(flight.instance, flight.requests, result, now)
        self._tell_lane(BatchDone(batch_id, now - flight.dispatched_at, result.error, result.failure))
        if self._taker is not None:
            self._taker.end(batch_id, now - flight.dispatched_at)

    def _checked(self, requests: Sequence[Request], result: BatchResult) -> BatchResult:
        return self._attributed(requests, result) if self._signature.batched else result

    def _attributed(self, requests: Sequence[Request], result: BatchResult) -> BatchResult:
        """The same if each request's rows can be told; else a failure, so that the lane runs the requests in smaller parts.

        One that is alone gets everything: that its output does not count rows is for the next batches to know.
        """
        longest = max([request.ticket.length for request in requests]) if len(requests) > 1 else 0
        why = why_uncut(self._signature, result.outputs, sum([request.ticket.rows for request in requests]), longest)
        if not why or (len(requests) == 1 and not self._signature.even):
            return result
        if self._recheck is not None:
            self._recheck.end(why, padded=self._pads and _differ_in_length(requests))
        return result if len(requests) == 1 else BatchResult([], result.compute_s, result.batch_s, why)

    def _run_failed(self, number: int, flight: _Flight, compute_s: float, error: str, now: float) -> None:
        rows = sum([request.ticket.rows for request in flight.requests])
        tickets = tuple([request.ticket.id for request in flight.requests])
        began_at = flight.dispatched_at
        self._stats.run_failed(
            FailedRun(number, flight.instance, rows, flight.reason, began_at, now - began_at, compute_s, error, tickets)
        )

    def _tell_lane(self, event: Event, now: float | None = None) -> None:
        if now is None:
            now = self._clock()
        self.last_event_at = now
        for command in self._lane_on(event, now):
            self._carry_out[type(command)](command)
        if not self._waiting:
            self._all_answered()

    def _all_answered(self) -> None:
        if self._idle is not None and not self._streams:
            self._idle.set()
        if self._idle_poll is not None:
            self._idle_poll.idle(self)

    # Commands

    def _dispatch(self, command: Dispatch) -> None:
        requests = [self._waiting[ticket.id][0] for ticket in command.tickets]
        if self._reservoir is not None and not self._reservoir.saw(requests[0]):
            self._reservoir = None
        now = self._clock()
        if self._taker is not None:
            self._taker.start(command.batch_id, now)
        self._flights[command.batch_id] = _Flight(requests, command.instance, now, command.reason)
        try:
            instance = self._instances[command.instance]
        except KeyError:  # it has died, which the lane hears next
            return
        done: Callable[[BatchResult], None] = partial(self._batch_done, command.batch_id)
        if self._runs is not None:
            done = self._runs.began(command, requests, instance, now, done)
        if instance.inline and self._finishing:  # sockets get a turn between two batches that block the loop
            self._loop.call_soon(instance.run, requests, done)
        else:
            instance.run(requests, done)

    def _complete(self, command: Complete) -> None:
        flight = self._flights[command.batch_id]
        result = flight.result
        assert result is not None
        split_at = self._clock()
        dispatched_at = flight.dispatched_at
        cutter = Cutter(self._signature, result.outputs, requests=len(flight.requests))
        self._loop.call_soon(self._stats.settle)  # when the replies have left, before whoever awaits one here goes on
        queued_s: list[float] = []
        padded, variant = self._pads and _differ_in_length(flight.requests), result.variant
        end = 0
        answer: tuple[Request, list[Tensor]] | None = None
        gone: list[Request] | None = None
        for request in flight.requests:
            ticket = request.ticket
            start, end = end, end + ticket.rows
            waiting = self._waiting.pop(ticket.id, None)
            if waiting is not None:  # else its client left while it ran, and it was rejected then
                queue_s = dispatched_at - ticket.arrived_at
                try:
                    outputs = cutter.cut(start, ticket.rows, request.outputs, ticket.length)
                except Exception as error:  # the model gave elements that are none of the declared type
                    self._failure_log.answer_failed(flight.instance, request, error, split_at)
                    self._fail(request, waiting[1], Failure(FailureKind.MODEL_FAILED, text_of(error)), "failed")
                    gone = [*(gone or ()), request]
                    continue
                if not padded or answer is None or ticket.length < answer[0].ticket.length:  # the most padded tells most
                    answer = request, outputs
                if not ticket.part_of:  # else it is counted when all of it is there
                    queued_s.append(queue_s)
                timing = Timing(queue_s, result.batch_s, result.compute_s)
                response = Response(request.id, self._model, self._version, outputs, timing)
                if variant:
                    response.variant = variant
                try:
                    waiting[1].completed(response)
                except Exception:
                    log.exception(
                        "model %s: could not hand over the answer to request %d", self._model, ticket.id, extra=request.named
                    )
            else:
                gone = [*(gone or ()), request]
        answered_at = self._clock()
        after_s, split_s = answered_at - dispatched_at, answered_at - split_at
        if not flight.requests[0].ticket.of_client:
            return
        recheck = None if variant else self._recheck  # another model's answers say nothing of this one
        if recheck is not None and answer is not None and len(flight.requests) > 1 and recheck.due(answered_at, padded=padded):
            recheck.ask_again(*answer, answered_at, padded=padded)
        if self._pads:
            self._stats.batch_padded([request.ticket for request in flight.requests])
        answered = flight.requests if gone is None else [request for request in flight.requests if request not in gone]
        batch = AnsweredBatch(end, queued_s, after_s, result.batch_s, result.compute_s, split_s)
        batch.number, batch.instance, batch.reason = command.batch_id, flight.instance, flight.reason
        batch.dispatched_at, batch.requests = dispatched_at, answered
        self._stats.batch_answered(batch)

    def _reject(self, command: Reject) -> None:
        request, reply = self._waiting.pop(command.ticket.id)
        if command.reason == "to_blame" and self._quarantine_s:
            log.error(
                "model %s: request %d is quarantined: %s",
                self._model,
                request.ticket.id,
                command.failure.message,
                extra=request.named,
            )
            self._quarantine = self._quarantine or Quarantine(self._quarantine_s, self._clock)
            self._quarantine.add(request)
        self._fail(request, reply, command.failure, command.reason)

    def _is_quarantined(self, quarantine: Quarantine, request: Request, reply: ReplyTo) -> bool:
        left_s = quarantine.left_s(request)
        if left_s:
            message = f"instances crashed while they ran this very input, so it is refused for {left_s:.0f} s (quarantine_s)"
            self._fail(request, reply, Failure(FailureKind.MODEL_FAILED, message), "quarantined")
        elif not quarantine:
            self._quarantine = None
        return left_s > 0.0

    def _fail(self, request: Request, reply: ReplyTo, failure: Failure, reason: str) -> None:
        if request.ticket.of_client and not request.ticket.part_of:
            now = self._clock()
            self._stats.failed(failure.kind, now - request.ticket.arrived_at)
            self._stats.lost(request, failure, reason, now)
        try:
            reply.failed(failure)
        except Exception:
            log.exception(
                "model %s: could not hand over the failure of request %d", self._model, request.ticket.id, extra=request.named
            )

    def _want_turn(self, command: WantTurn) -> None:
        assert self._taker is not None
        self._taker.want(command)

    def _pass_turn(self, command: PassTurn) -> None:
        if self._taker is not None:
            self._taker.pass_on()

    def _wake_at(self, command: WakeAt) -> None:
        if self._timer is not None:
            if self._wakes_at <= command.at:  # an inline batch ended, and asked for less, while these commands were under way
                return
            self._timer.cancel()
        self._wakes_at = command.at
        self._timer = self._loop.call_later(timer_delay_s(command.at, self._clock()), self._timer_fired)


def _broken_off(reason: str) -> Failure:
    return Failure(FailureKind.UNAVAILABLE, f"the answer breaks off: {reason}")


def _differ_in_length(requests: Sequence[Request]) -> bool:
    """Whether this batch was padded."""
    length = requests[0].ticket.length
    return any(request.ticket.length != length for request in requests)

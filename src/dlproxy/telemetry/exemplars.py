"""Requests that are worth looking at, kept with all that tells why they took so long: the slowest, those that failed, a sample,
and those that a door has noted. An Observer of each version of a model, in bounded rings.

Made by serve/assemble.py, asked by wire/control/why.py. Not aware of: which cause it was (policy/why.py), protocols.
"""

from bisect import insort
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import chain, islice
from math import inf
from statistics import median
from time import time
from typing import Any, Literal

from msgspec import Struct
from msgspec.structs import replace

from dlproxy.message import Failure, Request, Ticket
from dlproxy.policy.why import PHASES, Case, Comparison, Happening, Neighbour, Phase, Run, StepTook, causes, covered, overlap
from dlproxy.telemetry.journal import Journal, Notes
from dlproxy.telemetry.stats import AnsweredBatch, FailedRun, ModelStats
from dlproxy.telemetry.usual import Usual

WINDOW_S, WINDOWS, SLOWEST = 10.0, 60, 8
MOST_FAILED, MOST_SAMPLES, MOST_NOTED, MOST_RUNS = 256, 300, 256, 512
SAMPLE_S = 1.0
FULL_UP_TO = 16  # models that are kept track of with rings of that size; where there are more, each has its share of them
MOST_GONE = 8  # versions that are not served any more, and what is known of them for as long as of the slowest
MOST_SENDING = 256
MOST_COMPARED = 128  # runs that tell what is usual of one
NEIGHBOURS = 8  # runs and happenings that an exemplar keeps of each kind
FULL_FAILURES = 16  # a second, that are kept with all that went on then: under overload they come by the thousand
LATE_S = 0.002  # a request of which the lane heard so long after it had come: the event loop was busy

KeptAs = Literal["slow", "failed", "sample", "noted"]
Kept = AnsweredBatch | FailedRun


class Exemplar(Struct, eq=False, gc=False):
    """One request. `id`: our number of it; `request_id`: its client's name for it. It came at `at`, in seconds since the epoch,
    which is `arrived_at` by the driver's clock.
    """

    id: int
    request_id: str
    model: str
    version: str
    at: float
    arrived_at: float
    seconds: float
    requests: int
    case: Case
    failure: Failure | None = None
    reason: str = ""
    kept_as: KeptAs = "sample"

    @property
    def name(self) -> str:
        """Of its model, for whoever asks who may see that."""
        return self.model

    def told(self) -> dict[str, Any]:
        """JSON. Durations are in seconds."""
        case, run, failure = self.case, self.case.run, self.failure
        return {
            "id": str(self.id),
            "request_id": self.request_id,
            "model": self.model,
            "version": self.version,
            "at": round(self.at, 3),
            "seconds": round(self.seconds, 6),
            "outcome": "answered" if failure is None else "failed",
            "failure": failure and {"kind": failure.kind.value, "message": failure.message, "reason": self.reason},
            "kept_as": self.kept_as,
            "rows": case.rows,
            "batch": run
            and {
                "number": run.number,
                "rows": run.rows,
                "requests": self.requests,
                "instance": run.instance,
                "reason": run.reason,
            },
            "phases": {phase: round(case.phases[phase], 6) for phase in PHASES if phase in case.phases},
            "usual": {phase: round(case.usual[phase], 6) for phase in PHASES if phase in case.usual},
            "meanwhile": [{"kind": one.kind, "words": one.words, "at": round(one.began_at, 6)} for one in case.happenings],
            "causes": [
                {"kind": cause.kind, "seconds": round(cause.seconds, 6), "words": cause.words} for cause in causes(case)
            ],
        }


class _Refused(Struct, gc=False):
    """One of very many that failed: its context is theirs. `arrived_at`, `at`: by the driver's clock."""

    id: int
    request_id: str
    arrived_at: float
    at: float
    rows: int
    failure: Failure
    reason: str


def no_steps(ticket_id: int) -> tuple[StepTook, ...]:
    """Of a model that is no pipeline."""
    return ()


class Exemplars:
    """Those of one version of a model. `running`: its batches that run now, with their requests; `max_wait_s`: how long one may
    wait to fill; `steps`: of a pipeline, what they took of a request. They are asked only for requests that are kept.
    """

    def __init__(
        self,
        store: "ExemplarStore",
        name: str,
        version: str,
        stats: ModelStats,
        *,
        running: Callable[[], Iterable[tuple[Run, Sequence[Request]]]],
        max_wait_s: Callable[[], float] = float,
        steps: Callable[[int], tuple[StepTook, ...]] = no_steps,
        upstream: bool = False,
    ) -> None:
        self.name, self.version = name, version
        self._store, self._stats = store, stats
        self._running, self._max_wait_s, self._steps, self._upstream = running, max_wait_s, steps, upstream
        self._clock, self._notes = store.journal.clock, store.journal.notes
        self.runs: deque[Kept] = deque(maxlen=MOST_RUNS)
        self.windows: deque[list[Exemplar]] = deque([[]])
        self.failures: deque[Exemplar | _Refused] = deque()
        self.samples: deque[Exemplar] = deque()
        self.noted: deque[Exemplar] = deque()
        self._bar_s = -inf  # a request that took longer is one of the slowest of its window
        self._due_at = -inf  # when to look whatever it took: for a sample, and to begin another window
        self._sample_at = self._window_until = -inf
        self._full_failures, self._failures_until, self._most_failed = 0, -inf, MOST_FAILED
        self._split: dict[int, tuple[float, float]] = {}  # requests that came in parts, and what putting them together took
        self._late: deque[tuple[float, tuple[int, ...]]] = deque(maxlen=64)
        self._usual = Usual(stats)
        stats.exemplars = self
        stats.observers.append(self)
        stats.keep_above_s = -inf

    def __iter__(self) -> Iterator[Exemplar]:
        """Each once, in no order."""
        seen: dict[int, Exemplar] = {}
        rings: tuple[tuple[KeptAs, Iterable[Exemplar]], ...] = (
            ("sample", self.samples),
            ("slow", chain.from_iterable(self.windows)),
            ("noted", self.noted),
            ("failed", [one if isinstance(one, Exemplar) else self._whole(one) for one in self.failures]),
        )
        for kept_as, ring in rings:
            for exemplar in ring:
                exemplar.kept_as = kept_as
                seen[exemplar.id] = exemplar
        return iter(seen.values())

    # Observer

    def answered(self, batch: AnsweredBatch) -> None:
        self.runs.append(batch)
        queued_s = batch.queued_s
        late = queued_s and (queued_s[0] if len(queued_s) == 1 else max(queued_s)) + batch.after_s > self._bar_s
        if late or batch.dispatched_at > self._due_at or (self._notes and self._is_noted(batch)):
            self._look(batch)

    def _is_noted(self, batch: AnsweredBatch) -> bool:
        return not self._notes.keys().isdisjoint([request.ticket.id for request in batch.requests])

    def failed(self, request: Request, failure: Failure, reason: str, at: float) -> None:
        notes = self._notes.pop(request.ticket.id, None) if self._notes else None
        if self._split:
            self._split.pop(request.ticket.id, None)
        if at > self._failures_until:
            self._full_failures, self._failures_until = 0, at + SAMPLE_S
        self._full_failures += 1
        if self._full_failures > FULL_FAILURES:
            ticket, name = request.ticket, request.trace.request_id or request.id
            self.failures.append(_Refused(ticket.id, name, ticket.arrived_at, at, ticket.rows, failure, reason))
            if len(self.failures) > self._most_failed:
                self.failures.popleft()
            return
        case = self._case_of_failed(request, at, notes)
        case.failure, case.reason, case.message = failure.kind.value, reason, failure.message
        exemplar = self._made(request, case)
        exemplar.failure, exemplar.reason = failure, reason
        self._most_failed = self._add(self.failures, exemplar, MOST_FAILED)

    def forgive(self, request: Request) -> None:
        """It has an answer after all."""
        for one in self.failures:
            if one.id == request.ticket.id:
                self.failures.remove(one)
                return

    # What else ModelStats tells

    def run_failed(self, run: FailedRun) -> None:
        self.runs.append(run)

    def heard_late(self, requests: Sequence[Request], now: float) -> None:
        """The lane has heard of these just now, more than LATE_S after the first of them had come."""
        self._late.append((now, tuple([request.ticket.id for request in requests])))

    def remembered(self, request: Request, seconds: float, leader: int) -> None:
        """It has the answer of another request's run, or of one long ago."""
        now = self._clock()
        if now > self._due_at:
            self._roll(now)
        if seconds > self._bar_s:
            notes = self._notes.pop(request.ticket.id, None)
            case = Case(self.name, {**_before(notes), "cache": seconds}, self._usual.phases(now), request.ticket.rows)
            case.joined = leader
            case.happenings = self._happenings(request.ticket.arrived_at, now, request.ticket.arrived_at)
            self._enter(self._made(request, case), notes)

    def gathered(self, request: Request, split_s: float, seconds: float) -> None:
        """All parts of it are there, the last of them from a batch that is counted next."""
        self._split[request.ticket.id] = split_s, seconds
        self._due_at = -inf

    def close(self) -> None:
        """It is not served any more: what was kept stays, and nothing else of it."""
        self._stats.observers.remove(self)
        self._stats.exemplars, self._stats.keep_above_s = None, inf
        self._running, self._max_wait_s, self._steps = tuple, float, no_steps  # no driver is kept alive
        self._stats = ModelStats()
        self._usual = Usual(self._stats)
        self.runs.clear()

    # Which are kept

    def _look(self, batch: AnsweredBatch) -> None:
        at = batch.dispatched_at + batch.after_s
        if batch.dispatched_at > self._due_at:
            self._roll(at)
        sample = at >= self._sample_at
        waits_s = iter(batch.queued_s)
        for request in batch.requests:
            ticket, split_s = request.ticket, batch.split_s
            if not ticket.part_of:
                seconds = next(waits_s) + batch.after_s
            elif ticket.part_of in self._split:
                split_s, seconds = self._split.pop(ticket.part_of)
            else:
                continue
            notes = self._notes.pop(ticket.part_of or ticket.id, None) if self._notes else None
            if notes is not None:
                seconds += sum(notes.phases.values())
            if sample or seconds > self._bar_s or (notes is not None and notes.keep):
                exemplar = self._made(request, self._case_of_answered(request, batch, notes, seconds, split_s))
                exemplar.requests = len(batch.queued_s)
                if sample:
                    self._sample(exemplar, at)
                    sample = False
                self._enter(exemplar, notes)

    def _sample(self, exemplar: Exemplar, at: float) -> None:
        self._sample_at = at + SAMPLE_S
        self._due_at = min(self._sample_at, self._window_until)
        self._add(self.samples, exemplar, MOST_SAMPLES)
        self._usual.sampled(exemplar.case)

    def _enter(self, exemplar: Exemplar, notes: Notes | None) -> None:
        if notes is not None and notes.keep:
            self._add(self.noted, exemplar, MOST_NOTED)
            if notes.sending:
                self._store.await_sent(exemplar)
        window = self.windows[-1]
        if exemplar.seconds > self._bar_s:
            insort(window, exemplar, key=_seconds)
            if len(window) > SLOWEST:
                del window[0]
            if len(window) == SLOWEST:
                self._bar_s = self._stats.keep_above_s = window[0].seconds

    def _roll(self, at: float) -> None:
        """Another window, where the last one is over."""
        if at >= self._window_until:
            self._window_until = at + WINDOW_S
            self._store.forget_old(at)
            self._bar_s = self._stats.keep_above_s = -inf
            self.windows.append([])
            while len(self.windows) > max(round(WINDOWS * self._store.share), 1):
                self.windows.popleft()
            most = max(round(MOST_RUNS * self._store.share), NEIGHBOURS)
            if self.runs.maxlen != most:
                self.runs = deque(self.runs, maxlen=most)
        self._due_at = min(self._sample_at, self._window_until)

    def _add(self, ring: deque[Any], exemplar: Exemplar, most: int) -> int:
        """How many the ring may have."""
        most = max(round(most * self._store.share), NEIGHBOURS)
        ring.append(exemplar)
        while len(ring) > most:
            ring.popleft()
        return most

    # What is kept of one

    def _made(self, request: Request, case: Case) -> Exemplar:
        ticket, name = request.ticket, request.trace.request_id or request.id
        return self._named(ticket.part_of or ticket.id, name, ticket.arrived_at, case)

    def _named(self, number: int, name: str, arrived_at: float, case: Case) -> Exemplar:
        at = time() - (self._clock() - arrived_at)
        return Exemplar(number, name, self.name, self.version, at, arrived_at, sum(case.phases.values()), 1, case)

    def _whole(self, one: _Refused) -> Exemplar:
        case = Case(self.name, {"queue": one.at - one.arrived_at}, {}, one.rows)
        case.failure, case.reason, case.message = one.failure.kind.value, one.reason, one.failure.message
        exemplar = self._named(one.id, one.request_id, one.arrived_at, case)
        exemplar.failure, exemplar.reason = one.failure, one.reason
        return exemplar

    def _case_of_answered(
        self, request: Request, batch: AnsweredBatch, notes: Notes | None, seconds: float, split_s: float
    ) -> Case:
        ticket = request.ticket
        phases = _before(notes)
        sent_s = phases.pop("send", 0.0)
        at = seconds - sum(phases.values()) - sent_s
        waited_s = batch.dispatched_at - ticket.arrived_at
        earlier = tuple([run for run in self._earlier(ticket, batch.number) if run.began_at < waited_s])
        self._share_out(phases, ticket, waited_s, earlier)
        compute_s = min(batch.compute_s, max(at - waited_s - split_s, 0.0))
        phases["batch"] = max(at - waited_s - compute_s - split_s, 0.0)
        phases["compute"], phases["split"] = compute_s, split_s
        if sent_s:
            phases["send"] = sent_s
        case = self._case(request, phases, _run(batch, ticket.arrived_at), earlier, waited_s, at)
        case.comparison = self._compared(batch)
        return case

    def _case_of_failed(self, request: Request, at: float, notes: Notes | None) -> Case:
        ticket = request.ticket
        phases = _before(notes)
        earlier = self._earlier(ticket, -1)
        run = earlier[-1] if earlier else None
        ended_s = at - ticket.arrived_at
        waited_s = ended_s if run is None else min(run.began_at, ended_s)
        self._share_out(phases, ticket, waited_s, earlier[:-1])
        if run is not None:
            phases["compute"] = min(run.compute_s or ended_s, ended_s - waited_s)
            phases["batch"] = ended_s - waited_s - phases["compute"]
        return self._case(request, phases, run, earlier[:-1], waited_s, ended_s)

    def _share_out(self, phases: dict[Phase, float], ticket: Ticket, waited_s: float, earlier: Sequence[Run]) -> None:
        """The time until it ran: the lane had not heard of it, a run gave it no answer, it was queued."""
        before_s = phases.get("cache", 0.0)
        heard = next((at for at, tickets in reversed(self._late) if ticket.id in tickets), None)
        heard_s = before_s if heard is None else min(max(heard - ticket.arrived_at, before_s), waited_s)
        first_s = max(min([run.began_at for run in earlier], default=waited_s), heard_s)
        if heard_s > before_s:
            phases["check"] = heard_s - before_s
        if waited_s > first_s:
            phases["earlier_run"] = waited_s - first_s
        if first_s > heard_s:
            phases["queue"] = first_s - heard_s

    def _case(
        self,
        request: Request,
        phases: dict[Phase, float],
        run: Run | None,
        earlier: tuple[Run, ...],
        waited_s: float,
        at: float,
    ) -> Case:
        """It waited for `waited_s` after it had arrived, and was answered after `at` seconds."""
        ticket = request.ticket
        arrived_at = ticket.arrived_at
        case = Case(self.name, phases, self._usual.phases(self._clock()), ticket.whole_rows or ticket.rows, ticket.length, run)
        case.earlier, case.max_wait_s, case.upstream = earlier, self._max_wait_s(), self._upstream
        case.steps = self._steps(ticket.id)
        case.in_sequence = request.sequence is not None
        known = {one.number for one in earlier} | {-1 if run is None else run.number}
        ahead = [one for one in self._since(arrived_at) if one.began_at < waited_s and one.number not in known]
        case.ahead_batches = len(ahead)
        case.ahead_s = covered(ahead, 0.0, waited_s)
        case.ahead = tuple(sorted(ahead, key=lambda one: -overlap(one.began_at, one.ended_at, 0.0, waited_s))[:NEIGHBOURS])
        if len(self.runs) == self.runs.maxlen:
            case.known_since = self.runs[0].dispatched_at - arrived_at
        case.neighbours = tuple(self._store.neighbours(self, arrived_at, waited_s, at))
        begins = arrived_at - sum([phases.get(phase, 0.0) for phase in ("receive", "load")])
        case.happenings = self._happenings(begins, arrived_at + at, arrived_at)
        return case

    def _since(self, at: float) -> Iterator[Run]:
        """Runs that went on after that, on the clock of a request that arrived then, newest first."""
        for run, _ in self._running():
            yield replace(run, began_at=run.began_at - at, ended_at=inf)
        for kept in reversed(self.runs):
            if kept.dispatched_at + kept.after_s < at:
                return
            yield _run(kept, at)

    def _earlier(self, ticket: Ticket, number: int) -> tuple[Run, ...]:
        """Runs of this ticket that gave it no answer, and are not the batch of this number, oldest first."""
        at = ticket.arrived_at
        found = [
            replace(run, began_at=run.began_at - at, ended_at=inf)
            for run, requests in self._running()
            if run.number != number and any(request.ticket.id == ticket.id for request in requests)
        ]
        for kept in reversed(self.runs):
            if kept.dispatched_at + kept.after_s < at:
                break
            if type(kept) is FailedRun and ticket.id in kept.tickets:
                found.append(_run(kept, at))
        return tuple(sorted(found, key=lambda run: run.began_at))

    def _compared(self, batch: AnsweredBatch) -> Comparison:
        """With the newest runs of about its size."""
        here: list[float] = []
        others: list[float] = []
        sizes, before = [], 0
        for kept in islice(reversed(self.runs), MOST_COMPARED):
            sizes.append(kept.rows)
            if type(kept) is FailedRun:
                continue
            before += kept.instance == batch.instance and kept is not batch
            if batch.rows <= 2 * kept.rows <= 4 * batch.rows:
                (here if kept.instance == batch.instance else others).append(kept.compute_s)
        rows, length = self._usual.sizes()
        return Comparison(_share(here, 0.25, least=2), _share(others, 0.75, least=3), before, rows, length, median(sizes))

    def _happenings(self, begins: float, ends: float, arrived_at: float) -> tuple[Happening, ...]:
        found = [
            Happening(one.kind, one.words, one.began_at - arrived_at, one.ended_at - arrived_at, one.model, one.subject)
            for one in self._store.journal.since(begins)
            if one.began_at <= ends
        ]
        return tuple(sorted(found, key=lambda one: one.began_at - min(one.ended_at, ends))[:NEIGHBOURS])

    def newest(self) -> Iterator[Exemplar]:
        """Each once: what was kept in the last seconds, and perhaps more."""
        rings = [reversed(ring) for ring in (self.samples, self.noted, self.failures)]
        kept = chain(*list(self.windows)[-2:], *[islice(ring, NEIGHBOURS) for ring in rings])
        return iter({one.id: one for one in kept if isinstance(one, Exemplar)}.values())

    def overlapping(self, arrived_at: float, at: float) -> list[Run]:
        """Its runs that went on while a request of another model was under way, on that one's clock."""
        newest = self.runs[-1] if self.runs else None
        if newest is None or newest.dispatched_at + newest.after_s < arrived_at:  # most models are at rest
            found = [replace(run, began_at=run.began_at - arrived_at, ended_at=inf) for run, _ in self._running()]
        else:
            found = list(self._since(arrived_at))
        return [replace(run, model=self.name) for run in found if run.began_at < at]


class ExemplarStore:
    """Those of all models of one process, and of some that are not served any more."""

    def __init__(self, journal: Journal | None = None) -> None:
        self.journal = Journal() if journal is None else journal
        self.journal.on_sent, self.journal.on_late = self._sent, self._late
        self._models: list[Exemplars] = []
        self._gone: deque[tuple[float, Exemplars]] = deque(maxlen=MOST_GONE)  # with when they went
        self._sending: dict[int, Exemplar] = {}

    @property
    def share(self) -> float:
        """How much of its rings each model has, where there are many."""
        return min(FULL_UP_TO / max(len(self._models), 1), 1.0)

    def add(self, exemplars: Exemplars) -> None:
        self._models.append(exemplars)

    def remove(self, exemplars: Exemplars) -> None:
        """It is not served any more. What was slow while another took its place is told for a while."""
        if exemplars in self._models:
            self._models.remove(exemplars)
            self._gone.append((self.journal.clock(), exemplars))
            exemplars.close()

    def __iter__(self) -> Iterator[Exemplar]:
        self.forget_old(self.journal.clock())
        for exemplars in (*(gone for _, gone in self._gone), *self._models):
            yield from exemplars

    def forget_old(self, now: float) -> None:
        self.journal.forget_old()
        while self._gone and self._gone[0][0] < now - WINDOWS * WINDOW_S:
            self._gone.popleft()

    def neighbours(self, of: Exemplars, arrived_at: float, waited_s: float, at: float) -> list[Neighbour]:
        """Other models whose batches ran meanwhile, those that ran longest first."""
        found = []
        for exemplars in self._models:
            runs = [] if exemplars is of else exemplars.overlapping(arrived_at, at)
            if runs:
                longest = max(runs, key=lambda run: overlap(run.began_at, run.ended_at, 0.0, at))
                waiting_s, running_s = covered(runs, 0.0, waited_s), covered(runs, waited_s, at)
                found.append(Neighbour(exemplars.name, len(runs), waiting_s, running_s, longest))
        return sorted(found, key=lambda one: -one.waiting_s - one.running_s)[:NEIGHBOURS]

    def await_sent(self, exemplar: Exemplar) -> None:
        """Its client does not have all of the answer yet."""
        if len(self._sending) >= MOST_SENDING:
            del self._sending[next(iter(self._sending))]
        self._sending[exemplar.id] = exemplar

    def _late(self, happening: Happening) -> None:
        """What was kept just before is told of it, too."""
        for exemplar in chain.from_iterable([exemplars.newest() for exemplars in self._models]):
            began_at, ended_at = happening.began_at - exemplar.arrived_at, happening.ended_at - exemplar.arrived_at
            if began_at < exemplar.seconds and ended_at > 0.0 and len(exemplar.case.happenings) < NEIGHBOURS:
                exemplar.case.happenings += (replace(happening, began_at=began_at, ended_at=ended_at),)

    def _sent(self, ticket_id: int, seconds: float) -> None:
        exemplar = self._sending.pop(ticket_id, None)
        if exemplar is not None:
            exemplar.case.phases["send"] = seconds
            exemplar.seconds += seconds


def _before(notes: Notes | None) -> dict[Phase, float]:
    """The phases that doors have noted."""
    return {} if notes is None else dict(notes.phases)


def _run(kept: Kept, arrived_at: float) -> Run:
    """On the clock of a request that arrived then."""
    began_at = kept.dispatched_at - arrived_at
    error = kept.error if type(kept) is FailedRun else ""
    return Run(kept.number, kept.instance, kept.rows, kept.reason, began_at, began_at + kept.after_s, kept.compute_s, error)


def _share(seconds: Sequence[float], share: float, *, least: int) -> float:
    """What this share of them is below; 0 of fewer: they tell nothing."""
    return sorted(seconds)[int(share * (len(seconds) - 1))] if len(seconds) >= least else 0.0


def _seconds(exemplar: Exemplar) -> float:
    return exemplar.seconds

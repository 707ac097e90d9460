"""Why a request was slow, or failed: the seconds that each possible cause explains, beyond what is usual, the largest first.

Called by telemetry/exemplars.py with what it has kept of a request. Not aware of: clocks, rings, how a request was chosen.
"""

from collections.abc import Iterable, Mapping, Sequence
from math import inf
from typing import Literal

from msgspec import Struct

Phase = Literal["receive", "load", "check", "cache", "earlier_run", "queue", "batch", "compute", "split", "send"]
PHASES: tuple[Phase, ...] = ("receive", "load", "cache", "check", "queue", "earlier_run", "batch", "compute", "split", "send")
"""In the order in which a request goes through them; each may be left out. Until it has arrived: its body comes bit by bit, it
waits for a model that is loaded on demand. Then: its answer may be known or on its way, the lane has not heard of it, it is
queued, a run gives it no answer. Then its batch: handed over, computed, cut apart and encoded, taken by the client."""

BEFORE: tuple[Phase, ...] = ("receive", "load")
RUN: tuple[Phase, ...] = ("batch", "compute", "split")
OVERLOAD = frozenset({"queue_full", "displaced", "adaptive_limit", "predicted_late", "stages"})
OUT_OF_TIME = frozenset({"expired", "early_drop", "client_deadline", "codel"})
LARGE = 2.0  # times what is usual: rows of a batch or a request, the time that a batch takes
SLOWER = 1.5  # times what is usual of a phase; or times what other instances take for batches of about the same size
FEW = 4  # batches that ran before; if more did, it is their number that matters
LEAST_SHARE, LEAST_S = 0.05, 1e-4  # of the request's time, and seconds: what explains less is no cause

HappeningKind = Literal["gc", "host", "start", "instance", "load", "unload", "knobs"]
CauseKind = Literal[
    "gc",
    "cold_start",
    "version_swap",
    "retry",
    "hedge",
    "busy_machine",
    "heavy_neighbour",
    "large_batch_ahead",
    "slow_batch_ahead",
    "queue",
    "fill",
    "large_batch",
    "unusual_input",
    "slow_instance",
    "upstream_stall",
    "stage",
    "sequence",
    "shared_run",
    "cache",
    "slow_client",
    "check",
    "busy_loop",
    "compute",
    "answer",
    "quota",
    "no_instance",
    "failed",
    "cancelled",
    "bad_request",
]


class Run(Struct, frozen=True, gc=False):
    """A batch of `model`; its instants are on the clock of a case, or the driver's. `ended_at`: inf while it runs."""

    number: int
    instance: str
    rows: int
    reason: str
    began_at: float
    ended_at: float
    compute_s: float = 0.0
    error: str = ""
    model: str = ""


class Happening(Struct, gc=False):
    """What went on from `began_at` to `ended_at` (inf: it does still), in words. `subject`: the instance that it is about."""

    kind: HappeningKind
    words: str
    began_at: float
    ended_at: float
    model: str = ""
    subject: str = ""


class Cause(Struct, frozen=True, gc=False):
    """What explains so many seconds of a request's time."""

    kind: CauseKind
    seconds: float
    words: str


class Neighbour(Struct, frozen=True, gc=False):
    """Another model, whose `batches` ran while the request waited, for `waiting_s`, and while it ran, for `running_s`."""

    model: str
    batches: int
    waiting_s: float
    running_s: float
    longest: Run


class StepTook(Struct, frozen=True, gc=False):
    """A step of a pipeline, which waited and computed for so long, and usually does for so long."""

    name: str
    waited_s: float
    computed_s: float
    usual_waited_s: float
    usual_computed_s: float


class Comparison(Struct, frozen=True, gc=False):
    """What batches of about its size compute: three quarters of those on its instance, itself included, take longer than
    `here_s`, three quarters of those on others no longer than `others_s`; 0: too few to tell. `before`: batches that ran on the
    instance before. `rows`, `length`: of most requests. `batch_rows`: of most batches.
    """

    here_s: float = 0.0
    others_s: float = 0.0
    before: int = 0
    rows: float = 1.0
    length: float = 1.0
    batch_rows: float = 1.0


class Case(Struct, gc=False):
    """All that is known of one request. Instants are seconds since it arrived: below 0 is before, as its body came.

    `usual`: what the phases take of most requests. `run`: the batch that it was in; `earlier`: runs of it that gave no answer.
    `ahead`: batches of its model that ran while it waited, the longest of `ahead_batches`, which together ran for `ahead_s`.
    `known_since`: what ran before is not known. `max_wait_s`: how long a batch may wait to fill. `joined`: whose run it shared.
    """

    model: str
    phases: dict[Phase, float]
    usual: dict[Phase, float]
    rows: int = 1
    length: int = 1
    run: Run | None = None
    earlier: tuple[Run, ...] = ()
    ahead: tuple[Run, ...] = ()
    ahead_batches: int = 0
    ahead_s: float = 0.0
    known_since: float = -inf
    neighbours: tuple[Neighbour, ...] = ()
    happenings: tuple[Happening, ...] = ()
    comparison: Comparison = Comparison()
    steps: tuple[StepTook, ...] = ()
    max_wait_s: float = 0.0
    upstream: bool = False
    in_sequence: bool = False
    joined: int = 0
    failure: str = ""
    reason: str = ""
    message: str = ""


def causes(case: Case) -> list[Cause]:
    """The largest first; none if it took no longer than is usual. What says why a request failed comes before all others,
    unless it failed for the time that it took.
    """
    found = _Excess(case).causes()
    if not case.failure or (found and case.reason in OUT_OF_TIME):
        return found
    seconds = sum(case.phases.values())
    return [Cause(_why_failed(case), seconds, case.message), *found]


def _why_failed(case: Case) -> CauseKind:
    if case.failure == "quota":
        return "quota"
    if case.failure == "cancelled":
        return "cancelled"
    if case.reason in OVERLOAD or case.reason in OUT_OF_TIME:
        return "queue"
    if case.failure == "unavailable":
        return "no_instance"
    return "bad_request" if case.failure in ("invalid_argument", "unsupported", "too_large", "not_found") else "failed"


class _Excess:
    """What of each phase is beyond the usual and not explained yet. Whoever comes first in `causes` explains all that it can:
    what is known for certain before what is likely.
    """

    def __init__(self, case: Case) -> None:
        self.case = case
        self.total_s = sum(case.phases.values())
        self.usual = dict(case.usual)
        others_s = case.comparison.others_s
        if others_s:  # half of the batches may have run on an instance that is slow
            self.usual["compute"] = min(self.usual.get("compute", 0.0), others_s)
        self.left = {phase: self._beyond(phase) for phase in PHASES}
        self.found: list[Cause] = []
        self.spans = _spans(case.phases)
        self.waited_s = self.spans["batch"][0]

    def _beyond(self, phase: Phase) -> float:
        seconds, usual_s = self.case.phases.get(phase, 0.0), self.usual.get(phase, 0.0)
        return seconds - usual_s if seconds > SLOWER * usual_s else 0.0

    def causes(self) -> list[Cause]:
        self._collections()
        self._cold_start()
        self._second_runs()
        self._queued()
        self._ran()
        self._before_the_lane()
        self._client()
        least_s = max(LEAST_SHARE * self.total_s, LEAST_S)
        return sorted([cause for cause in self.found if cause.seconds >= least_s], key=lambda cause: -cause.seconds)

    def take(self, kind: CauseKind, seconds: float, words: str, *phases: Phase) -> None:
        """It explains so much of what is left of these, the first of them first."""
        taken_s = 0.0
        for phase in phases:
            part_s = min(self.left[phase], seconds - taken_s)
            if part_s > 0.0:
                self.left[phase] -= part_s
                taken_s += part_s
        if taken_s > 0.0:
            self.found.append(Cause(kind, taken_s, words))

    def _lasted(self, one: Run | Happening) -> str:
        """Until the request ended, if it goes on still."""
        return in_words(max(min(one.ended_at, self.spans["send"][1]) - one.began_at, 0.0))

    # What happened to the whole process, or to all of the model

    def _collections(self) -> None:
        for one in self.case.happenings:
            if one.kind == "gc":
                words = f"{one.words} for {self._lasted(one)}"
                self._overlapping("gc", one, words, PHASES)

    def _overlapping(self, kind: CauseKind, one: Happening, words: str, phases: Sequence[Phase]) -> None:
        """It explains, of each of these phases, the time in which it went on. Those of a batch are not told apart."""
        of_run = [phase for phase in phases if phase in RUN]
        parts: list[tuple[tuple[float, float], tuple[Phase, ...]]] = [
            (self.spans[phase], (phase,)) for phase in phases if phase not in RUN
        ]
        parts += [((self.waited_s, self.spans["split"][1]), tuple(of_run))] if of_run else []
        before = len(self.found)
        for (begins, ends), within in parts:
            self.take(kind, overlap(one.began_at, one.ended_at, begins, ends), words, *within)
        if len(self.found) > before:
            self.found[before:] = [Cause(kind, sum([cause.seconds for cause in self.found[before:]]), words)]

    def _machine(self) -> None:
        """Other processes, as long as threads of this one waited for cores; the request may have been in that time or not."""
        for one in self.case.happenings:
            if one.kind == "host":
                self._overlapping("busy_machine", one, one.words, ("check", *RUN))

    def _cold_start(self) -> None:
        case = self.case
        self.take("cold_start", inf, "the model was not loaded: the request had it loaded, and waited for that", "load")
        for one in case.happenings:
            if one.kind == "instance" and one.model == case.model and one.words.endswith("came up"):
                up_at = one.began_at
                if 0.0 < up_at <= self.waited_s and all(run.began_at >= up_at for run in case.ahead):
                    words = f"no instance was up: {one.subject} came up {in_words(up_at)} after the request"
                    self.take("cold_start", up_at, words, "queue", "check")

    def _second_runs(self) -> None:
        case, run = self.case, self.case.run
        if not case.earlier:
            return
        first = case.earlier[0]
        after = f" again, on {run.instance}" if run is not None else " again"
        if first.error:
            took = self._lasted(first)
            words = f"it ran on {first.instance} first, which failed after {took} ({first.error}), and then{after}"
            self.take("retry", inf, words, "earlier_run")
        else:
            late_s = case.phases.get("earlier_run", 0.0)
            words = f"its batch was late on {first.instance}, so that it ran{after} after {in_words(late_s)}"
            self.take("hedge", inf, words, "earlier_run")

    def _swaps(self) -> None:
        for one in self.case.happenings:
            if one.kind == "load":
                self._overlapping("version_swap", one, f"{one.words} meanwhile", ("check", "queue", *RUN))

    # Until its batch began

    def _queued(self) -> None:
        case, run = self.case, self.case.run
        begins, ends = self.spans["queue"]
        turn = run is not None and run.reason == "turn"
        idle_s = max(ends - begins - case.ahead_s, 0.0)
        self._neighbours(inf if turn else idle_s, "waiting_s", "queue", "check")
        large = [one for one in case.ahead if one.rows >= LARGE * case.comparison.batch_rows]
        if large:
            one = large[0]
            took = self._lasted(one)
            usually = f"most have {case.comparison.batch_rows:.3g}"
            batch = f"batch {one.number} of {_count(one.rows, 'row')} ({usually})"
            words = f"it waited behind {batch}, which took {took} on {one.instance}"
            self.take("large_batch_ahead", covered(large, begins, ends), words, "queue")
        self._swaps()
        if case.max_wait_s and not turn:
            words = f"the batch waited to fill, as max_wait = {in_words(case.max_wait_s)} lets it"
            self.take("fill", min(idle_s, case.max_wait_s), words, "queue")
        usual_s = self.usual.get("compute", 0.0) + self.usual.get("batch", 0.0)
        slow = [one for one in case.ahead if one.ended_at - one.began_at >= LARGE * usual_s]
        if slow and case.ahead_batches <= FEW:
            one = slow[0]
            took = f"took {self._lasted(one)} on {one.instance}, usually {in_words(usual_s)}"
            words = f"it waited behind batch {one.number} of {_count(one.rows, 'row')}, which {took}"
            self.take("slow_batch_ahead", covered(slow, begins, ends), words, "queue")
        ran = f"{_count(case.ahead_batches, 'batch', 'batches')} of its model ran before it"
        ran = ran if case.ahead_batches else "it is not known what for"
        words = f"it was queued for {in_words(ends - begins)}: {ran}"
        self.take("queue", inf, words, "queue")

    def _neighbours(self, most_s: float, when: Literal["waiting_s", "running_s"], *phases: Phase) -> None:
        for one in self.case.neighbours:
            seconds = one.waiting_s if when == "waiting_s" else one.running_s
            longest = one.longest
            took, rows = self._lasted(longest), _count(longest.rows, "row")
            batch = f"one of {rows} for {took}" if one.batches > 1 else f"of {rows}, for {took}"
            count = f"{one.batches} batches, {batch}" if one.batches > 1 else f"a batch {batch}"
            words = f"model {one.model} used the cores meanwhile: {count}"
            self.take("heavy_neighbour", min(seconds, most_s), words, *phases)

    def _before_the_lane(self) -> None:
        case = self.case
        if case.joined:
            self.take("shared_run", inf, f"request {case.joined} asked the same: it waited for that one's run", "cache")
        self.take("cache", inf, "it waited to hear whether another node knows the answer", "cache")
        if case.in_sequence:
            self.take("sequence", inf, "it waited for the request of its sequence that came before", "check", "queue")
        words = "reading and checking it, and whatever else the event loop did, kept it from the model's queue"
        self.take("check", inf, words, "check")

    # While its batch ran

    def _ran(self) -> None:
        case, run, than = self.case, self.case.run, self.case.comparison
        self._steps()
        if run is None:
            return
        computed = f"{in_words(case.phases.get('compute', 0.0))}, usually {in_words(self.usual.get('compute', 0.0))}"
        if case.rows >= LARGE * than.rows:
            self.take("unusual_input", inf, f"it has {case.rows} rows, most requests have {than.rows:.3g}", "compute")
        elif case.length >= LARGE * than.length:
            words = f"each row of it has {case.length} elements, most requests' have {than.length:.3g}"
            self.take("unusual_input", inf, words, "compute")
        elif run.rows >= LARGE * than.batch_rows:
            words = f"its batch had {run.rows} rows, most have {than.batch_rows:.3g}: it took {computed}"
            self.take("large_batch", inf, words, "compute")
        elif than.here_s >= SLOWER * than.others_s > 0.0:
            words = f"{run.instance} is slow: {in_words(than.here_s)} a batch, others need {in_words(than.others_s)}"
            self.take("slow_instance", inf, words, "compute")
        elif not than.before and case.known_since == -inf:
            self.take("cold_start", inf, f"it was in the first batch of {run.instance}: {computed}", "compute")
        if case.upstream:
            words = f"the other server ({run.instance}) took {computed}"
            self.take("upstream_stall", inf, words, "compute", "batch")
        self._machine()
        if not case.steps:  # which are others' batches
            self._neighbours(inf, "running_s", "compute", "batch")
        self.take("compute", inf, f"the model computed for {computed}, and nothing else is known to have gone on", "compute")
        words = f"{in_words(case.phases.get('batch', 0.0))} went into handing the batch over and hearing of its end"
        self.take("busy_loop", inf, words, "batch")
        took = f"{in_words(case.phases.get('split', 0.0))}, usually {in_words(self.usual.get('split', 0.0))}"
        words = f"cutting its batch's answers apart, encoding and writing them took {took}"
        self.take("answer", inf, words, "split")

    def _steps(self) -> None:
        beyond = {one: (one.waited_s - one.usual_waited_s, one.computed_s - one.usual_computed_s) for one in self.case.steps}
        for one, (waited_s, computed_s) in sorted(beyond.items(), key=lambda pair: -sum(pair[1])):
            took = f"waited {in_words(one.waited_s)} and computed {in_words(one.computed_s)}"
            usually = f"usually {in_words(one.usual_waited_s)} and {in_words(one.usual_computed_s)}"
            seconds = max(waited_s, 0.0) + max(computed_s, 0.0)
            self.take("stage", seconds, f"step '{one.name}' {took}, {usually}", "compute", "batch")

    def _client(self) -> None:
        case = self.case
        slow: tuple[tuple[Phase, str], ...] = (
            ("receive", "its body came bit by bit"),
            ("send", "the client took its answer slowly"),
        )
        for phase, what in slow:
            words = f"{what}: that took {in_words(case.phases.get(phase, 0.0))}"
            self.take("slow_client", inf, words, phase)


def overlap(begins: float, ends: float, other_begins: float, other_ends: float) -> float:
    """Seconds that both spans have in common."""
    return max(min(ends, other_ends) - max(begins, other_begins), 0.0)


def covered(runs: Iterable[Run], begins: float, ends: float) -> float:
    """Seconds between these in which at least one of the runs went on."""
    seconds, reached = 0.0, begins
    for run in sorted(runs, key=lambda run: run.began_at):
        ended_at = min(run.ended_at, ends)
        if ended_at > reached:
            seconds += max(ended_at - max(run.began_at, reached), 0.0)
            reached = ended_at
    return seconds


def _count(number: int, one: str, more: str = "") -> str:
    return f"{number} {one}" if number == 1 else f"{number} {more or one + 's'}"


def in_words(seconds: float) -> str:
    """A duration, to three digits."""
    if seconds >= 1.0:
        return f"{seconds:.3g} s"
    return f"{seconds * 1e3:.3g} ms" if seconds >= 1e-3 else f"{seconds * 1e6:.3g} µs"


def _spans(phases: Mapping[Phase, float]) -> dict[Phase, tuple[float, float]]:
    """Begin and end of each on the clock of its case."""
    at = -sum([phases.get(phase, 0.0) for phase in BEFORE])
    spans: dict[Phase, tuple[float, float]] = {}
    for phase in PHASES:
        ends = at + phases.get(phase, 0.0)
        spans[phase], at = (at, ends), ends
    return spans

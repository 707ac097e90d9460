"""Plain counters of one model, written by serve/driver.py once per batch and by fleet/roster.py, read by the metrics page and
the OIP statistics.

Not aware of: Prometheus, JSON. Durations are kept in seconds.
"""

from bisect import bisect_left
from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence
from math import inf
from time import time
from typing import TYPE_CHECKING, Literal, Protocol, get_args

from msgspec import Struct

from dlproxy.message import Failure, FailureKind, Request, Ticket, Timing
from dlproxy.policy.events import DispatchReason
from dlproxy.policy.queueing import LOWEST_LEVEL

if TYPE_CHECKING:
    from dlproxy.telemetry.exemplars import Exemplars

InstanceState = Literal["up", "starting", "waiting", "lost"]
InstanceChange = Literal["up", "lost", "retired", "failed_to_start"]

NEWEST = 32  # runs of a step that tell how long it usually takes
MOST_PLACES = 64  # that parts are told apart by: an answer may have any number
BOUNDS_S = (
    *(1e-5, 2.5e-5, 5e-5, 1e-4, 2.5e-4, 5e-4, 1e-3, 2.5e-3, 5e-3),
    *(0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0),
)


class Histogram:
    """Counts per bucket (not cumulative; the last one is open) and the sum, in seconds."""

    __slots__ = ("counts", "total_s")

    def __init__(self) -> None:
        self.counts = [0] * (len(BOUNDS_S) + 1)
        self.total_s = 0.0

    def add(self, seconds: float, times: int = 1) -> None:
        """Count `times` observations of the same length."""
        self.counts[bisect_left(BOUNDS_S, seconds)] += times
        self.total_s += seconds * times

    def add_all(self, durations_s: Sequence[float]) -> None:
        """Count one observation each."""
        counts = self.counts
        for seconds in durations_s:
            counts[bisect_left(BOUNDS_S, seconds)] += 1
        self.total_s += sum(durations_s)

    @property
    def count(self) -> int:
        return sum(self.counts)


class BatchSize:
    """What batches of one size cost together."""

    __slots__ = ("batch_s", "batches", "compute_s", "split_s")

    def __init__(self) -> None:
        self.batches = 0
        self.batch_s = self.compute_s = self.split_s = 0.0


class AnsweredBatch(Struct, gc=False):
    """A batch that was gathered, run and cut apart in so many seconds; `after_s` from its dispatch all was handed over.

    It gave answers to requests that had waited `queued_s` each before, those left out that were in it with a part only.
    `requests`: all that it answered. Once it is counted, neither is kept. `dispatched_at` by the driver's clock.
    """

    rows: int
    queued_s: Sequence[float]
    after_s: float
    batch_s: float
    compute_s: float
    split_s: float
    number: int = 0
    instance: str = ""
    reason: DispatchReason = "idle"
    dispatched_at: float = 0.0
    requests: Sequence[Request] = ()


class FailedRun(Struct, gc=False):
    """A batch that gave no answers, `after_s` after its dispatch, and why; `tickets`: the ids of all that were in it."""

    number: int
    instance: str
    rows: int
    reason: DispatchReason
    dispatched_at: float
    after_s: float
    compute_s: float
    error: str
    tickets: tuple[int, ...]


class Observer(Protocol):
    """Looks at single batches and failures, after their replies have left."""

    def answered(self, batch: AnsweredBatch) -> None: ...

    def failed(self, request: Request, failure: Failure, reason: str, at: float) -> None:
        """`reason`: the lane's, as policy/events.py has them, or who else refused it. `at`: when, by the driver's clock."""
        ...


class Timings:
    """What one reader wants to know of answers that single counters do not tell: how long the newest took, at most so many, and
    how many took no longer than `objective_s`. It empties `newest_s` itself.
    """

    __slots__ = ("in_time", "newest_s", "objective_s")

    def __init__(self, most: int, objective_s: float = inf) -> None:
        self.newest_s: deque[float] = deque(maxlen=most)
        self.objective_s = objective_s
        self.in_time = 0

    def add(self, latencies_s: Sequence[float]) -> None:
        self.newest_s.extend(latencies_s)
        objective_s = self.objective_s
        self.in_time += sum([latency_s <= objective_s for latency_s in latencies_s])


class Objective:
    """What is wanted of answers, and how many there were: `met` within `seconds`, `late` after. `share`: of the requests, that
    shall have theirs in time.
    """

    __slots__ = ("late", "met", "seconds", "share")

    def __init__(self) -> None:
        self.seconds, self.share = inf, 0.0
        self.met = self.late = 0

    def add(self, latencies_s: Sequence[float]) -> None:
        seconds = self.seconds
        met = sum([latency_s <= seconds for latency_s in latencies_s])
        self.met += met
        self.late += len(latencies_s) - met


class Part:
    """The parts that stand at one place of their answers: `sent` of them, and how many answers ended, failed or were left there
    instead. `compute_s`, `split_s`: of batches, counted for each answer in them, as the phases of a request are.
    """

    __slots__ = ("compute_s", "ended", "failed", "left", "sent", "split_s")

    def __init__(self) -> None:
        self.sent = self.ended = self.failed = self.left = 0
        self.compute_s = self.split_s = 0.0


class StreamStats:
    """Of answers in parts. `between`: from one part of an answer to the next, as they are handed over, so that a reader who is
    slow shows, too. The first part is the request's answer: how long that takes is `ModelStats.request`.
    """

    def __init__(self) -> None:
        self.open = 0  # answers that have begun and not ended
        self.parts = 0
        self.between = Histogram()
        self.places: list[Part] = []

    def place(self, number: int) -> Part:
        """The part of this number, counted from 0; those beyond the last place are counted there."""
        number = min(number, MOST_PLACES - 1)
        while len(self.places) <= number:
            self.places.append(Part())
        return self.places[number]

    def sent(self, number: int, answers: int, *, compute_s: float, split_s: float, after_s: float) -> None:
        """So many answers of one batch got their part of this number, `after_s` after the one before."""
        self.parts += answers
        place = self.place(number)
        place.sent += answers
        place.compute_s += compute_s * answers
        place.split_s += split_s * answers
        if number:
            self.between.add(after_s, answers)


class CacheSize(Struct, frozen=True):
    """What a result cache keeps, and may keep."""

    entries: int = 0
    bytes: int = 0
    budget_bytes: int = 0


class CacheCounts:
    """Of requests that met the result cache, and of what it keeps. `hit_s`, `miss_s`: seconds of looking up.

    `joined`: their answer was under way for others. `bypassed`: their clients wanted no part in it. `shared`: of the misses,
    those that another node had the answer to. `known_rows`: of requests of several rows. `size`: how large it is now.
    """

    __slots__ = (
        "bypassed",
        "evicted",
        "expired",
        "hit_s",
        "hits",
        "joined",
        "known_rows",
        "miss_s",
        "misses",
        "rechecks",
        "shared",
        "size",
    )

    def __init__(self, size: Callable[[], CacheSize] = CacheSize) -> None:
        self.size = size
        self.hits = self.misses = self.joined = self.bypassed = self.evicted = self.expired = self.shared = self.known_rows = 0
        self.hit_s = self.miss_s = 0.0
        self.rechecks = {"same": 0, "different": 0}  # answers that were known, computed again


class VariantCounts:
    """Of a model whose variants may stand in for it. `answers`: by the name of the variant that gave them; they are among the
    model's `request` and `remembered`, and among the variant's own counts. `spilled`: requests that one lane had no time or
    room for, and that a variant's got instead. `switches`: of the assignment. `assignment`: who answers each class of priority
    (1 to 8, as policy/queueing has them) now, by name, the model itself included.
    """

    __slots__ = ("answers", "assignment", "spilled", "switches")

    def __init__(self, model: str, variants: Sequence[str]) -> None:
        self.answers = dict.fromkeys(variants, 0)
        self.spilled = self.switches = 0
        self.assignment = dict.fromkeys(range(1, LOWEST_LEVEL + 1), model)


class StepCounts(Struct, eq=False):
    """Of one step of a pipeline. `ended`: times that it ended well, after `waited_s` and `computed_s` seconds in all."""

    in_flight: int = 0
    requests: int = 0
    skipped: int = 0
    failures: int = 0
    waited_s: float = 0.0
    computed_s: float = 0.0
    usual_s: float = 0.0
    """What it computes of late."""
    usual_wait_s: float = 0.0

    def began(self) -> None:
        self.in_flight += 1

    def ended(self, *, waited_s: float, computed_s: float) -> None:
        self.in_flight -= 1
        self.requests += 1
        self.waited_s += waited_s
        self.computed_s += computed_s
        self.usual_s += (computed_s - self.usual_s) / min(self.requests, NEWEST)
        self.usual_wait_s += (waited_s - self.usual_wait_s) / min(self.requests, NEWEST)

    def failed(self) -> None:
        self.in_flight -= 1
        self.failures += 1


class SequenceCounts:
    """Of a model whose sequences' state is kept. `started`: those whose first request was answered, `restarted`: of them, those
    that took the place of one of their own; `ended` by their clients, `expired` by being idle, `broken` because they could not
    go on. `refused`: requests that belonged to none, or found no room. `active`: how many there are now.
    """

    __slots__ = ("active", "broken", "ended", "expired", "refused", "restarted", "started")

    def __init__(self, active: Callable[[], int]) -> None:
        self.active = active
        self.started = self.restarted = self.ended = self.expired = self.broken = self.refused = 0


class WatchCounts:
    """Of a model that is watched: whether something is unusual now, and how often that began."""

    __slots__ = ("alarms", "unusual")

    def __init__(self) -> None:
        self.unusual = False
        self.alarms = 0


class DriftCounts:
    """Of a model whose requests and answers are compared with the first ones. `rows`: that were looked at; `drifted`: what is
    surely another now; `distances`: of each number, by its name and test, when they were compared last.
    """

    __slots__ = ("distances", "drifted", "rows")

    def __init__(self) -> None:
        self.rows = 0
        self.drifted: list[str] = []
        self.distances: dict[tuple[str, str], float] = {}


class ModelStats:
    """Counts since the model was loaded. `rows` are inferences in Triton's sense, `queue` to `request` are per request: one
    that is split counts once there and in `failures`, and its rows and batches as they run.

    Batches are complete in them after `settle`, which whoever shows them calls first.
    """

    def __init__(self) -> None:
        self._uncounted: list[AnsweredBatch] = []
        self.rows = 0
        self.batches = 0
        self.queue = Histogram()
        self.batch = Histogram()
        self.compute = Histogram()
        self.split = Histogram()
        self.request = Histogram()
        self.failures: dict[FailureKind, int] = dict.fromkeys(FailureKind, 0)
        self.failed_s = 0.0
        self.broken_off = {FailureKind.MODEL_FAILED: 0, FailureKind.UNAVAILABLE: 0}  # after the first part, which is an answer
        self.batch_sizes: dict[int, BatchSize] = {}
        self.rechecks = {"same": 0, "different": 0}  # answers from batches, compared with what the request gets alone
        self.shadows = {"same": 0, "different": 0, "failed": 0, "dropped": 0}  # requests asked again of it, as a shadow
        self.decisions: Counter[str] = Counter()  # of the autopilot, by kind
        self.objective: Objective | None = None  # None: no latency is wanted
        self.readers: list[Timings | Objective] = []
        """Whoever looks at single answers adds its own here, for as long as it does."""
        self.observers: list[Observer] = []
        self.exemplars: Exemplars | None = None
        """One of the observers, which also hears of runs that fail, and of answers that no run of their own gave."""
        self.keep_above_s = inf
        """Such an answer that took longer is one for it."""
        self.elements = {"real": 0, "padding": 0}  # rows times length of batches that may be padded
        self.streams: StreamStats | None = None  # None: the model answers at once
        self.cache: CacheCounts | None = None  # None: answers are not remembered
        self.variants: VariantCounts | None = None  # None: no variant may stand in for it
        self.steps: Mapping[str, StepCounts] | None = None  # by name; None: it is no pipeline
        self.sequences: SequenceCounts | None = None  # None: it keeps no state
        self.drift: DriftCounts | None = None  # None: what comes is not compared
        self.watch: WatchCounts | None = None  # None: it is not watched
        self.remembered = 0  # of `request`, those whose answers were computed for others, or by others
        self.stirred = 0  # times that something else than an answer was counted
        self.last_at_ms = 0
        self.instance_states: dict[InstanceState, int] = dict.fromkeys(get_args(InstanceState), 0)  # how many are so now
        self.instance_changes: dict[InstanceChange, int] = dict.fromkeys(get_args(InstanceChange), 0)

    def batch_answered(self, batch: AnsweredBatch) -> None:
        """Counted when `settle` is called: replies that are about to leave need not wait for it."""
        self._uncounted.append(batch)

    def request_gathered(self, request: Request, timing: Timing, split_s: float, seconds: float) -> None:
        """A request that was split has its answer, put together in `split_s`. Its rows and batches are counted already."""
        self.queue.add(timing.queue_s)
        self.batch.add(timing.batch_s)
        self.compute.add(timing.compute_s)
        self.split.add(split_s)
        self.request.add(seconds)
        for reader in self.readers:
            reader.add([seconds])
        if seconds > self.keep_above_s and self.exemplars is not None:
            self.exemplars.gathered(request, split_s, seconds)

    def request_remembered(self, seconds: float, request: Request | None = None, leader: int = 0) -> None:
        """A request has an answer that was computed for another, whose number is `leader` if that ran just now; or by a
        variant, which counts the `request` itself. How quick that was says nothing of the model: readers do not hear of it.
        """
        self.remembered += 1
        histogram = self.request
        histogram.counts[bisect_left(BOUNDS_S, seconds)] += 1
        histogram.total_s += seconds
        if self.objective is not None:
            self.objective.add((seconds,))
        if seconds > self.keep_above_s and request is not None and self.exemplars is not None:
            self.exemplars.remembered(request, seconds, leader)

    @property
    def computed(self) -> int:
        """Requests whose answers were computed for them."""
        return self.request.count - self.remembered

    def batch_padded(self, tickets: Sequence[Ticket]) -> None:
        """What a batch held, of requests of any length, and what was filled up."""
        real = sum([ticket.rows * ticket.length for ticket in tickets])
        whole = sum([ticket.rows for ticket in tickets]) * max([ticket.length for ticket in tickets])
        self.elements["real"] += real
        self.elements["padding"] += whole - real

    @property
    def busy_s(self) -> float:
        """Seconds that batches have taken, those of all instances together."""
        return sum([size.batch_s + size.compute_s + size.split_s for size in self.batch_sizes.values()], 0.0)

    def settle(self) -> None:
        """Count what is not yet."""
        batches, self._uncounted = self._uncounted, []
        for batch in batches:
            self._count(batch)
            for observer in self.observers:
                observer.answered(batch)
            batch.requests = batch.queued_s = ()

    def _count(self, batch: AnsweredBatch) -> None:
        rows, requests, after_s = batch.rows, len(batch.queued_s), batch.after_s
        self.rows += rows
        self.batches += 1
        self.queue.add_all(batch.queued_s)
        latencies_s = [queue_s + after_s for queue_s in batch.queued_s]
        self.request.add_all(latencies_s)
        for reader in self.readers:
            reader.add(latencies_s)
        self.batch.add(batch.batch_s, requests)
        self.compute.add(batch.compute_s, requests)
        self.split.add(batch.split_s, requests)
        size = self.batch_sizes.get(rows)
        if size is None:
            size = self.batch_sizes[rows] = BatchSize()
        size.batches += 1
        size.batch_s += batch.batch_s
        size.compute_s += batch.compute_s
        size.split_s += batch.split_s
        self.last_at_ms = int(time() * 1e3)

    def failed(self, kind: FailureKind, seconds: float, times: int = 1) -> None:
        """`times`: -1 takes back what was counted a moment ago."""
        self.stirred += 1
        self.failures[kind] += times
        self.failed_s += seconds * times

    def lost(self, request: Request, failure: Failure, reason: str, at: float) -> None:
        """Tell the observers, beside `failed`."""
        for observer in self.observers:
            observer.failed(request, failure, reason, at)

    def answered_after_all(self, request: Request) -> None:
        """One that was told of as lost has an answer, which another model gives."""
        if self.exemplars is not None:
            self.exemplars.forgive(request)

    def run_failed(self, run: FailedRun) -> None:
        """A batch, or its instance, did; what becomes of its requests is another matter."""
        if self.exemplars is not None:
            self.exemplars.run_failed(run)

    def aim(self, seconds: float | None, share: float) -> None:
        """From now on this share of the requests shall be answered within so many seconds; None: as they come."""
        objective = self.objective
        if seconds is None:
            if objective is not None:
                self.readers.remove(objective)
                self.objective = None
            return
        if objective is None:
            objective = self.objective = Objective()
            self.readers.append(objective)
        objective.seconds, objective.share = seconds, share

    def streaming(self) -> StreamStats:
        """Of a model that answers in parts."""
        if self.streams is None:
            self.streams = StreamStats()
        return self.streams

    def broke_off(self, kind: FailureKind) -> None:
        self.broken_off[kind] = self.broken_off.get(kind, 0) + 1

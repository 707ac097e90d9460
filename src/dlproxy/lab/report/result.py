"""What is kept of a run, live or simulated: a Tally while it goes on, a Result (the JSON file) when it is over.

Filled by lab/load and lab/simulate, shown by table.py, html.py and compare.py. Not aware of: who sent the requests.
"""

from array import array
from math import floor, inf, nextafter
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import msgspec
import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

from dlproxy.lab.report.histogram import Histogram, HistogramError

FORMAT = 1
QUANTILES = {"p50": 0.5, "p90": 0.9, "p99": 0.99, "p99_9": 0.999}


class ResultError(ValueError):
    """A result file that cannot be read; the message says why."""


class _Format(Struct):
    format: int


class Second(Struct, kw_only=True):
    """One second of the run, counted by when answers came; latencies in milliseconds, 0 if none came."""

    at_s: float
    sent: int
    ok: int
    failed: int
    p50_ms: float
    p99_ms: float


class Generator(Struct, kw_only=True):
    """How the load generator itself did. `cpu_share`: CPU time of the busiest process per second. Late: sent after due."""

    cpu_share: float
    late_p99_ms: float
    late_max_ms: float


class Trial(Struct, kw_only=True):
    """One run of a search for the highest rate: whether `rate` requests per second met the objective, and if not, why.

    `whole`: it lasted as long as a run that confirms a peak; shorter ones only look for the region.
    """

    rate: float
    duration_s: float
    sent: int
    failed: int
    p99_ms: float | None
    passed: bool
    reason: str = ""
    whole: bool = False


class ModelResult(Struct, kw_only=True):
    """One model's part of a simulation of several. Fields as in Result."""

    sent: int
    ok: int
    rate_rps: float
    objective_ms: float | None
    latency_ms: dict[str, float]
    errors: dict[str, int]
    in_time: float | None
    """Share of the requests that ended which were answered within the objective."""

    @property
    def failed(self) -> int:
        return sum(self.errors.values())


class Scaling(Struct, kw_only=True):
    """What autoscaling of one model cost: seconds of all instances, starts included, and how often their number changed."""

    instance_s: float
    changes: int
    most: int


class StepResult(Struct, kw_only=True):
    """One step of a simulated pipeline: how many requests ran it to its end, and what it waited and computed for them."""

    ran: int
    waited_ms: dict[str, float]
    computed_ms: dict[str, float]


class CacheUse(Struct, kw_only=True):
    """Requests for one model that its cache answered, that joined another on its way, and that ran."""

    hits: int
    joined: int
    misses: int


class Result(Struct, kw_only=True):
    """One run. Keys of `latency_ms`: p50, p90, p99, p99_9, max, mean; they are of the requests that succeeded.
    `rate_rps`: successful answers per second. `goodput_rps`: those within the objective (all, if there is none), which the
    share `objective_share` of the answers has to meet.
    `setup`: what was asked for, as options. `histogram`: HdrHistogram V2, base64, microseconds. `peak_rps`: what a search
    has confirmed. `phases_ms` of a request on average and `busy_s` of all batches: by the server's own account. `faults`:
    simulated ones, and what they did. `variants`: answers that other models gave in place of the one asked for, by their names.
    `steps`: of pipelines, as PIPELINE.STEP; their times have the keys p50 and p99.
    """

    format: int = FORMAT
    kind: str
    started: str
    target: str
    setup: dict[str, Any]
    duration_s: float
    sent: int
    ok: int
    offered_rps: float
    rate_rps: float
    goodput_rps: float
    objective_ms: float | None
    latency_ms: dict[str, float]
    errors: dict[str, int]
    batch_sizes: dict[int, int]
    timeline: list[Second]
    histogram: str
    generator: Generator | None = None
    trials: list[Trial] = []
    peak_rps: float | None = None
    phases_ms: dict[str, float] = {}
    busy_s: float = 0.0
    models: dict[str, ModelResult] = {}
    faults: list[str] = []
    objective_share: float = 0.99
    instances: dict[str, Any] = {}
    scaling: dict[str, Scaling] = {}
    cache: dict[str, CacheUse] = {}
    variants: dict[str, int] = {}
    steps: dict[str, StepResult] = {}
    warnings: list[str] = []
    interrupted: bool = False

    @property
    def failed(self) -> int:
        """Requests that got no successful answer."""
        return sum(self.errors.values())


class Tally:
    """Counts a run while it goes on. Instants are seconds on the run's own clock, which never goes back.

    A request belongs to the run if it was due between `start_at` (before it is warm-up) and `end_at`, whenever its answer
    comes; rates count the answers that came before `end_at`. Tallies of several processes with one clock add up (`merge`).
    """

    def __init__(self, start_at: float, end_at: float, objective_s: float | None = None) -> None:
        self.start_at = start_at
        self.end_at = end_at
        self.objective_s = objective_s
        self.histogram = Histogram()
        self.errors: dict[str, int] = {}
        self.variants: dict[bytes, int] = {}
        self.sent = self.ok = self.ok_by_end = self.in_time_by_end = 0
        self._seconds: dict[int, _Row] = {}
        self._row = _Row()
        self._latencies = array("d")
        self._close_at = -inf
        self._due_before = end_at

    def sent_one(self, due_at: float, now: float) -> None:
        """A request went out."""
        if self.start_at <= due_at < self._due_before:
            if now >= self._close_at:
                self._next_second(now)
            self.sent += 1
            self._row.sent += 1

    def answered(self, due_at: float, now: float, variant: bytes = b"") -> None:
        """A request succeeded: its latency counts from when it was due, not from when it was sent. `variant`: the model that
        answered in place of the one asked for, as in a path.
        """
        if self.start_at <= due_at < self._due_before:
            if now >= self._close_at:
                self._next_second(now)
            latency_s = now - due_at
            self._latencies.append(latency_s)
            self.ok += 1
            if variant:
                self.variants[variant] = self.variants.get(variant, 0) + 1
            if now <= self.end_at:
                self.ok_by_end += 1
                if self.objective_s is None or latency_s <= self.objective_s:
                    self.in_time_by_end += 1

    def failed(self, kind: str, due_at: float, now: float) -> None:
        """A request did not succeed."""
        if self.start_at <= due_at < self._due_before:
            if now >= self._close_at:
                self._next_second(now)
            self.errors[kind] = self.errors.get(kind, 0) + 1
            self._row.failed += 1

    def cut(self, now: float) -> None:
        """The run ends here, before its time. What is due at this very instant may have been sent, so it still belongs."""
        self.end_at = max(min(self.end_at, now), self.start_at)
        self._due_before = min(self._due_before, nextafter(now, inf))

    def merge(self, other: "Tally") -> None:
        """Add what another process counted; both are closed for further counting."""
        self._close()
        other._close()
        self.histogram.merge(other.histogram)
        for kind, times in other.errors.items():
            self.errors[kind] = self.errors.get(kind, 0) + times
        for name, times in other.variants.items():
            self.variants[name] = self.variants.get(name, 0) + times
        self.sent += other.sent
        self.ok += other.ok
        self.ok_by_end += other.ok_by_end
        self.in_time_by_end += other.in_time_by_end
        for second, row in other._seconds.items():
            self._seconds.setdefault(second, _Row()).add(row)

    def timeline(self) -> list[Second]:
        """Every second in which anything happened, in order."""
        self._close()
        return [row.second(float(second)) for second, row in sorted(self._seconds.items())]

    @property
    def duration_s(self) -> float:
        """Length of what was measured, without the warm-up."""
        return self.end_at - self.start_at

    @property
    def latency_ms(self) -> dict[str, float]:
        """Quantiles, largest and mean of the latencies so far; empty if there are none."""
        self._close()
        histogram = self.histogram
        if not histogram.count:
            return {}
        measured = {name: histogram.quantile_s(quantile) * 1e3 for name, quantile in QUANTILES.items()}
        return {**measured, "max": histogram.max_s * 1e3, "mean": histogram.mean_s * 1e3}

    def _next_second(self, now: float) -> None:
        self._close()
        second = floor(now - self.start_at)
        self._row = self._seconds.setdefault(second, _Row())
        self._close_at = self.start_at + second + 1.0

    def _close(self) -> None:
        if self._latencies:
            latencies = np.frombuffer(self._latencies)
            self.histogram.add(latencies)
            self._row.answers(latencies)
            self._latencies = array("d")


class _Row:
    """One second: its latencies as sorted (microseconds, how often), so that processes and late answers can be added."""

    def __init__(self) -> None:
        self.sent = self.failed = 0
        self._steps: list[tuple[NDArray[np.int64], NDArray[np.int64]]] = []

    def answers(self, latencies_s: NDArray[np.float64]) -> None:
        scale = 10.0 ** (np.floor(np.log10(np.maximum(latencies_s, 1e-6))) - 2)  # three digits
        micros = np.rint(np.rint(latencies_s / scale) * scale * 1e6).astype(np.int64)
        self._steps.append(np.unique(micros, return_counts=True))

    def add(self, other: "_Row") -> None:
        self.sent += other.sent
        self.failed += other.failed
        self._steps += other._steps

    def second(self, at_s: float) -> Second:
        if not self._steps:
            return Second(at_s=at_s, sent=self.sent, ok=0, failed=self.failed, p50_ms=0.0, p99_ms=0.0)
        values = np.concatenate([micros for micros, _ in self._steps])
        order = np.argsort(values)
        reached = np.cumsum(np.concatenate([times for _, times in self._steps])[order])
        p50, p99 = (
            float(values[order][np.searchsorted(reached, np.ceil(share * reached[-1] - 1e-9))]) * 1e-3 for share in (0.5, 0.99)
        )
        return Second(at_s=at_s, sent=self.sent, ok=int(reached[-1]), failed=self.failed, p50_ms=p50, p99_ms=p99)


def make_result(tally: Tally, *, kind: str, started: str, target: str, setup: dict[str, Any]) -> Result:
    """The result of a tally; batch sizes, generator and warnings are for the caller to add."""
    duration_s = tally.duration_s
    per_second = 1.0 / duration_s if duration_s > 0.0 else 0.0
    return Result(
        kind=kind,
        started=started,
        target=target,
        setup=setup,
        duration_s=duration_s,
        sent=tally.sent,
        ok=tally.ok,
        offered_rps=tally.sent * per_second,
        rate_rps=tally.ok_by_end * per_second,
        goodput_rps=tally.in_time_by_end * per_second,
        objective_ms=None if tally.objective_s is None else tally.objective_s * 1e3,
        latency_ms=tally.latency_ms,
        errors=dict(sorted(tally.errors.items())),
        batch_sizes={},
        timeline=tally.timeline(),
        histogram=tally.histogram.encode(),
        variants={unquote(name.decode("latin-1")): times for name, times in sorted(tally.variants.items())},
    )


def model_result(tally: Tally) -> ModelResult:
    """The part of one model, from a tally of its own."""
    latency_ms, failed = tally.latency_ms, sum(tally.errors.values())
    in_time = None
    if tally.objective_s is not None and tally.ok + failed:
        in_time = tally.histogram.share_within(tally.objective_s) * tally.ok / (tally.ok + failed)
    return ModelResult(
        sent=tally.sent,
        ok=tally.ok,
        rate_rps=tally.ok_by_end / tally.duration_s if tally.duration_s > 0.0 else 0.0,
        objective_ms=None if tally.objective_s is None else tally.objective_s * 1e3,
        latency_ms=latency_ms,
        errors=dict(sorted(tally.errors.items())),
        in_time=in_time,
    )


def save(result: Struct, path: Path) -> None:
    """Write the JSON file, of a result or what several make. Raises ResultError."""
    try:
        path.write_bytes(msgspec.json.format(msgspec.json.encode(result), indent=1) + b"\n")
    except OSError as error:
        raise ResultError(f"cannot write {path}: {error.strerror}") from None


def ensure_writable(*paths: Path | None) -> None:
    """Raise ResultError if a report could not be written there: better before a long run than after it."""
    for path in filter(None, paths):
        existed = path.exists()
        try:
            with path.open("ab"):
                pass
            if not existed:
                path.unlink()
        except OSError as error:
            raise ResultError(f"cannot write {path}: {error.strerror}") from None


def load(path: Path) -> Result:
    """Read what `save` wrote. Raises ResultError."""
    try:
        encoded = path.read_bytes()
        written_as = msgspec.json.decode(encoded, type=_Format).format
        if written_as != FORMAT:
            raise ResultError(f"{path} has format {written_as}; this version reads {FORMAT}")
        result = msgspec.json.decode(encoded, type=Result)
        Histogram.decode(result.histogram)
    except OSError as error:
        raise ResultError(f"cannot read {path}: {error.strerror}") from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ResultError(f"{path} is not a result of dlproxy bench or simulate: {error}") from None
    except HistogramError as error:
        raise ResultError(f"{path} is damaged: {error}") from None
    return result

"""The metrics page: reads the models' counters when it is scraped, so that counting costs the hot path plain ints only.

`nv_inference_*`, `nv_cache_*` are Triton's names, which Model Analyzer, KEDA scalers and dashboards read; `dlproxy_*` are ours.
Called by wire/control/http.py. Not aware of: HTTP.
"""

import re
from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from time import time
from typing import Protocol, get_args

from prometheus_client import CollectorRegistry, PlatformCollector, ProcessCollector, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric, UnknownMetricFamily
from prometheus_client.openmetrics import exposition as openmetrics
from prometheus_client.registry import Collector
from prometheus_client.samples import Exemplar

from dlproxy.message import NO_TRACE, Failure, FailureKind, Request, Trace
from dlproxy.policy.planner import Phase, VersionState
from dlproxy.policy.scaling import MISSED
from dlproxy.policy.view import LaneView
from dlproxy.telemetry.stats import (
    BOUNDS_S,
    AnsweredBatch,
    CacheCounts,
    DriftCounts,
    Histogram,
    ModelStats,
    Objective,
    SequenceCounts,
    StepCounts,
    StreamStats,
    VariantCounts,
    WatchCounts,
)

# Triton's reasons for a failed request
_REASONS = {
    FailureKind.CANCELLED: "CANCELED",
    FailureKind.MODEL_FAILED: "BACKEND",
    FailureKind.QUEUE_FULL: "REJECTED",
    FailureKind.DEADLINE: "REJECTED",
    FailureKind.LATE: "REJECTED",
    FailureKind.OVERLOADED: "REJECTED",
    FailureKind.QUOTA: "REJECTED",
}
_LABELS = ("model", "version")
_PHASES = (  # in Triton's words and ours
    ("request", "request", "until their answers were handed over"),
    ("queue", "queue", "waiting in the queue"),
    ("compute_input", "batch", "while their batches were gathered"),
    ("compute_infer", "compute", "in the model"),
    ("compute_output", "split", "while their answers were cut out of the batches"),
)
_TRITON_CACHE: tuple[tuple[str, str, Callable[[CacheCounts], float]], ...] = (
    ("nv_cache_num_hits_per_model", "Requests that were answered from the result cache", lambda counts: counts.hits),
    ("nv_cache_num_misses_per_model", "Requests that the result cache had no answer to", lambda counts: counts.misses),
    (
        "nv_cache_hit_duration_per_model",
        "Microseconds of looking up answers that were there",
        lambda counts: counts.hit_s * 1e6,
    ),
    (
        "nv_cache_miss_duration_per_model",
        "Microseconds of looking up answers that were not",
        lambda counts: counts.miss_s * 1e6,
    ),
)
_CACHE_COUNTERS = {
    "evicted": "Answers that left the result cache for others, or were not taken in",
    "expired": "Answers that were found, and were too old",
    "shared": "Misses that another node had the answer to",
    "known_rows": "Rows that were remembered, of requests of several rows",
}
_STEP_COUNTERS = (
    ("requests", "Requests for which a pipeline's step ended well", "requests"),
    ("failures", "Requests for which it failed", "failures"),
    ("skipped", "Requests for which it was skipped, by its condition or as an input was missing", "skipped"),
    ("wait_seconds", "Time that it waited for a lane or a thread", "waited_s"),
    ("compute_seconds", "Time that its model or code computed", "computed_s"),
)
_CACHE_GAUGES = {
    "entries": "Answers in the result cache",
    "bytes": "Memory that they take",
    "budget_bytes": "Memory that they may take",
}

_SEQUENCE_COUNTERS = {
    "started": "Sequences that have begun",
    "restarted": "Sequences that began in the place of one of the same id",
    "ended": "Sequences that their clients have ended",
    "expired": "Sequences that were forgotten as they were idle",
    "broken": "Sequences that could not go on",
    "refused": "Requests that were refused as they belonged to no sequence, or found no room",
}


MOST_EXEMPLAR = 128  # characters of an exemplar's labels, as OpenMetrics has it


class PhaseExemplars:
    """An Observer that keeps of each phase, for each bucket of its histogram, the newest request with a name of its own."""

    def __init__(self) -> None:
        self._newest: dict[str, dict[int, tuple[Trace, float, float]]] = {
            phase: {} for phase in ("queue", "batch", "compute", "split", "request")
        }

    def answered(self, batch: AnsweredBatch) -> None:
        """One request of each batch at most, one that is traced if there is any."""
        found: Request | None = None
        for request in batch.requests:
            if request.trace is not NO_TRACE and not request.ticket.part_of:
                if request.trace.sampled:
                    found = request
                    break
                found = found or request
        if found is None:
            return
        queue_s, at = batch.dispatched_at - found.ticket.arrived_at, time()
        phases = {"batch": batch.batch_s, "compute": batch.compute_s, "split": batch.split_s, "queue": queue_s}
        for phase, seconds in (*phases.items(), ("request", queue_s + batch.after_s)):
            self._newest[phase][bisect_left(BOUNDS_S, seconds)] = found.trace, seconds, at

    def failed(self, request: Request, failure: Failure, reason: str, at: float) -> None:
        """The histograms are of answers."""

    def of(self, phase: str, bucket: int) -> tuple[Exemplar] | tuple[()]:
        newest = self._newest[phase].get(bucket)
        if newest is None:
            return ()
        trace, seconds, at = newest
        name = {"trace_id": trace.parent[3:35]} if trace.sampled else {"request_id": trace.request_id}
        short = sum([len(label) + len(value) for label, value in name.items()]) <= MOST_EXEMPLAR
        return (Exemplar(name, seconds, round(at, 3)),) if short and all(name.values()) else ()


def _exemplars(stats: ModelStats) -> PhaseExemplars | None:
    return next((one for one in stats.observers if isinstance(one, PhaseExemplars)), None)


class ModelView(Protocol):
    """What the page shows of a model."""

    name: str
    version: str
    stats: ModelStats
    view: Callable[[], LaneView]


class ModelCollector(Collector):
    """Turns models' counters into metric families at scrape time. Durations of Triton's names are in microseconds.

    `wanted`: every version that is wanted or there, those that could not be loaded included.
    """

    def __init__(
        self, models: Iterable[ModelView], connections: Callable[[], int], wanted: Callable[[], Iterable[VersionState]]
    ) -> None:
        self._models = models
        self._connections = connections
        self._wanted = wanted

    def collect(self) -> Iterator[Metric]:
        models = list(self._models)
        for model in models:
            model.stats.settle()
        yield from self._triton(models)
        yield self._phases(models)
        yield from self._own(models)
        yield from self._objectives([(model, model.stats.objective) for model in models if model.stats.objective is not None])
        yield from self._streams([(model, model.stats.streams) for model in models if model.stats.streams is not None])
        yield from self._caches([(model, model.stats.cache) for model in models if model.stats.cache is not None])
        yield from self._steps([(model, model.stats.steps) for model in models if model.stats.steps is not None])
        yield from self._variants([(model, model.stats.variants) for model in models if model.stats.variants is not None])
        yield from self._sequences([(model, model.stats.sequences) for model in models if model.stats.sequences is not None])
        yield from self._drifts([(model, model.stats.drift) for model in models if model.stats.drift is not None])
        yield from self._watched([(model, model.stats.watch) for model in models if model.stats.watch is not None])

    def _triton(self, models: Sequence[ModelView]) -> Iterator[Metric]:
        yield _counter("nv_inference_request_success", "Requests that were answered", models, lambda s: s.request.count)
        failures = UnknownMetricFamily(
            "nv_inference_request_failure", "Requests that failed, by Triton's reasons", labels=(*_LABELS, "reason")
        )
        for model in models:
            totals = dict.fromkeys(("REJECTED", "CANCELED", "BACKEND", "OTHER"), 0)
            for kind, number in model.stats.failures.items():
                totals[_REASONS.get(kind, "OTHER")] += number
            for reason, number in totals.items():
                failures.add_metric((model.name, model.version, reason), number)
        yield failures
        yield _counter("nv_inference_count", "Rows that were inferred, in batches of any size", models, lambda s: s.rows)
        yield _counter("nv_inference_exec_count", "Batches that were run", models, lambda s: s.batches)
        for name, phase, what in _PHASES:
            yield _counter(
                f"nv_inference_{name}_duration_us",
                f"Microseconds {what}, summed over the requests that were answered",
                models,
                lambda stats, phase=phase: getattr(stats, phase).total_s * 1e6,  # type: ignore[misc]
            )
        pending = GaugeMetricFamily("nv_inference_pending_request_count", "Rows that wait in the queue", labels=_LABELS)
        for model in models:
            pending.add_metric((model.name, model.version), model.view().queued_rows)
        yield pending

    def _phases(self, models: Sequence[ModelView]) -> Metric:
        phases = HistogramMetricFamily(
            "dlproxy_phase_seconds", "Time of answered requests by phase", labels=(*_LABELS, "phase")
        )
        for model in models:
            exemplars = _exemplars(model.stats)
            for phase in ("queue", "batch", "compute", "split", "request"):
                histogram: Histogram = getattr(model.stats, phase)
                buckets = _cumulative(histogram)
                if exemplars is not None:
                    buckets = [(*bucket, *exemplars.of(phase, number)) for number, bucket in enumerate(buckets)]
                phases.add_metric((model.name, model.version, phase), buckets, histogram.total_s)
        return phases

    def _own(self, models: Sequence[ModelView]) -> Iterator[Metric]:
        depth = GaugeMetricFamily("dlproxy_queue_rows", "Rows waiting in the queue", labels=_LABELS)
        limit = GaugeMetricFamily("dlproxy_batch_limit_rows", "Rows that a batch takes at most now", labels=_LABELS)
        ready = GaugeMetricFamily("dlproxy_model_ready", "1 while an instance is live", labels=_LABELS)
        states = GaugeMetricFamily("dlproxy_instances", "Instances in each state", labels=(*_LABELS, "state"))
        changes = CounterMetricFamily(
            "dlproxy_instance_changes",
            "Instances that came up, were lost, were retired or did not start",
            labels=(*_LABELS, "change"),
        )
        rechecks = CounterMetricFamily(
            "dlproxy_rechecked_answers",
            "Answers of batches that were computed again, alone, and were the same or different",
            labels=(*_LABELS, "result"),
        )
        shadows = CounterMetricFamily(
            "dlproxy_shadow_answers",
            "Requests that this version was asked beside another one, by how its answer compared, if it gave one",
            labels=(*_LABELS, "result"),
        )
        broken = CounterMetricFamily(
            "dlproxy_broken_streams", "Answers in parts that failed after the first one", labels=(*_LABELS, "kind")
        )
        elements = CounterMetricFamily(
            "dlproxy_padding_elements",
            "Elements of batches along the padded axis: real ones, and those that shorter requests were filled up with",
            labels=(*_LABELS, "kind"),
        )
        decisions = CounterMetricFamily(
            "dlproxy_autopilot_decisions", "What the autopilot decided, by kind", labels=(*_LABELS, "kind")
        )
        for model in models:
            labels = (model.name, model.version)
            for decided, times in model.stats.decisions.items():
                decisions.add_metric((*labels, decided), times)
            for kind, count in model.stats.elements.items():
                elements.add_metric((*labels, kind), count)
            for failure, times in model.stats.broken_off.items():
                broken.add_metric((*labels, failure.value), times)
            for result, times in model.stats.rechecks.items():
                rechecks.add_metric((*labels, result), times)
            for result, times in model.stats.shadows.items():
                shadows.add_metric((*labels, result), times)
            view = model.view()
            depth.add_metric(labels, view.queued_rows)
            limit.add_metric(labels, view.batch_goal)
            ready.add_metric(labels, bool(view.instances))
            for state, number in model.stats.instance_states.items():
                states.add_metric((*labels, state), number)
            for change, times in model.stats.instance_changes.items():
                changes.add_metric((*labels, change), times)
        yield from (depth, limit, ready, states, changes, rechecks, shadows, broken, elements, decisions)
        yield self._versions()
        yield GaugeMetricFamily("dlproxy_http_connections", "Open connections", value=self._connections())

    def _objectives(self, models: Sequence[tuple[ModelView, Objective]]) -> Iterator[Metric]:
        """Of the models that have one alone."""
        requests = CounterMetricFamily(
            "dlproxy_objective_requests",
            "Requests that were answered within the objective, later, or refused for lack of time or room",
            labels=(*_LABELS, "result"),
        )
        seconds = GaugeMetricFamily("dlproxy_objective_seconds", "Within which requests shall be answered", labels=_LABELS)
        share = GaugeMetricFamily("dlproxy_objective_share", "Share of the requests that shall be", labels=_LABELS)
        for model, objective in models:
            labels = (model.name, model.version)
            refused = sum([model.stats.failures[kind] for kind in MISSED])
            for result, times in (("met", objective.met), ("late", objective.late), ("refused", refused)):
                requests.add_metric((*labels, result), times)
            seconds.add_metric(labels, objective.seconds)
            share.add_metric(labels, objective.share)
        yield from (requests, seconds, share)

    def _streams(self, models: Sequence[tuple[ModelView, StreamStats]]) -> Iterator[Metric]:
        """Of the models that answer in parts alone."""
        open_now = GaugeMetricFamily("dlproxy_open_streams", "Answers in parts that have begun and not ended", labels=_LABELS)
        parts = CounterMetricFamily("dlproxy_stream_parts", "Parts of answers that were handed over", labels=_LABELS)
        first = HistogramMetricFamily(
            "dlproxy_stream_first_part_seconds", "Time until the first part of an answer", labels=_LABELS
        )
        between = HistogramMetricFamily(
            "dlproxy_stream_between_parts_seconds", "Time from one part of an answer to the next", labels=_LABELS
        )
        for model, streams in models:
            labels = (model.name, model.version)
            open_now.add_metric(labels, streams.open)
            parts.add_metric(labels, streams.parts)
            first.add_metric(labels, _cumulative(model.stats.request), model.stats.request.total_s)
            between.add_metric(labels, _cumulative(streams.between), streams.between.total_s)
        yield from (open_now, parts, first, between)

    def _caches(self, models: Sequence[tuple[ModelView, CacheCounts]]) -> Iterator[Metric]:
        """Of the models that remember answers alone, as Triton has it."""
        for name, what, value in _TRITON_CACHE:
            family = UnknownMetricFamily(name, what, labels=_LABELS)
            for model, counts in models:
                family.add_metric((model.name, model.version), value(counts))
            yield family
        requests = CounterMetricFamily(
            "dlproxy_cache_requests",
            "Requests by what the result cache had for them: a hit, a miss, an answer under way that they joined, or a bypass",
            labels=(*_LABELS, "result"),
        )
        for model, counts in models:
            results = {"hit": counts.hits, "miss": counts.misses, "joined": counts.joined, "bypass": counts.bypassed}
            for result, times in results.items():
                requests.add_metric((model.name, model.version, result), times)
        rechecks = CounterMetricFamily(
            "dlproxy_cache_rechecked_answers",
            "Remembered answers that were computed again to compare, and were the same or different",
            labels=(*_LABELS, "result"),
        )
        for model, counts in models:
            for result, times in counts.rechecks.items():
                rechecks.add_metric((model.name, model.version, result), times)
        yield from (requests, rechecks)
        for name, what in _CACHE_COUNTERS.items():
            counter = CounterMetricFamily(f"dlproxy_cache_{name}", what, labels=_LABELS)
            for model, counts in models:
                counter.add_metric((model.name, model.version), getattr(counts, name))
            yield counter
        sizes = [(model, counts.size()) for model, counts in models]
        for name, what in _CACHE_GAUGES.items():
            gauge = GaugeMetricFamily(f"dlproxy_cache_{name}", what, labels=_LABELS)
            for model, size in sizes:
                gauge.add_metric((model.name, model.version), getattr(size, name))
            yield gauge

    def _variants(self, models: Sequence[tuple[ModelView, VariantCounts]]) -> Iterator[Metric]:
        """Of the models that others may answer for alone."""
        answers = CounterMetricFamily(
            "dlproxy_variant_answers", "Answers that a variant gave in place of the model", labels=(*_LABELS, "variant")
        )
        spilled = CounterMetricFamily(
            "dlproxy_variant_spilled", "Requests that one had no time or room for, and a variant got instead", labels=_LABELS
        )
        switches = CounterMetricFamily(
            "dlproxy_variant_switches", "Changes of who answers which class of priority", labels=_LABELS
        )
        assigned = GaugeMetricFamily(
            "dlproxy_variant_assigned",
            "1 for who answers requests of a priority now: a variant, or the model itself",
            labels=(*_LABELS, "priority", "variant"),
        )
        for model, counts in models:
            labels = (model.name, model.version)
            spilled.add_metric(labels, counts.spilled)
            switches.add_metric(labels, counts.switches)
            for name, times in counts.answers.items():
                answers.add_metric((*labels, name), times)
            for priority, by in counts.assignment.items():
                for name in dict.fromkeys((model.name, *counts.answers, *counts.assignment.values())):
                    assigned.add_metric((*labels, str(priority), name), name == by)
        yield from (answers, spilled, switches, assigned)

    def _steps(self, models: Sequence[tuple[ModelView, Mapping[str, StepCounts]]]) -> Iterator[Metric]:
        """Of pipelines alone."""
        labels = (*_LABELS, "step")
        for name, what, field in _STEP_COUNTERS:
            counter = CounterMetricFamily(f"dlproxy_step_{name}", what, labels=labels)
            for model, steps in models:
                for step, counts in steps.items():
                    counter.add_metric((model.name, model.version, step), getattr(counts, field))
            yield counter
        under_way = GaugeMetricFamily("dlproxy_step_in_flight", "Runs of a pipeline's step that have begun", labels=labels)
        for model, steps in models:
            for step, counts in steps.items():
                under_way.add_metric((model.name, model.version, step), counts.in_flight)
        yield under_way

    def _sequences(self, models: Sequence[tuple[ModelView, SequenceCounts]]) -> Iterator[Metric]:
        """Of the models that keep the state of sequences alone."""
        active = GaugeMetricFamily("dlproxy_sequences_active", "Sequences whose state is kept now", labels=_LABELS)
        for model, counts in models:
            active.add_metric((model.name, model.version), counts.active())
        yield active
        for name, what in _SEQUENCE_COUNTERS.items():
            counter = CounterMetricFamily(f"dlproxy_sequences_{name}", what, labels=_LABELS)
            for model, counts in models:
                counter.add_metric((model.name, model.version), getattr(counts, name))
            yield counter

    def _drifts(self, models: Sequence[tuple[ModelView, DriftCounts]]) -> Iterator[Metric]:
        """Of the models alone whose requests and answers are compared with the first ones."""
        drifted = GaugeMetricFamily(
            "dlproxy_drifted", "Numbers of requests and answers that are surely others than at first", labels=_LABELS
        )
        distances = GaugeMetricFamily(
            "dlproxy_drift_distance", "How far each is from what it was at first", labels=(*_LABELS, "of", "test")
        )
        for model, counts in models:
            drifted.add_metric((model.name, model.version), len(counts.drifted))
            for (name, test), distance in counts.distances.items():
                distances.add_metric((model.name, model.version, name, test), distance)
        yield from (drifted, distances)

    def _watched(self, models: Sequence[tuple[ModelView, WatchCounts]]) -> Iterator[Metric]:
        """Of the models alone whose telemetry is watched."""
        unusual = GaugeMetricFamily("dlproxy_unusual", "1 while something is unusual with the model", labels=_LABELS)
        alarms = CounterMetricFamily("dlproxy_alarms", "Times that something began to be unusual", labels=_LABELS)
        for model, counts in models:
            unusual.add_metric((model.name, model.version), counts.unusual)
            alarms.add_metric((model.name, model.version), counts.alarms)
        yield from (unusual, alarms)

    def _versions(self) -> Metric:
        counted = Counter("failed" if one.reason else one.phase for one in self._wanted())
        versions = GaugeMetricFamily(
            "dlproxy_versions", "Versions of models by how far they are; failed: also updates of what serves", labels=("phase",)
        )
        for phase in ("wanted", "failed", *get_args(Phase)):
            versions.add_metric((phase,), counted[phase])
        return versions


def registry(
    models: Iterable[ModelView],
    connections: Callable[[], int],
    wanted: Callable[[], Iterable[VersionState]] = tuple,
) -> CollectorRegistry:
    """Everything that the metrics page shows, including the process's memory, CPU time and file descriptors."""
    registry = CollectorRegistry()
    registry.register(ModelCollector(models, connections, wanted))
    ProcessCollector(registry=registry)
    PlatformCollector(registry=registry)
    return registry


def openmetrics_page(registry: CollectorRegistry, models: Iterable[ModelView]) -> bytes:
    """The registry as OpenMetrics has it, whose phases have exemplars, which are kept once this was asked for."""
    for model in models:
        if _exemplars(model.stats) is None:
            model.stats.observers.append(PhaseExemplars())
    shown: bytes = openmetrics.generate_latest(registry)  # type: ignore[no-untyped-call]
    return shown


def page(registry: CollectorRegistry) -> bytes:
    """The registry as Prometheus text, with Triton's counters declared as such."""
    return re.sub(rb"^(# TYPE nv_\w+) untyped$", rb"\1 counter", generate_latest(registry), flags=re.MULTILINE)


def _counter(
    name: str, help_text: str, models: Sequence[ModelView], value: Callable[[ModelStats], float]
) -> UnknownMetricFamily:
    """One of Triton's, which lack the `_total` that the client library appends to a counter: `page` makes it one."""
    family = UnknownMetricFamily(name, help_text, labels=_LABELS)
    for model in models:
        family.add_metric((model.name, model.version), value(model.stats))
    return family


def _cumulative(histogram: Histogram) -> list[tuple[str, float] | tuple[str, float, Exemplar]]:
    buckets: list[tuple[str, float] | tuple[str, float, Exemplar]] = []
    total = 0
    for bound, count in zip((*BOUNDS_S, float("inf")), histogram.counts, strict=True):
        total += count
        buckets.append(("+Inf" if bound == float("inf") else repr(bound), float(total)))
    return buckets

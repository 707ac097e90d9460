"""The metrics page: it parses, its names are Triton's and ours, and its values are the counters'."""

import re
import shutil
import subprocess
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families

from dlproxy.message import NO_TRACE, FailureKind, Request, Ticket, Trace
from dlproxy.policy.events import Arrived, InstanceExpected, InstanceUp
from dlproxy.policy.knobs import LaneKnobs
from dlproxy.policy.lane import Lane
from dlproxy.policy.planner import VersionState
from dlproxy.policy.view import LaneView
from dlproxy.telemetry.prometheus import openmetrics_page, page, registry
from dlproxy.telemetry.stats import (
    BOUNDS_S,
    AnsweredBatch,
    CacheCounts,
    CacheSize,
    DriftCounts,
    ModelStats,
    SequenceCounts,
    StepCounts,
    VariantCounts,
    WatchCounts,
)

ROOT = Path(__file__).parents[2]
TRITON = {
    "nv_inference_request_success",
    "nv_inference_request_failure",
    "nv_inference_count",
    "nv_inference_exec_count",
    "nv_inference_request_duration_us",
    "nv_inference_queue_duration_us",
    "nv_inference_compute_input_duration_us",
    "nv_inference_compute_infer_duration_us",
    "nv_inference_compute_output_duration_us",
    "nv_inference_pending_request_count",
}
TRITON_CACHE = {
    "nv_cache_num_hits_per_model",
    "nv_cache_num_misses_per_model",
    "nv_cache_hit_duration_per_model",
    "nv_cache_miss_duration_per_model",
}
OURS = {
    "dlproxy_phase_seconds",
    "dlproxy_queue_rows",
    "dlproxy_batch_limit_rows",
    "dlproxy_model_ready",
    "dlproxy_instances",
    "dlproxy_instance_changes",
    "dlproxy_shadow_answers",
    "dlproxy_broken_streams",
    "dlproxy_versions",
    "dlproxy_http_connections",
}


@dataclass
class Model:
    name: str = "digits"
    version: str = "1"
    stats: ModelStats = field(default_factory=ModelStats)
    lane: Lane = field(default_factory=lambda: Lane(LaneKnobs(max_batch=32, max_queue_rows=100)))

    def view(self) -> LaneView:
        return self.lane.view()


def busy_model() -> Model:
    model = Model()
    model.lane.on(InstanceExpected(10.0), 0.0)
    model.lane.on(Arrived([Ticket(1, 0.0, rows=7)]), 0.0)
    three_s = [0.001, 0.002, 0.003]
    model.stats.batch_answered(AnsweredBatch(5, three_s, after_s=0.3, batch_s=0.010, compute_s=0.200, split_s=0.004))
    model.stats.batch_answered(AnsweredBatch(1, [20.0], after_s=0.2, batch_s=0.010, compute_s=0.100, split_s=0.001))
    for kind in FailureKind:
        model.stats.failed(kind, 0.1)
    model.stats.failed(FailureKind.QUEUE_FULL, 0.1)
    return model


class Page:
    """A scraped page, by sample name and labels."""

    def __init__(self, *models: Model, connections: int = 3) -> None:
        self.text = page(registry(models, lambda: connections)).decode()
        self.families = {family.name: family for family in text_string_to_metric_families(self.text)}
        self.values: dict[tuple[str, frozenset[tuple[str, str]]], float] = {}
        for family in self.families.values():
            for sample in family.samples:
                name = sample.name.removesuffix("_total") if sample.name.startswith("nv_") else sample.name  # the parser's
                key = (name, frozenset(sample.labels.items()))
                assert key not in self.values, f"{sample.name} {sample.labels} is on the page twice"
                self.values[key] = sample.value

    def value(self, name: str, **labels: str) -> float:
        return self.values[name, frozenset(labels.items())]

    def of(self, name: str, model: str = "digits", **labels: str) -> float:
        return self.value(name, model=model, version="1", **labels)


def test_has_the_names_that_tritons_users_look_for() -> None:
    page = Page(busy_model())
    assert {name for name, _ in page.values if name.startswith("nv_")} == TRITON
    assert not re.search(r"^(# \w+ )?nv_\w+_total", page.text, re.MULTILINE)


def test_tritons_counters_are_counters() -> None:
    page = Page(busy_model())
    types = {family.name: family.type for family in page.families.values()}
    for name in TRITON - {"nv_inference_pending_request_count"}:
        assert types[name] == "counter"
        assert re.search(rf"^# HELP {name} .*\n# TYPE {name} counter\n{name}{{", page.text, re.MULTILINE)
    assert types["nv_inference_pending_request_count"] == "gauge"
    assert "unknown" not in types.values()


def test_has_our_names_and_the_processs() -> None:
    families = Page(busy_model()).families
    assert set(families) >= OURS
    assert {"process_resident_memory_bytes", "process_open_fds"} <= set(families)


def test_every_metric_is_explained() -> None:
    for family in Page(busy_model()).families.values():
        assert family.documentation, family.name


def test_tritons_values_are_the_counters() -> None:
    page, stats = Page(model := busy_model()), model.stats
    assert page.of("nv_inference_request_success") == 4
    assert page.of("nv_inference_count") == stats.rows == 6
    assert page.of("nv_inference_exec_count") == stats.batches == 2
    assert page.of("nv_inference_pending_request_count") == 7
    for name, histogram in (
        ("request", stats.request),
        ("queue", stats.queue),
        ("compute_input", stats.batch),
        ("compute_infer", stats.compute),
        ("compute_output", stats.split),
    ):
        assert page.of(f"nv_inference_{name}_duration_us") == pytest.approx(histogram.total_s * 1e6)


def test_streams_are_shown_of_models_that_have_any() -> None:
    model, other = busy_model(), Model("other")
    streams = model.stats.streaming()
    streams.open = 2
    streams.sent(0, 4, compute_s=0.1, split_s=0.0, after_s=0.0)
    streams.sent(1, 3, compute_s=0.1, split_s=0.0, after_s=0.02)
    page = Page(model, other)
    assert page.of("dlproxy_open_streams") == 2
    assert page.of("dlproxy_stream_parts_total") == 7
    assert page.of("dlproxy_stream_first_part_seconds_count") == model.stats.request.count
    assert page.of("dlproxy_stream_between_parts_seconds_sum") == pytest.approx(0.06)
    assert page.of("dlproxy_stream_between_parts_seconds_bucket", le="0.01") == 0
    assert page.of("dlproxy_stream_between_parts_seconds_bucket", le="0.025") == 3
    assert not [name for name, labels in page.values if "stream_" in name and ("model", "other") in labels]


def test_result_caches_are_shown_of_models_that_have_one() -> None:
    model, other = busy_model(), Model("other")
    counts = model.stats.cache = CacheCounts(lambda: CacheSize(entries=3, bytes=4500, budget_bytes=2**20))
    counts.hits, counts.misses, counts.joined, counts.bypassed = 5, 4, 3, 2
    counts.evicted, counts.expired, counts.shared, counts.known_rows = 7, 6, 1, 8
    counts.rechecks["different"] = 9
    counts.hit_s, counts.miss_s = 0.25, 0.5
    page = Page(model, other)
    assert {name for name, _ in page.values if name.startswith("nv_")} == TRITON | TRITON_CACHE
    assert all(re.search(rf"^# TYPE {name} counter\n{name}{{", page.text, re.MULTILINE) for name in TRITON_CACHE)
    assert page.of("nv_cache_num_hits_per_model") == 5
    assert page.of("nv_cache_num_misses_per_model") == 4
    assert page.of("nv_cache_hit_duration_per_model") == 250_000
    assert page.of("nv_cache_miss_duration_per_model") == 500_000
    results = {"hit": 5, "miss": 4, "joined": 3, "bypass": 2}
    assert {result: page.of("dlproxy_cache_requests_total", result=result) for result in results} == results
    assert [page.of(f"dlproxy_cache_{name}_total") for name in ("evicted", "expired", "shared", "known_rows")] == [7, 6, 1, 8]
    assert page.of("dlproxy_cache_rechecked_answers_total", result="different") == 9
    assert page.of("dlproxy_cache_rechecked_answers_total", result="same") == 0
    assert [page.of(f"dlproxy_cache_{name}") for name in ("entries", "bytes", "budget_bytes")] == [3, 4500, 2**20]
    assert not [name for name, labels in page.values if "_cache_" in name and ("model", "other") in labels]


def test_what_is_unusual_and_what_drifts_is_shown_of_models_that_are_watched() -> None:
    plain = page(registry([Model()], lambda: 0)).decode()
    assert "dlproxy_unusual{" not in plain
    assert "dlproxy_drifted{" not in plain
    model = Model()
    watch, drift = WatchCounts(), DriftCounts()
    model.stats.watch, model.stats.drift = watch, drift
    watch.unusual, watch.alarms = True, 3
    drift.drifted, drift.distances = ["input x mean"], {("input x mean", "psi"): 0.5}
    shown = page(registry([model], lambda: 0)).decode()
    for line in (
        'dlproxy_unusual{model="digits",version="1"} 1.0',
        'dlproxy_alarms_total{model="digits",version="1"} 3.0',
        'dlproxy_drifted{model="digits",version="1"} 1.0',
        'dlproxy_drift_distance{model="digits",of="input x mean",test="psi",version="1"} 0.5',
    ):
        assert line in shown.splitlines()


def test_who_answers_in_place_of_a_model_is_shown_of_models_that_have_variants() -> None:
    model, other = busy_model(), Model("other")
    counts = model.stats.variants = VariantCounts("m", ["m-int8", "m-small"])
    counts.answers["m-int8"], counts.spilled, counts.switches = 5, 3, 2
    counts.assignment |= {7: "m-int8", 8: "gone"}
    page = Page(model, other)
    assert [page.of("dlproxy_variant_answers_total", variant=name) for name in ("m-int8", "m-small")] == [5, 0]
    assert [page.of(f"dlproxy_variant_{name}_total") for name in ("spilled", "switches")] == [3, 2]
    assigned = {
        priority: [
            name
            for name in ("m", "m-int8", "m-small", "gone")
            if page.of("dlproxy_variant_assigned", priority=str(priority), variant=name)
        ]
        for priority in range(1, 9)
    }
    assert assigned == {**dict.fromkeys(range(1, 7), ["m"]), 7: ["m-int8"], 8: ["gone"]}  # noqa: RUF024
    assert not [name for name, labels in page.values if "_variant_" in name and ("model", "other") in labels]


def test_who_has_an_objective_shows_how_many_met_it() -> None:
    model = busy_model()
    assert "dlproxy_objective_seconds{" not in Page(model).text
    model = Model()
    model.stats.aim(0.25, 0.95)
    four_s = [0.1, 0.2, 0.0, 0.05]
    model.stats.batch_answered(AnsweredBatch(4, four_s, after_s=0.1, batch_s=0.0, compute_s=0.1, split_s=0.0))
    model.stats.request_remembered(0.001)
    for kind in FailureKind:
        model.stats.failed(kind, 0.1)
    page = Page(model)
    found = {result: page.of("dlproxy_objective_requests_total", result=result) for result in ("met", "late", "refused")}
    assert found == {"met": 4, "late": 1, "refused": 4}
    assert (page.of("dlproxy_objective_seconds"), page.of("dlproxy_objective_share")) == (0.25, 0.95)
    model.stats.aim(0.05, 0.99)
    model.stats.batch_answered(AnsweredBatch(1, [0.1], after_s=0.1, batch_s=0.0, compute_s=0.1, split_s=0.0))
    assert Page(model).of("dlproxy_objective_requests_total", result="late") == 2
    model.stats.aim(None, 0.99)
    assert "dlproxy_objective_seconds{" not in Page(model).text
    assert not model.stats.readers


def test_the_steps_of_pipelines_are_counted() -> None:
    model, other = busy_model(), Model("other")
    counts = StepCounts()
    model.stats.steps = {"read": counts, "find": StepCounts()}
    for _ in range(4):
        counts.began()
    counts.ended(waited_s=0.5, computed_s=2.0)
    counts.ended(waited_s=0.25, computed_s=1.0)
    counts.failed()
    page = Page(model, other)
    names = ("requests_total", "failures_total", "skipped_total", "wait_seconds_total", "compute_seconds_total", "in_flight")
    assert [page.of(f"dlproxy_step_{name}", step="read") for name in names] == [2, 1, 0, 0.75, 3, 1]
    assert not [name for name, labels in page.values if "_step_" in name and ("model", "other") in labels]


def test_failures_have_tritons_reasons_and_none_is_lost() -> None:
    page, stats = Page(model := busy_model()), model.stats
    by_reason = {
        reason: page.of("nv_inference_request_failure", reason=reason)
        for reason in ("REJECTED", "CANCELED", "BACKEND", "OTHER")
    }
    assert by_reason == {"REJECTED": 6, "CANCELED": 1, "BACKEND": 1, "OTHER": len(FailureKind) - 7}
    assert sum(by_reason.values()) == sum(stats.failures.values())


@pytest.mark.parametrize("phase", ["queue", "batch", "compute", "split", "request"])
def test_histograms_are_cumulative_and_end_with_all(phase: str) -> None:
    page, histogram = Page(model := busy_model()), getattr(model.stats, phase)
    total = 0
    for bound, count in zip((*map(repr, BOUNDS_S), "+Inf"), histogram.counts, strict=True):
        total += count
        assert page.of("dlproxy_phase_seconds_bucket", phase=phase, le=bound) == total
    assert page.of("dlproxy_phase_seconds_count", phase=phase) == total == 4
    assert page.of("dlproxy_phase_seconds_sum", phase=phase) == pytest.approx(histogram.total_s)


def test_gauges_are_read_at_the_scrape() -> None:
    model = Model()
    model.lane.on(InstanceExpected(10.0), 0.0)
    model.lane.on(Arrived([Ticket(1, 0.0)]), 0.0)
    assert Page(model).of("dlproxy_queue_rows") == 1
    assert Page(model).of("dlproxy_model_ready") == 0
    model.lane.on(InstanceUp("m-0"), 1.0)  # and is busy from then on
    model.lane.on(Arrived([Ticket(2, 1.0, rows=9)]), 1.0)
    page = Page(model, connections=12)
    assert page.of("dlproxy_queue_rows") == 9
    assert page.of("dlproxy_batch_limit_rows") == model.lane.view().batch_goal
    assert page.of("dlproxy_model_ready") == 1
    assert page.value("dlproxy_http_connections") == 12


def test_instances_are_counted_by_state_and_by_change() -> None:
    model = Model()
    page = Page(model)
    for state in ("up", "starting", "waiting", "lost"):
        assert page.of("dlproxy_instances", state=state) == 0, "a row is there before the first instance is"
    for change in ("up", "lost", "retired", "failed_to_start"):
        assert page.of("dlproxy_instance_changes_total", change=change) == 0
    model.stats.instance_states.update(up=2, waiting=1)
    model.stats.instance_changes["lost"] += 3
    page = Page(model)
    assert page.of("dlproxy_instances", state="up") == 2
    assert page.of("dlproxy_instances", state="waiting") == 1
    assert page.of("dlproxy_instance_changes_total", change="lost") == 3


def test_broken_streams_are_counted_by_kind_and_not_as_failed_requests() -> None:
    model = Model()
    assert Page(model).of("dlproxy_broken_streams_total", kind="unavailable") == 0, "a row is there before the first one breaks"
    for kind in (FailureKind.MODEL_FAILED, FailureKind.MODEL_FAILED, FailureKind.QUOTA):
        model.stats.broke_off(kind)
    page = Page(model)
    assert page.of("dlproxy_broken_streams_total", kind="model_failed") == 2
    assert page.of("dlproxy_broken_streams_total", kind="quota") == 1
    assert page.of("nv_inference_request_failure", reason="BACKEND") == 0


def test_models_have_their_own_rows() -> None:
    page = Page(busy_model(), Model(name='odd "name"\\n'))
    assert page.of("nv_inference_count") == 6
    assert page.of("nv_inference_count", model='odd "name"\\n') == 0


def test_without_a_model_the_page_still_parses() -> None:
    page = Page()
    assert page.value("dlproxy_http_connections") == 3
    assert not any(name.startswith("nv_") for name, _ in page.values)


def test_the_openmetrics_form_parses_too() -> None:
    text = openmetrics_page(registry([busy_model()], lambda: 1), []).decode()
    families = {family.name: family for family in parse_openmetrics(text)}
    assert "nv_inference_count" in families
    assert families["dlproxy_phase_seconds"].type == "histogram"


def test_versions_that_could_not_be_loaded_are_counted() -> None:
    there = [
        VersionState("a", "1", "serving"),
        VersionState("a", "2", "failed", reason="broken"),
        VersionState("b", "1", "serving", reason="its update is broken"),
    ]
    text = page(registry([], lambda: 0, lambda: there)).decode()
    assert 'dlproxy_versions{phase="serving"} 1.0' in text
    assert 'dlproxy_versions{phase="failed"} 2.0' in text
    assert 'dlproxy_versions{phase="loading"} 0.0' in text


# OpenMetrics


def named(number: int, trace: Trace, **terms: Any) -> Request:
    return Request(Ticket(number, 10.0, **terms), "digits", [], (0,), trace=trace)


PARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-"
TRACED, FOLLOWED, UNTRACED, LONG = Trace("a", PARENT + "01"), Trace("b"), Trace("c", PARENT + "00"), Trace("d" * 128)


def exemplars(*requests: Request) -> dict[str, set[tuple[str, float]]]:
    """Of each phase: labels' values and seconds, of a batch with these requests."""
    model = busy_model()
    whole = registry([model], lambda: 3)
    openmetrics_page(whole, [model])
    batch = AnsweredBatch(len(requests), [0.5] * len(requests), after_s=0.3, batch_s=0.01, compute_s=0.2, split_s=0.004)
    batch.dispatched_at, batch.requests = 10.5, requests
    model.stats.batch_answered(batch)
    found: dict[str, set[tuple[str, float]]] = {}
    for family in parse_openmetrics(openmetrics_page(whole, [model]).decode()):
        for sample in family.samples:
            if sample.exemplar is not None:
                assert sample.name == "dlproxy_phase_seconds_bucket"
                assert sample.exemplar.value <= float(sample.labels["le"])
                ((label, value),) = sample.exemplar.labels.items()
                found.setdefault(sample.labels["phase"], set()).add((f"{label}={value}", round(sample.exemplar.value, 9)))
    assert batch.requests == (), "none is kept"
    return found


ALL = {"queue": 0.5, "batch": 0.01, "compute": 0.2, "split": 0.004, "request": 0.8}


@pytest.mark.parametrize(
    ("traces", "name"),
    [
        ((NO_TRACE,), ""),
        ((NO_TRACE, FOLLOWED), "request_id=b"),
        ((FOLLOWED, NO_TRACE, TRACED), "trace_id=0af7651916cd43dd8448eb211c80319c"),
        ((UNTRACED, FOLLOWED), "request_id=c"),
        ((LONG,), ""),
        ((Trace(parent=PARENT + "00"),), ""),
    ],
)
def test_a_request_of_a_batch_is_its_exemplar(traces: tuple[Trace, ...], name: str) -> None:
    found = exemplars(*[named(number, trace) for number, trace in enumerate(traces)])
    assert found == ({phase: {(name, seconds)} for phase, seconds in ALL.items()} if name else {})


def test_a_part_of_a_request_is_none() -> None:
    assert exemplars(named(1, TRACED, part_of=1)) == {}


def test_nothing_is_kept_for_whoever_reads_plain_text() -> None:
    model = busy_model()
    page(registry([model], lambda: 3))
    assert model.stats.observers == []
    for _ in range(3):
        openmetrics_page(registry([model], lambda: 3), [model])
    assert len(model.stats.observers) == 1


# All of it


def whole_model() -> Model:
    """With everything that there are metrics of."""
    model = busy_model()
    stats = model.stats
    stats.aim(0.25, 0.95)
    stats.streaming()
    stats.cache, stats.watch, stats.drift = CacheCounts(), WatchCounts(), DriftCounts()
    stats.drift.distances = {("input x mean", "psi"): 0.5}
    stats.variants = VariantCounts("m", ["m-int8"])
    stats.steps = {"read": StepCounts()}
    stats.sequences = SequenceCounts(lambda: 1)
    stats.decisions["change"] += 1
    return model


BOUNDED = {
    "models, as configured": {"model", "version", "variant", "step"},
    "words of ours": {"phase", "reason", "state", "change", "result", "kind", "priority", "test", "le"},
    "inputs, outputs and what is measured of them": {"of"},
    "of this interpreter": {"implementation", "major", "minor", "patchlevel"},
}
"""All labels, by what there can be no more of; none may have what a client says."""


def test_every_metric_is_documented_and_has_no_label_without_bounds() -> None:
    guides = "\n".join(guide.read_text("utf-8") for guide in (ROOT / "docs" / "guides").glob("*.md"))
    told = set(re.findall(r"\b(?:nv|dlproxy)_\w+", guides))
    for before, names, after in re.findall(r"\b((?:nv|dlproxy)_\w+)\{([a-z_,]+)\}(_\w+)", guides):
        told |= {f"{before}{name}{after}" for name in names.split(",")}
    missing, labels = [], set()
    for family in Page(whole_model()).families.values():
        labels |= {label for sample in family.samples for label in sample.labels}
        name = f"{family.name}_total" if family.type == "counter" and not family.name.startswith("nv_") else family.name
        if family.name.startswith(("nv_", "dlproxy_")) and name not in told:
            missing.append(name)
    assert missing == []
    assert labels <= set().union(*BOUNDED.values())


@pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool is not installed")
def test_promtool_has_no_fault_to_find() -> None:
    text = page(registry([whole_model(), Model('odd "name"\\n')], lambda: 3))
    done = subprocess.run(["promtool", "check", "metrics"], input=text, capture_output=True, check=False)
    faults = [line for line in (done.stdout + done.stderr).decode().splitlines() if not line.startswith("nv_")]
    assert faults == []
    assert done.returncode in (0, 3), "3: Triton's names are not as Prometheus would have them"

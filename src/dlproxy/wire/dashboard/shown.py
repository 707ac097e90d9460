"""What the page is told of one version of a model, as JSON. Called by feed.py for each version of which something has changed.

Numbers have three significant digits: a page shows no more, and what is equal is not sent again. Not aware of: who reads.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from dlproxy.message import encodable
from dlproxy.policy.planner import VersionState
from dlproxy.policy.view import LaneView
from dlproxy.telemetry.stats import StepCounts
from dlproxy.wire.catalog import ServedModel
from dlproxy.wire.dashboard.history import Counts, Track, batch_rows, nothing, quantiles, utilisation

STATES = {"serving": "up", "leaving": "unloading"}
CIRCUITS = {"open": "ejected", "half-open": "on probation"}
IDLE = nothing()


def short(value: float | None) -> float | None:
    """Three significant digits."""
    return None if value is None else float(f"{value:.3g}")


def shown(
    one: VersionState,
    model: ServedModel | None = None,
    view: LaneView | None = None,
    instances: Sequence[Mapping[str, Any]] = (),
    track: Track | None = None,
) -> dict[str, Any]:
    """`model`, `view`: none unless it serves; `track`: none if it has done nothing yet."""
    told: dict[str, Any] = {
        "name": one.name,
        "version": one.version,
        "state": _state(one),
        "reason": encodable(one.reason),
        "default": one.default,
        "labels": list(one.labels),
        "share": short(one.share),
        "canary": {"share": short(one.share)} if one.share and not one.default else None,
        "on_demand": one.on_demand,
        "size_bytes": one.size_bytes,
    }
    if model is None or view is None:
        return told
    if not view.instances and not view.asleep and one.phase == "serving":
        told["state"] = "down"
    return {**told, "instances": instances, **_served(model, view, track)}


def _state(one: VersionState) -> str:
    if one.phase == "wanted":
        return "unloaded" if one.on_demand else "waiting"
    return STATES.get(one.phase, one.phase)


def _served(model: ServedModel, view: LaneView, track: Track | None) -> dict[str, Any]:
    stats = model.stats
    second, counts = (IDLE, IDLE) if track is None else (track.second, track.seconds)
    pilot = model.pilot(0)
    return {
        "platform": model.signature.platform,
        "pipeline": model.pipeline is not None,
        "rate": short(second.per_second(second.answered)),
        "rows_rate": short(second.per_second(second.rows)),
        **dict(zip(("p50_s", "p95_s", "p99_s"), map(short, quantiles(counts.latency, 0.5, 0.95, 0.99)), strict=True)),
        "phases": _phases(counts),
        "batch_rows": short(batch_rows(counts)),
        "batch_goal": view.batch_goal,
        "queued": view.queued_requests,
        "running": view.running_requests,
        "rejects_rate": short(second.per_second(second.rejects)),
        "failures_rate": short(second.per_second(second.failures)),
        "utilisation": short(utilisation(second, capacity_of(view))),
        "cache": _cache(model, counts),
        "objective": _objective(model, track),
        "autopilot": None if pilot is None else {key: pilot[key] for key in ("mode", "phase", "pins")},
        "steps": None if stats.steps is None else [_step(*step) for step in stats.steps.items()],
        "variants": None if stats.variants is None else {str(level): by for level, by in stats.variants.assignment.items()},
        "alarm": "" if pilot is None else pilot["unusual"],
    }


def capacity_of(view: LaneView) -> int:
    """Batches that its instances run at a time."""
    return sum([instance.capacity for instance in view.instances])


def instances_of(model: ServedModel, view: LaneView) -> list[dict[str, Any]]:
    """Every one that is wanted; the lane knows more of those that are up. `address`: of one on another server."""
    up = {one.name: one for one in view.instances}
    told = []
    for place in model.places():
        one = up.get(place["name"])
        state = place["state"] if one is None else CIRCUITS.get(one.circuit.value, "up")
        problem = "" if one is not None else encodable(place["last_problem"] or "")
        busy = 0 if one is None else one.in_flight
        told.append(
            {"name": place["name"], "state": state, "busy": busy, "address": place["address"] or "", "problem": problem}
        )
    return told


def _phases(counts: Counts) -> dict[str, float | None]:
    """Seconds of a request that was computed, in the mean."""
    computed = counts.answered - counts.remembered
    sums = {"queue": counts.queue_s, "batch": counts.batch_s, "compute": counts.compute_s, "split": counts.split_s}
    return {name: short(seconds / computed) for name, seconds in sums.items()} if computed > 0 else {}


def _cache(model: ServedModel, counts: Counts) -> dict[str, Any] | None:
    cache = model.stats.cache
    if cache is None:
        return None
    size = cache.size()
    ratio = counts.hits / counts.look_ups if counts.look_ups else None
    return {"hit_ratio": short(ratio), "entries": size.entries, "bytes": size.bytes}


def _step(name: str, counts: StepCounts) -> dict[str, Any]:
    """Of a pipeline. Times: of a request, of late."""
    return {
        "name": name,
        "running": counts.in_flight,
        "usual_wait_s": short(counts.usual_wait_s),
        "usual_s": short(counts.usual_s),
        "ended": counts.requests,
        "skipped": counts.skipped,
        "failed": counts.failures,
    }


def _objective(model: ServedModel, track: Track | None) -> dict[str, Any] | None:
    """`met`: the share of the last hour's requests; `budget_left`: of those that may miss it, what share has not; below 0 when
    too many have.
    """
    objective = model.stats.objective
    if objective is None:
        return None
    met, missed = (0, 0) if track is None else track.objective
    share = met / (met + missed) if met + missed else None
    may_miss = 1.0 - objective.share
    left = None if share is None or may_miss <= 0.0 else 1.0 - (1.0 - share) / may_miss
    exact = None if share is None else float(f"{share:.5f}")  # 0.9996 and 1 are not alike
    return {"seconds": short(objective.seconds), "share": objective.share, "met": exact, "budget_left": short(left)}

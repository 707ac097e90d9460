"""What the page is told of one version of a model, as JSON. Called by feed.py for each version of which something has changed.

Numbers have three significant digits: a page shows no more, and what is equal is not sent again. Not aware of: who reads.
"""

from typing import Any

from dlproxy.policy.planner import VersionState
from dlproxy.policy.view import LaneView
from dlproxy.wire.catalog import ServedModel
from dlproxy.wire.dashboard.history import Counts, Track, batch_rows, nothing, quantile, utilisation

STATES = {"serving": "up", "leaving": "unloading"}
CIRCUITS = {"open": "ejected", "half-open": "on probation"}
IDLE = nothing(0.0)


def short(value: float | None) -> float | None:
    """Three significant digits."""
    return None if value is None else float(f"{value:.3g}")


def shown(one: VersionState, model: ServedModel | None, track: Track | None) -> dict[str, Any]:
    """`model`: None unless it serves; `track`: None if it never did anything."""
    told: dict[str, Any] = {
        "name": one.name,
        "version": one.version,
        "state": _state(one, model),
        "reason": one.reason,
        "default": one.default,
        "labels": list(one.labels),
        "share": short(one.share),
        "canary": {"share": short(one.share)} if one.share and not one.default else None,
        "on_demand": one.on_demand,
        "size_bytes": one.size_bytes,
    }
    return told if model is None else {**told, **_served(model, track)}


def _state(one: VersionState, model: ServedModel | None) -> str:
    if one.phase == "wanted":
        return "unloaded" if one.on_demand else "waiting"
    if one.phase == "serving" and model is not None and not model.ready:
        return "down"
    return STATES.get(one.phase, one.phase)


def _served(model: ServedModel, track: Track | None) -> dict[str, Any]:
    stats, view = model.stats, model.view()
    second, counts = (IDLE, IDLE) if track is None else (track.second, track.seconds)
    pilot = model.pilot()
    return {
        "platform": model.signature.platform,
        "pipeline": model.pipeline is not None,
        "instances": instances_of(model, view),
        "rate": short(second.per_second(second.answered)),
        "rows_rate": short(second.per_second(second.rows)),
        **{f"p{percent}_s": short(quantile(counts.latency, percent / 100)) for percent in (50, 95, 99)},
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
        "variants": None if stats.variants is None else {str(level): by for level, by in stats.variants.assignment.items()},
        "alarm": "" if pilot is None else pilot["unusual"],
    }


def capacity_of(view: LaneView) -> int:
    """Batches that its instances run at a time."""
    return sum([instance.capacity for instance in view.instances])


def instances_of(model: ServedModel, view: LaneView) -> list[dict[str, Any]]:
    """Every one that is wanted. The lane knows those that are up; of others the control is asked, which takes longer."""
    up = [{"name": one.name, "state": CIRCUITS.get(one.circuit.value, "up"), "busy": one.in_flight} for one in view.instances]
    states = model.stats.instance_states
    if model.control is None or not (states["starting"] or states["waiting"] or states["lost"]):
        return up
    known = {one["name"] for one in up}
    places = model.control.state().get("instances", ())
    others = [place for place in places if place["name"] not in known]
    return up + [
        {"name": one["name"], "state": one["state"], "busy": 0, "problem": one["last_problem"] or ""} for one in others
    ]


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

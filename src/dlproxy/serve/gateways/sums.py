"""What several gateways tell of the same, as one: counters added, states joined. Pure.

Called by control.py, feed.py and totals.py. Not aware of: HTTP, processes, who asks.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from itertools import chain
from typing import Any

Json = Any

_OF_THE_MODEL = ("version", "default", "share", "objective_s", "tolerated", "batch_goal", "batch_limit_rows", "capacity")
_OF_THE_SERVER = ("at", "started_at", "number", "concurrent", "requests_per_s", "rows_per_s")
_FIRST = frozenset((*_OF_THE_MODEL, *_OF_THE_SERVER, "priority", "restarts", "knobs", "tuned", "ways"))
"""What is the same everywhere, or of which the sum says nothing."""
_MOST = frozenset(
    [*("p50_s", "p95_s", "p99_s", "usual_s", "usual_wait_s"), *("for_s", "again_in_s", "batch_rows", "step_s", "utilisation")]
)
_LEAST = frozenset(["requests_left", "rows_left", "met", "budget_left", "hit_ratio"])
_WORST = ("failed", "down", "loading", "waiting", "unloading", "leaving", "wanted", "up", "serving")
"""States of a model, that of the one which is the furthest from well first."""

_NOT_ADDED: Mapping[str, Callable[[float, float], float]] = {
    "dlproxy_batch_limit_rows": max,
    "dlproxy_model_ready": min,
    "dlproxy_objective_seconds": max,
    "dlproxy_objective_share": max,
    "dlproxy_variant_assigned": max,
    "dlproxy_drifted": max,
    "dlproxy_drift_distance": max,
    "dlproxy_unusual": max,
    "dlproxy_versions": max,
    "process_start_time_seconds": min,
}
"""Gauges of which the sum says nothing. Everything else is a counter, or an amount."""
SAMPLE = re.compile(r"(?P<key>(?P<name>[a-zA-Z_:][\w:]*)(?:\{(?:[^\"}]|\"(?:\\.|[^\"\\])*\")*\})?) (?P<value>\S+)(?P<rest>.*)")


def summed_page(pages: Sequence[str]) -> str:
    """Prometheus's text or OpenMetrics: each sample once, with its first exemplar, in the first page's order."""
    values: dict[str, float] = {}
    order: dict[str, str | None] = {}  # lines by key; None: a sample
    rests: dict[str, str] = {}
    ends = False
    for page in pages:
        for line in page.splitlines():
            found = SAMPLE.fullmatch(line)
            if found is None:
                ends = ends or line == "# EOF"
                if line != "# EOF":
                    order.setdefault(line, line)
                continue
            key, value = found["key"], float(found["value"])
            order.setdefault(key, None)
            rests.setdefault(key, found["rest"])
            values[key] = _NOT_ADDED.get(found["name"], _add)(values[key], value) if key in values else value
    lines = [f"{key} {values[key]}{rests[key]}" if line is None else line for key, line in _grouped(order)]
    return "\n".join([*lines, *(["# EOF"] if ends else []), ""])


def _grouped(order: Mapping[str, str | None]) -> list[tuple[str, str | None]]:
    """Samples that only a later page has stand behind those of their family, as readers of the format want it."""
    families: dict[str, list[tuple[str, str | None]]] = {}
    family = ""
    for key, line in order.items():
        if line is not None:
            family = line.split(" ", 3)[2] if line.startswith("# ") and line.count(" ") >= 2 else family
            families.setdefault(family, []).append((key, line))
        else:
            name = key.partition("{")[0]
            own = next((each for each in names_of(name) if each in families), family)
            families.setdefault(own, []).append((key, line))
    return [entry for entries in families.values() for entry in entries]


def names_of(sample: str) -> list[str]:
    """Of families that a sample of this name may belong to."""
    endings = ("_bucket", "_count", "_sum", "_total", "_created", "_info")
    return [sample, *(sample.removesuffix(ending) for ending in endings if sample.endswith(ending))]


def _add(one: float, other: float) -> float:
    return one + other


def summed(told: Sequence[Json], field: str = "") -> Json:
    """JSON of several gateways, as one. Objects are joined by their fields, lists of named things by their names; numbers are
    added, unless `field` is one of which the sum says nothing.
    """
    known = [one for one in told if one is not None]
    if not known:
        return None
    first = known[0]
    if field in _FIRST:
        return first
    if isinstance(first, dict):
        fields = dict.fromkeys(name for one in known for name in one)
        return {name: summed([one[name] for one in known if name in one], name) for name in fields}
    if isinstance(first, list):
        return _joined(known)
    if isinstance(first, bool):
        return all(known) if field == "ready" else first
    if isinstance(first, int | float):
        return max(known) if field in _MOST else min(known) if field in _LEAST else sum(known)
    if field in ("state", "phase"):
        return min(known, key=lambda state: _WORST.index(state) if state in _WORST else len(_WORST))
    return next(filter(None, known), first)


def _joined(lists: Sequence[list[Json]]) -> list[Json]:
    """Things of one name and version once, and what has no name, once if it is equal."""
    groups: dict[Any, list[Json]] = {}
    for each in chain.from_iterable(lists):
        named = isinstance(each, dict) and "name" in each
        key = (each["name"], each.get("version"), each.get("of")) if named else repr(each)
        groups.setdefault(key, []).append(each)
    return [summed(group) for group in groups.values()]


def apart(told: Sequence[tuple[int, Json]]) -> list[Json]:
    """Lists of several gateways as one, each thing with the number of its gateway."""
    return [{**each, "gateway": number} for number, one in told for each in one]


def with_gateways(number: int, model: Json) -> Json:
    """A model's state whose instances say which gateway they are of."""
    if not isinstance(model, dict) or "instances" not in model:
        return model
    return {**model, "instances": [{**one, "name": f"{number}:{one['name']}"} for one in model["instances"]]}


def summed_history(told: Sequence[Json]) -> Json:
    """Columns of the same model, second by second: amounts added, times as the slowest gateway's, other ratios in the mean."""
    by_second: dict[int, list[dict[str, Json]]] = {}
    columns = [name for name, value in told[0].items() if isinstance(value, list)]
    for one in told:
        for index, at in enumerate(one["at"]):
            by_second.setdefault(round(at), []).append({name: one[name][index] for name in columns})
    rows = [_second(by_second[second]) for second in sorted(by_second)]
    return {**told[0], **{name: [row[name] for row in rows] for name in columns}}


def _second(points: list[dict[str, Json]]) -> dict[str, Json]:
    row = {name: summed([point[name] for point in points], name) for name in points[0]}
    known = [point["batch_rows"] for point in points if point.get("batch_rows") is not None]
    return {**row, "batch_rows": sum(known) / len(known) if known else None}

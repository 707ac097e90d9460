"""A board for Grafana: is it well, where does the time go, what was decided. Printed by cli/monitor.py.

Import it under Dashboards; it asks for the Prometheus to read from. Not aware of: alerts.
"""

import json
from typing import Any

from msgspec import Struct

WIDTH, HEIGHT = 12, 8  # of a panel, on a grid of 24 columns
CHOSEN = 'model=~"$model"'
SINCE = "$__rate_interval"


class Panel(Struct, frozen=True):
    """`queries`: each with what its lines are called. `unit` as Grafana names it."""

    title: str
    queries: tuple[tuple[str, str], ...]
    unit: str = "short"
    about: str = ""


class Row(Struct, frozen=True):
    title: str
    panels: tuple[Panel, ...]


def _rate(metric: str, labels: str = "", by: str = "model") -> str:
    chosen = f"{CHOSEN}, {labels}" if labels else CHOSEN
    return f"sum by ({by}) (rate({metric}{{{chosen}}}[{SINCE}]))"


def _quantile(share: float, phase: str) -> str:
    return f"histogram_quantile({share:g}, {_rate('dlproxy_phase_seconds_bucket', f'phase={json.dumps(phase)}', 'model, le')})"


ROWS = (
    Row(
        "Is it well?",
        (
            Panel("Answers", ((_rate("nv_inference_request_success"), "{{model}}"),), "reqps"),
            Panel(
                "Not answered",
                ((_rate("nv_inference_request_failure", by="model, reason"), "{{model}} {{reason}}"),),
                "reqps",
                "REJECTED: queue, deadline, overload, quota. CANCELED: the client left. BACKEND: the model failed.",
            ),
            Panel(
                "Latency",
                (
                    (_quantile(0.5, "request"), "{{model}} p50"),
                    (_quantile(0.99, "request"), "{{model}} p99"),
                    (f"max by (model) (dlproxy_objective_seconds{{{CHOSEN}}})", "{{model}} objective"),
                ),
                "s",
            ),
            Panel(
                "Requests that met their objective",
                (
                    (
                        f"{_rate('dlproxy_objective_requests_total', 'result=~{}'.format(json.dumps('met')))} / "
                        f"{_rate('dlproxy_objective_requests_total')}",
                        "{{model}}",
                    ),
                    (f"max by (model) (dlproxy_objective_share{{{CHOSEN}}})", "{{model}} wanted"),
                ),
                "percentunit",
            ),
            Panel("Instances", ((f"sum by (model, state) (dlproxy_instances{{{CHOSEN}}})", "{{model}} {{state}}"),)),
            Panel("Versions", (("sum by (phase) (dlproxy_versions)", "{{phase}}"),)),
        ),
    ),
    Row(
        "Where does the time go?",
        (
            Panel(
                "Time of a request by phase",
                tuple(
                    (
                        f"{_rate(f'nv_inference_{name}_duration_us')} / {_rate('nv_inference_request_success')} / 1e6",
                        f"{{{{model}}}} {said}",
                    )
                    for name, said in (
                        ("queue", "queue"),
                        ("compute_input", "gather"),
                        ("compute_infer", "compute"),
                        ("compute_output", "split"),
                    )
                ),
                "s",
                "A long queue with a short compute means too little capacity.",
            ),
            Panel("Rows that wait", ((f"sum by (model) (dlproxy_queue_rows{{{CHOSEN}}})", "{{model}}"),)),
            Panel(
                "Rows of a batch",
                (
                    (f"{_rate('nv_inference_count')} / {_rate('nv_inference_exec_count')}", "{{model}} mean"),
                    (f"max by (model) (dlproxy_batch_limit_rows{{{CHOSEN}}})", "{{model}} limit"),
                ),
            ),
            Panel(
                "Answers from the cache",
                (
                    (
                        f"{_rate('dlproxy_cache_requests_total', 'result=~{}'.format(json.dumps('hit|joined')))} / "
                        f"{_rate('dlproxy_cache_requests_total')}",
                        "{{model}}",
                    ),
                ),
                "percentunit",
            ),
        ),
    ),
    Row(
        "What was decided?",
        (
            Panel("Autopilot", ((_rate("dlproxy_autopilot_decisions_total", by="model, kind"), "{{model}} {{kind}}"),)),
            Panel(
                "Instances that came and went",
                ((_rate("dlproxy_instance_changes_total", by="model, change"), "{{model}} {{change}}"),),
            ),
            Panel("Memory", (('process_resident_memory_bytes{job=~"$job"}', "{{instance}}"),), "bytes"),
            Panel(
                "Processor time", ((f'rate(process_cpu_seconds_total{{job=~"$job"}}[{SINCE}])', "{{instance}}"),), "percentunit"
            ),
        ),
    ),
)


def board() -> str:
    """JSON of the board."""
    panels: list[dict[str, Any]] = []
    y = 0
    for row in ROWS:
        panels.append({"type": "row", "title": row.title, "gridPos": {"x": 0, "y": y, "w": 24, "h": 1}, "panels": []})
        y += 1
        for number, panel in enumerate(row.panels):
            place = {"x": number % 2 * WIDTH, "y": y + number // 2 * HEIGHT, "w": WIDTH, "h": HEIGHT}
            panels.append(_panel(panel, place))
        y += (len(row.panels) + 1) // 2 * HEIGHT
    for number, one in enumerate(panels, 1):
        one["id"] = number
    return json.dumps(
        {
            "title": "dlproxy",
            "uid": "dlproxy",
            "tags": ["dlproxy"],
            "schemaVersion": 39,
            "refresh": "10s",
            "time": {"from": "now-1h", "to": "now"},
            "templating": {
                "list": [_source(), _choice("job", "dlproxy_http_connections"), _choice("model", "dlproxy_model_ready")]
            },
            "panels": panels,
        },
        indent=1,
    )


def _panel(panel: Panel, place: dict[str, int]) -> dict[str, Any]:
    source = {"type": "prometheus", "uid": "${source}"}
    queries = [
        {"refId": chr(ord("A") + number), "expr": expr, "legendFormat": name, "datasource": source}
        for number, (expr, name) in enumerate(panel.queries)
    ]
    return {
        "type": "timeseries",
        "title": panel.title,
        "description": panel.about,
        "datasource": source,
        "gridPos": place,
        "targets": queries,
        "fieldConfig": {"defaults": {"unit": panel.unit, "min": 0}, "overrides": []},
    }


def _source() -> dict[str, Any]:
    return {"name": "source", "label": "Prometheus", "type": "datasource", "query": "prometheus"}


def _choice(label: str, metric: str) -> dict[str, Any]:
    return {
        "name": label,
        "type": "query",
        "datasource": {"type": "prometheus", "uid": "${source}"},
        "query": {"query": f"label_values({metric}, {label})", "refId": label},
        "includeAll": True,
        "allValue": ".*",
        "multi": True,
        "current": {"text": "All", "value": "$__all"},
        "refresh": 2,
    }

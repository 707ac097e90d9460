"""Rules for Prometheus: when somebody has to look at a dlproxy. Printed by cli/monitor.py.

Of objectives by how quickly they use up their error budget, over a long window and a short one (Google, The Site Reliability
Workbook, 2018, chapter 5). Not aware of: who is told.
"""

import json
from collections.abc import Iterator

from msgspec import Struct

BY = "(job, instance, model, version)"  # whatever other labels a target has are left out
MISSED = "dlproxy:objective_missed:ratio_rate"  # and over how long: recorded, as each alert asks for several
WINDOWS = ("5m", "30m", "1h", "6h", "3d")
BURNS = (  # times as quick as would use up a month's budget in a month; long and short window; how bad that is
    (14.4, "1h", "5m", "critical"),
    (6.0, "6h", "30m", "critical"),
    (1.0, "3d", "6h", "warning"),
)


class Alert(Struct, frozen=True):
    """`expr` is true of each model that somebody has to look at, for so long that it is no passing thing."""

    name: str
    expr: str
    lasting: str
    severity: str
    summary: str
    description: str


ALERTS = (
    Alert(
        "DlproxyModelNotReady",
        "dlproxy_model_ready == 0",
        "2m",
        "critical",
        "no instance of {{ $labels.model }} is up",
        "Requests for it are refused. dlproxy models show {{ $labels.model }} says why; so does the server's log.",
    ),
    Alert(
        "DlproxyInstancesAreLost",
        'increase(dlproxy_instance_changes_total{change="lost"}[15m]) > 3',
        "0m",
        "warning",
        "instances of {{ $labels.model }} crash again and again",
        "Look for memory that ran out, or for an input that crashes it: the log names requests that are quarantined.",
    ),
    Alert(
        "DlproxyVersionFailed",
        'dlproxy_versions{phase="failed"} > 0',
        "5m",
        "warning",
        "a version could not be loaded",
        "What served before goes on serving. dlproxy models says which, and why.",
    ),
    Alert(
        "DlproxyModelFails",
        f'sum by {BY} (rate(nv_inference_request_failure{{reason="BACKEND"}}[5m])) > 0.01 * '
        f"(sum by {BY} (rate(nv_inference_request_success[5m])) + sum by {BY} (rate(nv_inference_request_failure[5m])))",
        "5m",
        "critical",
        "more than 1 % of the requests for {{ $labels.model }} fail in the model",
        "The log has the errors, each kind once.",
    ),
    Alert(
        "DlproxyRefusesRequests",
        f'sum by {BY} (rate(nv_inference_request_failure{{reason="REJECTED"}}[5m])) > 0.05 * '
        f"(sum by {BY} (rate(nv_inference_request_success[5m])) + sum by {BY} (rate(nv_inference_request_failure[5m])))",
        "10m",
        "warning",
        "more than 5 % of the requests for {{ $labels.model }} are refused",
        "There is more load than it can answer in time: more instances, a quicker variant, or quotas would help.",
    ),
    Alert(
        "DlproxyAnswersDiffer",
        'increase(dlproxy_rechecked_answers_total{result="different"}[1h]) > 0',
        "0m",
        "critical",
        "an answer of {{ $labels.model }} depended on other requests in its batch",
        "Batching has been ended for it. Set batching = false until its graph is mended.",
    ),
)


def rules() -> str:
    """A rule file, as Prometheus takes it."""
    return "\n".join(_lines()) + "\n"


def _lines() -> Iterator[str]:
    yield "# Made by `dlproxy monitor alerts`. In prometheus.yml: rule_files: [dlproxy.rules.yml]"
    yield "groups:"
    yield "- name: dlproxy-objectives"
    yield "  rules:"
    for window in WINDOWS:
        missed = f'sum by {BY} (rate(dlproxy_objective_requests_total{{result!="met"}}[{window}]))'
        asked = f"sum by {BY} (rate(dlproxy_objective_requests_total[{window}]))"
        yield f"  - record: {MISSED}{window}"
        yield f"    expr: {json.dumps(f'{missed} / {asked}')}"
    for factor, long, short, severity in BURNS:
        allowed = f"({factor:g} * (1 - dlproxy_objective_share))"
        alert = Alert(
            f"DlproxyObjectiveMissed{long}",
            f"({MISSED}{long} > on {BY} {allowed}) and on {BY} ({MISSED}{short} > on {BY} {allowed})",
            "2m",
            severity,
            f"{{{{ $labels.model }}}} misses its objective {factor:g} times as often as it may",
            f"For {long} so many requests were late or refused that a month's allowance lasts {30 / factor:.2g} days.",
        )
        yield from _alert(alert)
    yield "- name: dlproxy"
    yield "  rules:"
    for alert in ALERTS:
        yield from _alert(alert)


def _alert(alert: Alert) -> Iterator[str]:
    yield f"  - alert: {alert.name}"
    yield f"    expr: {json.dumps(alert.expr)}"
    yield f"    for: {alert.lasting}"
    yield f"    labels: {{severity: {alert.severity}}}"
    yield "    annotations:"
    yield f"      summary: {json.dumps(alert.summary)}"
    yield f"      description: {json.dumps(alert.description)}"

"""The page of the last hour: well-formed, self-contained, safe from what it shows, and right in its sentences."""

from pathlib import Path
from typing import Any

import pytest

from dlproxy.lab.report.hour import Hour, html, save_html

from .test_html import Reader

AT = 1_800_000_000.0
COLUMNS = ("rate", "p50_s", "p99_s", "queued", "batch_rows", "utilisation", "rejects_rate", "failures_rate")


def history(name: str = "digits", seconds: int = 600, **columns: float | None) -> dict[str, Any]:
    """Each second alike."""
    values = {
        "rate": 10.0,
        "p50_s": 0.002,
        "p99_s": 0.008,
        "batch_rows": 4.0,
        **dict.fromkeys(COLUMNS[-3:], 0.0),
        "queued": 1.0,
    }
    told = {column: [(values | columns)[column]] * seconds for column in COLUMNS}
    at = [AT - seconds + number + 1 for number in range(seconds)]
    return {"name": name, "version": "1", "at": at, "step_s": [1] * seconds, **told}


def model(**fields: Any) -> dict[str, Any]:
    return {"name": "digits", "version": "1", "state": "up", "reason": "", "alarm": "", "objective": None, **fields}


def objective(met: float | None) -> dict[str, Any]:
    left = None if met is None else 1.0 - (1.0 - met) / 0.01
    return {"seconds": 0.02, "share": 0.99, "met": met, "budget_left": left}


def hour(*histories: dict[str, Any], models: dict[str, Any] | None = None, **fields: Any) -> Hour:
    server = {"version": "1.0.0", "started_at": AT - 9000.0, "cores": 2, "cpu": 0.4, "memory_bytes": 2**27}
    now = {"at": AT, "server": server | fields.pop("server", {}), "models": {"digits/1": model()} if models is None else models}
    now |= {name: fields.pop(name, []) for name in ("events", "upstreams", "tenants")}
    return Hour(where="http://localhost:8002", minutes=60, now=now, histories=histories, **fields)


def request(**fields: Any) -> dict[str, Any]:
    found: dict[str, Any] = {"id": "8123", "request_id": "", "model": "digits", "version": "1", "at": AT - 5.0, "seconds": 0.4}
    found |= {"outcome": "answered", "failure": None, "phases": {"queue": 0.3, "compute": 0.1, "send": 0.0}}
    return found | {"causes": [{"kind": "gc", "seconds": 0.2, "words": "a collection of 200 ms"}], **fields}


HOURS = {
    "nothing asked": hour(),
    "nothing served": hour(models={}),
    "one model": hour(history()),
    "many models": hour(*[history(f"m{number}", seconds=3) for number in range(40)]),
    "one second": hour(history(seconds=1)),
    "just started": hour(history(seconds=3), server={"started_at": AT - 3.0}),
    "at rest": hour(history(rate=0.0, p50_s=None, p99_s=None, batch_rows=None)),
    "everything": hour(
        history(rejects_rate=1.0, failures_rate=0.5, p99_s=2.0),
        models={"digits/1": model(objective=objective(0.93), alarm="unusual"), "x/1": model(state="failed", reason="no file")},
        events=[{"at": AT - 9.0, "model": "digits", "kind": "knobs", "words": "max_batch = 8"}],
        requests=[request(), request(outcome="failed", failure={"message": "too late"}, causes=[])],
        upstreams=[{"model": "m/1", "name": "m-0", "address": "10.0.0.1:80", "state": "ejected", "busy": 3}],
        tenants=[{"name": "shop", "of": "tenant", "admitted": 10, "refused": 2}],
    ),
}


@pytest.mark.parametrize("one", HOURS.values(), ids=HOURS)
def test_the_page_is_well_formed_and_loads_nothing(one: Hour) -> None:
    reader = Reader(html(one, "headline"))
    assert not [tag for tag, attributes in reader.elements if tag == "script" or attributes.keys() & {"src", "href"}]
    keys = [attributes["id"] for _, attributes in reader.elements if "id" in attributes]
    assert len(keys) == len(set(keys))


@pytest.mark.parametrize(
    ("one", "headline"),
    [
        ("nothing asked", "Nothing was asked in the last 60 min."),
        ("one model", "6,000 requests answered in 60 min."),
        ("just started", "30 requests answered in 3 s."),
        ("everything", "6,000 requests answered in 60 min; 8.7 % refused; 4.35 % failed; digits missed its objective."),
    ],
)
def test_the_headline_says_what_came_of_it(one: str, headline: str, tmp_path: Path) -> None:
    assert save_html(HOURS[one], tmp_path / "page.html") == headline
    assert headline in (tmp_path / "page.html").read_text("utf-8").replace("\u00a0", " ")


def test_objectives_that_are_met_are_said_to_be_and_unknown_ones_are_not(tmp_path: Path) -> None:
    for met, words in ((0.995, "60 min; every objective was met."), (None, "60 min.")):
        told = save_html(hour(history(), models={"digits/1": model(objective=objective(met))}), tmp_path / "page.html")
        assert told.endswith(words)


def test_all_that_is_known_is_on_the_page() -> None:
    page = html(HOURS["everything"], "").replace("\u00a0", " ")
    for words in (
        *("p99 was mostly 2 s, at worst 2 s", "objective 20 ms", "99 % in 20 ms: 93 %", "none", "digits/1: unusual"),
        *("max_batch = 8", "8123", "queue 300 ms, compute 100 ms", "a collection of 200 ms", "too late", "10.0.0.1:80", "shop"),
        *("x/1: no file", "6,000 answered, 600 refused, 300 failed"),
    ):
        assert words in page, words
    assert page.count('class="mark"') == 4


def test_what_others_have_named_stays_text() -> None:
    evil = "<img src=x onerror=alert(1)>"
    page = html(
        hour(
            history(evil),
            models={f"{evil}/1": model(name=evil, alarm=evil, state="failed", reason=evil)},
            events=[{"at": AT, "model": evil, "kind": "load", "words": evil}],
            requests=[request(model=evil, request_id=evil, failure={"message": evil}, causes=[{"words": evil}])],
            tenants=[{"name": evil, "of": "tenant", "admitted": 1, "refused": 0}],
            upstreams=[{"model": evil, "name": evil, "address": evil, "state": "up", "busy": 0}],
        ),
        evil,
    )
    assert "<img" not in page


def test_what_is_older_than_the_report_is_left_out() -> None:
    old = AT - 3601.0
    page = html(
        hour(
            history(),
            events=[{"at": old, "model": "digits", "kind": "load", "words": "long ago"}],
            requests=[request(at=old, request_id="old")],
        ),
        "",
    )
    assert "long ago" not in page
    assert "old" not in page.replace("bold", "").replace("threshold", "").partition("Slow and failed")[2]

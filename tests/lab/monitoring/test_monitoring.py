"""Alerts and board name metrics and labels that there are, and Prometheus understands them."""

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from dlproxy.cli import main
from dlproxy.lab.monitoring.alerts import ALERTS, BURNS, rules
from dlproxy.lab.monitoring.board import board
from dlproxy.telemetry.stats import CacheCounts
from tests.telemetry.test_prometheus import Page, busy_model

NAMES = re.compile(r"(?:nv|dlproxy|process)_\w+")
SELECTED = re.compile(r"(\w+)\{([^}]*)\}")


def _page() -> Page:
    model = busy_model()
    model.stats.aim(0.02, 0.99)
    model.stats.cache = CacheCounts()
    model.stats.decisions["keeps"] += 1
    return Page(model)


def _queries() -> list[str]:
    panels = [panel for panel in json.loads(board())["panels"] if panel["type"] != "row"]
    recorded = re.findall(r'expr: "(.*)"$', rules(), re.MULTILINE)
    return [target["expr"] for panel in panels for target in panel["targets"]] + [json.loads(f'"{expr}"') for expr in recorded]


def test_they_ask_for_metrics_and_labels_that_there_are() -> None:
    known: dict[str, set[str]] = {}
    values: dict[tuple[str, str], set[str]] = {}
    for name, labels in _page().values:
        known.setdefault(name, {"job", "instance"}).update(label for label, _ in labels)
        for label, value in labels:
            values.setdefault((name, label), set()).add(value)
    queries = _queries()
    assert len(queries) > 30
    for query in queries:
        assert set(NAMES.findall(query)) <= set(known), query
        for name, chosen in SELECTED.findall(query):
            for label, value in re.findall(r'(\w+)!?=~?"([^"]*)"', chosen):
                assert label in known[name], query
                for one in value.split("|"):
                    assert one.startswith("$") or one in values[name, label], query


def test_the_boards_panels_have_places_of_their_own() -> None:
    panels = json.loads(board())["panels"]
    places = [(panel["gridPos"]["x"] + x, panel["gridPos"]["y"] + y) for panel in panels for x, y in _cells(panel)]
    assert len(places) == len(set(places))
    assert len({panel["id"] for panel in panels}) == len(panels)


def _cells(panel: dict[str, dict[str, int]]) -> list[tuple[int, int]]:
    place = panel["gridPos"]
    return [(x, y) for x in range(place["w"]) for y in range(place["h"])]


@pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool is not installed")
def test_prometheus_takes_the_rules(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["monitor", "alerts"]) == 0
    file = tmp_path / "rules.yml"
    file.write_text(capsys.readouterr().out)
    done = subprocess.run(["promtool", "check", "rules", str(file)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert f"{len(ALERTS) + len(BURNS) + 5} rules found" in done.stdout

"""What a release says of itself is one story: version, Pythons, workflows. What needs a build is `make release`."""

import re
import tomllib
from pathlib import Path

import msgspec
import pytest

import dlproxy

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
PYTHONS = [line.rsplit(" ", 1)[1] for line in PROJECT["classifiers"] if "Python :: 3." in line]
WORKFLOWS = {path.name: path.read_text("utf-8") for path in sorted((ROOT / ".github" / "workflows").glob("*.yml"))}


def test_the_version_is_the_same_everywhere() -> None:
    changelog = (ROOT / "CHANGELOG.md").read_text("utf-8")
    chart = msgspec.yaml.decode((ROOT / "deploy/helm/dlproxy/Chart.yaml").read_bytes())
    assert re.findall(r"^## \[(\d\S+)\] - \d{4}-\d\d-\d\d$", changelog, re.MULTILINE)[0] == dlproxy.__version__
    assert chart["appVersion"] == dlproxy.__version__


def test_the_supported_pythons_are_the_same_everywhere() -> None:
    assert PROJECT["requires-python"] == f">={PYTHONS[0]}"
    assert f"CPython {', '.join(PYTHONS)}" in (ROOT / "docs" / "compatibility.md").read_text("utf-8")
    for workflow in WORKFLOWS.values():
        assert f'PYTHONS="{" ".join(f"python{number}" for number in PYTHONS)}"' in workflow


@pytest.mark.parametrize("name", WORKFLOWS)
def test_workflows_pin_their_actions_and_name_targets_that_there_are(name: str) -> None:
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text("utf-8"), re.MULTILINE))
    jobs = msgspec.yaml.decode(WORKFLOWS[name])["jobs"].values()
    steps = [step for job in jobs for step in job["steps"]]
    assert all(re.fullmatch(r"[\w./-]+@[0-9a-f]{40}", step["uses"]) for step in steps if "uses" in step)
    made = [word for step in steps for word in step.get("run", "").split() if step.get("run", "").startswith("make ")]
    called = {word for word in made if word != "make" and re.fullmatch(r"[a-z-]+", word)}
    assert called
    assert called <= targets

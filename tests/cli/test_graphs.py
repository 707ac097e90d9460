"""`dlproxy models import-graph`: tables that a server takes, of models that a server has."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from dlproxy.cli import USER_ERROR, main
from dlproxy.config import load
from tests import models
from tests.cli.on_a_server import only_line
from tests.clients.server import ServerProcess, write_config

GRAPH = {
    "kind": "InferenceGraph",
    "metadata": {"name": "twice"},
    "spec": {"nodes": {"root": {"routerType": "Ensemble", "steps": [{"serviceName": "digits", "name": n} for n in "ab"]}}},
}
YAML = """
apiVersion: serving.kserve.io/v1alpha1
kind: InferenceGraph
metadata: {name: twice}
spec:
  nodes:
    root:
      routerType: Ensemble
      steps:
      - {serviceName: digits, name: a}
      - serviceName: digits
        name: b
"""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    settings = {"digits": {"path": models.DIGITS, "threads": 1}}
    with ServerProcess("--config", write_config(tmp_path_factory.mktemp("models") / "dlproxy.toml", settings)) as process:
        yield process


@pytest.mark.parametrize("text", [json.dumps(GRAPH), YAML])
def test_a_graph_becomes_tables(text: str, server: ServerProcess, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    graph, tables = tmp_path / "graph", tmp_path / "dlproxy.toml"
    graph.write_text(text)
    command = ["models", "import-graph", str(graph), "--url", f"http://{server.address}"]
    assert main(command) == 0
    printed = capsys.readouterr().out
    assert main([*command, "-o", str(tables)]) == 0
    assert tables.read_text() == printed
    (pipeline,) = load(tables).models["twice"]
    assert {step.model for step in pipeline.steps.values()} == {"digits"}
    assert list(pipeline.outputs.values()) == ["a.probabilities", "b.probabilities"]
    capsys.readouterr()
    assert main([*command, "-o", str(tables)]) == USER_ERROR
    assert "is there already, and is not overwritten" in only_line(capsys)


def test_what_cannot_be_imported(server: ServerProcess, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    graph = tmp_path / "graph.json"
    for text, said in (
        ("{", "graph.json: it is not JSON: "),
        ("a: [", "it is not YAML: "),
        ("[]", "graph.json: it is no InferenceGraph: expected `object`, got `array`"),
        (json.dumps(GRAPH).replace("digits", "digit"), "'digit' is not found"),
    ):
        graph.write_text(text)
        assert main(["models", "import-graph", str(graph), "--url", f"http://{server.address}"]) == USER_ERROR
        assert said in only_line(capsys)
    assert main(["models", "import-graph", str(tmp_path / "none")]) == USER_ERROR
    assert "No such file" in only_line(capsys)

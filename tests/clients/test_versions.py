"""Two versions of one model: each answers at its own address, and whoever names none gets the one that comes last."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.clients.server import ServerProcess

MODELS = """
class Add1:
    inputs = {"x": "FP32[-1,1]"}
    outputs = {"y": "FP32[-1,1]"}

    def predict(self, batch):
        return {"y": batch["x"] + 1}


class Add2(Add1):
    def predict(self, batch):
        return {"y": batch["x"] + 2}
"""
TOML = """
[models.add]
path = "adds.py:Add1"
run = "inline"
[models.add.versions.2]
path = "adds.py:Add2"
"""


@pytest.fixture(scope="module", params=["file", "command line"])
def server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    folder: Path = tmp_path_factory.mktemp("versions")
    (folder / "adds.py").write_text(MODELS)
    (folder / "c.toml").write_text(TOML)
    given = [f"add={folder}/adds.py:Add1", f"add:2={folder}/adds.py:Add2"]
    with ServerProcess(*(["--config", folder / "c.toml"] if request.param == "file" else given)) as process:
        yield process


def _ask(server: ServerProcess, path: str) -> tuple[str, float]:
    inputs = [{"name": "x", "shape": [1, 1], "datatype": "FP32", "data": [10]}]
    answer = server.ask(f"/v2/models/{path}/infer", {"inputs": inputs})
    return answer["model_version"], answer["outputs"][0]["data"][0]


def test_each_version_answers_for_itself_and_the_last_for_the_model(server: ServerProcess) -> None:
    assert _ask(server, "add/versions/1") == ("1", 11.0)
    assert _ask(server, "add/versions/2") == ("2", 12.0)
    assert _ask(server, "add") == ("2", 12.0)
    assert server.ask("/v2/models/add")["versions"] == ["1", "2"]

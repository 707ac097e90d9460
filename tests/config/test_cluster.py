"""cluster.toml: what it may say, and what is said of a mistake."""

from pathlib import Path

import pytest

from dlproxy.config.cluster import load_cluster
from dlproxy.config.values import ConfigError

RIGHT = """
[place]
moves = 3
[nodes.a]
control = "http://10.0.0.1:8002"
domain = "east"
has = { memory_mb = 16000, tpu = 1 }
[models.digits]
path = "/models/digits.onnx"
config = { max_batch = 32 }
takes = { tpu = 0.5 }
replicas = 2
"""


def test_a_cluster(tmp_path: Path) -> None:
    cluster = load_cluster(_written(tmp_path, RIGHT))
    assert (cluster.place.moves, cluster.place.every_s) == (3, 5.0)
    assert (cluster.nodes["a"].has, cluster.nodes["a"].domain) == ({"memory_mb": 16000, "tpu": 1}, "east")
    digits = cluster.models["digits"]
    assert (digits.takes, digits.replicas, digits.config) == ({"tpu": 0.5}, 2, {"max_batch": 32})


@pytest.mark.parametrize(
    ("before", "after", "complaint"),
    [
        ("[place]", "[placing]", "unknown key 'placing'; did you mean 'place'?"),
        ("moves = 3", "moves = 0", "place: Expected `int` >= 1"),
        ("moves = 3", "move = 3", "place: unknown key 'move'; did you mean 'moves'?"),
        ('control = "http://10.0.0.1:8002"', "", "nodes.a: Object missing required field `control`"),
        ("tpu = 1", "tpu = -1", "nodes.a: Expected `float` >= 0"),
        ("tpu = 0.5", "tpus = 0.5", "models.digits: no node has any 'tpus'; did you mean 'tpu'?"),
        ("replicas = 2", "replicas = 2\nmost_replicas = 1", "models.digits: most_replicas 1 is less than replicas 2"),
        ("[models.digits]", '[models." "]', "models. : no model can have this name"),
        ("[nodes.a]", '[nodes.b]\ncontrol = "http://10.0.0.1:8002"\n[nodes.a]', "is the control port of b"),
        (RIGHT, '[nodes.a]\ncontrol = "http://a"', "it has no [models.NAME]"),
        (RIGHT, "nodes = 3", "it has no [nodes.NAME]"),
        (RIGHT, "[nodes", "is not TOML"),
        ("[nodes.a]", "[nodes]\na = 3\n[nodes.c]", "nodes.a: Expected `object`, got `int`"),
    ],
)
def test_mistakes(tmp_path: Path, before: str, after: str, complaint: str) -> None:
    assert before in RIGHT
    with pytest.raises(ConfigError) as raised:
        load_cluster(_written(tmp_path, RIGHT.replace(before, after)))
    assert complaint in str(raised.value)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read"):
        load_cluster(tmp_path / "cluster.toml")


def _written(folder: Path, text: str) -> Path:
    path = folder / "cluster.toml"
    path.write_text(text, "utf-8")
    return path

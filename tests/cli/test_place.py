"""`dlproxy place` on nodes that are made up: what it has done there, and what it says. On real ones: tests/faults."""

from collections.abc import Callable
from pathlib import Path

import pytest

from dlproxy.cli import main
from dlproxy.cli.cluster import Operator
from dlproxy.cli.control_port import ControlError
from dlproxy.cli.terminal import FAILED, USER_ERROR
from dlproxy.cli.told import InstanceState, ModelState
from dlproxy.config.cluster import MEMORY, ClusterConfig, NodeConfig, PlaceConfig, PlacedConfig
from dlproxy.policy.placement.solve import solve

MIB = 1 << 20


class FakeNode:
    """A node's control port. `broken`: what it says instead of loading. `busy_s`: by model."""

    def __init__(self, *serves: str) -> None:
        self.serves = list(serves)
        self.others: list[str] = []
        self.down = False
        self.broken = ""
        self.size_bytes = 100 * MIB
        self.busy_s: dict[str, float] = {}
        self.asked: list[str] = []

    def models(self) -> list[ModelState]:
        self._up()
        instance = InstanceState(name="0", state="up", for_s=1.0)
        return [
            ModelState(
                name=name,
                version="1",
                ready=True,
                size_bytes=self.size_bytes,
                busy_s=self.busy_s.get(name, 0.0),
                instances=[instance],
            )
            for name in [*self.serves, *self.others]
        ]

    def cores(self) -> float:
        return 4.0

    def load(self, model: str, wanted: PlacedConfig) -> None:
        self._up()
        self.asked.append(f"load {model} {wanted.path}")
        if self.broken:
            raise ControlError(self.broken)
        self.serves.append(model)

    def unload(self, model: str) -> None:
        self._up()
        self.asked.append(f"unload {model}")
        self.serves.remove(model)

    def _up(self) -> None:
        if self.down:
            raise ControlError("cannot reach it: connection refused")


class Cluster:
    """`models`: by name. `nodes`: by name, in the domains that are named after `@`."""

    def __init__(
        self, models: dict[str, PlacedConfig], nodes: dict[str, FakeNode], *, inline: bool = True, **place: float
    ) -> None:
        self.nodes = {name.partition("@")[0]: node for name, node in nodes.items()}
        told = {
            name.partition("@")[0]: NodeConfig(
                control="", domain=name.partition("@")[2], has={MEMORY: 250, **({"tpu": 1} if name.startswith("t") else {})}
            )
            for name in nodes
        }
        self.said: list[str] = []
        self.waiting: list[Callable[[], None]] = []
        config = ClusterConfig(place=PlaceConfig(**{"moves": 2, **place}), nodes=told, models=models)
        begin = (lambda work: work()) if inline else self.waiting.append
        self.operator = Operator(config, self.nodes, solve, self.said.append, begin=begin)
        self.now = 0.0

    def rounds(self, count: int, every_s: float = 5.0) -> None:
        for _ in range(count):
            self.last = self.operator.round(self.now)
            self.now += every_s

    def busy(self, model: str, share: float, rounds: int) -> None:
        """Each instance of the model computes for this share of the time."""
        for _ in range(rounds):
            for node in self.nodes.values():
                if model in node.serves:
                    node.busy_s[model] = node.busy_s.get(model, 0.0) + share * 5.0
            self.rounds(1)

    def serving(self) -> dict[str, list[str]]:
        return {name: sorted(node.serves) for name, node in self.nodes.items()}


def placed(replicas: int = 1, most: int = 0, **takes: float) -> PlacedConfig:
    return PlacedConfig(path="/m.onnx", replicas=replicas, most_replicas=most, takes=takes)


def test_models_are_loaded_where_there_is_room_a_few_at_a_time() -> None:
    models = {"a": placed(2), "b": placed(2), "c": placed(tpu=0.5)}
    cluster = Cluster(models, {"x": FakeNode(), "y": FakeNode(), "t": FakeNode()}, moves=2)
    cluster.rounds(1)
    assert sum(map(len, cluster.serving().values())) == 2
    cluster.rounds(7)  # what each takes is known when it is there, and was nothing before
    assert cluster.nodes["t"].serves.count("c") == 1
    assert [sum(name in served for served in cluster.serving().values()) for name in "ab"] == [2, 2]
    assert cluster.last.lacks == []
    said = list(cluster.said)
    cluster.rounds(5)
    assert cluster.said == said  # nothing more happens, and nothing is said


def test_a_move_under_way_counts_and_nothing_is_begun_twice() -> None:
    cluster = Cluster({"a": placed(), "b": placed(), "c": placed()}, {"x": FakeNode(), "y": FakeNode()}, inline=False, moves=2)
    cluster.rounds(3)
    assert len(cluster.waiting) == 2
    cluster.waiting.pop()()
    cluster.rounds(1)
    assert len(cluster.waiting) == 2


def test_a_lost_node_s_models_get_other_places_and_its_return_moves_nothing() -> None:
    nodes = {"x@east": FakeNode("a", "b"), "y@west": FakeNode("a"), "z@west": FakeNode()}
    cluster = Cluster({"a": placed(2), "b": placed()}, nodes, patience_s=15, steady_s=60)
    cluster.rounds(1)
    cluster.nodes["x"].down = True
    cluster.rounds(2)
    assert cluster.nodes["z"].asked == []  # it may only be slow
    cluster.rounds(4)
    assert cluster.serving() == {"x": ["a", "b"], "y": ["a"], "z": ["a", "b"]} or cluster.serving()["y"] == ["a", "b"]
    after = cluster.serving()
    cluster.nodes["x"].down = False
    cluster.rounds(5)
    assert cluster.serving() == after  # it does not count yet
    cluster.rounds(15)
    assert sorted(model for served in cluster.serving().values() for model in served) == ["a", "a", "b"]
    assert cluster.serving()["x"] != []  # a is in two domains again, or what was there stayed
    assert any("answers again, and counts when" in line for line in cluster.said)


def test_a_node_that_comes_and_goes_moves_models_once() -> None:
    cluster = Cluster({"a": placed()}, {"x": FakeNode("a"), "y": FakeNode(), "z": FakeNode()}, patience_s=5, steady_s=60)
    cluster.rounds(1)
    for down in [True, True, True, False, False, False] * 5:
        cluster.nodes["x"].down = down
        cluster.rounds(1)
    assert [request for node in cluster.nodes.values() for request in node.asked] == ["load a /m.onnx"]


def test_nothing_is_moved_while_most_nodes_are_silent() -> None:
    """It is more likely this machine's network."""
    cluster = Cluster({"a": placed(2)}, {"x": FakeNode("a"), "y": FakeNode("a"), "z": FakeNode()}, patience_s=5)
    cluster.rounds(1)
    cluster.nodes["x"].down = cluster.nodes["y"].down = True
    cluster.rounds(5)
    assert cluster.nodes["z"].serves == []
    assert cluster.last.lacks == ["2 of 3 nodes do not answer: nothing is moved, as it may be this machine's network"]


def test_load_makes_replicas_and_little_load_takes_them_away() -> None:
    cluster = Cluster({"a": placed(1, most=2)}, {"x": FakeNode("a"), "y": FakeNode()}, window_s=20)
    cluster.rounds(1)
    cluster.busy("a", 0.9, rounds=3)
    assert cluster.serving() == {"x": ["a"], "y": ["a"]}
    cluster.busy("a", 0.32, rounds=10)
    assert cluster.serving() == {"x": ["a"], "y": ["a"]}  # one would be 64 % full
    cluster.busy("a", 0.1, rounds=10)
    assert sum(map(len, cluster.serving().values())) == 1


def test_memory_is_what_nodes_measure_where_that_is_more() -> None:
    """Of 250 MiB a replica holds 100, and what is nobody's here as much: a second model has no room."""
    x = FakeNode("a")
    x.others = ["foreign"]
    cluster = Cluster({"a": placed(), "b": placed(memory_mb=60)}, {"x": x})
    cluster.rounds(2)
    assert cluster.serving() == {"x": ["a"]}
    assert cluster.last.lacks == ["model b: 1 of 1 replicas find no place: x have less than 60 memory_mb left"]


def test_a_model_that_a_node_cannot_load_goes_elsewhere_and_is_tried_again_later() -> None:
    cluster = Cluster({"a": placed()}, {"x": FakeNode(), "y": FakeNode()})
    cluster.nodes["x"].broken = cluster.nodes["y"].broken = "/m.onnx: no such file"
    cluster.rounds(4)
    assert [len(node.asked) for node in cluster.nodes.values()] == [1, 1]
    assert cluster.last.lacks == ["model a: 1 of 1 replicas find no place: x, y could not load it lately"]
    assert "could not load a on x: /m.onnx: no such file" in cluster.said
    cluster.nodes["y"].broken = ""
    cluster.rounds(10)
    assert cluster.serving() == {"x": [], "y": ["a"]}


# The command


def _config(folder: Path, control: str, more: str = "") -> str:
    path = folder / "cluster.toml"
    path.write_text(f'[nodes.x]\ncontrol = "{control}"\n[models.a]\npath = "/m.onnx"\n{more}', "utf-8")
    return str(path)


def test_a_node_that_cannot_be_reached(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["place", "--config", _config(tmp_path, "http://127.0.0.1:9")]) == FAILED
    said = capsys.readouterr().out.splitlines()
    assert said[0].startswith("node x does not answer: cannot reach http://127.0.0.1:9: connection refused")
    assert said[1:] == ["node x is lost", "1 of 1 nodes do not answer: nothing is moved, as it may be this machine's network"]


@pytest.mark.parametrize(
    ("control", "more", "complaint"),
    [
        ("http://x/path", "", "nodes.x: control 'http://x/path' cannot be used"),
        ("http://127.0.0.1:9", "replica = 2", "models.a: unknown key 'replica'; did you mean 'replicas'?"),
        ("http://127.0.0.1:9", "takes = { gpu = 1 }", "models.a: no node has any 'gpu'"),
    ],
)
def test_a_mistake_is_said_in_a_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], control: str, more: str, complaint: str
) -> None:
    assert main(["place", "--config", _config(tmp_path, control, more), "--follow"]) == USER_ERROR
    (line,) = capsys.readouterr().err.splitlines()
    assert complaint in line

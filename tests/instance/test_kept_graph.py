"""The second load takes the graph that the first optimised, if that is quicker, right, and of the same model and machine."""

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
from onnx import helper

from dlproxy.config import ModelConfig
from dlproxy.fleet.remembered import Memory
from dlproxy.fleet.warm_model import warm_up
from dlproxy.instance.integrity import Trust
from dlproxy.instance.runtime import ModelError, graphs, kept_graph
from dlproxy.instance.runtime.content import stamp_of
from dlproxy.instance.runtime.formats import open_runtime
from dlproxy.instance.runtime.graphs import ABOUT, GRAPH, REFUSED, WEIGHTS, Graphs
from dlproxy.instance.runtime.kept_graph import NOTHING, KeptGraph, settings_of
from dlproxy.message import DType
from tests import models
from tests.instance.integrity.keys import Keys, flipped, save_with_weights_beside

ROW = [[np.linspace(-1, 1, 64, dtype=np.float32).reshape(1, 64)]]
QUICKER, SLOWER = [0.0, 8.0, 8.0, 9.0], [0.0, 8.0, 8.0, 16.0, 16.0, 24.0]  # before and after each load, in seconds


def _dense(gain: float = 1.0) -> models.Model:
    """Two layers, whose constants can be folded and whose kernels pack their weights."""
    weights = np.random.default_rng(7).normal(0, gain, (64, 64)).astype(np.float32)
    nodes = [
        helper.make_node("Transpose", ["w"], ["t"], perm=[1, 0]),
        helper.make_node("MatMul", ["x", "t"], ["h"]),
        helper.make_node("Relu", ["h"], ["r"]),
        helper.make_node("MatMul", ["r", "w"], ["y"]),
    ]
    ends = [models.value("x", DType.FP32, ("N", 64))], [models.value("y", DType.FP32, ("N", 64))]
    return models.model(nodes, *ends, [models.constant("w", weights)])


def _options() -> Any:
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    return options


def _run(session: Any, inputs: Any) -> Any:
    return session.run(None, {"x": inputs[0]})


class Loads:
    """A model and a folder of graphs; `opened`: what sessions were made of."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder = folder / "graphs"
        self.model = models.save(_dense(), folder / "m.onnx")
        self.opened: list[str] = []
        self.options: Callable[[], Any] = _options
        self._patch = monkeypatch

    def open(self, path: Path, options: Any) -> Any:
        self.opened.append(path.name)
        try:
            return ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        except Exception as error:
            raise ModelError(str(error)) from error

    def start(self, requests: Any = ROW, times: Any = QUICKER, during: Callable[[], None] = lambda: None) -> list[str]:
        """What is opened at a start of another process."""
        self.opened.clear()
        self._patch.setattr(kept_graph, "thread_time", itertools.chain(times, itertools.repeat(99.0)).__next__)
        kept = KeptGraph(Graphs(self.folder), self.model, self.options, self.open)
        session = kept.load()
        during()
        self.session = kept.prove(session, _run, requests)
        kept.give_up()
        return list(self.opened)

    @property
    def names(self) -> set[str]:
        return {path.name for path in self.folder.iterdir()} if self.folder.exists() else set()

    @property
    def place(self) -> Path:
        return next(self.folder.glob(f"*/{GRAPH}")).parent


@pytest.fixture
def loads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Loads:
    monkeypatch.setattr(graphs, "LEAST_BYTES", 1)
    monkeypatch.setattr(graphs, "SPARE_BYTES", 0)
    return Loads(tmp_path, monkeypatch)


def test_the_second_start_loads_what_the_first_has_written_and_answers_the_same(loads: Loads) -> None:
    plain = _run(ort.InferenceSession(str(loads.model)), ROW[0])[0]
    assert loads.start() == ["m.onnx", GRAPH]
    assert _run(loads.session, ROW[0])[0].tobytes() == plain.tobytes(), "goes on with the session that shares its weights"
    assert loads.start() == [GRAPH]
    assert _run(loads.session, ROW[0])[0].tobytes() == plain.tobytes()
    assert loads.folder.stat().st_mode & 0o777 == loads.place.stat().st_mode & 0o777 == 0o700
    assert {path.name for path in loads.place.iterdir()} == {GRAPH, WEIGHTS, ABOUT}


@pytest.mark.parametrize(
    "change", ["file", "option", "mode", "version", "providers", "machine", "format", "threads", "nothing"]
)
def test_whatever_the_graph_depends_on_makes_it_another(loads: Loads, change: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def changed() -> Any:
        options = _options()
        if change == "option":
            options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
        elif change == "mode":
            options.execution_mode = ort.ExecutionMode.ORT_PARALLEL
        elif change == "threads":
            options.intra_op_num_threads = 2
        return options

    loads.start()
    loads.options = changed
    if change == "file":
        models.save(_dense(gain=2.0), loads.model)
    elif change == "version":
        monkeypatch.setattr(ort, "__version__", "99.0")
    elif change == "providers":
        monkeypatch.setattr(ort, "get_available_providers", lambda: ["CPUExecutionProvider", "Another"])
    elif change == "machine":
        monkeypatch.setattr(graphs, "fingerprint", lambda: "another processor")
    elif change == "format":
        monkeypatch.setattr(graphs, "FORMAT", graphs.FORMAT + 1)
    same = change in ("threads", "nothing")  # the optimiser does not look at the threads
    assert loads.start() == ([GRAPH] if same else ["m.onnx", GRAPH])
    plain = ort.InferenceSession(str(loads.model), loads.options(), providers=["CPUExecutionProvider"])
    assert _run(loads.session, ROW[0])[0].tobytes() == _run(plain, ROW[0])[0].tobytes()


def test_weights_beside_the_model_are_a_part_of_it(tmp_path: Path) -> None:
    kept = Graphs(tmp_path / "graphs")
    path = save_with_weights_beside(tmp_path)
    before = kept.key(path, settings_of(_options()))
    assert before is not None
    assert before == kept.key(path, settings_of(_options()))
    (weights,) = before.stamps.keys() - {str(path)}
    flipped(Path(weights), 3)
    after = kept.key(path, settings_of(_options()))
    assert after is not None
    assert after.name != before.name


@pytest.mark.parametrize("name", [GRAPH, WEIGHTS, ABOUT])
@pytest.mark.parametrize("damage", ["cut", "flipped", "empty", "gone"])
def test_what_is_broken_costs_a_normal_load_and_is_made_anew(loads: Loads, name: str, damage: str) -> None:
    loads.start()
    broken = loads.place / name
    data = broken.read_bytes()
    broken.unlink()  # what others have mapped is never written to
    half = len(data) // 2
    if damage != "gone":
        broken.write_bytes(
            {"cut": data[:half], "flipped": data[:half] + bytes([data[half] ^ 1]) + data[half + 1 :], "empty": b""}[damage]
        )
    opened = loads.start()
    if (name, damage) != (ABOUT, "flipped"):  # a figure in it may have changed alone
        assert opened == ["m.onnx", GRAPH]
    plain = _run(ort.InferenceSession(str(loads.model)), ROW[0])[0]
    assert _run(loads.session, ROW[0])[0].tobytes() == plain.tobytes()
    assert loads.start() == [GRAPH]


@pytest.mark.parametrize("changed", [False, True])
def test_after_the_machine_has_started_anew_the_content_is_read_again(
    loads: Loads, changed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    loads.start()
    read: list[str] = []
    digest_of = graphs.digest_of
    monkeypatch.setattr(graphs, "digest_of", lambda file: read.append(file) or (b"" if changed else digest_of(file)))
    assert loads.start() == [GRAPH]
    assert not read
    monkeypatch.setattr(graphs, "boot", lambda: "another life")
    assert loads.start() == (["m.onnx", GRAPH] if changed else [GRAPH])
    assert read


@pytest.mark.parametrize("why", ["slower", "answers", "nothing", "failure"])
def test_what_does_not_pay_or_is_not_proven_is_not_kept_nor_written_again(loads: Loads, why: str) -> None:
    requests: Any = ROW
    if why == "answers":
        nodes = [helper.make_node("Bernoulli", ["x"], ["y"])]
        ends = [models.value("x", DType.FP32, ("N", 64))], [models.value("y", DType.FP32, ("N", 64))]
        models.save(models.model(nodes, *ends), loads.model)
        requests = [[np.full((1, 64), 0.5, np.float32)]]
    elif why == "nothing":
        requests = []
    elif why == "failure":
        requests = [[np.zeros((1, 3), np.float32)]]
    opened = loads.start(requests, SLOWER if why == "slower" else QUICKER)
    assert opened[-1] == "m.onnx", "a session that has written its graph holds the weights twice"
    assert [name for name in loads.names if name.endswith(REFUSED)]
    assert not list(loads.folder.glob(f"*/{GRAPH}"))
    assert loads.start(requests) == ["m.onnx"]


def test_a_model_without_known_inputs_has_another_try_when_there_are_some(loads: Loads) -> None:
    loads.start([])
    assert next(loads.folder.glob(f"*{REFUSED}")).read_text() == NOTHING
    assert loads.start() == ["m.onnx"]
    assert loads.start() == ["m.onnx", GRAPH]


def test_a_model_that_changes_while_it_is_loaded_is_not_kept(loads: Loads) -> None:
    loads.start(during=lambda: models.save(_dense(gain=2.0), loads.model) and None)
    assert not list(loads.folder.glob(f"*/{GRAPH}"))


def test_a_model_that_is_taken_away_while_it_is_refused_serves_on(loads: Loads) -> None:
    assert loads.start([], during=lambda: loads.model.unlink()) == ["m.onnx", "m.onnx"]
    assert _run(loads.session, ROW[0])[0].shape == (1, 64)


def test_of_two_starts_at_once_one_is_kept_and_nothing_is_left_over(loads: Loads) -> None:
    loads.start(during=lambda: Loads.start(loads) and None)
    assert len(loads.names) == 1
    assert loads.start() == [GRAPH]


def test_nothing_is_left_of_a_load_that_nobody_proves(loads: Loads) -> None:
    kept = KeptGraph(Graphs(loads.folder), loads.model, _options, loads.open)
    kept.load()
    assert len(loads.names) == 1
    kept.give_up()
    assert not loads.names


@pytest.mark.parametrize("where", ["others may write", "in the way", "elsewhere", "no room"])
def test_a_folder_that_does_not_suit_costs_no_start(loads: Loads, where: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if where == "others may write":
        loads.start()
        loads.folder.chmod(0o777)
    elif where == "in the way":
        loads.folder.write_text("a file")
    elif where == "elsewhere":
        monkeypatch.setattr(graphs, "_file_system", lambda folder: "nfs4")
    else:
        monkeypatch.setattr(graphs, "SPARE_BYTES", 2**62)
    assert loads.start() == ["m.onnx"]


def test_a_disk_that_fills_up_costs_no_start(loads: Loads) -> None:
    whole = loads.open

    def full(path: Path, options: Any) -> Any:
        if options.optimized_model_filepath:
            raise ModelError("no space is left")
        return whole(path, options)

    loads.open = full  # type: ignore[method-assign]
    assert loads.start() == ["m.onnx"]
    assert len(loads.names) == 1, "it is refused"


@pytest.mark.parametrize("bound", ["MOST_GRAPHS", "MOST_BYTES"])
def test_those_not_used_for_longest_make_room(loads: Loads, bound: str, monkeypatch: pytest.MonkeyPatch) -> None:
    contents = [_dense(gain) for gain in (1.0, 2.0, 3.0)]
    models.save(contents[0], loads.model)
    loads.start()
    size = sum(file.stat().st_size for file in loads.place.iterdir())
    monkeypatch.setattr(graphs, bound, 2 if bound == "MOST_GRAPHS" else int(2.5 * size))
    for number in (1, 0, 2):  # the first is used again before there is a third
        models.save(contents[number], loads.model)
        loads.start()
    assert len(list(loads.folder.glob(f"*/{GRAPH}"))) == 2
    for number, kept in ((0, True), (2, True), (1, False)):
        models.save(contents[number], loads.model)
        assert (loads.start() == [GRAPH]) is kept, number


@pytest.mark.parametrize("kind", ["signed", "encrypted", "plain"])
def test_signed_and_encrypted_models_are_neither_written_there_nor_read(loads: Loads, kind: str, tmp_path: Path) -> None:
    keys, trust, path = Keys(tmp_path), Trust(), loads.model
    if kind == "signed":
        keys.sign(path)
        trust = keys.trust()
    elif kind == "encrypted":
        path, trust = keys.encrypt(path, tmp_path / "sealed.onnx"), keys.trust(signed=False, master=keys.master)
    runtime = open_runtime(str(path), graphs=str(loads.folder), trust=trust)
    assert bool(loads.names) is (kind == "plain")
    runtime.keep_graph(ROW)  # type: ignore[attr-defined]
    assert bool(loads.names) is (kind == "plain")


def test_the_folder_serves_a_model_from_start_to_start(loads: Loads, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kept_graph, "PAYS", 0.0)
    memory, config = Memory(None, str(loads.folder)), ModelConfig(path=str(loads.model), threads=1, instances=1)
    first = warm_up(config, memory=memory)
    before = stamp_of(str(loads.place / WEIGHTS))
    second = warm_up(config, memory=memory)
    assert stamp_of(str(loads.place / WEIGHTS)) == before
    assert second.runtime.signature == first.runtime.signature
    assert second.runtime.run(ROW[0])[0].tobytes() == first.runtime.run(ROW[0])[0].tobytes()

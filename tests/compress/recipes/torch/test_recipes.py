"""Each recipe that trains, end to end on real digits: right, smaller where it should be, the same of a seed; and refusals."""

import gzip
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from msgspec.structs import replace
from onnx import numpy_helper

from dlproxy.compress.recipe import Context, Made, RecipeError, Source

torch = pytest.importorskip("torch", exc_type=ImportError)
pytest.importorskip("sklearn")

from dlproxy.compress.recipes.torch import distil, prune, qat  # noqa: E402 # where there is no torch, this file is skipped
from dlproxy.compress.recipes.torch.modules import read  # noqa: E402
from tests.compress.recipes.torch.digits import accuracy, answered, digits  # noqa: E402

pytestmark = pytest.mark.extras

Network = Callable[[str], Source]
MAKE = {
    "prune-channels": prune.prune_channels,
    "prune-weights": prune.prune_weights,
    "qat": qat.qat,
    "distil": distil.distil,
}
SHORT: dict[str, dict[str, Any]] = {
    "prune-channels": {"epochs": 2, "steps": 2},
    "prune-weights": {"epochs": 1, "steps": 2},
    "qat": {"epochs": 1},
    "distil": {"epochs": 8, "lr": 1e-2},
}


def make(name: str, source: Source, folder: Path, **options: Any) -> Made:
    folder.mkdir(exist_ok=True)
    told: list[str] = []
    context = Context(
        folder=folder, training=digits()[0], metric="accuracy", options=SHORT[name] | options, tell=told.append, seed=3
    )
    made = MAKE[name](source, context)
    assert any("epoch 1 of" in line for line in told)
    assert [path.name for path in folder.iterdir()] == [made.path.name]
    return made


def weights_of(path: Path) -> list[Any]:
    arrays = [numpy_helper.to_array(one) for one in onnx.load(path).graph.initializer]
    return [array for array in arrays if array.ndim > 1 and array.dtype.kind in "fi" and array.size > 32]


@pytest.mark.parametrize("own", [True, False], ids=["module", "onnx"])
@pytest.mark.parametrize("name", MAKE)
def test_what_is_made_of_a_cnn(network: Network, tmp_path: Path, name: str, own: bool) -> None:
    """Of the user's module and of the ONNX file alone: names stay, any batch is taken, at most 5 % of the digits are lost."""
    source = network("cnn") if own else replace(network("cnn"), torch="")
    made = make(name, source, tmp_path / "made")
    before = accuracy(source.onnx)
    assert before > 0.85
    assert accuracy(made.path) >= before - 0.05
    graph = onnx.load(made.path).graph
    assert [one.name for one in (*graph.input, *graph.output)] == ["image", "output"]
    np.testing.assert_allclose(answered(made.path).sum(1), 1, atol=0.05)
    (step,) = made.steps
    assert (step.name, step.settings["seed"]) == (name, 3)
    assert f"torch {torch.__version__}" in step.by
    size, original = made.path.stat().st_size, source.onnx.stat().st_size
    if name == "prune-weights":
        arrays = weights_of(made.path)
        zeros = sum((array == 0).sum() for array in arrays) / sum(array.size for array in arrays)
        assert zeros == pytest.approx(0.5, abs=0.01)
        assert len(gzip.compress(made.path.read_bytes())) < 0.8 * len(gzip.compress(source.onnx.read_bytes()))
        assert "no quicker" in made.notes[0]
    else:
        assert size < {"prune-channels": 0.5, "qat": 0.8, "distil": 0.6}[name] * original
        assert sum(array.size for array in weights_of(made.path)) > 0


@pytest.mark.parametrize("name", MAKE)
def test_the_same_of_the_same_seed(network: Network, tmp_path: Path, name: str) -> None:
    first, second = (make(name, network("cnn"), tmp_path / str(turn), epochs=1, steps=1) for turn in (0, 1))
    np.testing.assert_array_equal(answered(first.path), answered(second.path))


@pytest.mark.parametrize("name", ["prune-weights", "distil"])
def test_lstms_are_made_smaller(network: Network, tmp_path: Path, name: str) -> None:
    source = network("lstm")
    made = make(name, source, tmp_path / "made", epochs=20 if name == "distil" else 1, lr=1e-2)
    assert accuracy(made.path) >= accuracy(source.onnx) - 0.1
    assert any(node.op_type == "LSTM" for node in onnx.load(made.path).graph.node)
    if name == "distil":
        assert made.path.stat().st_size < 0.6 * source.onnx.stat().st_size


def test_whole_heads_go(network: Network, tmp_path: Path) -> None:
    source = network("transformer")
    made = make("prune-channels", source, tmp_path / "made", epochs=3, lr=5e-3)
    assert accuracy(made.path) >= accuracy(source.onnx) - 0.2
    shapes = Counter(array.shape for array in weights_of(made.path))
    assert sum(count for (_, out), count in shapes.items() if out == 16) >= 3  # query, key and value: two of four heads, of 8
    assert made.path.stat().st_size < source.onnx.stat().st_size


def test_int8_answers_are_those_that_were_trained(network: Network, tmp_path: Path) -> None:
    """Exactly, where ONNX Runtime takes the graph at its word; by a step of the answer where its int8 kernels compute it."""
    import onnxruntime as ort

    made = make("qat", network("cnn"), tmp_path / "made")
    model = onnx.load(made.path)
    images = digits()[1].inputs["image"]
    with torch.no_grad():
        trained = read(model).module(torch.from_numpy(images)).numpy()
    for level, within in (
        (ort.GraphOptimizationLevel.ORT_DISABLE_ALL, 0.005),
        (ort.GraphOptimizationLevel.ORT_ENABLE_ALL, 0.1),
    ):
        options = ort.SessionOptions()
        options.graph_optimization_level = level
        options.log_severity_level = 4
        options.optimized_model_filepath = str(tmp_path / "optimised.onnx")
        session = ort.InferenceSession(str(made.path), options, providers=["CPUExecutionProvider"])
        got = session.run(None, {"image": images})[0]
        assert np.mean(np.abs(got - trained)) < within / 5
        assert np.mean(got.argmax(1) == trained.argmax(1)) >= 1 - within
    ran = Counter(node.op_type for node in onnx.load(tmp_path / "optimised.onnx").graph.node)
    assert ran["QLinearConv"] == 2
    assert ran["QGemm"] == 1


def test_a_student_of_the_users_own(network: Network, tmp_path: Path) -> None:
    source = network("cnn")
    student = f"{Path(source.torch.rpartition(':')[0])}:student"
    made = make("distil", source, tmp_path / "made", student=student)
    assert made.path.stat().st_size < 0.4 * source.onnx.stat().st_size
    assert accuracy(made.path) > 0.85
    with pytest.raises(RecipeError, match="no function of a Python file"):
        make("distil", source, tmp_path / "again", student="nobody.py:make")


@pytest.mark.parametrize("name", MAKE)
def test_without_labels_nothing_is_learnt(network: Network, tmp_path: Path, name: str) -> None:
    with pytest.raises(RecipeError, match="the data has none; add an array named labels"):
        MAKE[name](network("cnn"), Context(folder=tmp_path, training=replace(digits()[0], labels=None), metric="accuracy"))


@pytest.mark.parametrize(
    ("labels", "words"),
    [
        (np.full(640, 10), "labels go from 10 to 10; the model tells 10 classes apart"),
        (np.zeros(640, np.float32), "do not fit answers"),
        (np.full(640, "seven"), "cannot be learnt"),
    ],
    ids=["more classes", "values", "text"],
)
def test_labels_that_teach_nothing(network: Network, tmp_path: Path, labels: Any, words: str) -> None:
    training = replace(digits()[0], labels=labels)
    with pytest.raises(RecipeError, match=words):
        MAKE["prune-weights"](network("cnn"), Context(folder=tmp_path, training=training, metric="accuracy"))


def test_sizes_in_a_modules_own_code(network: Network, tmp_path: Path) -> None:
    for name in ("prune-channels", "distil"):
        with pytest.raises(
            RecipeError, match=r"(with fewer channels the module does not run|answers two rows in the shape \(1, 10\))"
        ):
            make(name, network("fixed"), tmp_path / name)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"epochs": 0}, "option epochs = 0 is not understood; it is a number from 1"),
        ({"lr": "fast"}, "option lr = 'fast'"),
        ({"optimizer": "lion"}, "it is adamw or sgd"),
    ],
)
def test_options_that_are_not_understood(network: Network, tmp_path: Path, options: dict[str, Any], words: str) -> None:
    with pytest.raises(RecipeError, match=words):
        make("distil", network("cnn"), tmp_path / "made", **options)

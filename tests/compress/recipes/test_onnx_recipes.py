"""Every recipe that takes an ONNX file, on a model of each kind: what comes of it, what is refused, and that it repeats."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from dlproxy.compress.data import Dataset
from dlproxy.compress.recipe import Context, Made, RecipeError, Source
from dlproxy.compress.recipes import RECIPES
from dlproxy.compress.recipes.graphs import answer, count, distance, every_node, finish, open_session
from dlproxy.message import DType
from tests.compress.recipes.graphs import KINDS, WIDTH, Layers, at, attention, cnn, mlp, rows_of_floats
from tests.models import Model, constant, value
from tests.models import model as model_of

ONNX_RECIPES = [name for name, recipe in RECIPES.items() if recipe.needs == ("onnx",)]
INTEGER = ("MatMulIntegerToFloat", "MatMulInteger", "DynamicQuantizeLSTM", "QuantizeLinear", "MatMulNBits")

# What each does to each kind: how far its answers may be off, and an operator that has to be there. Left out: it refuses.
DOES = {
    ("clean", "cnn"): (1e-5, "Conv"),
    ("clean", "attention"): (1e-5, "MatMul"),
    ("fuse", "cnn"): (1e-5, "FusedConv"),
    ("fuse", "mlp"): (1e-5, "FusedGemm"),
    ("fuse", "attention"): (1e-4, "Attention"),
    ("fp16", "mlp"): (1e-2, "Cast"),
    ("fp16", "cnn"): (1e-2, "Cast"),
    ("fp16", "lstm"): (1e-2, "Cast"),
    ("fp16", "attention"): (1e-2, "Cast"),
    ("bf16", "mlp"): (1e-2, "Cast"),
    ("bf16", "cnn"): (2e-2, "Cast"),
    ("bf16", "lstm"): (1e-2, "Cast"),
    ("bf16", "attention"): (1e-2, "Cast"),
    ("dynamic-int8", "mlp"): (0.05, "MatMulInteger"),
    ("dynamic-int8", "cnn"): (0.05, "MatMulInteger"),
    ("dynamic-int8", "lstm"): (0.05, "DynamicQuantizeLSTM"),
    ("dynamic-int8", "attention"): (0.05, "MatMulInteger"),
    ("rows-int8", "mlp"): (0.03, "MatMulIntegerToFloat"),
    ("rows-int8", "cnn"): (0.03, "MatMulIntegerToFloat"),
    ("rows-int8", "lstm"): (0.03, "MatMulIntegerToFloat"),
    ("rows-int8", "attention"): (0.03, "MatMulIntegerToFloat"),
    ("static-int8", "mlp"): (0.05, "QuantizeLinear"),
    ("static-int8", "cnn"): (0.05, "QuantizeLinear"),
    ("static-int8", "lstm"): (0.05, "QuantizeLinear"),
    ("static-int8", "attention"): (0.05, "QuantizeLinear"),
    ("weights-int8", "mlp"): (0.02, "MatMulNBits"),
    ("weights-int8", "cnn"): (0.02, "MatMulNBits"),
    ("weights-int8", "lstm"): (0.02, "MatMulNBits"),
    ("weights-int8", "attention"): (0.02, "MatMulNBits"),
    ("weights-int4", "mlp"): (0.2, "MatMulNBits"),
    ("weights-int4", "attention"): (0.2, "MatMulNBits"),
}


def make(name: str, made: Model, data: Dataset, folder: Path, **options: object) -> tuple[Made, float]:
    """The candidate, and how far its answers are off."""
    source, context = at(made, data, folder, **options)
    before = source.onnx.read_bytes()
    candidate = RECIPES[name].make(source, context)
    assert source.onnx.read_bytes() == before
    assert {path.name for path in folder.iterdir()} == {"model.onnx", "work"}
    assert [path.name for path in context.folder.iterdir()] == [candidate.path.name]
    right, given = (answer(open_session(path), data, 16) for path in (source.onnx, candidate.path))
    return candidate, distance(right, given)


@pytest.mark.parametrize(("name", "kind"), DOES)
def test_makes_a_candidate(name: str, kind: str, tmp_path: Path) -> None:
    made, data = KINDS[kind]()
    candidate, off = make(name, made, data, tmp_path)
    bound, operator = DOES[name, kind]
    new = onnx.load(candidate.path)
    assert off <= bound
    assert operator in {node.op_type for node in every_node(new.graph)}
    assert list(new.graph.input) == list(made.graph.input)  # names, types and open axes
    assert list(new.graph.output) == list(made.graph.output)
    assert candidate.steps[-1].by.partition(" ")[2]
    assert not any(count(new, INTEGER) for whole in ("clean", "fuse", "fp16", "bf16") if name == whole)


def test_every_recipe_is_tried() -> None:
    assert {name for name, _ in DOES} == set(ONNX_RECIPES)


PROGRAM = """
import sys
from pathlib import Path
from tests.compress.recipes.test_onnx_recipes import make_all
make_all(Path(sys.argv[1]))
"""


def make_all(folder: Path) -> dict[str, bytes]:
    """What each recipe makes of a model that suits it."""
    candidates = {}
    for name in ONNX_RECIPES:
        (folder / name).mkdir(parents=True)
        made, data = KINDS["cnn" if name in ("clean", "static-int8") else "attention"]()
        path = RECIPES[name].make(*at(made, data, folder / name)).path
        candidates[name] = path.read_bytes()
    return candidates


def test_the_same_seed_gives_the_same_bytes(tmp_path: Path) -> None:
    """In another process, too: libraries walk through sets, whose order differs from one to the next."""
    environment = os.environ | {
        "PYTHONHASHSEED": "7",
        "PYTHONPATH": os.pathsep.join([*sys.path, str(Path(__file__).parents[3])]),
    }
    subprocess.run([sys.executable, "-c", PROGRAM, tmp_path / "there"], env=environment, check=True, timeout=120)
    here = make_all(tmp_path / "here")
    there = {name: (tmp_path / "there" / name / "work" / f"{name}.onnx").read_bytes() for name in here}
    assert [name for name in here if here[name] != there[name]] == []


def nothing_large() -> Model:
    dims = ("N", 4)
    return model_of([helper.make_node("Sigmoid", ["x"], ["y"])], [value("x", DType.FP32, dims)], [value("y", DType.FP32, dims)])


def custom() -> Model:
    node = helper.make_node("Foo", ["x"], ["y"], domain="acme")
    made = model_of([node], [value("x", DType.FP32, ("N", WIDTH))], [value("y", DType.FP32, ("N", WIDTH))])
    made.opset_import.append(helper.make_opsetid("acme", 1))
    return made


def branching() -> Model:
    """If the first is positive, a product, else none; the product outside has the same weights."""
    layers = Layers()
    weights = layers.weight(WIDTH, WIDTH)
    product = layers.add("MatMul", ["x", weights])
    first = layers.add("ReduceMax", [product], keepdims=0)
    branches = []
    for name, node in (
        ("then", helper.make_node("MatMul", [product, weights], ["then"])),
        ("else", helper.make_node("Neg", [product], ["else"])),
    ):
        branches.append(helper.make_graph([node], name, [], [value(name, DType.FP32, ("N", WIDTH))]))
    positive = layers.add("Greater", [first, layers.put(np.float32(0))])
    x = layers.add("If", [positive], then_branch=branches[0], else_branch=branches[1])
    return layers.model({"x": (DType.FP32, ("N", WIDTH))}, x, ("N", WIDTH))


def old(op: str = "Neg") -> Model:
    """Of opset 8, with its weights among the inputs."""
    nodes = [helper.make_node("MatMul", ["x", "w"], ["p"]), helper.make_node(op, ["p"], ["y"])]
    faces = [value("x", DType.FP32, ("N", WIDTH)), value("w", DType.FP32, (WIDTH, WIDTH))]
    weights = np.random.default_rng(0).standard_normal((WIDTH, WIDTH)).astype(np.float32)
    made = model_of(nodes, faces, [value("y", DType.FP32, ("N", WIDTH))], [constant("w", weights)])
    made.ir_version = 3
    made.opset_import[0].version = 8
    return made


def of_negatives() -> Model:
    layers = Layers()
    x = layers.add("Sqrt", [layers.linear("x", WIDTH, WIDTH)])
    return layers.model({"x": (DType.FP32, ("N", WIDTH))}, x, ("N", WIDTH))


FLOATS = Dataset({"x": rows_of_floats(WIDTH)})
REFUSED = {
    "no weights": ("weights-int8", nothing_large, Dataset({"x": rows_of_floats(4)}), {}, "no large MatMul or Gemm"),
    "no weights for rows": ("rows-int8", nothing_large, Dataset({"x": rows_of_floats(4)}), {}, "no large MatMul or Gemm"),
    "no weights to calibrate": ("static-int8", nothing_large, Dataset({"x": rows_of_floats(4)}), {}, "no Conv, MatMul or Gemm"),
    "nothing dynamic": ("dynamic-int8", nothing_large, Dataset({"x": rows_of_floats(4)}), {}, "no MatMul, Gemm, LSTM"),
    "nothing to halve": ("fp16", nothing_large, Dataset({"x": rows_of_floats(4)}), {}, "no float32 weights"),
    "nothing to fuse": ("fuse", nothing_large, Dataset({"x": rows_of_floats(4)}), {}, "nothing to fuse"),
    "nothing to clean": ("clean", nothing_large, Dataset({"x": rows_of_floats(4)}), {}, "nothing to clean up"),
    "control flow": ("static-int8", branching, FLOATS, {}, r"has control flow \(If\)"),
    "a custom operator": ("rows-int8", custom, FLOATS, {}, "custom operator, Foo of 'acme'"),
    "one example": ("static-int8", lambda: mlp()[0], FLOATS.rows([0]), {}, "1 training examples are too few to calibrate"),
    "other data": ("rows-int8", lambda: mlp()[0], Dataset({"x": rows_of_floats(3)}), {}, "cannot be run on the training data"),
    "no way to calibrate": ("static-int8", lambda: mlp()[0], FLOATS, {"calibration": "luck"}, "one of minmax, entropy"),
    "no kind of activation": ("static-int8", lambda: mlp()[0], FLOATS, {"activations": "int4"}, "one of uint8, int8"),
    "a strange block": ("weights-int4", lambda: mlp()[0], FLOATS, {"block": 17}, "power of two"),
    "no number": ("rows-int8", of_negatives, FLOATS, {}, "the original answers with what is no number"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refuses_in_words(case: str, tmp_path: Path) -> None:
    name, build, data, options, why = REFUSED[case]
    source, context = at(build(), data, tmp_path, **options)
    with pytest.raises(RecipeError, match=why):
        RECIPES[name].make(source, context)


@pytest.mark.parametrize("name", ["static-int8", "dynamic-int8", "rows-int8", "weights-int8", "weights-int4"])
def test_refuses_what_is_quantised_already(name: str, tmp_path: Path) -> None:
    candidate, _ = make("rows-int8", *mlp(), tmp_path)
    with pytest.raises(RecipeError, match=r"quantised already \(QuantizeLinear\)"):
        RECIPES[name].make(Source(candidate.path), Context(folder=tmp_path, training=FLOATS, metric=""))


@pytest.mark.parametrize("name", ["clean", "fuse", "rows-int8", "weights-int8", "dynamic-int8", "fp16", "bf16"])
def test_control_flow_is_left_as_it_is(name: str, tmp_path: Path) -> None:
    """What nodes inside read stays there, though the product outside has it no longer."""
    candidate, off = make(name, branching(), FLOATS, tmp_path)
    assert off < 0.05
    assert count(onnx.load(candidate.path), ("If",)) == 1


@pytest.mark.parametrize("name", ["rows-int8", "static-int8", "dynamic-int8", "bf16"])
def test_old_opsets_are_upgraded(name: str, tmp_path: Path) -> None:
    source, context = at(old(), FLOATS, tmp_path)
    new = onnx.load(RECIPES[name].make(source, context).path)
    assert count(new, (*INTEGER, "Cast"))
    assert [one.name for one in new.graph.input] == ["x"]


def test_an_opset_that_cannot_be_upgraded_is_refused(tmp_path: Path) -> None:
    source, context = at(old("Upsample"), FLOATS, tmp_path)
    with pytest.raises(RecipeError, match="opset 8 is too old for this recipe"):
        RECIPES["rows-int8"].make(source, context)


def test_weights_beside_the_model_are_read(tmp_path: Path) -> None:
    made, data = attention()
    source, context = at(made, data, tmp_path)
    onnx.save_model(made, source.onnx, save_as_external_data=True, location="weights.bin", size_threshold=1024)
    candidate = RECIPES["rows-int8"].make(source, context)
    assert not any(weight.external_data for weight in onnx.load(candidate.path, load_external_data=False).graph.initializer)


def test_more_than_two_gigabytes_are_refused(tmp_path: Path) -> None:
    made, data = mlp()
    source, context = at(made, data, tmp_path)
    onnx.save_model(made, source.onnx, save_as_external_data=True, location="weights.bin", size_threshold=1024)
    os.truncate(tmp_path / "weights.bin", 3_000_000_000)  # a hole: no such space is taken
    with pytest.raises(RecipeError, match=r"takes 3\.0 GB"):
        RECIPES["bf16"].make(source, context)


def test_what_is_no_model_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(b"no protobuf")
    with pytest.raises(RecipeError, match="cannot be read as an ONNX model"):
        RECIPES["clean"].make(Source(path), Context(folder=tmp_path, training=FLOATS, metric=""))


def test_a_candidate_without_numbers_is_refused(tmp_path: Path) -> None:
    source, context = at(*mlp(), tmp_path)
    layers = Layers()
    x = layers.add("Div", [layers.linear("x", WIDTH, 10), layers.put(np.float32(0))])
    with pytest.raises(RecipeError, match="it would answer with what is no number"):
        finish(layers.model({"x": (DType.FP32, ("N", WIDTH))}, x, ("N", 10)), source, context, "broken", [])


def test_a_candidate_of_other_inputs_is_refused(tmp_path: Path) -> None:
    source, context = at(*mlp(), tmp_path)
    layers = Layers()
    other = layers.model({"z": (DType.FP32, ("N", WIDTH))}, layers.linear("z", WIDTH, 10), ("N", 10))
    with pytest.raises(RecipeError, match="its inputs would no longer be what they are"):
        finish(other, source, context, "other", [])


def test_weights_that_callers_may_give_stay_what_they_are(tmp_path: Path) -> None:
    made, data = mlp()
    made.graph.input.append(value(made.graph.initializer[2].name, DType.FP32, (WIDTH, WIDTH)))
    assert make("rows-int8", made, data, tmp_path)[0].steps[-1].settings["products"] == 1
    source, context = at(made, data, tmp_path)
    with pytest.raises(RecipeError, match="its defaults would no longer be what they are"):
        RECIPES["dynamic-int8"].make(source, context)


def test_a_missing_package_is_named(tmp_path: Path) -> None:
    from dlproxy.compress.recipes import Listed

    context = Context(folder=tmp_path, training=FLOATS, metric="")
    with pytest.raises(RecipeError, match=r"needs no_such_package: pip install"):
        Listed("x", "", "optimise:clean", ("no_such_package",)).make(Source(tmp_path / "model.onnx"), context)


def test_static_int8_leaves_in_floats_what_suffers(tmp_path: Path) -> None:
    """A channel that nothing listens to stretches the range of its tensor until nothing is left for the others."""
    made, data = mlp(outlier=1000.0)
    candidate, off = make("static-int8", made, data, tmp_path, calibration="minmax")
    (left,) = candidate.steps[-1].settings["left_in_float"]
    weights = {weight.name: weight for weight in onnx.load(tmp_path / "model.onnx").graph.initializer}
    deaf = next(name for name, one in weights.items() if one.dims == [WIDTH, WIDTH] and not numpy_helper.to_array(one)[3].any())
    floats = {node.name: node for node in onnx.load(candidate.path).graph.node if node.op_type == "MatMul"}
    assert deaf in floats[left].input
    assert off < 0.05
    assert any("stay in floats" in note for note in candidate.notes)


@pytest.mark.parametrize("asked", [{"activations": "int8"}, {"calibration": "percentile"}])
def test_static_int8_does_as_it_is_told(asked: dict[str, str], tmp_path: Path) -> None:
    candidate, off = make("static-int8", *cnn(), tmp_path, **asked)
    settings = {**candidate.steps[1].settings, **candidate.steps[2].settings}
    zeros = {weight.data_type for weight in onnx.load(candidate.path).graph.initializer if weight.name.endswith("_zero_point")}
    assert settings["activations"] == "int8" or settings["method"] == "percentile"
    assert (TensorProto.UINT8 in zeros) == (settings["activations"] == "uint8")
    assert off < 0.05

"""Classifiers of a few numbers in ONNX, for the tests of compression: quick, slow, wrong, and such as fit nowhere."""

from pathlib import Path

import numpy as np
from onnx import helper

from dlproxy.compress.data import Dataset
from dlproxy.message import DType
from tests import models

WIDTH, CLASSES = 16, 4
_rng = np.random.default_rng(7)
WEIGHTS = _rng.standard_normal((WIDTH, CLASSES)).astype(np.float32)
DETOUR = np.linalg.qr(_rng.standard_normal((WIDTH, WIDTH)))[0].astype(np.float32)


def dataset(examples: int = 400, *, labels: bool = True) -> Dataset:
    """Numbers, and the class that the classifier finds in nearly all of them."""
    rng = np.random.default_rng(3)
    x = rng.standard_normal((examples, WIDTH)).astype(np.float32)
    right = (x @ WEIGHTS).argmax(axis=1)
    right[:: max(examples // 20, 2)] = 0
    return Dataset({"x": x}, right if labels else None)


def classifier(detours: int = 0, *, weights: "np.ndarray[tuple[int, int], np.dtype[np.float32]]" = WEIGHTS) -> models.Model:
    """logits = x · weights. `detours`: pairs of products with a matrix and its inverse, which take time and change nothing."""
    nodes, last = [], "x"
    for number in range(detours):
        nodes.append(helper.make_node("MatMul", [last, "there"], [f"far{number}"]))
        nodes.append(helper.make_node("MatMul", [f"far{number}", "back"], [f"near{number}"]))
        last = f"near{number}"
    nodes.append(helper.make_node("MatMul", [last, "weights"], ["logits"]))
    constants = [models.constant("weights", weights)]
    if detours:
        constants += [models.constant("there", DETOUR), models.constant("back", np.ascontiguousarray(DETOUR.T))]
    inputs = [models.value("x", DType.FP32, ("N", WIDTH))]
    return models.model(nodes, inputs, [models.value("logits", DType.FP32, ("N", CLASSES))], constants)


def without_numbers() -> models.Model:
    """0 / 0 for each answer."""
    made = classifier()
    made.graph.node[-1].output[0] = "product"
    made.graph.node.append(helper.make_node("Sub", ["product", "product"], ["zero"]))
    made.graph.node.append(helper.make_node("Div", ["zero", "zero"], ["logits"]))
    return made


def scaled_together() -> models.Model:
    """Quantised by the range of the whole batch, as dynamic quantisation does."""
    made = classifier()
    made.graph.node[-1].input[0] = "back"
    made.graph.node.insert(0, helper.make_node("DynamicQuantizeLinear", ["x"], ["q", "scale", "zero"]))
    made.graph.node.insert(1, helper.make_node("DequantizeLinear", ["q", "scale", "zero"], ["back"]))
    return made


def renamed(name: str) -> models.Model:
    made = classifier()
    made.graph.node[-1].output[0] = name
    made.graph.output[0].name = name
    return made


def of_other_inputs(dtype: DType = DType.FP32, rows: int | str = "N") -> models.Model:
    made = classifier()
    made.graph.input[0].CopyFrom(models.value("x", dtype, (rows, WIDTH)))
    if dtype is not DType.FP32:
        made.graph.node[-1].input[0] = "cast"
        made.graph.node.insert(0, helper.make_node("Cast", ["x"], ["cast"], to=models.ONNX_TYPES[DType.FP32]))
    return made


def looping() -> models.Model:
    """The classifier, its product inside an If, and after it a loop of as many turns as a constant says."""
    then, other = (
        helper.make_graph(
            [helper.make_node("MatMul", ["x", "weights"], [name])], name, [], [models.value(name, DType.FP32, ("N", CLASSES))]
        )
        for name in ("one", "two")
    )
    scalars = [models.value("turn", DType.INT64, ()), models.value("go", DType.BOOL, ())]
    body = helper.make_graph(
        [helper.make_node("Identity", ["go"], ["on"]), helper.make_node("Neg", ["carried"], ["next"])],
        "body",
        [*scalars, models.value("carried", DType.FP32, None)],  # type: ignore[arg-type]
        [models.value("on", DType.BOOL, ()), models.value("next", DType.FP32, None)],  # type: ignore[arg-type]
    )
    nodes = [
        helper.make_node("ReduceSum", ["x"], ["sum"], keepdims=0),
        helper.make_node("Greater", ["sum", "zero"], ["positive"]),
        helper.make_node("If", ["positive"], ["chosen"], then_branch=then, else_branch=other),
        helper.make_node("Loop", ["turns", "", "chosen"], ["logits"], body=body),
    ]
    constants = [
        models.constant("weights", WEIGHTS),
        models.constant("zero", np.float32(0)),
        models.constant("turns", np.int64(2)),
    ]
    inputs = [models.value("x", DType.FP32, ("N", WIDTH))]
    return models.model(nodes, inputs, [models.value("logits", DType.FP32, ("N", CLASSES))], constants)


def of_custom_operators() -> models.Model:
    made = classifier()
    made.graph.node[-1].domain, made.graph.node[-1].op_type = "of.the.house", "Guess"
    made.opset_import.append(helper.make_opsetid("of.the.house", 1))
    return made


def saved(made: models.Model, folder: Path, name: str = "model") -> Path:
    return models.save(made, folder / f"{name}.onnx")


def coarse() -> models.Model:
    """Quicker than one with detours, not always right, and quantised by the range of the whole batch."""
    made = scaled_together()
    made.graph.initializer[0].CopyFrom(models.constant("weights", np.round(WEIGHTS / 0.5) * np.float32(0.5)))
    return made

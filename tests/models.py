"""Small ONNX models for tests, each made by a function and written by `save`. Opset 17, so that every kernel exists."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from dlproxy.message import DType

Model = onnx.ModelProto
Dims = Sequence[int | str | None]

DIGITS = Path(__file__).parents[1] / "src" / "dlproxy" / "lab" / "digits" / "digits.onnx"
HELDOUT = DIGITS.with_name("heldout.npz")

ONNX_TYPES = {
    DType.BOOL: TensorProto.BOOL,
    DType.UINT8: TensorProto.UINT8,
    DType.UINT16: TensorProto.UINT16,
    DType.UINT32: TensorProto.UINT32,
    DType.UINT64: TensorProto.UINT64,
    DType.INT8: TensorProto.INT8,
    DType.INT16: TensorProto.INT16,
    DType.INT32: TensorProto.INT32,
    DType.INT64: TensorProto.INT64,
    DType.FP16: TensorProto.FLOAT16,
    DType.BF16: TensorProto.BFLOAT16,
    DType.FP32: TensorProto.FLOAT,
    DType.FP64: TensorProto.DOUBLE,
    DType.BYTES: TensorProto.STRING,
}


def value(name: str, dtype: DType, dims: Dims) -> onnx.ValueInfoProto:
    """A graph input or output; a text or None stands for an open dimension."""
    return helper.make_tensor_value_info(name, ONNX_TYPES[dtype], dims)


def constant(name: str, array: Any) -> onnx.TensorProto:
    return numpy_helper.from_array(np.asarray(array), name)


def model(
    nodes: Sequence[onnx.NodeProto],
    inputs: Sequence[onnx.ValueInfoProto],
    outputs: Sequence[onnx.ValueInfoProto],
    constants: Sequence[onnx.TensorProto] = (),
) -> Model:
    graph = helper.make_graph(list(nodes), "test", list(inputs), list(outputs), list(constants))
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def save(made: Model, path: Path) -> Path:
    """Write it and hand the path back."""
    path.write_bytes(made.SerializeToString())
    return path


def identity(dtype: DType, dims: Dims = ("N", 3)) -> Model:
    """y = x."""
    return model([helper.make_node("Identity", ["x"], ["y"])], [value("x", dtype, dims)], [value("y", dtype, dims)])


def two_in_two_out() -> Model:
    """sum = a + b and diff = a - b, int32 of [N, 4]; Triton's "simple" example with a free batch axis."""
    dims = ("N", 4)
    return model(
        [helper.make_node("Add", ["a", "b"], ["sum"]), helper.make_node("Sub", ["a", "b"], ["diff"])],
        [value("a", DType.INT32, dims), value("b", DType.INT32, dims)],
        [value("sum", DType.INT32, dims), value("diff", DType.INT32, dims)],
    )


def lookup(entries: int = 8) -> Model:
    """value = 10 * index for 0 <= index < entries; any other index fails at run time. int64 [N] -> float32 [N]."""
    return model(
        [helper.make_node("Gather", ["table", "index"], ["value"], axis=0)],
        [value("index", DType.INT64, ("N",))],
        [value("value", DType.FP32, ("N",))],
        [constant("table", np.arange(entries, dtype=np.float32) * 10)],
    )


def slow(width: int = 320, layers: int = 60) -> Model:
    """About 40 ms a row on one core: a loop of matrix products over a [width, width] state. x is float32 [N, 1]."""
    weights = (np.random.default_rng(0).standard_normal((width, width)) / np.sqrt(width)).astype(np.float32)
    nodes = [helper.make_node("Mul", ["ones", "x3"], ["state0"])]
    shape = constant("shape", np.array([-1, 1, 1], np.int64))
    nodes.insert(0, helper.make_node("Reshape", ["x", "shape"], ["x3"]))
    nodes += [helper.make_node("MatMul", [f"state{layer}", "weights"], [f"state{layer + 1}"]) for layer in range(layers)]
    nodes.append(helper.make_node("ReduceMean", [f"state{layers}"], ["mean"], axes=[1, 2], keepdims=0))
    nodes.append(helper.make_node("Mul", ["mean", "zero"], ["nothing"]))
    nodes.append(helper.make_node("Squeeze", ["x", "one_axis"], ["flat"]))
    nodes.append(helper.make_node("Add", ["flat", "nothing"], ["y"]))
    return model(
        nodes,
        [value("x", DType.FP32, ("N", 1))],
        [value("y", DType.FP32, ("N",))],
        [
            shape,
            constant("ones", np.ones((1, width, width), np.float32)),
            constant("weights", weights),
            constant("zero", np.zeros((), np.float32)),
            constant("one_axis", np.array([1], np.int64)),
        ],
    )


def softmax_over_rows() -> Model:
    """Every row's answer depends on all rows of its batch."""
    dims = ("N", 3)
    return model(
        [helper.make_node("Softmax", ["x"], ["y"], axis=0)], [value("x", DType.FP32, dims)], [value("y", DType.FP32, dims)]
    )


def less_the_largest(dtype: DType) -> Model:
    """y = x - max over the batch: depends on the neighbours only where they differ."""
    return model(
        [helper.make_node("ReduceMax", ["x"], ["top"], axes=[0], keepdims=1), helper.make_node("Sub", ["x", "top"], ["y"])],
        [value("x", dtype, ("N", 2))],
        [value("y", dtype, ("N", 2))],
    )


def without_inputs() -> Model:
    node = helper.make_node("Identity", ["c"], ["y"])
    return model([node], [], [value("y", DType.FP32, (1,))], [constant("c", [np.float32(1)])])


def settings_of(folder: Path, **made: Model) -> dict[str, dict[str, Any]]:
    """Of models that are saved in this folder, as a configuration has them: each on one thread."""
    return {name: {"path": save(each, folder / f"{name}.onnx"), "threads": 1} for name, each in made.items()}


def running_sum(path: Path) -> Path:
    """y [rows, 2]: x and all that came before it; the state, sum [1, rows, 2], has its rows on axis 1."""
    nodes = [
        helper.make_node("Unsqueeze", ["x", "first"], ["x1"]),
        helper.make_node("Add", ["x1", "sum"], ["sumN"]),
        helper.make_node("Squeeze", ["sumN", "first"], ["y"]),
    ]
    takes = [value("x", DType.FP32, ["batch", 2]), value("sum", DType.FP32, [1, "batch", 2])]
    gives = [value("sumN", DType.FP32, [1, "batch", 2]), value("y", DType.FP32, ["batch", 2])]
    return save(model(nodes, takes, gives, [constant("first", np.array([0], np.int64))]), path)

"""A request gets the same answer alone and in any batch, for random small models and random splits into requests.

Bit for bit where an element's value depends on no sum; sums may round in another order in kernels for another batch size,
so those agree within 1e-5 of the largest value (1e-2 in half precision).
"""

from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from onnx import helper

from dlproxy.instance.batch import Cutter, gather, run_batch
from dlproxy.message import DType, Request, Signature, Tensor, TensorSpec, Ticket
from dlproxy.tensors import NUMPY, to_array, to_bytes
from tests import models
from tests.models import constant, value

Array = NDArray[Any]

FLOATS = [DType.FP32, DType.FP64, DType.FP16]
INTEGERS = [DType.INT8, DType.UINT8, DType.INT32, DType.INT64]


class _Made:
    """A model with what a test must know: how to run it, and how exactly answers agree (0: bit for bit)."""

    def __init__(self, made: onnx.ModelProto, tolerance: float) -> None:
        self._session = ort.InferenceSession(made.SerializeToString(), providers=["CPUExecutionProvider"])
        self.tolerance = tolerance
        types = {proto: dtype for dtype, proto in models.ONNX_TYPES.items()}

        def spec(info: onnx.ValueInfoProto) -> TensorSpec:
            dims = info.type.tensor_type.shape.dim
            shape = tuple(dim.dim_value if dim.HasField("dim_value") else -1 for dim in dims)
            dtype = types[info.type.tensor_type.elem_type]
            return TensorSpec(info.name, dtype, shape, text=dtype is DType.BYTES)

        inputs, outputs = tuple(map(spec, made.graph.input)), tuple(map(spec, made.graph.output))
        self.signature = Signature(inputs, outputs, batched=True, platform="onnx")

    def run(self, inputs: Any) -> list[Array]:
        names = [spec.name for spec in self.signature.inputs]
        outputs: list[Array] = self._session.run(None, dict(zip(names, inputs, strict=True)))
        return outputs


def _float_nodes(draw: st.DrawFn, random: np.random.Generator, dtype: DType, width: int) -> tuple[list[Any], list[Any], float]:
    """A chain of layers over x of [N, width], ending in y; the constants; the tolerance."""
    element = NUMPY[dtype]
    nodes, constants, tolerance, at = [], [], 0.0, "x"
    for number in range(draw(st.integers(1, 4))):
        kind = draw(st.sampled_from(["Gemm", "Relu", "Tanh", "Add", "Softmax", "LayerNormalization"]))
        after, weights = f"h{number}", f"w{number}"
        if kind == "Gemm":
            constants += [
                constant(weights, random.standard_normal((width, width)).astype(element)),
                constant(f"b{number}", random.standard_normal(width).astype(element)),
            ]
            nodes.append(helper.make_node("Gemm", [at, weights, f"b{number}"], [after]))
        elif kind == "Add":
            constants.append(constant(weights, random.standard_normal((1, width)).astype(element)))
            nodes.append(helper.make_node("Add", [at, weights], [after]))
        elif kind == "LayerNormalization":
            constants.append(constant(weights, np.ones(width, element)))
            nodes.append(helper.make_node(kind, [at, weights], [after]))
        else:
            nodes.append(helper.make_node(kind, [at], [after], **({"axis": 1} if kind == "Softmax" else {})))
        if kind in ("Gemm", "Softmax", "LayerNormalization", "Tanh"):  # Tanh: vector and scalar kernels differ in the last bit
            tolerance = 1e-2 if dtype is DType.FP16 else 1e-5
        at = after
    nodes.append(helper.make_node("Identity", [at], ["y"]))
    return nodes, constants, tolerance


@st.composite
def float_chains(draw: st.DrawFn) -> _Made:
    dtype, width = draw(st.sampled_from(FLOATS)), draw(st.integers(1, 9))
    nodes, constants, tolerance = _float_nodes(draw, np.random.default_rng(draw(st.integers(0, 99))), dtype, width)
    dims = ("N", width)
    return _Made(models.model(nodes, [value("x", dtype, dims)], [value("y", dtype, dims)], constants), tolerance)


@st.composite
def convolutions(draw: st.DrawFn) -> _Made:
    """One convolution and a pooling over images of [N, C, H, W]."""
    channels, filters, size, kernel = (draw(st.integers(1, 3)), draw(st.integers(1, 4)), draw(st.integers(4, 7)), 3)
    weights = np.random.default_rng(draw(st.integers(0, 99))).standard_normal((filters, channels, kernel, kernel))
    made = models.model(
        [
            helper.make_node("Conv", ["x", "w"], ["h"], pads=[1, 1, 1, 1]),
            helper.make_node("Relu", ["h"], ["r"]),
            helper.make_node("MaxPool", ["r"], ["y"], kernel_shape=[2, 2]),
        ],
        [value("x", DType.FP32, ("N", channels, size, size))],
        [value("y", DType.FP32, ("N", filters, size - 1, size - 1))],
        [constant("w", weights.astype(np.float32))],
    )
    return _Made(made, 1e-5)


@st.composite
def integer_models(draw: st.DrawFn) -> _Made:
    """Concat of two inputs of different widths, then arithmetic that wraps around; two outputs."""
    dtype = draw(st.sampled_from([DType.INT32, DType.INT64]))
    a, b = draw(st.integers(1, 4)), draw(st.integers(1, 4))
    made = models.model(
        [
            helper.make_node("Concat", ["a", "b"], ["both"], axis=1),
            helper.make_node("Mul", ["both", "three"], ["y"]),
            helper.make_node("ReduceSum", ["both", "axis"], ["total"], keepdims=0),
        ],
        [value("a", dtype, ("N", a)), value("b", dtype, ("N", b))],
        [value("y", dtype, ("N", a + b)), value("total", dtype, ("N",))],
        [constant("three", NUMPY[dtype].type(3)), constant("axis", np.array([1]))],
    )
    return _Made(made, 0.0)


@st.composite
def identities(draw: st.DrawFn) -> _Made:
    """Any type, text and open second dimension included."""
    dtype = draw(st.sampled_from([DType.BYTES, DType.BOOL, *FLOATS, *INTEGERS]))
    return _Made(models.identity(dtype, ("N", draw(st.sampled_from(["M", 1, 3])))), 0.0)


def texts_beside_numbers() -> _Made:
    """Text and numbers in one model, each passed through."""
    return _Made(
        models.model(
            [helper.make_node("Identity", ["t"], ["u"]), helper.make_node("Neg", ["n"], ["m"])],
            [value("t", DType.BYTES, ("N", 2)), value("n", DType.FP32, ("N",))],
            [value("u", DType.BYTES, ("N", 2)), value("m", DType.FP32, ("N",))],
        ),
        0.0,
    )


def _random_tensor(draw: st.DrawFn, spec: TensorSpec, rows: int, free: int) -> Tensor:
    shape = (rows, *(free if size < 0 else size for size in spec.shape[1:]))
    random = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    count = int(np.prod(shape))
    if spec.dtype is DType.BYTES:
        text = st.text(st.characters(exclude_categories=["Cs"]), max_size=5)
        array = np.array([*draw(st.lists(text, min_size=count, max_size=count)), None], dtype=object)[:-1].reshape(shape)
    elif NUMPY[spec.dtype].kind == "f":
        array = random.standard_normal(shape).astype(NUMPY[spec.dtype])
    else:
        noise = random.integers(0, 2 if spec.dtype is DType.BOOL else 256, count * spec.dtype.itemsize, np.uint8)
        array = np.frombuffer(noise.tobytes(), NUMPY[spec.dtype]).reshape(shape)
    return Tensor(spec.name, spec.dtype, shape, to_bytes(spec.dtype, array))


@st.composite
def batches(draw: st.DrawFn) -> tuple[_Made, list[Request]]:
    made = draw(st.one_of(float_chains(), convolutions(), integer_models(), identities(), st.builds(texts_beside_numbers)))
    free = draw(st.integers(1, 4))  # of one batch: requests of different row shapes never share one
    requests = []
    for number, rows in enumerate(draw(st.lists(st.integers(1, 5), min_size=1, max_size=6))):
        inputs = [_random_tensor(draw, spec, rows, free) for spec in made.signature.inputs]
        wanted = draw(st.permutations(range(len(made.signature.outputs))))
        requests.append(Request(Ticket(number, 0.0, rows=rows), "m", inputs, wanted[: draw(st.integers(1, len(wanted)))]))
    return made, requests


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(batches())
def test_any_batch_gives_what_its_requests_give_alone(batch: tuple[_Made, list[Request]]) -> None:
    made, requests = batch
    together = run_batch(made, requests)
    assert together.error is None
    cutter = Cutter(made.signature, together.outputs, requests=len(requests))
    start = 0
    for request in requests:
        alone = made.run(gather(made.signature, [request]))
        cut = cutter.cut(start, request.ticket.rows, request.outputs)
        start += request.ticket.rows
        assert [tensor.name for tensor in cut] == [made.signature.outputs[index].name for index in request.outputs]
        for tensor, index in zip(cut, request.outputs, strict=True):
            _assert_same(to_array(tensor.dtype, tensor.shape, tensor.data, text=True), alone[index], made.tolerance)


def _assert_same(got: Array, want: Array, tolerance: float) -> None:
    assert got.shape == want.shape
    assert got.dtype == want.dtype
    if got.dtype.kind == "O":
        assert got.tolist() == want.tolist()
    elif tolerance == 0.0:
        assert got.tobytes() == want.tobytes()
    else:
        scale = float(np.max(np.abs(want.astype(np.float64)), initial=1.0))
        assert np.allclose(got, want, rtol=tolerance, atol=tolerance * scale)


def test_one_request_alone_is_not_copied() -> None:
    data = np.arange(6, dtype=np.float32).tobytes()
    signature = Signature((TensorSpec("x", DType.FP32, (-1, 3)),), (), batched=True, platform="fake")
    request = Request(Ticket(1, 0.0, rows=2), "m", [Tensor("x", DType.FP32, (2, 3), data)], ())
    (array,) = gather(signature, [request])
    assert np.shares_memory(array, np.frombuffer(data, np.float32))


def test_rows_are_cut_without_a_copy() -> None:
    output = np.arange(12, dtype=np.float32).reshape(4, 3)
    signature = Signature((), (TensorSpec("y", DType.FP32, (-1, 3)),), batched=True, platform="fake")
    (tensor,) = Cutter(signature, [output], requests=2).cut(1, 2, (0,))
    assert np.shares_memory(np.frombuffer(tensor.data, np.float32), output)
    assert tuple(tensor.shape) == (2, 3)


@pytest.mark.parametrize("output", [np.zeros((4, 0), np.float32), np.zeros((4, 3), np.float32).T.copy().T])
def test_empty_rows_and_transposed_outputs_are_cut(output: Array) -> None:
    signature = Signature((), (TensorSpec("y", DType.FP32, (-1, -1)),), batched=True, platform="fake")
    (tensor,) = Cutter(signature, [output], requests=2).cut(1, 2, (0,))
    assert to_array(tensor.dtype, tensor.shape, tensor.data).tolist() == output[1:3].tolist()

"""Outputs as classes: Triton's strings, by row, with names. Expected values were computed by hand or are Triton 2.51's own."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dlproxy.config import ModelConfig
from dlproxy.instance.runtime import ModelError
from dlproxy.message import DType, InferenceError, Tensor, TensorSpec
from dlproxy.serve.assemble import class_names_of
from dlproxy.tensors import NUMPY, elements_of, to_bytes
from dlproxy.wire.classification import WITHOUT, Classes, classes_of

from .fixtures import EchoService, Reply, Wire, app_of, echo_signature, post, served


def strings(tensor: Tensor) -> list[str]:
    assert tensor.dtype is DType.BYTES
    return [str(element, "utf-8") for element in elements_of(tensor.data)]


def classes(values: Any, dtype: DType, count: int, *, by_row: bool = True, names: Sequence[str] = ()) -> Tensor:
    array = np.array(values, NUMPY[dtype])
    return Classes(count, by_row, names).of(Tensor("y", dtype, array.shape, to_bytes(dtype, array)))


@pytest.mark.parametrize(
    ("values", "dtype", "count", "expected"),
    [
        ([[1.1, 3.3, 0.5, 2.4]], DType.FP32, 2, ["3.300000:1", "2.400000:3"]),
        ([[1.1, 3.3, 0.5, 2.4]], DType.FP32, 9, ["3.300000:1", "2.400000:3", "1.100000:0", "0.500000:2"]),
        (
            [[1e20, 1e-9, -3.5, 123456.789]],
            DType.FP32,
            4,
            ["100000002004087734272.000000:0", "123456.789062:3", "0.000000:1", "-3.500000:2"],
        ),
        ([[0.1 + 0.2, -0.0, -7]], DType.FP64, 3, ["0.300000:0", "-0.000000:1", "-7.000000:2"]),
        ([[1, 3, 3, 3]], DType.FP32, 4, ["3.000000:1", "3.000000:2", "3.000000:3", "1.000000:0"]),
        ([[1, 3, 2, 7, -9, 10]], DType.INT32, 6, ["10:5", "7:3", "3:1", "2:2", "1:0", "-9:4"]),
        ([[-128, 127, 0]], DType.INT8, 3, ["127:1", "0:2", "-128:0"]),
        ([[0, 255, 7]], DType.UINT8, 3, ["255:1", "7:2", "0:0"]),
        (
            [[-(2**63), 2**63 - 1, 2**63 - 2]],
            DType.INT64,
            3,
            ["9223372036854775807:1", "9223372036854775806:2", "-9223372036854775808:0"],
        ),
        ([[0, 2**64 - 1, 2**64 - 2]], DType.UINT64, 3, ["18446744073709551615:1", "18446744073709551614:2", "0:0"]),
        ([[float("nan"), float("-inf"), float("inf"), 1]], DType.FP32, 4, ["inf:2", "1.000000:3", "-inf:1", "nan:0"]),
        ([[]], DType.FP32, 3, []),
    ],
)
def test_the_strings(values: Any, dtype: DType, count: int, expected: list[str]) -> None:
    found = classes(values, dtype, count)
    assert strings(found) == expected
    assert (found.name, tuple(found.shape)) == ("y", (1, len(expected)))


def test_each_row_has_its_own() -> None:
    found = classes([[1.1, 3.3], [0.5, 2.4], [9, 8]], DType.FP32, 1)
    assert (strings(found), tuple(found.shape)) == (["3.300000:1", "2.400000:1", "9.000000:0"], (3, 1))


def test_axes_behind_the_rows_are_counted_through() -> None:
    found = classes([[[1, 2], [3, 4]], [[8, 7], [6, 5]]], DType.INT32, 3)
    assert (strings(found), tuple(found.shape)) == (["4:3", "3:2", "2:1", "8:0", "7:1", "6:2"], (2, 3))


def test_without_rows_all_elements_compete() -> None:
    found = classes([[1, 3], [3, 3]], DType.FP32, 2, by_row=False)
    assert (strings(found), tuple(found.shape)) == (["3.000000:1", "3.000000:2"], (2,))


def test_a_scalar_is_its_own_class() -> None:
    found = classes(2.5, DType.FP32, 3)
    assert (strings(found), tuple(found.shape)) == (["2.500000:0"], (1,))


def test_labels_as_triton_has_them() -> None:
    """An empty line is no label, and neither is what lies behind the last one."""
    found = classes([[1, 3, 2, 7, -9, 10]], DType.INT32, 6, names=["apple", "pear", "", "fig "])
    assert strings(found) == ["10:5", "7:3:fig ", "3:1:pear", "2:2", "1:0:apple", "-9:4"]


@given(st.lists(st.floats(width=32), min_size=1, max_size=40), st.integers(1, 50))
def test_the_highest_come_first_whatever_they_are(values: list[float], count: int) -> None:
    found = strings(classes([values], DType.FP32, count))
    indices = [int(one.split(":")[1]) for one in found]
    assert len(set(indices)) == len(found) == min(count, len(values))
    numbers = [-np.inf if np.isnan(values[index]) else values[index] for index in indices]
    assert numbers == sorted(numbers, reverse=True)


@pytest.mark.parametrize("dtype", WITHOUT)
def test_types_without_classes(dtype: DType) -> None:
    with pytest.raises(InferenceError, match=f"class result not available for output due to unsupported type '{dtype.value}'"):
        classes_of(TensorSpec("y", dtype, (-1, 3)), 1, batched=True)


def test_rows_on_another_axis_have_none() -> None:
    with pytest.raises(InferenceError, match="output 'y', whose rows stand on axis 1"):
        classes_of(TensorSpec("y", DType.FP32, (3, -1), rows=1), 1, batched=True)
    assert classes_of(TensorSpec("y", DType.FP32, (3,), rows=None), 1, batched=True) == Classes(1, False)
    assert classes_of(TensorSpec("y", DType.FP32, (-1, 3)), 0, batched=True) is None


def test_labels_are_read_as_the_model_is_loaded(tmp_path: Path) -> None:
    file = tmp_path / "classes.txt"
    file.write_text("apple\nBirne\n\nfig\u2028\r\n", "utf-8")
    assert class_names_of(ModelConfig(path="x.onnx", class_names=str(file))) == ["apple", "Birne", "", "fig\u2028", ""]
    assert class_names_of(ModelConfig(path="x.onnx")) == []
    file.write_bytes(b"\xff")
    for broken in (file, tmp_path / "none.txt"):
        with pytest.raises(ModelError, match="cannot be read"):
            class_names_of(ModelConfig(path="x.onnx", class_names=str(broken)))


# Over HTTP


def answer(parameters: dict[str, Any], data: list[float], shape: list[int], **head: Any) -> Reply:
    service = EchoService(echo_signature(("x", DType.FP32, (-1, 2))))
    model = served(service)
    model.class_names = ["cat", "dog"]
    tensor = {"name": "x", "shape": shape, "datatype": "FP32", "data": data}
    body = {"inputs": [tensor], "outputs": [{"name": "out_x", "parameters": parameters}], **head}
    wire = Wire(app_of(model)).feed(post("/v2/models/m/infer", msgspec.json.encode(body)))
    service.answer_all()
    return wire.replies[0]


def test_classes_as_json() -> None:
    reply = answer({"classification": 1}, [1, 2, 4, 3], [2, 2], id="q")
    output = {"name": "out_x", "datatype": "BYTES", "shape": [2, 1], "data": ["2.000000:1:dog", "4.000000:0:cat"]}
    assert reply.json() == {"model_name": "m", "model_version": "1", "id": "q", "outputs": [output]}


def test_classes_as_binary() -> None:
    reply = answer({"classification": 5, "binary_data": True}, [1, 2], [1, 2])
    length = int(reply.headers["inference-header-content-length"])
    output = {"name": "out_x", "datatype": "BYTES", "shape": [1, 2], "parameters": {"binary_data_size": 36}}
    assert msgspec.json.decode(reply.body[:length])["outputs"] == [output]
    assert reply.body[length:] == b"\x0e\0\0\x002.000000:1:dog\x0e\0\0\x001.000000:0:cat"


def test_zero_classes_ask_for_nothing() -> None:
    assert answer({"classification": 0}, [1, 2], [1, 2]).json()["outputs"][0]["data"] == [1, 2]

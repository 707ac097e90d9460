"""Warm-up finds out how a model behaves in batches, and is never stopped by a model that dislikes made-up inputs."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from onnx import helper

from dlproxy.instance.made_up import KINDS, Kind, Known, joined, row_of
from dlproxy.instance.runtime.onnx import OnnxRuntime
from dlproxy.instance.warmup import SIZES, Calibration, calibrate
from dlproxy.message import DType, Signature, TensorSpec
from dlproxy.tensors import NUMPY
from dlproxy.testing import FakeRuntime
from tests import models

Array = NDArray[np.generic]


def _calibrate(made: models.Model, folder: Path) -> Calibration:
    return calibrate(OnnxRuntime(models.save(made, folder / "m.onnx"), threads=1))


@pytest.mark.parametrize("dtype", list(DType), ids=lambda dtype: dtype.value)
def test_a_free_batch_axis_is_measured_in_several_sizes(tmp_path: Path, dtype: DType) -> None:
    found = _calibrate(models.identity(dtype), tmp_path)
    assert found.independent_rows
    assert [rows for rows, _ in found.points] == list(SIZES[: len(found.points)])
    assert len(found.points) > 1
    assert all(seconds > 0 for _, seconds in found.points)
    assert found.single_s == found.points[0][1]
    assert not found.warning


def test_a_fixed_batch_of_one_is_measured_alone(tmp_path: Path) -> None:
    found = _calibrate(models.identity(DType.FP32, (1, 3)), tmp_path)
    assert [rows for rows, _ in found.points] == [1]
    assert not found.independent_rows
    assert not found.warning


def test_softmax_over_the_batch_turns_batching_off(tmp_path: Path) -> None:
    found = _calibrate(models.softmax_over_rows(), tmp_path)
    assert not found.independent_rows
    assert "batching is off" in found.warning
    assert found.single_s is not None


@pytest.mark.parametrize("dtype", [DType.FP32, DType.INT32, DType.INT64], ids=lambda dtype: dtype.value)
def test_rows_that_look_at_their_neighbours_are_found_for_integers_too(tmp_path: Path, dtype: DType) -> None:
    assert not _calibrate(models.less_the_largest(dtype), tmp_path).independent_rows


def test_integers_of_one_column_that_depend_on_the_whole_batch_are_found() -> None:
    signature = Signature((TensorSpec("x", DType.INT64, (-1,)),), (TensorSpec("y", DType.INT64, (-1,)),), True, "fake")
    assert not calibrate(FakeRuntime(signature, lambda inputs: [inputs[0] - inputs[0].max()])).independent_rows


def test_flags_that_depend_on_the_whole_batch_are_found() -> None:
    signature = Signature((TensorSpec("x", DType.BOOL, (-1,)),), (TensorSpec("y", DType.BOOL, (-1,)),), True, "fake")
    assert not calibrate(FakeRuntime(signature, lambda inputs: [inputs[0] | inputs[0].any()])).independent_rows


def test_texts_that_depend_on_the_whole_batch_are_found() -> None:
    signature = Signature((TensorSpec("x", DType.BYTES, (-1,)),), (TensorSpec("y", DType.BYTES, (-1,)),), True, "fake")
    assert not calibrate(
        FakeRuntime(signature, lambda inputs: [np.full(len(inputs[0]), inputs[0][0], object)])
    ).independent_rows


@pytest.mark.parametrize(("text", "kind"), [(False, bytes), (True, str)])
def test_made_up_bytes_are_text_where_it_is_declared(text: bool, kind: type) -> None:
    rows = [row_of([TensorSpec("x", DType.BYTES, (-1,), text)], each, Known(1))[0] for each in KINDS]
    assert {type(row[0]) for row in rows} == {kind}
    assert len({row[0] for row in rows}) > 2, "rows that are all alike would show nothing"


def test_open_dimensions_are_tried_until_one_suits(tmp_path: Path) -> None:
    """A 5x5 convolution without padding takes no 1x1 image."""
    weights = models.constant("w", np.ones((1, 1, 5, 5), np.float32))
    made = models.model(
        [helper.make_node("Conv", ["x", "w"], ["y"])],
        [models.value("x", DType.FP32, ("N", 1, "H", "W"))],
        [models.value("y", DType.FP32, ("N", 1, "H2", "W2"))],
        [weights],
    )
    found = _calibrate(made, tmp_path)
    assert found.independent_rows
    assert len(found.points) > 1


def test_a_model_that_refuses_everything_made_up_is_served_unmeasured(tmp_path: Path) -> None:
    found = _calibrate(models.lookup(entries=0), tmp_path)
    assert found.points == ()
    assert found.single_s is None
    assert not found.independent_rows
    assert found.warning.startswith("made-up inputs do not suit the model (RuntimeError: [ONNXRuntimeError]")
    assert "must be within the inclusive range" in found.warning, "the last that the model said"
    assert "\n" not in found.warning


def _same(inputs: Sequence[Array]) -> list[Array]:
    return [inputs[0]]


PLAIN = Signature((TensorSpec("x", DType.FP32, (-1, 2)),), (TensorSpec("y", DType.FP32, (-1, 2)),), True, "fake")


def test_a_model_that_cannot_run_two_rows_is_served_row_by_row() -> None:
    def only_one(inputs: Sequence[Array]) -> list[Array]:
        if len(inputs[0]) > 1:
            raise ValueError("one at a time")
        return _same(inputs)

    found = calibrate(FakeRuntime(PLAIN, only_one))
    assert not found.independent_rows
    assert [rows for rows, _ in found.points] == [1]


def test_a_model_that_cannot_run_large_batches_is_measured_up_to_there() -> None:
    def at_most_four(inputs: Sequence[Array]) -> list[Array]:
        if len(inputs[0]) > 4:
            raise MemoryError("too many")
        return _same(inputs)

    found = calibrate(FakeRuntime(PLAIN, at_most_four))
    assert found.independent_rows
    assert [rows for rows, _ in found.points] == [1, 2, 4]


def test_rows_that_are_merely_computed_in_another_order_are_independent() -> None:
    def noisy(inputs: Sequence[Array]) -> list[Array]:
        x = np.asarray(inputs[0], np.float32)
        return [x * np.float32(1 + 1e-6 * len(x))]

    assert calibrate(FakeRuntime(PLAIN, noisy)).independent_rows


def test_a_model_that_gives_nan_is_measured_all_the_same() -> None:
    assert calibrate(FakeRuntime(PLAIN, lambda inputs: [np.full_like(inputs[0], np.nan)])).independent_rows


def test_a_wrong_number_of_rows_turns_batching_off() -> None:
    assert not calibrate(FakeRuntime(PLAIN, lambda inputs: [np.zeros((1, 2), np.float32)])).independent_rows


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_made_up_rows_have_the_declared_types_and_shapes(kind: Kind) -> None:
    specs = [TensorSpec(dtype.value, dtype, (-1, 3, -1)) for dtype in DType]
    row = row_of(specs, kind, Known(7))
    for spec, array, whole in zip(specs, row, joined(specs, [row] * 4), strict=True):
        assert array.dtype == whole.dtype == NUMPY[spec.dtype], spec.name
        assert (array.shape, whole.shape) == ((1, 3, 7), (4, 3, 7)), spec.name


def test_what_a_batch_shares_is_the_same_for_every_kind_of_row() -> None:
    specs = [TensorSpec("scale", DType.FP32, (), rows=None), TensorSpec("table", DType.INT64, (2, -1), rows=None)]
    first, *others = [row_of(specs, kind, Known(5)) for kind in KINDS]
    assert [array.shape for array in first] == [(), (2, 5)]
    assert all(np.array_equal(a, b) for other in others for a, b in zip(first, other, strict=True))

"""Rows count as independent only where running them shows it, and stand on the axis where they were seen."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from onnx import helper

from dlproxy.instance.evidence import Batching, Findings, Tries, examine
from dlproxy.instance.made_up import KINDS
from dlproxy.instance.runtime.onnx import OnnxRuntime
from dlproxy.instance.runtime.rows import with_rows
from dlproxy.message import DType, Signature, TensorSpec
from dlproxy.testing import FakeRuntime
from tests import models

Array = NDArray[np.generic]
Function = Callable[[NDArray[Any]], NDArray[Any]]

PLAIN = Signature((TensorSpec("x", DType.FP32, (-1, 4)),), (TensorSpec("y", DType.FP32, (-1, 4)),), True, "fake")


def _examined(function: Function, signature: Signature = PLAIN, batching: Batching = "auto", **tries: Any) -> Findings:
    runtime = FakeRuntime(signature, lambda inputs: [function(np.asarray(inputs[0]))])
    return examine(runtime, batching=batching, tries=Tries(**tries) if tries else None)


def _onnx(folder: Path, made: models.Model, **declared: Any) -> Findings:
    return examine(OnnxRuntime(models.save(made, folder / "m.onnx"), threads=1, **declared))


def _where(mixes: Function) -> Function:
    """Rows are their own, but for batches in which something rare is the case."""
    return lambda x: np.where(mixes(x), x.max(axis=0, keepdims=True), x).astype(np.float32)


RARE: dict[str, Function] = {
    "always": lambda x: np.full((1, 1), True),
    "when a row is all zeros": lambda x: np.full((1, 1), (x == 0).all(axis=1).any()),
    "when a value is large": lambda x: np.full((1, 1), (x > 50).any()),
    "when a value is below -50": lambda x: np.full((1, 1), (x < -50).any()),
    "when a row is negative": lambda x: np.full((1, 1), (x < 0).all(axis=1).any()),
    "when two rows are equal": lambda x: np.full((1, 1), len(np.unique(x, axis=0)) < len(x)),
    "when there are three rows": lambda x: np.full((1, 1), len(x) >= 3),
    "when there are ten rows": lambda x: np.full((1, 1), len(x) >= 10),
}


@pytest.mark.parametrize("case", RARE, ids=str)
def test_rows_that_meet_only_now_and_then_are_found(case: str) -> None:
    found = _examined(_where(RARE[case]))
    assert not found.signature.batched
    assert "a row's answer depends on its neighbours" in found.why


@pytest.mark.parametrize(
    ("case", "left_out"),
    [
        ("when a row is all zeros", {"kinds": tuple(kind for kind in KINDS if kind.name != "zeros")}),
        ("when a value is below -50", {"kinds": tuple(kind for kind in KINDS if kind.name != "large")}),
        ("when a row is negative", {"kinds": tuple(kind for kind in KINDS if kind.name != "negative"), "many_rows": False}),
        ("when two rows are equal", {"kinds": KINDS[:-1], "many_rows": False}),
        ("when there are ten rows", {"many_rows": False}),
    ],
)
def test_each_kind_of_row_finds_what_no_other_does(case: str, left_out: dict[str, Any]) -> None:
    assert _examined(_where(RARE[case]), **left_out).signature.batched, "another kind finds it too: is this one needed?"


def test_rows_that_meet_only_when_they_are_long_are_found() -> None:
    signature = Signature((TensorSpec("x", DType.FP32, (-1, -1)),), (TensorSpec("y", DType.FP32, (-1, -1)),), True, "fake")
    mixes = _where(lambda x: np.full((1, 1), x.shape[1] > 40))
    assert not _examined(mixes, signature).signature.batched
    assert _examined(mixes, signature, more_lengths=False).signature.batched


def test_all_ids_of_a_vocabulary_are_tried(tmp_path: Path) -> None:
    """The largest embedding of the batch is in every answer; those of the ids 0, 1 and -1 are alike."""
    table = np.ones((500, 4), np.float32)
    table[100:480] = 9
    made = models.model(
        [
            helper.make_node("Gather", ["table", "ids"], ["v"]),
            helper.make_node("Cast", ["v"], ["f"], to=models.ONNX_TYPES[DType.FP32]),
            helper.make_node("ReduceMax", ["f"], ["m"], axes=[0, 1, 2]),
            helper.make_node("ReduceMean", ["f"], ["mean"], axes=[1], keepdims=0),
            helper.make_node("Squeeze", ["m", "zero"], ["one"]),
            helper.make_node("Add", ["mean", "one"], ["y"]),
        ],
        [models.value("ids", DType.INT64, ("batch", "length"))],
        [models.value("y", DType.FP32, ("batch", 4))],
        [models.constant("table", table), models.constant("zero", np.array([0], np.int64))],
    )
    path = models.save(made, tmp_path / "m.onnx")
    assert not examine(OnnxRuntime(path, threads=1)).signature.batched
    assert examine(OnnxRuntime(path, threads=1), tries=Tries(ids=False)).signature.batched


def test_a_model_that_counts_its_calls_is_not_batched() -> None:
    calls = [0]

    def counted(x: NDArray[Any]) -> NDArray[Any]:
        calls[0] += 1
        return np.full_like(x, calls[0])

    found = _examined(counted)
    assert not found.signature.batched
    assert "the same input twice gave two answers" in found.why


# Where rows stand


def test_rows_may_stand_on_axis_1_and_inputs_may_be_shared(tmp_path: Path) -> None:
    """As in a recurrent network: x [batch, 4], state [2, batch, 4], a scalar rate; y [batch, 4], state [2, batch, 4]."""
    dims = (2, "batch", 4)
    made = models.model(
        [
            helper.make_node("Add", ["state", "x"], ["next"]),
            helper.make_node("ReduceSum", ["state", "zero"], ["sum"], keepdims=0),
            helper.make_node("Mul", ["sum", "rate"], ["y"]),
        ],
        [
            models.value("x", DType.FP32, ("batch", 4)),
            models.value("state", DType.FP32, dims),
            models.value("rate", DType.FP32, ()),
        ],
        [models.value("y", DType.FP32, ("batch", 4)), models.value("next", DType.FP32, dims)],
        [models.constant("zero", np.array([0], np.int64))],
    )
    found = _onnx(tmp_path, made)
    assert not found.why
    assert [spec.rows for spec in found.signature.inputs] == [0, 1, None]
    assert [spec.rows for spec in found.signature.outputs] == [0, 1]


def test_an_output_declared_with_one_element_has_one_for_each_row(tmp_path: Path) -> None:
    """As LightGBM's converter writes its label."""
    made = models.model(
        [helper.make_node("ArgMax", ["x"], ["label"], axis=1, keepdims=0), helper.make_node("Identity", ["x"], ["p"])],
        [models.value("x", DType.FP32, (None, 4))],
        [models.value("label", DType.INT64, (1,)), models.value("p", DType.FP32, ("rows", 4))],
    )
    found = _onnx(tmp_path, made)
    assert found.signature.batched
    assert [spec.shape for spec in found.signature.outputs] == [(-1,), (-1, 4)]


def test_an_output_without_rows_is_not_shared_out(tmp_path: Path) -> None:
    made = models.model(
        [helper.make_node("Identity", ["x"], ["y"]), helper.make_node("Identity", ["c"], ["version"])],
        [models.value("x", DType.FP32, ("batch", 4))],
        [models.value("y", DType.FP32, ("batch", 4)), models.value("version", DType.INT64, (1,))],
        [models.constant("c", np.array([7], np.int64))],
    )
    found = _onnx(tmp_path, made)
    assert not found.signature.batched
    assert found.why == "output 'version': it does not hold one element for each row"


@pytest.mark.parametrize(
    ("inputs", "rows"),
    [
        ([(-1, 3)], [0]),
        ([(-1, 3), (-1, 5)], [0, 0]),
        ([(-1, 3), ()], [0, None]),
        ([(-1, 3), (2, -1, 4)], [0, 1]),
        ([(4, 3)], None),
        ([("users", 4), ("items", 4)], None),
        ([("users", 4), ("users", "items")], [0, 0]),
        ([("batch", "batch")], None),
        ([("length", "batch", 80)], [1]),
        ([("N", 3), (-1, 3)], [0, 0]),
        ([("batch", 3), ("items", 3)], "declared"),
        ([("rows", 3), ("items", 3), (1,)], None),
    ],
    ids=str,
)
def test_which_axes_may_count_rows(inputs: Sequence[Sequence[int | str]], rows: Any) -> None:
    specs = tuple(
        TensorSpec(
            f"x{number}",
            DType.FP32,
            tuple(size if isinstance(size, int) else -1 for size in sizes),
            axes=tuple(size if isinstance(size, str) else "" for size in sizes),
        )
        for number, sizes in enumerate(inputs)
    )
    found = with_rows(Signature(specs, (TensorSpec("y", DType.FP32, (-1,)),), False, "fake"), outputs_hold=False)
    if rows == "declared":  # "batch" is our word, so what does not bear it is shared
        rows = [0, None]
    assert found.batched is (rows is not None)
    if rows is not None:
        assert [spec.rows for spec in found.inputs] == rows


def test_batching_can_be_forbidden_and_demanded() -> None:
    assert not _examined(lambda x: x, batching="off").signature.batched
    mixed = _examined(_where(RARE["always"]), batching="on")
    assert mixed.signature.batched, "whoever says so knows better"
    assert not mixed.why
    uneven = _examined(lambda x: x[:1], batching="on")
    assert not uneven.signature.batched, "but what cannot be cut apart is not batched"
    assert "does not hold one element for each row" in uneven.why


def test_a_ragged_output_is_cut_by_the_output_that_counts() -> None:
    """Each row gives as many elements as it has positive values."""
    signature = with_rows(
        Signature(
            (TensorSpec("x", DType.FP32, (-1, 4)),),
            (TensorSpec("found", DType.FP32, (-1,), counts="n"), TensorSpec("n", DType.INT64, (-1,))),
            False,
            "fake",
        )
    )

    def positive(inputs: Sequence[Array]) -> list[Array]:
        x = np.asarray(inputs[0])
        return [x[x > 0], (x > 0).sum(axis=1)]

    assert examine(FakeRuntime(signature, positive)).signature.batched
    assert not examine(
        FakeRuntime(signature, lambda inputs: [positive(inputs)[0][::-1], positive(inputs)[1]])
    ).signature.batched


def test_samples_take_the_place_of_made_up_inputs() -> None:
    """A model that takes nothing but what looks like its samples."""

    def picky(x: NDArray[Any]) -> NDArray[Any]:
        if not ((x >= 7) & (x < 8)).all():
            raise ValueError("not what I was made for")
        return x * 2

    runtime = FakeRuntime(PLAIN, lambda inputs: [picky(np.asarray(inputs[0]))])
    samples = [{"x": np.full((1, 4), 7 + row / 10, np.float32)} for row in range(3)]
    assert examine(runtime, samples=samples).signature.batched

"""Examples are what their files say, and every mistake in them is named."""

import io
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dlproxy.compress import CompressError
from dlproxy.compress.data import LEAST_HELD_OUT, LEAST_TRAINING, Dataset, digest, read, split
from dlproxy.message import DType, TensorSpec
from tests.models import HELDOUT

IMAGE = (TensorSpec("image", DType.FP32, (-1, 1, 8, 8)),)
TWO = (TensorSpec("ids", DType.INT64, (-1, -1)), TensorSpec("scale", DType.FP32, (-1,)))
ROWS = 40
images = np.arange(ROWS * 64, dtype=np.float32).reshape(ROWS, 1, 8, 8)
labels = np.arange(ROWS) % 10


def save(path: Path, **arrays: Any) -> Path:
    np.savez(path, **arrays)
    return path


def test_the_arrays_of_a_file_in_the_order_of_their_rows(tmp_path: Path) -> None:
    file = save(tmp_path / "d.npz", ids=np.ones((5, 3), np.int64), scale=np.arange(5, dtype=np.float32), target=np.arange(5.0))
    found = read(file, inputs=TWO)
    assert len(found) == 5
    assert {name: (array.shape, array.dtype) for name, array in found.inputs.items()} == {
        "ids": ((5, 3), np.int64),
        "scale": ((5,), np.float32),
    }
    assert found.rows([3, 1]).inputs["scale"].tolist() == [3.0, 1.0]
    assert found.rows(np.arange(5) > 3).labels == [4.0]


def test_the_only_input_by_any_name_and_what_is_converted_is_said() -> None:
    said: list[str] = []
    found = read(HELDOUT, inputs=IMAGE, tell=said.append)
    assert found.inputs["image"].dtype == np.float32
    assert found.inputs["image"].max() == 16.0
    assert found.labels is not None
    assert found.labels.dtype == np.int64
    assert found.are_classes
    assert said == ["heldout.npz: 'image' is uint8 and was converted to FP32, which the model takes"]


@pytest.mark.parametrize(
    ("spec", "given", "expected"),
    [
        (DType.FP32, np.float64(0.5), np.float32(0.5)),
        (DType.INT64, np.int32(-3), np.int64(-3)),
        (DType.UINT8, np.int64(255), np.uint8(255)),
        (DType.BF16, np.float32(1.0), np.uint16(0x3F80)),
        (DType.BYTES, np.bytes_(b"word"), b"word"),
    ],
)
def test_safe_conversions(tmp_path: Path, spec: DType, given: Any, expected: Any) -> None:
    found = read(save(tmp_path / "d.npz", x=np.array([given])), inputs=[TensorSpec("x", spec, (-1,))]).inputs["x"]
    assert found.tolist() == [expected]
    assert isinstance(expected, bytes) or (found.dtype == expected.dtype and found.flags.writeable)


def test_a_folder_is_its_files_one_after_the_other(tmp_path: Path) -> None:
    for number in (2, 1):
        save(tmp_path / f"{number}.npz", x=np.full((number, 2), number, np.float32), y=[number] * number)
    found = read(tmp_path, inputs=[TensorSpec("x", DType.FP32, (-1, 2))])
    assert found.inputs["x"][:, 0].tolist() == [1.0, 2.0, 2.0]
    assert found.labels is not None
    assert found.labels.tolist() == [1, 2, 2]
    before = digest(tmp_path)
    save(tmp_path / "1.npz", x=np.zeros((1, 2), np.float32), y=[1])
    assert before != digest(tmp_path) != digest(tmp_path / "1.npz")


def test_labels_of_one_column_and_by_their_name(tmp_path: Path) -> None:
    file = save(tmp_path / "d.npz", image=images, digit=labels[:, None].astype(np.uint8))
    assert read(file, inputs=IMAGE, labels="digit").labels.tolist() == labels.tolist()  # type: ignore[union-attr]
    assert read(save(tmp_path / "n.npz", x=images), inputs=IMAGE).labels is None
    assert not read(save(tmp_path / "f.npz", x=images, y=labels / 2), inputs=IMAGE).are_classes
    assert not read(save(tmp_path / "n.npz", x=images, y=np.arange(ROWS)), inputs=IMAGE).are_classes


MISTAKES: dict[str, tuple[dict[str, Any], str]] = {
    "unknown": ({"image": images, "size": labels}, "also has size; the model takes image FP32[-1,1,8,8]"),
    "missing": ({"picture": images, "size": labels}, "lacks image and also has picture, size"),
    "empty archive": ({}, "lacks image; the model takes image"),
    "rank": ({"x": images[:, 0]}, "'image' is FP32[40,8,8], the model takes FP32[-1,1,8,8]"),
    "shape": ({"x": images[:, :, :7]}, "'image' is FP32[40,1,7,8], the model takes"),
    "scalar": ({"x": np.float32(1.0)}, "'image' is FP32[], the model takes"),
    "kind": ({"x": images.astype(complex)}, "complex128, which is not a kind of FP32"),
    "words": ({"x": images.astype(str)}, "not a kind of FP32"),
    "objects": ({"x": images.astype(object)}, "Python objects"),
    "too large": ({"x": images.astype(np.float64) * 1e300}, "too large for FP32"),
    "nan": ({"x": np.where(images == 130.0, np.nan, images)}, "NaN or infinity in 1 examples, first in number 2"),
    "infinity": ({"x": images + np.inf}, "NaN or infinity in 40 examples, first in number 0"),
    "no rows": ({"x": images[:0]}, "holds no examples"),
    "rows": ({"x": images, "labels": labels[:-1]}, "different numbers of examples on their first axis: image 40, labels 39"),
    "label words": ({"x": images, "labels": labels.astype(str)}, "must be numbers"),
    "one label": ({"x": images, "labels": 3}, "one for each example"),
    "nan label": ({"x": images, "labels": labels + np.nan}, "'labels' has NaN"),
    "two labels": ({"image": images, "labels": labels, "target": labels}, "also has target"),
}


@pytest.mark.parametrize(("arrays", "clue"), MISTAKES.values(), ids=MISTAKES)
def test_mistakes(tmp_path: Path, arrays: dict[str, Any], clue: str) -> None:
    file = save(tmp_path / "d.npz", **arrays)
    with pytest.raises(CompressError) as error:
        read(file, inputs=IMAGE)
    assert clue in str(error.value)
    assert str(file) in str(error.value)


def test_mistakes_in_files(tmp_path: Path) -> None:
    np.save(tmp_path / "one.npy", images)
    (tmp_path / "text.npz").write_text("image,label")
    (tmp_path / "none.npz").write_bytes(b"")
    (tmp_path / "cut.npz").write_bytes(HELDOUT.read_bytes()[:-100])
    (tmp_path / "empty").mkdir()
    clues = {
        "nosuch.npz": "does not exist: give an .npz file",
        "one.npy": "numpy.savez",
        "text.npz": "another format",
        "none.npz": "cannot be read as .npz",
        "cut.npz": "cannot be read as .npz",
        "empty": "holds no .npz file",
    }
    for name, clue in clues.items():
        with pytest.raises(CompressError, match=clue):
            read(tmp_path / name, inputs=IMAGE)
    with pytest.raises(CompressError, match="no labels named 'digit'; it holds images, labels"):
        read(HELDOUT, inputs=IMAGE, labels="digit")
    with pytest.raises(CompressError, match="does not exist"):
        digest(tmp_path / "nosuch.npz")


def test_models_whose_first_axis_counts_nothing(tmp_path: Path) -> None:
    file = save(tmp_path / "d.npz", x=np.zeros((4, 3), np.float32))
    assert len(read(file, inputs=[TensorSpec("x", DType.FP32, (1, 3))])) == 4
    for spec in (TensorSpec("x", DType.FP32, (4, 3)), TensorSpec("x", DType.FP32, (-1, -1), rows=1)):
        with pytest.raises(CompressError, match="does not count examples"):
            read(file, inputs=[spec])


@pytest.mark.parametrize(
    ("other", "clue"),
    [
        ({"x": np.zeros((2, 3), np.float32)}, "holds other arrays"),
        ({"x": np.zeros((2, 4), np.float32), "y": [1, 2]}, r"are FP32\[N,3\] and FP32\[N,4\]"),
    ],
)
def test_files_of_a_folder_that_do_not_belong_together(tmp_path: Path, other: dict[str, Any], clue: str) -> None:
    save(tmp_path / "1.npz", x=np.zeros((2, 3), np.float32), y=[1, 2])
    save(tmp_path / "2.npz", **other)
    with pytest.raises(CompressError, match=clue):
        read(tmp_path, inputs=[TensorSpec("x", DType.FP32, (-1, -1))])


dtypes = st.sampled_from(["?", "i1", "u8", "i8", "f2", "f4", "f8", "f16", "c8", "S3", "U2", "V5", "M8[s]", "m8[s]"])
arrays = st.builds(lambda shape, dtype: np.zeros(shape, dtype), st.lists(st.integers(0, 3), max_size=4), dtypes)
names = st.sampled_from(["ids", "scale", "labels", "y", "other"])


@given(st.dictionaries(names, arrays, max_size=4), st.sampled_from(["", "y", "ids"]))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_arrays_are_examples_or_a_mistake(tmp_path: Path, arrays: dict[str, Any], named: str) -> None:
    file = save(tmp_path / "any.npz", **arrays)
    _is_examples_or_a_mistake(lambda: read(file, inputs=TWO, labels=named), {"ids": np.int64, "scale": np.float32})


def _archive() -> bytes:
    with io.BytesIO() as stream:
        np.savez(stream, image=images[:2], labels=labels[:2])
        return stream.getvalue()


ARCHIVE = _archive()


@given(st.lists(st.tuples(st.integers(0, len(ARCHIVE) - 1), st.integers(0, 255)), min_size=1, max_size=8))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@pytest.mark.filterwarnings("ignore")  # zipfile warns of what numpy then refuses
def test_any_damage_is_a_mistake_or_none(tmp_path: Path, changes: list[tuple[int, int]]) -> None:
    data = bytearray(ARCHIVE)
    for at, value in changes:
        data[at] = value
    file = tmp_path / "damaged.npz"
    file.write_bytes(data)
    _is_examples_or_a_mistake(lambda: read(file, inputs=IMAGE), {"image": np.float32})


def _is_examples_or_a_mistake(reading: Callable[[], Dataset], dtypes: dict[str, Any]) -> None:
    try:
        found = reading()
    except CompressError:
        return
    assert {name: array.dtype for name, array in found.inputs.items()} == dtypes
    assert {len(array) for array in found.inputs.values()} == {len(found)}
    assert found.labels is None or len(found.labels) == len(found)


def test_an_array_that_claims_more_than_there_is(tmp_path: Path) -> None:
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "<f4", "fortran_order": False, "shape": (1 << 50, 1, 8, 8)})
    with zipfile.ZipFile(tmp_path / "bomb.npz", "w") as archive:
        archive.writestr("image.npy", header.getvalue())
    with pytest.raises(CompressError, match="cannot be read"):
        read(tmp_path / "bomb.npz", inputs=IMAGE)


# What is held out


def made(rows: int, classes: int = 0, *, shift: float = 0.0) -> Dataset:
    numbers = np.arange(rows, dtype=np.float32) + shift
    return Dataset({"x": numbers}, np.arange(rows) % classes if classes else None)


@given(st.integers(120, 600), st.integers(0, 12), st.floats(0.3, 0.8), st.integers(0, 99))
def test_every_example_is_on_one_side_and_classes_are_on_both_alike(rows: int, classes: int, share: float, seed: int) -> None:
    dataset = made(rows, classes)
    training, judging = split(dataset, held_out=share, seed=seed)
    assert sorted([*training.inputs["x"].tolist(), *judging.inputs["x"].tolist()]) == list(range(rows))
    assert abs(len(judging) - share * rows) <= 1
    if classes:
        assert judging.labels is not None
        for one in range(classes):
            of_class = int((np.arange(rows) % classes == one).sum())
            assert abs(int((judging.labels == one).sum()) - share * of_class) <= 1 + 1e-6
    again = split(dataset, held_out=share, seed=seed)[1]
    assert again.inputs["x"].tolist() == judging.inputs["x"].tolist()
    assert split(dataset, held_out=share, seed=seed + 1)[1].inputs["x"].tolist() != judging.inputs["x"].tolist()


def test_a_set_of_its_own() -> None:
    training, judging = made(LEAST_TRAINING, 2), made(LEAST_HELD_OUT, 2, shift=1000.0)
    assert split(training, held_out=judging, seed=0) == (training, judging)


@pytest.mark.parametrize(
    ("dataset", "held_out", "least", "clue"),
    [
        (made(50), 0.3, LEAST_HELD_OUT, "15 held-out examples are too few to judge by: .* 30, of 100 in all"),
        (made(400), 0.5, 299, "200 held-out .* 299, of 598 in all or a larger share"),
        (made(400), made(40, shift=1e3), 299, "40 held-out .* 299; give more"),
        (made(40), 0.9, LEAST_HELD_OUT, "4 examples are too few to calibrate with: give 16"),
        (made(1), 0.5, LEAST_HELD_OUT, "too few"),
        (made(400), 0.0, LEAST_HELD_OUT, "no share"),
        (made(400), 1.0, LEAST_HELD_OUT, "no share"),
        (made(400), float("nan"), LEAST_HELD_OUT, "no share"),
        (made(400, 2), made(40, shift=1e3), LEAST_HELD_OUT, "only one set has labels"),
        (made(400), made(40, shift=370.0), LEAST_HELD_OUT, "30 of 40 held-out examples are among those to learn from"),
    ],
)
def test_what_cannot_judge_is_refused(dataset: Dataset, held_out: Any, least: int, clue: str) -> None:
    with pytest.raises(CompressError, match=clue):
        split(dataset, held_out=held_out, seed=0, least=least)

"""Inputs that Triton's configuration names for its warm-up, as samples: what fits is used, what does not is left out."""

from pathlib import Path

import msgspec
import numpy as np
import pytest

from dlproxy.instance.samples import WarmupInput, read_samples, sample_files, warmup_samples
from dlproxy.message import DType, TensorSpec
from dlproxy.tensors import join_elements

SPECS = (
    TensorSpec("x", DType.FP32, (-1, -1), rows=0),
    TensorSpec("kinds", DType.INT64, (-1, -1), rows=0),
    TensorSpec("words", DType.BYTES, (-1, 1), rows=0),
)
WORDS = WarmupInput("TYPE_STRING", (1, 1), zero_data=True)


@pytest.fixture
def x(tmp_path: Path) -> WarmupInput:
    """A row of three numbers in a file."""
    (tmp_path / "x.raw").write_bytes(np.array([1, 2, 3], np.float32).tobytes())
    return WarmupInput("TYPE_FP32", (1, 3), input_data_file=str(tmp_path / "x.raw"))


def test_files_and_zeros_are_the_row_that_they_say(x: WarmupInput, tmp_path: Path) -> None:
    (tmp_path / "w").write_bytes(join_elements(["héllo"]))
    words = WarmupInput("TYPE_STRING", (1, 1), input_data_file=str(tmp_path / "w"))
    kinds = WarmupInput("TYPE_INT64", (1, 3), zero_data=True)
    samples = warmup_samples([{"x": x, "kinds": kinds, "words": words}])
    (row,) = read_samples(samples, SPECS)
    np.testing.assert_array_equal(row["x"], np.array([[1, 2, 3]], np.float32))
    np.testing.assert_array_equal(row["kinds"], np.zeros((1, 3), np.int64))
    assert row["words"].tolist() == [["héllo".encode()]]
    assert sample_files(samples) == [x.input_data_file, words.input_data_file]


def test_without_files_only_the_shapes_count() -> None:
    """Rows of nothing but zeros would show nothing of how rows meet."""
    inputs = {
        "x": WarmupInput("TYPE_FP32", (1, 7), zero_data=True),
        "kinds": WarmupInput("TYPE_INT64", (1, 5), random_data=True),
    }
    (row,) = read_samples(warmup_samples([{**inputs, "words": WORDS}]), SPECS)
    assert row["x"].shape == (1, 7)
    assert row["x"].std() > 0.1
    assert row["kinds"].shape == (1, 5)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"dims": (1, 4)}, "has 12 bytes, 'x' is FP32[1, 4]"),
        ({"dims": (3,)}, "'x' is FP32[3], the model takes FP32["),
        ({"dims": (3, 1)}, "'x' is FP32[3, 1]"),
        ({"data_type": "TYPE_FP64"}, "'x' is FP64[1, 3]"),
        ({"input_data_file": "/nowhere"}, "No such file"),
        ({"input_data_file": "", "dims": (1, 10**15)}, "at most 67108864 elements"),
        ({"input_data_file": "", "dims": (1, -1)}, "elements are drawn"),
    ],
)
def test_what_does_not_fit_is_left_out(
    x: WarmupInput, changes: dict[str, object], said: str, caplog: pytest.LogCaptureFixture
) -> None:
    wrong = msgspec.structs.replace(x, **changes)
    good = {"x": x, "kinds": WarmupInput("TYPE_INT64", (1, 3)), "words": WORDS}
    assert len(read_samples(warmup_samples([{**good, "x": wrong}, good]), SPECS)) == 1
    assert said in caplog.text


@pytest.mark.parametrize(("names", "said"), [(["x"], "says nothing of the input 'kinds'"), (["x", "z"], "has no input 'z'")])
def test_inputs_that_the_model_has_otherwise(
    x: WarmupInput, names: list[str], said: str, caplog: pytest.LogCaptureFixture
) -> None:
    assert read_samples(warmup_samples([dict.fromkeys(names, x)]), SPECS) == []
    assert said in caplog.text


def test_nothing_is_said_of_no_warm_up() -> None:
    assert warmup_samples([]) == ""
    assert read_samples("", SPECS) == []
    assert sample_files("") == []

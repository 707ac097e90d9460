"""ONNX Runtime behind the Runtime protocol: every element type, and clear words for whatever cannot be loaded."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from dlproxy.instance.runtime import ModelError
from dlproxy.instance.runtime.declared import parse_specs
from dlproxy.instance.runtime.onnx import OnnxRuntime
from dlproxy.message import DType, TensorSpec
from dlproxy.tensors import NUMPY, join_elements
from tests import models
from tests.instance import small_network
from tests.instance.small_network import assert_passes_unchanged


def _load(made: models.Model, folder: Path) -> OnnxRuntime:
    return OnnxRuntime(models.save(made, folder / "m.onnx"), threads=1)


@pytest.mark.parametrize("dtype", list(DType), ids=lambda dtype: dtype.value)
def test_every_element_type_passes_through_unchanged(tmp_path: Path, dtype: DType) -> None:
    runtime = _load(models.identity(dtype), tmp_path)
    assert runtime.signature.inputs == (TensorSpec("x", dtype, (-1, 3), text=dtype is DType.BYTES, axes=("N", "")),)
    assert runtime.signature.batched
    if dtype is DType.BYTES:
        texts = [["", "zwölf \N{GRINNING FACE}", "a\0b\0\0"]]
        (output,) = runtime.run([np.array(texts, dtype=object)])
        assert (output.dtype, output.tolist()) == (object, texts)
    else:
        assert_passes_unchanged(runtime, dtype)


def test_an_output_that_is_no_text_fails_in_words(tmp_path: Path) -> None:
    """ONNX Runtime's own strings are bytes, but its Python API gives str."""
    made = models.model(
        [helper.make_node("Identity", ["x"], ["y"]), helper.make_node("Identity", ["words"], ["z"])],
        [models.value("x", DType.FP32, ("N",))],
        [models.value("y", DType.FP32, ("N",)), models.value("z", DType.BYTES, (2,))],
        [helper.make_tensor("words", TensorProto.STRING, [2], [b"a\0", b"\xff\xd8"])],
    )
    with pytest.raises(RuntimeError, match="can't decode byte 0xff"):
        _load(made, tmp_path).run([np.zeros(1, np.float32)])


def test_bf16_beside_other_types(tmp_path: Path) -> None:
    made = models.model(
        [helper.make_node("Identity", ["a"], ["x"]), helper.make_node("Cast", ["a"], ["y"], to=TensorProto.FLOAT)],
        [models.value("a", DType.BF16, ("N",)), models.value("b", DType.INT64, ("N",))],
        [models.value("x", DType.BF16, ("N",)), models.value("y", DType.FP32, ("N",))],
    )
    bits = np.array([0x3FC0, 0xC000, 0x7F80], np.uint16)  # 1.5, -2, infinity
    x, y = _load(made, tmp_path).run([bits, np.arange(3)])
    assert x.tolist() == bits.tolist()
    assert y.tolist() == [1.5, -2.0, float("inf")]


@pytest.mark.parametrize("dtype", [DType.FP32, DType.BF16], ids=lambda dtype: dtype.value)
def test_scalars_keep_their_shape(tmp_path: Path, dtype: DType) -> None:
    runtime = _load(models.identity(dtype, ()), tmp_path)
    assert runtime.signature.inputs[0].shape == ()
    assert not runtime.signature.batched
    (output,) = runtime.run([np.zeros((), NUMPY[dtype])])
    assert output.shape == ()


def test_outputs_stay_valid_after_the_next_run(tmp_path: Path) -> None:
    for dtype in (DType.FP32, DType.BF16):
        runtime = _load(models.identity(dtype), tmp_path)
        (first,) = runtime.run([np.ones((2, 3), NUMPY[dtype])])
        for _ in range(5):
            runtime.run([np.zeros((2, 3), NUMPY[dtype])])
        assert first.tolist() == [[1, 1, 1]] * 2


@pytest.mark.parametrize(
    ("dims", "batched"),
    [
        (("N", 3), True),
        ((None, 3), True),
        (("N", "M"), True),
        ((1, 3), False),
        ((4, 3), False),
        ((3, "N"), True),  # as recurrent networks have it
        ((), False),
    ],
)
def test_a_model_batches_if_axis_0_is_free(tmp_path: Path, dims: models.Dims, batched: bool) -> None:
    runtime = _load(models.identity(DType.FP32, dims), tmp_path)
    assert runtime.signature.batched is batched
    assert runtime.signature.inputs[0].shape == tuple(size if isinstance(size, int) else -1 for size in dims)


def test_a_fixed_input_is_shared_by_the_rows_of_the_others(tmp_path: Path) -> None:
    made = models.model(
        [helper.make_node("Add", ["a", "b"], ["y"])],
        [models.value("a", DType.FP32, ("N", 3)), models.value("b", DType.FP32, (1, 3))],
        [models.value("y", DType.FP32, ("N", 3))],
    )
    signature = _load(made, tmp_path).signature
    assert signature.batched
    assert [spec.rows for spec in signature.inputs] == [0, None]


def test_an_error_at_run_time_says_what_the_model_says(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="99") as caught:
        _load(models.lookup(), tmp_path).run([np.array([99])])
    assert "\n" not in str(caught.value)


def test_the_small_network(tmp_path: Path) -> None:
    small_network.assert_as_every_runtime(OnnxRuntime(small_network.save_onnx(tmp_path), threads=1), "Got: 9 Expected: 8")


# What cannot be loaded


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"nowhere\.onnx does not exist"):
        OnnxRuntime(tmp_path / "nowhere.onnx", threads=1)


def test_a_directory_is_named_as_one(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"is a directory; dlproxy takes the path of an \.onnx file"):
        OnnxRuntime(tmp_path, threads=1)


def _truncated() -> bytes:
    return models.DIGITS.read_bytes()[:100_000]


def _unknown_operator() -> bytes:
    node = helper.make_node("Frobnicate", ["x"], ["y"])
    values = [models.value("x", DType.FP32, ("N",))], [models.value("y", DType.FP32, ("N",))]
    return models.model([node], *values).SerializeToString()


def _future_opset() -> bytes:
    made = models.identity(DType.FP32)
    made.opset_import[0].version = 999
    return made.SerializeToString()


@pytest.mark.parametrize(
    "content",
    [lambda: b"", lambda: b"not a model at all", lambda: bytes(range(256)) * 8, _truncated, _unknown_operator, _future_opset],
    ids=["empty", "text", "noise", "truncated", "unknown operator", "future opset"],
)
def test_what_is_no_model_is_refused_with_its_name_and_the_reason(tmp_path: Path, content: Callable[[], bytes]) -> None:
    path = tmp_path / "odd.onnx"
    path.write_bytes(content())
    with pytest.raises(ModelError) as caught:
        OnnxRuntime(path, threads=1)
    text = str(caught.value)
    assert str(path) in text
    assert "\n" not in text, "an error message is one line"
    assert len(text) < 1000


def test_a_model_without_inputs_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="it declares no inputs; dlproxy serves models with at least one"):
        _load(models.without_inputs(), tmp_path)


def test_a_model_that_gives_nothing_but_a_sequence_is_refused_by_its_type(tmp_path: Path) -> None:
    sequence = helper.make_tensor_sequence_value_info("y", TensorProto.FLOAT, None)
    made = models.model(
        [helper.make_node("SequenceConstruct", ["x"], ["y"])], [models.value("x", DType.FP32, ("N",))], [sequence]
    )
    with pytest.raises(ModelError, match=r"output 'y' is left out: it is a seq\(tensor\(float\)\)"):
        _load(made, tmp_path)


# Declarations and what is left out


def _sum_model() -> models.Model:
    return models.model(
        [helper.make_node("Add", ["x", "bias"], ["y"])],
        [models.value("x", DType.FP32, ("N", "width")), models.value("bias", DType.FP32, (2,))],
        [models.value("y", DType.FP32, ("N", "width"))],
        [models.constant("bias", np.array([10, 20], np.float32))],
    )


def test_a_configuration_may_narrow_some_inputs(tmp_path: Path) -> None:
    path = models.save(_sum_model(), tmp_path / "m.onnx")
    declared = parse_specs({"x": "FP32[batch,2]"})
    signature = OnnxRuntime(path, threads=1, inputs=declared).signature
    assert [spec.shape for spec in signature.inputs] == [(-1, 2), (2,)]
    assert [spec.rows for spec in signature.inputs] == [0, None]
    assert signature.inputs[1].default == np.array([10, 20], np.float32).tobytes()


@pytest.mark.parametrize(
    ("declared", "clue"),
    [
        ({"x": "FP32[batch,2,2]"}, "'x' is FP32[-1,2,2] in the configuration, but FP32[-1,-1] in the model"),
        ({"x": "FP64[batch,2]"}, "but FP32[-1,-1] in the model"),
        ({"z": "FP32[batch,2]"}, "the configuration's inputs are z; the model's are x, bias"),
    ],
)
def test_a_configuration_may_not_contradict_the_file(tmp_path: Path, declared: dict[str, str], clue: str) -> None:
    path = models.save(_sum_model(), tmp_path / "m.onnx")
    with pytest.raises(ModelError) as caught:
        OnnxRuntime(path, threads=1, inputs=parse_specs(declared))
    assert clue in str(caught.value)


@pytest.mark.parametrize("dtype", [dtype for dtype in DType if dtype is not DType.BYTES], ids=lambda dtype: dtype.value)
@pytest.mark.parametrize("raw", [True, False])
def test_defaults_of_every_type_are_read_from_the_file(tmp_path: Path, dtype: DType, raw: bool) -> None:
    """As raw bytes, and as the typed fields that older exporters write."""
    values = [0, 1, 1] if dtype is DType.BOOL else [0, 1, 2]
    tensor = helper.make_tensor("k", models.ONNX_TYPES[dtype], [3], values)
    bits = helper.make_tensor("k", models.ONNX_TYPES[dtype], [3], onnx.numpy_helper.to_array(tensor).tobytes(), raw=True)
    made = models.model(
        [helper.make_node("Identity", ["k"], ["y"]), helper.make_node("Identity", ["x"], ["z"])],
        [models.value("x", DType.FP32, ("N",)), models.value("k", dtype, (3,))],
        [models.value("y", dtype, (3,)), models.value("z", DType.FP32, ("N",))],
        [bits if raw else tensor],
    )
    spec = _load(made, tmp_path).signature.inputs[1]
    assert spec.name == "k"
    assert spec.default == onnx.numpy_helper.to_array(tensor).tobytes()


def test_a_default_of_texts_is_read_from_the_file(tmp_path: Path) -> None:
    made = models.model(
        [helper.make_node("Identity", ["k"], ["y"]), helper.make_node("Identity", ["x"], ["z"])],
        [models.value("x", DType.FP32, ("N",)), models.value("k", DType.BYTES, (2,))],
        [models.value("y", DType.BYTES, (2,)), models.value("z", DType.FP32, ("N",))],
        [helper.make_tensor("k", TensorProto.STRING, [2], [b"a", "ü".encode()])],
    )
    assert _load(made, tmp_path).signature.inputs[1].default == join_elements(["a", "ü"])


def test_an_exporters_weights_among_the_inputs_are_no_options(tmp_path: Path) -> None:
    weights = [models.constant(f"w{number}", np.ones(2, np.float32)) for number in range(20)]
    nodes = [helper.make_node("Add", [f"x{number}", f"w{number}"], [f"x{number + 1}"]) for number in range(20)]
    inputs = [models.value("x0", DType.FP32, ("N", 2)), *(models.value(f"w{number}", DType.FP32, (2,)) for number in range(20))]
    runtime = _load(models.model(nodes, inputs, [models.value("x20", DType.FP32, ("N", 2))], weights), tmp_path)
    assert [spec.name for spec in runtime.signature.inputs] == ["x0"]
    assert runtime.notes == ["20 inputs with defaults are not served: so many are an exporter's weights"]


def test_what_no_protocol_carries_is_left_out_with_a_remedy(tmp_path: Path) -> None:
    maps = helper.make_sequence_type_proto(
        helper.make_map_type_proto(TensorProto.INT64, helper.make_tensor_type_proto(TensorProto.FLOAT, []))
    )
    made = models.model(
        [
            helper.make_node("ZipMap", ["x"], ["p"], domain="ai.onnx.ml", classlabels_int64s=[0, 1]),
            helper.make_node("SequenceConstruct", ["x"], ["s"]),
            helper.make_node("ArgMax", ["x"], ["label"], axis=1, keepdims=0),
        ],
        [models.value("x", DType.FP32, ("N", 2))],
        [
            models.value("label", DType.INT64, ("N",)),
            helper.make_value_info("p", maps),
            helper.make_tensor_sequence_value_info("s", TensorProto.FLOAT, None),
        ],
    )
    made.opset_import.append(helper.make_opsetid("ai.onnx.ml", 3))
    runtime = _load(made, tmp_path)
    assert [spec.name for spec in runtime.signature.outputs] == ["label"]
    zipped, listed = runtime.notes
    assert zipped.startswith("output 'p' is left out: it is a seq(map(int64,tensor(float)))")
    assert "zipmap=False" in zipped
    assert "ConcatFromSequence" in listed
    assert runtime.run([np.array([[1, 2]], np.float32)])[0].tolist() == [1]

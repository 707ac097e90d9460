"""SavedModels and .keras files: the small network's answers, signatures, element types, and what is refused."""

import io
import json
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dlproxy.instance.batch import run_batch
from dlproxy.instance.runtime import ModelError, Runtime
from dlproxy.instance.runtime.formats import open_runtime
from dlproxy.instance.runtime.specs import PythonSpec, load
from dlproxy.instance.warmup import calibrate
from dlproxy.message import DType, TensorSpec
from dlproxy.tensors import NUMPY
from tests.instance import small_network
from tests.instance.small_network import assert_a_line, keras_model, request

pytestmark = [pytest.mark.extras, pytest.mark.filterwarnings("ignore")]

X3 = np.arange(6, dtype=np.float32).reshape(3, 2)


@pytest.fixture(scope="module", autouse=True)
def _imported() -> None:
    """First as the runtime imports it, quietly, and with the threads of a first model: here they are set for good."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        runtime = pytest.importorskip("dlproxy.instance.runtime.tensorflow", exc_type=ImportError)
    assert runtime._set_threads(1) == 1


def _saved(folder: Path, function: Callable[..., Any], *specs: Any, signature: str = "serving_default") -> Path:
    import tensorflow as tf

    module = tf.Module()
    module.serve = tf.function(function, input_signature=specs, autograph=False)
    path = folder / "saved"
    tf.saved_model.save(module, str(path), signatures={signature: module.serve})
    return path


def _keras(folder: Path, model: Any) -> Path:
    model.save(folder / "m.keras")
    return folder / "m.keras"


def _error(path: Path, **options: Any) -> str:
    with pytest.raises(ModelError) as caught:
        open_runtime(str(path), **options)
    assert_a_line(str(caught.value), path)
    return str(caught.value)


# The small network


def _saved_model(folder: Path) -> Runtime:
    options = {"path": str(small_network.save_saved_model(folder)), "threads": 1, "outputs": {"y": "FP32[-1,4]"}}
    return load(PythonSpec("dlproxy.instance.runtime.formats:open_runtime", options))


def _keras_file(folder: Path) -> Runtime:
    return open_runtime(str(_keras(folder, keras_model())))


def _keras_export(folder: Path) -> Runtime:
    keras_model().export(folder / "exported", verbose=False)
    return open_runtime(str(folder / "exported"))


@pytest.mark.parametrize("made", [_saved_model, _keras_file, _keras_export])
def test_the_small_network(tmp_path: Path, made: Callable[[Path], Runtime]) -> None:
    runtime = made(tmp_path)
    small_network.assert_right(runtime)
    small_network.assert_right_from_two_threads(runtime)
    assert calibrate(runtime).independent_rows
    wrong = run_batch(runtime, [request(("x", DType.FP32, np.zeros((2, 9), np.float32)))])
    assert wrong.error is not None
    assert "\n" not in wrong.error
    assert "9" in wrong.error
    small_network.assert_right(runtime)


# Signatures


def test_a_saved_model_with_several_inputs_and_outputs(tmp_path: Path) -> None:
    import tensorflow as tf

    path = _saved(
        tmp_path,
        lambda a, b: {"sum": a + b, "texts": tf.strings.as_string(a)},
        tf.TensorSpec([None, None], tf.int32, name="a"),
        tf.TensorSpec([None, 1], tf.int32, name="b"),
        signature="only",
    )
    runtime = open_runtime(str(path))
    assert set(runtime.signature.inputs) == {TensorSpec("a", DType.INT32, (-1, -1)), TensorSpec("b", DType.INT32, (-1, 1))}
    assert set(runtime.signature.outputs) == {
        TensorSpec("sum", DType.INT32, (-1, -1)),
        TensorSpec("texts", DType.BYTES, (-1, -1)),
    }
    assert runtime.signature.batched
    assert runtime.signature.platform == "tensorflow_savedmodel"
    values = {"a": np.array([[1, 2]], np.int32), "b": np.array([[3]], np.int32)}
    outputs = runtime.run([values[spec.name] for spec in runtime.signature.inputs])
    by_name = {spec.name: array.tolist() for spec, array in zip(runtime.signature.outputs, outputs, strict=True)}
    assert by_name == {"sum": [[4, 5]], "texts": [[b"1", b"2"]]}


def test_a_saved_model_of_a_fixed_size_does_not_batch(tmp_path: Path) -> None:
    import tensorflow as tf

    runtime = open_runtime(str(_saved(tmp_path, lambda x: {"y": x + 1}, tf.TensorSpec([3, 2], tf.float32, name="x"))))
    assert not runtime.signature.batched
    assert runtime.run([X3])[0].tolist() == (X3 + 1).tolist()


def test_an_unknown_number_of_axes_must_be_declared(tmp_path: Path) -> None:
    import tensorflow as tf

    path = _saved(tmp_path, lambda x: {"y": x + 1}, tf.TensorSpec(None, tf.float32, name="x"))
    assert "'x' may have any number of axes; give its shape: inputs = { x = 'FP32[-1,784]' }" in _error(path)
    runtime = open_runtime(str(path), inputs={"x": "FP32[-1,2]"}, outputs={"y": "FP32[-1,2]"})
    assert runtime.signature.batched
    assert runtime.run([X3])[0].tolist() == (X3 + 1).tolist()


def test_a_saved_model_with_no_signature_to_serve(tmp_path: Path) -> None:
    import tensorflow as tf

    module = tf.Module()
    spec = tf.TensorSpec([None], tf.float32, name="x")
    module.one, module.two = (tf.function(lambda x: {"y": x}, input_signature=[spec]) for _ in range(2))
    tf.saved_model.save(module, str(tmp_path / "two"), signatures={"one": module.one, "two": module.two})
    assert "has no signature serving_default; it has one, two" in _error(tmp_path / "two")
    tf.saved_model.save(tf.Module(), str(tmp_path / "none"))
    assert "has no signature serving_default: save it with signatures=" in _error(tmp_path / "none")


def test_keras_models_with_several_inputs_and_outputs(tmp_path: Path) -> None:
    import keras

    a, b = keras.Input((2,), name="a"), keras.Input((2,), dtype="int32", name="b")
    total = keras.layers.Add(name="total")([a, keras.ops.cast(b, "float32")])
    for outputs, names in (
        ([total, keras.layers.Identity(name="same")(b)], ["total", "same"]),
        ({"p": total, "q": b}, ["p", "q"]),
    ):
        for inputs in ([a, b], {"second": b, "a": a}):
            runtime = open_runtime(str(_keras(tmp_path, keras.Model(inputs, outputs))))
            specs = runtime.signature.inputs
            assert {spec.name: (spec.dtype, spec.shape) for spec in specs} == {
                "a": (DType.FP32, (-1, 2)),
                "second" if isinstance(inputs, dict) else "b": (DType.INT32, (-1, 2)),
            }
            assert [spec.name for spec in runtime.signature.outputs] == names
            assert runtime.signature.batched
            first, second = runtime.run([X3 if spec.name == "a" else np.ones((3, 2), np.int32) for spec in specs])
            assert (first.tolist(), second.tolist()) == ((X3 + 1).tolist(), np.ones((3, 2)).tolist())


def test_a_sequential_keras_model(tmp_path: Path) -> None:
    import keras

    layer = keras.layers.Dense(1, use_bias=False, kernel_initializer="ones", name="sums")
    runtime = open_runtime(str(_keras(tmp_path, keras.Sequential([keras.Input((2,), name="x"), layer]))))
    assert runtime.signature.inputs == (TensorSpec("x", DType.FP32, (-1, 2)),)
    assert runtime.signature.outputs == (TensorSpec("sums", DType.FP32, (-1, 1)),)
    assert runtime.run([X3])[0].tolist() == X3.sum(1, keepdims=True).tolist()


def test_dropout_is_off(tmp_path: Path) -> None:
    import keras

    x = keras.Input((2,), name="x")
    runtime = open_runtime(str(_keras(tmp_path, keras.Model(x, keras.layers.Dropout(0.9)(x)))))
    assert runtime.run([X3])[0].tolist() == X3.tolist()


# Element types, memory, threads


@pytest.mark.parametrize("dtype", list(DType), ids=lambda dtype: dtype.value)
def test_every_element_type_passes_through(tmp_path: Path, dtype: DType) -> None:
    import tensorflow as tf

    from dlproxy.instance.runtime.tensorflow import _DTYPES

    theirs = next(their for their, ours in _DTYPES.items() if ours is dtype)
    runtime = open_runtime(str(_saved(tmp_path, lambda x: {"y": tf.identity(x)}, tf.TensorSpec([None, 3], theirs, name="x"))))
    assert runtime.signature.inputs == (TensorSpec("x", dtype, (-1, 3)),)
    if dtype is DType.BYTES:
        (texts,) = runtime.run([np.array([["", "zwölf", "a\0b"]], dtype=object)])
        assert texts.tolist() == [[b"", "zwölf".encode(), b"a\0b"]]
        return
    noise = np.random.default_rng(0).integers(0, 2 if dtype is DType.BOOL else 256, 12 * dtype.itemsize, np.uint8)
    array = np.frombuffer(noise.tobytes(), NUMPY[dtype]).reshape(4, 3)
    (output,) = runtime.run([array])
    assert (output.dtype, output.shape, output.tobytes()) == (array.dtype, array.shape, array.tobytes())
    assert not np.shares_memory(output, array)


def test_outputs_stay_valid_after_the_next_run(tmp_path: Path) -> None:
    runtime = _saved_model(tmp_path)
    (first,) = runtime.run([small_network.rows(7)])
    for _ in range(5):
        runtime.run([np.zeros((7, 8), np.float32)])
    np.testing.assert_allclose(first, small_network.answer(small_network.rows(7)), atol=1e-4)


def test_the_first_models_threads_stay(tmp_path: Path) -> None:
    import tensorflow as tf

    path = str(small_network.save_saved_model(tmp_path))
    assert [getattr(open_runtime(path, threads=threads), "threads", None) for threads in (1, 3)] == [1, 1]
    assert tf.config.threading.get_intra_op_parallelism_threads() == 1
    assert tf.config.threading.get_inter_op_parallelism_threads() == 1


def test_a_model_that_raises_says_why_in_a_line(tmp_path: Path) -> None:
    import tensorflow as tf

    def strict(x: Any) -> Any:
        with tf.control_dependencies([tf.debugging.assert_less(tf.reduce_sum(x), 5.0, message="the sum is too large")]):
            return {"y": tf.identity(x)}

    runtime = open_runtime(str(_saved(tmp_path, strict, tf.TensorSpec([None, 2], tf.float32, name="x"))))
    result = run_batch(runtime, [request(("x", DType.FP32, X3))])
    assert result.error is not None
    assert "the sum is too large" in result.error
    assert "\n" not in result.error
    assert runtime.run([0 * X3])[0].tolist() == (0 * X3).tolist()


@pytest.mark.parametrize(
    ("device", "clue"),
    [("cuda:99", "device 'cuda:99' is not there: TensorFlow"), ("gpu", "there is no device 'gpu'"), ("cuda:x", "no device")],
)
def test_a_device_that_is_not_there(tmp_path: Path, device: str, clue: str) -> None:
    assert clue in _error(small_network.save_saved_model(tmp_path), device=device)


# What cannot be loaded


@pytest.mark.parametrize("content", [b"", b"garbage" * 20, bytes(range(256))])
def test_a_saved_model_that_is_none(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "saved_model.pb").write_bytes(content)
    assert "not a SavedModel that TensorFlow" in _error(tmp_path)


def test_a_saved_model_without_its_weights(tmp_path: Path) -> None:
    path = small_network.save_saved_model(tmp_path)
    for file in (path / "variables").iterdir():
        file.unlink()
    assert "not a SavedModel that TensorFlow" in _error(path)


def _zip(**members: bytes) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for member, content in members.items():
            archive.writestr(member.replace("__", "."), content)
    return buffer.getvalue()


@pytest.mark.parametrize(
    "content", [b"", b"garbage" * 20, _zip(a=b""), _zip(config__json=b"{"), _zip(config__json=b"{}", metadata__json=b"{}")]
)
def test_a_keras_file_that_is_none(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "m.keras").write_bytes(content)
    assert "not a model that Keras" in _error(tmp_path / "m.keras")


def test_a_keras_file_with_damaged_weights(tmp_path: Path) -> None:
    path = _keras(tmp_path, keras_model())
    with zipfile.ZipFile(path) as archive:
        members = {member: archive.read(member) for member in archive.namelist()}
    with zipfile.ZipFile(path, "w") as archive:
        for member, content in members.items():
            archive.writestr(member, content[:1000] if member.endswith(".h5") else content)
    assert "not a model that Keras" in _error(path)


def test_lambdas_and_unknown_classes_in_a_keras_file_are_refused(tmp_path: Path) -> None:
    import keras

    x = keras.Input((2,), name="x")
    assert "`Lambda` layer" in _error(_keras(tmp_path, keras.Model(x, keras.layers.Lambda(lambda v: v + 1)(x))))
    path = _keras(tmp_path, keras_model())
    with zipfile.ZipFile(path) as archive:
        members = {member: archive.read(member) for member in archive.namelist()}
    config = json.loads(members["config.json"])
    config["config"]["layers"][1].update(class_name="Mine", module="their_module", registered_name="Mine")
    members["config.json"] = json.dumps(config).encode()
    with zipfile.ZipFile(path, "w") as archive:
        for member, content in members.items():
            archive.writestr(member, content)
    assert "TypeError: Could not locate class 'Mine'" in _error(path)


def test_a_keras_model_that_was_never_built_is_refused(tmp_path: Path) -> None:
    import keras

    assert "does not know its inputs: build() it before save()" in _error(
        _keras(tmp_path, keras.Sequential([keras.layers.Dense(2)]))
    )

"""SavedModels and .keras files: the small network's answers, signatures, element types, and what is refused."""

import io
import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dlproxy.instance.batch import run_batch
from dlproxy.instance.integrity import Trust
from dlproxy.instance.runtime import Runtime
from dlproxy.instance.runtime.formats import open_runtime
from dlproxy.instance.runtime.specs import PythonSpec, load
from dlproxy.message import DType, TensorSpec
from tests.instance import small_network
from tests.instance.small_network import assert_passes_unchanged, keras_model, refusal, request

pytestmark = [pytest.mark.extras, pytest.mark.filterwarnings("ignore")]

X3 = np.arange(6, dtype=np.float32).reshape(3, 2)


@pytest.fixture(scope="module", autouse=True)
def _imported() -> None:
    small_network.import_tensorflow()


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
    small_network.assert_as_every_runtime(made(tmp_path), "9")


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
    assert "'x' may have any number of axes; give its shape: inputs = { x = 'FP32[-1,784]' }" in refusal(path)
    runtime = open_runtime(str(path), inputs={"x": "FP32[-1,2]"}, outputs={"y": "FP32[-1,2]"})
    assert runtime.signature.batched
    assert runtime.run([X3])[0].tolist() == (X3 + 1).tolist()


def test_a_saved_model_with_no_signature_to_serve(tmp_path: Path) -> None:
    import tensorflow as tf

    module = tf.Module()
    spec = tf.TensorSpec([None], tf.float32, name="x")
    module.one, module.two = (tf.function(lambda x: {"y": x}, input_signature=[spec]) for _ in range(2))
    tf.saved_model.save(module, str(tmp_path / "two"), signatures={"one": module.one, "two": module.two})
    assert "has no signature serving_default; it has one, two" in refusal(tmp_path / "two")
    tf.saved_model.save(tf.Module(), str(tmp_path / "none"))
    assert "has no signature serving_default: save it with signatures=" in refusal(tmp_path / "none")


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
        elements = [[b"\xff\xd8", "zwölf".encode(), b"a\0b\0\0"]]
        (given,) = runtime.run([np.array(elements, dtype=object)])
        assert given.tolist() == elements
        return
    assert_passes_unchanged(runtime, dtype)


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
    [
        ("cuda:99", "device 'cuda:99' is not there: TensorFlow"),
        ("gpu", "'gpu' is not understood"),
        ("openvino", "for ONNX models"),
    ],
)
def test_a_device_that_is_not_there(tmp_path: Path, device: str, clue: str) -> None:
    assert clue in refusal(small_network.save_saved_model(tmp_path), device=device)


class FakeGpus:
    """TensorFlow's settings of two GPUs, of which it says what was set; it computes on the CPU."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        import tensorflow as tf

        self.growing: list[str] = []
        self.limits: dict[str, list[Any]] = {}
        self.running = False
        patch.setattr(tf.config, "list_physical_devices", lambda kind: ["gpu-0", "gpu-1"])
        patch.setattr(tf.config.experimental, "set_memory_growth", lambda gpu, on: self._set(self.growing.append, gpu))
        patch.setattr(tf.config, "set_logical_device_configuration", lambda gpu, to: self._set(self.limits.update, {gpu: to}))
        patch.setattr(tf.config, "get_logical_device_configuration", self.limits.get)
        self.used: list[str] = []
        self._real = tf.device
        patch.setattr(tf, "device", self._use)

    def _use(self, name: str) -> Any:
        self.used.append(name)
        return self._real("/CPU:0")

    def _set(self, how: Callable[[Any], None], what: Any) -> None:
        if self.running:
            raise RuntimeError("Physical devices cannot be modified after being initialized")
        how(what)


def test_gpus_are_chosen_and_their_memory_is_taken_as_needed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = str(small_network.save_saved_model(tmp_path))
    machine = FakeGpus(monkeypatch)
    for device, place, name in (("auto", "cuda:0", "/GPU:0"), ("cuda:1", "cuda:1", "/GPU:1"), ("cpu", "cpu", "/CPU:0")):
        machine.used.clear()
        runtime = open_runtime(path, device=device)
        small_network.assert_right(runtime)
        assert (getattr(runtime, "device", None), set(machine.used)) == (place, {name})
    assert set(machine.growing) == {"gpu-0", "gpu-1"}
    assert not machine.limits


def test_a_gpus_memory_limit_is_set_before_tensorflow_uses_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = small_network.save_saved_model(tmp_path)
    machine = FakeGpus(monkeypatch)
    open_runtime(str(path), device="cuda:1", gpu_memory_limit_mb=512)
    assert {gpu: [one.memory_limit for one in parts] for gpu, parts in machine.limits.items()} == {
        "gpu-0": [512],
        "gpu-1": [512],
    }
    machine.running = True
    open_runtime(str(path), device="cuda:1", gpu_memory_limit_mb=512)
    open_runtime(str(path), device="cuda:0")
    assert "gpu_memory_limit_mb = 100 comes too late: TensorFlow uses cuda:1" in refusal(
        path, device="cuda:1", gpu_memory_limit_mb=100
    )


# What cannot be loaded


@pytest.mark.parametrize("content", [b"", b"garbage" * 20, bytes(range(256))])
def test_a_saved_model_that_is_none(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "saved_model.pb").write_bytes(content)
    assert "not a SavedModel that TensorFlow" in refusal(tmp_path)


def test_a_saved_model_without_its_weights(tmp_path: Path) -> None:
    path = small_network.save_saved_model(tmp_path)
    for file in (path / "variables").iterdir():
        file.unlink()
    assert "not a SavedModel that TensorFlow" in refusal(path)


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
    assert "not a model that Keras" in refusal(tmp_path / "m.keras")


def test_a_keras_file_with_damaged_weights(tmp_path: Path) -> None:
    path = _keras(tmp_path, keras_model())
    with zipfile.ZipFile(path) as archive:
        members = {member: archive.read(member) for member in archive.namelist()}
    with zipfile.ZipFile(path, "w") as archive:
        for member, content in members.items():
            archive.writestr(member, content[:1000] if member.endswith(".h5") else content)
    assert "not a model that Keras" in refusal(path)


def test_lambdas_and_unknown_classes_in_a_keras_file_are_refused(tmp_path: Path) -> None:
    import keras

    x = keras.Input((2,), name="x")
    code = keras.Model(x, keras.layers.Lambda(lambda v: v + 1)(x))
    assert "it holds a Lambda, which is code" in refusal(_keras(tmp_path, code))
    path = _keras(tmp_path, keras_model())
    with zipfile.ZipFile(path) as archive:
        members = {member: archive.read(member) for member in archive.namelist()}
    config = json.loads(members["config.json"])
    for changes, words in (
        (
            {"class_name": "Mine", "module": "their_module", "registered_name": "Mine"},
            "it is made of their_module.Mine",
        ),
        ({"class_name": "function", "module": "builtins", "config": "exec"}, "it holds a function, which is code"),
        ({"class_name": "TorchModuleWrapper", "module": "keras.layers"}, "it holds a TorchModuleWrapper"),
    ):
        changed = json.loads(json.dumps(config))
        changed["config"]["layers"][1].update(changes)
        members["config.json"] = json.dumps(changed).encode()
        with zipfile.ZipFile(path, "w") as archive:
            for member, content in members.items():
                archive.writestr(member, content)
        assert words in refusal(path)
        assert words not in refusal(path, trust=Trust(pickle=True))  # where Keras itself has no such thing


def test_a_keras_model_that_was_never_built_is_refused(tmp_path: Path) -> None:
    import keras

    assert "does not know its inputs: build() it before save()" in refusal(
        _keras(tmp_path, keras.Sequential([keras.layers.Dense(2)]))
    )

"""One small network in every format, its weights fixed by numpy: y = softmax(relu(x w1 + b1) w2 + b2)."""

import warnings
from collections.abc import Sequence
from pathlib import Path
from threading import Barrier, Thread
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from onnx import helper

from dlproxy.instance.batch import run_batch
from dlproxy.instance.runtime import ModelError, Runtime
from dlproxy.instance.runtime.formats import open_runtime
from dlproxy.instance.warmup import calibrate
from dlproxy.message import DType, Request, Tensor, Ticket
from dlproxy.tensors import NUMPY
from tests import models

Array = NDArray[Any]

WIDTH, HIDDEN, CLASSES = 8, 16, 4
SIZES = (1, 2, 7, 64)
TOLERANCE = 1e-4
INPUTS = {"x": "FP32[-1,8]"}
OUTPUTS = {"y": "FP32[-1,4]"}

_random = np.random.default_rng(7)
W1 = _random.standard_normal((WIDTH, HIDDEN)).astype(np.float32)
B1 = _random.standard_normal(HIDDEN).astype(np.float32)
W2 = _random.standard_normal((HIDDEN, CLASSES)).astype(np.float32)
B2 = _random.standard_normal(CLASSES).astype(np.float32)

CLASS = '''
"""The small network as a Python class."""
from pathlib import Path

import numpy as np


class Network:
    inputs = {"x": "FP32[-1,8]"}
    outputs = {"y": (np.float32, (-1, 4))}

    def load(self):
        self.w = dict(np.load(Path(__file__).with_name("weights.npz")))

    def predict(self, batch):
        hidden = np.maximum(batch["x"] @ self.w["w1"] + self.w["b1"], 0)
        logits = hidden @ self.w["w2"] + self.w["b2"]
        e = np.exp(logits - logits.max(axis=1, keepdims=True))
        return {"y": e / e.sum(axis=1, keepdims=True)}
'''


def answer(x: Array) -> Array:
    """What every format must give."""
    logits = np.maximum(x @ W1 + B1, 0) @ W2 + B2
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    result: Array = powers / powers.sum(axis=1, keepdims=True)
    return result


def rows(count: int) -> Array:
    return np.random.default_rng(count).standard_normal((count, WIDTH)).astype(np.float32)


def request(*arrays: tuple[str, DType, Array]) -> Request:
    tensors = [Tensor(name, dtype, array.shape, array.tobytes()) for name, dtype, array in arrays]
    return Request(Ticket(1, 0.0, rows=len(arrays[0][2])), "m", tensors, ())


def assert_right(runtime: Runtime) -> None:
    """Right for every batch size, alone and gathered from requests, its inputs left as they were, outputs of its own."""
    assert runtime.signature.batched
    (spec,) = runtime.signature.outputs
    assert (runtime.signature.inputs[0].name, runtime.signature.inputs[0].shape, spec.shape) == ("x", (-1, 8), (-1, 4))
    for count in SIZES:
        x = rows(count)
        for parts in ([x], np.array_split(x, min(count, 3))):
            result = run_batch(runtime, [request(("x", DType.FP32, part)) for part in parts])
            assert result.error is None
            assert result.outputs[0].dtype == np.float32
            np.testing.assert_allclose(result.outputs[0], answer(x), atol=TOLERANCE)


def assert_right_from_two_threads(runtime: Runtime) -> None:
    """Two threads that start together, with batches of their own."""
    start, found = Barrier(2), [None, None]

    def work(number: int) -> None:
        try:
            start.wait(10)
            for turn in range(20):
                x = rows(1 + (turn + 5 * number) % 11)
                np.testing.assert_allclose(runtime.run([x])[0], answer(x), atol=TOLERANCE)
        except BaseException as error:
            found[number] = error

    threads = [Thread(target=work, args=(number,), daemon=True) for number in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
        assert not thread.is_alive(), "a thread hangs"
    assert found == [None, None]


def assert_as_every_runtime(runtime: Runtime, clue: str) -> None:
    """Right, alone and from two threads; rows are found independent; a batch of another width fails alone, with the clue."""
    assert_right(runtime)
    assert_right_from_two_threads(runtime)
    assert calibrate(runtime).independent_rows
    wrong = run_batch(runtime, [request(("x", DType.FP32, np.zeros((2, WIDTH + 1), np.float32)))])
    assert wrong.error is not None
    assert "\n" not in wrong.error
    assert clue in wrong.error
    (first,) = runtime.run([rows(7)])
    for _ in range(5):
        runtime.run([np.zeros((7, WIDTH), np.float32)])
    np.testing.assert_allclose(first, answer(rows(7)), atol=TOLERANCE, err_msg="a later run changed it")


def assert_passes_unchanged(runtime: Runtime, dtype: DType) -> None:
    """Any bytes of this type come out of an identity model [N, 3] as they went in, and not in the same memory."""
    noise = np.random.default_rng(0).integers(0, 2 if dtype is DType.BOOL else 256, 12 * dtype.itemsize, np.uint8)
    array = np.frombuffer(noise.tobytes(), NUMPY[dtype]).reshape(4, 3)
    (output,) = runtime.run([array])
    assert (output.dtype, output.shape, output.tobytes()) == (array.dtype, array.shape, array.tobytes())
    assert not np.shares_memory(output, array)


def import_tensorflow() -> None:
    """First as the runtime imports it, quietly, and with the threads of a first model, which in a process are set for good."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        runtime = pytest.importorskip("dlproxy.instance.runtime.tensorflow", exc_type=ImportError)
    assert runtime._set_threads(1) == 1


def refusal(path: object, **options: Any) -> str:
    """Why the model cannot be opened, in a line."""
    with pytest.raises(ModelError) as caught:
        open_runtime(str(path), **options)
    assert_a_line(str(caught.value), path)
    return str(caught.value)


def assert_a_line(message: str, path: object) -> None:
    """An error that a person can read: one line with the path, nothing of the framework's stack."""
    assert str(path) in message
    assert "\n" not in message
    assert "Traceback" not in message
    assert len(message) < 600


def save_onnx(folder: Path) -> Path:
    made = models.model(
        [
            helper.make_node("Gemm", ["x", "w1", "b1"], ["h"]),
            helper.make_node("Relu", ["h"], ["r"]),
            helper.make_node("Gemm", ["r", "w2", "b2"], ["l"]),
            helper.make_node("Softmax", ["l"], ["y"], axis=1),
        ],
        [models.value("x", DType.FP32, ("N", WIDTH))],
        [models.value("y", DType.FP32, ("N", CLASSES))],
        [models.constant(name, array) for name, array in (("w1", W1), ("b1", B1), ("w2", W2), ("b2", B2))],
    )
    return models.save(made, folder / "network.onnx")


def save_python(folder: Path) -> str:
    np.savez(folder / "weights.npz", w1=W1, b1=B1, w2=W2, b2=B2)
    (folder / "network.py").write_text(CLASS, "utf-8")
    return f"{folder / 'network.py'}:Network"


def torch_module() -> Any:
    import torch

    class Network(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = torch.nn.Linear(WIDTH, HIDDEN), torch.nn.Linear(HIDDEN, CLASSES)
            with torch.no_grad():
                for layer, w, b in ((self.first, W1, B1), (self.second, W2, B2)):
                    layer.weight.copy_(torch.from_numpy(w.T.copy()))
                    layer.bias.copy_(torch.from_numpy(b.copy()))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.softmax(self.second(torch.relu(self.first(x))), dim=1)

    return Network().eval()


def save_torchscript(module: Any, path: Path, example: Sequence[Any] = ()) -> Path:
    """Scripted, or traced with an example."""
    import torch

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # deprecated, and still what many models are kept in
        scripted = torch.jit.trace(module, tuple(example)) if example else torch.jit.script(module)
        torch.jit.save(scripted, path)
    return path


def save_torch_export(module: Any, path: Path, example: Sequence[Any], dynamic: Any) -> Path:
    import torch

    torch.export.save(torch.export.export(module, tuple(example), dynamic_shapes=dynamic), path)
    return path


def keras_model() -> Any:
    import keras

    x = keras.Input((WIDTH,), name="x")
    first, second = keras.layers.Dense(HIDDEN, "relu"), keras.layers.Dense(CLASSES, "softmax", name="y")
    model = keras.Model(x, second(first(x)))
    first.set_weights([W1, B1])
    second.set_weights([W2, B2])
    return model


def save_saved_model(folder: Path) -> Path:
    import tensorflow as tf

    class Network(tf.Module):  # type: ignore[misc]
        def __init__(self) -> None:
            self.w1, self.b1, self.w2, self.b2 = map(tf.Variable, (W1, B1, W2, B2))

        @tf.function(input_signature=[tf.TensorSpec([None, WIDTH], tf.float32, name="x")])  # type: ignore[untyped-decorator]
        def serve(self, x: Any) -> Any:
            return {"y": tf.nn.softmax(tf.nn.relu(x @ self.w1 + self.b1) @ self.w2 + self.b2)}

    network = Network()
    tf.saved_model.save(network, str(folder / "network"), signatures=network.serve)
    return folder / "network"

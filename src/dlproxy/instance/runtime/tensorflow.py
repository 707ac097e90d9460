"""TensorFlow models: SavedModel folders and .keras files, on the CPU or one GPU.

Called by runtime/formats.py to load and by instance/batch.py to run. Not aware of: threads other than TensorFlow's own.
"""

import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

from dlproxy.cores import allowed_cores
from dlproxy.instance.integrity.memory_folder import MemoryFolder
from dlproxy.instance.runtime import ModelError
from dlproxy.instance.runtime.archives import refuse_code
from dlproxy.instance.runtime.declared import Found, check_outputs, one_line, refine, signature_of
from dlproxy.instance.runtime.devices import CPU, gpu_of
from dlproxy.message import DType, TensorSpec

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # read when it is imported; every problem reaches us as an exception
os.environ.setdefault("KERAS_BACKEND", "tensorflow")

import keras
import tensorflow as tf

if TYPE_CHECKING:
    from dlproxy.instance.integrity.files import ModelFiles

_DTYPES = {
    tf.bool: DType.BOOL,
    tf.uint8: DType.UINT8,
    tf.uint16: DType.UINT16,
    tf.uint32: DType.UINT32,
    tf.uint64: DType.UINT64,
    tf.int8: DType.INT8,
    tf.int16: DType.INT16,
    tf.int32: DType.INT32,
    tf.int64: DType.INT64,
    tf.float16: DType.FP16,
    tf.bfloat16: DType.BF16,
    tf.float32: DType.FP32,
    tf.float64: DType.FP64,
    tf.string: DType.BYTES,
}


class _Loaded(Struct):
    """A model as a function of tensors by name. `owner` keeps the variables alive that the function uses."""

    inputs: list[Found]
    outputs: list[Found]
    call: Callable[[dict[str, Any]], Mapping[str, Any]]
    owner: Any


class TensorFlowRuntime:
    """One model. `threads`: intra-op threads; operators run one after the other (inter-op 1).

    TensorFlow takes both once per process: a second model there runs with those of the first, see the attribute `threads`.
    `device`: "auto", "cpu", "cuda" or "cuda:N"; the attribute says which it is. `gpu_memory_limit_mb` is for each GPU and,
    like the threads, settled by the first model. `inputs`, `outputs`: the configuration's, where the model leaves shapes open.
    `files`: of the model, to be loaded from memory. `pickle`: code in it may run when it is read.
    """

    def __init__(
        self,
        path: Path,
        *,
        kind: Literal["saved_model", "keras"],
        threads: int,
        device: str = CPU,
        gpu_memory_limit_mb: int = 0,
        inputs: Sequence[TensorSpec] = (),
        outputs: Sequence[TensorSpec] = (),
        files: "ModelFiles | None" = None,
        pickle: bool = False,
    ) -> None:
        self.threads = _set_threads(threads)
        place = path
        try:
            if files is not None:
                self.files = files.paths
                self._folder = MemoryFolder(files.data)  # its tables may be read later
                place = self._folder.path / files.main
            gpu = _gpu(device, gpu_memory_limit_mb)
            self.device, self._device = (CPU, "/CPU:0") if gpu is None else (f"cuda:{gpu}", f"/GPU:{gpu}")
            with tf.device(self._device):
                self._loaded = _load_saved_model(place) if kind == "saved_model" else _load_keras(place, pickle=pickle)
            self.signature = signature_of(
                refine(self._loaded.inputs, inputs, "inputs"),
                refine(self._loaded.outputs, outputs, "outputs"),
                platform="tensorflow_savedmodel" if kind == "saved_model" else "tensorflow_keras",
            )
        except ModelError as error:
            raise ModelError(f"{path}: {error}") from None

    def call(self, batch: dict[str, Any]) -> Mapping[str, Any]:
        """The model as a function of tensors by name, for those who convert it."""
        return self._loaded.call(batch)

    def run(self, inputs: Sequence[NDArray[np.generic]]) -> list[NDArray[np.generic]]:
        """One forward pass. Arrays in signature order; BF16 as uint16 bit patterns. Takes concurrent calls."""
        try:
            with tf.device(self._device):
                batch = {spec.name: _tensor(spec, array) for spec, array in zip(self.signature.inputs, inputs, strict=True)}
                outputs = self._loaded.call(batch)
        except Exception as error:
            raise RuntimeError(one_line(error)) from error
        arrays = {name: _array(tensor, inputs) for name, tensor in outputs.items()}
        return check_outputs(self.signature, arrays)


def _load_saved_model(path: Path) -> _Loaded:
    """The signature `serving_default`, or the only one."""
    try:
        owner = tf.saved_model.load(str(path))
        signatures = dict(owner.signatures)
    except Exception as error:  # OSError, ValueError, AttributeError and TensorFlow's own
        raise ModelError(f"not a SavedModel that TensorFlow {tf.__version__} can load: {one_line(error)}") from error
    name = "serving_default" if "serving_default" in signatures or len(signatures) != 1 else next(iter(signatures))
    if name not in signatures:
        others = f"; it has {', '.join(signatures)}" if signatures else ": save it with signatures=, or model.export() in Keras"
        raise ModelError(f"the SavedModel has no signature serving_default{others}")
    function = signatures[name]
    _, by_name = function.structured_input_signature

    def call(batch: dict[str, Any]) -> Mapping[str, Any]:
        outputs: Mapping[str, Any] = function(**batch)
        return outputs

    return _Loaded(_found(by_name), _found(function.structured_outputs), call, owner)


def _load_keras(path: Path, *, pickle: bool) -> _Loaded:
    """Without the compiled loss and optimiser, and without lambdas, which are code (Keras' safe mode), unless `pickle`."""
    if keras.backend.backend() != "tensorflow":
        raise ModelError(f"KERAS_BACKEND is {keras.backend.backend()}; dlproxy runs .keras files on tensorflow")
    try:
        if not pickle:
            refuse_code(path)
        model = keras.saving.load_model(path, compile=False, safe_mode=not pickle)
    except ModelError:
        raise
    except Exception as error:  # a zip, JSON, HDF5 or Keras error
        raise ModelError(f"not a model that Keras {keras.__version__} can load: {one_line(error)}") from error
    flat = getattr(model, "inputs", None)
    if not flat:
        raise ModelError("the Keras model does not know its inputs: build() it before save(), or model.export() a SavedModel")
    try:
        return _as_function(model, flat)
    except ModelError:
        raise
    except Exception as error:  # whatever the layers raise when they are traced
        raise ModelError(f"its layers cannot be run: {one_line(error)}") from error


def _as_function(model: Any, flat: Sequence[Any]) -> _Loaded:
    """Traced once for any batch, with inputs by the keys of a dict or else by the names of the input layers."""
    structure = getattr(model, "input", flat[0])  # a Sequential that was loaded and not called has none
    names = sorted(structure) if isinstance(structure, dict) else []  # the order in which keras.tree flattens a dict
    if len(names) != len(flat):
        names = _unique([tensor.name for tensor in flat], "input")
    specs = [tf.TensorSpec(tensor.shape, tensor.dtype, name) for tensor, name in zip(flat, names, strict=True)]

    def forward(*tensors: Any) -> Any:
        return _keras_outputs(model, model(keras.tree.pack_sequence_as(structure, list(tensors)), training=False))

    function = tf.function(forward, input_signature=specs, autograph=False).get_concrete_function()

    def call(batch: dict[str, Any]) -> Mapping[str, Any]:
        outputs: Mapping[str, Any] = function(*[batch[name] for name in names])
        return outputs

    found = _found(dict(zip(names, specs, strict=True)))
    return _Loaded(found, _found(function.structured_outputs), call, model)


def _keras_outputs(model: Any, outputs: Any) -> dict[str, Any]:
    """By the keys of a dict, else by the names of the layers that they come from."""
    if isinstance(outputs, dict):
        return outputs
    flat = list(outputs) if isinstance(outputs, list | tuple) else [outputs]
    names = getattr(model, "output_names", None) or [layer.name for layer in model.layers[-1:]]
    names = _unique(names, "output") if len(names) == len(flat) else [f"output_{number}" for number in range(len(flat))]
    return dict(zip(names, flat, strict=True))


def _unique(names: Sequence[str], word: str) -> list[str]:
    return list(names) if len(set(names)) == len(names) else [f"{word}_{number}" for number in range(len(names))]


def _found(specs: Mapping[str, Any]) -> list[Found]:
    found = []
    for name, spec in specs.items():
        if not isinstance(spec, tf.TensorSpec | tf.Tensor) or spec.dtype not in _DTYPES:
            what = spec.dtype.name if isinstance(spec, tf.TensorSpec | tf.Tensor) else f"a {type(spec).__name__}"
            raise ModelError(f"'{name}' is {what}; dlproxy serves dense tensors of the standard types")
        shape = None if spec.shape.rank is None else tuple(-1 if size is None else size for size in spec.shape)
        found.append(Found(name, _DTYPES[spec.dtype], shape))
    return found


def _tensor(spec: TensorSpec, array: NDArray[np.generic]) -> Any:
    if spec.dtype is DType.BF16:
        return tf.bitcast(tf.constant(array), tf.bfloat16)
    return tf.constant(array)


def _array(tensor: Any, inputs: Sequence[NDArray[np.generic]]) -> NDArray[np.generic]:
    """Its own memory: TensorFlow passes arrays in and out without copying, and the inputs are a request's bytes."""
    if tensor.dtype == tf.bfloat16:
        tensor = tf.bitcast(tensor, tf.uint16)
    array: NDArray[np.generic] = np.asarray(tensor.numpy(), dtype=object if tensor.dtype == tf.string else None)
    return array.copy() if any(np.may_share_memory(array, one) for one in inputs) else array


def _set_threads(threads: int) -> int:
    """Those that TensorFlow now uses: where somebody ran it before us and set none, all cores."""
    threading = tf.config.threading
    with suppress(RuntimeError):  # it has run something already; the first model's threads stay
        threading.set_inter_op_parallelism_threads(1)
        threading.set_intra_op_parallelism_threads(threads)
    all_of_them = len(allowed_cores()) or os.cpu_count() or 1  # TensorFlow knows of no quota
    return int(threading.get_intra_op_parallelism_threads()) or all_of_them


def _gpu(device: str, memory_limit_mb: int) -> int | None:
    """The GPU's number, None for the CPU. Memory is taken as it is needed or, under a limit, all at once. Raises ModelError."""
    gpus = tf.config.list_physical_devices("GPU")
    number = gpu_of(device, len(gpus), f"TensorFlow {tf.__version__}")
    if number is None:
        return None
    if not memory_limit_mb:
        for gpu in gpus:
            with suppress(RuntimeError, ValueError):  # it runs already, or within a limit: the first model's settings stay
                tf.config.experimental.set_memory_growth(gpu, True)
        return number
    for gpu in gpus:  # of those without a limit it would take all
        with suppress(RuntimeError, ValueError):  # it runs already, or takes memory as it is needed
            within = tf.config.LogicalDeviceConfiguration(memory_limit=memory_limit_mb)
            tf.config.set_logical_device_configuration(gpu, [within])
    found = tf.config.get_logical_device_configuration(gpus[number]) or []
    if [one.memory_limit for one in found] != [memory_limit_mb]:
        raise ModelError(
            f"gpu_memory_limit_mb = {memory_limit_mb} comes too late: TensorFlow uses cuda:{number} in this process already; "
            "set run = 'process'"
        )
    return number

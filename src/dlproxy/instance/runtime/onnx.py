"""ONNX models in ONNX Runtime, on the CPU.

Called by serve/assemble.py to load and by instance/batch.py to run. Not aware of: threads other than ONNX Runtime's own.
"""

import ctypes
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from dlproxy.instance.runtime import ModelError
from dlproxy.message import DType, Signature, TensorSpec, element_count

_DTYPES = {
    "tensor(bool)": DType.BOOL,
    "tensor(uint8)": DType.UINT8,
    "tensor(uint16)": DType.UINT16,
    "tensor(uint32)": DType.UINT32,
    "tensor(uint64)": DType.UINT64,
    "tensor(int8)": DType.INT8,
    "tensor(int16)": DType.INT16,
    "tensor(int32)": DType.INT32,
    "tensor(int64)": DType.INT64,
    "tensor(float16)": DType.FP16,
    "tensor(bfloat16)": DType.BF16,
    "tensor(float)": DType.FP32,
    "tensor(double)": DType.FP64,
    "tensor(string)": DType.BYTES,
}
_ONNX_BFLOAT16 = 16  # TensorProto.DataType of the ONNX specification
_QUIET = 4  # log severity "fatal": every other problem reaches us as an exception and is reported once


class OnnxRuntime:
    """One inference session. `threads`: intra-op threads; operators run one after the other (inter-op 1)."""

    def __init__(self, path: Path, *, threads: int) -> None:
        options = ort.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.log_severity_level = _QUIET
        self._session = _open(path, options)
        self.signature = _signature(self._session, path)
        self._input_names = [spec.name for spec in self.signature.inputs]
        self._output_names = [spec.name for spec in self.signature.outputs]
        specs = (*self.signature.inputs, *self.signature.outputs)
        self._has_bf16 = any(spec.dtype is DType.BF16 for spec in specs)

    def run(self, inputs: Sequence[NDArray[np.generic]]) -> list[NDArray[np.generic]]:
        """One forward pass. Arrays in signature order; BF16 as uint16 bit patterns."""
        if self._has_bf16:
            return self._run_bf16(inputs)
        outputs: list[NDArray[np.generic]] = self._session.run(
            self._output_names, dict(zip(self._input_names, inputs, strict=True))
        )
        return outputs

    def _run_bf16(self, inputs: Sequence[NDArray[np.generic]]) -> list[NDArray[np.generic]]:
        """ONNX Runtime's Python API knows no numpy type for BF16, so those tensors pass as OrtValues over their bits."""
        feed = {}
        for spec, array in zip(self.signature.inputs, inputs, strict=True):
            if spec.dtype is DType.BF16:
                bits = np.asarray(array, order="C")  # ascontiguousarray would give a scalar a dimension
                feed[spec.name] = ort.OrtValue.ortvalue_from_numpy_with_onnx_type(bits, _ONNX_BFLOAT16)
            else:
                feed[spec.name] = ort.OrtValue.ortvalue_from_numpy(array)
        values = self._session.run_with_ort_values(self._output_names, feed)
        return [
            _bf16_bits(value) if spec.dtype is DType.BF16 else value.numpy()
            for spec, value in zip(self.signature.outputs, values, strict=True)
        ]


def _bf16_bits(value: Any) -> NDArray[np.generic]:
    shape = value.shape()
    bits = ctypes.string_at(value.data_ptr(), element_count(shape) * 2)
    return np.frombuffer(bits, np.uint16).reshape(shape)


def _open(path: Path, options: Any) -> Any:
    if not path.exists():
        raise ModelError(f"model file {path} does not exist")
    if path.is_dir():
        raise ModelError(f"{path} is a directory; dlproxy takes the path of an .onnx file")
    try:
        return ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # ONNX Runtime raises a dozen unrelated types here
        reason = str(error).split("failed:", 1)[-1].strip()
        raise ModelError(f"{path} is not a model that ONNX Runtime {ort.__version__} can load: {reason}") from error


def _signature(session: Any, path: Path) -> Signature:
    inputs = tuple(_spec(node, path) for node in session.get_inputs())
    outputs = tuple(_spec(node, path) for node in session.get_outputs())
    if not inputs:
        raise ModelError(f"{path} takes no inputs; dlproxy serves models with at least one")
    specs = (*inputs, *outputs)
    batched = all(spec.shape and spec.shape[0] == -1 for spec in specs)
    return Signature(inputs, outputs, batched=batched, platform="onnxruntime_onnx", utf8=True)


def _spec(node: Any, path: Path) -> TensorSpec:
    if node.type not in _DTYPES:
        raise ModelError(f"{path}: '{node.name}' is a {node.type}; dlproxy serves dense tensors of the standard types")
    shape = tuple(size if isinstance(size, int) and size >= 0 else -1 for size in node.shape or ())
    return TensorSpec(node.name, _DTYPES[node.type], shape)

"""ONNX models in ONNX Runtime, on the CPU, on NVIDIA GPUs or through OpenVINO.

Called by runtime/formats.py to load and by instance/batch.py to run. Not aware of: threads other than ONNX Runtime's own.
"""

import ctypes
import io
import logging
import os
import sys
from collections.abc import Sequence
from contextlib import redirect_stdout
from functools import cache, partial
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from dlproxy.instance.runtime import TELEMETRY_OFF, ModelError
from dlproxy.instance.runtime.declared import Found, refine, signature_of
from dlproxy.instance.runtime.devices import CPU, CUDA_PROVIDER, EMPTY, ON_CPU, Plan, onnx_plans, tensorrt_rows
from dlproxy.instance.runtime.onnx_graph import OnnxFile
from dlproxy.instance.runtime.row_mixing import why_rows_meet
from dlproxy.message import DType, Signature, TensorSpec, element_count

os.environ.setdefault(*TELEMETRY_OFF)

import onnxruntime as ort

from dlproxy.instance.runtime.graphs import graphs_in
from dlproxy.instance.runtime.kept_graph import KeptGraph

if TYPE_CHECKING:
    from dlproxy.instance.integrity.files import ModelFiles

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
MOST_DEFAULTS = 16  # inputs with a default; where a file has more, its exporter listed the weights among the inputs
MOST_DEFAULT_BYTES = 64 * 1024
_ONNX_BFLOAT16 = 16  # TensorProto.DataType of the ONNX specification
LFS_POINTER = b"version https://git-lfs"  # what a clone holds in place of a large file that was not fetched
_QUIET = 4  # log severity "fatal": every other problem reaches us as an exception and is reported once
_loading = Lock()  # of CUDA's libraries, during which standard output is ours

log = logging.getLogger(__name__)


class OnnxRuntime:
    """One inference session, which takes concurrent calls; on a GPU each of them computes on a CUDA stream of its own.

    `threads`: intra-op threads; operators run one after the other (inter-op 1). `device`: see devices.py; the attribute says
    where it is, in words, "cpu" for ONNX Runtime's own kernels. `max_batch`: the rows for which TensorRT builds its engine.
    `inputs`, `outputs`: the configuration's, for some or all of them. `files`: of the model, to be loaded from memory.
    `graphs`: folder of optimised graphs, for models on the CPU whose files may lie in clear on the disk; empty: none.
    """

    def __init__(
        self,
        path: Path,
        *,
        threads: int,
        device: str = CPU,
        gpu_memory_limit_mb: int = 0,
        max_batch: int = 256,
        inputs: Sequence[TensorSpec] = (),
        outputs: Sequence[TensorSpec] = (),
        files: "ModelFiles | None" = None,
        graphs: str = "",
    ) -> None:
        options = _options(threads)
        if files is None:
            _check_file(path)
        else:
            self.files = files.paths
        source = _Source(path, files)
        source.add_weights(options)
        rows = _tensorrt_rows(source, options, max_batch) if device.startswith("tensorrt") else EMPTY
        available = ort.get_available_providers()
        gpus = _gpus() if CUDA_PROVIDER in available else 0
        try:
            plans = onnx_plans(device, available, gpus, threads=threads, memory_limit_mb=gpu_memory_limit_mb, rows=rows)
        except ModelError as error:
            raise ModelError(f"{path}: {error}") from None
        if device == "auto" and CUDA_PROVIDER in available and not gpus:
            _warn("the NVIDIA driver sees no GPU")
        self._kept: KeptGraph | None = None
        if graphs and files is None and plans == [ON_CPU]:
            self._kept = KeptGraph(graphs_in(graphs), path, partial(_options, threads), _open_on_cpu)
            self._session, plan = self._kept.load(), ON_CPU
        else:
            self._session, plan = _first(source, options, plans)
        self.device = CPU if plan.place == CPU else f"{plan.place} ({plan.main})"
        self.checks_indices = plan.place == CPU
        self.metadata: dict[str, str] = self._session.get_modelmeta().custom_metadata_map
        file = None
        try:
            file = OnnxFile(path if files is None else files.model)
        except (OSError, ValueError) as error:  # ONNX Runtime read it; what is looked up there can do without
            log.warning("%s: the graph cannot be looked at (%s); only runs will show whether rows are independent", path, error)
        self._graph = file.graph if file is not None else None
        self.words = file.words if file is not None else []
        found = _Found(self._session, file, path)
        self.notes = found.notes
        self.signature = found.signature(inputs, outputs)
        self._input_names = [spec.name for spec in self.signature.inputs]
        self._output_names = [spec.name for spec in self.signature.outputs]
        specs = (*self.signature.inputs, *self.signature.outputs)
        self._has_bf16 = any(spec.dtype is DType.BF16 for spec in specs)

    def why_rows_meet(self) -> str:
        """What in the graph lets the rows of a batch meet, in words; empty if nothing that shows."""
        if self._graph is None:
            return ""
        carrying = [spec.name for spec in self.signature.inputs if spec.rows is not None]
        return why_rows_meet(self._graph, carrying, self._output_names)

    def forget_graph(self) -> None:
        """It is looked at when the model is loaded for the first time, and takes memory."""
        self._graph = None
        if self._kept is not None:
            self._kept.give_up()

    def keep_graph(self, requests: Sequence[Sequence[NDArray[np.generic]]]) -> None:
        """Keep the optimised graph for the next start if it pays, and answers these as this session does."""
        if self._kept is not None:
            self._session = self._kept.prove(self._session, self._run, requests)

    def run(self, inputs: Sequence[NDArray[np.generic]]) -> list[NDArray[np.generic]]:
        """One forward pass. Arrays in signature order; BF16 as uint16 bit patterns."""
        try:
            return self._run(self._session, inputs)
        except Exception as error:  # of any type, and of several lines
            raise RuntimeError(_in_a_line(error)) from error

    def _run(self, session: Any, inputs: Sequence[NDArray[np.generic]]) -> list[NDArray[np.generic]]:
        if self._has_bf16:
            return self._run_bf16(session, inputs)
        outputs: list[NDArray[np.generic]] = session.run(self._output_names, dict(zip(self._input_names, inputs, strict=True)))
        return outputs

    def _run_bf16(self, session: Any, inputs: Sequence[NDArray[np.generic]]) -> list[NDArray[np.generic]]:
        """ONNX Runtime's Python API knows no numpy type for BF16, so those tensors pass as OrtValues over their bits."""
        feed = {}
        for spec, array in zip(self.signature.inputs, inputs, strict=True):
            if spec.dtype is DType.BF16:
                bits = np.asarray(array, order="C")  # ascontiguousarray would give a scalar a dimension
                feed[spec.name] = ort.OrtValue.ortvalue_from_numpy_with_onnx_type(bits, _ONNX_BFLOAT16)
            else:
                feed[spec.name] = ort.OrtValue.ortvalue_from_numpy(array)
        values = session.run_with_ort_values(self._output_names, feed)
        return [
            _bf16_bits(value) if spec.dtype is DType.BF16 else value.numpy()
            for spec, value in zip(self.signature.outputs, values, strict=True)
        ]


def _bf16_bits(value: Any) -> NDArray[np.generic]:
    shape = value.shape()
    bits = ctypes.string_at(value.data_ptr(), element_count(shape) * 2)
    return np.frombuffer(bits, np.uint16).reshape(shape)


def _options(threads: int) -> Any:
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = _QUIET
    return options


def _check_file(path: Path) -> None:
    if not path.exists():
        raise ModelError(f"model file {path} does not exist")
    if path.is_dir():
        raise ModelError(f"{path} is a directory; dlproxy takes the path of an .onnx file")
    with path.open("rb") as file:
        if file.read(len(LFS_POINTER)) == LFS_POINTER:
            raise ModelError(f"{path} is a pointer of Git LFS and not the model itself, which git lfs pull fetches")


class _Source:
    """Where a session is loaded from: a path, or memory."""

    def __init__(self, path: Path, files: "ModelFiles | None") -> None:
        self.path = path
        self._files = files

    @property
    def model(self) -> str | bytes:
        """As ONNX Runtime takes it."""
        return str(self.path) if self._files is None else self._files.model

    def add_weights(self, options: Any) -> None:
        """Those beside a model in memory, by the names that it has for them; else it would look for them on the disk."""
        if self._files is None or not (names := sorted(self._files.data.keys() - {self._files.main})):
            return
        if not hasattr(options, "add_external_initializers_from_files_in_memory"):
            raise ModelError(f"{self.path} keeps weights in other files: to load them from memory takes a newer ONNX Runtime")
        contents = [self._files.data[name] for name in names]
        options.add_external_initializers_from_files_in_memory(names, contents, [len(one) for one in contents])


def _tensorrt_rows(source: _Source, options: Any, most_rows: int) -> dict[str, str]:
    path = source.path
    inputs = _Found(_open(source, options, ON_CPU), None, path).signature((), ()).inputs
    rows = tensorrt_rows(inputs, most_rows)
    if not rows and any(-1 in spec.shape for spec in inputs):
        log.warning("%s has open axes besides the rows: TensorRT stops service to build an engine for each larger input", path)
    return rows


def _first(source: _Source, options: Any, plans: Sequence[Plan]) -> tuple[Any, Plan]:
    """The first plan that works out, with its session. Raises ModelError in the words of the last."""
    for plan in plans[:-1]:
        try:
            return _open(source, options, plan), plan
        except ModelError as error:
            _warn(str(error))
    return _open(source, options, plans[-1]), plans[-1]


def _open_on_cpu(path: Path, options: Any) -> Any:
    return _open(_Source(path, None), options, ON_CPU)


def _open(source: _Source, options: Any, plan: Plan) -> Any:
    """A session that has the plan's main provider: ONNX Runtime leaves out one that it cannot use, and says so nowhere else."""
    path, complaint = source.path, ""
    if any(name == CUDA_PROVIDER for name, _ in plan.providers):
        with _loading:
            complaint = _preload_cuda()
    by = f"ONNX Runtime {ort.__version__}"
    try:
        session = ort.InferenceSession(source.model, options, providers=plan.providers, enable_fallback=False)
    except Exception as error:  # ONNX Runtime raises a dozen unrelated types here
        what = f"is not a model that {by} can load" if plan.place == CPU else f"cannot be loaded on {plan.place} by {by}"
        raise ModelError(f"{path} {what}: {_in_a_line(error).split('failed:', 1)[-1].strip()}") from error
    if plan.main not in session.get_providers():
        reason = complaint or f"it left {plan.main} out, and says why on standard error"
        raise ModelError(f"{path} cannot be loaded on {plan.place} by {by}: {reason}")
    return session


def _in_a_line(error: Exception) -> str:
    return " ".join(str(error).split())


@cache
def _preload_cuda() -> str:
    """Load CUDA's libraries from NVIDIA's packages, where ONNX Runtime alone does not look; what is missing, if anything."""
    preload = getattr(ort, "preload_dlls", None)  # since ONNX Runtime 1.21
    if preload is None:
        return ""
    with redirect_stdout(io.StringIO()) as said:
        preload()
    return next(iter(said.getvalue().splitlines()), "")


@cache
def _warn(reason: str) -> None:
    """Once for each reason: every model and every number of threads that is tried would say the same."""
    log.warning('ONNX Runtime can use CUDA, but models with device = "auto" run on the CPU: %s', reason)


def _gpus() -> int:
    """How many the NVIDIA driver shows to this process; none without a driver."""
    try:
        driver = ctypes.CDLL("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1")
    except OSError:
        return 0
    count = ctypes.c_int()
    if driver.cuInit(0) or driver.cuDeviceGetCount(ctypes.byref(count)):  # CUDA_ERROR_NO_DEVICE, or a driver that is too old
        return 0
    return count.value


class _Found:
    """What a session's model takes and gives. `notes`: what of it is not served and why, for the start-up report."""

    def __init__(self, session: Any, file: OnnxFile | None, path: Path) -> None:
        """Raises ModelError for an input without which the model cannot run and that no protocol can carry."""
        self._path = path
        self.notes: list[str] = []
        self._inputs = [_found(node) or self._refuse(node) for node in session.get_inputs()]
        self._inputs += self._with_defaults(session.get_overridable_initializers(), file)
        self._outputs = []
        for node in session.get_outputs():
            found = _found(node)
            if found is None:
                self._leave_out(node)
            else:
                self._outputs.append(found)
        if not self._outputs:
            raise ModelError(f"{path}: none of its outputs can be served: {'; '.join(self.notes)}")

    def signature(self, inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec]) -> Signature:
        """With what the configuration says on top. Raises ModelError."""
        try:
            takes = refine(self._inputs, inputs, "inputs", some=True)
            gives = refine(self._outputs, outputs, "outputs", some=True, shapes_hold=False)
            return signature_of(takes, gives, platform="onnxruntime_onnx", outputs_hold=False)
        except ModelError as error:
            raise ModelError(f"{self._path}: {error}") from None

    def _refuse(self, node: Any) -> Found:
        raise ModelError(
            f"{self._path}: input '{node.name}' is a {node.type}; dlproxy serves dense tensors of the standard types"
        )

    def _leave_out(self, node: Any) -> None:
        remedy = ""
        if node.type.startswith("seq(map("):
            remedy = "; to have it, export with zipmap=False (skl2onnx and onnxmltools: options={'zipmap': False})"
        elif node.type.startswith("seq(tensor("):
            remedy = "; to have it, end the graph with ConcatFromSequence, which makes one tensor of it"
        self.notes.append(f"output '{node.name}' is left out: it is a {node.type}, which no protocol carries{remedy}")

    def _with_defaults(self, nodes: Sequence[Any], file: OnnxFile | None) -> list[Found]:
        """Inputs that may be left out: initializers that a caller may override (ONNX IR 4)."""
        if file is None or not nodes:
            return []
        optional = [found for node in nodes if (found := _found(node)) is not None and found.shape is not None]
        named = [
            Found(one.name, one.dtype, one.shape, default=data)
            for one in optional[: MOST_DEFAULTS + 1]
            if one.shape is not None and element_count(one.shape) * max(one.dtype.itemsize, 1) <= MOST_DEFAULT_BYTES
            if (data := file.default(TensorSpec(one.name, one.dtype, one.shape))) is not None
        ]
        if len(optional) > MOST_DEFAULTS:
            self.notes.append(f"{len(optional)} inputs with defaults are not served: so many are an exporter's weights")
            return []
        return named


def _found(node: Any) -> Found | None:
    """None for a type that is no dense tensor of a standard type."""
    if node.type not in _DTYPES:
        return None
    sizes = node.shape or ()
    shape = tuple(size if isinstance(size, int) and size >= 0 else -1 for size in sizes)
    axes = tuple(size if isinstance(size, str) else "" for size in sizes)
    dtype = _DTYPES[node.type]
    text = dtype is DType.BYTES  # of bytes it would take their repr()
    return Found(node.name, dtype, shape, text, axes if any(axes) else ())

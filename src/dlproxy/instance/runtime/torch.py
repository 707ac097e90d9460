"""PyTorch models: TorchScript files and programs saved by torch.export.save, on the CPU or one CUDA GPU.

Called by runtime/formats.py to load and by instance/batch.py to run. Not aware of: threads other than torch's own.
"""

import inspect
import io
import json
import logging
import re
import threading
import warnings
import zipfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Literal

import numpy as np
import torch
from msgspec import Struct
from numpy.typing import NDArray

from dlproxy.instance.runtime import ModelError
from dlproxy.instance.runtime.declared import EXAMPLE, Found, check_outputs, one_line, refine, signature_of, written
from dlproxy.instance.runtime.devices import CPU, gpu_of
from dlproxy.message import DType, Signature, TensorSpec

if TYPE_CHECKING:
    from dlproxy.instance.integrity.files import ModelFiles

_DTYPES = {
    torch.bool: DType.BOOL,
    torch.uint8: DType.UINT8,
    torch.uint16: DType.UINT16,
    torch.uint32: DType.UINT32,
    torch.uint64: DType.UINT64,
    torch.int8: DType.INT8,
    torch.int16: DType.INT16,
    torch.int32: DType.INT32,
    torch.int64: DType.INT64,
    torch.float16: DType.FP16,
    torch.bfloat16: DType.BF16,
    torch.float32: DType.FP32,
    torch.float64: DType.FP64,
}
# What torch.export.save writes for a network of plain tensors. Anything else is compiled code or an older layout.
_MEMBERS = re.compile(
    r"archive_format|archive_version|byteorder|version|\.data/.*|\.format_version|\.storage_alignment|extra/.*|models/model\.json|"
    r"data/(weights|constants)/(model_(weights|constants)_config\.json|(weight|tensor)_\d+)|data/sample_inputs/model\.pt"
)
_NUMBERED = re.compile(r".+__([0-9]{1,4})")


class _Loaded(Struct):
    """A model as a function of tensors in the order of its inputs."""

    signature: Signature
    call: Callable[[list[Any]], Any]


class TorchRuntime:
    """One model. `threads`: torch's intra-op threads while it runs; the setting is the process's, so it is made for each run.

    `device`: "auto", "cpu", "cuda" or "cuda:N"; the attribute says which it is. `gpu_memory_limit_mb` holds for all models of
    the process on that GPU. `inputs`, `outputs`: the configuration's, without which TorchScript has no shapes. `files`: of the
    model, to be loaded from memory. `pickle`: code in it may run when it is read.
    """

    def __init__(
        self,
        path: Path,
        *,
        kind: Literal["torchscript", "torch_export", "torch_pickle"],
        threads: int,
        device: str = CPU,
        gpu_memory_limit_mb: int = 0,
        inputs: Sequence[TensorSpec] = (),
        outputs: Sequence[TensorSpec] = (),
        files: "ModelFiles | None" = None,
        pickle: bool = False,
    ) -> None:
        self._threads = threads
        on = _device(path, device)
        if gpu_memory_limit_mb and on.type == "cuda":
            _limit_memory(on, gpu_memory_limit_mb * 2**20)
        self.device = str(on)
        self._run_on = _Cuda(on).run if on.type == "cuda" else _run_on_cpu
        try:
            with path.open("rb") if files is None else io.BytesIO(files.model) as stream:
                if kind == "torch_export":
                    loaded = _load_program(stream, on, inputs, outputs, pickle=pickle)
                else:
                    module = _read_script(stream, on) if kind == "torchscript" else _read_pickle(stream, on, pickle=pickle)
                    loaded = _as_declared(*module, inputs, outputs)
        except ModelError as error:
            raise ModelError(f"{path}: {error}") from None
        self.signature = loaded.signature
        self._call = loaded.call
        self._input_bf16 = [spec.dtype is DType.BF16 for spec in self.signature.inputs]

    def run(self, inputs: Sequence[NDArray[np.generic]]) -> list[NDArray[np.generic]]:
        """One forward pass. Arrays in signature order; BF16 as uint16 bit patterns. Takes concurrent calls."""
        if torch.get_num_threads() != self._threads:
            torch.set_num_threads(self._threads)
        tensors = [_tensor(array, bf16) for array, bf16 in zip(inputs, self._input_bf16, strict=True)]
        try:
            with torch.inference_mode():
                outputs = self._run_on(self._call, tensors)
        except Exception as error:
            raise RuntimeError(one_line(error)) from error
        arrays = {name: _array(tensor) for name, tensor in outputs.items()}
        return check_outputs(self.signature, arrays)


class _Cuda:
    """Batches on a GPU: each thread has a stream, and copies go through pinned memory, so that two batches overlap."""

    def __init__(self, device: Any) -> None:
        self._device = device
        self._of_thread = threading.local()

    def run(self, call: Callable[[list[Any]], Any], tensors: list[Any]) -> dict[str, Any]:
        stream = getattr(self._of_thread, "stream", None)
        if stream is None:
            stream = self._of_thread.stream = torch.cuda.Stream(self._device)
        with torch.cuda.stream(stream):
            there = [tensor.pin_memory().to(self._device, non_blocking=True) for tensor in tensors]
            outputs = _by_name(call(there))
            here = {
                name: torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True).copy_(tensor, non_blocking=True)
                for name, tensor in outputs.items()
            }
        stream.synchronize()
        return here


def _run_on_cpu(call: Callable[[list[Any]], Any], tensors: list[Any]) -> dict[str, Any]:
    return _by_name(call(tensors))


def _read_script(stream: BinaryIO, device: Any) -> tuple[Any, list[str], set[str]]:
    """The module, the names of its arguments, and those that it must get."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # deprecated since torch 2.10, and it has no other loader
            module = torch.jit.load(stream, map_location=device).eval()
        arguments = [argument.name for argument in module.forward.schema.arguments[1:]]
        required = {argument.name for argument in module.forward.schema.arguments[1:] if not argument.has_default_value()}
    except Exception as error:  # RuntimeError, AttributeError for a module without forward, and others
        raise ModelError(f"not TorchScript that torch {torch.__version__} can load: {one_line(error)}") from error
    return module, arguments, required


def _read_pickle(stream: BinaryIO, device: Any, *, pickle: bool) -> tuple[Any, list[str], set[str]]:
    """The same of a module that torch.save has written. Whoever wrote it may run anything here."""
    if not pickle:
        raise ModelError("it is a pickle, and reading a pickle runs code")
    try:
        module = torch.load(stream, map_location=device, weights_only=False)  # nosec B614 # the operator has allowed it
    except Exception as error:  # whatever the code in it raises
        raise ModelError(f"not a module that torch {torch.__version__} can load: {one_line(error)}") from error
    if not isinstance(module, torch.nn.Module):
        raise ModelError(f"it holds a {type(module).__name__}, not a module: torch.save(model, file) writes one")
    parameters = inspect.signature(module.forward).parameters.values()
    return module.eval(), [one.name for one in parameters], {one.name for one in parameters if one.default is one.empty}


def _as_declared(
    module: Any, arguments: list[str], required: set[str], inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec]
) -> _Loaded:
    """TorchScript says how its inputs are called, but neither their element types nor any shape."""
    if not inputs or not outputs:
        example = ", ".join(f"{name} = {EXAMPLE!r}" for name in arguments)
        raise ModelError(
            f"TorchScript holds no shapes: declare inputs and outputs in the configuration, like inputs = {{ {example} }}"
        )
    declared_inputs = [spec.name for spec in inputs]
    names = _arguments_meant(declared_inputs, arguments)
    if len(set(names)) < len(names) or not required <= set(names) <= set(arguments):
        raise ModelError(f"the configuration's inputs are {', '.join(declared_inputs)}; forward takes {', '.join(arguments)}")
    _no_text((*inputs, *outputs))
    declared = [spec.name for spec in outputs]

    def call(tensors: list[Any]) -> Any:
        result = module(**dict(zip(names, tensors, strict=True)))
        if isinstance(result, torch.Tensor):
            result = (result,)
        if isinstance(result, Mapping):
            return result
        if len(result) != len(declared):
            raise ValueError(f"forward gave {len(result)} outputs where the configuration declares {', '.join(declared)}")
        return dict(zip(declared, result, strict=True))

    return _Loaded(signature_of(inputs, outputs, platform="pytorch_libtorch"), call)


def _arguments_meant(declared: list[str], arguments: list[str]) -> list[str]:
    """Those of these names; where none is an argument's, "INPUT__0" is the first, as in Triton."""
    numbers = [_NUMBERED.fullmatch(name) for name in declared]
    if set(declared) & set(arguments) or not all(numbers):
        return declared
    places = [int(match[1]) for match in numbers if match is not None]
    return [arguments[place] if place < len(arguments) else name for place, name in zip(places, declared, strict=True)]


def _load_program(
    stream: BinaryIO, device: Any, inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec], *, pickle: bool
) -> _Loaded:
    """An exported program knows its element types and shapes; an axis that was exported as dynamic is open."""
    logger = logging.getLogger("torch.export")
    level = logger.level
    logger.setLevel(logging.CRITICAL)  # it logs tracebacks of what it then raises
    try:
        if not pickle:
            _refuse_code(stream)
            stream.seek(0)
        program = torch.export.load(stream)  # by name it would insist on the ending .pt2
        program = _moved(program, device)
        found_inputs, found_outputs, batched = _found(program)
        module = program.module()
        structure = program.call_spec.in_spec
        places, whole = _places(program)
    except ModelError:
        raise
    except Exception as error:
        raise ModelError(f"not a program that torch {torch.__version__} can load: {one_line(error)}") from error
    finally:
        logger.setLevel(level)
    signature = signature_of(
        refine(found_inputs, inputs, "inputs"), refine(found_outputs, outputs, "outputs"), platform="pytorch_export"
    )
    signature = Signature(
        signature.inputs, signature.outputs, batched=signature.batched and batched, platform=signature.platform
    )

    def call(tensors: list[Any]) -> Any:
        leaves = list(whole)
        for place, tensor in zip(places, tensors, strict=True):
            leaves[place] = tensor
        args, kwargs = structure.unflatten(leaves)
        return module(*args, **kwargs)

    return _Loaded(signature, call)


def _refuse_code(stream: BinaryIO) -> None:
    """Refuse an archive with pickles or compiled code in it: torch.export.load would run them. Raises ModelError.

    This closes the plainest doors, not all: torch evaluates the size expressions in a program, so load only what you trust.
    """
    with zipfile.ZipFile(stream) as archive:
        names = archive.namelist()
        members = {name.partition("/")[2]: name for name in names}
        if len(members) != len(names):
            raise ModelError("its archive holds two members of one name")
        for member in members:
            if not _MEMBERS.fullmatch(member):
                raise ModelError(
                    f"its archive holds {member}, which may be code; save plain tensors with this torch's export.save"
                )
        for kind in ("weights", "constants"):
            config = json.loads(archive.read(members[f"data/{kind}/model_{kind}_config.json"]))
            pickled = [name for name, payload in config["config"].items() if payload["use_pickle"]]
            if pickled:
                raise ModelError(f"{', '.join(pickled)} is pickled, and reading a pickle runs code; save plain tensors")
        sample = archive.read(members["data/sample_inputs/model.pt"])
    if sample:
        try:
            torch.load(io.BytesIO(sample), weights_only=True)
        except Exception as error:
            raise ModelError(f"its example inputs are a pickle of more than tensors: {one_line(error)}") from error


def _moved(program: Any, device: Any) -> Any:
    if device.type == "cpu" and all(tensor.device.type == "cpu" for tensor in program.state_dict.values()):
        return program
    from torch.export.passes import move_to_device_pass

    return move_to_device_pass(program, device)


def _places(program: Any) -> tuple[list[int], list[Any]]:
    """Where tensors stand among the arguments, and all arguments: what was no tensor when it was exported is fixed."""
    nodes = {node.name for node in program.graph.nodes}
    arguments = list(program.graph_signature.user_inputs)
    return [place for place, argument in enumerate(arguments) if argument in nodes], arguments


def _found(program: Any) -> tuple[list[Found], list[Found], bool]:
    """Inputs, outputs, and whether axis 0 of all of them is one and the same dynamic size."""
    nodes = {node.name: node.meta.get("val") for node in program.graph.nodes}
    inputs = {name: nodes[name] for name in program.graph_signature.user_inputs if name in nodes}
    flat = [nodes.get(name, name) for name in program.graph_signature.user_outputs]
    outputs = _by_name(program.call_spec.out_spec.unflatten(flat))
    sizes = set()
    found: tuple[list[Found], list[Found]] = ([], [])
    for into, values in zip(found, (inputs, outputs), strict=True):
        for name, value in values.items():
            if not isinstance(value, torch.Tensor) or value.dtype not in _DTYPES:
                what = value.dtype if isinstance(value, torch.Tensor) else f"a {type(value).__name__}"
                raise ModelError(f"'{name}' is {what}; dlproxy serves dense tensors of the standard types")
            shape = tuple(size if isinstance(size, int) else -1 for size in value.shape)
            into.append(Found(str(name), _DTYPES[value.dtype], shape))
            sizes.add(str(value.shape[0]) if shape else "")
    return (*found, len(sizes) == 1)


def _by_name(outputs: Any) -> dict[str, Any]:
    """Outputs by name: a dict's keys, "output" for a single tensor, "output_0" and so on for several."""
    if isinstance(outputs, Mapping):
        return {str(name): tensor for name, tensor in outputs.items()}
    if isinstance(outputs, tuple | list):
        return {f"output_{number}": tensor for number, tensor in enumerate(outputs)}
    return {"output": outputs}


def _tensor(array: NDArray[np.generic], bf16: bool) -> Any:
    """A copy, since a model may write to its inputs, and these are the bytes of requests that may have to run again."""
    return torch.from_numpy(array.copy()).view(torch.bfloat16) if bf16 else torch.from_numpy(array.copy())


def _array(tensor: Any) -> NDArray[np.generic]:
    if not isinstance(tensor, torch.Tensor):
        raise ValueError(f"an output is a {type(tensor).__name__}, not a tensor")
    bare = tensor.detach()  # a parameter given as an output wants gradients, which numpy arrays cannot have
    array: NDArray[np.generic] = (bare.contiguous().view(torch.uint16) if bare.dtype is torch.bfloat16 else bare).numpy()
    return array


def _no_text(specs: Sequence[TensorSpec]) -> None:
    for spec in specs:
        if spec.dtype is DType.BYTES:
            raise ModelError(f"'{spec.name}' is declared as {written(spec)}; torch has no tensors of bytes or text")


def _device(path: Path, device: str) -> Any:
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    try:
        gpu = gpu_of(device, count, f"torch {torch.__version__}")
    except ModelError as error:
        raise ModelError(f"{path}: {error}") from None
    return torch.device(CPU if gpu is None else f"cuda:{gpu}")


def _limit_memory(device: Any, limit_bytes: int) -> None:
    """Of what torch's allocator takes; CUDA itself takes some hundred MiB besides."""
    whole = torch.cuda.get_device_properties(device).total_memory
    torch.cuda.set_per_process_memory_fraction(min(limit_bytes / whole, 1.0), device)

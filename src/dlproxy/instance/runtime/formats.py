"""Which runtime a model's path means, by its name and by what is in it; and that runtime, imported only when it is wanted.

Called by whatever loads models. Not aware of: how a model runs. Imports no framework to decide.
"""

import difflib
import importlib
import io
import os
import zipfile
from collections.abc import Mapping
from functools import cache, partial
from pathlib import Path
from types import MappingProxyType
from typing import Any, BinaryIO

import msgspec

from dlproxy.config import SLEEP, python_place
from dlproxy.config.paths import RUNTIMES, plugged_in, scheme_of
from dlproxy.instance.integrity import Trust
from dlproxy.instance.integrity.encryption import is_encrypted
from dlproxy.instance.integrity.files import ModelFiles, read_files
from dlproxy.instance.integrity.memory_folder import MemoryFolder
from dlproxy.instance.runtime import Format, ModelError, Order, Runtime
from dlproxy.instance.runtime.archives import refuse_unsafe
from dlproxy.instance.runtime.declared import parse_specs
from dlproxy.instance.runtime.devices import CPU
from dlproxy.instance.runtime.plugins import plugin
from dlproxy.instance.runtime.specs import checked

EMPTY: Mapping[str, str] = MappingProxyType({})
ANY = Trust()
SUFFIXES = {
    ".onnx": "an ONNX model",
    ".pt2": "a program saved by torch.export.save",
    ".pt": "TorchScript",
    ".ts": "TorchScript",
    ".jit": "TorchScript",
    ".torchscript": "TorchScript",
    ".keras": "a Keras model",
    ".py": "a Python class, as file.py:MyModel",
}
_SAME = (".ts", ".jit", ".torchscript", ".py")  # as others, which the list of all names
_TORCH = (".pt", ".pt2", ".pth", ".ts", ".jit", ".torchscript", ".traced", ".scripted", ".ptc", ".ptl")  # told apart inside
_CLASS = "write a Python class that loads it (path file.py:MyModel)"
_OTHERS = {
    ".safetensors": f"weights without a network: {_CLASS}",
    ".ckpt": f"weights without a network: {_CLASS}",
    ".bin": f"weights without a network: {_CLASS}",
    ".h5": "Keras' old format, or weights alone: load it in Keras and save it as .keras",
    ".hdf5": "Keras' old format, or weights alone: load it in Keras and save it as .keras",
    ".pb": "part of a SavedModel: give the folder that holds saved_model.pb",
    ".tflite": "for LiteRT, which dlproxy does not run: export a SavedModel or ONNX",
    ".engine": "for TensorRT, which dlproxy does not run: export ONNX",
    ".plan": "for TensorRT, which dlproxy does not run: export ONNX",
    ".gguf": "for llama.cpp, which dlproxy does not run: serve it there",
    ".pkl": f"a pickle, which runs code when it is read: {_CLASS}",
    ".pickle": f"a pickle, which runs code when it is read: {_CLASS}",
    ".joblib": f"a pickle, which runs code when it is read: {_CLASS}",
}


def format_of(path: str, *, pickle: bool = False, files: ModelFiles | None = None) -> Format:
    """The kind of model at this path. Raises ModelError for one that is not there, or that dlproxy cannot run.

    `pickle`: models that run code when they are read may be loaded. `files`: what is looked into instead of what lies there.
    """
    if path.startswith(SLEEP):
        return FORMATS["sleep"]
    if python_place(path) is not None:
        return FORMATS["python"]
    scheme = scheme_of(path)
    if scheme:
        return _plugged_in(scheme, f"{path}: nothing that is installed runs models at {scheme}://")
    file = Path(path)
    if not file.exists():
        raise ModelError(f"model file {path} does not exist{_neighbour(file)}")
    suffix = file.suffix.lower()
    if file.is_dir():
        if (file / "saved_model.pb").exists():
            return FORMATS["saved_model"]
        return _plugged_in(suffix, _why_no_folder(file))
    if suffix in (".onnx", ".keras"):
        return FORMATS[suffix.removeprefix(".")]
    if suffix in _TORCH:
        return FORMATS[_torch_kind(file, None if files is None else files.model, pickle=pickle)]
    if suffix in _OTHERS:
        return _plugged_in(suffix, f"{path} is {_OTHERS[suffix]}")
    near = difflib.get_close_matches(suffix, SUFFIXES, n=1, cutoff=0.7) if suffix else []
    hint = f"did you mean {near[0]}?" if near else f"it takes {known()}"
    ending = f"the ending {suffix!r}" if suffix else "no ending"
    return _plugged_in(suffix, f"{path}: dlproxy knows no models with {ending}; {hint}")


def _plugged_in(name: str, otherwise: str) -> Format:
    """Another package's, if there is one of that name. Raises ModelError, which says `otherwise` if there is none."""
    found = plugin(RUNTIMES, name, Format) if name else None
    if found is None:
        raise ModelError(otherwise)
    return found


@cache
def suffixes() -> frozenset[str]:
    """Of all models that are one file, or a folder with such a name."""
    return frozenset([*SUFFIXES, *_TORCH, *(name for name in plugged_in(RUNTIMES) if name.startswith("."))])


def known() -> str:
    """What dlproxy runs, for messages."""
    files = "; ".join(f"{suffix}, {words}" for suffix, words in SUFFIXES.items() if suffix not in _SAME)
    others = [name if name.startswith(".") else f"{name}://" for name in plugged_in(RUNTIMES)]
    added = f"; {', '.join(others)} of installed packages" if others else ""
    return f"{files}; the folder of a SavedModel; a Python class, as file.py:MyModel or my_module:MyModel{added}"


def open_runtime(
    path: str,
    *,
    threads: int = 1,
    device: str = CPU,
    gpu_memory_limit_mb: int = 0,
    max_batch: int = 256,
    inputs: Mapping[str, str] = EMPTY,
    outputs: Mapping[str, str] = EMPTY,
    graphs: str = "",
    trust: Trust = ANY,
) -> Runtime:
    """Load the model. `inputs`, `outputs`: what the configuration declares, as {"x": "FP32[-1,784]"}. Raises ModelError.

    `device`, `gpu_memory_limit_mb`, `max_batch`: as in the configuration, but of several devices one. `trust`: of the server.
    `graphs`: as in Order.
    Takes plain data only, so that a spec can name it: PythonSpec("dlproxy.instance.runtime.formats:open_runtime", options).
    """
    files = read_files(path, trust)
    found = format_of(path, pickle=trust.pickle, files=files)
    try:
        declared = parse_specs(inputs), parse_specs(outputs)
    except ModelError as error:
        raise ModelError(f"{path}: {error}") from None
    order = Order(
        path=path,
        threads=threads,
        device=device,
        gpu_memory_limit_mb=gpu_memory_limit_mb,
        max_batch=max_batch,
        inputs=declared[0],
        outputs=declared[1],
        files=files,
        pickle=trust.pickle,
        graphs=graphs,
    )
    if FORMATS.get(found.name) is found:
        return found.open(order)
    try:
        if files is not None:
            return _opened_in_memory(found, order, files)
        return checked(found.open(order), f"{path}: the installed format {found.name}")
    except ModelError:
        raise
    except Exception as error:
        raise ModelError(f"{path}: the installed format {found.name} raised {type(error).__name__}: {error}") from error


class _InMemory:
    """Another package's runtime, with the memory that it was loaded from, and may yet read."""

    def __init__(self, runtime: Runtime, folder: MemoryFolder) -> None:
        self._runtime, self._folder = runtime, folder

    def __getattr__(self, name: str) -> Any:
        return getattr(self._runtime, name)

    def close(self) -> None:
        close = getattr(self._runtime, "close", None)
        if close is not None:
            close()
        self._folder.close()


def _opened_in_memory(found: Format, order: Order, files: ModelFiles) -> Runtime:
    """By a path that leads to what was checked."""
    folder = MemoryFolder(files.data)
    order = msgspec.structs.replace(order, path=str(folder.path / files.main), files=None)
    runtime: Any = _InMemory(
        checked(found.open(order), f"{files.folder / files.main}: the installed format {found.name}"), folder
    )
    made: Runtime = runtime
    return made


def _open_onnx(order: Order) -> Runtime:
    runtime: Runtime = _module("onnx", order).OnnxRuntime(
        Path(order.path), max_batch=order.max_batch, files=order.files, graphs=order.graphs, **_placed(order)
    )
    return runtime


def _open_torch(order: Order, kind: str) -> Runtime:
    runtime: Runtime = _module("torch", order, "torch").TorchRuntime(
        Path(order.path), kind=kind, files=order.files, pickle=order.pickle, **_placed(order)
    )
    return runtime


def _open_tensorflow(order: Order, kind: str) -> Runtime:
    if kind == "keras" and order.files is not None and order.files.secret:
        raise ModelError(
            f"{order.path} is encrypted, but Keras unpacks parts of .keras files to disk: encrypt what model.export() writes"
        )
    module = _module("tensorflow", order, "tensorflow")
    runtime: Runtime = module.TensorFlowRuntime(
        Path(order.path), kind=kind, files=order.files, pickle=order.pickle, **_placed(order)
    )
    return runtime


def _open_python(order: Order) -> Runtime:
    _stay(
        order,
        "a Python class, which chooses by itself; in a process of its own (run = 'process') it sees that GPU alone",
    )
    if order.gpu_memory_limit_mb:
        raise ModelError(f"{order.path}: gpu_memory_limit_mb cannot bind a Python class; limit its framework in load()")
    runtime: Runtime = _module("python", order).PythonRuntime(
        order.path, inputs=order.inputs, outputs=order.outputs, files=order.files
    )
    return runtime


def _open_sleep(order: Order) -> Runtime:
    if order.inputs or order.outputs:
        raise ModelError(f"{order.path} says its own inputs and outputs; take them out of the configuration")
    _stay(order, "a model that only takes time; omit it")
    runtime: Runtime = _module("sleep", order).SleepRuntime(order.path)
    return runtime


FORMATS: Mapping[str, Format] = {
    format.name: format
    for format in (
        Format(name="onnx", open=_open_onnx, apart=False, threads_pay=True),
        Format(name="torchscript", open=partial(_open_torch, kind="torchscript"), threads_pay=True),
        Format(name="torch_export", open=partial(_open_torch, kind="torch_export"), threads_pay=True),
        Format(name="torch_pickle", open=partial(_open_torch, kind="torch_pickle"), threads_pay=True),
        Format(name="saved_model", open=partial(_open_tensorflow, kind="saved_model")),
        Format(name="keras", open=partial(_open_tensorflow, kind="keras")),
        Format(name="python", open=_open_python, finds_device=True),
        Format(name="sleep", open=_open_sleep, apart=False),
    )
}


def _placed(order: Order) -> dict[str, Any]:
    names = ("threads", "device", "gpu_memory_limit_mb", "inputs", "outputs")
    return {name: getattr(order, name) for name in names}


def _stay(order: Order, what: str) -> None:
    if order.device not in ("auto", CPU):
        raise ModelError(f"{order.path}: device = {order.device!r} does not move {what}")


def _module(name: str, order: Order, extra: str = "") -> Any:
    """One of ours, with the framework that it needs. Raises ModelError if that is not there."""
    try:
        return importlib.import_module(f"dlproxy.instance.runtime.{name}")
    except ImportError as error:
        if not extra:
            raise
        if isinstance(error, ModuleNotFoundError) and error.name in (extra, "keras"):
            raise ModelError(f"{order.path} needs {extra}, which is not installed: pip install 'dlproxy[{extra}]'") from None
        raise ModelError(f"{order.path} needs {extra}, which is installed but cannot be imported: {error}") from error


def _why_no_folder(folder: Path) -> str:
    if (folder / "saved_model.pbtxt").exists():
        return f"{folder} is a SavedModel as text; dlproxy takes one with saved_model.pb"
    inside = sorted(one for one in folder.iterdir() if one.suffix.lower() in SUFFIXES or (one / "saved_model.pb").exists())
    hint = f"; did you mean {inside[0]}?" if inside else f"; dlproxy takes {known()}"
    return f"{folder} is a directory without saved_model.pb{hint}"


def _torch_kind(file: Path, data: bytes | None, *, pickle: bool) -> str:
    """TorchScript and exported programs are zip archives, told apart by their members; what torch.save writes is refused.

    `data`: of the file, if it is in memory. What is encrypted shows its kind when it is opened; all of torch's run alike.
    """
    with file.open("rb") if data is None else io.BytesIO(data) as stream:
        start = stream.read(16)
        return "torchscript" if is_encrypted(start) else _kind_in(file, stream, start, pickle=pickle)


def _kind_in(file: Path, stream: BinaryIO, start: bytes, *, pickle: bool) -> str:
    try:
        with zipfile.ZipFile(stream) as archive:
            refuse_unsafe(archive, stream.seek(0, os.SEEK_END))
            members = {name.partition("/")[2] or name for name in archive.namelist()}
    except ModelError as error:
        raise ModelError(f"{file}: {error}") from None
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError) as error:  # each of which damaged archives raise
        if start[:1] == b"\x80":  # the first byte of every pickle since protocol 2
            if pickle:
                return "torch_pickle"
            raise ModelError(f"{file} is a pickle; {_no_pickles()}") from None
        raise ModelError(f"{file} is not a model that torch can load: it is not a zip archive ({error})") from None
    if "archive_format" in members:
        return "torch_export"
    if "constants.pkl" in members:
        return "torchscript"
    if "data.pkl" in members and pickle:
        return "torch_pickle"
    if "data.pkl" in members:
        raise ModelError(f"{file} was written by torch.save and holds a pickle; {_no_pickles()}")
    if "serialized_exported_program.json" in members or "version" in members:
        raise ModelError(f"{file} was saved by a torch before 2.8, whose format may hold pickles: load it there, save it anew")
    raise ModelError(f"{file} is a zip archive, but neither TorchScript nor a program saved by torch.export.save")


def _no_pickles() -> str:
    return (
        f"reading it would run whatever code it names: save it with torch.export.save, or {_CLASS}, or if you trust whoever "
        'wrote it, set [integrity] pickle = "allow"'
    )


def _neighbour(file: Path) -> str:
    if not file.parent.is_dir():
        return f" (nor does the folder {file.parent})"
    near = difflib.get_close_matches(file.name, [one.name for one in file.parent.iterdir()], n=1)
    return f"; did you mean {file.with_name(near[0])}?" if near else ""

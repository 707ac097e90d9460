"""Which runtime a model's path means, by its name and by what is in it; and that runtime, imported only when it is wanted.

Called by whatever loads models. Not aware of: how a model runs. Imports no framework to decide.
"""

import difflib
import importlib
import zipfile
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

from dlproxy.config import SLEEP, python_place
from dlproxy.instance.runtime import ModelError, Runtime
from dlproxy.instance.runtime.declared import parse_specs
from dlproxy.instance.runtime.devices import CPU

Kind = Literal["onnx", "torchscript", "torch_export", "saved_model", "keras", "python", "sleep"]

EMPTY: Mapping[str, str] = MappingProxyType({})
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
_RUNTIMES: dict[Kind, tuple[str, str]] = {  # the module, and the extra that it needs
    "onnx": ("onnx", ""),
    "torchscript": ("torch", "torch"),
    "torch_export": ("torch", "torch"),
    "saved_model": ("tensorflow", "tensorflow"),
    "keras": ("tensorflow", "tensorflow"),
    "python": ("python", ""),
    "sleep": ("sleep", ""),
}

_IMMOVABLE = {
    "python": "a Python class, which chooses by itself; in a process of its own (run = 'process') it sees that GPU alone",
    "sleep": "a model that only takes time; omit it",
}


def runtime_kind(path: str) -> Kind:
    """The kind of model at this path. Raises ModelError for one that is not there, or that dlproxy cannot run."""
    if path.startswith(SLEEP):
        return "sleep"
    if python_place(path) is not None:
        return "python"
    file = Path(path)
    if not file.exists():
        raise ModelError(f"model file {path} does not exist{_neighbour(file)}")
    if file.is_dir():
        return _folder_kind(file)
    suffix = file.suffix.lower()
    if suffix == ".onnx":
        return "onnx"
    if suffix == ".keras":
        return "keras"
    if suffix in _TORCH:
        return _torch_kind(file)
    if suffix in _OTHERS:
        raise ModelError(f"{path} is {_OTHERS[suffix]}")
    near = difflib.get_close_matches(suffix, SUFFIXES, n=1, cutoff=0.7) if suffix else []
    hint = f"did you mean {near[0]}?" if near else f"it takes {known()}"
    raise ModelError(f"{path}: dlproxy knows no models with {f'the ending {suffix!r}' if suffix else 'no ending'}; {hint}")


def known() -> str:
    """What dlproxy runs, for messages."""
    files = "; ".join(f"{suffix}, {words}" for suffix, words in SUFFIXES.items() if suffix not in _SAME)
    return f"{files}; the folder of a SavedModel; a Python class, as file.py:MyModel or my_module:MyModel"


def open_runtime(
    path: str,
    *,
    threads: int = 1,
    device: str = CPU,
    gpu_memory_limit_mb: int = 0,
    max_batch: int = 256,
    inputs: Mapping[str, str] = EMPTY,
    outputs: Mapping[str, str] = EMPTY,
) -> Runtime:
    """Load the model. `inputs`, `outputs`: what the configuration declares, as {"x": "FP32[-1,784]"}. Raises ModelError.

    `device`, `gpu_memory_limit_mb`, `max_batch`: as in the configuration, but of several devices one.
    Takes plain data only, so that a spec can name it: PythonSpec("dlproxy.instance.runtime.formats:open_runtime", options).
    """
    kind = runtime_kind(path)
    try:
        declared = {"inputs": parse_specs(inputs), "outputs": parse_specs(outputs)}
    except ModelError as error:
        raise ModelError(f"{path}: {error}") from None
    if (inputs or outputs) and kind == "sleep":
        raise ModelError(f"{path} says its own inputs and outputs; take them out of the configuration")
    if kind in ("sleep", "python") and device not in ("auto", CPU):
        raise ModelError(f"{path}: device = {device!r} does not move {_IMMOVABLE[kind]}")
    if kind == "python" and gpu_memory_limit_mb:
        raise ModelError(f"{path}: gpu_memory_limit_mb cannot bind a Python class; limit its framework in load()")
    module = _runtime_module(kind, path)
    placed: dict[str, Any] = {"threads": threads, "device": device, "gpu_memory_limit_mb": gpu_memory_limit_mb}
    runtime: Runtime
    if kind == "sleep":
        runtime = module.SleepRuntime(path)
    elif kind == "python":
        runtime = module.PythonRuntime(path, **declared)
    elif kind == "onnx":
        runtime = module.OnnxRuntime(Path(path), max_batch=max_batch, **placed, **declared)
    elif kind in ("torchscript", "torch_export"):
        runtime = module.TorchRuntime(Path(path), kind=kind, **placed, **declared)
    else:
        runtime = module.TensorFlowRuntime(Path(path), kind=kind, **placed, **declared)
    return runtime


def _runtime_module(kind: Kind, path: str) -> Any:
    name, extra = _RUNTIMES[kind]
    try:
        return importlib.import_module(f"dlproxy.instance.runtime.{name}")
    except ImportError as error:
        if not extra:
            raise
        if isinstance(error, ModuleNotFoundError) and error.name in (extra, "keras"):
            raise ModelError(f"{path} needs {extra}, which is not installed: pip install 'dlproxy[{extra}]'") from None
        raise ModelError(f"{path} needs {extra}, which is installed but cannot be imported: {error}") from error


def _folder_kind(folder: Path) -> Kind:
    if (folder / "saved_model.pb").exists():
        return "saved_model"
    if (folder / "saved_model.pbtxt").exists():
        raise ModelError(f"{folder} is a SavedModel as text; dlproxy takes one with saved_model.pb")
    inside = sorted(one for one in folder.iterdir() if one.suffix.lower() in SUFFIXES or (one / "saved_model.pb").exists())
    hint = f"; did you mean {inside[0]}?" if inside else f"; dlproxy takes {known()}"
    raise ModelError(f"{folder} is a directory without saved_model.pb{hint}")


def _torch_kind(file: Path) -> Kind:
    """TorchScript and exported programs are zip archives, told apart by their members; what torch.save writes is refused."""
    try:
        with zipfile.ZipFile(file) as archive:
            members = {name.partition("/")[2] or name for name in archive.namelist()}
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError) as error:  # each of which damaged archives raise
        with file.open("rb") as stream:
            if stream.read(2)[:1] == b"\x80":  # the first byte of every pickle since protocol 2
                raise ModelError(f"{file} is a pickle; {_no_pickles()}") from None
        raise ModelError(f"{file} is not a model that torch can load: it is not a zip archive ({error})") from None
    if "archive_format" in members:
        return "torch_export"
    if "constants.pkl" in members:
        return "torchscript"
    if "data.pkl" in members:
        raise ModelError(f"{file} was written by torch.save and holds a pickle; {_no_pickles()}")
    if "serialized_exported_program.json" in members or "version" in members:
        raise ModelError(f"{file} was saved by a torch before 2.8, whose format may hold pickles: load it there, save it anew")
    raise ModelError(f"{file} is a zip archive, but neither TorchScript nor a program saved by torch.export.save")


def _no_pickles() -> str:
    return f"reading it would run whatever code it names: save it with torch.export.save, or {_CLASS}"


def _neighbour(file: Path) -> str:
    if not file.parent.is_dir():
        return f" (nor does the folder {file.parent})"
    near = difflib.get_close_matches(file.name, [one.name for one in file.parent.iterdir()], n=1)
    return f"; did you mean {file.with_name(near[0])}?" if near else ""

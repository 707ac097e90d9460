"""Whatever a model comes as, as an ONNX file with an open batch axis that gives the same answers.

Called by search.py, in a process of its own: file.py:make runs the user's code. Not aware of: recipes, what is measured.
"""

import inspect
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from dlproxy.compress import CompressError
from dlproxy.compress.data import Dataset
from dlproxy.compress.recipe import Source
from dlproxy.instance.runtime import ModelError
from dlproxy.instance.runtime.declared import one_line
from dlproxy.message import TensorSpec
from dlproxy.tensors import NUMPY

if TYPE_CHECKING:
    from dlproxy.instance.runtime.tensorflow import TensorFlowRuntime

_ROWS = 8  # examples that an export is compared on
_OPSET = 17
_CLOSE = 1e-3  # of the largest answer: sums of float32 in another order
_KNOWN = "an .onnx, .pt2, .pt or .keras file, the folder of a SavedModel, or file.py:make, which returns a torch.nn.Module"


def to_onnx(model: str, folder: Path, examples: Dataset | None = None) -> Source:
    """ONNX files stay where they are, others are converted into `folder`. `examples`: a few rows, with which
    PyTorch's modules are traced; one may have its own, as the attribute example_inputs (tensor, tuple or dict). CompressError.
    """
    path = Path(model)
    place, colon, name = model.rpartition(":")
    if colon and place.endswith(".py") and name.isidentifier():
        return _with("train", _of_function, model, folder, examples)
    if not path.exists():
        raise CompressError(f"{model} does not exist; a model is {_KNOWN}")
    if path.is_dir() and (path / "saved_model.pb").is_file():
        return _with("tensorflow", _of_tensorflow, model, folder, examples)
    if path.suffix == ".onnx":
        return Source(path)
    converts = {".pt2": _of_program, ".pt": _of_script, ".pth": _of_script, ".keras": _of_tensorflow}
    convert = converts.get(path.suffix)
    if convert is None:
        hint = f"; name the function that makes it, like {model}:make" if path.suffix == ".py" else ""
        raise CompressError(f"{model} cannot be compressed{hint}; a model is {_KNOWN}")
    return _with("tensorflow" if path.suffix == ".keras" else "train", convert, model, folder, examples)


def _with(extra: str, convert: Callable[..., Source], model: str, folder: Path, examples: Dataset | None) -> Source:
    try:
        return convert(model, folder, examples)
    except ModuleNotFoundError as error:
        raise CompressError(f"{model} is converted with {error.name}; pip install 'dlproxy[compress,{extra}]'") from None
    except ModelError as error:
        raise CompressError(str(error)) from error


def _of_function(model: str, folder: Path, examples: Dataset | None) -> Source:
    import torch

    from dlproxy.compress.recipes.torch.export import export, flat
    from dlproxy.compress.recipes.torch.modules import made_by

    module = made_by(model)
    arguments = [one for one in inspect.signature(module.forward).parameters.values() if one.kind is not one.VAR_KEYWORD]
    names, tensors = _in_order([one.name for one in arguments], _own_examples(module) or _from(examples, model))
    skipped = [one.name for one in arguments[len(names) :] if one.default is one.empty and one.kind is not one.VAR_POSITIONAL]
    if skipped:
        raise CompressError(f"{model}: forward also takes {', '.join(skipped)}, of which there are no examples")
    try:
        with torch.no_grad():
            outputs = [name for name, _ in flat(module(*tensors))]
    except CompressError:
        raise
    except Exception as error:
        shapes = ", ".join(f"{name} {tuple(tensor.shape)}" for name, tensor in zip(names, tensors, strict=True))
        raise CompressError(f"{model} cannot take the examples ({shapes}): {one_line(error)}") from error
    path = folder / "original.onnx"
    export(module, path, tensors, inputs=names, outputs=outputs)
    return Source(path, model)


def _of_program(model: str, folder: Path, examples: Dataset | None) -> Source:
    import torch

    from dlproxy.compress.recipes.torch.export import export_program
    from dlproxy.instance.runtime.torch import TorchRuntime

    signature = TorchRuntime(Path(model), kind="torch_export", threads=1).signature  # refuses a file with code in it
    if not signature.batched:
        raise CompressError(f"{model} was exported for one batch size; export it with a dynamic first axis")
    program = torch.export.load(model)
    names = [spec.name for spec in signature.inputs]
    tensors = [torch.from_numpy(array) for array in _arrays(signature.inputs, examples)]
    path = folder / "original.onnx"
    export_program(program, path, tensors, inputs=names, outputs=[spec.name for spec in signature.outputs])
    return Source(path, model)


def _of_script(model: str, folder: Path, examples: Dataset | None) -> Source:
    import torch

    from dlproxy.compress.recipes.torch.export import export, flat

    try:
        module = torch.jit.load(model, map_location="cpu").eval()
        arguments = [one.name for one in module.forward.schema.arguments[1:]]
    except Exception as error:  # RuntimeError, AttributeError for a module without forward, and others
        raise CompressError(
            f"{model} is not TorchScript that torch {torch.__version__} can load ({one_line(error)}); if it holds "
            "weights alone, write a function that makes the module and loads them, and give file.py:make"
        ) from error
    names, tensors = _in_order(arguments, _from(examples, model))
    with torch.no_grad():
        outputs = [name for name, _ in flat(module(*tensors))]
    path = folder / "original.onnx"
    export(module, path, tensors, inputs=names, outputs=outputs)
    return Source(path)


def _own_examples(module: Any) -> dict[str, Any]:
    given = getattr(module, "example_inputs", None)
    if given is None or isinstance(given, dict):
        return given or {}
    tensors = given if isinstance(given, tuple | list) else (given,)
    return dict(zip(inspect.signature(module.forward).parameters, tensors, strict=False))


def _from(examples: Dataset | None, model: str) -> dict[str, Any]:
    """Floats as float32, which PyTorch's layers take."""
    import torch

    if examples is None or not len(examples):
        raise CompressError(f"{model} is traced with examples: give data, or let the module have example_inputs")
    arrays = {name: np.ascontiguousarray(array[:_ROWS]) for name, array in examples.inputs.items()}
    return {name: torch.from_numpy(one.astype("float32") if one.dtype == np.float64 else one) for name, one in arrays.items()}


def _in_order(arguments: Sequence[str], given: dict[str, Any]) -> tuple[list[str], list[Any]]:
    """The examples that are arguments, in their order, which must be the first ones. One alone may be called otherwise."""
    if len(given) == 1 and not set(given) & set(arguments) and arguments:
        return list(given), list(given.values())
    names = [name for name in arguments if name in given]
    if not names or names != list(arguments[: len(names)]) or len(names) < len(given):
        raise CompressError(f"the examples are {', '.join(given)}; forward takes {', '.join(arguments)}, in this order")
    return names, [given[name] for name in names]


def _of_tensorflow(model: str, folder: Path, examples: Dataset | None) -> Source:
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # else it reports what the processor can do
    from dlproxy.instance.runtime.tensorflow import TensorFlowRuntime

    runtime = TensorFlowRuntime(Path(model), kind="keras" if model.endswith(".keras") else "saved_model", threads=1)
    path = folder / "original.onnx"
    try:
        _convert(runtime, path)
    except ModuleNotFoundError:
        raise
    except Exception as error:  # tf2onnx's, TensorFlow's and ONNX's errors share no class
        raise CompressError(
            f"tf2onnx cannot convert {model} ({one_line(error)}); convert it where that works, and give the .onnx file"
        ) from error
    _compare(runtime, path, examples)
    return Source(path)


def _convert(runtime: "TensorFlowRuntime", path: Path) -> None:
    """Inputs and outputs keep the names under which the server knows them."""
    import onnx
    import tensorflow as tf
    import tf2onnx

    inputs, outputs = ([spec.name for spec in specs] for specs in (runtime.signature.inputs, runtime.signature.outputs))
    specs = [
        tf.TensorSpec([None if size < 0 else size for size in one.shape], NUMPY[one.dtype], one.name)
        for one in runtime.signature.inputs
    ]

    def forward(*tensors: Any) -> list[Any]:
        found = runtime.call(dict(zip(inputs, tensors, strict=True)))
        return [tf.identity(found[name]) for name in outputs]

    converted, _ = tf2onnx.convert.from_function(tf.function(forward), input_signature=specs, opset=_OPSET)
    new = dict(zip([one.name for one in converted.graph.output], outputs, strict=True))
    for value in converted.graph.output:
        value.name = new[value.name]
    for node in converted.graph.node:
        node.input[:] = [new.get(name, name) for name in node.input]
        node.output[:] = [new.get(name, name) for name in node.output]
    onnx.save(converted, path)


def _compare(runtime: "TensorFlowRuntime", path: Path, examples: Dataset | None) -> None:
    """Raises CompressError where the file answers otherwise than the model."""
    from dlproxy.instance.runtime.onnx import OnnxRuntime

    arrays = _arrays(runtime.signature.inputs, examples)
    converted = OnnxRuntime(path, threads=1)
    places = [[spec.name for spec in runtime.signature.inputs].index(spec.name) for spec in converted.signature.inputs]
    for rows in (len(arrays[0]), 1):
        some = [array[:rows] for array in arrays]
        got = converted.run([some[place] for place in places])
        for one, other in zip(runtime.run(some), got, strict=True):
            if one.shape != other.shape or not np.allclose(
                one, other, rtol=_CLOSE, atol=_CLOSE * np.max(np.abs(one), initial=1e-6)
            ):
                raise CompressError(f"{path.name}, which tf2onnx made, answers a batch of {rows} otherwise than the model")


def _arrays(specs: Sequence[TensorSpec], examples: Dataset | None) -> list[Any]:
    """A few of the examples, in the model's types; without any, small random numbers, and zeros for whole ones."""
    generator = np.random.default_rng(0)
    arrays = []
    for spec in specs:
        kind = NUMPY[spec.dtype]
        if examples is not None and spec.name in examples.inputs:
            arrays.append(np.ascontiguousarray(examples.inputs[spec.name][:_ROWS], kind))
            continue
        shape = [_ROWS, *(max(size, 1) for size in spec.shape[1:])]
        arrays.append(generator.random(shape).astype(kind) if kind.kind == "f" else np.zeros(shape, kind))
    return arrays

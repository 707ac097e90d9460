"""The module that a recipe trains: the user's own, or one read from the ONNX file; and examples as its tensors.

Called by the recipes here and by sources.py. Not aware of: how it is trained, what becomes of it.
"""

import importlib.util
import sys
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from msgspec import Struct
from msgspec.structs import replace
from onnx import numpy_helper

from dlproxy.compress import CompressError
from dlproxy.compress.data import Dataset
from dlproxy.compress.recipe import RecipeError, Source
from dlproxy.compress.recipes.torch.export import answers, export, flat, session, simplified
from dlproxy.compress.recipes.torch.graph import Read, Reader
from dlproxy.compress.recipes.torch.operators import OPERATORS
from dlproxy.instance.runtime.classes import located

LOOKED_AT = 32  # examples by which two models are compared
_CLOSE = 1e-3  # of the largest answer
_KINDS = {"tensor(float)": np.float32, "tensor(double)": np.float64, "tensor(int64)": np.int64, "tensor(int32)": np.int32}


class Trainable(Struct):
    """`module`: in evaluation mode. `inputs`, `outputs`: names of the ONNX file. `tensors`: all examples, in the order of
    `inputs`. `answers`: the original's first output for each of them. `lengths`: of each without its padding, where a mask says
    it and the original answers as well without; else None.
    """

    module: Any
    inputs: list[str]
    outputs: list[str]
    tensors: list[Any]
    answers: Any
    lengths: Any = None

    def rows(self, chosen: Any) -> list[Any]:
        """Inputs of some examples, no longer than the longest of them."""
        longest = None if self.lengths is None else int(self.lengths[chosen].max())
        return [tensor[chosen] if longest is None else tensor[chosen, :longest] for tensor in self.tensors]

    def save(self, module: Any, path: Path) -> None:
        """Write a candidate. Raises RecipeError if it cannot be, or answers in another form than the original."""
        some = [tensor[:LOOKED_AT] for tensor in self.tensors]
        with torch.no_grad():
            got = first(module.eval()(*some))
        if got.shape != self.answers[:LOOKED_AT].shape:
            raise RecipeError(f"the candidate answers in the shape {tuple(got.shape)}; {tuple(self.answers.shape)} is wanted")
        try:
            export(module, path, some, inputs=self.inputs, outputs=self.outputs)
        except CompressError as error:
            raise RecipeError(str(error)) from error


def trainable(source: Source, examples: Dataset) -> Trainable:
    """Raises RecipeError if there is no module, or it answers otherwise than the ONNX file."""
    inputs, outputs, tensors = _tensors(source.onnx, examples)
    if source.torch.endswith(".pt2") or not source.torch:
        module = read(simplified(source.onnx)).module
    else:
        module = made_by(source.torch)
    expected = answers(source.onnx, dict(zip(inputs, tensors, strict=True)))[0]
    with torch.no_grad():
        got = first(module(*[tensor[:LOOKED_AT] for tensor in tensors])).numpy()
    if got.shape != expected[:LOOKED_AT].shape or not _near(got, expected[:LOOKED_AT]):
        raise RecipeError("the module answers otherwise than the ONNX file, so what it learns would not hold for it")
    for parameter in module.parameters():
        parameter.requires_grad_(parameter.is_floating_point())
    return _measured(Trainable(module, inputs, outputs, tensors, torch.from_numpy(expected)))


def _measured(of: Trainable) -> Trainable:
    """With `lengths`, if an input is a mask: ones in each row, then zeros."""
    widths = {tensor.shape[1:2] for tensor in of.tensors}
    masks = [
        tensor
        for tensor in of.tensors
        if tensor.ndim == 2 and not tensor.is_floating_point() and torch.equal(tensor, _ones_first(tensor.sum(1), tensor))
    ]
    if len(widths) > 1 or not masks or int(masks[0].sum(1).min()) < 1:
        return of
    cut = replace(of, lengths=masks[0].sum(1))
    shortest = torch.argsort(cut.lengths, stable=True)[:LOOKED_AT]
    try:
        with torch.no_grad():
            got = first(of.module(*cut.rows(shortest)))
    except RuntimeError:  # it holds for one length alone
        return of
    expected = of.answers[shortest]
    return cut if got.shape == expected.shape and _near(got.numpy(), expected.numpy()) else of


def _ones_first(counts: Any, like: Any) -> Any:
    return (torch.arange(like.shape[1]) < counts[:, None]).to(like.dtype)


def read(model: onnx.ModelProto) -> Read:
    """The module of an ONNX graph. Raises RecipeError."""
    return Reader(model).read(model, OPERATORS)


def learnable(model: onnx.ModelProto) -> Read:
    """The same of one whose weights `write_back` can put back. Raises RecipeError."""
    found = read(model)
    names = Counter(origin.initializer for origin in found.origins.values())
    if shared := [name for name, count in names.items() if count > 1]:
        raise RecipeError(f"layers share {', '.join(shared)}, which would have to be learnt together")
    return found


def write_back(found: Read, model: onnx.ModelProto) -> None:
    """Put what was learnt into the graph, in the types that stand there."""
    initializers = {one.name: one for one in model.graph.initializer}
    for target, origin in found.origins.items():
        values = found.module.get_parameter(target).detach().numpy()
        there = initializers[origin.initializer]
        kind = numpy_helper.to_array(there).dtype
        if origin.scale is not None:
            values = np.clip(np.rint(values.astype(np.float64) / origin.scale + origin.zero), origin.low, origin.high)
        values = np.ascontiguousarray(values.T if origin.transposed else values, kind)
        there.CopyFrom(numpy_helper.from_array(values, origin.initializer))


def first(outputs: Any) -> Any:
    """The output that is learnt: the first."""
    return flat(outputs)[0][1]


def made_by(target: str) -> Any:
    """What the function gives that `target`, as file.py:make, names; it runs the file's code. Raises CompressError."""
    place, _, name = target.rpartition(":")
    file = Path(place).resolve()
    if not place.endswith(".py") or not name.isidentifier() or not file.is_file():
        raise CompressError(f"{target!r} names no function of a Python file that exists; write file.py:make")
    if str(file.parent) not in sys.path:
        sys.path.append(str(file.parent))
    spec = importlib.util.spec_from_file_location(f"dlproxy_source_{file.stem}", file)
    if spec is None or spec.loader is None:
        raise CompressError(f"{place} is not a Python file")
    loaded = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = loaded  # dataclasses and pickle look their module up
    try:
        spec.loader.exec_module(loaded)
        make: Callable[[], Any] | None = getattr(loaded, name, None)
        if not callable(make):
            raise CompressError(f"{place} has no function {name}")
        module = make()
    except CompressError:
        raise
    except (Exception, SystemExit) as error:
        raise CompressError(f"{target} raised {located(error, str(file))}") from error
    if not isinstance(module, torch.nn.Module):
        raise CompressError(f"{target} gave a {type(module).__name__}; it must return a torch.nn.Module")
    return module.eval()


def number(options: Mapping[str, Any], name: str, default: float, *, low: float, high: float) -> float:
    """An option of a recipe. Raises RecipeError."""
    value = options.get(name, default)
    if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
        raise RecipeError(f"option {name} = {value!r} is not understood; it is a number from {low:g} to {high:g}")
    return value


def _tensors(path: Path, examples: Dataset) -> tuple[list[str], list[str], list[Any]]:
    opened = session(path)
    inputs = [(one.name, one.type) for one in opened.get_inputs()]
    missing = [name for name, _ in inputs if name not in examples.inputs]
    if missing:
        raise RecipeError(f"the examples have no {', '.join(missing)}; they have {', '.join(examples.inputs)}")
    strange = [f"{name} is {kind}" for name, kind in inputs if kind not in _KINDS]
    if strange:
        raise RecipeError(f"{', '.join(strange)}; recipes that train take inputs of float and int alone")
    tensors = [torch.from_numpy(np.ascontiguousarray(examples.inputs[name], _KINDS[kind])) for name, kind in inputs]
    return [name for name, _ in inputs], [one.name for one in opened.get_outputs()], tensors


def _near(one: Any, other: Any) -> bool:
    return bool(np.allclose(one, other, rtol=_CLOSE, atol=_CLOSE * float(np.max(np.abs(other), initial=1e-6))))

"""Signatures that a person writes ("FP32[-1,784]"), and plain words for a model that does not keep to its own.

Called by runtime/python.py, torch.py, tensorflow.py. Not aware of: frameworks, files, who asked.
"""

import difflib
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

from dlproxy.instance.runtime import ModelError
from dlproxy.message import DType, Signature, TensorSpec, encodable, text_of
from dlproxy.tensors import NUMPY

EXAMPLE = "FP32[-1,784]"
_TEXT = re.compile(r"\s*(\w+)\s*\[([^\[\]]*)\]\s*")
_BY_NUMPY = {dtype: ours for ours, dtype in reversed(NUMPY.items())}  # reversed: uint16 is UINT16, although BF16 travels as one
_KERAS = "Exception encountered: "
_MOST_WORDS = 300  # characters of a framework's complaint; TorchScript's and TensorFlow's run to pages


class Found(Struct, frozen=True):
    """An input or output as a model file describes it; `shape` None where the file does not even fix the number of axes."""

    name: str
    dtype: DType
    shape: tuple[int, ...] | None


def parse_specs(texts: Mapping[str, str]) -> tuple[TensorSpec, ...]:
    """The specs of a configuration's `inputs` or `outputs`, in its order. Raises ModelError."""
    return tuple(parse_spec(name, text) for name, text in texts.items())


def parse_spec(name: str, text: str) -> TensorSpec:
    """A spec as text: an element type and a shape, -1 for any size, "FP32[]" for a scalar. Raises ModelError."""
    match = _TEXT.fullmatch(text)
    if match is None:
        raise ModelError(f"'{name}' is declared as {text!r}; write it like {EXAMPLE}")
    try:
        shape = [int(size) for size in match[2].split(",")] if match[2].strip() else []
    except ValueError:
        raise ModelError(f"'{name}' is declared as {text!r}; sizes are whole numbers, -1 for any: {EXAMPLE}") from None
    return TensorSpec(name, _dtype(name, match[1]), _shape(name, shape))


def spec_of(name: str, declared: object) -> TensorSpec:
    """A spec as a Python class writes it: text, or (element type, shape) with a name or numpy type. Raises ModelError."""
    if isinstance(declared, TensorSpec):
        return declared
    if isinstance(declared, str):
        return parse_spec(name, declared)
    if not (isinstance(declared, tuple | list) and len(declared) == 2 and isinstance(declared[1], tuple | list)):
        raise ModelError(f"'{name}' is declared as {declared!r}; write {EXAMPLE!r} or ('FP32', (-1, 784))")
    return TensorSpec(name, _dtype(name, declared[0]), _shape(name, declared[1]))


def signature_of(inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec], *, platform: str) -> Signature:
    """Batched if axis 0 of every tensor is open. Raises ModelError where there is nothing to take or to give."""
    for kind, specs in (("inputs", inputs), ("outputs", outputs)):
        if not specs:
            raise ModelError(f"it declares no {kind}; dlproxy serves models with at least one")
    for spec in (*inputs, *outputs):
        if encodable(spec.name) != spec.name:
            raise ModelError(f"'{encodable(spec.name)}' cannot be a tensor's name: it holds what UTF-8 cannot carry")
    batched = all(spec.shape and spec.shape[0] == -1 for spec in (*inputs, *outputs))
    return Signature(tuple(inputs), tuple(outputs), batched=batched, platform=platform, utf8=True)


def refine(found: Sequence[Found], given: Sequence[TensorSpec], kind: str) -> tuple[TensorSpec, ...]:
    """What the file says, with shapes that the configuration narrows or supplies. Raises ModelError where they disagree."""
    by_name = {spec.name: spec for spec in given}
    if given and set(by_name) != {one.name for one in found}:
        names = ", ".join(one.name for one in found)
        raise ModelError(f"the configuration's {kind} are {', '.join(by_name)}; the model's are {names}")
    specs = []
    for one in found:
        spec = by_name.get(one.name)
        if spec is None:
            if one.shape is None:
                raise ModelError(
                    f"'{one.name}' may have any number of axes; give its shape: {kind} = {{ {one.name} = {EXAMPLE!r} }}"
                )
            spec = TensorSpec(one.name, one.dtype, one.shape)
        elif spec.dtype is not one.dtype or (one.shape is not None and not fits(spec.shape, one.shape)):
            theirs = f"{one.dtype.value}{_sizes(one.shape) if one.shape is not None else ' of any shape'}"
            raise ModelError(f"'{one.name}' is {written(spec)} in the configuration, but {theirs} in the model")
        specs.append(spec)
    return tuple(specs)


def check_outputs(signature: Signature, outputs: Mapping[str, NDArray[np.generic]], rows: int) -> list[NDArray[np.generic]]:
    """The outputs in signature order. Raises ValueError saying what was given and what is declared."""
    declared = [spec.name for spec in signature.outputs]
    if set(outputs) != set(declared):
        gave = ", ".join(map(str, outputs)) or "nothing"
        raise ValueError(f"the model gave {gave} where it declares {', '.join(declared)}")
    return [check_output(spec, outputs[spec.name], rows if signature.batched else None) for spec in signature.outputs]


def check_output(spec: TensorSpec, array: NDArray[np.generic], rows: int | None) -> NDArray[np.generic]:
    """One of them, text as objects. `rows`: those of the batch, None for a model that counts none. Raises ValueError."""
    if array.dtype.kind in "SU" and spec.dtype is DType.BYTES:
        array = array.astype(object)
    whole = spec.shape if rows is None else (rows, *spec.shape[1:])
    if array.dtype != NUMPY[spec.dtype] or not fits(array.shape, whole):
        hint = "" if rows is None else f" with {rows} rows for this batch"
        raise ValueError(f"output '{spec.name}' is {described(array)} where the model declares {written(spec)}{hint}")
    return array


def fits(shape: Sequence[int], declared: Sequence[int]) -> bool:
    """Is it a shape that the declared one allows?"""
    return len(shape) == len(declared) and all(allowed in (-1, size) for size, allowed in zip(shape, declared, strict=True))


def written(spec: TensorSpec) -> str:
    """The text that `parse_spec` reads."""
    return f"{spec.dtype.value}{_sizes(spec.shape)}"


def described(array: NDArray[np.generic]) -> str:
    """Its element type and shape, in the words of `written`."""
    dtype = _BY_NUMPY.get(array.dtype)
    return f"{dtype.value if dtype else array.dtype}{_sizes(array.shape)}"


def one_line(error: BaseException) -> str:
    """A framework's complaint without its traceback: the line that says what is wrong, with the error's type."""
    text = text_of(error)
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    if not lines or text == type(error).__name__:
        return type(error).__name__
    if "Traceback of TorchScript" in text:
        line = lines[-1]  # the interpreter's stack stands before the error
    elif lines[0] == "Graph execution error:":
        line = next((line for line in lines[1:] if not line.startswith(("Detected at", "<stack", "File ", "[["))), lines[0])
    else:  # Keras first tells what it was doing
        line = next((line.removeprefix(_KERAS) for line in lines if line.startswith(_KERAS)), lines[0])
    name = type(error).__name__
    words = line if line.startswith(f"{name}:") else f"{name}: {line}"
    return words if len(words) <= _MOST_WORDS else f"{words[:_MOST_WORDS]}…"


def _dtype(name: str, declared: Any) -> DType:
    text = declared.upper() if isinstance(declared, str) else ""
    if text in DType.__members__:
        return DType[text]
    try:
        dtype = np.dtype(declared if declared is not None else "")  # numpy takes None for float64
    except TypeError:
        near = difflib.get_close_matches(text, DType.__members__, n=1)
        hint = f"did you mean {near[0]}?" if near else f"known are {', '.join(DType.__members__)}"
        raise ModelError(f"'{name}' is declared with the element type {declared!r}; {hint}") from None
    if dtype.kind in "SU":
        return DType.BYTES
    if dtype not in _BY_NUMPY:
        raise ModelError(
            f"'{name}' is declared as {dtype}, which no protocol can carry; known are {', '.join(DType.__members__)}"
        )
    return _BY_NUMPY[dtype]


def _shape(name: str, sizes: Sequence[Any]) -> tuple[int, ...]:
    for size in sizes:
        if size is not None and (not isinstance(size, int) or isinstance(size, bool) or size < -1):
            raise ModelError(f"'{name}' is declared with the size {size!r}; sizes are whole numbers, -1 for any")
    return tuple(-1 if size is None else size for size in sizes)


def _sizes(shape: Sequence[int]) -> str:
    return f"[{','.join(map(str, shape))}]"

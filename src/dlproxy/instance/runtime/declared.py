"""Signatures that a person writes ("FP32[-1,784]"), and plain words for a model that does not keep to its own.

Called by runtime/python.py, torch.py, tensorflow.py. Not aware of: frameworks, files, who asked.
"""

import difflib
import re
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

from dlproxy.instance.runtime import ModelError
from dlproxy.instance.runtime.rows import with_rows
from dlproxy.message import DType, Signature, TensorSpec, encodable, text_of
from dlproxy.tensors import NUMPY, opaque

EXAMPLE = "FP32[-1,784]"
TEXT = "TEXT"  # BYTES whose elements are UTF-8; the model takes and gives them as str
_DECLARED = re.compile(r"\s*(\w+)\s*\[([^\[\]]*)\]\s*")
_COUNTED = re.compile(r"sum\((.+)\)")
_BY_NUMPY = {dtype: ours for ours, dtype in reversed(NUMPY.items())}  # reversed: uint16 is UINT16, although BF16 travels as one
_WORDS = (*DType.__members__, TEXT)
_KERAS = "Exception encountered: "
_MOST_WORDS = 300  # characters of a framework's complaint; TorchScript's and TensorFlow's run to pages


class Found(Struct, frozen=True):
    """An input or output as a model file describes it; `shape` None where the file does not even fix the number of axes.

    `text`, `axes`, `default`: as TensorSpec has them.
    """

    name: str
    dtype: DType
    shape: tuple[int, ...] | None
    text: bool = False
    axes: tuple[str, ...] = ()
    default: bytes | None = None


def parse_specs(texts: Mapping[str, str]) -> tuple[TensorSpec, ...]:
    """The specs of a configuration's `inputs` or `outputs`, in its order. Raises ModelError."""
    return tuple(parse_spec(name, text) for name, text in texts.items())


def parse_spec(name: str, declared: str) -> TensorSpec:
    """A spec as text: an element type and a shape, -1 or a name for any size, "FP32[]" for a scalar. Raises ModelError.

    The name "batch" says where the rows are. "sum(counts)" as the first size: so many elements belong to each row as the
    output `counts` says.
    """
    match = _DECLARED.fullmatch(declared)
    if match is None:
        raise ModelError(f"'{name}' is declared as {declared!r}; write it like {EXAMPLE}")
    sizes = [size.strip() for size in match[2].split(",")] if match[2].strip() else []
    counted = _COUNTED.fullmatch(sizes[0]) if sizes else None
    if counted is not None:
        sizes[0] = "-1"
    try:
        shape = [-1 if size.isidentifier() else int(size) for size in sizes]
    except ValueError:
        raise ModelError(
            f"'{name}' is declared as {declared!r}; sizes are whole numbers, or -1 or a name for any: {EXAMPLE}"
        ) from None
    dtype, text = _element_type(name, match[1])
    axes = tuple(size if size.isidentifier() else "" for size in sizes)
    counts = counted[1].strip() if counted is not None else ""
    return TensorSpec(name, dtype, _shape(name, shape), text, axes if any(axes) else (), counts=counts)


def spec_of(name: str, declared: object) -> TensorSpec:
    """A spec as a Python class writes it: text, or (element type, shape) with a name or numpy type. Raises ModelError."""
    if isinstance(declared, TensorSpec):
        return declared
    if isinstance(declared, str):
        return parse_spec(name, declared)
    if not (isinstance(declared, tuple | list) and len(declared) == 2 and isinstance(declared[1], tuple | list)):
        raise ModelError(f"'{name}' is declared as {declared!r}; write {EXAMPLE!r} or ('FP32', (-1, 784))")
    dtype, text = _element_type(name, declared[0])
    return TensorSpec(name, dtype, _shape(name, declared[1]), text)


def signature_of(
    inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec], *, platform: str, outputs_hold: bool = True
) -> Signature:
    """With the axes that may count rows, until the warm-up knows better: see `with_rows`.

    Raises ModelError where there is nothing to take or to give.
    """
    for kind, specs in (("inputs", inputs), ("outputs", outputs)):
        if not specs:
            raise ModelError(f"it declares no {kind}; dlproxy serves models with at least one")
    for spec in (*inputs, *outputs):
        if encodable(spec.name) != spec.name:
            raise ModelError(f"'{encodable(spec.name)}' cannot be a tensor's name: it holds what UTF-8 cannot carry")
    for spec in outputs:
        if spec.counts and spec.counts not in [other.name for other in outputs if other.dtype in (DType.INT32, DType.INT64)]:
            raise ModelError(f"'{spec.name}' is counted by '{spec.counts}', which is not an output of INT32 or INT64")
    signature = Signature(tuple(inputs), tuple(outputs), batched=False, platform=platform)
    return with_rows(signature, outputs_hold=outputs_hold)


def refine(
    found: Sequence[Found], given: Sequence[TensorSpec], kind: str, *, some: bool = False, shapes_hold: bool = True
) -> tuple[TensorSpec, ...]:
    """What the file says, with shapes that the configuration narrows or supplies. Raises ModelError where they disagree.

    `some`: the configuration need not name all. `shapes_hold`: sizes that the file fixes are true; how many there are is.
    """
    by_name = {spec.name: spec for spec in given}
    names = {one.name for one in found}
    if given and not (set(by_name) <= names if some else set(by_name) == names):
        raise ModelError(
            f"the configuration's {kind} are {', '.join(by_name)}; the model's are {', '.join(one.name for one in found)}"
        )
    specs = []
    for one in found:
        spec = by_name.get(one.name)
        if spec is None:
            if one.shape is None:
                raise ModelError(
                    f"'{one.name}' may have any number of axes; give its shape: {kind} = {{ {one.name} = {EXAMPLE!r} }}"
                )
            spec = TensorSpec(one.name, one.dtype, one.shape, one.text, one.axes, default=one.default)
        elif spec.dtype is not one.dtype or (one.shape is not None and not fits(spec.shape, one.shape, exactly=shapes_hold)):
            theirs = f"{one.dtype.value}{_sizes(one.shape) if one.shape is not None else ' of any shape'}"
            raise ModelError(f"'{one.name}' is {written(spec)} in the configuration, but {theirs} in the model")
        else:
            spec = msgspec.structs.replace(spec, text=one.text, axes=spec.axes or one.axes, default=one.default)
        specs.append(spec)
    return tuple(specs)


def check_outputs(signature: Signature, outputs: Mapping[str, NDArray[np.generic]]) -> list[NDArray[np.generic]]:
    """The outputs in signature order. Raises ValueError saying what was given and what is declared.

    How many rows they have is looked at where a batch is cut apart: alone, a request gets whatever the model gave for it.
    """
    declared = [spec.name for spec in signature.outputs]
    if set(outputs) != set(declared):
        gave = ", ".join(map(str, outputs)) or "nothing"
        raise ValueError(f"the model gave {gave} where it declares {', '.join(declared)}")
    return [check_output(spec, outputs[spec.name]) for spec in signature.outputs]


def check_output(spec: TensorSpec, array: NDArray[np.generic]) -> NDArray[np.generic]:
    """One of them, BYTES as tensors.opaque has them. Raises ValueError."""
    if spec.dtype is DType.BYTES and array.dtype.kind in "OSTU":
        try:
            array = opaque(array, text=spec.text)
        except ValueError as error:
            raise ValueError(f"output '{spec.name}': {error}") from None
    if array.dtype != NUMPY[spec.dtype] or not fits(array.shape, spec.shape):
        raise ValueError(f"output '{spec.name}' is {described(array)} where the model declares {written(spec)}")
    return array


def fits(shape: Sequence[int], declared: Sequence[int], *, exactly: bool = True) -> bool:
    """Is it a shape that the declared one allows? Not `exactly`: has it as many axes?"""
    same = len(shape) == len(declared)
    return same and (not exactly or all(allowed in (-1, size) for size, allowed in zip(shape, declared, strict=True)))


def written(spec: TensorSpec) -> str:
    """The text that `parse_spec` reads."""
    return f"{TEXT if spec.text else spec.dtype.value}{_sizes(spec.shape)}"


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


def _element_type(name: str, declared: Any) -> tuple[DType, bool]:
    """With whether it is text."""
    word = declared.upper() if isinstance(declared, str) else ""
    if word == TEXT:
        return DType.BYTES, True
    if word in DType.__members__:
        return DType[word], False
    try:
        dtype = np.dtype(declared if declared is not None else "")  # numpy takes None for float64
    except TypeError:
        near = difflib.get_close_matches(word, _WORDS, n=1)
        hint = f"did you mean {near[0]}?" if near else f"known are {', '.join(_WORDS)}"
        raise ModelError(f"'{name}' is declared with the element type {declared!r}; {hint}") from None
    if dtype.kind in "STU":  # bytes; numpy's two kinds of str
        return DType.BYTES, dtype.kind != "S"
    if dtype not in _BY_NUMPY:
        raise ModelError(f"'{name}' is declared as {dtype}, which no protocol can carry; known are {', '.join(_WORDS)}")
    return _BY_NUMPY[dtype], False


def _shape(name: str, sizes: Sequence[Any]) -> tuple[int, ...]:
    for size in sizes:
        if size is not None and (not isinstance(size, int) or isinstance(size, bool) or size < -1):
            raise ModelError(f"'{name}' is declared with the size {size!r}; sizes are whole numbers, -1 for any")
    return tuple(-1 if size is None else size for size in sizes)


def _sizes(shape: Sequence[int]) -> str:
    return f"[{','.join(map(str, shape))}]"

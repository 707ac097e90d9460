"""Tensors as JSON values, for upstreams that take no binary. Called by oip.py and tfs.py, and by wire/ for clients like these.

Not aware of: which protocol the values are part of.
"""

import base64
import json
from collections.abc import Sequence
from math import inf
from reprlib import repr as brief  # bounds the length: the text is another's
from typing import Any

import msgspec
import numpy as np

from dlproxy import tensors
from dlproxy.instance.batch import Array
from dlproxy.instance.remote.codec import gathered_shape, objects
from dlproxy.instance.remote.failures import UpstreamError
from dlproxy.message import DType, FailureKind, Request, TensorSpec

_KINDS = {"b": "b", "i": "iu", "u": "iu", "f": "iuf"}  # of what JSON numbers become, by the kind that is declared
_decode = msgspec.json.Decoder().decode
_encode = msgspec.json.Encoder().encode


def gathered(spec: TensorSpec, index: int, requests: Sequence[Request]) -> Array:
    """Input `index` of all requests, one below the other; BYTES as bytes, BF16 as float32."""
    parts = [request.inputs[index] for request in requests]
    shape = gathered_shape(requests, index)
    if spec.dtype is DType.BYTES:
        elements = [bytes(element) for part in parts for element in tensors.elements_of(part.data)]
        return objects(elements).reshape(shape)
    data = parts[0].data if len(parts) == 1 else b"".join([part.data for part in parts])
    array = tensors.to_array(spec.dtype, shape, data)
    return tensors.bf16_to_fp32(array) if spec.dtype is DType.BF16 else array


def is_finite(array: Array) -> bool:
    """No NaN, no infinity."""
    return array.dtype.kind != "f" or bool(np.isfinite(array).all())


def texts(array: Array, name: str) -> Array:
    """BYTES as JSON strings. Raises UpstreamError for what is no UTF-8."""
    try:
        return objects([element.decode() for element in array.ravel().tolist()]).reshape(array.shape)
    except UnicodeDecodeError:
        message = f"input '{name}' is not UTF-8 text, and the upstream takes JSON only"
        raise UpstreamError(message, FailureKind.INVALID_ARGUMENT) from None


def texts_or_base64(array: Array) -> Array:
    """BYTES as JSON strings or, for what is no UTF-8, as TensorFlow Serving's {"b64": ...}."""
    return objects([_text_or_base64(element) for element in array.ravel().tolist()]).reshape(array.shape)


def as_base64(element: bytes) -> dict[str, str]:
    """TensorFlow Serving's object for bytes."""
    return {"b64": base64.b64encode(element).decode()}


def _text_or_base64(element: bytes) -> object:
    try:
        return element.decode()
    except UnicodeDecodeError:
        return as_base64(element)


def encode(value: Any, *, finite: bool) -> bytes:
    """JSON; with the bare NaN and Infinity that TensorFlow Serving takes, if there are any."""
    return _encode(value) if finite else json.dumps(value).encode()


def decode(body: bytes | bytearray) -> Any:
    """JSON, bare NaN and Infinity included. Raises ValueError."""
    try:
        return _decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError):
        try:
            return json.loads(body, parse_float=_finite)
        except RecursionError:
            raise ValueError("JSON nested too deeply") from None
    except RecursionError:
        raise ValueError("JSON nested too deeply") from None


def _finite(text: str) -> float:
    value = float(text)
    if value in (inf, -inf):
        raise ValueError(f"{brief(text)} is too large for a number")
    return value


def to_array(spec: TensorSpec, data: Any, shape: Sequence[int] | None) -> Array:
    """The output that these values, flat or nested, are; `shape` None takes the nesting's own. Raises ValueError.

    Numbers are taken exactly, but for the rounding of floats; null stands for NaN.
    """
    if spec.dtype is DType.BYTES:
        nested = np.array(data, dtype=object)
        values: list[Any] = nested.ravel().tolist()
        array = objects([element(value) for value in values]).reshape(nested.shape)
    else:
        array = _numbers(spec, np.array(data))
    return array if shape is None else array.reshape(shape)


def _numbers(spec: TensorSpec, array: Array) -> Array:
    wanted = np.dtype(np.float32) if spec.dtype is DType.BF16 else tensors.NUMPY[spec.dtype]
    if (
        array.dtype.kind == "O"
        and wanted.kind == "f"
        and all(value is None or type(value) in (int, float) for value in array.ravel().tolist())
    ):
        array = array.astype(np.float64)
    if array.size and array.dtype.kind not in _KINDS[wanted.kind]:
        raise ValueError(f"its values are {array.dtype.name}")
    with np.errstate(over="ignore", invalid="ignore"):
        converted = array.astype(wanted)
    if wanted.kind in "iu" and (converted != array).any():
        raise ValueError(f"its values do not fit {spec.dtype.value}")
    return tensors.fp32_to_bf16(converted) if spec.dtype is DType.BF16 else converted


def is_base64(value: Any) -> bool:
    """TensorFlow Serving's object for bytes."""
    return isinstance(value, dict) and len(value) == 1 and isinstance(value.get("b64"), str)


def element(value: Any) -> bytes:
    """What a JSON value stands for where BYTES are wanted. Padding of base64 may be left out. Raises ValueError."""
    if isinstance(value, str):
        return value.encode()
    if is_base64(value):
        text = value["b64"]
        try:
            return base64.b64decode(text + "=" * (-len(text) % 4), validate=True)
        except ValueError as error:
            raise ValueError(f"it holds no base64: {error}") from None
    raise ValueError(f"it holds {type(value).__name__} where text should be")

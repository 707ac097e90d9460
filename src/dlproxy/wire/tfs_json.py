"""The JSON of TensorFlow Serving's REST API, which KServe's V1 shares: predict in rows or columns, examples, results.

Forms and texts follow tensorflow_serving/util/json_tensor.cc. Called by tfs_http.py. Not aware of: HTTP, who runs a model.
"""

from collections.abc import Iterable, Sequence
from math import inf
from reprlib import repr as brief  # bounds the length: the value is the client's
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from dlproxy.instance.remote import json_values
from dlproxy.instance.remote.codec import objects
from dlproxy.message import DType, Tensor, TensorSpec, invalid
from dlproxy.protos.tfs import tfs
from dlproxy.tensors import Array, bf16_to_fp32, elements_of, to_array, to_bytes
from dlproxy.wire.checks import RequestChecker
from dlproxy.wire.oip_codec import json_tensor
from dlproxy.wire.tfs_examples import Classified

LARGEST_FLOAT = float(np.finfo(np.float32).max)
BYTES_SUFFIX = "_bytes"  # of outputs that are always base64
_LIST_IS_PLAIN = "is a plain list, but expecting list of objects as multiple input tensors required as per tensorinfo_map"
_INPUTS_ARE_PLAIN = "is a plain value/list, but expecting an object as multiple input tensors required as per tensorinfo_map"


def read_object(body: bytes) -> dict[str, Any]:
    """The body of any request. Raises InferenceError."""
    if not body:
        raise invalid("JSON Parse error: The document is empty")
    try:
        found = json_values.decode(body)
    except ValueError as error:
        raise invalid(f"JSON Parse error: {error}") from None
    if not isinstance(found, dict):
        raise invalid(f"JSON Value: {brief(found)} Is not object")
    if not isinstance(found.get("signature_name", ""), str):
        raise invalid("'signature_name' key must be a string value.")
    return found


class PredictReader:
    """Makes tensors of predict requests for one model."""

    def __init__(self, specs: Sequence[TensorSpec], checker: RequestChecker, *, batched: bool) -> None:
        self._specs = specs
        self._checker = checker
        self._batched = batched
        self._names = {spec.name for spec in specs}
        self._required = {spec.name for spec in specs if spec.default is None}

    def read(self, asked: dict[str, Any]) -> tuple[bool, list[Tensor]]:
        """Whether the answer is to be in rows, as the request is; and its inputs. Raises InferenceError."""
        if "instances" in asked:
            if "inputs" in asked:
                raise invalid("Not formatted correctly expecting only one of 'inputs' or 'instances' keys to exist")
            rows = asked["instances"]
            if not isinstance(rows, list):
                raise invalid("Expecting 'instances' to be a list/array")
            if not rows:
                raise invalid("No values in 'instances' array")
            return True, self._of_rows(rows)
        if "inputs" not in asked:
            raise invalid("Missing 'inputs' or 'instances' key")
        return False, self._of_columns(asked["inputs"])

    def _of_rows(self, rows: list[Any]) -> list[Tensor]:
        if not _is_object(rows[0]):
            if len(self._specs) != 1:
                raise invalid(f"instances {_LIST_IS_PLAIN}")
            for number, row in enumerate(rows):
                if _is_object(row):
                    raise invalid(f"Expecting value/list but got object at item {number} of input list")
            return [self._rows_of(self._specs[0], rows)]
        for number, row in enumerate(rows):
            if not _is_object(row):
                raise invalid(f"Expecting object but got list at item {number} of input list")
            if row.keys() != rows[0].keys() or not self._required <= row.keys() <= self._names:
                raise invalid(
                    f"Failed to process element: {number} of 'instances' list. JSON object: {brief(row)} "
                    f"keys must be equal to: {','.join(sorted(self._names))}"
                )
        return [self._rows_of(spec, [row[spec.name] for row in rows]) for spec in self._specs if spec.name in rows[0]]

    def _rows_of(self, spec: TensorSpec, rows: list[Any]) -> Tensor:
        if self._batched and spec.rows is None:
            raise invalid(f"input '{spec.name}' is one for all rows of a request: send 'inputs' instead of 'instances'")
        tensor = json_tensor(spec.name, spec.dtype, None, rows, tfs=True)
        if not self._batched or not spec.rows or spec.rows >= len(tensor.shape):
            return tensor
        array = np.moveaxis(to_array(tensor.dtype, tensor.shape, tensor.data), 0, spec.rows)
        return Tensor(spec.name, spec.dtype, array.shape, to_bytes(spec.dtype, array))

    def _of_columns(self, inputs: Any) -> list[Tensor]:
        if not _is_object(inputs):
            if len(self._specs) != 1:
                raise invalid(f"inputs {_INPUTS_ARE_PLAIN}")
            inputs = {self._specs[0].name: inputs}
        for name in sorted(self._required - inputs.keys()):
            raise invalid(f"Missing named input: {name} in 'inputs' object.")
        tensors = []
        for name, data in inputs.items():
            spec = self._checker.spec_of(name)
            shape = None if spec.shape or isinstance(data, list) else ()
            tensors.append(json_tensor(name, spec.dtype, shape, data, tfs=True))
        return tensors


def encode_columns(outputs: Sequence[Tensor]) -> bytes:
    """The answer to `inputs`: a single output without its name."""
    finite, values = _values([(tensor.name, _array(tensor)) for tensor in outputs])
    return json_values.encode({"outputs": values[0][1] if len(values) == 1 else dict(values)}, finite=finite)


def encode_rows(outputs: Sequence[Tensor], axes: Sequence[int]) -> bytes:
    """The answer to `instances`: a value, or an object of several outputs, for each. `axes`: where the rows of each output are.

    Raises InferenceError where the outputs do not have a row for each.
    """
    arrays, count = [], -1
    for tensor, axis in zip(outputs, axes, strict=True):
        if axis >= len(tensor.shape):
            raise invalid(f"Tensor name: {tensor.name} has no shape information; send 'inputs' instead of 'instances'")
        if tensor.shape[axis] != count >= 0:
            raise invalid(
                f"Tensor name: {tensor.name} has inconsistent batch size: {tensor.shape[axis]} expecting: {count}; "
                "send 'inputs' instead of 'instances'"
            )
        count = tensor.shape[axis]
        arrays.append((tensor.name, np.moveaxis(_array(tensor), axis, 0)))
    finite, values = _values(arrays)
    if len(values) == 1:
        return json_values.encode({"predictions": values[0][1]}, finite=finite)
    names = [name for name, _ in values]
    rows = [dict(zip(names, row, strict=True)) for row in zip(*(column for _, column in values), strict=True)]
    return json_values.encode({"predictions": rows}, finite=finite)


def encode_results(results: Sequence[Classified] | NDArray[np.float32]) -> bytes:
    """Of classify, pairs of a label and a score for each example; of regress, a value."""
    if isinstance(results, np.ndarray):
        return json_values.encode({"results": shortest(results).tolist()}, finite=json_values.is_finite(results))
    finite = all(json_values.is_finite(one.scores) for one in results)
    pairs = [list(zip(one.labels, shortest(one.scores).tolist(), strict=True)) for one in results]
    return json_values.encode({"results": pairs}, finite=finite)


def read_examples(asked: dict[str, Any]) -> tuple[list[bytes], bytes]:
    """The examples of a classify or regress request and what they have in common, each as a `tensorflow.Example`.

    Raises InferenceError.
    """
    examples = asked.get("examples")
    if "examples" not in asked:
        raise invalid("When method is classify or regress, key 'examples' is expected and was not found")
    if not isinstance(examples, list):
        raise invalid("Expecting 'examples' value to be a list/array")
    if not examples:
        raise invalid("'examples' value is an empty array")
    context = _example(asked["context"]) if "context" in asked else b""
    return [_example(each) for each in examples], context


def _example(value: Any) -> bytes:
    if not isinstance(value, dict):
        raise invalid(f"Example must be JSON object but got JSON {_kind(value)}")
    example = tfs.Example()
    example.features.SetInParent()
    for name, content in value.items():
        feature = example.features.feature[_encodable(name)]
        for each in content if isinstance(content, list) else (content,):
            _add(feature, name, each)
    encoded: bytes = example.SerializeToString()
    return encoded


def _add(feature: Any, name: str, value: Any) -> None:
    """A value says by its own type of which kind the feature is."""
    given: object
    if isinstance(value, bool | int):
        field, given = "int64_list", int(value)
        if not -(2**63) <= value < 2**63:
            raise invalid(f"Feature: {name} has uint64 element. Only int64 is supported.")
    elif isinstance(value, float):
        field, given = "float_list", value
        if LARGEST_FLOAT < abs(value) < inf:
            raise invalid(f"Cannot convert JSON value: {value} to float without loss of precision.")
    elif isinstance(value, str) or json_values.is_base64(value):
        try:
            field, given = "bytes_list", json_values.element(value)
        except ValueError as error:
            raise invalid(f"Feature: {name}: {error}") from None
    else:
        raise invalid(f"Feature: {name} has element with unexpected JSON type: {_kind(value)}")
    if feature.WhichOneof("kind") not in (None, field):
        kind = feature.WhichOneof("kind").removesuffix("_list")
        raise invalid(f"Unexpected element type in feature: {name} expecting type: {kind}")
    getattr(feature, field).value.append(given)


def _kind(value: Any) -> str:
    """As JSON calls it."""
    names = {dict: "Object", list: "Array", str: "String", bool: "True" if value else "False", type(None): "Null"}
    return names.get(type(value), "Number")


def _encodable(name: str) -> str:
    try:
        name.encode()
    except UnicodeEncodeError as error:
        raise invalid(f"JSON Parse error: {error}") from None
    return name


def _is_object(value: Any) -> bool:
    return isinstance(value, dict) and not json_values.is_base64(value)


def _array(tensor: Tensor) -> Array:
    """What JSON has of it: texts, or bytes as base64; floats as the shortest decimals that mean them."""
    if tensor.dtype is DType.BYTES:
        elements = [bytes(element) for element in elements_of(tensor.data)]
        if tensor.name.endswith(BYTES_SUFFIX):
            return objects(list(map(json_values.as_base64, elements))).reshape(tensor.shape)
        return json_values.texts_or_base64(objects(elements)).reshape(tensor.shape)
    array = to_array(tensor.dtype, tensor.shape, tensor.data)
    if tensor.dtype is DType.BF16:
        array = bf16_to_fp32(array)
    return shortest(array) if array.dtype.kind == "f" and array.dtype.itemsize < 8 else array


def _values(arrays: Iterable[tuple[str, Array]]) -> tuple[bool, list[tuple[str, Any]]]:
    """Whether all numbers are finite, and the arrays as lists."""
    found = list(arrays)
    return all(json_values.is_finite(array) for _, array in found), [(name, array.tolist()) for name, array in found]


def shortest(array: Array) -> NDArray[np.float64]:
    """The doubles that are written as TensorFlow Serving writes these floats: with six digits, or nine if those mean another
    float. So 0.1 stays 0.1, where the nearest double to the float is written 0.10000000149011612.
    """
    narrow = array.astype(np.float32)
    exact = narrow.astype(np.float64)
    size = np.abs(exact)
    usual = (size >= 1e-14) & (size < 1e15)  # where a power of ten is exact; the rest stays as it is
    size = np.where(usual, size, 1.0)
    power = np.floor(np.log10(size)).astype(np.int64)
    result = exact
    for digits in (9, 6):
        places = np.clip(digits - 1 - power, -15, 22)
        factor = 10.0 ** np.abs(places)
        scaled = np.where(places >= 0, exact * factor, exact / factor)
        whole = np.rint(np.where(usual, scaled, 0.0))
        decimal = np.where(places >= 0, whole / factor, whole * factor)
        result = np.where(usual & (decimal.astype(np.float32) == narrow), decimal, result)
    return result


def pretty(value: Any, indent: int) -> bytes:
    """JSON for people: TensorFlow Serving indents errors by four, what it says of models by one."""
    return msgspec.json.format(msgspec.json.encode(value), indent=indent)

"""Classify and regress of TensorFlow Serving: examples become a model's inputs, its outputs labels and scores, or values.

The rules for outputs are those of classifier.cc and regressor.cc in tensorflow_serving/servables/tensorflow, and wider where
those would refuse what can only mean one thing. Called by tfs_http.py and grpc/tfs.py. Not aware of: JSON, who runs a model.
"""

from collections.abc import Sequence
from math import prod
from typing import Any

import numpy as np
from google.protobuf.message import DecodeError
from msgspec import Struct
from numpy.typing import NDArray

from dlproxy.message import DType, Failure, FailureKind, InferenceError, Response, Tensor, TensorSpec, invalid
from dlproxy.protos.tfs import tfs
from dlproxy.tensors import NUMPY, Array, bf16_to_fp32, elements_of, fp32_to_bf16, join_elements, to_array, to_bytes
from dlproxy.wire.catalog import ServedModel

SERIALIZED = frozenset({"inputs", "examples"})  # what a SavedModel calls an input that takes whole examples
FLOATS = frozenset({DType.FP16, DType.BF16, DType.FP32, DType.FP64})
MOST_EXAMPLES = 1 << 16  # of a request for a model whose rows nobody counts
MOST_VALUES = 1 << 22  # of one feature in all examples, which may have it from a small context
MOST_CONTEXT = 64 << 20  # bytes of all copies of a context
_LISTS = {DType.BYTES: ("bytes_list",), **dict.fromkeys(FLOATS, ("float_list", "int64_list"))}


class Classified(Struct):
    """The labels of one example, and the score of each."""

    labels: list[str]
    scores: NDArray[np.float32]


class Examples:
    """What examples are to one model."""

    def __init__(self, model: ServedModel) -> None:
        signature = model.signature
        self._served = model  # whose max_batch may change while it runs
        self._model = model.name
        self._inputs = signature.inputs
        self._batched = signature.batched
        self._outputs = {spec.name: index for index, spec in enumerate(signature.outputs)}
        self._specs = signature.outputs
        only = signature.inputs[0] if len(signature.inputs) == 1 else None
        self._whole = only is not None and only.dtype is DType.BYTES and len(only.shape) == 1 and only.name in SERIALIZED

    # To inputs

    def tensors(self, examples: Sequence[bytes], context: bytes) -> list[Tensor]:
        """Each example is a row; what it lacks, the context may have. Raises InferenceError."""
        if not examples:
            raise invalid("Input is empty.")
        most = self._served.max_batch if self._batched else MOST_EXAMPLES
        if len(examples) > most:  # before any is read
            raise invalid(f"inference request batch-size must be <= {most} for '{self._model}', got {len(examples)}")
        if self._whole:  # the model parses them; the encodings of messages, one after the other, mean both together
            if len(context) * len(examples) > MOST_CONTEXT:
                raise invalid(
                    f"a context of {len(context)} bytes for {len(examples)} examples: at most {MOST_CONTEXT} together"
                )
            data = join_elements([context + each for each in examples])
            return [Tensor(self._inputs[0].name, DType.BYTES, (len(examples),), data)]
        shared, own = _features(context), [_features(each) for each in examples]
        return [tensor for spec in self._inputs if (tensor := self._tensor(spec, own, shared)) is not None]

    def _tensor(self, spec: TensorSpec, examples: Sequence[Any], context: Any) -> Tensor | None:
        """None for an input that may be left out, and is."""
        if not spec.shape or (self._batched and spec.rows != 0):
            raise self._unsupported(f"input '{spec.name}' of shape [{','.join(spec.sizes)}] has no row for each example")
        name, rows = spec.name, []
        if spec.default is not None and not any(name in each for each in (context, *examples)):
            return None
        for number, each in enumerate(examples):
            features = each if name in each else context
            if name not in features:
                raise invalid(f"example {number} has no feature '{name}', which is an input of model '{self._model}'")
            rows.append(_row(spec, features[name], number))
        shape = (len(rows), *self._row_shape(spec, rows))
        values = [value for row in rows for value in row]
        if spec.dtype is DType.BYTES:
            return Tensor(name, spec.dtype, shape, join_elements(values))
        try:
            wide = spec.dtype is DType.BF16
            with np.errstate(over="ignore"):
                array = np.array(values, np.float32 if wide else NUMPY[spec.dtype])
        except OverflowError:
            raise invalid(f"feature '{name}': a value is out of range for {spec.dtype.value}") from None
        return Tensor(name, spec.dtype, shape, to_bytes(spec.dtype, fp32_to_bf16(array) if wide else array))

    def _row_shape(self, spec: TensorSpec, rows: Sequence[Sequence[Any]]) -> tuple[int, ...]:
        tail, size = spec.shape[1:], len(rows[0])
        for number, row in enumerate(rows):
            if len(row) != size:
                raise invalid(
                    f"feature '{spec.name}' has {len(row)} values in example {number} and {size} in example 0: "
                    "all examples of a request must have equally many"
                )
        if size * len(rows) > MOST_VALUES:
            raise invalid(f"feature '{spec.name}' has {size * len(rows)} values; at most {MOST_VALUES} are accepted")
        if tail.count(-1) > 1:
            raise self._unsupported(
                f"input '{spec.name}' of shape [{','.join(spec.sizes)}] leaves open how a list is to be cut"
            )
        known = prod(want for want in tail if want >= 0)
        if -1 in tail and known and not size % known:
            return tuple(size // known if want < 0 else want for want in tail)
        if -1 in tail or size != known:
            raise invalid(f"feature '{spec.name}' has {size} values; a row of shape [{','.join(spec.sizes[1:])}] has {known}")
        return tail

    # From outputs

    def scores_of(self) -> list[int]:
        """The outputs that classify needs. Raises InferenceError for a model that has none."""
        named = [self._outputs[name] for name in ("classes", "scores") if name in self._outputs]
        fit = [len(self._specs[index].shape) in (1, 2) for index in named]
        if "scores" in self._outputs:
            fit.append(self._specs[self._outputs["scores"]].dtype in FLOATS)
        if named and all(fit):
            return named
        tables = [index for index, spec in enumerate(self._specs) if spec.dtype in FLOATS and len(spec.shape) == 2]
        if named or len(tables) != 1:
            raise self._unsupported("classify needs outputs 'classes' or 'scores', or one output with a float for each class")
        return tables

    def classified(self, response: Response, examples: int) -> list[Classified]:
        """By the names that TensorFlow Serving knows, as they are; of another output, the classes' numbers, the best first.

        Raises InferenceError.
        """
        by_name = {tensor.name: _table(tensor, examples) for tensor in response.outputs}
        labels, scores = by_name.get("classes"), by_name.get("scores")
        if labels is not None and scores is not None and labels.shape != scores.shape:
            raise invalid(f"'classes' of shape {list(labels.shape)} and 'scores' of {list(scores.shape)} should match")
        if labels is not None:
            values = np.zeros(labels.shape, np.float32) if scores is None else scores.astype(np.float32)
            return [Classified(list(map(str, row)), best) for row, best in zip(labels.tolist(), values, strict=True)]
        if scores is not None:
            return [Classified([""] * len(row), row) for row in scores.astype(np.float32)]
        (table,) = by_name.values()
        order = np.argsort(np.negative(table), axis=1, kind="stable")
        return [
            Classified(list(map(str, best)), row[best].astype(np.float32))
            for row, best in zip(table, order.tolist(), strict=True)
        ]

    def value_of(self) -> list[int]:
        """The output that regress needs. Raises InferenceError for a model that has none."""
        index = self._outputs.get("outputs", 0)
        spec = self._specs[index]
        one_each = len(spec.shape) == 1 or (len(spec.shape) == 2 and spec.shape[1] in (1, -1))
        if (len(self._specs) > 1 and "outputs" not in self._outputs) or spec.dtype not in FLOATS or not one_each:
            raise self._unsupported("regress needs an output 'outputs', or a single one, with one float for each example")
        return [index]

    def values(self, response: Response, examples: int) -> NDArray[np.float32]:
        """One for each example. Raises InferenceError."""
        (tensor,) = response.outputs
        if tuple(tensor.shape) not in ((examples,), (examples, 1)):
            raise invalid(
                f"Expected output Tensor shape to be either [batch_size] or [batch_size, 1] but got {list(tensor.shape)} "
                f"for {examples} examples"
            )
        return _floats(tensor).reshape(examples).astype(np.float32)

    def _unsupported(self, why: str) -> InferenceError:
        outputs = ", ".join(f"{spec.name} {spec.dtype.value}[{','.join(spec.sizes)}]" for spec in self._specs)
        message = f"model '{self._model}' takes predict only: {why}; its outputs are {outputs}"
        return InferenceError(Failure(FailureKind.UNSUPPORTED, message))


def _features(example: bytes) -> Any:
    try:
        return tfs.Example.FromString(example).features.feature
    except DecodeError as error:
        raise invalid(f"an example cannot be read: {error}") from None


def _row(spec: TensorSpec, feature: Any, number: int) -> Sequence[Any]:
    kind = feature.WhichOneof("kind")
    if kind is None:
        return ()
    if kind not in _LISTS.get(spec.dtype, ("int64_list",)):
        raise invalid(f"feature '{spec.name}' of example {number} is a {kind}, which {spec.dtype.value} cannot be made of")
    values: Sequence[Any] = getattr(feature, kind).value
    return values


def _table(tensor: Tensor, examples: int) -> Array:
    """A row for each example, a column for each class."""
    array = _floats(tensor) if tensor.dtype is not DType.BYTES else _texts(tensor)
    if array.ndim == 1:
        array = array.reshape(len(array), 1)
    if array.ndim != 2 or len(array) != examples:
        raise invalid(f"Expected Tensor shape: [batch_size num_classes] but got {list(tensor.shape)} for {examples} examples")
    return array


def _texts(tensor: Tensor) -> Array:
    array = np.empty(prod(tensor.shape), dtype=object)
    array[:] = [str(element, "utf-8", "backslashreplace") for element in elements_of(tensor.data)]
    return array.reshape(tensor.shape)


def _floats(tensor: Tensor) -> Array:
    array = to_array(tensor.dtype, tensor.shape, tensor.data)
    return bf16_to_fp32(array) if tensor.dtype is DType.BF16 else array

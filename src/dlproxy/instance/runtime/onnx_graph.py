"""The operators of an ONNX file and the small defaults of its inputs, read without the weights.

ONNX Runtime does not show its graph, and the onnx package would copy every weight (a second of start-up and the model's size
in memory). Read by the field numbers of onnx.proto. Called by onnx.py and row_mixing.py.
"""

from mmap import ACCESS_READ, mmap
from pathlib import Path

import numpy as np
from msgspec import Struct

from dlproxy.instance.runtime.protobuf_fields import Span, fields, varints
from dlproxy.message import DType, TensorSpec, element_count
from dlproxy.tensors import NUMPY, join_elements

MOST_WORDS = 64

# Field numbers of onnx.proto
_MODEL_GRAPH = 7
_GRAPH_NODE, _GRAPH_INITIALIZER, _GRAPH_INPUT, _GRAPH_OUTPUT = 1, 5, 11, 12
_NODE_INPUT, _NODE_OUTPUT, _NODE_OP, _NODE_ATTRIBUTE = 1, 2, 4, 5
_ATTRIBUTE_NAME, _ATTRIBUTE_INT, _ATTRIBUTE_TENSOR, _ATTRIBUTE_GRAPH, _ATTRIBUTE_INTS, _ATTRIBUTE_STRINGS = 1, 3, 5, 6, 8, 9
_TENSOR_STRINGS, _TENSOR_NAME, _TENSOR_RAW, _TENSOR_LOCATION = 6, 8, 9, 14
_TYPED = {4: "<f4", 5: "<i4", 7: "<i8", 10: "<f8", 11: "<u8"}  # float_data to uint64_data
_HALVES = (DType.FP16, DType.BF16)  # whose bits stand in int32_data


class Node(Struct):
    """One operator: tensors by name, integer attributes, and the graphs inside it (If, Loop, Scan)."""

    op: str
    inputs: list[str]
    outputs: list[str]
    attributes: dict[str, list[int]]
    graphs: "list[Graph]"


class Graph(Struct):
    """Nodes in the order in which they can run, names of inputs and outputs, and where each initializer (a constant) stands."""

    nodes: list[Node]
    inputs: list[str]
    outputs: list[str]
    initializers: dict[str, Span]


class OnnxFile:
    """A file that ONNX Runtime has loaded, mapped into memory for as long as it is looked at, or there already."""

    def __init__(self, model: Path | bytes) -> None:
        """Raises OSError, or ValueError where the file is not laid out as onnx.proto says."""
        self._data: mmap | bytes
        if isinstance(model, bytes):
            self._data = model
        else:
            with model.open("rb") as file:
                self._data = mmap(file.fileno(), 0, access=ACCESS_READ)
        self.words: list[str] = []
        """Texts that operators and constants name: what a model of texts knows."""
        try:
            spans = [span for number, span in fields(self._data, (0, len(self._data))) if number == _MODEL_GRAPH]
            if not spans or isinstance(spans[-1], int):
                raise ValueError("it holds no graph")
            self.graph = self._graph(spans[-1])
        except IndexError:
            raise ValueError("it ends in the middle") from None

    def default(self, spec: TensorSpec) -> bytes | None:
        """An initializer's elements as they travel on the wire; None for one that is not in the file itself."""
        span = self.graph.initializers.get(spec.name)
        if span is None:
            return None
        typed: list[bytes] = []
        for number, value in fields(self._data, span):
            if number == _TENSOR_LOCATION and value:
                return None
            if number == _TENSOR_RAW and not isinstance(value, int):
                typed = [self._data[slice(*value)]]
                break
            if number == _TENSOR_STRINGS and not isinstance(value, int):
                typed.append(join_elements([self._data[slice(*value)]]))
            elif number in _TYPED:
                typed.append(self._elements(number, value, spec.dtype))
        data = b"".join(typed)
        whole = spec.dtype is DType.BYTES or len(data) == element_count(spec.shape) * spec.dtype.itemsize
        return data if whole else None

    def _elements(self, number: int, value: int | Span, dtype: DType) -> bytes:
        """One packed run, or a single value, of a typed field as elements of the tensor's own type."""
        if number in (4, 10):
            if isinstance(value, int):
                return value.to_bytes(4 if number == 4 else 8, "little")
            return self._data[slice(*value)]
        numbers = [value] if isinstance(value, int) else list(varints(self._data, value))
        kept = np.dtype("<u2") if dtype in _HALVES else NUMPY[dtype]
        return np.array(numbers, np.uint64).astype(kept).tobytes()

    def _graph(self, span: Span) -> Graph:
        graph = Graph([], [], [], {})
        for number, value in fields(self._data, span):
            if isinstance(value, int):
                continue
            if number == _GRAPH_NODE:
                graph.nodes.append(self._node(value))
            elif number == _GRAPH_INITIALIZER:
                graph.initializers[self._text_of(value, _TENSOR_NAME)] = value
                self._collect_words(value, _TENSOR_STRINGS)
            elif number == _GRAPH_INPUT:
                graph.inputs.append(self._text_of(value, 1))
            elif number == _GRAPH_OUTPUT:
                graph.outputs.append(self._text_of(value, 1))
        return graph

    def _node(self, span: Span) -> Node:
        node = Node("", [], [], {}, [])
        for number, value in fields(self._data, span):
            if isinstance(value, int):
                continue
            if number == _NODE_INPUT:
                node.inputs.append(self._text(value))
            elif number == _NODE_OUTPUT:
                node.outputs.append(self._text(value))
            elif number == _NODE_OP:
                node.op = self._text(value)
            elif number == _NODE_ATTRIBUTE:
                self._attribute(value, node)
        return node

    def _attribute(self, span: Span, node: Node) -> None:
        name, numbers = "", []
        for number, value in fields(self._data, span):
            if number == _ATTRIBUTE_NAME and not isinstance(value, int):
                name = self._text(value)
            elif number == _ATTRIBUTE_GRAPH and not isinstance(value, int):
                node.graphs.append(self._graph(value))
            elif number == _ATTRIBUTE_TENSOR and not isinstance(value, int):
                self._collect_words(value, _TENSOR_STRINGS)
            elif number in (_ATTRIBUTE_INT, _ATTRIBUTE_INTS):
                numbers += [value] if isinstance(value, int) else list(varints(self._data, value))
        self._collect_words(span, _ATTRIBUTE_STRINGS)
        node.attributes[name] = [number - (1 << 64) if number >> 63 else number for number in numbers]

    def _collect_words(self, span: Span, wanted: int) -> None:
        for number, value in fields(self._data, span):
            if len(self.words) >= MOST_WORDS:
                return
            if number == wanted and not isinstance(value, int):
                self.words.append(self._text(value))

    def _text_of(self, span: Span, wanted: int) -> str:
        values = [value for number, value in fields(self._data, span) if number == wanted and not isinstance(value, int)]
        return self._text(values[-1]) if values else ""

    def _text(self, span: Span) -> str:
        return self._data[slice(*span)].decode("utf-8", "replace")

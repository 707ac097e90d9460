"""What each ONNX operator is in PyTorch, by the table OPERATORS. Definitions: the ONNX operator specification.

Called by graph.py with its reader, the node and its attributes. Not aware of: training, files.
"""

import operator
from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812 # as everybody calls it

from dlproxy.compress.recipe import RecipeError
from dlproxy.compress.recipes.torch.graph import Origin, Reader, cannot, positions

Attributes = dict[str, Any]
_CONV = {1: (nn.Conv1d, F.conv1d), 2: (nn.Conv2d, F.conv2d), 3: (nn.Conv3d, F.conv3d)}
_NORM = {2: nn.BatchNorm1d, 3: nn.BatchNorm1d, 4: nn.BatchNorm2d, 5: nn.BatchNorm3d}
_TYPES = {
    onnx.TensorProto.FLOAT: torch.float32,
    onnx.TensorProto.DOUBLE: torch.float64,
    onnx.TensorProto.INT32: torch.int32,
    onnx.TensorProto.INT64: torch.int64,
    onnx.TensorProto.BOOL: torch.bool,
}


class FakeQuantised(nn.Module):  # type: ignore[misc] # torch's types are not read
    """Rounds to the steps that QuantizeLinear and DequantizeLinear leave, and passes gradients through within their range
    (straight-through estimator: Bengio et al. 2013; Jacob et al. 2018). `scale`, `zero_point`: one, or one per index of `axis`.
    """

    def __init__(self, scale: Any, zero_point: Any, *, axis: int, low: int, high: int) -> None:
        super().__init__()
        self.register_buffer("scale", scale)
        self.register_buffer("zero_point", zero_point)
        self.axis, self.low, self.high = axis, low, high

    def forward(self, values: Any) -> Any:
        if self.scale.numel() == 1:
            return torch.fake_quantize_per_tensor_affine(
                values, self.scale.reshape(1), self.zero_point.reshape(1), self.low, self.high
            )
        return torch.fake_quantize_per_channel_affine(values, self.scale, self.zero_point, self.axis, self.low, self.high)


class Lstm(nn.Module):  # type: ignore[misc] # torch's types are not read
    """ONNX's LSTM by torch's: gates in another order, answers [time, directions, rows, hidden]."""

    def __init__(self, lstm: Any) -> None:
        super().__init__()
        self.lstm = lstm
        self.directions = 2 if lstm.bidirectional else 1

    def forward(self, sequence: Any) -> Any:
        steps, (hidden, cell) = self.lstm(sequence)
        steps = steps.unflatten(2, (self.directions, steps.shape[2] // self.directions)).transpose(1, 2)
        return steps, hidden, cell


def _constant(reader: Reader, node: onnx.NodeProto, attributes: Attributes) -> Any:
    for name, value in attributes.items():
        if name == "value":
            return onnx.numpy_helper.to_array(value)
        if name in ("value_float", "value_floats"):
            return np.array(value, np.float32)
        if name in ("value_int", "value_ints"):
            return np.array(value, np.int64)
    raise cannot(node, "a value that is no tensor of numbers")


def _same(reader: Reader, node: onnx.NodeProto, attributes: Attributes) -> Any:
    return reader.values[node.input[0]]


def _function(function: Callable[..., Any], **names: tuple[str, Any]) -> Callable[..., Any]:
    """One tensor, and arguments from attributes: torch's name to ONNX's with its default."""

    def read(reader: Reader, node: onnx.NodeProto, attributes: Attributes) -> Any:
        named = {ours: attributes.get(name, default) for ours, (name, default) in names.items()}
        return reader.call(function, reader.tensor(node.input[0]), **named)

    return read


def _binary(function: Callable[..., Any], on_sizes: Callable[[Any, Any], Any] | None = None) -> Callable[..., Any]:
    def read(reader: Reader, node: onnx.NodeProto, attributes: Attributes) -> Any:
        if on_sizes is not None and (sizes := reader.on_numbers(node, on_sizes)) is not None:
            return sizes
        if function is torch.add and (biased := _bias_of_linear(reader, node)) is not None:
            return biased
        return reader.call(function, *[reader.tensor(name) for name in node.input])

    return read


def _bias_of_linear(reader: Reader, node: onnx.NodeProto) -> Any:
    """The layer itself, where a vector is added to the answer of a matrix product that nobody else reads."""
    for one, other in (node.input, reversed(node.input)):
        value, bias = reader.values[one], reader.constant(other)
        if bias is None or not isinstance(value, torch.fx.Node) or value.op != "call_module" or reader.uses[one] > 1:
            continue
        layer = reader.root.get_submodule(str(value.target))
        if isinstance(layer, nn.Linear) and layer.bias is None and bias.shape == (layer.out_features,):
            layer.bias = nn.Parameter(torch.tensor(bias))
            reader.origins[f"{value.target}.bias"] = Origin(other)
            return value
    return None


def _linear(reader: Reader, tensor: str, weight: str, bias: str, *, transposed: bool) -> Any:
    """`transposed`: the weight stands as [in, out]."""
    matrix, vector = reader.values[weight], reader.values[bias] if bias else None
    if not isinstance(matrix, np.ndarray) or not (vector is None or isinstance(vector, np.ndarray)):
        turned = reader.tensor(weight)
        turned = reader.call(torch.t, turned) if transposed else turned
        return reader.call(F.linear, reader.tensor(tensor), turned, reader.tensor(bias) if bias else None)
    matrix = matrix.T if transposed else matrix
    layer = nn.Linear(matrix.shape[1], matrix.shape[0], bias=vector is not None)
    layer.weight = nn.Parameter(torch.tensor(np.ascontiguousarray(matrix)))
    origins = {"weight": Origin(weight, transposed=transposed)}
    if vector is not None:
        layer.bias = nn.Parameter(torch.tensor(np.broadcast_to(vector, matrix.shape[:1]).copy()))
        if vector.shape == matrix.shape[:1]:
            origins["bias"] = Origin(bias)
    return reader.layer(layer, reader.tensor(tensor), origins=origins)


def _gemm(reader: Reader, node: onnx.NodeProto, attributes: Attributes) -> Any:
    if attributes.get("transA") or attributes.get("alpha", 1.0) != 1.0 or attributes.get("beta", 1.0) != 1.0:
        raise cannot(node, "a factor or a transposed input")
    bias = node.input[2] if len(node.input) > 2 else ""
    return _linear(reader, node.input[0], node.input[1], bias, transposed=not attributes.get("transB"))


def _matmul(reader: Reader, node: onnx.NodeProto, attributes: Attributes) -> Any:
    if len(reader.shapes.get(node.input[1]) or ()) == 2 and not isinstance(reader.values[node.input[0]], np.ndarray):
        return _linear(reader, node.input[0], node.input[1], "", transposed=True)
    return reader.call(torch.matmul, *[reader.tensor(name) for name in node.input])


def _padding(reader: Reader, node: onnx.NodeProto, attributes: Attributes, window: list[int]) -> list[int]:
    """Before and after each axis, in ONNX's order: all that stand before, then all that stand after."""
    rank = len(window)
    kind = attributes.get("auto_pad", b"NOTSET").decode()
    if kind in ("NOTSET", "VALID"):
        return list(attributes.get("pads", [0] * 2 * rank)) if kind == "NOTSET" else [0] * 2 * rank
    sizes = (reader.shapes.get(node.input[0]) or [])[2:]
    strides = attributes.get("strides", [1] * rank)
    known = [size for size in sizes if size is not None]
    if len(known) != rank:
        raise cannot(node, "auto_pad and a size that is open")
    totals = [
        max((-(-size // step) - 1) * step + wide - size, 0) for size, step, wide in zip(known, strides, window, strict=True)
    ]
    less, more = [total // 2 for total in totals], [total - total // 2 for total in totals]
    return [*less, *more] if kind == "SAME_UPPER" else [*more, *less]


def _padded(reader: Reader, tensor: Any, pads: list[int], value: float = 0.0) -> tuple[Any, list[int]]:
    """The tensor and the padding that is left for the operator, which takes the same on both sides only."""
    rank = len(pads) // 2
    before, after = pads[:rank], pads[rank:]
    if before == after:
        return tensor, before
    pairs = [size for axis in reversed(range(rank)) for size in (before[axis], after[axis])]  # torch: the last axis first
    return reader.call(F.pad, tensor, pairs, value=value), [0] * rank


def _conv(reader: Reader, node: onnx.NodeProto, attributes: Attributes) -> Any:
    weight, bias = node.input[1], node.input[2] if len(node.input) > 2 else ""
    shape = reader.shapes.get(weight) or []
    if len(shape) - 2 not in _CONV:
        raise cannot(node, "other than one to three axes")
    kernel = [int(size or 0) for size in shape[2:]]
    kind, function = _CONV[len(kernel)]
    dilation = list(attributes.get("dilations", [1] * len(kernel)))
    window = [(size - 1) * step + 1 for size, step in zip(kernel, dilation, strict=True)]
    tensor, padding = _padded(reader, reader.tensor(node.input[0]), _padding(reader, node, attributes, window))
    stride = list(attributes.get("strides", [1] * len(kernel)))
    groups = int(attributes.get("group", 1))
    array, vector = reader.values[weight], reader.values[bias] if bias else None
    if not isinstance(array, np.ndarray) or not (vector is None or isinstance(vector, np.ndarray)):
        offset = reader.tensor(bias) if bias else None
        return reader.call(function, tensor, reader.tensor(weight), offset, stride, padding, dilation, groups)
    layer = kind(
        array.shape[1] * groups,
        array.shape[0],
        tuple(kernel),
        stride=tuple(stride),
        padding=tuple(padding),
        dilation=tuple(dilation),
        groups=groups,
        bias=vector is not None,
    )
    layer.weight = nn.Parameter(torch.tensor(array))
    origins = {"weight": Origin(weight)}
    if vector is not None:
        layer.bias = nn.Parameter(torch.tensor(vector))
        origins["bias"] = Origin(bias)
    return reader.layer(layer, tensor, origins=origins)


def _batch_norm(reader: Reader, node: onnx.NodeProto, attributes: Attributes) -> Any:
    scale, offset, mean, variance = (reader.needed(name, node) for name in node.input[1:])
    kind = _NORM.get(len(reader.shapes.get(node.input[0]) or ()))
    if kind is None:
        raise cannot(node, "other than two to five axes")
    layer = kind(len(scale), eps=attributes.get("epsilon", 1e-5), momentum=1 - attributes.get("momentum", 0.9))
    layer.weight, layer.bias = nn.Parameter(torch.tensor(scale)), nn.Parameter(torch.tensor(offset))
    layer.running_mean, layer.running_var = torch.tensor(mean), torch.tensor(variance)
    return reader.layer(
        layer, reader.tensor(node.input[0]), origins=dict(zip(("weight", "bias"), map(Origin, node.input[1:3]), strict=True))
    )


def _layer_norm(reader: Reader, node: onnx.NodeProto, attributes: Attributes) -> Any:
    eps = attributes.get("epsilon", 1e-5)
    scale, *offset = (reader.constant(name) for name in node.input[1:])
    if scale is None or any(one is None for one in offset):
        shape = tuple(reader.shapes[node.input[1]])
        return reader.call(F.layer_norm, reader.tensor(node.input[0]), shape, *map(reader.tensor, node.input[1:]), eps=eps)
    layer = nn.LayerNorm(scale.shape, eps=eps)
    layer.weight = nn.Parameter(torch.tensor(scale))
    origins = {"weight": Origin(node.input[1])}
    if len(node.input) > 2:
        layer.bias = nn.Parameter(torch.tensor(reader.needed(node.input[2], node)))
        origins["bias"] = Origin(node.input[2])
    return reader.layer(layer, reader.tensor(node.input[0]), origins=origins)


def _pool(kinds: dict[int, Callable[..., Any]], fill: float) -> Callable[..., Any]:
    def read(reader: Reader, node: onnx.NodeProto, attributes: Attributes) -> Any:
        kernel = list(attributes["kernel_shape"])
        dilation = list(attributes.get("dilations", [1] * len(kernel)))
        window = [(size - 1) * step + 1 for size, step in zip(kernel, dilation, strict=True)]
        pads = _padding(reader, node, attributes, window)
        largest = fill < 0
        if (
            len(kernel) not in kinds
            or len(node.output) > 1
            or (not largest and (set(dilation) != {1} or pads[: len(kernel)] != pads[len(kernel) :]))
        ):
            raise cannot(node, "these attributes")
        tensor, padding = _padded(reader, reader.tensor(node.input[0]), pads, fill)
        more = {"dilation": dilation} if largest else {"count_include_pad": bool(attributes.get("count_include_pad", 0))}
        stride, ceil = list(attributes.get("strides", [1] * len(kernel))), bool(attributes.get("ceil_mode", 0))
        return reader.call(kinds[len(kernel)], tensor, kernel, stride, padding, ceil_mode=ceil, **more)

    return read


def _reduce(function: Callable[..., Any]) -> Callable[..., Any]:
    def read(reader: Reader, node: onnx.NodeProto, attributes: Attributes) -> Any:
        axes = _axes(reader, node, attributes)
        if not axes:
            raise cannot(node, "no axes")
        return reader.call(function, reader.tensor(node.input[0]), axes, keepdim=bool(attributes.get("keepdims", 1)))

    return read


def _global(function: Callable[..., Any]) -> Callable[..., Any]:
    def read(reader: Reader, node: onnx.NodeProto, attributes: Attributes) -> Any:
        rank = len(reader.shapes.get(node.input[0]) or ())
        return reader.call(function, reader.tensor(node.input[0]), list(range(2, rank)), keepdim=True)

    return read


def _axes(reader: Reader, node: onnx.NodeProto, attributes: Attributes) -> list[int]:
    """From the attribute or, since opset 13, from the second input."""
    if "axes" in attributes:
        return list(attributes["axes"])
    return [int(axis) for axis in reader.needed(node.input[1], node)] if len(node.input) > 1 and node.input[1] else []


def _softmax(function: Callable[..., Any]) -> Callable[..., Any]:
    def read(reader: Reader, node: onnx.NodeProto, attributes: Attributes) -> Any:
        axis = int(attributes.get("axis", -1 if reader.opset >= 13 else 1))
        if reader.opset < 13 and axis not in (-1, len(reader.shapes.get(node.input[0]) or ()) - 1):
            raise cannot(node, "several axes at once")
        return reader.call(function, reader.tensor(node.input[0]), dim=axis)

    return read


def _clip(reader: Reader, node: onnx.NodeProto, attributes: Attributes) -> Any:
    bounds = [attributes.get("min"), attributes.get("max")]
    for place, name in enumerate(node.input[1:3]):
        bounds[place] = float(reader.needed(name, node)) if name else None
    return reader.call(torch.clamp, reader.tensor(node.input[0]), *bounds)


def _flatten(reader: Reader, node: onnx.NodeProto, attributes: Attributes) -> Any:
    if attributes.get("axis", 1) != 1:
        raise cannot(node, "another axis than 1")
    return reader.call(torch.flatten, reader.tensor(node.input[0]), 1)


def _reshape(reader: Reader, node: onnx.NodeProto, attributes: Attributes) -> Any:
    if isinstance(reader.values[node.input[0]], list):
        return reader.values[node.input[0]]
    sizes = reader.numbers(node.input[1])
    if sizes is None:
        raise cannot(node, "a shape that is computed from values")
    shape = reader.shapes.get(node.input[0]) or []
    if len(sizes) == 2 and len(shape) > 2 and _is_flat(sizes, shape):
        return reader.call(torch.flatten, reader.tensor(node.input[0]), 1)  # holds for other widths, too
    if 0 in sizes:
        kept = reader.sizes(node.input[0])
        sizes = [kept[axis] if isinstance(size, int) and size == 0 else size for axis, size in enumerate(sizes)]
    inferred = reader.shapes.get(node.output[0]) or [None] * len(sizes)
    reader.shapes[node.output[0]] = [
        size if isinstance(size, int) and size > 0 else known for size, known in zip(sizes, inferred, strict=True)
    ]
    return reader.call(torch.reshape, reader.tensor(node.input[0]), tuple(sizes))


def _is_flat(sizes: list[Any], shape: list[int | None]) -> bool:
    """Whether these two sizes keep the first axis, which is the batch's, and join the others."""
    rest = [size for size in shape[1:] if size is not None]
    first, second = sizes
    batch = first == 0 or (isinstance(first, torch.fx.Node) and first.target == "size" and first.args[0].op == "placeholder")
    return len(rest) == len(shape) - 1 and (second == int(np.prod(rest)) or (second == -1 and batch))


def _transpose(reader: Reader, node: onnx.NodeProto, attributes: Attributes) -> Any:
    order = attributes.get("perm") or list(reversed(range(len(reader.shapes[node.input[0]]))))
    return reader.call(torch.permute, reader.tensor(node.input[0]), tuple(order))


def _concat(reader: Reader, node: onnx.NodeProto, attributes: Attributes) -> Any:
    lists = [reader.numbers(name) for name in node.input]
    if all(one is not None for one in lists):
        return [size for one in lists for size in one or ()]
    return reader.call(torch.cat, [reader.tensor(name) for name in node.input], int(attributes["axis"]))


def _split(reader: Reader, node: onnx.NodeProto, attributes: Attributes) -> Any:
    axis = int(attributes.get("axis", 0))
    sizes = attributes.get("split") or (reader.needed(node.input[1], node).tolist() if len(node.input) > 1 else None)
    if sizes is None:
        size = (reader.shapes.get(node.input[0]) or [None])[axis]
        if size is None:
            raise cannot(node, "a size that is open")
        each = -(-size // len(node.output))
        sizes = [min(each, size - each * number) for number in range(len(node.output))]
    parts = reader.call(torch.split, reader.tensor(node.input[0]), [int(size) for size in sizes], axis)
    return tuple(reader.call(operator.getitem, parts, number) for number in range(len(node.output)))


def _slice(reader: Reader, node: onnx.NodeProto, attributes: Attributes) -> Any:
    if reader.opset < 10:
        raise cannot(node, "its form before opset 10")
    starts, ends = (reader.numbers(name) for name in node.input[1:3])
    if starts is None or ends is None:
        raise cannot(node, "places that are computed")
    axes = (
        reader.needed(node.input[3], node).reshape(-1).tolist()
        if len(node.input) > 3 and node.input[3]
        else list(range(len(starts)))
    )
    steps = reader.needed(node.input[4], node).reshape(-1).tolist() if len(node.input) > 4 else [1] * len(starts)
    if isinstance(reader.values[node.input[0]], list):
        return reader.values[node.input[0]][starts[0] : ends[0] : steps[0]]
    if min(steps) < 1:
        raise cannot(node, "a negative step")
    rank = len(reader.shapes.get(node.input[0]) or ())
    place = [slice(None)] * rank
    for axis, start, end, step in zip(positions(axes, rank), starts, ends, steps, strict=True):
        place[axis] = slice(start, None if isinstance(end, int) and end >= 2**31 - 1 else end, step)
    return reader.call(operator.getitem, reader.tensor(node.input[0]), tuple(place))


def _gather(reader: Reader, node: onnx.NodeProto, attributes: Attributes) -> Any:
    axis, places = int(attributes.get("axis", 0)), reader.constant(node.input[1])
    table = reader.values[node.input[0]]
    if places is not None and (numbers := reader.numbers(node.input[0])) is not None:
        return [numbers[int(place)] for place in places.reshape(-1)]
    if places is not None and places.ndim == 0:
        return reader.call(torch.select, reader.tensor(node.input[0]), axis, int(places))
    if isinstance(table, np.ndarray) and table.ndim == 2 and axis == 0:
        layer = nn.Embedding(*table.shape)
        layer.weight = nn.Parameter(torch.tensor(table))
        return reader.layer(layer, reader.tensor(node.input[1]), origins={"weight": Origin(node.input[0])})
    if places is None or places.ndim != 1:
        raise cannot(node, "places that are computed")
    return reader.call(torch.index_select, reader.tensor(node.input[0]), axis, reader.tensor(node.input[1]))


def _squeeze(reader: Reader, node: onnx.NodeProto, attributes: Attributes) -> Any:
    axes = _axes(reader, node, attributes)
    if isinstance(reader.values[node.input[0]], list):
        return reader.values[node.input[0]]
    if not axes:
        raise cannot(node, "no axes")
    return reader.call(torch.squeeze, reader.tensor(node.input[0]), tuple(axes))


def _unsqueeze(reader: Reader, node: onnx.NodeProto, attributes: Attributes) -> Any:
    if (numbers := reader.numbers(node.input[0])) is not None:
        return numbers
    axes = _axes(reader, node, attributes)
    tensor = reader.tensor(node.input[0])
    for axis in sorted(positions(axes, len(reader.shapes[node.input[0]]) + len(axes))):
        tensor = reader.call(torch.unsqueeze, tensor, axis)
    return tensor


def _shape(reader: Reader, node: onnx.NodeProto, attributes: Attributes) -> Any:
    return reader.sizes(node.input[0])[attributes.get("start", 0) : attributes.get("end")]


def _cast(reader: Reader, node: onnx.NodeProto, attributes: Attributes) -> Any:
    if isinstance(reader.values[node.input[0]], list):
        return reader.values[node.input[0]]
    if attributes["to"] not in _TYPES:
        raise cannot(node, "another type than float, int and bool")
    return reader.call(torch.Tensor.to, reader.tensor(node.input[0]), _TYPES[attributes["to"]])


def _filled(reader: Reader, node: onnx.NodeProto, attributes: Attributes) -> Any:
    sizes = reader.numbers(node.input[0])
    value = onnx.numpy_helper.to_array(attributes["value"]) if "value" in attributes else np.zeros(1, np.float32)
    if sizes is None:
        raise cannot(node, "a shape that is computed from values")
    return reader.call(torch.full, tuple(sizes), value.item(), dtype=torch.tensor(value).dtype)


def _expand(reader: Reader, node: onnx.NodeProto, attributes: Attributes) -> Any:
    sizes = reader.numbers(node.input[1])
    if sizes is None:
        raise cannot(node, "a shape that is computed from values")
    return reader.call(torch.Tensor.expand, reader.tensor(node.input[0]), tuple(sizes))


def _lstm(reader: Reader, node: onnx.NodeProto, attributes: Attributes) -> Any:
    names = [*node.input, *[""] * (8 - len(node.input))]
    started = [name for name in names[5:7] if name and not _is_zero(reader, name)]
    usual = {
        "input_forget": 0,
        "layout": 0,
        "activations": [b"Sigmoid", b"Tanh", b"Tanh"] * (2 if b"bidirectional" in attributes.values() else 1),
    }
    own = {name for name, value in attributes.items() if name not in ("direction", "hidden_size") and usual.get(name) != value}
    if own or names[4] or names[7] or started or not names[3]:
        raise cannot(node, "lengths, a state at the start, peepholes or activations of its own")
    direction = attributes.get("direction", b"forward").decode()
    if direction == "reverse":
        raise cannot(node, "the reverse direction alone")
    weight, recurrent, bias = (reader.needed(name, node) for name in names[1:4])
    hidden = int(attributes["hidden_size"])
    lstm = nn.LSTM(weight.shape[2], hidden, bidirectional=direction == "bidirectional")
    with torch.no_grad():
        for number, suffix in enumerate(["", "_reverse"][: weight.shape[0]]):
            parts = {"weight_ih": weight[number], "weight_hh": recurrent[number]}
            parts |= {"bias_ih": bias[number][: 4 * hidden], "bias_hh": bias[number][4 * hidden :]}
            for name, array in parts.items():
                given = torch.tensor(array).unflatten(0, (4, hidden))[[0, 2, 3, 1]]  # ONNX: input, output, forget, cell
                getattr(lstm, f"{name}_l0{suffix}").copy_(given.flatten(0, 1))
    answers = reader.layer(Lstm(lstm), reader.tensor(node.input[0]))
    return tuple(reader.call(operator.getitem, answers, number) for number in range(3))


def _is_zero(reader: Reader, name: str) -> bool:
    """Whether this is zeros, written out or made in the size of the batch, and perhaps cut."""
    value = reader.values[name]
    while isinstance(value, torch.fx.Node) and value.target in (torch.Tensor.expand, operator.getitem, torch.unsqueeze):
        value = value.args[0]
    if isinstance(value, torch.fx.Node) and value.op == "get_attr":
        value = getattr(reader.root, str(value.target)).detach().numpy()
    if isinstance(value, np.ndarray):
        return not value.any()
    return isinstance(value, torch.fx.Node) and value.target is torch.full and value.args[1] == 0


def _quantise(reader: Reader, node: onnx.NodeProto, attributes: Attributes) -> Any:
    """The rounding; DequantizeLinear behind it is nothing more."""
    scale, zero = reader.needed(node.input[1], node), reader.needed(node.input[2], node)
    _keep_shape(reader, node)
    return reader.layer(_rounding(scale, zero, attributes.get("axis", 1), *_range(zero.dtype)), reader.tensor(node.input[0]))


def _dequantise(reader: Reader, node: onnx.NodeProto, attributes: Attributes) -> Any:
    """Of a constant: a parameter that is rounded whenever it is used. int32 is a bias, whose steps are too small to matter."""
    array = reader.constant(node.input[0])
    if array is None:
        _keep_shape(reader, node)
        return reader.tensor(node.input[0])
    scale = reader.needed(node.input[1], node)
    zero = reader.needed(node.input[2], node) if len(node.input) > 2 and node.input[2] else np.zeros(scale.shape, array.dtype)
    axis = attributes.get("axis", 1) if scale.size > 1 else 0
    along = [-1 if place == axis else 1 for place in range(array.ndim)] if scale.size > 1 else []
    steps, zeros = scale.reshape(along), zero.astype(np.float32).reshape(along)
    low, high = _range(array.dtype)
    if array.dtype == np.int8 and not zero.any():
        high = int(np.abs(array.astype(np.int32)).max())  # weights may have been given fewer bits
        low = -high
    values = torch.tensor((array.astype(np.float32) - zeros) * steps)
    parameter = reader.parameter(values, Origin(node.input[0], scale=steps, zero=zeros, low=low, high=high))
    rounded = array.dtype != np.int32 and values.numel() > 1
    return reader.layer(_rounding(scale, zero, axis, low, high), parameter) if rounded else parameter


def _keep_shape(reader: Reader, node: onnx.NodeProto) -> None:
    """Where ONNX's inference knows less than was found here."""
    if (shape := reader.shapes.get(node.input[0])) is not None:
        reader.shapes[node.output[0]] = shape


def _range(kind: Any) -> tuple[int, int]:
    if kind not in (np.int8, np.uint8, np.int32):
        raise RecipeError(f"quantisation to {kind} cannot be trained; int8 and uint8 can")
    return int(np.iinfo(kind).min), int(np.iinfo(kind).max)


def _rounding(scale: Any, zero: Any, axis: int, low: int, high: int) -> FakeQuantised:
    scales, zeros = torch.tensor(scale).reshape(-1), torch.tensor(zero.astype(np.int32)).reshape(-1)
    return FakeQuantised(scales, zeros, axis=axis, low=low, high=high)


def _gelu(reader: Reader, node: onnx.NodeProto, attributes: Attributes) -> Any:
    kind = attributes.get("approximate", b"none").decode()
    return reader.call(F.gelu, reader.tensor(node.input[0]), approximate=kind)


def _hard_sigmoid(values: Any, alpha: float, beta: float) -> Any:
    return torch.clamp(alpha * values + beta, 0, 1)


_ALL = (
    torch.relu,
    torch.sigmoid,
    torch.tanh,
    torch.erf,
    torch.exp,
    torch.log,
    torch.sqrt,
    torch.abs,
    torch.neg,
    torch.reciprocal,
)
OPERATORS: dict[str, Callable[..., Any]] = {
    **{function.__name__.capitalize(): _function(function) for function in _ALL},
    "Softplus": _function(F.softplus),
    "HardSwish": _function(F.hardswish),
    "HardSigmoid": _function(_hard_sigmoid, alpha=("alpha", 0.2), beta=("beta", 0.5)),
    "LeakyRelu": _function(F.leaky_relu, negative_slope=("alpha", 0.01)),
    "Elu": _function(F.elu, alpha=("alpha", 1.0)),
    "Gelu": _gelu,
    "Softmax": _softmax(torch.softmax),
    "LogSoftmax": _softmax(torch.log_softmax),
    "Add": _binary(torch.add, operator.add),
    "Sub": _binary(torch.sub, operator.sub),
    "Mul": _binary(torch.mul, operator.mul),
    "Div": _binary(torch.div, operator.floordiv),
    "Pow": _binary(torch.pow),
    "Max": _binary(torch.maximum),
    "Min": _binary(torch.minimum),
    "Where": _binary(torch.where),
    "MatMul": _matmul,
    "Gemm": _gemm,
    "Conv": _conv,
    "BatchNormalization": _batch_norm,
    "LayerNormalization": _layer_norm,
    "LpNormalization": _function(F.normalize, p=("p", 2), dim=("axis", -1)),
    "LSTM": _lstm,
    "MaxPool": _pool({1: F.max_pool1d, 2: F.max_pool2d, 3: F.max_pool3d}, float("-inf")),
    "AveragePool": _pool({1: F.avg_pool1d, 2: F.avg_pool2d, 3: F.avg_pool3d}, 0.0),
    "GlobalAveragePool": _global(torch.mean),
    "GlobalMaxPool": _global(torch.amax),
    "ReduceMean": _reduce(torch.mean),
    "ReduceSum": _reduce(torch.sum),
    "ReduceMax": _reduce(torch.amax),
    "Clip": _clip,
    "Flatten": _flatten,
    "Reshape": _reshape,
    "Transpose": _transpose,
    "Concat": _concat,
    "Split": _split,
    "Slice": _slice,
    "Gather": _gather,
    "Squeeze": _squeeze,
    "Unsqueeze": _unsqueeze,
    "Shape": _shape,
    "Cast": _cast,
    "ConstantOfShape": _filled,
    "Expand": _expand,
    "Constant": _constant,
    "Identity": _same,
    "Dropout": _same,
    "QuantizeLinear": _quantise,
    "DequantizeLinear": _dequantise,
}

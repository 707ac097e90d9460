"""Requests as bytes, made before the load begins: from a file of samples or made up from the model's metadata.

Called by run.py (to check them) and worker.py (to send them); both get the same for the same settings. Not aware of: sockets.
"""

from collections.abc import Callable, Iterator, Sequence
from itertools import chain, cycle
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import msgspec
import numpy as np
from numpy.typing import NDArray

from dlproxy.lab.load.settings import KEYS, LoadError, Settings
from dlproxy.lab.load.target import Model
from dlproxy.message import DType, Tensor, TensorSpec
from dlproxy.tensors import NUMPY, fp32_to_bf16, to_bytes
from dlproxy.wire.oip.codec import NO_JSON_FORM, json_data

OPEN_SIZES = (1, 8, 32, 224)  # tried in turn for dimensions that the model leaves open, as dlproxy's own warm-up does
MAX_BYTES = 1 << 30
_DRAWS = 8192

Array = NDArray[np.generic]
Sample = Sequence[Tensor]
Body = tuple[bytes, dict[str, str]]


def samples(model: Model, settings: Settings, open_size: int) -> list[Sample]:
    """The inputs of every distinct request. Raises LoadError.

    `open_size` stands for open dimensions that no `--shape` gives, but not for the batch axis: that has `--rows`.
    """
    made = _from_file(model, settings) if settings.input is not None else _made_up(model, settings, open_size)
    if settings.zipf is not None and len(made) < 2:
        raise LoadError("--zipf picks among distinct requests, and there is only one; give --keys N")
    return made


def open_dimensions(model: Model, settings: Settings) -> bool:
    """Whether made-up inputs need a size that nobody has given."""
    if settings.input is not None:
        return False
    return any(min(spec.shape[1:], default=0) < 0 and spec.name not in settings.shapes for spec in model.inputs)


def encode(protocol: str, sample: Sample, deadline_s: float | None, more: Sequence[tuple[str, str]] = ()) -> Body:
    """Body and headers of an inference request, `more` headers among them. Raises LoadError."""
    parameters = {} if deadline_s is None else {"timeout": max(round(deadline_s * 1e6), 1)}
    body, headers = _ENCODERS[protocol](sample, parameters)
    return body, {**headers, **dict(more)}


def whole_request(path: str, host: str, body: Body) -> bytes:
    """HTTP/1.1, head and body."""
    content, headers = body
    lines = [f"POST {path} HTTP/1.1", f"Host: {host}", *(f"{name}: {value}" for name, value in headers.items())]
    return "\r\n".join([*lines, f"Content-Length: {len(content)}", "", ""]).encode("latin-1") + content


def in_order(count: int, settings: Settings, index: int) -> Iterator[int]:
    """Which request comes next, for ever: in turn, the processes starting evenly apart, or by Zipf's law."""
    return picks(count, settings.zipf, (settings.seed, index), start=index * count // settings.processes)


def picks(count: int, zipf: float | None, seed: Sequence[int], start: int = 0) -> Iterator[int]:
    """Numbers below `count`, for ever: in turn, or by Zipf's law with this exponent, 0 the commonest."""
    if zipf is None:
        return cycle([*range(start, count), *range(start)])
    weights = 1.0 / np.arange(1, count + 1, dtype=np.float64) ** zipf
    reached = np.cumsum(weights) / weights.sum()
    random = np.random.default_rng(seed)

    def draw() -> Iterator[list[int]]:
        while True:
            yield np.minimum(np.searchsorted(reached, random.random(_DRAWS), side="right"), count - 1).tolist()

    return chain.from_iterable(draw())


# Made-up inputs


def _made_up(model: Model, settings: Settings, open_size: int) -> list[Sample]:
    unknown = settings.shapes.keys() - {spec.name for spec in model.inputs}
    if unknown:
        raise LoadError(f"--shape {min(unknown)}: the model has no such input; {_takes(model)}")
    shapes = [_shape(spec, settings, open_size) for spec in model.inputs]
    count = KEYS if settings.keys is None else settings.keys
    size = sum(
        int(np.prod(shape, dtype=float)) * (spec.dtype.itemsize or 5) for spec, shape in zip(model.inputs, shapes, strict=True)
    )
    if size * count > MAX_BYTES:
        raise LoadError(
            f"{count} requests of {size:,} bytes each do not fit into memory; lower --keys or --rows, or give a smaller --shape"
        )
    random = np.random.default_rng(settings.seed)
    return [
        [_tensor(spec, shape, _random(spec.dtype, shape, random)) for spec, shape in zip(model.inputs, shapes, strict=True)]
        for _ in range(count)
    ]


def _shape(spec: TensorSpec, settings: Settings, open_size: int) -> list[int]:
    shape = list(spec.shape)
    inner = shape[1:] if shape and shape[0] < 0 else shape
    given = settings.shapes.get(spec.name)
    if given is not None:
        if len(given) != len(inner) or any(size not in (-1, is_) for size, is_ in zip(inner, given, strict=True)):
            like = ",".join(str(open_size if size < 0 else size) for size in inner)
            besides = " (--rows sets the batch axis)" if len(inner) < len(shape) else ""
            raise LoadError(
                f"--shape {spec.name}: input {_describe(spec)} takes {len(inner)} sizes{besides}, such as {spec.name}:{like}"
            )
        inner = list(given)
    inner = [open_size if size < 0 else size for size in inner]
    if len(inner) < len(shape):
        return [settings.rows or 1, *inner]
    _check_rows(spec, settings)
    return inner


def _check_rows(spec: TensorSpec, settings: Settings) -> None:
    """Where the model fixes the number of rows."""
    rows = spec.shape[0] if spec.shape else 1
    if settings.rows is not None and settings.rows != rows:
        raise LoadError(f"--rows {settings.rows}: each request for input {_describe(spec)} has {rows} rows; omit --rows")


def _random(dtype: DType, shape: Sequence[int], random: np.random.Generator) -> Array:
    """Floats of 0 to 1; integers and texts of 0 and 1, which suit most models that look them up in a table."""
    if dtype is DType.BYTES:
        return random.integers(0, 2, shape).astype(str).astype(object)
    if dtype is DType.BF16:
        return fp32_to_bf16(random.random(shape, np.float32))
    if NUMPY[dtype].kind == "f":
        return random.random(shape).astype(NUMPY[dtype])
    return random.integers(0, 2, shape).astype(NUMPY[dtype])


# Inputs from a file


def _from_file(model: Model, settings: Settings) -> list[Sample]:
    assert settings.input is not None
    arrays = _read(settings.input, model)
    columns = [_cut(spec, arrays[spec.name], settings) for spec in model.inputs]
    counts = {spec.name: len(column) for spec, column in zip(model.inputs, columns, strict=True)}
    if len(set(counts.values())) > 1:
        said = ", ".join(f"'{name}' {count}" for name, count in counts.items())
        raise LoadError(f"{settings.input}: the inputs must make equally many requests, not {said}")
    made: list[Sample] = [list(sample) for sample in zip(*columns, strict=True)]
    if settings.keys is not None and settings.keys > len(made):
        raise LoadError(f"--keys {settings.keys}: {settings.input} makes only {len(made)} distinct requests")
    return made[: settings.keys]


def _read(path: Path, model: Model) -> dict[str, Array]:
    try:
        with path.open("rb") as file:  # numpy leaves its own open when it fails
            loaded = np.load(file, allow_pickle=False)
            arrays = {name: loaded[name] for name in loaded.files} if isinstance(loaded, np.lib.npyio.NpzFile) else None
    except OSError as error:
        raise LoadError(f"--input {path} cannot be read: {error.strerror or error}") from None
    except (ValueError, EOFError, BadZipFile, KeyError):
        raise LoadError(
            f"--input {path} is not a .npy or .npz file of plain arrays; write it with numpy.save or numpy.savez"
        ) from None
    if arrays is None:
        if len(model.inputs) > 1:
            raise LoadError(f"--input {path}: {_takes(model)}; give an .npz file with an array of each name")
        return {model.inputs[0].name: loaded}
    names = {spec.name for spec in model.inputs}
    if arrays.keys() != names:
        raise LoadError(f"--input {path} holds {', '.join(arrays) or 'nothing'}; {_takes(model)}")
    return arrays


def _cut(spec: TensorSpec, array: Array, settings: Settings) -> list[Tensor]:
    """One tensor per request. Axis 0 of the array counts rows, or whole tensors if it has a dimension more."""
    declared = spec.shape
    fixed = bool(declared) and declared[0] >= 0
    whole = array.ndim == len(declared) + 1 and (fixed or not declared)
    inner = array.shape[1:]
    wanted = declared if whole else declared[1:]
    if array.ndim != len(declared) + whole or not _fits(inner, wanted):
        raise LoadError(
            f"--input {settings.input}: the array for input {_describe(spec)} has shape {list(array.shape)}; "
            f"it must be [samples, {', '.join('any' if size < 0 else str(size) for size in wanted)}]".replace(", ]", "]")
        )
    values = _converted(spec, array, settings.input)
    if fixed or not declared:
        _check_rows(spec, settings)
    rows = 1 if whole else declared[0] if fixed else settings.rows or 1
    if len(array) < rows:
        raise LoadError(f"--input {settings.input}: {len(array)} samples for input {_describe(spec)}, a request takes {rows}")
    pieces = list(values) if whole else [values[at : at + rows] for at in range(0, len(values) - rows + 1, rows)]
    return [_tensor(spec, np.shape(piece), np.asarray(piece)) for piece in pieces]


def _converted(spec: TensorSpec, array: Array, path: Path | None) -> Array:
    """The array in the type that the wire takes: no silent conversions, but texts and BF16 have no exact numpy type."""
    if spec.dtype is DType.BYTES and array.dtype.kind in "US":
        values = array.astype(object)
        if array.dtype.kind == "S" and array.size and max(map(len, values.flat)) < array.dtype.itemsize:
            raise LoadError(
                f"--input {path}: every element for input {_describe(spec)} ends in a zero byte, which numpy's type "
                f"{array.dtype.str} drops; end at least one in another byte, and the others are sent without their last zeros"
            )
        return values
    wanted = np.dtype(np.float32) if spec.dtype is DType.BF16 else NUMPY[spec.dtype]
    if spec.dtype is DType.BYTES or array.dtype.newbyteorder("<") != wanted:
        needed = "text" if spec.dtype is DType.BYTES else wanted.name
        remedy = "str" if spec.dtype is DType.BYTES else f"'{wanted.name}'"
        raise LoadError(
            f"--input {path}: the array for input {_describe(spec)} is {array.dtype.name}, it must be {needed}; "
            f"save array.astype({remedy})"
        )
    return fp32_to_bf16(array) if spec.dtype is DType.BF16 else array


def _tensor(spec: TensorSpec, shape: Sequence[int], array: Array) -> Tensor:
    return Tensor(spec.name, spec.dtype, list(shape), to_bytes(spec.dtype, array))


def _fits(shape: Sequence[int], declared: Sequence[int]) -> bool:
    return len(shape) == len(declared) and all(size in (-1, is_) for size, is_ in zip(declared, shape, strict=True))


def _describe(spec: TensorSpec) -> str:
    return f"'{spec.name}' {spec.dtype.value} [{','.join(spec.sizes)}]"


def _takes(model: Model) -> str:
    return f"model '{model.name}' takes {', '.join(_describe(spec) for spec in model.inputs)}"


# Protocols


def _binary(sample: Sample, parameters: dict[str, Any]) -> Body:
    inputs = [
        {
            "name": tensor.name,
            "datatype": tensor.dtype.value,
            "shape": tensor.shape,
            "parameters": {"binary_data_size": len(tensor.data)},
        }
        for tensor in sample
    ]
    head = msgspec.json.encode({"parameters": {"binary_data_output": True, **parameters}, "inputs": inputs})
    headers = {"Content-Type": "application/octet-stream", "Inference-Header-Content-Length": str(len(head))}
    return b"".join([head, *(tensor.data for tensor in sample)]), headers


def _json(sample: Sample, parameters: dict[str, Any]) -> Body:
    inputs = []
    for tensor in sample:
        if tensor.dtype in NO_JSON_FORM:
            raise LoadError(f"input '{tensor.name}' is {tensor.dtype.value}, which has no JSON form; use --protocol binary")
        try:
            data = json_data(tensor, flat=True)
        except UnicodeDecodeError:
            raise LoadError(f"input '{tensor.name}' holds bytes that are not UTF-8 text; use --protocol binary") from None
        inputs.append({"name": tensor.name, "datatype": tensor.dtype.value, "shape": tensor.shape, "data": data})
    described = {"inputs": inputs, **({"parameters": parameters} if parameters else {})}
    return msgspec.json.encode(described), {"Content-Type": "application/json"}


_ENCODERS: dict[str, Callable[[Sample, dict[str, Any]], Body]] = {"binary": _binary, "json": _json}

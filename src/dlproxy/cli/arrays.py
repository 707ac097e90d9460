"""Tensors on the command line: read from words and files, shown as text, written to files. Called by cli/infer.py.

Not aware of: servers.
"""

import io
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from dlproxy import tensors
from dlproxy.cli.terminal import say
from dlproxy.instance.remote.json_values import texts_or_base64
from dlproxy.instance.remote.oip_model import Described, Metadata
from dlproxy.message import DType
from dlproxy.tensors import Answer

_NAMED = re.compile(r"(?P<name>[^\s=@\[{\"]+)=(?P<value>.*)", re.DOTALL)
MOST_SHOWN = 1000  # bytes of an element
FILES = (".npz", ".npy", ".json")


class ValuesError(Exception):
    """What was given is no input, or cannot be written; the message says why and what would be right."""


# What is given


def inputs_of(words: Sequence[str], model: Metadata) -> dict[str, Any]:
    """Raises ValuesError."""
    inputs: dict[str, Any] = {}
    for word in words:
        match = _NAMED.fullmatch(word)
        found = {match["name"]: _value(match["value"], match["name"])} if match else _unnamed(word, model)
        for name in found:
            if name in inputs:
                raise ValuesError(f"input '{name}' is given twice")
        inputs |= found
    known = {each.name: each for each in model.inputs}
    missing = [name for name in known if name not in inputs]
    if not inputs and missing:
        example = " ".join(f"{name}=@{name}.npy" for name in known)
        raise ValuesError(f"{model.name} takes {_described(model)}; give its inputs like {example}")
    return {name: _fitted(value, known[name]) if name in known else value for name, value in inputs.items()}


def _unnamed(word: str, model: Metadata) -> dict[str, Any]:
    """By name: what a file or an object names itself, else the only input."""
    value = _value(word, "")
    if isinstance(value, Mapping):
        return dict(value)
    if len(model.inputs) != 1:
        raise ValuesError(f"{model.name} takes {_described(model)}; say which input {word[:40]!r} is: NAME={word[:40]}")
    return {model.inputs[0].name: value}


def _value(text: str, name: str) -> Any:
    """An array, a JSON value, text, or the bytes of a file."""
    if text.startswith("@"):
        return _file(text[1:], name)
    try:
        return msgspec.json.decode(text)
    except msgspec.DecodeError:
        if text[:1] in '[{"' or not text:
            raise ValuesError(f"{name or 'the input'}: {text[:60]!r} is not complete JSON; a file is given as @FILE") from None
        return text


def _file(path: str, name: str) -> Any:
    try:
        data = sys.stdin.buffer.read() if path == "-" else Path(path).read_bytes()
    except OSError as error:
        raise ValuesError(f"{path} cannot be read: {(error.strerror or str(error)).lower()}") from None
    suffix = Path(path).suffix.lower()
    try:
        if suffix in (".npy", ".npz") or data[:6] == b"\x93NUMPY" or (path == "-" and data[:4] == b"PK\x03\x04"):
            return _numpy(data, path, name)
        if suffix == ".json" or (path == "-" and data.lstrip()[:1] in (b"[", b"{")):
            return msgspec.json.decode(data)
    except (ValueError, msgspec.DecodeError, OSError) as error:
        raise ValuesError(f"{path} cannot be read: {error}") from None
    return data


def _numpy(data: bytes, path: str, name: str) -> Any:
    loaded: Any = np.load(io.BytesIO(data), allow_pickle=False)
    if isinstance(loaded, np.ndarray):
        return loaded
    with loaded:
        arrays = {key: loaded[key] for key in loaded.files}
    if not name:
        return arrays
    if name in arrays or len(arrays) == 1:
        return arrays.get(name, next(iter(arrays.values())))
    raise ValuesError(f"{path} has no array '{name}'; it has {', '.join(arrays)}")


def _fitted(value: Any, spec: Described) -> Any:
    """Bytes as elements of the input's type; a single value in as many dimensions as the input has. Raises ValuesError."""
    if isinstance(value, bytes) and spec.datatype is not DType.BYTES:
        return _raw(value, spec)
    if isinstance(value, np.ndarray) and value.dtype.kind in "SU" and spec.datatype is DType.BYTES:
        value = value.astype(object)  # a file has no other kind of strings
    if isinstance(value, str | bytes | int | float):
        kind = object if spec.datatype is DType.BYTES else None
        if spec.datatype is DType.BYTES and isinstance(value, int | float):
            value = str(value)
        if isinstance(value, str) and kind is None:
            raise ValuesError(
                f"input '{spec.name}' is {spec.datatype.value}; {value[:40]!r} is none, and a file is given as @FILE"
            )
        return np.array(value, kind).reshape((1,) * len(spec.shape))
    return value


def _raw(data: bytes, spec: Described) -> NDArray[Any]:
    wanted = tensors.NUMPY[spec.datatype]
    open_sizes = [size for size in spec.shape if size < 0]
    shape = [1 if size < 0 and len(open_sizes) > 1 and axis == 0 else size for axis, size in enumerate(spec.shape)]
    try:
        array = np.frombuffer(data, wanted).reshape(shape)
    except ValueError:
        sizes = ",".join(map(str, spec.shape))
        raise ValuesError(
            f"input '{spec.name}': {len(data)} bytes do not make {spec.datatype.value} [{sizes}]; an .npy file says its shape"
        ) from None
    return tensors.bf16_to_fp32(array) if spec.datatype is DType.BF16 else array


def _described(model: Metadata) -> str:
    return ", ".join(f"{each.name} ({each.datatype.value} [{','.join(map(str, each.shape))}])" for each in model.inputs)


# What comes back


class Writer:
    """Where the parts of an answer go, each as it comes, and all of them into a file at the end."""

    def __init__(self, form: str, file: Path | None) -> None:
        """Raises ValuesError for a file that nothing can be written to."""
        if file is not None:
            if file.suffix.lower() not in FILES:
                raise ValuesError(f"{file} says no format; end its name in {', '.join(FILES)}")
            if not file.absolute().parent.is_dir():
                raise ValuesError(f"{file} cannot be written: there is no folder {file.absolute().parent}")
        self._form = form
        self._file = file
        self._kept: list[Answer] = []

    def write(self, part: Answer) -> None:
        """Raises ValuesError."""
        if self._file is not None:
            self._kept.append(part)
        elif self._form == "json":
            say(_json(part))
        elif self._form == "npy":
            np.save(sys.stdout.buffer, _plain(_only(part)))
            sys.stdout.buffer.flush()
        else:
            if self._kept:
                say("")
            self._kept = [part]
            for name, array in part.items():
                say(_text(name, array))

    def end(self) -> None:
        """Raises ValuesError."""
        if self._file is None:
            return
        suffix = self._file.suffix.lower()
        try:
            if suffix == ".json":
                self._file.write_text("".join(f"{_json(part)}\n" for part in self._kept), "utf-8")
            elif suffix == ".npy":
                if len(self._kept) != 1:
                    raise ValuesError(f"the answer has {len(self._kept)} parts; write them as .npz or .json")
                np.save(self._file, _plain(_only(self._kept[0])))
            else:
                many = len(self._kept) > 1
                arrays: Any = {
                    f"{name}.{number}" if many else name: _plain(array)
                    for number, part in enumerate(self._kept)
                    for name, array in part.items()
                }
                np.savez(self._file, **arrays)
        except OSError as error:
            raise ValuesError(f"{self._file} cannot be written: {(error.strerror or str(error)).lower()}") from None
        said = ", ".join(f"{name} {_kind(array)}" for name, array in self._kept[0].items()) if self._kept else "nothing"
        say(f"{self._file}: {said}" + (f", {len(self._kept)} parts" if len(self._kept) > 1 else ""))


def _only(part: Answer) -> NDArray[Any]:
    if len(part) != 1:
        raise ValuesError(f"the answer has the outputs {', '.join(part)}; npy holds one array: use json, or -o FILE.npz")
    return next(iter(part.values()))


def _plain(array: NDArray[Any]) -> NDArray[Any]:
    """As .npy files hold it: bytes in fixed width. Raises ValuesError."""
    if array.dtype != object:
        return array
    if any(element.endswith(b"\0") for element in array.ravel()):
        raise ValuesError("an element ends in a zero byte, which .npy and .npz cannot hold: use json")
    return array.astype(bytes)


def _json(part: Answer) -> str:
    values = {name: (texts_or_base64(array) if array.dtype == object else array).tolist() for name, array in part.items()}
    return msgspec.json.encode(values).decode()


def _text(name: str, array: NDArray[Any]) -> str:
    formatter: Any = {"object": _words}
    values = np.array2string(
        array,
        threshold=64,
        edgeitems=4,
        max_line_width=100,
        precision=6,
        suppress_small=True,
        separator=", ",
        formatter=formatter,
    )
    return f"{name}  {_kind(array)}\n{values}"


def _words(element: bytes) -> str:
    short = element if len(element) <= MOST_SHOWN else element[:MOST_SHOWN] + b"..."
    try:
        return repr(short.decode())
    except UnicodeDecodeError:
        return repr(short)


def _kind(array: NDArray[Any]) -> str:
    return f"{'bytes' if array.dtype == object else array.dtype} [{','.join(map(str, array.shape))}]"

"""Requests, descriptions and replies that the tests of the remote codecs share."""

import json
from collections.abc import Sequence
from typing import Any

import numpy as np

from dlproxy.instance.remote.http_client import Reply
from dlproxy.message import DType, Request, Tensor, Ticket
from dlproxy.tensors import to_bytes


def request(*tensors: tuple[str, DType, Any]) -> Request:
    """One request of (name, type, values)."""
    inputs = []
    for name, dtype, values in tensors:
        array = np.asarray(values, object if dtype is DType.BYTES else None)
        inputs.append(Tensor(name, dtype, array.shape, to_bytes(dtype, array)))
    return Request(Ticket(1, 0.0, rows=inputs[0].shape[0] if inputs[0].shape else 1), "m", inputs, (0,))


def joined(parts: Sequence[bytes | bytearray | memoryview]) -> tuple[dict[str, str], bytes]:
    """Header and body of an encoded request; checks that the lengths are true."""
    head, _, body = b"".join(parts).partition(b"\r\n\r\n")
    lines = head.decode().split("\r\n")
    headers = {name.strip().lower(): value.strip() for name, _, value in (line.partition(":") for line in lines[1:])}
    headers["request"] = lines[0]
    assert int(headers.get("content-length", 0)) == len(body)
    return headers, body


def answer(value: Any, status: int = 200, **headers: str) -> Reply:
    """A reply with this JSON, or these bytes."""
    body = value if isinstance(value, bytes) else json.dumps(value).encode()
    return Reply(status, {name.replace("_", "-").encode(): text.encode() for name, text in headers.items()}, body)


def binary_answer(outputs: Sequence[dict[str, Any]], *data: bytes) -> Reply:
    """An inference response with binary outputs."""
    head = json.dumps({"model_name": "m", "outputs": outputs}).encode()
    return answer(head + b"".join(data), inference_header_content_length=str(len(head)))


def output(shape: Sequence[int], *, datatype: str = "FP32", name: str = "y", size: int | None = None) -> dict[str, Any]:
    """How a response describes a binary output; `size` defaults to that of FP32."""
    given = 4 * int(np.prod(shape)) if size is None else size
    return {"name": name, "datatype": datatype, "shape": list(shape), "parameters": {"binary_data_size": given}}


def tensor(name: str, datatype: str, shape: Sequence[int]) -> dict[str, Any]:
    """One entry of a model's metadata."""
    return {"name": name, "datatype": datatype, "shape": list(shape)}

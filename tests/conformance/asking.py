"""A request for inference as no protocol says it, and its four forms: JSON and binary over HTTP, typed and raw over gRPC.

Called by the tables of cases. Not aware of: what is right.
"""

import json
from collections.abc import Sequence
from typing import Any

import numpy as np
from msgspec import Struct
from tritonclient.grpc import service_pb2 as pb

NUMPY = {"FP32": "<f4", "FP64": "<f8", "FP16": "<f2", "INT64": "<i8", "INT32": "<i4", "UINT8": "u1", "BOOL": "?"}
CONTENTS = {
    "FP32": "fp32_contents",
    "FP64": "fp64_contents",
    "INT64": "int64_contents",
    "INT32": "int_contents",
    "UINT8": "uint_contents",
    "BOOL": "bool_contents",
    "BYTES": "bytes_contents",
}

Parameters = dict[str, Any]
Data = Sequence[Any]


class Given(Struct, frozen=True):
    """An input. `stored_as`: the element type of `data`, where `datatype` is none."""

    name: str
    datatype: str
    shape: Sequence[int]
    data: Data = ()
    parameters: Parameters = {}
    stored_as: str = ""

    @property
    def raw(self) -> bytes:
        kind = self.stored_as or self.datatype
        if kind == "BYTES":
            texts = [text.encode() for text in self.data]
            return b"".join(len(text).to_bytes(4, "little") + text for text in texts)
        return np.array(self.data, NUMPY[kind]).tobytes()


class Wanted(Struct, frozen=True):
    """An output that is asked for."""

    name: str
    parameters: Parameters = {}


class Ask(Struct, frozen=True):
    """A request for inference. `parameters` of kinds that gRPC has."""

    model: str
    inputs: Sequence[Given]
    outputs: Sequence[Wanted] = ()
    id: str = ""
    version: str = ""
    parameters: Parameters = {}

    @property
    def path(self) -> str:
        return f"/v2/models/{self.model}{f'/versions/{self.version}' if self.version else ''}/infer"


class Http(Struct, frozen=True):
    """A request over HTTP."""

    method: str
    path: str
    body: bytes = b""
    headers: dict[str, str] = {}


class Grpc(Struct, frozen=True):
    """A call: its messages, and what class its answers are of."""

    method: str
    messages: Sequence[Any]
    answer: Any
    service: str = "inference.GRPCInferenceService"

    @property
    def is_stream(self) -> bool:
        return self.method == "ModelStreamInfer"


Request = Http | Grpc


def get(path: str, **headers: str) -> Http:
    return Http("GET", path, headers=headers)


def post(path: str, body: Any = b"", **headers: str) -> Http:
    """`body`: bytes, a text, or what is sent as JSON."""
    if not isinstance(body, bytes | str):
        body = json.dumps(body)
    return Http("POST", path, body.encode() if isinstance(body, str) else body, headers)


def with_binary(path: str, head: Any, rest: bytes, size: int | None = None) -> Http:
    """`size`: of the head, if it is said wrongly."""
    text = json.dumps(head).encode()
    length = str(len(text) if size is None else size)
    return Http("POST", path, text + rest, {"Inference-Header-Content-Length": length})


def as_json(ask: Ask) -> Http:
    return post(ask.path, _head(ask, [{"data": list(each.data)} if each.data else {} for each in ask.inputs]))


def as_binary(ask: Ask) -> Http:
    sizes = [{"parameters": {"binary_data_size": len(each.raw)}} if each.data else {} for each in ask.inputs]
    head = _head(ask, sizes)
    head["parameters"] = {"binary_data_output": True, **ask.parameters}
    return with_binary(ask.path, head, b"".join(each.raw for each in ask.inputs if each.data))


def as_typed(ask: Ask) -> Grpc:
    message = infer_message(ask)
    for tensor, given in zip(message.inputs, ask.inputs, strict=True):
        kind = given.stored_as or given.datatype
        if kind in CONTENTS:
            data = [each.encode() for each in given.data] if kind == "BYTES" else given.data
            getattr(tensor.contents, CONTENTS[kind]).extend(data)
    return infer_call(message)


def as_raw(ask: Ask) -> Grpc:
    message = infer_message(ask)
    message.raw_input_contents.extend(each.raw for each in ask.inputs if each.data)
    return infer_call(message)


FORMS = {"json": as_json, "binary": as_binary, "typed": as_typed, "raw": as_raw}


def infer_call(message: Any) -> Grpc:
    return Grpc("ModelInfer", [message], pb.ModelInferResponse)


def infer_message(ask: Ask) -> Any:
    """Without data."""
    message = pb.ModelInferRequest(model_name=ask.model, model_version=ask.version, id=ask.id)
    _fill(message.parameters, ask.parameters)
    for given in ask.inputs:
        tensor = message.inputs.add(name=given.name, datatype=given.datatype, shape=given.shape)
        _fill(tensor.parameters, given.parameters)
    for wanted in ask.outputs:
        _fill(message.outputs.add(name=wanted.name).parameters, wanted.parameters)
    return message


def _fill(map_: Any, parameters: Parameters) -> None:
    for name, value in parameters.items():
        kind = {bool: "bool_param", int: "int64_param", str: "string_param", float: "double_param"}[type(value)]
        setattr(map_[name], kind, value)


def _head(ask: Ask, more: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """`more`: of each input."""
    head: dict[str, Any] = {"id": ask.id} if ask.id else {}
    if ask.parameters:
        head["parameters"] = ask.parameters
    head["inputs"] = []
    for given, its in zip(ask.inputs, more, strict=True):
        parameters = {**given.parameters, **its.get("parameters", {})}
        tensor = {"name": given.name, "shape": list(given.shape), "datatype": given.datatype, **its}
        head["inputs"].append({**tensor, "parameters": parameters} if parameters else tensor)
    if ask.outputs:
        head["outputs"] = [
            {"name": wanted.name, "parameters": wanted.parameters} if wanted.parameters else {"name": wanted.name}
            for wanted in ask.outputs
        ]
    return head

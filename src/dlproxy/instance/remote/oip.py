"""The Open Inference Protocol over REST, as a client: Triton, KServe, OpenVINO Model Server, another dlproxy. Sans-I/O.

Tensors go as they came, unparsed, where the upstream takes the binary tensor extension; as JSON elsewhere.
Called by remote.py, and for its parts by the Python client. Not aware of: connections.
"""

from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

import msgspec
from msgspec import Struct

from dlproxy.instance.batch import Array
from dlproxy.instance.remote import json_values, oip_generate
from dlproxy.instance.remote.address import Address
from dlproxy.instance.remote.codec import UpstreamModel, check_type, from_bytes, gathered_shape, output_of, reported
from dlproxy.instance.remote.failures import UpstreamError
from dlproxy.instance.remote.http_channel import Heads, Lines
from dlproxy.instance.remote.http_client import Reply
from dlproxy.instance.remote.oip_model import Config, Metadata, model_of
from dlproxy.instance.remote.settings import RemoteSettings
from dlproxy.message import DType, FailureKind, Request, TensorSpec

BINARY = "binary_tensor_data"
_LENGTH = b"inference-header-content-length"
_NO_DATA = msgspec.Raw()
_Told = TypeVar("_Told", bound=Struct)


class _Size(Struct):
    binary_data_size: int


class _Input(Struct, omit_defaults=True):
    name: str
    shape: Sequence[int]
    datatype: str
    parameters: _Size | None = None
    data: Any = None


class _Ask(Struct):
    inputs: list[_Input]


class _AskBinary(Struct):
    inputs: list[_Input]
    parameters: dict[str, bool]


class _OutputParams(Struct):
    binary_data_size: int | None = None


class Output(Struct):
    name: str
    datatype: DType
    shape: tuple[int, ...]
    parameters: _OutputParams | None = None
    data: msgspec.Raw = _NO_DATA


class _Answer(Struct):
    outputs: list[Output]


class _Server(Struct):
    extensions: list[str] = []


_encode = msgspec.json.Encoder().encode
_decode_answer = msgspec.json.Decoder(_Answer).decode


class OipCodec:
    """For one model at one address."""

    def __init__(self, address: Address, settings: RemoteSettings) -> None:
        heads = Heads(address, settings.headers)
        self._settings = settings
        self.questions: Mapping[str, Lines] = {
            "server": heads.get(address.base),
            "model": heads.get(address.path),
            "config": heads.get(f"{address.path}/config"),
        }
        self.readiness: Lines = heads.get(f"{address.path}/ready")
        post = heads.post(f"{address.path}/infer")
        stream = heads.post(f"{address.path}/generate_stream")
        self._post_stream = stream + b"content-type: application/json\r\ncontent-length: "
        self._post_json = post + b"content-type: application/json\r\ncontent-length: "
        self._post_binary = post + b"content-type: application/octet-stream\r\n" + _LENGTH + b": "

    def is_ready(self, reply: Reply) -> bool:
        """KServe answers 200 also to say no."""
        if reply.status != 200:
            return False
        try:
            said = msgspec.json.decode(reply.body) if reply.body else None
        except (msgspec.DecodeError, UnicodeDecodeError):
            return True
        return not (isinstance(said, dict) and said.get("ready") is False)

    def described(self, replies: Mapping[str, Reply]) -> UpstreamModel:
        reply = replies["model"]
        if (refused := reply.refusal()) is not None:
            raise refused
        try:
            metadata = msgspec.json.decode(reply.body, type=Metadata)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise UpstreamError(f"the upstream's description of the model is not understood: {error}") from None
        binary = self._settings.binary
        if binary is None:
            binary = BINARY in _optional(replies["server"], _Server, _Server()).extensions
        config = _optional(replies["config"], Config, Config())
        if config.model_transaction_policy.decoupled:  # of whose answers REST has only JSON
            binary = False
        return model_of(metadata, config, self._settings, binary=binary)

    def encode(self, model: UpstreamModel, requests: Sequence[Request]) -> Lines:
        if model.signature.streams:
            body = oip_generate.body_of(model.signature, requests[0])
            return [b"%b%d\r\n\r\n" % (self._post_stream, len(body)), body]
        return self._encode_binary(model, requests) if model.binary else self._encode_json(model, requests)

    def _encode_binary(self, model: UpstreamModel, requests: Sequence[Request]) -> Lines:
        """Gathered by writing the clients' bytes one after the other: no copy."""
        inputs, data = [], []
        for index, spec in enumerate(model.signature.inputs):
            parts = [request.inputs[index].data for request in requests]
            size = _Size(sum(map(len, parts)))
            inputs.append(_Input(spec.name, gathered_shape(requests, index), spec.dtype.value, size))
            data += parts
        head = _encode(_AskBinary(inputs, {"binary_data_output": True}))
        body_bytes = len(head) + sum(map(len, data))
        return [b"%b%d\r\ncontent-length: %d\r\n\r\n%b" % (self._post_binary, len(head), body_bytes, head), *data]

    def _encode_json(self, model: UpstreamModel, requests: Sequence[Request]) -> Lines:
        inputs = []
        for index, spec in enumerate(model.signature.inputs):
            array = json_values.gathered(spec, index, requests)
            if not json_values.is_finite(array):
                message = f"input '{spec.name}' has NaN or infinity, which JSON cannot carry, and the upstream takes JSON only"
                raise UpstreamError(message, FailureKind.INVALID_ARGUMENT)
            if spec.dtype is DType.BYTES:
                array = json_values.texts(array, spec.name)
            inputs.append(_Input(spec.name, array.shape, spec.dtype.value, None, array.ravel().tolist()))
        body = _encode(_Ask(inputs))
        return [b"%b%d\r\n\r\n" % (self._post_json, len(body)), body]

    def decode(self, model: UpstreamModel, reply: Reply, rows: int) -> list[Array]:
        given = outputs_of(reply)
        signature = model.signature
        expected = rows if signature.batched else None
        outputs = []
        for spec in signature.outputs:
            output, data = output_of(given, spec)
            outputs.append(reported(spec, output.datatype, array_of(spec, output, data), expected))
        return outputs

    def decode_part(self, model: UpstreamModel, reply: Reply) -> list[Array] | None:
        """Of an event. Raises UpstreamError."""
        return oip_generate.outputs_in(model.signature, reply.body)


def outputs_of(reply: Reply) -> "dict[str, tuple[Output, memoryview | None]]":
    """Each output of an answer with its bytes; None for those in JSON. Raises UpstreamError."""
    body = memoryview(reply.body)
    length = reply.headers.get(_LENGTH)
    json_bytes = len(body)
    if length is not None:
        if not length.isdigit() or int(length) > len(body):
            raise _unusable(f"its JSON is said to have {length.decode('latin-1')!r} bytes, all of it has {len(body)}")
        json_bytes = int(length)
    try:
        answer = _decode_answer(body[:json_bytes])
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise _unusable(str(error)) from None
    return _sliced(answer, body[json_bytes:])


def _sliced(answer: _Answer, binary: memoryview) -> dict[str, tuple[Output, memoryview | None]]:
    given: dict[str, tuple[Output, memoryview | None]] = {}
    at = 0
    for output in answer.outputs:
        size = None if output.parameters is None else output.parameters.binary_data_size
        if size is None:
            given[output.name] = (output, None)
            continue
        if size < 0 or at + size > len(binary):
            raise _unusable(f"output '{output.name}' has {size} bytes, {len(binary) - at} are left")
        given[output.name] = (output, binary[at : at + size])
        at += size
    if at != len(binary):
        raise _unusable(f"{len(binary) - at} bytes follow the last output")
    return given


def array_of(spec: TensorSpec, output: Output, data: memoryview | None) -> Array:
    """Its elements, as the spec says that they are; shapes are not compared. Raises UpstreamError."""
    check_type(spec, output.datatype.value)  # before its bytes are taken for what they are not
    try:
        if data is not None:
            return from_bytes(spec, output.shape, data)
        if output.data is _NO_DATA:
            raise ValueError("it has neither data nor binary_data_size")
        return json_values.to_array(spec, json_values.decode(bytes(output.data)), output.shape)
    except (ValueError, TypeError, OverflowError) as error:
        raise UpstreamError(f"the upstream's output '{spec.name}' cannot be read: {error}") from None


def _unusable(why: str) -> UpstreamError:
    return UpstreamError(f"the upstream's answer is not an inference response: {why}")


def _optional(reply: Reply, kind: type[_Told], default: _Told) -> _Told:
    """What not every server tells."""
    try:
        return msgspec.json.decode(reply.body, type=kind) if reply.status == 200 else default
    except (msgspec.DecodeError, UnicodeDecodeError):
        return default

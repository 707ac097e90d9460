"""The client's way over HTTP/1.1: tensors in binary, answers in parts as lines of JSON. A Transport.

Called by awaited.py. Not aware of: when a call is tried again.
"""

import asyncio
from typing import Any, TypeVar

import msgspec
from msgspec import Struct

from dlproxy import tensors
from dlproxy.client.address import Place, model_path
from dlproxy.client.ask import Ask, CallError, ListedModel, as_given, of_upstream, unfit
from dlproxy.client.settings import ClientSettings
from dlproxy.instance.remote import json_values
from dlproxy.instance.remote.channel import CACHE
from dlproxy.instance.remote.failures import UpstreamError, failure_of
from dlproxy.instance.remote.http_channel import Heads, Lines
from dlproxy.instance.remote.http_client import HttpClient, Incoming, Reply, Server
from dlproxy.instance.remote.oip import array_of, outputs_of
from dlproxy.instance.remote.oip_model import Metadata
from dlproxy.instance.remote.tls import context_of
from dlproxy.message import DType, Failure, FailureKind, Tensor, TensorSpec, invalid
from dlproxy.tensors import Answer

_MAY_HELP = (429, 503)  # with Retry-After
_Told = TypeVar("_Told")
_encode = msgspec.json.Encoder().encode


class _Ready(Struct):
    ready: bool = True


class _Part(Struct):
    """A line of an answer in parts."""

    outputs: dict[str, Any] = {}
    error: str | None = None


class HttpTransport:
    """A pool of kept connections."""

    def __init__(self, place: Place, settings: ClientSettings) -> None:
        """Raises ModelError for headers that cannot be sent, and for authorities that cannot be loaded."""
        address, remote = place.address, settings.remote
        self._heads = Heads(address, remote.headers)
        self._most_bytes = remote.max_reply_bytes
        self._base, self._prefix = address.base, address.path
        self._client = HttpClient(
            Server(address.host, address.port, context_of(remote) if address.tls else None, place.socket),
            connections=settings.connections,
            connect_timeout_s=remote.connect_timeout_s,
            max_reply_bytes=remote.max_reply_bytes,
        )

    async def infer(self, ask: Ask, left_s: float) -> Answer:
        reply = await self._fetch(self._infer_lines(ask, left_s), left_s)
        try:
            given = outputs_of(reply)
            answer = Answer(cache=reply.headers.get(CACHE.encode(), b"").decode("latin-1"), variant=reply.variant)
            for name, (output, data) in given.items():
                array = array_of(TensorSpec(name, output.datatype, output.shape), output, data)
                answer[name] = as_given(output.datatype, array)
        except UpstreamError as error:
            raise of_upstream(error) from None
        return answer

    async def stream(self, ask: Ask, left_s: float) -> "HttpParts":
        reply = await self._fetch(self._predict_lines(ask, left_s), left_s, in_parts=True)
        assert reply.rest is not None
        return HttpParts(reply.rest, ask, self._most_bytes, reply.variant)

    async def metadata(self, model: str, version: str, left_s: float) -> Metadata:
        reply = await self._fetch(self._heads.get(model_path(f"{self._base}/models", model, version)), left_s)
        return _decoded(reply, Metadata)

    async def models(self, left_s: float) -> list[ListedModel]:
        reply = await self._fetch(self._post(f"{self._base}/repository/index", b"{}"), left_s)
        return _decoded(reply, list[ListedModel])

    async def ready(self, model: str, version: str, left_s: float) -> bool:
        path = model_path(f"{self._base}/models", model, version) if model else f"{self._base}/health"
        try:
            reply = await self._client.fetch(self._heads.get(f"{path}/ready"), timeout_s=left_s)
        except UpstreamError as error:
            raise of_upstream(error) from None
        if reply.status != 200:
            return False
        return not reply.body or _decoded(reply, _Ready).ready

    async def close(self) -> None:
        await self._client.close()

    async def _fetch(self, lines: Lines, left_s: float, *, in_parts: bool = False) -> Reply:
        """An answer with status 200. Raises CallError."""
        try:
            reply = await self._client.fetch(lines, timeout_s=left_s, in_parts=in_parts)
        except UpstreamError as error:
            raise of_upstream(error) from None
        if reply.status != 200:
            failure = failure_of(reply.status, reply.body, reply.headers.get(b"retry-after"))
            raise CallError(failure, failure.retry_after_s if reply.status in _MAY_HELP else None)
        return reply

    def _infer_lines(self, ask: Ask, left_s: float) -> Lines:
        inputs = [
            {
                "name": tensor.name,
                "shape": tensor.shape,
                "datatype": tensor.dtype.value,
                "parameters": {"binary_data_size": len(tensor.data)},
            }
            for tensor in ask.inputs
        ]
        told: dict[str, Any] = {"inputs": inputs, "parameters": {"binary_data_output": True, **ask.sequence}}
        if ask.outputs:
            told["outputs"] = [{"name": name} for name in ask.outputs]
        head = _encode(told)
        body_bytes = len(head) + sum(len(tensor.data) for tensor in ask.inputs)
        path = f"{model_path(f'{self._base}/models', ask.model, ask.version)}/infer"
        lines = b"content-type: application/octet-stream\r\ninference-header-content-length: %d\r\ncontent-length: %d\r\n" % (
            len(head),
            body_bytes,
        )
        start = b"%b%b%b\r\n%b" % (self._heads.post(path), lines, _header_lines(ask, left_s), head)
        return [start, *(tensor.data for tensor in ask.inputs if len(tensor.data))]

    def _predict_lines(self, ask: Ask, left_s: float) -> Lines:
        told: dict[str, Any] = {"inputs": {tensor.name: _values(tensor) for tensor in ask.inputs}}
        if ask.sequence:
            told["parameters"] = ask.sequence
        body = _encode(told)
        return self._post(model_path(f"{self._prefix}/predict", ask.model, ask.version), body, _header_lines(ask, left_s))

    def _post(self, path: str, body: bytes, extra: bytes = b"") -> Lines:
        lines = b"content-type: application/json\r\ncontent-length: %d\r\n" % len(body)
        return [b"%b%b%b\r\n%b" % (self._heads.post(path), lines, extra, body)]


class HttpParts:
    """Lines of JSON as they come. Parts."""

    def __init__(self, body: Incoming, ask: Ask, most_bytes: int, variant: str) -> None:
        self._body = body
        self._typed = {spec.name: spec for spec in ask.typed}
        self._wanted = ask.outputs
        self._most_bytes = most_bytes
        self._variant = variant
        self._read = bytearray()
        self._at_end = False

    async def next(self, left_s: float) -> Answer | None:
        deadline_at = asyncio.get_running_loop().time() + left_s
        while (end := self._read.find(b"\n")) < 0 and not self._at_end:
            await self._more(deadline_at)
        end = len(self._read) if end < 0 else end
        line = bytes(self._read[:end])
        del self._read[: end + 1]
        return self._part(line) if line.strip() else None

    async def close(self) -> None:
        self._body.close()

    async def _more(self, deadline_at: float) -> None:
        try:
            piece = await self._body.piece(timeout_s=deadline_at - asyncio.get_running_loop().time())
        except UpstreamError as error:
            raise of_upstream(error) from None
        if piece is None:
            self._at_end = True
        else:
            self._read += piece
        if len(self._read) > self._most_bytes:
            self._body.close()
            raise unfit(f"a part of it has more than {self._most_bytes} bytes")

    def _part(self, line: bytes) -> Answer:
        try:
            part = msgspec.json.decode(line, type=_Part)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise unfit(str(error)) from None
        if part.error is not None:
            raise CallError(Failure(FailureKind.MODEL_FAILED, part.error))
        arrays = {name: self._array(name, value) for name, value in part.outputs.items() if self._is_wanted(name)}
        return Answer(arrays, variant=self._variant)

    def _is_wanted(self, name: str) -> bool:
        return not self._wanted or name in self._wanted

    def _array(self, name: str, value: Any) -> Any:
        spec = self._typed.get(name)
        if spec is None:
            raise unfit(f"it has an output '{name}', which the model does not declare")
        try:
            return as_given(spec.dtype, json_values.to_array(spec, value, None))
        except (ValueError, TypeError, OverflowError) as error:
            raise unfit(f"output '{name}': {error}") from None


def _values(tensor: Tensor) -> Any:
    """Raises InferenceError for what JSON cannot carry."""
    try:
        array = tensors.to_values(tensor, text=True)
    except UnicodeDecodeError:
        raise invalid(f"input '{tensor.name}' is not UTF-8 text, and streams over HTTP are JSON; use grpc://") from None
    if tensor.dtype is not DType.BYTES and not json_values.is_finite(array):
        raise invalid(f"input '{tensor.name}' has NaN or infinity, and streams over HTTP are JSON; use grpc://")
    return array.tolist()


def _header_lines(ask: Ask, left_s: float) -> bytes:
    return "".join(f"{name}: {value}\r\n" for name, value in ask.headers(left_s)).encode()


def _decoded(reply: Reply, kind: type[_Told]) -> _Told:
    try:
        return msgspec.json.decode(reply.body, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise unfit(str(error)) from None

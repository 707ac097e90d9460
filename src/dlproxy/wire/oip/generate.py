"""Triton's generate extension: `POST /v2/models/{model}/generate` and `/generate_stream`, tensors as keys of one JSON object.

Its rows stand beside those of oip/http.py. Not aware of: sockets, lanes.
Unlike Triton, more parts than `generate` can give are an error in the status, too, which Triton has sent by then.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from reprlib import repr as brief  # bounds the length: the value is the client's
from typing import Any

import msgspec

from dlproxy.message import Failure, FailureKind, InferenceError, Request, Response, Rest, Tensor, TensorSpec, invalid
from dlproxy.tensors import shape_of_flat
from dlproxy.wire.catalog import Catalog
from dlproxy.wire.endpoint import TENANT_HEADER, Endpoint, FrontDesk
from dlproxy.wire.http.exchange import Exchange
from dlproxy.wire.http.parts import SSE, PartsReply, no_text
from dlproxy.wire.http.routes import VERSION, Row
from dlproxy.wire.oip.codec import json_data, json_tensor
from dlproxy.wire.oip.http import header_lines
from dlproxy.wire.terms import SEQUENCE, of_parameters

NESTED = "parameters"
TOO_MANY = (
    "generate expects model to produce exactly 1 response, use generate stream for model that generates various number of "
    "responses"
)


class Generate:
    """Answers both routes for every model. `max_json_bytes` bounds JSON, which blocks the loop while it is read."""

    def __init__(
        self, catalog: Catalog, *, max_json_bytes: int, clock: Callable[[], float], tenant_header: str = TENANT_HEADER
    ) -> None:
        self._desk = FrontDesk(catalog, lambda endpoint: endpoint, clock=clock, tenant_header=tenant_header)
        self._max_json_bytes = max_json_bytes

    def rows(self) -> list[Row]:
        path = r"/v2/models/(?P<name>[^/]+)" + VERSION
        return [(f"{path}/generate", b"POST", self._whole), (f"{path}/generate_stream", b"POST", self._parts)]

    def _whole(self, exchange: Exchange, name: str, version: str) -> None:
        self._submit(exchange, self._desk.find(name, version, exchange.principal), GenerateReply)

    def _parts(self, exchange: Exchange, name: str, version: str) -> None:
        endpoint = self._desk.find(name, version, exchange.principal)
        self._submit(exchange, endpoint, partial(PartsReply, framing=SSE, encode=generated, extra=_lines))

    def _submit(
        self, exchange: Exchange, endpoint: Endpoint, reply: "Callable[[Exchange], GenerateReply | PartsReply]"
    ) -> None:
        try:
            terms = endpoint.read_headers(exchange.headers, exchange.principal)
            request = self._request(endpoint, exchange.body)
            if not SEQUENCE.isdisjoint(request.params):
                terms = terms.over(of_parameters(request.params))
        except InferenceError as error:
            raise endpoint.refused(error, exchange.headers) from None
        exchange.on_abandoned = partial(endpoint.cancel, request)
        exchange.asks(request)
        endpoint.submit(request, reply(exchange), terms)

    def _request(self, endpoint: Endpoint, body: bytes) -> Request:
        """Raises InferenceError."""
        if len(body) > self._max_json_bytes:
            message = f"the JSON is {len(body)} bytes; at most {self._max_json_bytes} are accepted"
            raise InferenceError(Failure(FailureKind.TOO_LARGE, message))
        try:
            fields = msgspec.json.decode(body, type=dict[str, Any])
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise invalid(f'not a generate request, such as {{"text_input": "…"}}: {error or "nested too deeply"}') from None
        specs = {spec.name: spec for spec in endpoint.model.signature.inputs}
        request_id = "" if "id" in specs else fields.pop("id", "")
        if not isinstance(request_id, str):
            raise invalid(f"Unable to parse 'id': {brief(request_id)} is not a string")
        tensors, params = _split({**_nested(fields, specs), **fields}, specs)
        return endpoint.checker.request(
            tensors,
            endpoint.checker.all_outputs,
            ticket_id=next(endpoint.ticket_ids),
            request_id=request_id,
            params=params,
            now=endpoint.clock(),
        )


class GenerateReply:
    """Where the only part of an answer goes. A ReplyTo, and a PartTo that wants to hear that nothing follows."""

    __slots__ = ("_exchange", "_response", "_rest")

    def __init__(self, exchange: Exchange) -> None:
        self._exchange = exchange
        self._response: Response
        self._rest: Rest

    def completed(self, response: Response) -> None:
        self._response = response
        if response.rest is None:
            self.ended()
        else:
            self._rest = response.rest
            self._rest.ask(self)

    def part(self, outputs: list[Tensor]) -> None:
        self._rest.stop()
        self.failed(Failure(FailureKind.UNSUPPORTED, TOO_MANY))

    def ended(self) -> None:
        try:
            body = generated(self._response, self._response.outputs)
            self._exchange.reply(200, b"application/json", body, _lines(self._response))
        except UnicodeDecodeError as error:
            self._exchange.fail(500, no_text(error))
        except Exception:
            self._exchange.give_up()

    def failed(self, failure: Failure) -> None:
        self._exchange.refuse(failure)


_lines = partial(header_lines, server_timing=False)


def generated(response: Response, outputs: Sequence[Tensor]) -> bytes:
    """A part as JSON: an output of one element is a bare value, any other a flat list. Raises UnicodeDecodeError."""
    told: dict[str, Any] = {"id": response.id} if response.id else {}
    told |= {"model_name": response.model, "model_version": response.version}
    for tensor in outputs:
        elements = json_data(tensor, flat=True)
        told.setdefault(tensor.name, elements[0] if len(elements) == 1 else elements)
    return msgspec.json.encode(told)


def _nested(fields: dict[str, Any], specs: Mapping[str, TensorSpec]) -> dict[str, Any]:
    """What stands in "parameters", which is taken out; inputs may, too. Raises InferenceError."""
    if NESTED in specs:
        return {}
    nested = fields.pop(NESTED, {})
    if not isinstance(nested, dict):
        raise invalid(f"Expected JSON object for keyword: '{NESTED}', got {brief(nested)}")
    for name in specs:
        if name in nested and name in fields:
            raise invalid(f"Converting keyword: '{NESTED}': input '{name}' already exists in request")
    return nested


def _split(fields: Mapping[str, Any], specs: Mapping[str, TensorSpec]) -> tuple[list[Tensor], dict[str, Any]]:
    """Inputs by their names; all else are parameters. Raises InferenceError."""
    tensors, params = [], {}
    for name, value in fields.items():
        if name in specs:
            tensors.append(_tensor(specs[name], value))
        elif isinstance(value, str | int | float):
            params[name] = value
        else:
            types = "It should be either 'int', 'bool', or 'string'"
            raise invalid(f"parameter {brief(name)} has invalid type. {types}, or a float; it is {brief(value)}")
    return tensors, params


def _tensor(spec: TensorSpec, value: Any) -> Tensor:
    """Of a bare value or a flat list, which say little of their shape; a nested list has its own. Raises InferenceError."""
    if isinstance(value, list) and value and isinstance(value[0], list):
        return json_tensor(spec.name, spec.dtype, None, value)
    shape = shape_of_flat(spec.shape, len(value) if isinstance(value, list) else 1)
    if shape is None:
        raise invalid(f"The schema can not convert input '{spec.name}' to tensor with proper shape [{','.join(spec.sizes)}]")
    return json_tensor(spec.name, spec.dtype, shape, value if isinstance(value, list) or not shape else [value])

"""Routes of the Open Inference Protocol (as Triton serves it) and of `POST /predict/{model}`, over HTTP/1.1.

One request's way: Exchange, oip_codec.decode, Endpoint.submit, InferReply.completed, oip_codec.encode, Exchange.reply.
Not aware of: sockets, lanes.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from functools import lru_cache, partial
from math import inf
from reprlib import repr as brief  # bounds the length: the value is the client's
from typing import Any
from urllib.parse import quote

import msgspec
from msgspec import Struct

from dlproxy import __version__
from dlproxy.config import HttpLimits
from dlproxy.message import ANONYMOUS, Failure, FailureKind, InferenceError, Principal, Response, Tensor, invalid
from dlproxy.policy.hops import LOAD
from dlproxy.service import ReplyTo
from dlproxy.wire.catalog import Catalog, NotServedError
from dlproxy.wire.endpoint import TENANT_HEADER, Endpoint, FrontDesk, in_parts
from dlproxy.wire.http import codings, openapi
from dlproxy.wire.http.exchange import Exchange
from dlproxy.wire.http.parts import NDJSON, SSE, PartsReply, takes_events
from dlproxy.wire.http.routes import VERSION, Routes, Row
from dlproxy.wire.oip import codec as oip_codec
from dlproxy.wire.oip import describe as oip_describe
from dlproxy.wire.oip.repository import RepositoryExtension, RepositoryRoutes
from dlproxy.wire.operations import ModelRepository
from dlproxy.wire.regions import NO_REGIONS, Regions
from dlproxy.wire.rights import demand, seen
from dlproxy.wire.terms import DEADLINE, NO_TERMS, deadline_of, in_milliseconds, of_parameters
from dlproxy.wire.waiting import answer_once_up

MAX_SPELLINGS, MAX_SPELLING = 4096, 512  # infer targets that are remembered as clients write them, and bytes of one
JSON = b"application/json"
BINARY = b"application/octet-stream"
_LOAD = LOAD.encode()
_HIT = b"x-dlproxy-cache: hit\r\n"
_TIMED_HIT = b"server-timing: cache;desc=hit\r\n" + _HIT


class _Parameters(Struct):
    """Of any request for inference."""

    parameters: dict[str, Any] | None = None


class _PredictBody(_Parameters, kw_only=True):
    inputs: Any


class OipApp:
    """Answers every request of the inference port. `server_timing`: add the Server-Timing header to answers.

    `extensions`: names of those that not every server has. `more`: their routes, and those of other protocols.
    """

    def __init__(
        self,
        catalog: Catalog,
        limits: HttpLimits,
        *,
        clock: Callable[[], float],
        server_timing: bool,
        tenant_header: str = TENANT_HEADER,
        repository: ModelRepository | None = None,
        regions: Regions = NO_REGIONS,
        extensions: Sequence[str] = (),
        more: Iterable[Row] = (),
    ) -> None:
        self._catalog = catalog
        in_repository = RepositoryRoutes(RepositoryExtension(catalog, repository))
        self._extensions = extensions
        self._tenant_header = tenant_header
        self._max_body_bytes = limits.max_body_bytes
        self._max_json_bytes = limits.max_json_bytes
        make = partial(_Inference, regions=regions, server_timing=server_timing, max_json_bytes=limits.max_json_bytes)
        self._desk = FrontDesk(catalog, make, clock=clock, tenant_header=tenant_header)
        self._infer: dict[bytes, _Inference] = {}
        catalog.subscribe(self._follow)  # after the desk, which is asked
        self._follow()
        model_path = r"/v2/models/(?P<name>[^/]+)" + VERSION
        own: list[Row] = [
            (r"/", b"GET", self._welcome, None),
            (r"/openapi\.json", b"GET", self._document),
            (r"/v2", b"GET", self._server_metadata),
            (r"/v2/health/live", b"GET", self._live, None),
            (r"/v2/health/ready", b"GET", self._ready, None),
            (r"/v2/models/stats", b"GET", self._all_stats),
            (r"/v2/repository/index", b"POST", in_repository.index, "read"),
            (r"/v2/repository/models/(?P<name>[^/]+)/load", b"POST", in_repository.load, "admin"),
            (r"/v2/repository/models/(?P<name>[^/]+)/unload", b"POST", in_repository.unload, "admin"),
            (model_path, b"GET", self._metadata),
            (model_path + "/ready", b"GET", self._model_ready),
            (model_path + "/config", b"GET", self._config),
            (model_path + "/stats", b"GET", self._stats),
            (model_path + "/infer", b"POST", self._infer_any),
            (r"/predict/(?P<name>[^/]+)" + VERSION, b"POST", self._predict),
        ]
        self._routes = Routes([*own, *more], hint="inference is at /v2/models/{model}/infer or /predict/{model}")

    def __call__(self, exchange: Exchange) -> None:
        try:
            inference = self._infer.get(exchange.target)
            if inference is not None and exchange.method == b"POST":
                if exchange.principal is not ANONYMOUS:
                    demand(exchange.principal, "infer", inference.model)
                if b"content-encoding" in exchange.headers:
                    self._decompress(exchange)
                inference.infer(exchange)
            else:
                self._route(exchange)
        except NotServedError as missing:
            self._wait_for(missing, exchange)
        except InferenceError as error:
            exchange.refuse(error.failure)

    def _wait_for(self, missing: NotServedError, exchange: Exchange) -> None:
        def again(left_s: float) -> None:
            headers = {name: value for name, value in exchange.headers.items() if name != b"content-encoding"}  # it is plain
            if left_s < inf:
                headers[DEADLINE] = in_milliseconds(left_s)
            exchange.headers = headers
            self._route(exchange)

        def timeout_s() -> float:
            headers = exchange.headers
            if b"/generate" in exchange.target:  # where parameters are the model's own
                return deadline_of(headers)
            return min(deadline_of(headers), _timeout_s(exchange.body, headers, self._max_json_bytes))

        answer_once_up(self._catalog.waiting, missing, exchange, again, timeout_s=timeout_s, size_bytes=len(exchange.body))

    def _follow(self) -> None:
        """The catalog has changed: forget every target, then learn those that name what there is."""
        self._infer = {}
        for model in self._catalog:
            path = f"/v2/models/{quote(model.name, safe='')}"
            self._infer[f"{path}/infer".encode()] = self._desk.find(model.name)
            for version in (model.version, *self._catalog.route_of(model.name).labels):
                self._infer[f"{path}/versions/{quote(version)}/infer".encode()] = self._desk.find(model.name, version)

    def _route(self, exchange: Exchange) -> None:
        found = self._routes.find(exchange)
        if found is not None:
            if found.right is not None:
                demand(exchange.principal, found.right, found.groups.get("name", ""))
            if b"content-encoding" in exchange.headers:
                self._decompress(exchange)
            found.handler(exchange, **found.groups)

    def _decompress(self, exchange: Exchange) -> None:
        exchange.body = codings.decoded(exchange.headers[b"content-encoding"], exchange.body, self._max_body_bytes)

    # Routes

    def _infer_any(self, exchange: Exchange, name: str, version: str) -> None:
        inference = self._desk.find(name, version, exchange.principal)
        if len(self._infer) < MAX_SPELLINGS and len(exchange.target) <= MAX_SPELLING:
            self._infer[exchange.target] = inference
        inference.infer(exchange)

    def _predict(self, exchange: Exchange, name: str, version: str) -> None:
        self._desk.find(name, version, exchange.principal).predict(exchange)

    def _welcome(self, exchange: Exchange) -> None:
        _json(exchange, oip_describe.welcome(seen(self._catalog, exchange.principal), __version__))

    def document(self, who: Principal, server: str = "/") -> dict[str, Any]:
        """The OpenAPI document, for those who reach this port as `server`, with the models that `who` may see."""
        models = seen(self._catalog, who)
        return openapi.document(self._catalog, models, self._routes.has, tenant_header=self._tenant_header, server=server)

    def _document(self, exchange: Exchange) -> None:
        _json(exchange, self.document(exchange.principal))

    def _server_metadata(self, exchange: Exchange) -> None:
        _json(exchange, oip_describe.server(__version__, more=self._extensions))

    def _live(self, exchange: Exchange) -> None:
        _json(exchange, {"live": True})

    def _ready(self, exchange: Exchange) -> None:
        ready = self._catalog.ready
        _json(exchange, {"ready": ready, "live": True}, status=200 if ready else 503)

    def _model_ready(self, exchange: Exchange, name: str, version: str) -> None:
        model = self._catalog.up(name, version, exchange.principal)
        ready = model.ready
        _json(exchange, {"name": model.name, "ready": ready}, status=200 if ready else 503)

    def _metadata(self, exchange: Exchange, name: str, version: str) -> None:
        model = self._catalog.asked(name, version, exchange.principal)
        _json(exchange, oip_describe.metadata(model, self._catalog.versions(name)))

    def _config(self, exchange: Exchange, name: str, version: str) -> None:
        _json(exchange, oip_describe.config(self._catalog.asked(name, version, exchange.principal)))

    def _stats(self, exchange: Exchange, name: str, version: str) -> None:
        _json(exchange, oip_describe.statistics_of(self._catalog, exchange.principal, name, version))

    def _all_stats(self, exchange: Exchange) -> None:
        _json(exchange, oip_describe.statistics_of(self._catalog, exchange.principal))


class _Inference:
    """Bytes to an endpoint's requests and back. `max_json_bytes` bounds JSON, which blocks the loop while it is read."""

    def __init__(self, endpoint: Endpoint, *, regions: Regions, server_timing: bool, max_json_bytes: int) -> None:
        self._endpoint = endpoint
        self.model = endpoint.model.name
        self._read_headers, self._submit, self._cancel = endpoint.read_headers, endpoint.submit, endpoint.cancel
        self._ticket_ids, self._clock = endpoint.ticket_ids, endpoint.clock
        self._decoder = oip_codec.InferDecoder(endpoint.checker, regions)
        self._server_timing = server_timing
        self._max_json_bytes = max_json_bytes
        if endpoint.model.signature.streams:
            self.infer = self._refuse  # type: ignore[method-assign]

    def _refuse(self, exchange: Exchange) -> None:
        raise self._endpoint.refused(in_parts(self._endpoint.model.name, "HTTP end point"), exchange.headers)

    def infer(self, exchange: Exchange) -> None:
        """An Open Inference Protocol request. Raises InferenceError if it is refused."""
        headers = exchange.headers
        size = headers.get(b"inference-header-content-length")
        try:
            terms = self._read_headers(headers, exchange.principal)
            json_bytes = None if size is None else _header_length(size)
            body_bytes = len(exchange.body)
            if body_bytes > self._max_json_bytes:
                self._check_json_size(body_bytes if json_bytes is None else min(json_bytes, body_bytes))
            wire = self._decoder.decode(exchange.body, json_bytes, ticket_id=next(self._ticket_ids), now=self._clock())
        except InferenceError as error:
            raise self._endpoint.refused(error, exchange.headers) from None
        if wire.terms is not NO_TERMS:
            terms = wire.terms if terms is NO_TERMS else terms.over(wire.terms)
        request = wire.request
        exchange.on_abandoned = partial(self._cancel, request)
        exchange.asks(request)
        self._submit(request, InferReply(exchange, wire, server_timing=self._server_timing), terms)

    def predict(self, exchange: Exchange) -> None:
        """Plain JSON: `{"inputs": {name: nested list}}`, or the nested list itself where the model has one input.

        The answer is one such JSON too, or one for each part: as events if the client asks for those, else as lines.
        """
        endpoint = self._endpoint
        try:
            terms = self._read_headers(exchange.headers, exchange.principal)
            asked = self._predict_body(exchange.body)
            params = asked.parameters or {}
            terms = terms.over(of_parameters(params))
            request = endpoint.request(self._tensors(asked.inputs), endpoint.checker.all_outputs, params)
        except InferenceError as error:
            raise endpoint.refused(error, exchange.headers) from None
        exchange.on_abandoned = partial(self._cancel, request)
        exchange.asks(request)
        reply: ReplyTo
        if takes_events(exchange) or endpoint.model.signature.streams:
            framing = SSE if takes_events(exchange) else NDJSON
            reply = PartsReply(exchange, framing, predicted, partial(header_lines, server_timing=self._server_timing))
        else:
            reply = PredictReply(exchange, server_timing=self._server_timing)
        self._submit(request, reply, terms)

    def _check_json_size(self, json_bytes: int) -> None:
        if json_bytes > self._max_json_bytes:
            message = (
                f"the JSON is {json_bytes} bytes; at most {self._max_json_bytes} are accepted; send tensors as binary data"
            )
            raise InferenceError(Failure(FailureKind.TOO_LARGE, message))

    def _predict_body(self, body: bytes) -> _PredictBody:
        self._check_json_size(len(body))
        try:
            return msgspec.json.decode(body, type=_PredictBody)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise invalid(f'not a predict request, such as {{"inputs": …}}: {error}') from None

    def _tensors(self, inputs: Any) -> list[Tensor]:
        model, checker = self._endpoint.model, self._endpoint.checker
        specs = model.signature.inputs
        if not isinstance(inputs, dict):
            if len(specs) != 1:
                names = "inputs " + ", ".join(f"'{spec.name}'" for spec in specs) if specs else "no inputs"
                raise invalid(f"'inputs' must be an object: model '{model.name}' has {names}")
            inputs = {specs[0].name: inputs}
        tensors = []
        for name, data in inputs.items():
            spec = checker.spec_of(name)
            shape = None if spec.shape or isinstance(data, list) else ()
            tensors.append(oip_codec.json_tensor(name, spec.dtype, shape, data))
        return tensors


class InferReply:
    """Where one infer request's answer goes: encoded, onto its exchange. A ReplyTo."""

    __slots__ = ("_exchange", "_server_timing", "_wire")

    def __init__(self, exchange: Exchange, wire: oip_codec.WireRequest, *, server_timing: bool) -> None:
        self._exchange = exchange
        self._wire = wire
        self._server_timing = server_timing

    def completed(self, response: Response) -> None:
        try:
            body, json_bytes, rest = oip_codec.encode(response, self._wire)
            extra = header_lines(response, server_timing=self._server_timing)
            if json_bytes is None:
                self._exchange.reply(200, JSON, body, extra)
            else:
                self._exchange.reply(
                    200, BINARY, body, b"inference-header-content-length: %d\r\n%b" % (json_bytes, extra), rest
                )
        except UnicodeDecodeError as error:
            self._exchange.fail(500, f"an output is not valid UTF-8; request it as binary: {error}")
        except InferenceError as error:
            self._exchange.refuse(error.failure)
        except Exception:
            self._exchange.give_up()

    def failed(self, failure: Failure) -> None:
        self._exchange.refuse(failure)


class PredictReply:
    """Where one plain-JSON request's answer goes. A ReplyTo."""

    __slots__ = ("_exchange", "_server_timing")

    def __init__(self, exchange: Exchange, *, server_timing: bool) -> None:
        self._exchange = exchange
        self._server_timing = server_timing

    def completed(self, response: Response) -> None:
        try:
            body = predicted(response, response.outputs)
            self._exchange.reply(200, JSON, body, header_lines(response, server_timing=self._server_timing))
        except UnicodeDecodeError as error:
            self._exchange.fail(500, f"an output is not valid UTF-8; request it as binary over /v2: {error}")
        except Exception:
            self._exchange.give_up()

    def failed(self, failure: Failure) -> None:
        self._exchange.refuse(failure)


def predicted(response: Response, outputs: Sequence[Tensor]) -> bytes:
    """A part, or all, of a plain-JSON answer. Raises UnicodeDecodeError."""
    values = {tensor.name: oip_codec.json_data(tensor, flat=False) for tensor in outputs}
    return msgspec.json.encode({"model": response.model, "version": response.version, "outputs": values})


def header_lines(response: Response, *, server_timing: bool) -> bytes:
    """What an answer's header says of how it came about: Server-Timing (W3C, in milliseconds), what the cache did, and which
    model answered in place of the one asked for.
    """
    timing, cache = response.timing, response.cache
    lines = b""
    if cache == "hit":
        lines = _TIMED_HIT if server_timing else _HIT
    else:
        if server_timing:
            lines = b"server-timing: queue;dur=%.3f, batch;dur=%.3f, compute;dur=%.3f\r\n" % (
                timing.queue_s * 1e3,
                timing.batch_s * 1e3,
                timing.compute_s * 1e3,
            )
        if cache:
            lines = b"%bx-dlproxy-cache: %b\r\n" % (lines, cache.encode())
    if response.load:
        lines += b"%b: %b\r\n" % (_LOAD, response.load.encode())
    return lines + variant_line(response.variant) if response.variant else lines


@lru_cache
def variant_line(name: str) -> bytes:
    """Of an answer's header, with the name as in a path."""
    return b"x-dlproxy-variant: %b\r\n" % quote(name, safe="").encode()


def _timeout_s(body: bytes, headers: Mapping[bytes, bytes], max_json_bytes: int) -> float:
    """The one among the parameters of a request whose model is not known yet; inf for none. Raises InferenceError."""
    size = headers.get(b"inference-header-content-length")
    json = body if size is None else memoryview(body)[: _header_length(size)]
    if len(json) <= max_json_bytes:
        with suppress(msgspec.DecodeError, UnicodeDecodeError, RecursionError):  # its model will say what is wrong
            return of_parameters(msgspec.json.decode(json, type=_Parameters).parameters or {}).timeout_s
    return inf


def _header_length(value: bytes) -> int:
    if not value.isdigit() or len(value) > 12:
        raise invalid(f"Inference-Header-Content-Length is {brief(value.decode('latin-1'))}; it must be a number of bytes")
    return int(value)


def _json(exchange: Exchange, value: Any, status: int = 200) -> None:
    exchange.reply(status, JSON, msgspec.json.encode(value))

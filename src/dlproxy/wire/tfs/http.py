"""TensorFlow Serving's REST API, and KServe's V1 on the same paths: predict, classify, regress, status, metadata.

Its routes stand among those of OipApp, which knows what to do with a model that is loaded on demand. Called by serve/server.py.
Not aware of: sockets, lanes, how models run.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

from dlproxy.config import HttpLimits
from dlproxy.message import Failure, FailureKind, InferenceError, Request, Response, encodable, invalid
from dlproxy.wire.catalog import Catalog, NotServedError
from dlproxy.wire.endpoint import TENANT_HEADER, Endpoint, FrontDesk, in_parts
from dlproxy.wire.http.exchange import MAX_ERROR, Exchange, in_http
from dlproxy.wire.http.routes import Handler, Row
from dlproxy.wire.oip.http import JSON, header_lines
from dlproxy.wire.operations import ModelRepository
from dlproxy.wire.rights import seen
from dlproxy.wire.tfs import json as tfs_json
from dlproxy.wire.tfs.examples import Examples
from dlproxy.wire.tfs.models import ModelSpec, check_signature, no_such_signature, signature_def, statuses

METHODS = (b"GET", b"POST", b"PUT", b"DELETE", b"PATCH")
_NAME = r"(?:(?!%3A)[^/])+"
_MODEL = rf"(?i)/v1/models/(?P<name>{_NAME})(?:/versions/(?P<version>[0-9]+)|/labels/(?P<label>{_NAME}))?"
_INFER = _MODEL + "%3A(?P<verb>predict|classify|regress)"
_REST = r"(?i)/v1(?:/(?!.*%3Aexplain$).*)?"  # explain is no method of TensorFlow Serving's, but of KServe's

Encode = Callable[[Response], bytes]


class TfsRoutes:
    """Every path that begins with /v1. `server_timing`: add the Server-Timing header to answers."""

    def __init__(
        self,
        catalog: Catalog,
        limits: HttpLimits,
        *,
        clock: Callable[[], float],
        server_timing: bool,
        tenant_header: str = TENANT_HEADER,
        repository: ModelRepository | None = None,
    ) -> None:
        self._catalog = catalog
        self._repository = repository
        make = partial(_Inference, server_timing=server_timing, max_json_bytes=limits.max_json_bytes)
        self._desk = FrontDesk(catalog, make, clock=clock, tenant_header=tenant_header)

    def rows(self) -> list[Row]:
        """What no other row takes is malformed, as TensorFlow Serving calls it, whatever the method."""
        answers: dict[tuple[str, bytes], Handler] = {
            (r"(?i)/v1/models", b"GET"): self._list,
            (_INFER, b"POST"): self._infer,
            (_MODEL, b"GET"): self._status,
            (f"{_MODEL}/metadata", b"GET"): self._metadata,
        }
        patterns = [*dict.fromkeys(pattern for pattern, _ in answers), _REST]
        return [
            (pattern, method, _with_refusals(answers.get((pattern, method), _malformed)))
            for pattern in patterns
            for method in METHODS
        ]

    def _infer(self, exchange: Exchange, name: str, version: str, label: str, verb: str) -> None:
        ModelSpec(name, version, label).found(self._desk.find, exchange.principal).infer(exchange, verb.lower())

    def _list(self, exchange: Exchange) -> None:
        _json(exchange, {"models": list(dict.fromkeys(model.name for model in seen(self._catalog, exchange.principal)))})

    def _status(self, exchange: Exchange, name: str, version: str, label: str) -> None:
        found = statuses(self._catalog, self._repository, ModelSpec(name, version, label))
        ready = any(each.state == "AVAILABLE" for each in found)
        _json(exchange, {"name": name, "ready": ready, "model_version_status": found})

    def _metadata(self, exchange: Exchange, name: str, version: str, label: str) -> None:
        model = ModelSpec(name, version, label).found(self._catalog.asked, exchange.principal)
        spec = {"name": model.name, "signature_name": "", "version": model.version}
        _json(exchange, {"model_spec": spec, "metadata": {"signature_def": signature_def(model)}})


class _Inference:
    """Of one version of one model. `max_json_bytes` bounds JSON, which blocks the loop while it is read."""

    def __init__(self, endpoint: Endpoint, *, server_timing: bool, max_json_bytes: int) -> None:
        model = endpoint.model
        signature = model.signature
        self._endpoint = endpoint
        self._reader = tfs_json.PredictReader(signature.inputs, endpoint.checker, batched=signature.batched)
        self._examples = Examples(model)
        self._axes = [(spec.rows or 0) if signature.batched else 0 for spec in signature.outputs]
        self._server_timing = server_timing
        self._max_json_bytes = max_json_bytes

    def infer(self, exchange: Exchange, verb: str) -> None:
        """Raises InferenceError if it is refused."""
        endpoint = self._endpoint
        try:
            if endpoint.model.signature.streams:
                raise in_parts(endpoint.model.name)
            terms = endpoint.read_headers(exchange.headers, exchange.principal)
            if len(exchange.body) > self._max_json_bytes:
                raise self._too_large(len(exchange.body))
            asked = tfs_json.read_object(exchange.body)
            request, encode = self._predict(asked) if verb == "predict" else self._judge(asked, verb)
        except InferenceError as error:
            raise endpoint.refused(error, exchange.headers) from None
        exchange.on_abandoned = partial(endpoint.cancel, request)
        exchange.asks(request)
        endpoint.submit(request, TfsReply(exchange, encode, server_timing=self._server_timing), terms)

    def _predict(self, asked: dict[str, Any]) -> tuple[Request, Encode]:
        check_signature(asked.get("signature_name", ""), _no_signature)
        in_rows, tensors = self._reader.read(asked)
        request = self._endpoint.request(tensors, self._endpoint.checker.all_outputs)
        return request, self._encode_rows if in_rows else _encode_columns

    def _judge(self, asked: dict[str, Any], verb: str) -> tuple[Request, Encode]:
        check_signature(asked.get("signature_name", ""), no_such_signature)
        judge = self._examples
        outputs = judge.scores_of() if verb == "classify" else judge.value_of()
        examples, context = tfs_json.read_examples(asked)
        request = self._endpoint.request(judge.tensors(examples, context), outputs)
        of = judge.classified if verb == "classify" else judge.values
        return request, lambda response: tfs_json.encode_results(of(response, len(examples)))

    def _encode_rows(self, response: Response) -> bytes:
        return tfs_json.encode_rows(response.outputs, self._axes)

    def _too_large(self, size: int) -> InferenceError:
        message = f"the JSON is {size} bytes; at most {self._max_json_bytes} are accepted; send large tensors by gRPC"
        return InferenceError(Failure(FailureKind.TOO_LARGE, message))


class TfsReply:
    """Where one answer goes: encoded, onto its exchange. A ReplyTo."""

    __slots__ = ("_encode", "_exchange", "_server_timing")

    def __init__(self, exchange: Exchange, encode: Encode, *, server_timing: bool) -> None:
        self._exchange = exchange
        self._encode = encode
        self._server_timing = server_timing

    def completed(self, response: Response) -> None:
        try:
            extra = header_lines(response, server_timing=self._server_timing)
            self._exchange.reply(200, JSON, self._encode(response), extra)
        except InferenceError as error:
            _refuse(self._exchange, error.failure)
        except Exception:
            self._exchange.give_up()

    def failed(self, failure: Failure) -> None:
        _refuse(self._exchange, failure)


def _no_signature(name: str) -> InferenceError:
    return invalid(f'Serving signature name: "{name}" not found in signature def')


def _encode_columns(response: Response) -> bytes:
    return tfs_json.encode_columns(response.outputs)


def _malformed(exchange: Exchange, **groups: str) -> None:
    path = exchange.target.partition(b"?")[0].decode("latin-1")
    raise invalid(f"Malformed request: {exchange.method.decode()} {path}")


def _with_refusals(handler: Handler) -> Handler:
    """The handler, whose refusals are laid out as TensorFlow Serving's are."""

    def answer(exchange: Exchange, **groups: str) -> None:
        try:
            handler(exchange, **groups)
        except NotServedError:  # it may come, and then the request is answered
            raise
        except InferenceError as error:
            _refuse(exchange, error.failure)

    return answer


def _refuse(exchange: Exchange, failure: Failure) -> None:
    exchange.note(failure)
    status, message, extra = in_http(failure)
    if len(message) > MAX_ERROR:  # what a message quotes is the client's and may be megabytes long
        message = f"{message[:MAX_ERROR]}…"
    try:
        exchange.reply(status, JSON, tfs_json.pretty({"error": encodable(message)}, 4), extra)
    except Exception:
        exchange.give_up()


def _json(exchange: Exchange, value: Any) -> None:
    exchange.reply(200, JSON, tfs_json.pretty(value, 1))

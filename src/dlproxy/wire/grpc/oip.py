"""`inference.GRPCInferenceService`: the Open Inference Protocol over gRPC as Triton serves it, but for regions and settings.

What it tells of models and does with them is what wire/oip/http.py answers, from the same places. Called by services.py.
Not aware of: frames, lanes.
"""

from collections.abc import Callable, Sequence
from functools import partial
from math import inf
from typing import Any

from dlproxy import __version__
from dlproxy.config import HttpLimits
from dlproxy.message import Failure, FailureKind, InferenceError, Response
from dlproxy.protos.oip import SERVICE, oip
from dlproxy.wire.catalog import Catalog, NotServedError
from dlproxy.wire.endpoint import Endpoint, FrontDesk
from dlproxy.wire.grpc.call import Call
from dlproxy.wire.grpc.oip_codec import Asked, InferDecoder, encode, timeout_s, values_of
from dlproxy.wire.grpc.oip_stream import InferStream
from dlproxy.wire.grpc.parsing import parsed
from dlproxy.wire.grpc.server import Methods
from dlproxy.wire.oip import describe as oip_describe
from dlproxy.wire.oip.repository import RepositoryExtension
from dlproxy.wire.operations import ModelRepository
from dlproxy.wire.regions import NO_REGIONS, Regions
from dlproxy.wire.rights import demand
from dlproxy.wire.terms import DEADLINE, deadline_of, in_milliseconds
from dlproxy.wire.waiting import answer_once_up

Method = Callable[[Call, Any], None]
"""Takes a call and its parsed message."""


class OipService:
    """All methods for all models of a catalog. `repository`: None where there is none."""

    def __init__(
        self,
        catalog: Catalog,
        repository: ModelRepository | None,
        limits: HttpLimits,
        *,
        clock: Callable[[], float],
        tenant_header: str,
        regions: Regions = NO_REGIONS,
        extensions: Sequence[str] = (),
    ) -> None:
        self._catalog = catalog
        self._extensions = extensions
        self._limits = limits
        self._in_repository = RepositoryExtension(catalog, repository)
        desk: FrontDesk[Endpoint] = FrontDesk(catalog, lambda endpoint: endpoint, clock=clock, tenant_header=tenant_header)
        self._decoder, self._stream_decoder = (
            InferDecoder(desk, regions, max_typed_bytes=limits.max_json_bytes, whole=whole) for whole in (True, False)
        )
        catalog.subscribe(self._decoder.forget)  # after the desk, which is asked
        catalog.subscribe(self._stream_decoder.forget)

    def methods(self) -> Methods:
        described: dict[str, Method] = {
            "ServerLive": self._live,
            "ServerReady": self._ready,
            "ServerMetadata": self._server,
            "ModelReady": self._model_ready,
            "ModelMetadata": self._metadata,
            "ModelConfig": self._config,
            "ModelStatistics": self._statistics,
            "RepositoryIndex": self._index,
            "RepositoryModelLoad": self._load,
            "RepositoryModelUnload": self._unload,
        }
        unary = {
            _path(name): partial(self._answer, getattr(oip, f"{name}Request"), method) for name, method in described.items()
        }
        return Methods({**unary, _path("ModelInfer"): self._infer}, {_path("ModelStreamInfer"): self._infer_stream})

    # Inference

    def _infer(self, call: Call, message: bytes) -> None:
        try:
            asked = self._decoder.decode(message, call.headers, call.principal)
        except NotServedError as missing:
            self._wait_for(missing, call, message)
            return
        endpoint, request = asked.endpoint, asked.request
        call.on_abandoned = partial(endpoint.cancel, request)
        call.asks(request)
        endpoint.submit(request, InferReply(call, asked), asked.terms)

    def _wait_for(self, missing: NotServedError, call: Call, message: bytes) -> None:
        def again(left_s: float) -> None:
            if left_s < inf:
                call.headers = {**call.headers, DEADLINE: in_milliseconds(left_s)}
            self._infer(call, message)

        def until_s() -> float:
            return min(deadline_of(call.headers), timeout_s(message, self._limits.max_json_bytes))

        answer_once_up(self._catalog.waiting, missing, call, again, timeout_s=until_s, size_bytes=len(message))

    def _infer_stream(self, call: Call) -> None:
        InferStream(call, self._stream_decoder, self._catalog, self._limits)

    # Everything else

    def _answer(self, kind: Any, method: Method, call: Call, message: bytes) -> None:
        asked = parsed(kind, message)
        try:
            method(call, asked)
        except NotServedError as missing:
            answer_once_up(
                self._catalog.waiting,
                missing,
                call,
                lambda _: method(call, asked),
                timeout_s=lambda: deadline_of(call.headers),
                size_bytes=len(message),
            )

    def _live(self, call: Call, _: Any) -> None:
        _reply(call, oip.ServerLiveResponse(live=True))

    def _ready(self, call: Call, _: Any) -> None:
        _reply(call, oip.ServerReadyResponse(ready=self._catalog.ready))

    def _server(self, call: Call, _: Any) -> None:
        _reply(call, oip.ServerMetadataResponse(**oip_describe.server(__version__, more=self._extensions)))

    def _model_ready(self, call: Call, asked: Any) -> None:
        """One that is not there is not ready: clients take an error for a failure of the question."""
        demand(call.principal, "read", asked.name)
        try:
            ready = self._catalog.up(asked.name, asked.version, call.principal).ready
        except InferenceError:
            ready = False
        _reply(call, oip.ModelReadyResponse(ready=ready))

    def _metadata(self, call: Call, asked: Any) -> None:
        demand(call.principal, "read", asked.name)
        model = self._catalog.asked(asked.name, asked.version, call.principal)
        _reply(call, oip.ModelMetadataResponse(**oip_describe.metadata(model, self._catalog.versions(asked.name))))

    def _config(self, call: Call, asked: Any) -> None:
        demand(call.principal, "read", asked.name)
        model = self._catalog.asked(asked.name, asked.version, call.principal)
        _reply(call, oip.ModelConfigResponse(config=oip_describe.config(model)))

    def _statistics(self, call: Call, asked: Any) -> None:
        demand(call.principal, "read", asked.name)
        found = oip_describe.statistics_of(self._catalog, call.principal, asked.name, asked.version)["model_stats"]
        for stats in found:
            del stats["failures"]  # which the message has no field for
            by_number = stats["response_stats"].items()  # older protobuf takes no dicts as the values of a map
            stats["response_stats"] = {number: oip.InferResponseStatistics(**part) for number, part in by_number}
        _reply(call, oip.ModelStatisticsResponse(model_stats=found))

    # The repository

    def _index(self, call: Call, asked: Any) -> None:
        if asked.repository_name:
            raise _no_repository_name()

        def answer(entries: list[dict[str, str]]) -> None:
            _reply(call, oip.RepositoryIndexResponse(models=entries))

        self._in_repository.index(call, answer, call.principal, only_ready=asked.ready)

    def _load(self, call: Call, asked: Any) -> None:
        name, parameters = _model_of(asked), values_of(asked.parameters)
        demand(call.principal, "admin", name)
        self._in_repository.load(call, lambda _: _reply(call, oip.RepositoryModelLoadResponse()), name, parameters)

    def _unload(self, call: Call, asked: Any) -> None:
        name = _model_of(asked)
        demand(call.principal, "admin", name)
        self._in_repository.unload(call, lambda _: _reply(call, oip.RepositoryModelUnloadResponse()), name)


class InferReply:
    """Where one request's answer goes: encoded, onto its call. A ReplyTo."""

    __slots__ = ("_call", "_forms", "_memo")

    def __init__(self, call: Call, asked: Asked) -> None:
        self._call = call
        self._memo = asked.memo
        self._forms = asked.forms

    def completed(self, response: Response) -> None:
        try:
            self._call.reply(*encode(response, self._memo, forms=self._forms), of=response)
        except InferenceError as error:
            self._call.refuse(error.failure)
        except Exception:
            self._call.give_up()

    def failed(self, failure: Failure) -> None:
        self._call.refuse(failure)


def _path(method: str) -> bytes:
    return f"{SERVICE}/{method}".encode()


def _reply(call: Call, message: Any) -> None:
    call.reply(message.SerializeToString())


def _model_of(asked: Any) -> str:
    """KServe's clients have the model's name where Triton's have the repository's."""
    if asked.model_name and asked.repository_name:
        raise _no_repository_name()
    name: str = asked.model_name or asked.repository_name
    return name


def _no_repository_name() -> InferenceError:
    return InferenceError(Failure(FailureKind.UNSUPPORTED, "'repository_name' specification is not supported"))

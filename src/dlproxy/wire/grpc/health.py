"""`grpc.health.v1.Health`: is the server ready, is a model, and what changes of it. Joined to others by services.py.

Service "" and the names of gRPC services stand for the server, others for models. Not aware of: how calls travel.
"""

import asyncio
from collections.abc import Container
from typing import Any

from google.protobuf.message import DecodeError
from msgspec import Struct

from dlproxy.message import Failure, FailureKind, InferenceError, invalid
from dlproxy.protos.grpc_services import HEALTH, NOT_SERVING, SERVICE_UNKNOWN, SERVING, health
from dlproxy.wire.catalog import Catalog
from dlproxy.wire.grpc.call import Call, Status
from dlproxy.wire.grpc.server import Methods
from dlproxy.wire.rights import demand

LOOK_S = 1.0  # between looks at models that are watched: that an instance is lost, no event of the catalog tells


class _Watch(Struct, eq=False):
    call: Call
    service: str
    told: int = -1


class Health:
    """`services`: names of gRPC services, which are ready when the server is."""

    def __init__(self, catalog: Catalog, services: Container[str] = ()) -> None:
        self._catalog = catalog
        self._services = services
        self._watches: dict[Call, _Watch] = {}
        self._looking: asyncio.TimerHandle | None = None
        catalog.subscribe(self._tell_all)

    def methods(self) -> Methods:
        return Methods({f"{HEALTH}/Check".encode(): self._check}, {f"{HEALTH}/Watch".encode(): self._watch})

    def _check(self, call: Call, message: bytes) -> None:
        service = self._asked(call, message)
        status = self._status(service)
        if status == SERVICE_UNKNOWN:
            raise InferenceError(Failure(FailureKind.NOT_FOUND, f"neither a service nor a model is called '{service}'"))
        call.reply(_answer(status))

    def _watch(self, call: Call) -> None:
        def begin(message: bytes) -> None:
            if call in self._watches:
                raise invalid("more than one message for a method that takes one")
            watch = self._watches[call] = _Watch(call, self._asked(call, message))
            self._tell(watch)
            self._look_later()

        def half_closed() -> None:
            if call not in self._watches:
                raise InferenceError(Failure(FailureKind.UNSUPPORTED, "the message is missing"))

        call.on_message = begin
        call.on_half_closed = half_closed
        call.on_abandoned = lambda: self._watches.pop(call, None)
        call.on_writable = lambda: self._tell(self._watches[call]) if call in self._watches else None

    def _asked(self, call: Call, message: bytes) -> str:
        """How the server is, everybody may know; how a model is, who may see it. Raises InferenceError."""
        service = _service(message)
        if service and service not in self._services:
            demand(call.principal, "read", service)
        return service

    def _status(self, service: str) -> int:
        if not service or service in self._services:
            return SERVING if self._catalog.ready else NOT_SERVING
        try:
            ready = self._catalog.get(service).ready and not self._catalog.draining
        except InferenceError as error:
            return SERVICE_UNKNOWN if error.failure.kind is FailureKind.NOT_FOUND else NOT_SERVING
        return SERVING if ready else NOT_SERVING

    def _tell(self, watch: _Watch) -> None:
        """What has changed, as soon as the client takes it: states between may be left out."""
        status = self._status(watch.service)
        if status != watch.told and watch.call.writable:
            watch.told = status
            watch.call.send(_answer(status))
        if self._catalog.draining or watch.call.ended:
            self._watches.pop(watch.call, None)
            watch.call.end(Status.UNAVAILABLE, "the server stops")

    def _tell_all(self) -> None:
        for watch in list(self._watches.values()):
            self._tell(watch)

    def _look_later(self) -> None:
        if self._looking is None and self._watches:
            self._looking = asyncio.get_running_loop().call_later(LOOK_S, self._look)

    def _look(self) -> None:
        self._looking = None
        self._tell_all()
        self._look_later()


def _service(message: bytes) -> str:
    try:
        service: str = health.HealthCheckRequest.FromString(message).service
    except DecodeError:
        raise invalid("the message is no HealthCheckRequest") from None
    return service


def _answer(status: int) -> bytes:
    answer: Any = health.HealthCheckResponse(status=status)
    data: bytes = answer.SerializeToString()
    return data

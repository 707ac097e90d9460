"""A gRPC server: which methods there are, and what its connections share. Called by serve/server.py.

Why it is no library's: docs/adr/0022-grpc-on-our-own-hot-path.md. Not aware of: frames (connection.py), services, models.
"""

from collections.abc import Callable, Mapping
from types import MappingProxyType

from msgspec import Struct

from dlproxy.config import HttpLimits
from dlproxy.message import Scope
from dlproxy.telemetry.journal import Journal
from dlproxy.wire.audit import Audit
from dlproxy.wire.bounds import Bounds
from dlproxy.wire.grpc.call import Call
from dlproxy.wire.grpc.connection import GrpcConnection
from dlproxy.wire.listening import Listening
from dlproxy.wire.terms import Identify

MAX_STREAMS = 1024  # calls of one connection at a time

Unary = Callable[[Call, bytes], None]
"""Takes a call with its one message, and answers by `reply` or an end, now or later. May raise InferenceError."""

Streaming = Callable[[Call], None]
"""Takes a call when it begins and sets its callbacks. May raise InferenceError."""


class Methods(Struct, frozen=True):
    """By their paths, such as b"/inference.GRPCInferenceService/ModelInfer"."""

    unary: Mapping[bytes, Unary]
    streaming: Mapping[bytes, Streaming]
    rights: Mapping[bytes, Scope] = MappingProxyType({})
    """What one has to be allowed for a call, where it is not the endpoint of a model that asks."""
    naming: frozenset[bytes] = frozenset()
    """Those of them that name a model in their message: they ask again whether it may be that one."""


def all_of(*services: Methods) -> Methods:
    """The methods of several services, as one table."""
    unary = {path: method for service in services for path, method in service.unary.items()}
    return Methods(unary, {path: method for service in services for path, method in service.streaming.items()})


class GrpcServer(Listening):
    """Listens on one socket and hands every call to the method that it names.

    `identify` says who asks, before the message is read, and may refuse the call; without it, everybody is anonymous.
    """

    def __init__(
        self,
        methods: Methods,
        limits: HttpLimits,
        identify: Identify | None = None,
        bounds: Bounds | None = None,
        audit: Audit | None = None,
        journal: Journal | None = None,
    ) -> None:
        """`journal`: what is rare of single requests is noted there."""
        super().__init__(lambda: GrpcConnection(self), Bounds(limits) if bounds is None else bounds, audit)
        self.methods = methods
        self.limits = limits
        self.journal = journal or Journal()
        self.identify = identify
        self.max_streams = MAX_STREAMS

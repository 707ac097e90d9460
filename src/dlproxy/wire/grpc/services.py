"""Every gRPC method that this server has. Called by serve/server.py. Not aware of: sockets, what a method does."""

from collections.abc import Callable

from msgspec.structs import replace

from dlproxy.config import HttpLimits
from dlproxy.message import Scope
from dlproxy.protos.grpc_services import health
from dlproxy.protos.oip import oip
from dlproxy.protos.tfs import tfs
from dlproxy.wire.catalog import Catalog
from dlproxy.wire.extensions import Extensions
from dlproxy.wire.grpc.audited import audited
from dlproxy.wire.grpc.health import Health
from dlproxy.wire.grpc.oip import OipService
from dlproxy.wire.grpc.reflection import Reflection, services_of
from dlproxy.wire.grpc.regions import region_methods
from dlproxy.wire.grpc.server import Methods, all_of
from dlproxy.wire.grpc.settings import setting_methods
from dlproxy.wire.grpc.tfs import TfsService
from dlproxy.wire.operations import ModelRepository
from dlproxy.wire.rights import HEALTH

ASKING = frozenset((b"ModelInfer", b"ModelStreamInfer", b"Predict", b"Classify", b"Regress", b"MultiInference"))
"""Methods that ask models: the endpoint of each model looks who may."""

READING = frozenset(
    (
        *(b"ModelReady", b"ServerMetadata", b"ModelMetadata", b"ModelConfig", b"ModelStatistics", b"RepositoryIndex"),
        *(b"GetModelStatus", b"GetModelMetadata", b"SystemSharedMemoryStatus", b"CudaSharedMemoryStatus"),
    )
)
"""Methods that change nothing."""

NAMING = frozenset((b"RepositoryModelLoad", b"RepositoryModelUnload", b"TraceSetting"))
"""Methods that change one model, whose name is in the message: they look who may."""


def grpc_methods(
    catalog: Catalog,
    repository: ModelRepository | None,
    limits: HttpLimits,
    *,
    clock: Callable[[], float],
    tenant_header: str,
    extensions: Extensions,
) -> Methods:
    """Of all services, by their paths."""
    regions, names = extensions.regions, extensions.names
    oip_service = OipService(
        catalog, repository, limits, clock=clock, tenant_header=tenant_header, regions=regions, extensions=names
    )
    own = all_of(
        oip_service.methods(),
        region_methods(regions),
        setting_methods(extensions.logs, extensions.trace),
        TfsService(catalog, repository, clock=clock, tenant_header=tenant_header).methods(),
    )
    every = all_of(own, Health(catalog, services_of(own)).methods())
    found = all_of(every, Reflection(every, lambda: [oip, tfs, health]).methods())
    paths = {*found.unary, *found.streaming} - HEALTH
    naming = frozenset(path for path in paths if path.rpartition(b"/")[2] in NAMING)
    rights = {path: _right(path) for path in paths if path.rpartition(b"/")[2] not in ASKING}
    unary = {path: audited(path, method) if rights.get(path) == "admin" else method for path, method in found.unary.items()}
    return replace(found, unary=unary, rights=rights, naming=naming)


def _right(path: bytes) -> Scope:
    """Who adds a method and says nothing of it here has it for operators."""
    return "read" if path.rpartition(b"/")[2] in READING or b".reflection." in path else "admin"

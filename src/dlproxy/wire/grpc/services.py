"""Every gRPC method that this server has. Called by serve/server.py. Not aware of: sockets, what a method does."""

from collections.abc import Callable

from dlproxy.config import HttpLimits
from dlproxy.wire.catalog import Catalog
from dlproxy.wire.grpc.oip import OipService
from dlproxy.wire.grpc.server import Methods, all_of
from dlproxy.wire.operations import ModelRepository


def grpc_methods(
    catalog: Catalog,
    repository: ModelRepository | None,
    limits: HttpLimits,
    *,
    clock: Callable[[], float],
    tenant_header: str,
) -> Methods:
    """Of all services, by their paths."""
    oip = OipService(catalog, repository, limits, clock=clock, tenant_header=tenant_header)
    return all_of(oip.methods())

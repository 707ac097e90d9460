"""Every gRPC method that this server has. Called by serve/server.py. Not aware of: sockets, what a method does."""

from collections.abc import Callable

from dlproxy.wire.catalog import Catalog
from dlproxy.wire.grpc.server import Methods, all_of
from dlproxy.wire.grpc.tfs import TfsService
from dlproxy.wire.operations import ModelRepository


def grpc_methods(
    catalog: Catalog, repository: ModelRepository | None, *, clock: Callable[[], float], tenant_header: str
) -> Methods:
    """Of all services, by their paths."""
    return all_of(TfsService(catalog, repository, clock=clock, tenant_header=tenant_header).methods())

"""A gRPC server on a free port, for real clients: grpcio's in a thread or grpc.aio, tritonclient, raw sockets."""

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from dlproxy.config import HttpLimits
from dlproxy.wire.grpc.server import GrpcServer, Methods
from dlproxy.wire.terms import Identify


class RunningGrpc:
    """`address`: as clients of gRPC want it. Blocking clients belong into `asyncio.to_thread`: the server is in this loop."""

    def __init__(self, server: GrpcServer, port: int) -> None:
        self.server, self.port = server, port
        self.address = f"127.0.0.1:{port}"

    async def all_gone(self) -> None:
        """Returns when no connection is left."""
        async with asyncio.timeout(10):
            while self.server.connections:  # noqa: ASYNC110
                await asyncio.sleep(0)


@asynccontextmanager
async def grpc_server(
    methods: Methods, limits: HttpLimits | None = None, identify: Identify | None = None
) -> AsyncIterator[RunningGrpc]:
    """Serves in this event loop; at the end cuts whatever is left and checks that no connection leaked."""
    server = GrpcServer(methods, limits or HttpLimits(), identify)
    listener = socket.create_server(("127.0.0.1", 0))
    await server.start(listener)
    run = RunningGrpc(server, listener.getsockname()[1])
    try:
        yield run
    finally:
        if not server.draining:
            await server.drain(0.5)
        await run.all_gone()

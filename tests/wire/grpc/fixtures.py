"""A gRPC server on a free port, for real clients: grpcio's in a thread or grpc.aio, tritonclient, raw sockets."""

import asyncio
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from dlproxy.config import HttpLimits
from dlproxy.wire.grpc.call import Call
from dlproxy.wire.grpc.server import GrpcServer, Methods
from dlproxy.wire.terms import Identify

ECHO, KEEP, TALK = b"/test.Test/Echo", b"/test.Test/Keep", b"/test.Test/Talk"


class Methodical:
    """Methods that echo, keep a call for the test to answer, and talk: a stream that echoes. Notes what it is told."""

    def __init__(self) -> None:
        self.kept: list[tuple[Call, bytes]] = []
        self.talks: list[Call] = []
        self.heard: list[bytes] = []
        self.told: list[str] = []
        self.methods = Methods({ECHO: lambda call, message: call.reply(message), KEEP: self.keep}, {TALK: self.talk})

    def keep(self, call: Call, message: bytes) -> None:
        call.on_abandoned = lambda: self.told.append("abandoned")
        self.kept.append((call, message))

    def talk(self, call: Call) -> None:
        def hear(message: bytes) -> None:
            self.heard.append(message)
            call.send(message)

        self.talks.append(call)
        call.on_message = hear
        call.on_half_closed = call.end
        call.on_abandoned = lambda: self.told.append("abandoned")
        call.on_writable = lambda: self.told.append("writable")


class RunningGrpc:
    """`address`: as clients of gRPC want it. Blocking clients belong into `asyncio.to_thread`: the server is in this loop."""

    def __init__(self, server: GrpcServer, port: int) -> None:
        self.server, self.port = server, port
        self.address = f"127.0.0.1:{port}"

    async def until(self, condition: Callable[[], bool]) -> None:
        """Let the loop run until something holds; what it is, no event tells."""
        async with asyncio.timeout(10):
            while not condition():  # noqa: ASYNC110
                await asyncio.sleep(0.002)

    async def quiet(self) -> None:
        """Returns when a tenth of a second has passed: no event says that nothing more comes."""
        await asyncio.sleep(0.1)


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
        await run.until(lambda: not server.connections)

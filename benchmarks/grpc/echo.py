"""The yardstick: a bare grpc.aio server that answers any unary call with the bytes it got. `-m benchmarks.grpc.echo PORT`."""

import asyncio
import sys
from typing import Any

import grpc
from grpc import aio


class _Echo(grpc.GenericRpcHandler):  # type: ignore[misc]  # grpc has no types
    def service(self, _: Any) -> Any:
        return grpc.unary_unary_rpc_method_handler(_answer)


async def _answer(message: bytes, _: Any) -> bytes:
    return message


async def main(port: int) -> None:
    server = aio.server()
    server.add_generic_rpc_handlers((_Echo(),))
    server.add_insecure_port(f"127.0.0.1:{port}")
    await server.start()
    await server.wait_for_termination()


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1])))

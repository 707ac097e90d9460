"""Ports that two servers want."""

import asyncio
import socket

from dlproxy.config import Config, ModelConfig, ServerConfig
from dlproxy.serve.server import PortError, Server


async def test_of_two_servers_that_start_at_once_one_says_that_the_port_is_taken() -> None:
    """Both can bind it, as neither listens before its models are up."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    config = ServerConfig(http_port=port, control_port=0, grpc="off", calibration_folder="")
    servers = [Server(Config(server=config, models={"m": [ModelConfig(path="sleep:base=1ms")]})) for _ in range(2)]
    found = await asyncio.gather(*[server.start() for server in servers], return_exceptions=True)
    (error,) = [result for result in found if result is not None]
    assert isinstance(error, PortError)
    assert (
        str(error) == f"cannot listen on 127.0.0.1:{port}: Address already in use; is another server running? "
        "--http-port 0 picks a free port"
    )
    await servers[found.index(None)].stop()

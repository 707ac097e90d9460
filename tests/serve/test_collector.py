"""Python's garbage collector in a server: code is frozen, models are not, and requests give it nothing to do.

`make test ARGS="-n0 -s tests/serve/test_collector.py"` shows the figures of docs/adr/0018.
"""

import json
import socket
import subprocess
import sys

import pytest

from tests import models
from tests.clients.server import HANG_S, environment

PIPELINED = 250  # with so many under way, their objects are enough for Python's own thresholds
SERVE = """
import asyncio, gc, sys

collections = []
gc.callbacks.append(lambda phase, info: collections.append(info["generation"]) if phase == "stop" else None)

from dlproxy.config import Config, ModelConfig, ServerConfig
from dlproxy.serve.server import Server


async def main(path, thresholds):
    settings = ServerConfig(http_port=0, control_port=0, calibration_folder="")
    server = Server(Config(server=settings, models={"m": [ModelConfig(path=path, run="inline")]}))
    await server.start()
    if thresholds == "python's":
        gc.set_threshold(700, 10, 10)
    gc.collect()
    collections.clear()
    print(server.http_port, flush=True)
    await asyncio.to_thread(sys.stdin.readline)
    print(len(collections), gc.get_freeze_count(), len(gc.get_objects()), flush=True)
    await server.stop()


asyncio.run(main(*sys.argv[1:]))
"""


def ask(port: int, requests: int) -> None:
    """All over one connection."""
    body = json.dumps({"inputs": [[[[1.0] * 8] * 8]]}).encode()
    request = b"POST /predict/m HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n\r\n%s" % (len(body), body)
    with socket.create_connection(("127.0.0.1", port), HANG_S) as connection:
        for _ in range(requests // PIPELINED):
            connection.sendall(request * PIPELINED)
            answered, rest = 0, b""
            while answered < PIPELINED:
                rest += connection.recv(1 << 20)
                answered += rest.count(b"HTTP/1.1 200 OK")
                rest = rest[-14:].rpartition(b"OK")[2]


@pytest.mark.parametrize(("thresholds", "requests", "collects"), [("ours", 6_000, False), ("python's", 2_500, True)])
def test_requests_cause_no_collection_and_only_code_is_frozen(thresholds: str, requests: int, *, collects: bool) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", SERVE, str(models.DIGITS), thresholds],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=environment(),
    ) as server:
        assert server.stdout is not None
        ask(int(server.stdout.readline()), requests)
        said, _ = server.communicate("\n", timeout=HANG_S)
    collections, frozen, others = map(int, said.split())
    counted = f"{requests:,} requests, {collections} collections; frozen {frozen:,} of {frozen + others:,} objects"
    sys.stderr.write(f"\n{thresholds} thresholds: {counted}\n")
    assert (collections > 0) is collects
    assert frozen > others > 0

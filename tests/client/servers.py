"""Servers for tests of the client: one that answers the metadata of model "m" and whatever a script says."""

import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import numpy as np

from dlproxy import AsyncClient
from tests.instance.upstreams import Asked, ScriptedUpstream

METADATA = {
    "name": "m",
    "versions": ["1"],
    "platform": "x",
    "inputs": [{"name": "x", "datatype": "FP32", "shape": [-1, 2]}],
    "outputs": [{"name": "y", "datatype": "FP32", "shape": [-1, 2]}, {"name": "t", "datatype": "BYTES", "shape": [-1]}],
}
X = np.array([[1, 2]], np.float32)


def body_of(y: bytes, *, size: int | None = None) -> tuple[bytes, int]:
    """The body of an answer with one output, and the bytes of its JSON."""
    said = len(y) if size is None else size
    output = {"name": "y", "datatype": "FP32", "shape": [1, 2], "parameters": {"binary_data_size": said}}
    head = json.dumps({"model_name": "m", "outputs": [output]}).encode()
    return head + y, len(head)


async def echo(asked: Asked) -> None:
    """Gives x as y."""
    body, head_bytes = body_of(asked.body[int(asked.header("inference-header-content-length")) :])
    asked.reply(body, extra=f"inference-header-content-length: {head_bytes}\r\n")


@asynccontextmanager
async def scripted(
    behave: Callable[[Asked], Any] = echo, **settings: Any
) -> AsyncIterator[tuple[AsyncClient, ScriptedUpstream]]:
    """A client of such a server."""
    server = ScriptedUpstream({"/v2/models/m": METADATA}, behave)
    await server.start()
    try:
        async with AsyncClient(f"http://127.0.0.1:{server.port}", **settings) as client:
            yield client, server
    finally:
        await server.stop()

"""Models that fail at run time: only the request that asked for it gets the error."""

import asyncio

import numpy as np
import pytest

from tests.clients.raw import Connect, RawReply, binary_infer, binary_output
from tests.clients.server import HANG_S, ServerProcess

BAD = 99


def _lookup(*indexes: int) -> bytes:
    return binary_infer("lookup", "index", "INT64", np.array(indexes, np.int64))


def _check(reply: RawReply, index: int) -> None:
    if index == BAD:
        assert reply.status == 500
        assert "99" in reply.json()["error"]
    else:
        assert reply.status == 200
        assert binary_output(reply, np.float32).tolist() == [10.0 * index]


@pytest.mark.parametrize("place", [0, 3, 7])
async def test_one_poisoned_item_among_eight_of_one_batch_fails_alone(
    fault_server: ServerProcess, connect: Connect, place: int
) -> None:
    indexes = [BAD if number == place else number for number in range(8)]
    connection = await connect(fault_server.http_port)
    connection.send(b"".join(map(_lookup, indexes)))  # in one piece: they arrive in one turn of the server's loop
    for index in indexes:
        _check(await asyncio.wait_for(connection.replies.get(), HANG_S), index)


async def test_one_poisoned_item_among_eight_connections_fails_alone(fault_server: ServerProcess, connect: Connect) -> None:
    for _ in range(10):
        indexes = [BAD, *range(7)]
        connections = [await connect(fault_server.http_port) for _ in indexes]
        for connection, index in zip(connections, indexes, strict=True):
            connection.send(_lookup(index))
        for connection, index in zip(connections, indexes, strict=True):
            _check(await asyncio.wait_for(connection.replies.get(), HANG_S), index)


async def test_a_poisoned_row_fails_its_whole_request(fault_server: ServerProcess, connect: Connect) -> None:
    connection = await connect(fault_server.http_port)
    reply = await asyncio.wait_for(connection.ask(_lookup(1, BAD, 2)), HANG_S)
    assert reply.status == 500
    reply = await asyncio.wait_for(connection.ask(_lookup(1, 2)), HANG_S)
    assert binary_output(reply, np.float32).tolist() == [10.0, 20.0]


async def test_failures_are_counted(fault_server: ServerProcess, connect: Connect) -> None:
    def failed() -> float:
        return fault_server.metric("nv_inference_request_failure", model="lookup", reason="BACKEND")

    before = failed()
    connection = await connect(fault_server.http_port)
    await asyncio.wait_for(connection.ask(_lookup(BAD)), HANG_S)
    assert failed() == before + 1
    assert fault_server.stats("lookup")["inference_stats"]["fail"]["count"] >= 1

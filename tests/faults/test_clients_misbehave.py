"""Clients that leave, read slowly or come in crowds: the others are served, and every counter returns to rest."""

import asyncio
from collections.abc import Callable

import numpy as np

from tests.clients.raw import Connect, RawConnection, RawReply, binary_infer, binary_output
from tests.clients.server import HANG_S, ServerProcess


def _slow(rows: int = 1, **params: int) -> bytes:
    return binary_infer("slow", "x", "FP32", np.arange(rows, dtype=np.float32)[:, None], **params)


async def _next(connection: RawConnection) -> RawReply:
    return await asyncio.wait_for(connection.replies.get(), HANG_S)


async def _until(condition: Callable[[], bool]) -> None:
    """Ask again until it holds; each look is a request to the server, which paces the loop."""
    deadline = asyncio.get_running_loop().time() + HANG_S
    while not await asyncio.to_thread(condition):
        assert asyncio.get_running_loop().time() < deadline, "the server did not come to rest"


def _cancelled(server: ServerProcess) -> float:
    return server.metric("nv_inference_request_failure", model="slow", reason="CANCELED")


def _at_rest(server: ServerProcess) -> bool:
    return server.metric("dlproxy_queue_rows", model="slow") == 0 and server.metric("dlproxy_http_connections") == 0


async def test_clients_that_leave_while_queued_and_while_running(fault_server: ServerProcess, connect: Connect) -> None:
    before = _cancelled(fault_server)
    running = await connect(fault_server.http_port)
    running.send(_slow(8))
    queued = [await connect(fault_server.http_port) for _ in range(4)]
    for connection in queued:
        connection.send(_slow(2))
    await _until(lambda: fault_server.metric("dlproxy_queue_rows", model="slow") >= 8)
    for connection in (running, *queued):
        connection.close()
    await _until(lambda: _cancelled(fault_server) == before + 5)
    await _until(lambda: _at_rest(fault_server))

    later = await connect(fault_server.http_port)
    assert binary_output(await asyncio.wait_for(later.ask(_slow(2)), HANG_S), np.float32).tolist() == [0, 1]


async def test_a_client_that_leaves_takes_no_neighbour_with_it(fault_server: ServerProcess, connect: Connect) -> None:
    blocker, leaver, stayer = [await connect(fault_server.http_port) for _ in range(3)]
    blocker.send(_slow(4))
    leaver.send(_slow(1))
    stayer.send(_slow(2))
    await _until(lambda: fault_server.metric("dlproxy_queue_rows", model="slow") >= 3)
    leaver.transport.abort()  # a reset instead of a close
    assert (await _next(blocker)).status == 200
    assert binary_output(await _next(stayer), np.float32).tolist() == [0, 1]


async def test_a_full_queue_answers_503_with_retry_after(fault_server: ServerProcess, connect: Connect) -> None:
    crowd = [await connect(fault_server.http_port) for _ in range(12)]
    for connection in crowd:
        connection.send(_slow(8))
    replies = [await _next(connection) for connection in crowd]
    refused = [reply for reply in replies if reply.status != 200]
    assert {reply.status for reply in refused} == {503}
    assert 4 <= len(refused) <= 9  # one runs, three fill the queue of 24 rows
    for reply in refused:
        assert reply.json()["error"].startswith("Exceeds maximum queue size")
        assert int(reply.headers["retry-after"]) >= 1
        assert not reply.closes
    for reply in replies:
        if reply.status == 200:
            assert binary_output(reply, np.float32).tolist() == list(range(8))
    assert (await asyncio.wait_for(crowd[0].ask(_slow()), HANG_S)).status == 200


async def test_a_deadline_that_cannot_be_met_is_answered_before_the_batch_in_its_way(
    fault_server: ServerProcess, connect: Connect
) -> None:
    order: list[str] = []
    both = asyncio.Event()

    def note(name: str) -> Callable[[RawConnection, RawReply], None]:
        def on_reply(connection: RawConnection, reply: RawReply) -> None:
            order.append(f"{name} {reply.status}")
            if name == "hurried":
                assert "Request timeout expired" in reply.json()["error"]
            if len(order) == 2:
                both.set()

        return on_reply

    long = await connect(fault_server.http_port, note("long"))
    hurried = await connect(fault_server.http_port, note("hurried"))
    before = fault_server.metric("nv_inference_request_failure", model="slow", reason="REJECTED")
    long.send(_slow(20))
    hurried.send(_slow(1, timeout=20_000))  # microseconds
    await asyncio.wait_for(both.wait(), HANG_S)
    assert order == ["hurried 503", "long 200"]
    assert fault_server.metric("nv_inference_request_failure", model="slow", reason="REJECTED") == before + 1


async def test_a_deadline_that_is_generous_changes_nothing(fault_server: ServerProcess, connect: Connect) -> None:
    connection = await connect(fault_server.http_port)
    assert (await asyncio.wait_for(connection.ask(_slow(1, timeout=60_000_000)), HANG_S)).status == 200


async def test_a_reader_that_sleeps_gets_everything_later_and_holds_up_nobody(
    fault_server: ServerProcess, connect: Connect
) -> None:
    values = np.arange(65_536, dtype=np.int64).reshape(1, -1)  # half a megabyte each way
    asleep, awake = await connect(fault_server.http_port), await connect(fault_server.http_port)
    asleep.transport.pause_reading()
    for number in range(60):
        asleep.send(binary_infer("wide", "x", "INT64", values + number))
    for number in range(20):
        reply = await asyncio.wait_for(awake.ask(binary_infer("wide", "x", "INT64", values[:, :100] + number)), HANG_S)
        assert np.array_equal(binary_output(reply, np.int64), values[:, :100] + number)
    assert fault_server.metric("process_resident_memory_bytes") < 1e9
    asleep.transport.resume_reading()
    for number in range(60):
        assert np.array_equal(binary_output(await _next(asleep), np.int64), values + number)


async def test_a_reader_that_leaves_with_replies_unread_holds_up_nobody(fault_server: ServerProcess, connect: Connect) -> None:
    values = np.zeros((1, 65_536), np.int64)
    asleep, awake = await connect(fault_server.http_port), await connect(fault_server.http_port)
    asleep.transport.pause_reading()
    for _ in range(40):
        asleep.send(binary_infer("wide", "x", "INT64", values))
    assert (await asyncio.wait_for(awake.ask(binary_infer("wide", "x", "INT64", values)), HANG_S)).status == 200
    asleep.transport.abort()
    awake.close()
    await _until(lambda: fault_server.metric("dlproxy_http_connections") == 0)

"""What only a real connection shows, on asyncio's event loop and on uvloop: closing, lingering, draining, slow readers."""

import asyncio
import socket

import pytest

from dlproxy.config import HttpLimits
from dlproxy.wire import listening
from dlproxy.wire.http.exchange import Exchange
from dlproxy.wire.http.server import HttpServer
from dlproxy.wire.listening import SWEEP_S

from .fixtures import PLAIN, Answers, EchoService, app_of, parse_replies, post, request, running, served

INFER = b'{"inputs":[{"name":"x","shape":[1,2],"datatype":"FP32","data":[1,2]}]}'


async def test_many_requests_over_one_connection() -> None:
    async with running(Answers()) as run:
        client = await run.connect()
        for size in (0, 10, 100_000, 10):
            client.send(post("/", b"a" * size))
            assert (await client.reply()).body == b"POST / %d" % size


async def test_pipelined_inference_is_answered_in_order() -> None:
    service = EchoService(PLAIN)
    async with running(app_of(served(service)), HttpLimits(max_pipelined=8)) as run:
        client = await run.connect()
        client.send(b"".join(post("/v2/models/m/infer", INFER.replace(b"[1,2]}", b"[%d,2]}" % i)) for i in range(50)))
        for first in range(50):
            await run.until(lambda: bool(service.waiting))
            service.answer(-1 if first % 2 else 0)
        replies = [await client.reply() for _ in range(50)]
        assert [reply.json()["outputs"][0]["data"][0] for reply in replies] == list(range(50))


async def test_a_request_that_offers_another_protocol_is_answered_and_the_next_one_too() -> None:
    async with running(Answers()) as run:
        client = await run.connect()
        for protocol in ("h2c", "websocket"):
            client.send(post("/", b"body", Connection="Upgrade", Upgrade=protocol))
            reply = await client.reply()
            assert (reply.status, reply.body, reply.closes) == (200, b"POST / 4", False)
        client.send(post("/", b"body", Connection="close, Upgrade", Upgrade="h2c"))
        assert [reply.closes for reply in parse_replies(await client.rest())] == [True]


async def test_a_client_that_is_still_sending_can_read_the_refusal() -> None:
    async with running(Answers(), HttpLimits(max_body_bytes=1000)) as run:
        client = await run.connect()
        client.send(request("/", "POST", {"Content-Length": "20000000"}))
        for _ in range(20):
            client.send(b"a" * 100_000)
            await asyncio.sleep(0)
        await client.writer.drain()
        assert (await client.reply()).status == 413
        assert await client.rest() == b""


async def test_a_connection_too_many_reads_its_503() -> None:
    async with running(Answers(), HttpLimits(max_connections=1)) as run:
        first = await run.connect()
        first.send(request("/"))
        assert (await first.reply()).status == 200
        second = await run.connect()
        second.send(request("/"))
        assert (await second.reply()).status == 503
        assert await second.rest() == b""
        await second.close()
        first.send(request("/"))
        assert (await first.reply()).status == 200


async def test_a_client_that_leaves_cancels_its_requests() -> None:
    service = EchoService(PLAIN)
    async with running(app_of(served(service))) as run:
        client = await run.connect()
        client.send(post("/v2/models/m/infer", INFER) * 3)
        await run.until(lambda: len(service.waiting) == 3)
        reply_to = service.waiting[0][1]
        await client.close()
        await run.until(lambda: len(service.cancelled) == 3)
        assert not service.waiting
        assert not run.server.connections
        reply_to.completed(service.echo(service.requests[0]))


async def test_a_client_that_resets_the_connection_is_forgotten() -> None:
    service = EchoService(PLAIN)
    async with running(app_of(served(service))) as run:
        client = await run.connect()
        client.send(post("/v2/models/m/infer", INFER) + post("/v2/models/m/infer", INFER)[:-5])
        await run.until(lambda: len(service.waiting) == 1)
        client.writer.transport.abort()
        await run.until(lambda: not run.server.connections)
        assert service.cancelled == service.requests


async def test_a_client_that_does_not_read_stops_being_read_and_is_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listening, "SWEEP_S", 0.02)
    answers = Answers(at_once=False)

    def answer(exchange: Exchange) -> None:
        answers.seen.append(exchange)
        exchange.reply(200, b"text/plain", b"r" * 1_000_000)

    async with running(answer, HttpLimits(write_timeout_s=0.1)) as run:
        with socket.create_connection(("127.0.0.1", run.port)) as deaf:
            deaf.setblocking(False)
            sent = 0
            for _ in range(200):
                try:
                    sent += deaf.send(request("/") * 100)
                except OSError:
                    break
                await asyncio.sleep(0)
            await run.until(lambda: not run.server.connections)
        assert sent > 4000
        assert len(answers.seen) < 100


async def test_a_slow_reader_gets_all_of_a_last_reply() -> None:
    body = bytes(range(256)) * 40_000
    async with running(lambda exchange: exchange.reply(200, b"text/plain", body)) as run:
        client = await run.connect(limit=1 << 14)
        client.send(request("/", headers={"Connection": "close"}))
        await asyncio.sleep(0.05)
        assert parse_replies(await client.rest())[0].body == body


async def test_drain_answers_what_is_under_way_and_takes_nothing_new() -> None:
    answers = Answers(at_once=False)
    async with running(answers) as run:
        idle, busy = await run.connect(), await run.connect()
        idle.send(request("/idle"))
        busy.send(request("/1") + request("/2") + request("/3"))
        await run.until(lambda: len(answers.seen) == 4)
        answers.answer(next(exchange for exchange in answers.seen if exchange.target == b"/idle"))
        drain = asyncio.ensure_future(run.server.drain(5))
        await asyncio.sleep(0.01)
        with pytest.raises(OSError, match=r"Connect|refused|Multiple"):
            await run.connect()
        for exchange in [exchange for exchange in answers.seen if exchange.target != b"/idle"]:
            answers.answer(exchange)
        replies = parse_replies(await busy.rest())
        assert [(reply.body, reply.closes) for reply in replies] == [
            (b"GET /1 0", False),
            (b"GET /2 0", False),
            (b"GET /3 0", True),
        ]
        assert [reply.status for reply in parse_replies(await idle.rest())] == [200]
        assert await drain == 0


async def test_a_request_on_its_way_when_the_drain_begins_is_answered() -> None:
    async with running(Answers()) as run:
        client = await run.connect()
        client.send(post("/", b"abc")[:-1])
        await run.until(lambda: bool(run.server.connections))
        await asyncio.sleep(0.01)
        drain = asyncio.ensure_future(run.server.drain(5))
        await asyncio.sleep(0.01)
        client.send(b"c")
        assert [(reply.status, reply.closes) for reply in parse_replies(await client.rest())] == [(200, True)]
        assert await drain == 0


async def test_an_idle_connection_has_its_whole_grace_however_long_it_was_idle() -> None:
    async with running(Answers()) as run:
        client = await run.connect()
        client.send(request("/1"))
        assert not (await client.reply()).closes
        await asyncio.sleep(SWEEP_S - 0.07)  # nearly as long as passes from one look at the connections to the next
        drain = asyncio.ensure_future(run.server.drain(5))
        await asyncio.sleep(0.05)
        client.send(request("/2"))
        assert [(reply.status, reply.closes) for reply in parse_replies(await client.rest())] == [(200, True)]
        assert await drain == 0


async def test_a_drain_that_takes_too_long_cuts() -> None:
    service = EchoService(PLAIN)
    async with running(app_of(served(service))) as run:
        client = await run.connect()
        client.send(post("/v2/models/m/infer", INFER))
        await run.until(lambda: bool(service.waiting))
        assert await run.server.drain(0.02) == 1
        assert await client.rest() == b""
        assert len(service.cancelled) == 1


async def test_a_drain_without_connections_ends_at_once() -> None:
    async with running(Answers()) as run:
        assert await run.server.drain(60) == 0


async def test_replies_say_the_date() -> None:
    async with running(Answers()) as run:
        client = await run.connect()
        client.send(request("/"))
        assert (await client.reply()).headers["date"].endswith(" GMT")


async def test_the_sweep_reaches_real_connections(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listening, "SWEEP_S", 0.01)
    async with running(Answers(), HttpLimits(header_timeout_s=0.05, idle_timeout_s=0.05)) as run:
        slow, idle = await run.connect(), await run.connect()
        slow.send(b"GET / HT")
        assert [reply.status for reply in parse_replies(await slow.rest())] == [408]
        assert await idle.rest() == b""


async def test_a_fault_of_the_application_is_answered_and_harms_nobody() -> None:
    def faulty(exchange: Exchange) -> None:
        if exchange.target == b"/fault":
            raise ValueError("a fault")
        Answers.answer(exchange)

    async with running(faulty) as run:
        bad, good = await run.connect(), await run.connect()
        bad.send(request("/fault") + request("/"))
        assert [(await bad.reply()).status for _ in range(2)] == [500, 200]
        good.send(request("/"))
        assert (await good.reply()).status == 200


def test_a_server_needs_no_running_loop_to_be_made() -> None:
    assert not HttpServer(Answers(), HttpLimits()).connections

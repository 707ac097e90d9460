"""Real clients on real sockets, on both event loops."""

import asyncio
import socket
import threading
from collections import Counter
from collections.abc import Iterator

import grpc
import pytest

from dlproxy.message import Failure, FailureKind
from dlproxy.wire.grpc.call import Call
from dlproxy.wire.grpc.server import Methods

from .conftest import Channels
from .fixtures import ECHO, KEEP, TALK, Methodical, RunningGrpc, grpc_server
from .framed import GREETING, unary

SIZES = (0, 1, 100, 16_379, 16_380, 70_000, 1 << 20, 30 << 20)


@pytest.mark.parametrize("compression", [grpc.Compression.NoCompression, grpc.Compression.Gzip, grpc.Compression.Deflate])
async def test_messages_of_any_size_come_back(channel: Channels, compression: grpc.Compression) -> None:
    async with grpc_server(Methodical().methods) as run:
        method = channel(run.address).unary_unary(ECHO.decode())
        for size in SIZES:
            message = b"x" * size
            assert await asyncio.to_thread(method, message, timeout=20, compression=compression) == message


async def test_a_stream_of_messages_comes_back_in_order(channel: Channels) -> None:
    sent = [b"%d" % number * (number % 1000) for number in range(3000)]
    async with grpc_server(Methodical().methods) as run:
        method = channel(run.address).stream_stream(TALK.decode())
        assert await asyncio.to_thread(lambda: list(method(iter(sent), timeout=20))) == sent


async def test_failures_come_as_statuses_with_their_texts(channel: Channels) -> None:
    def fail(call: Call, message: bytes) -> None:
        call.refuse(Failure(FailureKind.QUEUE_FULL, "100 % voll: Größe überschritten\n…", retry_after_s=0.25))

    def break_down(call: Call, message: bytes) -> None:
        raise ValueError("a defect")

    async with grpc_server(Methods({b"/a.B/Fail": fail, b"/a.B/Break": break_down}, {})) as run:
        open_channel = channel(run.address)

        def ask(path: str) -> tuple[grpc.StatusCode, str, dict[str, str]]:
            try:
                open_channel.unary_unary(path)(b"", timeout=10)
            except grpc.RpcError as error:
                return error.code(), error.details(), dict(error.trailing_metadata())
            raise AssertionError("it did not fail")

        code, details, trailers = await asyncio.to_thread(ask, "/a.B/Fail")
        assert (code, details) == (grpc.StatusCode.UNAVAILABLE, "100 % voll: Größe überschritten\n…")
        assert trailers["grpc-retry-pushback-ms"] == "250"
        assert (await asyncio.to_thread(ask, "/a.B/Break"))[0] is grpc.StatusCode.INTERNAL
        assert (await asyncio.to_thread(ask, "/a.B/C"))[0] is grpc.StatusCode.UNIMPLEMENTED


async def test_deadlines_and_cancellation_reach_the_service(channel: Channels) -> None:
    methodical = Methodical()
    async with grpc_server(methodical.methods) as run:
        open_channel = channel(run.address)
        keep = open_channel.unary_unary(KEEP.decode())
        late = await asyncio.to_thread(lambda: keep.future(b"", timeout=0.1).exception())
        assert late.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        await run.until(lambda: methodical.told.count("abandoned") == 1)
        assert methodical.kept[0][0].headers[b"grpc-timeout"]
        going = await asyncio.to_thread(keep.future, b"")
        await run.until(lambda: len(methodical.kept) == 2)
        going.cancel()
        await run.until(lambda: methodical.told.count("abandoned") == 2)
        talk = open_channel.stream_stream(TALK.decode())
        hold = threading.Event()

        def ask() -> grpc.StatusCode:
            def requests() -> Iterator[bytes]:
                yield b"one"
                hold.wait(10)

            answers = talk(requests(), timeout=0.3)
            assert next(answers) == b"one"
            with pytest.raises(grpc.RpcError) as error:
                next(answers)
            hold.set()
            code: grpc.StatusCode = error.value.code()
            return code

        assert await asyncio.to_thread(ask) is grpc.StatusCode.DEADLINE_EXCEEDED
        await run.until(lambda: methodical.told.count("abandoned") == 3)


async def test_a_reader_that_stops_holds_the_stream_and_goes_on_later(channel: Channels) -> None:
    methodical = Methodical()
    async with grpc_server(methodical.methods) as run:
        talk = channel(run.address).stream_stream(TALK.decode())
        count, size = 200, 100_000
        answers = await asyncio.to_thread(talk, iter([bytes(size)] * count))
        first = await asyncio.to_thread(next, answers)
        await run.quiet()
        assert len(methodical.heard) < count
        rest = await asyncio.to_thread(list, answers)
        assert [len(found) for found in (first, *rest)] == [size] * count


async def test_a_client_that_pings_too_often_is_told_and_slows_down(channel: Channels) -> None:
    options = [
        ("grpc.keepalive_time_ms", 100),
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.http2.max_pings_without_data", 0),
    ]
    async with grpc_server(Methodical().methods) as run:
        method = channel(run.address, options).unary_unary(ECHO.decode())
        assert await asyncio.to_thread(method, b"x", timeout=5) == b"x"
        await run.until(lambda: not run.server.connections)
        assert await asyncio.to_thread(method, b"x", timeout=5) == b"x"


class Load:
    """Threads that call one after the other until they are told to stop; notes how each call ended."""

    def __init__(self, method: grpc.UnaryUnaryMultiCallable, threads: int = 8) -> None:
        self.ended: Counter[str] = Counter()
        self._method = method
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._work) for _ in range(threads)]
        for thread in self._threads:
            thread.start()

    def _work(self) -> None:
        while not self._stop.is_set():
            try:
                self._method(b"x" * 100, timeout=10)
                self.ended["ok"] += 1
            except grpc.RpcError as error:
                self.ended[f"{error.code().name}: {error.details()}"] += 1

    def stop(self) -> Counter[str]:
        self._stop.set()
        for thread in self._threads:
            thread.join()
        return self.ended


def slow_echo(call: Call, message: bytes) -> None:
    asyncio.get_running_loop().call_later(0.02, call.reply, message)


async def test_no_call_is_lost_when_a_server_drains_under_load(channel: Channels) -> None:
    """The client goes on at the second server by itself: what was under way is answered, what was refused is tried again."""
    methods = Methods({ECHO: slow_echo}, {})
    async with grpc_server(methods) as second:
        for _ in range(3):
            assert await _drained_under_load(channel, methods, second) == {"ok"}


async def _drained_under_load(channel: Channels, methods: Methods, second: RunningGrpc) -> set[str]:
    async with grpc_server(methods) as first:
        load = Load(channel(f"ipv4:{first.address},{second.address}").unary_unary(ECHO.decode()))
        await first.until(lambda: load.ended["ok"] > 100)
        cut = await first.server.drain(5.0)
        so_far = load.ended["ok"]
        await first.until(lambda: load.ended["ok"] > so_far + 100)
        ended = await asyncio.to_thread(load.stop)
    assert cut == 0
    return set(ended)


async def test_bytes_that_are_no_http2_end_the_connection_and_the_reason_arrives() -> None:
    async with grpc_server(Methodical().methods) as run:
        for sent in (b"GET / HTTP/1.1\r\nHost: a\r\n\r\n", bytes(1 << 20)):
            reader, writer = await asyncio.open_connection("127.0.0.1", run.port)
            writer.write(sent)
            answer = await asyncio.wait_for(reader.read(), 10)
            assert b"gRPC needs HTTP/2" in answer
            writer.close()
        await run.until(lambda: not run.server.connections)


async def test_a_client_that_vanishes_leaves_nothing() -> None:
    methodical = Methodical()
    async with grpc_server(methodical.methods) as run:
        await _vanish(run, methodical)
        assert methodical.told == ["abandoned"]


async def _vanish(run: RunningGrpc, methodical: Methodical) -> None:
    raw = socket.create_connection(("127.0.0.1", run.port))
    raw.sendall(GREETING + unary(1, path=KEEP))
    await run.until(lambda: bool(methodical.kept))
    raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\0\0\0\0\0\0\0")
    raw.close()
    await run.until(lambda: not run.server.connections)

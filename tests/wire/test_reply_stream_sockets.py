"""Replies written bit by bit on real connections, on asyncio's event loop and on uvloop: slow readers, readers that vanish."""

import asyncio

from dlproxy.wire.http.exchange import Exchange, ReplyStream

from .fixtures import request, running

PIECE = 50_000
PIECES = 400


class Pump:
    """Streams PIECES pieces, each when it may be written; keeps the most that the transport ever held back."""

    def __init__(self, *, endless: bool = False) -> None:
        self.left = PIECES
        self.most = 0
        self.gone = asyncio.Event()
        self._endless = endless

    def __call__(self, exchange: Exchange) -> None:
        exchange.on_abandoned = self.gone.set
        self.exchange, self.stream = exchange, exchange.begin(200, b"application/octet-stream")
        self.stream.on_writable = self.go_on
        self.go_on()

    def go_on(self) -> None:
        stream: ReplyStream = self.stream
        while stream.writable and self.left:
            self.left -= not self._endless
            stream.write(bytes(PIECE))
            self.most = max(self.most, self.exchange.connection._transport.get_write_buffer_size())
        if not self.left:
            stream.on_writable = None
            stream.end()


async def test_a_slow_reader_gets_everything_and_costs_little() -> None:
    pump = Pump()
    async with running(pump) as run:
        client = await run.connect()
        client.send(request())
        await run.until(lambda: pump.most > 0)
        await client.reader.readuntil(b"\r\n\r\n")
        size = 0
        async with asyncio.timeout(30):
            while line := (await client.reader.readline()).strip():
                length = int(line, 16)
                size += len(await client.reader.readexactly(length + 2)) - 2
                if not length:
                    break
        assert size == PIECES * PIECE
        assert pump.most < 4 * PIECE + 65536
        assert not pump.gone.is_set()


async def test_http_1_0_reads_until_the_end() -> None:
    pump = Pump()
    async with running(pump) as run:
        client = await run.connect()
        client.send(b"GET / HTTP/1.0\r\n\r\n")
        assert len((await client.rest()).partition(b"\r\n\r\n")[2]) == PIECES * PIECE


async def test_a_reader_that_vanishes_ends_the_stream() -> None:
    pump = Pump(endless=True)
    async with running(pump) as run:
        client = await run.connect()
        client.send(request())
        await client.reader.readexactly(10 * PIECE)
        await client.close()
        await asyncio.wait_for(pump.gone.wait(), 10)
        assert not pump.stream.writable

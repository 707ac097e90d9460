"""Upstreams for tests: one that answers as a script says, byte by byte, and dlproxy's own HTTP stack around a runtime."""

import asyncio
import json
import socket
from collections.abc import Awaitable, Callable, Mapping, Sequence
from time import monotonic
from typing import Any, Protocol

from dlproxy.config import HttpLimits
from dlproxy.instance import Instance
from dlproxy.instance.inline import InlineInstance
from dlproxy.instance.remote import RemoteInstance, RemoteSettings, parse_address
from dlproxy.instance.runtime import Runtime
from dlproxy.message import Signature
from dlproxy.policy.events import InstanceUp
from dlproxy.policy.knobs import LaneKnobs
from dlproxy.policy.lane import Lane
from dlproxy.serve.driver import Driver
from dlproxy.telemetry.stats import ModelStats
from dlproxy.wire.catalog import Catalog, ServedModel
from dlproxy.wire.http.server import HttpServer
from dlproxy.wire.oip.http import OipApp
from tests.policy.lane.fixtures import warmed
from tests.serve.rig import pass_time

Behave = Callable[["Asked"], Awaitable[None]]
QUICK = RemoteSettings(
    check_interval_s=0.2, recheck_s=0.02, connect_timeout_s=5.0, check_timeout_s=5.0, response_timeout_s=10.0
)


class Asked:
    """One request that a scripted upstream got, and the way to answer it."""

    def __init__(self, head: bytes, body: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.head, self.body, self.reader, self.writer = head, body, reader, writer
        self.method, self.path, _ = head.split(b"\r\n", 1)[0].decode().split(" ")

    def header(self, name: str) -> str:
        for line in self.head.decode().split("\r\n")[1:]:
            key, _, value = line.partition(":")
            if key.lower() == name:
                return value.strip()
        return ""

    def json(self) -> Any:
        """The JSON of the body, without what follows it as binary."""
        return json.loads(self.body[: int(self.header("inference-header-content-length") or len(self.body))])

    def send(self, data: bytes) -> None:
        self.writer.write(data)

    def reply(self, value: Any, status: int = 200, extra: str = "") -> None:
        body = value if isinstance(value, bytes) else json.dumps(value).encode()
        self.send(f"HTTP/1.1 {status} X\r\n{extra}content-length: {len(body)}\r\n\r\n".encode() + body)

    def hang_up(self) -> None:
        """Close in an orderly way, after what was sent."""
        self.writer.close()

    def reset(self) -> None:
        """Close with a reset."""
        self.writer.transport.abort()


class ScriptedUpstream:
    """`answers`: JSON by path for GET; every POST goes to `behave`. Counts connections and keeps the requests."""

    def __init__(self, answers: Mapping[str, Any], behave: Behave) -> None:
        self.answers = dict(answers)
        self.behave = behave
        self.host, self.port = "127.0.0.1", 0
        self.asked: list[Asked] = []
        self.accepted = 0
        self._writers: set[asyncio.StreamWriter] = set()
        self._tasks: set[asyncio.Task[Any]] = set()
        self.most_open = 0

    @property
    def open(self) -> int:
        return len(self._writers)

    @property
    def posts(self) -> list[Asked]:
        return [asked for asked in self.asked if asked.method == "POST"]

    async def start(self, ssl: Any = None, listener: socket.socket | None = None) -> None:
        place = (self.host, self.port) if listener is None else ()
        self._server = await asyncio.start_server(self._serve, *place, ssl=ssl, sock=listener)
        self.port = self._server.sockets[0].getsockname()[1]

    async def stop(self) -> None:
        self._server.close()
        for writer in list(self._writers):
            writer.transport.abort()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await asyncio.sleep(0)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        self._writers.add(writer)
        self.accepted += 1
        self.most_open = max(self.most_open, self.open)
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                asked = Asked(head, b"", reader, writer)
                asked.body = await reader.readexactly(int(asked.header("content-length") or 0))
                self.asked.append(asked)
                await self._answer(asked)
        except (asyncio.IncompleteReadError, ConnectionError, asyncio.CancelledError):
            pass
        finally:
            writer.transport.abort()
            self._writers.discard(writer)
            self._tasks.discard(task)

    async def _answer(self, asked: Asked) -> None:
        if asked.method == "POST":
            await self.behave(asked)
        elif asked.path in self.answers:
            value = self.answers[asked.path]
            asked.reply(value[1], status=value[0]) if isinstance(value, tuple) else asked.reply(value)
        else:
            asked.reply({"error": "no such thing"}, status=404)


class DlproxyUpstream:
    """A lane with one inline instance behind dlproxy's HTTP server, on the loop that starts it; may be closed and re-opened."""

    def __init__(self, runtime: Runtime, *, model: str = "m", max_batch: int = 256) -> None:
        self.runtime, self.model, self.max_batch = runtime, model, max_batch
        self.port = 0
        self.stats = ModelStats()

    def instances(self) -> Sequence[Instance]:
        return [InlineInstance("inner", self.runtime)]

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v2/models/{self.model}"

    def app(self, limits: HttpLimits) -> OipApp:
        """The lane, with its routes."""
        signature = self.runtime.signature
        lane = warmed(Lane(LaneKnobs(max_batch=self.max_batch if signature.batched else 1, max_queue_rows=10_000), [(1, 1e-4)]))
        driver = Driver(model=self.model, version="1", signature=signature, lane_on=lane.on, stats=self.stats, clock=monotonic)
        for instance in self.instances():
            driver.add_instance(instance)
        catalog = Catalog()
        catalog.add(_served(self, driver, signature))
        return OipApp(catalog, limits, clock=monotonic, server_timing=False)

    async def start(self) -> None:
        limits = HttpLimits()
        self.server = HttpServer(self.app(limits), limits)
        listener = socket.socket()
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(("127.0.0.1", self.port))
        self.port = listener.getsockname()[1]
        await self.server.start(listener)

    async def stop(self) -> None:
        """At once: connections are reset, as by the death of the process."""
        for connection in list(self.server.connections):
            connection.abort()
        await self.server.drain(0.0)
        await asyncio.sleep(0)


def _served(upstream: DlproxyUpstream, driver: Driver, signature: Signature) -> ServedModel:
    lane = Lane(LaneKnobs(max_batch=upstream.max_batch, max_queue_rows=1))
    lane.on(InstanceUp("m-0"), 0.0)
    return ServedModel(
        name=upstream.model,
        version="1",
        signature=signature,
        service=driver,
        stats=upstream.stats,
        max_batch=upstream.max_batch,
        slo_s=None,
        view=lane.view,
    )


class Upstream(Protocol):
    """A server of a model named "m"."""

    @property
    def url(self) -> str: ...

    async def start(self) -> None: ...

    async def stop(self) -> None: ...


class WithUpstream(RemoteInstance):
    """A started remote instance with an upstream of its own, which ends with it."""

    upstream: Upstream

    @classmethod
    async def around(cls, name: str, upstream: Upstream) -> "WithUpstream":
        await upstream.start()
        instance = cls(name, parse_address(upstream.url), QUICK)
        instance.upstream = upstream
        await instance.start()
        return instance

    async def stop(self) -> None:
        await super().stop()
        await self.upstream.stop()


async def until(condition: Callable[[], bool], seconds: float = 10.0) -> None:
    """Wait for what no event announces, on the loop's timers."""
    loop = asyncio.get_running_loop()
    end = loop.time() + seconds
    while not condition():
        assert loop.time() < end, "waited in vain"
        await pass_time(0.002)

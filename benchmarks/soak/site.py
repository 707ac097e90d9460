"""What is soaked: a dlproxy of two gateways with every kind of model, two dlproxy behind it, a Redis, a line that can go dead.

Made by soaking.py. Not aware of: the load, what breaks and when.
"""

import asyncio
import ssl
import sys
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from pathlib import Path
from time import monotonic
from typing import Any

import grpc
import pytest

from benchmarks.harness.processes import BenchmarkError, Child, Children, free_ports
from benchmarks.harness.servers import answers_ready
from benchmarks.soak import slow_steps
from dlproxy.cli.control_port import ControlError, ControlPort
from dlproxy.cli.credentials import Credentials
from dlproxy.message import Scope
from dlproxy.wire.identity import key_file
from tests.certificates import Authority
from tests.faults.test_rollouts_under_load import adds
from tests.fleet.redis_server import RedisServer

READY_S = 90.0
BACK_S = 60.0  # what is not well again by then never will be
LOOK_S = 0.1
WRITE_TIMEOUT_S = 4.0
QUOTA_PER_S = 10.0
PLUS, FAR, KNOWN = 1, 3, 5  # what these models add
MODELS = {"plus", "twice", "both", "known", "far", "shop", "count"}
CONFIG = """
[server]
http_port = {http}
grpc_port = {grpc}
control_port = {control}
gateways = 2
drain_s = 10.0
repository = "{folder}/repository"
calibration_folder = ""
graph_folder = ""
[http]
write_timeout_s = {write_timeout_s}
[tls]
cert = "server.pem"
[auth]
keys = "keys.toml"
[cache]
memory_mb = 2
redis = "{redis}"
[models.plus]
path = "adds1.onnx"
run = "thread"
threads = 1
[models.twice]
path = "{python}:Twice"
run = "process"
instances = 2
threads = 1
[models.known]
path = "adds5.onnx"
run = "thread"
threads = 1
cache = "on"
[models.far]
path = "http://127.0.0.1:{first}/v2/models/far,http://127.0.0.1:{line}/v2/models/far"
batch_timeout_s = 2.0
[models.count]
path = "{python}:Count"
run = "thread"
instances = 8
batching = "off"
[pipelines.both]
inputs = {{ x = "" }}
outputs = {{ y = "twice.y" }}
[pipelines.both.steps]
plus = {{ model = "plus", inputs = {{ x = "x" }} }}
twice = {{ model = "twice", inputs = {{ x = "plus.y" }} }}
"""


class Line:
    """A port that passes on to another. `dead`: nothing arrives any more and nobody is told; whoever was connected then never
    hears again, also when it lives again.
    """

    def __init__(self, to: int) -> None:
        self._to = to
        self._dead = False
        self._server: asyncio.Server | None = None
        self._open: set[asyncio.Task[None]] = set()
        self._cut: set[asyncio.StreamWriter] = set()

    async def listen(self, port: int) -> None:
        self._server = await asyncio.start_server(self._connected, "127.0.0.1", port)

    def die(self) -> None:
        self._dead = True

    def live(self) -> None:
        self._dead = False

    async def close(self) -> None:
        if self._server is not None:
            self._server.close()
        for task in self._open:
            task.cancel()
        await asyncio.gather(*self._open, return_exceptions=True)

    async def _connected(self, near: asyncio.StreamReader, answers: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._open.add(task)
        task.add_done_callback(self._open.discard)
        try:
            far, requests = await asyncio.open_connection("127.0.0.1", self._to)
            ways = [self._pass_on(near, requests, answers), self._pass_on(far, answers, answers)]
            try:
                await first_of(ways)  # when one side has ended it, so has the other
            finally:
                requests.transport.abort()
        except (OSError, asyncio.CancelledError):
            pass  # so it ends for both; what made this task does not expect that it is cancelled
        finally:
            self._cut.discard(answers)
            answers.transport.abort()

    async def _pass_on(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, of: asyncio.StreamWriter) -> None:
        while data := await reader.read(1 << 16):
            if self._dead:
                self._cut.add(of)
            if of not in self._cut:
                writer.write(data)
                await writer.drain()


async def first_of(works: Sequence[Coroutine[Any, Any, None]]) -> None:
    """Returns when one has ended; the others are cancelled. Raises what it raised."""
    tasks = [asyncio.ensure_future(work) for work in works]
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    for task in done:
        task.result()


class Site:
    """Everything that runs. `start` it, then `close`; its children end with `children`."""

    def __init__(self, children: Children, folder: Path) -> None:
        self.folder, self._children = folder, children
        self.http, self.grpc, self.control_port, *self._behind, self._line = free_ports(6)
        self.upstreams: list[Child | None] = [None, None]
        self.line = Line(self._behind[1])
        self.authority = Authority(folder, "soak")
        self.redis = _redis(folder)
        self.keys = {
            "clients": self._key("clients", ["infer"]),
            "few": self._key("few", ["infer"], requests_per_s=QUOTA_PER_S, burst_s=1.0),
            "ops": self._key("ops", ["admin", "infer", "read", "metrics"]),
        }
        self.version = 0  # of the repository's model, the latest that is right

    def _key(self, name: str, scopes: list[Scope], **quota: float) -> str:
        return key_file.create(self.folder / "keys.toml", name, scopes=scopes, models=["*"], **quota)  # type: ignore[arg-type]

    async def start(self) -> None:
        """Returns when all answer. Raises BenchmarkError."""
        for number in (PLUS, FAR, KNOWN):
            adds(number, self.folder)
        self.renew_certificate()
        self.put_version()
        for number in range(len(self.upstreams)):
            await self.start_upstream(number)
        await self.line.listen(self._line)
        names = {"http": self.http, "grpc": self.grpc, "control": self.control_port, "line": self._line}
        text = CONFIG.format(
            **names,
            first=self._behind[0],
            folder=self.folder,
            redis=self.redis.url,
            python=slow_steps.__file__,
            write_timeout_s=WRITE_TIMEOUT_S,
        )
        (self.folder / "dlproxy.toml").write_text(text)
        command = [sys.executable, "-m", "dlproxy", "serve", "--config", str(self.folder / "dlproxy.toml")]
        self.server = self._children.start("dlproxy", command)
        self.tls = ssl.create_default_context(cafile=str(self.authority.path))
        self.control = ControlPort(
            f"https://127.0.0.1:{self.control_port}", Credentials(self.keys["ops"], str(self.authority.path))
        )
        await self.until(self._serves, "the server serves", READY_S)

    async def close(self) -> None:
        await self.line.close()
        self.redis.kill()

    def channel_credentials(self) -> grpc.ChannelCredentials:
        return grpc.ssl_channel_credentials(self.authority.path.read_bytes())

    # What is done to it

    def renew_certificate(self) -> None:
        self.authority.issue("server", days=7)

    def put_version(self, content: bytes | None = None) -> None:
        """The next version of the repository's model, which adds its number; or this file in its place."""
        models = self.folder / "repository" / "shop"
        number = self.version + 1
        made = self.folder / f"next-{number}"
        made.mkdir(parents=True)
        if content is None:
            adds(number, made).rename(made / "model.onnx")
            self.version = number
        else:
            (made / "model.onnx").write_bytes(content)
        models.mkdir(parents=True, exist_ok=True)
        made.rename(models / str(number))

    async def start_upstream(self, number: int) -> None:
        """Returns when it answers."""
        port = self._behind[number]
        command = [sys.executable, "-m", "dlproxy", "serve", f"far={self.folder / f'adds{FAR}.onnx'}", "--grpc", "off"]
        command += ["--http-port", str(port), "--control-port", "0"]
        self.upstreams[number] = child = self._children.start(f"upstream-{number}", command)
        await asyncio.to_thread(child.wait_until, lambda: answers_ready(port), READY_S)

    def kill_upstream(self, number: int) -> None:
        child = self.upstreams[number]
        assert child is not None
        child.process.kill()
        self._children.stop(child)
        self.upstreams[number] = None

    # How it is

    async def ask(self, told: Callable[..., Any], *arguments: Any, **more: Any) -> Any:
        """A method of `control`, beside the event loop."""
        return await asyncio.to_thread(lambda: told(*arguments, **more))

    async def instances(self, model: str) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = (await self.ask(self.control.model, model))["instances"]
        return found

    async def gateways(self) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = await self.ask(self.control.gateways)
        return found

    async def all_up(self, model: str) -> bool:
        return all(one["state"] == "up" for one in await self.instances(model))

    async def until(self, holds: Callable[[], Awaitable[bool]], what: str, within_s: float = BACK_S) -> None:
        """Raises BenchmarkError if it never does; a control port that does not answer now may do so later."""
        began = monotonic()
        trouble = ""
        while True:
            try:
                if await holds():
                    return
                trouble = ""
            except ControlError as error:
                trouble = f" ({error})"
            if self.server.process.poll() is not None:
                raise BenchmarkError(f"dlproxy ended: {self.server.log_tail()}")
            if monotonic() - began > within_s:
                raise BenchmarkError(f"within {within_s:.0f} s this did not come about: {what}{trouble}")
            await asyncio.sleep(LOOK_S)

    async def _serves(self) -> bool:
        states = self.control.states(await self.ask(self.control.models))
        return {state.name for state in states if state.ready} >= MODELS


def _redis(folder: Path) -> RedisServer:
    """Raises BenchmarkError if there is none."""
    try:
        return RedisServer(folder, "--appendonly", "no", "--maxmemory", "16mb", "--maxmemory-policy", "allkeys-lru")
    except (pytest.skip.Exception, pytest.fail.Exception) as error:
        raise BenchmarkError(str(error)) from None

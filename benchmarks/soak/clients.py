"""Clients in closed loop over HTTP, gRPC and streams, each request with a number of its own, and a book of how each one ended.

Called by soaking.py. Not aware of: what breaks meanwhile, which failures that explains.
"""

import asyncio
import itertools
import json
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from time import monotonic
from typing import Any

import grpc
import numpy as np
from msgspec import Struct

from benchmarks.soak.site import FAR, KNOWN, PLUS, QUOTA_PER_S, Site
from dlproxy.protos.oip import SERVICE, oip

LATE_S = 30.0  # a request without an answer by then is lost
RECONNECT_S = 0.2
PARTS, CALLS = 5, 20  # of a stream; on a gRPC connection before it is made anew
REPEATS = 64  # so many requests in a row, of all models, ask the cached one for the same
RIGHT: dict[str, Callable[[float, int], float]] = {  # by input and version
    "plus": lambda x, _: x + PLUS,
    "twice": lambda x, _: 2 * x,
    "both": lambda x, _: 2 * (x + PLUS),
    "known": lambda x, _: x + KNOWN,
    "far": lambda x, _: x + FAR,
    "shop": lambda x, version: x + version,
}
_BROKEN = ("recvmsg", "Connection reset", "Socket closed", "failed to connect", "Stream removed", "Broken pipe", "GOAWAY")


class Asked(Struct, frozen=True):
    """A request that is under way. `port`: of the client's connection, 0 where nobody tells; that was silent for `idle_s`."""

    number: int
    door: str
    model: str
    at: float
    port: int = 0
    idle_s: float = 0.0

    @property
    def given(self) -> float:
        """Its input: exact in FP32, as what models make of it, for eight million requests."""
        return float(self.number // REPEATS if self.model == "known" else self.number)


class Ending(Struct):
    """How a request ended that was not answered rightly. `kind`: refused (in `words`), cut (without an answer), late (no answer
    at all), wrong (another's answer, or none that the model gives), twice (answered once more); unconnected is no request.
    """

    kind: str
    words: str
    door: str
    model: str
    number: int
    port: int
    asked_at: float
    at: float


class Book:
    """What was asked, and how it ended: of each request exactly one thing."""

    def __init__(self) -> None:
        self.asked: Counter[str] = Counter()  # by "door model"
        self.answered: Counter[str] = Counter()
        self.bad: list[Ending] = []
        self.slowest_s = 0.0
        self.throttled = 0
        self.version = 0
        """Of the repository's model, the last that answered."""
        self._numbers = itertools.count(1)

    def ask(self, door: str, model: str, port: int = 0, since: float = 0.0) -> Asked:
        """`since`: when its connection was last used."""
        now = monotonic()
        asked = Asked(next(self._numbers), door, model, now, port, now - since if since else 0.0)
        self.asked[f"{door} {model}"] += 1
        return asked

    def judge(self, asked: Asked, read: Callable[[], tuple[str, int, float]]) -> None:
        """Of an answer that is no refusal. `read`: its id, version and value."""
        try:
            identity, version, value = read()
        except (LookupError, TypeError, ValueError) as error:
            self.bad_end(asked, "wrong", _words(error))
            return
        if identity != str(asked.number):
            earlier = identity.isdigit() and int(identity) < asked.number
            self.bad_end(asked, "twice" if earlier else "wrong", f"the answer is of request {identity!r}")
        elif value != RIGHT[asked.model](asked.given, version):
            self.bad_end(asked, "wrong", f"{value} for {asked.given}, version {version}")
        else:
            self.right(asked)
            if asked.model == "shop":
                self.version = version

    def right(self, asked: Asked) -> None:
        self.answered[f"{asked.door} {asked.model}"] += 1
        self.slowest_s = max(self.slowest_s, monotonic() - asked.at)

    def bad_end(self, asked: Asked, kind: str, words: str) -> None:
        self.bad.append(
            Ending(kind, words, asked.door, asked.model, asked.number, asked.port, asked.at, monotonic()),
        )

    def unconnected(self, door: str, since: float, error: object) -> None:
        """A connection could not be made: of no request."""
        self.bad.append(Ending("unconnected", _words(error), door, "", 0, 0, since, monotonic()))

    @property
    def unaccounted(self) -> int:
        """Requests without an end, or with a second one."""
        ends = self.answered.total() + self.throttled + sum(ending.kind != "unconnected" for ending in self.bad)
        return abs(self.asked.total() - ends)


class Load:
    """All clients. `start` it; after `stop` every request has ended."""

    def __init__(self, site: Site, pause_s: float) -> None:
        self.book = Book()
        self._site, self._pause_s = site, pause_s
        self._stopping = False
        self._tasks: list[asyncio.Task[None]] = []

    def start(self, http: int, calls: int, streams: int) -> None:
        """So many clients of each kind, and one with a small quota."""
        kinds: list[Callable[[int], Awaitable[None]]] = [self._http] * http + [self._calls] * calls + [self._streams] * streams
        self._tasks = [asyncio.create_task(self._again(kind, number)) for number, kind in enumerate(kinds)]
        self._tasks.append(asyncio.create_task(self._again(self._hasty, 0)))

    async def stop(self) -> None:
        self._stopping = True
        await asyncio.gather(*self._tasks)

    async def _again(self, kind: Callable[[int], Awaitable[None]], number: int) -> None:
        """One connection after the other."""
        while not self._stopping:
            await kind(number)

    # HTTP

    async def _http(self, number: int) -> None:
        names = list(RIGHT)
        await self._connection("clients", names[number % len(names) :] + names[: number % len(names)], self._pause_s)

    async def _hasty(self, _number: int) -> None:
        """Twice as often as it may."""
        await self._connection("few", ["plus"], 0.5 / QUOTA_PER_S)

    async def _connection(self, key: str, models: Sequence[str], pause_s: float) -> None:
        since = monotonic()
        try:
            async with asyncio.timeout(LATE_S):
                reader, writer = await connect(self._site)
        except (OSError, TimeoutError) as error:
            self.book.unconnected("http", since, error)
            await asyncio.sleep(RECONNECT_S)
            return
        port = writer.get_extra_info("sockname")[1]
        try:
            for model in itertools.cycle(models):
                if self._stopping or reader.at_eof():
                    break
                asked = self.book.ask("http" if key == "clients" else "quota", model, port, since)
                if not await self._ask(asked, key, reader, writer):
                    break
                since = monotonic()
                await asyncio.sleep(pause_s)
            await self._hear_the_end(reader, port)
        finally:
            writer.close()

    async def _ask(self, asked: Asked, key: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        """Whether the connection may be used again."""
        try:
            async with asyncio.timeout(LATE_S):
                writer.write(infer(self._site, key, asked.model, asked.number, asked.given))
                status, headers, told = await reply(reader)
        except TimeoutError:
            self.book.bad_end(asked, "late", f"after {LATE_S:.0f} s")
            return False
        except (OSError, EOFError) as error:
            self.book.bad_end(asked, "cut", f"{_words(error)} (silent for {asked.idle_s:.2f} s before)")
            return False
        if status == 429 and key == "few" and "retry-after" in headers:
            self.book.throttled += 1
        elif status != 200:
            self.book.bad_end(asked, "refused", f"{status} {told.get('error')}")
        else:
            self.book.judge(asked, lambda: (told["id"], int(told["model_version"]), told["outputs"][0]["data"][0]))
        return headers.get("connection") != "close"

    async def _hear_the_end(self, reader: asyncio.StreamReader, port: int) -> None:
        """What comes now was not asked for."""
        with suppress(TimeoutError, OSError):
            async with asyncio.timeout(0.1):
                if more := await reader.read(1 << 16):
                    now = monotonic()
                    self.book.bad.append(Ending("twice", repr(more[:200]), "http", "", 0, port, now, now))

    # gRPC

    def _channel(self) -> grpc.aio.Channel:
        options = [("grpc.use_local_subchannel_pool", 1)]  # a connection of its own
        return grpc.aio.secure_channel(f"127.0.0.1:{self._site.grpc}", self._site.channel_credentials(), options)

    async def _calls(self, number: int) -> None:
        async with self._channel() as channel:
            infer = channel.unary_unary(
                f"{SERVICE}/ModelInfer",
                request_serializer=oip.ModelInferRequest.SerializeToString,
                response_deserializer=oip.ModelInferResponse.FromString,
            )
            names = itertools.islice(itertools.cycle(RIGHT), number, number + CALLS)
            for model in names:
                if self._stopping:
                    return
                asked = self.book.ask("grpc", model)
                try:
                    answer = await infer(_message(asked, [asked.given]), metadata=self._metadata, timeout=LATE_S)
                except grpc.aio.AioRpcError as error:
                    self._rpc_failed(asked, error)
                else:
                    self.book.judge(asked, lambda: (answer.id, int(answer.model_version), _values(answer)[0]))  # noqa: B023
                await asyncio.sleep(self._pause_s)

    async def _streams(self, _number: int) -> None:
        async with self._channel() as channel:
            stream = channel.stream_stream(
                f"{SERVICE}/ModelStreamInfer",
                request_serializer=oip.ModelInferRequest.SerializeToString,
                response_deserializer=oip.ModelStreamInferResponse.FromString,
            )
            for _ in range(CALLS):
                if self._stopping:
                    return
                asked = self.book.ask("stream", "count")
                try:
                    message = _message(asked, [asked.given, PARTS, 2])
                    call = stream(iter([message]), metadata=self._metadata, timeout=LATE_S)
                    self._judge_parts(asked, [part async for part in call])
                except grpc.aio.AioRpcError as error:
                    self._rpc_failed(asked, error)
                await asyncio.sleep(self._pause_s)

    def _judge_parts(self, asked: Asked, parts: list[Any]) -> None:
        """Each once, in order, and none of another's."""
        if refusal := next((part.error_message for part in parts if part.error_message), ""):
            self.book.bad_end(asked, "refused", refusal)
            return
        came = [(part.infer_response.id, *_values(part.infer_response)) for part in parts]
        right = [(str(asked.number), asked.given + part, asked.given + part) for part in range(PARTS)]
        if came == right:
            self.book.right(asked)
        else:
            kind = "twice" if len(came) > len(right) else "cut" if came == right[: len(came)] else "wrong"
            self.book.bad_end(asked, kind, f"parts {came}")

    def _rpc_failed(self, asked: Asked, error: grpc.aio.AioRpcError) -> None:
        words = f"{error.code().name} {error.details()}"
        broken = error.code() is grpc.StatusCode.UNAVAILABLE and any(word in words for word in _BROKEN)
        late = error.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        self.book.bad_end(asked, "late" if late else "cut" if broken else "refused", words)

    @property
    def _metadata(self) -> tuple[tuple[str, str], ...]:
        return (("authorization", f"Bearer {self._site.keys['clients']}"),)


def _message(asked: Asked, row: Sequence[float]) -> Any:
    data = np.array([row], np.float32)
    message = oip.ModelInferRequest(model_name=asked.model, id=str(asked.number), raw_input_contents=[data.tobytes()])
    message.inputs.add(name="x", datatype="FP32", shape=data.shape)
    return message


def _values(answer: Any) -> list[float]:
    found: list[float] = np.frombuffer(answer.raw_output_contents[0], np.float32).tolist()
    return found


def _words(error: object) -> str:
    return f"{type(error).__name__} {error}".strip()


# Over HTTP, for whoever breaks something, too


async def connect(site: Site, *, limit: int = 1 << 16) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """To the inference port. Raises OSError."""
    return await asyncio.open_connection("127.0.0.1", site.http, ssl=site.tls, limit=limit)


def post(site: Site, key: str, target: str, told: object) -> bytes:
    body = json.dumps(told).encode()
    lines = [f"POST {target} HTTP/1.1", "host: soak", f"authorization: Bearer {site.keys[key]}", f"content-length: {len(body)}"]
    return "\r\n".join([*lines, "", ""]).encode() + body


def infer(site: Site, key: str, model: str, number: int, given: float) -> bytes:
    """A request of one row, all in JSON."""
    tensor = {"name": "x", "shape": [1, 1], "datatype": "FP32", "data": [given]}
    return post(site, key, f"/v2/models/{model}/infer", {"id": str(number), "inputs": [tensor]})


async def reply(reader: asyncio.StreamReader) -> tuple[int, dict[str, str], Any]:
    """Status, headers and JSON of an answer that is not chunked. Raises OSError, EOFError."""
    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
    status, *lines = head.split("\r\n")
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    body = await reader.readexactly(int(headers["content-length"]))
    return int(status.split()[1]), headers, json.loads(body)

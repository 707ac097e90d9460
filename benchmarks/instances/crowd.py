"""Clients in closed loop on keep-alive connections, each request with its own number, and a judgement of every answer.

Called by the parts that break something meanwhile. Not aware of: what breaks.
"""

import asyncio
import contextlib
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from time import perf_counter
from typing import NamedTuple

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from benchmarks.harness.sample import JSON_LENGTH_HEADER
from benchmarks.instances.watch import port_of

Array = NDArray[np.float32]

INPUT, OUTPUT = "input", "output"  # what the models of benchmarks/models.py call theirs
TOLERANCE = 1e-4  # of the largest value: another batch size may use another kernel
LAST_ANSWERS_S = 15.0  # after the end, until a request counts as lost
AFTER_FAILURE_S = 0.02  # a client that was refused asks again no sooner
RECONNECT_S = 0.1


class Question(NamedTuple):
    """A request, cut in two where its number belongs, and what it must be answered."""

    before: bytes
    after: bytes
    expected: Array

    def numbered(self, number: int) -> bytes:
        """The whole of it."""
        return b"%b%08d%b" % (self.before, number, self.after)


class Answer(NamedTuple):
    """One HTTP answer: `text` is the error's."""

    status: int
    id: str
    output: Array | None
    text: str


def ask_for(model: str, item: Array, expected: Array) -> Question:
    """`item` and `expected` are batches, of one row or several."""
    described = {"name": INPUT, "shape": item.shape, "datatype": "FP32", "parameters": {"binary_data_size": item.nbytes}}
    fields = {"inputs": [described], "outputs": [{"name": OUTPUT, "parameters": {"binary_data": True}}]}
    rest = f'",{json.dumps(fields)[1:]}'.encode() + item.tobytes()
    json_bytes = len(b'{"id":"00000000') + len(rest) - item.nbytes
    body_bytes = json_bytes + item.nbytes
    head = [f"POST /v2/models/{model}/infer HTTP/1.1", "Host: benchmark", f"{JSON_LENGTH_HEADER}: {json_bytes}"]
    before = "\r\n".join([*head, f"Content-Length: {body_bytes}", "", '{"id":"']).encode()
    return Question(before, rest, expected)


def questions_for(model: str, path: Path, count: int) -> list[Question]:
    """So many random items for an ONNX model, with ONNX Runtime's own answers."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    sizes = session.get_inputs()[0].shape[1:]
    items = np.random.default_rng(count).random((count, 1, *sizes), dtype=np.float32)
    return [ask_for(model, item, session.run([OUTPUT], {INPUT: item})[0]) for item in items]


@dataclass
class Tally:
    """How requests ended. `failed`: texts of answers that are no success. A request that ends twice counts twice."""

    asked: int = 0
    answered: int = 0
    wrong: int = 0
    """Another request's answer, or none that the model gives."""
    unasked: int = 0
    """Answers that came when nothing was asked."""
    lost: int = 0
    """Without any answer."""
    failed: Counter[str] = field(default_factory=Counter)
    slowest_s: float = 0.0

    @property
    def failures(self) -> int:
        """Requests that were refused or answered with an error."""
        return self.failed.total()

    @property
    def words(self) -> str:
        """What failures said, the commonest first."""
        return "; ".join(f"{number:,} x {text}" for text, number in self.failed.most_common(3)) or "none"

    @property
    def ended(self) -> int:
        """Ends of any kind: as many as were asked if each request has exactly one."""
        return self.answered + self.wrong + self.unasked + self.lost + self.failures

    def judge(self, question: Question, number: int, answer: Answer, seconds: float) -> None:
        """One more answer, to the request of this number."""
        self.slowest_s = max(self.slowest_s, seconds)
        if answer.status != 200:
            self.failed[f"{answer.status} {answer.text}"] += 1
        elif answer.id == f"{number:08d}" and _alike(answer.output, question.expected):
            self.answered += 1
        else:
            self.wrong += 1


class Client(asyncio.Protocol):
    """One connection; it asks again as soon as it is answered, until its crowd is to stop."""

    def __init__(self, crowd: "Crowd", first: int) -> None:
        self._crowd = crowd
        self._next = first  # of the crowd's questions
        self._received = bytearray()
        self._pause: asyncio.TimerHandle | None = None
        self.number: int | None = None
        """Of the request under way."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        self._crowd.came(self)
        self._ask()

    def data_received(self, data: bytes) -> None:
        self._received += data
        while (taken := _take_answer(self._received)) is not None:
            self._answered(taken)

    def connection_lost(self, exc: Exception | None) -> None:
        if self._pause is not None:
            self._pause.cancel()
        if self.number is not None:
            self.number = None
            self._crowd.tally.lost += 1
        self._crowd.left(self)

    def _ask(self) -> None:
        crowd = self._crowd
        if crowd.stopping:
            return
        self._question = crowd.questions[self._next % len(crowd.questions)]
        self._next += 1
        self.number = crowd.tally.asked
        crowd.tally.asked += 1
        self._asked_at = perf_counter()
        self.transport.write(self._question.numbered(self.number))

    def _answered(self, answer: Answer) -> None:
        tally = self._crowd.tally
        if self.number is None:
            tally.unasked += 1
            return
        tally.judge(self._question, self.number, answer, perf_counter() - self._asked_at)
        self.number = None
        if answer.status == 200:
            self._ask()
        else:
            self._pause = asyncio.get_running_loop().call_later(AFTER_FAILURE_S, self._ask)
        self._crowd.one_ended()


class Crowd:
    """So many clients that ask these questions in turn. Enter it to begin, leave it to have the last answers too."""

    def __init__(self, url: str, questions: Sequence[Question], clients: int) -> None:
        self.questions = questions
        self.tally = Tally()
        self.stopping = False
        self._port = port_of(url)
        self._count = clients
        self._clients: set[Client] = set()
        self._connecting: set[asyncio.Task[None]] = set()
        self._quiet, self._gone = asyncio.Event(), asyncio.Event()

    async def __aenter__(self) -> "Crowd":
        for first in range(self._count):
            self._begin(first * len(self.questions) // self._count)
        return self

    async def __aexit__(self, *_: object) -> None:
        """Wait for what is under way; what is not answered by then is lost."""
        self.stopping = True
        self.one_ended()
        with contextlib.suppress(TimeoutError):  # requests that are still open count as lost when their connections close
            await asyncio.wait_for(self._quiet.wait(), LAST_ANSWERS_S)
        for task in self._connecting:
            task.cancel()
        for client in self._clients:
            client.transport.close()
        if self._clients:
            await self._gone.wait()

    def one_ended(self) -> None:
        """A request has ended."""
        if self.stopping and all(client.number is None for client in self._clients):
            self._quiet.set()

    def came(self, client: Client) -> None:
        """It is connected."""
        self._clients.add(client)

    def left(self, client: Client) -> None:
        """Its connection has gone: another takes its place."""
        self._clients.discard(client)
        self.one_ended()
        if not self.stopping:
            self._begin(len(self._clients))
        elif not self._clients:
            self._gone.set()

    def _begin(self, first: int) -> None:
        task = asyncio.create_task(self._connect(first))
        self._connecting.add(task)
        task.add_done_callback(self._connecting.discard)

    async def _connect(self, first: int) -> None:
        loop = asyncio.get_running_loop()
        while True:
            try:
                await loop.create_connection(lambda: Client(self, first), "127.0.0.1", self._port)
                return
            except OSError:
                await asyncio.sleep(RECONNECT_S)


async def ask_once(url: str, question: Question) -> Answer:
    """On a connection of its own. Raises OSError or EOFError if it gets no answer."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port_of(url))
    try:
        writer.write(question.numbered(0))
        received = bytearray()
        while (answer := _take_answer(received)) is None:
            data = await reader.read(1 << 16)
            if not data:
                raise EOFError("the server closed the connection without an answer")
            received += data
        return answer
    finally:
        writer.close()


def _take_answer(received: bytearray) -> Answer | None:
    """The first whole answer, cut off from what was received; None if there is none yet."""
    end = received.find(b"\r\n\r\n") + 4
    if end < 4:
        return None
    status_line, *lines = bytes(received[:end]).decode("latin-1").split("\r\n")
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    whole = end + int(headers["content-length"])
    if len(received) < whole:
        return None
    body = bytes(received[end:whole])
    del received[:whole]
    status = int(status_line.split()[1])
    json_bytes = int(headers.get(JSON_LENGTH_HEADER.lower(), len(body)))
    told = json.loads(body[:json_bytes])
    if status != 200:
        return Answer(status, "", None, told["error"])
    (described,) = told["outputs"]
    return Answer(status, told["id"], np.frombuffer(body[json_bytes:], np.float32).reshape(described["shape"]), "")


def _alike(output: Array | None, expected: Array) -> bool:
    if output is None or output.shape != expected.shape:
        return False
    return float(np.abs(output - expected).max()) <= TOLERANCE * float(np.abs(expected).max())

"""Streams of sound in closed loop, each on a connection of its own, as sequences; and what the model says of them alone.

Called by the benchmark's command. Not aware of: which server answers, what breaks.
"""

import asyncio
import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from time import perf_counter

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from benchmarks.harness.processes import BenchmarkError

CHUNK, CONTEXT, RATE = 512, 64, 16000
HANG_S = 60.0
AGAIN_S = 0.02

Sounds = NDArray[np.float32]


def sounds(count: int, chunks: int) -> Sounds:
    """Voiced sounds of several pitches that come and go over noise, as the model takes them: [count, chunks, 576]."""
    random = np.random.default_rng(5)
    times = np.arange(chunks * CHUNK) / RATE
    made = np.zeros((count, chunks, CONTEXT + CHUNK), np.float32)
    for number in range(count):
        pitch = random.uniform(90, 250) * (1 + 0.05 * np.sin(2 * np.pi * random.uniform(2, 5) * times))
        phase = 2 * np.pi * np.cumsum(pitch) / RATE
        voice = sum(np.sin(harmonic * phase) / harmonic for harmonic in range(1, 20))
        loud = np.clip(np.sin(2 * np.pi * random.uniform(0.3, 1.5) * times + random.uniform(0, 6)), 0, 1)
        sound = 0.15 * voice * loud + random.normal(0, 0.01, times.size)
        padded = np.concatenate([np.zeros(CONTEXT), sound]).astype(np.float32)
        made[number] = np.lib.stride_tricks.sliding_window_view(padded, CONTEXT + CHUNK)[::CHUNK][:chunks]
    return made


def alone(model: Path, given: Sounds) -> tuple[Sounds, float]:
    """What the model says of each chunk, one stream after the other, and chunks a second."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])
    rate = np.array(RATE, np.int64)
    told = np.zeros(given.shape[:2], np.float32)
    began_at = perf_counter()
    for number, stream in enumerate(given):
        state = np.zeros((2, 1, 128), np.float32)
        for place, chunk in enumerate(stream):
            output, state = session.run(None, {"input": chunk[None], "state": state, "sr": rate})
            told[number, place] = output[0, 0]
    return told, told.size / (perf_counter() - began_at)


def request(chunk: Sounds, key: int, *, start: bool, end: bool) -> bytes:
    inputs = [
        {"name": "input", "shape": [1, len(chunk)], "datatype": "FP32", "parameters": {"binary_data_size": chunk.nbytes}},
        {"name": "sr", "shape": [], "datatype": "INT64", "parameters": {"binary_data_size": 8}},
    ]
    flags = {"sequence_start": True} if start else {"sequence_end": True} if end else {}
    parameters = {"binary_data_output": True, "sequence_id": key, **flags}
    head = json.dumps({"inputs": inputs, "parameters": parameters}).encode()
    body = head + chunk.tobytes() + RATE.to_bytes(8, "little")
    lines = ["POST /v2/models/vad/infer HTTP/1.1", "Host: benchmark", f"Inference-Header-Content-Length: {len(head)}"]
    return "\r\n".join([*lines, f"Content-Length: {len(body)}", "", ""]).encode() + body


class Stream(asyncio.Protocol):
    """One connection that sends each request once the one before it is answered, and what failed again, a little later.

    `told`: the answers. `failures`: how often, by the words of the error.
    """

    def __init__(self, requests: Sequence[bytes]) -> None:
        self.told: list[float] = []
        self.failures: Counter[str] = Counter()
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._requests = requests
        self._transport: asyncio.Transport
        self._read = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self._send()

    def connection_lost(self, error: Exception | None) -> None:
        if not self.done.done():
            self.done.set_exception(BenchmarkError(f"the server closed a connection: {error}"))

    def data_received(self, data: bytes) -> None:
        self._read += data
        head, found, body = self._read.partition(b"\r\n\r\n")
        length = head.lower().rpartition(b"content-length: ")[2].split(b"\r\n")[0]
        if not found or len(body) < int(length):
            return
        self._read = b""
        if head.startswith(b"HTTP/1.1 200"):
            self.told.append(float(np.frombuffer(body[-4:], np.float32)[0]))
            self._send()
        else:
            self.failures[json.loads(body)["error"]] += 1
            asyncio.get_running_loop().call_later(AGAIN_S, self._send)

    def _send(self) -> None:
        if len(self.told) < len(self._requests):
            self._transport.write(self._requests[len(self.told)])
        elif not self.done.done():
            self.done.set_result(None)
            self._transport.close()


class Crowd:
    """All streams of these sounds. `leave`: they never end."""

    def __init__(self, given: Sounds, *, leave: bool = False) -> None:
        last = given.shape[1] - 1
        self._requests = [
            [request(chunk, number, start=place == 0, end=place == last and not leave) for place, chunk in enumerate(stream)]
            for number, stream in enumerate(given, 1)
        ]

    async def run(self, port: int, at_once: int = 64) -> tuple[Sounds, float, Counter[str]]:
        """The answers, chunks a second, and what failed on the way. Raises BenchmarkError."""
        loop = asyncio.get_running_loop()
        streams: list[Stream] = []
        began_at = perf_counter()
        for first in range(0, len(self._requests), at_once):
            some = [Stream(requests) for requests in self._requests[first : first + at_once]]
            await asyncio.gather(*(loop.create_connection(lambda one=one: one, "127.0.0.1", port) for one in some))  # type: ignore[misc]
            async with asyncio.timeout(HANG_S):
                await asyncio.gather(*(one.done for one in some))
            streams += some
        told = np.array([one.told for one in streams], np.float32)
        rate = told.size / (perf_counter() - began_at)
        return told, rate, sum((one.failures for one in streams), Counter())

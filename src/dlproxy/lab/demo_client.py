"""The demo's client: keep-alive connections that send held-out digits over HTTP, one after the other, and check each answer.

Called by lab/demo.py. Not aware of: how the server was started, terminals.
"""

import asyncio
import re
from array import array
from collections.abc import Iterator, Sequence
from contextlib import suppress
from functools import partial
from itertools import cycle
from time import perf_counter
from typing import cast

import msgspec
import numpy as np
from numpy.typing import NDArray

_STATUS = re.compile(rb"HTTP/1\.1 (\d{3}) ")
_BODY_BYTES = re.compile(rb"\r\ncontent-length: (\d+)\r\n")
_JSON_BYTES = re.compile(rb"\r\ninference-header-content-length: (\d+)\r\n")


LAST_ANSWERS_S = 5.0  # how long to wait for answers that are under way when the time is up


class LoadError(Exception):
    """The connections could not be opened; the message says how many were and what is in the way."""


class Results:
    """What came back. `said[i]` are the probabilities of the last answer to image i, None if it got none."""

    def __init__(self, labels: Sequence[int]) -> None:
        self.labels = labels
        self.said: list[array[float] | None] = [None] * len(labels)
        self.wrong: set[int] = set()
        self.errors: dict[str, int] = {}
        self.latencies_us: dict[int, int] = {}
        self.answered = 0
        self.started_at = self.answered_at = 0.0

    def answer(self, image: int, probabilities: "array[float]", *, sent_at: float, now: float) -> None:
        """One answer; an image of which any answer is wrong counts as wrong."""
        self.answered += 1
        self.answered_at = now
        self.said[image] = probabilities
        if probabilities.index(max(probabilities)) != self.labels[image]:
            self.wrong.add(image)
        latency_us = int((now - sent_at) * 1e6)
        self.latencies_us[latency_us] = self.latencies_us.get(latency_us, 0) + 1

    def error(self, what: str, times: int = 1) -> None:
        self.errors[what] = self.errors.get(what, 0) + times

    @property
    def seen(self) -> int:
        """Distinct images that were answered."""
        return sum(said is not None for said in self.said)

    @property
    def right(self) -> int:
        """Distinct images of which every answer was right."""
        return self.seen - len(self.wrong)

    @property
    def seconds(self) -> float:
        """From the first request to the last answer."""
        return max(self.answered_at - self.started_at, 0.0)

    @property
    def requests_per_s(self) -> float:
        return self.answered / self.seconds if self.seconds else 0.0

    def latency_s(self, quantile: float) -> float:
        """The latency that this share of the answers did not exceed; nan without answers."""
        rank = quantile * self.answered
        for latency_us in sorted(self.latencies_us):
            rank -= self.latencies_us[latency_us]
            if rank <= 0:
                return latency_us * 1e-6
        return float("nan")


class Load:
    """A closed loop: every connection sends its next image when it has the answer to the one before."""

    def __init__(self, images: NDArray[np.uint8], results: Results) -> None:
        self.requests = [_request(image) for image in images]
        self.results = results
        self.order: Iterator[int] = cycle(range(len(images)))
        self.ending = False
        self.open = 0
        self._finished = asyncio.Event()

    async def run(self, host: str, port: int, *, connections: int, seconds: float) -> None:
        """Send for this long, then wait for the answers under way. Raises LoadError."""
        loop = asyncio.get_running_loop()
        clients: list[_Client] = []
        try:
            for _ in range(connections):
                _, client = await loop.create_connection(partial(_Client, self), host, port)
                clients.append(client)
            self.results.started_at = perf_counter()
            for client in clients:
                client.send()
            for period_s in (seconds, LAST_ANSWERS_S):
                with suppress(TimeoutError):
                    await asyncio.wait_for(self._finished.wait(), period_s)
                self.ending = True
            if self.open:
                self.results.error(f"no answer within {LAST_ANSWERS_S:g} s", self.open)
        except OSError as error:
            reason = error.strerror or str(error)
            raise LoadError(f"only {len(clients)} of {connections} connections could be opened: {reason}") from None
        finally:
            self.ending = True
            for client in clients:
                client.close()

    def closed(self) -> None:
        """A client has gone."""
        self.open -= 1
        if not self.open:
            self._finished.set()


class _Client(asyncio.Protocol):
    """One connection: the image under way, when it was sent, and what has come of the reply."""

    def __init__(self, load: Load) -> None:
        self._load = load
        self._transport: asyncio.Transport | None = None
        self._image = -1
        self._sent_at = 0.0
        self._reply = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's are no subclass
        self._load.open += 1

    def connection_lost(self, exc: Exception | None) -> None:
        if not self._load.ending:
            self._load.results.error("connection closed by the server")
        self._load.closed()

    def send(self) -> None:
        assert self._transport is not None
        self._image = next(self._load.order)
        self._sent_at = perf_counter()
        self._transport.write(self._load.requests[self._image])

    def close(self) -> None:
        if self._transport is not None:
            self._transport.close()

    def data_received(self, data: bytes) -> None:
        self._reply += data
        head_bytes = self._reply.find(b"\r\n\r\n") + 4
        if head_bytes < 4:
            return
        head = self._reply[:head_bytes]
        size = _BODY_BYTES.search(head)
        if size is None or len(self._reply) < head_bytes + int(size[1]):
            return
        body, self._reply = self._reply[head_bytes:], b""
        self._count(head, body)
        if self._load.ending:
            self.close()
        else:
            self.send()

    def _count(self, head: bytes, body: bytes) -> None:
        results = self._load.results
        status, json_bytes = _STATUS.match(head), _JSON_BYTES.search(head)
        if status is None or status[1] != b"200" or json_bytes is None:
            results.error(f"status {status[1].decode()}" if status else "not HTTP")
            return
        probabilities = array("f", body[int(json_bytes[1]) :])
        results.answer(self._image, probabilities, sent_at=self._sent_at, now=perf_counter())


def _request(image: NDArray[np.uint8]) -> bytes:
    """One infer request, head and body, with the pixels and the reply's probabilities as binary tensors."""
    tensor = image.astype("<f4").tobytes()
    described = {
        "inputs": [
            {"name": "image", "shape": [1, 1, 8, 8], "datatype": "FP32", "parameters": {"binary_data_size": len(tensor)}}
        ],
        "outputs": [{"name": "probabilities", "parameters": {"binary_data": True}}],
    }
    head = msgspec.json.encode(described)
    return b"".join(
        [
            b"POST /v2/models/digits/infer HTTP/1.1\r\nhost: localhost\r\n",
            b"inference-header-content-length: %d\r\ncontent-length: %d\r\n\r\n" % (len(head), len(head) + len(tensor)),
            head,
            tensor,
        ]
    )

"""A driver with a real lane and fake instances on the test's event loop, whose (virtual) time is the clock."""

import asyncio
from collections.abc import Callable, Sequence
from math import inf

import numpy as np
from numpy.typing import NDArray

from dlproxy.instance import Instance
from dlproxy.message import DType, Failure, FailureKind, Request, Response, Signature, Tensor, TensorSpec, Ticket
from dlproxy.policy.knobs import LaneKnobs
from dlproxy.policy.lane import Lane
from dlproxy.serve.driver import Driver
from dlproxy.telemetry.stats import ModelStats
from dlproxy.tensors import to_array, to_bytes
from dlproxy.testing import FakeInstance, FakeRuntime
from dlproxy.testing.fake_runtime import Function
from tests.policy.lane.fixtures import warmed

Array = NDArray[np.generic]

SIGNATURE = Signature(
    (TensorSpec("x", DType.FP32, (-1, -1)),), (TensorSpec("y", DType.FP32, (-1, -1)),), batched=True, platform="fake"
)
KNOBS = LaneKnobs(max_batch=64, max_queue_rows=1000)
PRIOR = ((1, 0.010), (64, 0.011))  # seconds: a batch of any size takes about 10 ms
POISON = 666.0


def double(inputs: Sequence[Array]) -> list[Array]:
    return [np.asarray(inputs[0], np.float32) * np.float32(2)]


def double_unless_poisoned(inputs: Sequence[Array]) -> list[Array]:
    if (inputs[0] == POISON).any():
        raise ValueError("bad index")
    return double(inputs)


class Reply:
    """A ReplyTo that keeps what came, and when, and insists on getting it once."""

    def __init__(self, request: Request) -> None:
        self.request = request
        self.response: Response | None = None
        self.failure: Failure | None = None
        self.at = -1.0
        self._event = asyncio.Event()

    def completed(self, response: Response) -> None:
        self._note()
        self.response = response

    def failed(self, failure: Failure) -> None:
        self._note()
        self.failure = failure

    def _note(self) -> None:
        assert not self.answered, "answered twice"
        self.at = asyncio.get_running_loop().time()
        self._event.set()

    async def wait(self) -> "Reply":
        await self._event.wait()
        return self

    @property
    def answered(self) -> bool:
        return self._event.is_set()

    @property
    def values(self) -> list[float]:
        """The first column of the answer."""
        assert self.response is not None, f"failed: {self.failure}"
        (tensor,) = self.response.outputs
        column: list[float] = to_array(tensor.dtype, tensor.shape, tensor.data)[:, 0].tolist()
        return column

    @property
    def row(self) -> list[float]:
        """The first row of the answer."""
        assert self.response is not None, f"failed: {self.failure}"
        (tensor,) = self.response.outputs
        row: list[float] = to_array(tensor.dtype, tensor.shape, tensor.data)[0].tolist()
        return row

    @property
    def kind(self) -> FailureKind | None:
        return None if self.failure is None else self.failure.kind


class Rig:
    """`instances`: how many fakes to start with, each needing `service_s` seconds a batch (None: until told)."""

    def __init__(
        self,
        *,
        instances: int = 1,
        service_s: float | None = 0.010,
        function: Function = double,
        knobs: LaneKnobs = KNOBS,
        signature: Signature = SIGNATURE,
        quarantine_s: float = 0.0,
        outputs: Sequence[int] = (0,),
        clock: Callable[[], float] | None = None,
    ) -> None:
        self._outputs = outputs
        self.runtime = FakeRuntime(signature, function)
        self.stats = ModelStats()
        self.lane = warmed(Lane(knobs, PRIOR))
        self.now = clock or asyncio.get_running_loop().time
        self.driver = Driver(
            model="m",
            version="1",
            signature=signature,
            lane_on=self.lane.on,
            stats=self.stats,
            clock=self.now,
            quarantine_s=quarantine_s,
            outage_wait_s=knobs.outage_wait_s,
        )
        self._service_s = None if service_s is None else lambda rows: service_s
        self.fakes = [self.fake(f"m-{number}") for number in range(instances)]
        for fake in self.fakes:
            self.driver.add_instance(fake)
        self._ids = 0

    def fake(self, name: str) -> FakeInstance:
        return FakeInstance(name, self.runtime, service_s=self._service_s)

    def request(
        self, value: float = 1.0, *, rows: int = 1, width: int = 1, timeout_s: float = inf, promised: bool = False
    ) -> Request:
        """Row r holds value + r in every column."""
        self._ids += 1
        array = np.repeat(np.arange(rows, dtype=np.float32)[:, None] + np.float32(value), width, axis=1)
        ticket = Ticket(self._ids, self.now(), self.now() + timeout_s, rows, shape_key=(width,))
        if promised:
            ticket.answer_by = ticket.deadline_at
        return Request(ticket, "m", [Tensor("x", DType.FP32, array.shape, to_bytes(DType.FP32, array))], self._outputs)

    @staticmethod
    def plain_request() -> Request:
        """One row of one value, outside of any loop."""
        tensor = Tensor("x", DType.FP32, (1, 1), to_bytes(DType.FP32, np.ones((1, 1), np.float32)))
        return Request(Ticket(1, 0.0), "m", [tensor], (0,))

    def send(
        self, value: float = 1.0, *, rows: int = 1, width: int = 1, timeout_s: float = inf, promised: bool = False
    ) -> Reply:
        reply = Reply(self.request(value, rows=rows, width=width, timeout_s=timeout_s, promised=promised))
        self.driver.submit(reply.request, reply)
        return reply

    def send_of_length(self, length: int, value: float = 1.0) -> Reply:
        """One row, value, value + 1 and so on, that may share a batch with shorter and longer ones."""
        self._ids += 1
        array = np.arange(length, dtype=np.float32)[None] + np.float32(value)
        ticket = Ticket(self._ids, self.now(), shape_key=(length,), length=length, family=(0,))
        reply = Reply(Request(ticket, "m", [Tensor("x", DType.FP32, array.shape, to_bytes(DType.FP32, array))], self._outputs))
        self.driver.submit(reply.request, reply)
        return reply

    async def rest(self, seconds: float) -> None:
        await pass_time(seconds)

    @property
    def batches(self) -> list[list[int]]:
        """Ticket ids of every batch of the first instance."""
        return self.fakes[0].batches

    def is_at_rest(self) -> bool:
        """Every counter is back to zero."""
        view = self.lane.view()
        return not (self.driver.unanswered or view.queued_rows or view.running_batches)

    def inline(self, make: Callable[[str, FakeRuntime], Instance]) -> Instance:
        """Another instance of a kind of the test's choice, on the same runtime."""
        instance = make("inline", self.runtime)
        self.driver.add_instance(instance)
        return instance


async def pass_time(seconds: float) -> None:
    """Let the loop's (virtual) time go on."""
    passed = asyncio.Event()
    asyncio.get_running_loop().call_later(seconds, passed.set)
    await passed.wait()


async def turns(number: int = 3) -> None:
    """Let the loop go round without time passing."""
    for _ in range(number):
        await asyncio.sleep(0)

"""Models that worker processes load in tests: one that misbehaves on request, one of every element type."""

import ctypes
import os
import signal
import sys
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dlproxy.instance.process.instance import ProcessInstance, WorkerSettings
from dlproxy.instance.runtime import ModelError
from dlproxy.instance.runtime.specs import PythonSpec
from dlproxy.message import DType, Request, Signature, Tensor, TensorSpec, Ticket
from dlproxy.tensors import to_bytes

Array = NDArray[np.generic]

SIGNATURE = Signature(
    (TensorSpec("x", DType.FP32, (-1, -1)),), (TensorSpec("y", DType.FP32, (-1, -1)),), batched=True, platform="fake"
)
EXIT, SEGFAULT, ABORT, SIGKILL, SYS_EXIT, RAISE, HANG, ALLOCATE, PRINT, GATE, WIDE, CLOSE, COMPLAIN = range(-1, -14, -1)
"""What a row that begins with this number makes of its batch."""


class Moody:
    """y = 2 x, unless the first column says otherwise. `fifo`: what a row of GATE waits for: somebody writes or closes."""

    def __init__(self, fifo: str = "") -> None:
        self.signature = SIGNATURE
        self._fifo = fifo
        self._moods: dict[int, Callable[[], object]] = {
            EXIT: lambda: os._exit(7),
            SEGFAULT: lambda: ctypes.string_at(0),
            ABORT: os.abort,
            SIGKILL: lambda: os.kill(os.getpid(), signal.SIGKILL),
            SYS_EXIT: lambda: sys.exit(3),
            RAISE: _raise,
            HANG: threading.Event().wait,
            ALLOCATE: lambda: np.ones(2**31, np.uint8),
            PRINT: lambda: sys.stdout.write("a line of what a framework says\n" * 20_000),
            GATE: lambda: Path(self._fifo).read_bytes(),
            CLOSE: lambda: os.closerange(3, 64),
            COMPLAIN: lambda: sys.stderr.write("the model complains\n"),
        }

    def run(self, inputs: Sequence[Array]) -> list[Array]:
        x = np.asarray(inputs[0], np.float32)
        for first in x[:, 0].tolist():
            if first in self._moods:
                self._moods[first]()
            if first == WIDE:
                return [np.repeat(x, 100_000, axis=1)]
        return [x * np.float32(2)]

    def close(self) -> None:
        sys.stdout.write("closed\n")


def loads(how: str, said: str = "") -> Any:
    """A model that does not become one."""
    sys.stderr.write(said)
    if how == "refuses":
        raise ModelError("weights.bin is not what it was")
    if how == "raises":
        raise RuntimeError("no such layer")
    if how == "dies":
        os.kill(os.getpid(), signal.SIGSEGV)
    if how == "hangs":
        threading.Event().wait()
    if how == "allocates":
        return np.ones(2**31, np.uint8)
    return how


class Environment:
    """Answers x [N, 1] with how the worker was set up: OMP_NUM_THREADS, a variable MINE, and the first of its cores."""

    def __init__(self) -> None:
        self.signature = Signature(
            (TensorSpec("x", DType.FP32, (-1, 1)),), (TensorSpec("y", DType.BYTES, (-1, 3)),), batched=True, platform="fake"
        )

    def run(self, inputs: Sequence[Array]) -> list[Array]:
        cores = sorted(os.sched_getaffinity(0))
        row = [os.environ.get("OMP_NUM_THREADS", ""), os.environ.get("MINE", ""), ",".join(map(str, cores))]
        return [np.array([row] * len(inputs[0]), object)]


class OnAGpu(Environment):
    """Says that it computes on a GPU."""

    device = "cuda:7"


class EveryType:
    """One input and one output of every type, [N, M]; outputs have their columns turned round: they are not contiguous."""

    def __init__(self) -> None:
        inputs = tuple(TensorSpec(f"in_{dtype.value}", dtype, (-1, -1)) for dtype in DType)
        outputs = tuple(TensorSpec(f"out_{dtype.value}", dtype, (-1, -1)) for dtype in DType)
        self.signature = Signature(inputs, outputs, batched=True, platform="fake")

    def run(self, inputs: Sequence[Array]) -> list[Array]:
        return [array[:, ::-1] for array in inputs]


def _raise() -> None:
    raise ValueError("out of luck")


# For the tests' own process


def descriptors() -> int:
    """How many this process has open."""
    return len(os.listdir("/proc/self/fd"))


def children() -> set[int]:
    """Child processes of this one, those that wait to be collected too; other tests' servers are among them."""
    found = set()
    for path in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):  # it has gone meanwhile
            if int(path.read_text().rpartition(")")[2].split()[1]) == os.getpid():
                found.add(int(path.parent.name))
    return found


def soon_as_before(measure: Callable[[], Any], before: Any) -> bool:
    """Whether there is soon no more than before: a leak stays for ever, what is about to end does not.

    Less is fine: what an earlier test left behind may end meanwhile.
    """
    pause = threading.Event()
    return any(measure() <= before or pause.wait(0.02) for _ in range(1000)) or measure() <= before


def wait_for_death(pid: int) -> None:
    """Blocks until this child has ended, and leaves it to be collected."""
    os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)


def moody(name: str = "m-0", *, fifo: object = "", **settings: Any) -> ProcessInstance:
    """A worker with a Moody model, not started."""
    spec = PythonSpec("tests.instance.process_models:Moody", {"fifo": str(fifo)})
    return ProcessInstance(name, spec, WorkerSettings(**settings))


def model_at(path: object) -> PythonSpec:
    """The model in this file, or what else a path can say."""
    return PythonSpec("dlproxy.instance.runtime.formats:open_runtime", {"path": str(path)})


def request(value: float, *, rows: int = 1, width: int = 2, number: int = 0) -> Request:
    """x of [rows, width], all `value`."""
    array = np.full((rows, width), value, np.float32)
    tensor = Tensor("x", DType.FP32, array.shape, to_bytes(DType.FP32, array))
    return Request(Ticket(number, 0.0, rows=rows), "m", [tensor], (0,))

"""The worker process: loads a model and runs the batches that it finds in its slots, one at a time.

Started by child.py as `python -m dlproxy.instance.process.worker SOCKET INPUT OUTPUT…` (file descriptors).
Not aware of: event loops, who asks, which requests a batch consists of.
"""

import faulthandler
import os
import resource
import signal
import socket
import sys
import traceback
from collections.abc import Callable, Sequence
from typing import NoReturn

import msgspec

from dlproxy.instance.batch import Array, run_batch
from dlproxy.instance.process.messages import Done, Frames, Load, Loaded, NotLoaded, Order, Report, Run, frame
from dlproxy.instance.process.slots import Slot, SlotTooSmall, read_inputs, write_outputs
from dlproxy.instance.runtime import ModelError, Runtime
from dlproxy.instance.runtime.specs import load
from dlproxy.instance.warmup import Calibration, calibrate
from dlproxy.message import Request, Ticket

PR_SET_PDEATHSIG = 1  # of <sys/prctl.h>
MAX_ERROR_CHARS = 4096  # models are known to print tensors


class Channel:
    """The worker's end of the socket. The descriptor stays open until the process ends: its closing tells the server."""

    def __init__(self, fd: int) -> None:
        self._socket = socket.socket(fileno=fd)
        self._frames = Frames(Order)
        self._orders: list[Order] = []

    def receive(self) -> Order | None:
        """Waits for the next order; None if the server has gone."""
        while not self._orders:
            data = self._socket.recv(65536)
            if not data:
                return None
            self._orders = self._frames.feed(data)
        return self._orders.pop(0)

    def send(self, report: Report) -> None:
        self._socket.sendall(frame(report))


class WithinLimit:
    """A runtime whose complaints about missing memory say which limit it met."""

    def __init__(self, runtime: Runtime, limit: int) -> None:
        self.signature = runtime.signature
        self._runtime = runtime
        self._limit = limit

    def run(self, inputs: Sequence[Array]) -> list[Array]:
        try:
            return self._runtime.run(inputs)
        except Exception as error:
            if ran_out_of_memory(error):
                raise MemoryError(f"{_words(error)} ({_limit_words(self._limit)})") from error
            raise


def ran_out_of_memory(error: Exception) -> bool:
    """Python's and numpy's own error, and what ONNX Runtime and C++ say in others."""
    text = str(error).lower()
    return isinstance(error, MemoryError) or "bad_alloc" in text or "failed to allocate memory" in text


class Worker:
    """One model in one process."""

    def __init__(self, channel: Channel, slots: Sequence[int], order: Load) -> None:
        self._channel = channel
        self._input, *self._outputs = [Slot(fd, order.max_slot_bytes) for fd in slots]
        runtime = load(order.spec)
        self._calibration: Calibration | None = calibrate(runtime) if order.warm_up else None
        if self._calibration is not None and not self._calibration.independent_rows:
            runtime.signature = msgspec.structs.replace(runtime.signature, batched=False)
        self._close: Callable[[], None] | None = getattr(runtime, "close", None)
        self._runtime = WithinLimit(runtime, order.memory_limit_bytes) if order.memory_limit_bytes else runtime

    def serve(self) -> None:
        """Run batches until told to stop, or until the server has gone; then let the model give back what it holds."""
        self._channel.send(Loaded(self._runtime.signature, self._calibration))
        while isinstance(order := self._channel.receive(), Run):
            self._channel.send(self._run(order))
        if self._close is not None:
            self._close()

    def _run(self, order: Run) -> Done:
        signature, slot = self._runtime.signature, self._outputs[order.output]
        self._input.follow(order.input_bytes)
        slot.follow(order.output_bytes)
        inputs = read_inputs(self._input, signature.inputs, order.inputs)
        result = run_batch(self._runtime, [Request(Ticket(0, 0.0), "", inputs, ())])
        parts, error = [], result.error
        if error is None:
            try:
                parts = write_outputs(slot, signature.outputs, result.outputs)
            except (SlotTooSmall, OSError, TypeError, ValueError) as problem:
                error = _words(problem)
        return Done(parts, slot.size, result.compute_s, error if error is None else error[:MAX_ERROR_CHARS])


def main() -> None:
    """Runs until the server says stop or goes away."""
    _die_with_the_server()
    for number in (signal.SIGINT, signal.SIGTERM):  # those are for the server, which drains and then says stop
        signal.signal(number, signal.SIG_IGN)
    faulthandler.enable()
    descriptors = [int(text) for text in sys.argv[1:]]
    for fd in descriptors:
        os.set_inheritable(fd, False)
    channel = Channel(os.dup(descriptors[0]))
    order = channel.receive()
    if not isinstance(order, Load):
        return
    try:
        _confine(order)
        worker = Worker(channel, descriptors[1:], order)
    except Exception as error:
        _give_up(channel, order, error)
    worker.serve()


def _give_up(channel: Channel, order: Load, error: Exception) -> NoReturn:
    reason = str(error)
    if not isinstance(error, ModelError):
        traceback.print_exc()
        reason = f"{type(error).__name__}: {error}"
    if order.memory_limit_bytes and ran_out_of_memory(error):
        reason += f" ({_limit_words(order.memory_limit_bytes)})"
    channel.send(NotLoaded(reason[:MAX_ERROR_CHARS]))
    sys.exit(1)


def _confine(order: Load) -> None:
    """To the cores and the memory that it was given."""
    if order.cores:
        if not hasattr(os, "sched_setaffinity"):
            raise ModelError("this system does not let a process choose its cores; leave `cores` empty")
        for thread in os.listdir("/proc/self/task"):  # numpy's threads exist already
            try:
                os.sched_setaffinity(int(thread), order.cores)
            except OSError as error:
                raise ModelError(f"cannot run on cores {list(order.cores)}: {error.strerror}") from None
    if order.memory_limit_bytes:  # what the process may change: unlike RLIMIT_AS, without code and shared slots
        resource.setrlimit(resource.RLIMIT_DATA, (order.memory_limit_bytes, order.memory_limit_bytes))


def _die_with_the_server() -> None:
    """At once on Linux, however the server ends; elsewhere when the socket closes and the running batch is done."""
    if sys.platform == "linux":
        import ctypes

        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def _words(error: Exception) -> str:
    return str(error) or type(error).__name__


def _limit_words(limit: int) -> str:
    return f"the worker may use {limit / 2**20:.0f} MiB, memory_limit_bytes = {limit}"


if __name__ == "__main__":
    main()

"""The worker process: loads a model and runs the batches that it finds in its slots, one at a time.

Started by child.py as `python -m dlproxy.instance.process.worker SOCKET INPUT OUTPUT…` (file descriptors).
An actor of Ray (ray/actor.py) runs a Worker, too.
Not aware of: event loops, who asks, which requests a batch consists of.
"""

import faulthandler
import os
import resource
import signal
import socket
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, cast

from dlproxy.instance.batch import Array, BatchResult, Steps, run_batch
from dlproxy.instance.integrity import Trust
from dlproxy.instance.process.messages import Cease, Done, Frames, Load, Loaded, Next, NotLoaded, Order, Report, Run, frame
from dlproxy.instance.process.slots import Slot, read_inputs, write_outputs
from dlproxy.instance.runtime import ModelError, Runtime, StreamingRuntime
from dlproxy.instance.runtime.content import FileState, files_after, stamps_before
from dlproxy.instance.runtime.devices import CPU
from dlproxy.instance.runtime.specs import load
from dlproxy.instance.samples import read_samples
from dlproxy.instance.tracebacks import as_text, origin_of
from dlproxy.instance.warmup import Calibration, warmed
from dlproxy.message import Request, Ticket, text_of

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
    """A runtime whose complaints about missing memory say which limit it met: `limit`, in words."""

    def __init__(self, runtime: Runtime, limit: str) -> None:
        self.signature = runtime.signature
        self._runtime = runtime
        self._limit = limit

    def run(self, inputs: Sequence[Array], **told: Any) -> list[Array]:
        with self._complaints():
            return self._runtime.run(inputs, **told)

    def steps(self, inputs: Sequence[Array], **told: Any) -> Iterator[list[Array]]:
        """Where the runtime has them."""
        parts = cast(StreamingRuntime, self._runtime).steps(inputs, **told)
        with self._complaints():
            yield from parts  # which is closed with this one

    @contextmanager
    def _complaints(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            if ran_out_of_memory(error):
                raise MemoryError(f"{text_of(error)} ({self._limit})") from error
            raise


def ran_out_of_memory(error: Exception) -> bool:
    """Python's and numpy's own error, and what ONNX Runtime, C++ and the C library say in others."""
    text = text_of(error).lower()
    signs = ("bad_alloc", "failed to allocate memory", "cannot allocate memory")
    caused = isinstance(error.__cause__, MemoryError)  # as runtimes wrap what a model raises
    return caused or isinstance(error, MemoryError) or any(sign in text for sign in signs)


class Worker:
    """One model in one process. `limit`: of its memory, in words; empty if there is none."""

    def __init__(self, channel: Channel, slots: Sequence[Slot], order: Load, limit: str = "") -> None:
        self._channel = channel
        self._input, *self._outputs = slots
        runtime, self._files = _load(order)
        self._calibration: Calibration | None = None
        if order.warm_up is not None:
            samples = read_samples(order.warm_up.samples, runtime.signature.inputs)
            self._calibration = warmed(runtime, order.warm_up, samples)[0]
        self._close: Callable[[], None] | None = getattr(runtime, "close", None)
        self._device: str = getattr(runtime, "device", CPU)
        self._runtime = WithinLimit(runtime, limit) if limit else runtime
        self._steps: Steps | None = None

    def serve(self) -> None:
        """Run batches until told to stop, or until the server has gone; then let the model give back what it holds."""
        self._channel.send(Loaded(self._runtime.signature, self._calibration, self._device, self._files))
        while isinstance(order := self._channel.receive(), Run | Next | Cease):
            if isinstance(order, Run):
                self._channel.send(self._run(order))
            elif isinstance(order, Next):
                assert self._steps is not None
                self._channel.send(self._told(self._steps.next(), order.output, order.output_bytes))
            elif self._steps is not None:
                self._steps.close()
        if self._steps is not None:
            self._steps.close()
        if self._close is not None:
            self._close()

    def _run(self, order: Run) -> Done:
        signature = self._runtime.signature
        self._input.follow(order.input_bytes)
        requests = [Request(Ticket(0, 0.0), "", read_inputs(self._input, signature.inputs, order.inputs), ())]
        if signature.streams:
            self._steps = Steps(cast(StreamingRuntime, self._runtime), requests, order.sequences)
            result = self._steps.next()
        else:
            result = run_batch(self._runtime, requests, order.sequences)
        return self._told(result, order.output, order.output_bytes)

    def _told(self, result: BatchResult, output: int, output_bytes: int) -> Done:
        """The result, with its outputs in their slot."""
        signature, slot = self._runtime.signature, self._outputs[output]
        slot.follow(output_bytes)
        parts, error, trace = [], result.error, as_text(result.origin)
        if result.outputs:
            try:
                parts = write_outputs(slot, signature.outputs, result.outputs)
            except Exception as problem:  # elements that are objects of the model's own may raise anything
                error, trace = text_of(problem), as_text(origin_of(problem))
        more = False
        if self._steps is not None:
            if error is not None:
                self._steps.close()
            more = not self._steps.ended
        return Done(parts, slot.size, result.compute_s, error if error is None else error[:MAX_ERROR_CHARS], trace, more)


def _load(order: Load) -> tuple[Runtime, dict[str, FileState]]:
    """The model, and what it was loaded from, if that matters. Raises ModelError, or what the model's own code raises."""
    more = {} if order.trust == Trust() else {"trust": order.trust}
    order.trust = Trust()  # once the model is read, nothing needs its key
    if order.content is None:
        return load(order.spec, **more), {}
    before = stamps_before(order.content)
    runtime = load(order.spec, **more)
    return runtime, files_after(order.content, before, getattr(runtime, "files", ()))


def main() -> None:
    """Runs until the server says stop or goes away."""
    die_with_the_parent()
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
    limit = ""
    try:
        keep_to_cores(order.cores)
        limit = limit_memory(order.memory_limit_bytes)
        worker = Worker(channel, [Slot(fd, order.max_slot_bytes) for fd in descriptors[1:]], order, limit)
    except Exception as error:
        give_up(channel, limit, error)
        sys.exit(1)
    worker.serve()


def give_up(channel: Channel, limit: str, error: Exception) -> None:
    """Say why the model cannot be loaded."""
    reason = text_of(error)
    if limit and ran_out_of_memory(error):  # where it happened to run out says nothing
        reason = f"no memory is left to load the model: {reason} ({limit})"
    elif not isinstance(error, ModelError):
        traceback.print_exc()
        reason = f"{type(error).__name__}: {text_of(error)}"
    channel.send(NotLoaded(reason[:MAX_ERROR_CHARS]))


def keep_to_cores(cores: Sequence[int]) -> None:
    if not cores:
        return
    if not hasattr(os, "sched_setaffinity"):
        raise ModelError("this system does not let a process choose its cores; leave `cores` empty")
    for thread in os.listdir("/proc/self/task"):  # numpy's threads exist already
        try:
            os.sched_setaffinity(int(thread), cores)
        except OSError as error:
            raise ModelError(f"cannot run on cores {list(cores)}: {error.strerror}") from None


def limit_memory(limit_bytes: int) -> str:
    """The limit in words, empty for 0, which is none. Raises ModelError for one that the process cannot even start with."""
    if not limit_bytes:
        return ""
    held = _held_mib()
    words = f"memory_limit_mb = {limit_bytes / 2**20:g}; a worker without a model takes {held:.0f}"
    if held * 2**20 >= limit_bytes:
        raise ModelError(f"too little memory: {words}; give it more, or 0 for no limit")
    try:  # what the process may change: unlike RLIMIT_AS, without code and shared slots
        resource.setrlimit(resource.RLIMIT_DATA, (limit_bytes, limit_bytes))
    except (OSError, ValueError, OverflowError) as error:
        raise ModelError(f"the system does not take memory_limit_mb = {limit_bytes / 2**20:g}: {error}") from None
    return words


def _held_mib() -> float:
    """What RLIMIT_DATA counts of this process, where the kernel tells."""
    try:
        with open("/proc/self/status", encoding="utf-8") as status:
            return next(int(line.split()[1]) / 1024 for line in status if line.startswith("VmData:"))
    except FileNotFoundError:
        return 0.0


def die_with_the_parent() -> None:
    """At once on Linux, however the server ends; elsewhere when the socket closes and the running batch is done."""
    if sys.platform == "linux":
        import ctypes

        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


if __name__ == "__main__":
    main()

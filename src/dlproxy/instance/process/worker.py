"""The worker process: loads a model and runs the batches that it finds in its slots, one at a time.

Started by child.py as `python -m dlproxy.instance.process.worker SOCKET INPUT OUTPUT…` (file descriptors).
An actor of Ray (ray/actor.py) runs a Worker, too.
Not aware of: event loops, who asks, which requests a batch consists of.
"""

import faulthandler
import os
import resource
import select
import signal
import socket
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any, cast

from dlproxy.cores import give_back
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
JOIN_S = 5.0  # for the first word of a server that has connected
MOST_SLOTS = 16
MAX_ERROR_CHARS = 4096  # models are known to print tensors


class Channel:
    """The worker's end of a socket. The descriptor stays open until the process ends: its closing tells the server."""

    def __init__(self, connection: socket.socket, received: bytes = b"") -> None:
        self._socket = connection
        self._frames = Frames(Order)
        self._orders: list[Order] = self._frames.feed(received)

    def fileno(self) -> int:
        return self._socket.fileno()

    @property
    def has_more(self) -> bool:
        """An order was received that nobody has seen."""
        return bool(self._orders)

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

    def close(self) -> None:
        self._socket.close()


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


class Held:
    """A model that is loaded. `limit`: of the process's memory, in words; empty if there is none."""

    def __init__(self, order: Load, limit: str = "") -> None:
        runtime, self._files = _load(order)
        self._calibration: Calibration | None = None
        if order.warm_up is not None:
            samples = read_samples(order.warm_up.samples, runtime.signature.inputs)
            self._calibration = warmed(runtime, order.warm_up, samples)[0]
        give_back()  # loading and warm-up take several times what a model holds
        self.close: Callable[[], None] = getattr(runtime, "close", lambda: None)
        self._device: str = getattr(runtime, "device", CPU)
        self.runtime: Runtime = WithinLimit(runtime, limit) if limit else runtime

    def told(self) -> Loaded:
        return Loaded(self.runtime.signature, self._calibration, self._device, self._files)


class Worker:
    """Runs the batches of one server with a model that is loaded."""

    def __init__(self, channel: Channel, slots: Sequence[Slot], held: Held) -> None:
        self.channel = channel
        self._slots = slots
        self._input, *self._outputs = self._slots
        self._held = held
        self._runtime = held.runtime
        self._steps: Steps | None = None

    def serve(self) -> None:
        """Run batches until told to stop, or until the server has gone; then let the model give back what it holds."""
        self.channel.send(self._held.told())
        while self.turn():
            pass
        self._held.close()

    def turn(self) -> bool:
        """Obey the next order; False if there will be none any more."""
        order = self.channel.receive()
        if isinstance(order, Run):
            self.channel.send(self._run(order))
        elif isinstance(order, Load):
            self.channel.send(self._held.told())
        elif isinstance(order, Next):
            assert self._steps is not None
            self.channel.send(self._told(self._steps.next(), order.output, order.output_bytes))
        else:
            if self._steps is not None:
                self._steps.close()
            return isinstance(order, Cease)
        return True

    def leave(self) -> None:
        """Of a server that is not the only one: what it gave is given back."""
        if self._steps is not None:
            self._steps.close()
        self.channel.close()
        for slot in self._slots:
            slot.close()

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


class SharedWorker:
    """The same for several servers, of which each gets its batches run in the order in which they ask, one at a time."""

    def __init__(self, first: Worker, held: Held, order: Load) -> None:
        self._first = first
        self._held = held
        self._most_bytes = order.max_slot_bytes
        self._others: dict[int, Worker] = {}
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        with suppress(FileNotFoundError):
            os.unlink(order.shared_at)  # of the process before
        self._listener.bind(order.shared_at)
        self._listener.listen()

    def serve(self) -> None:
        """Until the one that started it says stop, or is gone."""
        self._first.channel.send(self._held.told())
        poll = select.poll()
        poll.register(self._first.channel, select.POLLIN)
        poll.register(self._listener, select.POLLIN)
        while True:
            for fd, _ in poll.poll():
                if fd == self._first.channel.fileno():
                    if not self._first.turn():
                        self._held.close()
                        return
                elif fd == self._listener.fileno():
                    worker = self._joined()
                    if worker is not None:
                        self._others[worker.channel.fileno()] = worker
                        poll.register(worker.channel, select.POLLIN)
                        self._obey(worker, poll)
                else:
                    self._obey(self._others[fd], poll)

    def _obey(self, worker: Worker, poll: select.poll) -> None:
        fd, goes_on = worker.channel.fileno(), True
        try:
            while goes_on:
                goes_on = worker.turn()
                if not worker.channel.has_more:
                    break
        except OSError:  # it was killed while its batch ran
            goes_on = False
        if not goes_on:
            poll.unregister(fd)
            self._others.pop(fd).leave()

    def _joined(self) -> Worker | None:
        connection, _ = self._listener.accept()
        connection.settimeout(JOIN_S)
        try:
            data, descriptors, _, _ = socket.recv_fds(connection, 65536, MOST_SLOTS)
        except OSError:
            connection.close()
            return None
        connection.settimeout(None)
        if len(descriptors) < 2:
            connection.close()
            return None
        return Worker(Channel(connection, data), [Slot(fd, self._most_bytes) for fd in descriptors], self._held)


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
    channel = Channel(socket.socket(fileno=os.dup(descriptors[0])))
    order = channel.receive()
    if not isinstance(order, Load):
        return
    limit = ""
    try:
        keep_to_cores(order.cores)
        limit = limit_memory(order.memory_limit_bytes)
        held = Held(order, limit)
        worker = Worker(channel, [Slot(fd, order.max_slot_bytes) for fd in descriptors[1:]], held)
        runs = SharedWorker(worker, held, order) if order.shared_at else worker
    except Exception as error:
        give_up(channel, limit, error)
        sys.exit(1)
    runs.serve()


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
        except (OSError, ValueError, OverflowError) as error:
            raise ModelError(f"cannot run on cores {list(cores)}: {getattr(error, 'strerror', None) or error}") from None


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


def die_with_the_parent(by: signal.Signals = signal.SIGKILL) -> None:
    """At once on Linux, however the server ends; elsewhere when the socket closes and the running batch is done."""
    if sys.platform == "linux":
        import ctypes

        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, by)


if __name__ == "__main__":
    main()

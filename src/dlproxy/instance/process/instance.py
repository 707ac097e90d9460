"""Runs batches in a process of its own, so that a model which crashes, hangs or holds the GIL harms nobody else.

Started and stopped by fleet/supervisor.py, given batches by serve/driver.py. Not aware of: other instances, restarts.
"""

import asyncio
import logging
from collections.abc import Callable, Mapping, Sequence
from time import perf_counter
from traceback import TracebackException
from typing import Protocol

from msgspec import Struct

from dlproxy.instance.batch import BatchResult, sequences_of
from dlproxy.instance.integrity import Trust
from dlproxy.instance.process.child import THREAD_COUNTS, Child
from dlproxy.instance.process.messages import Cease, Done, Load, Loaded, Next, NotLoaded, Order, Part, Report, Run, Stop
from dlproxy.instance.process.slots import Array, OutputSlots, Slot, create_slots, write_inputs
from dlproxy.instance.runtime import ModelError
from dlproxy.instance.runtime.content import Content
from dlproxy.instance.runtime.devices import CPU
from dlproxy.instance.runtime.specs import PythonSpec
from dlproxy.instance.tracebacks import origin_of
from dlproxy.instance.warmup import Calibration, WarmUp
from dlproxy.message import Request, Signature, TensorSpec, encodable, text_of

log = logging.getLogger(__name__)


class WorkerSettings(Struct, frozen=True, kw_only=True):
    """How a worker process lives. 0 or empty means no limit, or what the system chooses."""

    warm_up: WarmUp | None = None
    """Examine the model before it counts as ready; see `ProcessInstance.calibration`."""
    threads: int = 0
    """OMP_NUM_THREADS and its like, for runtimes that take their number of threads from there."""
    cores: tuple[int, ...] = ()
    """The cores that it may run on, by number."""
    environment: Mapping[str, str] = {}
    """Further variables, such as CUDA_VISIBLE_DEVICES."""
    memory_limit_bytes: int = 0
    """What the process may allocate; shared slots, code and files that are mapped do not count."""
    max_slot_bytes: int = 256 * 2**20
    """Inputs of a batch, or outputs: four times the largest body that the server takes by default."""
    batch_timeout_s: float = 120.0
    """A batch that takes longer has hung (TorchServe's default_response_timeout)."""
    start_timeout_s: float = 300.0
    """Large models are read from slow disks."""
    stop_timeout_s: float = 10.0
    """How long a worker without work may take to end."""
    content: Content | None = None
    """What the model's files are: the same object for all its workers, filled in by the first. Others load that or nothing."""
    trust: Trust = Trust()
    """Which models may be loaded, and the key that decrypts them."""
    shared_at: str = ""
    """The path of a Unix socket at which other processes reach the worker, see lent.py; empty: it works for this one alone."""


class Peer(Protocol):
    """Who runs the batches: a Child, or an actor of Ray at the other end of a connection."""

    @property
    def pid(self) -> int | None: ...

    @property
    def last_words(self) -> str: ...

    def send(self, order: Order) -> None: ...

    def kill(self, reason: str) -> None: ...


class Outputs(Protocol):
    """Where outputs arrive: OutputSlots, or what came with a message."""

    @property
    def next(self) -> int: ...

    def size(self, number: int) -> int: ...

    def read(self, number: int, size: int, specs: Sequence[TensorSpec], parts: Sequence[Part]) -> list[Array]: ...


class ProcessInstance:
    """One worker process, one batch at a time, one life: once it is lost or stopped, make another.

    Not before `start` has returned does it take batches. `on_lost` is called once, on the event loop, with the reason, if the
    process ends without having been told to; `done` of a batch that ran then is never called.
    """

    inline = False
    capacity = 1

    def __init__(self, name: str, spec: PythonSpec, settings: WorkerSettings | None = None) -> None:
        self.name = name
        self.on_lost: Callable[[str], None] | None = None
        self.calibration: Calibration | None = None
        """What warm-up found, if it was asked for; rows that depend on each other make the signature one without batches."""
        self.device = CPU
        """Where the model computes, in words."""
        self._spec = spec
        self._settings = settings or WorkerSettings()
        self._child: Peer | None = None
        self._slots: list[Slot] = []
        self._signature: Signature | None = None
        self._loading: asyncio.Future[Signature] | None = None
        self._done: Callable[[BatchResult], None] | None = None
        self._rest: ProcessRest | None = None  # of the batch that runs, between its parts and while one is computed
        self._output = 0  # the slot for the running batch's
        self._began_at = 0.0
        self._timer: asyncio.TimerHandle | None = None  # not one per batch: setting and cancelling it would cost 5 us
        self._idle = asyncio.Event()
        self._idle.set()
        self._ended = asyncio.Event()
        self._may_end = False

    @property
    def pid(self) -> int | None:
        """Of the worker, while there is one."""
        return None if self._child is None or self._ended.is_set() else self._child.pid

    async def start(self) -> Signature:
        """Start the process and wait until its model is loaded. Raises ModelError in the worker's own words if it is not.

        Cancelling it ends the process.
        """
        assert self._child is None, f"{self.name} has had its life; make another instance"
        settings = self._settings
        self._loop = asyncio.get_running_loop()
        self._loading = self._loop.create_future()
        try:
            async with asyncio.timeout(settings.start_timeout_s):
                self._child = await self._open()
                self._child.send(
                    Load(
                        self._spec,
                        settings.warm_up,
                        settings.cores,
                        settings.memory_limit_bytes,
                        settings.max_slot_bytes,
                        settings.content,
                        settings.trust,
                        settings.shared_at,
                    )
                )
                self._signature = await self._loading
        except BaseException as error:
            self._may_end = True
            said = self._last_words()  # before it is killed, and says no more
            if self._child is not None:
                self._child.kill("it was not needed any more")
                await self._ended.wait()
            if isinstance(error, UnicodeEncodeError):
                raise ModelError(
                    f"{self.name}: a worker cannot be told {encodable(error.object)!r}: rename it to be UTF-8"
                ) from None
            if not isinstance(error, TimeoutError):
                raise
            message = f"{self.name}: did not load its model within {settings.start_timeout_s:g} s (load_timeout_s){said}"
            raise ModelError(message) from None
        return self._signature

    async def _open(self) -> Peer:
        """Start what loads the model and runs the batches, with slots for them. Raises ModelError."""
        settings = self._settings
        threads = dict.fromkeys(THREAD_COUNTS, str(settings.threads)) if settings.threads else {}
        try:
            return Child(
                self.name,
                [slot.fd for slot in self._take_slots()],
                environment={**threads, **settings.environment},
                on_report=self._on_report,
                on_exit=self._on_exit,
            )
        except OSError as error:
            self._close_slots()
            raise ModelError(f"{self.name}: cannot start a process: {error}") from error

    def _take_slots(self) -> list[Slot]:
        """Raises OSError."""
        self._slots = create_slots(self._settings.max_slot_bytes)
        self._outputs: Outputs = OutputSlots(self._slots[1:])
        return self._slots

    def adopt(self, signature: Signature) -> None:
        self._signature = signature

    def run(self, requests: Sequence[Request], done: Callable[[BatchResult], None]) -> None:
        assert self._done is None, f"{self.name} got a batch while it runs one"
        assert self._rest is None, f"{self.name} got a batch while it answers one in parts"
        child, signature = self._child, self._signature
        assert child is not None, f"{self.name} got a batch before it was started"
        assert signature is not None, f"{self.name} got a batch before it was ready"
        self._began_at = perf_counter()
        try:
            parts = write_inputs(self._slots[0], signature.inputs, requests)
        except Exception as error:
            seconds = perf_counter() - self._began_at
            result = BatchResult([], 0.0, seconds, text_of(error), origin=origin_of(error))
            self._loop.call_soon(done, result)
            return
        self._idle.clear()
        if signature.streams:
            self._rest = ProcessRest(self)
        slot_bytes = self._expect(done)
        sequences = sequences_of(requests) if signature.told_sequences else []
        child.send(Run(parts, self._slots[0].size, self._output, slot_bytes, sequences))

    def ask(self, done: Callable[[BatchResult], None]) -> None:
        """For the next part of what it runs."""
        assert self._child is not None
        self._began_at = perf_counter()
        slot_bytes = self._expect(done)
        self._child.send(Next(self._output, slot_bytes))

    def cease(self, rest: "ProcessRest") -> None:
        """No more of this is wanted. What it computes already will be told, and not be gone on with."""
        if self._rest is rest:
            assert self._child is not None
            self._rest = None
            self._child.send(Cease())
            if self._done is None:
                self._idle.set()

    def _expect(self, done: Callable[[BatchResult], None]) -> int:
        """A Done, with the outputs in a free slot, which is so large."""
        self._done = done
        self._output = self._outputs.next
        if self._timer is None:
            self._timer = self._loop.call_later(self._settings.batch_timeout_s, self._look_whether_it_hangs)
        return self._outputs.size(self._output)

    async def stop(self) -> None:
        """Let a running batch finish, then end the process: by asking it and, if it does not listen, by force."""
        child = self._child
        if child is None or self._ended.is_set():
            return
        if self._signature is None:
            child.kill("it was stopped")
        await self._idle.wait()
        if not self._may_end:
            self._may_end = True
            child.send(Stop())
        try:
            async with asyncio.timeout(self._settings.stop_timeout_s):
                await self._ended.wait()
        except TimeoutError:
            log.warning("%s: did not end within %g s, so it is killed", self.name, self._settings.stop_timeout_s)
            child.kill("it did not stop")
            await self._ended.wait()

    def _look_whether_it_hangs(self) -> None:
        assert self._child is not None
        self._timer = None
        if self._done is None:
            return
        left_s = self._began_at + self._settings.batch_timeout_s - perf_counter()
        if left_s > 0.0:  # the batch that the timer was set for has ended, and another runs
            self._timer = self._loop.call_later(left_s, self._look_whether_it_hangs)
            return
        what = "a batch" if self._rest is None else "the next part of a batch's answers"
        self._done = self._rest = None
        self._child.kill(f"it did not finish {what} within {self._settings.batch_timeout_s:g} s (batch_timeout_s)")

    # What the worker says

    def _on_report(self, report: Report) -> None:
        if isinstance(report, Done):
            self._on_done(report)
        elif self._loading is not None and not self._loading.done():
            if isinstance(report, NotLoaded):
                self._may_end = True  # and it does, maybe before `start` gets to hear of it
                self._loading.set_exception(ModelError(report.reason))
            elif isinstance(report, Loaded):
                self.calibration, self.device = report.calibration, report.device
                if self._settings.content is not None:
                    self._settings.content.files = report.files
                self._loading.set_result(report.signature)

    def _on_done(self, report: Done) -> None:
        done, signature = self._done, self._signature
        assert done is not None
        assert signature is not None
        self._done = None
        error, outputs = report.error, []
        origin: TracebackException | str = report.traceback
        if error is None and report.outputs:
            try:
                outputs = self._outputs.read(self._output, report.output_bytes, signature.outputs, report.outputs)
            except Exception as problem:  # memory for the copy, or a worker whose memory the model has overwritten
                error, origin = f"the outputs cannot be read: {text_of(problem)}", origin_of(problem)
        elapsed_s = perf_counter() - self._began_at
        result = BatchResult(outputs, report.compute_s, max(elapsed_s - report.compute_s, 0.0), error, origin=origin)
        if report.more and error is None and self._rest is not None:
            result.rest = self._rest
        else:
            if report.more and self._rest is not None:
                self.cease(self._rest)
            self._rest = None
            self._idle.set()
        done(result)

    def _on_exit(self, how: str) -> None:
        while_it = " while it ran a batch" if self._done is not None or self._rest is not None else ""
        if self._timer is not None:
            self._timer.cancel()
        self._done = self._timer = self._rest = None
        self._close_slots()
        self._ended.set()
        self._idle.set()
        if self._loading is not None and not self._loading.done():
            self._loading.set_exception(ModelError(f"{self.name}: {how} while it loaded its model{self._last_words()}"))
        elif not self._may_end:
            self._may_end = True
            if self.on_lost is not None:
                self.on_lost(how + while_it)

    def _close_slots(self) -> None:
        for slot in self._slots:
            slot.close()

    def _last_words(self) -> str:
        words = "" if self._child is None else self._child.last_words
        return f"; the last that it printed: {words}" if words else ""


class ProcessRest:
    """The rest of the batch that a worker runs, or has run: then it does nothing."""

    def __init__(self, instance: ProcessInstance) -> None:
        self._instance = instance

    def ask(self, done: Callable[[BatchResult], None]) -> None:
        self._instance.ask(done)

    def stop(self) -> None:
        self._instance.cease(self)

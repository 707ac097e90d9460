"""Child processes of a benchmark run: pinned to a core, watched while they start, and always ended.

Every child leads its own session, so whatever it starts in turn is counted and ended with it, and a Ctrl-C at the
terminal reaches only the benchmark, which then ends its children itself.
"""

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import NamedTuple, Self

STOP_SECONDS = 5.0
READY_SECONDS = 30.0
POLL_SECONDS = 0.005
IDLE_CHECK_SECONDS = 0.2
IDLE_CHECKS = 15
BUSY_SHARE = 0.1
LOG_TAIL_CHARACTERS = 600


class BenchmarkError(Exception):
    """Something could not be run or measured; the message is for the person who ran the benchmark."""


class Cores(NamedTuple):
    """Which core the servers run on and which one the load comes from; None where nothing can be pinned."""

    server: int | None
    load: int | None


def choose_cores() -> Cores:
    if not hasattr(os, "sched_getaffinity") or shutil.which("taskset") is None:
        return Cores(None, None)
    usable = sorted(os.sched_getaffinity(0))
    if len(usable) < 2:
        return Cores(None, None)
    return Cores(usable[0], usable[1])


def stay_off_the_servers_core(cores: Cores) -> None:
    if cores.load is not None:
        os.sched_setaffinity(0, {cores.load})


@contextlib.contextmanager
def on_own_core(cores: Cores) -> Iterator[None]:
    """Keeps off the servers' core meanwhile."""
    if cores.load is None:
        yield
        return
    before = os.sched_getaffinity(0)
    stay_off_the_servers_core(cores)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


@contextlib.contextmanager
def on_all_cores() -> Iterator[None]:
    """What is started meanwhile, and not pinned, may use every core, although this process keeps off the servers'."""
    if not hasattr(os, "sched_getaffinity"):
        yield
        return
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, range(os.cpu_count() or 1))
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def pinned(core: int | None, command: Sequence[str]) -> list[str]:
    return list(command) if core is None else ["taskset", "-c", str(core), *command]


def free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as held:
        sockets = [held.enter_context(socket.socket()) for _ in range(count)]
        for unbound in sockets:
            unbound.bind(("127.0.0.1", 0))
        return [int(bound.getsockname()[1]) for bound in sockets]


def accepts_connections(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), timeout=1).close()
    except OSError:
        return False
    return True


class Child:
    def __init__(self, name: str, command: list[str], log_path: Path) -> None:
        self.name = name
        self.command = command
        self.log_path = log_path
        self.launched_at = time.perf_counter()
        with log_path.open("wb") as log:
            try:
                self.process = subprocess.Popen(
                    command, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
                )
            except OSError as error:
                raise BenchmarkError(f"cannot start {name}: {error}") from error

    def wait_until(self, is_ready: Callable[[], bool], limit_s: float = READY_SECONDS) -> float:
        """Seconds from launch until `is_ready`."""
        while not is_ready():
            if self.process.poll() is not None:
                raise BenchmarkError(f"{self.name} ended with status {self.process.returncode}: {self.log_tail()}")
            if time.perf_counter() - self.launched_at > limit_s:
                raise BenchmarkError(f"{self.name} was not ready after {limit_s:.0f} s: {self.log_tail()}")
            time.sleep(POLL_SECONDS)
        return time.perf_counter() - self.launched_at

    def log_tail(self) -> str:
        text = self.log_path.read_text(errors="replace").strip()
        return text[-LOG_TAIL_CHARACTERS:] or "(it printed nothing)"

    def stop(self) -> None:
        if self.process.poll() is None:
            self.process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(STOP_SECONDS)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()

    def _session_stats(self) -> list[list[str]]:
        """The fields of /proc/PID/stat after the command's name, for each process of the child's session."""
        found = []
        for path in Path("/proc").glob("[0-9]*/stat"):
            with contextlib.suppress(OSError):
                fields = path.read_text().rpartition(")")[2].split()
                if int(fields[3]) == self.process.pid:
                    found.append(fields)
        return found

    def cpu_seconds(self) -> float | None:
        stats = self._session_stats()
        if not stats:
            return None
        return sum(int(fields[11]) + int(fields[12]) for fields in stats) / float(os.sysconf("SC_CLK_TCK"))

    def wait_until_idle(self) -> None:
        """Until it has worked off what clients that have left still had in its queue, or a limit is reached."""
        before = self.cpu_seconds()
        for _ in range(IDLE_CHECKS):
            time.sleep(IDLE_CHECK_SECONDS)
            now = self.cpu_seconds()
            if before is None or now is None or now - before <= BUSY_SHARE * IDLE_CHECK_SECONDS:
                return
            before = now

    def resident_megabytes(self) -> float | None:
        """VmRSS of the child and of what it started, in units of 10**6 bytes."""
        stats = self._session_stats()
        if not stats:
            return None
        return sum(int(fields[21]) for fields in stats) * os.sysconf("SC_PAGE_SIZE") / 1e6


class Children:
    """Every child of one benchmark run; leaving the context ends those that still run."""

    def __init__(self, log_directory: Path) -> None:
        self._log_directory = log_directory
        self._running: list[Child] = []
        self._started = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        for child in reversed(self._running[:]):
            self.stop(child)

    def start(self, name: str, command: list[str]) -> Child:
        self._started += 1
        child = Child(name, command, self._log_directory / f"{self._started:03d}-{name}.log")
        self._running.append(child)
        return child

    def stop(self, child: Child) -> None:
        child.stop()
        self._running.remove(child)

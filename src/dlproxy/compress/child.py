"""One piece of work in a process of its own: whatever it does to itself or to the machine, the search goes on.

Called by search.py with functions of measure.py and of its own. Not aware of: recipes, models, what is worked on.
"""

import os
import signal
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Callable
from contextlib import suppress
from math import inf
from multiprocessing.connection import Connection, Pipe
from pathlib import Path
from time import monotonic
from typing import IO, Any, Concatenate, NoReturn, ParamSpec, TypeVar

from msgspec import Struct

from dlproxy.compress import CompressError
from dlproxy.compress.recipe import RecipeError
from dlproxy.config.secrets import without_secrets
from dlproxy.instance.process.child import THREAD_COUNTS
from dlproxy.instance.process.worker import die_with_the_parent, keep_to_cores, limit_memory, ran_out_of_memory
from dlproxy.instance.runtime import TELEMETRY_OFF, ModelError
from dlproxy.instance.tracebacks import printable
from dlproxy.message import text_of

START_S = 120.0  # of the interpreter and what is imported, on a machine that is busy
MOST_CHARS = 1000  # of an error: some libraries print tensors
MOST_OUTPUT = 1 << 16  # of what it printed, of which the end is looked at
ENDINGS = {
    signal.SIGKILL: "was killed by the system, probably for lack of memory",
    signal.SIGSEGV: "crashed: it touched memory that is not its own",
    signal.SIGBUS: "crashed: it touched memory that is not there, as on a disk that is full",
    signal.SIGILL: "crashed: it used an instruction that this processor does not have",
    signal.SIGFPE: "crashed: it divided by zero",
    signal.SIGABRT: "gave up",
}
_MEMORY_SIGNS = ("bad_alloc", "MemoryError", "cannot allocate memory")  # the last words of what cannot say it otherwise

Tell = Callable[[str], None]
T = TypeVar("T")
P = ParamSpec("P")


class WorkError(CompressError):
    """The work did not come to its end; the message says why, as "it …" would go on."""


class Limits(Struct, frozen=True, kw_only=True):
    """Of one piece of work. 0 or empty: none. `memory_bytes`: what its process may allocate; files that are mapped do not
    count. `threads`: of the libraries that take their number from the environment. `folder`: where it may leave things.
    """

    folder: Path
    seconds: float = 0.0
    memory_bytes: int = 0
    threads: int = 0
    cores: tuple[int, ...] = ()


def run(work: Callable[Concatenate[Tell, P], T], limits: Limits, tell: Tell, /, *args: P.args, **kwargs: P.kwargs) -> T:
    """What `work(tell, *args, **kwargs)` returns in a fresh interpreter. All of that must be picklable; `tell` gets its lines.

    Raises RecipeError as the work does, else WorkError. However it ends, KeyboardInterrupt included, no process is left.
    """
    ours, theirs = Pipe()
    process: subprocess.Popen[bytes] | None = None
    with ours, tempfile.TemporaryFile() as output:
        try:
            with theirs:
                process = _start(theirs, output, limits)
            return _followed(process, ours, output, limits, tell, (work, args, kwargs))  # type: ignore[no-any-return]
        finally:
            if process is not None:
                _end(process)


def _start(theirs: Connection, output: IO[bytes], limits: Limits) -> "subprocess.Popen[bytes]":
    threads = dict.fromkeys(THREAD_COUNTS, str(limits.threads)) if limits.threads else {}
    inherited = {**without_secrets(os.environ), **threads, TELEMETRY_OFF[0]: TELEMETRY_OFF[1]}
    paths = os.pathsep.join(path or os.getcwd() for path in sys.path)
    try:
        return subprocess.Popen(  # nosec B603 # our own interpreter
            [sys.executable, "-P", "-m", "dlproxy.compress.child", str(theirs.fileno())],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            pass_fds=[theirs.fileno()],
            # the order of sets is part of what a seed shall repeat
            env={**inherited, "PYTHONPATH": paths, "PYTHONHASHSEED": "0", "TMPDIR": str(limits.folder)},
            start_new_session=True,  # Ctrl-C is for the search, which ends what it started
        )
    except OSError as error:
        raise WorkError(f"could not be started: {error}") from error


def _end(process: "subprocess.Popen[bytes]") -> None:
    """With whatever it has started itself."""
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    process.kill()
    process.wait()


def _followed(
    process: "subprocess.Popen[bytes]", ours: Connection, output: IO[bytes], limits: Limits, tell: Tell, order: object
) -> Any:
    until = monotonic() + START_S
    try:
        ours.send((limits.memory_bytes, limits.cores, order))
        while ours.poll(None if until == inf else max(until - monotonic(), 0.0)):
            kind, said = ours.recv()
            if kind == "begun":
                until = monotonic() + (limits.seconds or inf)
            elif kind == "line":
                tell(said)
            elif kind == "done":
                return said
            else:
                raise RecipeError(said) if kind == "recipe" else WorkError(said)
    except (EOFError, ConnectionError):
        _explain(process, output, limits)
    raise WorkError(f"took longer than the {limits.seconds:.0f} s that it had")


def _explain(process: "subprocess.Popen[bytes]", output: IO[bytes], limits: Limits) -> NoReturn:
    """Of a process that says no more. Raises WorkError."""
    try:
        status = process.wait(10.0)
    except subprocess.TimeoutExpired:
        raise WorkError("stopped talking, and did not end") from None
    output.seek(max(output.seek(0, os.SEEK_END) - MOST_OUTPUT, 0))
    lines = [printable(line.strip()) for line in output.read().decode("utf-8", "replace").splitlines() if line.strip()]
    last = f"; its last words: {lines[-1][:MOST_CHARS]}" if lines else ""
    if any(sign in line for line in lines[-5:] for sign in _MEMORY_SIGNS):
        raise WorkError(_out_of_memory(limits.memory_bytes) + last)
    if status >= 0:
        raise WorkError(f"ended by itself with exit status {status}{last}")
    try:
        number = signal.Signals(-status)
    except ValueError:
        raise WorkError(f"was ended by signal {-status}{last}") from None
    raise WorkError(f"{ENDINGS.get(number, 'was ended')} ({number.name}){last if number is not signal.SIGKILL else ''}")


def _out_of_memory(limit_bytes: int) -> str:
    within = f"the {limit_bytes / 2**20:.0f} MiB that it may take" if limit_bytes else "what there is"
    return f"ran out of memory: it needs more than {within}"


def main() -> None:
    """The process itself: one order, lines while it is carried out, one answer."""
    die_with_the_parent()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    channel = Connection(int(sys.argv[1]))
    os.set_inheritable(channel.fileno(), False)
    memory_bytes = 0
    try:
        memory_bytes, cores, (work, args, kwargs) = channel.recv()
        keep_to_cores(cores)
        _limit(memory_bytes)
        channel.send(("begun", None))
        answer = ("done", work(lambda line: channel.send(("line", line)), *args, **kwargs))
        channel.send(answer)
    except Exception as error:
        channel.send(_complaint(error, memory_bytes))


def _limit(memory_bytes: int) -> None:
    try:
        limit_memory(memory_bytes)
    except ModelError:
        raise WorkError(f"cannot even start with the {memory_bytes / 2**20:.0f} MiB that it may take") from None


def _complaint(error: Exception, memory_bytes: int) -> tuple[str, str]:
    said = printable(" ".join(text_of(error).split()))[:MOST_CHARS]
    if isinstance(error, RecipeError):
        return "recipe", said
    if ran_out_of_memory(error):
        return "failed", f"{_out_of_memory(memory_bytes)} ({said or type(error).__name__})"
    if isinstance(error, CompressError | ModelError):
        return "failed", said
    step = traceback.extract_tb(error.__traceback__)[-1]
    return "failed", f"raised {type(error).__name__}: {said} ({Path(step.filename).name}, line {step.lineno})"


if __name__ == "__main__":
    main()

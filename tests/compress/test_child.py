"""Work in a process of its own: what it returns comes back, and however it ends is told in words, with nothing left."""

import os
import re
import resource
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dlproxy.compress.child import Limits, WorkError, run
from dlproxy.compress.recipe import RecipeError

Tell = Callable[[str], None]
MIB = 2**20


def _doubled(tell: Tell, array: Any, *, name: str) -> Any:
    tell(f"{name} of {array.shape}")
    tell("done")
    return array * 2


def _where(tell: Tell) -> tuple[int, str, str, list[int]]:
    import tempfile

    return os.getpid(), tempfile.gettempdir(), os.environ["OMP_NUM_THREADS"], sorted(os.sched_getaffinity(0))


def _refuses(tell: Tell) -> None:
    raise RecipeError("there is nothing to fuse")


def _fails(tell: Tell) -> None:
    raise ValueError("odd\nshape")


def _allocates(tell: Tell) -> None:
    np.ones(64 * MIB * 100, np.uint8)


def _aborts_for_memory(tell: Tell) -> None:
    os.write(2, b"terminate called after throwing an instance of 'std::bad_alloc'\n")
    os.abort()


def _dies(tell: Tell, number: int) -> None:
    signal.signal(number, signal.SIG_DFL) if number != signal.SIGKILL else None
    os.kill(os.getpid(), number)


def _exits(tell: Tell) -> None:
    os.write(2, b"the library gives up\n")
    os._exit(7)


def _hangs(tell: Tell) -> None:
    child = subprocess.Popen([sys.executable, "-c", "import signal; signal.pause()"])
    tell(f"{os.getpid()} {child.pid}")
    signal.pause()


def _fills_the_disk(tell: Tell, path: Path) -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
    path.write_bytes(bytes(8192))


def _returns_what_cannot_travel(tell: Tell) -> Any:
    return lambda: None


def _gone(pid: int) -> bool:
    """Whether it soon runs no more: at most a zombie of a parent that is gone, which init takes."""
    tries = 500  # what is killed has not gone at once
    while tries:
        tries -= 1
        try:
            if Path(f"/proc/{pid}/stat").read_text("ascii").rpartition(")")[2].split()[0] == "Z":
                return True
        except (FileNotFoundError, ProcessLookupError):
            return True
        threading.Event().wait(0.01)
    return False


def test_it_returns_what_the_work_returns_and_tells_what_it_tells(tmp_path: Path) -> None:
    lines: list[str] = []
    found = run(_doubled, Limits(folder=tmp_path, seconds=60), lines.append, np.arange(3), name="twice")
    assert (found.tolist(), lines) == ([0, 2, 4], ["twice of (3,)", "done"])


def test_it_runs_apart_with_its_own_folder_threads_and_cores(tmp_path: Path) -> None:
    core = min(os.sched_getaffinity(0))
    pid, folder, threads, cores = run(_where, Limits(folder=tmp_path, threads=3, cores=(core,)), print)
    assert pid != os.getpid()
    assert (folder, threads, cores) == (str(tmp_path), "3", [core])
    assert _gone(pid)


def test_what_a_recipe_refuses_stays_a_refusal(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"^there is nothing to fuse$"):
        run(_refuses, Limits(folder=tmp_path), print)


@pytest.mark.parametrize(
    ("work", "arguments", "said"),
    [
        (_fails, (), r"raised ValueError: odd shape \(test_child.py, line \d+\)"),
        (_allocates, (), r"ran out of memory: it needs more than the 1024 MiB that it may take \(Unable to allocate .*\)"),
        (_aborts_for_memory, (), "ran out of memory: .* 1024 MiB .*; its last words: terminate called .*bad_alloc'"),
        (_dies, (signal.SIGKILL,), r"was killed by the system, probably for lack of memory \(SIGKILL\)"),
        (_dies, (signal.SIGILL,), r"crashed: it used an instruction that this processor does not have \(SIGILL\)"),
        (_exits, (), "ended by itself with exit status 7; its last words: the library gives up"),
        (_returns_what_cannot_travel, (), "raised .*: .*pickle.*"),
    ],
)
def test_however_it_ends_is_told_in_words(work: Callable[..., Any], arguments: Any, said: str, tmp_path: Path) -> None:
    with pytest.raises(WorkError) as raised:
        run(work, Limits(folder=tmp_path, seconds=60, memory_bytes=1024 * MIB), print, *arguments)
    assert re.fullmatch(said, str(raised.value)), str(raised.value)


def test_a_disk_that_is_full_is_told(tmp_path: Path) -> None:
    with pytest.raises(WorkError, match=r"raised OSError: .*File too large"):
        run(_fills_the_disk, Limits(folder=tmp_path), print, tmp_path / "model.onnx")


def test_too_little_memory_to_start_with_is_told(tmp_path: Path) -> None:
    with pytest.raises(WorkError, match="cannot even start with the 1 MiB that it may take"):
        run(_fails, Limits(folder=tmp_path, memory_bytes=MIB), print)


def test_what_takes_too_long_ends_with_all_that_it_started(tmp_path: Path) -> None:
    lines: list[str] = []
    with pytest.raises(WorkError, match="took longer than the 1 s that it had"):
        run(_hangs, Limits(folder=tmp_path, seconds=1), lines.append)
    assert all(_gone(int(pid)) for pid in lines[0].split())


@pytest.mark.usefixtures("ctrl_c")
def test_ctrl_c_ends_it_and_goes_on_up(tmp_path: Path) -> None:
    lines: list[str] = []

    def interrupt(line: str) -> None:
        lines.append(line)
        threading.Thread(target=os.kill, args=(os.getpid(), signal.SIGINT)).start()

    with pytest.raises(KeyboardInterrupt):
        run(_hangs, Limits(folder=tmp_path, seconds=60), interrupt)
    assert all(_gone(int(pid)) for pid in lines[0].split())


def test_kill_minus_nine_from_outside_is_no_end_of_the_search(tmp_path: Path) -> None:
    with pytest.raises(WorkError, match="was killed by the system"):
        run(_hangs, Limits(folder=tmp_path), lambda line: os.kill(int(line.split()[0]), signal.SIGKILL))

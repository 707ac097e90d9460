"""A benchmark's run: its children and their folder, progress, and one Ctrl-C or SIGTERM that ends the children undisturbed."""

import signal
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from time import perf_counter
from types import FrameType

from benchmarks.harness.processes import BenchmarkError, Children

INTERRUPTS = (signal.SIGINT, signal.SIGTERM)
EXIT_MISSED = 1
EXIT_UNUSABLE = 2
EXIT_INTERRUPTED = 130


def run(measure: Callable[[], None]) -> int:
    """0, or what the program shall exit with because this failed or was interrupted."""
    interrupt_once()
    try:
        measure()
    except BenchmarkError as error:
        print(f"failed: {error}", file=sys.stderr)
        return EXIT_UNUSABLE
    except KeyboardInterrupt:
        print("\ninterrupted", file=sys.stderr)
        return EXIT_INTERRUPTED
    return 0


@contextmanager
def workplace(name: str) -> Iterator[tuple[Children, Path]]:
    """Children that end with the block, and a folder that goes with it."""
    with tempfile.TemporaryDirectory(prefix=f"dlproxy-{name}-") as directory, Children(Path(directory)) as children:
        yield children, Path(directory)


@contextmanager
def progress(name: str) -> Iterator[None]:
    """Says what is under way, and how long it took."""
    print(f"{name} ...", end=" ", flush=True, file=sys.stderr)
    began = perf_counter()
    yield
    print(f"{perf_counter() - began:.0f} s", file=sys.stderr)


def wrk_is_missing() -> int:
    print("wrk is not installed; on Debian: apt-get install wrk nginx-light", file=sys.stderr)
    return EXIT_UNUSABLE


def interrupt_once() -> None:
    for number in INTERRUPTS:
        signal.signal(number, _interrupt)


def _interrupt(_signal: int, _frame: FrameType | None) -> None:
    for number in INTERRUPTS:
        signal.signal(number, _ignore)  # a second Ctrl-C must not keep the children from being ended
    raise KeyboardInterrupt


def _ignore(_signal: int, _frame: FrameType | None) -> None:
    """Not SIG_IGN: Python complains when a signal that is already on its way finds its handler gone."""

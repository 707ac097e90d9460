"""A benchmark's run: its children and their folder, progress, and one Ctrl-C or SIGTERM that ends the children undisturbed."""

import signal
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from time import perf_counter
from types import FrameType

from benchmarks.harness.checks import Findings, as_text
from benchmarks.harness.machine import describe_machine, summary
from benchmarks.harness.processes import BenchmarkError, Children, Cores, choose_cores

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


def find(
    name: str, measure: Callable[[Children, Cores, Path], Iterable[Findings]], page: Callable[[Sequence[Findings], str], None]
) -> int:
    """Measures, prints what was found, and has the page made of it and the machine. What the program shall exit with."""
    cores = choose_cores()
    machine = summary(describe_machine(cores))
    print(machine)
    found: list[Findings] = []

    def work() -> None:
        with workplace(name) as (children, folder):
            found.extend(measure(children, cores, folder))

    code = run(work)
    for findings in found:
        print("\n".join([as_text(findings.checks), "", *findings.details]))
    if code:
        return code
    page(found, machine)
    return EXIT_MISSED if any(check.missed for findings in found for check in findings.checks) else 0


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

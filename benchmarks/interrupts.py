"""Ctrl-C and SIGTERM during a benchmark: one KeyboardInterrupt, after which the children are ended undisturbed."""

import signal
from types import FrameType

INTERRUPTS = (signal.SIGINT, signal.SIGTERM)
EXIT_INTERRUPTED = 130


def interrupt_once() -> None:
    for number in INTERRUPTS:
        signal.signal(number, _interrupt)


def _interrupt(_signal: int, _frame: FrameType | None) -> None:
    for number in INTERRUPTS:
        signal.signal(number, _ignore)  # a second Ctrl-C must not keep the children from being ended
    raise KeyboardInterrupt


def _ignore(_signal: int, _frame: FrameType | None) -> None:
    """Not SIG_IGN: Python complains when a signal that is already on its way finds its handler gone."""

"""What the commands share: exit codes and lines of text on the terminal. Not aware of: commands."""

import argparse
import os
import sys
from typing import TypeAlias

from dlproxy.cli.parser import Parser

OK, FAILED, USER_ERROR, INTERRUPTED = 0, 1, 2, 130

Commands: TypeAlias = "argparse._SubParsersAction[Parser]"  # the only name that argparse has for it


def say(text: str) -> None:
    """One line on stdout, at once."""
    try:
        sys.stdout.write(text + "\n")
        sys.stdout.flush()
    except BrokenPipeError:  # whoever read has gone, as head does: the command goes on without
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def complain(text: str) -> None:
    """One line on stderr, with the program's name."""
    sys.stderr.write(f"dlproxy: {text}\n")
    sys.stderr.flush()

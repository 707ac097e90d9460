"""What the commands share: exit codes and lines of text on the terminal. Not aware of: commands."""

import argparse
import sys
from typing import TypeAlias

OK, FAILED, USER_ERROR, INTERRUPTED = 0, 1, 2, 130

Commands: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"  # the only name that argparse has for it


def say(text: str) -> None:
    """One line on stdout, at once."""
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def complain(text: str) -> None:
    """One line on stderr, with the program's name."""
    sys.stderr.write(f"dlproxy: {text}\n")
    sys.stderr.flush()

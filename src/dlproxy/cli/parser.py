"""argparse with suggestions: a mistyped option or command is answered with the one that was probably meant.

Used by every command. Not aware of: what the commands do.
"""

import argparse
import sys
from collections.abc import Iterable, Sequence
from itertools import takewhile
from typing import Any

USAGE_LINES = 4


class Parser(argparse.ArgumentParser):
    """Options are spelled out: an abbreviation that works today would mean another option tomorrow."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options, allow_abbrev=False)
        self.set_defaults(parser=self)  # that of the command, for what is wrong with it
        self.alone: dict[str, str] = {}
        """Options whose value stands behind an equals sign, or not at all: what they mean then."""

    def parse(self, arguments: Sequence[str]) -> argparse.Namespace:
        """The arguments, and in `given` the options that were among them. Exits with a message on stderr if they are wrong."""
        args: argparse.Namespace
        args, unexpected = self.parse_known_args(arguments)
        if unexpected:
            args.parser.refuse(unexpected)
        if "command" not in args:
            self.error("a command is missing; dlproxy --help lists them")
        options = takewhile(lambda word: word != "--", arguments)
        args.given = frozenset(word.partition("=")[0] for word in options if word.startswith("-"))
        return args

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """As argparse has it."""
        words = list(sys.argv[1:] if args is None else args)
        end = words.index("--") if "--" in words else len(words)
        words[:end] = [f"{word}={self.alone[word]}" if word in self.alone else word for word in words[:end]]
        return super().parse_known_args(words, namespace)

    def format_usage(self) -> str:
        """Without the options where they would push what is wrong out of sight: `--help` lists them."""
        usage = super().format_usage()
        places = " ".join(str(action.metavar) for action in self._get_positional_actions() if action.metavar)
        return usage if usage.count("\n") <= USAGE_LINES else f"usage: {self.prog} [options] {places}   ({self.prog} --help)\n"

    def refuse(self, unexpected: Sequence[str]) -> None:
        """Name the first that is an option, as the others may be its values."""
        word = next((word for word in unexpected if word.startswith("-")), unexpected[0])
        option = word.partition("=")[0]
        hint = near(option, [known for action in self._actions for known in action.option_strings])
        self.error(f"unexpected argument {option}{hint and f'; {hint}'}")

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        if action.choices is not None and value not in action.choices:
            known = [str(choice) for choice in action.choices]
            kind = str(action.metavar or action.dest).lower()
            raise argparse.ArgumentError(None, f"there is no {kind} '{value}'; {near(value, known) or among(known)}")


def near(word: str, known: Iterable[str]) -> str:
    """A question that names the known word most like this one; empty if none is like it."""
    from difflib import get_close_matches

    found = get_close_matches(word, list(known), n=1)
    return f"did you mean {found[0]}?" if found else ""


def among(known: Sequence[str]) -> str:
    """The choices as a list in words."""
    return f"choose from {', '.join(known)}"

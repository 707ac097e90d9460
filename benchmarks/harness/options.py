"""Options that several benchmarks have. Called by their commands. Not aware of: what is measured."""

import argparse
import datetime
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, TypeVar

BENCHMARKS = Path(__file__).parent.parent
Number = TypeVar("Number", int, float)


class Names(argparse.Action):
    """NAME,... of `known`, in its order; may be given several times, and is all of them if it is not given."""

    def __init__(self, option_strings: Sequence[str], dest: str, known: Iterable[str], **more: Any) -> None:
        self._known = list(known)
        self._given: set[str] = set()
        super().__init__(option_strings, dest, default=self._known, metavar="NAME,...", **more)

    def __call__(self, _parser: object, namespace: argparse.Namespace, values: object, _option: str | None = None) -> None:
        wanted = [name.strip().lower() for name in str(values).split(",")]
        known = {name.lower(): name for name in self._known}
        if unknown := [name for name in wanted if name not in known]:
            raise argparse.ArgumentError(self, f"there is no {', '.join(unknown)}; there are {', '.join(self._known)}")
        self._given |= {known[name] for name in wanted}
        setattr(namespace, self.dest, [name for name in self._known if name in self._given])


def positive(kind: Callable[[str], Number]) -> Callable[[str], Number]:
    """A number of this kind above 0, as the type of an option."""

    def parse(text: str) -> Number:
        number = kind(text)
        if number <= 0:
            raise argparse.ArgumentTypeError("must be above 0")
        return number

    return parse


def options_of(name: str, about: str | None) -> argparse.ArgumentParser:
    """For `python -m benchmarks.NAME`."""
    return argparse.ArgumentParser(prog=f"python -m benchmarks.{name}", description=about)


def add_rounds(parser: argparse.ArgumentParser, *, seconds: int, repeats: int, of: str = "rounds") -> None:
    parser.add_argument("--seconds", type=positive(int), default=seconds, help=f"of each load (default {seconds})")
    parser.add_argument("--repeats", type=positive(int), default=repeats, help=f"{of} (default {repeats})")


def add_write(parser: argparse.ArgumentParser, page: Path) -> None:
    """For a benchmark whose page needs all of its parts, which `checked` sees to."""
    parser.add_argument("--write", action="store_true", help=f"write {page.name}; needs a run of everything")


def checked(parser: argparse.ArgumentParser, arguments: list[str] | None, parts: Iterable[str]) -> argparse.Namespace:
    """The options. `parts`: what `--only` chooses from."""
    options = parser.parse_args(arguments)
    if options.write and options.only != list(parts):
        parser.error("--write needs a run of everything: leave out --only")
    return options


def add_json(parser: argparse.ArgumentParser, name: str, now: datetime.datetime) -> None:
    path = BENCHMARKS / "results" / f"{name}-{now:%Y-%m-%dT%H%M%SZ}.json"
    parser.add_argument("--json", type=Path, default=path, help="where to keep the figures")


def utc_now() -> datetime.datetime:
    return datetime.datetime.now(datetime.UTC)


def minute(now: datetime.datetime) -> str:
    """As pages show it."""
    return f"{now:%Y-%m-%d %H:%M} UTC"

"""A dlproxy.toml while it is made of another server's configuration: values, and a comment for each of its settings.

Filled by the files beside it. Not aware of: which server it was, files.
"""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from dlproxy.config import ConfigError, ModelConfig
from dlproxy.config.knobs import SECTIONS
from dlproxy.config.paths import is_model_name
from dlproxy.config.pipelines import StepConfig
from dlproxy.config.table import knobs
from dlproxy.lab.toml_text import key_text, value_text

HAND, NOT_NEEDED = "by hand", "not needed"
STEP = 2  # keys of a pipeline: a step of it has more
_MOST = 400  # characters of a comment, which may quote a setting of any length
_WIDE = 120  # columns: a longer comment stands above its line


class Table:
    """[models.NAME], [server] and so on. `left_out`: it stands there as comments, for what cannot be served as it is."""

    def __init__(self, *keys: str) -> None:
        self.keys = keys
        self.left_out = False
        self.values: dict[str, Any] = {}
        self.hands = 0
        self._because: dict[str, str] = {}
        self._notes: list[str] = []
        of_step = keys[0] == "pipelines" and len(keys) > STEP
        self._knobs = knobs(StepConfig if of_step else ModelConfig if len(keys) > 1 else SECTIONS[keys[0]])
        if len(keys) > 1 and not is_model_name(keys[1]):
            raise ConfigError(f"{keys[1]!r} cannot be a model's name: use printable text without a slash")

    def set(self, knob: str, value: Any, because: str) -> None:
        """`because`: the settings that say so. A number outside of the knob's range becomes the nearest that it takes."""
        known = self._knobs.get(knob)
        if known is not None and isinstance(value, int | float) and not isinstance(value, bool):
            low, high = known.low, known.high
            if known.above and low is not None and value <= low:
                self.hand(because, f"{knob} must be above {low}")
                return
            near = max(value, low) if low is not None else value
            near = min(near, high) if high is not None else near
            if near != value:
                because, value = f"{because}, as far as {knob} goes", type(value)(near)
        self.values[knob] = value
        self._because[knob] = because

    def unneeded(self, what: str, why: str) -> None:
        """A setting that has nothing to do here."""
        self._notes.append(f"{NOT_NEEDED}: {what}: {why}")

    def hand(self, what: str, todo: str) -> None:
        """A setting without an equivalent, and what to do."""
        self.hands += 1
        self._notes.append(f"{HAND}: {what}: {todo}")

    def told(self) -> str:
        """All that the comments say."""
        return "\n".join([*self._because.values(), *self._notes])

    def lines(self) -> Iterator[str]:
        """As the file has them."""
        mark = "# " if self.left_out else ""
        yield f"{mark}[{'.'.join(map(key_text, self.keys))}]"
        for note in self._notes:
            yield comment(note)
        for knob, value in self.values.items():
            line, why = (
                f"{mark}{key_text(knob)} = {value_text(value)}",
                comment(self._because[knob]) if self._because[knob] else "",
            )
            if len(line) + len(why) + 2 > _WIDE and why:
                yield why
                why = ""
            yield f"{line}  {why}".rstrip()


class Draft:
    """`base`: the folder from which the paths of the file count."""

    def __init__(self, base: Path) -> None:
        self.base = base
        self.tables: list[Table] = []
        self.heading: list[str] = []

    def table(self, *keys: str) -> Table:
        """That one; a new one, if it is not there yet."""
        for table in self.tables:
            if table.keys == keys:
                return table
        self.tables.append(Table(*keys))
        return self.tables[-1]

    def told(self, name: str) -> str:
        """All that the comments on a model say."""
        return "\n".join(table.told() for table in self.tables if table.keys[1:2] == (name,))

    def path(self, file: str | Path) -> str:
        """As the file has to say it."""
        inside = Path(os.path.relpath(file, self.base))
        return str(file) if Path(file).is_absolute() and ".." in inside.parts else str(inside)

    @property
    def hands(self) -> int:
        """Settings that need somebody's hand."""
        return sum(table.hands for table in self.tables)

    def text(self) -> str:
        """The file."""
        lines = [comment(line) for line in self.heading]
        for table in sorted(self.tables, key=lambda table: table.keys[0] in ("models", "pipelines")):
            lines += ["", *table.lines()]
        return "\n".join(lines) + "\n"


def comment(text: str) -> str:
    """One line, whatever the text holds: files that are translated are not to be trusted."""
    words = " ".join(text.split())
    shown = "".join(letter if letter.isprintable() else repr(letter)[1:-1] for letter in words)
    return f"# {shown if len(shown) <= _MOST else shown[:_MOST] + '…'}"

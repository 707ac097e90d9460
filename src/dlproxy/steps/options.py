"""A step's options, checked against its table of them.

Called by the steps when they are made. Not aware of: any one step.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import msgspec
from msgspec import Struct

from dlproxy.config.messages import explain, what_and_where
from dlproxy.config.values import ConfigError, nearest

Table = TypeVar("Table", bound=Struct)


def checked(table: type[Table], given: Mapping[str, Any]) -> Table:
    """Raises ConfigError for what is unknown, missing or out of range."""
    known = table.__struct_fields__
    for name in given:
        if name not in known:
            hint = nearest(name, known) if known else "it takes none"
            raise ConfigError(f"options.{name}: there is no such option; {hint}", "steps")
    try:
        return msgspec.convert(given, table)
    except msgspec.ValidationError as error:
        what, name = what_and_where(error)
        place = f"options.{name}" if name else "options"
        raise ConfigError(f"{place}: {explain(what, table, name)}", "steps") from None


def lines_of(path: str, option: str) -> list[str]:
    """Of a text file, such as one name a line. Raises ConfigError."""
    try:
        return Path(path).read_text("utf-8").splitlines()
    except (OSError, ValueError) as error:
        raise ConfigError(f"options.{option}: {path} cannot be read: {error}", "steps") from None

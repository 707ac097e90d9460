"""What is read of files that are translated: bounded, and in words if it cannot be. Nothing of them is executed.

Called by the files beside it. Not aware of: what they mean.
"""

from importlib import import_module
from pathlib import Path
from typing import Any

from dlproxy.config import ConfigError

MOST_BYTES = 1 << 20  # of one configuration; those that people write have some kilobytes
MOST_YAML = 1 << 17  # characters of YAML, of which a MiB takes half a minute to read
MOST_ALIASES = 100  # of one YAML file: a few that name each other would grow without end
MOST_DEPTH = 50  # of tables in tables


def read(file: Path) -> str:
    """A text. Raises ConfigError."""
    if file.exists() and not file.is_file():
        raise ConfigError(f"{file} is no file")
    try:
        with file.open("rb") as opened:
            data = opened.read(MOST_BYTES + 1)
    except OSError as error:
        raise ConfigError(f"{file} cannot be read: {error.strerror or error}") from None
    return text_of(data, str(file))


def text_of(data: bytes, where: str) -> str:
    """Raises ConfigError for what is too long for a configuration, or no text."""
    if len(data) > MOST_BYTES:
        raise ConfigError(f"{where}: it is longer than {MOST_BYTES >> 20} MiB, which no configuration is")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise ConfigError(f"{where}:{line}: it is not UTF-8") from None


def yaml_of(text: str, where: str) -> dict[str, Any]:
    """A mapping. Raises ConfigError, which names the line."""
    if len(text) > MOST_YAML:
        raise ConfigError(f"{where}: it is longer than {MOST_YAML >> 10} KiB, which no configuration is")
    try:
        yaml: Any = import_module("yaml")
    except ImportError:
        raise ConfigError(f"{where}: to read YAML takes PyYAML: pip install pyyaml") from None
    try:
        _bounded(yaml, text, where)
        found = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError) as error:
        mark = getattr(error, "problem_mark", None)
        line = f":{mark.line + 1}" if mark is not None else ""
        what = getattr(error, "problem", None) or error
        raise ConfigError(f"{where}{line}: it is not YAML: {' '.join(str(what).split())}") from None
    if found is None:
        return {}
    if not isinstance(found, dict) or not all(isinstance(key, str) for key in found):
        raise ConfigError(f"{where}: it is no table of settings by name")
    return found


def _bounded(yaml: Any, text: str, where: str) -> None:
    """Raises ConfigError for what would take long to read, however short it is."""
    aliases = depth = 0
    for token in yaml.scan(text, Loader=yaml.SafeLoader):
        name = type(token).__name__
        aliases += name == "AliasToken"
        depth += name.endswith("StartToken") and name.startswith(("Flow", "Block"))
        depth -= name.endswith("EndToken") and name.startswith(("Flow", "Block"))
        if aliases > MOST_ALIASES or depth > MOST_DEPTH:
            what = f"{aliases} aliases" if aliases > MOST_ALIASES else f"tables in tables, {depth} deep"
            raise ConfigError(f"{where}:{token.start_mark.line + 1}: it has {what}, which no configuration has")


def whole(value: Any, what: str, where: str, least: int = 0) -> int:
    """A number, or text of one. Raises ConfigError."""
    text = str(value).strip()
    if (
        isinstance(value, bool)
        or not (text.isascii() and text.removeprefix("-").isdecimal() and len(text) < 19)
        or int(text) < least
    ):
        raise ConfigError(f"{where}: {what} is {str(value)[:60]!r}; it is a whole number, {least} or more")
    return int(text)

"""Protobuf's text format, as config.pbtxt and models.config have it, and its JSON, as plain data.

Called by triton_config.py and tfs_config.py. Not aware of: what the fields mean. Why protobuf's own parser:
docs/dependencies.md.
"""

import difflib
import re
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

import msgspec
from google.protobuf import json_format, text_format
from google.protobuf.message import Message
from msgspec import Struct

from dlproxy.config import ConfigError
from dlproxy.message import encodable

_MOST_WORDS = 300  # characters of a complaint, which may quote a line of any length

_LITERALS = re.compile(
    r"""#[^\n]*|("(?:\\.|[^"\\\n])*"?|'(?:\\.|[^'\\\n])*'?)"""
)  # comments, and strings with an end or without
_ESCAPES = re.compile(r"\\.")
_ESCAPABLE = "abfnrtv\\'\"01234567xuU"

Kind = TypeVar("Kind", bound=Struct)


def read_text(text: str, where: str, message: Any, kind: type[Kind]) -> tuple[Kind, list[str]]:
    """The `kind` that a text says, and the fields that are set and that it lacks, as "dynamic_batching.preserve_ordering".

    `message`: the class that has all fields. `where`: the file, for messages. Raises ConfigError, which names the line.
    """
    for literal in _LITERALS.finditer(text):
        wrong = [escape for escape in _ESCAPES.findall(literal[1] or "") if escape[1] not in _ESCAPABLE]
        if wrong:  # protobuf's parser in Python, unlike that of the servers, takes it as it is and warns
            number = text.count("\n", 0, literal.start()) + 1
            raise ConfigError(f"{where}:{number}: {_shortened(literal[0])}: {encodable(wrong[0])} escapes nothing")
    try:
        found = text_format.Parse(text, message())
    except text_format.ParseError as error:
        what = (str(error).partition(" : ")[2] or str(error)).removeprefix("'': ")
        line = "" if error.GetLine() is None else f":{error.GetLine()}"
        raise ConfigError(f"{where}{line}: {_shortened(what)}{_hint(what, message)}") from None
    return _converted(found, where, kind, text)


def read_json(data: Mapping[str, Any], where: str, message: Any, kind: type[Kind]) -> tuple[Kind, list[str]]:
    """The same of what JSON says. Raises ConfigError."""
    try:
        found = json_format.Parse(msgspec.json.encode(data), message())
    except (json_format.ParseError, UnicodeEncodeError) as error:
        raise ConfigError(f"{where}: {_shortened(str(error))}{_hint(str(error), message)}") from None
    return _converted(found, where, kind, "")


def line_of(text: str, word: str) -> str:
    """ ":LINE" of the first place that has a field's name or a value; empty if none does."""
    found = re.search(rf"^[^#\n]*?(?<!\w){re.escape(word)}(?!\w)", text, flags=re.MULTILINE) if word else None
    return f":{text.count(chr(10), 0, found.end()) + 1}" if found else ""


def _converted(found: Any, where: str, kind: type[Kind], text: str) -> tuple[Kind, list[str]]:
    plain = _plain(found)
    try:
        converted = msgspec.convert(plain, kind)
    except msgspec.ValidationError as error:
        what, _, place = str(error).partition(" - at ")
        field = re.findall(r"\w+", place)[-1:] or [""]
        raise ConfigError(f"{where}{line_of(text, field[0])}: {field[0]}: {what[:1].lower()}{what[1:]}") from None
    return converted, list(_lacking(plain, msgspec.to_builtins(converted), ""))


def _plain(message: Message) -> dict[str, Any]:
    """What is set; json_format would look up what an Any holds."""
    return {field.name: _plain_values(field, value) for field, value in message.ListFields()}


def _plain_values(field: Any, value: Any) -> Any:
    if isinstance(value, Mapping):
        of_values = field.message_type.fields_by_name["value"]
        return {key: _plain_values(of_values, value[key]) for key in value}
    if isinstance(value, Sequence) and not isinstance(value, str | bytes):
        return [_plain_values(field, one) for one in value]
    if field.message_type is not None:
        return _plain(value)
    names = {} if field.enum_type is None else field.enum_type.values_by_number
    return names[value].name if value in names else value


def _lacking(given: Any, kept: Any, place: str) -> list[str]:
    """Each once, however many of a list have it."""
    if isinstance(given, list):
        found = [name for one, other in zip(given, kept, strict=True) for name in _lacking(one, other, place)]
    elif isinstance(given, dict):
        found = [
            name
            for key, value in given.items()
            for name in (_lacking(value, kept[key], f"{place}{key}.") if key in kept else [f"{place}{key}"])
        ]
    else:
        found = []
    return list(dict.fromkeys(found))


def _hint(what: str, message: Any) -> str:
    """The nearest name of a field, where the complaint is of one that is unknown."""
    unknown = re.search(r'[Mm]essage type "([\w.]+)" has no field named "(\w+)"', what)
    if unknown is None:
        return ""
    fields = message.DESCRIPTOR.file.pool.FindMessageTypeByName(unknown[1]).fields_by_name
    near = difflib.get_close_matches(unknown[2], fields, n=1)
    return f" Did you mean {near[0]}?" if near else ""


def _shortened(words: str) -> str:
    return encodable(words if len(words) <= _MOST_WORDS else f"{words[:_MOST_WORDS]}…")

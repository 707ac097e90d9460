"""What a model's error says to its author: the traceback through the model's own code, as text that a log can take.

Called where a batch fails. Not aware of: batches, logs, processes.
"""

import os
from traceback import TracebackException
from types import TracebackType

import dlproxy

MOST_CHARS = 8000  # of a traceback; its beginning and its end say most
_HEAD_CHARS = 2000
_OURS = os.path.join(os.path.dirname(dlproxy.__file__), "")


def origin_of(error: BaseException) -> TracebackException:
    """Where it was raised, without the steps in dlproxy that led there, and without the errors in which runtimes wrap others.

    It keeps no frames, and with them no tensors, alive; the source is read only when it is made text, which takes longer.
    """
    while error.__cause__ is not None and _raised_by_us(error.__traceback__):
        error = error.__cause__
    start = error.__traceback__
    while start is not None and _is_ours(start):
        start = start.tb_next
    return TracebackException(type(error), error, start or error.__traceback__, lookup_lines=False, compact=True)


def as_text(origin: TracebackException | str) -> str:
    """As Python writes it, if it is not text already."""
    if isinstance(origin, str):
        return origin
    text = "".join(origin.format()).rstrip("\n")
    if len(text) > MOST_CHARS:
        left_out = len(text) - MOST_CHARS
        text = f"{text[:_HEAD_CHARS]}\n  ({left_out} characters left out)\n{text[_HEAD_CHARS - MOST_CHARS :]}"
    return "\n".join(map(printable, text.split("\n")))


def printable(text: str) -> str:
    """With whatever would move a terminal's cursor, or cannot be encoded, written as an escape; on one line."""
    return text if text.isprintable() else "".join(one if one.isprintable() else _escaped(one) for one in text)


def _escaped(character: str) -> str:
    return character.encode("unicode_escape").decode("ascii")


def _raised_by_us(step: TracebackType | None) -> bool:
    while step is not None and step.tb_next is not None:
        step = step.tb_next
    return step is not None and _is_ours(step)


def _is_ours(step: TracebackType) -> bool:
    return step.tb_frame.f_code.co_filename.startswith(_OURS)

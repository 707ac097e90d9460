"""Parts of pages in Markdown. Not aware of: what they show."""

import re
from collections.abc import Sequence
from textwrap import fill

NONE = "-"
REASON_CHARACTERS = 300
WIDTH = 128


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [list(head), ["--", *(["--:"] * (len(head) - 1))], *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def paragraph(text: str) -> str:
    """In lines of one width, wherever `text` breaks them."""
    return fill(" ".join(text.split()), WIDTH, break_long_words=False, break_on_hyphens=False)


def clean_reason(text: str) -> str:
    """One line without what belongs to a machine: addresses and absolute paths become an ellipsis."""
    line = " ".join(re.sub(r"[|`*<>\[\]]", " ", text).split())
    line = re.sub(r"\w+://\S+", "…", line)
    line = re.sub(r"(?<![\w.])/(?:[\w.+@-]+/)+[\w.+@-]*", "…", line)
    return line if len(line) <= REASON_CHARACTERS else "… " + line[-REASON_CHARACTERS:]

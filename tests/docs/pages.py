"""The pages of the documentation: fenced blocks, and the commands in those of the shell.

Called by the tests beside it. Not aware of: what a block needs to run (given.py).
"""

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[2]
PAGES = [
    path.relative_to(ROOT).as_posix()
    for path in (
        ROOT / "README.md",
        ROOT / "CONTRIBUTING.md",
        *sorted((ROOT / "docs").rglob("*.md")),
        *sorted((ROOT / "examples").rglob("*.md")),
    )
]
SHELL = ("sh", "console")


class Block(NamedTuple):
    """Of a page; `line`: of its fence."""

    page: str
    line: int
    language: str
    code: str

    @property
    def where(self) -> str:
        """For a reader of a failure."""
        return f"{self.page}:{self.line}"


def blocks(page: str, *languages: str) -> list[Block]:
    """In the order of the page; without languages: all."""
    text = (ROOT / page).read_text("utf-8")
    found = re.finditer(r"^( *)```([^\n]*)\n(.*?)^ *```$", text, flags=re.MULTILINE | re.DOTALL)
    told = [Block(page, text.count("\n", 0, each.start()) + 1, each[2].strip(), each[3]) for each in found]
    return [block for block in told if not languages or block.language in languages]


def with_blocks(*languages: str) -> list[str]:
    """The pages that have any."""
    return [page for page in PAGES if blocks(page, *languages)]


def commands(block: Block) -> Iterator[str]:
    """What is typed, as a shell takes it: those over several lines as one. Of a console, what stands after `$`."""
    typed = ""
    for line in block.code.splitlines():
        if block.language == "console" and not typed:
            if not line.startswith("$ "):
                continue
            line = line.removeprefix("$ ")
        typed = f"{typed}\n{line}" if typed else line
        if typed.endswith("\\"):
            continue
        try:
            words(typed)
        except ValueError:
            continue  # a quotation that goes on
        if words(typed):
            yield typed
        typed = ""
    assert not typed, f"{block.where}: a quotation or a line is not ended: {typed}"


def words(command: str) -> list[list[str]]:
    """Of each program that the command starts, without redirections, assignments and `nice`."""
    lexer = shlex.shlex(command.replace("\\\n", " "), posix=True, punctuation_chars=True)
    lexer.whitespace_split = True
    programs: list[list[str]] = [[]]
    tokens = iter(lexer)
    for token in tokens:
        if set(token) <= set("|&;()"):
            programs.append([])
        elif set(token) <= set("<>"):
            next(tokens)
        elif programs[-1] or not (token == "nice" or re.fullmatch(r"[A-Z_]+=\S*", token)):
            programs[-1].append(token)
    return [program for program in programs if program]


def spans(page: str) -> list[str]:
    """What stands between single backquotes, outside of blocks."""
    text = re.sub(r"^ *```.*?^ *```$", "", (ROOT / page).read_text("utf-8"), flags=re.MULTILINE | re.DOTALL)
    return [" ".join(span.split()) for span in re.findall(r"(?<!`)`([^`]+)`(?!`)", text)]

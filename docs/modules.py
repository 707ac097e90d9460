"""Writes docs/reference/modules.md: every module below src/dlproxy with the first sentence of its docstring.

Called by docs/generate.py. The rooms and what may import what: ARCHITECTURE.md.
"""

import ast
from collections.abc import Iterator
from pathlib import Path

SOURCE = Path(__file__).parent.parent / "src" / "dlproxy"
OUT = Path(__file__).with_name("reference") / "modules.md"
BEGIN = """\
# Modules

Generated from the modules' docstrings by `make docs`; do not edit. The rooms: [ARCHITECTURE.md](../../ARCHITECTURE.md).
"""


def page() -> str:
    """The whole page as Markdown."""
    parts = [BEGIN]
    for folder in sorted({path.parent for path in SOURCE.rglob("*.py")}):
        parts += [*_section(folder), ""]
    return "\n".join(parts)


def _section(folder: Path) -> Iterator[str]:
    place = folder.relative_to(SOURCE.parent).as_posix()
    yield f"## {place}/"
    yield ""
    purpose = first_sentence(folder / "__init__.py")
    if purpose:
        yield purpose
        yield ""
    paths = sorted(path for path in folder.glob("*.py") if path.name != "__init__.py")
    if paths:
        yield "| file | what it is |"
        yield "|---|---|"
    for path in paths:
        yield f"| [{path.name}](../../src/{place}/{path.name}) | {first_sentence(path).replace('|', '/')} |"


def first_sentence(path: Path) -> str:
    """Of a module's docstring, on one line; empty where there is none."""
    text = " ".join((ast.get_docstring(ast.parse(path.read_text("utf-8"))) or "").split())
    sentence, end, _ = text.partition(". ")
    return sentence + end.strip() if end else text

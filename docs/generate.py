"""Writes docs/reference/: the knobs of dlproxy.config, and the modules by docstrings: `python docs/generate.py [--check]`.

Called by `make docs` and, with --check (exit code 1 if one is out of date), by `make check`.
"""

import argparse
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints

import modules
import msgspec
from msgspec import Meta, Struct

from dlproxy.config import Config

OUT = Path(__file__).with_name("reference") / "configuration.md"
BEGIN = """\
# Configuration reference

Generated from `src/dlproxy/config.py` by `make docs`; do not edit. How to use it: [the guide](../guides/configuration.md).
"""
NAMES = {"models.NAME": "digits", "tenants.NAME": "shop"}  # in the example
TYPES = {
    str: "text",
    int: "integer",
    float: "number",
    bool: "true or false",
    dict[str, str]: "table of texts",
    list[str]: "list of texts",
}


def page() -> str:
    """The whole page as Markdown."""
    parts = [BEGIN]
    for _, struct in _sections():
        parts += [*_section(struct), ""]
    parts += ["## All of it, with the defaults", "", "```toml", *_toml(), "```", ""]
    return "\n".join(parts)


def _sections() -> Iterator[tuple[str, type[Struct]]]:
    """Every table of dlproxy.toml: its name and the struct that describes it."""
    for name, kind in get_type_hints(Config).items():
        if get_origin(kind) is dict:
            yield f"{name}.NAME", get_args(kind)[1]
        else:
            yield name, kind


def _section(struct: type[Struct]) -> Iterator[str]:
    heading, _, purpose = (struct.__doc__ or "").partition(": ")
    yield f"## {heading}"
    yield ""
    yield purpose[:1].upper() + purpose[1:]
    yield ""
    yield "| Knob | Takes | Default | What it does |"
    yield "|---|---|---|---|"
    for field, hint in _fields(struct):
        kind, meta = get_args(hint) if get_origin(hint) is Annotated else (hint, Meta())
        default = "required" if field.required else f"`{json.dumps(_default(field))}`"
        yield f"| `{field.name}` | {_takes(kind, meta)} | {default} | {_cell(meta.description or '')} |"


def _default(field: msgspec.structs.FieldInfo) -> Any:
    return field.default if field.default is not msgspec.NODEFAULT else field.default_factory()


def _fields(struct: type[Struct]) -> list[tuple[msgspec.structs.FieldInfo, Any]]:
    hints = get_type_hints(struct, include_extras=True)
    return [(field, hints[field.name]) for field in msgspec.structs.fields(struct)]


def _takes(kind: Any, meta: Meta) -> str:
    """A knob's type and range, in words."""
    if get_origin(kind) is Literal:
        return ", ".join(f"`{json.dumps(choice)}`" for choice in get_args(kind))
    name = TYPES[kind]
    if meta.pattern is not None:
        return f"{name} matching `{_cell(meta.pattern)}`"
    if meta.ge is not None and meta.le is not None:
        return f"{name}, {meta.ge} to {meta.le}"
    bounds = (("from", meta.ge), ("above", meta.gt), ("up to", meta.le), ("below", meta.lt))
    return ", ".join([name, *(f"{word} {bound}" for word, bound in bounds if bound is not None)])


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def _toml() -> Iterator[str]:
    for number, (name, struct) in enumerate(_sections()):
        if number:
            yield ""
        yield f"[{name.replace('NAME', NAMES.get(name, ''))}]"
        for field, _ in _fields(struct):
            yield f"{field.name} = {json.dumps('digits.onnx' if field.required else _default(field))}"


def main() -> int:
    parser = argparse.ArgumentParser(description="Write docs/reference: the knobs of dlproxy.config, and the modules.")
    parser.add_argument("--check", action="store_true", help="write nothing; exit code 1 if a page is out of date")
    check = parser.parse_args().check
    stale = [path for path, text in PAGES.items() if not path.exists() or path.read_text("utf-8") != text()]
    for path in stale:
        if check:
            sys.stderr.write(f"docs/reference/{path.name} is out of date; run: make docs\n")
        else:
            path.write_text(PAGES[path](), "utf-8")
    return 1 if check and stale else 0


PAGES: dict[Path, Callable[[], str]] = {OUT: page, modules.OUT: modules.page}

if __name__ == "__main__":
    sys.exit(main())

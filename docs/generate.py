"""Writes docs/reference/: the knobs, the Python API, the modules and steps by docstrings: `python docs/generate.py [--check]`.

Called by `make docs` and, with --check (exit code 1 if one is out of date), by `make check`.
"""

import argparse
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import api
import builtin_steps
import modules

from dlproxy.config.effects import needs
from dlproxy.config.knobs import SECTIONS
from dlproxy.config.pipelines import StepConfig
from dlproxy.config.reading import variable
from dlproxy.config.table import GLOBAL, Knob, knobs
from dlproxy.config.traits import Cost

OUT = Path(__file__).with_name("reference") / "configuration.md"
BEGIN = """\
# Configuration reference

Generated from `src/dlproxy/config/knobs.py` by `make docs`; do not edit. How to use it:
[the guide](../guides/configuration.md).

*Changes* says when another value takes effect: live, that is while the model serves ([how](../guides/operations.md)), at the
next load of the model, or at the next start of the server.
"""
NAMES = {"models": ".digits", "tenants": ".shop", "grants": ".shops"}
EXAMPLES = {"path": "digits.onnx", "who": "cert:shop-*"}  # of knobs that have no default  # in the example
CHANGES: dict[Cost, str] = {
    "nothing": "live",
    "relearn": "live; learns anew",
    "instances": "live, by `scale`",
    "reload": "at load",
    "restart": "at start",
}
TYPES = {
    str: "text",
    int: "integer",
    float: "number",
    bool: "true or false",
    dict[str, str]: "table of texts",
    dict[str, float]: "table of numbers",
    dict[str, Any]: "table of values",
    dict[str, StepConfig]: "table of steps",
    list[str]: "list of texts",
    list[int]: "list of integers",
}


def page() -> str:
    """The whole page as Markdown."""
    parts = [BEGIN]
    for section in SECTIONS:
        parts += [*_section(section), ""]
    parts += ["## All of it, with the defaults", "", "```toml", *_toml(), "```", ""]
    return "\n".join(parts)


def _section(section: str) -> Iterator[str]:
    struct = SECTIONS[section]
    heading, _, purpose = (struct.__doc__ or "").partition(": ")
    yield f"## {heading}"
    yield ""
    yield purpose[:1].upper() + purpose[1:]
    if section in GLOBAL:
        first = next(iter(knobs(struct)))
        yield f"Environment variables set these too: `{variable(section, first)}` sets `{first}`."
    yield ""
    yield "| Knob | Takes | Default | Changes | What it does |"
    yield "|---|---|---|---|---|"
    for knob in knobs(struct).values():
        default = "required" if knob.required else f"`{json.dumps(knob.default)}`"
        yield f"| `{knob.name}` | {_takes(knob)} | {default} | {CHANGES[knob.traits.cost]} | {_cell(_purpose(knob))} |"


def _purpose(knob: Knob) -> str:
    return "; ".join([knob.description, *(f"only with {needs(only)}" for only in knob.traits.only)])


def _takes(knob: Knob) -> str:
    """A knob's type and range, in words."""
    if knob.scale == "choice" and knob.type is not bool:
        return ", ".join(f"`{json.dumps(choice)}`" for choice in knob.choices)
    name, unit = TYPES[knob.type], f" {knob.traits.unit}" if knob.traits.unit else ""
    if knob.pattern is not None:
        return f"{name} matching `{_cell(knob.pattern)}`"
    if knob.low is None or knob.high is None:
        return name
    return f"{name}, {f'above {knob.low} up' if knob.above else knob.low} to {knob.high}{unit}"


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def _toml() -> Iterator[str]:
    sections = {name: struct for name, struct in SECTIONS.items() if struct is not StepConfig}  # no step has only defaults
    for number, (section, struct) in enumerate(sections.items()):
        if number:
            yield ""
        yield f"[{section}{NAMES.get(section, '')}]"
        for knob in knobs(struct).values():
            yield f"{knob.name} = {json.dumps(EXAMPLES[knob.name] if knob.required else knob.default)}"


def main() -> int:
    parser = argparse.ArgumentParser(
        description="Write docs/reference: the knobs of dlproxy.config, the modules, and the steps."
    )
    parser.add_argument("--check", action="store_true", help="write nothing; exit code 1 if a page is out of date")
    check = parser.parse_args().check
    stale = [path for path, text in PAGES.items() if not path.exists() or path.read_text("utf-8") != text()]
    for path in stale:
        if check:
            sys.stderr.write(f"docs/reference/{path.name} is out of date; run: make docs\n")
        else:
            path.write_text(PAGES[path](), "utf-8")
    return 1 if check and stale else 0


PAGES: dict[Path, Callable[[], str]] = {
    OUT: page,
    api.OUT: api.page,
    modules.OUT: modules.page,
    builtin_steps.OUT: builtin_steps.page,
}

if __name__ == "__main__":
    sys.exit(main())

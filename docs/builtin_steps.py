"""Writes docs/reference/steps.md: the steps that come with dlproxy, from their docstrings and tables of options.

Called by docs/generate.py.
"""

import inspect
import re
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import msgspec

from dlproxy.config.table import Knob, knobs
from dlproxy.steps import STEPS

OUT = Path(__file__).with_name("reference") / "steps.md"
BEGIN = """\
# Steps of pipelines

Generated from `src/dlproxy/steps/` by `make docs`; do not edit. How to use them: [the guide](../guides/steps.md).

`-1` is a size that is open. Inputs, options and outputs are named as in `inputs`, `options` and `STEP.OUTPUT`.
"""
TYPES: dict[Any, str] = {
    str: "text",
    int: "integer",
    float: "number",
    bool: "true or false",
    int | tuple[int, int]: "integer, or two",
    tuple[float, ...]: "list of numbers",
    dict[str, float]: "table of numbers",
}


def page() -> str:
    """The whole page as Markdown."""
    steps = {name: _class_of(place) for name, place in STEPS.items()}
    index = ["| step | what it gives |", "|---|---|"]
    index += [f"| [{name}](#{_anchor(name)}) | {_first_sentence(step)} |" for name, step in steps.items()]
    return "\n".join([BEGIN, *index, "", *(line for name, step in steps.items() for line in _section(name, step))])


def _class_of(place: str) -> Any:
    module, _, name = place.partition(":")
    return getattr(import_module(module), name)


def _anchor(name: str) -> str:
    return name.replace(".", "")


def _first_sentence(step: Any) -> str:
    return (inspect.getdoc(step) or "").replace("\n", " ").partition(". ")[0].removesuffix(".").replace("|", "\\|")


def _section(name: str, step: Any) -> Iterator[str]:
    yield from (f"## {name}", "", inspect.getdoc(step) or "", "")
    inputs = (inspect.getdoc(step.__call__) or "").replace("\n", " ")
    yield f"- inputs: {re.sub(r'(^|[.] )((?:[a-z]+, )*[a-z]+):', _quoted, inputs)}"
    yield f"- outputs: {', '.join(f'`{output}` {declared}' for output, declared in step.outputs.items())}"
    yield ""
    rows = knobs(step.Options)
    if rows:
        yield from ("| option | takes | default | what it does |", "|---|---|---|---|")
        for row in rows.values():
            default = "required" if row.required else f"`{msgspec.json.encode(row.default).decode()}`"
            yield f"| `{row.name}` | {_takes(row)} | {default} | {row.description} |"
        yield ""


def _quoted(match: re.Match[str]) -> str:
    return match[1] + ", ".join(f"`{name}`" for name in match[2].split(", ")) + ":"


def _takes(row: Knob) -> str:
    if get_origin(row.type) is Literal:
        return ", ".join(f'`"{choice}"`' for choice in get_args(row.type))
    low = "" if row.low is None else f"above {row.low}" if row.above else f"from {row.low}"
    high = "" if row.high is None else f"to {row.high}"
    limits = " ".join(part for part in (low, high) if part)
    kind = TYPES.get(row.type, "table")
    return f"{kind}, {limits}" if limits else kind

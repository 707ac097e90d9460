"""Writes docs/reference/api.md: what `dlproxy` and `dlproxy.testing` export, with signatures and docstrings.

Called by docs/generate.py. Reads source, so that every version of Python writes the same page.
Not aware of: how it is used (docs/guides/python-api.md, docs/guides/client.md).
"""

import ast
import inspect
from collections.abc import Iterator
from itertools import zip_longest
from pathlib import Path
from textwrap import dedent, indent
from typing import Any

import dlproxy
import dlproxy.testing
from dlproxy.client.ask import ListedModel
from dlproxy.client.awaited import Options
from dlproxy.instance.remote.oip_model import Metadata
from dlproxy.tensors import Answer

OUT = Path(__file__).with_name("reference") / "api.md"
BEGIN = """\
# Python API reference

Generated from the signatures and docstrings of what `dlproxy` and `dlproxy.testing` export, by `make docs`; do not edit. How to
use it: [in a program](../guides/python-api.md), [as a client](../guides/client.md), [to add a runtime](../guides/runtimes.md).
"""
ALSO = (Answer, ListedModel, Metadata, Options)
"""Not exported, but what exported ones take and give."""
LONGEST = 100

Function = ast.FunctionDef | ast.AsyncFunctionDef


def page() -> str:
    """The whole page as Markdown."""
    sections = {
        module.__name__: [getattr(module, name) for name in sorted(set(module.__all__) - {"__version__"})]
        for module in (dlproxy, dlproxy.testing)
    }
    parts = [BEGIN]
    for title, values in (sections | {"What they take and give": ALSO}).items():
        parts += [f"## {title}", ""]
        for value in values:
            parts += [f"### {value.__name__}", "", *_exported(value)]
    return "\n".join(parts)


def _exported(value: Any) -> Iterator[str]:
    node = _parsed(value)
    if isinstance(node, Function):
        yield from _block(_signature(node))
        yield from _words(node)
        return
    assert isinstance(node, ast.ClassDef)
    bases = f"({', '.join(map(ast.unparse, node.bases))})" if node.bases else ""
    methods = list(_methods(value))
    made = [_signature(each).removeprefix("def ") for each in methods if each.name == "__init__"]
    fields = [ast.unparse(each) for each in node.body if isinstance(each, ast.AnnAssign | ast.Assign)] if not made else []
    yield from _block("\n".join([f"class {node.name}{bases}", *(indent(line, "    ") for line in made + fields)]))
    yield from _words(node)
    for each in methods:
        if each.name == "__init__":
            yield from _words(each)
        else:
            yield from _block(("@property\n" if _is_property(each) else "") + _signature(each))
            yield from _words(each)


def _parsed(value: Any) -> ast.stmt:
    return ast.parse(dedent(inspect.getsource(value))).body[0]


def _methods(kind: type) -> Iterator[Function]:
    """Its own and those of classes of ours that it inherits: the initialiser, if it is written out, then what is public."""
    found: dict[str, Function] = {}
    for each in reversed([each for each in kind.__mro__ if each.__module__.startswith("dlproxy")]):
        body = _parsed(each).body  # type: ignore[attr-defined]
        found |= {node.name: node for node in body if isinstance(node, Function)}
    for name in sorted(found, key=lambda name: name != "__init__"):
        if name == "__init__" or not name.startswith("_"):
            yield found[name]


def _is_property(node: Function) -> bool:
    return any(isinstance(each, ast.Name) and each.id == "property" for each in node.decorator_list)


def _signature(node: Function) -> str:
    """On one line, or with a line for each parameter."""
    kind = "async def" if isinstance(node, ast.AsyncFunctionDef) else "def"
    gives = f" -> {ast.unparse(node.returns)}" if node.returns else ""
    parameters = [each for each in _parameters(node.args) if each != "self"]
    line = f"{kind} {node.name}({', '.join(parameters)}){gives}"
    if len(line) <= LONGEST:
        return line
    return "\n".join([f"{kind} {node.name}(", *(f"    {each}," for each in parameters), f"){gives}"])


def _parameters(of: ast.arguments) -> Iterator[str]:
    plain = [*of.posonlyargs, *of.args]
    for each, default in reversed(list(zip_longest(reversed(plain), reversed(of.defaults)))):
        yield _parameter(each, default)
    if of.vararg or of.kwonlyargs:
        yield f"*{ast.unparse(of.vararg) if of.vararg else ''}"
    for each, default in zip(of.kwonlyargs, of.kw_defaults, strict=True):
        yield _parameter(each, default)
    if of.kwarg:
        yield f"**{ast.unparse(of.kwarg)}"


def _parameter(each: ast.arg, default: ast.expr | None) -> str:
    return ast.unparse(each) + (f" = {ast.unparse(default)}" if default else "")


def _block(code: str) -> Iterator[str]:
    yield from ("```py", code, "```", "")


def _words(node: Function | ast.ClassDef) -> Iterator[str]:
    if text := ast.get_docstring(node):
        yield from (text, "")

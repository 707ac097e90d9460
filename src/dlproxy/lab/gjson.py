"""A condition of KServe's graphs, which is a path in GJSON, as a case of the step `choose`: one element compared with a value.

Called by inference_graph.py. Not aware of: graphs, steps. Syntax: github.com/tidwall/gjson, SYNTAX.md.
"""

import re
from collections.abc import Mapping
from math import prod
from typing import Any, Literal

from dlproxy.config import ConfigError
from dlproxy.config.values import nearest

_QUERY = re.compile(r"\[@this\]\.#\(\s*(?P<path>[^=!<>%]+?)\s*(?P<test>==|!=|<=|>=|<|>|=)\s*(?P<value>.+?)\s*\)")
_V1 = {"request": "instances", "response": "predictions"}  # of the two protocols, what bodies hold their tensors in
_V2 = {"request": "inputs", "response": "outputs"}


def case_of(condition: str, specs: Mapping[str, str], body: Literal["request", "response"], place: str) -> dict[str, Any]:
    """`specs`: of the tensors that the body has, in their order. Raises ConfigError for what compares no element of them."""
    query = _QUERY.fullmatch(condition.strip())
    if query is None:
        raise ConfigError(
            f'{place}: the condition {condition!r} compares no element of a tensor, as [@this].#({_V1[body]}.0=="dog") does'
        )
    try:
        name, at = _element(query["path"].split("."), specs, body)
    except ConfigError as error:
        raise ConfigError(f"{place}: the condition {condition!r}: {error}") from None
    test = "==" if query["test"] == "=" else query["test"]
    return {"input": name, "at": at, "test": test, "value": _literal(query["value"])}


def _element(path: list[str], specs: Mapping[str, str], body: Literal["request", "response"]) -> tuple[str, list[int]]:
    """The tensor, and the place in it."""
    names = list(specs)
    match path:
        case [holder, number, "data", element] if holder == _V2[body] and number.isdecimal() and element.isdecimal():
            if int(number) >= len(names):
                raise ConfigError(f"there is no {holder}.{number}; there are {', '.join(names)}")
            name = names[int(number)]
            return name, _unravelled(int(element), _sizes(specs[name]), name)
        case [holder, row, *rest] if holder == _V1[body] and row.isdecimal():
            named = [rest.pop(0)] if rest and not rest[0].isdecimal() else names
            if len(named) != 1 or not all(map(str.isdecimal, rest)):
                raise ConfigError(f"it does not say which of {', '.join(names)} it is about")
            if named[0] not in specs:
                raise ConfigError(f"there is no '{named[0]}'; {nearest(named[0], names)}")
            at = [int(row), *map(int, rest)]
            if len(at) != len(_sizes(specs[named[0]])):
                raise ConfigError(f"'{named[0]}' is {specs[named[0]]}, so this is a list or nothing, and no value")
            return named[0], at
    raise ConfigError(
        f"it is about '{path[0]}' and not about an element of {_V1[body]} or {_V2[body]}, which tensors come from"
    )


def _sizes(spec: str) -> list[str]:
    return [size for size in spec.partition("[")[2].rstrip("]").split(",") if size]


def _unravelled(number: int, sizes: list[str], name: str) -> list[int]:
    """Where the element with this number is, in the order of rows."""
    if not all(size.isdecimal() for size in sizes[1:]):
        raise ConfigError(f"which element of '{name}' number {number} is depends on its sizes, {', '.join(sizes)}")
    inner = [prod(map(int, sizes[axis + 1 :])) for axis in range(len(sizes))]
    at = []
    for size in inner:
        place, number = divmod(number, size)
        at.append(place)
    return at


def _literal(text: str) -> str | float | bool:
    """As GJSON reads what a query compares with: in quotes, a number, a truth, or a bare word."""
    if re.fullmatch(r'"[^"]*"', text):
        return text[1:-1]
    if text in ("true", "false"):
        return text == "true"
    return float(text) if re.fullmatch(r"-?[0-9]+(\.[0-9]+)?", text) else text

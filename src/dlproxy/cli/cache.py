"""`dlproxy cache`: what the models of a running server remember, how much that spares them, and how they are made to forget.

Not aware of: HTTP (control_port.py).
"""

import argparse
from collections.abc import Callable, Iterator
from itertools import chain
from typing import TYPE_CHECKING, Any, TypeAlias

from dlproxy.cli.models import add_options, shown, size, table
from dlproxy.cli.terminal import Commands

if TYPE_CHECKING:
    from dlproxy.cli.control_port import ControlPort
    from dlproxy.cli.told import CacheState

    Ask: TypeAlias = Callable[[ControlPort, argparse.Namespace], Any]
    View: TypeAlias = Callable[[ControlPort, Any, argparse.Namespace], Iterator[str]]

HEADINGS = ("model", "version", "cache", "answers", "memory", "hits", "joined", "misses", "bypassed", "hit ratio")


def add_to(commands: Commands) -> None:
    """Declare the command and its actions."""
    about = "Show what the models of a running server remember, and how often that was an answer; make them forget it."
    cache = commands.add_parser("cache", help="show and clear the result cache of a running server", description=about)
    add_options(cache, control="http://127.0.0.1:8002", json=False)
    cache.set_defaults(command=_cache, ask=_show, view=_table, model=None)
    actions = cache.add_subparsers(title="actions (default: show)", metavar="ACTION")

    def action(name: str, ask: "Ask", view: "View", help_text: str) -> None:
        parser = actions.add_parser(name, help=help_text, description=help_text[:1].upper() + help_text[1:] + ".")
        add_options(parser, control=argparse.SUPPRESS, json=argparse.SUPPRESS)  # else they would undo what stands before
        parser.add_argument("model", metavar="MODEL", nargs="?", help="by default every model")
        parser.set_defaults(ask=ask, view=view)

    action("show", _show, _table, "what is remembered, and how often that was an answer")
    action("clear", _clear, _cleared, "forget the answers; what is answered from now on is remembered again")


def _cache(args: argparse.Namespace) -> int:
    return shown(args, lambda port, told: args.view(port, told, args))


def _show(port: "ControlPort", args: argparse.Namespace) -> Any:
    return port.cache(args.model or "")


def _clear(port: "ControlPort", args: argparse.Namespace) -> Any:
    return port.clear_cache(args.model or "")


def _table(port: "ControlPort", told: Any, args: argparse.Namespace) -> Iterator[str]:
    caches = port.caches(told)
    if caches:
        return chain(table([HEADINGS, *map(_row, caches)]), _remarks(caches))
    which = "no model remembers answers" if args.model is None else f"{args.model} remembers no answers"
    return iter([f'{which}: the knob cache says which do, as cache = "on"'])


def _row(cache: "CacheState") -> tuple[str, ...]:
    return (
        cache.name,
        cache.version,
        cache.state,
        str(cache.entries),
        f"{size(cache.bytes)} of {size(cache.budget_bytes)}",
        *map(str, (cache.hits, cache.joined, cache.misses, cache.bypassed)),
        "" if cache.hit_ratio is None else f"{cache.hit_ratio:.1%}",
    )


def _remarks(caches: "list[CacheState]") -> Iterator[str]:
    for cache in caches:
        if not cache.budget_bytes:
            yield f"{cache.name} remembers nothing: the result cache leaves 256 MiB of the memory free, and no more is left"
        if (redis := cache.redis) is not None:
            state = "connected" if redis.connected else f"not connected ({redis.trouble})"
            state += ", not asked for a while" if redis.circuit == "open" else ""
            yield f"{cache.name} shares answers by {redis.address}, {state}: {redis.found} found there, {redis.stored} stored"


def _cleared(port: "ControlPort", told: Any, args: argparse.Namespace) -> Iterator[str]:
    count = port.forgotten(told)
    yield f"{count} answer{'' if count == 1 else 's'} forgotten"

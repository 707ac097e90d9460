"""`dlproxy top`: what the models of a running server do now, as a table in the terminal that changes every second.

Not aware of: HTTP (control_port.py), where the numbers come from (wire/dashboard/).
"""

import argparse
import os
import select
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from time import monotonic, time_ns
from typing import TYPE_CHECKING, Any

from dlproxy.cli.models import add_options, duration, shown, size, table
from dlproxy.cli.terminal import INTERRUPTED, OK, USER_ERROR, Commands, complain

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

    from dlproxy.cli.control_port import ControlPort

EVERY_S = 1.0
MOST_WORDS = 60  # of what is the matter with a model
LEAST = {"trouble": 12, "model": 12}  # characters of the widest columns, however narrow the terminal is
DROPPED = ("state", "p50", "batch", "objective", "queue", "used", "trouble")  # where it is too narrow
GAP = 2
FRAME = 4  # lines around the rows: what the server does, headings, and what keys do
HEADINGS = ("model", "state", "req/s", "p50", "p99", "batch", "queue", "used", "objective", "trouble")
Told = Mapping[str, Any]
SORTS: dict[str, Callable[[Told], Any]] = {
    "rate": lambda model: -(model.get("rate") or 0.0),
    "p99": lambda model: -(model.get("p99_s") or 0.0),
    "queue": lambda model: -(model.get("queued") or 0),
    "used": lambda model: -(model.get("utilisation") or 0.0),
    "name": lambda model: (model["name"], model["version"]),
}


def add_to(commands: Commands) -> None:
    """Declare the command and its options."""
    top = commands.add_parser(
        "top",
        help="watch what the models of a running server do",
        description="Watch what the models of a running server do, in a table that changes every second. Keys: s sorts it by "
        "something else, q ends. Where there is no terminal, or with --once, it is printed once.",
    )
    add_options(top, control="http://127.0.0.1:8002", json=False)
    top.add_argument("--once", action="store_true", help="print it once, as plain text")
    top.add_argument(
        "--sort", choices=SORTS, default="rate", metavar="ORDER", help=f"{', '.join(SORTS)} (default: %(default)s)"
    )
    top.set_defaults(command=_top, ask=lambda port, args: port.dashboard())


def _top(args: argparse.Namespace) -> int:
    if args.once or args.json or not sys.stdout.isatty():
        return shown(args, lambda port, told: lines(told, args.sort))
    from rich.console import Console

    from dlproxy.cli.control_port import ControlError, ControlPort
    from dlproxy.cli.credentials import credentials_of
    from dlproxy.config import ConfigError

    try:
        _watch(ControlPort(args.control, credentials_of(args)), args.sort, Console())
    except (ConfigError, ControlError) as error:
        complain(str(error))
        return USER_ERROR
    except KeyboardInterrupt:
        complain("interrupted")
        return INTERRUPTED
    return OK


def _watch(port: "ControlPort", sort: str, console: "Console") -> None:
    """Until somebody presses q. Raises ControlError if the first answer is none; later ones are waited for."""
    from rich.live import Live

    from dlproxy.cli.control_port import ControlError

    told, problem = port.dashboard(), ""
    with _keys() as key, Live(console=console, screen=True, auto_refresh=False) as live:
        again_at = monotonic() + EVERY_S
        while True:
            live.update(view(told, sort, problem, console.size), refresh=True)
            pressed = key(max(again_at - monotonic(), 0.0))
            if pressed == "q":
                return
            if pressed == "s":
                by = list(SORTS)
                sort = by[(by.index(sort) + 1) % len(by)]
            elif monotonic() >= again_at:
                again_at = monotonic() + EVERY_S
                try:
                    told, problem = port.dashboard(), ""
                except ControlError as error:
                    problem = f"{error}; it is asked again every second"


@contextmanager
def _keys() -> Iterator[Callable[[float], str]]:
    """What waits so many seconds for a key. Where none can be read, it only waits: Ctrl-C ends."""
    try:
        import termios
        import tty

        descriptor = sys.stdin.fileno()
        before = termios.tcgetattr(descriptor)
        tty.setcbreak(descriptor)
    except (ImportError, OSError, ValueError):  # Windows; or standard input is no terminal, or closed
        yield _wait
        return
    try:
        yield lambda seconds: _pressed(descriptor, seconds)
    finally:
        termios.tcsetattr(descriptor, termios.TCSADRAIN, before)


def _pressed(descriptor: int, seconds: float) -> str:
    """A terminal that has gone is as q."""
    if not select.select([descriptor], [], [], seconds)[0]:
        return ""
    read = os.read(descriptor, 1)
    return read.decode("latin-1").lower() if read else "q"


def _wait(seconds: float) -> str:
    from threading import Event

    Event().wait(seconds)
    return ""


# What is shown


def lines(told: Told, sort: str) -> Iterator[str]:
    """As plain text."""
    yield _server(told)
    rows = _sorted(told, sort)
    yield from table([HEADINGS, *map(cells, rows)]) if rows else ["no models"]


def view(told: Told, sort: str, problem: str, room: tuple[int, int]) -> "RenderableType":
    """For a terminal of so many columns and lines."""
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    rows = _sorted(told, sort)
    fitting = rows[: max(room[1] - FRAME - bool(problem), 1)]
    columns = _columns([HEADINGS, *map(cells, fitting)], room[0])
    shown = Table(box=None, pad_edge=False, header_style="bold", padding=(0, GAP, 0, 0))
    for heading in columns:
        numeric = heading in ("req/s", "p50", "p99", "batch", "queue", "used")
        shown.add_column(heading, justify="right" if numeric else "left", no_wrap=True, overflow="ellipsis")
    for number, model in enumerate(fitting):
        style = "red" if _is_bad(model) else "yellow" if model.get("alarm") else "" if model.get("rate") else "dim"
        shown.add_row(*(Text(column[number]) for column in columns.values()), style=style)
    more = f"   {len(rows) - len(fitting)} models more" if len(fitting) < len(rows) else ""
    foot = Text(f"sorted by {sort}   s: by another   q: end{more}", "dim")
    head = [Text(_server(told), "bold", no_wrap=True), *([Text(problem, "red", no_wrap=True)] if problem else [])]
    return Group(*head, shown, foot)


def _columns(rows: Sequence[Sequence[str]], width: int) -> dict[str, list[str]]:
    """By their headings those that there is room for, at the cost of the less important ones and of long words at both ends."""
    headings, *models = rows
    columns = {heading: [model[number] for model in models] for number, heading in enumerate(headings)}
    columns = {heading: column for heading, column in columns.items() if heading == headings[0] or any(column)}
    for heading in ("", *DROPPED):
        columns.pop(heading, None)
        widths = {heading: max(map(len, (heading, *column))) for heading, column in columns.items()}
        kept = {heading: min(width, LEAST.get(heading, width)) for heading, width in widths.items()}
        room = width - sum(kept.values()) - GAP * len(kept)
        if room >= 0:
            break
    for heading in filter(columns.get, LEAST):
        most = min(widths[heading], kept[heading] + max(room, 0))
        room -= most - kept[heading]
        columns[heading] = [cell if len(cell) <= most else f"{cell[: most - 1]}…" for cell in columns[heading]]
    return columns


def cells(model: Told) -> tuple[str, ...]:
    """Of one row. What is not known, as of a model that does nothing, is empty."""
    from dlproxy.instance.tracebacks import printable

    objective = model.get("objective")
    matter = model.get("alarm") or (model["reason"] if model["state"] != "up" else "")
    goal = model.get("batch_goal")
    return (
        printable(f"{model['name']}/{model['version']}"),
        model["state"],
        _number(model.get("rate")),
        _seconds(model.get("p50_s")),
        _seconds(model.get("p99_s")),
        "" if goal is None else f"{_number(model.get('batch_rows')) or '-'} of {goal}",
        _number(model.get("queued")),
        _percent(model.get("utilisation")),
        "" if objective is None else f"{_percent(objective['met'], 2)} in {_seconds(objective['seconds'])}".strip(),
        printable(matter)[:MOST_WORDS],
    )


def _is_bad(model: Told) -> bool:
    objective = model.get("objective")
    late = objective is not None and objective["met"] is not None and objective["met"] < objective["share"]
    return late or model["state"] in ("down", "failed") or bool(model.get("failures_rate"))


def _sorted(told: Told, sort: str) -> Sequence[Told]:
    models = sorted(told["models"].values(), key=SORTS["name"])
    return models if sort == "name" else sorted(models, key=SORTS[sort])


def _server(told: Told) -> str:
    server, up_s = told["server"], time_ns() / 1e9 - told["server"]["started_at"]
    count = len(told["models"])
    return (
        f"dlproxy {server['version']}   up {duration(max(up_s, 0.0))}   {'ready' if server['ready'] else 'not ready'}   "
        f"{count} model{'s' * (count != 1)}   {server['cpu'] or 0.0:.2f} of {server['cores']} cores   "
        f"{size(server['memory_bytes'])}   {server['connections']} connections"
    )


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _seconds(value: float | None) -> str:
    if value is None:
        return ""
    return f"{value * 1e6:.3g} µs" if value < 1e-3 else f"{value * 1e3:.3g} ms" if value < 1.0 else f"{value:.3g} s"


def _percent(value: float | None, digits: int = 0) -> str:
    return "" if value is None else f"{value:.{digits}%}"

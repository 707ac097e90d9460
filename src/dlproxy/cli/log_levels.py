"""`dlproxy logs`: how much a running server logs, and a change of that. Not aware of: HTTP (control_port.py), how it logs."""

import argparse
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from dlproxy.cli.models import add_options, shown, table
from dlproxy.cli.terminal import Commands

if TYPE_CHECKING:
    from dlproxy.cli.control_port import ControlPort


def add_to(commands: Commands) -> None:
    """Declare the command and its options."""
    about = "Show how severe what a running server logs is at least, or change that: `dlproxy logs debug dlproxy.serve`."
    logs = commands.add_parser("logs", help="show and change how much a running server logs", description=about)
    add_options(logs, control="http://127.0.0.1:8002", json=False)
    logs.add_argument(
        "level", metavar="LEVEL", nargs="?", help="debug, info, warning, error, or default: as the server was started"
    )
    logs.add_argument(
        "logger", metavar="LOGGER", nargs="?", default="", help="a part of the server, as lines name it; by default all"
    )
    logs.set_defaults(command=_logs, ask=_asked)


def _logs(args: argparse.Namespace) -> int:
    return shown(args, _lines)


def _asked(port: "ControlPort", args: argparse.Namespace) -> Any:
    return port.logs() if args.level is None else port.change_logs(args.level, args.logger)


def _lines(port: "ControlPort", told: Any) -> Iterator[str]:
    state = port.log_levels(told)
    yield from table([("logger", "level"), ("all", state.level), *state.loggers.items()])

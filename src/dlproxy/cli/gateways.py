"""`dlproxy gateways`: how each process of a server with several is, and a restart of all, one after the other.

Not aware of: HTTP (control_port.py), how gateways are kept.
"""

import argparse
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from dlproxy.cli.models import add_options, shown, table
from dlproxy.cli.terminal import Commands

if TYPE_CHECKING:
    from dlproxy.cli.control_port import ControlPort


def add_to(commands: Commands) -> None:
    """Declare the command and its options."""
    about = (
        "Show the processes of a server that was started with --gateways, or replace each by a new one without losing a "
        "request: `dlproxy gateways restart` takes up a new version of dlproxy and of its packages."
    )
    gateways = commands.add_parser("gateways", help="show and restart a server's processes", description=about)
    add_options(gateways, control="http://127.0.0.1:8002", json=False)
    gateways.add_argument("action", nargs="?", choices=("restart",), help="replace them one by one by new ones")
    gateways.set_defaults(command=_gateways, ask=_asked)


def _gateways(args: argparse.Namespace) -> int:
    return shown(args, _lines)


def _asked(port: "ControlPort", args: argparse.Namespace) -> Any:
    return port.gateways(restart=args.action == "restart")


def _lines(port: "ControlPort", told: Any) -> Iterator[str]:
    rows = [("gateway", "process", "state", "for", "restarts")]
    for one in port.gateway_states(told):
        state = one.state if one.adopter is None else f"{one.state}; gateway {one.adopter} accepts its connections"
        since = "" if one.for_s is None else f"{one.for_s:.0f} s"
        rows.append((str(one.number), str(one.pid or ""), state, since, str(one.restarts)))
    yield from table(rows)

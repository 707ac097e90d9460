"""`dlproxy monitor`: what Prometheus and Grafana need to watch servers. Not aware of: what is in it (lab/monitoring)."""

import argparse

from dlproxy.cli.terminal import OK, Commands, say


def add_to(commands: Commands) -> None:
    """Declare the command and its options."""
    monitor = commands.add_parser(
        "monitor",
        help="print alerts for Prometheus and a board for Grafana",
        description="Print what Prometheus and Grafana need to watch dlproxy: `dlproxy monitor alerts > dlproxy.rules.yml`.",
    )
    what = monitor.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for name, told in (("alerts", "a rule file for Prometheus"), ("board", "a board for Grafana, as JSON to import")):
        one = what.add_parser(name, help=told, description=f"Print {told}.")
        one.set_defaults(command=_monitor, what=name)


def _monitor(args: argparse.Namespace) -> int:
    from dlproxy.lab.monitoring.alerts import rules
    from dlproxy.lab.monitoring.board import board

    say((rules if args.what == "alerts" else board)().rstrip("\n"))
    return OK

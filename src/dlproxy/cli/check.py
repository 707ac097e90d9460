"""`dlproxy check`: whether `dlproxy serve` with the same arguments would serve, and what would run where; nothing is served.

Not aware of: how a model is loaded or a port bound.
"""

import argparse
import logging
from pathlib import Path
from typing import TYPE_CHECKING

from dlproxy.cli.serve import KnobHelp, add_options, configured, describe
from dlproxy.cli.terminal import OK, USER_ERROR, Commands, complain, say

if TYPE_CHECKING:
    from dlproxy.config import Config
    from dlproxy.serve.server import Server


def add_to(commands: Commands) -> None:
    """Declare the command and its options: those of `serve`."""
    check = commands.add_parser(
        "check",
        help="say whether a configuration would serve, and what would run where",
        description="Read the configuration, try the ports, load every model as `dlproxy serve` with the same arguments would, "
        "say what would run where and everything that stands against it, and end. Nothing is served.",
        formatter_class=KnobHelp,
    )
    add_options(check)
    check.set_defaults(command=_check)


def _check(args: argparse.Namespace) -> int:
    import asyncio

    from dlproxy.cli import logs
    from dlproxy.config import ConfigError
    from dlproxy.serve.event_loop import loop_factory
    from dlproxy.serve.server import Server

    if args.config is None and not args.models and Path("dlproxy.toml").is_file():
        args.config = Path("dlproxy.toml")
    try:
        config = configured(args)
        logs.set_up(logging.DEBUG if args.verbose else logging.CRITICAL, as_json=args.log_format == "json")
        with asyncio.Runner(loop_factory=loop_factory()) as runner:
            show = (lambda server: None) if args.quiet else _show
            problems = runner.run(Server(_apart(config)).rehearse(show))
    except ConfigError as error:
        problems = [str(error)]
    for problem in problems:
        complain(problem)
    if problems:
        return USER_ERROR
    say("nothing stands against it")
    return OK


def _apart(config: "Config") -> "Config":
    """The same, without what others would see of it."""
    import msgspec

    server = msgspec.structs.replace(config.server, store="", event_log="", audit_log="")
    autopilot = msgspec.structs.replace(config.autopilot, record="")
    return msgspec.structs.replace(config, server=server, autopilot=autopilot)


def _show(server: "Server") -> None:
    for model in server.models:
        for line in describe(model):
            say(line)
    if server.models.shares_cores:
        say("batches of these models take turns on the cores (arbiter)")
    if (count := server.gateways) != 1:
        say(f"gateways   {count}, each of which runs this")

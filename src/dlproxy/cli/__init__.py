"""The command line, a file for each command. They parse, call, print, and import late.

Exit codes: 0 done, 1 the run itself failed, 2 the user can mend it (message on stderr, no traceback), 130 interrupted.
"""

import sys
from collections.abc import Sequence

from dlproxy import __version__
from dlproxy.cli import (
    autopilot,
    bench,
    cache,
    cascade,
    casestudy,
    check,
    completion,
    compress,
    demo,
    evaluate,
    gateways,
    infer,
    init,
    keys,
    learn,
    log_levels,
    migrate,
    models,
    monitor,
    place,
    record,
    replay,
    report,
    serve,
    simulate,
    split,
    top,
    tune,
    why,
)
from dlproxy.cli.parser import Parser
from dlproxy.cli.terminal import INTERRUPTED, USER_ERROR

__all__ = ["USER_ERROR", "main"]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code."""
    try:
        args = whole_parser().parse(sys.argv[1:] if arguments is None else arguments)
        code: int = args.command(args)
    except KeyboardInterrupt:
        return INTERRUPTED
    return code


def whole_parser() -> Parser:
    """With every command."""
    parser = Parser(prog="dlproxy", description="A self-tuning inference proxy for deep-learning models.")
    parser.add_argument("--version", action="version", version=f"dlproxy {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND")
    for command in (
        serve,
        init,
        migrate,
        check,
        models,
        infer,
        keys,
        autopilot,
        cache,
        top,
        gateways,
        log_levels,
        why,
        demo,
        casestudy,
        bench,
        evaluate,
        simulate,
        tune,
        compress,
        cascade,
        split,
        learn,
        monitor,
        place,
        report,
        record,
        replay,
        completion,
    ):
        command.add_to(commands)
    return parser

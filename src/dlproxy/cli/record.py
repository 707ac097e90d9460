"""`dlproxy record`: what the dashboard of a running server is told, kept to be looked at later with `dlproxy replay`.

Not aware of: HTTP (control_port.py), what is in the file (lab/recording).
"""

import argparse
from contextlib import suppress
from pathlib import Path
from time import monotonic, sleep
from typing import TYPE_CHECKING

from dlproxy.cli.credentials import add_credentials, credentials_of
from dlproxy.cli.durations import span
from dlproxy.cli.terminal import OK, USER_ERROR, Commands, complain, say

if TYPE_CHECKING:
    from collections.abc import Callable

    from dlproxy.cli.control_port import ControlPort
    from dlproxy.lab.recording.recording import Writer

AGAIN_S = 1.0  # after the server has gone


def add_to(commands: Commands) -> None:
    """Declare the command and its options."""
    record = commands.add_parser(
        "record",
        help="record the dashboard of a running server",
        description="Record what the dashboard of a running server shows, second by second, until Ctrl-C or for some time. "
        "dlproxy replay shows it again: for a colleague, or to look at an incident as it came.",
    )
    record.add_argument("file", metavar="FILE", type=Path, help="what to write, such as sale.jsonl")
    record.add_argument("--for", dest="length", metavar="10m", help="how long (default: until Ctrl-C)")
    record.add_argument(
        "--control", default="http://127.0.0.1:8002", metavar="URL", help="the control port (default http://127.0.0.1:8002)"
    )
    add_credentials(record)
    record.set_defaults(command=_record)


def _record(args: argparse.Namespace) -> int:
    from dlproxy.cli.control_port import ControlError, ControlPort
    from dlproxy.config import ConfigError
    from dlproxy.lab.recording.recording import Writer
    from dlproxy.lab.report.result import ResultError

    try:
        length_s = span(args.length, "--for")
        port = ControlPort(args.control, credentials_of(args))
        port.dashboard()  # an address that is wrong is said before anything is written
        writer = Writer(args.file, port.url)
        say(f"recording {port.url} into {args.file}; Ctrl-C ends it")
        until = None if length_s is None else monotonic() + length_s
        with suppress(KeyboardInterrupt):
            follow(port, writer, lambda: until is not None and monotonic() >= until)
        with suppress(KeyboardInterrupt):
            finish(port, writer)
    except (ConfigError, ControlError, ResultError) as error:
        complain(str(error))
        return USER_ERROR
    say(f"{writer.frames} seconds; look at them with: dlproxy replay {args.file}")
    return OK


def follow(port: "ControlPort", writer: "Writer", over: "Callable[[], bool]") -> None:
    """Until it is over; a server that goes away is waited for. Raises ResultError."""
    from dlproxy.cli.control_port import ControlError

    while not over():
        with suppress(ControlError):
            for event, data in port.feed():
                writer.frame(event, data)
                if over():
                    return
        sleep(AGAIN_S)


def finish(port: "ControlPort", writer: "Writer") -> None:
    """With the requests that were slow or failed, if the server is still there. Raises ResultError."""
    from dlproxy.cli.control_port import ControlError

    requests = []
    with suppress(ControlError):
        requests = port.slow_requests(kind="all", limit="2000")
    writer.close(requests)

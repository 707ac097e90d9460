"""`dlproxy report`: the last hour of a running server as one HTML page.

Not aware of: HTTP (control_port.py), what the page looks like (lab/report/hour.py).
"""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from dlproxy.cli.credentials import add_credentials, credentials_of
from dlproxy.cli.terminal import OK, USER_ERROR, Commands, complain, say

if TYPE_CHECKING:
    from dlproxy.cli.control_port import ControlPort
    from dlproxy.lab.report.hour import Hour

MOST_MODELS = 50  # whose hour is asked for, the most asked of them
LONGEST_MIN = 60  # that a server keeps


def add_to(commands: Commands) -> None:
    """Declare the command and its options."""
    report = commands.add_parser(
        "report",
        help="write what a running server did in the last hour as one HTML page",
        description="Write what a running server did in the last hour as one HTML page without scripts: charts of each model, "
        "what happened, and which requests were slow and why. For a colleague, or to look at an incident later.",
    )
    report.add_argument("--out", metavar="FILE", type=Path, default=Path("dlproxy-report.html"), help="default: %(default)s")
    report.add_argument(
        "--minutes", metavar="N", type=_minutes, default=LONGEST_MIN, help="how far back (default 60, the most)"
    )
    report.add_argument(
        "--control", default="http://127.0.0.1:8002", metavar="URL", help="the control port (default http://127.0.0.1:8002)"
    )
    add_credentials(report)
    report.set_defaults(command=_report)


def _minutes(text: str) -> int:
    if not (text.isascii() and text.isdecimal() and 1 <= int(text) <= LONGEST_MIN):
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 1 to {LONGEST_MIN}")
    return int(text)


def _report(args: argparse.Namespace) -> int:
    from dlproxy.cli.control_port import ControlError, ControlPort
    from dlproxy.config import ConfigError
    from dlproxy.lab.report.hour import save_html
    from dlproxy.lab.report.result import ResultError, ensure_writable

    try:
        ensure_writable(args.out)
        headline = save_html(hour_of(ControlPort(args.control, credentials_of(args)), args.minutes), args.out)
    except (ConfigError, ControlError, ResultError) as error:
        complain(str(error))
        return USER_ERROR
    say(headline)
    say(f"written to {args.out}")
    return OK


def hour_of(port: "ControlPort", minutes: int) -> "Hour":
    """What it told of so many minutes. Raises ControlError."""
    from dlproxy.lab.report.hour import Hour

    asked = port.asked()
    histories = [port.history(one["name"], one["version"], minutes * 60) for one in asked[:MOST_MODELS]]
    now = port.dashboard()  # the last, so that nothing is newer
    requests = port.slow_requests(limit="1000")
    return Hour(where=port.url, minutes=minutes, now=now, histories=histories, requests=requests)

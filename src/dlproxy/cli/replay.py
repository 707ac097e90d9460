"""`dlproxy replay`: a recording of a dashboard, shown in the browser as it happened. Not aware of: what is in the file."""

import argparse
import math
from pathlib import Path

from dlproxy.cli.terminal import OK, USER_ERROR, Commands, complain, say

PORT = 8004


def add_to(commands: Commands) -> None:
    """Declare the command and its options."""
    replay = commands.add_parser(
        "replay",
        help="show a recorded dashboard in the browser",
        description="Show what dlproxy record has recorded in the dashboard's page, as it happened: with a slider, pauses and "
        "another speed.",
    )
    replay.add_argument("file", metavar="FILE", type=Path, help="as dlproxy record wrote it")
    replay.add_argument("--speed", metavar="N", type=_speed, default=1.0, help="times as fast (default 1)")
    replay.add_argument("--host", default="127.0.0.1", metavar="ADDRESS", help="to listen on (default %(default)s)")
    replay.add_argument("--port", type=int, default=PORT, metavar="N", help="to listen on (default %(default)s; 0: any)")
    replay.set_defaults(command=_replay)


def _speed(text: str) -> float:
    from dlproxy.lab.recording.app import LEAST_SPEED, MOST_SPEED

    try:
        speed = float(text)
    except ValueError:
        speed = math.nan
    if not LEAST_SPEED <= speed <= MOST_SPEED:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from {LEAST_SPEED:g} to {MOST_SPEED:g}")
    return speed


def _replay(args: argparse.Namespace) -> int:
    import asyncio

    from dlproxy.hosts import authority
    from dlproxy.lab.recording.app import play
    from dlproxy.lab.recording.player import Player
    from dlproxy.lab.recording.recording import load
    from dlproxy.lab.report.result import ResultError
    from dlproxy.serve.listeners import PortError, bind

    try:
        recording = load(args.file)
        listener = bind(args.host, args.port, "port")
    except (ResultError, PortError) as error:
        complain(str(error))
        return USER_ERROR
    with listener:
        listener.listen()  # the server gets to it later, and what is said must be true
        player = Player(recording, speed=args.speed)
        host, port = listener.getsockname()[:2]
        say(f"replay     http://{authority(host, port)}/   {player.length_s:.0f} s of {recording.where}; Ctrl-C stops")
        asyncio.run(play(recording, player, listener))
    return OK

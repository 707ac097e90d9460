"""`dlproxy demo`: the packaged digits model under load. Not aware of: how it is served or loaded (lab/demo.py)."""

import argparse

from dlproxy.cli.terminal import Commands


def add_to(commands: Commands) -> None:
    """Declare the command and its options."""
    demo = commands.add_parser(
        "demo",
        help="serve a small digits model and send it real images",
        description="Serve the packaged digits model, send it handwritten digits, and show what it read and how fast.",
    )
    demo.add_argument("--seconds", type=float, default=10.0, help="how long to send requests (default 10)")
    demo.add_argument("--concurrency", type=int, default=64, help="clients that send at the same time (default 64)")
    demo.add_argument("--exit", action="store_true", help="exit after the load instead of serving on")
    demo.set_defaults(command=_demo)


def _demo(args: argparse.Namespace) -> int:
    from dlproxy.lab.demo import run

    return run(seconds=args.seconds, concurrency=args.concurrency, keep_serving=not args.exit)

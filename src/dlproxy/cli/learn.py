"""`dlproxy learn`: train a network by the file that describes it, with several seeds, and see what it is worth.

Not aware of: what is trained, and how (lab/learn).
"""

import argparse
import sys
from math import inf
from pathlib import Path
from typing import TYPE_CHECKING

from dlproxy.cli.terminal import OK, USER_ERROR, Commands, complain, say

if TYPE_CHECKING:
    from dlproxy.lab.learn.parallel.workers import Parallel


def add_to(commands: Commands) -> None:
    """Declare the command and its options."""
    learn = commands.add_parser(
        "learn",
        help="train networks, those that dlproxy itself uses among them, ready to be served",
        description="Train a network by the file that describes it. It leaves as an ONNX model that dlproxy serves.",
    )
    what = learn.add_subparsers(title="commands", metavar="COMMAND", required=True)
    listed = what.add_parser("list", help="what can be trained")
    listed.set_defaults(command=_list)
    train = what.add_parser(
        "train",
        help="train one of them, or your own",
        description="Train with several seeds, one after the other. The same command again goes on where it was interrupted.",
    )
    train.add_argument("name", metavar="NAME", help="as `dlproxy learn list` has it, or a TOML file")
    train.add_argument("--out", type=Path, metavar="FOLDER", help="for models, figures and curves (default: learnt/NAME)")
    train.add_argument("--seeds", type=int, metavar="N", help="how many, instead of what the file says")
    train.add_argument("--threads", type=int, default=1, metavar="N", help="to compute with (default 1)")
    several = train.add_argument_group("several workers, for networks")
    several.add_argument("--workers", type=int, metavar="N", help="how many compute gradients, each with so many threads")
    several.add_argument("--asynchronous", action="store_true", help="each at its own pace, by a parameter server on Ray")
    several.add_argument("--staleness", type=int, metavar="S", help="of those: steps that one may be ahead (default: any)")
    several.add_argument(
        "--ray", metavar="ADDRESS", help="on a Ray cluster: its address, auto for the one that runs here, or local to start one"
    )
    train.set_defaults(command=_train)


def _list(args: argparse.Namespace) -> int:
    from dlproxy.lab.learn.experiment import ours

    found = list(ours())
    width = max(len(experiment.name) for experiment in found)
    for experiment in found:
        say(f"{experiment.name:<{width}}  {experiment.about}")
    return OK


def _train(args: argparse.Namespace) -> int:
    from msgspec import structs

    from dlproxy.lab.learn.experiment import LearnError, find
    from dlproxy.lab.learn.train import train

    try:
        for option in ("seeds", "threads"):
            if getattr(args, option) is not None and getattr(args, option) < 1:
                raise LearnError(f"--{option} {getattr(args, option)} is out of range: give 1 or more")
        experiment = find(args.name)
        if args.seeds is not None:
            experiment = structs.replace(experiment, seeds=args.seeds)
        out = args.out or Path("learnt") / experiment.name
        result = train(experiment, out, threads=args.threads, tell=_progress, parallel=_parallel(args))
    except LearnError as error:
        complain(str(error))
        return USER_ERROR
    figures = result.figures()
    width = max(24, *map(len, figures))
    for name, (mean, half) in figures.items():
        say(f"{name:<{width}} {mean:.4g}" + (f" ± {half:.2g}" if half else ""))
    say(f"written: {out}{_served(out)}")
    return OK


def _parallel(args: argparse.Namespace) -> "Parallel | None":
    """Raises LearnError."""
    from dlproxy.lab.learn.experiment import LearnError
    from dlproxy.lab.learn.parallel.workers import Parallel

    if args.workers is None:
        for option in ("asynchronous", "staleness", "ray"):
            if getattr(args, option) not in (None, False):
                raise LearnError(f"--{option} is for several workers: give --workers 2, say")
        return None
    if args.workers < 1:
        raise LearnError(f"--workers {args.workers} is out of range: give 1 or more")
    if args.staleness is not None and not args.asynchronous:
        raise LearnError("--staleness is for workers at their own pace: give --asynchronous, too")
    if args.staleness is not None and args.staleness < 0:
        raise LearnError(f"--staleness {args.staleness} is out of range: give 0 or more")
    staleness = inf if args.staleness is None else args.staleness
    return Parallel(workers=args.workers, asynchronous=args.asynchronous, staleness=staleness, ray=args.ray or "")


def _served(out: Path) -> str:
    """How; where there is a configuration, by it: a model that is meant to be guarded is not to be served without."""
    configuration, model = out / "seed-1" / "dlproxy.toml", out / "model.onnx"
    if configuration.exists():
        return f"   (dlproxy serve --config {configuration})"
    return f"   (dlproxy serve {model})" if model.exists() else ""


def _progress(text: str) -> None:
    sys.stderr.write(f"  {text}\n")
    sys.stderr.flush()

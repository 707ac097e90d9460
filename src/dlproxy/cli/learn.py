"""`dlproxy learn`: train a network by the file that describes it, with several seeds, and see what it is worth.

Not aware of: what is trained, and how (lab/learn).
"""

import argparse
import sys
from pathlib import Path

from dlproxy.cli.terminal import OK, USER_ERROR, Commands, complain, say


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
        result = train(experiment, out, threads=args.threads, tell=_progress)
    except LearnError as error:
        complain(str(error))
        return USER_ERROR
    figures = result.figures()
    width = max(24, *map(len, figures))
    for name, (mean, half) in figures.items():
        say(f"{name:<{width}} {mean:.4g}" + (f" ± {half:.2g}" if half else ""))
    say(f"written: {out}{_served(out)}")
    return OK


def _served(out: Path) -> str:
    """How; where there is a configuration, by it: a model that is meant to be guarded is not to be served without."""
    configuration, model = out / "seed-1" / "dlproxy.toml", out / "model.onnx"
    if configuration.exists():
        return f"   (dlproxy serve --config {configuration})"
    return f"   (dlproxy serve {model})" if model.exists() else ""


def _progress(text: str) -> None:
    sys.stderr.write(f"  {text}\n")
    sys.stderr.flush()

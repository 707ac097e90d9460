"""`dlproxy cascade`: a cheap model in front of a dear one, if that is shown to pay and to stay right, ready to be served.

Not aware of: how it is measured, learned and judged (compress/).
"""

import argparse
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from dlproxy.cli.terminal import OK, USER_ERROR, Commands, complain, say

if TYPE_CHECKING:
    from dlproxy.compress.cascade import Asked, Report

BY = ("margin", "probability", "entropy")
RACE_S = 5.0


def add_to(commands: Commands) -> None:
    """Declare the command and its options."""
    cascade = commands.add_parser(
        "cascade",
        help="ask a dear model only where a cheap one is unsure, and prove that it stays right",
        usage="dlproxy cascade CHEAP DEAR --data FILE [options]",
        description="Learn from examples how sure a cheap model must be for its answer to stand, so that hardly anything is "
        "lost beside asking the dear one always; judge that by examples which the threshold was learned without; and write a "
        "pipeline that serves it, if it pays. The examples must be ones that neither model was trained on.",
    )
    for name, what in (("cheap", "the model that is asked first"), ("dear", "the one that is asked where that is unsure")):
        cascade.add_argument(name, metavar=name.upper(), help=f"{what}: a file that dlproxy serves, or NAME=PATH")
    cascade.add_argument(
        "--data", type=Path, required=True, metavar="FILE", help=".npz with an array for each input, or a folder of them"
    )
    cascade.add_argument(
        "--labels", default="", metavar="NAME", help="the array in it that says what is right (default: label)"
    )
    cascade.add_argument("--metric", default="", metavar="NAME", help="accuracy, or agreement (default without labels)")
    cascade.add_argument(
        "--output", default="", metavar="NAME", help="the output with the classes' scores (default: the first)"
    )
    cascade.add_argument("--max-loss", default="0.5%", metavar="LOSS", help="of the metric, that may be lost (default 0.5%%)")
    cascade.add_argument(
        "--confidence", choices=BY, default=BY[0], help="what says how sure the cheap model is (default margin)", metavar="KIND"
    )
    cascade.add_argument("--target", default="1.15x", metavar="2x", help="times the throughput (default 1.15x)")
    cascade.add_argument("--batch", type=int, default=32, metavar="N", help="rows of the larger of two batches (default 32)")
    cascade.add_argument("--threads", type=int, default=1, metavar="N", help="that a model computes with (default 1)")
    cascade.add_argument("--seed", type=int, default=0, metavar="N", help="of whatever is drawn at random (default 0)")
    cascade.add_argument("--name", default="cascade", help="of the pipeline (default: cascade)")
    cascade.add_argument("--out", type=Path, metavar="FILE", help="the configuration to write (default: NAME.toml)")
    cascade.add_argument("--json", action="store_true", help="print the report as JSON instead of text")
    cascade.set_defaults(command=_cascade)


def _cascade(args: argparse.Namespace) -> int:
    import msgspec

    from dlproxy.compress import CompressError
    from dlproxy.compress.cascade import configuration, find
    from dlproxy.config import ConfigError

    try:
        asked, out = _asked(args), args.out or Path(f"{args.name}.toml")
        if out.exists():
            raise CompressError(f"{out} is there already: name another file (--out)")
        with tempfile.TemporaryDirectory(prefix="dlproxy-cascade-") as folder:
            found = find(asked, folder=Path(folder), tell=_progress)
        if args.json:
            say(msgspec.json.format(msgspec.json.encode(found.report), indent=1).decode())
        else:
            for line in lines(found.report):
                say(line)
        if found.report.verdict.status == "accepted":
            _write(out, configuration(found, out.parent, args.name))
            if not args.json:
                say(f"written: {out}   (dlproxy serve --config {out})")
    except (CompressError, ConfigError) as error:
        complain(str(error))
        return USER_ERROR
    return OK


def _asked(args: argparse.Namespace) -> "Asked":
    """Raises CompressError and ConfigError."""
    from dlproxy.cli.model_names import add_models
    from dlproxy.compress import CompressError
    from dlproxy.compress.cascade import Asked
    from dlproxy.compress.gate import bar_of
    from dlproxy.config.paths import is_model_name

    models = add_models({}, [args.cheap, args.dear], "", command="cascade")
    if len(models) != 2:
        raise CompressError(f"both models are named '{next(iter(models))}': give them names, NAME=PATH")
    if args.name in models or not is_model_name(args.name):
        raise CompressError(f"--name {args.name}: give the pipeline a name of its own, without a slash")
    for option in ("batch", "threads"):
        if getattr(args, option) < 1:
            raise CompressError(f"--{option} {getattr(args, option)} is out of range: give 1 or more")
    bar = bar_of(target=args.target, max_loss=args.max_loss)
    if bar.most_file_bytes or bar.most_memory_bytes:
        raise CompressError(f"--target {args.target}: a cascade takes more memory than its dear model; write how much quicker")
    cheap, dear = ((name, Path(versions[-1].path)) for name, versions in models.items())
    return Asked(
        cheap=cheap,
        dear=dear,
        data=args.data,
        labels=args.labels,
        metric=args.metric,
        output=args.output,
        bar=bar,
        by=args.confidence,
        rows=args.batch,
        threads=args.threads,
        race_s=RACE_S,
        seed=args.seed,
    )


def lines(report: "Report") -> Iterator[str]:
    """The report for a terminal."""
    from dlproxy.compress.gate import amount

    metric = report.metric.name
    if report.threshold is None:
        yield f"What {report.cheap} answers may never stand; {report.dear} is asked all rows"
    else:
        threshold = f"from a {report.by} of {report.threshold:.4g} on"
        yield f"What {report.cheap} answers stands {threshold}; {report.dear} is asked {report.escalated:.1%} of the rows"
    yield ""
    width = max(len(name) for name in (report.cheap, report.dear, "cascade"))
    yield f"{report.dear:<{width}}  {amount(metric, report.cascade.original)} {metric}"
    cascade = [] if report.threshold is None else [("cascade", report.cascade)]
    for name, one in [(report.cheap, report.alone), *cascade]:
        bounds = f"{amount(metric, one.low)} to {amount(metric, one.high)}"
        yield f"{name:<{width}}  {amount(metric, one.candidate)}, loses {amount(metric, one.loss)} ({bounds})"
    yield ""
    for speed, gain in zip(report.speeds, report.gains, strict=True):
        yield (
            f"batch {speed.rows}: {report.cheap} {speed.candidate_s * 1e3:.3g} ms, {report.dear} {speed.original_s * 1e3:.3g} "
            f"ms; {gain.ratio:.2f} times the throughput of {report.dear} ({gain.low:.2f} to {gain.high:.2f}) expected"
        )
    yield ""
    yield f"{report.verdict.status}: {'; '.join(report.verdict.reasons)}"
    yield from (f"note: {note}" for note in report.notes)
    yield (
        f"Judged by cross-validation: {len(report.folds)} times a threshold was learned without a part of the "
        f"{report.cascade.examples:,} examples, and that part judged by it. That neither model was trained on them is yours to "
        "see to."
    )


def _write(out: Path, text: str) -> None:
    """Raises CompressError."""
    from dlproxy.compress import CompressError

    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(text, "utf-8")
    except OSError as error:
        raise CompressError(f"cannot write {out}: {error.strerror}") from None


def _progress(line: str) -> None:
    sys.stderr.write(f"{line}\n")
    sys.stderr.flush()

"""`dlproxy compress`: smaller and quicker versions of a model, of which those are kept that are shown to pay and to stay right.

Not aware of: how they are made, measured and judged (compress/), how a report looks (lab/report).
"""

import argparse
import signal
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dlproxy.cli.durations import budget
from dlproxy.cli.terminal import INTERRUPTED, OK, USER_ERROR, Commands, complain, say

if TYPE_CHECKING:
    from collections.abc import Mapping

    from dlproxy.compress.recipe import Recipe
    from dlproxy.compress.search import Asked, Found

LEAST_BUDGET_S = 10.0
RACE_SHARE = 0.01  # of the budget, for each of two batch sizes of each candidate
LEAST_RACE_S, MOST_RACE_S = 0.5, 5.0


def add_to(commands: Commands) -> None:
    """Declare the command and its options."""
    compress = commands.add_parser(
        "compress",
        help="make a model smaller and quicker, and prove that it stays right",
        usage="dlproxy compress MODEL --data FILE [options]\n       dlproxy compress --list",
        description="Try recipes (clean-up, fusion, quantisation, pruning, distillation) on a model, each in a process of its "
        "own; measure what they make beside the original on this machine, on examples that no recipe has seen; and keep what "
        "is shown to be quicker and to lose no more than allowed, with a configuration that serves it. The original is never "
        "written to. Needs: pip install 'dlproxy[compress]'.",
    )
    compress.add_argument(
        "model", nargs="?", metavar="MODEL", help="a model file, NAME=PATH, or file.py:make, which returns a torch module"
    )
    compress.add_argument("--list", action="store_true", help="say which recipes there are, what they do, and what they need")
    examples = compress.add_argument_group("examples")
    examples.add_argument("--data", type=Path, metavar="FILE", help=".npz with an array for each input, or a folder of them")
    examples.add_argument(
        "--labels", default="", metavar="NAME", help="the array in it that says what is right (default: label)"
    )
    examples.add_argument(
        "--held-out", metavar="FILE|SHARE", help="examples to judge by: other data, or a share of --data (default: 0.3 or more)"
    )
    bar = compress.add_argument_group("what is asked of a result")
    bar.add_argument("--metric", default="", metavar="NAME", help="accuracy, f1, r2, agreement, cosine or file.py:function")
    bar.add_argument("--output", default="", metavar="NAME", help="the model's output that is judged (default: its first)")
    bar.add_argument("--max-loss", default="1%", metavar="LOSS", help="of the metric, that may be lost (default 1%%)")
    bar.add_argument(
        "--target",
        default="",
        metavar="2x",
        help="times as quick (default 1.15x), or size=1MB, or memory=64MB, or both of those",
    )
    way = compress.add_argument_group("how it is looked for")
    way.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="RECIPE.OPTION=VALUE",
        help="of a recipe, such as prune-channels.ratio=0.3",
    )
    way.add_argument("--recipes", default="", metavar="A,B", help="these, in this order (default: those that need no training)")
    way.add_argument("--all", action="store_true", help="those that train, too")
    way.add_argument("--batch", type=int, default=32, metavar="N", help="rows of the larger of two batches (default 32)")
    way.add_argument("--threads", type=int, default=1, metavar="N", help="that a model computes with (default 1)")
    way.add_argument("--edge", action="store_true", help="measure as on a small device: one core, one thread")
    way.add_argument("--budget", default="10m", metavar="TIME", help="time to take, about (default 10m)")
    way.add_argument("--seed", type=int, default=0, metavar="N", help="of whatever is drawn at random (default 0)")
    out = compress.add_argument_group("results")
    out.add_argument("--out", type=Path, metavar="DIR", help="folder for what is kept (default: NAME-compressed)")
    out.add_argument("--sign", type=Path, metavar="KEY", help="sign artifacts with this private key (dlproxy models keygen)")
    out.add_argument("--json", action="store_true", help="print the report as JSON instead of a table")
    compress.set_defaults(command=_compress)


def _compress(args: argparse.Namespace) -> int:
    from dlproxy.compress import CompressError
    from dlproxy.compress.recipes import RECIPES
    from dlproxy.config import ConfigError

    if args.list:
        for line in listed(RECIPES):
            say(line)
        return OK
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)  # what was found and what is temporary is seen to
    try:
        return compressed(args, RECIPES)
    except (CompressError, ConfigError) as error:
        complain(str(error))
        return USER_ERROR
    finally:
        signal.signal(signal.SIGTERM, before)


def compressed(args: argparse.Namespace, table: "Mapping[str, Recipe]") -> int:
    """Search the table's recipes, write what was found and show it; the exit code. Raises CompressError and ConfigError."""
    from dlproxy.compress.publish import check, publish
    from dlproxy.compress.search import search
    from dlproxy.lab.report.compression import html

    name, asked = _asked(args, table)
    key = _key(args.sign)
    out = args.out or Path(f"{name}-compressed")
    check(out)
    with tempfile.TemporaryDirectory(prefix="dlproxy-compress-") as folder:
        try:
            found = search(asked, table=table, folder=Path(folder), tell=_progress)
        except KeyboardInterrupt:
            complain("interrupted before anything was found; the model is as it was")
            return INTERRUPTED
        _show(found, as_json=args.json)
        publish(found, out, name=name, model=asked.model, page=html(found.report), key=key)
    if not args.json:
        serve = f"   (dlproxy serve --config {out / 'dlproxy.toml'})" if found.artifacts else ""
        say(f"written: {out}{serve}")
    return INTERRUPTED if found.interrupted else OK


def listed(table: "Mapping[str, Recipe]") -> list[str]:
    """The recipes, a line each."""
    from dlproxy.compress.search import missing

    width = max(map(len, table), default=0)
    remarks = {
        name: ["learns from labels"] * recipe.trains
        + [f"options: {', '.join(recipe.options)}"] * bool(recipe.options)
        + [missing(recipe)]
        for name, recipe in table.items()
    }
    said = {name: "; ".join(filter(None, parts)) for name, parts in remarks.items()}
    return [f"{name:<{width}}  {recipe.what}" + (f" ({said[name]})" if said[name] else "") for name, recipe in table.items()]


def _asked(args: argparse.Namespace, table: "Mapping[str, Recipe]") -> "tuple[str, Asked]":
    """The model's name, and what is asked. Raises CompressError and ConfigError."""
    from dlproxy.cli.model_names import add_models
    from dlproxy.compress import CompressError
    from dlproxy.compress.gate import bar_of
    from dlproxy.compress.search import Asked, choose, options
    from dlproxy.cores import allowed_cores

    if args.data is None and args.model is not None:
        raise CompressError("--data is missing: give examples as an .npz file, with labels where there are any")
    (name, versions), *_ = add_models({}, [args.model] if args.model else [], "", command="compress --data DATA.npz").items()
    if args.recipes and args.all:
        raise CompressError("--recipes names those to try, --all means all of them: give one of the two")
    for option in ("batch", "threads"):
        if getattr(args, option) < 1:
            raise CompressError(f"--{option} {getattr(args, option)} is out of range: give 1 or more")
    if args.edge and args.threads != 1:
        raise CompressError("--edge means one thread: omit --threads")
    budget_s = budget(args.budget, LEAST_BUDGET_S)
    named = [part.strip() for part in args.recipes.split(",") if part.strip()]
    recipes = choose(table, named, every=args.all)
    return name, Asked(
        model=versions[-1].path,
        data=args.data,
        recipes=recipes,
        options=options(table, args.set, recipes),
        bar=bar_of(target=args.target, max_loss=args.max_loss),
        labels=args.labels,
        held_out=_held_out(args.held_out),
        metric=args.metric,
        output=args.output,
        batch=args.batch,
        threads=args.threads,
        cores=tuple(allowed_cores()[:1]) if args.edge else (),
        budget_s=budget_s,
        race_s=min(max(budget_s * RACE_SHARE, LEAST_RACE_S), MOST_RACE_S),
        seed=args.seed,
    )


def _held_out(text: str | None) -> "Path | float":
    """Raises CompressError."""
    from dlproxy.compress import CompressError

    if text is None:
        return 0.0
    share = text.strip()
    try:
        found = float(share.removesuffix("%")) / (100.0 if share.endswith("%") else 1.0)
    except ValueError:
        return Path(text)
    if not 0.0 < found < 1.0:
        raise CompressError(f"--held-out {text} is no share of the examples: give one between 0 and 1, or other data")
    return found


def _key(file: Path | None) -> Any:
    """Raises CompressError."""
    from dlproxy.compress import CompressError
    from dlproxy.instance.integrity.ciphers import KeyFormatError, private_key

    try:
        return None if file is None else private_key(file.read_bytes())
    except OSError as error:
        raise CompressError(f"--sign {file}: {error.strerror}") from None
    except KeyFormatError as error:
        raise CompressError(f"--sign {file}: {error}") from None


def _progress(line: str) -> None:
    sys.stderr.write(f"{line}\n")
    sys.stderr.flush()


def _show(found: "Found", *, as_json: bool) -> None:
    """Before it is written, so that a folder that cannot be written loses nothing."""
    import msgspec

    from dlproxy.lab.report.compression import lines

    if as_json:
        say(msgspec.json.format(msgspec.json.encode(found.report), indent=1).decode())
        return
    for line in lines(found.report):
        say(line)
    if found.interrupted:
        say("interrupted: this is what was found until then")

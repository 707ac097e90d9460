"""`dlproxy split`: a model in parts that work side by side, in processes of one core each, with the pipeline that serves them.

Not aware of: how it is measured, cut and proved (compress/split).
"""

import argparse
import os
import signal
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from dlproxy.cli.terminal import INTERRUPTED, OK, USER_ERROR, Commands, complain, say

if TYPE_CHECKING:
    from dlproxy.compress.split.plan import Layout
    from dlproxy.compress.split.search import Asked, Found

TRANSFERS = ("fp16", "int8")
MIB = 2**20
MOST_PARTS = 64


def add_to(commands: Commands) -> None:
    """Declare the command and its options."""
    split = commands.add_parser(
        "split",
        help="cut a model into stages that run side by side, and prove that answers stay equal",
        usage="dlproxy split MODEL.onnx --stages K [options]\n       dlproxy split MODEL.onnx --cores N [options]",
        description="Measure what each node of an ONNX model takes on this machine, cut it where the slowest stage and what is "
        "handed over take least, measure the stages, compare their answers with the model's, and write them with a "
        "configuration that serves them as a pipeline. Needs: pip install 'dlproxy[compress]'.",
    )
    split.add_argument("model", metavar="MODEL", help="an ONNX file, or NAME=PATH")
    how = split.add_argument_group("how it is cut")
    how.add_argument("--stages", type=int, default=0, metavar="K", help="stages, one after the other")
    how.add_argument("--tensor-parts", type=int, default=0, metavar="P", help="processes that share each large product")
    how.add_argument("--cores", type=int, default=0, metavar="N", help="choose replicas, stages and parts for so many cores")
    how.add_argument(
        "--for",
        dest="aim",
        choices=("throughput", "latency"),
        default="throughput",
        metavar="AIM",
        help="what --cores chooses by: throughput (default) or latency",
    )
    how.add_argument("--batch", type=int, default=1, metavar="N", help="rows that go through the stages together (default 1)")
    how.add_argument(
        "--core-mb", type=int, default=0, metavar="MIB", help="weights that the processes of one core may hold, in MiB"
    )
    how.add_argument(
        "--data", type=Path, metavar="FILE", help=".npz with an array for each input (default: made-up inputs of its shapes)"
    )
    sent = split.add_argument_group("what goes between stages")
    sent.add_argument("--transfer", choices=TRANSFERS, default="", metavar="TYPE", help="fewer bits: fp16 or int8")
    sent.add_argument(
        "--max-error", type=float, metavar="E", help="of the largest value, that --transfer may change answers by"
    )
    split.add_argument("--target", default="1.15x", metavar="2x", help="times as quick as one process (default 1.15x)")
    split.add_argument("--out", type=Path, metavar="DIR", help="folder for the parts (default: NAME-split)")
    split.set_defaults(command=_split)


def _split(args: argparse.Namespace) -> int:
    from dlproxy.compress import CompressError
    from dlproxy.config import ConfigError
    from dlproxy.instance.runtime import ModelError

    before = signal.signal(signal.SIGTERM, signal.default_int_handler)  # what is temporary is seen to
    try:
        return _made(args)
    except (CompressError, ConfigError, ModelError) as error:
        complain(str(error))
        return USER_ERROR
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != "onnx":
            raise
        complain("splitting needs the package onnx: pip install 'dlproxy[compress]'")
        return USER_ERROR
    except KeyboardInterrupt:
        complain("interrupted; nothing was written")
        return INTERRUPTED
    finally:
        signal.signal(signal.SIGTERM, before)


def _made(args: argparse.Namespace) -> int:
    asked = _asked(args)
    from dlproxy.compress import CompressError
    from dlproxy.compress.split.configuration import configuration
    from dlproxy.compress.split.search import find

    out = args.out or Path(f"{asked.name}-split")
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        raise CompressError(f"{out} is there already: give the name of a new folder (--out)")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}-") as beside:
            made = Path(beside) / "new"
            made.mkdir()
            found = find(asked, Path(beside), made, _progress)
            for line in lines(found):
                say(line)
            (made / "dlproxy.toml").write_text(configuration(found, out), "utf-8")
            os.replace(made, out)
    except OSError as error:
        raise CompressError(f"cannot write {out}: {error.strerror or error}") from None
    say(f"written: {out}   (dlproxy serve --config {out / 'dlproxy.toml'})")
    return OK


def _asked(args: argparse.Namespace) -> "Asked":
    """Raises CompressError and ConfigError."""
    from dlproxy.cli.model_names import add_models
    from dlproxy.compress import CompressError
    from dlproxy.compress.gate import bar_of

    if not (args.stages or args.tensor_parts or args.cores):
        raise CompressError("say how to cut: --stages K, --tensor-parts P, or --cores N for whatever is best on so many")
    for option, value, most in (
        ("stages", args.stages, MOST_PARTS),
        ("tensor-parts", args.tensor_parts, MOST_PARTS),
        ("cores", args.cores, MOST_PARTS),
        ("batch", args.batch, 1 << 16),
        ("core-mb", args.core_mb, 1 << 20),
    ):
        if not (option == "batch") <= value <= most:
            raise CompressError(f"--{option} {value} is out of range: give 1 to {most}")
    if args.stages == 1 and args.tensor_parts < 2 and not args.cores:
        raise CompressError("--stages 1 is the model as it is: give 2 or more")
    if bool(args.transfer) != (args.max_error is not None):
        raise CompressError("--transfer and --max-error go together: fewer bits change answers, so say by how much they may")
    if args.max_error is not None and not 0.0 < args.max_error < 1.0:
        raise CompressError(f"--max-error {args.max_error:g} is out of range: give a share of the largest value, such as 0.01")
    bar = bar_of(target=args.target, max_loss="1%")
    if bar.most_file_bytes or bar.most_memory_bytes:
        raise CompressError(
            f"--target {args.target}: parts are no smaller than the model; write how much quicker, such as 1.5x"
        )
    (name, versions), *_ = add_models({}, [args.model], "", command="split MODEL.onnx").items()
    path = Path(versions[-1].path)
    if not path.is_file():
        raise CompressError(f"{path} is not a file: give a model as an ONNX file")
    from dlproxy.compress.split.search import EQUAL, Asked

    return Asked(
        model=path,
        name=name,
        data=args.data,
        stages=args.stages,
        parts=args.tensor_parts,
        cores=args.cores,
        latency=args.aim == "latency",
        rows=args.batch,
        transfer=args.transfer,
        most_error=args.max_error or EQUAL,
        least=bar.least_ratio,
        most_weights=args.core_mb * MIB,
    )


def lines(found: "Found") -> Iterator[str]:
    """The report for a terminal."""
    asked = found.asked
    node, share = found.slowest
    yield (
        f"{asked.name}: {found.nodes} nodes, {_ms(found.whole_s)} of one core for a batch of {asked.rows}, "
        f"{found.weights / MIB:.1f} MiB of weights"
    )
    yield f"the longest node, {node}, takes {share:.0%} of it: no cut can be more than {1 / share:.1f} times as quick"
    if len(found.layouts) > 1:
        yield ""
        yield from _considered(found.layouts, found.layout, asked.rows)
    if found.stages:
        yield ""
        width = max(len(stage.name) for stage in found.stages)
        for stage in found.stages:
            yield (
                f"{stage.name:<{width}}  {stage.nodes:>4} nodes, {_ms(stage.seconds)} measured and {_ms(stage.handing_s)} of "
                f"handing over, takes {stage.bytes_in / 1024:,.1f} KiB a row, {stage.weights / MIB:.1f} MiB of weights"
            )
        if found.tied:
            yield f"weights that several parts have, {found.tied / MIB:.1f} MiB, are stored once"
        off = f"differ by {found.error:.1e} of the largest value at most"
        if asked.transfer:
            allowed = f"{asked.most_error:g} is allowed"
            yield f"answers, with {asked.transfer} between stages, {off} in {found.proved} batches; {allowed}"
        else:
            yield f"answers equal the model's in {found.proved} batches: they {off}"
    layout = found.layout
    yield (
        f"expected on {layout.cores} core{'s' * (layout.cores > 1)}: {layout.batches_per_s * asked.rows:,.1f} rows/s, "
        f"{_ms(layout.latency_s)} for a batch that finds nobody; {found.gain:.2f} times as quick as one process on one core"
    )


def _considered(layouts: "Sequence[Layout]", chosen: "Layout", rows: int) -> Iterator[str]:
    yield "replicas  stages  parts  cores  slowest stage    rows/s     latency  weights of a core"
    for one in sorted(layouts, key=lambda one: -one.batches_per_s):
        picked = (one.replicas, one.stages, one.parts) == (chosen.replicas, chosen.stages, chosen.parts)
        yield (
            f"{one.replicas:>8}  {one.stages:>6}  {one.parts:>5}  {one.cores:>5}  {_ms(one.slowest_s):>13}  "
            f"{one.batches_per_s * rows:>8,.1f}  {_ms(one.latency_s):>10}  {one.weights / MIB:>13.1f} MiB{'  chosen' * picked}"
        )


def _ms(seconds: float) -> str:
    return f"{seconds * 1e3:.3g} ms"


def _progress(line: str) -> None:
    sys.stderr.write(f"{line}\n")
    sys.stderr.flush()

"""`dlproxy tune`: which way of running a model, and which knobs, serve a load best on this machine; writes tuned.toml.

Not aware of: how that is found (lab/tune/search), how a report looks.
"""

import argparse
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dlproxy.cli.durations import budget
from dlproxy.cli.parser import among, near
from dlproxy.cli.terminal import INTERRUPTED, OK, USER_ERROR, Commands, complain, say

if TYPE_CHECKING:
    from dlproxy.config import ModelConfig
    from dlproxy.lab.tune.search.problem import Load, Problem
    from dlproxy.lab.tune.search.tune import Tuned

BUDGET_S = 300.0
LEAST_BUDGET_S = 10.0
MOST_TRACE = 20_000  # requests of a trace that are looked at: those of its busiest stretch


def add_to(commands: Commands) -> None:
    """Declare the command and its options."""
    tune = commands.add_parser(
        "tune",
        help="find the best configuration of a model for a load",
        description="Measure a model in every way of running it that fits this machine, search the knobs in the simulator, "
        "confirm the best on real servers, and write the configuration with reasons. Needs: pip install 'dlproxy[tune]'.",
    )
    tune.add_argument(
        "model", nargs="?", metavar="MODEL", help="a model file, NAME=PATH, or with --config a model's name there"
    )
    tune.add_argument("--config", type=Path, metavar="FILE", help="a dlproxy.toml with the model; its knobs stay as they are")
    tune.add_argument("--slo", metavar="p99=20ms", help="latency objective, instead of the one in --config")
    load = tune.add_argument_group("load (default: the highest rate that meets the objective is looked for)")
    load.add_argument("--rate", type=float, metavar="R", help="requests per second")
    load.add_argument("--arrivals", metavar="KIND", help="poisson (default), constant, gamma:cv=4, mmpp:…, daily:…")
    load.add_argument("--trace", type=Path, metavar="FILE", help="arrival times from a CSV file instead")
    load.add_argument(
        "--log", type=Path, metavar="EVENT.dlog", help="arrival times and batch times of a recorded server instead"
    )
    tune.add_argument("--budget", default="5m", metavar="TIME", help="time to take, about (default 5m)")
    tune.add_argument("--out", type=Path, default=Path("tuned.toml"), metavar="FILE", help="what to write (default tuned.toml)")
    tune.add_argument("--html", type=Path, metavar="FILE", help="write a page with the picture of the front")
    tune.add_argument("--resume", action="store_true", help="go on with a tuning of this --out that was interrupted")
    tune.set_defaults(command=_tune)


def _tune(args: argparse.Namespace) -> int:
    from dlproxy.config import ConfigError
    from dlproxy.instance.runtime import ModelError
    from dlproxy.lab.load.arrivals import ArrivalsError
    from dlproxy.lab.report.result import ResultError, ensure_writable
    from dlproxy.lab.tune.search.problem import TuneError
    from dlproxy.telemetry.event_log import LogError

    try:
        ensure_writable(args.out, args.html)
        with tempfile.TemporaryDirectory(prefix="dlproxy-tune-") as folder:
            return _run(args, Path(folder))
    except (ArrivalsError, ConfigError, LogError, ModelError, ResultError, TuneError) as error:
        complain(str(error))
        return USER_ERROR


def _run(args: argparse.Namespace, folder: Path) -> int:
    from dlproxy.lab.load.run import Interrupt
    from dlproxy.lab.tune.search.state import State
    from dlproxy.lab.tune.search.tune import Tuning

    problem, budget_s = _problem(args, folder), budget(args.budget, LEAST_BUDGET_S)
    file = args.out.with_name(args.out.name + ".state")
    state = State(file, _what(args, problem), resume=args.resume)
    with Interrupt() as interrupt, _Bar() as bar:
        try:
            tuning = Tuning(problem, state, budget_s=budget_s, show=bar, interrupt=interrupt, log=args.log)
            tuned = tuning.run()
        except KeyboardInterrupt:
            complain(f"interrupted before anything was found; what was measured is in {file}: go on with --resume")
            return INTERRUPTED
        except Exception:
            state.forget()
            raise
    _report(args, tuned)
    if tuned.interrupted:
        say(f"interrupted; go on with --resume ({file})")
        return INTERRUPTED
    state.forget()
    return OK


def _report(args: argparse.Namespace, tuned: "Tuned") -> None:
    """Show it first, so that a file that cannot be written loses nothing."""
    from datetime import UTC, datetime

    from dlproxy.lab.report.page import write
    from dlproxy.lab.tune.search.page import html
    from dlproxy.lab.tune.search.report import table, tuned_file
    from dlproxy.lab.tune.search.tune import why

    say(table(tuned))
    started = datetime.now(UTC).isoformat(sep=" ", timespec="minutes")
    said = why(tuned)
    write(tuned_file(tuned, said, args.out.resolve().parent, started), args.out)
    say(f"written: {args.out}   (dlproxy serve --config {args.out})")
    if args.html is not None:
        write(html(tuned, said), args.html)


def _problem(args: argparse.Namespace, folder: Path) -> "Problem":
    """Raises ArrivalsError, ConfigError, LogError, TuneError."""
    from dlproxy.cores import usable_cores
    from dlproxy.lab.tune.search.problem import Problem, objective_of

    load = _load(args, folder)
    name, config = _model(args)
    return Problem(name=name, config=config, objective_s=objective_of(config), load=load, cores=usable_cores())


def _model(args: argparse.Namespace) -> "tuple[str, ModelConfig]":
    """The one that is tuned. Raises ConfigError."""
    import msgspec

    from dlproxy.cli.model_names import add_models
    from dlproxy.config import Config, ConfigError, load, parse_goal

    given = load(args.config) if args.config else Config()
    if given.integrity.trusted or given.integrity.master_key:
        raise ConfigError(
            f"{args.config} has [integrity]: tune a model that is neither signed nor encrypted, which is as quick"
        )
    models = given.models
    named = args.model in models
    if args.config and args.model and not named and "=" not in args.model and "." not in args.model and "/" not in args.model:
        raise ConfigError(f"{args.config} has no model '{args.model}'; {near(args.model, models) or among(list(models))}")
    if not named and args.model:
        models = add_models({}, [args.model], "", command="tune")
    elif named:
        models = {args.model: models[args.model]}
    if not models:
        raise ConfigError("no model given; try: dlproxy tune MODEL.onnx --slo p99=20ms --rate 500")
    if len(models) > 1:
        raise ConfigError(f"one model is tuned at a time; name one of {', '.join(models)}: dlproxy tune NAME --config FILE")
    name, versions = next(iter(models.items()))
    config = versions[-1]
    if args.slo is not None:
        parse_goal(args.slo)
        config = msgspec.structs.replace(config, slo=args.slo)
    return name, config


def _load(args: argparse.Namespace, folder: Path) -> "Load":
    """Raises ArrivalsError, ConfigError, LogError."""
    from dlproxy.config import ConfigError
    from dlproxy.lab.load.arrivals import make_arrivals, read_trace
    from dlproxy.lab.simulate.recording import Batches
    from dlproxy.lab.tune.search.problem import Load

    given = [f"--{name}" for name in ("rate", "trace", "log") if getattr(args, name) is not None]
    if len(given) > 1:
        raise ConfigError(f"{' and '.join(given)} both say when requests arrive; give one of them")
    if args.arrivals is not None and (args.trace or args.log):
        raise ConfigError(f"{given[0]} says when requests arrive; omit --arrivals")
    if args.trace is None and args.log is None:
        kind = args.arrivals or "poisson"
        make_arrivals(kind, rate=1.0 if args.rate is None else args.rate, seed=0)
        return Load(rate=args.rate, kind=kind)
    if args.trace is not None:
        instants = [instant for chunk in read_trace(args.trace).chunks(float("inf")) for instant in chunk.tolist()]
    else:
        if not args.log.exists():
            raise ConfigError(f"--log {args.log}: there is no such event log")
        instants = Batches(args.log).arrivals.tolist()
    source = args.trace or args.log
    file = folder / source.name
    file.write_text("".join(f"{instant!r}\n" for instant in busiest(instants, MOST_TRACE)), "ascii")
    read_trace(file)
    return Load(trace=file)


def busiest(instants: list[float], most: int) -> list[float]:
    """The `most` requests that came in the shortest time; all if there are no more."""
    if len(instants) <= most:
        return instants
    first = min(range(len(instants) - most + 1), key=lambda number: instants[number + most - 1] - instants[number])
    return instants[first : first + most]


def _what(args: argparse.Namespace, problem: "Problem") -> dict[str, str]:
    """What a tuning that is resumed must have been of."""
    import msgspec

    from dlproxy import __version__

    load = problem.load
    source = args.trace or args.log
    file = Path(problem.config.path.partition(":")[0])
    stamp = str(file.stat().st_mtime_ns) if file.is_file() else ""
    return {
        "model": problem.config.path,
        "model file's time": stamp,
        "configuration": msgspec.json.encode(problem.config).decode(),
        "objective": f"{problem.objective_s:g} s",
        "load": f"{load.kind} at {load.rate}" if source is None else str(source),
        "number of cores": str(problem.cores),
        "version of dlproxy": __version__,
    }


class _Bar:
    """A progress bar for each stage on a terminal, nothing elsewhere."""

    def __init__(self) -> None:
        self._bar: Any = None

    def __enter__(self) -> "_Bar":
        return self

    def __exit__(self, *error: object) -> None:
        if self._bar is not None:
            self._bar.close()

    def stage(self, text: str, total: int) -> None:
        from tqdm import tqdm

        self.__exit__()
        form = "{desc}: |{bar}| {n}/{total}, {elapsed}{postfix}"
        self._bar = tqdm(total=total, desc=text, bar_format=form, leave=False, disable=None, file=sys.stderr)

    def step(self, text: str = "") -> None:
        if text:
            self._bar.set_postfix_str(f" {text}", refresh=False)
        self._bar.total = max(self._bar.total or 0, self._bar.n + 1)
        self._bar.update(1)

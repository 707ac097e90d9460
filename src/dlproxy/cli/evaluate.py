"""`dlproxy evaluate`: one report over response time, throughput, utilisation, scalability and robustness of a server.

Not aware of: how anything is measured (lab/evaluate), how load is made (lab/load).
"""

import argparse
import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dlproxy.cli.bar import Bar
from dlproxy.cli.credentials import Credentials
from dlproxy.cli.durations import budget, seconds
from dlproxy.cli.terminal import FAILED, INTERRUPTED, OK, USER_ERROR, Commands, complain, say

if TYPE_CHECKING:
    from dlproxy.config import ModelConfig
    from dlproxy.lab.evaluate.evaluation import Evaluation
    from dlproxy.lab.evaluate.run import Asked
    from dlproxy.lab.evaluate.server import State

LEAST_BUDGET_S = 5.0


def add_to(commands: Commands) -> None:
    """Declare the command and its options."""
    evaluate = commands.add_parser(
        "evaluate",
        help="measure response time, throughput, utilisation, scalability and robustness",
        usage="dlproxy evaluate MODEL --slo p99=20ms [options]\n       dlproxy evaluate --url URL [--control URL] [options]",
        description="Start a server of its own (or take one that runs) and report five groups of figures about it. It is given "
        "as much load as it can take, more than that, and faults.",
    )
    evaluate.add_argument("models", nargs="*", metavar="MODEL", help="what to serve, as for dlproxy serve")
    evaluate.add_argument("--config", type=Path, metavar="FILE", help="a dlproxy.toml of what to serve")
    evaluate.add_argument(
        "--url", metavar="URL", help="a server that runs, instead; then only what needs no restart is measured"
    )
    evaluate.add_argument(
        "--control", metavar="URL", help="its control port, through which its instances are scaled and one worker is killed"
    )
    evaluate.add_argument("--model", metavar="NAME", help="the model to send requests to; optional if there is only one")
    evaluate.add_argument("--slo", metavar="p99=20ms", help="latency objective; otherwise the model's own")
    evaluate.add_argument(
        "--budget", default="2m", metavar="2m", help="time for everything, shared out between the parts (default 2m)"
    )
    evaluate.add_argument("--no-faults", action="store_true", help="leave the faults out: nothing beyond the highest load")
    requests = evaluate.add_argument_group("requests and generator, as for dlproxy bench")
    requests.add_argument("--input", type=Path, metavar="FILE", help=".npy or .npz of inputs (default: made-up ones)")
    requests.add_argument("--rows", type=int, metavar="K", help="rows in each request (default 1)")
    requests.add_argument("--shape", action="append", default=[], metavar="NAME:D,D", help="sizes of variable dimensions")
    requests.add_argument("--processes", type=int, default=1, metavar="N", help="processes that send requests (default 1)")
    evaluate.add_argument("--json", type=Path, metavar="FILE", help="write the figures as JSON")
    evaluate.add_argument("--html", type=Path, metavar="FILE", help="write a report with charts")
    evaluate.set_defaults(command=_evaluate)


def _evaluate(args: argparse.Namespace) -> int:
    from dlproxy.config import ConfigError
    from dlproxy.lab.child_server import ServerError
    from dlproxy.lab.evaluate.run import evaluate
    from dlproxy.lab.load.run import Interrupt
    from dlproxy.lab.load.settings import LoadError
    from dlproxy.lab.report.result import ResultError, ensure_writable

    try:
        asked = _asked(args)
        ensure_writable(args.json, args.html)
        with Interrupt() as interrupt, Bar(asked.budget_s) as bar:
            found = evaluate(asked, interrupt, bar)
        _report(found, args)
    except ServerError as error:
        complain(str(error))
        return USER_ERROR if error.mendable else FAILED
    except (ConfigError, LoadError, ResultError) as error:
        complain(str(error))
        return USER_ERROR
    if found.interrupted:
        return INTERRUPTED
    return OK if found.base_rps is not None and not found.server_lost else FAILED


def _asked(args: argparse.Namespace) -> "Asked":
    """Raises ConfigError and LoadError."""
    from dlproxy.cli.bench import shape
    from dlproxy.lab.evaluate.run import Asked
    from dlproxy.lab.load.settings import LoadError, Settings

    if args.url is not None and (args.models or args.config):
        raise LoadError("--url names a server that runs; omit the models and --config, or --url to have them served")
    if args.control is not None and args.url is None:
        raise LoadError("--control belongs to a server that runs; give its --url, too")
    budget_s = budget(args.budget, LEAST_BUDGET_S)
    served = {} if args.url is not None else _models(args)
    return Asked(
        settings=Settings(
            url=args.url or "",
            model=args.model or (next(iter(served)) if len(served) == 1 else None),
            input=args.input,
            rows=args.rows,
            shapes=dict(shape(text) for text in args.shape),
            processes=args.processes,
        ),
        serve=None if args.url is not None else _serve_arguments(args),
        control_url=args.control,
        objective_s=seconds(args.slo, "--slo"),
        budget_s=budget_s,
        faults=not args.no_faults,
        connect=_Control,
        reload=_reload(served),
    )


def _models(args: argparse.Namespace) -> "dict[str, list[ModelConfig]]":
    """What will be served, by name. Raises ConfigError, as serving it would."""
    from dlproxy.cli.model_names import add_models
    from dlproxy.config import ConfigError, load

    config = load(args.config) if args.config is not None else None
    if config is not None and config.server.uds:
        raise ConfigError(f"{args.config}: uds: load is sent over TCP only; omit it for an evaluation")
    slo = args.slo if args.models and args.slo is not None else ""
    others = config is not None and bool(config.server.repository or config.server.store)
    return add_models({} if config is None else config.models, args.models, slo, command="evaluate", others=others)


def _serve_arguments(args: argparse.Namespace) -> tuple[str, ...]:
    given = [*args.models, "--http-port=0", "--control-port=0"]
    given += [f"--config={args.config}"] if args.config is not None else []
    given += [f"--slo={args.slo}"] if args.slo is not None and args.models else []
    return tuple(given)


def _reload(served: "dict[str, list[ModelConfig]]") -> Callable[[str], tuple[str, dict[str, Any]] | None]:
    def reload(name: str) -> tuple[str, dict[str, Any]] | None:
        import msgspec

        if name not in served:
            return None
        knobs = msgspec.to_builtins(served[name][-1])
        return knobs.pop("path"), {knob: value for knob, value in knobs.items() if knob != "version"}

    return reload


class _Control:
    """A control port as lab/evaluate asks it: what it refuses is a LoadError."""

    def __init__(self, url: str) -> None:
        from dlproxy.cli.control_port import ControlPort
        from dlproxy.config.secrets import KEY_VARIABLE

        self.url = url
        asks = Credentials(os.environ.get(KEY_VARIABLE, ""))
        self._port = self._asked(lambda: ControlPort(url, asks))
        self.is_here = self._port.is_here

    def state(self, model: str) -> "State":
        from dlproxy.lab.evaluate.server import State

        one = self._asked(lambda: self._port.states(self._port.model(model))[0])
        return State(
            run=one.run,
            slo=str(one.knobs.get("slo", "")),
            instances=len(one.instances),
            autoscaled=one.autoscale is not None,
            pids=tuple(instance.pid for instance in one.instances if instance.pid is not None and instance.state == "up"),
        )

    def scale(self, model: str, instances: int | None) -> None:
        self._asked(lambda: self._port.act(model, "scale", {"instances": instances}))

    def load(self, model: str, path: str, knobs: dict[str, Any]) -> None:
        self._asked(lambda: self._port.act(model, "load", {"path": path, "config": knobs}))

    def unload(self, model: str) -> None:
        self._asked(lambda: self._port.act(model, "unload", {}))

    def _asked(self, ask: "Callable[[], Any]") -> Any:
        from dlproxy.cli.control_port import ControlError
        from dlproxy.lab.load.settings import LoadError

        try:
            return ask()
        except ControlError as error:
            raise LoadError(str(error)) from None


def _report(found: "Evaluation", args: argparse.Namespace) -> None:
    """Show it first, so that a file that cannot be written loses nothing."""
    from dlproxy.lab.evaluate.evaluation import save
    from dlproxy.lab.evaluate.page import save_html
    from dlproxy.lab.evaluate.table import table

    say(table(found))
    if args.json is not None:
        save(found, args.json)
    if args.html is not None:
        save_html(found, args.html)

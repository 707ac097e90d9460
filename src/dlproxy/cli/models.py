"""`dlproxy models`: what a running server's models do, how many instances each has, and its knobs; shown and changed.

Not aware of: HTTP (control_port.py).
"""

import argparse
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

from dlproxy.cli.terminal import OK, USER_ERROR, Commands, complain, say

if TYPE_CHECKING:
    from dlproxy.cli.control_port import ControlPort, InstanceState, ModelState, ScalingState

    Ask: TypeAlias = Callable[[ControlPort, argparse.Namespace], Any]
    View: TypeAlias = Callable[[list[ModelState], argparse.Namespace], Iterator[str]]

HEADINGS = ("model", "version", "ready", "up", "run", "queued rows", "batch limit", "objective")
INSTANCE_HEADINGS = ("instance", "state", "for", "restarts", "circuit", "batches", "where", "last problem")


def add_to(commands: Commands) -> None:
    """Declare the command and its actions."""
    models = commands.add_parser(
        "models",
        help="show and change the models of a running server",
        description="Show and change the models of a running server, through its control port.",
    )
    _add_options(models, control="http://127.0.0.1:8002", json=False)
    models.set_defaults(command=_models, ask=_all, view=_overview)
    actions = models.add_subparsers(title="actions (default: list)", metavar="ACTION")

    def action(name: str, ask: "Ask", view: "View", help_text: str) -> argparse.ArgumentParser:
        parser = actions.add_parser(name, help=help_text, description=help_text.capitalize() + ".")
        _add_options(parser, control=argparse.SUPPRESS, json=argparse.SUPPRESS)  # else they would undo what stands before
        parser.set_defaults(ask=ask, view=view)
        return parser

    action("list", _all, _overview, "all models in a table")
    show = action("show", _one, _page, "one model with its instances and knobs")
    scale = action("scale", _scale, _scaled, "set how many instances of a model run, and wait until they do")
    change = action("set", _set, _changed, "change knobs of a model while it serves")
    for parser in (show, scale, change):
        parser.add_argument("model", metavar="NAME")
    scale.add_argument("count", type=int, metavar="COUNT", help="how many instances to run from now on; 0: none")
    change.add_argument(
        "knobs", nargs="+", metavar="KNOB=VALUE", help="as in dlproxy.toml: max_batch=32 slo=p99=20ms hedge=true"
    )


def _add_options(parser: argparse.ArgumentParser, *, control: str, json: bool | str) -> None:
    parser.add_argument("--control", default=control, metavar="URL", help="the control port (default http://127.0.0.1:8002)")
    parser.add_argument("--json", action="store_true", default=json, help="print JSON, for scripts")


def _models(args: argparse.Namespace) -> int:
    import msgspec

    from dlproxy.cli.control_port import ControlError, ControlPort

    try:
        port = ControlPort(args.control)
        told = args.ask(port, args)
        lines = [msgspec.json.format(msgspec.json.encode(told)).decode()] if args.json else args.view(port.states(told), args)
    except ControlError as error:
        complain(str(error))
        return USER_ERROR
    for line in lines:
        say(line)
    return OK


# What is asked


def _all(port: "ControlPort", args: argparse.Namespace) -> Any:
    return port.models()


def _one(port: "ControlPort", args: argparse.Namespace) -> Any:
    return port.model(args.model)


def _scale(port: "ControlPort", args: argparse.Namespace) -> Any:
    try:
        return port.scale(args.model, args.count)
    except KeyboardInterrupt:
        complain(f"interrupted; the server carries on: see dlproxy models show {args.model}")
        raise


def _set(port: "ControlPort", args: argparse.Namespace) -> Any:
    return port.change(args.model, _knobs(args.knobs))


def _knobs(texts: Sequence[str]) -> dict[str, Any]:
    """Raises ControlError. What is no JSON is a text: discipline=edf."""
    import msgspec

    from dlproxy.cli.control_port import ControlError

    knobs: dict[str, Any] = {}
    for text in texts:
        knob, equals, value = text.partition("=")
        if not equals:
            raise ControlError(f"'{text}' has no value; write it like max_batch=32 or slo=p99=20ms")
        if not text.isprintable():
            raise ControlError(f"{text!r} contains characters that no knob has")
        if knob in knobs:
            raise ControlError(f"{knob} is given twice")
        try:
            knobs[knob] = msgspec.json.decode(value)
        except (msgspec.DecodeError, RecursionError):
            knobs[knob] = value
    return knobs


# What is shown of the answer


def _overview(models: "list[ModelState]", args: argparse.Namespace) -> Iterator[str]:
    return _table([HEADINGS, *map(_row, models)])


def _row(model: "ModelState") -> tuple[str, ...]:
    return (
        model.name,
        model.version,
        "yes" if model.ready else "no",
        f"{model.up}/{len(model.instances)}",
        model.run,
        str(model.queued_rows),
        str(model.batch_limit_rows),
        str(model.knobs.get("slo", "")),
    )


def _page(models: "list[ModelState]", args: argparse.Namespace) -> Iterator[str]:
    (model,) = models
    yield f"model {model.name} version {model.version}, {'ready' if model.ready else 'not ready'}"
    yield f"  run      {model.run}"
    yield f"  batching {model.batching}"
    if model.padding not in ("", "off"):  # as it is for most, which have nothing to pad
        yield f"  padding  {model.padding}"
    yield f"  running  {model.running_batches} batches, each of at most {model.batch_limit_rows} rows"
    yield f"  waiting  {model.queued_requests} requests, {model.queued_rows} rows"
    if model.autoscale is not None:
        yield f"  scaling  {_scaling(model.autoscale)}"
    yield ""
    yield from _table([INSTANCE_HEADINGS, *map(_instance_row, model.instances)])
    yield ""
    yield from _table([("knob", "value"), *((name, _toml(value)) for name, value in model.knobs.items())])


def _scaling(scaling: "ScalingState") -> str:
    if scaling.held:
        return f"held at {scaling.wanted}, until min_instances or max_instances is set"
    if scaling.asleep:
        return "asleep: the next request wakes it"
    said = f"{scaling.wanted} of {scaling.least} to {scaling.most} instances"
    return f"{said}: {' '.join(scaling.reason.split())}" if scaling.reason else said


def _scaled(models: "list[ModelState]", args: argparse.Namespace) -> Iterator[str]:
    (model,) = models
    yield f"{model.name}: {model.up} of {len(model.instances)} instances up"


def _changed(models: "list[ModelState]", args: argparse.Namespace) -> Iterator[str]:
    (model,) = models
    for knob in _knobs(args.knobs):
        yield f"{model.name}: {knob} = {_toml(model.knobs.get(knob))}"


def _instance_row(instance: "InstanceState") -> tuple[str, ...]:
    state = instance.state
    if instance.again_in_s is not None:
        state += f", starts in {_duration(instance.again_in_s)}"
    return (
        instance.name,
        state,
        _duration(instance.for_s),
        str(instance.restarts),
        instance.circuit or "",
        f"{instance.in_flight}/{instance.capacity}",
        instance.address or ("" if instance.pid is None else f"pid {instance.pid}"),
        " ".join((instance.last_problem or "").split()),
    )


def _table(rows: Sequence[Sequence[str]]) -> Iterator[str]:
    """Columns as wide as their longest cell, the headings first."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        yield "  ".join(f"{cell or '-':<{width}}" for cell, width in zip(row, widths, strict=True)).rstrip()


def _duration(seconds: float) -> str:
    for unit, size in (("d", 86400.0), ("h", 3600.0), ("min", 60.0)):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.1f} s"


def _toml(value: Any) -> str:
    """A knob's value as dlproxy.toml has it."""
    import msgspec

    return msgspec.json.encode(value).decode()

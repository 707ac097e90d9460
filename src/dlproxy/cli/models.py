"""`dlproxy models`: what a running server's models do, and everything that can be done with them while it serves.

Not aware of: HTTP (control_port.py), models' files (model_files.py).
"""

import argparse
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from dlproxy.cli import graphs, model_files
from dlproxy.cli.credentials import add_credentials, credentials_of
from dlproxy.cli.terminal import OK, USER_ERROR, Commands, complain, say

if TYPE_CHECKING:
    from dlproxy.cli.control_port import ControlPort
    from dlproxy.cli.told import (
        CacheState,
        CandidateState,
        InstanceState,
        ModelState,
        ScalingState,
        SequencesState,
        StepState,
        VariantsState,
    )

    Ask: TypeAlias = Callable[[ControlPort, argparse.Namespace], Any]
    View: TypeAlias = Callable[[list[ModelState], argparse.Namespace], Iterator[str]]

HEADINGS = ("model", "version", "state", "requests", "up", "run", "queued rows", "batch limit", "objective", "problem")
ACTIONS = {
    "load": "serve another model, or a new version of one, from a file on the server",
    "unload": "finish what is under way and let go of a model, or of one version",
    "label": "let a word such as stable stand for a version",
    "canary": "send a part of the requests to another version",
    "shadow": "ask another version too, and compare its answers without giving them",
    "tenant": "give a tenant a version of its own",
    "trunk": "let another model compute what the versions of this one take",
    "promote": "send all requests that name no version to this one",
    "rollback": "take a canary back, or undo the last change of versions",
    "scale": "set how many instances of a model run, and wait until they do",
}
STEP_HEADINGS = ("step", "does", "ended", "in flight", "skipped", "failed", "waits", "computes")
VARIANT_HEADINGS = ("variant", "accuracy", "answers", "state")
INSTANCE_HEADINGS = ("instance", "state", "for", "restarts", "circuit", "batches", "where", "last problem")


def add_to(commands: Commands) -> None:
    """Declare the command and its actions."""
    models = commands.add_parser(
        "models",
        help="show and change the models of a running server; sign and encrypt models",
        description="Show and change the models of a running server, through its control port; sign and encrypt models' files.",
    )
    add_options(models, control="http://127.0.0.1:8002", json=False)
    models.set_defaults(command=_models, ask=_all, view=_overview)
    actions = models.add_subparsers(title="actions (default: list)", metavar="ACTION")

    def action(name: str, ask: "Ask", view: "View", help_text: str) -> argparse.ArgumentParser:
        parser = actions.add_parser(name, help=help_text, description=help_text.capitalize() + ".")
        add_options(parser, control=argparse.SUPPRESS, json=argparse.SUPPRESS)  # else they would undo what stands before
        parser.set_defaults(ask=ask, view=view)
        return parser

    action("list", _all, _overview, "all models in a table")
    show = action("show", _one, _page, "one model with its instances and knobs")
    change = action("set", _set, _changed, "change knobs of a model while it serves")
    acting = {name: action(name, _act, _scaled if name == "scale" else _versions, text) for name, text in ACTIONS.items()}
    for parser in (show, change, *acting.values()):
        parser.add_argument("model", metavar="NAME")
    for name, parser in acting.items():
        parser.set_defaults(action=name)
    _add_arguments(**acting)
    model_files.add_to(actions)
    graphs.add_to(actions)
    change.add_argument(
        "knobs", nargs="+", metavar="KNOB=VALUE", help="as in dlproxy.toml: max_batch=32 slo=p99=20ms hedge=true"
    )


def _add_arguments(
    *,
    load: argparse.ArgumentParser,
    unload: argparse.ArgumentParser,
    label: argparse.ArgumentParser,
    canary: argparse.ArgumentParser,
    shadow: argparse.ArgumentParser,
    tenant: argparse.ArgumentParser,
    trunk: argparse.ArgumentParser,
    promote: argparse.ArgumentParser,
    rollback: argparse.ArgumentParser,
    scale: argparse.ArgumentParser,
) -> None:
    """What each takes; the names are those of the arguments that the control port takes."""
    load.add_argument(
        "path",
        metavar="MODEL",
        nargs="?",
        help="a model file on the server, or anything else that `dlproxy serve` takes; without one, what its repository has",
    )
    load.add_argument("config", nargs="*", metavar="KNOB=VALUE", type=knob_and_value, help="as in dlproxy.toml: max_batch=32")
    load.add_argument("--version", metavar="N", help="its number; by default the one after the largest")
    load.add_argument("--canary", dest="share", type=_share, metavar="10%", help="send it only this part of the requests")
    load.add_argument("--on-demand", action="store_true", default=None, help="load it when somebody asks for it")
    unload.add_argument("--version", metavar="N", help="only this version")
    label.add_argument("label", metavar="LABEL")
    label.add_argument("version", metavar="VERSION", nargs="?", help="without one the label is taken away")
    canary.add_argument("version", metavar="VERSION")
    canary.add_argument("share", type=_share, metavar="10%", help="the part of the requests that name no version; 0: none")
    canary.add_argument("--by", metavar="tenant", help="tenant or header:NAME: who has the same always gets the same version")
    canary.add_argument(
        "--unguarded", dest="guarded", action="store_false", default=None, help="do not take it back when it does worse"
    )
    shadow.add_argument("version", metavar="VERSION", nargs="?", help="without one no version is asked beside")
    tenant.add_argument("tenant", metavar="TENANT")
    tenant.add_argument("version", metavar="VERSION", nargs="?", help="without one it gets what everybody gets")
    trunk.add_argument("trunk", metavar="MODEL", nargs="?", help="without one the versions take requests as they come")
    promote.add_argument("version", metavar="VERSION", nargs="?", help="by default the canary")
    scale.add_argument("instances", type=int, metavar="COUNT", help="how many instances to run from now on; 0: none")
    scale.add_argument("--version", metavar="N", help="only this version")


def add_options(parser: argparse.ArgumentParser, *, control: str, json: bool | str) -> None:
    parser.add_argument("--control", default=control, metavar="URL", help="the control port (default http://127.0.0.1:8002)")
    parser.add_argument("--json", action="store_true", default=json, help="print JSON, for scripts")
    add_credentials(parser, again=control is argparse.SUPPRESS)


def _models(args: argparse.Namespace) -> int:
    return shown(args, lambda port, told: args.view(port.states(told), args))


def shown(args: argparse.Namespace, lines_of: "Callable[[ControlPort, Any], Iterable[str]]") -> int:
    """Asks the control port what `args.ask` asks, and prints what `lines_of` makes of the answer, or with --json the answer."""
    import msgspec

    from dlproxy.cli.control_port import ControlError, ControlPort
    from dlproxy.config import ConfigError

    try:
        port = ControlPort(args.control, credentials_of(args))
        told = args.ask(port, args)
        lines = [msgspec.json.format(msgspec.json.encode(told)).decode()] if args.json else list(lines_of(port, told))
    except (ConfigError, ControlError) as error:
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


ARGUMENTS = ("path", "config", "version", "share", "on_demand", "label", "by", "guarded", "tenant", "trunk", "instances")


def _act(port: "ControlPort", args: argparse.Namespace) -> Any:
    given = {name: value for name in ARGUMENTS if (value := getattr(args, name, None)) is not None}
    if "path" in given and port.is_here and Path(given["path"]).exists():
        given["path"] = str(Path(given["path"]).resolve())  # the server may run in another folder
    if "config" in given:
        given["config"] = dict(given["config"])
    try:
        return port.act(args.model, args.action, given)
    except KeyboardInterrupt:
        complain(f"interrupted; the server carries on: see dlproxy models show {args.model}")
        raise


def _share(text: str) -> float:
    """10% or 0.1."""
    number, percent, rest = text.partition("%")
    try:
        share = float(number) / (100.0 if percent else 1.0)
    except ValueError:
        share = -1.0
    if rest or not 0.0 <= share <= 1.0:
        raise argparse.ArgumentTypeError(f"'{text}' is not a part of the requests; write it like 10% or 0.1")
    return share


def _set(port: "ControlPort", args: argparse.Namespace) -> Any:
    return port.change(args.model, _knobs(args.knobs))


def _knobs(texts: Sequence[str]) -> dict[str, Any]:
    """Raises ControlError. What is no JSON is a text: discipline=edf."""
    from dlproxy.cli.control_port import ControlError

    knobs: dict[str, Any] = {}
    for text in texts:
        try:
            knob, value = knob_and_value(text)
        except argparse.ArgumentTypeError as error:
            raise ControlError(str(error)) from None
        if knob in knobs:
            raise ControlError(f"{knob} is given twice")
        knobs[knob] = value
    return knobs


def knob_and_value(text: str) -> tuple[str, Any]:
    import msgspec

    knob, equals, value = text.partition("=")
    if not equals:
        raise argparse.ArgumentTypeError(f"'{text}' has no value; write it like max_batch=32 or slo=p99=20ms")
    if not text.isprintable():
        raise argparse.ArgumentTypeError(f"{text!r} contains characters that no knob has")
    try:
        return knob, msgspec.json.decode(value)
    except (msgspec.DecodeError, RecursionError):
        return knob, value


# What is shown of the answer


def _overview(models: "list[ModelState]", args: argparse.Namespace) -> Iterator[str]:
    rows = [HEADINGS, *map(_row, models)]
    return table(rows if any(model.reason for model in models) else [row[:-1] for row in rows])


def _versions(models: "list[ModelState]", args: argparse.Namespace) -> Iterator[str]:
    return _overview(models, args) if models else iter([f"{args.model}: no version is served"])


def _row(model: "ModelState") -> tuple[str, ...]:
    return (
        model.name,
        model.version,
        _state(model),
        ", ".join([*(["default"] if model.default else []), *([f"{model.share:.4g}"] if model.share else []), *model.labels]),
        f"{model.up}/{len(model.instances)}",
        model.run,
        str(model.queued_rows),
        str(model.batch_limit_rows),
        str(model.knobs.get("slo", "")),
        " ".join(model.reason.split()),
    )


def _state(model: "ModelState") -> str:
    """How far it is."""
    if model.phase == "serving":
        return "ready" if model.ready else "no instance is up"
    if model.phase == "wanted" and model.on_demand:
        return "on demand"
    return model.phase


def _page(models: "list[ModelState]", args: argparse.Namespace) -> Iterator[str]:
    (model,) = models
    yield f"model {model.name} version {model.version}, {'ready' if model.ready else 'not ready'}"
    yield f"  run      {model.run}"
    yield f"  batching {model.batching}"
    if model.padding not in ("", "off"):  # as it is for most, which have nothing to pad
        yield f"  padding  {model.padding}"
    yield f"  running  {model.running_batches} batches, each of at most {model.batch_limit_rows} rows"
    if model.streams is not None:
        yield f"  streams  {model.streams.open} open, {model.streams.parts} parts sent"
    if model.cache is not None:
        yield f"  cache    {_remembered(model.cache)}"
    if model.sequences is not None:
        yield f"  state    {_sequences(model.sequences)}"
    if model.drift is not None:
        yield f"  drift    {'; '.join(model.drift.drifted) or 'none'}, {model.drift.rows} requests looked at"
    yield f"  waiting  {model.queued_requests} requests, {model.queued_rows} rows"
    if model.variants is not None:
        yield f"  answers  {_assigned(model.variants)}"
    if model.autoscale is not None:
        yield f"  scaling  {_scaling(model.autoscale)}"
    yield ""
    yield from table([INSTANCE_HEADINGS, *map(_instance_row, model.instances)])
    yield ""
    if model.steps is not None:
        yield from table([STEP_HEADINGS, *map(_step_row, model.steps)])
        yield ""
    if model.variants is not None:
        yield from table([VARIANT_HEADINGS, *map(_variant_row, model.variants.candidates)])
        yield ""
    yield from table([("knob", "value"), *((name, _value(model, name)) for name in model.knobs)])


def _remembered(cache: "CacheState") -> str:
    ratio = "" if cache.hit_ratio is None else f", {cache.hit_ratio:.1%} of the requests were hits"
    answers = f"{cache.entries} answer{'' if cache.entries == 1 else 's'}"
    return f"{cache.state}, {answers} in {size(cache.bytes)} of {size(cache.budget_bytes)}{ratio}"


def _sequences(kept: "SequencesState") -> str:
    waiting = f", {kept.waiting_requests} requests wait for others of theirs" if kept.waiting_requests else ""
    past = f"{kept.started} started, {kept.ended} ended, {kept.expired} idle, {kept.broken} broken, {kept.refused} refused"
    return f"of {kept.active} sequences, at most {kept.most}, kept for {duration(kept.idle_s)}{waiting}; so far {past}"


def _value(model: "ModelState", knob: str) -> str:
    value, tuned = toml(model.knobs[knob]), model.tuned.get(knob)
    return value if tuned is None else f"{value} (tuned; declared {toml(tuned.declared)})"


def _assigned(variants: "VariantsState") -> str:
    """Who answers whom: priorities that the same one answers together."""
    parts: list[str] = []
    for name, same in groupby(variants.assignment.items(), key=lambda entry: entry[1]):
        first, *others = [priority for priority, _ in same]
        parts.append(f"{name}: priority {first} to {others[-1]}" if others else f"{name}: priority {first}")
    said = parts[0].partition(":")[0] if len(parts) == 1 else ", ".join(parts)
    return said if variants.for_s is None else f"{said}; for {duration(variants.for_s)}: {' '.join(variants.reason.split())}"


def _variant_row(variant: "CandidateState") -> tuple[str, ...]:
    state = variant.problem or ("up" if variant.up else "no instance is up")
    return variant.name, f"{variant.accuracy:g}" if variant.accuracy else "", str(variant.answers), state


def _step_row(step: "StepState") -> tuple[str, ...]:
    waits, computes = ("", "")
    if step.requests:
        waits, computes = (f"{seconds / step.requests * 1e3:.3g} ms" for seconds in (step.waited_s, step.computed_s))
    counts = (step.requests, step.in_flight, step.skipped, step.failures)
    return step.name, step.does, *map(str, counts), waits, computes


def _scaling(scaling: "ScalingState") -> str:
    if scaling.held:
        return f"held at {scaling.wanted}, until min_instances or max_instances is set"
    if scaling.asleep:
        return "asleep: the next request wakes it"
    said = f"{scaling.wanted} of {scaling.least} to {scaling.most} instances"
    return f"{said}: {' '.join(scaling.reason.split())}" if scaling.reason else said


def _scaled(models: "list[ModelState]", args: argparse.Namespace) -> Iterator[str]:
    for model in models:
        if args.version in (None, model.version):
            version = f" version {model.version}" if len(models) > 1 else ""
            yield f"{model.name}{version}: {model.up} of {len(model.instances)} instances up"


def _changed(models: "list[ModelState]", args: argparse.Namespace) -> Iterator[str]:
    (model,) = models
    for knob in _knobs(args.knobs):
        yield f"{model.name}: {knob} = {toml(model.knobs.get(knob))}"


def _instance_row(instance: "InstanceState") -> tuple[str, ...]:
    state = instance.state
    if instance.again_in_s is not None:
        state += f", starts in {duration(instance.again_in_s)}"
    return (
        instance.name,
        state,
        duration(instance.for_s),
        str(instance.restarts),
        instance.circuit or "",
        f"{instance.in_flight}/{instance.capacity}",
        instance.address or ("" if instance.pid is None else f"pid {instance.pid}"),
        " ".join((instance.last_problem or "").split()),
    )


def table(rows: Sequence[Sequence[str]]) -> Iterator[str]:
    """Columns as wide as their longest cell, the headings first."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        yield "  ".join(f"{cell or '-':<{width}}" for cell, width in zip(row, widths, strict=True)).rstrip()


def duration(seconds: float) -> str:
    for unit, size in (("d", 86400.0), ("h", 3600.0), ("min", 60.0)):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.1f} s"


def size(count: int) -> str:
    """So many bytes."""
    for unit, bytes_ in (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
        if count >= bytes_:
            return f"{count / bytes_:.4g} {unit}"
    return f"{count} B"


def toml(value: Any) -> str:
    """A knob's value as dlproxy.toml has it."""
    import msgspec

    return msgspec.json.encode(value).decode()

"""`dlproxy autopilot`: what the autopilot of a running server does with its models and why, and how it is held back.

Not aware of: HTTP (control_port.py).
"""

import argparse
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from dlproxy.cli.models import add_options, duration, knob_and_value, shown, table, toml
from dlproxy.cli.terminal import Commands

if TYPE_CHECKING:
    from dlproxy.cli.control_port import ControlPort
    from dlproxy.cli.told import DecisionState, ExplanationState, ModelState, PilotState, WayState

    Ask: TypeAlias = Callable[[ControlPort, argparse.Namespace], Any]
    View: TypeAlias = Callable[[ControlPort, Any, argparse.Namespace], Iterator[str]]

HEADINGS = ("model", "version", "mode", "objective", "runs as", "max_batch", "state", "pinned")
WAY_HEADINGS = ("instances x threads", "a batch of 1", "each further row", "known by", "would miss the objective")


def add_to(commands: Commands) -> None:
    """Declare the command and its actions."""
    about = "Show what the autopilot of a running server does and why, pause it, and pin knobs."
    pilot = commands.add_parser("autopilot", help="show and steer what tunes the models of a running server", description=about)
    add_options(pilot, control="http://127.0.0.1:8002", json=False)
    pilot.set_defaults(command=_autopilot, ask=_all, view=_overview)
    actions = pilot.add_subparsers(title="actions (default: a table of all models)", metavar="ACTION")

    def action(name: str, ask: "Ask", view: "View", help_text: str) -> argparse.ArgumentParser:
        parser = actions.add_parser(name, help=help_text, description=help_text[:1].upper() + help_text[1:] + ".")
        add_options(parser, control=argparse.SUPPRESS, json=argparse.SUPPRESS)  # else they would undo what stands before
        parser.set_defaults(ask=ask, view=view, action=name)
        return parser

    for name, ask, view, text in (
        ("log", _one_or_all, _log, "what it decided, newest last"),
        ("pause", _switch, _overview, "decide nothing more, of one model or of all; what it has kept stays"),
        ("resume", _switch, _overview, "decide again"),
    ):
        action(name, ask, view, text).add_argument("model", metavar="NAME", nargs="?", help="by default every model")
    action("explain", _one, _page, "what it knows of a model, what it would do now, and why it holds still").add_argument(
        "model", metavar="NAME"
    )
    challenge = action("challenge", _challenge, _overview, "have an agent's file, or a policy, asked beside what tunes models")
    challenge.add_argument("challenger", metavar="FILE", help="on the server (.onnx), or rules, bandit, climb, none")
    challenge.add_argument("model", metavar="NAME", nargs="?", help="by default every model, those to come included")
    pin = action("pin", _pin, _pinned, "have it leave knobs of a model as they are, or as they are set here")
    unpin = action("unpin", _unpin, _pinned, "let it turn knobs of a model again")
    for parser, knobs, text in (
        (pin, "KNOB[=VALUE]", "max_batch keeps the value that it has now, max_batch=32 is set"),
        (unpin, "KNOB", "a knob that is pinned"),
    ):
        parser.add_argument("model", metavar="NAME")
        parser.add_argument("knobs", nargs="+", metavar=knobs, help=text)
        parser.add_argument("--version", metavar="N", default="", help="only this version")


def _autopilot(args: argparse.Namespace) -> int:
    return shown(args, lambda port, told: args.view(port, told, args))


# What is asked


def _all(port: "ControlPort", args: argparse.Namespace) -> Any:
    return port.autopilot()


def _one(port: "ControlPort", args: argparse.Namespace) -> Any:
    return port.autopilot(args.model)


def _one_or_all(port: "ControlPort", args: argparse.Namespace) -> Any:
    return port.autopilot(args.model or "")


def _switch(port: "ControlPort", args: argparse.Namespace) -> Any:
    return port.switch_autopilot(args.action, args.model or "")


def _challenge(port: "ControlPort", args: argparse.Namespace) -> Any:
    challenger = args.challenger
    if port.is_here and challenger.endswith(".onnx"):
        challenger = str(Path(challenger).absolute())  # the server may have been started elsewhere
    return port.challenge("" if challenger == "none" else challenger, args.model or "")


def _pin(port: "ControlPort", args: argparse.Namespace) -> Any:
    from dlproxy.cli.control_port import ControlError

    names, values = [], {}
    for text in args.knobs:
        if "=" not in text:
            names.append(text)
            continue
        try:
            knob, value = knob_and_value(text)
        except argparse.ArgumentTypeError as error:
            raise ControlError(str(error)) from None
        values[knob] = value
    return port.act(args.model, "pin", {"knobs": names, "values": values, "version": args.version})


def _unpin(port: "ControlPort", args: argparse.Namespace) -> Any:
    return port.act(args.model, "unpin", {"knobs": args.knobs, "version": args.version})


# What is shown of the answer


def _overview(port: "ControlPort", told: Any, args: argparse.Namespace) -> Iterator[str]:
    pilots = port.pilots(told)
    if not pilots:
        return iter(["no model is served"])
    return table([HEADINGS, *map(_row, pilots)])


def _row(pilot: "PilotState") -> tuple[str, ...]:
    knobs = pilot.knobs
    runs = f"{knobs.get('instances', 1)} x {knobs.get('threads', 1)} threads"
    return (
        pilot.name,
        pilot.version,
        pilot.mode,
        _objective(pilot),
        runs,
        str(knobs.get("max_batch", "")),
        _state(pilot),
        ", ".join(pilot.pinned),
    )


def _state(pilot: "PilotState") -> str:
    """Of one that is watched, but not tuned, also what is unusual."""
    told = not pilot.unusual or pilot.unusual in pilot.state
    return pilot.state if told else f"{pilot.state}; something is unusual: {pilot.unusual}"


def _objective(pilot: "PilotState") -> str:
    if pilot.objective_s is None or pilot.tolerated is None:
        return ""
    aim = f"{1.0 - pilot.tolerated:.4g} within {_time(pilot.objective_s)}"
    return f"{aim}, {'most rate' if pilot.prefers == 'rate' else 'fewest cores'}" if pilot.prefers else aim


def _log(port: "ControlPort", told: Any, args: argparse.Namespace) -> Iterator[str]:
    pilots = port.pilots(told)
    decided = [(decision, pilot) for pilot in pilots for decision in pilot.decisions]
    for decision, pilot in sorted(decided, key=lambda pair: -pair[0].ago_s):
        yield f"{_clock_time(decision)}  {pilot.name}  {decision.text}"
    if not decided:
        yield "it has decided nothing yet"


def _clock_time(decision: "DecisionState") -> str:
    return (datetime.now().astimezone() - timedelta(seconds=decision.ago_s)).strftime("%Y-%m-%d %H:%M:%S")


def _page(port: "ControlPort", told: Any, args: argparse.Namespace) -> Iterator[str]:
    for pilot in port.pilots(told):
        yield f"model {pilot.name} version {pilot.version}, autopilot {pilot.mode}"
        yield f"  now        {_state(pilot)}"
        if pilot.policy:
            yield f"  decides    {pilot.policy}"
        if pilot.objective_s is not None:
            yield f"  objective  {_objective(pilot)}"
        if pilot.pinned:
            yield f"  pinned     {', '.join(pilot.pinned)}"
        seen = pilot.explanation
        if seen is None:
            yield "  seen       nothing yet"
        else:
            yield from _seen(seen)
        yield ""
        yield from table([("knob", "value"), *((name, toml(value)) for name, value in pilot.knobs.items())])
        if seen is not None and seen.ways:
            yield ""
            yield from table([WAY_HEADINGS, *map(_way, seen.ways)])


def _seen(seen: "ExplanationState") -> Iterator[str]:
    load = f"{seen.rate:.4g} requests/s, {seen.in_flight:.3g} rows under way"
    yield f"  load       {load}, in the last {seen.seconds:.0f} s"
    if seen.dispersion:
        regular = (
            "more bursts than by chance" if seen.dispersion > 1.5 else "as by chance" if seen.dispersion > 0.5 else "regular"
        )
        yield f"  arrivals   {regular} (variance/mean {seen.dispersion:.2f})"
    yield f"  latency    p50 {_time(seen.p50_s)}, p99 {_time(seen.p99_s)}; {seen.missed:.2%} missed the objective"
    if seen.proposal:
        changes = ", ".join(f"{name} = {toml(value)}" for name, value in seen.proposal.items())
        gain = f", {seen.gain:.1%} fewer to miss the objective" if seen.gain else ""
        yield f"  would try  {changes}: {seen.reason}{gain}"
    else:
        yield "  would try  nothing: it expects no other knobs to do better"


def _way(way: "WayState") -> tuple[str, ...]:
    known = way.base_s is not None and way.row_s is not None
    return (
        f"{way.instances} x {way.threads}{' (now)' if way.present else ''}",
        _time((way.base_s or 0.0) + (way.row_s or 0.0)) if known else "",
        _time(way.row_s or 0.0) if known else "",
        "measured" if way.measured else "a guess" if known else "",
        "" if way.missed is None else f"{way.missed:.2%}",
    )


def _time(seconds: float) -> str:
    if seconds >= 1.0:
        return duration(seconds)
    return f"{seconds * 1e3:.3g} ms"


def _pinned(port: "ControlPort", told: Any, args: argparse.Namespace) -> Iterator[str]:
    models: list[ModelState] = port.states(told)
    for model in models:
        if args.version in ("", model.version):
            names = model.knobs.get("pinned", [])
            values = ", ".join(f"{name} = {toml(model.knobs[name])}" if name in model.knobs else name for name in names)
            version = f" version {model.version}" if len(models) > 1 else ""
            yield f"{model.name}{version}: pinned are {values}" if names else f"{model.name}{version}: nothing is pinned"

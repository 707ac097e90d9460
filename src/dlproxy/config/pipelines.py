"""What a pipeline is made of: steps, and what each takes from which; checked as far as names tell.

Used by knobs.py, effects.py and reading.py, read by whatever runs or simulates pipelines. Not aware of: models, types.
"""

import re
from collections.abc import Collection, Iterator, Mapping
from typing import Annotated, Any, NamedTuple

from msgspec import Struct

from dlproxy.config.traits import knob
from dlproxy.config.values import ConfigError, nearest

PIPELINE = "pipeline"  # the "path" of a model whose answers are made by steps
NOT = "not "


class StepConfig(Struct, frozen=True, kw_only=True, omit_defaults=True, forbid_unknown_fields=True):
    """[pipelines.NAME.steps.STEP]: one step of a pipeline: a model that is served here, or Python code."""

    model: Annotated[
        str, knob("the model that it asks, as NAME or NAME:VERSION, where a version is a number or a label", cost="reload")
    ] = ""
    call: Annotated[
        str,
        knob(
            "the code that it runs: a step that comes with dlproxy, such as image.decode, or file.py:name (relative to the "
            "configuration file's folder) or my_module:name of a function or class",
            cost="reload",
        ),
    ] = ""
    inputs: Annotated[
        dict[str, str],
        knob(
            "where each of its inputs comes from: an input of the pipeline by its name, or STEP.OUTPUT; several with | between "
            "them: the first that there is",
            cost="reload",
        ),
    ] = {}
    outputs: Annotated[
        dict[str, str],
        knob(
            'of code that does not say it: types and shapes of what it gives, as {text = "BYTES[-1]"}; needed where that is an '
            "output of the pipeline",
            cost="reload",
        ),
    ] = {}
    options: Annotated[
        dict[str, Any],
        knob(
            "arguments that the code is made with; file, and names that end in _file, are relative to the configuration file's "
            "folder",
            cost="reload",
        ),
    ] = {}
    each: Annotated[
        bool,
        knob(
            "run it for each item of those inputs that are lists, or each row of arrays; what it gives is a list, too",
            cost="reload",
        ),
    ] = False
    when: Annotated[
        str,
        knob(
            "STEP.OUTPUT, or not STEP.OUTPUT: run it only if that is true; with each, only for the items for which it is",
            cost="reload",
        ),
    ] = ""
    need: Annotated[
        int,
        knob(
            "run it with so many of its inputs once there is no time to wait for the others; 0: it needs all",
            cost="reload",
            ge=0,
            le=1024,
        ),
    ] = 0
    headers: Annotated[
        list[str],
        knob("of the request: code that takes a context finds them there; gRPC's metadata are headers, too", cost="reload"),
    ] = []

    @property
    def does(self) -> str:
        """What it asks or runs, in a word for people."""
        return self.model or self.call


class Source(NamedTuple):
    """Where a value comes from. `step`: empty for an input of the pipeline."""

    step: str
    name: str

    def __str__(self) -> str:
        return f"{self.step}.{self.name}" if self.step else self.name


class Wiring(Struct, frozen=True):
    """How a pipeline hangs together. `order`: every step, none before those it takes something from. `inputs`: by step and name
    of the input, from where, the first that there is. `when`: a step's condition, and the truth that it wants. `after`: by
    step, those that take something from it. `outputs`: the pipeline's.
    """

    order: tuple[str, ...]
    inputs: Mapping[str, Mapping[str, tuple[Source, ...]]]
    when: Mapping[str, tuple[Source, bool]]
    after: Mapping[str, tuple[str, ...]]
    outputs: Mapping[str, tuple[Source, ...]]

    def before(self, step: str) -> list[str]:
        """The steps that it takes something from."""
        return [other for other in self.order if step in self.after[other]]

    def behind(self, plain: Collection[str]) -> dict[str, str]:
        """Of these steps, those that take all they do from one other of these, which gives it to nobody else: which that is."""
        told = {source.step for sources in self.outputs.values() for source in sources}
        found = {}
        for name in plain:
            (other, *more) = self.after[name] or ("",)
            alone = not more and name not in told and other in plain and other not in self.when
            if alone and all([source.step for source in sources] == [name] for sources in self.inputs[other].values()):
                found[other] = name
        return found


def wired(steps: Mapping[str, StepConfig], inputs: Collection[str], outputs: Mapping[str, str]) -> Wiring:
    """Of a pipeline with these inputs and outputs. Raises ConfigError for steps that do not fit together."""
    if not steps:
        raise ConfigError("a pipeline has steps: [pipelines.NAME.steps.STEP]", "steps")
    if not outputs:
        raise ConfigError('a pipeline has outputs, such as outputs = {text = "read.text"}', "outputs")
    taken: dict[str, Mapping[str, tuple[Source, ...]]] = {}
    conditions: dict[str, tuple[Source, bool]] = {}
    for name, step in steps.items():
        _check_step(name, step)
        taken[name] = {
            key: _sources(text, f"steps.{name}.inputs.{key}", steps, inputs, "steps") for key, text in step.inputs.items()
        }
        if step.when:
            (source,) = _sources(step.when.removeprefix(NOT), f"steps.{name}.when", steps, inputs, "steps", most=1)
            conditions[name] = source, not step.when.startswith(NOT)
    given = {key: _sources(text, f"outputs.{key}", steps, inputs, "outputs") for key, text in outputs.items()}
    before = {name: set(_before(taken[name], conditions.get(name))) for name in steps}
    order = _order(before)
    after = {name: tuple(other for other in order if name in before[other]) for name in order}
    _check_all_used(order, after, given)
    return Wiring(order, taken, conditions, after, given)


def step_name(text: str, taken: Collection[str]) -> str:
    """A step's name for what has this one, such as a model, that no other step has."""
    word = re.sub(r"\W", "_", text, flags=re.ASCII)
    word = word if word.isidentifier() else f"_{word}"
    return next(name for count in range(1, len(taken) + 2) if (name := word if count == 1 else f"{word}_{count}") not in taken)


def _check_step(name: str, step: StepConfig) -> None:
    if not name.isidentifier():
        raise ConfigError(f"steps.{name}: a step's name has letters, digits and _ only, such as 'read'", "steps")
    if bool(step.model) == bool(step.call):
        raise ConfigError(f"steps.{name}: say either which model it asks or what it calls", "steps")
    if step.model and (step.options or step.outputs or step.headers):
        what = "options" if step.options else "outputs" if step.outputs else "headers"
        raise ConfigError(f"steps.{name}: {what} are for code (call), and this step asks a model", "steps")
    if not step.inputs:
        raise ConfigError(f"steps.{name}: it takes nothing; say where its inputs come from", "steps")
    if step.need > len(step.inputs):
        raise ConfigError(f"steps.{name}: need = {step.need}, and it has {len(step.inputs)} inputs", "steps")


def _sources(
    text: str, place: str, steps: Mapping[str, StepConfig], inputs: Collection[str], knob: str, *, most: int = 1 << 10
) -> tuple[Source, ...]:
    """Raises ConfigError for what names nothing."""
    found = []
    for part in text.split("|"):
        name, dot, output = part.strip().partition(".")
        if part.strip() in inputs or not dot:  # whose names may have dots, as those of outputs
            name, dot, output = "", "", part.strip()
        if not output or (dot and not name):
            raise ConfigError(f"{place}: {text!r} is not STEP.OUTPUT, nor the name of an input", knob)
        if dot and name not in steps:
            raise ConfigError(f"{place}: there is no step '{name}'; {nearest(name, steps)}", knob)
        if not dot and output not in inputs:
            known = [*inputs, *(f"{step}.…" for step in steps)]
            raise ConfigError(f"{place}: '{output}' is no input of the pipeline; {nearest(output, known)}", knob)
        found.append(Source(name, output))
    if len(found) > most:
        raise ConfigError(f"{place}: {text!r} is more than one", knob)
    return tuple(found)


def _before(taken: Mapping[str, tuple[Source, ...]], condition: tuple[Source, bool] | None) -> Iterator[str]:
    for sources in taken.values():
        yield from (source.step for source in sources if source.step)
    if condition is not None and condition[0].step:
        yield condition[0].step


def _order(before: Mapping[str, set[str]]) -> tuple[str, ...]:
    """Raises ConfigError for a circle."""
    order: list[str] = []
    while len(order) < len(before):
        ready = [name for name, steps in before.items() if name not in order and steps <= set(order)]
        if not ready:
            raise ConfigError(f"steps: {_circle(before, order)}, which is a circle", "steps")
        order += ready
    return tuple(order)


def _circle(before: Mapping[str, set[str]], done: Collection[str]) -> str:
    way = [next(name for name in before if name not in done)]
    while way.count(way[-1]) == 1:
        way.append(next(step for step in sorted(before[way[-1]]) if step not in done))
    return " takes from ".join(way[way.index(way[-1]) :])


def _check_all_used(
    order: Collection[str], after: Mapping[str, tuple[str, ...]], outputs: Mapping[str, tuple[Source, ...]]
) -> None:
    """A step that nobody takes anything from is a slip, and would be run for nothing."""
    wanted = {source.step for sources in outputs.values() for source in sources}
    for name in order:
        if not after[name] and name not in wanted:
            raise ConfigError(f"steps.{name}: nobody takes anything from it; leave it out, or name it in outputs", "steps")

"""A pipeline as it was loaded: its steps in order, with a numbered place for every value that goes between them.

Made by fleet.py, followed by run.py. Not aware of: requests, how a step does what it does.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING

from msgspec import Struct

from dlproxy.config.pipelines import Source, StepConfig, Wiring
from dlproxy.message import TensorSpec

if TYPE_CHECKING:
    from dlproxy.serve.pipelines.code import CodeStage
    from dlproxy.serve.pipelines.stages import ModelStage

Sources = tuple[int, ...]
"""Places that a value comes from, the first that there is."""


class Step(Struct, eq=False):
    """`inputs`: from where, by name. `when`: the place of the condition, and the truth that it wants. `outputs`: the places of
    those that somebody takes. `after`: the steps that take something from it, by number. `direct`: it takes only what clients
    sent. `optional`: whoever takes something from it can do without. `first`: it waits for no other. `then`: the step whose
    code takes nothing but what this one's gives to nobody else, by number: they run one behind the other on a thread; there,
    `behind` is this one.
    """

    name: str
    number: int
    stage: "ModelStage | CodeStage"
    inputs: tuple[tuple[str, Sources], ...]
    outputs: Mapping[str, int]
    after: tuple[int, ...]
    when: tuple[int, bool] | None
    each: bool
    need: int
    direct: bool
    optional: bool
    feeds_outputs: bool
    first: bool
    then: int | None = None
    behind: int | None = None

    def __str__(self) -> str:
        return f"stage '{self.name}' ({self.stage})"


class Plan(Struct, eq=False):
    """`places`: how many there are; those of the pipeline's inputs come first. `outputs`: what each is, and from where."""

    steps: tuple[Step, ...]
    places: int
    outputs: tuple[tuple[TensorSpec, Sources], ...]


def planned(
    wiring: Wiring,
    steps: Mapping[str, StepConfig],
    stages: "Mapping[str, ModelStage | CodeStage]",
    inputs: tuple[TensorSpec, ...],
    outputs: tuple[TensorSpec, ...],
) -> Plan:
    """Of a pipeline with these inputs and outputs, whose steps were found to fit together."""
    places: dict[Source, int] = {Source("", spec.name): place for place, spec in enumerate(inputs)}
    taken = wanted(wiring)
    for name in wiring.order:
        for output in taken[name]:
            places[Source(name, output)] = len(places)
    numbers = {name: number for number, name in enumerate(wiring.order)}
    giving = {source.step for sources in wiring.outputs.values() for source in sources}
    made = []
    for name in wiring.order:
        condition, needed = wiring.when.get(name), [*wiring.inputs[name].values()]
        after = wiring.after[name]
        made.append(
            Step(
                name=name,
                number=numbers[name],
                stage=stages[name],
                inputs=tuple((key, tuple(places[one] for one in found)) for key, found in wiring.inputs[name].items()),
                outputs={output: places[Source(name, output)] for output in taken[name]},
                after=tuple(numbers[other] for other in after),
                when=None if condition is None else (places[condition[0]], condition[1]),
                each=steps[name].each,
                need=steps[name].need,
                direct=all(not source.step for found in needed for source in found),
                optional=name not in giving and all(_does_without(other, name, wiring, steps) for other in after),
                feeds_outputs=name in giving,
                first=not wiring.before(name),
            )
        )
    plain = [name for name, step in steps.items() if not (step.model or step.each or step.need)]
    for name, before in wiring.behind(plain).items():
        made[numbers[before]].then, made[numbers[name]].behind = numbers[name], numbers[before]
    found = tuple((spec, tuple(places[source] for source in wiring.outputs[spec.name])) for spec in outputs)
    return Plan(tuple(made), len(places), found)


def wanted(wiring: Wiring) -> dict[str, tuple[str, ...]]:
    """By step, those of its outputs that somebody takes."""
    found: dict[str, dict[str, None]] = {name: {} for name in wiring.order}
    for name in wiring.order:
        for sources in wiring.inputs[name].values():
            _note(found, sources)
        if name in wiring.when:
            _note(found, (wiring.when[name][0],))
    for sources in wiring.outputs.values():
        _note(found, sources)
    return {name: tuple(outputs) for name, outputs in found.items()}


def _note(found: dict[str, dict[str, None]], sources: tuple[Source, ...]) -> None:
    for source in sources:
        if source.step:
            found[source.step][source.name] = None


def _does_without(other: str, name: str, wiring: Wiring, steps: Mapping[str, StepConfig]) -> bool:
    """Whether this step runs without what the step of that name gives, if others give enough."""
    condition = wiring.when.get(other)
    return steps[other].need > 0 and (condition is None or condition[0].step != name)

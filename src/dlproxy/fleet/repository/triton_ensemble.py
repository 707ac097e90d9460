"""Triton's ensembles as steps of a pipeline: each of its tensors is an input, or what one step makes.

Called by triton_config.py. Not aware of: files, knobs but these, whether the models are there.
"""

from collections.abc import Collection, Mapping, Sequence

from msgspec import Struct

from dlproxy.config import ConfigError
from dlproxy.config.pipelines import StepConfig, step_name
from dlproxy.config.values import nearest

LATEST = (-1, 0)  # 0: the file says none


class Step(Struct, frozen=True):
    """`input_map`: by input of the model, the ensemble's tensor; `output_map`: by output of the model."""

    model_name: str = ""
    model_version: int = 0
    input_map: Mapping[str, str] = {}
    output_map: Mapping[str, str] = {}


class Ensembling(Struct, frozen=True):
    step: tuple[Step, ...] = ()


def as_steps(
    ensemble: Ensembling, inputs: Collection[str], outputs: Collection[str], ignored: list[str]
) -> tuple[dict[str, StepConfig], dict[str, str]]:
    """The steps of a pipeline, and where its outputs come from. `ignored` gets what has no effect. Raises ConfigError."""
    names = _named(ensemble.step)
    made = {tensor: tensor for tensor in inputs}
    for name, step in names.items():
        for output, tensor in step.output_map.items():
            if tensor in made:
                other = "an input of the ensemble" if made[tensor] == tensor else f"made by {made[tensor]}"
                raise ConfigError(f"step of '{step.model_name}': its tensor '{tensor}' is {other}, too")
            made[tensor] = f"{name}.{output}"
    for name in (*inputs, *(output for step in ensemble.step for output in step.output_map)):
        if "|" in name:
            raise ConfigError(f"'{name}' is no name of an input or output that a pipeline can have: it has a |")

    def source(tensor: str, whose: str) -> str:
        if tensor not in made:
            raise ConfigError(
                f"{whose} is the tensor '{tensor}', which is no input, and no step makes it; {nearest(tensor, made)}"
            )
        return made[tensor]

    given = {tensor: source(tensor, f"output '{tensor}'") for tensor in outputs}
    steps = {
        name: StepConfig(
            model=step.model_name if step.model_version in LATEST else f"{step.model_name}:{step.model_version}",
            inputs={
                key: source(tensor, f"step of '{step.model_name}': input '{key}'") for key, tensor in step.input_map.items()
            },
        )
        for name, step in names.items()
    }
    used = _used(steps, given)
    ignored += [f"the step of {step.model} (nobody takes anything from it)" for name, step in steps.items() if name not in used]
    return {name: step for name, step in steps.items() if name in used}, given


def _named(steps: Sequence[Step]) -> dict[str, Step]:
    """By names that a pipeline's steps may have: those of their models, as far as these are words."""
    found: dict[str, Step] = {}
    if not steps:
        raise ConfigError("ensemble_scheduling has no steps")
    for step in steps:
        if not step.model_name or ":" in step.model_name:
            raise ConfigError(f"ensemble_scheduling: a step's model_name is {step.model_name!r}")
        if step.model_version < min(LATEST):
            raise ConfigError(f"step of '{step.model_name}': model_version is {step.model_version}; it is -1 or a version")
        found[step_name(step.model_name, found)] = step
    return found


def _used(steps: Mapping[str, StepConfig], outputs: Mapping[str, str]) -> set[str]:
    """Steps that an output needs."""
    sources = list(outputs.values())
    used = set[str]()
    for source in sources:
        name, dot, _ = source.partition(".")
        if dot and name in steps and name not in used:
            used.add(name)
            sources += steps[name].inputs.values()
    return used

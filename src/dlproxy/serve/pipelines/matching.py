"""Whether what one step gives is what the next one takes, and what the pipeline itself takes and gives; names both ends.

Called by fleet.py when a pipeline is loaded, and when a stage's model changes. Not aware of: requests, how steps run.
"""

from collections.abc import Mapping

import msgspec

from dlproxy.config.pipelines import Source, StepConfig, Wiring
from dlproxy.instance.runtime import ModelError
from dlproxy.instance.runtime.declared import fits, parse_spec, written
from dlproxy.message import TensorSpec
from dlproxy.serve.pipelines.code import CodeStage
from dlproxy.serve.pipelines.stages import Bound, ModelStage

Stages = Mapping[str, ModelStage | CodeStage]
Bounds = Mapping[str, Bound]
"""Models as they are now, by step."""
Specs = Mapping[str, TensorSpec]
"""The pipeline's inputs, by name."""


def inputs_of(wiring: Wiring, declared: Mapping[str, str], steps: Mapping[str, StepConfig], bound: Bounds) -> list[TensorSpec]:
    """What the pipeline takes: as it is declared or, where that is empty, as the first model that takes it does.

    Raises ModelError.
    """
    found = []
    for name, text in declared.items():
        spec = parse_spec(name, text) if text.strip() else _as_taken(name, wiring, bound)
        if spec is None:
            raise ModelError(f'inputs.{name}: no model takes it as it is; say what it is, as in {name} = "FP32[-1,784]"')
        found.append(msgspec.structs.replace(spec, name=name, default=None, padded=None))
    return found


def outputs_of(
    wiring: Wiring, inputs: Specs, steps: Mapping[str, StepConfig], stages: Stages, bound: Bounds
) -> list[TensorSpec]:
    """What it gives: what those steps give that its outputs come from. Raises ModelError."""
    found = []
    for name, sources in wiring.outputs.items():
        specs = []
        for source in sources:
            spec = given(source, inputs, steps, stages, bound)
            if spec is None:
                raise ModelError(
                    f"outputs.{name}: {_said(source, stages)} does not say what '{source.name}' is; give it outputs, as in "
                    f'outputs = {{ {source.name} = "FP32[-1,10]" }}'
                )
            specs.append(spec)
        same = msgspec.structs.replace(specs[0], name=name, counts="", padded=None, axes=())
        for source, spec in zip(sources[1:], specs[1:], strict=True):
            if (spec.dtype, len(spec.shape)) != (same.dtype, len(same.shape)):
                raise ModelError(
                    f"outputs.{name}: {_said(sources[0], stages)} gives {written(specs[0])}, "
                    f"{_said(source, stages)} gives {written(spec)}"
                )
            shape = tuple(one if one == other else -1 for one, other in zip(same.shape, spec.shape, strict=True))
            same = msgspec.structs.replace(same, shape=shape, text=same.text and spec.text)
        found.append(same)
    return found


def check(wiring: Wiring, inputs: Specs, steps: Mapping[str, StepConfig], stages: Stages, bound: Bounds) -> None:
    """Raises ModelError for a model that takes another type or shape than it is given."""
    for name, model in bound.items():
        for spec in model.inputs:
            for source in wiring.inputs[name][spec.name]:
                comes = given(source, inputs, steps, stages, bound)
                if comes is not None and not _suits(comes, spec, steps, name, source, batched=model.served.signature.batched):
                    raise ModelError(
                        f"steps.{name}.inputs.{spec.name}: {_said(source, stages)} gives {written(comes)} ('{source.name}'), "
                        f"and {stages[name]} takes {written(spec)} ('{spec.name}')"
                    )
    for name, model in bound.items():
        if model.served.signature.sequences:
            raise ModelError(
                f"stage '{name}': {stages[name]} has sequences, and requests of a pipeline are of none: ask it directly"
            )
        alone = all(source.step == name for sources in wiring.outputs.values() for source in sources)
        if model.served.signature.streams and (not alone or wiring.after[name] or steps[name].each):
            raise ModelError(
                f"stage '{name}': {stages[name]} answers in parts, so it must be the last step, without each, and all outputs "
                "must be its"
            )


def given(source: Source, inputs: Specs, steps: Mapping[str, StepConfig], stages: Stages, bound: Bounds) -> TensorSpec | None:
    """What comes from there, of items what they make together; None if the step does not say. Raises ModelError."""
    if not source.step:
        return inputs[source.name]
    stage = stages[source.step]
    if isinstance(stage, CodeStage):
        if stage.outputs and source.name not in stage.outputs:
            raise ModelError(
                f"stage '{source.step}' ({stage}) gives no output '{source.name}'; its outputs are {', '.join(stage.outputs)}"
            )
        return stage.outputs.get(source.name)
    model = bound[source.step]
    spec = next(spec for spec in model.outputs if spec.name == source.name)
    if steps[source.step].each and spec.shape[:1] != (-1,):
        return msgspec.structs.replace(spec, shape=(-1, *spec.shape), axes=(), rows=0)
    return spec


def _as_taken(name: str, wiring: Wiring, bound: Bounds) -> TensorSpec | None:
    for step, model in bound.items():
        for spec in model.inputs:
            if Source("", name) in wiring.inputs[step][spec.name]:
                return spec
    return None


def _suits(
    comes: TensorSpec, spec: TensorSpec, steps: Mapping[str, StepConfig], name: str, source: Source, *, batched: bool
) -> bool:
    if comes.dtype is not spec.dtype:
        return False
    each = steps[name].each
    ranks = {len(spec.shape)} | ({len(spec.shape) + 1, len(spec.shape) - 1} if each else set())
    if len(comes.shape) not in ranks:
        return False
    if len(comes.shape) != len(spec.shape):
        return True  # how items are cut is seen when there are some
    loose = each or (bool(source.step) and steps[source.step].each)
    axis = (spec.rows or 0) if batched or loose else None
    pairs = [
        (one, other)
        for place, (one, other) in enumerate(zip(comes.shape, spec.shape, strict=True))
        if not (loose and place == axis)
    ]
    return all(one == other or -1 in (one, other) for one, other in pairs) or fits(comes.shape, spec.shape)


def _said(source: Source, stages: Stages) -> str:
    return f"step '{source.step}' ({stages[source.step]})" if source.step else "the pipeline"

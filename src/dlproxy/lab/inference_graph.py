"""KServe's InferenceGraph as pipelines: the tables of dlproxy.toml that do the same with tensors as it does with bodies.

Called by cli/graphs.py. Not aware of: files, servers; what models take and give is asked. How KServe's router reads a graph:
cmd/router/main.go of kserve/kserve.
"""

from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any, Literal, TypeAlias

import msgspec
from msgspec import Struct

from dlproxy.config import ConfigError, ModelConfig, check
from dlproxy.config.pipelines import PIPELINE, StepConfig, step_name
from dlproxy.lab.gjson import case_of
from dlproxy.lab.toml_text import key_text, value_text

ROOT = "root"
Specs: TypeAlias = Mapping[str, str]  # by name, as "FP32[-1,4]"


class Tensors(Struct, frozen=True):
    """What a model takes and gives."""

    inputs: Specs
    outputs: Specs


class Step(Struct, frozen=True, rename="camel"):
    name: str = ""
    service_name: str = ""
    node_name: str = ""
    service_url: str = ""
    data: str = ""
    condition: str = ""
    dependency: str = "Soft"
    weight: int = 0

    @property
    def label(self) -> str:
        return self.name or self.service_name or self.node_name

    @property
    def takes_response(self) -> bool:
        """Of the step before; else the request."""
        return self.data.startswith("$response")


class Node(Struct, frozen=True, rename="camel"):
    router_type: Literal["Sequence", "Switch", "Ensemble", "Splitter"]
    steps: tuple[Step, ...] = ()


class Metadata(Struct, frozen=True):
    name: str = "graph"


class Spec(Struct, frozen=True):
    nodes: dict[str, Node]


class InferenceGraph(Struct, frozen=True):
    spec: Spec
    kind: Literal["InferenceGraph"]
    metadata: Metadata = Metadata()


class Tables(Struct, frozen=True):
    """`pipelines`: in the order of what they ask. `notes`: what the graph says and they do not."""

    pipelines: Mapping[str, ModelConfig]
    notes: tuple[str, ...]


def as_pipelines(graph: Any, tensors_of: Callable[[str], Tensors]) -> Tables:
    """`graph`: as JSON or YAML has it. `tensors_of`: a model. Raises ConfigError for what no pipeline does."""
    try:
        read = msgspec.convert(graph, InferenceGraph)
    except msgspec.ValidationError as error:
        raise ConfigError(f"it is no InferenceGraph: {str(error)[:1].lower()}{str(error)[1:]}") from None
    if ROOT not in read.spec.nodes:
        raise ConfigError(f"it has no node '{ROOT}'; it has {', '.join(read.spec.nodes) or 'none'}")
    translation = _Translation(read, tensors_of)
    others = [f"{name} has no effect here" for name in graph["spec"] if name != "nodes"]
    translation.node(ROOT)
    for pipeline in translation.pipelines.values():
        check(pipeline)
    return Tables(translation.pipelines, tuple(dict.fromkeys([*others, *translation.notes])))


class _Branch(Struct):
    """A step as it becomes one of a pipeline. `model`: that it asks."""

    name: str
    step: Step
    model: str
    tensors: Tensors


class _Pipeline:
    """One that is made. All methods raise ConfigError."""

    def __init__(self, node: str, names: Collection[str]) -> None:
        self.node = node
        self.names = names  # of the steps that are models
        self.steps: dict[str, StepConfig] = {}
        self.inputs: dict[str, str] = {}

    def taken(self, branch: _Branch) -> dict[str, str]:
        """Inputs of a model that come from the request, which the pipeline takes then, too."""
        for name, spec in branch.tensors.inputs.items():
            if self.inputs.setdefault(name, spec) != spec:
                kinds = f"{self.inputs[name]} and {spec}"
                raise ConfigError(f"node '{self.node}': its steps take the input '{name}' of the request as {kinds}")
        return {name: name for name in branch.tensors.inputs}

    def choose(self, name: str, cases: Mapping[str, Mapping[str, Any]], sources: Mapping[str, str]) -> str:
        """A step that compares; its name."""
        name = step_name(name, {*self.names, *self.steps})
        used = dict.fromkeys(case["input"] for case in cases.values())
        self.steps[name] = StepConfig(
            call="choose",
            inputs={one: sources[one] for one in used},
            outputs=dict.fromkeys(cases, "BOOL[1]"),
            options={"cases": dict(cases)},
        )
        return name


class _Translation:
    def __init__(self, graph: InferenceGraph, tensors_of: Callable[[str], Tensors]) -> None:
        self.pipelines: dict[str, ModelConfig] = {}
        self.notes: list[str] = []
        self._graph = graph
        self._tensors_of = tensors_of
        self._known: dict[str, tuple[str, Tensors]] = {}
        self._open: list[str] = []

    def node(self, name: str) -> tuple[str, Tensors]:
        """The model that stands for a node, and what it takes and gives."""
        if name in self._known:
            return self._known[name]
        node = self._graph.spec.nodes.get(name)
        if node is None:
            raise ConfigError(f"there is no node '{name}'; there are: {', '.join(self._graph.spec.nodes)}")
        if name in self._open:
            raise ConfigError(f"nodes ask each other in a circle: {' asks '.join([*self._open, name])}")
        if not node.steps:
            raise ConfigError(f"node '{name}' has no steps")
        self._open.append(name)
        model = self._graph.metadata.name if name == ROOT else f"{self._graph.metadata.name}-{name}"
        make = {"Sequence": self._sequence, "Switch": self._switch, "Ensemble": self._ensemble}.get(node.router_type)
        tensors = self._splitter(name, model, node) if make is None else self._made(name, model, node, make)
        self._open.pop()
        self._known[name] = model, tensors
        return model, tensors

    def _made(
        self, name: str, model: str, node: Node, make: "Callable[[_Pipeline, list[_Branch]], dict[str, tuple[str, str]]]"
    ) -> Tensors:
        names = list[str]()
        pipeline = _Pipeline(name, names)
        branches = []
        for step in node.steps:
            asked, tensors = self._asked(name, step)
            names.append(step_name(step.label, names))
            branches.append(_Branch(names[-1], step, asked, tensors))
            if step.dependency != "Hard" and node.router_type == "Sequence":
                self.notes.append("a step that fails makes the request fail, as with dependency: Hard")
        given = make(pipeline, branches)
        sources = {output: source for output, (source, _) in given.items()}
        self.pipelines[model] = ModelConfig(path=PIPELINE, inputs=pipeline.inputs, outputs=sources, steps=pipeline.steps)
        return Tensors(pipeline.inputs, {output: spec for output, (_, spec) in given.items()})

    def _asked(self, node: str, step: Step) -> tuple[str, Tensors]:
        if step.service_url:
            raise ConfigError(
                f"node '{node}': a step names serviceUrl {step.service_url}: serve that as a model here, "
                "[models.NAME] path = ADDRESS, and give the step serviceName: NAME"
            )
        if bool(step.service_name) == bool(step.node_name):
            raise ConfigError(f"node '{node}': a step names either a serviceName or a nodeName")
        return self.node(step.node_name) if step.node_name else (step.service_name, self._tensors_of(step.service_name))

    # What a node does. Each gives the source and the type and shape of every output.

    def _sequence(self, pipeline: _Pipeline, branches: list[_Branch]) -> dict[str, tuple[str, str]]:
        """Once a condition does not hold, what came before it is the answer."""
        answer: dict[str, tuple[str, str]] = {}
        before: _Branch | None = None
        when = ""
        begin = next((max(at - 1, 0) for at, branch in enumerate(branches) if branch.step.condition), len(branches) - 1)
        while begin > 0 and branches[begin].step.takes_response:
            begin -= 1
        for branch in branches[:begin]:
            self.notes.append(f"node '{pipeline.node}', step '{branch.name}' is left out: nothing takes its response")
        for branch in branches[begin:]:
            place = f"node '{pipeline.node}', step '{branch.name}'"
            if branch.step.condition:
                if before is None:
                    raise ConfigError(f"{place}: the condition of the first step has no response to look at")
                case = case_of(branch.step.condition, before.tensors.outputs, "response", place)
                sources = {name: f"{before.name}.{name}" for name in before.tensors.outputs}
                when = f"{pipeline.choose(f'if_{branch.name}', {'met': case}, sources)}.met"
            feeder = before if branch.step.takes_response else None
            taken = pipeline.taken(branch) if feeder is None else _fed(branch, feeder, place)
            pipeline.steps[branch.name] = StepConfig(model=branch.model, inputs=taken, when=when)
            given = {name: (f"{branch.name}.{name}", spec) for name, spec in branch.tensors.outputs.items()}
            if when:
                _check_alike(given, answer, f"{place}: where its condition does not hold, the answer")
                given = {name: (f"{source} | {answer[name][0]}", spec) for name, (source, spec) in given.items()}
            answer, before = given, branch
        return answer

    def _switch(self, pipeline: _Pipeline, branches: list[_Branch]) -> dict[str, tuple[str, str]]:
        """The first whose condition holds; where none does, the request fails."""
        taken = {branch.name: pipeline.taken(branch) for branch in branches}
        cases = {}
        for branch in branches:
            place = f"node '{pipeline.node}', step '{branch.name}'"
            if not branch.step.condition:
                raise ConfigError(f"{place}: it has no condition, and so is never taken")
            cases[branch.name] = case_of(branch.step.condition, pipeline.inputs, "request", place)
        choose = pipeline.choose("choose", cases, {name: name for name in pipeline.inputs})
        answer: dict[str, tuple[str, str]] = {}
        for branch in branches:
            pipeline.steps[branch.name] = StepConfig(
                model=branch.model, inputs=taken[branch.name], when=f"{choose}.{branch.name}"
            )
            given = {name: (f"{branch.name}.{name}", spec) for name, spec in branch.tensors.outputs.items()}
            if answer:
                _check_alike(given, answer, f"node '{pipeline.node}', step '{branch.name}': another step")
                given = {name: (f"{source} | {given[name][0]}", spec) for name, (source, spec) in answer.items()}
            answer = given
        return answer

    def _ensemble(self, pipeline: _Pipeline, branches: list[_Branch]) -> dict[str, tuple[str, str]]:
        """KServe answers with one body of a step's name each: here outputs have these names."""
        answer: dict[str, tuple[str, str]] = {}
        for branch in branches:
            pipeline.steps[branch.name] = StepConfig(model=branch.model, inputs=pipeline.taken(branch))
            alone = len(branch.tensors.outputs) == 1
            for name, spec in branch.tensors.outputs.items():
                answer[branch.name if alone else f"{branch.name}_{name}"] = f"{branch.name}.{name}", spec
        return answer

    def _splitter(self, name: str, model: str, node: Node) -> Tensors:
        """No pipeline: versions of one model, which share its requests."""
        if sum(step.weight for step in node.steps) != 100:
            raise ConfigError(f"node '{name}': the weights of a Splitter sum to 100")
        alike: Tensors | None = None
        commands = []
        for number, step in enumerate(node.steps, 1):
            if not step.service_name:
                raise ConfigError(f"node '{name}': a Splitter whose step is no serviceName has no counterpart here")
            tensors = self._tensors_of(step.service_name)
            if alike not in (None, tensors):
                raise ConfigError(f"node '{name}': {step.service_name} takes or gives others than {node.steps[0].service_name}")
            alike = tensors
            share = f" --canary {step.weight}%" if number > 1 else ""
            commands.append(f"  dlproxy models load {model} PATH_OF_{step.service_name} --version {number}{share}")
        self.notes.append(
            f"a Splitter is no pipeline: what '{model}' splits are versions of one model that share its requests:"
        )
        self.notes += commands
        assert alike is not None
        return alike


def _fed(branch: _Branch, before: _Branch, place: str) -> dict[str, str]:
    """Its inputs from the outputs of the step before: by name, or the only one from the only one."""
    inputs, outputs = branch.tensors.inputs, before.tensors.outputs
    if inputs.keys() <= outputs.keys():
        return {name: f"{before.name}.{name}" for name in inputs}
    if len(inputs) == len(outputs) == 1:
        return {next(iter(inputs)): f"{before.name}.{next(iter(outputs))}"}
    raise ConfigError(
        f"{place}: it takes {', '.join(inputs)} of the response before, which has {', '.join(outputs)}: "
        "which is which, names do not tell"
    )


def _check_alike(given: Mapping[str, object], answer: Mapping[str, object], what: str) -> None:
    if given.keys() != answer.keys():
        raise ConfigError(f"{what} has {', '.join(answer)} in place of {', '.join(given)}; a pipeline's outputs have one name")


def toml_of(tables: Tables) -> Iterator[str]:
    """The lines."""
    yield from (f"# {note}" for note in tables.notes)
    for name, config in tables.pipelines.items():
        yield ""
        yield f"[pipelines.{key_text(name)}]"
        yield f"inputs = {value_text(config.inputs)}"
        yield f"outputs = {value_text(config.outputs)}"
        for step, made_of in config.steps.items():
            yield ""
            yield f"[pipelines.{key_text(name)}.steps.{step}]"
            yield from (f"{key} = {value_text(value)}" for key, value in msgspec.to_builtins(made_of).items())

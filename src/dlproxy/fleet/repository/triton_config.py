"""Triton's configuration of a model, config.pbtxt, and what of it a model here has: its path, its knobs, its versions.

Called by model_folder.py. Not aware of: which GPUs there are, what is served.
What becomes of which field: docs/guides/triton-config.md.
"""

import re
from collections.abc import Callable, Iterator, Mapping
from itertools import starmap
from math import prod
from operator import itemgetter
from pathlib import Path, PurePosixPath
from typing import Any, Literal

import msgspec
from msgspec import Struct

from dlproxy.config import ConfigError, ModelConfig
from dlproxy.config.pipelines import PIPELINE
from dlproxy.fleet.repository.text_format import line_of, read_json, read_text
from dlproxy.fleet.repository.triton_ensemble import Ensembling, as_steps
from dlproxy.fleet.repository.triton_sequences import Sequencing, filled, sequence_knobs
from dlproxy.fleet.repository.version_choice import Latest, VersionChoice
from dlproxy.fleet.repository.version_policy import VersionPolicy
from dlproxy.instance.samples import WarmupInput
from dlproxy.policy.queueing import DEFAULT_LEVEL, LOWEST_LEVEL
from dlproxy.protos.triton_config import triton_config

Framework = Literal["onnx", "torch", "tensorflow"]

FILES: dict[Framework, str] = {"onnx": "model.onnx", "torch": "model.pt", "tensorflow": "model.savedmodel"}
_FRAMEWORKS: dict[str, Framework] = {  # by platform, and by backend
    "onnxruntime_onnx": "onnx",
    "pytorch_libtorch": "torch",
    "tensorflow_savedmodel": "tensorflow",
    "onnxruntime": "onnx",
    "pytorch": "torch",
    "tensorflow": "tensorflow",
}
_ADVICE = {
    "python": "write a Python class with predict, and name it in dlproxy.toml beside config.pbtxt: path = 'file.py:MyModel'",
    "tensorrt_plan": "export ONNX",
    "tensorrt": "export ONNX",
    "tensorflow_graphdef": "export a SavedModel",
    "openvino": "export ONNX, and set device = 'openvino:CPU'",
}
_THREADS = {"onnx": "intra_op_thread_count", "torch": "INTRA_OP_THREAD_COUNT", "tensorflow": "TF_NUM_INTRA_THREADS"}
_WITHOUT_EFFECT = frozenset(  # what changes neither answers nor when they come: names, and hints to Triton's own memory
    (
        *("runtime", "input.format", "instance_group.name"),
        *("optimization.input_pinned_memory", "optimization.output_pinned_memory"),
        *("sequence_batching.state.use_same_buffer_for_input_output", "sequence_batching.state.use_growable_memory"),
    )
)
_NUMBERED = re.compile(r".+__([0-9]{1,4})")  # an output that is said to be the Nth
_STRICT_S = 3600.0  # of ageing_s: nobody waits so long that his level matters less
_MOST_BATCH, _MOST_INSTANCES, _MOST_THREADS, _MOST_WAIT_S = 65536, 256, 1024, 60.0  # the ranges of the knobs


class Reshape(Struct, frozen=True):
    shape: tuple[int, ...] = ()


class Tensor(Struct, frozen=True):
    """An input or output; `dims` without the rows, if the model is batched."""

    name: str = ""
    data_type: str = "TYPE_INVALID"
    dims: tuple[int, ...] = ()
    reshape: Reshape | None = None
    allow_ragged_batch: bool = False
    optional: bool = False
    label_filename: str = ""


class InstanceGroup(Struct, frozen=True):
    kind: Literal["KIND_AUTO", "KIND_GPU", "KIND_CPU", "KIND_MODEL"] = "KIND_AUTO"
    count: int = 0
    gpus: tuple[int, ...] = ()
    passive: bool = False


class QueuePolicy(Struct, frozen=True):
    timeout_action: Literal["REJECT", "DELAY"] = "REJECT"
    default_timeout_microseconds: int = 0
    allow_timeout_override: bool = False
    max_queue_size: int = 0


class DynamicBatching(Struct, frozen=True):
    preferred_batch_size: tuple[int, ...] = ()
    max_queue_delay_microseconds: int = 0
    priority_levels: int = 0
    default_priority_level: int = 0
    default_queue_policy: QueuePolicy = QueuePolicy()
    priority_queue_policy: Mapping[int, QueuePolicy] = {}


class Warmup(Struct, frozen=True):
    name: str = ""
    batch_size: int = 0
    inputs: Mapping[str, WarmupInput] = {}
    count: int = 0


class Parameter(Struct, frozen=True):
    string_value: str = ""


class ResponseCache(Struct, frozen=True):
    enable: bool = False


class Accelerator(Struct, frozen=True):
    name: str = ""


class Accelerators(Struct, frozen=True):
    gpu_execution_accelerator: tuple[Accelerator, ...] = ()
    cpu_execution_accelerator: tuple[Accelerator, ...] = ()


class Optimization(Struct, frozen=True):
    execution_accelerators: Accelerators = Accelerators()


class TritonConfig(Struct, frozen=True):
    """What dlproxy looks at, under Triton's names; a dict where it only matters that it is there.

    `others`: further fields that are set.
    """

    name: str = ""
    platform: str = ""
    backend: str = ""
    max_batch_size: int = 0
    version_policy: VersionChoice = VersionChoice()
    input: tuple[Tensor, ...] = ()
    output: tuple[Tensor, ...] = ()
    instance_group: tuple[InstanceGroup, ...] = ()
    dynamic_batching: DynamicBatching | None = None
    sequence_batching: Sequencing | None = None
    ensemble_scheduling: Ensembling | None = None
    batch_input: tuple[dict[str, Any], ...] = ()
    batch_output: tuple[dict[str, Any], ...] = ()
    default_model_filename: str = ""
    parameters: Mapping[str, Parameter] = {}
    model_warmup: tuple[Warmup, ...] = ()
    response_cache: ResponseCache = ResponseCache()
    optimization: Optimization = Optimization()
    others: tuple[str, ...] = ()


def read_triton_config(text: str, where: str) -> TritonConfig:
    """The content of config.pbtxt. Raises ConfigError, which names the line."""
    config, others = read_text(text, where, triton_config, TritonConfig)
    return _checked(config, others, where, text)


def read_triton_json(data: Mapping[str, Any], where: str) -> TritonConfig:
    """The same as JSON, which is how Triton's clients send it. Raises ConfigError."""
    config, others = read_json(data, where, triton_config, TritonConfig)
    return _checked(config, others, where, "")


def _checked(config: TritonConfig, others: list[str], where: str, text: str) -> TritonConfig:
    """With `others`. Raises ConfigError for values that Triton refuses, too."""
    for field, what in _mistakes(config):
        raise ConfigError(f"{where}{line_of(text, field)}: {what}")
    return msgspec.structs.replace(config, others=tuple(others))


def _mistakes(config: TritonConfig) -> Iterator[tuple[str, str]]:
    """The field at fault, and what is wrong with it."""
    if config.max_batch_size < 0:
        yield "max_batch_size", f"max_batch_size is {config.max_batch_size}; it must not be negative"
    for group in config.instance_group:
        if any(gpu < 0 for gpu in group.gpus):
            yield "gpus", f"gpus are {', '.join(map(str, group.gpus))}; they must not be negative"
        if group.gpus and group.kind == "KIND_CPU":
            yield "gpus", "an instance_group of KIND_CPU names gpus"
    batching = config.dynamic_batching or DynamicBatching()
    levels, default = batching.priority_levels, batching.default_priority_level
    if levels and not 0 < default <= levels:
        field = "default_priority_level" if default else "priority_levels"
        yield field, f"default_priority_level is {default}; it is 1 to {levels}, as priority_levels says"
    for level in batching.priority_queue_policy:
        if levels and not 0 < level <= levels:
            yield "priority_queue_policy", f"priority_queue_policy is for level {level}; there are 1 to {levels}"
    for size in batching.preferred_batch_size:
        if not 0 < size <= config.max_batch_size:
            yield "preferred_batch_size", f"preferred_batch_size is {size}; it is 1 to max_batch_size, {config.max_batch_size}"
    for tensor in (*config.input, *config.output):
        yield from _mistaken_shape(tensor)
    if config.version_policy.latest == Latest(num_versions=0):  # which is one for TensorFlow Serving
        yield "latest", "version_policy is the latest 0 versions; num_versions says how many"
    try:
        config.version_policy.policy()
    except ConfigError as wrong:
        yield "specific", str(wrong)


def _mistaken_shape(tensor: Tensor) -> Iterator[tuple[str, str]]:
    reshape = tensor.dims if tensor.reshape is None else tensor.reshape.shape
    if any(size < 1 and size != -1 for size in (*tensor.dims, *reshape)):
        yield tensor.name, f"a size of {tensor.name} is neither above 0 nor -1"
    elif reshape.count(-1) != tensor.dims.count(-1) or (-1 not in reshape and prod(reshape) != prod(tensor.dims)):
        yield tensor.name, f"reshape of {tensor.name} has another number of elements than its dims"


def translated(config: TritonConfig, folder: Path, version_folder: Path) -> tuple[ModelConfig, VersionPolicy, list[str]]:
    """The model as dlproxy has it, which versions are served, and at most one warning: of what has no effect.

    `folder`: the model's, `version_folder`: the version's in it. Raises ConfigError for a model that cannot be served.
    """
    model, ignored = translation(config, folder, version_folder)
    ignored = [what for what in ignored if what not in _WITHOUT_EFFECT]
    warnings = [f"its Triton configuration sets what has no effect here: {', '.join(ignored)}"] if ignored else []
    return model, config.version_policy.policy() or VersionPolicy(), warnings


def translation(config: TritonConfig, folder: Path, version_folder: Path) -> tuple[ModelConfig, list[str]]:
    """The same, and each setting that has no effect, with a reason in brackets where there is one. Raises ConfigError."""
    ignored = [*config.others, *_ignored_tensors(config)]
    knobs = _ensemble(config, ignored) if is_ensemble(config) else _single(config, version_folder, ignored)
    if config.response_cache.enable and config.sequence_batching is None:
        knobs["cache"] = "on"
    elif config.response_cache.enable:
        ignored.append("response_cache (answers depend on the requests before)")
    if config.name not in ("", folder.name):
        ignored.append(f"the name {config.name} (its folder is named {folder.name})")
    return ModelConfig(**knobs), ignored


def is_ensemble(config: TritonConfig) -> bool:
    """Whether it is made of other models."""
    return config.platform == "ensemble" or config.ensemble_scheduling is not None


def _single(config: TritonConfig, version_folder: Path, ignored: list[str]) -> dict[str, Any]:
    framework = _framework(config, version_folder)
    knobs: dict[str, Any] = {"path": str(version_folder / _file(config, framework))}
    knobs |= _batching(config, ignored) | _queueing(config, ignored) | _instances(config, framework, ignored)
    knobs |= _threads(config, framework, ignored)
    if config.sequence_batching is not None:
        knobs |= sequence_knobs(config.sequence_batching, batched=config.max_batch_size > 0, ignored=ignored)
    return knobs | (_declared(config) if framework == "torch" else {})


def _ensemble(config: TritonConfig, ignored: list[str]) -> dict[str, Any]:
    """Of a pipeline. What concerns batches, instances and devices, its models say themselves."""
    if config.ensemble_scheduling is None:
        raise ConfigError("its platform is ensemble, and it has no ensemble_scheduling")
    inputs = {one.name: _spec(config, one) for one in config.input}
    steps, outputs = as_steps(config.ensemble_scheduling, inputs, [one.name for one in config.output], ignored)
    ignored += [field for field in ("instance_group", "default_model_filename", "parameters") if getattr(config, field)]
    ignored += ["optimization.execution_accelerators"] * any(_named(config.optimization.execution_accelerators))
    if config.model_warmup:
        ignored.append("model_warmup (its models are warmed up)")
    return {"path": PIPELINE, "inputs": inputs, "outputs": outputs, "steps": steps}


def warmups(config: TritonConfig, file: Callable[[str], Path]) -> list[dict[str, WarmupInput]]:
    """The rows that the model is warmed up with. `file`: of that name in its folder warmup. Raises ConfigError, OSError."""
    if is_ensemble(config):
        return []
    rows = (1,) if config.max_batch_size else ()
    found = []
    for warmup in config.model_warmup:
        inputs = {}
        for name, one in warmup.inputs.items():
            path = PurePosixPath(one.input_data_file)
            if path.is_absolute() or ".." in path.parts:
                raise ConfigError(f"input_data_file is {str(path)!r}, which lies outside of the model's folder warmup")
            local = str(file(one.input_data_file)) if one.input_data_file else ""
            inputs[name] = msgspec.structs.replace(one, dims=(*rows, *one.dims), input_data_file=local)
        found.append(inputs)
    return found


def label_file(config: TritonConfig) -> str:
    """In the model's folder: the names of the classes of every output; empty if there is none. Raises ConfigError."""
    names = {one.label_filename for one in config.output}
    name = names.pop() if len(names) == 1 else ""
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts:
        raise ConfigError(f"it is {name!r}, which lies outside of the model's folder")
    return name


def _framework(config: TritonConfig, version_folder: Path) -> Framework:
    """Raises ConfigError for models that need what dlproxy does not have."""
    if config.batch_input or config.batch_output:
        raise ConfigError("it has batch_input or batch_output, which Triton makes of each batch and dlproxy does not")
    named = config.platform or config.backend
    if named:
        if named not in _FRAMEWORKS:
            advice = f"; {_ADVICE[named]}" if named in _ADVICE else ""
            kinds = ", ".join(name for name in _FRAMEWORKS if "_" in name)
            raise ConfigError(f"its {'platform' if config.platform else 'backend'} is {named}; dlproxy runs {kinds}{advice}")
        return _FRAMEWORKS[named]
    for framework, name in FILES.items():
        file = Path(config.default_model_filename or name)
        if file.suffix == Path(name).suffix and (version_folder / file).exists():
            return framework
    raise ConfigError(f"it names no platform or backend, and {version_folder} holds no {' or '.join(FILES.values())}")


def _file(config: TritonConfig, framework: Framework) -> str:
    name = PurePosixPath(config.default_model_filename or FILES[framework])
    if name.is_absolute() or ".." in name.parts:
        raise ConfigError(f"default_model_filename is {str(name)!r}, which lies outside of the version's folder")
    return str(name)


def _batching(config: TritonConfig, ignored: list[str]) -> dict[str, Any]:
    """Without dynamic_batching, too, as Triton itself turns it on for ONNX and TensorFlow models; then by evidence."""
    batching = config.dynamic_batching
    if config.max_batch_size == 0:
        return {"batching": "off"}
    rows = config.max_batch_size  # that no request exceeds, too, as clients of Triton know it
    knobs: dict[str, Any] = {"max_batch": min(rows, _MOST_BATCH), "max_request_rows": min(rows, 1 << 24)}
    if config.sequence_batching is not None:
        knobs["batching"] = "on"
    if batching is not None:
        knobs["batching"] = "on"
        knobs["max_wait_s"] = min(batching.max_queue_delay_microseconds / 1e6, _MOST_WAIT_S)
        if batching.preferred_batch_size:
            ignored.append("preferred_batch_size (sizes follow from measured times)")
    return knobs


def _queueing(config: TritonConfig, ignored: list[str]) -> dict[str, Any]:
    batching = config.dynamic_batching or DynamicBatching()
    policy, levels = batching.default_queue_policy, batching.priority_levels
    knobs: dict[str, Any] = {}
    if levels:
        knobs |= {"discipline": "priority", "ageing_s": _STRICT_S}
        if batching.default_priority_level != DEFAULT_LEVEL:
            ignored.append(f"default_priority_level (requests that name none have level {DEFAULT_LEVEL})")
        if levels > LOWEST_LEVEL:
            ignored.append(f"priority_levels above {LOWEST_LEVEL} (they count as {LOWEST_LEVEL})")
    if policy.default_timeout_microseconds and policy.timeout_action == "REJECT":
        knobs["slo"] = f"p99={policy.default_timeout_microseconds}us"
    elif policy.timeout_action == "DELAY":
        ignored.append("timeout_action DELAY (no request is put back)")
    if policy.max_queue_size:
        knobs["max_queue_rows"] = min(max(policy.max_queue_size, config.max_batch_size), 1 << 24)
    if batching.priority_queue_policy:
        ignored.append("priority_queue_policy")
    return knobs


def _instances(config: TritonConfig, framework: Framework, ignored: list[str]) -> dict[str, Any]:
    """How many there are, and on which devices: each gets the next of a list."""
    accelerators = config.optimization.execution_accelerators
    places: list[str] = []
    for group in config.instance_group:
        if group.passive:
            ignored.append("instance_group with passive")
            continue
        devices = _devices(group, accelerators if framework == "onnx" else Accelerators())
        places += [place for _ in range(min(max(group.count, 1), _MOST_INSTANCES)) for place in devices]
        if group.kind == "KIND_GPU" and not group.gpus:
            ignored.append("instance_group on every GPU (without gpus it is on the first)")
    used = {place.partition(":")[0] for place in places}
    ignored += [f"the execution accelerator {name}" for name in _named(accelerators) if name not in used]
    if not places:
        return {}
    places = places[:_MOST_INSTANCES]
    return {"instances": len(places), "device": ",".join(_repeated(places))}


def _devices(group: InstanceGroup, accelerators: Accelerators) -> list[str]:
    """The devices of one round of a group's instances."""
    if group.kind == "KIND_CPU":
        return ["openvino:CPU" if any(one.name == "openvino" for one in accelerators.cpu_execution_accelerator) else "cpu"]
    if group.kind == "KIND_MODEL" or not (group.gpus or group.kind == "KIND_GPU"):
        return ["auto"]
    kind = "tensorrt" if any(one.name == "tensorrt" for one in accelerators.gpu_execution_accelerator) else "cuda"
    return [f"{kind}:{gpu}" for gpu in group.gpus or (0,)]


def _named(accelerators: Accelerators) -> Iterator[str]:
    yield from (one.name for one in (*accelerators.gpu_execution_accelerator, *accelerators.cpu_execution_accelerator))


def _repeated(places: list[str]) -> list[str]:
    """The shortest list that gives these places in turn."""
    return next(
        places[:size] for size in range(1, len(places) + 1) if all(one == places[at % size] for at, one in enumerate(places))
    )


def _threads(config: TritonConfig, framework: Framework, ignored: list[str]) -> dict[str, Any]:
    ours = _THREADS[framework]
    ignored += [f"the parameter {name}" for name in config.parameters if name != ours]
    text = config.parameters[ours].string_value if ours in config.parameters else "0"
    if not (text.isascii() and text.isdecimal()) or int(text) > _MOST_THREADS:
        raise ConfigError(f"the parameter {ours} is {text!r}; it is a number of threads, up to {_MOST_THREADS}")
    return {"threads": int(text)}


def _declared(config: TritonConfig) -> dict[str, Any]:
    """For models that do not say their inputs and outputs themselves."""
    inputs, outputs = config.input, config.output
    if config.sequence_batching is not None:
        taken, given = filled(config.sequence_batching)
        inputs, outputs = (*inputs, *starmap(Tensor, taken)), (*outputs, *starmap(Tensor, given))
    numbers = [_NUMBERED.fullmatch(one.name) for one in outputs]
    order = [int(match[1]) for match in numbers if match is not None]
    if len(order) == len(outputs):
        outputs = tuple(one for _, one in sorted(zip(order, outputs, strict=True), key=itemgetter(0)))
    return {
        "inputs": {one.name: _spec(config, one) for one in inputs},
        "outputs": {one.name: _spec(config, one) for one in outputs},
    }


def _spec(config: TritonConfig, tensor: Tensor) -> str:
    if tensor.data_type == Tensor().data_type:
        kind = "a torch model" if config.ensemble_scheduling is None else "an ensemble"
        raise ConfigError(f"{tensor.name} has no data_type, which {kind} does not say itself")
    dims = tensor.reshape.shape if tensor.reshape is not None else tensor.dims
    sizes = [*(["batch"] if config.max_batch_size else []), *map(str, dims)]
    return f"{tensor.data_type.removeprefix('TYPE_').replace('STRING', 'BYTES')}[{','.join(sizes)}]"


def _ignored_tensors(config: TritonConfig) -> Iterator[str]:
    for one in (*config.input, *config.output):
        if one.reshape is not None:
            yield f"reshape of {one.name} (clients see the model's own shape)"
        if one.allow_ragged_batch:
            yield f"allow_ragged_batch of {one.name}"
        if one.optional:
            yield f"optional of {one.name} (unless the model has a default for it)"
    if len({one.label_filename for one in config.output}) > 1:
        yield "label_filename (outputs that differ in it)"

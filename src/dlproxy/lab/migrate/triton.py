"""A model folder of Triton's, or a repository of them, as tables of dlproxy.toml.

Called by __init__.py. Not aware of: what config.pbtxt means (fleet/repository/triton_config.py), GPUs.
"""

from collections.abc import Iterator
from pathlib import Path

import msgspec

from dlproxy.config import ConfigError, ModelConfig
from dlproxy.config.pipelines import PIPELINE
from dlproxy.fleet.repository.model_file import model_path
from dlproxy.fleet.repository.model_folder import TRITON, WARMUP, said, versions_in
from dlproxy.fleet.repository.tree import LocalTree
from dlproxy.fleet.repository.triton_config import (
    FILES,
    DynamicBatching,
    TritonConfig,
    is_ensemble,
    label_file,
    read_triton_config,
    translation,
)
from dlproxy.fleet.repository.version_policy import VersionPolicy
from dlproxy.instance.runtime.formats import suffixes
from dlproxy.lab.migrate.draft import Draft, Table
from dlproxy.lab.migrate.reading import read

_BECAUSE = {
    "path": "platform or backend, and the version's folder",
    "version": "version_policy",
    "max_batch": "max_batch_size",
    "max_request_rows": "max_batch_size: larger requests are refused, as by Triton",
    "max_wait_s": "max_queue_delay_microseconds",
    "discipline": "priority_levels",
    "ageing_s": "priority_levels: their order is strict",
    "slo": "default_timeout_microseconds: here for the answer, not for a place in a batch",
    "max_queue_rows": "max_queue_size: here it counts rows",
    "instances": "instance_group: count",
    "device": "instance_group: kind and gpus; execution_accelerators",
    "threads": "parameters: threads of the backend",
    "inputs": "input",
    "outputs": "output",
    "cache": "response_cache",
    "sequences": "sequence_batching",
    "sequence_idle_s": "max_sequence_idle_microseconds",
    "sequence_controls": "control_input",
    "state": "state: input_name and output_name",
    "initial_state": "state: dims, or initial_state",
    "max_sequences": "max_candidate_sequences",
}
_TODO = {  # by how the name of a setting that has no effect begins: what to do
    "reshape": "clients send and get the model's own shape",
    "allow_ragged_batch": "requests of other shapes share no batch, unless they can be padded: docs/guides/models.md",
    "optional": "give the input a default in the model, or have clients send it",
    "timeout_action DELAY": "no late request is put back here; clients name their own deadline, or set slo",
    "priority_queue_policy": "slo_by_priority has an objective for each priority",
    "default_priority_level": "a request that names no priority has level 4 here: have clients name theirs",
    "priority_levels above": "there are 8 here: have clients name others",
    "instance_group on every GPU": 'name the others, as device = "cuda:0,cuda:1"',
    "instance_group with passive": "there are no passive instances; a model that is asked by others only may be any model",
    "the execution accelerator": "docs/guides/models.md has the devices that there are",
    "label_filename": "class_names is one file for all outputs",
    "the parameter": "there is nothing like it here; if the model needs it, set it in a Python class that runs the model",
    "the name": "it is the folder's name here, which clients ask for",
    "model_transaction_policy": "a model that answers in parts is a Python class that yields: docs/guides/streaming.md",
    "model_repository_agents": "signatures of models are checked by [integrity]: docs/security.md",
    "the step": "leave it out",
}
_WHY = {  # the same: why nothing is to be done
    "preferred_batch_size": "sizes of batches follow from measured times",
    "max_candidate_sequences": "up to 4096 sequences are kept, and none waits for another to end",
    "optimization": "the runtime optimises the model as it is loaded",
    "instance_group.name": "instances have numbers here",
    "instance_group.rate_limiter": "[server] arbiter shares the cores out",
    "instance_group": "a pipeline's models have their own",
    "dynamic_batching.preserve_ordering": "each connection gets its answers in order",
    "metric_tags": "Prometheus adds labels as it scrapes",
    "model_metrics": "metrics are histograms here: docs/guides/operations.md",
    "response_cache": "answers depend on the requests before",
    "sequence_batching": "how its memory is kept, and which batches are formed, follows from measured times",
    "input.format": "it changes nothing: the model's own shape holds",
    "runtime": "it names a library of Triton's",
    "model_warmup": "the models of a pipeline are warmed up themselves",
    "ensemble_scheduling": "each model has its own bounds",
    "default_model_filename": "a pipeline has no file",
    "parameters": "a pipeline's models have their own",
}


def add_triton(draft: Draft, folder: Path) -> None:
    """A model's folder, or one of such folders. Raises ConfigError."""
    if (folder / TRITON).is_file():
        _add_model(draft, folder)
        return
    found = sorted(one for one in folder.iterdir() if (one / TRITON).is_file())
    for one in found:
        _add_model(draft, one)
    draft.heading.append(f"It is served as it is, too: dlproxy serve --repository {draft.path(folder)}")


def _add_model(draft: Draft, folder: Path) -> None:
    text = read(folder / TRITON)
    config = read_triton_config(text, str(folder / TRITON))
    try:
        versions, _ = versions_in(LocalTree(folder).entries(""), suffixes())
        policy = config.version_policy.policy() or VersionPolicy()
        chosen = policy.chosen(versions) or sorted(versions, key=int)[-1:] or ["1"]
        found = {number: translation(config, folder, folder / versions.get(number, number)) for number in chosen}
    except (ConfigError, OSError) as error:
        table = draft.table("models", folder.name)
        table.left_out = True
        file = "model.py:MyModel" if "python" in (config.backend, config.platform) else "model.onnx"
        table.set("path", draft.path(folder / "1" / file), "")
        table.hand("it cannot be served as it is", said(error))
        return
    model, ignored = found[chosen[-1]]
    pipeline = model.path == PIPELINE
    table = draft.table("pipelines" if pipeline else "models", folder.name)
    if pipeline:
        _add_steps(draft, folder.name, model)
    else:
        _add_paths(draft, table, {number: one.path for number, (one, _) in found.items()}, policy)
    _add_knobs(table, config, model)
    _add_files(draft, table, config, folder)
    for what in ignored:
        _note(table, what)
    for field, why in _rest(config):
        if field not in draft.told(folder.name):
            table.unneeded(field, why)


def _add_paths(draft: Draft, table: Table, paths: dict[str, str], policy: VersionPolicy) -> None:
    """One version is the table itself; several have one each."""
    for number, path in paths.items():
        place = table if len(paths) == 1 else draft.table(*table.keys, "versions", number)
        try:
            path = model_path(Path(path))
        except (ConfigError, OSError) as error:
            place.hand("path", said(error))
        place.set("path", draft.path(path), _BECAUSE["path"])
        if len(paths) == 1 and number != "1":
            place.set("version", number, _BECAUSE["version"])
        if policy.specific and number not in policy.specific:
            place.hand("version_policy", f"it is to be version {', '.join(policy.specific)}, which is not there")


def _add_knobs(table: Table, config: TritonConfig, model: ModelConfig) -> None:
    found, defaults = msgspec.to_builtins(model), msgspec.to_builtins(ModelConfig(path=""))
    for knob, value in found.items():
        if value == defaults[knob] or knob in ("path", "version", "steps"):
            continue
        because = _BECAUSE.get(knob, "")
        if knob == "batching":
            because = "dynamic_batching" if config.dynamic_batching else "sequence_batching"
            because = because if config.max_batch_size else "max_batch_size is 0, so that requests have no rows"
        table.set(knob, value, because)


def _add_steps(draft: Draft, name: str, model: ModelConfig) -> None:
    for step, made_of in model.steps.items():
        place = draft.table("pipelines", name, "steps", step)
        for knob, value in msgspec.to_builtins(made_of).items():
            place.set(knob, value, "ensemble_scheduling: model_name" if knob == "model" else "input_map and output_map")


def _add_files(draft: Draft, table: Table, config: TritonConfig, folder: Path) -> None:
    """Names of classes, and inputs to warm up with."""
    try:
        name = label_file(config)
    except ConfigError as error:
        table.hand("label_filename", str(error))
        name = ""
    if name:
        table.set("class_names", draft.path(folder / name), "label_filename")
        if not (folder / name).is_file():
            table.hand("label_filename", f"{folder / name} is not there")
    if is_ensemble(config) or not config.model_warmup:
        return
    files = sorted({one.input_data_file for warmup in config.model_warmup for one in warmup.inputs.values()} - {""})
    if files:
        todo = "save these inputs as an .npz file, an array for each input, and name it: samples = 'warmup.npz'"
        table.hand(f"model_warmup ({', '.join(str(folder / WARMUP / file) for file in files)})", todo)
    else:
        table.unneeded("model_warmup", "every model is warmed up before it is announced, with inputs that are made up")


def _note(table: Table, what: str) -> None:
    name, _, reason = what.partition(" (")
    for begin, todo in _TODO.items():
        if name.startswith(begin):
            table.hand(name, todo)
            return
    why = next((why for begin, why in _WHY.items() if f"{name}.".startswith(f"{begin}.")), "")
    if why or reason:
        table.unneeded(name, why or reason.removesuffix(")"))
    else:
        table.hand(name, "there is nothing like it here: docs/guides/triton-config.md")


def _rest(config: TritonConfig) -> Iterator[tuple[str, str]]:
    """Settings of which nothing may have been said yet, and a word of each."""
    reasons = {
        "name": "it is the folder's",
        "platform": "the steps say it",
        "backend": "the steps say it",
        "input": f"a model's file says its own, unless it is {FILES['torch']}",
        "output": f"a model's file says its own, unless it is {FILES['torch']}",
        "max_batch_size": "each model of a pipeline has its own",
        "dynamic_batching": "it is how every model is served",
        "version_policy": "the folder of the version that is served is the path",
        "instance_group": "it is as many as there are by default",
        "parameters": "they are as by default",
        "default_model_filename": "it is the end of the path",
    }
    default = TritonConfig()
    if (config.dynamic_batching or DynamicBatching()).default_queue_policy.allow_timeout_override:
        yield "allow_timeout_override", "a client's own timeout is heeded anyway"
    yield from ((field, why) for field, why in reasons.items() if getattr(config, field) != getattr(default, field))

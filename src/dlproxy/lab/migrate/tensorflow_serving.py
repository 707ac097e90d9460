"""TensorFlow Serving's models.config and its batching parameters as tables of dlproxy.toml.

Called by __init__.py. Not aware of: what lies in a SavedModel.
"""

import shlex
from pathlib import Path

from dlproxy.config.paths import is_model_name, scheme_of
from dlproxy.fleet.repository.model_folder import versions_in
from dlproxy.fleet.repository.tfs_config import BatchingParameters, ListedModel, models_and_rest, read_batching_parameters
from dlproxy.fleet.repository.tree import LocalTree
from dlproxy.fleet.repository.version_policy import VersionPolicy
from dlproxy.lab.migrate.draft import Draft, Table
from dlproxy.lab.migrate.reading import read

BATCHING_FILES = ("batching_parameters.txt", "batching_parameters.config", "batching.config", "batching.txt")
_WARMUP = "assets.extra/tf_serving_warmup_requests"


def add_tensorflow_serving(draft: Draft, file: Path, batching: Path | None) -> None:
    """`file`: models.config. `batching`: the parameters, where they do not lie beside it. Raises ConfigError."""
    models, rest = models_and_rest(read(file), str(file))
    beside = [file.with_name(name) for name in BATCHING_FILES if file.with_name(name).is_file()]
    batching = batching or next(iter(beside), None)
    parameters = None if batching is None else read_batching_parameters(read(batching), str(batching))
    draft.heading.append(f"It is served as it is, too, and followed: dlproxy serve --repository {draft.path(file)} --tfs")
    draft.table("server").set("tfs", True, "TensorFlow Serving's ports: 8500 for gRPC, 8501 for REST")
    for model in models:
        if not is_model_name(model.name):
            draft.table("server").hand(f"the model {model.name!r}", "its name cannot be one here: no slash, printable text")
            continue
        table = draft.table("models", model.name)
        _add_versions(draft, table, model)
        if parameters is None:
            table.unneeded("--enable_batching", "whether requests share a batch is found out as the model is warmed up")
        else:
            _add_batching(table, parameters)
        for label, version in model.labels.items():
            command = shlex.join(["dlproxy", "models", "label", model.name, label, version])
            table.hand(f"version_labels: {label}", f"once it is served: {command} (or serve models.config as it is)")
    for name in dict.fromkeys(one.rpartition(".")[2] for one in rest):
        todo = "there is nothing like it here; [server] access_log logs requests without their data"
        draft.table("server").hand(name, todo)


def _add_versions(draft: Draft, table: Table, model: ListedModel) -> None:
    """Those that are there, as TensorFlow Serving would choose them."""
    policy = model.policy or VersionPolicy()
    folder = Path(model.base_path)
    found: dict[str, str] = {}
    if not scheme_of(model.base_path) and folder.is_dir():
        found, _ = versions_in(LocalTree(folder).entries(""), ())
    chosen = policy.chosen(found)
    for number in chosen:
        place = table if len(chosen) == 1 else draft.table(*table.keys, "versions", number)
        path = folder / found[number]
        place.set("path", draft.path(path), "base_path, model_platform and the version's folder")
        if len(chosen) == 1 and number != "1":
            place.set("version", number, "model_version_policy" if model.policy else "the latest version")
        if not (path / "saved_model.pb").is_file():
            place.hand("path", f"{path} holds no saved_model.pb")
        if (path / _WARMUP).is_file():
            place.hand(_WARMUP, "save its inputs as an .npz file, an array for each input, and name it: samples = 'warmup.npz'")
    if not chosen:
        number = next(iter(policy.specific), "1")
        wanted = f"{model.base_path.rstrip('/')}/{number}"
        table.set("path", wanted if scheme_of(wanted) else draft.path(wanted), "base_path")
        if scheme_of(wanted):
            todo = "copy the version's folder here, or serve the store: [server] repository = models.config, or the URL"
        else:
            todo = f"there is no version {number} in {folder}, as seen from here; write the folder of the version to serve"
        table.hand("base_path", todo)
    if policy.latest == 0 or policy.latest > 1:
        table.unneeded(
            "model_version_policy", "the versions that are there now are listed; a repository is followed as it changes"
        )


def _add_batching(table: Table, parameters: BatchingParameters) -> None:
    rows = parameters.max_batch_size
    most = parameters.max_execution_batch_size or rows
    if most is not None:
        table.set("max_batch", most, "max_execution_batch_size" if parameters.max_execution_batch_size else "max_batch_size")
    if rows is not None and not parameters.enable_large_batch_splitting:
        table.set("max_request_rows", rows, "max_batch_size: larger requests are refused, as by TensorFlow Serving")
    if parameters.enable_large_batch_splitting is not None:
        table.unneeded("enable_large_batch_splitting", "requests of many rows are split anyway, up to max_request_rows")
    if parameters.batch_timeout_micros is not None:
        table.set("max_wait_s", parameters.batch_timeout_micros / 1e6, "batch_timeout_micros")
    if parameters.max_enqueued_batches is not None:
        because = "max_enqueued_batches, times the size of a batch: here it counts rows"
        table.set("max_queue_rows", parameters.max_enqueued_batches * (rows or 1000), because)  # 1000: its own default
    if parameters.num_batch_threads is not None:
        table.unneeded("num_batch_threads", "as many instances run side by side as are measured to pay; instances = N says it")
    if parameters.thread_pool_name is not None:
        table.unneeded("thread_pool_name", "instances have numbers")
    if parameters.allowed_batch_sizes:
        table.unneeded("allowed_batch_sizes", "batches are not filled up with made-up rows; sizes follow from measured times")
    if parameters.pad_variable_length_inputs:
        table.set("padding", "on", "pad_variable_length_inputs: only if warm-up shows that it changes no answer")

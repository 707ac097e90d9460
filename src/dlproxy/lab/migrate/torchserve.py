"""TorchServe's config.properties, model-config.yaml and model archives as tables of dlproxy.toml.

Called by __init__.py. Archives are looked into, never unpacked. Not aware of: what a handler does, tensors.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import msgspec

from dlproxy.config import ConfigError
from dlproxy.lab.migrate.archive import Archive, is_archive, open_archive
from dlproxy.lab.migrate.draft import Draft, Table
from dlproxy.lab.migrate.handlers import add_handler
from dlproxy.lab.migrate.reading import read, whole, yaml_of

PROPERTIES, MODEL_CONFIG = "config.properties", "model-config.yaml"
_ADDRESSES = {"inference_address": "http_port", "management_address": "control_port"}
_EACH = {  # what config.properties says of every model: its name for one model
    "default_workers_per_model": "minWorkers",
    "default_response_timeout": "responseTimeout",
    "default_startup_timeout": "startupTimeout",
    "job_queue_size": "jobQueueSize",
}
_OF_SERVER = {"grpc_inference_port": "grpc_port", "max_request_size": "max_body_bytes"}
_MODELS = ("model_store", "load_models", "models", "number_of_gpu")
_WHY = {  # settings that have nothing to do here
    "vmargs": "there is no Java",
    "metrics_address": "metrics are on the control port, as /metrics",
    "grpc_management_port": "models are managed on the control port, over HTTP",
    "grpc_management_address": "models are managed on the control port, over HTTP",
    "number_of_netty_threads": "one event loop serves all connections; [server] gateways adds others",
    "netty_client_threads": "one event loop serves all connections; [server] gateways adds others",
    "max_response_size": "answers have no bound of their own",
    "async_logging": "no log line waits for a disk",
    "prefer_direct_buffer": "bodies are used where they were received",
    "enable_metrics_api": "there are always metrics",
    "metrics_mode": "Prometheus asks for them: /metrics on the control port",
    "metrics_config": "what is counted is in docs/guides/operations.md",
    "metrics_format": "it is Prometheus'",
    "model_metrics_auto_detect": "every model is counted",
    "metric_time_interval": "they are as of the moment at which they are asked for",
    "disable_system_metrics": "use node_exporter for those of the machine",
    "unregister_model_timeout": "a model that is unloaded finishes what it has, for up to [server] drain_s",
    "decode_input_request": "bodies are tensors, or JSON of them",
    "initial_worker_port": "worker processes have no ports",
    "initial_distribution_port": "worker processes have no ports",
    "allowed_urls": "models come from this file alone",
    "enable_model_api": "dlproxy models load and unload ask the control port",
    "model_server_home": "paths count from this file's folder",
    "cors_allowed_methods": "those that there are, are allowed",
    "cors_allowed_headers": "those that clients need, are allowed",
    "keystore_type": "see keystore",
    "keystore_pass": "see keystore",
    "limit_max_image_pixels": "image.decode has max_pixels",
    "snapshot": "what operators change is kept by [server] store",
    "cpu_launcher_enable": "threads and instances are measured as a model is loaded",
    "cpu_launcher_args": "threads and instances are measured as a model is loaded",
    "maxWorkers": "workers are not added by load there; here autoscale = 'in-flight' and max_instances do",
    "asyncCommunication": "workers are asked so anyway",
    "maxRetryTimeoutInSec": "a worker process that ends is started again, with longer and longer waits",
    "defaultVersion": "the latest version is what clients get who name none",
    "marName": "see path",
}
_TODO = {  # settings without an equivalent
    "keystore": "make PEM files of it, and name them in [tls]: openssl pkcs12 -in KEYSTORE -nodes -out server.pem",
    "enable_envvars_config": "look for TS_... variables that set more; here they are DLPROXY_...",
    "install_py_dep_per_model": "install what the models need into dlproxy's environment",
    "blacklist_env_vars": "start dlproxy without the variables that models must not see",
    "workflow_store": "a workflow is a pipeline here: docs/guides/pipelines.md",
    "disable_token_authorization": "who may ask is said by [auth]: docs/security.md",
    "default_service_handler": "write what it does as a Python class, or as steps of a pipeline",
    "service_envelope": "clients ask by the Open Inference Protocol, or as docs/guides/http-api.md says",
    "plugins_path": "there are no plug-ins of Java's",
    "grpc_inference_address": "all ports listen on [server] host",
    "ipex_enable": "export ONNX, or apply it in a Python class",
    "parallelType": "a model that one device does not hold can be split: docs/guides/split.md",
    "parallelLevel": "a model that one device does not hold can be split: docs/guides/split.md",
    "torchrun": "a model that one device does not hold can be split: docs/guides/split.md",
    "sequenceBatching": "say what the state is, or write a Python class that keeps it: docs/guides/sequences.md",
    "maxNumSequence": "it is max_sequences, with sequences: docs/guides/sequences.md",
    "maxSequenceJobQueueSize": "requests of a sequence wait in the model's queue: docs/guides/sequences.md",
    "sequenceMaxIdleMSec": "it is sequence_idle_s, with sequences: docs/guides/sequences.md",
    "sequenceTimeoutMSec": "it is sequence_idle_s, with sequences: docs/guides/sequences.md",
    "continuousBatching": "write a Python class that yields: docs/guides/streaming.md",
    "useJobTicket": "give max_queue_rows a small number: what would wait longer is answered 503",
    "useVenv": "all models share dlproxy's environment; serve others by a dlproxy of their own, as upstream",
    "handler": "these are the handler's own options: give them to the Python class that does its work",
    "pt2": "torch.compile is no format: export the model with torch.export.save, and serve the .pt2",
}


class Wanted(NamedTuple):
    """A model that is to be served. `own`: what is said of it alone."""

    name: str
    archive: Archive | None
    own: Mapping[str, Any]
    where: str


def add_torchserve(draft: Draft, place: Path) -> None:
    """An archive, a folder of them, or a configuration file. Raises ConfigError."""
    if is_archive(place):
        archive = open_archive(place)
        _add_model(draft, Wanted(archive.name, archive, {}, str(place)), {})
    elif place.suffix in (".yaml", ".yml"):
        _add_model(draft, Wanted(place.absolute().parent.name, None, yaml_of(read(place), str(place)), str(place)), {})
    elif place.is_dir():
        for one in sorted(file for file in place.iterdir() if is_archive(file)):
            add_torchserve(draft, one)
    else:
        _add_properties(draft, place)


def properties_of(text: str) -> dict[str, tuple[int, str]]:
    """What Java reads as properties: by name the line and the value."""
    found: dict[str, tuple[int, str]] = {}
    logical, begun = "", 0
    for number, line in enumerate(text.splitlines(), start=1):
        part = line.strip() if not logical else line.lstrip()
        if not logical and (not part or part[0] in "#!"):
            continue
        begun = begun if logical else number
        logical += part
        if (len(part) - len(part.rstrip("\\"))) % 2:
            logical = logical[:-1]
            continue
        key, value = (re.match(r"\s*([^=:\s]+)\s*[=:\s]?\s*(.*)", logical) or re.match("()(.*)", logical)).groups()  # type: ignore[union-attr]
        found[key] = begun, value.replace("\\\\", "\\").strip()
        logical = ""
    return found


def _add_properties(draft: Draft, file: Path) -> None:
    found = properties_of(read(file))
    server = draft.table("server")
    for name, (line, value) in found.items():
        where = f"{file}:{line}"
        if name in _ADDRESSES:
            _add_address(draft, name, value, where)
        elif name in _OF_SERVER:
            place = server if name.startswith("grpc") else draft.table("http")
            place.set(_OF_SERVER[name], whole(value, name, where), name)
        elif name in ("private_key_file", "certificate_file"):
            draft.table("tls").set("key" if name.startswith("private") else "cert", draft.path(file.parent / value), name)
        elif name == "cors_allowed_origin":
            draft.table("http").set("cors_origins", [one.strip() for one in value.split(",")], name)
        elif name in _WHY:
            server.unneeded(name, _WHY[name])
        elif name in _TODO:
            (draft.table("tls") if name == "keystore" else server).hand(name, _TODO[name])
        elif name not in (*_EACH, *_MODELS):
            server.hand(name, "it is no setting that is known")
    if "inference_address" not in found:
        server.set("http_port", 8080, "TorchServe's own port")
    each = {_EACH[name]: found[name][1] for name in _EACH if name in found}
    if each.get("minWorkers") == "0":
        del each["minWorkers"]
        server.unneeded("default_workers_per_model", "0: as many instances as are measured to pay")
    if "number_of_gpu" in found:
        count = whole(found["number_of_gpu"][1], "number_of_gpu", f"{file}:{found['number_of_gpu'][0]}")
        each |= {"number_of_gpu": str(min(count, 64))}
    for wanted in _wanted(found, file, server):
        _add_model(draft, wanted, each)


def _add_address(draft: Draft, name: str, value: str, where: str) -> None:
    server = draft.table("server")
    if value.startswith("unix:"):
        server.set("uds", value.removeprefix("unix:").removeprefix("//"), name)
        return
    try:
        address = urlsplit(value)
        port = address.port or {"https": 443, "http": 80}[address.scheme]
    except (KeyError, ValueError):
        raise ConfigError(f"{where}: {name} is {value[:80]!r}, which is no address such as http://127.0.0.1:8080") from None
    server.set(_ADDRESSES[name], port, name)
    if name == "inference_address":
        server.set("host", address.hostname or "127.0.0.1", name)


def _wanted(found: Mapping[str, tuple[int, str]], file: Path, server: Table) -> list[Wanted]:
    """The models that `load_models` and `models` name, of those in the store."""
    store = file.parent / found.get("model_store", (0, "."))[1]
    line, text = found.get("models", (0, ""))
    try:
        said = msgspec.json.decode(text, type=dict[str, dict[str, dict[str, Any]]]) if text else {}
    except (msgspec.MsgspecError, RecursionError) as error:
        raise ConfigError(f"{file}:{line}: models is not JSON as it should be: {str(error)[:200]}") from None
    listed = found.get("load_models", (0, ""))[1]
    words = [word.strip() for word in listed.split(",") if word.strip()]
    if words in (["standalone"], ["none"], ["N/A"]):
        words = []
    archives = sorted(one for one in store.iterdir() if is_archive(one)) if store.is_dir() else []
    if words == ["all"] or not (words or said):
        words = [one.name for one in archives]
    by_file = {version.get("marName", ""): (name, version) for name, versions in said.items() for version in versions.values()}
    wanted = []
    for word in dict.fromkeys([*words, *(f"{name}={mar}" for mar, (name, _) in by_file.items() if mar not in words)]):
        name, equals, mar = word.rpartition("=")
        path = store / Path(mar).name
        archive = open_archive(path) if is_archive(path) else None
        name = name if equals else (archive.name if archive else Path(mar).stem)
        if archive is None:
            server.hand(f"the model {name}", f"{path} is no archive that is there")
        wanted.append(Wanted(name, archive, by_file.get(mar, ("", {}))[1], f"{file}:{line}"))
    return wanted


def _add_model(draft: Draft, wanted: Wanted, each: Mapping[str, Any]) -> None:
    """`each`: what holds unless something is said of this model alone."""
    table = draft.table("models", wanted.name)
    if table.values:
        table.hand(wanted.where, "there is a model of this name already; give it another, or [models.NAME.versions.N]")
        return
    own = dict(wanted.own)
    if wanted.archive is not None:
        table = add_handler(draft, table, wanted.archive, wanted.name)
        own = {**wanted.archive.settings, **own}
    else:
        table.left_out = True
        table.set("path", "model.onnx", "")
        table.hand("path", "say which file is the model")
    _add_settings(table, {**each, **own}, wanted.where)


def _add_settings(table: Table, settings: Mapping[str, Any], where: str) -> None:
    """Of one model."""

    def number(name: str) -> int:
        return whole(settings[name], name, where)

    rows = number("batchSize") if "batchSize" in settings else 1
    if rows > 1:
        table.set("max_batch", rows, "batchSize")
    elif "batchSize" in settings:
        table.unneeded("batchSize", "whether requests share a batch is found out at warm-up; batching = 'off' keeps them apart")
    if "maxBatchDelay" in settings and rows > 1:
        table.set("max_wait_s", number("maxBatchDelay") / 1e3, "maxBatchDelay; without it batches fill while others run")
    elif "maxBatchDelay" in settings:
        table.unneeded("maxBatchDelay", "batches fill while others run")
    if "minWorkers" in settings:
        table.set("instances", number("minWorkers"), "minWorkers, or default_workers_per_model")
    for name, knob in (("responseTimeout", "batch_timeout_s"), ("startupTimeout", "load_timeout_s")):
        if name in settings:
            table.set(knob, float(number(name)), name)
    if "jobQueueSize" in settings:
        table.set("max_queue_rows", number("jobQueueSize"), "jobQueueSize, or job_queue_size: here it counts rows")
    if settings.get("clientTimeoutInMills"):
        table.set("slo", f"p99={number('clientTimeoutInMills')}ms", "clientTimeoutInMills: here for the answer")
    _add_device(table, settings, where)
    translated = ("batchSize", "maxBatchDelay", "minWorkers", "responseTimeout", "startupTimeout", "jobQueueSize")
    for name in settings:
        if name in (*translated, "clientTimeoutInMills", "deviceType", "deviceIds", "number_of_gpu"):
            continue
        if name in _WHY:
            table.unneeded(name, _WHY[name])
        else:
            table.hand(
                name, _TODO.get(name, "there is nothing like it here; if the handler reads it, give it to its Python class")
            )


def _add_device(table: Table, settings: Mapping[str, Any], where: str) -> None:
    kind, ids = settings.get("deviceType"), settings.get("deviceIds")
    gpus = [str(whole(one, "deviceIds", where)) for one in ids[:64]] if isinstance(ids, list) else []
    if kind not in (None, "cpu", "gpu"):
        table.hand(f"deviceType {kind}", "docs/guides/models.md has the devices that there are")
    elif kind == "cpu" or settings.get("number_of_gpu") == "0":
        table.set("device", "cpu", "deviceType, or number_of_gpu")
    elif gpus:
        table.set("device", ",".join(f"cuda:{one}" for one in gpus), "deviceType and deviceIds")
    elif "number_of_gpu" in settings:
        devices = [f"cuda:{one}" for one in range(int(settings["number_of_gpu"]))]
        table.set("device", ",".join(devices), "number_of_gpu: instances are given to them in turn")
    elif kind == "gpu":
        table.set("device", "cuda:0", "deviceType; name others as cuda:0,cuda:1")

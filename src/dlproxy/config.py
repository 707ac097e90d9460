"""Every knob once: name, type, range, default and what it does. TOML, the command line and docs/reference come from here.

Called by cli/ and serve/. Not aware of: what reads the values.
"""

import difflib
import re
import tomllib
from math import inf
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_type_hints

import msgspec
from msgspec import Meta, Struct

_DURATION = re.compile(r"\s*([0-9.]+)\s*(us|ms|s)\s*")
SLEEP = "sleep:"  # the "path" of a model that only takes time
DEVICE = r"auto|cpu|(cuda|tensorrt)(:[0-9]+)?|openvino(:(CPU|GPU|NPU)(\.[0-9]+)?)?"
DEVICES = "auto, cpu, cuda, cuda:N, tensorrt, tensorrt:N, openvino or openvino:GPU"  # for messages
ORIGIN = r"\*|null|[a-z][a-z0-9+.-]*://([a-z0-9._-]+|\[[0-9a-f:.]+\])(:[0-9]{1,5})?"  # as browsers send it
_UNIT_S = {"us": 1e-6, "ms": 1e-3, "s": 1.0}


class ConfigError(Exception):
    """A configuration that cannot be used; the message says where, what is wrong and what would be right."""


def _knob(description: str, **limits: Any) -> Meta:
    return Meta(description=description, **limits)


class ServerConfig(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """[server]: where dlproxy listens and how it starts and stops."""

    host: Annotated[str, _knob("address to listen on; 0.0.0.0 for every interface")] = "127.0.0.1"
    http_port: Annotated[int, _knob("port for inference; 0 picks a free one", ge=0, le=65535)] = 8000
    uds: Annotated[str, _knob("path of a Unix socket for inference, in place of http_port; empty: none")] = ""
    control_port: Annotated[int, _knob("port for metrics and health; 0 picks a free one", ge=0, le=65535)] = 8002
    server_timing: Annotated[bool, _knob("tell each client queue, batch and compute time in a Server-Timing header")] = True
    idle_poll_s: Annotated[
        float,
        _knob(
            "seconds that an idle core polls for the next request before it sleeps, while they keep coming that soon; 0: never",
            ge=0,
            le=0.01,
        ),
    ] = 0.0003
    drain_s: Annotated[float, _knob("seconds that requests under way get to finish after SIGTERM", ge=0, le=3600)] = 30.0
    calibration_folder: Annotated[
        str,
        _knob(
            "where to keep what was found out about models, so that the next start need not; auto: dlproxy/calibrations "
            "in the user's cache folder ($XDG_CACHE_HOME or ~/.cache) if there is one; empty: nowhere"
        ),
    ] = "auto"
    event_log: Annotated[str, _knob("record every lane event and command in this folder, to replay; empty: off")] = ""
    access_log: Annotated[bool, _knob("log a line for each request of the inference port")] = False
    arbiter: Annotated[
        Literal["auto", "on", "off"],
        _knob("let batches of different models take turns on the cores; auto: if their threads outnumber the cores"),
    ] = "off"
    arbiter_discipline: Annotated[
        Literal["fair", "fcfs", "edf", "sjf", "hrrn", "mlfq", "priority"],
        _knob("whose batch runs next; fair: equal shares of the cores' time, however heavy a model's batches are"),
    ] = "fair"
    cores: Annotated[int, _knob("cores that batches share under the arbiter; 0: those that this process may use", ge=0)] = 0
    reserved_cores: Annotated[int, _knob("cores that only batches with a request of priority 1 may use", ge=0)] = 0
    tenant_header: Annotated[
        str, _knob("header that names a request's tenant, for quotas and fair shares", pattern="^[A-Za-z0-9_-]+$")
    ] = "x-tenant-id"


class HttpLimits(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """[http]: what one client may ask of the server."""

    max_header_bytes: Annotated[int, _knob("names and values of a request's header fields, in bytes", ge=1024)] = 32 * 1024
    max_headers: Annotated[int, _knob("header fields of a request", ge=8)] = 100
    max_body_bytes: Annotated[int, _knob("body of a request, in bytes (Triton's default)", ge=1)] = 64 * 1024 * 1024
    max_json_bytes: Annotated[int, _knob("JSON in a body, in bytes: decoding it blocks all; binary tensors do not", ge=1)] = (
        8 * 1024 * 1024
    )
    max_connections: Annotated[int, _knob("connections at a time; one more is answered 503", ge=1)] = 4096
    max_pipelined: Annotated[int, _knob("requests of one connection that are worked on at a time", ge=1)] = 32
    header_timeout_s: Annotated[float, _knob("seconds within which a begun header must be complete", gt=0)] = 10.0
    body_timeout_s: Annotated[float, _knob("seconds for a body, on top of its size / min_body_bytes_per_s", gt=0)] = 30.0
    min_body_bytes_per_s: Annotated[int, _knob("the slowest upload that is waited for", ge=1)] = 16 * 1024
    idle_timeout_s: Annotated[float, _knob("seconds after which a silent connection is closed (nginx's default)", gt=0)] = 75.0
    write_timeout_s: Annotated[float, _knob("seconds that a client may leave a reply unread", gt=0)] = 30.0
    cors_origins: Annotated[
        list[str],
        _knob(
            'sites whose pages may ask the inference port from a browser, such as "https://shop.example"; "*": all; empty: none'
        ),
    ] = []


class ModelConfig(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """[models.NAME]: one model."""

    path: Annotated[
        str,
        _knob(
            "the model: .onnx, .pt, .pt2, .keras, a SavedModel's folder, file.py:MyModel (relative to the configuration file's "
            "folder), my_module:MyModel, addresses of models on other servers, or sleep:base=10ms,row=1ms"
        ),
    ]
    version: Annotated[str, _knob("the version that clients see", pattern="^[0-9]+$")] = "1"
    slo: Annotated[str, _knob('latency objective such as "p99=20ms"; empty: a batch takes at most 2.3 x L(1) or 1 ms')] = ""
    max_batch: Annotated[int, _knob("rows that no batch and no request exceeds", ge=1, le=65536)] = 256
    batching: Annotated[
        Literal["auto", "on", "off"],
        _knob(
            "whether requests may share a batch; auto: if the warm-up shows that a row's answer is its own, and for as long as "
            "nothing in service shows otherwise; on: you know that it is"
        ),
    ] = "auto"
    padding: Annotated[
        Literal["auto", "on", "off"],
        _knob(
            "whether requests of different lengths may share a batch, padded to the longest; auto: if the model has a mask or "
            "lengths among its inputs, the warm-up shows that it changes no answer, and until something in service does; "
            "on: without a mask too, and start-up says why if it changes answers"
        ),
    ] = "auto"
    pad_value: Annotated[float, _knob("what shorter inputs are filled up with; masks are with 0, whatever this is")] = 0.0
    samples: Annotated[
        str,
        _knob("real inputs to warm up with: an .npz file (an array for each input) or a folder of them; empty: made-up inputs"),
    ] = ""
    max_queue_rows: Annotated[int, _knob("rows that may wait; more are answered 503", ge=1)] = 8192
    max_wait_s: Annotated[float, _knob("seconds that a batch may wait to fill while an instance idles", ge=0, le=60)] = 0.0
    instances: Annotated[
        int,
        _knob(
            "copies of the model that run side by side; 0: one, or one for each core where that is measured to pay",
            ge=0,
            le=256,
        ),
    ] = 0
    threads: Annotated[int, _knob("threads that an instance computes with; 0: measured at load", ge=0, le=1024)] = 0
    run: Annotated[
        Literal["auto", "inline", "thread", "process"],
        _knob(
            "where batches run: on the event loop, on a thread, in a process of their own, or whichever suits: processes for "
            "Python, torch and TensorFlow, else what the warm-up finds better"
        ),
    ] = "auto"
    device: Annotated[
        str,
        _knob(
            "where it computes: auto (the first NVIDIA GPU if the runtime can use it, else the CPU), cpu, cuda:N, for ONNX "
            "tensorrt:N or openvino:GPU; of several, as cuda:0,cuda:1, each instance gets the next"
        ),
    ] = "auto"
    gpu_memory_limit_mb: Annotated[
        int,
        _knob(
            "MiB of a GPU that a worker process, or the ONNX session of all threads, may allocate; 0: no limit",
            ge=0,
            le=1 << 24,
        ),
    ] = 0
    inputs: Annotated[
        dict[str, str],
        _knob(
            'inputs of models that do not say theirs, or say too little, as {x = "FP32[batch,784]"}; -1 or a name: any size, '
            "batch, or else the first: the rows"
        ),
    ] = {}
    outputs: Annotated[dict[str, str], _knob("the same for outputs")] = {}
    batch_timeout_s: Annotated[
        float, _knob("seconds after which a batch in a process or on another server has failed", gt=0, le=86400)
    ] = 120.0
    memory_limit_mb: Annotated[
        int,
        _knob(
            "MiB that a worker process may allocate, the 50 to 100 of Python and numpy included; 0: no limit", ge=0, le=1 << 24
        ),
    ] = 0
    pin: Annotated[bool, _knob("keep each worker process on cores of its own")] = False
    upstream_headers: Annotated[dict[str, str], _knob("sent to other servers with each request, such as authorization")] = {}
    discipline: Annotated[
        Literal["edf", "fcfs", "sjf", "hrrn", "mlfq", "priority", "fair"],
        _knob("which waiting request is next: earliest deadline, first come, shortest, highest response ratio, …"),
    ] = "edf"
    starvation_s: Annotated[float, _knob("seconds after which a request that others overtook goes first", gt=0, le=3600)] = 10.0
    ageing_s: Annotated[float, _knob("seconds of waiting that one level of priority is worth", ge=0, le=3600)] = 1.0
    balancer: Annotated[
        Literal[
            "peak-ewma",
            "round-robin",
            "weighted-round-robin",
            "least-connections",
            "fastest-response",
            "consistent-hash",
            "power-of-two",
            "prequal",
        ],
        _knob("which instance gets the next batch"),
    ] = "peak-ewma"
    sticky: Annotated[
        str,
        _knob(
            "what the consistent-hash balancer keeps on one instance: tenant, input or header:NAME; a batch follows its first "
            "request",
            pattern="^(|tenant|input|header:[A-Za-z0-9-]+)$",
        ),
    ] = ""
    slow_start_s: Annotated[
        float, _knob("seconds in which a new instance's share of the work grows to full", ge=0, le=3600)
    ] = 0.0
    codel_target_s: Annotated[
        float, _knob("queueing delay that may stand; requests that waited twice as long are shed (CoDel); 0: off", ge=0, le=60)
    ] = 0.0
    adaptive_limit: Annotated[
        bool, _knob("bound the requests without a deadline that are under way by how latency answers to them (Gradient2)")
    ] = False
    retry_budget: Annotated[
        float,
        _knob("share of requests that may run a second time when an instance fails or is late; 0: none ever", ge=0, le=1),
    ] = 0.2
    hedge: Annotated[bool, _knob("run a batch that is later than 95 % of its like again on an idle instance")] = False
    eject_after: Annotated[int, _knob("errors in a row that take an instance out for a while; 0: never", ge=0)] = 5
    outage_wait_s: Annotated[
        float, _knob("seconds that requests wait for the last worker process to be started again; 0: they fail", ge=0, le=600)
    ] = 2.0
    quarantine_s: Annotated[
        float, _knob("seconds for which an input that has ended worker processes is refused; 0: never", ge=0, le=864000)
    ] = 600.0

    @property
    def slo_s(self) -> float | None:
        """The objective in seconds."""
        return parse_slo(self.slo)


class TenantConfig(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """[tenants.NAME]: what one tenant may ask for; `"*"` stands for each one that is not named."""

    requests_per_s: Annotated[float, _knob("requests per second; more are answered 429; 0: no limit", ge=0)] = 0.0
    rows_per_s: Annotated[float, _knob("rows per second, in all of a tenant's requests; 0: no limit", ge=0)] = 0.0
    burst_s: Annotated[float, _knob("seconds' worth of both that may come at once", gt=0, le=3600)] = 1.0
    weight: Annotated[
        float, _knob("share of a model under the fair discipline, beside tenants of weight 1", ge=0.001, le=1000)
    ] = 1.0


class Config(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """All of dlproxy.toml."""

    server: ServerConfig = ServerConfig()
    http: HttpLimits = HttpLimits()
    models: dict[str, ModelConfig] = {}
    tenants: dict[str, TenantConfig] = {}


def check_slo(model: ModelConfig) -> None:
    """Raises ConfigError for an objective that is not understood."""
    parse_slo(model.slo)


def check_sticky(model: ModelConfig) -> None:
    """Raises ConfigError for stickiness under a balancer that does not keep to it."""
    if model.sticky and model.balancer != "consistent-hash":
        raise ConfigError(f"sticky = {model.sticky!r} needs balancer = 'consistent-hash', not '{model.balancer}'")


def check_origins(http: HttpLimits) -> None:
    """Raises ConfigError for an origin that no browser would send."""
    for origin in http.cors_origins:
        if not re.fullmatch(ORIGIN, origin):
            raise ConfigError(
                f"{origin!r} is not an origin; write it in lower case like https://shop.example:8443, without a path or a "
                'slash at the end, or "*" for every one'
            )


def check_device(model: ModelConfig) -> None:
    """Raises ConfigError for a device that is not understood."""
    parse_devices(model.device)


def parse_devices(text: str) -> list[str]:
    """The devices of a list like "cuda:0,cuda:1". Raises ConfigError."""
    devices = [device.strip() for device in text.split(",")]
    for device in devices:
        if not re.fullmatch(DEVICE, device):
            raise ConfigError(f"device {device!r} is not understood; it is {DEVICES}, or several with commas between them")
    return devices


def parse_slo(text: str) -> float | None:
    """Seconds of an objective like "p99=20ms"; None for the empty text. Raises ConfigError."""
    if not text.strip():
        return None
    quantile, _, duration = text.partition("=")
    seconds = _seconds(duration) if quantile.strip() == "p99" else 0.0
    if seconds <= 0.0:
        raise ConfigError(f"slo {text!r} is not understood; write it like p99=20ms (us, ms or s)")
    return seconds


def parse_duration(text: str) -> float:
    """Seconds of a duration like "20ms", above 0. Raises ConfigError."""
    seconds = _seconds(text)
    if seconds <= 0.0:
        raise ConfigError(f"duration {text!r} is not understood; write it like 20ms (us, ms or s)")
    return seconds


def _seconds(text: str) -> float:
    """0 for what is no duration, or too long for a number."""
    match = _DURATION.fullmatch(text)
    try:
        value = float(match[1]) * _UNIT_S[match[2]] if match else 0.0
    except ValueError:
        return 0.0
    return value if value < inf else 0.0


def load(path: Path) -> Config:
    """Read a TOML file. Raises ConfigError naming the line and, for an unknown key, the nearest known one."""
    try:
        text = path.read_text("utf-8")
        data = tomllib.loads(text)
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} cannot be read: {error}") from None
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{path} is not TOML: {error}") from None
    try:
        config = msgspec.convert(data, Config)
    except msgspec.ValidationError as error:
        raise ConfigError(_located(path, text, data, str(error))) from None
    try:
        check_origins(config.http)
    except ConfigError as error:
        raise ConfigError(f"{path}{_line(text, ['http', 'cors_origins'])}: {error}") from None
    for name, model in config.models.items():
        for knob, check_knob in (("slo", check_slo), ("sticky", check_sticky), ("device", check_device)):
            try:
                check_knob(model)
            except ConfigError as error:
                raise ConfigError(f"{path}{_line(text, ['models', name, knob])}: {error}") from None
    folder = path.parent
    models = {
        name: msgspec.structs.replace(
            model,
            path=str(folder / model.path) if _is_file(model.path) else model.path,
            samples=str(folder / model.samples) if model.samples else "",
        )
        for name, model in config.models.items()
    }
    return msgspec.structs.replace(config, models=models)


def _located(path: Path, text: str, data: dict[str, Any], message: str) -> str:
    """Turn msgspec's JSON path (`$.server.port`) into a line of the file and a suggestion."""
    what, _, where = message.partition(" - at ")
    keys = [part for part in where.strip("`$").replace("[...]", ".*").split(".") if part]
    if keys[1:2] == ["*"]:
        keys[1] = _faulty_entry(data[keys[0]], ModelConfig if keys[0] == "models" else TenantConfig)
    unknown = re.search(r"unknown field `(.+)`", what)
    if unknown is None:
        return f"{path}{_line(text, keys)}: {'.'.join(keys)}: {explain(what, _struct_of(keys), keys[-1] if keys else '')}"
    known = _known_fields(keys)
    near = difflib.get_close_matches(unknown[1], known, n=1)
    hint = f"did you mean '{near[0]}'?" if near else f"known are {', '.join(known)}"
    section = f" in [{'.'.join(keys)}]" if keys else ""
    return f"{path}{_line(text, [*keys, unknown[1]])}: unknown key '{unknown[1]}'{section}; {hint}"


def _faulty_entry(entries: dict[str, Any], struct: type[Struct]) -> str:
    """msgspec does not say which entry of a dict it means: check them one by one."""
    for name, entry in entries.items():
        try:
            msgspec.convert(entry, struct)
        except msgspec.ValidationError:
            return str(name)
    return "*"


def is_address(path: str) -> bool:
    """Whether a model's path names a server rather than a file."""
    return re.match(r"(?:https?|grpcs?)://", path) is not None


def python_place(path: str) -> str | None:
    """The module or .py file of a path like my_module:MyModel, folder/file.py:MyModel or file.py; None for any other path."""
    match = re.fullmatch(r"(.+):[A-Za-z_]\w*|(.+\.py)", path)
    return None if match is None else match[1] or match[2]


def _is_file(path: str) -> bool:
    """Whether a model's path is one in the file system, and not my_module:MyModel."""
    place = python_place(path)
    in_module = place is not None and not place.endswith(".py") and "/" not in place
    return not (path.startswith(SLEEP) or is_address(path) or in_module)


def explain(what: str, struct: type[Struct], knob: str) -> str:
    """msgspec's complaint about a knob, and what the knob takes, or the nearest of its choices."""
    words = what[:1].lower() + what[1:]
    wrong = re.match(r"""Invalid enum value ['"](.*)['"]""", what)
    hints = get_type_hints(struct)
    if wrong is None or knob not in hints:
        return words
    choices = [str(choice) for choice in get_args(hints[knob])]
    near = difflib.get_close_matches(wrong[1], choices, n=1)
    hint = f"did you mean '{near[0]}'?" if near else f"it takes {', '.join(choices)}"
    return f"'{wrong[1]}' is not one of its values; {hint}"


def _struct_of(keys: list[str]) -> type[Struct]:
    sections: dict[str, type[Struct]] = {
        "server": ServerConfig,
        "http": HttpLimits,
        "models": ModelConfig,
        "tenants": TenantConfig,
    }
    return sections.get(keys[0], Config) if keys else Config


def _known_fields(keys: list[str]) -> tuple[str, ...]:
    return _struct_of(keys).__struct_fields__


def _line(text: str, keys: list[str]) -> str:
    """ ":LINE" of a key in TOML text, as far as it can be found; the last key wins over its section."""
    found, section = 0, ""
    for number, line in enumerate(text.splitlines(), start=1):
        header = re.match(r"\s*\[\s*(.+?)\s*\]", line)
        if header:
            section = header[1].replace('"', "")
            if f"{section}.".startswith(f"{'.'.join(keys)}."):
                return f":{number}"
        elif keys and re.match(rf'\s*"?{re.escape(keys[-1])}"?\s*=', line):
            if section == ".".join(keys[:-1]):
                return f":{number}"
            found = found or number
    return f":{found}" if found else ""

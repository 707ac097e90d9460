"""BentoML's bentofile.yaml and the services of a service.py as tables of dlproxy.toml.

Called by __init__.py. Code is read as a syntax tree, never executed. Not aware of: what a service computes.
"""

import ast
import tomllib
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from msgspec import Struct

from dlproxy.config import ConfigError
from dlproxy.lab.migrate.draft import Draft, Table
from dlproxy.lab.migrate.reading import read, yaml_of

BENTOFILES = ("bentofile.yaml", "bentofile.yml")
SERVICE = "service.py"
_COMPUTED = object()  # in place of a value that is not written out
_LOADERS = {  # functions that load a model whose name is their first argument: endings of files that are served as they are
    "InferenceSession": (".onnx",),
    "load_model": (".keras",),
    "jit.load": (".pt", ".pth", ".ts"),
    "export.load": (".pt2",),
    "saved_model.load": ("",),
}
_WHY = {  # settings that have nothing to do here
    "name": "the model's name is what clients ask for",
    "labels": "they describe a Bento",
    "description": "it describes a Bento",
    "include": "files are read where they lie",
    "exclude": "files are read where they lie",
    "docker": "deploy/ has an image and a chart",
    "conda": "use any environment in which dlproxy is installed",
    "image": "deploy/ has an image and a chart",
    "threads": "a class is called once at a time, unless it says thread_safe = True",
    "resources.cpu": "threads and instances are measured as a model is loaded",
    "resources.memory": "it is the container's; memory_limit_mb bounds a worker process",
    "resources.gpu_type": "it chooses a machine",
    "traffic.concurrency": "autoscaling looks at rows that wait or run, and at arrivals",
    "traffic.external_queue": "requests wait in the model's own queue",
    "metrics": "there are always metrics: /metrics on the control port",
    "logging": "[server] access_log and the event log are what there is",
    "runner_probe": "health and readiness have routes of the Open Inference Protocol",
    "backlog": "it is the operating system's",
    "route": "the model's name is what clients ask for",
}
_TODO = {  # settings without an equivalent
    "python": "install these packages into dlproxy's environment",
    "models": "copy the model's files here (bentoml models export), and read them in load(self)",
    "envs": "set these variables where dlproxy is started",
    "env": "set these variables where dlproxy is started",
    "tracing": "[tracing] sends spans by OTLP: docs/tracing.md",
    "monitoring": "have the class write it, or use [server] event_log",
    "ssl": "name the files in [tls]: cert and key",
    "grpc": "[server] grpc_port is the Open Inference Protocol's",
    "path_prefix": "have what stands before dlproxy rewrite paths",
    "cmd": "dlproxy serves itself",
    "http.cors": "[http] cors_origins names the sites",
    "secrets": "set these variables where dlproxy is started",
}
_OLD = "it has a bentoml.Service(...) of before version 1.2; a class with @bentoml.service is what is read"


class _Api(Struct, frozen=True):
    name: str
    options: Mapping[str, Any]


class _Service(Struct, frozen=True):
    """A class with @bentoml.service. `loads`: files of models that its code names. `asks`: other services."""

    name: str
    options: Mapping[str, Any]
    apis: tuple[_Api, ...]
    loads: tuple[str, ...]
    asks: tuple[str, ...]


def add_bentoml(draft: Draft, place: Path) -> None:
    """A project's folder, its bentofile.yaml or pyproject.toml, or the file of its services. Raises ConfigError."""
    build, where = _build(place)
    main, file = "", place
    if where is not None:
        told = build.get("service", "service")
        if not isinstance(told, str):
            raise ConfigError(f"{where}: service is no text such as 'service:MyService'")
        module, _, main = told.partition(":")
        file = where.parent / f"{module.removesuffix('.py').replace('.', '/')}.py"
    elif place.is_dir():
        file = place / SERVICE
    services = _services(file)
    server = draft.table("server")
    for name, value in build.items():
        if name != "service" and value:
            _note(server, name)
    wanted = _with_asked(main, services, file) if main else list(services.values())
    _add_server(server, wanted[0])
    for service in wanted:
        _add_service(draft, service, file)


def names_services(file: Path) -> bool:
    """Whether a file of Python is BentoML's, as far as its text tells."""
    return file.is_file() and "bentoml" in read(file)


def _build(place: Path) -> tuple[dict[str, Any], Path | None]:
    """What a project's build file says, and where it is, if there is one."""
    files = [place / name for name in (*BENTOFILES, "pyproject.toml")] if place.is_dir() else [place]
    for file in files:
        if file.suffix in (".yaml", ".yml") and file.is_file():
            return yaml_of(read(file), str(file)), file
        if file.name == "pyproject.toml" and file.is_file():
            try:
                found = tomllib.loads(read(file)).get("tool", {}).get("bentoml", {}).get("build", {})
            except (tomllib.TOMLDecodeError, AttributeError, RecursionError) as error:
                raise ConfigError(f"{file} is not TOML: {error}") from None
            if found:
                return found, file
    return {}, None


def _with_asked(main: str, services: Mapping[str, _Service], file: Path) -> list[_Service]:
    """That service, and those that it asks, each once."""
    if main not in services:
        raise ConfigError(f"{file}: it has no service {main}; it has {', '.join(services)}")
    found = [main]
    for name in found:
        found += [one for one in services[name].asks if one in services and one not in found]
    return [services[name] for name in found]


def _services(file: Path) -> dict[str, _Service]:
    """By name. Raises ConfigError, which names the line."""
    text = read(file)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of odd escapes in somebody's strings
            tree = ast.parse(text)
    except SyntaxError as error:
        raise ConfigError(f"{file}:{error.lineno or 1}: it is not Python: {error.msg}") from None
    except (ValueError, RecursionError, MemoryError):
        raise ConfigError(f"{file}: it is not Python that can be read") from None
    found = {}
    for node in tree.body:
        options = _decoration(node, "service") if isinstance(node, ast.ClassDef) else None
        if isinstance(node, ast.ClassDef) and options is not None:
            found[node.name] = _Service(
                name=str(options["name"]) if isinstance(options.get("name"), str) else node.name,
                options=options,
                apis=tuple(_apis(node)),
                loads=tuple(dict.fromkeys(_loads(node))),
                asks=tuple(_asked(node)),
            )
    if not found:
        old = any(isinstance(node, ast.Call) and _dotted(node.func) == "bentoml.Service" for node in ast.walk(tree))
        raise ConfigError(f"{file}: {_OLD if old else 'it has no class with @bentoml.service'}")
    return found


def _decoration(node: ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef, *names: str) -> dict[str, Any] | None:
    """The arguments of a decorator of BentoML's, if the class or function has it."""
    for decorator in node.decorator_list:
        function = decorator.func if isinstance(decorator, ast.Call) else decorator
        if _dotted(function).removeprefix("bentoml.") in names:
            keywords = decorator.keywords if isinstance(decorator, ast.Call) else []
            return {one.arg: _literal(one.value) for one in keywords if one.arg} | (
                {"**": _COMPUTED} if any(one.arg is None for one in keywords) else {}
            )
    return None


def _literal(node: ast.expr) -> Any:
    if isinstance(node, ast.Dict) and all(isinstance(key, ast.Constant) for key in node.keys):
        return {str(key.value): _literal(value) for key, value in zip(node.keys, node.values, strict=True)}  # type: ignore[union-attr]
    try:
        return ast.literal_eval(node)
    except (ValueError, TypeError, SyntaxError, RecursionError, MemoryError):
        return _COMPUTED


def _dotted(node: ast.AST) -> str:
    """A name such as bentoml.service; empty for what is none."""
    parts = []
    while isinstance(node, ast.Attribute):
        parts.append(node.attr)
        node = node.value
    return ".".join([node.id, *reversed(parts)]) if isinstance(node, ast.Name) else ""


def _apis(service: ast.ClassDef) -> Iterator[_Api]:
    for node in service.body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            options = _decoration(node, "api", "task")
            if options is not None:
                yield _Api(node.name, options)


def _loads(service: ast.ClassDef) -> Iterator[str]:
    for node in ast.walk(service):
        if isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
            name, value = _dotted(node.func), node.args[0].value
            for loader, endings in _LOADERS.items():
                if f".{name}".endswith(f".{loader}") and isinstance(value, str) and Path(value).suffix in endings:
                    yield value


def _asked(service: ast.ClassDef) -> Iterator[str]:
    for node in ast.walk(service):
        if isinstance(node, ast.Call) and _dotted(node.func).removeprefix("bentoml.") == "depends" and node.args:
            yield _dotted(node.args[0])


def _add_server(server: Table, service: _Service) -> None:
    """The port that clients know."""
    http = service.options.get("http")
    http = http if isinstance(http, dict) else {}
    host, port = http.get("host", "0.0.0.0"), http.get("port", 3000)
    if isinstance(port, int):
        server.set("http_port", port, "http.port" if "port" in http else "BentoML's own port")
    if isinstance(host, str):
        server.set("host", host, "http.host" if "host" in http else "BentoML's own: every interface")


def _add_service(draft: Draft, service: _Service, file: Path) -> None:
    """A model for each API: a model has one way to be asked."""
    if not service.apis:
        draft.table("server").hand(f"the service {service.name}", "it has no @bentoml.api")
    for api in service.apis:
        name = service.name if len(service.apis) == 1 else f"{service.name}_{api.name}"
        table = draft.table("models", name)
        _add_path(draft, table, service, api, file)
        _add_batching(table, api.options)
        _add_options(table, service.options)
        for other in service.asks:
            todo = f"a service that asks {other} is a pipeline here, whose steps are models: docs/guides/pipelines.md"
            table.hand(f"bentoml.depends({other})", todo)


def _add_path(draft: Draft, table: Table, service: _Service, api: _Api, file: Path) -> None:
    models = [file.parent / one for one in service.loads]
    if len(models) == 1 and models[0].exists():
        table.set("path", draft.path(models[0]), f"what {service.name} loads")
        todo = "the model alone is served; what the method does before and after it is a step of a pipeline, or clients' work"
    else:
        table.left_out = True
        table.set("path", f"{draft.path(file)}:{service.name if service.name.isidentifier() else 'Service'}", "")
        todo = (
            "a Python class here has predict(self, batch) of a dict of arrays, load(self) in place of __init__, inputs and "
            "outputs, and no decorators: docs/guides/from-bentoml.md"
        )
    table.hand(f"@bentoml.api {api.name}", todo)


def _add_batching(table: Table, options: Mapping[str, Any]) -> None:
    for name, value in options.items():
        if name == "batchable" and value is True:
            table.unneeded(name, "whether rows are independent is found out at warm-up; batching = 'on' says that they are")
        elif name == "batchable" and value is False:
            table.set("batching", "off", name)
        elif name == "max_batch_size" and _is_number(value):
            table.set("max_batch", int(value), name)
        elif name == "max_latency_ms" and _is_number(value):
            table.set(
                "slo",
                f"p99={max(value, 0.001):.3f}".rstrip("0").rstrip(".") + "ms",
                f"{name}: requests that would be later are refused",
            )
        elif name == "batch_dim" and value in (0, (0, 0)):
            table.unneeded(name, "rows stand on axis 0")
        elif name == "batch_dim":
            table.hand(name, 'name the axis of the rows: inputs = { x = "FP32[10,batch]" }')
        elif name in ("input_spec", "output_spec"):
            table.hand(name, "inputs and outputs of the class say it, with types and shapes")
        else:
            _note(table, name, value)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < 1 << 53


def _add_options(table: Table, options: Mapping[str, Any]) -> None:
    """What @bentoml.service says; sections by their parts."""
    flat: dict[str, Any] = {}
    for name, value in options.items():
        if name in ("traffic", "resources", "http") and isinstance(value, dict):
            flat |= {f"{name}.{part}": one for part, one in value.items()}
        else:
            flat[name] = value
    for name, value in flat.items():
        if name == "workers" and value == "cpu_count":
            table.unneeded(name, "one instance, or one for each core where that is measured to pay")
        elif name == "workers" and _is_number(value):
            table.set("instances", int(value), name)
        elif name == "traffic.timeout" and _is_number(value):
            table.set("batch_timeout_s", float(value), f"{name}: here for a batch; clients name deadlines of their own")
        elif name == "traffic.max_concurrency" and _is_number(value):
            table.set("max_queue_rows", int(value), f"{name}: here it counts rows, and those that wait")
        elif name == "resources.gpu" and _is_number(value):
            devices = ",".join(f"cuda:{one}" for one in range(max(1, min(int(value), 64))))
            table.set("device", devices, f"{name}: instances are given to them in turn")
        elif name not in ("http.host", "http.port", "name"):
            _note(table, name, value)


def _note(table: Table, name: str, value: Any = None) -> None:
    if value is _COMPUTED and name not in _WHY:
        table.hand(name, "its value is computed by the code: look what it is, and set it")
    elif name in _WHY:
        table.unneeded(name, _WHY[name])
    else:
        table.hand(name, _TODO.get(name, "there is nothing like it here"))

"""`dlproxy serve`: options and dlproxy.toml make a Config, serve/server.py does the rest, and what was inferred is printed.

Not aware of: how a model is loaded or a port served.
"""

import argparse
import logging
import os
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from dlproxy.cli.model_names import add_models
from dlproxy.cli.parser import Parser
from dlproxy.cli.terminal import OK, USER_ERROR, Commands, complain, say
from dlproxy.hosts import authority

if TYPE_CHECKING:
    from dlproxy.config import Config, ModelConfig, ServerConfig
    from dlproxy.message import TensorSpec
    from dlproxy.serve.assemble import LoadedModel
    from dlproxy.serve.gateways.front import Front
    from dlproxy.serve.server import Server


AS_KNOB = "as the knob of the same name"
MOST_FILES = 1 << 16
PORTS = ("http_port", "grpc_port", "tfs_grpc_port", "tfs_http_port", "control_port")


class KnobHelp(argparse.HelpFormatter):
    """Takes the words for options that set a knob from the table of knobs, which is read only if help is asked for."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        from dlproxy.config.table import option_help

        return option_help(action.dest) if action.help == AS_KNOB else action.help


def add_to(commands: Commands) -> None:
    """Declare the command and its options."""
    serve = commands.add_parser(
        "serve", help="serve models over HTTP", description="Serve models over HTTP.", formatter_class=KnobHelp
    )
    add_options(serve)
    serve.set_defaults(command=_serve)


def add_options(serve: Parser) -> None:
    """Those of a server."""
    serve.add_argument(
        "models",
        nargs="*",
        metavar="MODEL",
        help="a model file, file.py:MyModel, or the address of a model on another server; NAME=... gives it a name, "
        "NAME:2=... makes it version 2 of a model",
    )
    serve.add_argument("--config", type=Path, metavar="FILE", help="a dlproxy.toml; the options below override it")
    serve.add_argument("--repository", metavar="FOLDER", help=AS_KNOB)
    serve.add_argument("--repository-mode", metavar="MODE", help=AS_KNOB)
    serve.add_argument("--autopilot", metavar="MODE", help=AS_KNOB)
    serve.add_argument(
        "--slo", metavar="p99=20ms", help="objective of the models given on the command line, such as 'p95=50ms, rate>=500'"
    )
    serve.add_argument(
        "--ray",
        metavar="[ADDRESS]",
        help="run models that do not say where (run) on a Ray cluster: --ray=HOST:PORT; --ray=local: one of the server's own; "
        "--ray: as RAY_ADDRESS says, else one that runs on this machine, else one of its own",
    )
    serve.alone["--ray"] = "auto"
    remembering = serve.add_argument_group("what it remembers")
    remembering.add_argument(
        "--cache", metavar="on|off|auto", help="whether the models given on the command line remember answers (default off)"
    )
    remembering.add_argument("--cache-ttl-s", type=float, metavar="SECONDS", help="for how long they do (default: no limit)")
    remembering.add_argument("--cache-memory-mb", type=int, metavar="MIB", help=AS_KNOB)
    remembering.add_argument("--cache-policy", metavar="POLICY", help=AS_KNOB)
    listening = serve.add_argument_group("where it listens")
    listening.add_argument("--host", help=AS_KNOB)
    listening.add_argument("--http-port", "--port", type=int, metavar="PORT", help=AS_KNOB)
    listening.add_argument("--uds", metavar="PATH", help=AS_KNOB)
    listening.add_argument("--grpc-port", type=int, metavar="PORT", help=AS_KNOB)
    listening.add_argument("--grpc", metavar="SWITCH", help=AS_KNOB)
    listening.add_argument("--tfs", action="store_true", default=None, help=AS_KNOB)
    listening.add_argument("--tfs-grpc-port", type=int, metavar="PORT", help=AS_KNOB)
    listening.add_argument("--tfs-http-port", type=int, metavar="PORT", help=AS_KNOB)
    listening.add_argument("--shared-memory", action="store_true", default=None, help=AS_KNOB)
    listening.add_argument("--control-port", type=int, metavar="PORT", help=AS_KNOB)
    listening.add_argument("--gateways", type=_count, metavar="N|auto", help=AS_KNOB)
    listening.add_argument("--tls-cert", metavar="FILE", help=AS_KNOB)
    listening.add_argument("--tls-key", metavar="FILE", help=AS_KNOB)
    listening.add_argument("--auth-keys", metavar="FILE", help=AS_KNOB)
    logs = serve.add_argument_group("logs")
    detail = logs.add_mutually_exclusive_group()
    detail.add_argument("-v", "--verbose", action="store_true", help="also log why requests are refused, and other details")
    detail.add_argument("-q", "--quiet", action="store_true", help="print and log nothing but warnings and errors")
    logs.add_argument(
        "--log-format", choices=("text", "json"), default="text", metavar="FORMAT", help="text (default), or json: objects"
    )
    logs.add_argument("--access-log", action="store_true", default=None, help=AS_KNOB)
    logs.add_argument("--event-log", metavar="FOLDER", help=AS_KNOB)


def _count(text: str) -> int:
    if text != "auto" and not (text.isascii() and text.isdecimal()):
        raise argparse.ArgumentTypeError(f"{text!r} is no number: give one, or auto for one on each core")
    return 0 if text == "auto" else int(text)


def _serve(args: argparse.Namespace) -> int:
    import asyncio

    from dlproxy.cli import logs
    from dlproxy.config import ConfigError
    from dlproxy.instance.runtime import ModelError
    from dlproxy.serve.event_loop import loop_factory
    from dlproxy.serve.listeners import PortError
    from dlproxy.telemetry.event_log import LogError

    try:
        config = configured(args)
        level = logging.DEBUG if args.verbose else logging.WARNING if args.quiet else logging.INFO
        logs.set_up(level, as_json=args.log_format == "json")
        begun(config)
        with asyncio.Runner(loop_factory=loop_factory()) as runner:
            runner.run(_running(config, args, level))
    except (ConfigError, LogError, ModelError, PortError) as error:
        complain(str(error))
        return USER_ERROR
    return OK


def begun(config: "Config") -> None:
    """What a process does before it serves this. Raises LogError."""
    from dlproxy.cli import logs

    if _holds_secrets(config):
        _dump_no_core()
    if config.server.audit_log:
        logs.audit_to(Path(config.server.audit_log), most_mb=config.server.audit_log_mb, keep=config.server.audit_log_keep)
    _allow_connections()


async def _running(config: "Config", args: argparse.Namespace, level: int) -> None:
    from dlproxy.cores import usable_cores
    from dlproxy.serve.server import Server

    count = config.server.gateways or usable_cores()
    if count == 1:
        await Server(config).run((lambda server: None) if args.quiet else _report, _reread(args))
    else:
        from dlproxy.serve.gateways.front import Front

        front = Front(config, count, [str(level), args.log_format])
        await front.run((lambda front: None) if args.quiet else _report_several, _reread(args))


def _holds_secrets(config: "Config") -> bool:
    """Whether a core dump would have keys in it."""
    upstream = any(model.upstream_api_key or model.upstream_headers for _, model in config.served())
    return bool(config.tls.cert or config.auth.asks or config.grants or upstream)


def _dump_no_core() -> None:
    """Nor do workers, which inherit it."""
    try:
        import resource
    except ImportError:  # Windows
        return
    resource.setrlimit(resource.RLIMIT_CORE, (0, resource.getrlimit(resource.RLIMIT_CORE)[1]))


def _allow_connections() -> None:
    """As many open files as this process may have: many systems start one with 1024, which fewer connections than that take."""
    try:
        import resource
    except ImportError:  # Windows
        return
    least, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = MOST_FILES if most == resource.RLIM_INFINITY else min(most, MOST_FILES)
    if least != resource.RLIM_INFINITY and least < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, most))


def _reread(args: argparse.Namespace) -> "Callable[[], Config] | None":
    """For SIGHUP, where it does not say that the terminal has closed and there is a file to read again."""
    from dlproxy.config.reading import FILE_VARIABLE

    at_a_terminal = any(stream is not None and stream.isatty() for stream in (sys.stdin, sys.stdout, sys.stderr))
    has_file = args.config is not None or FILE_VARIABLE in os.environ
    return (lambda: configured(args)) if has_file and not at_a_terminal else None


def configured(args: argparse.Namespace) -> "Config":
    """The file's configuration with the environment's and the command line's on top. Raises ConfigError."""
    import msgspec

    from dlproxy.config import ConfigError
    from dlproxy.config.effects import check_gateways, without_effect
    from dlproxy.config.reading import from_environment, override

    if args.uds is not None and args.http_port is not None:
        raise ConfigError("--uds replaces the inference port; give either --uds or --http-port")
    config, warnings = from_environment(args.config, os.environ)
    options = (
        *PORTS,
        "host",
        "gateways",
        "grpc",
        "tfs",
        "uds",
        "shared_memory",
        "access_log",
        "event_log",
        "repository",
        "repository_mode",
    )
    given = {name: value for name in options if (value := getattr(args, name)) is not None}
    if args.http_port is not None:
        given["uds"] = ""
    if args.grpc_port is not None:
        given.setdefault("grpc", "on")
    server = override(config.server, given, lambda knob: f"--{knob.replace('_', '-')}")
    files = {name: value for name in ("cert", "key") if (value := getattr(args, f"tls_{name}")) is not None}
    tls = override(config.tls, files, lambda knob: f"--tls-{knob}")
    keys = {} if args.auth_keys is None else {"keys": args.auth_keys}
    auth = override(config.auth, keys, lambda knob: "--auth-keys")
    mode = {} if args.autopilot is None else {"mode": args.autopilot}
    autopilot = override(config.autopilot, mode, lambda knob: "--autopilot")
    shared = {name: value for name in ("memory_mb", "policy") if (value := getattr(args, f"cache_{name}")) is not None}
    cache = override(config.cache, shared, lambda knob: f"--cache-{knob.replace('_', '-')}")
    _check_ports(server)
    models = add_models(
        config.models,
        args.models,
        args.slo or "",
        command="serve",
        knobs={name: value for name in ("cache", "cache_ttl_s") if (value := getattr(args, name)) is not None},
        others=bool(server.repository or server.store),
    )
    if args.ray is not None:
        _check_no_address(args.models)
        models = {name: [_on_ray(model, args.ray) for model in versions] for name, versions in models.items()}
    config = msgspec.structs.replace(config, server=server, tls=tls, auth=auth, autopilot=autopilot, cache=cache, models=models)
    check_gateways(config)
    for warning in [*warnings, *without_effect(config)]:
        complain(warning)
    return config


def _check_no_address(models: Sequence[str]) -> None:
    """Raises ConfigError for one that is an address behind a blank."""
    from dlproxy.config import ConfigError

    lone = next((model for model in models if re.fullmatch(r"[\w.-]+:[0-9]+", model)), None)
    if lone is not None:
        raise ConfigError(f"model file {lone} does not exist; did you mean --ray={lone}?")


def _on_ray(model: "ModelConfig", address: str) -> "ModelConfig":
    """Where it does not say itself where it runs. Raises ConfigError for an address that is none."""
    from dlproxy.config import is_address
    from dlproxy.config.reading import override

    if model.run != "auto" or is_address(model.path):
        return model
    return override(model, {"run": "ray", "ray_address": address}, lambda knob: "--ray")


def _check_ports(server: "ServerConfig") -> None:
    """Raises ConfigError for two of one number."""
    from dlproxy.config import ConfigError

    off = {"http_port"} if server.uds else set()
    off |= {"grpc_port"} if server.grpc == "off" else set()
    off |= set() if server.tfs else {"tfs_grpc_port", "tfs_http_port"}
    taken: dict[int, str] = {}
    for knob in PORTS:
        port, option = getattr(server, knob), f"--{knob.replace('_', '-')}"
        if port and knob not in off and taken.setdefault(port, option) != option:
            raise ConfigError(f"{taken[port]} and {option} are both {port}; give each a port of its own")


def described(server: "Server") -> list[str]:
    """What was inferred about its models, line by line."""
    turns = ["batches of these models take turns on the cores (arbiter)"] if server.models.shares_cores else []
    return [line for model in server.models for line in describe(model)] + turns


def _report(server: "Server") -> None:
    """What was inferred about each model, and where to send requests."""
    for line in described(server):
        say(line)
    _report_ports(server)


def _report_several(front: "Front") -> None:
    for line in front.gateways.lines:
        say(line)
    processes = ", ".join(str(life.process.pid) for life in front.gateways.lives)
    say(f"gateways   {len(front.gateways.places)} (processes {processes}); each runs what is said above")
    _report_ports(front)


def _report_ports(server: "Server | Front") -> None:
    if server.unix_socket is None:
        say(f"inference  {server.scheme}://{authority(server.host, server.http_port)}/v2   (plain JSON: POST /predict/MODEL)")
    else:
        say(
            f"inference  {server.unix_socket.path}   (curl --unix-socket {server.unix_socket.path} {server.scheme}://localhost/v2)"
        )
    if "grpc_port" in server.ports:
        say(f"gRPC       {authority(server.host, server.ports['grpc_port'])}")
    if "tfs_grpc_port" in server.ports:
        rest = authority(server.host, server.ports["tfs_http_port"])
        say(f"TF Serving {authority(server.host, server.ports['tfs_grpc_port'])} (gRPC), {server.scheme}://{rest}/v1/models")
    control = authority(server.host, server.control_port)
    say(f"dashboard  {server.scheme}://{control}/")
    say(f"metrics    {server.scheme}://{control}/metrics   (try a request: /docs; state and knobs: dlproxy models)")
    say("ready; Ctrl-C stops")


def describe(model: "LoadedModel") -> list[str]:
    """What was found out about it."""
    served, fleet = model.served, model.fleet
    calibration = fleet.calibration
    count = fleet.way.threads
    threads = f", {count} thread{'s' * (count > 1)} each" if count else ""
    single = "unknown time" if calibration.single_s is None else _duration(calibration.single_s)
    rows = model.lane.view().batch_goal
    batching = f"up to {rows} row{'s' * (rows > 1)} a batch" if served.signature.batched else "one request at a time"
    if served.signature.batched and served.signature.pads:
        batching += ", shorter requests are padded to the longest"
    lines = [
        f"model {served.name} version {served.version}",
        f"  inputs   {', '.join(map(_show, served.signature.inputs))}",
        f"  outputs  {', '.join(map(_show, served.signature.outputs))}",
        f"  runs     {fleet.describe()}" + ("" if fleet.run == "pipeline" else f"{threads}, {single} a row, {batching}"),
    ]
    config = model.control.config
    aims = [str(config.goal), *(f"priority {priority}: {text}" for priority, text in config.slo_by_priority.items())]
    if model.cache is not None:
        ttl = f" for {config.cache_ttl_s:g} s" if config.cache_ttl_s else ""
        lines.append(f"  cache    answers are remembered{ttl}{' while that pays' if config.cache == 'auto' else ''}")
    if any(aims):
        lines.append(f"  target   {'; '.join(filter(None, aims))}")
    unused = [] if model.degrading is None else model.degrading.problems()
    return lines + [f"  warning  {problem}" for problem in (*model.unmet(), *unused, calibration.warning) if problem]


def _duration(seconds: float) -> str:
    return f"{seconds * 1e3:.3g} ms" if seconds >= 1e-3 else f"{seconds * 1e6:.3g} µs"


def _show(spec: "TensorSpec") -> str:
    return f"{spec.name} {spec.dtype.value} [{','.join(spec.sizes)}]{' (optional)' * (spec.default is not None)}"

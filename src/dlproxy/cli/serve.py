"""`dlproxy serve`: options and dlproxy.toml make a Config, serve/server.py does the rest, and what was inferred is printed.

Not aware of: how a model is loaded or a port served.
"""

import argparse
import logging
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from dlproxy.cli.model_names import add_models
from dlproxy.cli.terminal import OK, USER_ERROR, Commands, complain, say
from dlproxy.hosts import authority

if TYPE_CHECKING:
    from asyncio import Runner

    from dlproxy.config import Config
    from dlproxy.message import TensorSpec
    from dlproxy.serve.assemble import LoadedModel
    from dlproxy.serve.server import Server


def add_to(commands: Commands) -> None:
    """Declare the command and its options."""
    serve = commands.add_parser("serve", help="serve models over HTTP", description="Serve models over HTTP.")
    serve.add_argument(
        "models",
        nargs="*",
        metavar="MODEL",
        help="a model file, file.py:MyModel, or the address of a model on another server; NAME=... gives it a name",
    )
    serve.add_argument("--config", type=Path, metavar="FILE", help="a dlproxy.toml; the options below override it")
    serve.add_argument("--host", help="address to listen on (default 127.0.0.1)")
    serve.add_argument("--http-port", type=int, metavar="PORT", help="inference port (default 8000, 0: any)")
    serve.add_argument("--control-port", type=int, metavar="PORT", help="metrics and health port (default 8002, 0: any)")
    serve.add_argument("--slo", metavar="p99=20ms", help="latency objective of the models given here")
    serve.add_argument("--event-log", metavar="FOLDER", help="record every lane event and command, to replay")
    serve.set_defaults(command=_serve)


def _serve(args: argparse.Namespace) -> int:
    import asyncio

    from dlproxy.config import ConfigError
    from dlproxy.instance.runtime import ModelError
    from dlproxy.serve.event_loop import loop_factory
    from dlproxy.serve.server import PortError, Server
    from dlproxy.telemetry.event_log import LogError

    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s", stream=sys.stderr)
    try:
        config = _config(args)
        with asyncio.Runner(loop_factory=loop_factory()) as runner:
            _run(Server(config), runner)
    except (ConfigError, LogError, ModelError, PortError) as error:
        complain(str(error))
        return USER_ERROR
    return OK


def _run(server: "Server", runner: "Runner") -> None:
    """Serve until told to stop. What was up before a start failed is stopped: threads end, recordings are written."""
    from dlproxy.serve.assemble import unload_model

    try:
        runner.run(server.run(_report))
    except Exception:
        for model in server.models:
            runner.run(unload_model(model, drain_s=0.0))
        raise


def _config(args: argparse.Namespace) -> "Config":
    """The file's configuration with the command line's on top. Raises ConfigError."""
    import msgspec

    from dlproxy.config import Config, ConfigError, ServerConfig, load

    config = load(args.config) if args.config else Config()
    given = {
        name: value for name in ("host", "http_port", "control_port", "event_log") if (value := getattr(args, name)) is not None
    }
    try:
        server = msgspec.convert({**msgspec.to_builtins(config.server), **given}, ServerConfig)
    except msgspec.ValidationError as error:
        what, _, where = str(error).partition(" - at `$.")
        raise ConfigError(f"--{where.strip('`').replace('_', '-')}: {what[0].lower()}{what[1:]}") from None
    models = add_models(dict(config.models), args.models, args.slo or "", command="serve")
    return msgspec.structs.replace(config, server=server, models=models)


def _report(server: "Server") -> None:
    """What was inferred about each model, and where to send requests."""
    for model in server.models:
        for line in _describe(model):
            say(line)
    if server.shares_cores:
        say("batches of these models take turns on the cores (arbiter)")
    http, control = (authority(server.host, port) for port in (server.http_port, server.control_port))
    say(f"inference  http://{http}/v2   (plain JSON: POST /predict/MODEL)")
    say(f"metrics    http://{control}/metrics   (state and knobs: dlproxy models)")
    say("ready; Ctrl-C stops")


def _describe(model: "LoadedModel") -> list[str]:
    served, hosting = model.served, model.hosting
    calibration = hosting.calibration
    count = hosting.way.threads
    threads = f", {count} thread{'s' * (count > 1)} each" if count else ""
    single = "unknown" if calibration.single_s is None else f"{calibration.single_s * 1e3:.3g} ms"
    batching = f"up to {model.lane.view().batch_goal} rows a batch" if served.signature.batched else "one request at a time"
    if served.signature.batched and served.signature.pads:
        batching += ", lengths are padded together"
    lines = [
        f"model {served.name} version {served.version}",
        f"  takes    {', '.join(map(_show, served.signature.inputs))}",
        f"  gives    {', '.join(map(_show, served.signature.outputs))}",
        f"  runs     {hosting.describe()}{threads}, {single} a row, {batching}",
    ]
    if served.slo_s is not None:
        lines.append(f"  aims at  p99 = {served.slo_s * 1e3:g} ms")
        if calibration.single_s is not None and calibration.single_s > served.slo_s:
            lines.append(f"  warning  one row alone takes {single}: this objective cannot be met")
    if calibration.warning:
        lines.append(f"  warning  {calibration.warning}")
    return lines


def _show(spec: "TensorSpec") -> str:
    """With the model's own names of open sizes: N and ? stand for rows and others that have none."""
    names = spec.axes or ("",) * len(spec.shape)
    sizes = [
        str(size) if size >= 0 else name or ("N" if axis == spec.rows else "?")
        for axis, (size, name) in enumerate(zip(spec.shape, names, strict=True))
    ]
    return f"{spec.name} {spec.dtype.value} [{','.join(sizes)}]{' (optional)' * (spec.default is not None)}"

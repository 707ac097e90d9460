"""`dlproxy models import-graph`: KServe's InferenceGraph as tables of dlproxy.toml.

Not aware of: what becomes of which node (lab/inference_graph.py).
"""

import argparse
import json
from importlib import import_module
from pathlib import Path
from typing import Any

from dlproxy.cli.credentials import add_credentials, credentials_of
from dlproxy.cli.terminal import OK, USER_ERROR, Commands, complain, say


def add_to(actions: Commands) -> None:
    """Declare the action."""
    graph = actions.add_parser(
        "import-graph",
        help="what of dlproxy.toml does the same as an InferenceGraph of KServe",
        description="Print the pipelines that do the same as an InferenceGraph of KServe. Its services are models of the same "
        "names on a running server, which is asked what they take and give.",
    )
    graph.add_argument("graph", metavar="FILE", type=Path, help="the InferenceGraph, as JSON, or as YAML where PyYAML is there")
    graph.add_argument("--url", default="http://127.0.0.1:8000", metavar="URL", help="a server with the models that it asks")
    graph.add_argument("-o", "--output", type=Path, metavar="FILE", help="write the tables to a new file")
    add_credentials(graph, again=True)
    graph.set_defaults(command=_import)


def _import(args: argparse.Namespace) -> int:
    from dlproxy.client.blocking import Client
    from dlproxy.config import ConfigError
    from dlproxy.lab.inference_graph import Tensors, as_pipelines, toml_of
    from dlproxy.message import InferenceError

    try:
        graph = _read(args.graph)
        with Client(args.url, retry_budget=0.0, **credentials_of(args)._asdict()) as client:

            def tensors_of(model: str) -> Tensors:
                told = client.metadata(model)
                inputs, outputs = ({one.name: _spec(one) for one in tensors} for tensors in (told.inputs, told.outputs))
                return Tensors(inputs, outputs)

            lines = list(toml_of(as_pipelines(graph, tensors_of)))
        text = "".join(f"{line}\n" for line in lines).lstrip("\n")
        if args.output is None:
            say(text.rstrip("\n"))
        else:
            with args.output.open("x", encoding="utf-8") as file:
                file.write(text)
    except FileExistsError:
        complain(f"{args.output} is there already, and is not overwritten")
    except (ConfigError, ValueError) as error:
        complain(f"{args.graph}: {error}")
    except (OSError, InferenceError) as error:
        complain(str(error))
    else:
        return OK
    return USER_ERROR


def _spec(tensor: Any) -> str:
    return f"{tensor.datatype.value}[{','.join(map(str, tensor.shape))}]"


def _read(file: Path) -> Any:
    """Raises OSError, and ValueError for what is neither JSON nor YAML."""
    text = file.read_text("utf-8")
    try:
        return json.loads(text)
    except ValueError as error:
        if text.lstrip().startswith("{"):
            raise ValueError(f"it is not JSON: {error}") from None
    try:
        yaml: Any = import_module("yaml")
    except ImportError:
        raise ValueError("it is not JSON, and to read YAML takes PyYAML: pip install pyyaml") from None
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ValueError(f"it is not YAML: {' '.join(str(error).split())}") from None

"""`dlproxy infer`: one request to a running server, its inputs from files or the command line, the answer in readable form.

Not aware of: protocols (dlproxy.client), how values are read and shown (cli/arrays.py).
"""

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dlproxy.cli.credentials import add_credentials, credentials_of
from dlproxy.cli.durations import span
from dlproxy.cli.parser import among, near
from dlproxy.cli.terminal import FAILED, OK, USER_ERROR, Commands, complain

if TYPE_CHECKING:
    from dlproxy import Client
    from dlproxy.tensors import Answer

FORMATS = ("text", "json", "npy")


def add_to(commands: Commands) -> None:
    """Declare the command and its options."""
    infer = commands.add_parser(
        "infer",
        help="send one request to a running server and show the answer",
        usage="dlproxy infer URL MODEL [NAME=VALUE ...] [options]",
        description="Send one request to dlproxy or another server of the Open Inference Protocol and show the answer: "
        "if it comes in parts, each as it comes.",
    )
    infer.add_argument("url", metavar="URL", help="the server: http://127.0.0.1:8000, https://, grpc://HOST:8001, unix:/PATH")
    infer.add_argument("model", metavar="MODEL", nargs="?", help="without one, the server's models are named")
    infer.add_argument(
        "inputs",
        metavar="NAME=VALUE",
        nargs="*",
        default=[],
        help="JSON such as x=[[1,2]], text, or @FILE: .npy, .npz, .json, else the raw bytes; @- is the standard input. "
        "The name may be left out where the model has one input, and of .npz and JSON objects that have the names",
    )
    infer.add_argument("--version", metavar="V", default="", help="a version or a label of the model")
    infer.add_argument("--timeout", metavar="500ms", help="by when the answer is needed; the server is told (default 60)")
    infer.add_argument(
        "--format", choices=FORMATS, default="text", metavar="FORMAT", help="text (default), json, or npy of the only output"
    )
    infer.add_argument("-o", "--output", type=Path, metavar="FILE", help="write the answer as .npz, .npy or .json")
    infer.add_argument("--header", action="append", default=[], metavar="NAME:VALUE", help="sent too; may be repeated")
    add_credentials(infer)
    infer.set_defaults(command=_infer)


def _infer(args: argparse.Namespace) -> int:
    from dlproxy.cli.arrays import ValuesError, Writer
    from dlproxy.client.blocking import Client
    from dlproxy.config import ConfigError
    from dlproxy.message import FailureKind, InferenceError

    try:
        timeout_s = span(args.timeout, "--timeout")
        writer = Writer(args.format, args.output)
        asks = credentials_of(args)._asdict()
        with Client(args.url, headers=_headers(args.header), retry_budget=0.0, **asks) as client:
            try:
                return _ask(client, args, timeout_s, writer)
            except InferenceError as error:
                failure = error.failure
                complain(
                    _unknown(client, args.model) if failure.kind is FailureKind.NOT_FOUND else _told(args.url, failure.message)
                )
                at_hand = (FailureKind.INVALID_ARGUMENT, FailureKind.NOT_FOUND, FailureKind.UNAVAILABLE)
                return USER_ERROR if failure.kind in at_hand else FAILED
    except (ConfigError, ValueError, ValuesError) as error:
        complain(str(error))
        return USER_ERROR


def _ask(client: "Client", args: argparse.Namespace, timeout_s: float | None, writer: Any) -> int:
    from dlproxy.cli.arrays import inputs_of

    if args.model is None:
        names = dict.fromkeys(model.name for model in client.models(timeout_s=timeout_s))
        complain(f"name a model; {args.url} has {', '.join(names) or 'none'}")
        return USER_ERROR
    inputs = inputs_of(args.inputs, client.metadata(args.model, args.version, timeout_s=timeout_s))
    variant = ""
    for part in _parts(client, args, inputs, timeout_s):
        writer.write(part)
        variant = part.variant
    writer.end()
    if variant:
        complain(f"{variant!r} answered in place of {args.model!r}")
    return OK


def _parts(client: "Client", args: argparse.Namespace, inputs: Any, timeout_s: float | None) -> "Iterator[Answer]":
    """One answer, or its parts from a model that gives these only."""
    from dlproxy.message import FailureKind, InferenceError

    try:
        yield client.infer(args.model, inputs, version=args.version, timeout_s=timeout_s)
    except InferenceError as error:
        if error.failure.kind is not FailureKind.UNSUPPORTED:
            raise
        yield from client.stream(args.model, inputs, version=args.version, timeout_s=timeout_s)


def _unknown(client: "Client", model: str) -> str:
    """What there is instead of a model that is not there."""
    from dlproxy.message import InferenceError

    try:
        known = list(dict.fromkeys(listed.name for listed in client.models(timeout_s=5.0)))
    except InferenceError as error:
        return f"{client.url} serves no model '{model}': {error}"
    if model in known:
        return f"{client.url} serves '{model}', but not in this version"
    return f"{client.url} serves no model '{model}'; {near(model, known) or (among(known) if known else 'it has none')}"


def _told(url: str, words: str) -> str:
    if words.startswith("no connection"):
        return f"cannot reach {url}: {words.partition(': ')[2] or words}; is a server running there?"
    return words.removeprefix("[request id: <id_unknown>] ")  # Triton's words; the request had none


def _headers(given: list[str]) -> dict[str, str]:
    """Raises ValueError."""
    headers = {}
    for text in given:
        name, colon, value = text.partition(":")
        if not colon:
            raise ValueError(f"--header {text!r} has no colon; write it like 'authorization: Bearer TOKEN'")
        headers[name.strip()] = value.strip()
    return headers

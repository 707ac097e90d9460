"""The two kinds of server that the study asks: the shop's own on FastAPI, and dlproxy with the configuration of some steps.

Called by run.py. Not aware of: load, figures.
"""

import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from time import monotonic, sleep
from typing import Any

import msgspec
from msgspec import Struct

from dlproxy.lab.casestudy.replay import Body, Door, Item, picture_alone
from dlproxy.lab.casestudy.steps import NAME, Goods, Tables, as_toml
from dlproxy.lab.child_server import ChildServer
from dlproxy.lab.load.payload import encode
from dlproxy.lab.load.settings import LoadError
from dlproxy.lab.load.target import Target
from dlproxy.message import DType, Tensor

HERE = Path(__file__).parent
READY_S = 60.0
LOOK_S = 0.1
STOP_S = 10.0


class Served(Struct, frozen=True):
    """A server that runs. `control_url`: of dlproxy's control port, None of the shop's own."""

    url: str
    door: Door
    pid: int
    control_url: str | None


class _Category(Struct):
    category: int


class Counted(Struct, frozen=True):
    """What dlproxy tells of a day: rows that each model computed, hits of the cache, and what was decided when.

    `decisions`: (seconds since 1970, model, in words).
    """

    rows: dict[str, int]
    hits: int
    decisions: list[tuple[float, str, str]]

    def since(self, before: "Counted") -> "Counted":
        """What came after that."""
        rows = {name: count - before.rows.get(name, 0) for name, count in self.rows.items()}
        return Counted(rows, self.hits - before.hits, [one for one in self.decisions if one not in before.decisions])


def missing(case: str) -> list[str]:
    """What the shop's own server needs and is not installed."""
    needed = ["fastapi", "uvicorn", "PIL", *(["tokenizers"] if case == "advertisement" else [])]
    return [name for name in needed if find_spec(name) is None]


@contextmanager
def fastapi(goods: Goods) -> Iterator[Served]:
    """The shop's own. Raises LoadError if it does not start."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    app, path, kind, body = ("app", "/classify", "image/jpeg", picture_alone)
    if goods.tokenizer is not None:
        app, path, kind, body = ("advertisement_app", "/judge", "application/json", _as_json)
    files = {"CASESTUDY_MODEL": str(goods.classifier), "CASESTUDY_TOKENIZER": str(goods.tokenizer or "")}
    command = [sys.executable, "-m", "uvicorn", f"{app}:app", "--app-dir", str(HERE), "--port", str(port)]
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(  # nosec B603 # our own interpreter
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=log,
            start_new_session=True,
            env={**os.environ, **files},
        )
        try:
            target = _wait(process, f"http://127.0.0.1:{port}", log)
            door = _door(target, path, [f"Content-Type: {kind}"], _number_of_json, body)
            yield Served(target.url, door, process.pid, None)
        finally:
            _end(process)


@contextmanager
def dlproxy(tables: Tables, folder: Path, *options: str) -> Iterator[Served]:
    """With that configuration, which is left in the folder as dlproxy.toml. Raises ServerError and LoadError."""
    path = folder / "dlproxy.toml"
    path.write_text(as_toml(tables), "utf-8")
    child = ChildServer([f"--config={path}", "--http-port=0", "--control-port=0", "--grpc=off", *options])
    try:
        addresses = child.wait_until_ready()
        texts = "text" in tables[f"pipelines.{NAME}"]["inputs"]
        headers = [] if texts else ["Content-Type: application/octet-stream", "Inference-Header-Content-Length: 0"]
        target = Target(addresses.http)
        target.ask("GET", "/v2/health/ready")  # which finds out its address
        door = _door(target, target.infer_path(NAME), headers, _number_of_bytes, _as_tensors if texts else picture_alone)
        yield Served(target.url, door, child.process.pid, addresses.control)
    finally:
        child.end()


def counted(url: str, control_url: str) -> Counted:
    """Since the server was started. Raises LoadError."""
    rows: dict[str, int] = {}
    told = _json(Target(url), "/v2/models/stats")
    for model in told["model_stats"]:
        sizes = model.get("batch_stats", [])
        rows[model["name"]] = sum(int(one["batch_size"]) * int(one["compute_infer"]["count"]) for one in sizes)
    control = Target(control_url)
    caches = _json(control, "/cache")
    hits = sum(one["hits"] + one["joined"] for one in caches)
    feed = _json(control, "/dashboard/feed", {"accept": "application/json"})
    return Counted(rows, hits, [(one["at"], one["model"], one["words"]) for one in feed["events"]])


def _json(target: Target, path: str, headers: dict[str, str] | None = None) -> Any:
    answer = target.ask("GET", path, headers=headers)
    if answer.status != 200:
        raise LoadError(f"{target.url}{path} answered {answer.line}: {answer.error}")
    return msgspec.json.decode(answer.body)


def _door(target: Target, path: str, headers: list[str], read: Callable[[bytes], int], body: Body) -> Door:
    lines = [f"POST {path} HTTP/1.1", f"Host: {target.host_header}", *headers, ""]
    return Door(target.address, "\r\n".join(lines).encode("latin-1"), read, body)


def _as_json(item: Item) -> tuple[bytes, bytes]:
    """Picture and text as FastAPI's users send them."""
    return b"", msgspec.json.encode({"image": item.jpeg, "text": item.text})


def _as_tensors(item: Item) -> tuple[bytes, bytes]:
    """The same as two inputs of the Open Inference Protocol, binary."""
    given = {"jpeg": item.jpeg, "text": item.text.encode()}
    tensors = [Tensor(name, DType.BYTES, [1], len(value).to_bytes(4, "little") + value) for name, value in given.items()]
    body, headers = encode("binary", tensors, None)
    return "".join(f"{name}: {value}\r\n" for name, value in headers.items()).encode("latin-1"), body


def _number_of_json(body: bytes) -> int:
    """Raises ValueError."""
    return msgspec.json.decode(body, type=_Category).category


def _number_of_bytes(body: bytes) -> int:
    """The one INT64 behind the JSON of a binary answer. Raises ValueError."""
    if len(body) < 8:
        raise ValueError("the answer is too short for a number")
    return int.from_bytes(body[-8:], "little", signed=True)


def _wait(process: "subprocess.Popen[bytes]", url: str, log: Any) -> Target:
    target, until = Target(url), monotonic() + READY_S
    while True:
        if process.poll() is not None or monotonic() > until:
            log.seek(0)
            said = "\n".join(log.read().decode(errors="replace").splitlines()[-5:])
            raise LoadError(f"the shop's server did not start\n{said}")
        try:
            target.ask("GET", "/openapi.json")
        except LoadError:
            sleep(LOOK_S)
        else:
            return target


def _end(process: "subprocess.Popen[bytes]") -> None:
    process.terminate()
    try:
        process.wait(STOP_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()

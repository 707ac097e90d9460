"""A real `dlproxy serve` process on free ports, for tests of whole servers."""

import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
from pathlib import Path
from time import monotonic
from types import TracebackType
from typing import Any, NamedTuple
from urllib.error import HTTPError
from urllib.request import Request, urlopen

from prometheus_client.parser import text_string_to_metric_families

HANG_S = 60.0  # a server that is silent this long is killed, so that no test waits for ever


class Told(NamedTuple):
    """What came of a request over HTTP."""

    status: int
    headers: Any
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body or b"null")


def asked(url: str, data: Any = None, *, method: str | None = None, within_s: float = HANG_S, **headers: str) -> Told:
    """`data`: bytes, or what JSON is made of."""
    body = data if isinstance(data, bytes | None) else json.dumps(data).encode()
    try:
        with urlopen(Request(url, body, headers, method=method), timeout=within_s) as reply:
            return Told(reply.status, reply.headers, reply.read())
    except HTTPError as error:
        with error:
            return Told(error.code, error.headers, error.read())


class ServerProcess:
    """Started and ready when made; `stop` ends it with SIGTERM.

    `report` is what it printed until it was ready, `start_s` how long that took: what a start costs on this machine now.
    """

    def __init__(self, *arguments: str | Path) -> None:
        self._stderr = tempfile.TemporaryFile("w+")  # noqa: SIM115 - closed in __exit__
        listens = [] if "--uds" in arguments else ["--http-port", "0"]
        command = [sys.executable, "-m", "dlproxy", "serve", *map(str, arguments), *listens, "--control-port", "0"]
        began_at = monotonic()
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=self._stderr, text=True)
        self.report = self._read_until_ready()
        self.start_s = monotonic() - began_at
        self.http_port = self._port(r"inference +https?://\S+:(\d+)/")
        self.control_port = self._port(r"metrics +https?://\S+:(\d+)/")
        self.grpc_port = self._port(r"gRPC +\S+:(\d+)$")
        self.tfs_grpc_port, self.tfs_http_port = (
            self._port(r"TF Serving \S+:(\d+) "),
            self._port(r"TF .*//\S+:(\d+)/v1/models$"),
        )
        if not self.control_port or (listens and not self.http_port):
            self.kill()
            raise AssertionError(f"the server did not start: {self.report}\n{self.errors()}")

    def _port(self, pattern: str) -> int:
        """0 where it has none."""
        found = re.search(f"^{pattern}", self.report, re.MULTILINE)
        return int(found[1]) if found else 0

    def _read_until_ready(self) -> str:
        assert self.process.stdout is not None
        guard = threading.Timer(HANG_S, self.process.kill)
        guard.start()
        lines = []
        for line in self.process.stdout:
            lines.append(line)
            if line.startswith("ready"):
                break
        guard.cancel()
        guard.join()
        return "".join(lines)

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.http_port}"

    @property
    def grpc_address(self) -> str:
        return f"127.0.0.1:{self.grpc_port}"

    def send_signal(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    def wait(self) -> int:
        """The exit code; kills a server that does not end."""
        assert self.process.stdout is not None
        try:
            return self.process.wait(HANG_S)
        finally:
            self.process.kill()
            self.process.wait()
            self.process.stdout.close()

    def stop(self) -> int:
        if self.process.poll() is None:
            self.send_signal(signal.SIGTERM)
        return self.wait()

    def kill(self) -> None:
        self.process.kill()
        self.wait()

    def errors(self) -> str:
        """What it wrote to stderr so far."""
        return os.pread(self._stderr.fileno(), 1 << 20, 0).decode()  # the process shares the file's offset: leave it alone

    def await_in_errors(self, text: str) -> None:
        """Returns when it has written this to stderr."""
        tries = int(HANG_S / 0.02)
        if not any(text in self.errors() or threading.Event().wait(0.02) for _ in range(tries)):
            raise AssertionError(f"{text!r} was not written:\n{self.errors()}")

    def __enter__(self) -> "ServerProcess":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.stop()
        self._stderr.close()

    def ask(self, path: str, data: Any = None) -> Any:
        """The JSON of an answer, which is 200."""
        return self._json(f"http://{self.address}{path}", data)

    def control(self, path: str, data: Any = None) -> Any:
        """The same of the control port."""
        return self._json(f"http://127.0.0.1:{self.control_port}{path}", data)

    def _json(self, url: str, data: Any) -> Any:
        told = asked(url, data)
        assert told.status == 200, told
        return told.json

    def instances(self, model: str) -> list[dict[str, Any]]:
        """As the control port has them."""
        found: list[dict[str, Any]] = self.control(f"/models/{model}")["instances"]
        return found

    def stats(self, model: str) -> dict[str, Any]:
        """The statistics extension's entry of one model."""
        entry: dict[str, Any] = self.ask(f"/v2/models/{model}/stats")["model_stats"][0]
        return entry

    def metric(self, name: str, **labels: str) -> float:
        """One sample of the metrics page."""
        page = asked(f"http://127.0.0.1:{self.control_port}/metrics").body.decode()
        for family in text_string_to_metric_families(page):
            for sample in family.samples:
                if sample.name in (name, f"{name}_total") and labels.items() <= sample.labels.items():
                    return float(sample.value)
        raise AssertionError(f"no metric {name} {labels}")


def write_config(path: Path, models: dict[str, dict[str, Any]], **server: Any) -> Path:
    """A dlproxy.toml with these models' settings; values are texts and numbers."""
    lines = []
    for name, settings in (("server", server), *((f"models.{name}", of_model) for name, of_model in models.items())):
        lines.append(f"[{name}]")
        lines += [f"{key} = {json.dumps(str(v) if isinstance(v, Path) else v)}" for key, v in settings.items()]
    path.write_text("\n".join(lines) + "\n", "utf-8")
    return path


def environment() -> dict[str, str]:
    """For subprocesses that are not servers: as here, with plain output."""
    return {**os.environ, "COLUMNS": "120", "NO_COLOR": "1"}

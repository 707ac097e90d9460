"""A dlproxy under load: the server as one child, `dlproxy bench` as another, pinned apart or not.

Called by benchmarks/fidelity and benchmarks/pressure. Not aware of: what is measured, and why.
"""

import contextlib
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from benchmarks.harness.processes import READY_SECONDS, BenchmarkError, Child, Children, Cores, free_ports, pinned
from benchmarks.harness.servers import answers_ready
from dlproxy.lab.report.result import Result, load

SPARE_SECONDS = 60


class Served(NamedTuple):
    """A running server."""

    child: Child
    url: str
    control_url: str


@dataclass
class Load:
    """A `dlproxy bench` that runs."""

    process: subprocess.Popen[str]
    path: Path
    limit_s: float

    def result(self) -> Result:
        """Wait for its end. Raises BenchmarkError."""
        try:
            said, complaint = self.process.communicate(timeout=self.limit_s)
        except subprocess.TimeoutExpired as error:
            raise BenchmarkError(f"dlproxy bench did not end within {self.limit_s:.0f} s") from error
        finally:
            self.kill()
        if not self.path.exists():
            raise BenchmarkError(f"dlproxy bench failed: {(complaint or said).strip()[-500:]}")
        return load(self.path)

    def kill(self) -> None:
        """End it, if it still runs."""
        if self.process.poll() is None:
            self.process.kill()
            self.process.communicate()


@dataclass
class Live:
    """Starts servers and loads; `cores` says what is pinned where. `ready_s`: what a server has to load its models."""

    children: Children
    cores: Cores
    directory: Path
    ready_s: float = READY_SECONDS
    runs: int = field(default=0)
    loads: list[Load] = field(default_factory=list)

    @contextlib.contextmanager
    def serve(self, toml: str, server: Sequence[str] = ()) -> Iterator[Served]:
        """A server with these tables of dlproxy.toml; `server`: more lines of [server]."""
        port, control_port = free_ports(2)
        self.runs += 1
        config = self.directory / f"server-{self.runs}.toml"
        config.write_text("\n".join(["[server]", f"http_port = {port}", f"control_port = {control_port}", *server, toml]))
        command = [sys.executable, "-m", "dlproxy", "serve", "--config", str(config)]
        child = self.children.start("dlproxy", pinned(self.cores.server, command))
        try:
            child.wait_until(lambda: answers_ready(port), self.ready_s)
            yield Served(child, f"http://127.0.0.1:{port}", f"http://127.0.0.1:{control_port}")
        finally:
            while self.loads:
                self.loads.pop().kill()
            self.children.stop(child)

    def start_load(self, url: str, model: str, options: Sequence[str], seconds: float) -> Load:
        """A `dlproxy bench` of about so many seconds, without warm-up unless the options say so."""
        self.runs += 1
        path = self.directory / f"run-{self.runs}.json"
        command = [sys.executable, "-m", "dlproxy", "bench", url, "--model", model]
        command += ["--warmup", "0", "--json", str(path), *options]
        process = subprocess.Popen(
            pinned(self.cores.load, command),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        self.loads.append(Load(process, path, seconds + SPARE_SECONDS))
        return self.loads[-1]

    def load(self, url: str, model: str, options: Sequence[str], seconds: float) -> Result:
        """The same, to its end. Raises BenchmarkError."""
        return self.start_load(url, model, options, seconds).result()

"""Starts the servers that are compared, each pinned to the server core on free ports, and waits until they answer."""

import http.client
import shutil
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from benchmarks.harness.processes import BenchmarkError, Child, Children, Cores, accepts_connections, free_ports, pinned

READY_PATH = "/v2/health/ready"
NGINX_CONFIG = """\
daemon off; worker_processes 1; pid nginx.pid; error_log stderr warn; events {{ worker_connections 1024; }}
http {{ access_log off; keepalive_requests 1000000000; client_body_buffer_size 64k; {temporary_paths}
default_type application/json;
server {{ listen 127.0.0.1:{port}; {replies} }} }}
"""
NGINX_TEMPORARY_PATHS = " ".join(f"{kind}_temp_path {kind};" for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi"))


@dataclass(frozen=True)
class Server:
    child: Child
    port: int
    seconds_to_ready: float

    def url(self, path: str = "/") -> str:
        return f"http://127.0.0.1:{self.port}{path}"


def answers_ready(port: int) -> bool:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
    try:
        connection.request("GET", READY_PATH)
        return connection.getresponse().status == 200
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


def constant(reply_bytes: int) -> str:
    """nginx answers everything with so many bytes."""
    return f'return 200 "{"x" * reply_bytes}";'


def find_nginx() -> str | None:
    return shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin")  # Debian's place, off most users' PATH


@dataclass(frozen=True)
class Launcher:
    children: Children
    cores: Cores
    work_directory: Path
    bare_script: Path
    program: tuple[str, ...] = ("-m", "dlproxy")
    """What Python runs as dlproxy: a benchmark may look into it."""

    @contextmanager
    def dlproxy(self, models: Mapping[str, Path]) -> Iterator[Server]:
        port, control_port = free_ports(2)
        served = [f"{name}={path}" for name, path in models.items()]
        command = [sys.executable, *self.program, "serve", *served, "--host", "127.0.0.1"]
        command += ["--http-port", str(port), "--control-port", str(control_port)]
        with self._child("dlproxy", command) as child:
            yield Server(child, port, child.wait_until(lambda: answers_ready(port)))

    @contextmanager
    def bare(self, model: Path) -> Iterator[Server]:
        (port,) = free_ports(1)
        with self._child("bare", [sys.executable, str(self.bare_script), str(model), str(port)]) as child:
            yield Server(child, port, child.wait_until(lambda: accepts_connections(port)))

    @contextmanager
    def nginx(self, replies: str) -> Iterator[Server]:
        """`replies`: directives of its one server, such as those of `constant`."""
        program = find_nginx()
        if program is None:
            raise BenchmarkError("nginx is not installed; on Debian: apt-get install nginx-light")
        (port,) = free_ports(1)
        prefix = self.work_directory / "nginx"
        prefix.mkdir(exist_ok=True)
        config = prefix / "nginx.conf"
        config.write_text(NGINX_CONFIG.format(port=port, replies=replies, temporary_paths=NGINX_TEMPORARY_PATHS))
        with self._child("nginx", [program, "-p", str(prefix), "-c", str(config)]) as child:
            yield Server(child, port, child.wait_until(lambda: accepts_connections(port)))

    @contextmanager
    def _child(self, name: str, command: list[str]) -> Iterator[Child]:
        child = self.children.start(name, pinned(self.cores.server, command))
        try:
            yield child
        finally:
            self.children.stop(child)

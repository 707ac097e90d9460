"""A real Triton for as long as it is needed, from an environment with nvidia-pytriton. Called by tests/conformance, grpc/.

The package brings tritonserver and its Python backend; what it brings them in, PyTriton itself, is not used.
"""

import os
import signal
import socket
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.error import URLError
from urllib.request import urlopen

from msgspec import Struct

START_S = 90.0
WHERE = """
import sys, sysconfig, pytriton
print(pytriton.__path__[0], sysconfig.get_config_var("LIBDIR"), "%d.%d" % sys.version_info[:2], sep="\\n")
"""


class TritonServer(Struct):
    """Where it listens."""

    http_port: int
    grpc_port: int
    process: Any


@contextmanager
def running(python: Path, repository: Path, before: Sequence[str] = ()) -> Iterator[TritonServer]:
    """With every model of the repository up. `python`: of the environment. `before`: of the command, such as taskset."""
    found = subprocess.run([python, "-c", WHERE], capture_output=True, text=True, check=True, timeout=60)
    package, libraries, version = found.stdout.split("\n")[:3]
    home = Path(package) / "tritonserver"
    ports = _free_ports(3)
    with tempfile.TemporaryDirectory() as scratch, tempfile.TemporaryFile("w+") as log:
        backend = Path(scratch) / "python"
        backend.mkdir()
        stub = home / "python_backend_stubs" / version / "triton_python_backend_stub"
        for file in (stub, *(home / "backends" / "python").iterdir()):
            (backend / file.name).symlink_to(file)
        command = [
            *(
                *before,
                str(home / "bin" / "tritonserver"),
                f"--model-repository={repository}",
                f"--backend-directory={scratch}",
            ),
            *(f"--{door}-address=127.0.0.1" for door in ("http", "grpc", "metrics")),
            *(f"--{door}-port={port}" for door, port in zip(("http", "grpc", "metrics"), ports, strict=True)),
            *("--model-control-mode=explicit", "--load-model=*", "--exit-timeout-secs=1"),
        ]
        # The stub loads its interpreter's library, and looks for that interpreter by the name python3
        environment = {**os.environ, "LD_LIBRARY_PATH": libraries, "PATH": f"{python.parent}:{os.environ['PATH']}"}
        process = subprocess.Popen(command, stdout=log, stderr=log, env=environment)
        try:
            _await_ready(process, ports[0])
            yield TritonServer(ports[0], ports[1], process)
        except BaseException as error:
            log.seek(0)
            error.add_note(log.read()[-6000:])
            raise
        finally:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _await_ready(process: "subprocess.Popen[bytes]", port: int) -> None:
    for _ in range(int(START_S / 0.1)):
        try:
            with urlopen(f"http://127.0.0.1:{port}/v2/health/ready", timeout=5):
                return
        except (URLError, OSError):
            pass
        try:
            code = process.wait(0.1)
        except subprocess.TimeoutExpired:
            continue
        raise RuntimeError(f"Triton ended with {code}")
    raise RuntimeError(f"Triton was not ready in {START_S:.0f} s")


def _free_ports(count: int) -> list[int]:
    """Not taken now."""
    doors = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [int(door.getsockname()[1]) for door in doors]
    for door in doors:
        door.close()
    return ports

"""Asks a real Triton what it makes of triton_configs.py, for triton_answers.json.

Run as `python -m tests.fleet.repository.ask_triton SERVER`, where SERVER is a tritonserver; the wheel nvidia-pytriton has one
in pytriton/tritonserver/bin, for the CPU and its Python backend.
"""

import json
import re
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.fleet.repository.triton_configs import ACCEPTED, REFUSED

ANSWERS = Path(__file__).with_name("triton_answers.json")
MODEL = f"""
import sys
sys.path += {sys.path}  # numpy's; the backend sets its own
import json, numpy, triton_python_backend_utils as utils

class TritonPythonModel:
    def initialize(self, args):
        self.outputs = json.loads(args["model_config"])["output"]

    def execute(self, requests):
        return [utils.InferenceResponse([self.zeros(request, one) for one in self.outputs]) for request in requests]

    def zeros(self, request, output):
        rows = request.inputs()[0].as_numpy().shape[0]
        dtype = utils.triton_string_to_numpy(output["data_type"])
        return utils.Tensor(output["name"], numpy.zeros([rows, *output["dims"]], dtype))
"""
REASONS = (  # in the log, of what the reply does not tell
    r"Error parsing text-format inference.ModelConfig: (\d+):\d+: (.*)",
    r"Poll failed for model directory '.*': ()(.*)\"",
)
STUB = "triton_python_backend_stub"
PORT = 18741


def repository(folder: Path) -> None:
    """Every model with three versions."""
    for name, text in {**ACCEPTED, **REFUSED}.items():
        for version in ("1", "2", "3"):
            (folder / name / version).mkdir(parents=True)
            (folder / name / version / "model.py").write_text(MODEL)
        (folder / name / "config.pbtxt").write_text(text)
        (folder / name / "labels.txt").write_text("label\n" * 1000)
        (folder / name / "warmup").mkdir()
        (folder / name / "warmup" / "x.raw").write_bytes(bytes(16))


def ask(path: str, data: bytes | None = None) -> Any:
    """What the server answers; its error, if it refuses."""
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{PORT}/v2{path}", data, timeout=60) as reply:
            return json.loads(reply.read() or b"{}")
    except urllib.error.HTTPError as error:
        return json.loads(error.read())


@contextmanager
def serving(server: Path, folder: Path, log: Path) -> Iterator[str]:
    """The server's version, while it serves the repository."""
    home, backends = server.resolve().parents[1], folder.with_name("backends")
    shutil.copytree(home / "backends", backends)
    stub = home / "python_backend_stubs" / f"3.{sys.version_info[1]}" / STUB
    if stub.exists():  # of pytriton, whose backend lacks it; it finds its libraries from where it lies
        stub.chmod(0o755)
        (backends / "python" / STUB).symlink_to(stub)
    options = {
        "model-repository": folder,
        "model-control-mode": "explicit",
        "backend-directory": backends,
        "cache-directory": home / "caches",
        "cache-config": "local,size=1048576",
        "exit-on-error": "false",
        "exit-timeout-secs": 5,
        "http-address": "127.0.0.1",
        "http-port": PORT,
        "allow-grpc": "false",
        "allow-metrics": "false",
    }
    command = [server, "--disable-auto-complete-config", *(f"--{name}={value}" for name, value in options.items())]
    with log.open("wb") as out, subprocess.Popen(command, stdout=out, stderr=out) as process:
        try:
            for _ in range(300):
                try:
                    version = ask("")["version"]
                    break
                except OSError:
                    time.sleep(0.1)
            yield version
        finally:
            process.terminate()
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()


def answer(name: str, log: Path) -> dict[str, Any]:
    """What its configuration became, or why it is refused and, if it is the text's fault, in which line."""
    already = len(log.read_text("utf-8", "replace"))
    loaded = ask(f"/repository/models/{name}/load", b"{}")
    config = ask(f"/models/{name}/config")
    ask(f"/repository/models/{name}/unload", b"{}")
    if "error" not in loaded:
        return {"config": config}
    new = log.read_text("utf-8", "replace")[already:]
    line, reason = next((match.groups() for one in REASONS if (match := re.search(one, new))), ("", loaded["error"]))
    return {"refused": reason, **({"line": int(line)} if line else {})}


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as made:
        models, log = Path(made, "models"), Path(made, "log")
        repository(models)
        with serving(Path(sys.argv[1]), models, log) as version:
            answers = {name: answer(name, log) for name in (*ACCEPTED, *REFUSED)}
    ANSWERS.write_text(
        json.dumps({"triton": version, "answers": answers}, indent=1, ensure_ascii=False, sort_keys=True) + "\n", "utf-8"
    )

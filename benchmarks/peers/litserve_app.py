"""LitServe with batching: its HTTP process and one worker process, or PEER_WORKERS. Run by the benchmark: `-m ... MODEL
PORT`.
"""

import sys
from typing import Annotated

import litserve
from fastapi import Body, Response

from benchmarks.peers import MAX_BATCH, WORKERS
from benchmarks.peers.onnx_session import Rows, open_session

# At 0 the worker polls its queue without a pause and starves the HTTP process of their one core; 3 to 50 ms gave no more at
# 64 connections here than 1 ms, and one connection waits all of it. https://lightning.ai/docs/litserve/features/batching
BATCH_TIMEOUT_S = 0.001


class OnnxApi(litserve.LitAPI):
    def __init__(self, model: str) -> None:
        super().__init__(max_batch_size=MAX_BATCH, batch_timeout=BATCH_TIMEOUT_S if MAX_BATCH > 1 else 0.0)
        self.model = model

    def setup(self, device: str) -> None:
        self.session = open_session(self.model)

    # An annotation other than Request becomes FastAPI's, which hands over the raw body where the default parses JSON.
    def decode_request(self, request: Annotated[bytes, Body(media_type="application/octet-stream")]) -> Rows:
        return self.session.item(request)

    def batch(self, inputs: list[Rows]) -> Rows:
        return self.session.stack(inputs)

    def predict(self, x: Rows) -> Rows:
        return self.session.run(x)

    def unbatch(self, output: Rows) -> list[Rows]:
        return list(output)

    def encode_response(self, output: Rows) -> Response:
        return Response(output.tobytes(), media_type="application/octet-stream")


if __name__ == "__main__":
    # fast_queue (ZeroMQ) is what the documentation advises for many requests.
    # https://lightning.ai/docs/litserve/api-reference/litserver
    server = litserve.LitServer(OnnxApi(sys.argv[1]), accelerator="cpu", workers_per_device=WORKERS, fast_queue=True)
    server.run(host="127.0.0.1", port=int(sys.argv[2]), num_api_servers=1, generate_client_file=False, log_level="warning")

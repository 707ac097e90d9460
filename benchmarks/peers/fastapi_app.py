"""Naive FastAPI on uvicorn: one request, one run of the model. Run by the benchmark: `-m ... MODEL PORT`.

No batching: it is what people write first, and what a batching server has to beat.
"""

import os
import sys

import uvicorn
from fastapi import FastAPI, Request, Response
from fastapi.concurrency import run_in_threadpool

from benchmarks.peers.onnx_session import open_session

IN_POOL = "PEER_POOL" in os.environ  # for a model that computes so long that hand-overs do not matter, on several cores


def build(model: str) -> FastAPI:
    session = open_session(model)
    app = FastAPI()

    # `async def` runs on the event loop: with one core, FastAPI's thread pool (plain `def`) only adds a hand-over.
    # https://fastapi.tiangolo.com/async/
    @app.post("/predict")
    async def predict(request: Request) -> Response:
        item = session.item(await request.body())
        answer = await run_in_threadpool(session.run, item) if IN_POOL else session.run(item)
        return Response(answer.tobytes(), media_type="application/octet-stream")

    return app


if __name__ == "__main__":
    # uvloop and httptools, which uvicorn[standard] brings, are chosen by default: https://www.uvicorn.org/#quickstart
    uvicorn.run(build(sys.argv[1]), host="127.0.0.1", port=int(sys.argv[2]), log_level="warning", access_log=False)

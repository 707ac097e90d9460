"""ONNX Runtime alone in a loop, one thread, no server: the ceiling of what any server on this core can answer.

python benchmarks/ort_loop.py slow.onnx --seconds 5 [--batch 1]

Prints one line of JSON: requests_per_s (items, whatever the batch), p50_ms and p99_ms of a call, requests, seconds.
"""

import argparse
import json
import time
from pathlib import Path

import numpy as np
import onnxruntime

WARM_UP_CALLS = 3


def measure(path: Path, batch: int, seconds: float) -> dict[str, float]:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    wanted = session.get_inputs()[0]
    items = np.random.default_rng(1).random((batch, *wanted.shape[1:]), dtype=np.float32)
    for _ in range(WARM_UP_CALLS):
        session.run(None, {wanted.name: items})
    call_seconds = []
    started = finished = time.perf_counter()
    while finished - started < seconds:
        before = finished
        session.run(None, {wanted.name: items})
        finished = time.perf_counter()
        call_seconds.append(finished - before)
    elapsed = finished - started
    p50, p99 = np.percentile(call_seconds, [50, 99])
    requests = len(call_seconds) * batch
    return {
        "requests_per_s": requests / elapsed,
        "p50_ms": float(p50) * 1e3,
        "p99_ms": float(p99) * 1e3,
        "requests": requests,
        "seconds": elapsed,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description="Run a model in a loop and print its rate.")
    parser.add_argument("model", type=Path)
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--batch", type=int, default=1)
    arguments = parser.parse_args()
    print(json.dumps(measure(arguments.model, arguments.batch, arguments.seconds)))


if __name__ == "__main__":
    main()

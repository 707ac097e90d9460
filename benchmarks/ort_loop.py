"""ONNX Runtime alone in a loop, no server: the ceiling of what any server on these cores can answer.

python benchmarks/ort_loop.py slow.onnx --seconds 5 [--batch 1] [--threads 1] [--callers 1] [--sessions 1] [--inputs FILE.npz]

Prints one line of JSON: requests_per_s (items of the batch, or requests of the file), p50_ms and p99_ms of a call, requests,
seconds. Arrays of the file are called NUMBER/INPUT: request NUMBER holds them all, and the requests are asked in turn.
"""

import argparse
import json
import time
from collections.abc import Iterator, Sequence
from itertools import cycle
from pathlib import Path
from threading import Thread
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray

WARM_UP_CALLS = 3

Feed = dict[str, NDArray[np.generic]]


def read_feeds(path: Path) -> list[Feed]:
    """The requests of a file, in order."""
    feeds: dict[int, Feed] = {}
    with np.load(path) as arrays:
        for key in arrays.files:
            number, _, name = key.partition("/")
            feeds.setdefault(int(number), {})[name] = arrays[key]
    return [feeds[number] for number in sorted(feeds)]


def open_session(path: Path, threads: int = 1) -> Any:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def made_up(session: Any, batch: int) -> Feed:
    wanted = session.get_inputs()[0]
    return {wanted.name: np.random.default_rng(1).random((batch, *wanted.shape[1:]), dtype=np.float32)}


def measure(sessions: Sequence[Any], feeds: Sequence[Feed], callers: int, seconds: float) -> dict[str, float]:
    """Calls a second; caller N asks session N, or the only one."""
    for session in sessions:
        for feed in feeds if len(feeds) > 1 else [feeds[0]] * WARM_UP_CALLS:
            session.run(None, feed)
    waiting = cycle(feeds)  # the callers take turns at it
    call_seconds: list[float] = []
    started = time.perf_counter()
    asking = [
        Thread(target=_ask, args=(sessions[caller % len(sessions)], waiting, started + seconds, call_seconds))
        for caller in range(callers - 1)
    ]
    for thread in asking:
        thread.start()
    _ask(sessions[-1], waiting, started + seconds, call_seconds)
    for thread in asking:
        thread.join()
    elapsed = time.perf_counter() - started
    p50, p99 = np.percentile(call_seconds, [50, 99])
    calls = len(call_seconds)
    return {
        "requests_per_s": calls / elapsed,
        "p50_ms": float(p50) * 1e3,
        "p99_ms": float(p99) * 1e3,
        "requests": calls,
        "seconds": elapsed,
    }


def _ask(session: Any, waiting: Iterator[Feed], until: float, call_seconds: list[float]) -> None:
    finished = time.perf_counter()
    while finished < until:
        before = finished
        session.run(None, next(waiting))
        finished = time.perf_counter()
        call_seconds.append(finished - before)


def main() -> None:
    parser = argparse.ArgumentParser(description="Run a model in a loop and print its rate.")
    parser.add_argument("model", type=Path)
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--batch", type=int, default=1, help="rows of a made-up request")
    parser.add_argument("--threads", type=int, default=1, help="of each session's own")
    parser.add_argument("--callers", type=int, default=1, help="Python threads that ask")
    parser.add_argument("--sessions", type=int, default=1, help="one for all callers, or as many as there are callers")
    parser.add_argument("--inputs", type=Path, help="requests to ask in turn, instead of a made-up one")
    arguments = parser.parse_args()
    sessions = [open_session(arguments.model, arguments.threads) for _ in range(arguments.sessions)]
    feeds = read_feeds(arguments.inputs) if arguments.inputs else [made_up(sessions[0], arguments.batch)]
    figures = measure(sessions, feeds, arguments.callers, arguments.seconds)
    if not arguments.inputs:
        figures["requests_per_s"] *= arguments.batch
        figures["requests"] *= arguments.batch
    print(json.dumps(figures))


if __name__ == "__main__":
    main()

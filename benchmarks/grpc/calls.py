"""One gRPC call of ModelInfer, as bytes: checked with grpcio before each load, and what h2load sends. Called by __main__.py."""

import re
import statistics
import subprocess
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import onnxruntime
from msgspec import Struct

from benchmarks.harness.processes import BenchmarkError, Cores, pinned
from dlproxy.protos.oip import SERVICE, oip

METHOD = f"{SERVICE}/ModelInfer"
ANSWER_S, SPARE_S = 10.0, 30
FRAME = 5  # bytes before each message
TOLERANCE = 1e-4


class Question(Struct):
    """A call with one row for a model of FP32, and the answer that it must get. `echoed`: its own bytes."""

    message: bytes
    expected: Any

    def check(self, port: int, *, echoed: bool) -> int:
        """Asks once; the size of the answer. Raises BenchmarkError."""
        try:
            with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
                answer: bytes = channel.unary_unary(METHOD)(self.message, timeout=ANSWER_S, wait_for_ready=True)
        except grpc.RpcError as error:
            raise BenchmarkError(f"port {port}: {error.code()}: {error.details()}") from error
        if echoed:
            right = answer == self.message
        else:
            raw = oip.ModelInferResponse.FromString(answer).raw_output_contents
            right = len(raw) == 1 and np.allclose(np.frombuffer(raw[0], np.float32), self.expected, atol=TOLERANCE)
        if not right:
            raise BenchmarkError(f"the answer of port {port} is wrong")
        return len(answer)


def question_for(model: Path, name: str) -> Question:
    session = onnxruntime.InferenceSession(str(model), providers=["CPUExecutionProvider"])
    (wanted,) = session.get_inputs()
    row = np.random.default_rng(7).random((1, *wanted.shape[1:]), dtype=np.float32)
    (expected,) = session.run(["output"], {"input": row})
    message = oip.ModelInferRequest(model_name=name, raw_input_contents=[row.tobytes()])
    message.inputs.add(name="input", datatype="FP32", shape=row.shape)
    return Question(message.SerializeToString(), expected.ravel())


class Figures(Struct):
    """Of one load."""

    calls_per_s: float
    p50_ms: float
    p99_ms: float


def load(question: Question, answer_bytes: int, port: int, calls: int, seconds: int, cores: Cores, folder: Path) -> Figures:
    """So many calls at a time on one connection, by h2load. Raises BenchmarkError if one fails.

    h2load does not look at gRPC's own status; but a call that fails has no message, so bytes of answers would be missing.
    """
    body, log = folder / "body", folder / "calls.log"
    body.write_bytes(b"\0" + len(question.message).to_bytes(FRAME - 1, "big") + question.message)
    log.unlink(missing_ok=True)
    command = ["h2load", "--duration", str(seconds), "-c", "1", "-m", str(calls), "-d", str(body)]
    command += ["-H", "content-type: application/grpc", "-H", "te: trailers", f"--log-file={log}"]
    command.append(f"http://127.0.0.1:{port}{METHOD}")
    finished = subprocess.run(
        pinned(cores.load, command), capture_output=True, text=True, timeout=seconds + SPARE_S, start_new_session=True
    )
    found = re.search(r"(\d+) succeeded, (\d+) failed, (\d+) errored, (\d+) timeout", finished.stdout)
    if found is None or found[1] == "0" or any(int(found[number]) for number in (2, 3, 4)):
        raise BenchmarkError(f"h2load failed: {(finished.stderr + finished.stdout).strip()[-500:]}")
    data = re.search(r"\((\d+)\) data$", finished.stdout, re.MULTILINE)
    if data is None or int(data[1]) < int(found[1]) * (FRAME + answer_bytes):
        raise BenchmarkError(f"port {port}: some calls had no answer")
    times_ms = [int(line.split()[2]) / 1000 for line in log.read_text().splitlines()]
    p99 = statistics.quantiles(times_ms, n=100)[98]
    return Figures(int(found[1]) / seconds, statistics.median(times_ms), p99)

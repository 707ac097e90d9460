"""Starts one system on the server core, checks what it answers, and loads it from the other core."""

import http.client
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnxruntime

from benchmarks.harness.processes import BenchmarkError, Child, Children, Cores, free_ports, pinned
from benchmarks.harness.wrk import SCRIPT, Figures, Load, run_wrk
from benchmarks.peers.bodies import Array, Message
from benchmarks.peers.family import Family
from benchmarks.peers.registry import Launch, System
from benchmarks.peers.venvs import VENVS
from benchmarks.peers.workloads import Workload

ROOT = Path(__file__).parents[2]
START_SECONDS = 90.0
ANSWER_SECONDS = 30.0
SLOWEST_ANSWER = "30s"  # wrk counts an answer that takes longer as failed; its default, 2 s, is less than some tails here
TOLERANCE = 1e-4  # of the largest value: another batch size may use another kernel
# So that a numerical library that a framework loads beside ONNX Runtime does not start threads of its own either.
ENVIRONMENT = ["OMP_NUM_THREADS=1", "OPENBLAS_NUM_THREADS=1", f"PYTHONPATH={ROOT}", "PYTHONUNBUFFERED=1"]


@dataclass(frozen=True)
class Question:
    """One item and what ONNX Runtime itself answers."""

    item: Array
    answer: Array


def question_for(model: Path) -> Question:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])
    (wanted,) = session.get_inputs()
    item = np.random.default_rng(7).random((1, *wanted.shape[1:]), dtype=np.float32)
    return Question(item, session.run(None, {wanted.name: item})[0].ravel())


@dataclass(frozen=True)
class Running:
    system: System
    child: Child
    family: Family
    port: int
    question: Question
    seconds_to_answer: float

    def check(self) -> float:
        """The largest absolute difference to ONNX Runtime's own answer; too large a one is an error."""
        return check_answer(self.system, self.port, self.question)

    def settle(self) -> None:
        """Before each load: idle again, and still right."""
        self.family.wait_until_idle()
        self.check()

    def load(self, workload: Workload, seconds: int, cores: Cores, folder: Path) -> Figures:
        command = load_command(self, workload, seconds, cores, folder)
        return run_wrk(command, Load(workload.connections, seconds))


@contextmanager
def run_system(system: System, model: Path, question: Question, children: Children, core: int | None) -> Iterator[Running]:
    """The system serving `model`; when the block ends, nothing that it started is left."""
    family = Family()
    (port,) = free_ports(1)
    with tempfile.TemporaryDirectory(prefix="peer-", ignore_cleanup_errors=True) as folder:
        command = system.command(Launch(system.python(VENVS), model, port, Path(folder)))
        # what systems leave behind when they are killed, they leave in there
        places = [f"{name}={folder}" for name in ("PEER_FOLDER", "TMPDIR", "XDG_CACHE_HOME")]
        environment = [*ENVIRONMENT, *family.environment, *places, *system.environment]
        child = children.start(system.name, pinned(core, ["env", *environment, *command]))
        try:
            seconds = child.wait_until(lambda: _answers(system, port, question), START_SECONDS)
            yield Running(system, child, family, port, question, seconds)
        finally:
            children.stop(child)
            family.end()


def check_answer(system: System, port: int, question: Question) -> float:
    try:
        status, reply = _ask(system, port, question)
        if status != 200:
            raise BenchmarkError(f"answered {status}: {reply.body[:300].decode(errors='replace')}")
        answer = system.format.decode(reply)
    except (OSError, http.client.HTTPException, ValueError, KeyError, TypeError) as error:
        raise BenchmarkError(f"no usable answer: {type(error).__name__}: {error}") from error
    return compare(answer, question.answer)


def compare(answer: Array, expected: Array) -> float:
    if answer.shape != expected.shape:
        raise BenchmarkError(f"wrong answer: {answer.size} values, not {expected.size}")
    difference = float(np.abs(answer - expected).max())
    if not difference <= TOLERANCE * float(np.abs(expected).max()):  # written so that NaN is wrong
        raise BenchmarkError(f"wrong answer: differs from ONNX Runtime's by up to {difference:g}")
    return difference


def _answers(system: System, port: int, question: Question) -> bool:
    try:
        return _ask(system, port, question)[0] == 200
    except (OSError, http.client.HTTPException):
        return False


def _ask(system: System, port: int, question: Question) -> tuple[int, Message]:
    message = system.format.encode(question.item)
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=ANSWER_SECONDS)
    try:
        connection.request("POST", system.path, message.body, dict(message.headers))
        response = connection.getresponse()
        return response.status, Message(response.read(), dict(response.getheaders()))
    finally:
        connection.close()


def load_command(running: Running, workload: Workload, seconds: int, cores: Cores, folder: Path) -> list[str]:
    message = running.system.format.encode(running.question.item)
    body = folder / f"{running.system.name}-{workload.model}.body"
    body.write_bytes(message.body)
    options = ["-t1", f"-c{workload.connections}", f"-d{seconds}s", "--timeout", SLOWEST_ANSWER, "-s", str(SCRIPT)]
    for name, value in message.headers.items():
        options += ["-H", f"{name}: {value}"]
    url = f"http://127.0.0.1:{running.port}{running.system.path}"
    mode = ["steady", str(workload.connections)] if workload.steady else ["same"]
    return pinned(cores.load, ["wrk", *options, url, "--", str(body), "0", *mode])

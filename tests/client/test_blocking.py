"""The blocking client: many threads, forks, and the end of the process, against a real server."""

import gc
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from dlproxy import Client, FailureKind, InferenceError
from tests import models
from tests.clients.server import HANG_S, ServerProcess, environment, write_config

STREAMER = """
class Counter:
    inputs, outputs = {"x": "FP32[-1]"}, {"y": "FP32[-1]"}
    streams = True

    def predict(self, batch):
        for step in range(3):
            yield {"y": batch["x"] + step}
"""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    folder: Path = tmp_path_factory.mktemp("models")
    (folder / "counter.py").write_text(STREAMER)
    settings = {
        "digits": {"path": models.DIGITS, "threads": 1},
        "simple": {"path": models.save(models.two_in_two_out(), folder / "simple.onnx"), "threads": 1},
        "counter": {"path": f"{folder / 'counter.py'}:Counter"},
    }
    with ServerProcess("--config", write_config(folder / "dlproxy.toml", settings)) as process:
        yield process


@pytest.fixture
def client(server: ServerProcess) -> Iterator[Client]:
    with Client(f"http://{server.address}") as made:
        yield made


def test_the_documented_calls(client: Client) -> None:
    a = np.arange(8, dtype=np.int32).reshape(2, 4)
    answer = client.infer("simple", {"a": a, "b": [[1] * 4] * 2})
    assert np.array_equal(answer["sum"], a + 1)
    assert list(client.infer("simple", {"a": a, "b": a}, outputs=["diff"])) == ["diff"]
    assert {model.name for model in client.models()} == {"digits", "simple", "counter"}
    assert client.metadata("digits").inputs[0].name == "image"
    assert client.ready()
    assert client.ready("digits")
    assert not client.ready("nothing")


def test_fifty_threads_share_one_client(client: Client) -> None:
    a = np.arange(8, dtype=np.int32).reshape(2, 4)
    wrong: list[object] = []

    def ask(number: int) -> None:
        for step in range(20):
            try:
                answer = client.infer("simple", {"a": a, "b": a * 0 + number * 100 + step}, timeout_s=HANG_S)
                if not np.array_equal(answer["sum"], a + number * 100 + step):
                    wrong.append(answer)
            except Exception as error:
                wrong.append(error)

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(50)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong, wrong[:3]


def test_failures_are_raised_here(client: Client) -> None:
    with pytest.raises(InferenceError, match="unknown model") as caught:
        client.infer("digts", [1])
    assert caught.value.failure.kind is FailureKind.NOT_FOUND


def test_a_closed_client_says_so(server: ServerProcess) -> None:
    used, fresh = Client(f"http://{server.address}"), Client(f"http://{server.address}")
    used.ready()
    for client in (used, fresh):
        client.close()
        with pytest.raises(InferenceError, match="this client is closed"):
            client.ready()
        client.close()


def test_a_client_that_is_forgotten_leaves_nothing_open(server: ServerProcess) -> None:
    Client(f"http://{server.address}").ready()
    gc.collect()
    with Client(f"http://{server.address}") as client:
        assert client.ready()


def _fork_and(*, ask: str) -> str:
    return f"""
import os, sys, numpy as np
from dlproxy import Client
client = Client(sys.argv[1])
x = np.zeros((1, 1, 8, 8), np.float32)
before = client.infer("digits", x)["probabilities"]
pid = os.fork()
{ask}
if not pid:
    sys.exit(0)
_, status = os.waitpid(pid, 0)
assert (client.infer("digits", x)["probabilities"] == before).all()
sys.exit(os.waitstatus_to_exitcode(status))
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")
@pytest.mark.parametrize(
    "ask",
    ['assert (client.infer("digits", x)["probabilities"] == before).all()', "pass", "client.close() if not pid else None"],
    ids=["both go on", "only the parent goes on", "the child closes its own"],
)
def test_a_fork_makes_its_own_connections(server: ServerProcess, ask: str) -> None:
    program = [sys.executable, "-W", "error", "-W", "ignore:.*fork.*:DeprecationWarning", "-c", _fork_and(ask=ask)]
    done = subprocess.run(
        [*program, f"http://{server.address}"], capture_output=True, text=True, timeout=HANG_S, env=environment(), check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


ENDS = {
    "closed": "with client: client.ready()",
    "not closed": "client.ready()",
    "never used": "pass",
    "while others ask": "import threading; threading.Thread(target=client.infer, args=('digits', [[[[0.0] * 8] * 8]])).start()",
    "while nobody answers": (
        "import socket, threading; listener = socket.create_server(('127.0.0.1', 0)); "
        "other = Client('http://127.0.0.1:%d' % listener.getsockname()[1]); "
        "threading.Thread(target=other.ready, daemon=True).start(); "
        "connection, _ = listener.accept(); connection.recv(1); connection.detach(); listener.detach()"
    ),
    "in the middle of a stream": "parts = client.stream('counter', [1.0]); next(parts)",
}


@pytest.mark.parametrize("program", ENDS.values(), ids=ENDS)
def test_a_program_ends_without_a_warning(server: ServerProcess, program: str) -> None:
    code = f"import sys; from dlproxy import Client; client = Client(sys.argv[1])\n{program}"
    done = subprocess.run(
        [sys.executable, "-X", "dev", "-W", "error", "-c", code, f"http://{server.address}"],
        capture_output=True,
        text=True,
        timeout=HANG_S,
        env=environment(),
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")

"""Many models on demand in memory for a tenth of them, asked by popularity: every answer is right, and nothing piles up.

`make prove-demand MODELS=200` for the full size, with its figures; 20 models and a few seconds here.
"""

import asyncio
import os
import random
import sys
from collections.abc import Iterator
from itertools import accumulate
from pathlib import Path
from time import monotonic

import numpy as np
import pytest
from numpy.typing import NDArray
from onnx import helper

from dlproxy.fleet.memory import resident_bytes
from dlproxy.message import DType
from tests import models
from tests.clients.raw import RawConnection, binary_infer, binary_output, connect
from tests.clients.server import ServerProcess, write_config
from tests.serve.test_models_come_and_go import slope

MODELS = int(os.environ.get("DLPROXY_MODELS", "20"))
FULL = MODELS >= 100
ROOM = MODELS // 10 if FULL else 5
EACH_MB = 5.5  # 5.2 MB of weights, and a session
CLIENTS = 8
ASKED = 4000 if FULL else 100
LOADS = 1000 if FULL else 0  # over which growth is told
SKEW = 1.1  # of popularity, after Zipf
X = np.random.default_rng(0).standard_normal((1, 1024), dtype=np.float32)

pytestmark = pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="reads Linux' /proc")


def perceptron(number: int, folder: Path) -> NDArray[np.float32]:
    """A model like no other; what it answers."""
    draws = np.random.default_rng(number + 1)
    into = draws.standard_normal((1024, 1280), dtype=np.float32) / 32
    out = draws.standard_normal((1280, 8), dtype=np.float32) / 32
    nodes = [("MatMul", ["x", "into"], "h"), ("Relu", ["h"], "r"), ("MatMul", ["r", "out"], "y")]
    made = models.model(
        [helper.make_node(kind, inputs, [output]) for kind, inputs, output in nodes],
        [models.value("x", DType.FP32, ("N", 1024))],
        [models.value("y", DType.FP32, ("N", 8))],
        [models.constant("into", into), models.constant("out", out)],
    )
    models.save(made, folder / f"m{number}.onnx")
    answer: NDArray[np.float32] = np.maximum(X @ into, 0) @ out
    return answer


class Asker:
    """Asks one server; every answer is checked."""

    def __init__(self, connection: RawConnection, answers: list[NDArray[np.float32]]) -> None:
        self._connection = connection
        self._answers = answers

    async def __call__(self, number: int) -> float:
        """How many seconds it took."""
        begun = monotonic()
        reply = await self._connection.ask(binary_infer(f"m{number}", "x", "FP32", X))
        took = monotonic() - begun
        assert reply.status == 200, reply.body
        np.testing.assert_allclose(binary_output(reply, np.float32), self._answers[number], atol=1e-3)
        return took

    def close(self) -> None:
        self._connection.close()


Served = tuple[ServerProcess, ServerProcess, list[NDArray[np.float32]]]


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Served]:
    """One with all of them, one with the first alone."""
    folder = tmp_path / "models"
    folder.mkdir()
    answers = [perceptron(number, folder) for number in range(MODELS)]
    config = write_config(tmp_path / "dlproxy.toml", {}, calibration_folder=tmp_path / "found", repository=folder)
    config.write_text(f"{config.read_text()}repository_on_demand = true\nmemory_budget_mb = {int(ROOM * EACH_MB)}\n")
    with ServerProcess("--config", config) as many, ServerProcess(f"m0={folder / 'm0.onnx'}") as single:
        yield many, single, answers


def resident_kb(pid: int) -> float:
    return resident_bytes(pid) / 1000


def quantiles(seconds: list[float]) -> str:
    p50, p99 = np.quantile(seconds, [0.5, 0.99]) * 1e3
    return f"p50 {p50:.2f} ms, p99 {p99:.2f} ms ({len(seconds)})"


async def test_more_models_than_there_is_memory_for(served: Served) -> None:
    many, single, answers = served
    ask, of_one = [Asker(await connect(server.http_port), answers) for server in (many, single)]
    await ask(0)
    without_kb = resident_kb(many.process.pid) - EACH_MB * 1000  # but with all that the first model brings along
    cold = [await ask(number % MODELS) for number in range(2 * MODELS)]  # least recently used: none is up when it is asked for
    hits, alone = [], []
    await ask(0)
    for _ in range(20 if FULL else 5):
        for _ in range(50):  # in turns, so that what else the machine does befalls both
            alone.append(await of_one(0))
            hits.append(await ask(0))
    growth = []
    for number in range(LOADS):
        await ask((number + 1) % MODELS)
        growth.append(resident_kb(many.process.pid))
    took, held_kb = await _by_popularity(many, answers)
    held_mb, most_mb = ((kb - without_kb) / 1000 for kb in (float(np.median(held_kb)), max(held_kb)))
    sys.stderr.write(
        f"\n{MODELS} models in memory for {ROOM}: loaded {quantiles(cold[MODELS:])}; up {quantiles(hits)}, "
        f"a single one {quantiles(alone)}; {CLIENTS} clients by popularity {quantiles(took)}; "
        f"{held_mb:.0f} MB held, {most_mb:.0f} at most\n"
    )
    assert np.median(cold[MODELS:]) > 3 * np.median(hits), "what was to be loaded was loaded"
    assert np.median(hits) < (1.1 if FULL else 2.0) * np.median(alone)
    budget_mb = ROOM * EACH_MB * 1.05  # which is in MiB
    assert held_mb < budget_mb * 1.1 + (0 if FULL else EACH_MB)
    if FULL:
        assert most_mb < budget_mb * 1.1, "also while a model is loaded"
    if LOADS:
        found = slope(growth)
        sys.stderr.write(f"memory grows by {found.mean:.1f} KB a load (95 %: {found.low:.1f} to {found.high:.1f})\n")
        assert found.mean < 20
    for each in (ask, of_one):
        each.close()


async def _by_popularity(server: ServerProcess, answers: list[NDArray[np.float32]]) -> tuple[list[float], list[float]]:
    """Seconds of each answer, and what the server held after each."""
    draws, weights = random.Random(1), list(accumulate(1 / (rank + 1) ** SKEW for rank in range(MODELS)))
    numbers = iter(draws.choices(range(MODELS), cum_weights=weights, k=ASKED))
    took: list[float] = []
    held_kb: list[float] = []

    async def client() -> None:
        ask = Asker(await connect(server.http_port), answers)
        for number in numbers:
            took.append(await ask(number))
            held_kb.append(resident_kb(server.process.pid))
        ask.close()

    await asyncio.gather(*(client() for _ in range(CLIENTS)))
    assert len(took) == ASKED
    return took, held_kb

"""A model in stages by a real server: answers are the model's, and a stage that is killed costs no request."""

import asyncio
import os
import signal
from pathlib import Path
from time import monotonic

import numpy as np
import onnxruntime as ort
import pytest

from dlproxy import AsyncClient
from dlproxy.cli import main
from dlproxy.compress.split.handing import Handing
from tests.clients.server import HANG_S, ServerProcess
from tests.compress.split import networks, timed

CLIENTS, ROWS = 4, 6


def test_a_killed_stage_comes_back_and_answers_stay_right(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = networks.save(networks.chain(4, 64), tmp_path, "net")
    with monkeypatch.context() as patched:
        timed.use(patched, Handing(0.0, 0.0))
        assert main(["split", str(model), "--stages", "2", "--batch", "2", "--out", str(tmp_path / "parts")]) == 0
    with ServerProcess("--config", tmp_path / "parts" / "dlproxy.toml") as server:
        asyncio.run(_asked_while_killed(server, ort.InferenceSession(model)))
        assert server.errors().count("killed by SIGKILL") == 1


async def _asked_while_killed(server: ServerProcess, session: ort.InferenceSession) -> None:
    """Requests of several rows, which are at both stages at a time."""
    over = False
    answered = 0

    async def ask(client: AsyncClient, number: int) -> None:
        nonlocal answered
        x = np.random.default_rng(number).standard_normal((ROWS, 64), np.float32)
        right = session.run(None, {"x": x})[0]
        while not over:
            given = (await client.infer("net", {"x": x}, timeout_s=HANG_S))["y"]
            assert np.abs(given - right).max() < 1e-5
            answered += 1

    async with AsyncClient(f"http://{server.address}") as client, asyncio.TaskGroup() as tasks:
        for number in range(CLIENTS):
            tasks.create_task(ask(client, number))
        (before,) = await asyncio.to_thread(_workers, server)
        os.kill(before, signal.SIGKILL)
        until = monotonic() + HANG_S
        while await asyncio.to_thread(_workers, server) in ([], [before]):
            assert monotonic() < until, "the stage did not come back"
        then = answered
        while answered < then + CLIENTS:
            await asyncio.to_thread(_workers, server)
        over = True


def _workers(server: ServerProcess) -> list[int]:
    return [one["pid"] for one in server.instances("net-stage2") if one["state"] == "up"]

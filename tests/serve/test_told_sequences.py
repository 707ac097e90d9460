"""A served Python class that keeps the state of sequences: nothing runs a request twice, and a pin holds in the live lane."""

import asyncio
from itertools import count
from pathlib import Path

import numpy as np
import pytest

from dlproxy.config import ModelConfig
from dlproxy.config.cache import CacheConfig
from dlproxy.message import DType, FailureKind, InferenceError, InSequence, Request, Tensor, Ticket
from dlproxy.serve.assemble import load_model, unload_model
from dlproxy.serve.caching.caches import Caches
from dlproxy.service import infer

COUNTS = """
import numpy as np

class Counts:
    inputs = outputs = {"x": "FP32[-1]"}

    def __init__(self):
        self.calls = {}

    def predict(self, batch, sequences):
        for one in sequences:
            self.calls[one.id] = 1 if one.start else self.calls[one.id] + 1
        return {"x": np.array([self.calls[one.id] for one in sequences], np.float32)}
"""
STEPS = 12  # more than the answers that are each compared at first


@pytest.mark.parametrize("run", ["inline", "thread", "process"])
async def test_each_request_of_a_sequence_runs_once_on_its_instance(
    tmp_path: Path, run: str, caplog: pytest.LogCaptureFixture
) -> None:
    file, clock, ids = tmp_path / "counts.py", asyncio.get_running_loop().time, count(1)
    file.write_text(COUNTS)
    instances = 1 if run == "inline" else 2
    config = ModelConfig(path=f"{file}:Counts", run=run, instances=instances, threads=1, cache="on")  # type: ignore[arg-type]
    model = await load_model("counts", config, ticket_ids=ids, caches=Caches(CacheConfig(), clock), clock=clock)
    names = [state.name for state in model.served.view().instances]

    def asked(key: int, step: int) -> Request:
        ticket = Ticket(next(ids), clock())
        ticket.pin(names[key % instances])
        x = Tensor("x", DType.FP32, (1,), np.zeros(1, np.float32).tobytes())  # equal ones, as a cache likes
        return Request(ticket, "counts", [x], (0,), sequence=InSequence(key, start=step == 0))

    async def sequence(key: int) -> list[float]:
        answers = []
        for step in range(STEPS):
            response = await infer(model.served.service, asked(key, step))
            answers.append(float(np.frombuffer(response.outputs[0].data, np.float32)[0]))
        return answers

    assert await asyncio.gather(*map(sequence, range(1, 7))) == [list(range(1, STEPS + 1))] * 6
    assert model.served.stats.rechecks == {"same": 0, "different": 0}
    assert model.cache is model.control.partition is None
    assert "cache = 'on' has no effect: it keeps the state of sequences" in caplog.text
    if instances == 2:
        await model.fleet.scale(1)
        with pytest.raises(InferenceError, match=f"was on instance {names[1]}, which is gone") as refused:
            await infer(model.served.service, asked(1, STEPS))
        assert refused.value.failure.kind is FailureKind.UNAVAILABLE
    await unload_model(model, drain_s=1.0)

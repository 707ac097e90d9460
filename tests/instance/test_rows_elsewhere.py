"""Rows that do not stand on axis 0, inputs that a batch shares, outputs whose rows differ in length: whoever runs them."""

import asyncio
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from dlproxy.instance import Instance
from dlproxy.instance.batch import BatchResult, Cutter, why_uncut
from dlproxy.instance.inline import InlineInstance
from dlproxy.instance.process.instance import ProcessInstance, WorkerSettings
from dlproxy.instance.runtime.formats import open_runtime
from dlproxy.instance.runtime.specs import PythonSpec
from dlproxy.instance.thread import ThreadInstance
from dlproxy.instance.warmup import WarmUp, calibrate
from dlproxy.message import DType, Request, Signature, Tensor, TensorSpec, Ticket
from dlproxy.tensors import to_array, to_bytes

Array = NDArray[np.generic]

CELL = """
import numpy as np


class Cell:
    inputs = {"x": "FP32[batch,4]", "state": "FP32[2,batch,3]", "rate": "FP32[]"}
    outputs = {"y": "FP32[batch,3]", "next": "FP32[2,batch,3]", "large": "FP32[sum(n)]", "n": "INT64[batch]"}

    def predict(self, batch):
        x, state, rate = batch["x"], batch["state"], batch["rate"]
        y = x[:, :3] * rate + state.sum(axis=0)
        rows = [row[row > 0.5] for row in x]
        counts = np.array([len(row) for row in rows])
        return {"y": y, "next": state + y, "large": np.concatenate(rows), "n": counts}
"""


def _request(number: int, rows: int) -> Request:
    random = np.random.default_rng(number)
    arrays = {
        "x": random.random((rows, 4), np.float32),
        "state": random.random((2, rows, 3), np.float32),
        "rate": np.full((), 0.5, np.float32),
    }
    tensors = [Tensor(name, DType.FP32, array.shape, to_bytes(DType.FP32, array)) for name, array in arrays.items()]
    return Request(Ticket(number, 0.0, rows=rows), "cell", tensors, (0, 1, 2, 3))


async def _made(kind: str, path: str) -> tuple[Instance, Signature]:
    if kind == "process":
        spec = PythonSpec("dlproxy.instance.runtime.formats:open_runtime", {"path": path})
        worker = ProcessInstance("cell-0", spec, WorkerSettings(warm_up=WarmUp()))
        return worker, await worker.start()
    runtime = open_runtime(path)
    calibrate(runtime)
    instance: Instance = InlineInstance("cell-0", runtime) if kind == "inline" else ThreadInstance("cell-0", runtime)
    return instance, runtime.signature


async def _answers(instance: Instance, signature: Signature, requests: Sequence[Request]) -> list[list[Array]]:
    ended: asyncio.Future[BatchResult] = asyncio.get_running_loop().create_future()
    instance.run(requests, ended.set_result)
    result = await asyncio.wait_for(ended, 30)
    assert result.error is None, result.error
    rows = sum(request.ticket.rows for request in requests)
    assert not why_uncut(signature, result.outputs, rows)
    cutter, start, answers = Cutter(signature, result.outputs, requests=len(requests)), 0, []
    for request in requests:
        cut = cutter.cut(start, request.ticket.rows, request.outputs)
        start += request.ticket.rows
        answers.append([to_array(tensor.dtype, tensor.shape, tensor.data) for tensor in cut])
    return answers


@pytest.mark.parametrize("kind", ["inline", "thread", "process"])
async def test_a_batch_gives_what_its_requests_give_alone(tmp_path: Path, kind: str) -> None:
    (tmp_path / "cell.py").write_text(CELL)
    instance, signature = await _made(kind, f"{tmp_path / 'cell.py'}:Cell")
    assert signature.batched
    assert [spec.rows for spec in signature.inputs] == [0, 1, None]
    assert [spec.rows for spec in signature.outputs] == [0, 1, 0, 0]
    requests = [_request(number, rows) for number, rows in enumerate((1, 3, 2))]
    together = await _answers(instance, signature, requests)
    for request, answer in zip(requests, together, strict=True):
        (alone,) = await _answers(instance, signature, [request])
        for got, want in zip(answer, alone, strict=True):
            assert got.shape == want.shape
            assert np.allclose(got, want)
    await instance.stop()


@pytest.mark.parametrize(
    ("found", "counts", "why"),
    [
        ([5.0, 6.0, 7.0], [1, 2], ""),
        ([], [0, 0], ""),
        ([5.0, 6.0], [1, 2], "output 'found' has 2 elements where 'n' counts 3 for a batch of 2 rows"),
        ([5.0, 6.0, 7.0], [4, -1], "output 'found' has 3 elements where 'n' counts 3 for a batch of 2 rows"),
        ([5.0, 6.0, 7.0], [1, 1, 1], "output 'found' has 3 elements where 'n' counts 3 for a batch of 2 rows"),
    ],
)
def test_counts_that_do_not_add_up_fail_the_batch(found: list[float], counts: list[int], why: str) -> None:
    specs = (TensorSpec("found", DType.FP32, (-1,), counts="n"), TensorSpec("n", DType.INT64, (-1,)))
    signature = Signature((), specs, batched=True, platform="fake")
    assert why_uncut(signature, [np.array(found, np.float32), np.array(counts, np.int64)], 2) == why

"""A Python class keeps the state of sequences, told of which one each row is, wherever it runs."""

from collections.abc import Awaitable, Callable
from pathlib import Path

import numpy as np
import pytest

from dlproxy.instance import Instance
from dlproxy.instance.batch import BatchResult, Steps
from dlproxy.instance.inline import InlineInstance
from dlproxy.instance.process.instance import ProcessInstance, WorkerSettings
from dlproxy.instance.runtime.python import PythonRuntime
from dlproxy.instance.runtime.specs import PythonSpec
from dlproxy.instance.thread import ThreadInstance
from dlproxy.instance.warmup import WarmUp
from dlproxy.message import DType, InSequence, Request, Tensor, Ticket

from .running import run

TOTALS = """
import numpy as np

class Totals:
    inputs = {"x": "FP32[-1]"}
    outputs = {"total": "FP32[-1]", "kept": "INT64[-1]", "slot": "INT64[-1]"}

    def __init__(self):
        self.totals = {}

    def predict(self, batch, sequences):
        assert len({one.id for one in sequences}) == len(sequences) == len(batch["x"])
        totals = []
        for x, one in zip(batch["x"], sequences, strict=True):
            total = float(x) + (0.0 if one.start else self.totals[one.id])
            self.totals[one.id] = total
            if one.end:
                del self.totals[one.id]
            totals.append(total)
        kept = np.full(len(totals), len(self.totals), np.int64)
        return {"total": np.array(totals, np.float32), "kept": kept, "slot": np.array([one.slot for one in sequences])}
"""
Start = Callable[[str], Awaitable[Instance]]


@pytest.fixture
def path(tmp_path: Path) -> str:
    file = tmp_path / "totals.py"
    file.write_text(TOTALS)
    return f"{file}:Totals"


async def process(path: str) -> Instance:
    spec = PythonSpec("dlproxy.instance.runtime.python:PythonRuntime", {"path": path})
    instance = ProcessInstance("totals-0", spec, WorkerSettings(warm_up=WarmUp(), memory_limit_bytes=4 << 30))
    assert (await instance.start()).told_sequences
    assert instance.calibration is not None
    assert instance.calibration.independent_rows, "each row of warm-up is a sequence of its own"
    return instance


async def thread(path: str) -> Instance:
    return ThreadInstance("totals-0", PythonRuntime(path))


async def inline(path: str) -> Instance:
    return InlineInstance("totals-0", PythonRuntime(path))


def asked(x: float, of: InSequence | None, rows: int = 1) -> Request:
    data = np.full(rows, x, np.float32).tobytes()
    return Request(Ticket(0, 0.0, rows=rows), "totals", [Tensor("x", DType.FP32, (rows,), data)], (0, 1, 2), sequence=of)


def told(result: BatchResult) -> list[list[float]]:
    assert result.error is None, result.error
    return [output.tolist() for output in result.outputs]


@pytest.mark.parametrize("start", [inline, thread, process])
async def test_state_is_kept_by_sequence(path: str, start: Start) -> None:
    instance = await start(path)
    batch = [asked(1, InSequence(7, start=True, slot=0)), asked(10, InSequence("a", start=True, slot=3))]
    assert told(await run(instance, *batch)) == [[1, 10], [2, 2], [0, 3]]
    batch = [asked(20, InSequence("a")), asked(2, InSequence(7)), asked(5, None, rows=2)]
    assert told(await run(instance, *batch)) == [[30, 3, 5, 5], [2, 2, 2, 2], [-1, -1, -1, -1]]
    assert told(await run(instance, asked(3, InSequence(7, end=True)))) == [[6], [1], [-1]]
    assert told(await run(instance, asked(0, InSequence("a")))) == [[30], [1], [-1]]
    await instance.stop()


async def test_processes_keep_states_apart(path: str) -> None:
    first, second = await process(path), await process(path)
    assert told(await run(first, asked(1, InSequence(7, start=True))))[0] == [1]
    assert told(await run(first, asked(1, InSequence(7))))[0] == [2]
    result = await run(second, asked(1, InSequence(7)))
    assert result.error is not None
    assert "KeyError" in result.error
    await first.stop()
    await second.stop()


def test_who_does_not_ask_is_not_told(tmp_path: Path) -> None:
    file = tmp_path / "plain.py"
    file.write_text(
        'class Plain:\n    inputs = outputs = {"x": "FP32[-1]"}\n    def predict(self, batch):\n        return batch\n'
    )
    assert not PythonRuntime(f"{file}:Plain").signature.told_sequences


def test_a_class_that_streams_is_told(tmp_path: Path) -> None:
    file = tmp_path / "parts.py"
    file.write_text(
        'class Parts:\n    inputs = outputs = {"x": "FP32[-1,1]"}\n    streams = True\n'
        '    def predict(self, batch, sequences):\n        yield {"x": batch["x"] + sequences[0].id}\n'
    )
    tensor = Tensor("x", DType.FP32, (1, 1), np.ones(1, np.float32).tobytes())
    steps = Steps(PythonRuntime(f"{file}:Parts"), [Request(Ticket(0, 0.0), "", [tensor], (0,), sequence=InSequence(41))])
    assert steps.next().outputs[0].tolist() == [[42.0]]
    steps.close()

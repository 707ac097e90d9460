"""A recorded live run, with everything that real time does to it, replays to the very same commands."""

import asyncio
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from random import Random

import msgspec
import numpy as np
import pytest

from dlproxy import service
from dlproxy.config import ModelConfig
from dlproxy.message import DType, FailureKind, InferenceError, Request, Tensor, Ticket
from dlproxy.policy.events import Arrived, BatchDone, Cancelled
from dlproxy.policy.knobs import LaneKnobs
from dlproxy.policy.lane import Lane
from dlproxy.serve.assemble import LoadedModel, load_model, unload_model
from dlproxy.telemetry.event_log import Entry, Header, LogError, Recorder, replay
from tests import models

REFUSALS = (FailureKind.DEADLINE, FailureKind.QUEUE_FULL)
KNOBS = LaneKnobs(max_batch=8, max_queue_rows=100)


async def _storm(model: LoadedModel, requests: int, seed: int) -> dict[str, int]:
    """Concurrent requests, some with impossible or narrow deadlines, some cancelled early or late; counts the outcomes."""
    random = Random(seed)
    with np.load(models.HELDOUT) as heldout:
        images = heldout["images"].astype(np.float32)
    outcomes = {"answered": 0, "refused": 0, "cancelled": 0, "failed": 0}
    driver, now = model.driver, asyncio.get_running_loop().time

    async def one(number: int) -> None:
        rows = random.randint(1, 4)
        tensor = Tensor("image", DType.FP32, (rows, 1, 8, 8), images[number % 300 : number % 300 + rows].tobytes())
        for _ in range(random.randint(0, 40)):
            await asyncio.sleep(0)
        timeout_s = random.choice([float("inf"), float("inf"), 1.0, 0.002, 1e-6])
        ticket = Ticket(number, now(), now() + timeout_s, rows)
        task = asyncio.ensure_future(service.infer(driver, Request(ticket, "digits", [tensor], (0,))))
        if random.random() < 0.25:
            for _ in range(random.randint(0, 4)):
                await asyncio.sleep(0)
            task.cancel()
        try:
            response = await task
        except asyncio.CancelledError:
            outcomes["cancelled"] += 1
        except InferenceError as error:
            outcomes["refused" if error.failure.kind in REFUSALS else "failed"] += 1
        else:
            assert tuple(response.outputs[0].shape) == (rows, 10)
            outcomes["answered"] += 1

    for start in range(0, requests, 100):
        await asyncio.gather(*(one(number + 1) for number in range(start, start + 100)))
    return outcomes


@pytest.mark.parametrize("run", ["inline", "thread"])
async def test_a_live_run_replays_to_identical_commands(tmp_path: Path, run: str) -> None:
    config = ModelConfig(path=str(models.DIGITS), run=run, instances=1 if run == "inline" else 2, threads=1)  # type: ignore[arg-type]
    model = await load_model(
        "digits", config, ticket_ids=count(1), event_log=tmp_path / "digits-1.dlog", clock=asyncio.get_running_loop().time
    )
    outcomes = await _storm(model, 500, seed=7)
    model.driver.change_knobs(LaneKnobs(max_batch=3, max_queue_rows=50))
    more = await _storm(model, 100, seed=8)
    await unload_model(model, drain_s=1.0)

    assert sum(outcomes.values()) == 500
    assert sum(more.values()) == 100
    assert outcomes["failed"] == more["failed"] == 0
    assert min(outcomes["answered"], outcomes["refused"], outcomes["cancelled"]) > 20, (
        f"a one-sided storm proves little: {outcomes}"
    )
    log = tmp_path / "digits-1.dlog"
    outcome = replay(log)
    assert outcome.first_difference is None
    assert outcome.entries > 50
    kinds = {type(entry.event) for entry in _entries(log)}
    assert {Arrived, BatchDone, Cancelled} <= kinds


def test_a_missing_recording_is_said_to_be_missing(tmp_path: Path) -> None:
    with pytest.raises(LogError, match=r"a\.dlog"):
        replay(tmp_path / "a.dlog")


def test_a_full_disk_ends_the_recording_and_not_the_service(caplog: pytest.LogCaptureFixture) -> None:
    full = Path("/dev/full")
    if not full.exists():
        pytest.skip("needs /dev/full")
    recorder = Recorder(full, Header("m", KNOBS, []), Lane(KNOBS))
    for number in range(2000):
        recorder.on(Arrived([Ticket(number + 1, 1.0)]), 1.0)
    recorder.close()
    assert "recording" in caplog.text
    assert len(caplog.records) == 1


def test_a_recorder_that_was_closed_lets_late_events_pass(tmp_path: Path) -> None:
    recorder = Recorder(tmp_path / "a.dlog", Header("m", KNOBS, []), Lane(KNOBS))
    recorder.close()
    assert recorder.on(Arrived([Ticket(1, 1.0)]), 1.0)


def test_a_folder_that_cannot_be_made_is_said_to_be_the_problem(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(LogError, match="cannot record to"):
        Recorder(tmp_path / "file" / "a.dlog", Header("m", KNOBS, []), Lane(KNOBS))


def _entries(path: Path) -> Iterator[Entry]:
    data = path.read_bytes()
    at, first = 0, True
    while at < len(data):
        size = int.from_bytes(data[at : at + 4], "little")
        if not first:
            yield msgspec.msgpack.decode(data[at + 4 : at + 4 + size], type=Entry)
        at, first = at + 4 + size, False

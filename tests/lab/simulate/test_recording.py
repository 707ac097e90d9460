"""What a recorded live run tells: its service times, and, replayed, what became of each of its requests."""

import asyncio
from collections import Counter
from itertools import count
from math import inf
from pathlib import Path

import msgspec
import numpy as np
import pytest

from dlproxy.cli import main
from dlproxy.cli.terminal import FAILED, OK
from dlproxy.config import ModelConfig
from dlproxy.cores import usable_cores
from dlproxy.lab.report.result import load
from dlproxy.lab.simulate.recording import Batches, replayed
from dlproxy.lab.simulate.run import plan_model
from dlproxy.lab.simulate.shared_core import separate
from dlproxy.message import DType, Request, Tensor, Ticket
from dlproxy.policy.events import Arrived, BatchDone, Dispatch, InstanceLost, InstanceUp
from dlproxy.policy.knobs import LaneKnobs
from dlproxy.policy.lane import Lane
from dlproxy.serve.assemble import load_model, unload_model
from dlproxy.telemetry.event_log import Entry, Header, LogError, Recorder, read
from tests.serve.rig import Reply

from .fixtures import LINE

KNOBS = LaneKnobs(max_batch=4, max_queue_rows=100, slo_s=0.100)
BASE_S, ROW_S = 0.002, 0.0002


async def recorded(folder: Path, *, most_rows: int = 20, slo: str = "") -> tuple[Path, list[Reply]]:
    """A live run of a model that only takes time: 60 requests of 1 to 3 rows, some of which cannot be answered in time,
    and three of which have 20 and run in parts.
    """
    config = ModelConfig(path="sleep:base=2ms,row=0.2ms", instances=2, max_batch=8, slo=slo)
    now = asyncio.get_running_loop().time
    ids = count(1)
    loaded = await load_model("m", config, ticket_ids=ids, event_log=folder / "m-1.dlog", clock=now)
    replies = []
    for number in range(1, 61):
        rows = min(20 if number in (12, 24, 36) else number % 3 + 1, most_rows)
        tensor = Tensor("x", DType.FP32, (rows, 1), np.ones(rows, np.float32).tobytes())
        ticket = Ticket(next(ids), now(), now() + (0.001 if number % 5 == 0 else inf), rows)
        replies.append(Reply(Request(ticket, "m", [tensor], (0,))))
        loaded.service.submit(replies[-1].request, replies[-1])
        if number % 7 == 0:
            await replies[-1].wait()
    for reply in replies:
        await reply.wait()
    await unload_model(loaded, 1.0)
    return folder / "m-1.dlog", replies


async def test_a_replay_counts_what_the_live_run_answered(tmp_path: Path) -> None:
    log, replies = await recorded(tmp_path)
    result = replayed(log, objective_s=10.0)
    answered = [reply for reply in replies if reply.kind is None]
    errors = Counter(reply.kind.value for reply in replies if reply.kind is not None)
    assert result.warnings == []
    assert (result.sent, result.ok, result.errors) == (len(replies), len(answered), dict(errors))
    assert errors["deadline"] >= 1, "a run in which all goes well proves little"
    assert result.setup["entries"] == len(list(read(log)[1]))
    slowest_ms = max(reply.at - reply.request.ticket.arrived_at for reply in answered) * 1e3
    assert 0.0 < result.latency_ms["p50"] <= result.latency_ms["max"] <= slowest_ms
    rows = sum(reply.request.ticket.rows for reply in answered)
    assert sum(size * times for size, times in result.batch_sizes.items()) == rows


async def test_service_times_are_those_of_the_batches_that_ran(tmp_path: Path) -> None:
    log, _ = await recorded(tmp_path)
    batches = Batches(log)
    assert (batches.header.threads, batches.header.cores) == (1, usable_cores())
    assert set(batches.beside) == {1, 2}, "of two instances"
    assert len(batches.arrivals) == 60, "requests, not their parts"
    samples = batches.samples
    assert len(samples) == sum(replayed(log).batch_sizes.values())
    for sample in samples:
        assert sample.idle_s >= 0.0
        assert sample.service_s >= BASE_S + ROW_S * sample.rows
        assert sample.hand_over_s >= 0.0
    assert max(sample.hand_over_s for sample in samples) > 0.0

    model = plan_model("m", ModelConfig(path="m.onnx", max_batch=8), str(log))
    drawn = model.times(0).draw(samples[0].rows)
    assert drawn in [(sample.service_s, sample.hand_over_s) for sample in samples]
    assert model.service == f"{len(samples)} batches of m-1.dlog"


async def test_what_requests_cost_the_loop_is_learnt_and_simulated(tmp_path: Path) -> None:
    log, _ = await recorded(tmp_path)
    batches = Batches(log)
    arrival_s, alone = separate(batches.samples, batches.arrivals)
    model = plan_model("m", ModelConfig(path="m.onnx", max_batch=8), str(log), without_loop=True)
    assert model.arrival_s == arrival_s
    assert model.times(0).draw(alone[0].rows) in [(sample.service_s, sample.hand_over_s) for sample in alone]
    assert plan_model("m", ModelConfig(path="m.onnx", max_batch=8), str(log)).arrival_s is None, "nobody asked"

    out = tmp_path / "out.json"
    assert main(["simulate", "m", f"--service=m={log}", "--loop=recorded", "--rate=50", "--duration=5", f"--json={out}"]) == OK
    setup = load(out).setup
    assert setup["loop_us"] == {"read": round(arrival_s * 1e6, 1), "write": 0.0, "path": 0.0}
    assert setup["loop_shares_core"] is True


def record(path: Path, *events: tuple[float, Arrived | BatchDone | InstanceLost | InstanceUp]) -> Path:
    recorder = Recorder(path, Header("m", KNOBS, LINE), Lane(KNOBS, LINE))
    for at, event in events:
        recorder.on(event, at)
    recorder.close()
    return path


def arrived(*ids: int, at: float, rows: int = 1) -> Arrived:
    return Arrived([Ticket(number, at, inf, rows) for number in ids])


def test_failed_and_lost_batches_teach_nothing(tmp_path: Path) -> None:
    log = record(
        tmp_path / "a.dlog",
        (0.0, InstanceUp("a")),
        (1.0, arrived(1, at=0.9, rows=3)),
        (1.5, BatchDone(1, 0.375)),
        (2.0, arrived(2, at=2.0)),
        (2.5, BatchDone(2, 0.5, "boom")),
        (3.0, arrived(3, at=3.0)),
        (3.5, InstanceLost("a", "killed")),
        (4.0, BatchDone(99, 0.5)),
        (5.0, InstanceUp("a")),
        (6.0, arrived(4, at=6.0)),
        (6.5, BatchDone(4, 0.5)),
    )
    assert Batches(log).first_at == 1.0
    expected = [(3, 0.375, 0.125, 0.0, 0.0), (1, 0.5, 0.0, 3.5, 5.0)]
    assert Batches(log).samples == expected, "idle since the batch that failed"
    assert Batches(log).arrivals == pytest.approx([-0.1, 1.0, 2.0, 5.0]), "when each came, not when the lane heard of it"
    result = replayed(log)
    assert (result.sent, result.ok, result.errors) == (4, 2, {"model_failed": 1, "unavailable": 1})
    assert result.latency_ms["max"] == pytest.approx(600.0), "from arrival to the end"
    assert result.batch_sizes == {1: 3, 3: 1}
    assert (result.kind, result.target, result.duration_s) == ("replay", "m", pytest.approx(6.5))


def test_a_log_without_an_answered_batch_or_any_event_is_refused(tmp_path: Path) -> None:
    with pytest.raises(LogError, match="holds no batch that was answered"):
        Batches(record(tmp_path / "idle.dlog", (0.0, InstanceUp("a"))))
    with pytest.raises(LogError, match="holds no events"):
        replayed(record(tmp_path / "empty.dlog"))


def tampered(log: Path) -> Path:
    """The same log, in which the second of two requests that ran together was told of as run on its own."""
    header, entries = read(log)
    records: list[Header | Entry] = [header, *entries]
    for entry in records[1:]:
        assert isinstance(entry, Entry)
        for command in entry.commands:
            if isinstance(command, Dispatch) and len(command.tickets) > 1:
                command.tickets.pop()
    other = log.with_name("tampered.dlog")
    encoded = [msgspec.msgpack.encode(record) for record in records]
    other.write_bytes(b"".join(len(record).to_bytes(4, "little") + record for record in encoded))
    return other


def test_the_command_ends_with_0_if_the_replay_is_the_recording_and_with_1_if_not(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    log = record(
        tmp_path / "a.dlog",
        (0.0, InstanceUp("a")),
        (0.5, arrived(1, at=0.5)),
        (0.6, BatchDone(1, 0.011)),  # in time, so two may run at once
        (1.0, arrived(2, 3, at=1.0)),
        (1.5, BatchDone(2, 0.5)),
    )
    out = tmp_path / "a.json"
    assert main(["simulate", "--replay", str(log), "--json", str(out), "--objective", "600ms"]) == OK
    assert (load(out).ok, load(out).warnings, load(out).objective_ms) == (3, [], 600.0)
    assert main(["simulate", "--replay", str(tampered(log)), "--json", str(out)]) == FAILED
    (warning,) = load(out).warnings
    assert "differs from the recording at entry 4 (Arrived)" in warning
    assert "differs" in capsys.readouterr().out


def test_a_batch_on_the_loop_begins_when_it_runs_not_when_it_is_dispatched(tmp_path: Path) -> None:
    knobs = LaneKnobs(max_batch=8, max_queue_rows=100, max_batch_s=0.001)
    recorder = Recorder(tmp_path / "a.dlog", Header("m", knobs, LINE), Lane(knobs, LINE))
    for at, event in [
        (0.0, InstanceUp("a")),
        (1.0, arrived(1, at=1.0)),
        (1.25, arrived(2, at=1.25)),
        (1.5, BatchDone(1, 0.25)),  # dispatches the second, which runs after the sockets' turn
        (2.0, BatchDone(2, 0.25)),
    ]:
        recorder.on(event, at)
    recorder.close()
    assert Batches(tmp_path / "a.dlog").samples == [(1, 0.25, 0.0, 0.0, 0.0), (1, 0.25, 0.0, 0.25, 0.5)]

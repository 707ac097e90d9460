"""Batch times as they are measured, and what a recorded run teaches of them."""

import asyncio
from itertools import count
from pathlib import Path

import msgspec
import numpy as np
import pytest

from dlproxy.config import ModelConfig, load
from dlproxy.lab.load.run import Interrupt
from dlproxy.lab.report.histogram import Histogram
from dlproxy.lab.simulate.recording import Batches
from dlproxy.lab.simulate.service_times import Sample
from dlproxy.lab.tune.search.calibrate import calibrate
from dlproxy.lab.tune.search.live import LiveServer
from dlproxy.lab.tune.search.page import html
from dlproxy.lab.tune.search.problem import Layout, Load, Point, Problem, TuneError
from dlproxy.lab.tune.search.report import table, tuned_file
from dlproxy.lab.tune.search.state import State
from dlproxy.lab.tune.search.times import FEWEST, Times, from_calibration, learnt, ratio_of
from dlproxy.lab.tune.search.tune import Tuning, why
from dlproxy.message import DType, Request, Tensor, Ticket
from dlproxy.serve.assemble import load_model, unload_model
from tests.lab.tune.search.fixtures import ONE, Silent, line, problem
from tests.serve.rig import Reply

PATH_S = 0.005
ROWS = b"\0\0\0\0"


@pytest.mark.parametrize("layout", [Layout("thread", 2, 1), Layout("process", 1, 1), Layout("inline", 1, 1)], ids=str)
def test_batch_times_are_measured_in_each_way_of_running(layout: Layout) -> None:
    times = calibrate(problem(), layout, 0.3)  # 4 ms + 1 ms per row
    known = dict(times.prior)
    assert list(known) == [1, 2, 4, 8, 16, 32, 64]
    assert 0.005 / times.slowdown <= known[1] < known[8], "those of instances that slowed each other are corrected for that"
    assert known[64] >= 0.068 / times.slowdown
    assert times.batched
    assert not times.live


def test_instances_that_slow_each_other_count_as_alone() -> None:
    alone = [Sample(rows, 0.01 * rows) for rows in (1, 2, 4) for _ in range(5)]
    together = [Sample(rows, 0.015 * rows) for rows in (1, 2, 4) for _ in range(5)]
    times = from_calibration(alone, together, batched=True)
    assert times.slowdown == pytest.approx(1.5)
    assert dict(times.prior) == pytest.approx({1: 0.01, 2: 0.02, 4: 0.04})


def test_a_batch_that_others_held_up_counts_as_a_slow_one() -> None:
    times = from_calibration([Sample(1, 0.01)] * 9 + [Sample(1, 5.0)], [], batched=True)
    assert max(sample.service_s for sample in times.samples) == pytest.approx(0.03)


async def _recorded(folder: Path, requests: int) -> tuple[Path, list[float], float]:
    """A live run of one request after the other: the log, what the lane took for each, and when it began."""
    now = asyncio.get_running_loop().time
    config = ModelConfig(path="sleep:base=1ms,row=0.2ms", run="thread", instances=1)
    began_at = now()
    loaded = await load_model("m", config, ticket_ids=count(), event_log=folder / "m-1.dlog", clock=now)
    took = []
    for number in range(requests):
        reply = Reply(Request(Ticket(number, now()), "m", [Tensor("x", DType.FP32, (1, 1), ROWS)], (0,)))
        loaded.driver.submit(reply.request, reply)
        await reply.wait()
        took.append(now() - reply.request.ticket.arrived_at)
    await unload_model(loaded, 1.0)
    return folder / "m-1.dlog", took, began_at


async def _learnt(folder: Path, requests: int, before: Times) -> Times:
    log, took, began_at = await _recorded(folder, requests)
    clients = Histogram()
    clients.add(np.array(took) + PATH_S)
    return learnt(log, clients, [began_at], 0.0, before, 1)


async def test_a_run_teaches_batch_times_and_the_path(tmp_path: Path) -> None:
    before = line(0.0005, 0.0001)
    after = await _learnt(tmp_path, FEWEST + 20, before)
    known = dict(after.prior)
    assert after.live
    assert known[1] >= 0.0012
    ratio = ratio_of([sample for sample in after.samples if sample.rows == 1], before)
    assert known[16] == pytest.approx(dict(before.prior)[16] * ratio)
    middle = float(np.median(after.path_s))
    assert PATH_S * 0.8 <= middle <= PATH_S * 1.6
    assert after.with_path(np.array([0.001, 0.002])).min() >= 0.001 + PATH_S * 0.8


def test_a_recording_gives_arrivals_and_batch_times_and_all_is_simulated_without_servers(tmp_path: Path) -> None:
    pytest.importorskip("optuna")
    log, _, _ = asyncio.run(_recorded(tmp_path, 60))
    trace = tmp_path / "arrivals.csv"
    trace.write_text("".join(f"{at!r}\n" for at in Batches(log).arrivals.tolist()))
    config = ModelConfig(path="sleep:base=0.5ms,row=0.1ms", run="thread", instances=1, threads=1, slo="p99=50ms")
    asked = Problem(name="m", config=config, objective_s=0.05, load=Load(trace=trace), cores=2)
    with Interrupt() as interrupt:
        state = State(None, {})
        tuned = Tuning(asked, state, budget_s=10.0, show=Silent(), interrupt=interrupt, log=log, live=False).run()
    assert any("times as long in the recording" in note for note in tuned.notes)
    assert tuned.predictor.single_s(ONE) >= 0.0011
    assert (tuned.runs, tuned.measured) == (0, {})
    assert tuned.outcome.good > 0.5
    assert "nothing was measured live" in table(tuned)
    (tmp_path / "tuned.toml").write_text(tuned_file(tuned, why(tuned), tmp_path, "today"))
    [read] = load(tmp_path / "tuned.toml").models["m"]
    assert msgspec.structs.replace(read, pinned=config.pinned) == tuned.chosen.on(config)
    assert html(tuned, why(tuned)).count("<svg") == 1


async def test_too_short_a_run_teaches_nothing(tmp_path: Path) -> None:
    before = line()
    assert await _learnt(tmp_path, 10, before) is before


def test_a_server_that_does_not_start_says_why() -> None:
    with pytest.raises(TuneError, match=r"1 thread: the server did not start: .*sleep"):
        LiveServer(_broken(), Point(ONE, 8), record=False).__enter__()


def _broken() -> Problem:
    return msgspec.structs.replace(problem(), config=ModelConfig(path="sleep:bse=1ms"))


def test_a_server_turns_its_knobs_and_is_loaded() -> None:
    with Interrupt() as interrupt, LiveServer(problem(40.0, 0.5), Point(ONE, 1), record=True) as server:
        server.turn(Point(ONE, 4, 0.001, 0.02))
        outcome = server.load(40.0, 1.0, 1, interrupt)
        assert outcome.rate == 40.0
        assert outcome.good > 0.5
        assert 0.005 <= outcome.p99_s < 1.0
        assert server.memory_bytes() > 10 << 20
    assert server.learn(line()).live is False

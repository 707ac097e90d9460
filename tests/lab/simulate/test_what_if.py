"""Recorded runs are simulated as they were, and with other knobs as a live run with these knobs would have gone."""

import asyncio
from collections.abc import Sequence
from functools import partial
from math import inf
from pathlib import Path
from random import Random

import looptime
import msgspec
import pytest

from dlproxy.cli import main
from dlproxy.cli.terminal import OK
from dlproxy.config import ConfigError
from dlproxy.lab.report.compare import Columns, side_by_side
from dlproxy.lab.report.result import Result
from dlproxy.lab.simulate.engine import Call
from dlproxy.lab.simulate.recorded_run import RecordedRun, RecordedRuns
from dlproxy.lab.simulate.what_if import BANDS, Load, Today, columns, from_logs, off_by, parse_change, parse_load
from dlproxy.message import Failure, FailureKind, Ticket
from dlproxy.policy.events import (
    Arrived,
    BatchDone,
    Cancelled,
    Closing,
    Event,
    InstanceLost,
    InstanceUp,
    KnobsChanged,
)
from dlproxy.policy.knobs import LaneKnobs
from dlproxy.policy.lane import Lane
from dlproxy.serve.driver import Driver
from dlproxy.telemetry.event_log import Header, LogError, Recorder
from dlproxy.telemetry.stats import ModelStats
from dlproxy.testing import FakeInstance, FakeRuntime
from tests.serve.rig import SIGNATURE, double

from .fixtures import LINE, NANO, Planned, replies_to

KNOBS = LaneKnobs(max_batch=16, max_queue_rows=500, slo_s=0.100)
EVEN = [1.0]


def poisson(rate: float, count: int, *, rows: int = 1, timeout_s: float = 0.1) -> list[Call]:
    """Requests on whole nanoseconds, no two at one instant."""
    random, at, calls = Random(5), 0.0, []
    for _ in range(count):
        at = round(at + random.expovariate(rate) + NANO, 9)
        calls.append(Call("m", rows, timeout_s, at))
    return calls


def live(
    path: Path, calls: Sequence[Call], *, knobs: LaneKnobs = KNOBS, instances: int = 1, factors: Sequence[float] = EVEN
) -> Path:
    """A recorded run of serve/driver.py on virtual time; batches take 10 ms and 1 ms a row, times a factor."""
    with asyncio.Runner(loop_factory=lambda: looptime.new_event_loop(resolution=NANO, noop_cycles=3)) as runner:
        runner.run(_live(path, calls, knobs, instances, factors))
    return path


async def _live(path: Path, calls: Sequence[Call], knobs: LaneKnobs, instances: int, factors: Sequence[float]) -> None:
    times = Planned(0.010, 0.001, factors)
    recorder = Recorder(path, Header("m", knobs, [*LINE], threads=1, cores=8), Lane(knobs, LINE))
    clock = asyncio.get_running_loop().time
    driver = Driver(model="m", version="1", signature=SIGNATURE, lane_on=recorder.on, stats=ModelStats(), clock=clock)
    for number in range(instances):
        driver.add_instance(FakeInstance(f"m-{number}", FakeRuntime(SIGNATURE, double), service_s=times))
    await replies_to(calls, {"m": driver})
    recorder.close()


def record(path: Path, *events: tuple[float, Event], header: Header | None = None) -> Path:
    header = header or Header("m", KNOBS, [*LINE], threads=1, cores=2)
    recorder = Recorder(path, header, Lane(header.knobs, header.prior))
    for at, event in events:
        recorder.on(event, at)
    recorder.close()
    return path


def run(path: Path, *changes: str, **options: object) -> dict[str, Result]:
    today = from_logs([path], objective_s=None, parallel=None, with_loop=False)
    return dict(columns(today, [parse_change(text, ["m"]) for text in changes], seed=0))


def figures(result: Result) -> dict[str, object]:
    """All that tells two runs apart, latencies in whole microseconds."""
    latencies = {name: round(ms, 3) for name, ms in result.latency_ms.items()}
    return {"errors": result.errors, "sizes": result.batch_sizes, "rate": round(result.rate_rps, 6), **latencies}


# As it was


@pytest.mark.parametrize(("rate", "instances", "sheds"), [(200.0, 1, False), (1200.0, 2, False), (2000.0, 1, True)])
def test_a_run_whose_batches_take_their_time_exactly_is_simulated_exactly(
    tmp_path: Path, rate: float, instances: int, sheds: bool
) -> None:
    log = live(tmp_path / "m.dlog", poisson(rate, 1500), instances=instances)
    results = run(log)
    recorded, simulated = results["recorded"], results["simulated"]
    assert figures(simulated) == figures(recorded)
    assert recorded.sent == 1500
    assert recorded.ok + recorded.failed == 1500
    assert (recorded.failed > 0) is sheds
    assert all(abs(error) < 1e-6 for error in off_by(recorded, simulated).values())


@pytest.mark.parametrize("rate", [300.0, 700.0])
def test_a_run_whose_batches_vary_is_simulated_within_the_bands(tmp_path: Path, rate: float) -> None:
    random = Random(3)
    factors = [random.lognormvariate(-0.02, 0.2) for _ in range(997)]
    results = run(live(tmp_path / "m.dlog", poisson(rate, 4000), factors=factors))
    errors = off_by(results["recorded"], results["simulated"])
    assert errors.keys() == BANDS.keys()
    assert all(abs(error) <= BANDS[name] for name, error in errors.items()), errors


# As it would have been


@pytest.mark.parametrize(
    ("change", "knobs", "instances"),
    [
        ("instances=2", {}, 2),
        ("instances=3,max_batch=4", {"max_batch": 4}, 3),
        ("max_wait_s=0.02", {"max_wait_s": 0.02}, 1),
        ("discipline=fcfs,max_batch=8", {"discipline": "fcfs", "max_batch": 8}, 1),
    ],
)
def test_a_what_if_goes_as_the_live_run_with_these_knobs(
    tmp_path: Path, change: str, knobs: dict[str, object], instances: int
) -> None:
    calls = poisson(650.0, 1500)
    log = live(tmp_path / "m.dlog", calls)
    other = live(tmp_path / "other.dlog", calls, knobs=msgspec.structs.replace(KNOBS, **knobs), instances=instances)
    imagined, real = run(log, change)[change], run(other)["recorded"]
    assert figures(imagined) == figures(real)
    assert figures(imagined) != figures(run(log)["recorded"]), "the change shall make a difference"
    assert imagined.instances["node-0"].keys() == {f"m-{number}" for number in range(instances)}


def test_another_objective_moves_the_deadlines_but_not_those_of_clients(tmp_path: Path) -> None:
    calls = [*poisson(50.0, 200, timeout_s=0.1), Call("m", 1, 0.030, 10.0)]
    log = live(tmp_path / "m.dlog", calls)
    patient = RecordedRuns([log])
    for run_ in patient.runs.values():
        for asked in run_.asked.values():
            asked.ticket.answer_by = asked.ticket.arrived_at + (0.030 if asked.ticket.deadline_at > 10.0 + 0.02 else inf)
    timeouts = [round(call.timeout_s, 6) for call in patient.calls(1.0, {"m": 0.050}, loop_s=None)]
    assert set(timeouts[:200]) == {0.050}
    assert timeouts[200] == 0.030
    result = run(log, "slo=50ms")["slo=50ms"]
    assert result.objective_ms == pytest.approx(50.0)


def test_at_twice_the_rate_the_same_requests_come_in_half_the_time(tmp_path: Path) -> None:
    log = live(tmp_path / "m.dlog", poisson(100.0, 500))
    results = run(log, "rate=2x", "speed=2", "rate=200/s")
    recorded, twice = results["recorded"], results["rate=2x"]
    assert twice.duration_s == pytest.approx(recorded.duration_s / 2)
    assert twice.offered_rps == pytest.approx(2 * recorded.offered_rps, rel=1e-6)
    assert figures(results["speed=2"]) == figures(twice)
    assert results["rate=200/s"].offered_rps == pytest.approx(200.0, rel=0.01)


def test_threads_divide_the_parallel_share_of_the_work(tmp_path: Path) -> None:
    log = live(tmp_path / "m.dlog", poisson(5.0, 100))
    today = from_logs([log], objective_s=None, parallel=0.5, with_loop=False)
    results = dict(columns(today, [parse_change("threads=2", ["m"])], seed=0))
    assert results["simulated"].latency_ms["p50"] == pytest.approx(11.0, rel=0.01)
    assert results["threads=2"].latency_ms["p50"] == pytest.approx(11.0 * 0.75, rel=0.01)


def test_instances_that_share_a_core_slow_each_other(tmp_path: Path) -> None:
    log = live(tmp_path / "m.dlog", [Call("m", 1, inf, at) for at in (0.0, 1.0, 1.001, 2.0)])
    results = run(log, "instances=2,cores=2", "instances=2,cores=1")
    apart, together = (results[f"instances=2,cores={cores}"].latency_ms["max"] for cores in (2, 1))
    assert apart == pytest.approx(11.0, rel=0.01)
    assert together == pytest.approx(22.0, rel=0.01), "the second of two at a time, whose threads have half a core each"


def test_what_a_shared_core_did_to_recorded_batches_is_taken_out(tmp_path: Path) -> None:
    header = Header("m", msgspec.structs.replace(KNOBS, max_batch=1), [*LINE], threads=1, cores=1)
    pairs = [
        event
        for number in range(10)
        for event in (
            (float(number), Arrived([Ticket(2 * number + 1, float(number)), Ticket(2 * number + 2, float(number))])),
            (number + 0.02, BatchDone(2 * number + 1, 0.02)),
            (number + 0.04, BatchDone(2 * number + 2, 0.04)),
        )
    ]
    log = record(tmp_path / "m.dlog", (0.0, InstanceUp("a")), (0.0, InstanceUp("b")), *pairs, header=header)
    run_ = RecordedRun(log)
    assert [round(sample.service_s, 6) for sample in run_.samples if sample.rows == 1] == [0.02, 0.02] * 10
    assert run_.instances == 2


@pytest.mark.parametrize("slowed", [True, False])
def test_cores_matter_only_if_batches_took_longer_where_they_were_too_few(tmp_path: Path, slowed: bool) -> None:
    knobs = msgspec.structs.replace(KNOBS, max_batch=1, slo_s=None)
    events: list[tuple[float, Event]] = [(0.0, InstanceUp("a")), (0.0, InstanceUp("b"))]
    for number in range(1, 120, 3):  # one alone, then two at a time, which share one core
        at = float(number)
        second_s = 0.02 if slowed else 0.01
        events += [
            (at, Arrived([Ticket(number, at)])),
            (at + 0.01, BatchDone(number, 0.01)),
            (at + 0.5, Arrived([Ticket(number + 1, at + 0.5), Ticket(number + 2, at + 0.5)])),
            (at + 0.5 + 0.01, BatchDone(number + 1, 0.01)),
            (at + 0.5 + second_s, BatchDone(number + 2, second_s)),
        ]
    run_ = RecordedRun(record(tmp_path / "m.dlog", *events, header=Header("m", knobs, [*LINE], threads=1, cores=1)))
    assert run_.cores == (1 if slowed else 0)
    assert {round(sample.service_s, 6) for sample in run_.samples if sample.rows == 1} == {0.01}


# What a recording tells of its requests


def test_requests_keep_all_that_a_policy_may_see(tmp_path: Path) -> None:
    ticket = Ticket(7, 1.0, 1.1, 3, priority=2, tenant="shop", shape_key=(4,), affinity="x", length=4, answer_by=1.5)
    log = record(
        tmp_path / "m.dlog",
        (0.0, InstanceUp("a")),
        (1.01, Arrived([ticket, Ticket(8, 1.0), Ticket(-1, 1.0)])),
        (1.02, BatchDone(1, 0.01)),
        (1.03, Cancelled(8)),
        (1.04, BatchDone(2, 0.01)),
        (2.0, Closing("the server stops")),
        (2.1, Arrived([Ticket(9, 2.1)])),
    )
    first, second = RecordedRuns([log]).calls(1.0, {}, loop_s=None)
    assert first.like is not None
    assert (first.rows, first.length, _terms(first.like)) == (3, 4, _terms(ticket))
    assert (first.timeout_s, first.patience_s) == (pytest.approx(0.1), pytest.approx(0.5))
    assert (first.due_at, first.heard_at) == (pytest.approx(0.0), pytest.approx(0.01))
    assert (first.leaves_s, second.leaves_s) == (inf, pytest.approx(0.03))

    told: list[Ticket] = []

    class Spy(Lane):
        def on(self, event: Event, now: float) -> list:  # type: ignore[type-arg]
            if isinstance(event, Arrived):
                told.extend(event.tickets)
            return super().on(event, now)

    spied = _with_lane(from_logs([log], objective_s=None, parallel=None, with_loop=False), Spy)
    assert spied.sent == 2
    assert _terms(told[0]) == _terms(ticket)


def _terms(ticket: Ticket) -> tuple[object, ...]:
    """All but the number, with instants counted from the arrival."""
    deadline_s, patience_s = (round(at - ticket.arrived_at, 6) for at in (ticket.deadline_at, ticket.answer_by))
    unnumbered = msgspec.structs.replace(ticket, id=0, arrived_at=0.0, deadline_at=deadline_s, answer_by=patience_s)
    return msgspec.structs.astuple(unnumbered)


def _with_lane(today: Today, lane: type[Lane]) -> Result:
    from dlproxy.lab.simulate import run as module

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "Lane", lane)
        return dict(columns(today, [], seed=0))["simulated"]


def test_a_client_that_left_leaves_again_unless_it_has_its_answer_by_then(tmp_path: Path) -> None:
    events: list[tuple[float, Event]] = [(0.0, InstanceUp("a"))]
    knobs = msgspec.structs.replace(KNOBS, max_batch=1, slo_s=None)
    for number in range(30):  # two at a time: the second waits for the first, and gives up while it does
        at = float(number)
        events += [
            (at, Arrived([Ticket(2 * number + 1, at), Ticket(2 * number + 2, at)])),
            (at + 0.015, Cancelled(2 * number + 2)),
            (at + 0.020, BatchDone(number + 1, 0.020)),
        ]
    log = record(tmp_path / "m.dlog", *events, header=Header("m", knobs, [*LINE], threads=1, cores=2))
    results = run(log, "instances=2", "speed=0.5")
    assert results["recorded"].errors == results["simulated"].errors == {"cancelled": 30}
    assert results["speed=0.5"].errors == {"cancelled": 30}, "a client's patience is its own"
    assert results["instances=2"].errors == {"cancelled": 30}, "20 ms are more than its patience, even at once"


def test_what_a_simulation_leaves_out_is_said(tmp_path: Path) -> None:
    log = record(
        tmp_path / "m.dlog",
        (0.0, InstanceUp("a")),
        (1.0, Arrived([Ticket(1, 1.0)])),
        (1.1, BatchDone(1, 0.01)),
        (2.0, InstanceUp("b")),
        (3.0, Arrived([Ticket(2, 3.0)])),
        (3.1, BatchDone(2, 0.01, "boom", Failure(FailureKind.MODEL_FAILED, "boom"))),
        (3.2, InstanceLost("b", "killed")),
        (4.0, KnobsChanged(msgspec.structs.replace(KNOBS, max_batch=3, arbitrated=True))),
        (9.0, Arrived([Ticket(3, 9.0)])),
        (9.5, Arrived([Ticket(-1, 9.5)])),
    )
    (run_,) = RecordedRuns([log]).runs.values()
    assert run_.knobs.max_batch == 3
    said = "\n".join(run_.notes)
    for clue in ("instances came and went; simulated with 1", "changed 1 times", "1 batches failed", "took turns"):
        assert clue in said
    assert "1 requests of no client" in said


def test_larger_batches_than_any_that_ran_take_what_calibration_says_times_what_service_was_slower(tmp_path: Path) -> None:
    knobs = msgspec.structs.replace(KNOBS, max_batch=2)
    log = live(tmp_path / "m.dlog", poisson(300.0, 600), knobs=knobs, factors=[1.5])
    (run_,) = RecordedRuns([log]).runs.values()
    assert run_.largest == 2
    assert {sample.rows: round(sample.service_s, 6) for sample in run_.samples if sample.rows > 2} == {4: 0.021, 8: 0.027}


def test_nobody_knows_larger_batches_where_only_single_rows_were_measured(tmp_path: Path) -> None:
    knobs = msgspec.structs.replace(KNOBS, max_batch=1)
    header = Header("m", knobs, [(1, 0.01)], threads=1, cores=2)
    log = record(
        tmp_path / "m.dlog", (0.0, InstanceUp("a")), (1.0, Arrived([Ticket(1, 1.0)])), (1.1, BatchDone(1, 0.01)), header=header
    )
    with pytest.raises(ConfigError, match="only batches of one row were measured"):
        run(log, "max_batch=8")


def test_a_loop_that_cost_nothing_changes_nothing_when_it_is_simulated(tmp_path: Path) -> None:
    log = live(tmp_path / "m.dlog", poisson(400.0, 1000))
    today = from_logs([log], objective_s=None, parallel=None, with_loop=True)
    results = dict(columns(today, [], seed=0))
    assert all(abs(error) < 0.01 for error in off_by(results["recorded"], results["simulated"]).values())


def test_requests_that_came_before_max_batch_was_lowered_are_simulated_too(tmp_path: Path) -> None:
    log = record(
        tmp_path / "m.dlog",
        (0.0, InstanceUp("a")),
        (1.0, Arrived([Ticket(1, 1.0, rows=5)])),
        (1.1, BatchDone(1, 0.015)),
        (1.5, KnobsChanged(msgspec.structs.replace(KNOBS, max_batch=2))),
        (2.0, Arrived([Ticket(2, 2.0)])),
        (2.1, BatchDone(2, 0.011)),
    )
    assert run(log)["simulated"].ok == 2


def test_a_damaged_log_is_refused_or_simulated(tmp_path: Path) -> None:
    random, log = Random(11), live(tmp_path / "m.dlog", poisson(300.0, 40))
    whole, refused = log.read_bytes(), 0
    for _ in range(200):
        damaged = bytearray(whole)
        for _ in range(random.randint(1, 3)):
            damaged[random.randrange(len(damaged))] = random.randrange(256)
        log.write_bytes(damaged if random.random() < 0.8 else damaged[: random.randrange(len(damaged))])
        try:
            side_by_side(list(run(log, "instances=2").items()))
        except (LogError, ConfigError):
            refused += 1
    assert 10 < refused < 200


# Several models, files


def test_logs_of_several_models_are_one_run_and_a_folder_is_its_logs(tmp_path: Path) -> None:
    for name, begun_at in (("a", 1.0), ("b", 2.0)):
        record(
            tmp_path / f"{name}-1.dlog",
            (0.0, InstanceUp(f"{name}-0")),
            *(
                event
                for number in range(20)
                for event in (
                    (begun_at + number, Arrived([Ticket(number, begun_at + number)])),
                    (begun_at + number + 0.02, BatchDone(number + 1, 0.02)),
                )
            ),
            header=Header(name, KNOBS, [*LINE], threads=1, cores=2),
        )
    today = from_logs([tmp_path], objective_s=None, parallel=None, with_loop=False)
    results = dict(columns(today, [parse_change("b.max_batch=2,rate=2x", ["a", "b"])], seed=0))
    for result in results.values():
        assert {name: model.sent for name, model in result.models.items()} == {"a": 20, "b": 20}
    setup = results["b.max_batch=2,rate=2x"].setup["models"]
    assert (setup["a"]["max_batch"], setup["b"]["max_batch"]) == (16, 2)
    assert results["recorded"].duration_s == pytest.approx(20.0)
    assert "  missed" in side_by_side(list(results.items()))

    (tmp_path / "again.dlog").write_bytes((tmp_path / "a-1.dlog").read_bytes())
    with pytest.raises(LogError, match="give one log of each model"):
        RecordedRuns([tmp_path])
    (tmp_path / "empty").mkdir()
    with pytest.raises(LogError, match="holds no event log"):
        RecordedRuns([tmp_path / "empty"])
    idle = record(tmp_path / "idle.dlog", (0.0, InstanceUp("a")))
    with pytest.raises(LogError, match="holds no request of a client"):
        RecordedRuns([idle])


def test_the_command_shows_all_columns_and_writes_them(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    log, out, page = live(tmp_path / "m.dlog", poisson(400.0, 800)), tmp_path / "o.json", tmp_path / "o.html"
    arguments = ["--what-if=instances=2,threads=2", "--what-if=max_batch=4", f"--json={out}", f"--html={page}"]
    assert main(["simulate", f"--log={log}", *arguments]) == OK
    said = capsys.readouterr().out
    headings = said.splitlines()[0].split()
    assert headings == ["recorded", "simulated", "instances=2,threads=2", "max_batch=4"]
    for clue in ("throughput", "goodput", "p99", "missed", "mean batch", "utilisation", "simulator's own error", "Amdahl"):
        assert clue in said
    written = msgspec.json.decode(out.read_bytes(), type=Columns)
    assert list(written.columns) == headings
    text = page.read_text()
    assert all(heading in text for heading in headings)
    ids = [part.partition('"')[0] for part in text.split('id="')[1:]]
    assert len(ids) == len(set(ids)), "charts of several results on one page"


def test_many_columns_with_long_names_are_letters(tmp_path: Path) -> None:
    log = live(tmp_path / "m.dlog", poisson(100.0, 50))
    names = [f"max_batch={size},discipline=fcfs,instances=2" for size in range(1, 13)]
    lines = side_by_side(list(run(log, *names).items())).splitlines()
    assert max(map(len, lines)) <= 100
    assert lines[0].split() == ["recorded", "simulated", "c", "d", "e", "f", "g"]
    assert f"n: {names[-1]}" in lines


# What is written wrongly


@pytest.mark.parametrize(
    ("text", "clues"),
    [
        ("max_bach=4", ["no knob 'max_bach'", "did you mean 'max_batch'?"]),
        ("m.instance=4", ["no knob 'instance'", "did you mean 'instances'?"]),
        ("m.cores=4", ["no knob 'cores'"]),
        ("instances", ["instances has no value"]),
        ("instances=2,instances=3", ["instances is given twice"]),
        ("rate=2x,speed=3", ["rate and speed are given twice"]),
        ("rate=quick", ["'quick' is not understood", "3x"]),
        ("speed=-1", ["'-1x' is not understood"]),
        ("cores=none", ["cores 'none' is out of range"]),
        (" , ", ["changes nothing"]),
    ],
)
def test_a_change_that_cannot_be_read(text: str, clues: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_change(text, ["m"])
    assert not [clue for clue in clues if clue not in str(caught.value)], str(caught.value)


@pytest.mark.parametrize(
    ("text", "clues"),
    [
        ("discipline=sfj", ["--what-if discipline=sfj", "did you mean 'sjf'?"]),
        ("instances=many", ["'many' is not a whole number"]),
        ("instances=0", ["at least 1"]),
        ("max_wait_s=often", ["duration 'often'"]),
        ("slo=soon", ["slo 'p99=soon'"]),
        ("max_batch=1", ["requests to m have up to 2 rows"]),
    ],
)
def test_a_change_that_cannot_be_simulated(tmp_path: Path, text: str, clues: list[str]) -> None:
    log = live(tmp_path / "m.dlog", poisson(100.0, 20, rows=2))
    with pytest.raises(ConfigError) as caught:
        run(log, text)
    assert not [clue for clue in clues if clue not in str(caught.value)], str(caught.value)


def test_loads() -> None:
    assert [load.factor(100.0) for load in map(partial(parse_load, option="--capacity"), ("3x", "250/s", "50"))] == [
        3.0,
        2.5,
        0.5,
    ]
    with pytest.raises(ConfigError, match="has no rate"):
        Load(None, 5.0).factor(0.0)

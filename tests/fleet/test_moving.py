"""What was found on made-up inputs is found again on what clients send: instances change places under load, nothing is lost."""

import asyncio
from collections.abc import Sequence
from pathlib import Path
from threading import current_thread, main_thread
from time import sleep, thread_time

import msgspec
import numpy as np
import pytest

from dlproxy.config import ModelConfig
from dlproxy.fleet import warm_model
from dlproxy.fleet.local import LocalFleet
from dlproxy.fleet.remembered import Memory
from dlproxy.fleet.roster import Roster
from dlproxy.fleet.warm_model import WarmModel
from dlproxy.instance.inline import IN_A_THOUSAND, TOO_LONG_S, InlineInstance
from dlproxy.instance.trial import SHARED_ABOVE_S, Measured, Way
from dlproxy.instance.warmup import Calibration
from dlproxy.policy.plan import HOLD_S
from dlproxy.serve.reservoir import AFTER, KEPT, Reservoir
from dlproxy.testing import FakeRuntime
from tests.serve.rig import SIGNATURE, Array, Rig, double

INLINE = Way(inline=True, instances=1, threads=1)
QUICK = Calibration(((1, 20e-6), (2, 25e-6)), True)


def _busy(seconds: float) -> None:
    until = thread_time() + seconds
    while thread_time() < until:
        pass


def _hosted(rig: Rig, function: object, way: Way = INLINE, **settings: object) -> tuple[LocalFleet, Roster]:
    warm = WarmModel(FakeRuntime(SIGNATURE, function), QUICK, 1, way)  # type: ignore[arg-type]
    fleet = LocalFleet("m", ModelConfig(path="m.onnx", **settings), [warm])  # type: ignore[arg-type]
    roster = Roster(rig.driver, rig.stats, rig.now)
    fleet.attach(roster)
    return fleet, roster


def _by_width(inputs: Sequence[Array]) -> list[Array]:
    """Quick for short rows, and for long ones so long that the loop must not wait for it."""
    if inputs[0].shape[1] > 4:
        _busy(4e-3)
    return double(inputs)


async def test_long_work_leaves_the_loop_and_no_request_is_lost() -> None:
    rig = Rig(instances=0)
    fleet, roster = _hosted(rig, _by_width)
    moved: list[Way] = []
    fleet.on_moved = moved.append
    assert (await rig.send().wait()).values == [2.0]
    replies = [rig.send(float(number), width=8) for number in range(8)]
    assert [(await reply.wait()).values for reply in replies] == [[2.0 * number] for number in range(8)]
    more = [rig.send(float(number), width=8) for number in range(4)]
    for reply in more:
        await reply.wait()
    assert fleet._moving is not None
    await fleet._moving  # until those that ran in the old way are gone
    assert [way.inline for way in moved] == [False]
    assert fleet.run == "thread"
    assert [place["name"] for place in roster.places()] == ["m-1"]
    assert rig.is_at_rest()
    await rig.driver.stop(1.0)
    await fleet.stop()


async def test_run_inline_is_an_order() -> None:
    rig = Rig(instances=0)
    fleet, _ = _hosted(rig, _by_width, run="inline")
    for _ in range(3):
        await rig.send(width=8).wait()
    assert fleet.way == INLINE
    await rig.driver.stop(1.0)


def test_one_batch_in_a_thousand_may_be_long() -> None:
    times: list[float] = []
    runtime = FakeRuntime(SIGNATURE, lambda inputs: (_busy(times.pop() if times else 0.0), double(inputs))[1])
    told: list[float] = []
    instance = InlineInstance("m-0", runtime, told.append)
    request = [Rig.plain_request()]

    def run(seconds: float) -> None:
        times.append(seconds)
        instance.run(request, lambda result: None)

    run(HOLD_S / 2)  # close enough to the limit for the thread's own clock to be read from now on
    run(HOLD_S * 1.2)
    assert not told
    for _ in range(IN_A_THOUSAND):
        run(0.0)
    run(HOLD_S * 1.2)
    assert not told, "the first was more than a thousand batches ago"
    run(HOLD_S * 1.2)
    assert len(told) == 1
    run(TOO_LONG_S * 1.2)
    assert len(told) == 2
    assert all(seconds > HOLD_S for seconds in told)


async def test_what_clients_send_is_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """Warm-up saw short rows, clients send long ones, one by one: they run side by side from then on."""

    def slow(inputs: Sequence[Array]) -> list[Array]:
        _busy(HOLD_S * 0.6 if inputs[0].shape[1] > 4 else 0.0)
        return double(inputs)

    monkeypatch.setattr(warm_model, "usable_cores", lambda: 2)
    rig = Rig(instances=0)
    way = Way(inline=False, instances=1, threads=1)
    fleet, roster = _hosted(rig, slow, way)
    moved = asyncio.Event()
    fleet.on_moved = lambda way: moved.set()
    fleet.try_again([rig.request(width=1)] * 3)
    assert fleet._moving is not None
    await fleet._moving
    assert fleet.way == INLINE, "short rows are as quick as a model on the loop must be"
    moved.clear()
    for _ in range(3):
        await rig.send(width=8).wait()
    fleet.try_again([rig.request(width=8)] * 3)
    replies = [rig.send(float(number), width=8) for number in range(20)]
    await asyncio.wait_for(moved.wait(), 20)
    for reply in replies:
        await reply.wait()
    assert fleet.way == Way(inline=False, instances=2, threads=1)
    await fleet._moving
    assert [place["state"] for place in roster.places()] == ["up", "up"]
    await rig.driver.stop(1.0)
    await fleet.stop()


async def test_requests_that_cannot_be_tried_change_nothing(caplog: pytest.LogCaptureFixture) -> None:
    def broken(inputs: Sequence[Array]) -> list[Array]:
        raise ValueError("not today")

    rig = Rig(instances=0)
    way = Way(inline=False, instances=1, threads=1)
    fleet, _ = _hosted(rig, broken, way)
    fleet.try_again([rig.request()])
    assert fleet._moving is not None
    await fleet._moving
    assert fleet.way == way
    assert "could not be tried on its clients' requests: not today" in caplog.text
    await rig.driver.stop(1.0)
    await fleet.stop()


async def test_on_the_loop_its_own_batches_tell() -> None:
    """Elsewhere it is slower: the caches are cold, and others take the core."""

    def slow_elsewhere(inputs: Sequence[Array]) -> list[Array]:
        _busy(0.0 if current_thread() is main_thread() else 1e-3)
        return double(inputs)

    rig = Rig(instances=0)
    fleet, _ = _hosted(rig, slow_elsewhere)
    for _ in range(3):
        await rig.send().wait()
    fleet.try_again([rig.request()] * 3)
    if fleet._moving is not None:
        await fleet._moving
    assert fleet.way == INLINE
    await rig.driver.stop(1.0)
    await fleet.stop()


def test_batches_on_the_loop_are_slow_by_what_each_request_takes() -> None:
    times: list[float] = []
    instance = InlineInstance("m-0", FakeRuntime(SIGNATURE, lambda inputs: (_busy(times.pop()), double(inputs))[1]))

    def run(seconds: float, requests: int) -> None:
        times.append(seconds)
        instance.run([Rig.plain_request()] * requests, lambda result: None)

    for _ in range(4):
        run(SHARED_ABOVE_S * 1.5, 4)
    assert not instance.slow, "four requests each"
    run(SHARED_ABOVE_S * 1.5, 1)
    assert not instance.slow, "one in five"
    run(SHARED_ABOVE_S * 1.5, 1)
    assert instance.slow


def test_a_batch_that_others_held_up_is_not_slow() -> None:
    instance = InlineInstance("m-0", FakeRuntime(SIGNATURE, lambda inputs: (sleep(HOLD_S / 2), double(inputs))[1]))
    for _ in range(2):
        instance.run([Rig.plain_request()], lambda result: None)
        assert not instance.slow


@pytest.mark.parametrize("calm", [False, True])
async def test_a_guess_is_looked_at_again_until_the_machine_is_calm(calm: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """At start others had the cores; on a calm machine two threads turn out to be quicker than two instances."""
    guess = Measured(5e-3, 5e-3, 5e-3, 2.5e-3, 9e-3, disturbed=True)
    seen = Measured(5e-3, 5e-3, 5e-3, 4.5e-3, 3e-3, disturbed=not calm)
    asked: list[float] = []
    monkeypatch.setattr(warm_model, "usable_cores", lambda: 2)
    monkeypatch.setattr(warm_model, "measure", lambda *how: (asked.append(how[-1]), seen)[1])
    monkeypatch.setattr(warm_model, "open_model", lambda *_: FakeRuntime(SIGNATURE, double))
    rig = Rig(instances=0)
    beside = Way(inline=False, instances=2, threads=1)
    fleet, _ = _hosted(rig, lambda inputs: (_busy(4e-3), double(inputs))[1], beside)
    fleet._warm[0].found = guess
    assert fleet.try_again([rig.request()]), "once more, as far as is known yet"
    assert fleet._moving is not None
    await fleet._moving
    assert asked == [0.0], "clients wait meanwhile"
    assert fleet.way == (Way(inline=False, instances=1, threads=2) if calm else beside)
    assert fleet.try_again([rig.request()]) is not calm
    await fleet._moving
    await rig.driver.stop(1.0)
    await fleet.stop()


async def test_a_guess_that_proves_right_is_one_no_more(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = Measured(5e-3, 5e-3, 5e-3, 2.5e-3, 9e-3)
    monkeypatch.setattr(warm_model, "usable_cores", lambda: 2)
    monkeypatch.setattr(warm_model, "measure", lambda *_: seen)
    rig = Rig(instances=0)
    fleet, _ = _hosted(rig, double, Way(inline=False, instances=2, threads=1))
    warm = fleet._warm[0]
    warm.found, warm.memory, warm.key = msgspec.structs.replace(seen, disturbed=True), Memory(tmp_path), "k"
    warm.remember()
    guess = warm.memory.recall("k")
    assert guess is not None
    assert guess.found == warm.found
    fleet.try_again([rig.request()])
    assert fleet._moving is not None
    await fleet._moving
    kept = warm.memory.recall("k")
    assert kept is not None
    assert kept.found == seen
    assert not fleet.try_again([rig.request()])
    await fleet._moving
    await rig.driver.stop(1.0)
    await fleet.stop()


async def test_a_reservoir_keeps_a_fair_few() -> None:
    rig = Rig(instances=0)
    handed: list[list[int]] = []
    reservoir = Reservoir(lambda requests: bool(handed.append([request.ticket.id for request in requests])))
    wanted = [reservoir.saw(rig.request()) for _ in range(AFTER[-1])]
    assert wanted == [True] * (AFTER[-1] - 1) + [False]
    assert [len(ids) for ids in handed] == [KEPT, KEPT]
    assert np.mean(handed[1]) == pytest.approx(AFTER[-1] / 2, rel=0.4), "not the first ones, nor the last"


async def test_a_reservoir_is_emptied_again_where_that_is_wanted() -> None:
    rig = Rig(instances=0)
    handed_at: list[int] = []
    seen = [1]
    request = rig.request()
    reservoir = Reservoir(lambda requests: (handed_at.append(seen[0]), seen[0] < 2 * AFTER[-1])[1])
    while reservoir.saw(request):
        seen[0] += 1
    assert handed_at == [*AFTER, 2 * AFTER[-1]]

"""The number of instances on threads changes while they run batches: one that comes never meets the one that leaves."""

import asyncio
import threading
from collections.abc import Sequence

from dlproxy.config import ModelConfig
from dlproxy.fleet.local import LocalFleet
from dlproxy.fleet.roster import Roster
from dlproxy.fleet.warm_model import WarmModel
from dlproxy.instance.trial import Way
from dlproxy.instance.warmup import Calibration
from dlproxy.testing import FakeRuntime
from tests.serve.rig import SIGNATURE, Array, Rig, double, turns


async def test_a_name_is_given_again_only_when_its_last_batch_has_ended() -> None:
    gate = threading.Event()
    started = threading.Barrier(3)

    def gated(inputs: Sequence[Array]) -> list[Array]:
        if not gate.is_set():
            started.wait()
        gate.wait()
        return double(inputs)

    rig = Rig(instances=0)
    roster = Roster(rig.driver, rig.stats, rig.now)
    warm = [WarmModel(FakeRuntime(SIGNATURE, gated), Calibration((), True), 1, Way(inline=False, instances=2, threads=1))]
    fleet = LocalFleet("m", ModelConfig(path="m.onnx", run="thread", instances=2), warm)
    fleet.attach(roster)
    replies = [rig.send(float(number), rows=64) for number in range(2)]
    await asyncio.to_thread(started.wait)  # both run
    fewer = asyncio.create_task(fleet.scale(1))
    await turns()
    more = asyncio.create_task(fleet.scale(2))
    await turns()
    names = [place["name"] for place in roster.places()]
    gate.set()
    assert names == ["m-0"], "m-1 still ran its batch"
    await asyncio.gather(fewer, more)
    for number, reply in enumerate(replies):
        assert (await reply.wait()).values[0] == 2.0 * number
    assert [(state.name, state.in_flight) for state in rig.lane.view().instances] == [("m-0", 0), ("m-1", 0)]
    await rig.driver.stop(1.0)
    await fleet.stop()

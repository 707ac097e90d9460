"""Who is asked for all leaves, or may change what was asked: the others must not notice."""

from collections.abc import Callable

import numpy as np
import pytest

from dlproxy.message import DType, FailureKind, Request, Tensor
from dlproxy.serve.caching.keys import Key
from dlproxy.serve.caching.layer import Kept
from dlproxy.serve.caching.watch import COMPARED_BYTES
from tests.serve.caching.site import Site, how
from tests.serve.rig import Reply, Rig, pass_time, turns

pytestmark = pytest.mark.looptime(idle_step=0.1, idle_timeout=1.0)


def own_array(site: Site, value: float) -> tuple[np.ndarray[tuple[int, int], np.dtype[np.float32]], Request]:
    """A request as a caller of this process makes it: of an array that stays the caller's."""
    array = np.full((1, 1), value, np.float32)
    request = site.rig.request(value)
    request.inputs = [Tensor("x", DType.FP32, (1, 1), array.data.cast("B"))]
    return array, request


async def test_who_leaves_may_use_its_array_again() -> None:
    site = Site(Rig(service_s=1.0))
    busy = site.send(9.0)
    await turns()
    array, request = own_array(site, 3.0)
    first = site.submit(request)
    joined = site.send(3.0)
    site.cancel(first)
    array[:] = 100.0
    assert (await joined.wait()).values == [6.0]
    assert how(await site.send(3.0).wait()) == "hit"
    assert (await site.send(3.0).wait()).values == [6.0]
    await busy.wait()
    await site.end()


async def test_whoever_is_answered_may_use_its_array_again() -> None:
    site = Site()
    site.layer.watch._to_recheck = 1
    await site.send(3.0).wait()
    array, request = own_array(site, 3.0)
    assert how(site.submit(request)) == "hit"
    array[:] = 100.0
    await pass_time(0.1)
    assert site.layer.counts.rechecks == {"same": 1, "different": 0}
    await site.end()


@pytest.mark.parametrize("also", [False, True])
async def test_whoever_left_is_counted_once_when_the_lane_gives_it_up(also: bool) -> None:
    """Its deadline passes in the queue, where it stands for another."""
    site = Site(Rig(service_s=1.0))
    busy = site.send(9.0)
    await turns()
    first, second = site.send(3.0, timeout_s=1.5, promised=True), site.send(3.0)
    third = site.send(3.0) if also else None
    site.cancel(first)
    assert (await second.wait()).values == [6.0]
    if third is not None:
        assert (await third.wait()).values == [6.0]
    await busy.wait()
    assert site.failures == {"cancelled": 1}
    await site.end()


class Elsewhere:
    """A SecondLevel that has nothing, and keeps in mind what it was told."""

    def __init__(self) -> None:
        self.asked: list[Callable[[Kept | None], None]] = []
        self.told: list[Kept | None] = []

    def find(self, key: Key, then: Callable[[Kept | None], None]) -> None:
        self.asked.append(then)

    def keep(self, key: Key, kept: Kept | None) -> None:
        self.told.append(kept)


async def test_other_nodes_hear_it_when_nobody_is_left_to_ask() -> None:
    """The first is refused, the other leaves before it is asked for."""
    site = Site(Rig(service_s=1.0))
    elsewhere = site.layer.second = Elsewhere()
    busy = site.send(9.0)
    elsewhere.asked.pop()(None)
    await turns()

    class Taking(Reply):
        def failed(self, failure: object) -> None:
            self._note()
            site.cancel(other)

    request = site.rig.request(3.0, timeout_s=1.5, promised=True)
    first, other = site.submit(request, Taking(request)), site.send(3.0)
    elsewhere.asked.pop()(None)
    await first.wait()
    assert other.kind is FailureKind.CANCELLED
    await busy.wait()
    await pass_time(1.0)
    assert [kept is None for kept in elsewhere.told] in ([True, False], [False, True])
    await site.end()


async def test_what_is_compared_while_it_is_off_takes_little_memory() -> None:
    site = Site(cache="auto")
    width = COMPARED_BYTES
    for _ in range(3):
        await site.send(3.0, width=width).wait()
    auto = site.layer._auto
    assert auto is not None
    (probe,) = auto._probes.values()
    assert sum(len(tensor.data) for tensor in probe) == COMPARED_BYTES
    assert auto.compared_equal == 2
    await site.end()

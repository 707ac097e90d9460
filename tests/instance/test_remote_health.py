"""The watch over an upstream, on virtual time: when it looks, when it says lost, when it says up."""

import asyncio
from collections.abc import AsyncIterator, Callable

import pytest

from dlproxy.instance.remote.failures import UpstreamError
from dlproxy.instance.remote.health import Watch
from dlproxy.instance.remote.settings import RemoteSettings
from dlproxy.instance.runtime import ModelError
from tests.serve.rig import pass_time

pytestmark = pytest.mark.looptime
SETTINGS = RemoteSettings(check_interval_s=5.0, recheck_s=0.1, fall=2)
SICK, GONE = UpstreamError("sick"), UpstreamError("gone", gone=True)


class Rig:
    """A watch over a made-up upstream; `state` is what the next looks find. The draw is 0.5: no jitter."""

    def __init__(self, draw: Callable[[], float] = lambda: 0.5) -> None:
        self.state: Exception | None = None
        self.looks: list[tuple[float, bool]] = []
        self.told: list[tuple[float, str]] = []
        self.now = asyncio.get_running_loop().time
        self.watch = Watch(
            "u", self._probe, SETTINGS, on_lost=self._lost, on_up=lambda: self._tell("up"), on_leaves=self._leaves, draw=draw
        )

    def _lost(self, reason: str) -> None:
        self._tell(f"lost: {reason}")

    def _leaves(self, reason: str) -> None:
        self._tell(f"leaves: {reason}")

    def _tell(self, what: str) -> None:
        self.told.append((round(self.now(), 3), what))

    async def _probe(self, was_lost: bool) -> None:
        self.looks.append((round(self.now(), 3), was_lost))
        if self.state is not None:
            raise self.state


@pytest.fixture
async def rig() -> AsyncIterator[Rig]:
    """Not started: virtual time begins with the test, not with its fixtures."""
    made = Rig()
    yield made
    await made.watch.stop()


async def test_a_healthy_upstream_is_looked_at_now_and_then(rig: Rig) -> None:
    rig.watch.start(up=True)
    await pass_time(16.0)
    assert rig.looks == [(5.0, False), (10.0, False), (15.0, False)]
    assert not rig.told
    assert rig.watch.up


async def test_jitter_spreads_the_looks() -> None:
    draws = iter([0.0, 1.0, 0.5])
    rig = Rig(lambda: next(draws))
    rig.watch.start(up=True)
    await pass_time(11.0)
    await rig.watch.stop()
    assert rig.looks == [(4.0, False), (10.0, False)]


async def test_one_failed_check_is_looked_into_and_forgiven(rig: Rig) -> None:
    rig.watch.start(up=True)
    rig.state = SICK
    await pass_time(5.05)
    rig.state = None
    await pass_time(0.1)
    assert rig.looks == [(5.0, False), (5.1, False)]
    rig.state = SICK  # the count begins again
    await pass_time(5.0)
    assert not rig.told


async def test_two_failed_checks_lose_it(rig: Rig) -> None:
    rig.watch.start(up=True)
    rig.state = SICK
    await pass_time(5.15)
    assert rig.told == [(5.1, "lost: sick")]
    assert not rig.watch.up


async def test_a_refused_connection_loses_it_at_once(rig: Rig) -> None:
    rig.watch.start(up=True)
    rig.state = GONE
    await pass_time(5.01)
    assert rig.told == [(5.0, "lost: gone")]


async def test_reconnecting_backs_off_to_the_interval(rig: Rig) -> None:
    rig.watch.start(up=True)
    rig.state = GONE
    await pass_time(25.0)
    times = [at for at, _ in rig.looks]
    assert times == [5.0, 5.1, 5.3, 5.7, 6.5, 8.1, 11.3, 16.3, 21.3, 26.3][: len(times)]
    assert len(times) == 9
    assert [was_lost for _, was_lost in rig.looks] == [False] + [True] * 8
    assert len(rig.told) == 1, "lost is said once"


async def test_it_comes_back_and_the_back_off_starts_anew(rig: Rig) -> None:
    rig.watch.start(up=True)
    rig.state = GONE
    await pass_time(6.0)
    rig.state = None
    await pass_time(1.0)
    assert rig.told == [(5.0, "lost: gone"), (6.5, "up")]
    assert rig.watch.up
    rig.looks.clear()
    rig.state = GONE
    await pass_time(5.0)
    assert [at for at, _ in rig.looks] == [11.5, 11.6, 11.8]


async def test_being_told_of_a_loss_looks_at_once(rig: Rig) -> None:
    rig.watch.start(up=True)
    await pass_time(1.0)
    rig.watch.lost("connection refused")
    rig.watch.lost("connection refused")
    rig.state = GONE
    await pass_time(0.25)
    assert rig.told == [(1.0, "lost: connection refused")]
    assert rig.looks == [(1.0, True), (1.2, True)]
    rig.state = None
    await pass_time(1.0)
    assert rig.told[-1][1] == "up"


async def test_a_suspicion_looks_soon_but_not_for_every_error(rig: Rig) -> None:
    rig.watch.start(up=True)
    await pass_time(1.0)
    for _ in range(100):
        rig.watch.suspect()
        await pass_time(0.01)
    assert [at for at, _ in rig.looks][:3] == [1.0, 1.1, 1.2]
    assert len(rig.looks) <= 11
    assert not rig.told


async def test_a_loss_during_a_look_that_succeeds_stays_a_loss(rig: Rig) -> None:
    rig.watch.start(up=True)
    looking, gate = asyncio.Event(), asyncio.Event()
    thorough = []

    async def slow(was_lost: bool) -> None:
        thorough.append(was_lost)
        looking.set()
        await gate.wait()

    rig.watch._probe = slow
    await looking.wait()
    rig.watch.lost("refused")
    gate.set()
    await pass_time(0.3)
    assert thorough == [False, True], "came back without being asked what it serves now"
    assert [what for _, what in rig.told] == ["lost: refused", "up"]


async def test_another_model_in_its_place_does_not_come_up(rig: Rig, caplog: pytest.LogCaptureFixture) -> None:
    rig.watch.start(up=True)
    rig.watch.lost("refused")
    rig.state = ModelError("another signature")
    await pass_time(20.0)
    assert len(rig.told) == 1
    assert "another signature" in caplog.text


async def test_a_mistake_in_a_look_does_not_end_the_watch(rig: Rig) -> None:
    rig.watch.start(up=True)
    rig.state = ZeroDivisionError("oops")
    await pass_time(5.05)
    rig.state = None
    await pass_time(5.2)
    assert rig.watch.up
    assert len(rig.looks) == 3


async def test_a_watch_that_begins_lost_says_up() -> None:
    rig = Rig()
    rig.watch.start(up=False)
    await pass_time(0.2)
    assert rig.told == [(0.1, "up")]
    await rig.watch.stop()
    await rig.watch.stop()
    assert not rig.watch.up

"""Polling instead of sleeping: when it starts, when it gives up, and that drivers tell it the truth."""

import asyncio
from collections.abc import Callable
from math import inf

import pytest
from msgspec.structs import replace

from dlproxy.serve.idle_poll import STREAK, IdlePoll, may_poll
from tests.serve.rig import KNOBS, Reply, Rig, pass_time

MOST_S = 200e-6
SOON_S = 50e-6
TURN_S = 10e-6


class Loop:
    """An event loop that has nothing to do but turn, each time in 10 us; `asleep` when nothing asks for another turn."""

    def __init__(self) -> None:
        self.now = 0.0
        self.turns = 0
        self._next: list[Callable[[], None]] = []
        self.poll = IdlePoll(MOST_S, clock=lambda: self.now, call_soon=self._next.append)

    @property
    def asleep(self) -> bool:
        return not self._next

    def pass_time(self, seconds: float) -> None:
        """Sleep or turn for so long."""
        until = self.now + seconds
        while self._next and self.now < until:
            self.now += TURN_S
            self.turns += 1
            due = self._next[:]
            self._next.clear()
            for callback in due:
                callback()
        self.now = max(self.now, until)

    def answer(self, who: str = "a", *, after_s: float = SOON_S, takes_s: float = 30e-6) -> None:
        """A request comes after so long, and is answered."""
        self.pass_time(after_s)
        self.poll.busy(who)
        self.now += takes_s
        self.poll.idle(who)


@pytest.fixture
def loop() -> Loop:
    """One whose caller has been quick for long."""
    loop = Loop()
    for _ in range(STREAK + 1):  # before the first there was no answer, so it came neither soon nor late
        loop.answer()
    return loop


def test_the_loop_sleeps_until_requests_have_come_soon_often_enough() -> None:
    loop = Loop()
    for _ in range(STREAK):
        loop.answer()
        assert loop.asleep
    loop.answer()
    assert not loop.asleep


def test_it_polls_until_the_next_request_and_no_longer_than_allowed(loop: Loop) -> None:
    loop.pass_time(SOON_S)
    assert not loop.asleep
    loop.answer(after_s=0.0)
    loop.pass_time(10.0)
    assert loop.asleep
    assert loop.turns <= (SOON_S + MOST_S) / TURN_S + 2


def test_one_that_does_not_come_starts_the_count_anew(loop: Loop) -> None:
    loop.pass_time(1.0)
    for _ in range(STREAK):
        loop.answer()
        assert loop.asleep
    loop.answer()
    loop.answer()
    assert not loop.asleep


def test_one_that_comes_late_starts_it_anew_although_nobody_polled() -> None:
    loop = Loop()
    for _ in range(5 * STREAK):
        for _ in range(STREAK - 1):
            loop.answer()
        loop.answer(after_s=2 * MOST_S)
        assert loop.asleep


@pytest.mark.parametrize(("takes_s", "asleep"), [(0.9 * MOST_S, False), (1.1 * MOST_S, True)])
def test_answers_that_take_long_are_not_worth_it(takes_s: float, asleep: bool) -> None:
    loop = Loop()
    for _ in range(5 * STREAK):
        loop.answer(takes_s=takes_s)
    assert loop.asleep is asleep


def test_nobody_polls_while_another_model_works(loop: Loop) -> None:
    loop.poll.busy("b")
    loop.answer("a")
    loop.pass_time(TURN_S)
    assert loop.asleep  # its batch may run on a thread, which needs the interpreter
    loop.poll.idle("b")
    assert not loop.asleep


def test_two_answers_between_two_turns_make_one_poll(loop: Loop) -> None:
    loop.answer(after_s=0.0)
    loop.poll.busy("a")
    loop.poll.idle("a")
    loop.poll.idle("a")
    before = loop.turns
    loop.pass_time(5 * TURN_S)
    assert loop.turns - before == 5


class Told(IdlePoll):
    """Remembers what it was told."""

    def __init__(self) -> None:
        super().__init__(MOST_S, clock=lambda: 0.0, call_soon=lambda callback: None)
        self.states: list[str] = []

    def busy(self, who: object) -> None:
        self.states.append("busy")
        super().busy(who)

    def idle(self, who: object) -> None:
        self.states.append("idle")
        super().idle(who)


@pytest.mark.looptime
async def test_a_driver_is_idle_only_when_all_is_answered() -> None:
    rig, told = Rig(), Told()
    rig.driver.poll_when_idle(told)
    first, second = rig.send(), rig.send()
    await asyncio.gather(first.wait(), second.wait())
    assert told.states == ["busy", "idle"]
    late = rig.send()
    await pass_time(0.001)
    overtaken = rig.send()  # comes while the other one runs
    await late.wait()
    assert told.states[-1] == "busy"
    await overtaken.wait()
    assert told.states[-1] == "idle"


@pytest.mark.looptime
async def test_refusals_and_cancelled_requests_leave_a_driver_idle() -> None:
    rig, told = Rig(instances=0, knobs=replace(KNOBS, max_queue_rows=2)), Told()
    rig.driver.poll_when_idle(told)
    refused = rig.send(rows=2)
    await refused.wait()
    assert (refused.failure is not None, told.states) == (True, ["busy", "idle"])
    rig.driver.add_instance(rig.fake("m-0"))
    request = rig.request()
    rig.driver.submit(request, reply := Reply(request))
    rig.driver.cancel(request)
    await reply.wait()
    assert told.states[-1] == "idle"


@pytest.mark.parametrize(("cores", "may"), [(0.5, False), (1.99, False), (2.0, True), (inf, True)])
def test_a_share_of_less_than_two_cores_is_not_spent_on_polling(
    cores: float, may: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dlproxy.serve.idle_poll.quota_cores", lambda: cores)
    assert may_poll() is may

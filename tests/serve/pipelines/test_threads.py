"""Threads that code runs on: the lowest rank first, what is late or cancelled not at all, and none is left."""

import asyncio
import sys
import threading
from functools import partial
from math import inf
from typing import Any

import pytest

from dlproxy.serve.pipelines.code import CHEAP_S, SEEN, TOO_LONG_S, Pace
from dlproxy.serve.pipelines.threads import SWITCH_S, Job, Threads
from dlproxy.testing import ManualClock


class Order:
    """What ran, in which order, on one thread that is held until `go`."""

    def __init__(self, most: int = 1) -> None:
        self.clock = ManualClock()
        self.threads = Threads(most, self.clock)
        self.ran: list[str] = []
        self.ended: dict[str, Any] = {}
        self.go = threading.Event()
        self.begun = threading.Event()
        self._all = asyncio.Event()

    def put(self, name: str, deadline_at: float = inf, *, wait: bool = False, takes_s: float = 0.0) -> Job:
        def work() -> str:
            self.begun.set()
            if wait:
                self.go.wait(10.0)
            self.clock.advance(takes_s)
            self.ran.append(name)
            return name

        job = Job(work, partial(self._done, name), asyncio.get_running_loop(), deadline_at)
        self.threads.put(job, deadline_at)
        return job

    def _done(self, name: str, result: Any) -> None:
        self.ended[name] = result
        self._all.set()

    async def until(self, count: int) -> None:
        while len(self.ended) < count:
            self._all.clear()
            await asyncio.wait_for(self._all.wait(), 10.0)


async def test_the_earliest_deadline_runs_first_and_what_is_late_or_cancelled_does_not() -> None:
    order = Order()
    order.put("held", wait=True)
    await asyncio.to_thread(order.begun.wait, 10.0)
    order.put("none")
    order.put("late", 3.0)
    order.put("second", 9.0)
    order.put("first", 8.0)
    order.put("gone", 7.0).cancelled = True
    order.clock.advance(5.0)
    order.go.set()
    await order.until(5)
    assert order.ran == ["held", "first", "second", "none"]
    assert order.ended == {"held": "held", "first": "first", "second": "second", "none": "none", "late": None}
    await order.threads.stop()
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("dlproxy-steps")]


async def test_a_job_would_wait_for_those_before_it_as_long_as_each_took() -> None:
    order = Order()
    order.put("held", wait=True)
    await asyncio.to_thread(order.begun.wait, 10.0)
    for rank in (1.0, 2.0, 3.0):
        order.put(f"at {rank}", rank, takes_s=0.25)
    assert order.threads.would_wait_s(9.0) == 0.0, "nothing is known of how long they take"
    order.go.set()
    await order.until(4)
    order.go.clear()
    order.begun.clear()
    order.put("held again", wait=True)
    await asyncio.to_thread(order.begun.wait, 10.0)
    for rank in (8.0, 9.0):
        order.put(f"at {rank}", rank)
    assert order.threads.waiting == 2
    assert [order.threads.would_wait_s(rank) for rank in (7.0, 8.5, 10.0)] == [0.0, 0.25, 0.5]
    order.go.set()
    await order.threads.stop()


async def test_the_interpreter_switches_quickly_while_there_are_threads() -> None:
    before_s, order = sys.getswitchinterval(), Order()
    order.put("a")
    assert sys.getswitchinterval() == pytest.approx(SWITCH_S, abs=1e-6)  # the interpreter cuts it to whole microseconds
    await order.until(1)
    await order.threads.stop()
    assert sys.getswitchinterval() == pytest.approx(before_s, abs=1e-6)


async def test_there_are_as_many_threads_as_there_is_work_for_and_no_more() -> None:
    order = Order(most=2)
    assert len(order.threads) == 0
    for name in "abc":
        order.put(name, wait=True)
    assert len(order.threads) == 2
    order.go.set()
    await order.until(3)
    await order.threads.stop()
    assert len(order.threads) == 0
    order.put("again")
    await order.until(4)
    await order.threads.stop()


def test_code_runs_on_the_loop_while_it_is_cheap() -> None:
    pace = Pace()
    for _ in range(SEEN):
        assert not pace.inline
        pace.took(CHEAP_S / 2, inline=False)
    assert pace.inline
    pace.took(TOO_LONG_S * 2, inline=False)
    assert pace.inline, "one slow run on a thread may be the machine's"
    pace.took(TOO_LONG_S * 2, inline=True)
    assert not pace.inline, "but on the loop it is one too many"
    for _ in range(SEEN):
        pace.took(CHEAP_S / 2, inline=False)
    for _ in range(SEEN // 2):
        assert pace.inline
        pace.took(CHEAP_S * 2, inline=True)
    assert not pace.inline

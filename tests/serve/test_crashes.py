"""The driver when its only instance crashes and another takes its place, and what it does with inputs that crash instances."""

import pytest
from msgspec.structs import replace

from dlproxy.message import DType, FailureKind, Request, Tensor, Ticket
from dlproxy.serve.quarantine import MOST, Quarantine, fingerprint
from tests.serve.rig import KNOBS, Reply, Rig, pass_time, turns

pytestmark = pytest.mark.looptime(idle_step=0.1, idle_timeout=1.0)
KILLER, HARMLESS = 13.0, 1.0


def crash(rig: Rig) -> None:
    """The only instance dies, of whatever it runs."""
    rig.driver.lose_instance(rig.fakes.pop().name, "killed", crashed=True)


def replace_it(rig: Rig, number: int) -> None:
    fake = rig.fake(f"m-{number}")
    rig.fakes.append(fake)
    rig.driver.add_instance(fake)


async def kill_twice(rig: Rig) -> Reply:
    killer = rig.send(KILLER)
    await turns()
    crash(rig)
    replace_it(rig, 1)
    crash(rig)
    return killer


async def test_requests_wait_for_the_replacement_but_the_model_is_not_ready() -> None:
    rig = Rig(service_s=None)
    ran = rig.send(1.0)
    await turns()
    crash(rig)
    assert not rig.driver.ready
    came_later = rig.send(2.0)
    await pass_time(1.0)
    replace_it(rig, 1)
    assert rig.driver.ready
    rig.fakes[0].finish()
    rig.fakes[0].finish()
    assert [ran.values, came_later.values] == [[2.0], [4.0]]
    assert rig.is_at_rest()


async def test_nobody_waits_for_longer_than_the_knob_says() -> None:
    rig = Rig(service_s=None)
    crash(rig)
    reply = await rig.send().wait()
    assert reply.kind is FailureKind.UNAVAILABLE
    assert 2.0 <= reply.at < 2.01
    assert (await rig.send().wait()).at == reply.at, "the outage is over for all"


async def test_stopping_fails_those_that_wait_for_a_replacement() -> None:
    rig = Rig(service_s=None, knobs=replace(KNOBS, outage_wait_s=100.0))
    crash(rig)
    reply = rig.send()
    await turns()
    await rig.driver.stop(drain_s=1.0)
    assert (reply.kind, reply.at) == (FailureKind.UNAVAILABLE, 1.0)


async def test_the_knob_holds_for_those_that_wait_already() -> None:
    rig = Rig(service_s=None)
    crash(rig)
    first, second = rig.send(), rig.send()
    await turns()
    rig.driver.change_knobs(replace(KNOBS, outage_wait_s=0.5))
    assert 0.5 <= (await first.wait()).at < 0.51
    assert second.kind is FailureKind.UNAVAILABLE
    assert rig.is_at_rest()


async def test_an_instance_scaled_away_is_not_waited_for_although_it_crashes_in_its_last_batch() -> None:
    rig = Rig(service_s=None)
    reply = rig.send()
    await turns()
    rig.driver.retire_instance("m-0")
    crash(rig)
    assert reply.kind is FailureKind.UNAVAILABLE


async def test_a_batch_due_at_the_moment_of_the_crash_does_not_go_to_the_dead_instance() -> None:
    """The wait to fill has ended when the driver tells of the crash, but its timer has not fired yet."""
    now = 0.0
    rig = Rig(knobs=replace(KNOBS, max_wait_s=1.0), clock=lambda: now)
    reply = rig.send()
    await turns()
    now = 1.0
    crash(rig)
    assert not reply.answered
    replace_it(rig, 1)
    assert (await reply.wait()).values == [2.0]


async def test_an_input_that_crashed_two_instances_is_refused_at_once_for_a_while() -> None:
    rig = Rig(service_s=None, quarantine_s=60.0)
    assert (await kill_twice(rig)).kind is FailureKind.MODEL_FAILED
    again = rig.send(KILLER)
    assert again.failure is not None, "refused before the lane hears of it"
    assert again.kind is FailureKind.MODEL_FAILED
    assert again.failure.message == (
        "instances crashed while they ran this very input, so it is refused for 60 s (quarantine_s)"
    )
    other = rig.send(HARMLESS)
    await turns()
    replace_it(rig, 2)
    rig.fakes[0].finish()
    assert other.values == [2 * HARMLESS]
    await pass_time(60.0)
    later = rig.send(KILLER)
    await turns()
    rig.fakes[0].finish()
    assert later.values == [2 * KILLER]
    assert rig.is_at_rest()


async def test_without_quarantine_it_may_crash_two_more() -> None:
    rig = Rig(service_s=None)
    await kill_twice(rig)
    again = rig.send(KILLER)
    await turns()
    assert not again.answered


def request_of(*values: int, name: str = "x", shape: tuple[int, ...] | None = None) -> Request:
    data = bytes(values)
    return Request(Ticket(1, 0.0), "m", [Tensor(name, DType.UINT8, shape or (1, len(values)), data)], (0,))


def test_inputs_are_told_apart_by_bytes_shape_and_name_but_not_by_who_sends_them() -> None:
    known = fingerprint(request_of(1, 2))
    assert fingerprint(request_of(1, 2)) == known
    for other in (request_of(1, 3), request_of(1, 2, shape=(2, 1)), request_of(1, 2, name="y"), request_of(1, 2, 0)):
        assert fingerprint(other) != known


def test_the_quarantine_is_bounded_and_forgets() -> None:
    now = 0.0
    quarantine = Quarantine(10.0, lambda: now)
    assert not quarantine
    for value in range(MOST + 1):
        quarantine.add(request_of(value % 256, value // 256))
    assert len(quarantine) == MOST
    assert quarantine.left_s(request_of(0, 0)) == 0.0, "the oldest went first"
    assert quarantine.left_s(request_of(1, 0)) == 10.0
    now = 4.0
    quarantine.add(request_of(1, 0))
    now = 10.0
    assert quarantine.left_s(request_of(2, 0)) == 0.0
    assert quarantine.left_s(request_of(1, 0)) == 4.0, "seen again, it stays for longer"
    assert len(quarantine) == 1
    now = 14.0
    assert quarantine.left_s(request_of(1, 0)) == 0.0
    assert not quarantine

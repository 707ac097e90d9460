"""Exemplars of a driver on virtual time: their phases are what their clients waited, whatever became of their batches, and what
is kept stays within its bounds."""

import gc
import random
import weakref
from collections.abc import Sequence, Sized

import pytest
from msgspec.structs import replace

from dlproxy.message import Failure, FailureKind, Request, Ticket
from dlproxy.policy.why import causes
from dlproxy.telemetry.exemplars import (
    MOST_FAILED,
    MOST_GONE,
    MOST_NOTED,
    MOST_RUNS,
    MOST_SAMPLES,
    SLOWEST,
    WINDOW_S,
    WINDOWS,
    Exemplars,
    ExemplarStore,
)
from dlproxy.telemetry.journal import MOST_NOTES, Journal
from dlproxy.telemetry.stats import AnsweredBatch, ModelStats
from tests.serve.rig import KNOBS, Reply, Rig, turns

pytestmark = pytest.mark.looptime(idle_step=0.1, idle_timeout=1.0)


def watched(rig: Rig) -> Exemplars:
    store = ExemplarStore(Journal(rig.now))
    exemplars = Exemplars(store, "m", "1", rig.stats, running=rig.driver.running)
    store.add(exemplars)
    return exemplars


async def ended(replies: Sequence[Reply]) -> None:
    for reply in replies:
        await reply.wait()
    await turns()


@pytest.mark.parametrize("seed", range(12))
async def test_phases_add_up_to_what_the_client_waited(seed: int) -> None:
    """With batches that fail and run again, instances that are lost, hedges, deadlines and clients that leave."""
    draw = random.Random(seed)
    knobs = replace(KNOBS, max_batch=draw.choice((1, 4)), hedge=seed % 2 == 0, retry_budget=1.0)
    rig = Rig(instances=3, service_s=draw.uniform(0.005, 0.05), knobs=knobs)
    exemplars = watched(rig)
    replies = []
    for _ in range(30):
        timeout_s = draw.choice((0.02, 10.0))
        replies.append(rig.send(rows=draw.randint(1, 3), timeout_s=timeout_s, promised=draw.random() < 0.5))
        what = draw.random()
        if what < 0.2:
            rig.fakes[draw.randrange(2)].fail_next("a bad disk")
        elif what < 0.25:
            rig.driver.lose_instance(f"m-{draw.randrange(2)}", "killed")
        elif what < 0.3:
            rig.driver.cancel(draw.choice(replies).request)
        await rig.rest(draw.uniform(0.0, 0.03))
    await ended(replies)
    found = {one.id: one for one in exemplars}
    assert len(found) >= SLOWEST
    for reply in replies:
        one = found.get(reply.request.ticket.id)
        if one is not None:
            assert one.seconds == pytest.approx(reply.at - reply.request.ticket.arrived_at, abs=1e-9)
            assert sum(one.case.phases.values()) == pytest.approx(one.seconds, abs=1e-9)
            assert all(seconds >= 0.0 for seconds in one.case.phases.values())
            assert (one.failure is None) == (reply.failure is None)
    failed = [reply for reply in replies if reply.failure is not None]
    assert {reply.request.ticket.id for reply in failed} <= found.keys(), "every failure is kept"


async def test_a_batch_that_failed_is_told_of_the_request_that_it_held_up() -> None:
    rig = Rig(instances=2, service_s=0.1, knobs=replace(KNOBS, max_batch=1, retry_budget=1.0))
    exemplars = watched(rig)
    rig.fakes[0].fail_next("a bad disk")
    await ended([rig.send()])
    (one,) = exemplars
    assert one.case.phases == pytest.approx({"earlier_run": 0.1, "batch": 0.0, "compute": 0.1, "split": 0.0})
    (earlier,) = one.case.earlier
    assert (earlier.instance, earlier.error) == ("m-0", "a bad disk")
    assert earlier.ended_at == pytest.approx(0.1)
    assert [cause.kind for cause in causes(one.case)] == ["retry"]


async def test_what_is_known_only_afterwards_explains_what_was_kept_before() -> None:
    rig = Rig(instances=1, service_s=0.01, knobs=replace(KNOBS, max_batch=1))
    exemplars = watched(rig)
    for _ in range(20):
        await ended([rig.send()])
    rig.fakes[0]._service_s = lambda rows: 0.5
    await ended([rig.send()])
    assert [cause.kind for cause in causes(max(exemplars, key=lambda one: one.seconds).case)] == ["compute"]
    exemplars._store.journal.add_late("host", "other processes had the cores", began_at=rig.now() - 0.4)
    slow, *others = sorted(exemplars, key=lambda one: -one.seconds)
    assert [(cause.kind, cause.seconds) for cause in causes(slow.case)] == [
        ("busy_machine", pytest.approx(0.4)),
        ("compute", pytest.approx(0.09, abs=0.005)),
    ]
    assert not any(one.case.happenings for one in others), "they were answered before"


async def test_the_slowest_of_a_window_are_kept_and_the_window_ends() -> None:
    rig = Rig(instances=1, service_s=0.01, knobs=replace(KNOBS, max_batch=1))
    exemplars = watched(rig)
    for count in (20, 5):
        await ended([rig.send() for _ in range(count)])
        await rig.rest(11.0)
    slowest = sorted([one.seconds for one in exemplars if one.kept_as == "slow"], reverse=True)
    assert slowest == pytest.approx([0.2, 0.19, 0.18, 0.17, 0.16, 0.15, 0.14, 0.13, 0.05, 0.04, 0.03, 0.02, 0.01])


def test_what_is_kept_is_bounded() -> None:
    """After 200,000 requests of an hour, of which some failed and some were noted; a model has less where there are many."""
    now = 0.0
    journal = Journal(lambda: now)
    store, stats = ExemplarStore(journal), ModelStats()
    exemplars = Exemplars(store, "m", "1", stats, running=tuple)
    store.add(exemplars)
    draw, number, failure = random.Random(1), 0, Failure(FailureKind.QUEUE_FULL, "full")
    for size in [64] * 3200:
        now += 1.1
        requests = [Request(Ticket(number + each, now), "m", [], ()) for each in range(size)]
        number += size
        if draw.random() < 0.1:
            journal.note(requests[0].ticket.id, {"receive": 1.0})
        batch = AnsweredBatch(size, [draw.expovariate(100.0) for _ in requests], 0.01, 0.0, 0.01, 0.0)
        batch.dispatched_at, batch.requests = now, requests
        stats.batch_answered(batch)
        stats.settle()
        if draw.random() < 0.1:
            stats.lost(requests[0], failure, "queue_full", now)
    assert number > 200_000
    rings: list[Sized] = [exemplars.runs, exemplars.samples, exemplars.failures, exemplars.noted, exemplars.windows]
    assert [len(ring) for ring in rings] == [MOST_RUNS, MOST_SAMPLES, MOST_FAILED, MOST_NOTED, WINDOWS]
    assert all(len(window) <= SLOWEST for window in exemplars.windows)
    assert not journal.notes
    assert all(not (batch.requests or batch.queued_s) for batch in exemplars.runs if isinstance(batch, AnsweredBatch))
    for other in range(63):
        store.add(Exemplars(store, f"m{other}", "1", ModelStats(), running=tuple))
    for _ in range(MOST_SAMPLES):
        now += 11.0
        batch = AnsweredBatch(1, [0.01], 0.01, 0.0, 0.01, 0.0)
        batch.dispatched_at, batch.requests = now, requests[:1]
        stats.batch_answered(batch)
        stats.settle()
        stats.lost(requests[0], failure, "queue_full", now)
    assert len(exemplars.windows) == WINDOWS / 4
    assert len(exemplars.runs) <= MOST_RUNS / 4
    assert len(exemplars.failures) == MOST_FAILED / 4


def test_what_is_noted_of_requests_that_never_come_is_bounded() -> None:
    journal = Journal(lambda: 0.0)
    for number in range(3 * MOST_NOTES):
        journal.note(number, {"receive": 0.001})
    assert list(journal.notes) == list(range(2 * MOST_NOTES, 3 * MOST_NOTES))


async def test_of_failures_by_the_thousand_the_newest_are_kept_and_cost_little() -> None:
    rig = Rig(instances=1, service_s=0.01, knobs=replace(KNOBS, max_batch=1, max_queue_rows=1))
    exemplars = watched(rig)
    replies = [rig.send() for _ in range(1000)]
    await ended(replies)
    failed = [one for one in exemplars if one.kept_as == "failed"]
    assert len(failed) == MOST_FAILED
    assert {one.id for one in failed} == {reply.request.ticket.id for reply in replies[-MOST_FAILED:]}
    assert {causes(one.case)[0].kind for one in failed} == {"queue"}
    exemplars.forgive(replies[-1].request)
    assert replies[-1].request.ticket.id not in [one.id for one in exemplars]


async def test_a_version_that_is_gone_is_told_of_for_a_while_and_keeps_nothing_alive() -> None:
    rig = Rig(instances=1, service_s=0.01)
    exemplars, driver = watched(rig), weakref.ref(rig.driver)
    await ended([rig.send()])
    await rig.driver.stop(1.0)
    store = exemplars._store
    store.remove(exemplars)
    assert rig.stats.exemplars is None
    assert not rig.stats.observers
    del rig
    await turns()
    gc.collect()
    assert driver() is None
    assert [one.id for one in store] == [1]
    for others, known in ((MOST_GONE - 1, 1), (1, 0)):  # which go after it
        for _ in range(others):
            store.add(other := Exemplars(store, "n", "1", ModelStats(), running=tuple))
            store.remove(other)
        assert len(list(store)) == known


async def test_of_a_version_that_is_gone_nothing_is_known_after_ten_minutes() -> None:
    rig = Rig(instances=1, service_s=0.01)
    exemplars = watched(rig)
    await ended([rig.send()])
    store = exemplars._store
    store.remove(exemplars)
    await rig.rest(WINDOWS * WINDOW_S - 1.0)
    assert [one.id for one in store] == [1]
    await rig.rest(2.0)
    assert list(store) == []

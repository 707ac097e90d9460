"""Sequences that models keep themselves, in virtual time: whatever happens, none goes on with a state that is not its own."""

import asyncio
import random
from collections.abc import Sequence
from math import inf

import msgspec
import numpy as np
import pytest

from dlproxy.config import ModelConfig
from dlproxy.message import DType, FailureKind, InSequence, Request, Signature, Tensor, TensorSpec, Ticket
from dlproxy.policy.sequences_placement import SequencePlacement
from dlproxy.serve.residence import Residence, may_have_run, told_id
from dlproxy.serve.sequences import SequenceLayer, SequenceStore
from dlproxy.serve.states import StatePlan
from dlproxy.tensors import Array
from dlproxy.testing import FakeInstance
from tests.serve.rig import KNOBS, POISON, Reply, Rig, pass_time

pytestmark = pytest.mark.looptime(idle_step=0.1, idle_timeout=1.0, noop_cycles=4)

WHOLE = Signature(
    (TensorSpec("x", DType.FP32, (-1, 1)),),
    (TensorSpec("y", DType.FP32, (-1, 1)),),
    batched=True,
    platform="fake",
    told_sequences=True,
)
ROOM = 3
CONFIG = ModelConfig(path="m.py:M", sequences="direct", max_batch=ROOM, sequence_idle_s=5.0)


class Counting:
    """One object of the model. y: how many rows its sequence has had. `wrong`: what no sequence may meet."""

    def __init__(self, wrong: list[str]) -> None:
        self.signature = WHOLE
        self._wrong = wrong
        self._slots: dict[int, tuple[int | str, float]] = {}

    def run(self, inputs: Sequence[Array], sequences: Sequence[InSequence] = ()) -> list[Array]:
        rows = []
        for of in sequences:
            owner, count = self._slots.get(of.slot, ("", 0.0))
            if not of.start and owner != of.id:
                self._wrong.append(f"{of} finds the state of {owner!r}")
            if not 0 <= of.slot < ROOM:
                self._wrong.append(f"{of} has no slot")
            self._slots[of.slot] = (of.id, count := 1.0 if of.start else count + 1.0)
            rows.append([count])
        if (inputs[0] == POISON).any():
            raise ValueError("bad index")
        return [np.array(rows, np.float32)]


class Version:
    def __init__(self, store: SequenceStore, wrong: list[str]) -> None:
        self.rig = Rig(signature=WHOLE, knobs=KNOBS, instances=0)
        self.residence = Residence(self.rig.driver, SequencePlacement(ROOM))
        self.layer = SequenceLayer(
            self.rig.driver, StatePlan("m", CONFIG, WHOLE), "m", CONFIG, self.rig.stats, store, self.residence
        )
        self.wrong = wrong
        self.names: list[str] = []
        self._lives = 0

    def add(self) -> None:
        self.names.append(f"m-{self._lives}")
        self._lives += 1
        self.residence.add_instance(FakeInstance(self.names[-1], Counting(self.wrong), service_s=lambda rows: 0.01))


class Site:
    def __init__(self, *, versions: int = 1, instances: int = 1) -> None:
        self.store = SequenceStore("m", asyncio.get_running_loop().time)
        self.wrong: list[str] = []
        self.versions = [Version(self.store, self.wrong) for _ in range(versions)]
        for version in self.versions:
            for _ in range(instances):
                version.add()
        self._numbers = 0

    def send(
        self, key: int, *, start: bool = False, end: bool = False, x: float = 1.0, timeout_s: float = inf, version: int = 0
    ) -> Reply:
        self._numbers += 1
        now = self.store.clock()
        ticket = Ticket(self._numbers, now, now + timeout_s)
        request = Request(ticket, "m", [Tensor("x", DType.FP32, (1, 1), np.full((1, 1), x, np.float32).tobytes())], (0,))
        request.sequence = InSequence(key, start, end)
        reply = Reply(request)
        self.versions[version].layer.submit(request, reply)
        return reply

    async def ask(self, key: int, **more: bool) -> float:
        return (await self.send(key, **more).wait()).values[0]


async def test_an_idle_sequence_leaves_its_place() -> None:
    site = Site()
    for key in range(1, ROOM + 1):
        await site.ask(key, start=True)
    full = site.send(9, start=True)
    assert full.kind is FailureKind.QUEUE_FULL
    await pass_time(6.0)
    assert [await site.ask(key, start=True) for key in range(11, 11 + ROOM)] == [1.0] * ROOM
    assert site.versions[0].layer.counts.expired == ROOM
    assert len(site.versions[0].residence.places) == ROOM


async def test_where_no_instance_is_up_that_is_said() -> None:
    site = Site(instances=0)
    failure = site.send(1, start=True).failure
    assert failure is not None
    assert (failure.kind, failure.message) == (FailureKind.UNAVAILABLE, "model 'm' has no live instance")
    assert not len(site.store.policy)


async def test_one_that_could_not_begin_anew_elsewhere_is_over_if_its_instance_has_gone() -> None:
    site = Site(versions=2)
    await site.ask(1, start=True)
    other = site.send(2, start=True, version=1)
    anew = site.send(1, start=True, version=1, timeout_s=0.005)
    site.versions[0].residence.lose_instance("m-0", "killed")
    site.versions[0].add()
    assert (await anew.wait()).kind is FailureKind.DEADLINE
    assert site.send(1).kind is FailureKind.INVALID_ARGUMENT
    assert (await other.wait()).values == [1.0]


@pytest.mark.parametrize("seed", range(6))
async def test_no_sequence_goes_on_with_a_state_that_is_not_its_own(seed: int) -> None:
    draws, site = random.Random(seed), Site(versions=2, instances=2)
    answered = broken = 0

    async def client(key: int) -> None:
        nonlocal answered, broken
        count: float | None = None  # of the sequence, while it lives
        for _ in range(60):
            start, end, version = draws.random() < 0.2, draws.random() < 0.1, draws.randrange(2)
            x, timeout_s = POISON if draws.random() < 0.04 else 1.0, 0.012 if draws.random() < 0.1 else inf
            reply = site.send(key, start=start, end=end, x=x, timeout_s=timeout_s, version=version)
            if draws.random() < 0.08:
                await pass_time(draws.random() * 0.015)
                if not reply.answered:
                    site.versions[version].layer.cancel(reply.request)
            await reply.wait()
            if reply.failure is None:
                count = 1.0 if start else None if count is None else count + 1.0
                assert reply.values == [count], f"sequence {key}"
                answered += 1
                count = None if end else count
            elif may_have_run(reply.failure):
                count, broken = None, broken + 1
            await pass_time(draws.random() * 0.02)

    async def chaos() -> None:
        for _ in range(20):
            await pass_time(draws.random() * 0.1)
            version = draws.choice(site.versions)
            name = version.names.pop(draws.randrange(len(version.names)))
            leave = version.residence.retire_instance if draws.random() < 0.5 else version.residence.lose_instance
            leave(name, "chaos")
            version.add()

    await asyncio.gather(chaos(), *(client(key) for key in range(1, 11)))
    await pass_time(0.1)  # batches whose clients have left
    assert not site.wrong
    assert answered > 100 < broken
    for version in site.versions:
        assert (
            len(version.residence.places)
            == version.layer.active()
            == sum(one.home is version.layer for one in site.store.policy)
        )
        assert version.rig.is_at_rest()


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (("", "", 1), ("", "t", 1)),
        (("a", "", 1), ("", "a", 1)),
        (("", "t", "1"), ("", "t", 1)),
        (("", "", "('', 't', 1)"), ("", "t", 1)),
    ],
)
def test_no_two_sequences_have_one_id(one: tuple[str, str, int | str], other: tuple[str, str, int | str]) -> None:
    assert told_id(*one) != told_id(*other)
    assert (told_id("", "", 5), told_id("", "", "s")) == (5, "s")


def test_such_a_sequence_stays_with_its_version() -> None:
    mine = StatePlan("m", CONFIG, WHOLE)
    assert mine.difference(StatePlan("m", CONFIG, WHOLE)) == "the model keeps their state itself"
    assert mine.signature == msgspec.structs.replace(WHOLE, sequences="direct")

"""Sequences before real lanes with fake instances, in virtual time: what the model gets, in which order, and what moves on."""

import asyncio
import gc
from collections.abc import Sequence
from math import inf
from typing import Any

import msgspec
import numpy as np
import pytest

from dlproxy.config import ConfigError, ModelConfig
from dlproxy.message import DType, Failure, FailureKind, InSequence, Principal, Request, Signature, Tensor, TensorSpec, Ticket
from dlproxy.serve.sequences import SequenceLayer, SequenceStore
from dlproxy.serve.states import State, StatePlan
from dlproxy.tensors import Array, to_array, to_bytes
from tests.serve.rig import KNOBS, Reply, Rig, pass_time, turns

pytestmark = pytest.mark.looptime(idle_step=0.1, idle_timeout=1.0, noop_cycles=4)

WHOLE = Signature(
    (
        TensorSpec("START", DType.INT32, (-1, 1)),
        TensorSpec("x", DType.FP32, (-1, 1)),
        TensorSpec("sum", DType.FP32, (2, -1, 1), rows=1),
        TensorSpec("ID", DType.UINT32, (-1, 1)),
    ),
    (TensorSpec("sumN", DType.FP32, (-1, -1, 1), rows=1), TensorSpec("y", DType.FP32, (-1, 1))),
    batched=True,
    platform="fake",
)
POISON = 666.0
CONFIG = ModelConfig(
    path="m.onnx",
    sequences="oldest",
    state={"sum": "sumN"},
    sequence_controls={"start": "START", "id": "ID"},
    max_sequences=100,
)


class Version:
    """y: the sum of all x of the sequence, times `factor`. `seen`: what the model got for START and ID."""

    def __init__(self, store: SequenceStore, *, factor: float = 1.0, whole: Signature = WHOLE, service_s: float = 0.01) -> None:
        self.seen: list[tuple[int, int]] = []
        self.factor = factor
        self.rig = Rig(signature=whole, function=self.run, service_s=service_s, knobs=KNOBS)
        self.layer = SequenceLayer(self.rig.driver, StatePlan("m", CONFIG, whole), "m", CONFIG, self.rig.stats, store)

    def run(self, inputs: Sequence[Array]) -> list[Array]:
        start, x, total, ids = (np.asarray(array, np.float32) for array in inputs)
        self.seen += zip(start[:, 0].astype(int).tolist(), ids[:, 0].astype(int).tolist(), strict=True)
        if (x == POISON).any():
            raise ValueError("bad index")
        total = total + x[None]
        return [total, total[0] * np.float32(self.factor)]


class Site:
    """Versions of one model, and clients that ask `front`."""

    def __init__(self, **settings: Any) -> None:
        self.store = SequenceStore("m", asyncio.get_running_loop().time)
        self.version = Version(self.store, **settings)
        self.front = self.version.layer
        self.numbers = 0

    def send(
        self,
        value: float = 1.0,
        key: int | str = 5,
        *,
        start: bool = False,
        end: bool = False,
        rows: int = 1,
        timeout_s: float = inf,
        who: str = "",
        tenant: str = "",
    ) -> Reply:
        self.numbers += 1
        array = np.full((rows, 1), value, np.float32)
        now = self.store.clock()
        ticket = Ticket(self.numbers, now, now + timeout_s, rows, tenant=tenant)
        request = Request(ticket, "m", [Tensor("x", DType.FP32, array.shape, to_bytes(DType.FP32, array))], (0,))
        request.sequence = InSequence(key, start, end)
        request.principal = Principal(who)
        reply = Reply(request)
        self.front.submit(request, reply)
        return reply

    async def ask(self, *args: Any, **kwargs: Any) -> float:
        reply = await self.send(*args, **kwargs).wait()
        return reply.values[0]


async def test_each_request_gets_the_state_that_the_one_before_it_left() -> None:
    site = Site()
    assert [await site.ask(1.0, start=True), await site.ask(2.0), await site.ask(3.0, end=True)] == [1.0, 3.0, 6.0]
    assert site.version.seen == [(1, 5), (0, 5), (0, 5)]
    assert not site.store.policy
    assert site.version.rig.is_at_rest()


async def test_sequences_share_batches_wherever_their_rows_stand() -> None:
    site = Site()
    for value in (1.0, 2.0):
        replies = [site.send(value * key, key, start=value == 1.0) for key in range(1, 33)]
        await asyncio.gather(*(reply.wait() for reply in replies))
    assert [reply.values[0] for reply in replies] == [3.0 * key for key in range(1, 33)]
    assert [len(batch) for batch in site.version.rig.batches] == [32, 32]


async def test_requests_that_come_together_are_run_in_their_order() -> None:
    site = Site()
    replies = [site.send(value, start=value == 1.0) for value in (1.0, 2.0, 3.0, 4.0)]
    await replies[-1].wait()
    assert [reply.values[0] for reply in replies] == [1.0, 3.0, 6.0, 10.0]
    assert site.version.rig.batches == [[1], [2], [3], [4]]


async def test_a_start_begins_anew_once_those_before_it_are_answered() -> None:
    site = Site()
    replies = [site.send(1.0, start=True), site.send(2.0), site.send(10.0, start=True), site.send(1.0)]
    await replies[-1].wait()
    assert [reply.values[0] for reply in replies] == [1.0, 3.0, 10.0, 11.0]
    assert (site.front.counts.started, site.front.counts.restarted) == (2, 1)


async def test_ids_are_each_clients_own() -> None:
    site = Site()
    await site.ask(1.0, start=True)
    await site.ask(2.0, start=True, who="ann")
    await site.ask(4.0, start=True, tenant="t")
    assert [await site.ask(0.0), await site.ask(0.0, who="ann"), await site.ask(0.0, tenant="t")] == [1.0, 2.0, 4.0]
    assert site.send(who="bob").kind is FailureKind.INVALID_ARGUMENT


@pytest.mark.parametrize(
    ("key", "said"),
    [
        (0, "must specify a non-zero or non-empty correlation ID"),
        ("", "must specify a non-zero or non-empty correlation ID"),
        ("s", "takes numbers ('ID' is UINT32)"),
        (2**32, "does not fit 'ID' of model 'm', which is UINT32"),
    ],
)
async def test_what_names_no_sequence_is_refused(key: int | str, said: str) -> None:
    site = Site()
    reply = site.send(key=key, start=True)
    assert reply.failure is not None
    assert said in reply.failure.message
    assert site.version.rig.stats.failures[FailureKind.INVALID_ARGUMENT] == site.front.counts.refused == 1


async def test_rows_of_a_sequence_are_as_many_as_at_its_start() -> None:
    site = Site()
    await site.ask(1.0, start=True, rows=3)
    reply = await site.send(2.0, rows=3).wait()
    assert reply.values == [3.0, 3.0, 3.0]
    message = "sequence 5 of model 'm' has 3 rows, but this request has 2"
    assert site.send(rows=2).failure == Failure(FailureKind.INVALID_ARGUMENT, message)
    assert (await site.send(0.0, rows=3).wait()).values == [3.0, 3.0, 3.0]


async def test_a_failed_request_changes_nothing_and_those_behind_it_are_not_run() -> None:
    site = Site()
    await site.ask(1.0, start=True)
    replies = [site.send(value) for value in (POISON, 2.0, 3.0)]
    for reply in replies:
        await reply.wait()
    assert [reply.kind for reply in replies] == [FailureKind.MODEL_FAILED] * 3
    assert "not run, as an earlier request of sequence 5 was not answered" in str(replies[2].failure)
    assert await site.ask(2.0) == 3.0
    assert site.version.rig.stats.failures[FailureKind.MODEL_FAILED] == 3


async def test_who_shares_a_batch_with_one_that_fails_keeps_the_right_state() -> None:
    site = Site()
    for key in (1, 2, 3):
        await site.ask(float(key), key, start=True)
    replies = [site.send(POISON if key == 2 else 10.0, key) for key in (1, 2, 3)]
    for reply in replies:
        await reply.wait()
    assert [reply.kind for reply in replies] == [None, FailureKind.MODEL_FAILED, None]
    assert [await site.ask(0.0, key) for key in (1, 2, 3)] == [11.0, 2.0, 13.0]


@pytest.mark.parametrize("place", [0, 1, 2])
async def test_who_leaves_takes_those_behind_along_and_no_others(place: int) -> None:
    site = Site()
    await site.ask(1.0, start=True)
    replies = [site.send(value) for value in (2.0, 3.0, 4.0)]
    await turns()
    site.front.cancel(replies[place].request)
    site.front.cancel(replies[place].request)
    for reply in replies:
        await reply.wait()
    assert [reply.kind for reply in replies] == [None] * place + [FailureKind.CANCELLED] * (3 - place)
    assert await site.ask(0.0) == sum([1.0, 2.0, 3.0, 4.0][: place + 1])
    assert site.version.rig.is_at_rest()
    assert not site.store.under_way


async def test_who_leaves_when_it_is_about_to_be_run() -> None:
    site = Site()
    first = site.send(1.0, start=True)
    second = site.send(2.0)
    first.completed = lambda response: site.front.cancel(second.request)  # type: ignore[method-assign]
    await second.wait()
    assert second.kind is FailureKind.CANCELLED
    assert await site.ask(5.0) == 6.0


async def test_a_client_that_has_gone_keeps_no_other_from_hearing() -> None:
    site = Site()
    await site.ask(1.0, start=True)
    replies = [site.send(value) for value in (POISON, 2.0)]

    def gone(failure: Failure) -> None:
        raise OSError("the socket has gone")

    replies[0].failed = gone  # type: ignore[method-assign]
    await replies[1].wait()
    assert replies[1].kind is FailureKind.MODEL_FAILED
    assert await site.ask(2.0) == 3.0


async def test_deadlines_hold_while_a_request_waits() -> None:
    site = Site(service_s=1.0)
    first = site.send(1.0, start=True)
    second = site.send(2.0, timeout_s=0.5)
    await second.wait()
    assert (second.kind, round(second.at, 1)) == (FailureKind.DEADLINE, 0.5)
    assert (await first.wait()).values == [1.0]


async def test_idle_ones_are_forgotten_and_leave_nothing() -> None:
    site = Site()
    replies = [site.send(1.0, key, start=True) for key in range(1, 101)]
    await asyncio.gather(*(reply.wait() for reply in replies))
    assert site.front.state()["active"] == 100
    full = site.send(1.0, 101, start=True)
    assert full.failure is not None
    assert (full.kind, round(full.failure.retry_after_s or 0.0)) == (FailureKind.QUEUE_FULL, 60)
    await pass_time(61.0)
    assert not site.store.policy
    assert site.front.counts.expired == 100
    assert site.store._timer is None
    gc.collect()
    assert not [one for one in gc.get_objects() if isinstance(one, State) and one is not site.front.plan._single]
    assert site.send(1.0, 7).kind is FailureKind.INVALID_ARGUMENT


async def test_memory_of_many_goes_back_to_the_system(monkeypatch: pytest.MonkeyPatch) -> None:
    given_back = asyncio.Event()
    monkeypatch.setattr("dlproxy.serve.sequences.MANY", 50)
    monkeypatch.setattr("dlproxy.serve.sequences.give_back", lambda: given_back.set())
    site = Site()
    monkeypatch.setattr(asyncio.get_running_loop(), "run_in_executor", lambda pool, call: call())
    await asyncio.gather(*(site.ask(1.0, key, start=True) for key in range(1, 61)))
    assert not given_back.is_set()
    await pass_time(61.0)
    assert given_back.is_set()


async def test_a_sequence_ends_when_the_model_gives_a_state_that_it_would_not_take() -> None:
    site = Site()
    await site.ask(1.0, start=True)
    run = site.version.run
    site.version.rig.runtime._function = lambda inputs: [np.zeros((3, 1, 1), np.float32), run(inputs)[1]]
    replies = [site.send(2.0), site.send(3.0)]
    assert (await replies[0].wait()).values == [3.0]
    await replies[1].wait()
    assert replies[1].kind is FailureKind.UNAVAILABLE
    reply = site.send(3.0)
    assert reply.failure is not None
    assert "has ended, start it again: the model gave 'sumN' of shape [3, 1, 1]" in reply.failure.message
    assert site.front.counts.broken == 1


async def test_a_lost_instance_fails_its_requests_and_no_sequence() -> None:
    site = Site()
    for key in (1, 2):
        await site.ask(1.0, key, start=True)
    replies = [site.send(2.0, key) for key in (1, 2)]
    await turns()
    rig = site.version.rig
    rig.driver.lose_instance("m-0", "killed", crashed=True)
    for reply in replies:
        await reply.wait()
    assert {reply.kind for reply in replies} == {FailureKind.UNAVAILABLE}
    rig.driver.add_instance(rig.fake("m-1"))
    assert [await site.ask(2.0, key) for key in (1, 2)] == [3.0, 3.0]


# Versions


async def test_another_version_goes_on_with_what_is_idle_what_runs_and_what_waits() -> None:
    site = Site()
    old, new = site.version, Version(site.store, factor=100.0)
    await site.ask(1.0, 1, start=True)
    site.front = new.layer
    assert await site.ask(1.0, 1) == 2.0  # for as long as its version is there
    site.front = old.layer
    replies = [site.send(1.0, 2, start=True), site.send(2.0, 2), site.send(7.0, 3, start=True)]
    site.front = new.layer
    old.layer.give_way(new.layer, "replaced")
    await old.layer.drain(5.0, "replaced")
    for reply in replies:
        await reply.wait()
    assert [reply.values[0] for reply in replies] == [1.0, 300.0, 7.0]
    assert [await site.ask(0.0, key) for key in (1, 2, 3)] == [200.0, 300.0, 700.0]
    assert (old.layer.state()["active"], new.layer.state()["active"], old.layer.counts.broken) == (0, 3, 0)


async def test_where_the_state_is_another_sequences_end_and_say_why() -> None:
    site = Site()
    wide = msgspec.structs.replace(
        WHOLE,
        inputs=tuple(
            msgspec.structs.replace(spec, shape=(2, -1, 1), dtype=DType.FP64) if spec.name == "sum" else spec
            for spec in WHOLE.inputs
        ),
        outputs=(msgspec.structs.replace(WHOLE.outputs[0], dtype=DType.FP64), WHOLE.outputs[1]),
    )
    new = Version(site.store, whole=wide)
    await site.ask(1.0, start=True)
    replies = [site.send(1.0), site.send(2.0), site.send(3.0, start=True)]
    await turns()
    site.front = new.layer
    site.version.layer.give_way(new.layer, "version 1 was replaced")
    for reply in replies:
        await reply.wait()
    assert replies[0].values == [2.0]
    assert [reply.kind for reply in replies[1:]] == [FailureKind.UNAVAILABLE] * 2
    reply = site.send(1.0)
    assert reply.failure is not None
    assert reply.failure.message.endswith(
        "version 1 was replaced, and its state 'sum' is FP64[2,-1,1] where 'sum' was FP32[2,-1,1]"
    )


async def test_a_drain_answers_what_waits_and_then_ends_what_is_left() -> None:
    site = Site()
    await site.ask(1.0, 1, start=True)
    replies = [site.send(1.0, 2, start=True), site.send(2.0, 2)]
    assert await site.front.drain(5.0, "the model goes") == pytest.approx(4.98)
    assert [reply.values[0] for reply in replies] == [1.0, 3.0]
    assert not list(site.store.policy)
    hanging = Site(service_s=100.0)
    late = [hanging.send(1.0, 2, start=True), hanging.send(2.0, 2)]
    await hanging.front.drain(0.5, "the model goes")
    assert [reply.kind for reply in late] == [None, FailureKind.UNAVAILABLE]


# What the model is made of


def plan(whole: Signature = WHOLE, **settings: Any) -> StatePlan:
    return StatePlan("m", msgspec.structs.replace(CONFIG, **settings), whole)


def test_clients_see_what_is_left() -> None:
    seen = plan().signature
    assert [spec.name for spec in (*seen.inputs, *seen.outputs)] == ["x", "y"]
    assert seen.sequences == "oldest"


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"state": {}}, "which inputs are the state of model 'm'?"),
        ({"state": {"sun": "sumN"}}, "the model has no input 'sun'; did you mean 'sum'?"),
        ({"state": {"sum": "sumM"}}, "the model has no output 'sumM'; did you mean 'sumN'?"),
        ({"state": {"sum": "y"}}, "'sum' is FP32[2,-1,1], but 'y', its next value, is FP32[-1,1]"),
        ({"state": {"sum": "sumN", "x": "y"}}, "it leaves no inputs of model 'm' to clients"),
        ({"sequence_controls": {"begin": "START"}}, "'begin' is none"),
        ({"sequence_controls": {"start": "sum"}}, "is named twice"),
        ({"initial_state": {"x": "FP32[1,1]"}}, "'x' is not among the inputs of `state`"),
        ({"initial_state": {"sum": "FP32[3,1,1]"}}, "the model takes FP32[2,-1,1]"),
        ({"initial_state": {"sum": "FP32"}}, "write it like"),
    ],
)
def test_what_is_no_state_of_the_model_is_refused(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        plan(**settings)
    assert said in str(caught.value)


def growing() -> Signature:
    """A cache that is longer by one after each request, as of a transformer."""
    past = TensorSpec("past", DType.FP16, (-1, 2, -1, 4))
    return Signature(
        (TensorSpec("x", DType.INT64, (-1, 1)), past),
        (TensorSpec("y", DType.FP32, (-1, 1)), msgspec.structs.replace(past, name="present")),
        batched=True,
        platform="fake",
    )


def test_a_state_that_grows_says_with_what_it_begins_and_batches_with_its_like() -> None:
    settings: dict[str, Any] = {"state": {"past": "present"}, "sequence_controls": {}}
    with pytest.raises(ConfigError, match=r'initial_state = \{ past = "FP16\[1,2,0,4\]" \}'):
        plan(growing(), **settings)
    grows = plan(growing(), initial_state={"past": "FP16[1,2,0,4]"}, **settings)
    first = grows.begin(3)
    assert (first.tensors[0].shape, bytes(first.tensors[0].data)) == ((3, 2, 0, 4), b"")
    longer = grows.state_of([Tensor("present", DType.FP16, (3, 2, 1, 4), bytes(48))], 3)
    assert not isinstance(longer, str)
    assert grows.key(first, InSequence(5)) != grows.key(longer, InSequence(5))
    assert "gave 'present' of shape [2, 2, 1, 4]" in str(grows.state_of([Tensor("present", DType.FP16, (2, 2, 1, 4), b"")], 3))


@pytest.mark.parametrize(
    ("dtype", "sequence_id", "value"), [(DType.BYTES, "séance", "séance".encode()), (DType.BYTES, 7, b"7"), (DType.INT64, 7, 7)]
)
def test_controls_are_filled_in_the_models_own_types(dtype: DType, sequence_id: int | str, value: Any) -> None:
    controls = [
        TensorSpec("READY", DType.BF16, (1,), rows=None),
        TensorSpec("END", DType.BOOL, (-1, 1)),
        TensorSpec("ID", dtype, (-1,)),
    ]
    whole = msgspec.structs.replace(WHOLE, inputs=(*WHOLE.inputs[1:3], *controls))
    filled = plan(whole, sequence_controls={"ready": "READY", "end": "END", "id": "ID"})
    state, of = filled.begin(2), InSequence(sequence_id, end=True)
    x = Tensor("x", DType.FP32, (2, 1), bytes(8))
    _, total, ready, end, ids = filled.inputs([x], of, state)
    assert total.shape == (2, 2, 1)
    assert bytes(ready.data) == b"\x80\x3f"  # 1 in BF16
    assert to_array(end.dtype, end.shape, end.data).tolist() == [[True], [True]]
    assert to_array(ids.dtype, ids.shape, ids.data).tolist() == [value, value]
    assert filled.key(state, of) == (1,)

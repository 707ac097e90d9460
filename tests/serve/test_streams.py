"""Answers in parts through driver and lane: who reads sets the pace, who leaves is not waited for, and instances get free."""

import asyncio
from collections.abc import Callable, Iterator, Sequence

import msgspec
import numpy as np
import pytest

from dlproxy.instance.batch import BatchResult, Steps
from dlproxy.message import DType, Failure, FailureKind, Request, Rest, Signature, Tensor, TensorSpec
from dlproxy.policy.arbiter import Arbiter
from dlproxy.serve.turns import Turns
from dlproxy.tensors import to_array
from dlproxy.testing import FakeRuntime
from tests.serve.rig import KNOBS, SIGNATURE, Array, Reply, Rig, pass_time, turns

pytestmark = pytest.mark.looptime(idle_step=0.1, idle_timeout=1.0)  # whoever waits for ever fails, and does not hang

STREAMS = msgspec.structs.replace(SIGNATURE, streams=True)


class Model:
    """Part k is k times the inputs, for as many parts as the largest of them says. `wrong`: what part 2 is instead."""

    def __init__(self, wrong: Callable[[Array], Array] | None = None) -> None:
        self.parts = 0
        self.closed = 0
        self._wrong = wrong

    def __call__(self, inputs: Sequence[Array]) -> Iterator[list[Array]]:
        rows = np.asarray(inputs[0], np.float32)
        try:
            for number in range(1, int(rows.max()) + 1):
                self.parts += 1
                yield [self._wrong(rows) if self._wrong and number == 2 else rows * np.float32(number)]
        except GeneratorExit:
            self.closed += 1
            raise


class Stepper:
    """An Instance on the loop: computes a part when it is asked for, and tells it on the loop's next turn."""

    inline = False
    capacity = 1

    def __init__(self, name: str, runtime: FakeRuntime) -> None:
        self.name = name
        self.batches: list[list[int]] = []
        self.runtime = runtime

    def run(self, requests: Sequence[Request], done: Callable[[BatchResult], None]) -> None:
        self.batches.append([request.ticket.id for request in requests])
        StepperRest(Steps(self.runtime, requests)).ask(done)

    async def stop(self) -> None: ...


class StepperRest:
    def __init__(self, steps: Steps) -> None:
        self._steps = steps

    def ask(self, done: Callable[[BatchResult], None]) -> None:
        asyncio.get_running_loop().call_soon(self._tell, done)

    def stop(self) -> None:
        self._steps.close()

    def _tell(self, done: Callable[[BatchResult], None]) -> None:
        result = BatchResult([], 0.0, 0.0) if self._steps.ended else self._steps.next()
        if not self._steps.ended:
            result.rest = self
        done(result)


class Reader:
    """A PartTo that keeps what came. `greedy`: asks for the next part at once."""

    def __init__(self, reply: Reply, *, greedy: bool = False) -> None:
        assert reply.response is not None, reply.failure
        assert reply.response.rest is not None
        self.rest: Rest = reply.response.rest
        self.came: list[float | str | FailureKind] = []
        self.failure: Failure | None = None
        self._greedy = greedy

    def ask(self) -> "Reader":
        self.rest.ask(self)
        return self

    def part(self, outputs: list[Tensor]) -> None:
        self.came.append(float(to_array(outputs[0].dtype, outputs[0].shape, outputs[0].data)[0, 0]))
        if self._greedy:
            self.ask()

    def ended(self) -> None:
        self.came.append("end")

    def failed(self, failure: Failure) -> None:
        self.failure = failure
        self.came.append(failure.kind)


class StreamRig(Rig):
    def __init__(self, model: Model | None = None, *, arbitrated: bool = False, signature: Signature = STREAMS) -> None:
        self.model = model or Model()
        knobs = msgspec.structs.replace(KNOBS, arbitrated=arbitrated)
        super().__init__(instances=0, function=self.model, signature=signature, knobs=knobs)
        self.stepper = Stepper("s-0", self.runtime)
        self.driver.add_instance(self.stepper)

    async def first_parts(self, *values: float) -> list[Reply]:
        """Of as many requests in one batch."""
        replies = [self.send(value) for value in values]
        for reply in replies:
            await reply.wait()
        return replies

    @property
    def broken(self) -> dict[FailureKind, int]:
        return {kind: times for kind, times in self.stats.broken_off.items() if times}

    @property
    def is_free(self) -> bool:
        return self.is_at_rest() and not self.driver._streams and not self.driver._flights


async def test_each_gets_its_rows_of_every_part_and_the_end_frees_the_instance() -> None:
    rig = StreamRig()
    one, two = await rig.first_parts(3.0, 2.0)
    assert (one.values, two.values) == ([3.0], [2.0])
    readers = [Reader(one, greedy=True).ask(), Reader(two, greedy=True).ask()]
    assert not rig.is_free
    await turns(20)
    assert [reader.came for reader in readers] == [[6.0, 9.0, "end"], [4.0, 6.0, "end"]]
    assert rig.is_free
    assert rig.stepper.batches == [[1, 2]]


async def test_nothing_is_computed_before_all_have_asked() -> None:
    rig = StreamRig()
    one, two = map(Reader, await rig.first_parts(5.0, 4.0))
    await turns(20)
    assert rig.model.parts == 1
    one.ask()
    await turns(20)
    assert (rig.model.parts, one.came) == (1, [])
    two.ask()
    await turns(20)
    assert (rig.model.parts, one.came, two.came) == (2, [10.0], [8.0])


async def test_who_leaves_is_not_waited_for() -> None:
    rig = StreamRig()
    one, two = map(Reader, await rig.first_parts(5.0, 4.0))
    one.ask()
    two.rest.stop()
    two.rest.stop()
    await turns(20)
    assert (one.came, two.came) == ([10.0], [])
    one.rest.stop()
    await turns(20)
    assert (rig.model.closed, rig.is_free) == (1, True)


async def test_who_leaves_while_it_waits_is_told_so_once() -> None:
    rig = StreamRig()
    one, two = map(Reader, await rig.first_parts(5.0, 4.0))
    one.ask().rest.stop()
    two.ask()
    two.rest.stop()  # the part is on its way
    await turns(20)
    assert (one.came, two.came) == ([FailureKind.CANCELLED], [FailureKind.CANCELLED])
    assert (rig.model.closed, rig.is_free) == (1, True)
    assert rig.broken == {}, "leaving is no failure"
    assert (await rig.send(1.0).wait()).values == [1.0], "the instance takes no more"


async def test_cancelling_stops_a_stream_too() -> None:
    rig = StreamRig()
    (one,) = await rig.first_parts(5.0)
    rig.driver.cancel(one.request)
    await turns(20)
    assert (rig.model.closed, rig.is_free) == (1, True)


async def test_a_batch_whose_clients_left_before_the_first_part_is_stopped() -> None:
    rig = StreamRig()
    one = rig.send(5.0)
    await turns(1)
    rig.driver.cancel(one.request)
    await turns(20)
    assert one.kind is FailureKind.CANCELLED
    assert (rig.model.closed, rig.is_free) == (1, True)


async def test_the_next_batch_waits_for_the_streams_end_and_an_answered_one_has_no_deadline() -> None:
    rig = StreamRig()
    promised = await rig.send(3.0, timeout_s=1.0, promised=True).wait()
    waiting = rig.send(1.0)
    reader = Reader(promised)
    await pass_time(5.0)
    assert not waiting.answered
    for _ in range(3):
        reader.ask()
        await turns(20)
    assert reader.came == [6.0, 9.0, "end"]
    assert waiting.values == [1.0]


async def test_errors_in_mid_stream_reach_everybody_and_are_logged_and_counted(caplog: pytest.LogCaptureFixture) -> None:
    def wrong(rows: Array) -> Array:
        raise ValueError("bad step")

    rig = StreamRig(Model(wrong))
    one, two = map(Reader, await rig.first_parts(5.0, 4.0))
    one.ask()
    two.ask()
    await turns(20)
    assert (one.came, two.came) == ([FailureKind.MODEL_FAILED], [FailureKind.MODEL_FAILED])
    assert "bad step" in caplog.text
    assert rig.broken == {FailureKind.MODEL_FAILED: 2}
    assert rig.is_free
    assert (await rig.send(1.0).wait()).values == [1.0]


async def test_a_part_that_cannot_be_cut_apart_ends_the_stream() -> None:
    rig = StreamRig(Model(lambda rows: rows[:1]))
    one, two = map(Reader, await rig.first_parts(5.0, 4.0))
    one.ask()
    two.ask()
    await turns(20)
    assert (one.came, two.came) == ([FailureKind.MODEL_FAILED], [FailureKind.MODEL_FAILED])
    assert one.failure is not None
    assert "for a batch of 2 rows" in one.failure.message
    assert (rig.model.closed, rig.is_free) == (1, True)


async def test_who_cannot_be_sent_a_part_is_told_so_and_the_others_read_on() -> None:
    class Text(Model):
        def __call__(self, inputs: Sequence[Array]) -> Iterator[list[Array]]:
            for last in (b"2", 2.0, b"2"):  # a number is no bytes
                yield [np.array([[b"1"], [last]], object)]

    bytes_out = msgspec.structs.replace(STREAMS, outputs=(TensorSpec("y", DType.BYTES, (-1, -1)),))
    rig = StreamRig(Text(), signature=bytes_out)
    readers = [Reader(reply, greedy=True).ask() for reply in await rig.first_parts(5.0, 4.0)]
    await turns(20)
    assert [reader.came for reader in readers] == [[1.0, 1.0, "end"], [FailureKind.MODEL_FAILED]]
    assert rig.broken == {FailureKind.MODEL_FAILED: 1}
    assert rig.is_free


async def test_a_first_part_that_cannot_be_cut_apart_is_run_again_request_by_request() -> None:
    class Summed(Model):
        def __call__(self, inputs: Sequence[Array]) -> Iterator[list[Array]]:
            try:
                yield [np.asarray(inputs[0], np.float32).sum(axis=0, keepdims=True)]
            except GeneratorExit:
                self.closed += 1
                raise

    rig = StreamRig(Summed())
    replies = [rig.send(5.0), rig.send(4.0)]
    await turns(20)
    Reader(replies[0]).rest.stop()
    await turns(20)
    assert [reply.values for reply in replies] == [[5.0], [4.0]]
    assert rig.model.closed == 2


async def test_a_reader_that_raises_is_one_that_has_left(caplog: pytest.LogCaptureFixture) -> None:
    class Broken(Reader):
        def part(self, outputs: list[Tensor]) -> None:
            raise OSError("its socket is broken")

    rig = StreamRig()
    one, two = await rig.first_parts(3.0, 2.0)
    Broken(one).ask()
    reader = Reader(two, greedy=True).ask()
    await turns(20)
    assert reader.came == [4.0, 6.0, "end"]
    assert "its socket is broken" in caplog.text
    assert rig.is_free


async def test_an_instance_that_is_lost_breaks_the_answer_off_for_all_who_read() -> None:
    rig = StreamRig()
    one, two = map(Reader, await rig.first_parts(5.0, 4.0))
    one.ask()
    rig.driver.lose_instance("s-0", "its process was killed by SIGKILL", crashed=True)
    assert one.came == [FailureKind.UNAVAILABLE]
    assert one.failure is not None
    assert one.failure.message == "the answer breaks off: its process was killed by SIGKILL"
    two.ask()
    assert two.came == [FailureKind.UNAVAILABLE]
    assert rig.broken == {FailureKind.UNAVAILABLE: 2}
    assert rig.is_free
    replacement = Stepper("s-1", rig.runtime)
    rig.driver.add_instance(replacement)
    assert (await rig.send(1.0).wait()).values == [1.0]
    assert replacement.batches == [[3]], "what was answered in part must not run again"


async def test_a_drain_waits_for_readers_but_not_for_ever() -> None:
    rig = StreamRig()
    reader = Reader((await rig.first_parts(3.0))[0])
    stopping = asyncio.ensure_future(rig.driver.stop(10.0))
    await turns(20)
    for _ in range(3):
        reader.ask()
        await turns(20)
    assert reader.came[-1] == "end"
    await stopping
    assert asyncio.get_running_loop().time() < 1.0, "waited although all was read"

    rig = StreamRig()
    (one,) = await rig.first_parts(3.0)
    rig.driver.retire_instance("s-0")
    began_at = asyncio.get_running_loop().time()
    await rig.driver.stop(10.0, "the server is shutting down")
    assert asyncio.get_running_loop().time() == pytest.approx(began_at + 10.0, abs=0.1)
    late = Reader(one).ask()
    assert late.failure is not None
    assert late.failure.message == "the answer breaks off: the server is shutting down"
    assert rig.model.closed == 1


async def test_the_latency_model_learns_nothing_from_readers() -> None:
    rig = StreamRig()
    for _ in range(5):
        (one,) = await rig.first_parts(2.0)
        await pass_time(3.0)
        Reader(one).rest.stop()
        await turns(20)
    assert rig.lane.model.mean(1) < 0.02


@pytest.mark.parametrize("end", ["read", "left", "lost"])
async def test_a_turn_ends_with_the_first_part_and_only_then(end: str, monkeypatch: pytest.MonkeyPatch) -> None:
    shared = Turns(Arbiter({"cores": 1.0}), asyncio.get_running_loop().time)
    released: list[int] = []
    release = shared.release
    monkeypatch.setattr(shared, "release", lambda lease, used_s: (released.append(lease), release(lease, used_s)))
    slow, other = StreamRig(arbitrated=True), StreamRig(arbitrated=True)
    for number, rig in enumerate((slow, other)):
        rig.driver._model = f"{number}"
        rig.driver.take_turns(shared, {"cores": 1.0})
    reply = slow.send(3.0)
    await turns(1)
    assert (shared.free, released) == ({"cores": 0.0}, [])
    await reply.wait()
    assert (shared.free, released) == ({"cores": 1.0}, [1])
    assert (await other.send(1.0).wait()).values == [1.0], "waits for another model's reader"
    reader = Reader(reply, greedy=True)
    {"read": reader.ask, "left": reader.rest.stop, "lost": lambda: slow.driver.lose_instance("s-0", "it died")}[end]()
    await turns(20)
    assert slow.is_free
    assert (shared.free, released) == ({"cores": 1.0}, [1, 2]), "later parts run without a turn"


async def test_parts_are_counted_by_their_place_with_the_time_between_them() -> None:
    rig = StreamRig()
    counts = rig.stats.streams
    assert counts is not None
    read, left, lost = map(Reader, await rig.first_parts(3.0, 3.0, 3.0))
    assert (counts.open, counts.parts) == (3, 3)
    await pass_time(2.0)
    for reader in (read, left, lost):
        reader.ask()
    await turns(5)
    assert (counts.parts, counts.between.count) == (6, 3)
    assert counts.between.total_s == pytest.approx(6.0, abs=0.1)
    left.rest.stop()
    left.rest.stop()
    assert counts.open == 2
    for _ in range(2):
        read.ask()
        lost.ask()
        await turns(5)
    assert [(place.sent, place.ended, place.left) for place in counts.places] == [(3, 0, 0), (3, 0, 0), (2, 0, 1), (0, 2, 0)]
    assert counts.open == 0
    reader = Reader((await rig.first_parts(3.0))[0])
    rig.driver.lose_instance("s-0", "it died")
    reader.rest.stop()
    assert (counts.open, counts.places[1].failed, counts.places[1].left) == (0, 1, 0)


async def test_a_stream_counts_as_one_answer() -> None:
    rig = StreamRig()
    (one,) = await rig.first_parts(3.0)
    Reader(one, greedy=True).ask()
    await turns(20)
    rig.stats.settle()
    assert (rig.stats.rows, rig.stats.batches, rig.stats.request.count) == (1, 1, 1)

"""Failed batches in the log: with the traceback of the model's code, wherever it ran, and never more than can be read."""

import gc
import logging
import weakref
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest

from dlproxy.instance.batch import BatchResult
from dlproxy.instance.inline import InlineInstance
from dlproxy.instance.process.instance import ProcessInstance
from dlproxy.instance.thread import ThreadInstance
from dlproxy.instance.tracebacks import as_text
from dlproxy.message import DType, Failure, FailureKind, Request, Signature, TensorSpec, Ticket
from dlproxy.serve.failure_log import BURST, IDS, PER_S, REPEAT_S, FailureLimiter, FailureLog, LeftOut
from dlproxy.testing import FakeRuntime
from tests.instance.process_models import RAISE, model_at, moody
from tests.instance.process_models import request as rows_of
from tests.instance.running import run
from tests.serve.rig import POISON, SIGNATURE, Array, Rig, double_unless_poisoned

LOGGER = "dlproxy.serve.failure_log"
NEW = LeftOut(0, 0)


@pytest.mark.parametrize(
    "story",
    [
        # the first of its kind, then the same again
        [(0.0, "a", NEW), (0.1, "a", None), (9.9, "a", None), (10.0, "a", LeftOut(2, 0)), (10.1, "a", None)],
        # forgotten counts start anew
        [(0.0, "a", NEW), (1.0, "a", None), (10.0, "a", LeftOut(1, 0)), (20.0, "a", NEW)],
        # different ones: a burst, then one a second
        [*((0.0, f"e{n}", NEW) for n in range(5)), (0.5, "e5", None), (0.9, "e6", None), (1.0, "e7", LeftOut(0, 2))],
        # both together: repeats cost nothing of the allowance
        [(0.0, "a", NEW), *((0.1, "a", None) for _ in range(100)), (0.2, "b", NEW), (0.3, "c", NEW), (0.3, "d", NEW)],
        # a flood of different ones when an old one comes again: it is counted as itself
        [
            (0.0, "a", NEW),
            *((9.99, f"e{n}", NEW) for n in range(5)),
            (10.0, "a", None),
            (11.0, "a", LeftOut(1, 0)),
        ],
        # at any time of a clock that may begin anywhere
        [(1e9, "a", NEW), (1e9 + 1, "b", NEW), (1e9 + 1, "a", None)],
        # what was remembered too long is counted among the others
        [(0.0, "a", NEW), (0.1, "a", None), (0.2, "a", None), (30.0, "b", LeftOut(0, 2)), (30.1, "c", NEW)],
    ],
)
def test_what_is_logged_and_what_counted(story: Sequence[tuple[float, str, LeftOut | None]]) -> None:
    limiter = FailureLimiter()
    assert [limiter.admit(text, now) for now, text, _ in story] == [expected for _, _, expected in story]


def test_a_flood_costs_little_memory_and_loses_no_count() -> None:
    limiter, logged, counted = FailureLimiter(), 0, 0
    for number in range(100_000):
        left_out = limiter.admit(f"error {number}", number * 1e-3)
        if left_out is not None:
            logged += 1
            counted += left_out.same + left_out.others
    assert logged <= BURST + 100 * PER_S
    assert 100_000 - logged - counted <= 1000, "but for those since the last one"
    assert len(limiter._logged) <= BURST + 2 * REPEAT_S * PER_S + 1


def _requests(count: int, id: str = "") -> list[Request]:
    return [Request(Ticket(number, 0.0), "m", [], (), id and f"{id}{number}") for number in range(1, count + 1)]


@pytest.mark.parametrize(
    ("requests", "named"),
    [
        (_requests(1), "(request 1)"),
        (_requests(3), "(requests 1, 2, 3)"),
        (_requests(2, "client-"), "(requests client-1, client-2)"),
        (_requests(IDS + 5), f"(requests {', '.join(map(str, range(1, IDS + 1)))} and 5 more)"),
        (_requests(1, "a\nERROR forged\x1b[2J\ud800"), "(request a\\nERROR forged\\x1b[2J\\ud8001)"),
        (_requests(1, "x" * 1000), f"(request {'x' * 80})"),
    ],
)
def test_requests_are_named_and_cannot_forge_lines(
    requests: list[Request], named: str, caplog: pytest.LogCaptureFixture
) -> None:
    FailureLog("m").batch_failed("m-0", requests, BatchResult([], 0.0, 0.0, "out of\nluck \udfff"), 0.0)
    assert caplog.messages == [f"model m: a batch failed on m-0: out of luck \\udfff {named}"]
    caplog.messages[0].encode()


@pytest.mark.parametrize(
    ("kind", "level", "classed"),
    [
        (FailureKind.MODEL_FAILED, logging.ERROR, ""),
        *((kind, logging.WARNING, f" ({kind.value})") for kind in FailureKind if kind is not FailureKind.MODEL_FAILED),
    ],
)
def test_an_upstreams_failure_is_a_line_of_its_class(
    kind: FailureKind, level: int, classed: str, caplog: pytest.LogCaptureFixture
) -> None:
    result = BatchResult([], 0.0, 0.0, "the upstream answered 503", failure=Failure(kind, "the upstream answered 503"))
    FailureLog("m").batch_failed("m-0", _requests(1), result, 0.0)
    (record,) = caplog.records
    assert (record.levelno, record.getMessage()) == (
        level,
        f"model m: a batch failed on m-0{classed}: the upstream answered 503 (request 1)",
    )


def test_what_was_left_out_is_said_with_the_next(caplog: pytest.LogCaptureFixture) -> None:
    failures, flood = FailureLog("m"), BatchResult([], 0.0, 0.0, "x" * 10_000)
    for now in (0.0, 1.0, 2.0, REPEAT_S):
        failures.batch_failed("m-0", _requests(1), flood, now)
    first, second = caplog.messages
    assert len(first) < 2000
    assert second == first.replace("(request 1)", "(request 1; the same 2 times more since it was last logged)")


# Under a driver


@pytest.mark.looptime
async def test_one_poisoned_request_of_a_batch_is_logged_once_however_often_it_is_halved(
    caplog: pytest.LogCaptureFixture,
) -> None:
    rig = Rig(function=double_unless_poisoned)
    replies = [rig.send(POISON if number == 20 else float(number)) for number in range(33)]
    for reply in replies:
        await reply.wait()
    assert [reply.kind for reply in replies].count(FailureKind.MODEL_FAILED) == 1
    assert len(rig.batches) > 4
    (record,) = [record for record in caplog.records if record.name == LOGGER]
    assert record.levelno == logging.ERROR
    assert record.getMessage().startswith("model m: a batch failed on m-0: bad index (request")
    assert "rig.py" in record.getMessage()
    assert 'raise ValueError("bad index")' in record.getMessage()


@pytest.mark.looptime
async def test_batches_that_succeed_and_requests_that_are_refused_say_nothing(caplog: pytest.LogCaptureFixture) -> None:
    rig = Rig()
    late = rig.send(1.0, timeout_s=1e-4)
    for reply in [late, *(rig.send(float(number)) for number in range(20))]:
        await reply.wait()
    assert late.kind is FailureKind.DEADLINE
    assert caplog.records == []


async def test_outputs_that_cannot_be_cut_are_logged_too(caplog: pytest.LogCaptureFixture) -> None:
    text = Signature(SIGNATURE.inputs, (TensorSpec("y", DType.BYTES, (-1, -1)),), batched=True, platform="fake")
    rig = Rig(instances=0, signature=text, function=lambda inputs: [np.full(inputs[0].shape, 1.5, object)])
    rig.inline(InlineInstance)
    reply = await rig.send(3.0).wait()
    assert reply.kind is FailureKind.MODEL_FAILED
    assert reply.failure is not None
    assert f"model m: a batch failed on inline: {reply.failure.message}" in caplog.text


def _exits(inputs: Sequence[Array]) -> list[Array]:
    raise SystemExit(3)


@pytest.mark.parametrize("how", ["inline", "thread", "thread exits", "process"])
async def test_every_kind_of_instance_tells_where_in_the_models_code(how: str) -> None:
    clue, value = 'raise ValueError("bad index")', POISON
    if how == "process":
        instance: ProcessInstance | InlineInstance | ThreadInstance = moody()
        assert isinstance(instance, ProcessInstance)
        await instance.start()
        clue, value = "in _raise", float(RAISE)
    elif how == "inline":
        instance = InlineInstance("m-0", FakeRuntime(SIGNATURE, double_unless_poisoned))
    else:
        function = double_unless_poisoned if how == "thread" else _exits
        clue = clue if how == "thread" else "raise SystemExit(3)"
        instance = ThreadInstance("m-0", FakeRuntime(SIGNATURE, function))
    result = await run(instance, rows_of(value))
    await instance.stop()
    said = as_text(result.origin)
    assert clue in said
    assert said.startswith("Traceback (most recent call last):")
    assert "run_batch" not in said, "of the model's code, not of dlproxy's"


async def test_a_python_classes_traceback_is_its_own(tmp_path: Path) -> None:
    file = tmp_path / "sick.py"
    file.write_text(
        "class Model:\n"
        "    inputs = {'x': 'FP32[-1,1]'}\n"
        "    outputs = {'y': 'FP32[-1,1]'}\n"
        "    def predict(self, batch):\n"
        "        if batch['x'][0, 0] != 7: return {'y': batch['x']}\n"
        "        try: {}['gone']\n"
        "        except KeyError as error: raise RuntimeError('clear \\x1b[2J') from error\n"
    )
    instance = ProcessInstance("m-0", model_at(f"{file}:Model"))
    await instance.start()
    said = as_text((await run(instance, rows_of(7.0))).origin)
    await instance.stop()
    assert said.index("KeyError: 'gone'") < said.index("RuntimeError: clear \\x1b[2J")
    assert "dlproxy/instance" not in said
    said.encode()


@pytest.mark.parametrize("function", [double_unless_poisoned, _exits])
async def test_a_failed_batch_is_not_kept_alive_by_what_was_raised(function: Callable[[Sequence[Array]], list[Array]]) -> None:
    kept: list[weakref.ref[Array]] = []

    def fails(inputs: Sequence[Array]) -> list[Array]:
        own = np.full((1, 2), POISON, np.float32)
        kept.append(weakref.ref(own))
        return function([own])

    instance = ThreadInstance("m-0", FakeRuntime(SIGNATURE, fails))
    gc.collect()
    gc.disable()
    try:
        result = await run(instance, rows_of(POISON))
        assert "in fails" in as_text(result.origin)
        await instance.stop()
        assert kept[0]() is None
    finally:
        gc.enable()

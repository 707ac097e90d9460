"""What every kind of instance must do, whatever it runs on: `await check_instance(make)` in a test of the kind.

Raises AssertionError naming the rule that is broken. Not aware of: lanes, drivers, models beyond its own small ones.
"""

import asyncio
import threading
from collections.abc import Awaitable, Callable, Iterator, Sequence
from time import monotonic, sleep
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from dlproxy.instance import Instance
from dlproxy.instance.batch import BatchResult, Cutter
from dlproxy.instance.runtime import Runtime
from dlproxy.message import DType, Request, Signature, Tensor, TensorSpec, Ticket
from dlproxy.tensors import to_array, to_bytes
from dlproxy.testing.fake_runtime import FakeRuntime, Function

Array = NDArray[np.generic]
MakeInstance = Callable[[Runtime], Instance | Awaitable[Instance]]

HANG_S = 30.0  # a batch of these models takes microseconds: whoever takes this long will never be done


async def check_instance(make: MakeInstance) -> None:
    """Run every rule against fresh instances. `make` gives a started instance around a runtime, at once or to await.

    What cannot take the runtime along makes it again where it runs: `rebuild(**describe(runtime))`.
    """
    for rule in RULES:
        await rule(make)


async def gives_each_request_its_own_rows(make: MakeInstance) -> None:
    """Alone or with others, of one row or several, with inputs and outputs of different row shapes."""
    instance = await _started(make, _runtime(_PAIR, _pair))
    for sizes in ([1], [3], [1, 1], [2, 1, 3], [1] * 17):
        requests = [_pair_request(number, rows) for number, rows in enumerate(sizes)]
        result = await _run(instance, requests)
        assert result.error is None, f"{instance.name}: a batch of {sizes} rows failed: {result.error}"
        for request, outputs in zip(requests, _cut(_PAIR, result, requests), strict=True):
            expected = _pair([to_array(tensor.dtype, tensor.shape, tensor.data) for tensor in request.inputs])
            for got, want in zip(outputs, expected, strict=True):
                assert got.shape == want.shape, f"{instance.name}: {sizes}: shape {got.shape}, expected {want.shape}"
                assert np.array_equal(got, want), f"{instance.name}: {sizes}: a request got others' rows"
    await instance.stop()


async def carries_every_type_bit_for_bit(make: MakeInstance) -> None:
    """An identity model gives back what went in, of every element type: NaN payloads, empty bytes, zeros at their end."""
    instance = await _started(make, _runtime(_EVERY_TYPE, _same))
    requests = [_request(number, [_sample(dtype, rows) for dtype in DType]) for number, rows in enumerate((2, 1))]
    result = await _run(instance, requests)
    assert result.error is None, f"{instance.name}: {result.error}"
    cutter = Cutter(_EVERY_TYPE, result.outputs, requests=len(requests))
    for start, request in zip((0, 2), requests, strict=True):
        outputs = cutter.cut(start, request.ticket.rows, range(len(DType)))
        for given, output in zip(request.inputs, outputs, strict=True):
            assert bytes(output.data) == bytes(given.data), f"{instance.name}: {given.dtype.value} was changed"
            assert tuple(output.shape) == tuple(given.shape)
    await instance.stop()


async def runs_models_without_a_batch_axis(make: MakeInstance) -> None:
    """One request at a time, whose output may have any shape, a scalar too."""
    instance = await _started(make, _runtime(_SUM, _sum))
    result = await _run(instance, [_sum_request()])
    assert result.error is None, f"{instance.name}: {result.error}"
    assert result.outputs[0].shape == ()
    assert result.outputs[0] == 42
    await instance.stop()


async def turns_errors_into_results(make: MakeInstance) -> None:
    """Whatever the model raises or returns: `run` does not raise, the error says something, the next batch is unharmed."""
    instance = await _started(make, _runtime(_PAIR, _wrong))
    for number, (function, clue) in enumerate(_WRONG):
        result = await _run(instance, [_pair_request(number, 2), _pair_request(number, 1)])
        assert result.error, f"{instance.name}: {function.__name__} gave a result without an error"
        assert clue in result.error, f"{instance.name}: the error {result.error!r} does not say {clue!r}"
        assert not result.outputs, f"{instance.name}: a failed batch has outputs"
    await instance.stop()

    instance = await _started(make, _runtime(_SUM, _no_outputs))
    result = await _run(instance, [_sum_request()])
    assert result.error, f"{instance.name}: no outputs of a model without a batch axis passed for an answer"
    await instance.stop()

    instance = await _started(make, _runtime(_PAIR, _pair, ["once"]))
    assert (await _run(instance, [_pair_request(1, 1)])).error == "once"
    assert (await _run(instance, [_pair_request(2, 1)])).error is None, f"{instance.name}: one error broke the instance"
    await instance.stop()


async def reports_once_on_the_event_loop(make: MakeInstance) -> None:
    """`done` comes exactly once per batch, in the loop's thread; before `run` returns if and only if it is inline."""
    instance = await _started(make, _runtime(_PAIR, _pair))
    home = threading.get_ident()
    calls: list[int] = []
    for number in range(3):
        arrived = asyncio.Event()

        def done(result: BatchResult, arrived: asyncio.Event = arrived) -> None:
            calls.append(threading.get_ident())
            arrived.set()

        instance.run([_pair_request(number, 1)], done)
        assert not instance.inline or arrived.is_set(), f"{instance.name} calls itself inline and computes later"
        await asyncio.wait_for(arrived.wait(), HANG_S)
    await instance.stop()
    assert calls == [home] * 3, f"{instance.name} reported {len(calls)} times for 3 batches, or from another thread"


async def lets_a_running_batch_finish_before_it_stops(make: MakeInstance) -> None:
    """`stop` returns after the report of the batch that runs; an instance that never ran stops too."""
    instance = await _started(make, _runtime(_PAIR, _slow_pair))
    results: list[BatchResult] = []
    instance.run([_pair_request(1, 1)], results.append)
    await asyncio.wait_for(instance.stop(), HANG_S)
    assert len(results) == 1, f"{instance.name} stopped without reporting the batch that ran"
    assert results[0].error is None
    idle = await _started(make, _runtime(_PAIR, _pair))
    await asyncio.wait_for(idle.stop(), HANG_S)


async def measures_the_time_it_took(make: MakeInstance) -> None:
    """Times are seconds, never negative: policies learn from them."""
    instance = await _started(make, _runtime(_PAIR, _pair))
    result = await _run(instance, [_pair_request(1, 1)])
    assert result.compute_s >= 0.0
    assert result.batch_s >= 0.0
    await instance.stop()


# Of instances that can answer in parts


async def gives_parts_in_order_and_only_when_asked(make: MakeInstance) -> None:
    """Each part is computed after it was asked for; the end has no outputs and no rest."""
    instance = await _started(make, _runtime(_STREAM, _steps))
    requests = [_stream_request(1, 3.0), _stream_request(2, 3.0)]
    result, asked_at = await _run(instance, requests), 0.0
    for step in range(3):
        assert result.error is None, f"{instance.name}: part {step}: {result.error}"
        y, made_at, _ = result.outputs
        assert y.tolist() == [step, step], f"{instance.name}: part {step} is {y.tolist()}"
        assert made_at.min() >= asked_at, f"{instance.name}: part {step} was computed before it was asked for"
        await _pass_time()
        asked_at = monotonic()
        result = await _next(instance, result)
    assert result.rest is None, f"{instance.name}: goes on after the end"
    assert (result.outputs, result.error) == ([], None)
    again = await _run(instance, requests[:1])
    assert again.error is None, f"{instance.name}: takes no batch after a stream"
    assert again.rest is not None
    again.rest.stop()
    await instance.stop()


async def is_free_when_a_stream_is_stopped(make: MakeInstance) -> None:
    """At once, or when who has asked has been told; the model's generator has been closed by the time it runs again."""
    for ask in (False, True):
        instance = await _started(make, _runtime(_STREAM, _steps))
        result = await _run(instance, [_stream_request(1, 1e9)])
        rest, told = result.rest, asyncio.Event()
        assert rest is not None, f"{instance.name}: gave all of an answer without an end"
        if ask:
            rest.ask(lambda result, told=told: told.set())  # type: ignore[misc]
        rest.stop()
        rest.stop()
        if ask:
            await asyncio.wait_for(told.wait(), HANG_S)
        again = await _run(instance, [_stream_request(2, 1.0)])
        assert again.error is None, f"{instance.name}: takes no batch after a stop: {again.error}"
        assert again.outputs[2].tolist() == [1], f"{instance.name}: did not close the model's generator"
        rest.stop()  # of what was stopped: nothing to the batch that runs now
        assert (await _next(instance, again)).error is None
        await asyncio.wait_for(instance.stop(), HANG_S)


async def tells_of_errors_in_mid_stream(make: MakeInstance) -> None:
    """They end the stream, and nothing else."""
    instance = await _started(make, _runtime(_STREAM, _steps))
    first = await _run(instance, [_stream_request(1, -1.0)])
    second = await _next(instance, first)
    assert second.error is not None, f"{instance.name}: keeps an error in mid-stream to itself"
    assert "out of steps" in second.error
    assert second.rest is None, f"{instance.name}: goes on after an error"
    none = await _run(instance, [_stream_request(2, 0.0)])
    assert none.error is not None, f"{instance.name}: an answer without any part passes for one"
    assert none.rest is None
    again = await _run(instance, [_stream_request(3, 1.0)])
    assert again.error is None, f"{instance.name}: broke with the stream"
    assert (await _next(instance, again)).error is None
    await instance.stop()


async def lets_a_stream_end_before_it_stops(make: MakeInstance) -> None:
    """`stop` waits until it has ended, or was stopped."""
    for read in (True, False):
        instance = await _started(make, _runtime(_STREAM, _steps))
        result = await _run(instance, [_stream_request(1, 2.0)])
        stopping = asyncio.ensure_future(instance.stop())
        await _pass_time()
        assert not stopping.done(), f"{instance.name} stopped while its answer was read"
        if read:
            result = await _next(instance, await _next(instance, result))
            assert result.error is None
            assert result.rest is None
        elif result.rest is not None:
            result.rest.stop()
        await asyncio.wait_for(stopping, HANG_S)


STREAM_RULES: Sequence[Callable[[MakeInstance], Awaitable[None]]] = (
    gives_parts_in_order_and_only_when_asked,
    is_free_when_a_stream_is_stopped,
    tells_of_errors_in_mid_stream,
    lets_a_stream_end_before_it_stops,
)

RULES: Sequence[Callable[[MakeInstance], Awaitable[None]]] = (
    gives_each_request_its_own_rows,
    carries_every_type_bit_for_bit,
    runs_models_without_a_batch_axis,
    turns_errors_into_results,
    reports_once_on_the_event_loop,
    lets_a_running_batch_finish_before_it_stops,
    measures_the_time_it_took,
)


# The models: module-level functions, so that a process can be told of them


class _Described(FakeRuntime):
    """A fake that knows what it was made of. `errors`: what the first runs raise."""

    def __init__(self, signature: Signature, function: Function, errors: Sequence[str]) -> None:
        super().__init__(signature, function, errors=[ValueError(error) for error in errors])
        self.description = {
            "signature": msgspec.to_builtins(signature),
            "function": function.__name__,
            "errors": list(errors),
        }


def describe(runtime: Runtime) -> dict[str, Any]:
    """One of this suite's models as plain data."""
    assert isinstance(runtime, _Described), f"{runtime!r} is no model of this suite"
    return runtime.description


def rebuild(signature: dict[str, Any], function: str, errors: Sequence[str]) -> Runtime:
    """The model that was described so."""
    return _Described(msgspec.convert(signature, Signature), globals()[function], errors)


_PAIR = Signature(
    (TensorSpec("image", DType.FP32, (-1, 2, 2)), TensorSpec("id", DType.INT32, (-1,))),
    (TensorSpec("total", DType.FP32, (-1,)), TensorSpec("tagged", DType.INT32, (-1, 2))),
    batched=True,
    platform="fake",
)
_SUM = Signature((TensorSpec("x", DType.INT64, (3,)),), (TensorSpec("sum", DType.INT64, ()),), batched=False, platform="fake")
_EVERY_TYPE = Signature(
    tuple(TensorSpec(dtype.value, dtype, (-1, 3)) for dtype in DType),
    tuple(TensorSpec(f"same {dtype.value}", dtype, (-1, 3)) for dtype in DType),
    batched=True,
    platform="fake",
)


_STREAM = Signature(
    (TensorSpec("steps", DType.FP64, (-1,)),),
    (TensorSpec("y", DType.FP64, (-1,)), TensorSpec("made_at", DType.FP64, (-1,)), TensorSpec("closed", DType.INT64, (-1,))),
    batched=True,
    platform="fake",
    streams=True,
)
_closed = [0]  # streams of this process that were closed before their end, not looked at since


def _steps(inputs: Sequence[Array]) -> Iterator[list[Array]]:
    """As many parts as the largest number says; of a number below 0 one, and then an error."""
    ones = np.ones(len(inputs[0]))
    closed, _closed[0] = _closed[0], 0
    ended = False
    try:
        for step in range(int(np.abs(np.asarray(inputs[0], np.float64)).max())):
            yield [ones * step, ones * monotonic(), (ones * closed).astype(np.int64)]
        ended = True
    finally:
        _closed[0] += not ended
    if np.asarray(inputs[0], np.float64).min() < 0.0:
        raise ValueError("out of steps")


def _pair(inputs: Sequence[Array]) -> list[Array]:
    image, number = inputs
    total = np.asarray(image, np.float32).sum(axis=(1, 2))
    return [total, np.stack([number, number], axis=1)]


def _slow_pair(inputs: Sequence[Array]) -> list[Array]:
    sleep(0.01)  # long enough that a stop which does not wait is seen
    return _pair(inputs)


def _same(inputs: Sequence[Array]) -> list[Array]:
    return list(inputs)


def _sum(inputs: Sequence[Array]) -> list[Array]:
    return [np.asarray(np.asarray(inputs[0], np.int64).sum())]


def _raise_with_text(inputs: Sequence[Array]) -> list[Array]:
    raise ValueError("out of luck")


def _raise_with_a_file_name(inputs: Sequence[Array]) -> list[Array]:
    raise RuntimeError("cannot read " + b"caf\xe9".decode("utf-8", "surrogateescape"))


class _WordlessError(Exception):
    def __str__(self) -> str:
        raise RuntimeError("its own text fails")


def _raise_what_has_no_words(inputs: Sequence[Array]) -> list[Array]:
    raise _WordlessError


def _raise_without_text(inputs: Sequence[Array]) -> list[Array]:
    raise RuntimeError


def _no_outputs(inputs: Sequence[Array]) -> list[Array]:
    return []


_WRONG: Sequence[tuple[Function, str]] = (
    (_raise_with_text, "out of luck"),
    (_raise_without_text, "RuntimeError"),
    (_raise_with_a_file_name, "cannot read caf\\udce9"),
    (_raise_what_has_no_words, "_WordlessError"),
    (_no_outputs, "output"),
)


def _wrong(inputs: Sequence[Array]) -> list[Array]:
    """As the number of the request says."""
    function, _ = _WRONG[int(np.asarray(inputs[1], np.int64)[0]) // 1000]
    outputs: list[Array] = function(inputs)
    return outputs


def _text_for_numbers(inputs: Sequence[Array]) -> list[Array]:
    return [np.full(len(inputs[0]), "many", object), _pair(inputs)[1]]


def _runtime(signature: Signature, function: Function, errors: Sequence[str] = ()) -> Runtime:
    return _Described(signature, function, errors)


async def _started(make: MakeInstance, runtime: Runtime) -> Instance:
    made = make(runtime)
    return await made if isinstance(made, Awaitable) else made


def _sample(dtype: DType, rows: int) -> Tensor:
    """Every bit pattern is fair for a number; BOOL takes 0 and 1; BYTES are any bytes."""
    if dtype is DType.BYTES:
        any_bytes = np.array([[b"", b"\xff\xd8 \0 zw\xc3\xb6lf", b"a\0b\0\0"]] * rows, dtype=object)
        return Tensor(dtype.value, dtype, (rows, 3), to_bytes(dtype, any_bytes))
    noise = np.random.default_rng(rows).integers(0, 256, rows * 3 * dtype.itemsize, np.uint8)
    if dtype is DType.BOOL:
        noise &= 1
    return Tensor(dtype.value, dtype, (rows, 3), noise.tobytes())


def _pair_request(number: int, rows: int) -> Request:
    image = np.arange(rows * 4, dtype=np.float32).reshape(rows, 2, 2) + 100 * number
    ids = np.arange(rows, dtype=np.int32) + 1000 * number
    tensors = [
        Tensor("image", DType.FP32, image.shape, to_bytes(DType.FP32, image)),
        Tensor("id", DType.INT32, ids.shape, to_bytes(DType.INT32, ids)),
    ]
    return _request(number, tensors)


def _sum_request() -> Request:
    return _request(1, [Tensor("x", DType.INT64, (3,), to_bytes(DType.INT64, np.array([1, 2, 39])))])


def _stream_request(number: int, steps: float) -> Request:
    return _request(number, [Tensor("steps", DType.FP64, (1,), to_bytes(DType.FP64, np.array([steps])))])


def _request(number: int, inputs: list[Tensor]) -> Request:
    ticket = Ticket(number, arrived_at=0.0, rows=inputs[0].shape[0])
    return Request(ticket, "fake", inputs, (0,))


def _cut(signature: Signature, result: BatchResult, requests: Sequence[Request]) -> list[list[Array]]:
    cutter = Cutter(signature, result.outputs, requests=len(requests))
    start, parts = 0, []
    for request in requests:
        tensors = cutter.cut(start, request.ticket.rows, range(len(signature.outputs)))
        parts.append([to_array(tensor.dtype, tensor.shape, tensor.data) for tensor in tensors])
        start += request.ticket.rows
    return parts


async def _next(instance: Instance, result: BatchResult) -> BatchResult:
    """What a result's rest gives when it is asked."""
    assert result.rest is not None, f"{instance.name}: an answer in parts has no rest: {result}"
    future: asyncio.Future[BatchResult] = asyncio.get_running_loop().create_future()
    result.rest.ask(future.set_result)
    return await asyncio.wait_for(future, HANG_S)


async def _pass_time() -> None:
    """Enough for an instance that runs ahead to be caught."""
    passed = asyncio.Event()
    asyncio.get_running_loop().call_later(0.02, passed.set)
    await passed.wait()


async def _run(instance: Instance, requests: Sequence[Request]) -> BatchResult:
    """One batch; hands back what `done` got. Asserts that `run` itself does not raise."""
    future: asyncio.Future[BatchResult] = asyncio.get_running_loop().create_future()
    try:
        instance.run(requests, future.set_result)
    except Exception as error:
        raise AssertionError(f"{instance.name}: run raised {error!r} instead of reporting it") from error
    return await asyncio.wait_for(future, HANG_S)

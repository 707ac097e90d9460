"""A model that only takes time: its description, its answers, and that it takes no less time than it says."""

from time import monotonic

import numpy as np
import pytest

from dlproxy import Model, Proxy
from dlproxy.instance.runtime import ModelError
from dlproxy.instance.runtime.sleep import Line, SleepRuntime, parse
from dlproxy.instance.warmup import calibrate
from dlproxy.message import DType


@pytest.mark.parametrize(
    ("path", "line"),
    [
        ("sleep:base=10ms,row=0.5ms", Line(0.010, 0.0005)),
        ("sleep:row=250us", Line(0.0, 250e-6)),
        ("sleep:base=1s", Line(1.0, 0.0)),
        ("sleep:row=1ms,base=2ms", Line(0.002, 0.001)),
    ],
)
def test_a_description_is_read(path: str, line: Line) -> None:
    read = parse(path)
    assert (read.base_s, read.row_s) == pytest.approx((line.base_s, line.row_s))


@pytest.mark.parametrize(
    ("path", "clue"),
    [
        ("sleep:", "''"),
        ("sleep:10ms", "'10ms' is not understood"),
        ("sleep:base", "duration ''"),
        ("sleep:base=10", "duration '10'"),
        ("sleep:base=-1ms", "duration '-1ms'"),
        ("sleep:base=0ms", "duration '0ms'"),
        ("sleep:base=10ms,", "''"),
        ("sleep:base=10ms;row=1ms", "duration '10ms;row=1ms'"),
        ("sleep:slope=10ms", "'slope=10ms' is not understood"),
        ("sleep:base=7200s", "more than an hour"),
        ("sleep:base=" + "9" * 400 + "s", "999s' is not understood; write it like 20ms"),
    ],
)
def test_a_description_that_makes_no_sense_is_refused_with_an_example(path: str, clue: str) -> None:
    with pytest.raises(ModelError) as caught:
        SleepRuntime(path)
    assert clue in str(caught.value)
    assert "20ms" in str(caught.value) or "sleep:base=10ms,row=0.5ms" in str(caught.value)
    assert repr(path)[:40] in str(caught.value)


@pytest.mark.parametrize("rows", [1, 7])
def test_it_gives_back_what_it_got_after_no_less_than_its_time(rows: int) -> None:
    runtime = SleepRuntime("sleep:base=5ms,row=1ms")
    x = np.arange(rows, dtype=np.float32)[:, None]
    started_at = monotonic()
    (y,) = runtime.run([x])
    assert monotonic() - started_at >= 0.005 + 0.001 * rows
    assert np.array_equal(x, y)
    assert not np.shares_memory(x, y)


def test_its_signature_lets_rows_be_batched() -> None:
    signature = SleepRuntime("sleep:base=1ms").signature
    assert signature.batched
    assert [(spec.name, spec.dtype, spec.shape) for spec in (*signature.inputs, *signature.outputs)] == [
        ("x", DType.FP32, (-1, 1)),
        ("y", DType.FP32, (-1, 1)),
    ]


def test_warm_up_finds_no_less_than_the_line() -> None:
    calibration = calibrate(SleepRuntime("sleep:base=1ms,row=0.1ms"))
    assert calibration.independent_rows
    assert len(calibration.points) > 2
    for rows, seconds in calibration.points:
        assert seconds >= 0.95 * (0.001 + 0.0001 * rows)  # points that noise has out of order are evened out


async def test_it_is_served_as_any_model_is() -> None:
    async with Proxy([Model("sleep:base=2ms,row=0.1ms", name="nap")]) as proxy:
        x = np.array([[1.0], [2.0], [3.0]], np.float32)
        started_at = monotonic()
        outputs = await proxy.infer("nap", {"x": x})
        assert monotonic() - started_at >= 0.0023
        assert np.array_equal(outputs["y"], x)

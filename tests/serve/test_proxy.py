"""dlproxy as a library: what README and docs/guides/python-api.md promise, without sockets."""

import asyncio
import re
from collections.abc import AsyncIterator
from math import inf, nan
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest

from dlproxy import FailureKind, InferenceError, Model, Proxy
from dlproxy.config import ConfigError
from dlproxy.instance.runtime import ModelError
from dlproxy.message import DType, Request, Ticket
from dlproxy.serve.driver import Driver
from dlproxy.service import ReplyTo
from tests import models

IMAGE = np.zeros((1, 1, 8, 8), np.float32)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("models")
    for dtype in DType:
        models.save(models.identity(dtype), made / f"{dtype.value.lower()}.onnx")
    models.save(models.two_in_two_out(), made / "simple.onnx")
    models.save(models.lookup(), made / "lookup.onnx")
    models.save(models.slow(layers=20), made / "slow.onnx")
    models.save(models.identity(DType.BF16, ()), made / "scalar.onnx")
    return made


@pytest.fixture
async def simple(folder: Path) -> AsyncIterator[Proxy]:
    async with Proxy([Model(folder / "simple.onnx", threads=1)]) as proxy:
        yield proxy


A = np.arange(8, dtype=np.int32).reshape(2, 4)


async def test_answers_are_those_of_onnx_runtime() -> None:
    with np.load(models.HELDOUT) as heldout:
        images = heldout["images"][:40].astype(np.float32)
    session = ort.InferenceSession(str(models.DIGITS), providers=["CPUExecutionProvider"])
    (expected,) = session.run(None, {"image": images})
    async with Proxy([Model(models.DIGITS, slo="p99=5s")]) as proxy:
        answers = await asyncio.gather(*(proxy.infer("digits", {"image": image[None]}) for image in images))
        (model,) = proxy.models
        assert model.served.stats.batches < 40, "concurrent calls do not share batches"
        assert not model.driver.unanswered
    assert np.abs(np.concatenate([answer["probabilities"] for answer in answers]) - expected).max() < 1e-5


# Inputs and outputs


async def test_outputs_by_name(simple: Proxy) -> None:
    everything = await simple.infer("simple", {"b": A, "a": 2 * A})
    assert list(everything) == ["sum", "diff"]
    assert np.array_equal(everything["sum"], 3 * A)
    assert np.array_equal(everything["diff"], A)
    assert list(await simple.infer("simple", {"a": A, "b": A}, outputs=["diff"])) == ["diff"]


async def test_every_element_type_goes_in_and_comes_out(folder: Path) -> None:
    async with Proxy([Model(folder / f"{dtype.value.lower()}.onnx", threads=1) for dtype in DType]) as proxy:
        for dtype in DType:
            value: Any = [[0, 1, 1]]
            if dtype is DType.BOOL:
                value = [[False, True, True]]
            elif dtype is DType.BYTES:
                value = [["", "zwölf", "a\0b"]]
            (answer,) = (await proxy.infer(dtype.value.lower(), {"x": value})).values()
            assert answer.tolist() == value, dtype


async def test_what_fits_is_converted(folder: Path) -> None:
    async with Proxy(
        [Model(folder / f"{name}.onnx", threads=1) for name in ("fp32", "fp16", "int32", "uint8", "bf16")]
    ) as proxy:
        for model, value in (
            ("fp32", np.array([[1, 2, 3]], np.float64)),
            ("fp32", [[1, 2, 3]]),
            ("fp32", np.array([[np.inf, -np.inf, 0.5]])),
            ("fp16", np.array([[0.5, -2, 65504]])),
            ("int32", np.array([[-(2**31), 2**31 - 1, 0]], np.int64)),
            ("uint8", [[0, 255, 1]]),
            ("uint8", np.asfortranarray(np.arange(6).reshape(2, 3))),
            ("bf16", np.array([[0.5, -2.0, np.inf]], np.float32)),
        ):
            (answer,) = (await proxy.infer(model, {"x": value})).values()
            assert np.array_equal(answer, value), model


@pytest.mark.parametrize(
    ("model", "value"),
    [
        ("int32", np.array([[2**31, 0, 0]])),
        ("int32", np.array([[1.0, 2.0, 3.0]])),
        ("uint8", [[0, 256, 1]]),
        ("uint64", [[0, -1, 1]]),
        ("bool", [[0, 1, 1]]),
        ("fp32", np.array([[1e39, 0, 0]])),
        ("fp32", [["a", "b", "c"]]),
        ("fp32", np.array([[1j, 0, 0]])),
        ("fp32", [[1, 2, 3], [4]]),
        ("bf16", [["a", "b", "c"]]),
        ("bytes", [[1, 2, 3]]),
        ("bytes", [[None, "b", "c"]]),
        ("bytes", [[b"\xff\xfe", "b", "c"]]),
    ],
)
async def test_what_does_not_fit_is_refused_in_words(folder: Path, model: str, value: object) -> None:
    async with Proxy([Model(folder / f"{model}.onnx", threads=1)]) as proxy:
        with pytest.raises(InferenceError, match="input 'x'") as caught:
            await proxy.infer(model, {"x": value})
        assert caught.value.failure.kind is FailureKind.INVALID_ARGUMENT


async def test_a_scalar_stays_a_scalar(folder: Path) -> None:
    async with Proxy([Model(folder / "scalar.onnx", threads=1)]) as proxy:
        (answer,) = (await proxy.infer("scalar", {"x": np.float32(1.5)})).values()
        assert np.shape(answer) == ()
        assert answer == 1.5


# Errors


@pytest.mark.parametrize(
    ("call", "kind", "text"),
    [
        ({"model": "nobody", "inputs": {"x": A}}, FailureKind.NOT_FOUND, "'nobody' is not found"),
        ({"model": "simple", "version": "9", "inputs": {"a": A, "b": A}}, FailureKind.NOT_FOUND, "version 9"),
        ({"model": "simple", "inputs": {"a": A}}, FailureKind.INVALID_ARGUMENT, "expected 2 inputs"),
        ({"model": "simple", "inputs": {"a": A, "c": A}}, FailureKind.INVALID_ARGUMENT, "'c'"),
        ({"model": "simple", "inputs": {"a": A, "b": A[:1]}}, FailureKind.INVALID_ARGUMENT, "rows"),
        ({"model": "simple", "inputs": {"a": A[:, :2], "b": A}}, FailureKind.INVALID_ARGUMENT, "unexpected shape"),
        ({"model": "simple", "inputs": {"a": A, "b": A}, "outputs": ["z"]}, FailureKind.INVALID_ARGUMENT, "output 'z'"),
        ({"model": "simple", "inputs": {"a": A, "b": A}, "timeout_s": 0}, FailureKind.LATE, "timeout expired"),
        ({"model": "simple", "inputs": {"a": A, "b": A}, "timeout_s": -5.0}, FailureKind.LATE, "timeout expired"),
        ({"model": "simple", "inputs": {"a": A, "b": A}, "priority": -1}, FailureKind.INVALID_ARGUMENT, "priority"),
    ],
)
async def test_a_wrong_call_raises_what_is_wrong(simple: Proxy, call: dict[str, Any], kind: FailureKind, text: str) -> None:
    with pytest.raises(InferenceError, match=re.escape(text)) as caught:
        await simple.infer(**call)
    assert caught.value.failure.kind is kind


@pytest.mark.parametrize("timeout_s", [30.0, 1e9, float("inf"), None])
async def test_a_generous_timeout_changes_nothing(simple: Proxy, timeout_s: float | None) -> None:
    assert await simple.infer("simple", {"a": A, "b": A}, timeout_s=timeout_s)


async def test_a_bad_item_fails_its_own_call_only(folder: Path) -> None:
    async with Proxy([Model(folder / "lookup.onnx", threads=1)]) as proxy:
        calls = [proxy.infer("lookup", {"index": [index]}) for index in (0, 1, 99, 3)]
        good, _, bad, _ = answers = await asyncio.gather(*calls, return_exceptions=True)
        assert isinstance(bad, InferenceError)
        assert bad.failure.kind is FailureKind.MODEL_FAILED
        assert isinstance(good, dict)
        assert sum(isinstance(answer, InferenceError) for answer in answers) == 1


# Terms


class Spy:
    """Keeps the tickets that reach the driver."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.tickets: list[Ticket] = []
        submit = Driver.submit

        def kept(driver: Driver, request: Request, reply: ReplyTo) -> None:
            self.tickets.append(request.ticket)
            submit(driver, request, reply)

        monkeypatch.setattr(Driver, "submit", kept)


@pytest.mark.parametrize(
    ("timeout_s", "own_s", "aim_s"), [(None, inf, 5.0), (inf, inf, 5.0), (100.0, 100.0, 5.0), (2 + 1e-7, 2 + 1e-7, 2 + 1e-7)]
)
async def test_the_earlier_of_timeout_and_objective_is_aimed_at(
    folder: Path, monkeypatch: pytest.MonkeyPatch, timeout_s: float | None, own_s: float, aim_s: float
) -> None:
    spy = Spy(monkeypatch)
    async with Proxy([Model(folder / "simple.onnx", threads=1, slo="p99=5s")]) as proxy:
        await proxy.infer("simple", {"a": A, "b": A}, timeout_s=timeout_s, priority=3, tenant="shop")
    (ticket,) = spy.tickets
    assert ticket.answer_by == ticket.arrived_at + own_s
    assert ticket.deadline_at == ticket.arrived_at + aim_s, "to the last digit"
    assert (ticket.priority, ticket.tenant) == (3, "shop")


@pytest.mark.parametrize(
    ("sticky", "affinities"), [("tenant", ["t", "t", "u"]), ("header:x-user", ["ann", "bob", ""]), ("", ["", "", ""])]
)
async def test_requests_stick_to_what_the_setting_says(
    folder: Path, monkeypatch: pytest.MonkeyPatch, sticky: str, affinities: list[str]
) -> None:
    spy = Spy(monkeypatch)
    model = Model(folder / "simple.onnx", threads=1, balancer="consistent-hash", sticky=sticky)
    async with Proxy([model]) as proxy:
        for tenant, affinity in (("t", "ann"), ("t", "bob"), ("u", "")):
            await proxy.infer("simple", {"a": A, "b": A}, tenant=tenant, affinity=affinity)
    assert [ticket.affinity for ticket in spy.tickets] == affinities


async def test_equal_inputs_stick_together(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spy = Spy(monkeypatch)
    async with Proxy([Model(folder / "simple.onnx", threads=1, balancer="consistent-hash", sticky="input")]) as proxy:
        for value in (A, A, A + 1):
            await proxy.infer("simple", {"a": value, "b": A})
    first, again, other = [ticket.affinity for ticket in spy.tickets]
    assert first == again != other != ""


async def test_refused_calls_are_counted(simple: Proxy) -> None:
    for call in ({"inputs": {"a": A}}, {"inputs": {"a": A, "b": ["x"]}}, {"inputs": {"a": A, "b": A}, "timeout_s": nan}):
        with pytest.raises(InferenceError):
            await simple.infer("simple", **call)  # type: ignore[arg-type]
    assert simple.models[0].served.stats.failures[FailureKind.INVALID_ARGUMENT] == 3


# Cancelling and leaving


async def test_a_timeout_around_the_call_cancels_the_request(folder: Path) -> None:
    async with Proxy([Model(folder / "slow.onnx", threads=1)]) as proxy:
        (model,) = proxy.models
        running = asyncio.ensure_future(proxy.infer("slow", {"x": [[1.0]]}))
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(proxy.infer("slow", {"x": [[2.0]]}), 1e-4)
        assert (await running)["y"].tolist() == [1.0]
        assert model.driver.unanswered == 0
        assert model.served.stats.failures[FailureKind.CANCELLED] == 1


async def test_leaving_waits_for_calls_under_way(folder: Path) -> None:
    async with Proxy([Model(folder / "slow.onnx", threads=1)]) as proxy:
        calls = [asyncio.ensure_future(proxy.infer("slow", {"x": [[float(n)]]})) for n in range(4)]
        await asyncio.sleep(0)
    assert [call.result()["y"].tolist() for call in calls] == [[0.0], [1.0], [2.0], [3.0]]


async def test_leaving_without_patience_fails_what_waits(folder: Path) -> None:
    async with Proxy([Model(folder / "slow.onnx", threads=1)], drain_s=0.0) as proxy:
        calls = [asyncio.ensure_future(proxy.infer("slow", {"x": [[1.0]]})) for _ in range(6)]
        await asyncio.sleep(0)
    results = await asyncio.gather(*calls, return_exceptions=True)
    assert {type(result) for result in results} == {InferenceError}


async def test_after_leaving_calls_are_refused(folder: Path) -> None:
    async with Proxy([Model(folder / "simple.onnx", threads=1)]) as proxy:
        pass
    with pytest.raises(InferenceError) as caught:
        await proxy.infer("simple", {"a": A, "b": A})
    assert caught.value.failure.kind is FailureKind.UNAVAILABLE


# Several models


async def test_several_models_and_versions(folder: Path) -> None:
    served = [
        Model(folder / "simple.onnx", name="one", threads=1),
        Model(folder / "int32.onnx", name="two", version="1", threads=1),
        Model(folder / "fp32.onnx", name="two", version="2", threads=1),
    ]
    async with Proxy(served) as proxy:
        assert set(await proxy.infer("one", {"a": A, "b": A})) == {"sum", "diff"}
        newest = await proxy.infer("two", {"x": [[0.5, 1, 2]]})
        assert newest["y"].dtype == np.float32
        oldest = await proxy.infer("two", {"x": [[1, 2, 3]]}, version="1")
        assert oldest["y"].dtype == np.int32


def test_two_models_of_one_name_and_version_are_refused() -> None:
    with pytest.raises(ConfigError, match="two models are named 'digits'"):
        Proxy([Model(models.DIGITS), Model(models.DIGITS)])


@pytest.mark.parametrize(
    "settings",
    [{"max_batch": 0}, {"max_batch": "8"}, {"version": "one"}, {"run": "gpu"}, {"slo": "fast"}, {"max_bach": 8}],
    ids=lambda settings: next(iter(settings)),
)
def test_a_setting_out_of_its_range_is_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        Model(models.DIGITS, **settings)


def test_what_a_program_sets_is_pinned() -> None:
    model = Model(models.DIGITS, slo="p95=50ms, rate>=500", threads=1, start={"max_batch": 1})
    assert (model.config.pinned, model.config.goal.least_rate) == (["threads"], 500.0)
    with pytest.raises(ConfigError, match="model 'digits': start has a first value of threads, which is set as well"):
        Model(models.DIGITS, threads=1, start={"threads": 2})


async def test_a_model_that_cannot_be_loaded_leaves_nothing_up(tmp_path: Path) -> None:
    (tmp_path / "broken.onnx").write_bytes(b"nonsense")
    proxy = Proxy([Model(models.DIGITS), Model(tmp_path / "broken.onnx")])
    with pytest.raises(ModelError, match=r"broken\.onnx"):
        async with proxy:
            pass
    assert proxy.models == []

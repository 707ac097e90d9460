"""`:explain` over HTTP: models whose answers can be told by heart, what is refused, priority, deadline, cancellation."""

import asyncio
import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from dlproxy.config import HttpLimits
from dlproxy.message import DType, Failure, FailureKind, Request, Signature, TensorSpec
from dlproxy.policy.queueing import LOWEST_LEVEL
from dlproxy.wire.catalog import Catalog
from dlproxy.wire.explain.explanations import AT_A_TIME, MOST_INSTANCES, MOST_PARTS, ROWS
from dlproxy.wire.explain.http import Explain
from dlproxy.wire.oip.http import OipApp

from .fixtures import EchoService, Reply, Wire, post, served
from .tfs_models import Computing, app_over

WEIGHTS = np.array([1.0, -2.0, 3.0])


def linear(**more: Any) -> Computing:
    """Two scores for rows of three: w.x and its negative."""
    return Computing(
        [("x", DType.FP32, (-1, 3))],
        [("label", DType.INT64, (-1,)), ("scores", DType.FP32, (-1, 2))],
        lambda x: (np.zeros(len(x), np.int64), np.stack([x @ WEIGHTS, -(x @ WEIGHTS)], axis=1).astype(np.float32)),
        **more,
    )


class Held(Computing):
    """Answers when the test says so."""

    def submit(self, request: Request, reply: Any) -> None:
        self.waiting.append((request, reply))
        self.requests.append(request)

    def release(self) -> None:
        request, reply = self.waiting.popleft()
        Computing.submit(self, request, reply)
        self.requests.pop()


async def _until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not condition():  # noqa: ASYNC110 - the loop's own turns are all that is waited for
            await asyncio.sleep(0)


class Site:
    def __init__(self, service: EchoService, *, max_batch: int = 64, clock: Any = lambda: 100.0, limits: Any = None) -> None:
        catalog = Catalog()
        catalog.add(served(service, max_batch=max_batch))
        limits = limits or HttpLimits()
        explain = Explain(catalog, max_json_bytes=limits.max_json_bytes, clock=clock)
        self.wire = Wire(OipApp(catalog, limits, clock=clock, server_timing=False, more=explain.rows()), limits)

    async def ask(self, body: Any, path: str = "/v1/models/m:explain", **headers: str) -> Reply:
        self.wire.feed(post(path, body if isinstance(body, bytes) else json.dumps(body).encode(), **headers))
        await _until(lambda: bool(self.wire.transport.written))
        return self.wire.take()[0]

    async def explained(self, body: Any, **more: Any) -> list[dict[str, Any]]:
        reply = await self.ask(body, **more)
        assert reply.status == 200, reply.body
        found: list[dict[str, Any]] = reply.json()["explanations"]
        return found


async def test_a_linear_model_adds_weight_times_value() -> None:
    service = linear()
    explained = await Site(service).explained({"instances": [[1, 1, 1], [0, 3, 1]]})
    assert explained == [
        {
            "method": "occlusion",
            "output": "scores",
            "target": 0,
            "base": 2.0,
            "baseline": 0,
            "part": [1],
            "attributions": [1.0, -2.0, 3.0],
        },
        {
            "method": "occlusion",
            "output": "scores",
            "target": 1,
            "base": 3.0,
            "baseline": 0,
            "part": [1],
            "attributions": [0.0, 6.0, -3.0],
        },
    ]
    assert {request.ticket.priority for request in service.requests} == {LOWEST_LEVEL}
    assert [request.ticket.rows for request in service.requests] == [2, 3, 3]
    assert all(request.outputs == [1] for request in service.requests), "outputs that nobody asked for were computed"


@pytest.mark.parametrize("path", ["/v1/models/m/versions/1:explain", "/v1/models/m%3Aexplain", "/V1/models/m:EXPLAIN"])
async def test_paths(path: str) -> None:
    assert (await Site(linear()).explained({"instances": [[1, 1, 1]]}, path=path))[0]["base"] == 2.0


@pytest.mark.parametrize(
    ("more", "target", "expected"),
    [
        ({"target": 1}, 1, [-1, 2, -3]),
        ({"baseline": 1}, 0, [0, 0, 0]),
        ({"baseline": [1, 0, 0]}, 0, [0, -2, 3]),
        ({"baseline": {"x": 2}}, 0, [-1, 2, -3]),
        ({"output": "label"}, 0, [0, 0, 0]),
        ({"parts": 1}, 0, [2, 2, 2]),
        ({"parts": 2}, 0, [-1, -1, 3]),
        ({"signature_name": "serving_default"}, 0, [1, -2, 3]),
    ],
)
async def test_what_may_be_asked_for(more: dict[str, Any], target: int, expected: list[float]) -> None:
    (explained,) = await Site(linear()).explained({"instances": [[1, 1, 1]], **more})
    assert (explained["target"], explained["attributions"]) == (target, expected)


async def test_several_inputs_are_explained_together() -> None:
    service = Computing(
        [("a", DType.FP32, (-1, 2)), ("b", DType.INT32, (-1,)), ("mask", DType.BOOL, (-1,)), ("t", DType.BYTES, (-1,))],
        [("y", DType.FP64, (-1,))],
        lambda a, b, mask, t: np.where(mask, a.sum(axis=1) + 10.0 * b + 100.0 * (t == b"x"), np.nan),
    )
    instance = {"a": [1, 2], "b": 3, "mask": True, "t": "x"}
    (explained,) = await Site(service).explained({"instances": [instance], "baseline": {"b": 1}})
    assert explained["base"] == 133.0
    assert explained["attributions"] == {"a": [1, 2], "b": 20, "t": 100}
    assert explained["part"] == {"a": [1], "b": [], "t": []}


async def test_images_are_explained_in_patches_within_a_bound() -> None:
    service = Computing([("image", DType.FP32, (-1, 1, 64, 64))], [("y", DType.FP32, (-1,))], lambda x: x.sum(axis=(1, 2, 3)))
    (explained,) = await Site(service).explained({"instances": np.ones((1, 1, 64, 64)).tolist()})
    found = np.array(explained["attributions"])
    assert found.shape == (1, 64, 64)
    assert explained["part"] == [1, 4, 4]
    assert (found == 16).all()
    assert sum(request.ticket.rows for request in service.requests) == 1 + MOST_PARTS
    assert max(request.ticket.rows for request in service.requests) == ROWS


@pytest.mark.parametrize("dtype", [DType.BF16, DType.FP16, DType.FP64, DType.INT8])
async def test_types(dtype: DType) -> None:
    service = Computing([("x", dtype, (-1, 2))], [("y", DType.FP32, (-1,))], lambda x: x.sum(axis=1).astype(np.float32))
    (explained,) = await Site(service).explained({"instances": [[1, 2]]})
    if dtype is not DType.BF16:  # whose bit patterns the model here adds up
        assert explained["attributions"] == [1, 2]
    assert {request.inputs[0].dtype for request in service.requests} == {dtype}


async def test_a_model_without_batches_gets_one_instance_at_a_time() -> None:
    service = linear(batched=False)
    explained = await Site(service).explained({"instances": [[1, 1, 1], [2, 2, 2]]})
    assert [one["attributions"] for one in explained] == [[1, -2, 3], [2, -4, 6]]
    assert {request.inputs[0].shape for request in service.requests} == {(1, 3)}


async def test_requests_are_no_larger_than_the_model_takes() -> None:
    service = linear()
    await Site(service, max_batch=2).explained({"instances": [[1, 1, 1]] * 3})
    assert {request.ticket.rows for request in service.requests} == {1, 2}


@pytest.mark.parametrize(
    ("body", "status", "clue"),
    [
        (b"", 400, "empty"),
        (b"{", 400, "JSON Parse error"),
        ({}, 400, "instances"),
        ({"instances": []}, 400, "No values in 'instances'"),
        ({"instances": [[1, 2]]}, 400, "unexpected shape for input 'x'"),
        ({"instances": [[1, 2, 3], [1, 2]]}, 400, "ragged"),
        ({"instances": [["a", "b", "c"]]}, 400, "is not a number"),
        ({"instances": [[1, 2, 3]], "basline": 1}, 400, "unknown field `basline`"),
        ({"instances": [[1, 2, 3]], "baseline": [1, 2]}, 400, "the baseline of 'x' has the shape [2]; an instance has [3]"),
        ({"instances": [[1, 2, 3]], "baseline": "a"}, 400, "'a' is not a number"),
        ({"instances": [[1, 2, 3]], "target": 2}, 400, "target is 2, but output 'scores' has 2 elements"),
        ({"instances": [[1, 2, 3]], "target": -1}, 400, "target is -1"),
        ({"instances": [[1, 2, 3]], "output": "z"}, 400, "unexpected inference output 'z'"),
        ({"instances": [[1, 2, 3]], "parts": 0}, 400, "parts is 0; it must be from 1 to 256"),
        ({"instances": [[1, 2, 3]] * (MOST_INSTANCES + 1)}, 400, "65 instances are too many"),
    ],
)
async def test_what_is_refused(body: Any, status: int, clue: str) -> None:
    reply = await Site(linear()).ask(body)
    assert reply.status == status
    assert clue in reply.error


@pytest.mark.parametrize(
    "unfit",
    [
        Signature(
            (TensorSpec("x", DType.FP32, (3, -1), rows=1),), (TensorSpec("y", DType.FP32, (3, -1), rows=1),), True, "fake"
        ),
        Signature((TensorSpec("x", DType.FP32, (5, 3)),), (TensorSpec("y", DType.FP32, (5, 3)),), False, "fake"),
        Signature((TensorSpec("x", DType.FP32, (-1, 3)),), (TensorSpec("y", DType.FP32, (-1, 3)),), True, "fake", streams=True),
    ],
    ids=["rows elsewhere", "fixed", "in parts"],
)
async def test_models_that_cannot_be_explained(unfit: Signature) -> None:
    reply = await Site(EchoService(unfit)).ask({"instances": [[1, 2, 3]]})
    assert (reply.status, "cannot be explained" in reply.error) == (501, True)


async def test_an_unknown_model_and_a_body_that_is_too_large() -> None:
    site = Site(linear(), limits=HttpLimits(max_json_bytes=1024))
    assert (await site.ask({"instances": [[1, 1, 1]]}, "/v1/models/other:explain")).status == 404
    assert (await site.ask({"instances": [[1, 1, 1]] * 200})).status == 413


async def test_a_failure_of_the_model_is_that_of_the_explanation() -> None:
    class Failing(Computing):
        def submit(self, request: Request, reply: Any) -> None:
            if len(self.requests) > 2:
                reply.failed(Failure(FailureKind.QUEUE_FULL, "the queue is full", 1.0))
            else:
                super().submit(request, reply)

    service = Failing([("x", DType.FP32, (-1, 64))], [("y", DType.FP32, (-1,))], lambda x: x.sum(axis=1))
    reply = await Site(service, max_batch=8).ask({"instances": [[1.0] * 64]})
    assert (reply.status, reply.error, reply.headers["retry-after"]) == (503, "the queue is full", "1")


def held(**more: Any) -> Held:
    return Held([("x", DType.FP32, (-1, 256))], [("y", DType.FP32, (-1,))], lambda x: x.sum(axis=1), **more)


async def _until_waiting(service: Held, count: int) -> None:
    await _until(lambda: len(service.waiting) >= count)


async def test_only_a_few_requests_are_under_way_and_none_once_the_client_has_left() -> None:
    service = held()
    site = Site(service)
    site.wire.feed(post("/v1/models/m:explain", json.dumps({"instances": [[1.0] * 256]}).encode()))
    await _until_waiting(service, 1)
    service.release()
    await _until_waiting(service, AT_A_TIME)
    for _ in range(20):
        await asyncio.sleep(0)
    assert len(service.waiting) == AT_A_TIME
    site.wire.lose()
    await _until(lambda: not service.waiting)
    assert len(service.cancelled) == AT_A_TIME
    for _ in range(20):
        await asyncio.sleep(0)
    assert len(service.requests) == 1 + AT_A_TIME, "it went on without its client"


async def test_the_deadline_is_for_all_of_it() -> None:
    now = 100.0
    service = held()
    site = Site(service, clock=lambda: now)
    asking = asyncio.ensure_future(site.ask({"instances": [[1.0] * 256]}, **{"x-request-deadline-ms": "2000"}))
    await _until_waiting(service, 1)
    assert service.waiting[0][0].ticket.answer_by == 102.0
    now = 101.5
    service.release()
    await _until_waiting(service, AT_A_TIME)
    assert {request.ticket.answer_by for request, _ in service.waiting} == {102.0}
    now = 103.0
    service.release()
    reply = await asking
    assert (reply.status, "not complete in time" in reply.error) == (504, True)


async def test_predict_stands_beside_it() -> None:
    catalog = Catalog()
    catalog.add(served(linear()))
    wire = Wire(app_over(catalog))
    wire.feed(post("/v1/models/m:predict", b'{"instances": [[1, 1, 1]]}'))
    assert wire.take()[0].json()["predictions"] == [{"label": 0, "scores": [2.0, -2.0]}]


@pytest.mark.parametrize(("first", "then"), [("", ""), ("small", "small"), ("", "small"), ("small", "")])
async def test_an_explanation_is_of_one_model_which_it_names(first: str, then: str) -> None:
    service = held()
    service.variant = first
    site = Site(service)
    site.wire.feed(post("/v1/models/m:explain", json.dumps({"instances": [[1.0] * 256]}).encode()))
    await _until_waiting(service, 1)
    service.release()
    service.variant = then
    while not site.wire.transport.written:
        while service.waiting:
            service.release()
        await asyncio.sleep(0)
    (reply,) = site.wire.replies
    assert reply.status == (200 if first == then else 503)
    assert reply.headers.get("x-dlproxy-variant", "") == (first if first == then else "")
    assert first == then or "what either says does not explain the other" in reply.error

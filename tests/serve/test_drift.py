"""Drift of a served model, on real digits: none where others of the same kind come, some where images are spoilt."""

import logging
from collections.abc import Callable
from itertools import count
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
from numpy.typing import NDArray

from dlproxy import Model, Proxy
from dlproxy.message import DType, Failure, FailureKind, Request, Response, Signature, Tensor, TensorSpec, Ticket, Timing
from dlproxy.policy.watch.drift import REFERENCE, SAMPLE
from dlproxy.serve.drift import EVERY_S, DriftLayer
from dlproxy.service import ReplyTo
from dlproxy.telemetry.stats import ModelStats
from dlproxy.tensors import to_bytes
from tests import models

Images = NDArray[np.float32]
IMAGE = TensorSpec("image", DType.FP32, (-1, 1, 8, 8), rows=0)
LOGITS = TensorSpec("logits", DType.FP32, (-1, 10), rows=0)


class Model10:
    """A Service that answers at once, as the digits model does. `clock` goes on by `step_s` with each request."""

    def __init__(self, step_s: float = EVERY_S) -> None:
        self._session = ort.InferenceSession(str(models.DIGITS), providers=["CPUExecutionProvider"])
        self.stats = ModelStats()
        self.at, self._step_s = 0.0, step_s
        self.fails = False
        self.answered = 0
        self._ids = count(1)
        signature = Signature((IMAGE,), (LOGITS,), batched=True, platform="fake")
        self.layer = DriftLayer(self, "digits", signature, self.stats, lambda: self.at)

    def submit(self, request: Request, reply: ReplyTo) -> None:
        if self.fails:
            reply.failed(Failure(FailureKind.MODEL_FAILED, "no"))
            return
        answer = _tensor("logits", next(self._answers)[None])
        reply.completed(Response("", "digits", "1", [answer], Timing(0.0, 0.0, 0.0)))

    def cancel(self, request: Request) -> None: ...

    def completed(self, response: Response) -> None:
        self.answered += 1

    def failed(self, failure: Failure) -> None:
        self.answered += 1

    def ask(self, images: Images) -> None:
        name = self._session.get_inputs()[0].name
        self._answers = iter(self._session.run(None, {name: images})[0])
        for image in images:
            self.at += self._step_s
            self.layer.submit(Request(Ticket(next(self._ids), self.at), "digits", [_tensor("image", image[None])], (0,)), self)


def _tensor(name: str, array: NDArray[Any]) -> Tensor:
    return Tensor(name, DType.FP32, array.shape, to_bytes(DType.FP32, array))


def _digits(number: int, seed: int) -> Images:
    """Some of those that the model was not trained on."""
    with np.load(models.HELDOUT) as heldout:
        images = heldout["images"].astype(np.float32).reshape(-1, 1, 8, 8)
    some: Images = images[np.random.default_rng(seed).integers(len(images), size=number)]
    return some


def _inverted(images: Images) -> Images:
    inverted: Images = images.max() - images
    return inverted


def _noisy(images: Images) -> Images:
    noise = np.random.default_rng(0).normal(0.0, 0.35 * images.max(), images.shape)
    return np.clip(images + noise, 0.0, images.max()).astype(np.float32)


@pytest.mark.parametrize("spoil", [_inverted, _noisy])
def test_spoilt_images_are_told_and_others_of_the_same_kind_are_not(
    spoil: Callable[[Images], Images], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "dlproxy.serve.drift")
    model = Model10()
    model.ask(_digits(REFERENCE + 3 * SAMPLE, 1))
    counts = model.stats.drift
    assert counts is not None
    assert (counts.rows, counts.drifted, caplog.messages) == (REFERENCE + 3 * SAMPLE, [], [])
    assert {name for name, _ in counts.distances} == {
        *(f"input image {what}" for what in ("mean", "spread", "zeros", "length")),
        *("output logits class", "output logits score"),
    }
    model.ask(spoil(_digits(SAMPLE, 2)))
    told = " ".join(counts.drifted)
    assert "input image mean (PSI" in told
    assert "output logits score (KS" in told
    assert model.layer.state()["drifted"] == counts.drifted
    model.ask(spoil(_digits(SAMPLE, 3)))
    model.ask(_digits(SAMPLE, 4))
    assert counts.drifted == []
    warned, calmed = caplog.messages
    assert warned.startswith("model digits: requests or answers are others than at first: input image mean (PSI ")
    assert calmed == "model digits: requests and answers are as at first again"


def test_however_many_come_about_ten_a_second_are_looked_at_and_failures_are_not() -> None:
    model = Model10(step_s=0.001)
    model.ask(np.repeat(_digits(1, 1), 4000, axis=0))
    counts = model.stats.drift
    assert counts is not None
    assert model.answered == 4000
    assert 20 <= counts.rows <= 80
    before = counts.rows
    model.fails = True
    model.ask(np.repeat(_digits(1, 1), 1000, axis=0))
    assert (model.answered, counts.rows) == (5000, before)


@pytest.mark.parametrize(
    ("dtype", "array", "numbers"),
    [
        (DType.FP32, np.array([[0.0, np.nan, 2.0, 4.0]], np.float32), {"length": 4.0, "zeros": 0.5, "mean": 2.0}),
        (
            DType.INT64,
            np.arange(12000, dtype=np.int64).reshape(2, 6000),
            {"length": 6000.0, "mean": pytest.approx(6000, rel=0.01)},
        ),
        (DType.BYTES, np.array(["a", "four"], object), {"length": 2.5}),
        (DType.FP32, np.zeros((0, 3), np.float32), {}),
    ],
)
def test_the_numbers_of_an_input(dtype: DType, array: NDArray[Any], numbers: dict[str, float]) -> None:
    from dlproxy.serve.drift import _of_input

    found = dict(_of_input(Tensor("x", dtype, array.shape, to_bytes(dtype, array))))
    assert {what: found[f"input x {what}"] for what in numbers} == numbers
    assert bool(found) == bool(numbers)


async def test_there_is_no_layer_where_it_is_off_and_the_control_port_tells_where_it_is_on() -> None:
    async with Proxy([Model(models.DIGITS, name="on", drift="on"), Model(models.DIGITS, name="off")]) as proxy:
        image = np.zeros((1, 1, 8, 8), np.float32)
        for name in ("on", "off"):
            await proxy.infer(name, {"image": image})
        on, off = (proxy._models.catalog.get(name) for name in ("on", "off"))
        assert on.control is not None
        assert off.control is not None
        assert on.control.state()["drift"] == {"rows": 1, "drifted": [], "compared": []}
        assert off.control.state()["drift"] is None
        assert off.stats.drift is None

"""Looks at one request of several, and compares what comes and what is answered with how it was when the model was loaded.

A Service around a model's own, put there by assemble.py where `drift` is on. Not aware of: what is far off.
"""

import logging
from collections.abc import Callable, Iterator
from math import isfinite
from random import Random
from typing import Any

import msgspec
import numpy as np

from dlproxy.message import DType, Failure, Request, Response, Signature, Tensor, TensorSpec
from dlproxy.policy.watch.drift import Compared, Drift, Test, drifted
from dlproxy.service import ReplyTo, Service
from dlproxy.telemetry.stats import DriftCounts, ModelStats
from dlproxy.tensors import elements_of, to_values

EVERY_S = 0.1  # a request is looked at, about, however many come
MOST_ELEMENTS = 4096  # of an input, evenly spaced
MOST_STRINGS = 64
MOST_CLASSES = 1000
FLOATS = (DType.FP16, DType.BF16, DType.FP32, DType.FP64)

log = logging.getLogger(__name__)


class DriftLayer:
    """Whoever is not looked at costs a subtraction."""

    def __init__(self, inner: Service, name: str, signature: Signature, stats: ModelStats, clock: Callable[[], float]) -> None:
        self._inner = inner
        self.cancel = inner.cancel
        self._name = name
        self._outputs = {spec.name: spec for spec in signature.outputs}
        self._drift = Drift(dict(_tests(signature)))
        self._counts = stats.drift = DriftCounts()
        self._compared: list[Compared] = []
        self._clock = clock
        self._random = Random(0)  # clients that take turns must not be told from one another by their places
        self._gap = self._left = 1
        self._looked_at = clock()

    def submit(self, request: Request, reply: ReplyTo) -> None:
        self._left -= 1
        if self._left:
            self._inner.submit(request, reply)
        else:
            self._pace()
            self._inner.submit(request, _Looks(request, reply, self._look))

    def state(self) -> dict[str, Any]:
        """JSON."""
        return {
            "rows": self._counts.rows,
            "drifted": self._counts.drifted,
            "compared": [msgspec.to_builtins(one) for one in self._compared],
        }

    def _pace(self) -> None:
        now = self._clock()
        passed_s, self._looked_at = now - self._looked_at, now
        if passed_s < EVERY_S / 2.0:
            self._gap *= 2
        elif passed_s > EVERY_S * 2.0:
            self._gap = max(self._gap // 2, 1)
        self._left = self._random.randint(1, 2 * self._gap - 1)

    def _look(self, request: Request, response: Response) -> None:
        row: dict[str, float] = {}
        try:
            for tensor in request.inputs:
                row.update(_of_input(tensor))
            for tensor in response.outputs:
                row.update(_of_output(tensor, self._outputs[tensor.name]))
        except Exception:  # an answer is never lost for this
            log.exception("model %s: a request could not be compared with the first ones", self._name)
            return
        self._counts.rows += 1
        found = self._drift.add({name: float(value) for name, value in row.items() if isfinite(value)})
        if found is not None:
            self._hear(found)

    def _hear(self, found: list[Compared]) -> None:
        counts, before = self._counts, self._counts.drifted
        self._compared = found
        counts.distances = {(one.name, one.test): one.distance for one in found}
        counts.drifted = [_words(one) for one in drifted(found)]
        if counts.drifted and not before:
            log.warning("model %s: requests or answers are others than at first: %s", self._name, "; ".join(counts.drifted))
        elif before and not counts.drifted:
            log.info("model %s: requests and answers are as at first again", self._name)


class _Looks:
    """In place of the ReplyTo of a request that is looked at."""

    __slots__ = ("_look", "_reply", "_request")

    def __init__(self, request: Request, reply: ReplyTo, look: Callable[[Request, Response], None]) -> None:
        self._request = request
        self._reply = reply
        self._look = look

    def completed(self, response: Response) -> None:
        self._reply.completed(response)
        self._look(self._request, response)

    def failed(self, failure: Failure) -> None:
        self._reply.failed(failure)


def _words(one: Compared) -> str:
    return f"{one.name} ({one.test.upper()} {one.distance:.2f}; mean {one.now:.4g}, at first {one.before:.4g})"


def _tests(signature: Signature) -> Iterator[tuple[str, Test]]:
    for spec in signature.inputs:
        if spec.dtype is not DType.BYTES:
            yield from ((f"input {spec.name} {what}", "psi") for what in ("mean", "spread", "zeros"))
        yield f"input {spec.name} length", "psi"
    for spec in signature.outputs:
        if spec.dtype is not DType.BYTES:
            yield f"output {spec.name} class", "psi"
            yield f"output {spec.name} score", "ks"


def _of_input(tensor: Tensor) -> Iterator[tuple[str, float]]:
    """Of all its rows: mean, standard deviation, share of zeros or what is no number; elements, or bytes of a string."""
    name = f"input {tensor.name}"
    if tensor.dtype is DType.BYTES:
        lengths = [len(element) for element, _ in zip(elements_of(tensor.data), range(MOST_STRINGS), strict=False)]
        if lengths:
            yield f"{name} length", sum(lengths) / len(lengths)
        return
    flat = to_values(tensor, text=False).ravel()
    if not flat.size:
        return
    rows = tensor.shape[0] if tensor.shape else 1
    yield f"{name} length", flat.size / max(rows, 1)
    some = flat[:: -(-flat.size // MOST_ELEMENTS)].astype(np.float64)
    known = some[np.isfinite(some)]
    yield f"{name} zeros", 1.0 - np.count_nonzero(known) / some.size
    if known.size:
        yield f"{name} mean", float(known.mean())
        yield f"{name} spread", float(known.std())


def _of_output(tensor: Tensor, spec: TensorSpec) -> Iterator[tuple[str, float]]:
    """Of its first row: the class, where it gives scores of them or the class itself, and the score of that, or its mean."""
    name = f"output {tensor.name}"
    if tensor.dtype is DType.BYTES:
        return
    numbers = to_values(tensor, text=False)
    row = (numbers[0] if spec.rows == 0 and numbers.ndim else numbers).ravel()
    if not row.size:
        return
    if tensor.dtype not in FLOATS:
        if row.size == 1:
            yield f"{name} class", float(row[0])
    elif 1 < row.size <= MOST_CLASSES and numbers.ndim <= 2:
        yield f"{name} class", float(row.argmax())
        yield f"{name} score", float(row.max())
    else:
        yield f"{name} score", float(row.mean(dtype=np.float64))

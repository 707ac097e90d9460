"""Serves a graph to 32 clients at once, then to two at a time; their answers beside those of ONNX Runtime to each alone.

Uses the library as its users do; not aware of how dlproxy finds out which rows may share a batch.
"""

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from dlproxy import InferenceError, Model, Proxy
from dlproxy.instance.runtime import ModelError
from tests.instance.graphs.draft import Made

Array = NDArray[Any]
Answer = Mapping[str, Array] | Exception

CLIENTS = 32
TOLERANCE = 1e-3  # of an output's largest value in the request: kernels for other batch sizes sum in another order
CANCELLED = 1e-5  # of the largest value that goes in, or of 1: what rounding leaves where large numbers take each other off


@dataclass
class Verdict:
    """`padded`: some shared a batch with longer ones. `wrong` and `refused`: one line for each request that got another answer,
    or none, than it gets alone.
    """

    batched: bool = False
    padded: bool = False
    wrong: list[str] = field(default_factory=list)
    refused: list[str] = field(default_factory=list)
    answered: int = 0

    @property
    def word(self) -> str:
        """For the tally."""
        return "wrong" if self.wrong else "refused" if self.refused else "batched" if self.batched else "alone"


async def judge(made: Made, path: Path, seed: int) -> Verdict:
    """`path`: where the graph has been written to."""
    requests = made.requests(seed, CLIENTS)
    alone = _alone(path, requests)
    verdict = Verdict()
    try:
        async with Proxy([Model(path, name="m", threads=1)]) as proxy:
            waves = [await _served(proxy, requests, at_once) for at_once in (CLIENTS, 2)]
            stats = proxy.models[0].served.stats
            stats.settle()
            verdict.batched = stats.batches < stats.request.count
            verdict.padded = stats.elements["padding"] > 0
    except ModelError as error:
        verdict.refused.append(f"the model: {error}")
        return verdict
    for served in waves:
        for request, got, want in zip(requests, served, alone, strict=True):
            _compare(verdict, request, got, want, random=made.random)
    return verdict


async def _served(proxy: Proxy, requests: Sequence[Mapping[str, Array]], at_once: int) -> list[object]:
    """Few at once make batches in which what is rare stands beside one other, or beside nothing rare."""
    served: list[object] = []
    for start in range(0, len(requests), at_once):
        wave = (proxy.infer("m", request) for request in requests[start : start + at_once])
        served += await asyncio.gather(*wave, return_exceptions=True)
    return served


def _alone(path: Path, requests: Sequence[Mapping[str, Array]]) -> list[Answer]:
    options = ort.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 4
    session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    answers: list[Answer] = []
    for request in requests:
        try:
            answers.append(dict(zip(names, session.run(names, request), strict=True)))
        except Exception as error:  # of a dozen unrelated types
            answers.append(error)
    return answers


def _compare(verdict: Verdict, request: Mapping[str, Array], got: object, want: Answer, *, random: bool) -> None:
    """Where ONNX Runtime fails alone, any error will do; where it answers, nothing but its answer."""
    if isinstance(got, BaseException) and not isinstance(got, InferenceError):
        raise got
    if isinstance(want, Exception):
        if not isinstance(got, InferenceError):
            verdict.wrong.append(f"{shown(request)} is answered with {shown(got)}, but fails alone: {want}")
        return
    verdict.answered += 1
    if isinstance(got, InferenceError):
        verdict.refused.append(f"{shown(request)}: {got.failure.kind.value}: {got}")
        return
    assert isinstance(got, dict)
    largest = max(_largest(array) for array in request.values())
    if list(got) != list(want) or not all(_same(got[name], want[name], verdict.batched, random, largest) for name in want):
        verdict.wrong.append(f"{shown(request)} is answered with {shown(got)}, but alone with {shown(want)}")


def _same(got: Array, want: Array, batched: bool, random: bool, largest_in: float) -> bool:
    """To the bit, unless requests shared batches."""
    if got.shape != want.shape or got.dtype != want.dtype:
        return False
    if random:
        return True
    if not batched or want.dtype.kind != "f":
        return bool(np.array_equal(got, want, equal_nan=want.dtype.kind == "f"))
    least = TOLERANCE * _largest(want) + CANCELLED * max(largest_in, 1.0)
    return bool(np.allclose(got, want, rtol=TOLERANCE, atol=least, equal_nan=True))


def _largest(array: Array) -> float:
    """Of finite floats; 0 of anything else."""
    return float(np.max(np.abs(array), initial=0.0, where=np.isfinite(array))) if array.dtype.kind == "f" else 0.0


def shown(arrays: object) -> str:
    """Names and values in a line, the ends of long ones left out."""
    assert isinstance(arrays, Mapping)
    with np.printoptions(precision=4, suppress=True, threshold=24, linewidth=10_000):
        return ", ".join(f"{name} = {' '.join(str(array).split())}" for name, array in arrays.items())

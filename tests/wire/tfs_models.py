"""Models behind TensorFlow Serving's doors, for the tests of both: they answer with what a function makes of the inputs."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from dlproxy.config import HttpLimits
from dlproxy.message import DType, Failure, FailureKind, InferenceError, Request, Response, Signature, Tensor
from dlproxy.policy.planner import VersionState
from dlproxy.tensors import Array, join_elements, to_array, to_bytes
from dlproxy.wire.catalog import Catalog, ServedModel
from dlproxy.wire.oip.http import OipApp
from dlproxy.wire.tfs.http import TfsRoutes

from .fixtures import TIMING, EchoService, Reply, Wire, post, request, served, specs

Tensors = Sequence[tuple[str, DType, tuple[int, ...]]]
Answer = Callable[..., Any]


class Computing(EchoService):
    """`answer`: called with the inputs as arrays, gives one array for each output; BYTES are lists of bytes or text."""

    def __init__(self, inputs: Tensors, outputs: Tensors, answer: Answer, *, batched: bool = True, model: str = "m") -> None:
        super().__init__(Signature(specs(*inputs), specs(*outputs), batched, "fake"), model=model, at_once=False)
        self._answer = answer

    def submit(self, request: Request, reply: Any) -> None:
        self.requests.append(request)
        arrays = [to_array(each.dtype, each.shape, each.data) for each in request.inputs]
        given = [self._answer(*arrays)] if len(self.signature.outputs) == 1 else self._answer(*arrays)
        outputs = []
        for index in request.outputs:
            spec = self.signature.outputs[index]
            outputs.append(tensor(spec.name, spec.dtype, given[index]))
        reply.completed(Response(request.id, self.model, self.version, outputs, TIMING, variant=self.variant))


def tensor(name: str, dtype: DType, value: Any) -> Tensor:
    if dtype is DType.BYTES:
        array: Array = np.array(value, dtype=object)
        return Tensor(name, dtype, array.shape, join_elements(array.ravel().tolist()))
    array = np.array(value)
    return Tensor(name, dtype, array.shape, to_bytes(dtype, array))


def half_plus_two(**more: Any) -> Computing:
    """TensorFlow Serving's own example."""
    return Computing([("x", DType.FP32, (-1,))], [("y", DType.FP32, (-1,))], lambda x: x / 2 + 2, model="half", **more)


def two_inputs() -> Computing:
    """s = a + b, d = a - b."""
    inputs = [("a", DType.FP32, (-1, 2)), ("b", DType.INT32, (-1, 2))]
    outputs = [("s", DType.FP32, (-1, 2)), ("d", DType.FP64, (-1, 2))]
    return Computing(inputs, outputs, lambda a, b: (a + b, a - b), model="two")


def identity(dtype: DType, shape: tuple[int, ...] = (-1,), *, output: str = "y", batched: bool = True) -> Computing:
    return Computing([("x", dtype, shape)], [(output, dtype, shape)], lambda x: x, batched=batched)


def catalog_of(*services: EchoService | ServedModel, max_batch: int = 64) -> Catalog:
    catalog = Catalog()
    for each in services:
        catalog.add(each if isinstance(each, ServedModel) else served(each, max_batch=max_batch))
    return catalog


class Shelf:
    """A repository that does what it is told, but for a model that it lacks. `known`: what it tells of versions."""

    def __init__(self, *known: VersionState) -> None:
        self.explicit = True
        self.done: list[tuple[str, str]] = []
        self._known = known

    def states(self) -> Sequence[VersionState]:
        return self._known

    async def index(self) -> Sequence[VersionState]:
        return self._known

    async def load(self, name: str, overrides: Mapping[str, Any] | None) -> None:
        if name == "lacking":
            raise InferenceError(Failure(FailureKind.NOT_FOUND, "failed to load 'lacking'"))
        self.done.append(("load", name))

    async def unload(self, name: str) -> None:
        self.done.append(("unload", name))


COMING_AND_GOING = Shelf(
    VersionState("half", "1", "serving"),
    VersionState("half", "2", "loading"),
    VersionState("half", "3", "leaving"),
    VersionState("half", "4", "failed", reason="it is broken"),
    VersionState("half", "10", "wanted"),
    VersionState("half", "11", "wanted", on_demand=True),
    VersionState("other", "5", "loading"),
)
STATES = {"10": "START", "4": "END", "3": "UNLOADING", "2": "LOADING", "1": "LOADING"}  # of half, while 1 has no instance


def app_over(catalog: Catalog, limits: HttpLimits | None = None, repository: Shelf | None = None) -> OipApp:
    limits = limits or HttpLimits()

    def clock() -> float:
        return 100.0

    rows = TfsRoutes(catalog, limits, clock=clock, server_timing=False, repository=repository).rows()
    return OipApp(catalog, limits, clock=clock, server_timing=False, more=rows)


class Site:
    """A client of one app."""

    def __init__(
        self, *services: EchoService | ServedModel, limits: HttpLimits | None = None, repository: Shelf | None = None
    ) -> None:
        self.catalog = catalog_of(*services)
        self._wire = Wire(app_over(self.catalog, limits, repository), limits)

    def get(self, path: str, method: str = "GET") -> Reply:
        self._wire.feed(request(path, method))
        return self._wire.take()[0]

    def post(self, path: str, body: bytes | str, **headers: str) -> Reply:
        self._wire.feed(post(path, body if isinstance(body, bytes) else body.encode("utf-8", "surrogatepass"), **headers))
        return self._wire.take()[0]

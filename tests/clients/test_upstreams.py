"""dlproxy in front of a real second dlproxy: the same answers through both, and a killed one is hardly noticed."""

import asyncio
import signal
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager

import numpy as np
import pytest
import tritonclient.http as triton

from dlproxy.instance import Instance
from dlproxy.instance.batch import Cutter
from dlproxy.instance.remote import RemoteInstance, parse_address, start_upstreams
from dlproxy.message import DType, FailureKind
from dlproxy.testing import FakeRuntime
from tests import models
from tests.clients.server import ServerProcess
from tests.instance.remote_cases import request
from tests.instance.remote_lane import Flood, RemoteLane
from tests.instance.running import run
from tests.instance.upstreams import QUICK, DlproxyUpstream, until


def _remote(server: ServerProcess, model: str) -> RemoteInstance:
    return RemoteInstance(f"{model}-0", parse_address(f"http://{server.address}/v2/models/{model}"), QUICK)


@asynccontextmanager
async def _started(server: ServerProcess, model: str) -> AsyncIterator[RemoteInstance]:
    instance = _remote(server, model)
    await instance.start()
    try:
        yield instance
    finally:
        await instance.stop()


IDENTITIES = [
    ("half", DType.FP16, np.array([[1.5, np.inf, 0.1], [2, 3, 4]], np.float16)),
    ("brain", DType.BF16, np.array([[0x3FC0, 0x7FC1, 1], [2, 3, 4]], np.uint16)),
    ("wide", DType.INT64, np.array([[2**62, -1], [3, 4]], np.int64)),
    ("text", DType.BYTES, np.array([["zwölf", ""], ["a\0b", "c"]], object)),
]


@pytest.mark.parametrize(("model", "dtype", "values"), IDENTITIES, ids=[case[0] for case in IDENTITIES])
async def test_every_type_comes_back_as_it_went(server: ServerProcess, model: str, dtype: DType, values: object) -> None:
    async with _started(server, model) as instance:
        given = [request(("x", dtype, values)), request(("x", dtype, np.asarray(values)[:1]))]
        result = await run(instance, *given)
        assert result.error is None
        cutter = Cutter(instance.model.signature, result.outputs, requests=len(given))
        for start, sent in zip((0, 2), given, strict=True):
            (tensor,) = cutter.cut(start, sent.ticket.rows, (0,))
            assert bytes(tensor.data) == bytes(sent.inputs[0].data)


async def test_a_limit_of_the_upstream_is_known(server: ServerProcess) -> None:
    async with _started(server, "simple") as instance:
        assert instance.model.max_batch == 8
        ones = np.ones((9, 4), np.int32)
        result = await run(instance, request(("a", DType.INT32, ones), ("b", DType.INT32, ones)))
        assert result.failure is not None
        assert result.failure.kind is FailureKind.INVALID_ARGUMENT
        assert "batch-size must be <= 8" in result.failure.message


async def test_an_unknown_model_is_named(server: ServerProcess) -> None:
    instance = _remote(server, "nothing")
    with pytest.raises(Exception, match="unknown model: 'nothing'"):
        await instance.start()
    await instance.stop()


class Front(DlproxyUpstream):
    """dlproxy's HTTP stack over remote instances, in this process."""

    def __init__(self, remotes: Sequence[RemoteInstance]) -> None:
        super().__init__(FakeRuntime(remotes[0].model.signature, _no_model))
        self.remotes = remotes

    def instances(self) -> Sequence[Instance]:
        return self.remotes


def _no_model(inputs: object) -> list[np.ndarray]:  # type: ignore[type-arg]
    raise AssertionError("there is no model here")


def _in_a_thread(work: Callable[[triton.InferenceServerClient], object], port: int) -> object:
    client = triton.InferenceServerClient(f"127.0.0.1:{port}")
    try:
        return work(client)
    finally:
        client.close()


async def test_tritonclient_gets_the_same_answers_through_both(server: ServerProcess) -> None:
    with np.load(models.HELDOUT) as heldout:
        images = heldout["images"][:5].astype(np.float32)

    def ask(model: str) -> Callable[[triton.InferenceServerClient], object]:
        def work(client: triton.InferenceServerClient) -> object:
            (name,) = [described["name"] for described in client.get_model_metadata(model)["inputs"]]
            given = triton.InferInput(name, images.shape, "FP32")
            given.set_data_from_numpy(images)
            return client.infer(model, [given]).as_numpy("probabilities")

        return work

    async with _started(server, "digits") as instance:
        front = Front([instance])
        await front.start()
        through = await asyncio.to_thread(_in_a_thread, ask("m"), front.port)
        straight = await asyncio.to_thread(_in_a_thread, ask("digits"), server.http_port)
        assert np.array_equal(np.asarray(through), np.asarray(straight))
        await front.stop()


async def test_a_process_killed_with_batches_under_way_costs_no_request() -> None:
    model = "slow=sleep:base=20ms,row=0.1ms"
    with ServerProcess(model) as mortal, ServerProcess(model) as other:
        instances = [
            RemoteInstance(f"slow-{number}", parse_address(f"http://{each.address}/v2/models/slow"), QUICK)
            for number, each in enumerate((mortal, other))
        ]
        described = await start_upstreams(instances)
        lane = RemoteLane(described.signature)
        for instance in instances:
            lane.add(instance)
        one = np.ones((1, 1), np.float32)
        flood = Flood(lane, lambda: request(("x", DType.FP32, one)), lambda *_: None, clients=32)
        await until(lambda: flood.answers > 200)
        await until(lambda: any(state.name == "slow-0" and state.in_flight for state in lane.lane.view().instances))
        mortal.send_signal(signal.SIGKILL)
        await until(lambda: not instances[0].up)
        before = flood.answers
        await until(lambda: flood.answers > before + 200)
        await flood.stop()
        assert not flood.failures, flood.failures[:3]
        await lane.driver.stop(1.0)
        for instance in instances:
            await instance.stop()

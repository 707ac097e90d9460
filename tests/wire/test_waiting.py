"""Requests for models that are loaded on demand wait until those are up, in virtual time."""

import asyncio
import gzip
import struct
from collections import Counter
from contextlib import suppress

import pytest

from dlproxy.config import HttpLimits
from dlproxy.message import FailureKind, InferenceError
from dlproxy.wire.catalog import Catalog, NotServedError
from dlproxy.wire.oip.generate import Generate
from dlproxy.wire.oip.http import OipApp
from dlproxy.wire.waiting import Waiting
from tests.serve.rig import pass_time

from .fixtures import PLAIN, EchoService, Wire, post, request, served

pytestmark = pytest.mark.looptime(idle_step=0.1, idle_timeout=1.0)  # whoever waits for ever fails, and does not hang

LOAD_S = 2.0
INFER = b'{"inputs":[{"name":"x","datatype":"FP32","shape":[1,2],"data":[1,2]}]%b}'


class Home:
    """Models "m" (with a label) and "n" come within two seconds when they are asked for, unless `broken` says why not."""

    def __init__(self, *, most: int = 4, most_bytes: int = 10_000) -> None:
        self.catalog = Catalog()
        self.waiting = self.catalog.waiting = Waiting(self, longest_s=5.0, most=most, most_bytes=most_bytes)
        self.service = EchoService(PLAIN, at_once=True)
        self.load_s = LOAD_S
        self.broken: Exception | None = None
        self.loads: Counter[tuple[str, str]] = Counter()
        self.app = OipApp(
            self.catalog,
            HttpLimits(max_json_bytes=5_000),
            clock=asyncio.get_running_loop().time,
            server_timing=False,
            more=Generate(self.catalog, max_json_bytes=5_000, clock=asyncio.get_running_loop().time).rows(),
        )

    def may_come(self, name: str, version: str = "") -> bool:
        return name in ("m", "n") and version in ("", "1")

    async def demand(self, name: str, version: str = "") -> None:
        self.loads[name, version] += 1
        await pass_time(self.load_s)
        if self.broken is not None:
            raise self.broken
        with suppress(NotServedError):
            self.catalog.remove(name, "1")
        self.service.model = name
        self.catalog.add(served(self.service))

    def client(self, *requests: bytes) -> Wire:
        return Wire(self.app).feed(*requests)


@pytest.fixture
async def home() -> Home:
    return Home()


def infer(name: str = "m", more: bytes = b"", **headers: str) -> bytes:
    return post(f"/v2/models/{name}/infer", INFER % more, **headers)


@pytest.mark.parametrize(
    "asked",
    [
        infer(),
        post("/v2/models/m/versions/1/infer", INFER % b""),
        post("/v2/models/%6d/infer", INFER % b""),
        post("/predict/m", b'{"inputs":[[1,2]]}'),
        post("/v2/models/m/generate", b'{"x":[1,2],"parameters":{"timeout":2.5}}'),
        post("/predict/m", gzip.compress(b'{"inputs":[[1,2]]}'), **{"Content-Encoding": "gzip"}),
        request("/v2/models/m"),
        request("/v2/models/m/config"),
    ],
)
async def test_it_is_answered_as_soon_as_the_model_is_up(home: Home, asked: bytes) -> None:
    client = home.client(asked)
    await pass_time(LOAD_S - 0.01)
    assert client.take() == []
    await pass_time(0.02)
    (reply,) = client.take()
    assert reply.status == 200, reply.body
    assert home.waiting.requests == 0


async def test_those_who_wait_for_the_same_share_its_load_and_later_ones_pay_nothing(home: Home) -> None:
    clients = [home.client(infer()) for _ in range(3)]
    await pass_time(LOAD_S + 0.01)
    assert [client.take()[0].status for client in clients] == [200, 200, 200]
    assert home.loads == {("m", ""): 1}
    late = home.client(infer())
    await pass_time(0.0)
    assert late.take()[0].status == 200
    assert home.loads == {("m", ""): 1}


async def test_what_is_wrong_with_a_request_is_said_when_the_model_is_up(home: Home) -> None:
    malformed, unknown = home.client(post("/v2/models/m/infer", b"{")), home.client(infer("nobody"))
    assert unknown.take()[0].status == 404, "nothing to wait for"
    await pass_time(LOAD_S + 0.01)
    assert malformed.take()[0].status == 400


@pytest.mark.parametrize(
    ("error", "status", "said"),
    [
        (ValueError("m.onnx is broken"), 503, "model 'm' could not be loaded: m.onnx is broken"),
        (TimeoutError(), 503, "model 'm' could not be loaded: TimeoutError"),
    ],
)
async def test_a_failed_load_says_why(home: Home, error: Exception, status: int, said: str) -> None:
    home.broken = error
    client = home.client(infer())
    await pass_time(LOAD_S + 0.01)
    (reply,) = client.take()
    assert (reply.status, reply.error) == (status, said)
    assert home.waiting.requests == 0


BINARY = INFER % b',"parameters":{"timeout":1000000}'
TENSOR = struct.pack("<2f", 1, 2)


@pytest.mark.parametrize(
    "asked",
    [
        infer(**{"X-Request-Deadline-Ms": "1000"}),
        infer(more=b',"parameters":{"timeout":1000000}'),
        post("/v2/models/m/infer", BINARY + TENSOR, **{"Inference-Header-Content-Length": str(len(BINARY))}),
        post("/predict/m", b'{"inputs":[[1,2]],"parameters":{"timeout":1000000}}'),
    ],
)
async def test_a_deadline_of_its_own_ends_the_wait(home: Home, asked: bytes) -> None:
    client = home.client(asked)
    await pass_time(0.99)
    assert client.take() == []
    await pass_time(0.02)
    (reply,) = client.take()
    assert (reply.status, reply.error) == (504, "the deadline passed while model 'm' was being loaded")
    assert home.waiting.requests == 0
    await pass_time(LOAD_S)
    assert list(home.catalog) == [], "nobody waited for it any more"


@pytest.mark.parametrize(
    "asked", [infer(**{"X-Request-Deadline-Ms": "3000"}), infer(more=b',"parameters":{"timeout":3000000}')]
)
async def test_what_is_left_of_its_deadline_goes_on(home: Home, asked: bytes) -> None:
    asked_at = asyncio.get_running_loop().time()
    client = home.client(asked)
    await pass_time(LOAD_S + 0.01)
    assert client.take()[0].status == 200
    assert home.service.requests[0].ticket.answer_by == pytest.approx(asked_at + 3.0, abs=0.001)


async def test_a_wrong_deadline_is_refused_before_anything_is_loaded(home: Home) -> None:
    client = home.client(infer(**{"X-Request-Deadline-Ms": "soon"}))
    await pass_time(0.0)
    assert client.take()[0].status == 400
    assert not home.loads


async def test_without_a_deadline_it_does_not_wait_for_ever(home: Home) -> None:
    home.load_s = 60.0
    client = home.client(infer())
    await pass_time(5.01)
    (reply,) = client.take()
    assert (reply.status, reply.error) == (503, "model 'm' is still not up after 5 s")
    assert reply.headers["retry-after"] == "1"


async def test_a_client_that_leaves_is_forgotten(home: Home) -> None:
    leaver, stayer = home.client(infer()), home.client(infer())
    await pass_time(1.0)
    assert home.waiting.requests == 2
    leaver.lose()
    await pass_time(0.0)
    assert home.waiting.requests == 1
    await pass_time(LOAD_S)
    assert stayer.take()[0].status == 200
    assert len(home.service.requests) == 1


async def test_so_many_may_wait_and_no_more(home: Home) -> None:
    clients = [home.client(infer()) for _ in range(5)]
    await pass_time(0.0)
    (reply,) = clients[4].take()
    assert (reply.status, reply.headers["retry-after"]) == (503, "1")
    await pass_time(LOAD_S + 0.01)
    assert [client.take()[0].status for client in clients[:4]] == [200] * 4


async def test_so_many_bytes_may_wait_and_no_more(home: Home) -> None:
    body = INFER % (b" " * 6000)
    clients = [home.client(post("/v2/models/m/infer", body)) for _ in range(2)]
    await pass_time(0.0)
    assert (clients[0].take(), clients[1].take()[0].status) == ([], 503)
    await pass_time(LOAD_S + 0.01)
    assert clients[0].take()[0].status == 413, "its own fault, which its model says"
    assert home.waiting.requests == 0


async def test_whoever_looks_loads_nothing(home: Home) -> None:
    for path in ("/v2/models/m/ready", "/v2/models/m/stats"):
        (reply,) = home.client(request(path)).take()
        assert (reply.status, reply.error) == (503, "model 'm' is not loaded now; a request for it will load it")
    assert home.client(request("/v2/health/ready")).take()[0].status == 200
    await pass_time(LOAD_S + 0.01)
    assert not home.loads


async def test_replies_keep_their_order_behind_one_that_waits(home: Home) -> None:
    client = home.client(infer("m"), request("/v2/health/live"), infer("m"), infer("nobody"))
    await pass_time(0.0)
    assert client.take() == []
    await pass_time(LOAD_S + 0.01)
    assert [(reply.status, "live" in reply.json()) for reply in client.take()] == [
        (200, False),
        (200, True),
        (200, False),
        (404, False),
    ]


async def test_a_drain_answers_those_who_wait_and_lets_nobody_else(home: Home) -> None:
    client = home.client(infer())
    await pass_time(1.0)
    home.catalog.drain()
    await pass_time(0.0)
    late = home.client(infer())
    await pass_time(0.0)
    replies = [(reply.status, reply.error) for reply in (*client.take(), *late.take())]
    assert replies == [(503, "the server is shutting down")] * 2
    assert home.loads == {("m", ""): 1}


async def test_a_model_that_is_gone_again_before_the_request_gets_there_is_waited_for_again(home: Home) -> None:
    up = home.demand

    async def gone_once(name: str, version: str = "") -> None:
        await up(name, version)
        if home.loads[name, version] == 1:
            home.catalog.remove(name, "1")

    home.demand = gone_once  # type: ignore[method-assign]
    client = home.client(infer())
    await pass_time(2 * LOAD_S + 0.1)
    assert client.take()[0].status == 200
    assert home.loads == {("m", ""): 2}


async def test_a_load_that_comes_to_nothing_is_no_loop(home: Home) -> None:
    async def nothing(name: str, version: str = "") -> None:
        home.loads[name, version] += 1

    home.demand = nothing  # type: ignore[method-assign]
    client = home.client(infer())
    await pass_time(0.1)
    assert client.take()[0].status == 503
    assert home.loads == {("m", ""): 3}


async def test_another_kind_of_failure_is_handed_on(home: Home) -> None:
    missing = None
    try:
        home.catalog.get("nobody")
    except NotServedError as error:
        missing = error
    assert missing is not None
    with pytest.raises(InferenceError) as caught:
        await home.waiting.until_up(missing)
    assert caught.value.failure.kind is FailureKind.NOT_FOUND

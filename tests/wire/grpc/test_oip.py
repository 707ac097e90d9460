"""GRPCInferenceService without a connection: what it tells of server and models, inference, repository, models on demand."""

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tritonclient.grpc import service_pb2

from dlproxy import __version__
from dlproxy.config import ModelConfig
from dlproxy.config.pipelines import PIPELINE, StepConfig
from dlproxy.message import DType, Failure, FailureKind, InferenceError
from dlproxy.policy.planner import VersionState
from dlproxy.protos.oip import SERVICE, oip
from dlproxy.wire.catalog import Catalog
from dlproxy.wire.grpc.call import Status
from dlproxy.wire.waiting import Waiting
from tests.fleet.repository.test_text_format import names_of
from tests.serve.rig import pass_time

from ..fixtures import PLAIN, EchoService, Wire, app_of, echo_signature, request, served
from .oip_fixtures import PAIR, A, B, FakeCall, ask, mutated, open_stream, parameter, raw, service

pytestmark = pytest.mark.looptime(idle_step=0.1, idle_timeout=1.0)  # whoever waits for ever fails, and does not hang

IMAGE = echo_signature(("image", DType.FP32, (-1, 3, -1)), ("text", DType.BYTES, (-1, 1)))


def json_of(path: str, *models: Any) -> Any:
    """What the HTTP door answers."""
    return Wire(app_of(*models)).feed(request(path)).replies[0].json()


# Messages


def test_messages_are_those_of_triton_s_own_client() -> None:
    methods = service_pb2.DESCRIPTOR.services_by_name["GRPCInferenceService"].methods
    assert len(methods) > 15
    for method in methods:
        for theirs in (method.input_type, method.output_type):
            ours = getattr(oip, theirs.name).DESCRIPTOR
            assert names_of(ours, {}) == names_of(theirs, {}), theirs.name


# What it tells


def test_server() -> None:
    of = service(served(EchoService(PLAIN)))
    assert ask(of, "ServerLive").answer("ServerLiveResponse").live
    assert ask(of, "ServerReady").answer("ServerReadyResponse").ready
    told = ask(of, "ServerMetadata").answer("ServerMetadataResponse")
    assert (told.name, told.version) == ("dlproxy", __version__)
    assert list(told.extensions) == json_of("/v2")["extensions"]


@pytest.mark.parametrize(
    ("name", "version", "ready"),
    [("m", "", True), ("m", "1", True), ("m", "9", False), ("nobody", "", False), ("down", "", False)],
)
def test_a_model_that_is_not_there_is_not_ready(name: str, version: str, ready: bool) -> None:
    of = service(served(EchoService(PLAIN)), served(EchoService(PLAIN, model="down"), ready=False))
    answer = ask(of, "ModelReady", oip.ModelReadyRequest(name=name, version=version)).answer("ModelReadyResponse")
    assert answer.ready is ready
    assert not ask(of, "ServerReady").answer("ServerReadyResponse").ready


def test_metadata_says_what_http_says() -> None:
    models = [served(EchoService(IMAGE)), served(EchoService(IMAGE, version="2"))]
    told = ask(service(*models), "ModelMetadata", oip.ModelMetadataRequest(name="m")).answer("ModelMetadataResponse")
    assert told == oip.ModelMetadataResponse(**json_of("/v2/models/m", *models))
    assert (list(told.versions), list(told.inputs[0].shape)) == (["1", "2"], [-1, 3, -1])


def test_config_says_what_http_says() -> None:
    models = [served(EchoService(IMAGE)), served(EchoService(msgspec.structs.replace(PLAIN, streams=True), model="parts"))]
    of = service(*models)
    models[0].pipeline = ModelConfig(path=PIPELINE, outputs={"y": "s.y"}, steps={"s": StepConfig(model="n", inputs={"x": "x"})})
    for name in ("parts", "m"):
        told = ask(of, "ModelConfig", oip.ModelConfigRequest(name=name)).answer("ModelConfigResponse").config
        assert told == oip.ModelConfig(**json_of(f"/v2/models/{name}/config", *models))
        assert told.model_transaction_policy.decoupled is (name == "parts")
    assert told.max_batch_size == 8
    assert told.ensemble_scheduling.step[0].output_map == {"y": "y"}


@pytest.mark.parametrize(("name", "version", "count"), [("", "", 3), ("m", "", 2), ("m", "2", 1), ("n", "", 1)])
def test_statistics(name: str, version: str, count: int) -> None:
    models = [
        served(EchoService(PLAIN)),
        served(EchoService(PLAIN, version="2")),
        served(EchoService(PLAIN, model="n")),
    ]
    models[0].stats.failed(FailureKind.LATE, 0.5)
    asked = oip.ModelStatisticsRequest(name=name, version=version)
    told = ask(service(*models), "ModelStatistics", asked).answer("ModelStatisticsResponse").model_stats
    assert len(told) == count
    assert told[0].inference_stats.fail.count == (1 if version != "2" and name != "n" else 0)
    assert told[0].name == (name or "m")


@pytest.mark.parametrize(
    ("method", "kind"),
    [
        ("ModelMetadata", "ModelMetadataRequest"),
        ("ModelConfig", "ModelConfigRequest"),
        ("ModelStatistics", "ModelStatisticsRequest"),
    ],
)
def test_an_unknown_model_or_version(method: str, kind: str) -> None:
    of = service(served(EchoService(PLAIN)))
    call = ask(of, method, getattr(oip, kind)(name="nobody"))
    assert (call.status, call.text[:46]) == (Status.NOT_FOUND, "Request for unknown model: 'nobody' is not fou")
    call = ask(of, method, getattr(oip, kind)(name="m", version="9"))
    assert (call.status, call.text[:45]) == (Status.NOT_FOUND, "Request for unknown model: 'm' version 9 is n")


def test_no_message_at_all() -> None:
    of = service(served(EchoService(PLAIN)))
    for path in of.methods().unary:
        method = path.decode().removeprefix(f"{SERVICE}/")
        call = ask(of, method, b"\xff\xff")
        assert call.status is Status.INVALID_ARGUMENT, method
        assert call.text.startswith("the message cannot be read as inference."), method


# Inference


def test_an_answer_goes_onto_its_call() -> None:
    echo = EchoService(PAIR)
    call = ask(service(served(echo)), "ModelInfer", raw(A, B, id="r"))
    assert not call.ended
    echo.answer()
    told = call.answer("ModelInferResponse")
    assert (told.model_name, told.model_version, told.id) == ("m", "1", "r")
    assert list(told.raw_output_contents) == [A.tobytes(), B.tobytes()]
    assert not told.parameters


def test_refusals_and_failures_have_their_status() -> None:
    echo = EchoService(PAIR)
    of = service(served(echo))
    call = ask(of, "ModelInfer", raw(A))
    assert call.status is Status.INVALID_ARGUMENT
    assert call.text.startswith("[request id: <id_unknown>] expected 2 inputs but got 1 inputs for model 'm'")
    call = ask(of, "ModelInfer", raw(A, B, model="nobody"))
    assert call.status is Status.NOT_FOUND
    call = ask(of, "ModelInfer", raw(A, B))
    echo.waiting.popleft()[1].failed(Failure(FailureKind.QUEUE_FULL, "Exceeds maximum queue size", 0.25))
    assert (call.status, call.text) == (Status.UNAVAILABLE, "Exceeds maximum queue size")
    assert call.extra == ((b"grpc-retry-pushback-ms", b"250"),)


def test_a_client_that_leaves_cancels_its_request() -> None:
    echo = EchoService(PAIR)
    call = ask(service(served(echo)), "ModelInfer", raw(A, B))
    call.leave()
    assert echo.cancelled == echo.requests


def test_headers_set_the_deadline() -> None:
    echo = EchoService(PAIR)
    ask(service(served(echo)), "ModelInfer", raw(A, B), {b"x-request-deadline-ms": b"250"})
    assert echo.requests[0].ticket.answer_by == 100.25


def test_a_model_that_answers_in_parts_is_refused_before_anything_runs() -> None:
    echo = EchoService(msgspec.structs.replace(PAIR, streams=True))
    model = served(echo)
    call = ask(service(model), "ModelInfer", b"".join([raw(A, B).SerializeToString()]))
    text = "ModelInfer RPC doesn't support models with decoupled transaction policy"
    assert (call.status, call.text) == (Status.UNIMPLEMENTED, text)
    assert not echo.requests
    assert model.stats.failures[FailureKind.UNSUPPORTED] == 1


def test_a_catalog_that_changes_is_followed_at_once() -> None:
    old, new = EchoService(PAIR), EchoService(PAIR)
    catalog = Catalog()
    of = service(served(old), catalog=catalog)
    for _ in range(2):
        ask(of, "ModelInfer", raw(A, B))
    catalog.add(served(new))
    ask(of, "ModelInfer", raw(A, B))
    assert (len(old.requests), len(new.requests)) == (2, 1)
    catalog.remove("m", "1")
    assert ask(of, "ModelInfer", raw(A, B)).status is Status.NOT_FOUND


@settings(max_examples=75, deadline=None)
@given(st.lists(mutated(), max_size=5), st.data())
def test_every_call_ends_whatever_comes(messages: list[bytes], data: st.DataObject) -> None:
    echoes = [EchoService(PAIR, model=name) for name in "mn"]
    of = service(*map(served, echoes))
    stream = open_stream(of)
    for message in messages:
        stream.receive(message)
        method = data.draw(st.sampled_from([path.decode().removeprefix(f"{SERVICE}/") for path in of.methods().unary]))
        calls = [ask(of, "ModelInfer", message), ask(of, method, message)]
        for echo in echoes:
            echo.answer_all()
        assert all(call.ended for call in calls), method
    assert len(stream.take()) == len(messages)
    stream.half_close()
    assert stream.status is Status.OK


# The repository


class Repository:
    """Keeps what it was asked. A ModelRepository."""

    def __init__(self) -> None:
        self.asked: list[Any] = []
        self.error: InferenceError | None = None

    async def index(self) -> Sequence[VersionState]:
        return [VersionState("m", "1", "serving"), VersionState("later", "2", "loading")]

    async def load(self, name: str, overrides: Mapping[str, Any] | None) -> None:
        await asyncio.sleep(0)
        if self.error is not None:
            raise self.error
        self.asked.append((name, overrides))

    async def unload(self, name: str) -> None:
        self.asked.append(name)


async def done(call: FakeCall) -> FakeCall:
    async with asyncio.timeout(5):
        while not call.ended:  # noqa: ASYNC110
            await asyncio.sleep(0)
    return call


async def test_the_index_names_every_version_and_its_state() -> None:
    of = service(served(EchoService(PLAIN)), repository=Repository())
    call = await done(ask(of, "RepositoryIndex"))
    entries = [(entry.name, entry.version, entry.state) for entry in call.answer("RepositoryIndexResponse").models]
    assert entries == [("later", "2", "LOADING"), ("m", "1", "READY")]
    call = await done(ask(of, "RepositoryIndex", oip.RepositoryIndexRequest(ready=True)))
    assert [entry.name for entry in call.answer("RepositoryIndexResponse").models] == ["m"]


def test_without_a_repository_the_index_is_of_the_catalog_and_nothing_can_be_loaded() -> None:
    of = service(served(EchoService(PLAIN)))
    assert [entry.name for entry in ask(of, "RepositoryIndex").answer("RepositoryIndexResponse").models] == ["m"]
    call = ask(of, "RepositoryModelLoad", oip.RepositoryModelLoadRequest(model_name="m"))
    assert (call.status, call.text) == (Status.UNIMPLEMENTED, "this server has no model repository")


@pytest.mark.parametrize("tag", ["model_name", "repository_name"])
async def test_load_and_unload_take_the_name_where_either_protocol_has_it(tag: str) -> None:
    repository = Repository()
    of = service(repository=repository)
    config = oip.ModelRepositoryParameter(string_param='{"max_batch_size": 4}')
    asked = oip.RepositoryModelLoadRequest(**{tag: "m"}, parameters={"config": config})
    (await done(ask(of, "RepositoryModelLoad", asked))).answer("RepositoryModelLoadResponse")
    asked = oip.RepositoryModelUnloadRequest(**{tag: "m"})
    (await done(ask(of, "RepositoryModelUnload", asked))).answer("RepositoryModelUnloadResponse")
    assert repository.asked == [("m", {"max_batch_size": 4}), "m"]


async def test_what_a_repository_refuses() -> None:
    repository = Repository()
    of = service(repository=repository)
    both = {"repository_name": "r", "model_name": "m"}
    for method in ("RepositoryModelLoad", "RepositoryModelUnload"):
        call = ask(of, method, getattr(oip, f"{method}Request")(**both))
        assert (call.status, call.text) == (Status.UNIMPLEMENTED, "'repository_name' specification is not supported")
    assert ask(of, "RepositoryIndex", oip.RepositoryIndexRequest(repository_name="r")).status is Status.UNIMPLEMENTED
    files = {"file:1/model.onnx": oip.ModelRepositoryParameter(bytes_param=b"x")}
    call = ask(of, "RepositoryModelLoad", oip.RepositoryModelLoadRequest(model_name="m", parameters=files))
    assert (call.status, call.text[:38]) == (Status.UNIMPLEMENTED, "files in a load request are not suppor")
    wrong = {"config": oip.ModelRepositoryParameter(string_param="[")}
    call = ask(of, "RepositoryModelLoad", oip.RepositoryModelLoadRequest(model_name="m", parameters=wrong))
    assert (call.status, call.text[:35]) == (Status.INVALID_ARGUMENT, "the parameter config is not JSON: I")
    repository.error = InferenceError(Failure(FailureKind.UNAVAILABLE, "no weights"))
    call = await done(ask(of, "RepositoryModelLoad", oip.RepositoryModelLoadRequest(model_name="m")))
    assert (call.status, call.text) == (Status.UNAVAILABLE, "no weights")


# Models on demand


class Home:
    """The model m comes two seconds after it is asked for. An OnDemand."""

    def __init__(self, *, streams: bool = False) -> None:
        self.catalog = Catalog()
        self.catalog.waiting = Waiting(self, longest_s=5.0)
        self.echo = EchoService(msgspec.structs.replace(PLAIN, streams=streams), at_once=True)
        self.demands = 0

    def may_come(self, name: str, version: str = "") -> bool:
        return name == "m" and version in ("", "1")

    async def demand(self, name: str, version: str = "") -> None:
        self.demands += 1
        await pass_time(2.0)
        self.catalog.add(served(self.echo))


X = raw(A, names="x", id="r")


async def test_a_request_waits_for_its_model() -> None:
    home = Home()
    call = ask(service(catalog=home.catalog), "ModelInfer", X, {b"x-request-deadline-ms": b"3000"})
    assert not call.ended
    await pass_time(2.5)
    assert call.answer("ModelInferResponse").id == "r"
    assert home.echo.requests[0].ticket.answer_by == pytest.approx(101.0)  # what two seconds have left of three


@pytest.mark.parametrize("method", ["ModelMetadata", "ModelConfig"])
async def test_whoever_asks_what_a_model_is_has_it_loaded(method: str) -> None:
    home = Home()
    call = ask(service(catalog=home.catalog), method, getattr(oip, f"{method}Request")(name="m"))
    await pass_time(2.5)
    call.answer(f"{method}Response")


async def test_whoever_asks_how_a_model_is_has_not() -> None:
    home = Home()
    of = service(catalog=home.catalog)
    assert not ask(of, "ModelReady", oip.ModelReadyRequest(name="m")).answer("ModelReadyResponse").ready
    call = ask(of, "ModelStatistics", oip.ModelStatisticsRequest(name="m"))
    assert (call.status, call.text) == (Status.UNAVAILABLE, "model 'm' is not loaded now; a request for it will load it")
    assert not home.demands


@pytest.mark.parametrize(
    ("headers", "parameters"), [({b"x-request-deadline-ms": b"1000"}, {}), ({}, {"timeout": parameter(1_000_000)})]
)
async def test_a_deadline_ends_the_wait(headers: dict[bytes, bytes], parameters: dict[str, Any]) -> None:
    call = ask(service(catalog=Home().catalog), "ModelInfer", raw(A, names="x", parameters=parameters), headers)
    await pass_time(1.5)
    assert (call.status, call.text) == (Status.DEADLINE_EXCEEDED, "the deadline passed while model 'm' was being loaded")


async def test_a_client_that_leaves_waits_no_more() -> None:
    home = Home()
    call = ask(service(catalog=home.catalog), "ModelInfer", X)
    await asyncio.sleep(0)
    assert home.catalog.waiting is not None
    assert home.catalog.waiting.requests == 1
    call.leave()
    await pass_time(2.5)
    assert (home.catalog.waiting.requests, home.echo.requests, call.messages) == (0, [], [])


async def test_requests_of_a_stream_wait_one_by_one() -> None:
    home = Home()
    call = open_stream(service(served(EchoService(PLAIN, model="n", at_once=True)), catalog=home.catalog))
    call.receive(X.SerializeToString(), raw(A, names="x", id="s", model="n").SerializeToString())
    await pass_time(2.5)
    assert [answer.infer_response.id for answer in call.take()] == ["r", "s"]

"""Health and reflection as gRPC's own clients see them: grpcio-health-checking, grpcio-reflection."""

import asyncio
from typing import Any

import grpc
import pytest
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message_factory import GetMessageClass
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase

from dlproxy.config import HttpLimits, ServerConfig
from dlproxy.policy.events import InstanceLost, InstanceUp
from dlproxy.policy.knobs import LaneKnobs
from dlproxy.policy.lane import Lane
from dlproxy.protos.grpc_services import health, reflection
from dlproxy.protos.oip import oip
from dlproxy.protos.tfs import tfs
from dlproxy.wire.catalog import Catalog, ServedModel
from dlproxy.wire.extensions import extensions_of
from dlproxy.wire.grpc import health as health_file
from dlproxy.wire.grpc.health import Health
from dlproxy.wire.grpc.reflection import Files, Reflection
from dlproxy.wire.grpc.server import Methods, all_of
from dlproxy.wire.grpc.services import grpc_methods
from tests.wire.fixtures import PLAIN, EchoService, served

from .conftest import Channels
from .fixtures import RunningGrpc, grpc_server

SERVING, NOT_SERVING, UNKNOWN = (
    health_pb2.HealthCheckResponse.SERVING,
    health_pb2.HealthCheckResponse.NOT_SERVING,
    health_pb2.HealthCheckResponse.SERVICE_UNKNOWN,
)
INFER = b"/inference.GRPCInferenceService/ModelInfer"
PREDICT = b"/tensorflow.serving.PredictionService/Predict"


class Model:
    """A model whose instance comes and goes."""

    def __init__(self, name: str) -> None:
        self.lane = Lane(LaneKnobs(max_batch=8, max_queue_rows=1))
        self.served: ServedModel = served(EchoService(PLAIN, model=name), ready=False)
        self.served.view = self.lane.view

    def up(self) -> None:
        self.lane.on(InstanceUp("m-0"), 0.0)

    def lost(self) -> None:
        self.lane.on(InstanceLost("m-0", "gone"), 0.0)


def health_of(catalog: Catalog) -> Methods:
    return Health(catalog, ["inference.GRPCInferenceService"]).methods()


async def check(channel: grpc.Channel, service: str) -> Any:
    stub = health_pb2_grpc.HealthStub(channel)
    try:
        return (await asyncio.to_thread(stub.Check, health_pb2.HealthCheckRequest(service=service), timeout=5)).status
    except grpc.RpcError as error:
        return error.code()


async def test_health_of_the_server_and_of_models(channel: Channels) -> None:
    catalog, model = Catalog(), Model("m")
    async with grpc_server(health_of(catalog)) as run:
        client = channel(run.address)
        assert await check(client, "") == SERVING
        assert await check(client, "m") is grpc.StatusCode.NOT_FOUND
        catalog.add(model.served)
        for service in ("", "inference.GRPCInferenceService", "m"):
            assert await check(client, service) == NOT_SERVING
        model.up()
        for service in ("", "inference.GRPCInferenceService", "m"):
            assert await check(client, service) == SERVING
        catalog.announce("comes", "1", "is being loaded")
        assert await check(client, "comes") == NOT_SERVING
        catalog.drain()
        for service in ("", "m"):
            assert await check(client, service) == NOT_SERVING


async def test_watch_tells_every_change_and_ends_with_the_server(channel: Channels, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(health_file, "LOOK_S", 0.01)
    catalog, model = Catalog(), Model("m")
    async with grpc_server(health_of(catalog)) as run:
        stub = health_pb2_grpc.HealthStub(channel(run.address))
        watch = stub.Watch(health_pb2.HealthCheckRequest(service="m"), timeout=10)

        async def told() -> int:
            status: int = (await asyncio.to_thread(next, watch)).status
            return status

        assert await told() == UNKNOWN
        catalog.add(model.served)
        assert await told() == NOT_SERVING
        model.up()
        assert await told() == SERVING
        model.lost()
        assert await told() == NOT_SERVING
        model.up()
        assert await told() == SERVING
        catalog.remove("m", "")
        assert await told() == UNKNOWN
        catalog.drain()
        with pytest.raises(grpc.RpcError, match="the server stops"):
            await told()


async def test_watchers_that_leave_are_forgotten(channel: Channels) -> None:
    told = Health(Catalog())
    async with grpc_server(told.methods()) as run:
        stub = health_pb2_grpc.HealthStub(channel(run.address))
        watches = [stub.Watch(health_pb2.HealthCheckRequest(), timeout=5) for _ in range(3)]
        for watch in watches:
            assert (await asyncio.to_thread(next, watch)).status == SERVING
        assert len(told._watches) == 3
        watches[0].cancel()
        await run.until(lambda: len(told._watches) == 2)
    assert not told._watches


async def test_a_health_check_that_makes_no_sense_is_refused(channel: Channels) -> None:
    async with grpc_server(health_of(Catalog())) as run:
        client = channel(run.address)
        raw = client.unary_unary("/grpc.health.v1.Health/Check")
        watch = client.stream_stream("/grpc.health.v1.Health/Watch")
        good = health_pb2.HealthCheckRequest().SerializeToString()
        for ask, code in (
            (lambda: raw(b"\xff", timeout=5), grpc.StatusCode.INVALID_ARGUMENT),
            (lambda: list(watch(iter([b"\xff"]), timeout=5)), grpc.StatusCode.INVALID_ARGUMENT),
            (lambda: list(watch(iter([]), timeout=5)), grpc.StatusCode.UNIMPLEMENTED),
            (lambda: list(watch(iter([good, good]), timeout=5)), grpc.StatusCode.INVALID_ARGUMENT),
        ):
            with pytest.raises(grpc.RpcError) as error:
                await asyncio.to_thread(ask)
            assert error.value.code() is code


# Reflection


def described(run_methods: Methods) -> Methods:
    every = all_of(run_methods, health_of(Catalog()))
    return all_of(every, Reflection(every, lambda: [oip, tfs, health]).methods())


def infer(call: Any, message: bytes) -> None:
    request = oip.ModelInferRequest.FromString(message)
    call.reply(oip.ModelInferResponse(model_name=request.model_name, id=request.id).SerializeToString())


SERVED = Methods({INFER: infer, PREDICT: infer, b"/no.Table/Of": infer}, {})


async def _database(run: RunningGrpc, channel: Channels) -> ProtoReflectionDescriptorDatabase:
    return await asyncio.to_thread(ProtoReflectionDescriptorDatabase, channel(run.address))


async def test_a_client_that_knows_nothing_calls_a_method_by_what_reflection_says(channel: Channels) -> None:
    async with grpc_server(described(SERVED)) as run:
        database = await _database(run, channel)
        services = await asyncio.to_thread(database.get_services)
        assert {"inference.GRPCInferenceService", "tensorflow.serving.PredictionService", "no.Table"} < set(services)
        assert {"grpc.reflection.v1.ServerReflection", "grpc.reflection.v1alpha.ServerReflection"} < set(services)
        pool = DescriptorPool(database)
        service = await asyncio.to_thread(pool.FindServiceByName, "inference.GRPCInferenceService")
        method = service.methods_by_name["ModelInfer"]
        watching = await asyncio.to_thread(pool.FindServiceByName, "grpc.health.v1.Health")
        reflecting = await asyncio.to_thread(pool.FindServiceByName, "grpc.reflection.v1.ServerReflection")
        kinds = [method, watching.methods_by_name["Watch"], reflecting.methods_by_name["ServerReflectionInfo"]]
        assert [(kind.client_streaming, kind.server_streaming) for kind in kinds] == [
            (False, False),
            (False, True),
            (True, True),
        ]
        request = GetMessageClass(method.input_type)(model_name="m", id="7")
        answer = await asyncio.to_thread(
            channel(run.address).unary_unary(INFER.decode()), request.SerializeToString(), timeout=5
        )
        assert GetMessageClass(method.output_type).FromString(answer).id == "7"
        predict = await asyncio.to_thread(pool.FindServiceByName, "tensorflow.serving.PredictionService")
        assert predict.methods_by_name["Predict"].input_type.full_name == "tensorflow.serving.PredictRequest"


async def test_reflection_says_what_it_does_not_know(channel: Channels) -> None:
    async with grpc_server(described(SERVED)) as run:
        stub = reflection_pb2_grpc.ServerReflectionStub(channel(run.address))
        request = reflection_pb2.ServerReflectionRequest
        asked = [
            request(file_containing_symbol="no.Such"),
            request(file_by_filename="no.proto"),
            request(all_extension_numbers_of_type="inference.ModelInferRequest"),
            request(file_containing_symbol="inference.GRPCInferenceService.ModelInfer"),
            request(),
        ]
        answers = await asyncio.to_thread(lambda: list(stub.ServerReflectionInfo(iter(asked), timeout=5)))
        assert [answer.error_response.error_code for answer in answers] == [5, 5, 0, 0, 3]
        assert answers[2].all_extension_numbers_response.base_type_name == "inference.ModelInferRequest"
        assert answers[3].file_descriptor_response.file_descriptor_proto
        assert answers[0].original_request == asked[0]


def test_every_method_of_the_server_is_described() -> None:
    every = extensions_of(ServerConfig(), HttpLimits(), Catalog())
    methods = grpc_methods(Catalog(), None, HttpLimits(), clock=lambda: 0.0, tenant_header="x-tenant-id", extensions=every)
    files = Files(methods, [oip, tfs, health, *reflection.values()])
    missing = [
        path for path in (*methods.unary, *methods.streaming) if path.decode()[1:].replace("/", ".") not in files.by_symbol
    ]
    assert not missing

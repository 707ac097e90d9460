"""What TensorFlow Serving's gRPC services say of models; models on demand; a real channel; bytes that mean nothing.

Texts are quoted from get_model_metadata_impl.cc and get_model_status_impl.cc of tensorflow/serving.
"""

import asyncio
import socket
from collections.abc import Mapping
from typing import Any

import grpc
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dlproxy.config import HttpLimits
from dlproxy.message import DType
from dlproxy.protos.tfs import MODELS, PREDICTION, SIGNATURES, tfs
from dlproxy.protos.tfs_config import models_config
from dlproxy.wire.catalog import NotServedError
from dlproxy.wire.grpc.call import Status
from dlproxy.wire.grpc.server import GrpcServer
from dlproxy.wire.grpc.tfs import LARGE, TfsService
from dlproxy.wire.waiting import Waiting
from tests.serve.rig import pass_time
from tests.wire.fixtures import served
from tests.wire.tfs_models import COMING_AND_GOING, STATES, Computing, Shelf, catalog_of, half_plus_two, identity, two_inputs

from .tfs_client import PREDICT, REGRESS, Client, multi, predict

# Models


def asked_of(kind: Any, name: str, version: int | None = None, **more: Any) -> Any:
    asked = kind(**more)
    asked.model_spec.name = name
    if version is not None:
        asked.model_spec.version.value = version
    return asked


def test_metadata_is_the_signature() -> None:
    asked = asked_of(tfs.GetModelMetadataRequest, "half", 1, metadata_field=[SIGNATURES])
    answer = tfs.GetModelMetadataResponse.FromString(Client(half_plus_two()).ask(f"{PREDICTION}/GetModelMetadata", asked))
    assert (answer.model_spec.name, answer.model_spec.version.value) == ("half", 1)
    packed = answer.metadata[SIGNATURES]
    assert packed.type_url == "type.googleapis.com/tensorflow.serving.SignatureDefMap"
    definition = tfs.SignatureDefMap.FromString(packed.value).signature_def["serving_default"]
    assert definition.method_name == "tensorflow/serving/predict"
    assert (definition.inputs["x"].dtype, definition.inputs["x"].tensor_shape.dim[0].size) == (1, -1)
    assert list(definition.outputs) == ["y"]


def test_the_status_is_the_recorded_one() -> None:
    client = Client(half_plus_two())
    asked = asked_of(tfs.GetModelStatusRequest, "half")
    assert client.ask(f"{MODELS}/GetModelStatus", asked).hex() == "0a060801101e1a00"
    coming = Client(served(half_plus_two(), ready=False), repository=COMING_AND_GOING)
    found = tfs.GetModelStatusResponse.FromString(coming.ask(f"{MODELS}/GetModelStatus", asked)).model_version_status
    numbers = {"START": 10, "LOADING": 20, "UNLOADING": 40, "END": 50}
    assert [(str(each.version), each.state) for each in found] == [(name, numbers[state]) for name, state in STATES.items()]
    assert (found[1].status.error_code, found[1].status.error_message) == (2, "it is broken")


@pytest.mark.parametrize(
    ("method", "asked", "status", "text"),
    [
        (f"{PREDICTION}/GetModelMetadata", tfs.GetModelMetadataRequest(), Status.INVALID_ARGUMENT, "Missing ModelSpec"),
        (
            f"{PREDICTION}/GetModelMetadata",
            asked_of(tfs.GetModelMetadataRequest, "half"),
            Status.INVALID_ARGUMENT,
            "GetModelMetadataRequest must specify at least one metadata_field",
        ),
        (
            f"{PREDICTION}/GetModelMetadata",
            asked_of(tfs.GetModelMetadataRequest, "half", metadata_field=["x"]),
            Status.INVALID_ARGUMENT,
            "Metadata field x is not supported",
        ),
        (f"{MODELS}/GetModelStatus", tfs.GetModelStatusRequest(), Status.INVALID_ARGUMENT, "Missing ModelSpec"),
        (
            f"{MODELS}/GetModelStatus",
            asked_of(tfs.GetModelStatusRequest, "x"),
            Status.NOT_FOUND,
            "Could not find any versions of model x",
        ),
        (
            f"{MODELS}/GetModelStatus",
            asked_of(tfs.GetModelStatusRequest, "half", 9),
            Status.NOT_FOUND,
            "Could not find version 9 of model half",
        ),
    ],
)
def test_the_status_of_nothing(method: str, asked: Any, status: Status, text: str) -> None:
    assert Client(half_plus_two()).refused(method, asked) == (status, text)


RELOAD = f"{MODELS}/HandleReloadConfigRequest"
NEW_LIST = "0a1e0a1c0a1a0a016d12092f6d6f64656c732f6d220a74656e736f72666c6f77"  # m at /models/m


def reload(*models: Mapping[str, Any]) -> bytes:
    config = models_config(model_config_list={"config": models})
    message: bytes = tfs.ReloadConfigRequest(config=config.SerializeToString()).SerializeToString()
    return message


async def test_a_new_list_of_models_loads_and_unloads_by_name() -> None:
    shelf = Shelf()
    client = Client(half_plus_two(), repository=shelf)
    found = client.begin(RELOAD, NEW_LIST)
    await asyncio.gather(*(task for task in asyncio.all_tasks() if task is not asyncio.current_task()))
    assert found.status is Status.OK
    assert tfs.ReloadConfigResponse.FromString(found.message).status.error_code == 0
    assert shelf.done == [("load", "m"), ("unload", "half")]
    lacking = client.begin(RELOAD, reload({"name": "lacking"}))
    await asyncio.gather(*(task for task in asyncio.all_tasks() if task is not asyncio.current_task()))
    assert (lacking.status, lacking.text) == (Status.NOT_FOUND, "failed to load 'lacking'")


@pytest.mark.parametrize(
    ("message", "status", "text"),
    [
        (b"", Status.INVALID_ARGUMENT, "HandleReloadConfigRequest takes a model_config_list"),
        (b"\n\2\n\7", Status.INVALID_ARGUMENT, "not a tensorflow.serving.ModelServerConfig"),
        (reload({"name": "m", "base_path": "/models/x"}), Status.INVALID_ARGUMENT, "model 'm': only the folder of that name"),
        (reload({"base_path": "/models/x"}), Status.INVALID_ARGUMENT, "model '': only the folder of that name"),
        (
            reload({"name": "m", "version_labels": {"x": 1}}),
            Status.UNIMPLEMENTED,
            "model 'm': versions and labels are said where",
        ),
        (reload({"name": "m", "model_version_policy": {"all": {}}}), Status.UNIMPLEMENTED, "model 'm': versions and labels"),
    ],
)
def test_lists_that_cannot_be_followed(message: bytes, status: Status, text: str) -> None:
    found, said = Client(repository=Shelf()).refused(RELOAD, message)
    assert found is status
    assert said.startswith(text)


def test_clients_change_the_list_only_where_they_may() -> None:
    shelf = Shelf()
    shelf.explicit = False
    for repository in (None, shelf):
        status, text = Client(repository=repository).refused(RELOAD, NEW_LIST)
        assert status is Status.PERMISSION_DENIED
        assert text.endswith("--repository-mode explicit")
    assert not shelf.done


# Models on demand, in virtual time


class Home:
    """Loads "half" within two seconds."""

    def __init__(self) -> None:
        self.client = Client()
        self.client.catalog.waiting = Waiting(self, longest_s=5.0)

    def may_come(self, name: str, version: str = "") -> bool:
        return name == "half" and version in ("", "1")

    async def demand(self, name: str, version: str = "") -> None:
        await pass_time(2.0)
        try:
            self.client.catalog.get(name, version)
        except NotServedError:
            self.client.catalog.add(served(half_plus_two()))


@pytest.mark.looptime(idle_step=0.1, idle_timeout=1.0)
async def test_calls_wait_for_a_model_that_is_loaded_on_demand() -> None:
    home = Home()
    metadata = asked_of(tfs.GetModelMetadataRequest, "half", metadata_field=[SIGNATURES])
    found = home.client.begin(PREDICT, predict("half", x=[1]))
    described = home.client.begin(f"{PREDICTION}/GetModelMetadata", metadata)
    late = home.client.begin(PREDICT, predict("half", x=[1]), {b"x-request-deadline-ms": b"1000"})
    gone = home.client.begin(PREDICT, predict("half", x=[1]))
    assert home.client.call.on_abandoned is not None
    home.client.call.on_abandoned()
    nobody = home.client.begin(PREDICT, predict("nobody", x=[1]))
    assert nobody.status is Status.NOT_FOUND, "nothing to wait for"
    assert home.client.refused(f"{MODELS}/GetModelStatus", asked_of(tfs.GetModelStatusRequest, "half"))[0] is Status.UNAVAILABLE
    await pass_time(1.99)
    assert not found.trailers
    assert late.status is Status.DEADLINE_EXCEEDED
    await pass_time(0.02)
    assert found.status is described.status is Status.OK
    assert not gone.trailers


# A real channel, and bytes that mean nothing


async def test_a_real_channel() -> None:
    service = TfsService(catalog_of(identity(DType.FP32)), None, clock=lambda: 0.0, tenant_header="x-tenant-id")
    server = GrpcServer(service.methods(), HttpLimits())
    listener = socket.create_server(("127.0.0.1", 0))
    await server.start(listener)
    async with grpc.aio.insecure_channel(f"127.0.0.1:{listener.getsockname()[1]}") as channel:
        ask = channel.unary_unary(PREDICT)
        answer = tfs.PredictResponse.FromString(await ask(predict(x=[0.5] * 60).SerializeToString(), timeout=10))
        assert answer.outputs["y"].float_val == [0.5] * 60
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await ask(predict("nobody", x=[1]).SerializeToString(), timeout=10)
        assert caught.value.code() is grpc.StatusCode.NOT_FOUND
        assert caught.value.details() == "Servable not found for request: Latest(nobody)"
    await server.drain(1.0)


MODELS_TO_FUZZ = [
    identity(DType.FP32),
    two_inputs(),
    *(Computing([("x", dtype, (-1, -1))], [("y", dtype, (-1, -1))], lambda x: x, model=dtype.value) for dtype in DType),
]
RECORDED = [
    predict(x=[1, 2]).SerializeToString(),
    predict("two", a=[[1, 2]], b=[[1, 2]]).SerializeToString(),
    bytes.fromhex("0a030a016d12190a01781214080712041202080242016142075ac3bc72696368"),
    bytes.fromhex(REGRESS),
    multi(("m", "regress"), ("m", "classify")).SerializeToString(),
    predict(x=np.zeros(LARGE)).SerializeToString(),
]
METHODS = ["Predict", "Classify", "Regress", "MultiInference", "GetModelMetadata"]


@st.composite
def mutated(draw: st.DrawFn) -> bytes:
    message = bytearray(draw(st.sampled_from(RECORDED)))
    for _ in range(draw(st.integers(0, 4))):
        at = draw(st.integers(0, min(len(message) - 1, 80)))
        message[at : at + draw(st.integers(0, 2))] = draw(st.binary(max_size=3))
    return bytes(message)


@settings(max_examples=100, deadline=None)
@given(mutated() | st.binary(max_size=40), st.sampled_from(METHODS))
def test_whatever_bytes_come_there_is_a_status(message: bytes, method: str) -> None:
    found = Client(*MODELS_TO_FUZZ).begin(f"{PREDICTION}/{method}", message)
    assert found.status in (
        *(Status.OK, Status.INVALID_ARGUMENT, Status.NOT_FOUND),
        *(Status.UNIMPLEMENTED, Status.FAILED_PRECONDITION),
    ), found.text

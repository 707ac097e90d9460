"""Regions, classes, log and trace settings over gRPC."""

import os
import sys
from collections.abc import Iterator
from typing import Any
from uuid import uuid4

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dlproxy.config import HttpLimits
from dlproxy.config.server import ServerConfig
from dlproxy.message import InferenceError
from dlproxy.protos.oip import SERVICE, oip
from dlproxy.wire.catalog import Catalog
from dlproxy.wire.extensions import Extensions, extensions_of
from dlproxy.wire.grpc.call import Status
from dlproxy.wire.grpc.oip import OipService
from dlproxy.wire.grpc.regions import region_methods
from dlproxy.wire.grpc.server import all_of
from dlproxy.wire.grpc.settings import setting_methods
from dlproxy.wire.regions import FOLDER

from ..fixtures import EchoService, served
from .oip_fixtures import PAIR, FakeCall, FakeRest, PartsService, parameter, part, raw

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="there is /dev/shm only on Linux")

A = np.array([[1, 2], [4, 3]], np.float32)
B = np.array([[7], [8]], np.int64)


class Door:
    """All methods of the service, for one model that echoes, and 64 bytes of shared memory as region r."""

    def __init__(self, key: str, service: EchoService, server: ServerConfig) -> None:
        self.service = service
        self.key = key
        catalog = Catalog()
        self.model = served(service)
        catalog.add(self.model)
        limits = HttpLimits()
        self.extensions: Extensions = extensions_of(server, limits, catalog)
        oip_service = OipService(
            catalog,
            None,
            limits,
            clock=lambda: 100.0,
            tenant_header="x-tenant-id",
            regions=self.extensions.regions,
            extensions=self.extensions.names,
        )
        self.methods = all_of(
            oip_service.methods(),
            region_methods(self.extensions.regions),
            setting_methods(self.extensions.logs, self.extensions.trace),
        )

    def ask(self, method: str, message: Any = b"") -> FakeCall:
        call = FakeCall()
        data = message if isinstance(message, bytes) else message.SerializeToString()
        try:
            self.methods.unary[f"{SERVICE}/{method}".encode()](call.as_call(), data)
            self.service.answer_all()
        except InferenceError as error:
            call.refuse(error.failure)
        return call

    def register(self, name: str = "r", size: int = 64) -> FakeCall:
        return self.ask(
            "SystemSharedMemoryRegister", oip.SystemSharedMemoryRegisterRequest(name=name, key=self.key, byte_size=size)
        )


@pytest.fixture
def memory() -> Iterator[str]:
    """The path of 64 bytes of shared memory."""
    path = f"{FOLDER}/dlproxy-test-{uuid4().hex}"
    with open(path, "xb") as file:
        file.write(A.tobytes() + bytes(48))
    yield path
    os.unlink(path)


@pytest.fixture
def door(memory: str) -> Door:
    made = Door(os.path.basename(memory), EchoService(PAIR), ServerConfig(shared_memory=True))
    assert made.register().status is Status.OK
    return made


def content(path: str) -> bytes:
    with open(path, "rb") as file:
        return file.read()


def in_region(tensor: Any, size: int, offset: int | None = None, region: str = "r") -> None:
    tensor.parameters["shared_memory_region"].CopyFrom(parameter(region))
    tensor.parameters["shared_memory_byte_size"].CopyFrom(parameter(size))
    if offset is not None:
        tensor.parameters["shared_memory_offset"].CopyFrom(parameter(offset))


def request() -> Any:
    """With `a` in the region, and `b` as raw contents."""
    message = raw(A, B, id="q")
    del message.raw_input_contents[0]
    in_region(message.inputs[0], 16)
    return message


def test_regions_are_registered_shown_and_forgotten(door: Door) -> None:
    taken = door.register()
    assert (taken.status, taken.text) == (Status.ALREADY_EXISTS, "shared memory region 'r' already in manager")
    assert door.register("large", 65).status is Status.INVALID_ARGUMENT
    for asked in ("", "r"):
        shown = door.ask("SystemSharedMemoryStatus", oip.SystemSharedMemoryStatusRequest(name=asked))
        (entry,) = shown.answer("SystemSharedMemoryStatusResponse").regions.values()
        assert (entry.name, entry.key, entry.offset, entry.byte_size) == ("r", door.key, 0, 64)
    missing = door.ask("SystemSharedMemoryStatus", oip.SystemSharedMemoryStatusRequest(name="q"))
    assert (missing.status, missing.text) == (Status.NOT_FOUND, "Unable to find system shared memory region: 'q'")
    for name in ("q", "r", ""):
        assert door.ask("SystemSharedMemoryUnregister", oip.SystemSharedMemoryUnregisterRequest(name=name)).status is Status.OK
    assert not door.ask("SystemSharedMemoryStatus").answer("SystemSharedMemoryStatusResponse").regions


def test_cuda_regions_are_answered_as_where_there_is_no_gpu(door: Door) -> None:
    assert not door.ask("CudaSharedMemoryStatus").answer("CudaSharedMemoryStatusResponse").regions
    named = door.ask("CudaSharedMemoryStatus", oip.CudaSharedMemoryStatusRequest(name="r"))
    assert (named.status, "registered as system shared memory" in named.text) == (Status.NOT_FOUND, True)
    refused = door.ask("CudaSharedMemoryRegister", oip.CudaSharedMemoryRegisterRequest(name="c", raw_handle=bytes(64)))
    text = "failed to register CUDA shared memory region: 'c', GPUs not supported"
    assert (refused.status, refused.text) == (Status.INVALID_ARGUMENT, text)
    assert door.ask("CudaSharedMemoryUnregister").status is Status.OK


@pytest.mark.parametrize(
    "method",
    [
        *(f"{kind}SharedMemory{what}" for kind in ("System", "Cuda") for what in ("Status", "Register", "Unregister")),
        *("LogSettings", "TraceSetting"),
    ],
)
def test_what_is_no_message(method: str, door: Door) -> None:
    call = door.ask(method, b"\xff\xff")
    assert (call.status, "cannot be read as inference." in call.text) == (Status.INVALID_ARGUMENT, True)


def test_tensors_come_from_and_go_to_regions(door: Door, memory: str) -> None:
    message = request()
    in_region(message.outputs.add(name="out_a"), 20, 32)
    message.outputs.add(name="out_b")
    for _ in range(3):  # nothing of it is remembered
        answer = door.ask("ModelInfer", message).answer("ModelInferResponse")
        assert [(one.name, one.datatype, list(one.shape)) for one in answer.outputs] == [
            ("out_a", "FP32", [2, 2]),
            ("out_b", "INT64", [2, 1]),
        ]
        assert list(answer.raw_output_contents) == [b"", B.tobytes()]
        assert content(memory) == A.tobytes() + bytes(16) + A.tobytes() + bytes(16)
    door.extensions.regions.unregister()
    assert door.ask("ModelInfer", message).status is Status.NOT_FOUND


def test_an_output_alone_in_a_region_is_not_remembered_either(door: Door, memory: str) -> None:
    message = raw(A, B)
    in_region(message.outputs.add(name="out_a"), 16, 16)
    for scale in (1, 2, 3):
        message.raw_input_contents[0] = (A * scale).tobytes()
        assert door.ask("ModelInfer", message).status is Status.OK
        assert content(memory)[16:32] == (A * scale).tobytes()


def test_an_output_that_does_not_fit(door: Door) -> None:
    message = request()
    in_region(message.outputs.add(name="out_a"), 8, 32)
    call = door.ask("ModelInfer", message)
    text = "shared memory size specified with the request for output 'out_a' (8 bytes) should be at least 16 bytes"
    assert (call.status, call.text.startswith(text)) == (Status.INTERNAL, True)


def broken(case: str) -> Any:
    message = request()
    tensor, output = message.inputs[0], message.outputs.add(name="out_a")
    given = tensor.parameters
    match case:
        case "contents, too":
            del message.raw_input_contents[:]
            tensor.contents.fp32_contents.extend([1, 2, 4, 3])
        case "no size":
            del given["shared_memory_byte_size"]
        case "no region":
            del given["shared_memory_region"]
        case "an offset alone":
            given.clear()
            given["shared_memory_offset"].CopyFrom(parameter(0))
        case "a region that is a number":
            given["shared_memory_region"].CopyFrom(parameter(1))
        case "a size that is a text":
            given["shared_memory_byte_size"].CopyFrom(parameter("16"))
        case "a size that is nothing":
            given["shared_memory_byte_size"].Clear()
        case "the wrong size":
            given["shared_memory_byte_size"].CopyFrom(parameter(12))
        case "out of bounds":
            given["shared_memory_offset"].CopyFrom(parameter(60))
        case "classes, too":
            in_region(output, 16)
            output.parameters["classification"].CopyFrom(parameter(1))
        case "classes as a text":
            output.parameters["classification"].CopyFrom(parameter("1"))
        case "no classes":
            output.parameters["classification"].CopyFrom(parameter(0))
    return message


@pytest.mark.parametrize(
    ("case", "says"),
    [
        ("contents, too", "unexpected 'content' provided when using shared memory for input tensor 'a' for model 'm'"),
        ("no size", "'shared_memory_byte_size' must be specified along with 'shared_memory_region' parameter for tensor 'a'"),
        ("no region", "'shared_memory_byte_size' can not be specified without 'shared_memory_region' parameter for tensor 'a'"),
        ("an offset alone", "'shared_memory_offset' can not be specified without 'shared_memory_region' parameter for"),
        (
            "a region that is a number",
            "invalid value type for 'shared_memory_region' parameter for tensor 'a', expected string",
        ),
        ("a size that is a text", "invalid value type for 'shared_memory_byte_size' parameter for tensor 'a', expected int64"),
        ("a size that is nothing", "invalid value type for 'shared_memory_byte_size' parameter for tensor 'a', expected int64"),
        ("the wrong size", "[request id: q] input byte size mismatch for input 'a' for model 'm'. Expected 16, got 12"),
        ("out of bounds", "Invalid offset + byte size for shared memory region: 'r'"),
        ("classes, too", "output can't set both 'shared_memory_region' and 'classification'"),
        ("classes as a text", "invalid value type for 'classification' parameter, expected int64_param"),
        ("no classes", "invalid value for 'classification' parameter, expected >= 0"),
    ],
)
def test_what_is_wrong_is_said_in_triton_s_words(case: str, says: str, door: Door) -> None:
    call = door.ask("ModelInfer", broken(case))
    assert (call.status, call.text[: len(says)]) == (Status.INVALID_ARGUMENT, says)
    assert not door.service.requests


def test_classes(door: Door) -> None:
    door.model.class_names = ["cat", "dog"]
    message = raw(A, B)
    message.outputs.add(name="out_a").parameters["classification"].CopyFrom(parameter(1))
    message.outputs.add(name="out_b")
    for _ in range(2):
        answer = door.ask("ModelInfer", message).answer("ModelInferResponse")
        assert [(one.datatype, list(one.shape)) for one in answer.outputs] == [("BYTES", [2, 1]), ("INT64", [2, 1])]
        assert answer.raw_output_contents[0] == b"\x0e\0\0\x002.000000:1:dog\x0e\0\0\x004.000000:0:cat"


def stream(door: Door, message: Any) -> FakeCall:
    call = FakeCall()
    door.methods.streaming[f"{SERVICE}/ModelStreamInfer".encode()](call.as_call())
    call.receive(message.SerializeToString())
    door.service.answer_all()
    return call


def test_a_stream_s_answers_go_to_regions(door: Door, memory: str) -> None:
    message = request()
    in_region(message.outputs.add(name="out_a"), 16, 32)
    (answer,) = stream(door, message).take()
    assert list(answer.infer_response.raw_output_contents) == [b""]
    assert content(memory)[32:48] == A.tobytes()
    del message.outputs[:]
    in_region(message.outputs.add(name="out_a"), 8)
    (answer,) = stream(door, message).take()
    assert answer.error_message.startswith("shared memory size specified with the request for output 'out_a' (8 bytes)")


def test_each_part_is_written_and_one_that_does_not_fit_ends_the_answer(memory: str) -> None:
    service = PartsService(PAIR)
    door = Door(os.path.basename(memory), service, ServerConfig(shared_memory=True))
    door.register()
    message = raw(A, B)
    in_region(message.outputs.add(name="out_a"), 16, 16)
    call = stream(door, message)
    rest: FakeRest = service.rests[0]
    assert content(memory)[16:32] == A.tobytes()
    rest.take().part(part(5, 6))
    assert content(memory)[16:24] == np.array([5, 6], np.float32).tobytes()
    assert len(call.take()) == 2
    rest.take().part(part(1, 2, 3, 4, 5))
    (failed,) = call.take()
    assert "(16 bytes) should be at least 20 bytes to hold the results" in failed.error_message
    assert rest.stopped


def test_log_settings(door: Door) -> None:
    shown = door.ask("LogSettings").answer("LogSettingsResponse").settings
    kinds = {name: value.WhichOneof("parameter_choice") for name, value in shown.items()}
    flags = dict.fromkeys(("log_info", "log_warning", "log_error"), "bool_param")
    texts = dict.fromkeys(("log_file", "log_format"), "string_param")
    assert kinds == {**flags, **texts, "log_verbose_level": "uint32_param"}
    same = oip.LogSettingsRequest()
    same.settings["log_error"].bool_param = shown["log_error"].bool_param
    same.settings["log_info"].SetInParent()  # without a value
    assert door.ask("LogSettings", same).status is Status.OK
    other = oip.LogSettingsRequest()
    other.settings["log_error"].bool_param = not shown["log_error"].bool_param
    assert door.ask("LogSettings", other).status is Status.PERMISSION_DENIED
    wrong = oip.LogSettingsRequest()
    wrong.settings["log_error"].string_param = "yes"
    refused = door.ask("LogSettings", wrong)
    assert (refused.status, refused.text) == (Status.INVALID_ARGUMENT, "expect boolean for 'log_error'")


def test_trace_settings(door: Door) -> None:
    for message in (oip.TraceSettingRequest(), oip.TraceSettingRequest(model_name="m")):
        shown = door.ask("TraceSetting", message).answer("TraceSettingResponse").settings
        assert {name: list(value.value) for name, value in shown.items()} == {
            "trace_level": ["OFF"],
            "trace_rate": ["1000"],
            "trace_count": ["-1"],
            "log_frequency": ["0"],
            "trace_file": [""],
            "trace_mode": ["triton"],
        }
    unknown = door.ask("TraceSetting", oip.TraceSettingRequest(model_name="x"))
    assert (unknown.status, unknown.text) == (Status.INVALID_ARGUMENT, "Request for unknown model : x")
    for name, values, status in (
        ("trace_level", ["OFF"], Status.OK),
        ("trace_level", [], Status.OK),
        ("trace_rate", ["1000"], Status.OK),
        ("trace_rate", ["1000", "1"], Status.INVALID_ARGUMENT),
        ("trace_level", ["TIMESTAMPS"], Status.INVALID_ARGUMENT),
    ):
        asked = oip.TraceSettingRequest()
        asked.settings[name].value.extend(values)
        assert door.ask("TraceSetting", asked).status is status


def test_the_extensions_that_there_are(memory: str, door: Door) -> None:
    both = Door(door.key, EchoService(PAIR), ServerConfig(shared_memory=True, client_log_settings=True))
    neither = Door(door.key, EchoService(PAIR), ServerConfig())
    for one, expected in ((both, {"system_shared_memory", "logging"}), (door, {"system_shared_memory"}), (neither, set())):
        named = set(one.ask("ServerMetadata").answer("ServerMetadataResponse").extensions)
        assert named & {"system_shared_memory", "logging", "cuda_shared_memory", "trace"} == expected
        assert "classification" in named
    assert neither.register().status is Status.PERMISSION_DENIED


# Garbage

VALUES = st.one_of(
    st.sampled_from(["r", "q", ""]),
    st.integers(-2, 70),
    st.sampled_from([2**31, 2**62, 2**63 - 1, -(2**63)]),
    st.booleans(),
    st.floats(),
    st.none(),
)
KEYS = ("shared_memory_region", "shared_memory_offset", "shared_memory_byte_size", "classification")
PARAMETERS = st.fixed_dictionaries({}, optional=dict.fromkeys(KEYS, VALUES))
LIKELY = st.fixed_dictionaries(
    {"shared_memory_region": st.just("r"), "shared_memory_byte_size": st.sampled_from([8, 16, 32])},
    optional={"shared_memory_offset": st.integers(0, 70)},
)


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.one_of(LIKELY, PARAMETERS), st.lists(st.one_of(LIKELY, PARAMETERS), max_size=2), st.booleans())
def test_any_parameters_are_answered_and_stay_within_the_region(
    door: Door, memory: str, of_input: dict[str, Any], of_outputs: list[dict[str, Any]], sent: bool
) -> None:
    message = raw(A, B)
    if not sent:
        del message.raw_input_contents[0]
    outputs = [message.outputs.add(name="out_a") for _ in of_outputs]
    for tensor, given_ in zip((message.inputs[0], *outputs), (of_input, *of_outputs), strict=True):
        for key, value in given_.items():
            tensor.parameters[key].CopyFrom(oip.InferParameter() if value is None else parameter(value))
    status = door.ask("ModelInfer", message).status
    assert status in (Status.OK, Status.INVALID_ARGUMENT, Status.NOT_FOUND, Status.INTERNAL)
    assert os.stat(memory).st_size == 64

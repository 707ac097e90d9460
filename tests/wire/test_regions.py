"""Shared memory regions: what may be registered, tensors in them over HTTP, clients that truncate memory, and rubbish."""

import mmap
import os
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any
from uuid import uuid4

import msgspec
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dlproxy.config import HttpLimits
from dlproxy.message import DType, FailureKind, InferenceError, Tensor
from dlproxy.wire import regions as module
from dlproxy.wire.catalog import Catalog
from dlproxy.wire.oip.http import OipApp
from dlproxy.wire.oip.regions_http import RegionRoutes
from dlproxy.wire.regions import FOLDER, MAX_REGIONS, Regions, write_all

from .fixtures import EchoService, Reply, Wire, echo_signature, post, request, served

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="there is /dev/shm only on Linux")

FOUR = np.array([1, 2, 3, 4], np.float32).tobytes()


class Memory:
    """A shared memory object of a client's."""

    def __init__(self, size: int, content: bytes = b"") -> None:
        self.key = f"dlproxy-test-{uuid4().hex}"
        self.path = f"{FOLDER}/{self.key}"
        self.fd = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
        os.ftruncate(self.fd, size)
        os.pwrite(self.fd, content, 0)

    def read(self, size: int, offset: int = 0) -> bytes:
        return os.pread(self.fd, size, offset)

    def unlink(self) -> None:
        if os.path.exists(self.path):
            os.unlink(self.path)

    def close(self) -> None:
        self.unlink()
        os.close(self.fd)


@pytest.fixture
def memory() -> Iterator[Memory]:
    made = Memory(4096, FOUR)
    yield made
    made.close()


@pytest.fixture
def regions() -> Regions:
    return Regions(on=True, most_bytes=1 << 20)


def refusal(call: Any, *arguments: Any) -> str:
    with pytest.raises(InferenceError) as caught:
        call(*arguments)
    return caught.value.failure.message


def times_open(path: str) -> int:
    """By this process."""
    found = 0
    for number in os.listdir("/proc/self/fd"):
        with suppress(OSError):  # that of the folder itself
            found += os.readlink(f"/proc/self/fd/{number}").startswith(path)
    return found


# Registering


@pytest.mark.parametrize("slashes", ["", "/", "//"])  # shm_open does not mind, and Python's own shared memory adds one
def test_a_region_is_registered_by_its_key(slashes: str, regions: Regions, memory: Memory) -> None:
    regions.register("r", slashes + memory.key, 4, 8)
    (status,) = regions.status("r")
    assert (status.name, status.key, status.offset, status.byte_size) == ("r", slashes + memory.key, 4, 8)
    assert regions.status() == [status]
    assert bytes(regions.window("r", None, 8).read()) == FOUR[4:12]


@pytest.mark.parametrize("size", [(0, 4097), (4096, 1), (1, 4096), (0, 0), (0, -1), (-1, 8), (2**64 - 1, 1), (0, 2**64 - 1)])
def test_a_region_cannot_be_larger_than_its_memory(size: tuple[int, int], regions: Regions, memory: Memory) -> None:
    assert "failed to register shared memory region 'r': invalid args" in refusal(regions.register, "r", memory.key, *size)
    assert not regions.status()


def test_a_name_is_registered_once(regions: Regions, memory: Memory) -> None:
    regions.register("r", memory.key, 0, 8)
    assert refusal(regions.register, "r", memory.key, 0, 16) == "shared memory region 'r' already in manager"
    regions.unregister("r")
    regions.register("r", memory.key, 0, 16)
    assert refusal(regions.register, "", memory.key, 0, 8).startswith("a shared memory region needs a name")
    assert refusal(regions.register, "r" * 256, memory.key, 0, 8).startswith("a shared memory region needs a name")


@pytest.mark.parametrize("key", ["", "/", ".", "..", "/..", "a/b", "../shm/x", "\0", "x" * 256, "nobody", "\ud800", "é" * 200])
def test_a_key_names_nothing_outside_of_the_folder(key: str, regions: Regions) -> None:
    before = times_open("/dev")
    assert refusal(regions.register, "r", key, 0, 1).startswith("Unable to open shared memory region: '")
    assert times_open("/dev") == before


def test_only_plain_files_of_the_same_user(regions: Regions, memory: Memory, monkeypatch: pytest.MonkeyPatch) -> None:
    link, pipe = f"{memory.path}-link", f"{memory.path}-pipe"
    os.symlink(memory.path, link)
    os.mkfifo(pipe)
    try:
        for path in (link, pipe):
            assert "Unable to open" in refusal(regions.register, "r", Path(path).name, 0, 1)
    finally:
        os.unlink(link)
        os.unlink(pipe)
    monkeypatch.setattr(module.os, "geteuid", lambda: os.getuid() + 1)
    absent = refusal(regions.register, "r", "nobody", 0, 8).replace("nobody", "…")
    assert refusal(regions.register, "r", memory.key, 0, 8).replace(memory.key, "…") == absent  # it tells nothing of theirs


def test_there_are_so_many_regions_at_most(regions: Regions, memory: Memory) -> None:
    for number in range(MAX_REGIONS):
        regions.register(f"r{number}", memory.key, 0, 8)
    assert f"there are {MAX_REGIONS} shared memory regions" in refusal(regions.register, "more", memory.key, 0, 8)
    regions.unregister("r0")
    regions.register("more", memory.key, 0, 8)
    regions.unregister()
    assert not regions.status()
    assert times_open(memory.path) == 1  # the test itself


def test_off_is_off(memory: Memory) -> None:
    off = Regions(on=False)
    assert "--shared-memory turns it on" in refusal(off.register, "r", memory.key, 0, 8)
    assert "Unable to find shared memory region: 'r'; shared memory is off" in refusal(off.window, "r", 0, 8)
    assert off.status() == []
    off.unregister()


def test_elsewhere_than_on_linux_there_is_none(memory: Memory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module.sys, "platform", "darwin")
    elsewhere = Regions(on=True)
    assert "needs Linux" in refusal(elsewhere.register, "r", memory.key, 0, 8)
    assert not elsewhere.on


# Windows


@pytest.mark.parametrize(
    ("offset", "size", "says"),
    [
        (16, 1, "Invalid offset for shared memory region: 'r'"),
        (-1, 1, "Invalid offset for shared memory region: 'r'"),
        (8, 9, "Invalid offset + byte size for shared memory region: 'r'"),
        (0, 17, "Invalid offset + byte size for shared memory region: 'r'"),
        (0, 0, "Invalid offset + byte size for shared memory region: 'r'"),
        (0, -4, "Invalid offset + byte size for shared memory region: 'r'"),
        (0, None, "got no shared_memory_byte_size"),
        (2**64, 2**64, "Invalid offset for shared memory region: 'r'"),
    ],
)
def test_a_tensor_cannot_leave_its_region(offset: int, size: int | None, says: str, regions: Regions, memory: Memory) -> None:
    regions.register("r", memory.key, 0, 16)
    assert says in refusal(regions.window, "r", offset, size)


def test_a_truncated_region_is_refused_and_not_made_longer_again(regions: Regions, memory: Memory) -> None:
    regions.register("r", memory.key, 0, 4096)
    window = regions.window("r", 0, 16)
    os.ftruncate(memory.fd, 15)
    says = "shared memory region 'r' has become smaller than it was when it was registered"
    assert refusal(window.read) == says
    assert refusal(window.write, bytes(16)) == says
    assert os.fstat(memory.fd).st_size == 15
    os.ftruncate(memory.fd, 0)
    assert refusal(regions.window("r", 4000, 1).read) == says


def test_a_request_keeps_what_is_unlinked_and_unregistered_meanwhile(regions: Regions, memory: Memory) -> None:
    regions.register("r", memory.key, 0, 16)
    window = regions.window("r", 4, 8)
    memory.unlink()
    regions.unregister("r")
    assert times_open(memory.path) == 2
    window.write(b"12345678")
    assert memory.read(16) == FOUR[:4] + b"12345678" + FOUR[12:]
    del window
    assert times_open(memory.path) == 1


def test_an_object_that_is_made_anew_under_its_key_is_another_one(regions: Regions, memory: Memory) -> None:
    regions.register("r", memory.key, 0, 16)
    memory.unlink()
    Path(memory.path).write_bytes(bytes(16))
    assert bytes(regions.window("r", 0, 16).read()) == FOUR


def test_no_output_is_written_if_one_does_not_fit(regions: Regions, memory: Memory) -> None:
    regions.register("r", memory.key, 0, 64)
    first, second = regions.window("r", 0, 16), regions.window("r", 16, 8)
    tensors = [Tensor(name, DType.FP32, (4,), memoryview(bytes(16))) for name in "ab"]
    with pytest.raises(InferenceError) as caught:
        write_all(zip(tensors, (first, second), strict=True))
    assert caught.value.failure.kind is FailureKind.MODEL_FAILED
    assert str(caught.value) == (
        "shared memory size specified with the request for output 'b' (8 bytes) should be at least 16 bytes to hold the results"
    )
    assert memory.read(16) == FOUR


def test_more_bytes_than_chunks_of_the_system_have(regions: Regions, memory: Memory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "CHUNK", 5)
    regions.register("r", memory.key, 0, 64)
    window = regions.window("r", 1, 13)
    window.write(b"thirteen char")
    assert bytes(window.read()) == b"thirteen char"


def test_memory_that_cannot_be_had_is_an_error_and_no_signal(
    regions: Regions, memory: Memory, monkeypatch: pytest.MonkeyPatch
) -> None:
    regions.register("r", memory.key, 0, 64)

    def full(*_: object) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(module.os, "pwrite", full)
    assert refusal(regions.window("r", 0, 8).write, bytes(8)) == (
        "shared memory region 'r' cannot be written: No space left on device"
    )


# Over HTTP

ONE = echo_signature(("x", DType.FP32, (-1, 2)))
STATUS = "/v2/systemsharedmemory"


class Door:
    """A server without sockets, and what it answers."""

    def __init__(self, *, on: bool = True, most_bytes: int = 1 << 20) -> None:
        self.regions = Regions(on=on, most_bytes=most_bytes)
        self.service = EchoService(ONE)
        catalog = Catalog()
        catalog.add(served(self.service, max_batch=1 << 16))
        rows = RegionRoutes(self.regions).rows()
        limits = HttpLimits()
        app = OipApp(catalog, limits, clock=lambda: 0.0, server_timing=False, regions=self.regions, more=rows)
        self.wire = Wire(app)

    def ask(self, data: bytes) -> Reply:
        self.wire.feed(data)
        self.service.answer_all()
        (reply,) = self.wire.take()
        return reply

    def register(self, name: str, memory: Memory, size: int, offset: int = 0) -> Reply:
        body = msgspec.json.encode({"key": memory.key, "offset": offset, "byte_size": size})
        return self.ask(post(f"{STATUS}/region/{name}/register", body))

    def infer(self, inputs: Any = None, output: Any = None, **head: Any) -> Reply:
        tensor = {"name": "x", "shape": [2, 2], "datatype": "FP32", "parameters": at("r", 16), **(inputs or {})}
        outputs = {} if output is None else {"outputs": [{"name": "out_x", "parameters": output}]}
        return self.ask(post("/v2/models/m/infer", msgspec.json.encode({"inputs": [tensor], **outputs, **head})))


def at(region: str, size: int, offset: int | None = None) -> dict[str, Any]:
    found: dict[str, Any] = {"shared_memory_region": region, "shared_memory_byte_size": size}
    return found if offset is None else {**found, "shared_memory_offset": offset}


def test_the_routes_of_regions(memory: Memory) -> None:
    door = Door()
    assert door.ask(request(f"{STATUS}/status")).json() == []
    reply = door.register("my%20r", memory, 64, 4)
    assert (reply.status, reply.body) == (200, b"")
    entry = {"name": "my r", "key": memory.key, "offset": 4, "byte_size": 64}
    assert door.ask(request(f"{STATUS}/region/my%20r/status")).json() == [entry]
    assert door.ask(request(f"{STATUS}/status")).json() == [entry]
    assert door.register("my%20r", memory, 64).status == 400
    assert door.ask(request(f"{STATUS}/region/r/status")).status == 404
    assert door.ask(post(f"{STATUS}/region/my%20r/unregister", b"")).status == 200
    assert door.ask(post(f"{STATUS}/unregister", b"")).status == 200
    assert door.ask(request(f"{STATUS}/region/my%20r/unregister")).status == 405
    assert door.ask(request(f"{STATUS}/status")).json() == []


@pytest.mark.parametrize(
    ("path", "body", "says"),
    [
        ("region/r/register", b'{"byte_size":4}', "Shared memory register request has no 'key' field"),
        ("region/r/register", b'{"key":"k"}', "Shared memory register request has no 'byte_size' field"),
        ("region/r/register", b"{", "the body is not understood"),
        ("region/r/register", b"", "the body is not understood"),
        ("region/r/register", b'{"key":1,"byte_size":4}', "the body is not understood"),
        ("region/r/register", b'{"key":"k","byte_size":1.5}', "the body is not understood"),
        ("register", b'{"key":"k","byte_size":4}', "'region name' is necessary to register system shared memory region"),
    ],
)
def test_what_cannot_be_registered(path: str, body: bytes, says: str) -> None:
    reply = Door().ask(post(f"{STATUS}/{path}", body))
    assert (reply.status, reply.error[: len(says)]) == (400, says)


def test_cuda_regions_are_answered_as_where_there_is_no_gpu(memory: Memory) -> None:
    door, cuda = Door(), "/v2/cudasharedmemory"
    door.register("r", memory, 64)
    assert door.ask(request(f"{cuda}/status")).json() == []
    assert door.ask(request(f"{cuda}/region/q/status")).error == "Unable to find cuda shared memory region: 'q'"
    named = door.ask(request(f"{cuda}/region/r/status"))
    assert (named.status, named.error) == (
        404,
        "The region named 'r' is registered as system shared memory, not CUDA shared memory",
    )
    refused = door.ask(post(f"{cuda}/region/q/register", b'{"raw_handle":{"b64":"AA=="},"device_id":0,"byte_size":4}'))
    assert (refused.status, refused.error) == (400, "failed to register CUDA shared memory region: 'q', GPUs not supported")
    assert door.ask(post(f"{cuda}/register", b"{}")).status == 400
    assert door.ask(post(f"{cuda}/unregister", b"")).status == 200
    assert door.ask(post(f"{cuda}/region/r/unregister", b"")).status == 200
    assert len(door.regions.status()) == 1


def test_tensors_come_from_and_go_to_regions(memory: Memory) -> None:
    door = Door()
    door.register("r", memory, 1024)
    plain = door.infer()
    assert plain.json()["outputs"][0]["data"] == [1, 2, 3, 4]
    reply = door.infer(output=at("r", 20, 512), id="q")
    assert reply.headers["content-type"] == "application/json"
    described = {"name": "out_x", "datatype": "FP32", "shape": [2, 2]}
    assert reply.json() == {"model_name": "m", "model_version": "1", "id": "q", "outputs": [described]}
    assert memory.read(20, 512) == FOUR + bytes(4)


def test_a_region_beside_binary_tensors(memory: Memory) -> None:
    door = Door()
    door.register("r", memory, 64)
    head = {
        "inputs": [{"name": "x", "shape": [2, 2], "datatype": "FP32", "parameters": {"binary_data_size": 16}}],
        "outputs": [{"name": "out_x", "parameters": at("r", 16, 32)}],
    }
    text = msgspec.json.encode(head)
    for number in (1, 2, 3):  # with an input alone, the second time would be recognised
        data = np.full(4, number, np.float32).tobytes()
        reply = door.ask(post("/v2/models/m/infer", text + data, **{"Inference-Header-Content-Length": str(len(text))}))
        assert "data" not in reply.json()["outputs"][0]
        assert memory.read(16, 32) == data


def test_what_a_region_s_name_means_now_counts(memory: Memory) -> None:
    door, other = Door(), Memory(64, bytes(16))
    try:
        door.register("r", memory, 64)
        assert door.infer().json()["outputs"][0]["data"] == [1, 2, 3, 4]
        door.ask(post(f"{STATUS}/region/r/unregister", b""))
        assert door.infer().status == 404
        door.register("r", other, 64)
        assert door.infer().json()["outputs"][0]["data"] == [0, 0, 0, 0]
    finally:
        other.close()


def test_a_region_that_goes_while_the_model_runs_is_written_all_the_same(memory: Memory) -> None:
    door = Door()
    door.register("r", memory, 64)
    tensor = {"name": "x", "shape": [2, 2], "datatype": "FP32", "parameters": at("r", 16)}
    head = {"inputs": [tensor], "outputs": [{"name": "out_x", "parameters": at("r", 16, 16)}]}
    door.wire.feed(post("/v2/models/m/infer", msgspec.json.encode(head)))
    door.regions.unregister()
    os.pwrite(memory.fd, bytes(16), 0)  # the request has its own copy
    door.service.answer_all()
    assert door.wire.take()[0].status == 200
    assert memory.read(16, 16) == FOUR


def test_a_region_that_is_truncated_while_the_model_runs(memory: Memory) -> None:
    door = Door()
    door.register("r", memory, 64)
    tensor = {"name": "x", "shape": [2, 2], "datatype": "FP32", "parameters": at("r", 16)}
    head = {"inputs": [tensor], "outputs": [{"name": "out_x", "parameters": at("r", 16, 16)}]}
    door.wire.feed(post("/v2/models/m/infer", msgspec.json.encode(head)))
    os.ftruncate(memory.fd, 20)
    door.service.answer_all()
    (reply,) = door.wire.take()
    assert (reply.status, "has become smaller" in reply.error) == (400, True)
    assert door.infer(output=at("r", 16, 16)).status == 400
    assert door.infer().status == 200


def test_an_output_that_does_not_fit_is_said_and_nothing_written(memory: Memory) -> None:
    door = Door()
    door.register("r", memory, 64)
    reply = door.infer(output=at("r", 12, 32))
    assert reply.status == 500
    assert reply.error == (
        "shared memory size specified with the request for output 'out_x' (12 bytes) should be at least 16 bytes "
        "to hold the results"
    )
    assert memory.read(32, 32) == bytes(32)


@pytest.mark.parametrize("size", [12, 20, 64])
def test_the_size_has_to_fit_the_shape_before_anything_is_read(size: int, memory: Memory) -> None:
    door = Door()
    door.register("r", memory, 64)
    os.ftruncate(memory.fd, 0)
    reply = door.infer({"parameters": at("r", size)}, id="q")
    assert reply.error == f"[request id: q] input byte size mismatch for input 'x' for model 'm'. Expected 16, got {size}"


def test_inputs_in_regions_are_bounded_together(memory: Memory) -> None:
    door = Door(most_bytes=24)
    door.register("r", memory, 64)
    assert door.infer().status == 200
    tensor = {"name": "x", "shape": [2, 2], "datatype": "FP32", "parameters": at("r", 16)}
    reply = door.ask(post("/v2/models/m/infer", msgspec.json.encode({"inputs": [tensor, tensor]})))
    assert (reply.status, reply.error) == (413, "the inputs in shared memory are too large; at most 24 bytes are accepted")


def test_where_it_is_off_clients_are_told(memory: Memory) -> None:
    door = Door(on=False)
    assert door.register("r", memory, 64).status == 403
    reply = door.infer()
    assert (reply.status, "shared memory is off" in reply.error) == (404, True)


# Garbage

NAMES = st.sampled_from(["r", "q", "", "é"])
SIZES = st.one_of(st.integers(-2, 70), st.sampled_from([None, 2**31, 2**63, 2**64, 1.5, "4", True, []]))
PARAMETERS = st.fixed_dictionaries(
    {},
    optional={
        "shared_memory_region": st.one_of(NAMES, SIZES),
        "shared_memory_offset": SIZES,
        "shared_memory_byte_size": SIZES,
        "classification": SIZES,
        "binary_data": st.sampled_from([True, False, None, "x"]),
        "binary_data_size": SIZES,
    },
)


@settings(max_examples=125, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    PARAMETERS, st.lists(PARAMETERS, max_size=2), st.lists(st.sampled_from([-1, 0, 1, 2, 4, 2**40]), max_size=3), st.booleans()
)
def test_any_parameters_are_answered_and_stay_within_the_region(
    memory: Memory, parameters: Any, outputs: list[Any], shape: list[int], shortened: bool
) -> None:
    door = Door()
    door.register("r", memory, 32, 64)
    os.ftruncate(memory.fd, 80 if shortened else 96)
    tensor = {"name": "x", "shape": shape, "datatype": "FP32", "parameters": parameters}
    head = {"inputs": [tensor], "outputs": [{"name": "out_x", "parameters": output} for output in outputs]}
    reply = door.ask(post("/v2/models/m/infer", msgspec.json.encode(head)))
    assert reply.status in (200, 400, 404, 413, 500)
    assert reply.status == 200 or reply.error != "internal error; the server's log has the details"
    assert memory.read(64) == FOUR + bytes(48)
    assert os.fstat(memory.fd).st_size == (80 if shortened else 96)
    os.ftruncate(memory.fd, 64)


@settings(max_examples=75, deadline=None)
@given(st.text(max_size=8), st.text(max_size=8), SIZES, SIZES)
def test_any_registration_is_answered(name: str, key: str, offset: Any, size: Any) -> None:
    door = Door()
    body = msgspec.json.encode({"key": f"no-such/{key}", "offset": offset, "byte_size": size})
    encoded = "".join(f"%{byte:02X}" for byte in name.encode()) or "r"
    assert door.ask(post(f"{STATUS}/region/{encoded}/register", body)).status in (400, 404)
    assert not door.regions.status()


def test_a_client_that_maps_its_region_sees_what_is_written(memory: Memory) -> None:
    door = Door()
    door.register("r", memory, 64)
    with mmap.mmap(memory.fd, 64) as mapped:
        mapped[:16] = np.array([5, 6, 7, 8], np.float32).tobytes()
        assert door.infer(output=at("r", 16, 16)).status == 200
        assert np.frombuffer(mapped[16:32], np.float32).tolist() == [5, 6, 7, 8]

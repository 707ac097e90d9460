"""NVIDIA's tritonclient, unchanged: tensors in shared memory, classes, log and trace settings, over HTTP and gRPC."""

import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import numpy as np
import pytest
import tritonclient.grpc as over_grpc
import tritonclient.http as over_http
import tritonclient.utils.shared_memory as shm
from tritonclient.utils import InferenceServerException, np_to_triton_dtype, serialize_byte_tensor

from dlproxy.message import DType
from tests import models
from tests.clients.server import ServerProcess, write_config

pytestmark = [
    pytest.mark.filterwarnings("ignore::ResourceWarning"),  # gevent's hub, which the client starts, is not closed by it
    pytest.mark.skipif(sys.platform != "linux", reason="shared memory needs Linux on the server"),
]

A = np.arange(8, dtype=np.int32).reshape(2, 4)
B = np.full((2, 4), 100, np.int32)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """Serves simple (two int32 in, two out), whose classes have names, text and wide (identities of BYTES and of INT64)."""
    folder: Path = tmp_path_factory.mktemp("models")
    text, wide = models.identity(DType.BYTES, ("N", 2)), models.identity(DType.INT64, ("N", "M"))
    settings = models.settings_of(folder, simple=models.two_in_two_out(), text=text, wide=wide)
    (folder / "classes.txt").write_text("zero\none\n\nthree\n", "utf-8")
    settings["simple"]["class_names"] = "classes.txt"
    config = write_config(folder / "dlproxy.toml", settings, client_log_settings=True)
    with ServerProcess("--config", config, "--shared-memory") as process:
        yield process


@pytest.fixture(params=["http", "grpc"])
def door(request: pytest.FixtureRequest) -> Any:
    return over_http if request.param == "http" else over_grpc


@pytest.fixture
def client(server: ServerProcess, door: Any) -> Iterator[Any]:
    with door.InferenceServerClient(server.address if door is over_http else server.grpc_address) as made:
        made.unregister_system_shared_memory()
        yield made


class Region:
    """A region of this process, registered with the server."""

    def __init__(self, client: Any, size: int) -> None:
        self.name = f"region {uuid4().hex}"
        self.key = f"/dlproxy-test-{uuid4().hex}"
        self.handle = shm.create_shared_memory_region(self.name, self.key, size)
        client.register_system_shared_memory(self.name, self.key, size)

    @property
    def path(self) -> str:
        return f"/dev/shm{self.key}"

    def write(self, *arrays: np.ndarray, offset: int = 0) -> None:
        shm.set_shared_memory_region(self.handle, list(arrays), offset=offset)

    def read(self, dtype: Any, shape: list[int], offset: int = 0) -> np.ndarray:
        return shm.get_contents_as_numpy(self.handle, dtype, shape, offset=offset)


@pytest.fixture
def regions(client: Any) -> Iterator[Any]:
    made: list[Region] = []

    def make(size: int) -> Region:
        made.append(Region(client, size))
        return made[-1]

    yield make
    for region in made:
        shm.destroy_shared_memory_region(region.handle)


def given(door: Any, name: str, array: np.ndarray, region: Region, size: int | None = None, offset: int = 0) -> Any:
    tensor = door.InferInput(name, list(array.shape), np_to_triton_dtype(array.dtype))
    tensor.set_shared_memory(region.name, array.nbytes if size is None else size, offset=offset)
    return tensor


def wanted(door: Any, name: str, region: Region, size: int, offset: int = 0) -> Any:
    output = door.InferRequestedOutput(name)
    output.set_shared_memory(region.name, size, offset=offset)
    return output


def test_all_tensors_in_shared_memory(client: Any, door: Any, regions: Any) -> None:
    ins, outs = regions(64), regions(128)
    ins.write(A, B)
    for times in (1, 2, 3):
        ins.write(A * times, B)
        inputs = [given(door, "a", A, ins), given(door, "b", B, ins, offset=32)]
        outputs = [wanted(door, "sum", outs, 32), wanted(door, "diff", outs, 64, offset=64)]
        result = client.infer("simple", inputs, outputs=outputs, request_id=f"r-{times}")
        assert np.array_equal(outs.read(np.int32, [2, 4]), A * times + B)
        assert np.array_equal(outs.read(np.int32, [2, 4], offset=64), A * times - B)
        output = result.get_output("sum")
        shape, datatype = (output["shape"], output["datatype"]) if door is over_http else (output.shape, output.datatype)
        assert (list(shape), datatype) == ([2, 4], "INT32")


def test_shared_memory_beside_what_is_sent(client: Any, door: Any, regions: Any) -> None:
    region = regions(64)
    region.write(A)
    sent = door.InferInput("b", [2, 4], "INT32")
    sent.set_data_from_numpy(B)
    inputs = [given(door, "a", A, region), sent]
    result = client.infer(
        "simple", inputs, outputs=[wanted(door, "sum", region, 32, offset=32), door.InferRequestedOutput("diff")]
    )
    assert np.array_equal(region.read(np.int32, [2, 4], offset=32), A + B)
    assert np.array_equal(result.as_numpy("diff"), A - B)


def test_strings_in_shared_memory(client: Any, door: Any, regions: Any) -> None:
    texts = np.array([["", "zwölf"], ["a" * 50, "\n"]], dtype=object)
    encoded = serialize_byte_tensor(texts)
    size = len(encoded.item())
    ins, outs = regions(size), regions(size + 10)
    ins.write(encoded)
    client.infer("text", [given(door, "x", texts, ins, size)], outputs=[wanted(door, "y", outs, size + 10)])
    found = [text.decode() for text in outs.read(np.object_, [2, 2]).ravel()]
    assert found == texts.ravel().tolist()


def test_two_clients_with_regions_of_their_own(server: ServerProcess, client: Any, door: Any, regions: Any) -> None:
    one, other = regions(128), regions(128)
    one.write(A, B)
    other.write(A * 2, B * 2)
    for times in range(20):
        for region, factor in ((one, 1), (other, 2)):
            inputs = [given(door, "a", A, region), given(door, "b", B, region, offset=32)]
            client.infer("simple", inputs, outputs=[wanted(door, "sum", region, 32, offset=64)])
            assert np.array_equal(region.read(np.int32, [2, 4], offset=64), (A + B) * factor), times


def test_large_tensors(client: Any, door: Any, regions: Any) -> None:
    values = np.arange(2_400_000, dtype=np.int64).reshape(1, -1)
    ins, outs = regions(values.nbytes), regions(values.nbytes)
    ins.write(values)
    client.infer("wide", [given(door, "x", values, ins)], outputs=[wanted(door, "y", outs, values.nbytes)])
    assert np.array_equal(outs.read(np.int64, [1, 2_400_000]), values)


def test_status_and_unregister(client: Any, door: Any, regions: Any) -> None:
    region, other = regions(64), regions(128)

    def names(region: str = "") -> set[str]:
        status = client.get_system_shared_memory_status(region)
        return {entry["name"] for entry in status} if door is over_http else set(status.regions)

    assert names() == {region.name, other.name}
    assert names(other.name) == {other.name}
    client.unregister_system_shared_memory(other.name)
    assert names() == {region.name}
    with pytest.raises(InferenceServerException, match="Unable to find system shared memory region"):
        names(other.name)
    with pytest.raises(InferenceServerException, match="Unable to find shared memory region"):
        client.infer("wide", [given(door, "x", np.zeros((1, 1), np.int64), other)])
    with pytest.raises(InferenceServerException, match="already in manager"):
        client.register_system_shared_memory(region.name, region.key, 64)
    client.unregister_system_shared_memory()
    assert names() == set()


def test_a_region_that_is_truncated_does_the_server_no_harm(client: Any, door: Any, regions: Any) -> None:
    region, good = regions(1 << 16), regions(64)
    good.write(A, B)
    os.truncate(region.path, 16)
    array = np.zeros((1, 1 << 12), np.int64)
    with pytest.raises(InferenceServerException, match="has become smaller than it was when it was registered"):
        client.infer("wide", [given(door, "x", array, region)])
    inputs = [given(door, "a", A, good), given(door, "b", B, good, offset=32)]
    with pytest.raises(InferenceServerException, match="has become smaller than it was when it was registered"):
        client.infer("simple", inputs, outputs=[wanted(door, "sum", region, 32, offset=4096)])
    assert os.stat(region.path).st_size == 16
    with pytest.raises(InferenceServerException, match="invalid args"):
        client.register_system_shared_memory("again", region.key, 32)
    client.infer("simple", inputs, outputs=[wanted(door, "sum", good, 32)])


def test_a_region_that_is_unlinked_serves_on(client: Any, door: Any, regions: Any) -> None:
    region = regions(128)
    region.write(A, B)
    os.rename(region.path, f"{region.path}-gone")
    try:
        inputs = [given(door, "a", A, region), given(door, "b", B, region, offset=32)]
        client.infer("simple", inputs, outputs=[wanted(door, "sum", region, 32, offset=64)])
        assert np.array_equal(region.read(np.int32, [2, 4], offset=64), A + B)
        client.unregister_system_shared_memory(region.name)
        with pytest.raises(InferenceServerException, match="Unable to open shared memory region"):
            client.register_system_shared_memory(region.name, region.key, 128)
    finally:
        os.rename(f"{region.path}-gone", region.path)


def test_an_output_that_does_not_fit(client: Any, door: Any, regions: Any) -> None:
    region = regions(128)
    inputs = [given(door, "a", A, region), given(door, "b", B, region, offset=32)]
    with pytest.raises(InferenceServerException, match=r"for output 'sum' \(31 bytes\) should be at least 32 bytes to hold"):
        client.infer("simple", inputs, outputs=[wanted(door, "sum", region, 31, offset=64)])


def test_there_is_no_cuda_memory(client: Any, door: Any) -> None:
    status = client.get_cuda_shared_memory_status()
    assert status == [] if door is over_http else not status.regions
    client.unregister_cuda_shared_memory()
    with pytest.raises(InferenceServerException, match="failed to register CUDA shared memory region: 'c', GPUs not supported"):
        client.register_cuda_shared_memory("c", b"A" * 88, 0, 64)


def test_classes(client: Any, door: Any) -> None:
    tensors = []
    for name, array in (("a", A), ("b", B)):
        tensor = door.InferInput(name, [2, 4], "INT32")
        tensor.set_data_from_numpy(array)
        tensors.append(tensor)
    outputs = [door.InferRequestedOutput("sum", class_count=3), door.InferRequestedOutput("diff")]
    result = client.infer("simple", tensors, outputs=outputs)
    expected = [["103:3:three", "102:2", "101:1:one"], ["107:3:three", "106:2", "105:1:one"]]
    assert [[text.decode() for text in row] for row in result.as_numpy("sum")] == expected
    assert np.array_equal(result.as_numpy("diff"), A - B)


def test_log_settings(server: ServerProcess, client: Any, door: Any) -> None:
    options = {"as_json": True} if door is over_grpc else {}

    def value(settings: Any, name: str) -> Any:
        return next(iter(settings["settings"][name].values())) if door is over_grpc else settings[name]

    assert value(client.get_log_settings(**options), "log_info") is True
    changed = client.update_log_settings({"log_verbose_level": 1, "log_info": None}, **options)
    assert value(changed, "log_verbose_level") == 1
    with pytest.raises(InferenceServerException, match="nobody"):
        client.infer("nobody", [])
    server.await_in_errors("nobody")
    assert value(client.update_log_settings({"log_verbose_level": 0}, **options), "log_verbose_level") == 0
    with pytest.raises(InferenceServerException, match="log file location can not be updated through network protocol"):
        client.update_log_settings({"log_file": "/tmp/x"})


def test_trace_settings(client: Any, door: Any) -> None:
    options = {"as_json": True} if door is over_grpc else {}
    for settings in (client.get_trace_settings(**options), client.get_trace_settings("simple", **options)):
        level = settings["settings"]["trace_level"]["value"] if door is over_grpc else settings["trace_level"]
        assert level == ["OFF"]
    client.update_trace_settings(settings={"trace_level": ["OFF"], "trace_rate": None})
    with pytest.raises(InferenceServerException, match="this server does not trace requests"):
        client.update_trace_settings(settings={"trace_level": ["TIMESTAMPS"]})


def test_the_server_names_what_it_has(client: Any, door: Any) -> None:
    metadata = client.get_server_metadata()
    names = metadata["extensions"] if door is over_http else metadata.extensions
    assert {"system_shared_memory", "classification", "logging"} <= set(names)
    assert not {"cuda_shared_memory", "trace"} & set(names)

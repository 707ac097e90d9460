"""Tensors without dimensions: in and out on every route, in every form, of every kind of instance."""

import json
from collections.abc import Iterator
from http.client import HTTPConnection
from typing import Any

import numpy as np
import pytest
from onnx import helper

from dlproxy import Model, Proxy
from dlproxy.message import DType
from tests import models

from .server import ServerProcess, write_config

RUNS = ("inline", "thread", "process")
PYTHON = """
class Sum:
    inputs = {"x": "FP32[]", "y": "FP32[]"}
    outputs = {"z": "FP32[]"}

    def predict(self, batch):
        return {"z": batch["x"] + batch["y"]}


class Text:
    inputs = {"x": "BYTES[]"}
    outputs = {"z": "BYTES[]"}

    def predict(self, batch):
        return {"z": batch["x"]}
"""


def onnx_sum() -> models.Model:
    scalar = [models.value(name, DType.FP32, ()) for name in ("x", "y")]
    return models.model([helper.make_node("Add", ["x", "y"], ["z"])], scalar, [models.value("z", DType.FP32, ())])


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    folder = tmp_path_factory.mktemp("scalars")
    path = models.save(onnx_sum(), folder / "sum.onnx")
    (folder / "sums.py").write_text(PYTHON)
    told: dict[str, dict[str, Any]] = {f"onnx-{run}": {"path": path, "run": run} for run in RUNS}
    told |= {f"python-{run}": {"path": f"{folder / 'sums.py'}:Sum", "run": run} for run in RUNS}
    told["text"] = {"path": f"{folder / 'sums.py'}:Text", "run": "inline"}
    told["single"] = {
        "path": models.save(models.identity(DType.INT32, ()), folder / "single.onnx"),
    }
    with ServerProcess("--config", write_config(folder / "c.toml", told)) as process:
        yield process


def ask(server: ServerProcess, path: str, body: bytes, **headers: str) -> tuple[int, bytes, dict[str, str]]:
    connection = HTTPConnection("127.0.0.1", server.http_port, timeout=10)
    try:
        connection.request("POST", path, body, headers)
        reply = connection.getresponse()
        return reply.status, reply.read(), {name.lower(): value for name, value in reply.getheaders()}
    finally:
        connection.close()


def tensor(name: str, data: object, shape: list[int] | None = None, datatype: str = "FP32") -> dict[str, Any]:
    return {"name": name, "shape": shape or [], "datatype": datatype, "data": data}


@pytest.mark.parametrize("model", [f"{kind}-{run}" for kind in ("onnx", "python") for run in RUNS])
def test_json_plain_json_and_binary_give_the_same(server: ServerProcess, model: str) -> None:
    for x, y in ((7, 5), ([7], [5]), ([7], 5), (7.0, 5.0)):
        status, body, _ = ask(
            server, f"/v2/models/{model}/infer", json.dumps({"inputs": [tensor("x", x), tensor("y", y)]}).encode()
        )
        assert (status, json.loads(body).get("outputs")) == (200, [tensor("z", [12.0])])
    status, body, _ = ask(server, f"/predict/{model}", b'{"inputs": {"x": 7, "y": 5.0}}')
    assert (status, json.loads(body).get("outputs")) == (200, {"z": 12.0})

    inputs = [{**tensor(name, 0), "parameters": {"binary_data_size": 4}} for name in "xy"]
    for one in inputs:
        del one["data"]
    head = json.dumps({"inputs": inputs, "parameters": {"binary_data_output": True}}).encode()
    data = np.array([7, 5], "<f4").tobytes()
    for _ in range(2):
        status, body, headers = ask(
            server, f"/v2/models/{model}/infer", head + data, **{"Inference-Header-Content-Length": str(len(head))}
        )
        assert status == 200
        size = int(headers["inference-header-content-length"])
        assert json.loads(body[:size])["outputs"][0]["shape"] == []
        assert np.frombuffer(body[size:], "<f4").tolist() == [12.0]


def test_text_and_a_single_input(server: ServerProcess) -> None:
    assert json.loads(ask(server, "/predict/text", '{"inputs": "größe"}'.encode())[1])["outputs"] == {"z": "größe"}
    given = {"inputs": [tensor("x", "größe", datatype="BYTES")]}
    told = json.loads(ask(server, "/v2/models/text/infer", json.dumps(given).encode())[1])
    assert told["outputs"] == [tensor("z", ["größe"], datatype="BYTES")]
    assert json.loads(ask(server, "/predict/single", b'{"inputs": 7}')[1])["outputs"] == {"y": 7}
    status, body, headers = ask(
        server, "/v2/models/single/infer", np.int32(7).tobytes(), **{"Inference-Header-Content-Length": "0"}
    )
    assert (status, body[int(headers["inference-header-content-length"]) :]) == (200, np.int32(7).tobytes())


@pytest.mark.parametrize(
    ("path", "body", "clue"),
    [
        ("/predict/single", {"inputs": [7]}, "Expected [], got [1]"),
        ("/predict/single", {"inputs": None}, "is not an integer"),
        ("/predict/single", {"inputs": "7"}, "is not an integer"),
        ("/predict/single", {"inputs": {"x": {}}}, "is not an integer"),
        ("/predict/single", {"inputs": {"x": True}}, "is not an integer"),
        ("/v2/models/single/infer", {"inputs": [tensor("x", [], datatype="INT32")]}, "has shape [0]"),
        ("/v2/models/single/infer", {"inputs": [tensor("x", [1, 2], datatype="INT32")]}, "has shape [2]"),
        ("/v2/models/single/infer", {"inputs": [tensor("x", 7, [1], datatype="INT32")]}, "must be a list"),
        ("/v2/models/single/infer", {"inputs": [tensor("x", [7], [1], datatype="INT32")]}, "Expected [], got [1]"),
    ],
)
def test_what_is_no_scalar_is_refused(server: ServerProcess, path: str, body: object, clue: str) -> None:
    status, said, _ = ask(server, path, json.dumps(body).encode())
    assert status == 400
    assert clue in json.loads(said)["error"]


async def test_the_library_takes_and_gives_them(tmp_path_factory: pytest.TempPathFactory) -> None:
    path = models.save(onnx_sum(), tmp_path_factory.mktemp("library") / "sum.onnx")
    async with Proxy([Model(path)]) as proxy:
        for x in (7.0, np.float32(7), np.array(7, np.float32)):
            given = await proxy.infer("sum", {"x": x, "y": 5.0})
            assert (given["z"].shape, given["z"]) == ((), 12.0)

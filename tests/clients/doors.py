"""A request for model m of a real server through every door: what the answer's header says of how it came about, y and run.

m takes x as FP32[N,2], and gives y and run, an integer for each row.
"""

import json
from typing import Any, Protocol
from urllib.request import Request, urlopen

import grpc
import numpy as np
import tritonclient.http as triton

from dlproxy import Client
from dlproxy.protos.oip import SERVICE, oip
from dlproxy.protos.tfs import PREDICTION, tfs
from tests.clients.server import HANG_S, ServerProcess

X = [1.5, 2.0]
Told = tuple[str, list[float], int]  # what the header says, y, run


class Door(Protocol):
    """`says`: which of the headers is told of, cache or variant. `control`: a Cache-Control header."""

    def __call__(self, server: "Site", says: str = "cache", control: str = "") -> Told: ...


class Site(ServerProcess):
    """With TensorFlow Serving's ports."""

    def post(self, path: str, body: Any, *, port: int = 0, control: str = "") -> tuple[Any, Any]:
        """The headers and the JSON of the answer. `control`: a Cache-Control header."""
        url, data = f"http://127.0.0.1:{port or self.http_port}{path}", json.dumps(body).encode()
        with urlopen(Request(url, data, {"Cache-Control": control} if control else {}), timeout=HANG_S) as reply:
            return reply.headers, json.load(reply)

    def infer(self, x: list[float], model: str = "m", control: str = "", says: str = "cache") -> Told:
        """As JSON over /v2."""
        tensor = {"name": "x", "datatype": "FP32", "shape": [1, 2], "data": x}
        told, answer = self.post(f"/v2/models/{model}/infer", {"id": "json", "inputs": [tensor]}, control=control)
        y, run = (output["data"] for output in answer["outputs"])
        assert (answer["id"], answer["model_name"]) == ("json", model)
        return said(told, says), y, run[0]


def said(told: Any, says: str) -> str:
    """By the headers of an answer."""
    return told[f"x-dlproxy-{says}"] or ""


def called(port: int, method: str, message: Any, answer: Any, control: str = "", says: str = "cache") -> tuple[str, Any]:
    """What the trailing metadata says, and the answer."""
    metadata = [("cache-control", control)] if control else []
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        reply, call = channel.unary_unary(method).with_call(message.SerializeToString(), timeout=HANG_S, metadata=metadata)
    return str(dict(call.trailing_metadata()).get(f"x-dlproxy-{says}", "")), answer.FromString(reply)


def typed_request(x: list[float], *outputs: str) -> Any:
    message = oip.ModelInferRequest(model_name="m", id="typed")
    message.inputs.add(name="x", datatype="FP32", shape=[1, 2]).contents.fp32_contents.extend(x)
    for name in outputs:
        message.outputs.add(name=name)
    return message


def by_typed_grpc(server: Site, says: str = "cache", control: str = "") -> Told:
    port, method = server.grpc_port, f"{SERVICE}/ModelInfer"
    told, answer = called(port, method, typed_request(X), oip.ModelInferResponse, control, says)
    y, run = answer.raw_output_contents or [None, None]
    assert (answer.id, answer.model_name) == ("typed", "m")
    if y is None:
        return told, list(answer.outputs[0].contents.fp32_contents), answer.outputs[1].contents.int64_contents[0]
    return told, np.frombuffer(y, np.float32).tolist(), int(np.frombuffer(run, np.int64)[0])


def by_our_client(scheme: str) -> Door:
    def ask(server: Site, says: str = "cache", control: str = "") -> Told:
        address = server.address if scheme == "http" else server.grpc_address
        with Client(f"{scheme}://{address}") as client:
            answer = client.infer("m", np.array([X], np.float32), cache_control=control)
        return getattr(answer, says), answer["y"][0].tolist(), int(answer["run"][0, 0])

    return ask


def by_tritonclient(server: Site, says: str = "cache", control: str = "") -> Told:
    """Which keeps headers to itself."""
    x = triton.InferInput("x", [1, 2], "FP32")
    x.set_data_from_numpy(np.array([X], np.float32), binary_data=True)
    wanted = [triton.InferRequestedOutput("y", binary_data=True), triton.InferRequestedOutput("run", binary_data=False)]
    with triton.InferenceServerClient(server.address) as client:
        answer = client.infer("m", [x], outputs=wanted, request_id="triton")
    assert answer.get_response()["id"] == "triton"
    return "", answer.as_numpy("y")[0].tolist(), int(answer.as_numpy("run")[0, 0])


def by_predict(server: Site, says: str = "cache", control: str = "") -> Told:
    told, answer = server.post("/predict/m", {"inputs": {"x": [X]}}, control=control)
    return said(told, says), answer["outputs"]["y"][0], answer["outputs"]["run"][0][0]


def by_generate(server: Site, says: str = "cache", control: str = "") -> Told:
    body = {"x": X, "temperature": 0.5, "id": "generated"}
    told, answer = server.post("/v2/models/m/generate", body, control=control)
    assert answer["id"] == "generated"
    return said(told, says), answer["y"], answer["run"]


def by_tfs_rest(server: Site, says: str = "cache", control: str = "") -> Told:
    body = {"instances": [{"x": X}]}
    told, answer = server.post("/v1/models/m:predict", body, port=server.tfs_http_port, control=control)
    return said(told, says), answer["predictions"][0]["y"], answer["predictions"][0]["run"][0]


def by_tfs_columns(server: Site, says: str = "cache", control: str = "") -> Told:
    told, answer = server.post("/v1/models/m:predict", {"inputs": {"x": [X]}}, control=control)
    return said(told, says), answer["outputs"]["y"][0], answer["outputs"]["run"][0][0]


def by_tfs_grpc(server: Site, says: str = "cache", control: str = "") -> Told:
    message = tfs.PredictRequest()
    message.model_spec.name = "m"
    tensor = message.inputs["x"]
    tensor.dtype, tensor.tensor_content = 1, np.array(X, np.float32).tobytes()
    for size in (1, 2):
        tensor.tensor_shape.dim.add(size=size)
    told, answer = called(server.tfs_grpc_port, f"{PREDICTION}/Predict", message, tfs.PredictResponse, control, says)
    return told, list(answer.outputs["y"].float_val), answer.outputs["run"].int64_val[0]


def by_json(server: Site, says: str = "cache", control: str = "") -> Told:
    return server.infer(X, control=control, says=says)


DOORS: dict[str, Door] = {
    "json": by_json,
    "http client": by_our_client("http"),
    "tritonclient": by_tritonclient,
    "grpc client": by_our_client("grpc"),
    "typed grpc": by_typed_grpc,
    "predict": by_predict,
    "generate": by_generate,
    "tfs rest": by_tfs_rest,
    "tfs columns": by_tfs_columns,
    "tfs grpc": by_tfs_grpc,
}

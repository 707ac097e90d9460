"""TensorFlow Serving's two ports of `dlproxy serve --tfs`, asked by hand and by a dlproxy that takes it for such a server."""

from collections.abc import Iterator
from typing import Any

import grpc
import numpy as np
import pytest

from dlproxy.protos.tfs import PREDICTION, tfs
from tests import models
from tests.clients.server import HANG_S, ServerProcess, asked


@pytest.fixture(scope="module")
def server() -> Iterator[ServerProcess]:
    with ServerProcess(f"digits={models.DIGITS}", "--tfs", "--tfs-grpc-port", "0", "--tfs-http-port", "0") as process:
        yield process


@pytest.fixture(scope="module")
def images() -> np.ndarray[Any, np.dtype[np.float32]]:
    with np.load(models.HELDOUT) as heldout:
        found: np.ndarray[Any, np.dtype[np.float32]] = heldout["images"][:3].astype(np.float32)
        return found


def ask(url: str, body: Any = None) -> Any:
    return asked(url, body).json


def test_both_transports_of_every_port_answer_alike(server: ServerProcess, images: Any) -> None:
    expected = ask(f"http://{server.address}/predict/digits", {"inputs": images.tolist()})["outputs"]["probabilities"]
    for port in (server.tfs_http_port, server.http_port):
        base = f"http://127.0.0.1:{port}/v1/models/digits"
        assert ask(base)["model_version_status"][0]["state"] == "AVAILABLE"
        rows = ask(f"{base}:predict", {"instances": images.tolist()})["predictions"]
        assert np.array_equal(np.float32(rows), np.float32(expected))
    question = tfs.PredictRequest()
    question.model_spec.name = "digits"
    tensor = question.inputs["image"]
    tensor.dtype, tensor.tensor_content = 1, images.tobytes()
    for size in images.shape:
        tensor.tensor_shape.dim.add(size=size)
    with grpc.insecure_channel(f"127.0.0.1:{server.tfs_grpc_port}") as channel:
        reply = channel.unary_unary(f"{PREDICTION}/Predict")(question.SerializeToString(), timeout=HANG_S)
    outputs = tfs.PredictResponse.FromString(reply).outputs
    assert np.array_equal(np.float32(outputs["probabilities"].float_val), np.float32(expected).ravel())


def test_a_dlproxy_in_front_takes_it_for_tensorflow_serving(server: ServerProcess, images: Any) -> None:
    question = {"inputs": images.tolist()}
    expected = ask(f"http://{server.address}/predict/digits", question)["outputs"]
    rest = f"http://127.0.0.1:{server.tfs_http_port}/v1/models/digits"
    rpc = f"grpc://127.0.0.1:{server.tfs_grpc_port}/v1/models/digits/versions/1"
    with ServerProcess(f"rest={rest}", f"rpc={rpc}") as front:
        for name in ("rest", "rpc"):
            answer = ask(f"http://{front.address}/predict/{name}", question)["outputs"]
            assert np.array_equal(np.float32(answer["probabilities"]), np.float32(expected["probabilities"]))

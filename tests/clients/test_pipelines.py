"""Pipelines of a real server and of the library: their answers are those of their models asked by hand, whoever asks how."""

import asyncio
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tritonclient.grpc as triton

from dlproxy import InferenceError, Model, Proxy
from dlproxy.instance.runtime import ModelError
from tests import models
from tests.clients.server import ServerProcess, asked, environment

CODE = '''
import numpy as np


def pixels(image, context):
    """Of pictures as lists of bytes; brighter by a parameter, and darker by a header."""
    bright = context.parameters.get("bright", 0) - int(context.headers.get("x-dark", 0))
    return np.stack([np.frombuffer(one, np.uint8).reshape(1, 8, 8) for one in image]).astype(np.float32) + bright


pixels.outputs = {"x": "FP32[-1,1,8,8]"}


class Best:
    outputs = {"label": "INT64[-1]"}

    def __init__(self, sign=1):
        self.sign = sign

    def __call__(self, scores):
        return (self.sign * scores).argmax(axis=1)
'''
CONFIG = f"""
[server]
access_log = true

[models.digits]
path = "{models.DIGITS}"

[pipelines.read]
inputs = {{ image = "BYTES[-1]" }}
outputs = {{ label = "best.label", scores = "net.probabilities" }}

[pipelines.read.steps.pixels]
call = "code.py:pixels"
inputs = {{ image = "image" }}
headers = ["X-Dark"]

[pipelines.read.steps.net]
model = "digits"
inputs = {{ image = "pixels.x" }}

[pipelines.read.steps.best]
call = "code.py:Best"
inputs = {{ scores = "net.probabilities" }}
options = {{ sign = 1 }}
"""
STEPS: dict[str, dict[str, Any]] = {
    "net": {"model": "digits", "inputs": {"image": "image"}},
    "again": {"model": "digits", "inputs": {"image": "image"}, "each": True},
}


@pytest.fixture(scope="module")
def images() -> Any:
    with np.load(models.HELDOUT) as heldout:
        return heldout["images"][:12].astype(np.float32)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    folder = tmp_path_factory.mktemp("pipelines")
    (folder / "code.py").write_text(CODE)
    (folder / "dlproxy.toml").write_text(CONFIG)
    with ServerProcess("--config", folder / "dlproxy.toml") as process:
        yield process


def as_bytes(images: Any) -> Any:
    return np.array([image.astype(np.uint8).tobytes() for image in images], object)


def by_hand(server: ServerProcess, images: Any) -> Any:
    body = {"inputs": [{"name": "image", "datatype": "FP32", "shape": list(images.shape), "data": images.ravel().tolist()}]}
    told = server.ask("/v2/models/digits/infer", body)
    return np.array(told["outputs"][0]["data"], np.float32).reshape(told["outputs"][0]["shape"])


def test_an_answer_is_that_of_its_steps_by_hand(server: ServerProcess, images: Any) -> None:
    with triton.InferenceServerClient(server.grpc_address) as client:
        image = triton.InferInput("image", [len(images)], "BYTES")
        image.set_data_from_numpy(as_bytes(images))
        result = client.infer("read", [image])
    expected = by_hand(server, images)
    assert np.allclose(result.as_numpy("scores"), expected, atol=1e-6)
    assert result.as_numpy("label").tolist() == expected.argmax(axis=1).tolist()


def test_parameters_and_headers_reach_code_that_names_them(server: ServerProcess) -> None:
    image = "\x05" * 64

    def scores(bright: int, **headers: str) -> Any:
        body = {
            "inputs": [{"name": "image", "datatype": "BYTES", "shape": [1], "data": [image]}],
            "outputs": [{"name": "scores"}],
            "parameters": {"bright": bright},
        }
        told = asked(f"http://{server.address}/v2/models/read/infer", body, **headers)
        assert told.status == 200, told
        return told.json["outputs"][0]["data"]

    five, eight = (by_hand(server, np.full((1, 1, 8, 8), value, np.float32)).ravel() for value in (5, 8))
    assert np.allclose(scores(0), five, atol=1e-6)
    assert np.allclose(scores(3), eight, atol=1e-6)
    assert np.allclose(scores(5, **{"X-Dark": "2"}), eight, atol=1e-6)


def test_it_is_described_listed_and_measured_like_a_model(server: ServerProcess) -> None:
    metadata = server.ask("/v2/models/read")
    assert metadata["platform"] == "pipeline"
    assert metadata["inputs"] == [{"name": "image", "datatype": "BYTES", "shape": [-1]}]
    assert [output["name"] for output in metadata["outputs"]] == ["label", "scores"]
    assert "runs     in other models: pixels (" in server.report
    assert "-> net (digits) -> best (" in server.report
    server.ask("/predict/read", {"inputs": ["\x01" * 64]})
    assert server.metric("nv_inference_request_success", model="read") >= 1
    assert server.metric("dlproxy_step_requests", model="read", step="net") >= 1
    state = server.control("/models/read")
    assert (state["run"], [step["name"] for step in state["steps"]]) == ("pipeline", ["pixels", "net", "best"])
    command = [
        sys.executable,
        "-m",
        "dlproxy",
        "models",
        "--control",
        f"http://127.0.0.1:{server.control_port}",
        "show",
        "read",
    ]
    shown = subprocess.run(command, capture_output=True, text=True, env=environment(), check=True).stdout
    assert "net     digits" in shown
    assert "read-0" in shown


def test_a_failure_names_its_stage_and_its_traceback_is_in_the_log(server: ServerProcess) -> None:
    body = {"inputs": [{"name": "image", "datatype": "BYTES", "shape": [1], "data": ["no picture"]}]}
    told = asked(f"http://{server.address}/v2/models/read/infer", body)
    assert told.status == 500
    assert told.json["error"].startswith("stage 'pixels' (")
    assert "ValueError: " in told.json["error"]
    server.await_in_errors("cannot reshape array of size 10")
    assert 'code.py", line' in server.errors()


def test_a_pipeline_that_does_not_fit_ends_the_start_with_both_ends(tmp_path: Path) -> None:
    (tmp_path / "code.py").write_text(CODE)
    (tmp_path / "dlproxy.toml").write_text(CONFIG.replace("FP32", "INT64").replace('"pixels.x"', '"best.label"', 1))
    command = [sys.executable, "-m", "dlproxy", "serve", "--config", str(tmp_path / "dlproxy.toml"), "--http-port", "0"]
    ended = subprocess.run([*command, "--control-port", "0"], capture_output=True, text=True, env=environment(), check=False)
    assert ended.returncode != 0
    assert "net" in ended.stderr
    assert "circle" in ended.stderr


# The library


@pytest.fixture
async def proxy() -> AsyncIterator[Proxy]:
    outputs = {"one": "net.probabilities", "all": "again.probabilities"}
    pipeline = Model("pipeline", name="twice", inputs={"image": ""}, outputs=outputs, steps=STEPS)
    async with Proxy([pipeline, Model(models.DIGITS)]) as opened:
        yield opened


async def test_pipelines_are_loaded_after_their_stages_and_leave_before_them(proxy: Proxy, images: Any) -> None:
    answers = await asyncio.gather(*(proxy.infer("twice", {"image": images}) for _ in range(20)))
    expected = (await proxy.infer("digits", {"image": images}))["probabilities"]
    for answer in answers:
        assert np.allclose(answer["one"], expected, atol=1e-6)
        assert np.allclose(answer["all"], expected, atol=1e-6)
    waiting = asyncio.gather(*(proxy.infer("twice", {"image": images}) for _ in range(20)))
    await asyncio.sleep(0)
    await proxy.__aexit__(None, None, None)
    assert len(await waiting) == 20, "what was under way was answered"
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("dlproxy-steps")]
    await proxy.__aenter__()


async def test_stages_leave_and_come_back(proxy: Proxy, images: Any) -> None:
    await proxy.unload("digits")
    with pytest.raises(InferenceError, match="stage 'net': model 'digits' is not served: "):
        await proxy.infer("twice", {"image": images})
    await proxy.load(Model(models.DIGITS))
    await proxy.infer("twice", {"image": images})
    await proxy.replace(Model(models.DIGITS))
    await proxy.infer("twice", {"image": images})
    await proxy.unload("twice")
    steps = {"net": {"model": "digit", "inputs": {"image": "image"}}}
    with pytest.raises(ModelError, match=r"stage 'net': model 'digit' is not served: .*; did you mean 'digits'"):
        await proxy.load(Model("pipeline", name="p", inputs={"image": ""}, outputs={"y": "net.probabilities"}, steps=steps))

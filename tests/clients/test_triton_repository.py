"""A repository that was made for Triton, with an ensemble and a model with state, asked by Triton's own clients."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tritonclient.grpc
import tritonclient.http
from onnx import helper

from dlproxy.message import DType
from tests import models
from tests.clients.server import ServerProcess

BATCHED = 'backend: "onnxruntime" max_batch_size: 8\n'
ENSEMBLE = """platform: "ensemble" max_batch_size: 8
input { name: "in" data_type: TYPE_FP32 dims: 2 }
output [ { name: "out" data_type: TYPE_FP32 dims: 2 }, { name: "mid" data_type: TYPE_FP32 dims: 2 } ]
ensemble_scheduling { step [
  { model_name: "double" model_version: -1
    input_map { key: "x" value: "mid" } output_map { key: "y" value: "out" } },
  { model_name: "plus-1" model_version: 1
    input_map { key: "input.1" value: "in" } output_map { key: "2" value: "mid" } }
] }
"""
STATE = """sequence_batching {
  oldest { }
  control_input { name: "start" control { kind: CONTROL_SEQUENCE_START fp32_false_true: [ 0, 1 ] } }
  state [
    { input_name: "sum" output_name: "next" data_type: TYPE_FP32 dims: 2
      initial_state { name: "zeros" data_type: TYPE_FP32 dims: 2 zero_data: true } },
    { input_name: "past" output_name: "longer" data_type: TYPE_FP32 dims: -1
      initial_state { name: "none yet" data_type: TYPE_FP32 dims: 0 zero_data: true } }
  ]
}
"""


def floats(name: str, width: int = 2) -> Any:
    return models.value(name, DType.FP32, ("N", width))


def with_constant(kind: str, constant: float, source: str, result: str) -> models.Model:
    node = helper.make_node(kind, [source, "c"], [result])
    return models.model([node], [floats(source)], [floats(result)], [models.constant("c", np.float32(constant))])


def running_sum() -> models.Model:
    """What came since the sequence began, and 100 when it begins. all: the same without that, of all that came."""
    nodes = [
        helper.make_node("Mul", ["start", "c"], ["first"]),
        helper.make_node("Sum", ["x", "sum", "first"], ["y"]),
        helper.make_node("Identity", ["y"], ["next"]),
        helper.make_node("Concat", ["past", "x"], ["longer"], axis=1),
        helper.make_node("ReduceSum", ["longer", "axis"], ["all"], keepdims=1),
    ]
    inputs = [floats("x"), floats("sum"), floats("start", 1), models.value("past", DType.FP32, ("N", "P"))]
    outputs = [floats("y"), floats("next"), floats("all", 1), models.value("longer", DType.FP32, ("N", "Q"))]
    constants = [models.constant("c", np.float32(100)), models.constant("axis", np.array([1], np.int64))]
    return models.model(nodes, inputs, outputs, constants)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    folder: Path = tmp_path_factory.mktemp("models")
    for name, made, config in (
        ("plus-1", with_constant("Add", 1, "input.1", "2"), BATCHED),
        ("double", with_constant("Mul", 2, "x", "y"), BATCHED),
        ("chain", None, ENSEMBLE),
        ("sum", running_sum(), BATCHED + STATE),
    ):
        (folder / name / "1").mkdir(parents=True)
        (folder / name / "config.pbtxt").write_text(config)
        if made is not None:
            models.save(made, folder / name / "1" / "model.onnx")
    with ServerProcess("--repository", folder) as process:
        yield process


@pytest.fixture(params=["http", "grpc"])
def client(request: pytest.FixtureRequest, server: ServerProcess) -> Iterator[Any]:
    module = {"http": tritonclient.http, "grpc": tritonclient.grpc}[request.param]
    address = server.address if request.param == "http" else f"127.0.0.1:{server.grpc_port}"
    with module.InferenceServerClient(address) as made:
        made.tensor = module.InferInput
        yield made


def asked(client: Any, model: str, name: str, values: list[list[float]], **more: Any) -> Any:
    tensor = client.tensor(name, [len(values), 2], "FP32")
    tensor.set_data_from_numpy(np.array(values, np.float32))
    return client.infer(model, [tensor], **more)


def test_an_ensemble_answers_and_is_told_as_one(client: Any) -> None:
    answer = asked(client, "chain", "in", [[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]])
    assert answer.as_numpy("mid").tolist() == [[2.0, 3.0], [4.0, 5.0], [6.0, 7.0]]
    assert answer.as_numpy("out").tolist() == [[4.0, 6.0], [8.0, 10.0], [12.0, 14.0]]
    if isinstance(client, tritonclient.grpc.InferenceServerClient):
        config = client.get_model_config("chain", as_json=True)["config"]
    else:
        config = client.get_model_config("chain")
    assert config["platform"] == "ensemble"
    steps = {step["model_name"]: step for step in config["ensemble_scheduling"]["step"]}
    assert steps["plus-1"]["input_map"] == {"input.1": "in"}
    assert steps["plus-1"]["output_map"] == {"2": "mid"}
    assert int(steps["double"]["model_version"]) == -1


def test_a_sequence_goes_on_where_it_was(client: Any) -> None:
    for start, end, expected in ((True, False, 101.0), (False, False, 102.0), (False, True, 103.0)):
        for number in (7, 8):
            more = {"sequence_id": number, "sequence_start": start, "sequence_end": end}
            answer = asked(client, "sum", "x", [[1.0, float(number)]], **more)
            assert answer.as_numpy("y").tolist() == [[expected, 100.0 + number * (expected - 100.0)]]
            assert answer.as_numpy("all").tolist() == [[(1.0 + number) * (expected - 100.0)]]
    with pytest.raises(tritonclient.utils.InferenceServerException, match="must specify the START flag"):
        asked(client, "sum", "x", [[1.0, 1.0]], sequence_id=7)

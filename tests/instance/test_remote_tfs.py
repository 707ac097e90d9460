"""TensorFlow Serving's REST API as a client: the signature from the metadata, columnar predict, what JSON does to values."""

import json
import math
from typing import Any

import numpy as np
import pytest

from dlproxy.instance.remote.address import parse_address
from dlproxy.instance.remote.codec import UpstreamModel
from dlproxy.instance.remote.failures import UpstreamError
from dlproxy.instance.remote.settings import RemoteSettings
from dlproxy.instance.remote.tfs import TfsCodec
from dlproxy.instance.runtime import ModelError
from dlproxy.message import DType, FailureKind, Signature, TensorSpec
from tests.instance.remote_cases import answer, joined, request

CODEC = TfsCodec(parse_address("http://tfs:8501/v1/models/half_plus_two"), RemoteSettings())
X, Y = TensorSpec("x", DType.FP32, (-1, 2)), TensorSpec("y", DType.FP32, (-1,))
ONE = UpstreamModel(Signature((X,), (Y,), True, "p"), None, binary=False)
TWO = UpstreamModel(Signature((X,), (Y, TensorSpec("n", DType.INT64, (-1,))), True, "p"), None, binary=False)


def _tensor(dtype: str, *sizes: int, unknown: bool = False) -> dict[str, Any]:
    dims = [{"size": str(size), "name": ""} for size in sizes]
    return {"dtype": dtype, "tensor_shape": {"dim": dims, "unknown_rank": unknown}, "name": "t:0"}


def _metadata(inputs: dict[str, Any], outputs: dict[str, Any], name: str = "serving_default") -> dict[str, Any]:
    definition = {"inputs": inputs, "outputs": outputs, "method_name": "tensorflow/serving/predict"}
    return {
        "model_spec": {"name": "half_plus_two", "signature_name": "", "version": "123"},
        "metadata": {"signature_def": {"signature_def": {name: definition}}},
    }


def _described(metadata: Any, settings: RemoteSettings | None = None) -> UpstreamModel:
    codec = TfsCodec(parse_address("http://h/v1/models/m"), settings or RemoteSettings())
    return codec.described({"model": metadata if not isinstance(metadata, dict) else answer(metadata)})


def test_asks_where_the_address_says() -> None:
    codec = TfsCodec(parse_address("http://h/v1/models/m/versions/2?signature=other"), RemoteSettings())
    assert joined(codec.questions["model"])[0]["request"] == "GET /v1/models/m/versions/2/metadata HTTP/1.1"
    assert joined(codec.readiness)[0]["request"] == "GET /v1/models/m/versions/2 HTTP/1.1"
    headers, body = joined(codec.encode(ONE, [request(("x", DType.FP32, np.ones((1, 2), np.float32)))]))
    assert headers["request"] == "POST /v1/models/m/versions/2:predict HTTP/1.1"
    assert json.loads(body) == {"signature_name": "other", "inputs": {"x": [[1.0, 1.0]]}}


def test_reads_the_signature_in_one_order() -> None:
    inputs = {"b": _tensor("DT_STRING", -1), "a": _tensor("DT_FLOAT", -1, 28, 28)}
    model = _described(_metadata(inputs, {"y": _tensor("DT_INT64", -1)}))
    assert model.signature.inputs == (TensorSpec("a", DType.FP32, (-1, 28, 28)), TensorSpec("b", DType.BYTES, (-1,)))
    assert model.signature.outputs == (TensorSpec("y", DType.INT64, (-1,)),)
    assert model.signature.batched
    again = _described(_metadata(dict(reversed(inputs.items())), {"y": _tensor("DT_INT64", -1)}))
    assert again.same_as(model)


@pytest.mark.parametrize(
    ("inputs", "settings", "clue"),
    [
        ({"x": _tensor("DT_FLOAT", unknown=True)}, RemoteSettings(), "any number of dimensions"),
        ({"x": _tensor("DT_RESOURCE", 1)}, RemoteSettings(), "DT_RESOURCE"),
        ({}, RemoteSettings(), "no inputs"),
        ({"x": _tensor("DT_FLOAT", 1)}, RemoteSettings(batched=True), "first dimension is fixed"),
    ],
)
def test_models_that_cannot_be_served_are_refused(inputs: Any, settings: RemoteSettings, clue: str) -> None:
    with pytest.raises(ModelError, match=clue):
        _described(_metadata(inputs, {"y": _tensor("DT_FLOAT", -1)}), settings)


def test_a_missing_signature_is_named() -> None:
    with pytest.raises(ModelError, match="no signature 'serving_default'; it has other"):
        _described(_metadata({}, {}, "other"))


def test_descriptions_that_are_none_fail() -> None:
    with pytest.raises(UpstreamError, match="not understood"):
        _described(answer(b"{}"))
    with pytest.raises(UpstreamError, match="answered 404: Servable not found"):
        _described(answer({"error": "Servable not found for request: Latest(m)"}, 404))


@pytest.mark.parametrize(
    ("reply", "ready"),
    [
        (answer({"model_version_status": [{"version": "1", "state": "END"}, {"version": "2", "state": "AVAILABLE"}]}), True),
        (answer({"model_version_status": [{"version": "1", "state": "LOADING"}]}), False),
        (answer({"model_version_status": []}), False),
        (answer({"name": "m", "ready": "True"}), True),
        (answer({"name": "m", "ready": False}), False),
        (answer([]), False),
        (answer(b"hello"), False),
        (answer({"error": "no"}, 404), False),
    ],
)
def test_readiness(reply: Any, ready: bool) -> None:
    assert CODEC.is_ready(reply) is ready


def test_rows_are_gathered_in_columns() -> None:
    requests = [request(("x", DType.FP32, np.full((rows, 2), rows, np.float32))) for rows in (1, 2)]
    _, body = joined(CODEC.encode(ONE, requests))
    assert json.loads(body)["inputs"] == {"x": [[1.0, 1.0], [2.0, 2.0], [2.0, 2.0]]}


def test_values_without_a_json_form_go_as_the_server_takes_them() -> None:
    texts = TensorSpec("t", DType.BYTES, (-1,))
    half = TensorSpec("h", DType.BF16, (-1,))
    model = UpstreamModel(Signature((X, texts, half), (Y,), True, "p"), None, binary=False)
    given = request(
        ("x", DType.FP32, np.array([[np.nan, -np.inf]], np.float32)),
        ("t", DType.BYTES, [b"\xff"]),
        ("h", DType.BF16, np.array([0x3FC0], np.uint16)),
    )
    _, body = joined(CODEC.encode(model, [given]))
    inputs = json.loads(body)["inputs"]
    assert math.isnan(inputs["x"][0][0])
    assert (inputs["x"][0][1], inputs["t"], inputs["h"]) == (-math.inf, [{"b64": "/w=="}], [1.5])


def test_one_output_comes_without_its_name() -> None:
    (got,) = CODEC.decode(ONE, answer(b'{"outputs": [1, NaN, -Infinity]}'), 3)
    assert got.dtype == np.float32
    assert np.array_equal(got, np.array([1, np.nan, -np.inf], np.float32), equal_nan=True)


def test_several_outputs_come_by_name() -> None:
    floats, integers = CODEC.decode(TWO, answer({"outputs": {"n": [2**62, 1], "y": [1, 0.5], "more": 0}}), 2)
    assert (floats.tolist(), integers.tolist()) == ([1.0, 0.5], [2**62, 1])


def test_texts_and_bytes_come_back() -> None:
    model = UpstreamModel(Signature((X,), (TensorSpec("t", DType.BYTES, (-1, 1)),), True, "p"), None, binary=False)
    (got,) = CODEC.decode(model, answer({"outputs": [["ä"], [{"b64": "/w=="}]]}), 2)
    assert got.tolist() == [["ä".encode()], [b"\xff"]]


@pytest.mark.parametrize(
    ("model", "body", "clue"),
    [
        (ONE, b"<html>", "not JSON"),
        (ONE, b"\xff", "not JSON"),
        (ONE, b"[" * 100_000, "not JSON"),
        (ONE, b"[]", "no 'outputs'"),
        (ONE, b'{"predictions": [1]}', "no 'outputs'"),
        (ONE, b'{"outputs": [1]}', r"shape \[1\] for a batch of 2 rows"),
        (ONE, b'{"outputs": [[1], [2]]}', r"shape \[2, 1\]"),
        (ONE, b'{"outputs": [[1], [2, 3]]}', "cannot be read"),
        (ONE, b'{"outputs": ["a", "b"]}', "cannot be read"),
        (ONE, b'{"outputs": {"y": [1, 2]}}', "cannot be read"),
        (TWO, b'{"outputs": [1, 2]}', "lacks an output: declared are y, n, got list"),
        (TWO, b'{"outputs": {"y": [1, 2]}}', "lacks an output: declared are y, n, got y"),
        (TWO, b'{"outputs": {"y": [1, 2], "n": [1, 99999999999999999999]}}', "cannot be read"),
    ],
)
def test_answers_that_are_none_fail_with_a_reason(model: UpstreamModel, body: bytes, clue: str) -> None:
    with pytest.raises(UpstreamError, match=clue) as caught:
        CODEC.decode(model, answer(body), 2)
    assert caught.value.failure.kind is FailureKind.MODEL_FAILED

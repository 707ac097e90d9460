"""The Open Inference Protocol as a client: what is asked, what is understood of the answers, what is refused."""

import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dlproxy.instance.remote.address import parse_address
from dlproxy.instance.remote.codec import UpstreamModel
from dlproxy.instance.remote.failures import UpstreamError, refusal
from dlproxy.instance.remote.oip import OipCodec
from dlproxy.instance.remote.settings import RemoteSettings
from dlproxy.instance.runtime import ModelError
from dlproxy.message import DType, FailureKind, Signature, TensorSpec
from tests.instance.remote_cases import answer, binary_answer, joined, output, request, tensor

ADDRESS = parse_address("http://triton:8000/v2/models/m")
CODEC = OipCodec(ADDRESS, RemoteSettings())
X, Y = TensorSpec("x", DType.FP32, (-1, 2)), TensorSpec("y", DType.FP32, (-1, 3))
BINARY = UpstreamModel(Signature((X,), (Y,), batched=True, platform="p"), 8, binary=True)
JSON = UpstreamModel(Signature((X,), (Y,), batched=True, platform="p"), 8, binary=False)
NOT_FOUND = answer({"error": "no"}, 404)
TRITON = answer({"name": "triton", "version": "2", "extensions": ["classification", "binary_tensor_data"]})
METADATA = {
    "name": "m",
    "platform": "onnx",
    "inputs": [tensor("x", "FP32", [-1, 2])],
    "outputs": [tensor("y", "FP32", [-1, 3])],
}


def _described(
    metadata: Any = METADATA, *, config: Any = None, server: Any = TRITON, settings: RemoteSettings | None = None
) -> UpstreamModel:
    replies = {
        "server": server,
        "model": answer(metadata),
        "config": NOT_FOUND if config is None else answer(config),
    }
    return OipCodec(ADDRESS, settings or RemoteSettings()).described(replies)


def test_asks_where_the_address_says() -> None:
    codec = OipCodec(parse_address("https://h/a/v2/models/m/versions/3"), RemoteSettings(headers={"authorization": "Bearer t"}))
    for name, path in (
        ("server", "/a/v2"),
        ("model", "/a/v2/models/m/versions/3"),
        ("config", "/a/v2/models/m/versions/3/config"),
    ):
        headers, _ = joined(codec.questions[name])
        assert headers["request"] == f"GET {path} HTTP/1.1"
        assert (headers["host"], headers["authorization"]) == ("h", "Bearer t")
    assert joined(codec.readiness)[0]["request"] == "GET /a/v2/models/m/versions/3/ready HTTP/1.1"
    parts = codec.encode(BINARY, [request(("x", DType.FP32, np.zeros((1, 2), np.float32)))])
    assert joined(parts)[0]["authorization"] == "Bearer t"


# What the upstream says of its model


def test_reads_what_triton_says() -> None:
    model = _described(config={"name": "m", "max_batch_size": 16, "dynamic_batching": {}})
    assert model.signature == Signature((X,), (Y,), batched=True, platform="onnx")
    assert (model.max_batch, model.binary) == (16, True)


@pytest.mark.parametrize(
    ("shape", "config", "settings", "batched"),
    [
        ([-1, 3], None, RemoteSettings(), True),
        ([1, 3], None, RemoteSettings(), False),
        ([], None, RemoteSettings(), False),
        ([-1, 3], {"max_batch_size": 0}, RemoteSettings(), False),
        ([-1, 3], {"max_batch_size": 4}, RemoteSettings(batched=False), False),
        ([-1, 3], {"max_batch_size": 0}, RemoteSettings(batched=True), True),
    ],
)
def test_batches_only_where_the_upstream_does(shape: list[int], config: Any, settings: RemoteSettings, batched: bool) -> None:
    metadata = METADATA | {"outputs": [tensor("y", "FP32", shape)]}
    assert _described(metadata, config=config, settings=settings).signature.batched is batched


def test_takes_json_where_binary_is_not_offered() -> None:
    for server in (NOT_FOUND, answer({"extensions": []}), answer(b"<html>"), answer({"extensions": 3})):
        model = _described(METADATA | {"inputs": [tensor("x", "FP32", [-1, 2]), tensor("t", "BYTES", [-1])]}, server=server)
        assert not model.binary
        assert [spec.text for spec in model.signature.inputs] == [False, True]
    assert _described(server=NOT_FOUND, settings=RemoteSettings(binary=True)).binary


@pytest.mark.parametrize(
    ("change", "config", "server", "clue"),
    [
        ({"inputs": []}, None, TRITON, "no inputs"),
        ({"inputs": [tensor("x", "FP16", [-1])]}, None, NOT_FOUND, "FP16, which JSON cannot carry"),
        ({}, {"sequence_batching": {}}, TRITON, "keeps state"),
        (
            {"inputs": [tensor("x", "FP16", [-1])]},
            {"model_transaction_policy": {"decoupled": True}},
            TRITON,
            "FP16, which JSON cannot carry",
        ),
    ],
)
def test_models_that_cannot_be_served_are_refused(change: Any, config: Any, server: Any, clue: str) -> None:
    with pytest.raises(ModelError, match=clue):
        _described(METADATA | change, config=config, server=server)


def test_a_model_that_answers_in_parts_is_asked_so_in_json_and_alone() -> None:
    model = _described(METADATA, config={"model_transaction_policy": {"decoupled": True}}, server=TRITON)
    assert (model.signature.streams, model.signature.batched, model.binary) == (True, False, False)


def test_a_batch_axis_cannot_be_forced_on_fixed_shapes() -> None:
    with pytest.raises(ModelError, match="first dimension is fixed"):
        _described(METADATA | {"outputs": [tensor("y", "FP32", [1, 3])]}, settings=RemoteSettings(batched=True))


@pytest.mark.parametrize("metadata", [b"<html>", {"inputs": 1}, METADATA | {"inputs": [tensor("x", "STRING", [1])]}])
def test_descriptions_that_are_none_fail(metadata: Any) -> None:
    with pytest.raises(UpstreamError, match="not understood"):
        _described(metadata)


def test_an_unknown_model_fails_with_its_words() -> None:
    replies = {"server": TRITON, "config": NOT_FOUND, "model": answer({"error": "unknown model 'm'"}, 404)}
    with pytest.raises(UpstreamError, match="answered 404: unknown model 'm'"):
        CODEC.described(replies)


@pytest.mark.parametrize(
    ("reply", "ready"),
    [
        (answer(b""), True),
        (answer({"name": "m", "ready": True}), True),
        (answer(b"OK"), True),
        (answer({"name": "m", "ready": False}), False),
        (answer(b"", 400), False),
        (answer({"error": "no"}, 503), False),
    ],
)
def test_readiness(reply: Any, ready: bool) -> None:
    assert CODEC.is_ready(reply) is ready


# Requests


def test_binary_requests_are_the_clients_bytes() -> None:
    ones = [np.full((rows, 2), rows, np.float32) for rows in (1, 2)]
    requests = [request(("x", DType.FP32, array)) for array in ones]
    parts = CODEC.encode(BINARY, requests)
    headers, body = joined(parts)
    size = int(headers["inference-header-content-length"])
    assert headers["request"] == "POST /v2/models/m/infer HTTP/1.1"
    assert headers["content-type"] == "application/octet-stream"
    assert json.loads(body[:size]) == {
        "inputs": [{"name": "x", "shape": [3, 2], "datatype": "FP32", "parameters": {"binary_data_size": 24}}],
        "parameters": {"binary_data_output": True},
    }
    assert body[size:] == np.concatenate(ones).tobytes()
    assert [part is one.inputs[0].data for part, one in zip(parts[1:], requests, strict=True)] == [True, True], "copied"


def test_a_scalar_keeps_its_shape() -> None:
    model = UpstreamModel(Signature((TensorSpec("x", DType.INT32, ()),), (Y,), False, "p"), None, binary=True)
    _, body = joined(CODEC.encode(model, [request(("x", DType.INT32, np.int32(7)))]))
    assert json.loads(body[:-4])["inputs"][0]["shape"] == []


def test_json_requests_hold_the_values() -> None:
    texts = TensorSpec("t", DType.BYTES, (-1,))
    model = UpstreamModel(Signature((X, texts), (Y,), True, "p"), None, binary=False)
    requests = [
        request(("x", DType.FP32, np.full((rows, 2), 0.5, np.float32)), ("t", DType.BYTES, ["zwölf"] * rows)) for rows in (1, 2)
    ]
    headers, body = joined(CODEC.encode(model, requests))
    assert headers["content-type"] == "application/json"
    assert json.loads(body) == {
        "inputs": [
            {"name": "x", "shape": [3, 2], "datatype": "FP32", "data": [0.5] * 6},
            {"name": "t", "shape": [3], "datatype": "BYTES", "data": ["zwölf"] * 3},
        ]
    }


def test_json_carries_no_nan_and_no_bytes() -> None:
    with pytest.raises(UpstreamError, match="NaN or infinity") as caught:
        CODEC.encode(JSON, [request(("x", DType.FP32, np.array([[np.nan, 1]], np.float32)))])
    assert caught.value.failure.kind is FailureKind.INVALID_ARGUMENT
    model = UpstreamModel(Signature((TensorSpec("t", DType.BYTES, (-1,)),), (Y,), True, "p"), None, binary=False)
    with pytest.raises(UpstreamError, match="not UTF-8"):
        CODEC.encode(model, [request(("t", DType.BYTES, [b"\xff"]))])


# Answers


def test_binary_answers_are_views() -> None:
    values = np.arange(6, dtype=np.float32).reshape(2, 3)
    reply = binary_answer([output([2, 3])], values.tobytes())
    (got,) = CODEC.decode(BINARY, reply, 2)
    assert np.array_equal(got, values)
    assert np.shares_memory(got, np.frombuffer(reply.body, np.uint8)), "copied"


def test_outputs_are_found_by_name_and_others_left_out() -> None:
    values = np.arange(3, dtype=np.float32)
    reply = binary_answer([output([2], name="other"), output([1, 3])], bytes(8), values.tobytes())
    assert np.array_equal(CODEC.decode(BINARY, reply, 1)[0][0], values)


def test_bytes_come_back_as_they_are() -> None:
    model = UpstreamModel(Signature((X,), (TensorSpec("y", DType.BYTES, (-1,)),), True, "p"), None, binary=True)
    data = b"\1\0\0\0\xff\0\0\0\0"
    (got,) = CODEC.decode(model, binary_answer([output([2], datatype="BYTES", size=9)], data), 2)
    assert got.tolist() == [b"\xff", b""]


def test_json_answers_are_understood_flat_nested_and_in_binary_mode() -> None:
    described = {"name": "y", "datatype": "FP32", "shape": [1, 3]}
    for data in ([1, 2.5, None], [[1, 2.5, None]]):
        for model in (JSON, BINARY):
            (got,) = CODEC.decode(model, answer({"outputs": [described | {"data": data}]}), 1)
            assert got.dtype == np.float32
            assert np.array_equal(got, np.array([[1, 2.5, np.nan]], np.float32), equal_nan=True)


ODD: list[tuple[Any, str]] = [
    (answer(b"<html>oops"), "not an inference response"),
    (answer(b"\xff\xfe"), "not an inference response"),
    (answer(b"[" * 100_000), "not an inference response"),
    (answer({"predictions": []}), "not an inference response"),
    (answer({"outputs": []}), "no output 'y'; it gave none"),
    (binary_answer([output([2, 3], name="z")], bytes(24)), "no output 'y'; it gave z"),
    (binary_answer([output([2, 3], datatype="INT32")], bytes(24)), "as INT32, it declares FP32"),
    (binary_answer([output([2, 3], datatype="TEXT")], bytes(24)), "not an inference response"),
    (binary_answer([output([1, 3])], bytes(12)), r"shape \[1, 3\] for a batch of 2 rows"),
    (binary_answer([output([2, 4])], bytes(32)), r"shape \[2, 4\]"),
    (binary_answer([output([6])], bytes(24)), r"shape \[6\]"),
    (binary_answer([output([2, 3], size=20)], bytes(20)), "20 bytes do not make the shape"),
    (binary_answer([output([-2, -3], size=24)], bytes(24)), "cannot be read"),
    (binary_answer([output([2, 3])], bytes(20)), "has 24 bytes, 20 are left"),
    (binary_answer([output([2, 3], size=-1)], bytes(24)), "has -1 bytes"),
    (binary_answer([output([2, 3])], bytes(25)), "1 bytes follow the last output"),
    (answer({"outputs": [{"name": "y", "datatype": "FP32", "shape": [2, 3]}]}), "neither data nor"),
    (answer({"outputs": [{"name": "y", "datatype": "FP32", "shape": [2, 3], "data": [1, 2]}]}), "cannot be read"),
    (answer({"outputs": [{"name": "y", "datatype": "FP32", "shape": [2, 3], "data": ["a"] * 6}]}), "its values are"),
    (answer({"outputs": [{"name": "y", "datatype": "FP32", "shape": [2, 3], "data": [[1], [2, 3]]}]}), "cannot be read"),
    (answer(b"{}", inference_header_content_length="3"), "is said to have '3' bytes"),
    (answer(b"{}", inference_header_content_length="-1"), "is said to have '-1' bytes"),
    (answer(b"{}", inference_header_content_length="x"), "is said to have 'x' bytes"),
]


@pytest.mark.parametrize(("reply", "clue"), ODD)
def test_answers_that_are_none_fail_with_a_reason(reply: Any, clue: str) -> None:
    with pytest.raises(UpstreamError, match=clue):
        CODEC.decode(BINARY, reply, 2)


@pytest.mark.parametrize(
    ("dtype", "data", "clue"),
    [
        (DType.INT8, [300], "do not fit INT8"),
        (DType.UINT8, [-1], "do not fit UINT8"),
        (DType.INT64, [1.5], "float"),
        (DType.BOOL, [1], "its values are"),
        (DType.INT32, [True], "its values are"),
        (DType.BYTES, [1], "holds int where text should be"),
        (DType.BYTES, [{"b64": "?"}], "no base64"),
    ],
)
def test_json_numbers_are_taken_exactly(dtype: DType, data: Any, clue: str) -> None:
    model = UpstreamModel(Signature((X,), (TensorSpec("y", dtype, (-1,)),), True, "p"), None, binary=False)
    with pytest.raises(UpstreamError, match=clue):
        CODEC.decode(model, answer({"outputs": [{"name": "y", "datatype": dtype.value, "shape": [1], "data": data}]}), 1)


@given(st.binary(max_size=60), st.integers(0, 70))
def test_no_answer_makes_it_stumble(body: bytes, length: int) -> None:
    for reply in (answer(body), answer(body, inference_header_content_length=str(length))):
        with pytest.raises(UpstreamError):
            CODEC.decode(BINARY, reply, 2)


@given(
    st.recursive(st.none() | st.booleans() | st.integers() | st.floats() | st.text(), lambda inner: st.lists(inner)),
    st.sampled_from(DType),
)
def test_no_values_make_it_stumble(data: Any, dtype: DType) -> None:
    model = UpstreamModel(Signature((X,), (TensorSpec("y", dtype, (-1,)),), True, "p"), None, binary=False)
    body = json.dumps({"outputs": [{"name": "y", "datatype": dtype.value, "shape": [1], "data": data}]}).encode()
    try:
        (got,) = CODEC.decode(model, answer(body), 1)
    except UpstreamError:
        return
    assert got.shape == (1,)


# Refusals


@pytest.mark.parametrize(
    ("status", "kind", "text"),
    [
        (400, FailureKind.INVALID_ARGUMENT, "the upstream answered 400: bad luck"),
        (413, FailureKind.TOO_LARGE, "the upstream answered 413: bad luck"),
        (429, FailureKind.OVERLOADED, "the upstream answered 429: bad luck"),
        (500, FailureKind.MODEL_FAILED, "bad luck"),
        (501, FailureKind.UNSUPPORTED, "the upstream answered 501: bad luck"),
        *[
            (status, FailureKind.UNAVAILABLE, f"the upstream answered {status}: bad luck")
            for status in (204, 302, 401, 403, 404, 502, 503, 504)
        ],
    ],
)
def test_a_status_says_whose_fault_it_was(status: int, kind: FailureKind, text: str) -> None:
    error = refusal(status, b'{"error": "bad\\nluck"}', b"7")
    assert (error.failure.kind, str(error)) == (kind, text)
    waits = kind in (FailureKind.UNAVAILABLE, FailureKind.OVERLOADED)
    assert error.failure.retry_after_s == (7.0 if waits else None)


@pytest.mark.parametrize(
    ("body", "text"),
    [(b"", "without a reason"), (b"<h1>Oh\xff no</h1>", "Oh"), (b'{"error": {"a": 1}}', "'a': 1"), (b"x" * 9999, "…")],
)
def test_other_words_are_passed_on_too(body: bytes, text: str) -> None:
    error = refusal(503, body, b"soon")
    assert text in str(error)
    assert len(str(error)) < 600
    assert error.failure.retry_after_s == 1.0

"""Infer bodies that are right: every datatype, JSON and binary and both, chosen outputs, parameters, compression."""

import gzip
import zlib
from math import inf
from typing import Any

import msgspec
import numpy as np
import pytest

from dlproxy.message import DType, InferenceError, Response, Signature, Tensor, TensorSpec
from dlproxy.tensors import bf16_to_fp32, elements_of, fp32_to_bf16, join_elements
from dlproxy.wire.checks import RequestChecker
from dlproxy.wire.oip import codec as oip_codec
from dlproxy.wire.oip.codec import InferDecoder, WireRequest, encode
from dlproxy.wire.terms import Terms

from .fixtures import TIMING, EchoService, Reply, Wire, app_of, echo_signature, post, request, served

PAIR = echo_signature(("a", DType.FP32, (-1, 2)), ("b", DType.INT64, (-1, 1)), ("c", DType.BYTES, (-1, 1)))
SAMPLES: dict[DType, list[Any]] = {
    DType.BOOL: [True, False, True, True],
    DType.UINT8: [0, 1, 254, 255],
    DType.UINT16: [0, 1, 2, 2**16 - 1],
    DType.UINT32: [0, 1, 2, 2**32 - 1],
    DType.UINT64: [0, 1, 2**63, 2**64 - 1],
    DType.INT8: [0, -1, -128, 127],
    DType.INT16: [0, -1, -(2**15), 2**15 - 1],
    DType.INT32: [0, -1, -(2**31), 2**31 - 1],
    DType.INT64: [0, -1, -(2**63), 2**63 - 1],
    DType.FP32: [0.0, -0.5, 3.4028234663852886e38, 2.0**-149],
    DType.FP64: [0.0, -0.5, 1.7976931348623157e308, 5e-324],
    DType.BYTES: ["", "plain", "Grüße \U0001f600", "nul\0inside"],
}


class Body:
    """An infer body under construction."""

    def __init__(self, **head: Any) -> None:
        self.head: dict[str, Any] = {"inputs": [], **head}
        self.binary = b""

    def add(self, name: str, dtype: DType, shape: list[int], data: Any = None, raw: bytes | memoryview | None = None) -> "Body":
        tensor: dict[str, Any] = {"name": name, "datatype": dtype.value, "shape": shape}
        if raw is None:
            tensor["data"] = data
        else:
            tensor["parameters"] = {"binary_data_size": len(raw)}
            self.binary += raw
        self.head["inputs"].append(tensor)
        return self

    def parts(self) -> tuple[bytes, int | None]:
        text = msgspec.json.encode(self.head)
        return (text + self.binary, len(text)) if self.binary else (text, None)

    def post(self, target: str = "/v2/models/m/infer") -> bytes:
        body, json_bytes = self.parts()
        headers = {} if json_bytes is None else {"Inference-Header-Content-Length": str(json_bytes)}
        return post(target, body, **headers)


def checker_of(signature: Signature, max_batch: int = 8) -> RequestChecker:
    return RequestChecker(served(EchoService(signature), max_batch=max_batch))


def decode(signature: Signature, body: bytes, json_bytes: int | None = None, now: float = 0.0) -> WireRequest:
    return InferDecoder(checker_of(signature)).decode(body, json_bytes, ticket_id=7, now=now)


def ask(signature: Signature, data: bytes, **model: Any) -> Reply:
    """The full way: bytes in, an echo, bytes out."""
    service = EchoService(signature)
    wire = Wire(app_of(served(service, **model))).feed(data)
    service.answer_all()
    (reply,) = wire.replies
    return reply


def tensors_of(reply: Reply) -> dict[str, Any]:
    """The outputs of a reply: lists where they came as JSON, bytes where they came as binary."""
    size = int(reply.headers.get("inference-header-content-length", len(reply.body)))
    head, at = msgspec.json.decode(reply.body[:size]), size
    found: dict[str, Any] = {}
    for output in head["outputs"]:
        length = output.get("parameters", {}).get("binary_data_size")
        if length is None:
            found[output["name"]] = output["data"]
        else:
            found[output["name"]] = reply.body[at : at + length]
            at += length
    assert at == len(reply.body)
    return found


def packed(dtype: DType, values: list[Any]) -> bytes:
    return join_elements(values) if dtype is DType.BYTES else np.array(values, oip_codec.NUMPY[dtype]).tobytes()


# Datatypes


@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize("dtype", SAMPLES, ids=lambda dtype: dtype.value)
def test_json_to_elements_and_back_is_exact(dtype: DType, nested: bool) -> None:
    values, signature = SAMPLES[dtype], echo_signature(("x", dtype, (-1, 2)))
    data = [values[:2], values[2:]] if nested else values
    wire = decode(signature, Body().add("x", dtype, [2, 2], data).parts()[0])
    assert bytes(wire.request.inputs[0].data) == packed(dtype, values)
    reply = ask(signature, Body().add("x", dtype, [2, 2], data).post())
    assert tensors_of(reply) == {"out_x": values}
    assert reply.json()["outputs"][0]["shape"] == [2, 2]
    assert reply.json()["outputs"][0]["datatype"] == dtype.value


@pytest.mark.parametrize("dtype", DType, ids=lambda dtype: dtype.value)
def test_binary_to_elements_and_back_is_exact(dtype: DType) -> None:
    raw = packed(dtype, SAMPLES[dtype]) if dtype in SAMPLES else bytes(range(8))
    signature = echo_signature(("x", dtype, (-1, 2)))
    data = Body(parameters={"binary_data_output": True}).add("x", dtype, [2, 2], raw=raw).post()
    for _ in range(3):
        reply = ask(signature, data)
        assert reply.headers["content-type"] == "application/octet-stream"
        assert tensors_of(reply) == {"out_x": raw}


@pytest.mark.parametrize("dtype", [dtype for dtype in DType if dtype is not DType.BYTES], ids=lambda dtype: dtype.value)
def test_a_raw_body_means_the_one_input_and_gets_binary_back(dtype: DType) -> None:
    raw = bytes([1, 0] * 3 * dtype.itemsize)
    reply = ask(
        echo_signature(("x", dtype, (-1, 2))), post("/v2/models/m/infer", raw, **{"Inference-Header-Content-Length": "0"})
    )
    assert tensors_of(reply) == {"out_x": raw}
    size = int(reply.headers["inference-header-content-length"])
    assert msgspec.json.decode(reply.body[:size])["outputs"][0]["shape"] == [3, 2]


def test_a_raw_body_of_bytes_is_one_element() -> None:
    reply = ask(
        echo_signature(("x", DType.BYTES, (-1, 1))),
        post("/v2/models/m/infer", b"any \xff text", **{"Inference-Header-Content-Length": "0"}),
    )
    assert tensors_of(reply) == {"out_x": join_elements([b"any \xff text"])}


def test_non_finite_floats_pass_as_binary_and_are_null_in_json() -> None:
    raw = np.array([inf, -inf, float("nan"), 1.0], np.float32).tobytes()
    signature = echo_signature(("x", DType.FP32, (-1, 2)))
    assert tensors_of(ask(signature, Body().add("x", DType.FP32, [2, 2], raw=raw).post())) == {"out_x": [None, None, None, 1.0]}


def test_integers_are_taken_where_floats_are_wanted() -> None:
    signature = echo_signature(("x", DType.FP32, (-1, 2)))
    assert tensors_of(ask(signature, Body().add("x", DType.FP32, [1, 2], [1, -(2**24)]).post())) == {"out_x": [1.0, -(2.0**24)]}


def test_bf16_rounds_to_nearest_even_and_keeps_nan() -> None:
    values = np.array([1.0, -2.5, 1.00390625, 1.01171875, inf, 3.0e38], np.float32)
    back = bf16_to_fp32(fp32_to_bf16(values))
    assert back[:5].tolist() == [1.0, -2.5, 1.0, 1.015625, inf]
    assert abs(back[5] / values[5] - 1) < 2**-8
    assert np.isnan(bf16_to_fp32(fp32_to_bf16(np.array([np.nan], np.float32))))[0]


def test_elements_come_apart_as_they_were_joined() -> None:
    elements = [b"", b"a", b"\0" * 300, "é".encode()]
    assert [bytes(element) for element in elements_of(join_elements(elements))] == elements


# Shapes and inputs


def test_binary_and_json_inputs_mix_in_any_order() -> None:
    raw_a, raw_c = np.arange(4, dtype=np.float32).tobytes(), join_elements([b"x", b"yy"])
    body = (
        Body()
        .add("c", DType.BYTES, [2, 1], raw=raw_c)
        .add("b", DType.INT64, [2, 1], [5, 6])
        .add("a", DType.FP32, [2, 2], raw=raw_a)
    )
    wire = decode(PAIR, *body.parts())
    assert [(tensor.name, bytes(tensor.data)) for tensor in wire.request.inputs] == [
        ("a", raw_a),
        ("b", np.array([5, 6], np.int64).tobytes()),
        ("c", raw_c),
    ]
    assert wire.request.ticket.rows == 2


def test_the_same_head_with_another_body_gives_the_other_body() -> None:
    decoder = InferDecoder(checker_of(echo_signature(("x", DType.FP32, (-1, 2)))))
    for round_ in range(5):
        for rows in (1, 2):
            raw = np.full(2 * rows, round_, np.float32).tobytes()
            body, json_bytes = Body().add("x", DType.FP32, [rows, 2], raw=raw).parts()
            wire = decoder.decode(body, json_bytes, ticket_id=round_, now=float(round_))
            tensor, ticket = wire.request.inputs[0], wire.request.ticket
            assert (bytes(tensor.data), tuple(tensor.shape)) == (raw, (rows, 2))
            assert (ticket.id, ticket.rows, ticket.arrived_at) == (round_, rows, float(round_))


def test_the_same_head_before_a_body_of_another_length_is_refused_each_time() -> None:
    decoder = InferDecoder(checker_of(echo_signature(("x", DType.FP32, (-1, 2)))))
    body, json_bytes = Body().add("x", DType.FP32, [1, 2], raw=bytes(8)).parts()
    for wrong in (body[:-1], body + b"x", body[:-8]) * 2:
        decoder.decode(body, json_bytes, ticket_id=1, now=0.0)
        with pytest.raises(InferenceError):
            decoder.decode(wrong, json_bytes, ticket_id=1, now=0.0)


def test_elements_of_free_length_are_checked_each_time() -> None:
    decoder = InferDecoder(checker_of(echo_signature(("x", DType.BYTES, (-1, 1)))))
    body, json_bytes = Body().add("x", DType.BYTES, [1, 1], raw=join_elements(["abcd"])).parts()
    assert json_bytes is not None
    decoder.decode(body, json_bytes, ticket_id=1, now=0.0)
    with pytest.raises(InferenceError, match=r"unexpected number of string elements 2 .* expecting 1"):
        decoder.decode(body[:json_bytes] + bytes(8), json_bytes, ticket_id=1, now=0.0)


def test_a_repeated_id_is_repeated_each_time() -> None:
    decoder = InferDecoder(checker_of(echo_signature(("x", DType.FP32, (-1, 2)))))
    body, json_bytes = Body(id="same").add("x", DType.FP32, [1, 2], raw=bytes(8)).parts()
    assert [decoder.decode(body, json_bytes, ticket_id=1, now=0.0).request.id for _ in range(3)] == ["same"] * 3


@pytest.mark.parametrize("start", [b'{"id":"%b"', b'{"id": "%b"', b'{"id" : "%b"', b'{ "id":"%b"'])
@pytest.mark.parametrize("ids", [["r1", "r2", "request 300", "~"], ["a", "\\u00e4", "a", "ä", "\\"], ["", "a", "", "b"]])
def test_a_head_that_differs_only_in_its_id_is_read_as_if_it_came_first(start: bytes, ids: list[str]) -> None:
    signature = echo_signature(("x", DType.FP32, (-1, 2)), ("y", DType.INT64, (-1, 1)), ("e", DType.FP32, (-1, 0)))
    decoder = InferDecoder(checker_of(signature))
    body, json_bytes = Body().add("x", DType.FP32, [1, 2], raw=bytes(8)).add("y", DType.INT64, [1, 1], raw=b"12345678").parts()
    assert json_bytes is not None
    rest = (
        b"," + body[1 : json_bytes - 2] + b',{"name":"e","datatype":"FP32","shape":[1,0],"parameters":{"binary_data_size":0}}]}'
    )
    for number, name in enumerate(ids * 2):
        head = (start % name.encode()) + rest
        sent = head + np.full(2, number, np.float32).tobytes() + body[-8:]
        heard = _heard(decoder, signature, sent, len(head))
        assert heard == _heard(InferDecoder(checker_of(signature)), signature, sent, len(head))
        assert isinstance(heard, str) or heard[0] == msgspec.json.decode(head)["id"]


def _heard(decoder: InferDecoder, signature: Signature, body: bytes, json_bytes: int) -> Any:
    """The request's id and tensors and the reply's bytes, twice the same; or why it is refused."""
    try:
        wire = decoder.decode(body, json_bytes, ticket_id=1, now=0.0)
    except InferenceError as error:
        return error.failure.message
    outputs = [Tensor(f"out_{tensor.name}", tensor.dtype, tensor.shape, tensor.data) for tensor in wire.request.inputs]
    replies = [encode(Response(wire.request.id, "m", "1", outputs, TIMING), wire)[:2] for _ in range(2)]
    assert replies[0] == replies[1]
    return wire.request.id, [bytes(tensor.data) for tensor in wire.request.inputs], replies[0]


@pytest.mark.parametrize("again", [b'"id":"later"', b'"\\u0069d":"later"', b'"id":""', b'"parameters":{"id":"inner"}'])
def test_of_several_ids_the_last_counts_each_time(again: bytes) -> None:
    signature = echo_signature(("x", DType.FP32, (-1, 2)))
    decoder = InferDecoder(checker_of(signature))
    body, json_bytes = Body().add("x", DType.FP32, [1, 2], raw=bytes(8)).parts()
    assert json_bytes is not None
    for name in (b"later", b"a", b"later", b"b"):
        head = b'{"id":"%b",' % name + body[1 : json_bytes - 1] + b"," + again + b"}"
        wire = decoder.decode(head + bytes(8), len(head), ticket_id=1, now=0.0)
        assert wire.request.id == msgspec.json.decode(head)["id"]


@pytest.mark.parametrize("end", [b"", b',"id":""'])
def test_what_follows_an_id_is_no_head_by_itself(end: bytes) -> None:
    decoder = InferDecoder(checker_of(echo_signature(("x", DType.FP32, (-1, 2)))))
    body, json_bytes = Body().add("x", DType.FP32, [1, 2], raw=bytes(8)).parts()
    assert json_bytes is not None
    rest = b"," + body[1 : json_bytes - 1] + end + b"}"
    decoder.decode(b'{"id":"a"' + rest + bytes(8), 9 + len(rest), ticket_id=1, now=0.0)
    with pytest.raises(InferenceError, match="malformed JSON"):
        decoder.decode(rest + bytes(8), len(rest), ticket_id=1, now=0.0)


def test_a_head_with_an_id_is_remembered_once() -> None:
    decoder = InferDecoder(checker_of(echo_signature(("x", DType.FP32, (-1, 2)))))
    body, json_bytes = Body().add("x", DType.FP32, [1, 2], raw=bytes(8)).parts()
    assert json_bytes is not None
    for number in range(300):
        start = b'{"id":"request-%d",' % number
        wire = decoder.decode(start + body[1:], len(start) + json_bytes - 1, ticket_id=1, now=0.0)
        assert (wire.request.id, wire.memo is not None) == (f"request-{number}", number > 0)
    assert len(decoder._memos) == 1


def test_heads_without_end_do_not_fill_memory() -> None:
    decoder = InferDecoder(checker_of(echo_signature(("x", DType.FP32, (-1, 2)))))
    for number in range(3 * oip_codec.MAX_MEMOS):
        body, json_bytes = Body(parameters={"note": number}).add("x", DType.FP32, [1, 2], raw=bytes(8)).parts()
        assert decoder.decode(body, json_bytes, ticket_id=1, now=0.0).request.params == {"note": number}
    assert len(decoder._memos) <= oip_codec.MAX_MEMOS


def test_a_remembered_head_keeps_its_own_timeout_priority_and_outputs() -> None:
    decoder = InferDecoder(checker_of(echo_signature(("a", DType.FP32, (-1, 2)), ("b", DType.INT64, (-1, 1)))))
    for remembered in (False, True):
        for timeout in (1_000_000, 2_000_000):
            body = Body(parameters={"timeout": timeout, "priority": 3}, outputs=[{"name": "out_b"}])
            body.add("a", DType.FP32, [1, 2], raw=bytes(8)).add("b", DType.INT64, [1, 1], raw=bytes(8))
            wire = decoder.decode(*body.parts(), ticket_id=1, now=0.0)
            assert (wire.memo is not None) is remembered
            assert wire.terms == Terms(timeout * 1e-6, 3)
            assert wire.request.outputs == [1]


def test_unbatched_models_take_their_exact_shape_as_one_row() -> None:
    signature = echo_signature(("x", DType.FP32, (2, -1)), batched=False)
    wire = decode(signature, Body().add("x", DType.FP32, [2, 3], [[1, 2, 3], [4, 5, 6]]).parts()[0])
    assert wire.request.ticket.rows == 1


def test_a_scalar_input_has_an_empty_shape() -> None:
    signature = echo_signature(("x", DType.INT32, ()), batched=False)
    wire = decode(signature, Body().add("x", DType.INT32, [], [5]).parts()[0])
    assert bytes(wire.request.inputs[0].data) == b"\5\0\0\0"


def test_requests_of_unlike_free_dimensions_have_unlike_shape_keys() -> None:
    signature = echo_signature(("x", DType.FP32, (-1, -1)))
    keys = [
        decode(signature, Body().add("x", DType.FP32, [rows, size], [0] * rows * size).parts()[0]).request.ticket.shape_key
        for rows, size in ((1, 3), (2, 3), (1, 4))
    ]
    assert keys[0] == keys[1] != keys[2]


def test_an_empty_free_dimension_passes() -> None:
    signature = echo_signature(("x", DType.FP32, (-1, -1)))
    assert tensors_of(ask(signature, Body().add("x", DType.FP32, [2, 0], [[], []]).post())) == {"out_x": []}


# Outputs


@pytest.mark.parametrize(
    ("outputs", "default", "expected"),
    [
        (None, None, {"out_a": [1, 2], "out_b": [3], "out_c": ["t"]}),
        ([], None, {"out_a": [1, 2], "out_b": [3], "out_c": ["t"]}),
        (["out_c", "out_a"], None, {"out_c": ["t"], "out_a": [1, 2]}),
        ([("out_b", True), "out_c"], None, {"out_b": b"\3" + bytes(7), "out_c": ["t"]}),
        ([("out_c", False), "out_b"], True, {"out_c": ["t"], "out_b": b"\3" + bytes(7)}),
        (["out_c", ("out_a", True)], False, {"out_c": ["t"], "out_a": np.array([1, 2], np.float32).tobytes()}),
    ],
)
def test_outputs_come_as_asked_for_in_the_order_asked_for(outputs: Any, default: bool | None, expected: dict[str, Any]) -> None:
    head: dict[str, Any] = {} if default is None else {"parameters": {"binary_data_output": default}}
    if outputs is not None:
        head["outputs"] = [
            {"name": name} if isinstance(name, str) else {"name": name[0], "parameters": {"binary_data": name[1]}}
            for name in outputs
        ]
    body = (
        Body(**head)
        .add("a", DType.FP32, [1, 2], [1, 2])
        .add("b", DType.INT64, [1, 1], [3])
        .add("c", DType.BYTES, [1, 1], ["t"])
    )
    reply = ask(PAIR, body.post())
    assert list(tensors_of(reply).items()) == list(expected.items())


@pytest.mark.parametrize("dtype", [DType.FP16, DType.BF16])
def test_half_floats_come_as_binary_only(dtype: DType) -> None:
    signature = echo_signature(("x", dtype, (-1, 2)))
    refused = ask(signature, Body().add("x", dtype, [1, 2], raw=bytes(4)).post())
    assert refused.status == 400
    assert "binary data format" in refused.error


def test_an_output_that_is_no_text_is_an_error_in_json_and_passes_as_binary() -> None:
    signature, raw = echo_signature(("x", DType.BYTES, (-1, 1))), join_elements([b"\xff"])
    assert ask(signature, Body().add("x", DType.BYTES, [1, 1], raw=raw).post()).status == 500
    binary = Body(parameters={"binary_data_output": True}).add("x", DType.BYTES, [1, 1], raw=raw)
    assert tensors_of(ask(signature, binary.post())) == {"out_x": raw}


def test_reply_heads_remembered_for_one_shape_or_version_are_not_given_for_another() -> None:
    spec = TensorSpec("x", DType.FP32, (-1, 2))
    signature = Signature((spec,), (TensorSpec("y", DType.FP32, (-1, -1)),), True, "fake")
    decoder = InferDecoder(checker_of(signature))
    body, json_bytes = Body(parameters={"binary_data_output": True}).add("x", DType.FP32, [1, 2], raw=bytes(8)).parts()
    for size, version in ((1, "1"), (1, "1"), (3, "1"), (3, "1"), (3, "2"), (3, "1"), (1, "1"), (2, "2")):
        wire = decoder.decode(body, json_bytes, ticket_id=1, now=0.0)
        response = Response("", "m", version, [Tensor("y", DType.FP32, (1, size), bytes(4 * size))], TIMING)
        text, head_bytes, _ = encode(response, wire)
        assert head_bytes is not None
        head = msgspec.json.decode(text[:head_bytes])
        assert head["model_version"] == version
        (output,) = head["outputs"]
        assert output["shape"] == [1, size]
        assert output["parameters"]["binary_data_size"] == 4 * size == len(text) - head_bytes


# Ids, versions, parameters


@pytest.mark.parametrize("request_id", ["", "42", "ключ \U0001f600"])
@pytest.mark.parametrize("raw", [None, bytes(8)])
def test_the_reply_repeats_the_request_id(request_id: str, raw: bytes | None) -> None:
    reply = ask(
        echo_signature(("x", DType.FP32, (-1, 2))), Body(id=request_id).add("x", DType.FP32, [1, 2], [1, 2], raw=raw).post()
    )
    assert reply.json().get("id", "") == request_id
    assert ("id" in reply.json()) is bool(request_id)


def test_a_version_is_named_or_the_one_added_last_answers() -> None:
    services = [EchoService(echo_signature(("x", DType.FP32, (-1, 2))), version=version) for version in ("1", "3", "2")]
    wire = Wire(app_of(*map(served, services)))
    body = Body().add("x", DType.FP32, [1, 2], [1, 2])
    wire.feed(*[body.post(f"/v2/models/m{path}/infer") for path in ("", "/versions/1", "/versions/3")])
    for service in services:
        service.answer_all()
    assert [reply.json()["model_version"] for reply in wire.replies] == ["2", "1", "3"]


@pytest.mark.parametrize(
    ("params", "slo_s", "answer_by", "deadline_at", "priority"),
    [
        ({}, None, inf, inf, 0),
        ({}, 0.5, inf, 100.5, 0),
        ({"timeout": 0}, None, inf, inf, 0),
        ({"timeout": 250_000}, None, 100.25, 100.25, 0),
        ({"timeout": 250_000}, 0.1, 100.25, 100.1, 0),
        ({"timeout": 2**63 - 1, "priority": 2**32 - 1}, 1.0, 100 + 2**63 * 1e-6, 101.0, 2**32 - 1),
        ({"priority": 2, "sequence_id": 0, "sequence_end": False, "unknown": [1]}, None, inf, inf, 2),
        ({"timeout": None, "priority": None, "binary_data_output": False}, None, inf, inf, 0),
    ],
)
def test_timeout_and_priority_reach_the_ticket(
    params: dict[str, Any], slo_s: float | None, answer_by: float, deadline_at: float, priority: int
) -> None:
    service = EchoService(echo_signature(("x", DType.FP32, (-1, 2))))
    wire = Wire(app_of(served(service, slo_s=slo_s)))
    for body in (Body(parameters=params).add("x", DType.FP32, [1, 2], raw=bytes(8)),) * 3:  # the head is remembered
        wire.feed(body.post())
        ticket = service.requests[-1].ticket
        assert (ticket.answer_by, ticket.deadline_at) == (pytest.approx(answer_by), pytest.approx(deadline_at))
        assert (ticket.priority, ticket.tenant) == (priority, "")


def test_an_objective_that_has_changed_holds_for_heads_that_are_remembered() -> None:
    service = EchoService(echo_signature(("x", DType.FP32, (-1, 2))))
    model = served(service)
    wire = Wire(app_of(model))
    for slo_s, deadline_at in ((None, inf), (0.5, 100.5), (0.1, 100.1), (None, inf)):
        model.slo_s = slo_s
        for _ in range(2):
            wire.feed(Body().add("x", DType.FP32, [1, 2], raw=bytes(8)).post())
            assert service.requests[-1].ticket.deadline_at == pytest.approx(deadline_at)


# Compression


@pytest.mark.parametrize("encoding", ["gzip", "deflate", "GZIP", "identity"])
def test_compressed_bodies_are_inflated(encoding: str) -> None:
    body = Body().add("x", DType.FP32, [1, 2], [1, 2]).parts()[0]
    packed_body = {"gzip": gzip.compress, "deflate": zlib.compress}.get(encoding.lower(), bytes)(body)
    signature = echo_signature(("x", DType.FP32, (-1, 2)))
    reply = ask(signature, post("/v2/models/m/infer", packed_body, **{"Content-Encoding": encoding}))
    assert tensors_of(reply) == {"out_x": [1.0, 2.0]}


def test_a_body_that_inflates_to_just_the_limit_is_taken_and_a_bomb_is_not() -> None:
    service = EchoService(echo_signature(("x", DType.FP32, (-1, 2))))
    body = Body().add("x", DType.FP32, [1, 2], [1, 2]).parts()[0]
    app = app_of(served(service), max_body_bytes=100_000)
    for size, status in ((100_000, 200), (100_001, 400), (60_000_000, 400)):
        wire = Wire(app).feed(post("/v2/models/m/infer", gzip.compress(body.ljust(size)), **{"Content-Encoding": "gzip"}))
        service.answer_all()
        assert [reply.status for reply in wire.replies] == [status]


def test_head_and_get_need_no_body() -> None:
    assert ask(echo_signature(("x", DType.FP32, (-1, 2))), request("/v2/models/m", "HEAD")).status == 200

"""ModelInfer messages: every datatype raw and typed, what is refused, what repeats, and that knowing it changes no answer."""

from typing import Any

import msgspec
import numpy as np
import pytest
from google.protobuf.message import DecodeError
from hypothesis import given, settings
from hypothesis import strategies as st

from dlproxy.message import ANONYMOUS, DType, FailureKind, InferenceError, InSequence, Response, Signature, Tensor
from dlproxy.protos.oip import TYPED, oip
from dlproxy.protos.raw import MOST_FIELDS
from dlproxy.tensors import elements_of, join_elements
from dlproxy.wire.catalog import Catalog
from dlproxy.wire.endpoint import Endpoint, FrontDesk
from dlproxy.wire.grpc.oip_codec import Asked, InferDecoder, encode, id_of, timeout_s
from dlproxy.wire.terms import Terms

from ..fixtures import TIMING, EchoService, echo_signature, served
from ..test_oip_codec import SAMPLES
from .oip_fixtures import MESSAGES, PAIR, A, B, mutated, parameter, raw, typed


def decoder(*signatures: Signature, remembers: bool = True, whole: bool = True, **options: Any) -> InferDecoder:
    """For the models m, n, … with these signatures."""
    catalog = Catalog()
    for name, signature in zip("mno", signatures, strict=False):
        catalog.add(served(EchoService(signature, model=name)))
    desk: FrontDesk[Endpoint] = FrontDesk(catalog, lambda endpoint: endpoint, clock=lambda: 100.0)
    kind = InferDecoder if remembers else _Forgetful
    return kind(desk, whole=whole, **{"max_typed_bytes": 1 << 16, **options})


class _Forgetful(InferDecoder):
    """Knows no message: what every answer has to equal."""

    def _remember(self, *_: Any) -> Any:
        return None


def decode(of: InferDecoder, message: Any, headers: dict[bytes, bytes] | None = None) -> Asked:
    data = message if isinstance(message, bytes) else message.SerializeToString()
    return of.decode(data, headers or {}, ANONYMOUS)


def refusal(of: InferDecoder, message: Any) -> str:
    with pytest.raises(InferenceError) as caught:
        decode(of, message)
    assert caught.value.failure.kind is FailureKind.INVALID_ARGUMENT
    return caught.value.failure.message


def one(dtype: DType, shape: tuple[int, ...] = (-1, 4)) -> Signature:
    return echo_signature(("x", dtype, shape))


# What is right


@pytest.mark.parametrize("dtype", [dtype for dtype in DType if dtype in TYPED])
def test_typed_contents_are_the_same_as_raw_ones(dtype: DType) -> None:
    values = SAMPLES[dtype]
    given = [value.encode() for value in values] if dtype is DType.BYTES else values
    (tensor,) = decode(decoder(one(dtype)), typed(dtype.value, given)).request.inputs
    if dtype is DType.BYTES:
        assert [bytes(element) for element in elements_of(tensor.data)] == given
    else:
        kind = {"BOOL": "?", "FP32": "<f4", "FP64": "<f8"}.get(dtype.value) or f"<{dtype.value[0].lower()}{dtype.itemsize}"
        assert np.frombuffer(tensor.data, kind).tolist() == given


@pytest.mark.parametrize("dtype", list(DType))
def test_raw_contents_are_views_of_the_message(dtype: DType) -> None:
    data = join_elements([b"a", b"", b"\0", b"\xff"]) if dtype is DType.BYTES else bytes(range(4 * dtype.itemsize))
    inputs = [{"name": "x", "datatype": dtype.value, "shape": (1, 4)}]
    message = oip.ModelInferRequest(model_name="m", inputs=inputs, raw_input_contents=[data]).SerializeToString()
    (tensor,) = decode(decoder(one(dtype)), message).request.inputs
    assert isinstance(tensor.data, memoryview)
    assert tensor.data.obj is message
    assert (tensor.dtype, tensor.shape, bytes(tensor.data)) == (dtype, (1, 4), data)


def test_the_request_says_what_the_message_does() -> None:
    outputs = [{"name": "out_b"}, {"name": "out_a"}]
    params = {"timeout": parameter(5000), "priority": oip.InferParameter(uint64_param=1), "mine": parameter("x")}
    asked = decode(decoder(PAIR), raw(A, B, id="r-1", outputs=outputs, parameters=params))
    request = asked.request
    assert (request.id, request.model, request.outputs) == ("r-1", "m", [1, 0])
    assert request.params == {"timeout": 5000, "priority": 1, "mine": "x"}
    assert (request.ticket.rows, request.ticket.arrived_at) == (1, 100.0)
    assert asked.terms == Terms(timeout_s=0.005, priority=1)
    assert not asked.empty_final


def test_headers_and_parameters_both_count() -> None:
    message = raw(A, B, parameters={"timeout": parameter(5_000_000)})
    headers = {b"x-request-deadline-ms": b"10", b"x-tenant-id": b"shop"}
    of = decoder(PAIR)
    for _ in range(2):
        assert decode(of, message, headers).terms == Terms(timeout_s=0.01, tenant="shop")
        assert decode(of, message).terms == Terms(timeout_s=5.0)


def test_inputs_may_come_in_any_order_and_outputs_are_all_by_default() -> None:
    request = decode(decoder(PAIR), raw(B, A, names="ba")).request
    assert [tensor.name for tensor in request.inputs] == ["a", "b"]
    assert bytes(request.inputs[0].data) == A.tobytes()
    assert request.outputs == (0, 1)


def test_typed_floats_that_json_has_no_words_for_are_taken() -> None:
    (tensor,) = decode(
        decoder(one(DType.FP32)), typed("FP32", [float("inf"), float("-inf"), float("nan"), -0.0])
    ).request.inputs
    assert np.frombuffer(tensor.data, "<f4").tobytes() == np.array([np.inf, -np.inf, np.nan, -0.0], np.float32).tobytes()


# What is refused


@pytest.mark.parametrize(
    ("message", "text"),
    [
        pytest.param(
            typed("FP32", [1, 2], "int_contents"),
            "unexpected explicit tensor data for input tensor 'x' for model 'm' of type 'INT32', expected datatype 'FP32'",
            id="another field",
        ),
        pytest.param(
            typed("FP16", [1], "fp32_contents"),
            "unexpected explicit tensor data for input tensor 'x' for model 'm' of type 'FP32', expected datatype 'FP16'",
            id="half precision has no typed form",
        ),
        pytest.param(
            oip.ModelInferRequest(model_name="m", inputs=[{"name": "x", "datatype": "FP32", "shape": (1, 4)}]),
            "unable to find data for input tensor 'x' for model 'm' in request.",
            id="no data",
        ),
        pytest.param(
            oip.ModelInferRequest(model_name="m", inputs=[{"name": "x", "datatype": "FLOAT", "shape": (1, 4)}]),
            "input 'x': datatype 'FLOAT' is none; valid datatypes are BOOL, UINT8",
            id="datatype",
        ),
        pytest.param(
            oip.ModelInferRequest(model_name="m", inputs=[{"name": "x", "datatype": "FP32", "shape": [1] * 65}]),
            "input 'x': the shape has 65 dimensions; at most 64 are supported",
            id="dimensions",
        ),
        pytest.param(typed("FP32", [1, 2, 3]), "Expected 16, got 12 bytes for shape [1, 4] of FP32", id="too few"),
        pytest.param(b"\x0a\x01m\x3b", "the message cannot be read as inference.ModelInferRequest: wire type 3", id="group"),
        pytest.param(b"\x0a\x01", "the message cannot be read as inference.ModelInferRequest: field 1 is said", id="cut"),
        pytest.param(b"\x0a\x01m\x2a\x01\x0a", "the message cannot be read as inference.ModelInferRequest: ", id="cut inside"),
        pytest.param(b"\x3a\x00" * (MOST_FIELDS + 1), f"it has more than {MOST_FIELDS} fields", id="fields"),
    ],
)
def test_what_cannot_be_understood_is_refused(message: Any, text: str) -> None:
    assert text in refusal(decoder(echo_signature(("x", DType.FP32, (-1, 4)))), message)


@pytest.mark.parametrize(
    ("dtype", "value"), [("INT8", 128), ("INT8", -129), ("UINT8", 256), ("INT16", 2**15), ("UINT16", 2**16)]
)
def test_typed_numbers_are_not_wrapped_around(dtype: str, value: int) -> None:
    of = decoder(one(DType(dtype)))
    assert refusal(of, typed(dtype, [0, 0, 0, value])) == f"input 'x': a number is out of range for {dtype}"


def test_raw_and_typed_contents_do_not_mix() -> None:
    message = raw(A, B)
    message.inputs[1].contents.int64_contents.append(7)
    text = "contents field must not be specified when using raw_input_contents for 'b' for model 'm'"
    assert refusal(decoder(PAIR), message) == text


def test_raw_contents_without_an_input_are_refused() -> None:
    message = raw(A, B)
    message.raw_input_contents.append(b"")
    assert refusal(decoder(PAIR), message) == "the request has 3 raw_input_contents for 2 inputs"


@pytest.mark.parametrize(
    ("name", "value", "text"),
    [
        ("timeout", parameter("x"), "parameter 'timeout' is 'x'; it must be a non-negative integer"),
        ("priority", parameter(-1), "parameter 'priority' is -1"),
        ("triton_enable_empty_final_response", parameter(1), "invalid value type for 'triton_enable_empty_final_response'"),
        ("mine", oip.InferParameter(), "invalid value type for 'mine' parameter, expected int64_param"),
    ],
)
def test_parameters_that_make_no_sense(name: str, value: Any, text: str) -> None:
    assert refusal(decoder(PAIR), raw(A, B, parameters={name: value})).startswith(text)


def test_what_is_said_of_a_sequence_is_among_the_terms_also_of_messages_that_repeat() -> None:
    knows = decoder(PAIR)
    for _ in range(3):
        asked = decode(knows, raw(A, B, parameters={"sequence_id": parameter(7), "sequence_start": parameter(True)}))
        assert asked.terms.sequence == InSequence(7, start=True)


def test_typed_contents_are_bounded_since_they_block_all_while_they_are_read() -> None:
    of = decoder(one(DType.FP32), max_typed_bytes=100)
    with pytest.raises(InferenceError, match="besides its raw contents; at most 100 are accepted") as caught:
        decode(of, typed("FP32", [1.0] * 40, shape=(10, 4)))
    assert caught.value.failure.kind is FailureKind.TOO_LARGE
    big = np.zeros((8, 4), np.float32)
    assert decode(of, raw(big, names="x")).request.ticket.rows == 8


def test_a_refusal_is_counted_by_its_model() -> None:
    of = decoder(PAIR)
    endpoint = decode(of, raw(A, B)).endpoint
    refusal(of, raw(A))
    assert endpoint.model.stats.failures[FailureKind.INVALID_ARGUMENT] == 1


def test_what_is_told_of_a_request_without_its_model() -> None:
    message = raw(A, B, id="r", parameters={"timeout": parameter(3000)}).SerializeToString()
    assert timeout_s(message, 1000) == 0.003
    assert id_of(message) == "r"
    assert id_of(b"\xff") == ""


# What repeats


def test_a_message_that_repeats_but_for_id_and_tensors_is_known() -> None:
    of = decoder(PAIR)
    first = decode(of, raw(A, B, id="1"))
    again = decode(of, raw(A * 2, B * 3, id="a longer id"))
    assert first.memo is not None
    assert again.memo is first.memo
    assert again.request.id == "a longer id"
    assert [bytes(tensor.data) for tensor in again.request.inputs] == [(A * 2).tobytes(), (B * 3).tobytes()]
    assert again.request.ticket.id > first.request.ticket.id


@pytest.mark.parametrize(
    "other",
    [
        pytest.param(raw(A, B), id="no id"),
        pytest.param(raw(A, B, id="1", model_version="1"), id="a version"),
        pytest.param(raw(np.repeat(A, 2, 0), np.repeat(B, 2, 0), id="1"), id="more rows"),
        pytest.param(raw(A, B, id="1", outputs=[{"name": "out_b"}]), id="outputs"),
        pytest.param(raw(A, B, id="1", parameters={"mine": parameter(1)}), id="parameters"),
        pytest.param(raw(A, B, id="x" * 128), id="a very long id"),
        pytest.param(raw(B, A, names="ba", id="1"), id="another order"),
    ],
)
def test_another_message_is_not(other: Any) -> None:
    of = decoder(PAIR)
    known = decode(of, raw(A, B, id="1")).memo
    asked = decode(of, other)
    assert asked.memo is not known or asked.memo is None
    assert _as_told(asked) == _as_told(decode(decoder(PAIR, remembers=False), other))


def test_typed_contents_are_not_remembered() -> None:
    of = decoder(one(DType.FP32))
    for _ in range(2):
        assert decode(of, typed("FP32", [1, 2, 3, 4])).memo is None
    assert not of._known


def test_tensors_between_other_fields_are_found_but_not_remembered() -> None:
    whole, late = raw(A, B), oip.ModelInferRequest(id="late").SerializeToString()
    of = decoder(PAIR)
    for _ in range(2):
        asked = decode(of, whole.SerializeToString() + late)
        assert (asked.request.id, asked.memo) == ("late", None)
        assert bytes(asked.request.inputs[0].data) == A.tobytes()


def test_a_second_id_holds_every_time() -> None:
    """Fields may come again, and the last one counts: such a message is never cut at the first."""
    second = oip.ModelInferRequest(id="second").SerializeToString()
    of = decoder(PAIR)
    data = raw(A, B, id="first").SerializeToString()
    at = data.index(b"first") + 5
    message = data[:at] + second + data[at:]
    for _ in range(2):
        assert decode(of, message).request.id == "second"
    assert decode(of, message.replace(b"first", b"other")).request.id == "second"


def test_a_catalog_that_changes_makes_it_forget() -> None:
    of = decoder(PAIR)
    decode(of, raw(A, B))
    assert of._known
    of.forget()
    assert not of._known


def test_memory_of_messages_is_bounded() -> None:
    of = decoder(PAIR)
    for number in range(600):
        rows = 1 + number % 8
        parameters = {f"p{number}": parameter("x" * (number % 300))}
        decode(of, raw(np.repeat(A, rows, 0), np.repeat(B, rows, 0), parameters=parameters))
    assert len(of._known) <= 256
    assert all(len(alike) <= 4 for alike in of._known.values())


# Answers


def _answer(asked: Asked, *, version: str = "1", **changes: Any) -> Response:
    outputs = [
        Tensor(f"out_{asked.request.inputs[index].name}", *_but_name(asked.request.inputs[index]))
        for index in asked.request.outputs
    ]
    return Response(asked.request.id, "m", version, changes.get("outputs", outputs), TIMING)


def _but_name(tensor: Tensor) -> tuple[DType, Any, Any]:
    return tensor.dtype, tensor.shape, tensor.data


def _sent(response: Response, memo: Any, flags: bytes = b"") -> Any:
    return oip.ModelInferResponse.FromString(b"".join(encode(response, memo, flags)))


def test_answers_are_raw_and_carry_the_id() -> None:
    asked = decode(decoder(PAIR), raw(A, B, id="é" * 100))
    for _ in range(2):
        assert _sent(_answer(asked), asked.memo) == oip.ModelInferResponse(
            model_name="m",
            model_version="1",
            id="é" * 100,
            outputs=[
                {"name": "out_a", "datatype": "FP32", "shape": (1, 2)},
                {"name": "out_b", "datatype": "INT64", "shape": (1, 1)},
            ],
            raw_output_contents=[A.tobytes(), B.tobytes()],
        )


def test_a_remembered_head_is_of_the_same_version_and_shapes() -> None:
    of = decoder(PAIR)
    asked = decode(of, raw(A, B, id="1"))
    _sent(_answer(asked), asked.memo)
    other = _answer(asked, version="2", outputs=[Tensor("out_a", DType.FP32, (2, 2), bytes(16))])
    for _ in range(2):
        sent = _sent(other, asked.memo)
        assert (sent.model_version, sent.outputs[0].shape, len(sent.raw_output_contents)) == ("2", [2, 2], 1)


def test_bytes_of_other_lengths_have_their_own_marks() -> None:
    of = decoder(echo_signature(("x", DType.FP32, (-1, 2))))
    asked = decode(of, raw(A, names="x"))
    for elements in ([b"a", b"bb"], [b"longer", b""], [b"x" * 1000, b""]):
        data = join_elements(elements)
        answer = _answer(asked, outputs=[Tensor("out_x", DType.BYTES, (1, 2), data)])
        assert list(_sent(answer, asked.memo).raw_output_contents) == [data]


def test_a_small_part_of_a_large_batch_is_copied_so_that_it_does_not_keep_it() -> None:
    batch = bytes(1 << 20)
    asked = decode(decoder(PAIR), raw(A, B))
    rows = memoryview(batch)[: 100 << 10]
    *_, sent = encode(_answer(asked, outputs=[Tensor("out_a", DType.FP32, (100, 256), rows)]), asked.memo)
    assert isinstance(sent, bytes)
    *_, sent = encode(_answer(asked, outputs=[Tensor("out_a", DType.FP32, (1024, 256), memoryview(batch))]), asked.memo)
    assert isinstance(sent, memoryview)


# Anything


def _as_told(asked: Asked) -> Any:
    """What matters of it."""
    request, ticket = asked.request, asked.request.ticket
    inputs = [(tensor.name, tensor.dtype, tuple(tensor.shape), bytes(tensor.data)) for tensor in request.inputs]
    of_ticket = msgspec.structs.astuple(msgspec.structs.replace(ticket, id=0))
    return inputs, tuple(request.outputs), request.id, request.params, request.model, of_ticket, asked.terms, asked.empty_final


@settings(max_examples=75, deadline=None)
@given(st.lists(mutated(), min_size=1, max_size=6))
def test_whatever_comes_is_answered_or_refused_and_memory_never_changes_what_it_says(messages: list[bytes]) -> None:
    remembering, forgetful = decoder(PAIR, PAIR), decoder(PAIR, PAIR, remembers=False)
    for message in MESSAGES:
        _told(remembering, message)
    for message in [*messages, *messages]:
        assert _told(remembering, message) == _told(forgetful, message)


def _told(of: InferDecoder, message: bytes) -> Any:
    try:
        asked = decode(of, message)
    except InferenceError as error:
        if error.failure.kind not in (FailureKind.INVALID_ARGUMENT, FailureKind.NOT_FOUND, FailureKind.UNSUPPORTED):
            raise
        return error.failure
    try:  # protobuf agrees that it is a message, with this id
        assert oip.ModelInferRequest.FromString(message).id == asked.request.id
    except DecodeError:
        raise AssertionError("protobuf refuses what was taken") from None
    return _as_told(asked)

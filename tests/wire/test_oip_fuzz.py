"""Infer bodies broken at random are decoded or refused: no other exception, no hang, no memory kept."""

import gc
import os
import random
import tracemalloc
from time import process_time
from typing import Any

import msgspec
from hypothesis import example, given, settings
from hypothesis import strategies as st

from dlproxy.message import DType, FailureKind, InferenceError, Signature
from dlproxy.tensors import join_elements
from dlproxy.wire.http.exchange import Exchange
from dlproxy.wire.oip.codec import InferDecoder

from .fixtures import EchoService, Wire, app_of, echo_signature, post, served
from .test_http_fuzz import mutate, pieces_of
from .test_oip_codec import PAIR, Body, checker_of

CASES = int(os.environ.get("DLPROXY_MUTATIONS", "10000"))
HANG_S = 0.5  # of CPU time: one request takes well under a millisecond
MIXED = echo_signature(("a", DType.FP16, (-1, 2)), ("b", DType.BOOL, (-1,)), ("c", DType.UINT8, (-1, -1)))
SIGNATURES = {
    "one": echo_signature(("x", DType.FP32, (-1, 2))),
    "pair": PAIR,
    "mixed": MIXED,
    "text": echo_signature(("x", DType.BYTES, (-1, 1)), text=True),
    "plain": echo_signature(("x", DType.INT64, (2, -1)), batched=False),
    "scalar": echo_signature(("x", DType.FP64, ()), batched=False),
}
ALLOWED = {FailureKind.INVALID_ARGUMENT, FailureKind.UNSUPPORTED, FailureKind.NOT_FOUND}
TRICKY = [
    *(
        b"null",
        b"true",
        b"-1",
        b"0",
        b"1e308",
        b"1e999",
        b"1.5",
        b"[]",
        b"{}",
        b"[[[",
        b"]]]",
        b'"',
        b"\\",
        b"\\ud800",
        b"\\u0000",
    ),
    *(
        b"18446744073709551615",
        b"4611686018427387904",
        b"9" * 400,
        b"-9223372036854775809",
        b"NaN",
        b"[" * 3000,
        b'{"a":' * 1500,
    ),
    *(
        b'"binary_data_size":',
        b'"parameters":{"binary_data_output":true},',
        b'"timeout":1,',
        b'"shape":[],',
        b'"data":[1],',
        b"\xff",
    ),
    *(
        b'"classification":1,',
        b'"outputs":[{"name":"out_x"}],',
        b'"FP16"',
        b'"BYTES"',
        b'"BOOL"',
        b"\0\0\0\0",
        b"\xff\xff\xff\xff",
    ),
]


def corpus() -> list[tuple[str, bytes, int | None]]:
    """Good bodies: (signature, body, header length)."""
    binary = {"parameters": {"binary_data_output": True, "priority": 1, "timeout": 1000}}
    found: list[tuple[str, bytes, int | None]] = []

    def add(signature: str, body: Body) -> None:
        found.append((signature, *body.parts()))

    add("one", Body().add("x", DType.FP32, [2, 2], [[1, 2.5], [-3, 4e10]]))
    add("one", Body(id="abc").add("x", DType.FP32, [2, 2], [1, 2, 3, 4]))
    add("one", Body().add("x", DType.FP32, [2, 2], raw=bytes(range(16))))
    add("one", Body(**binary, outputs=[{"name": "out_x"}]).add("x", DType.FP32, [1, 2], raw=bytes(8)))
    found.append(("one", bytes(24), 0))
    for raw in (None, join_elements(["t", "ü"])):
        pair = Body(outputs=[{"name": "out_c", "parameters": {"binary_data": False}}, {"name": "out_a"}])
        pair.add("b", DType.INT64, [2, 1], raw=bytes(16)).add("c", DType.BYTES, [2, 1], ["t", "ü"], raw=raw)
        add("pair", pair.add("a", DType.FP32, [2, 2], [[1, 2], [3, 4]]))
    mixed = Body(**binary).add("a", DType.FP16, [1, 2], raw=b"\0<\0<").add("b", DType.BOOL, [1], [True])
    add("mixed", mixed.add("c", DType.UINT8, [1, 3], [[0, 128, 255]]))
    add("text", Body().add("x", DType.BYTES, [3, 1], ["", "a", "ß" * 20]))
    add("text", Body().add("x", DType.BYTES, [3, 1], raw=join_elements(["", "a", "ß" * 20])))
    add("plain", Body().add("x", DType.INT64, [2, 3], [[1, 2, 3], [4, 5, 6]]))
    add("plain", Body().add("x", DType.INT64, [2, 0], []))
    add("scalar", Body().add("x", DType.FP64, [], [1.25]))
    add("scalar", Body().add("x", DType.FP64, [], raw=bytes(8)))
    return found


def broken(rng: random.Random, bodies: list[tuple[str, bytes, int | None]]) -> tuple[str, bytes, int | None]:
    """A body whose text, sizes, binary part or header length is wrong in some way, or whose model is another."""
    signature, body, json_bytes = rng.choice(bodies)
    texts = [text for _, text, _ in bodies]
    if json_bytes and rng.random() < 0.7:
        head = mutate(rng, body[:json_bytes], texts, TRICKY)
        payload = body[json_bytes:] if rng.random() < 0.8 else mutate(rng, body[json_bytes:], texts, TRICKY)
        body, json_bytes = head + payload, len(head)
    else:
        body = mutate(rng, body, texts, TRICKY)
    chance = rng.random()
    if chance < 0.05:
        json_bytes = rng.choice((None, 0, 1, len(body), len(body) + 1, 10**12 - 1))
    elif chance < 0.1 and json_bytes is not None:
        json_bytes = max(0, json_bytes + rng.choice((-2, -1, 1, 2, 8)))
    if rng.random() < 0.05:
        signature = rng.choice(list(SIGNATURES))
    return signature, body, json_bytes


def check_request(signature: Signature, request: Any) -> None:
    """What was accepted is what a model may be given."""
    assert [tensor.name for tensor in request.inputs] == [spec.name for spec in signature.inputs]
    for tensor, spec in zip(request.inputs, signature.inputs, strict=True):
        assert tensor.dtype is spec.dtype
        assert len(tensor.shape) == len(spec.shape)
        assert all(want in (-1, size) and size >= 0 for size, want in zip(tensor.shape, spec.shape, strict=True))
        if spec.dtype is not DType.BYTES:
            count = 1
            for size in tensor.shape:
                count *= size
            assert len(tensor.data) == count * spec.dtype.itemsize
    assert 1 <= request.ticket.rows <= 8
    assert all(0 <= index < len(signature.outputs) for index in request.outputs)


def decode_or_refuse(signature: Signature, decoder: InferDecoder, body: bytes, json_bytes: int | None) -> bool:
    """Whether it was accepted; any exception but a refusal in words fails the test."""
    failure = None
    try:
        wire = decoder.decode(body, json_bytes, ticket_id=1, now=1.0)
    except InferenceError as error:
        failure = error.failure
    if failure is None:
        check_request(signature, wire.request)
    else:
        assert failure.kind in ALLOWED
        assert failure.message
    return failure is None


def test_every_body_of_the_corpus_is_good() -> None:
    for name, body, json_bytes in corpus():
        wire = InferDecoder(checker_of(SIGNATURES[name])).decode(body, json_bytes, ticket_id=1, now=0.0)
        check_request(SIGNATURES[name], wire.request)


def test_mutated_bodies_are_decoded_or_refused_and_leave_no_memory_behind() -> None:
    rng, bodies = random.Random(20240502), corpus()
    decoders = {name: InferDecoder(checker_of(signature)) for name, signature in SIGNATURES.items()}
    accepted = refused = 0

    def run(cases: int) -> None:
        nonlocal accepted, refused
        for _ in range(cases):
            name, body, json_bytes = broken(rng, bodies)
            began = process_time()
            if decode_or_refuse(SIGNATURES[name], decoders[name], body, json_bytes):
                accepted += 1
            else:
                refused += 1
            assert process_time() - began < HANG_S, (name, body[:300], json_bytes)

    run(CASES - 4000)  # the decoders' memories of heads fill up, to their bounds
    gc.collect()
    tracemalloc.start()
    try:
        run(2000)
        gc.collect()
        before = tracemalloc.get_traced_memory()[0]
        run(2000)
        gc.collect()
        after = tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()
    assert after - before < 2_000_000
    assert accepted > CASES / 50
    assert refused > CASES / 2


def test_mutated_bodies_through_http_are_answered_in_kind_and_do_not_harm_the_next_request() -> None:
    rng, bodies = random.Random(20240503), corpus()
    good = bodies[0][1]
    for _ in range(CASES // 5):
        name, body, json_bytes = broken(rng, bodies)
        service, other = EchoService(SIGNATURES[name]), EchoService(SIGNATURES["one"], model="good")
        target = "/predict/m" if rng.random() < 0.1 else "/v2/models/m/infer"
        headers = {} if json_bytes is None else {"Inference-Header-Content-Length": str(json_bytes)}
        wire = Wire(app_of(served(service), served(other), max_body_bytes=1 << 20))
        wire.feed(*pieces_of(rng, post(target, body, **headers)))
        service.answer_all()
        wire.feed(post("/v2/models/good/infer", good))
        other.answer_all()
        first, second = wire.replies
        assert first.status in (200, 400, 404, 501), (first, target, body, json_bytes)
        if first.status != 200:
            assert first.error
        assert second.status == 200
        wire.lose()
        assert not wire.server.connections


def test_requests_leave_no_objects_behind() -> None:
    rng, bodies = random.Random(5), corpus()
    service = EchoService(SIGNATURES["one"])
    service.keep = False
    app = app_of(served(service))

    def run(cases: int) -> int:
        for _ in range(cases):
            _, body, json_bytes = broken(rng, bodies)
            headers = {} if json_bytes is None else {"Inference-Header-Content-Length": str(json_bytes)}
            wire = Wire(app).feed(post("/v2/models/m/infer", body, **headers))
            service.answer_all()
            wire.lose()
        del wire
        gc.collect()
        assert not [found for found in gc.get_objects() if type(found) is Exchange]
        return len(gc.get_objects())

    run(2000)
    start = run(500)
    assert run(500) - start < 500


# Structured garbage: JSON of the right kind with wrong things in right places

NAMES = st.sampled_from(["x", "y", "a", "b", "c", "out_x", "", "x\0", "é"])
NUMBERS = st.one_of(
    st.integers(-3, 5),
    st.sampled_from([2**31, 2**62, 2**63, 2**64, -(2**63), 10**30, 0.5, 1e300, -0.0]),
    st.booleans(),
    st.none(),
)
DATA = st.recursive(st.one_of(NUMBERS, st.text(max_size=3)), lambda inner: st.lists(inner, max_size=4), max_leaves=12)
JUNK = st.recursive(
    st.one_of(st.none(), NUMBERS, st.text(max_size=3)),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=3), inner, max_size=3)),
    max_leaves=6,
)
SIZES = st.one_of(st.integers(-2, 20), NUMBERS)
TENSOR_PARAMS = st.fixed_dictionaries(
    {},
    optional={
        "binary_data_size": SIZES,
        "binary_data": st.one_of(st.booleans(), JUNK),
        "classification": NUMBERS,
        "shared_memory_region": st.one_of(st.text(max_size=2), JUNK),
    },
)
INPUTS = st.fixed_dictionaries(
    {
        "name": NAMES,
        "shape": st.lists(st.one_of(st.integers(0, 3), NUMBERS), max_size=4),
        "datatype": st.one_of(st.sampled_from([dtype.value for dtype in DType]), st.text(max_size=4)),
    },
    optional={"data": DATA, "parameters": st.one_of(TENSOR_PARAMS, JUNK)},
)
HEADS = st.fixed_dictionaries(
    {"inputs": st.one_of(st.lists(INPUTS, max_size=3), JUNK)},
    optional={
        "id": st.one_of(st.text(max_size=4), JUNK),
        "parameters": st.one_of(
            JUNK,
            st.fixed_dictionaries({}, optional={"timeout": NUMBERS, "priority": NUMBERS, "binary_data_output": st.booleans()}),
        ),
        "outputs": st.lists(st.fixed_dictionaries({"name": NAMES}, optional={"parameters": TENSOR_PARAMS}), max_size=3),
        "extra": JUNK,
    },
)


@settings(max_examples=CASES // 20, deadline=None)
@given(
    st.sampled_from(list(SIGNATURES)), HEADS, st.binary(max_size=40), st.sampled_from(["none", "right", "zero", "off by one"])
)
@example("one", {"inputs": [{"name": "x", "shape": [], "datatype": "FP32", "data": [1]}]}, b"", "none")
@example("one", {"inputs": [], "parameters": {"timeout": 10**30}}, b"", "none")
def test_structured_garbage_is_decoded_or_refused(name: str, head: Any, payload: bytes, header: str) -> None:
    text = msgspec.json.encode(head)
    json_bytes = {"none": None, "right": len(text), "zero": 0, "off by one": len(text) - 1}[header]
    decoder = InferDecoder(checker_of(SIGNATURES[name]))
    for _ in range(2):  # the second time, the head may be remembered
        decode_or_refuse(SIGNATURES[name], decoder, text + payload, json_bytes)


@settings(max_examples=CASES // 50, deadline=None)
@given(st.sampled_from(["one", "text", "mixed", "plain"]), DATA, st.booleans())
def test_predict_garbage_is_answered_in_kind(name: str, data: Any, by_name: bool) -> None:
    service = EchoService(SIGNATURES[name])
    body = msgspec.json.encode({"inputs": {"x": data} if by_name else data})
    wire = Wire(app_of(served(service))).feed(post("/predict/m", body))
    service.answer_all()
    assert wire.replies[0].status in (200, 400)

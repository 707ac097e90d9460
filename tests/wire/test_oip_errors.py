"""Infer requests that are wrong: each gets its status and a message that says what was wrong and what would be right."""

import gzip
import zlib
from collections.abc import Callable
from time import process_time
from typing import Any

import msgspec
import pytest

from dlproxy.config import HttpLimits
from dlproxy.message import DType, Failure, FailureKind
from dlproxy.tensors import join_elements

from .fixtures import EchoService, Wire, app_of, echo_signature, post, request, served
from .test_oip_codec import PAIR, Body, ask

ONE = echo_signature(("x", DType.FP32, (-1, 2)))
FREE = echo_signature(("x", DType.FP32, (-1, -1)))
FLAT = echo_signature(("x", DType.FP32, (-1,)))
FIXED = echo_signature(("x", DType.FP32, (4, 2)), batched=False)
TEXT = echo_signature(("x", DType.BYTES, (-1, 1)), text=True)
GOOD = Body().add("x", DType.FP32, [1, 2], [1, 2])
INFER = "/v2/models/m/infer"


def text(body: str | bytes, **headers: str) -> bytes:
    return post(INFER, body.encode() if isinstance(body, str) else body, **headers)


def one(data: str, *, shape: str = "[1,2]", dtype: str = "FP32", name: str = "x", more: str = "") -> bytes:
    """One JSON input written out, so that it may be anything."""
    return text(f'{{"inputs":[{{"name":"{name}","shape":{shape},"datatype":"{dtype}","data":{data}}}]{more}}}')


def raw(size: Any, payload: bytes, *, shape: str = "[1,2]", dtype: str = "FP32", head_size: int | None = None) -> bytes:
    """One binary input of a stated size."""
    head = f'{{"inputs":[{{"name":"x","shape":{shape},"datatype":"{dtype}","parameters":{{"binary_data_size":{size}}}}}]}}'
    length = str(len(head) if head_size is None else head_size)
    return text(head.encode() + payload, **{"Inference-Header-Content-Length": length})


def asks(output: str, more: str = "") -> bytes:
    return one("[1,2]", more=f',"outputs":[{{"name":"{output}"{more}}}]')


def given(params: str) -> bytes:
    return one("[1,2]", more=f',"parameters":{{{params}}}')


def pair(*names: str) -> bytes:
    kinds = {"a": (DType.FP32, [1, 2], [1, 2]), "b": (DType.INT64, [1, 1], [1]), "c": (DType.BYTES, [1, 1], ["t"])}
    body = Body()
    for name in names:
        dtype, shape, data = kinds.get(name, kinds["b"])
        body.add(name, dtype, shape, data)
    return body.post()


BAD: list[tuple[str, Any, bytes, tuple[str, ...]]] = [
    ("empty body", ONE, text(""), ("malformed JSON",)),
    ("no JSON", ONE, text("{"), ("malformed JSON",)),
    ("trailing text", ONE, text(b'{"inputs":[]} x'), ("malformed JSON", "trailing")),
    ("list", ONE, text("[]"), ("object",)),
    ("no inputs", ONE, text("{}"), ("inputs",)),
    ("null inputs", ONE, text('{"inputs":null}'), ("inputs", "array")),
    ("BOM", ONE, text(b"\xef\xbb\xbf{}"), ("malformed JSON",)),
    ("UTF-16", ONE, text('{"inputs":[]}'.encode("utf-16")), ("malformed JSON",)),
    ("bad UTF-8 name", ONE, text(b'{"inputs":[{"name":"\xff","shape":[1,2],"datatype":"FP32","data":[1,2]}]}'), ("utf-8",)),
    ("bad UTF-8 data", TEXT, text(b'{"inputs":[{"name":"x","shape":[1,1],"datatype":"BYTES","data":["\xff"]}]}'), ("utf-8",)),
    ("lone surrogate", TEXT, one(r'["\ud800x"]', shape="[1,1]", dtype="BYTES"), ("malformed JSON",)),
    ("number as id", ONE, text('{"id":5,"inputs":[]}'), ("`str`", "$.id")),
    ("zero inputs", ONE, text('{"inputs":[]}'), ("expected 1 inputs but got 0", "'x'", "<id_unknown>")),
    (
        "zero inputs, id",
        ONE,
        text('{"inputs":[],"id":"q7"}'),
        ("[request id: q7] expected 1 inputs but got 0 inputs for model 'm'",),
    ),
    (
        "missing input",
        PAIR,
        pair("a", "b"),
        ("expected 3 inputs but got 2", "Got input(s) ['a','b'], but missing required input(s) ['c']"),
    ),
    ("extra input", PAIR, pair("a", "b", "c", "d"), ("expected 3 inputs but got 4",)),
    ("misnamed input", PAIR, pair("a", "B", "c"), ("unexpected inference input 'B'", "'a', 'b', 'c'")),
    ("duplicate input", PAIR, pair("a", "b", "b"), ("input 'b' already exists in request",)),
    ("wrong datatype", ONE, one("[1,2]", dtype="INT64"), ("'x' data-type is 'INT64', but model 'm' expects 'FP32'",)),
    ("unknown datatype", ONE, one("[1,2]", dtype="FP31"), ("FP31", "FP32, FP64, BYTES")),
    ("lower-case datatype", ONE, one("[1,2]", dtype="fp32"), ("fp32", "FP32")),
    (
        "wrong dim",
        ONE,
        one("[1,2,3]", shape="[1,3]"),
        ("unexpected shape for input 'x' for model 'm'. Expected [-1,2], got [1,3]",),
    ),
    ("too few dims", ONE, one("[1,2]", shape="[2]"), ("has 1 dimensions, but the model expects 2",)),
    ("too many dims", ONE, one("[1,2]", shape="[1,1,2]"), ("has 3 dimensions, but the model expects 2",)),
    (
        "no dims",
        FLAT,
        one("[1]", shape="[]"),
        ("has no shape but model requires batch dimension for 'm'; the model expects 1 dimensions",),
    ),
    (
        "no dims, binary",
        FLAT,
        raw(4, bytes(4), shape="[]"),
        ("has no shape but model requires batch dimension for 'm'; the model expects 1 dimensions",),
    ),
    (
        "no dims of many",
        ONE,
        one("[1]", shape="[]"),
        ("has no shape but model requires batch dimension for 'm'; the model expects 2 dimensions",),
    ),
    ("fixed batch", FIXED, one("[1,2]"), ("batch size is fixed to 4",)),
    ("float dim", ONE, one("[1,2]", shape="[1.5,2]"), ("`int`", "shape[0]")),
    ("bool dim", ONE, one("[1,2]", shape="[true,2]"), ("`int`", "shape[0]")),
    ("negative dim", ONE, one("[1,2]", shape="[-1,2]"), ("negative",)),
    ("negative dims", ONE, one("[1,2]", shape="[-1,-2]"), ("negative",)),
    ("negative dims, binary", ONE, raw(8, bytes(8), shape="[-1,-2]"), ("negative",)),
    ("huge dim", ONE, one("[1,2]", shape=f"[{1 << 62},2]"), ("the data has shape [2]", str(1 << 62))),
    ("huge dims, binary", FREE, raw(8, bytes(8), shape=f"[{1 << 62},{1 << 62}]"), ("8", "bytes")),
    ("huge dims, overflow to right", FREE, raw(8, bytes(8), shape=f"[{1 << 63},{1 << 63}]"), ("bytes",)),
    (
        "huge BYTES",
        TEXT,
        raw(5, join_elements(["t"]), shape=f"[{1 << 62},1]", dtype="BYTES"),
        ("at most 1048576 BYTES elements", str(1 << 62)),
    ),
    ("dim of 400 digits", ONE, one("[1,2]", shape=f"[{10**400},2]"), ("shape",)),
    ("dim of 5000 digits", ONE, one("[1,2]", shape=f"[{'9' * 5000},2]"), ("out of range",)),
    ("a million huge dims", ONE, one("[1,2]", shape=f"[{f'{1 << 62},' * 40_000}1]"), ("40001 dimensions",)),
    (
        "a million huge dims, binary",
        ONE,
        raw(8, bytes(8), shape=f"[{f'{1 << 62},' * 40_000}1]"),
        ("has 40001 dimensions, but the model expects 2",),
    ),
    ("size below shape", ONE, raw(4, bytes(4)), ("Expected 8, got 4 bytes for shape [1, 2] of FP32",)),
    ("size above shape", ONE, raw(12, bytes(12)), ("Expected 8, got 12 bytes",)),
    ("size beyond body", ONE, raw(8, bytes(7)), ("unexpected size for input 'x', expecting 1 additional bytes for model 'm'",)),
    ("huge size", ONE, raw(1 << 62, bytes(8)), ("unexpected size for input 'x'",)),
    ("size of 400 digits", ONE, raw(10**400, bytes(8)), ("unexpected size for input 'x'",)),
    ("negative size", ONE, raw(-8, bytes(8)), ("binary_data_size is -8",)),
    ("float size", ONE, raw("8.0", bytes(8)), ("`int",)),
    ("bool size", ONE, raw("true", bytes(8)), ("`int",)),
    ("leftover bytes", ONE, raw(8, bytes(9)), ("unexpected additional input data for model 'm': 1 bytes",)),
    ("no size", ONE, raw("null", bytes(8)), ("But no field is set: input 'x'",)),
    ("no data", ONE, text('{"inputs":[{"name":"x","shape":[1,2],"datatype":"FP32"}]}'), ("But no field is set: input 'x'",)),
    ("null data", ONE, one("null"), ("must be a list",)),
    ("no header length", ONE, text(raw(8, b"").partition(b"\r\n\r\n")[2]), ("no Inference-Header-Content-Length",)),
    (
        "header beyond body",
        ONE,
        raw(8, bytes(8), head_size=9999),
        ("inference header size should be in range (0,", "got: 9999"),
    ),
    ("header too short", ONE, raw(8, bytes(8), head_size=20), ("malformed JSON",)),
    ("header negative", ONE, text("{}", **{"Inference-Header-Content-Length": "-1"}), ("'-1'", "number of bytes")),
    ("header a word", ONE, text("{}", **{"Inference-Header-Content-Length": "ten"}), ("'ten'",)),
    ("header superscript", ONE, text("{}", **{"Inference-Header-Content-Length": "\xb2"}), ("number of bytes",)),
    ("header empty", ONE, text("{}", **{"Inference-Header-Content-Length": ""}), ("number of bytes",)),
    ("header endless", ONE, text("{}", **{"Inference-Header-Content-Length": "1" * 4000}), ("number of bytes",)),
    ("NaN", ONE, one("[NaN,1]"), ("malformed JSON",)),
    ("Infinity", ONE, one("[1,-Infinity]"), ("malformed JSON",)),
    ("null element", ONE, one("[null,1]"), ("None is not a number",)),
    ("too large for FP32", ONE, one("[1,3.5e38]"), ("too large for FP32",)),
    ("integer too large for FP32", ONE, one(f"[1,{10**39}]"), ("FP32",)),
    ("integer too large for any float", ONE, one(f"[1,{10**320}]"), ("FP32",)),
    ("too large for JSON", ONE, one("[1,1e999]"), ("range",)),
    ("bool for number", ONE, one("[true,1]"), ("True is not a number, which FP32 requires",)),
    ("string for number", ONE, one('["1",1]'), ("'1' is not a number",)),
    ("object for number", ONE, one('[{"a":1},1]'), ("is not a number",)),
    ("object for data", ONE, one('{"a":1}'), ("dict", "list")),
    (
        "ragged rows",
        ONE,
        one("[[1,2],[3]]", shape="[2,2]"),
        ("ragged", "expected 2 elements in dimension 2, got a list of 1"),
    ),
    ("ragged depth", ONE, one("[[1,2],3]", shape="[2,2]"), ("ragged",)),
    ("deeper leaf", ONE, one("[1,[2]]"), ("[2] is not a number",)),
    ("empty row first", ONE, one("[[],[1,2]]", shape="[2,2]"), ("[2, 0]",)),
    ("too little data", ONE, one("[1]"), ("the data has shape [1]", "[1, 2]")),
    ("too much data", ONE, one("[1,2,3]"), ("the data has shape [3]",)),
    ("other nesting", ONE, one("[[1],[2]]"), ("the data has shape [2, 1]", "[1, 2]")),
    ("zero rows", ONE, one("[]", shape="[0,2]"), ("no rows",)),
    ("zero rows, binary", ONE, raw(0, b"", shape="[0,2]"), ("no rows",)),
    ("batch too large", ONE, one(str([1] * 18), shape="[9,2]"), ("batch-size must be <= 8 for 'm'",)),
    ("nested 100000 deep", ONE, one("[" * 100_000 + "]" * 100_000), ("deep",)),
    ("nested 100000 deep, not closed", ONE, one("[" * 100_000), ("deep",)),
    ("objects 100000 deep", ONE, text('{"a":' * 100_000), ("deep",)),
    ("parameters 100000 deep", ONE, given('"p":' + "[" * 100_000 + "]" * 100_000), ("deep",)),
    ("BYTES of numbers", TEXT, one("[1]", shape="[1,1]", dtype="BYTES"), ("1 is not a string",)),
    ("BYTES of a deep object", TEXT, one('[{"a":' * 200 + "1" + "}]" * 200, shape="[1,1]", dtype="BYTES"), ("not a string",)),
    ("BYTES prefix too long", TEXT, raw(5, b"\2\0\0\0a", shape="[1,1]", dtype="BYTES"), ("says 2 bytes, only 1 are left",)),
    ("BYTES prefix huge", TEXT, raw(5, b"\xff\xff\xff\xffa", shape="[1,1]", dtype="BYTES"), ("says 4294967295 bytes",)),
    ("BYTES prefix cut", TEXT, raw(3, b"\0\0\0", shape="[1,1]", dtype="BYTES"), ("3 stray bytes",)),
    (
        "BYTES elements too few",
        TEXT,
        raw(5, b"\1\0\0\0a", shape="[2,1]", dtype="BYTES"),
        (
            "expected 2 string elements",
            "got 1",
        ),
    ),
    (
        "BYTES elements too many",
        TEXT,
        raw(8, bytes(8), shape="[1,1]", dtype="BYTES"),
        (
            "unexpected number of string elements 2",
            "expecting 1",
        ),
    ),
    ("BYTES not UTF-8", TEXT, raw(5, b"\1\0\0\0\xff", shape="[1,1]", dtype="BYTES"), ("element 0 is not valid UTF-8",)),
    (
        "FP16 as JSON",
        echo_signature(("x", DType.FP16, (-1, 2))),
        one("[1,2]", dtype="FP16"),
        ("receiving FP16 data via JSON", "binary data format for input x"),
    ),
    ("BF16 as JSON", echo_signature(("x", DType.BF16, (-1, 2))), one("[1,2]", dtype="BF16"), ("receiving BF16 data via JSON",)),
    ("unknown output", ONE, asks("y"), ("unexpected inference output 'y' for model 'm'", "'out_x'")),
    ("classes, fewer than none", ONE, asks("out_x", ',"parameters":{"classification":-1}'), ("must be a number of classes",)),
    ("classes, a word", ONE, asks("out_x", ',"parameters":{"classification":"all"}'), ("`int | null`, got `str`",)),
    (
        "classes of BYTES",
        TEXT,
        one('["a"]', shape="[1,1]", dtype="BYTES", more=',"outputs":[{"name":"out_x","parameters":{"classification":1}}]'),
        ("class result not available for output due to unsupported type 'BYTES'",),
    ),
    (
        "classes in shared memory",
        ONE,
        asks("out_x", ',"parameters":{"shared_memory_region":"r","classification":1}'),
        ("Output can't set both 'shared_memory_region' and 'classification'",),
    ),
    (
        "shared memory and binary",
        ONE,
        asks("out_x", ',"parameters":{"shared_memory_region":"r","binary_data":true}'),
        ("Output can't set both 'shared_memory_region' and 'binary_data'",),
    ),
    (
        "shared memory input with data",
        ONE,
        text(
            '{"inputs":[{"name":"x","shape":[1,2],"datatype":"FP32","data":[1,2],'
            '"parameters":{"shared_memory_region":"r","shared_memory_byte_size":8}}]}'
        ),
        ("But set 'data' 'shared_memory_region'",),
    ),
    ("binary_data a word", ONE, asks("out_x", ',"parameters":{"binary_data":"yes"}'), ("bool",)),
    ("binary_data_output a word", ONE, given('"binary_data_output":"false"'), ("binary_data_output", "true or false")),
    ("parameters a list", ONE, one("[1,2]", more=',"parameters":[]'), ("object",)),
    ("timeout a word", ONE, given('"timeout":"1s"'), ("'timeout' is '1s'", "microseconds")),
    ("timeout negative", ONE, given('"timeout":-1'), ("non-negative",)),
    ("timeout a float", ONE, given('"timeout":1.5'), ("1.5",)),
    ("timeout a bool", ONE, given('"timeout":true'), ("True",)),
    ("timeout of 400 digits", ONE, given(f'"timeout":{10**400}'), ("timeout",)),
    ("timeout a deep list", ONE, given(f'"timeout":{"[" * 500}{"]" * 500}'), ("timeout",)),
    ("priority negative", ONE, given('"priority":-1'), ("priority",)),
    ("priority huge", ONE, given(f'"priority":{1 << 32}'), ("priority",)),
    ("priority a bool", ONE, given('"priority":false'), ("priority",)),
    ("raw, wrong multiple", ONE, text(bytes(9), **{"Inference-Header-Content-Length": "0"}), ("multiple of 8 bytes, got 9",)),
    ("raw, empty", ONE, text(b"", **{"Inference-Header-Content-Length": "0"}), ("no rows",)),
    (
        "raw, several inputs",
        PAIR,
        text(bytes(8), **{"Inference-Header-Content-Length": "0"}),
        ("must only have 1 input", "got 3 inputs"),
    ),
    ("raw, free shape", FREE, text(bytes(8), **{"Inference-Header-Content-Length": "0"}), ("leaves the shape",)),
    ("raw, too many rows", ONE, text(bytes(72), **{"Inference-Header-Content-Length": "0"}), ("batch-size must be <= 8",)),
    ("no gzip", ONE, text("{}", **{"Content-Encoding": "gzip"}), ("not valid gzip",)),
    ("no deflate", ONE, text(b"{}", **{"Content-Encoding": "deflate"}), ("not valid deflate",)),
    ("gzip cut", ONE, text(gzip.compress(b"{}")[:-4], **{"Content-Encoding": "gzip"}), ("truncated",)),
    ("gzip and more", ONE, text(gzip.compress(b"{}") + b"more", **{"Content-Encoding": "gzip"}), ("4 extra bytes after",)),
    ("bomb", ONE, text(gzip.compress(bytes(1 << 27), 1), **{"Content-Encoding": "gzip"}), ("decompressed body is too large",)),
    (
        "deflate bomb",
        ONE,
        text(zlib.compress(bytes(1 << 27), 1), **{"Content-Encoding": "deflate"}),
        ("decompressed body is too large",),
    ),
]


@pytest.mark.parametrize(("signature", "data", "says"), [case[1:] for case in BAD], ids=[case[0] for case in BAD])
def test_a_bad_request_is_told_what_is_wrong_and_does_not_harm_the_next(
    signature: Any, data: bytes, says: tuple[str, ...]
) -> None:
    service, other = EchoService(signature), EchoService(ONE, model="other")
    wire = Wire(app_of(served(service), served(other)))
    began = process_time()
    wire.feed(data)
    assert process_time() - began < 2.0, "this must not take long"
    wire.feed(GOOD.post("/v2/models/other/infer"))
    service.answer_all()
    other.answer_all()
    bad, good = wire.replies
    assert bad.status == 400, bad.body[:300]
    assert not service.requests
    assert len(bad.error) < 3000
    for words in says:
        assert words.lower() in bad.error.lower()  # msgspec's versions write "utf-8" and "UTF-8"
    assert good.status == 200
    assert not wire.ended


@pytest.mark.parametrize("depth", range(880, 1010, 5))
def test_nesting_near_pythons_own_limit_is_refused_not_failed(depth: int) -> None:
    for data in ("[" * depth + "1" + "]" * depth, '[{"a":' * (depth // 2) + "1" + "}]" * (depth // 2)):
        assert ask(ONE, one(data)).status == 400
        assert ask(TEXT, one(data, shape="[1,1]", dtype="BYTES")).status == 400


@pytest.mark.parametrize(
    ("dtype", "values"),
    [
        (DType.UINT8, ["256", "-1", "1.0", "1.5", "true", '"1"', "1e2"]),
        (DType.INT8, ["128", "-129"]),
        (DType.UINT16, ["65536", "-1"]),
        (DType.INT16, ["32768", "-32769"]),
        (DType.UINT32, [f"{2**32}", "-1"]),
        (DType.INT32, [f"{2**31}", f"{-(2**31) - 1}", "0.5"]),
        (DType.UINT64, [f"{2**64}", "-1", f"{10**300}"]),
        (DType.INT64, [f"{2**63}", f"{-(2**63) - 1}", "1.0", "false"]),
        (DType.BOOL, ["0", "1", '"true"', "null"]),
        (DType.FP64, ["1e309", f"{10**309}", "true", "null"]),
    ],
)
def test_numbers_that_do_not_fit_their_type_exactly_are_refused(dtype: DType, values: list[str]) -> None:
    for value in values:
        reply = ask(echo_signature(("x", dtype, (-1, 2))), one(f"[{value},{value}]", dtype=dtype.value))
        assert reply.status == 400, value
        assert "'x'" in reply.error, value


@pytest.mark.parametrize(
    ("target", "says"),
    [
        ("/v2/models/nope/infer", "Request for unknown model: 'nope' is not found"),
        ("/v2/models/m/versions/9/infer", "Request for unknown model: 'm' version 9 is not found; the versions served are 1"),
        ("/v2/models/m/versions/01/infer", "version 01 is not found"),
        ("/v2/models/m/versions/canary", "'m' version canary is not found; the versions served are 1"),
        ("/predict/nope", "served are 'm'"),
        ("/v2/models/nope", "'nope' is not found"),
        ("/v2/models/nope/stats", "'nope' is not found"),
    ],
)
def test_an_unknown_model_or_version_is_404(target: str, says: str) -> None:
    data = GOOD.post(target) if "infer" in target or "predict" in target else request(target)
    reply = ask(ONE, data)
    assert reply.status == 404
    assert says in reply.error


@pytest.mark.parametrize("encoding", ["compress", "gzip, gzip", "", "x" * 100])
def test_an_unknown_content_encoding_is_501(encoding: str) -> None:
    for target in (INFER, "/predict/m"):
        reply = ask(ONE, post(target, b"{}", **{"Content-Encoding": encoding}))
        assert reply.status == 501
        assert "use one of br, deflate, gzip, zstd" in reply.error


FAILURES: list[tuple[FailureKind, int]] = [
    (FailureKind.QUEUE_FULL, 503),
    (FailureKind.OVERLOADED, 503),
    (FailureKind.QUOTA, 429),
    (FailureKind.DEADLINE, 503),
    (FailureKind.LATE, 504),
    (FailureKind.UNAVAILABLE, 503),
    (FailureKind.CANCELLED, 503),
    (FailureKind.MODEL_FAILED, 500),
    (FailureKind.INVALID_ARGUMENT, 400),
    (FailureKind.NOT_FOUND, 404),
    (FailureKind.UNSUPPORTED, 501),
    (FailureKind.TOO_LARGE, 413),
    (FailureKind.UNAUTHENTICATED, 401),
    (FailureKind.FORBIDDEN, 403),
    (FailureKind.LOOP, 508),
]


@pytest.mark.parametrize(("kind", "status"), FAILURES)
@pytest.mark.parametrize("target", [INFER, "/predict/m"])
def test_a_failure_of_the_service_has_its_status_and_retry_after(kind: FailureKind, status: int, target: str) -> None:
    service = EchoService(ONE)
    data = GOOD.post(target) if target == INFER else post(target, b'{"inputs":[[1,2]]}')
    wire = Wire(app_of(served(service))).feed(data * 2)
    for retry_after_s in (None, 0.2):
        service.waiting.popleft()[1].failed(Failure(kind, "why", retry_after_s))
    assert [(reply.status, reply.error, reply.headers.get("retry-after")) for reply in wire.replies] == [
        (status, "why", None),
        (status, "why", "1"),
    ]
    assert {kind for kind, _ in FAILURES} == set(FailureKind)


def test_a_fault_in_the_server_is_500_without_its_details(caplog: pytest.LogCaptureFixture) -> None:
    class Faulty(EchoService):
        def submit(self, *_: object) -> None:
            raise KeyError("a secret")

    wire = Wire(app_of(served(Faulty(ONE)))).feed(GOOD.post() + request("/v2"))
    assert [reply.status for reply in wire.replies] == [500, 200]
    assert "secret" not in wire.replies[0].error
    assert "a secret" in caplog.text


def test_rows_of_inputs_must_agree() -> None:
    body = (
        Body().add("a", DType.FP32, [1, 2], [1, 2]).add("b", DType.INT64, [2, 1], [1, 2]).add("c", DType.BYTES, [1, 1], ["t"])
    )
    reply = ask(PAIR, body.post())
    assert reply.status == 400
    assert "input 'b' batch size does not match other inputs for 'm': it has 2 rows where input 'a' has 1" in reply.error


@pytest.mark.parametrize("make", [lambda: bytes(800_000), lambda: b"\1\0\0\0a" * 160_000])
def test_many_small_elements_are_checked_without_holding_them_all(make: Callable[[], bytes]) -> None:
    import tracemalloc

    payload = make()
    signature = echo_signature(("x", DType.BYTES, (-1, -1)))
    app = app_of(served(EchoService(signature)), max_body_bytes=1 << 26)
    data = raw(len(payload), payload, shape="[1,3]", dtype="BYTES")
    tracemalloc.start()
    try:
        wire = Wire(app).feed(data)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    error = msgspec.json.decode(wire.replies[0].body)["error"]
    assert error.endswith("unexpected number of string elements 4 for inference input 'x' for model 'm', expecting 3")
    assert peak < 5_000_000


def test_json_over_its_limit_is_refused_before_it_is_decoded_whatever_the_body_may_hold() -> None:
    app = app_of(served(EchoService(ONE)), max_body_bytes=1 << 26)
    wire = Wire(app, HttpLimits(max_body_bytes=1 << 26))
    wire.feed(one("[" + " " * 9_000_000 + "1,2]"), GOOD.post())
    (refused,) = wire.replies
    assert refused.status == 413
    assert "send tensors as binary data" in refused.error
    assert len(wire.exchanges) == 2  # and the connection's next request reached the model


def test_a_million_elements_of_text_are_the_most() -> None:
    signature = echo_signature(("x", DType.BYTES, (-1, -1)))
    reply = ask(signature, raw(8, bytes(8), shape="[1,1048577]", dtype="BYTES"))
    assert reply.status == 400
    assert "at most 1048576 BYTES elements" in reply.error

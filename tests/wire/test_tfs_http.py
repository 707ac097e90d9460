"""TensorFlow Serving's REST API and KServe's V1: forms, values, texts and status codes, on bytes.

What is expected is quoted from tensorflow/serving: json_tensor.cc and its test in tensorflow_serving/util, and
http_rest_api_handler_test.cc and http_server.cc in tensorflow_serving/model_servers; and from KServe's data plane V1.
"""

import json
import math
import struct
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dlproxy.config import HttpLimits
from dlproxy.message import DType, FailureKind, TensorSpec
from dlproxy.tensors import elements_of
from dlproxy.wire.catalog import Catalog
from dlproxy.wire.tfs.json import shortest
from dlproxy.wire.waiting import Waiting
from tests.serve.rig import pass_time

from .fixtures import PLAIN, EchoService, Wire, echo_signature, post, request, served
from .tfs_models import COMING_AND_GOING, STATES, Computing, Site, app_over, half_plus_two, identity, two_inputs

PREDICT = "/v1/models/half:predict"


def answered(site: Site, body: str | bytes, path: str = PREDICT) -> Any:
    """Read with Python's json, which takes the bare NaN and Infinity."""
    reply = site.post(path, body)
    assert reply.status == 200, reply.body
    return json.loads(reply.body)


def refused(site: Site, body: str | bytes, path: str = PREDICT, status: int = 400) -> str:
    reply = site.post(path, body)
    assert reply.status == status, reply.body
    return reply.error


# Predict


@pytest.mark.parametrize(
    ("body", "answer"),
    [  # http_rest_api_handler_test.cc, Predict
        ('{"instances": [1.0, 2.0]}', {"predictions": [2.5, 3.0]}),
        ('{"signature_name": "serving_default", "instances": [3.0, 4.0]}', {"predictions": [3.5, 4.0]}),
        ('{"signature_name": "serving_default", "inputs": [3.0, 4.0]}', {"outputs": [3.5, 4.0]}),
        ('{"signature_name": "", "inputs": {"x": [3.0, 4.0]}}', {"outputs": [3.5, 4.0]}),
        ('{"instances": [{"x": 1.0}, {"x": 2}]}', {"predictions": [2.5, 3.0]}),
    ],
)
@pytest.mark.parametrize(
    "path", [PREDICT, "/v1/models/half/versions/1:predict", "/v1/models/half%3Apredict", "/V1/MODELS/half:PREDICT"]
)
def test_the_answers_of_tensorflow_servings_own_test(body: str, answer: Any, path: str) -> None:
    assert answered(Site(half_plus_two()), body, path) == answer


def test_several_inputs_and_outputs_are_objects_in_rows_or_columns() -> None:
    site = Site(two_inputs())
    rows = '{"instances": [{"a": [1, 2.5], "b": [1, 1]}, {"b": [0, 0], "a": [3, 4]}]}'
    assert answered(site, rows, "/v1/models/two:predict") == {
        "predictions": [{"s": [2.0, 3.5], "d": [0.0, 1.5]}, {"s": [3.0, 4.0], "d": [3.0, 4.0]}]
    }
    columns = '{"inputs": {"a": [[1, 2.5]], "b": [[1, 1]]}}'
    assert answered(site, columns, "/v1/models/two:predict") == {"outputs": {"s": [[2.0, 3.5]], "d": [[0.0, 1.5]]}}


def test_labels_name_versions() -> None:
    site = Site(half_plus_two())
    site.catalog.route("half", "", {"canary": "1"})
    assert answered(site, '{"instances": [1]}', "/v1/models/half/labels/canary:predict") == {"predictions": [2.5]}


@pytest.mark.parametrize(
    ("body", "text"),
    [  # quoted from json_tensor.cc and http_rest_api_handler.cc
        ("", "JSON Parse error: The document is empty"),
        ("instances = [1, 2]", "JSON Parse error: "),
        ("[" * 100_000, "JSON Parse error: "),
        ('{"instances": [1e400]}', "JSON Parse error: "),
        ('{"instances": [NaN, 1e400]}', "JSON Parse error: "),
        ("[1]", "Is not object"),
        ('{"signature_name": 100, "instances": [1]}', "'signature_name' key must be a string value."),
        ('{"signature_name": "nope", "instances": [1]}', 'Serving signature name: "nope" not found in signature def'),
        ("{}", "Missing 'inputs' or 'instances' key"),
        ('{"inputs": [1], "instances": [1]}', "expecting only one of 'inputs' or 'instances' keys to exist"),
        ('{"instances": {"x": [1]}}', "Expecting 'instances' to be a list/array"),
        ('{"instances": []}', "No values in 'instances' array"),
        ('{"instances": [1, {"x": 1}]}', "Expecting value/list but got object at item 1 of input list"),
        ('{"instances": [{"x": 1}, 1]}', "Expecting object but got list at item 1 of input list"),
        ('{"instances": [{"x": 1}, {"z": 1}]}', "Failed to process element: 1 of 'instances' list. JSON object: "),
        ('{"instances": [{"z": 1}]}', "keys must be equal to: x"),
        ('{"inputs": {"z": [1]}}', "Missing named input: x in 'inputs' object."),
        ('{"inputs": {"x": [1], "z": [1]}}', "unexpected inference input 'z' for model 'half'; its inputs are 'x'"),
        ('{"inputs": {"x": 1}}', "the data must be a list"),
        ('{"instances": ["a"]}', "input 'x': 'a' is not a number, which FP32 requires"),
        ('{"instances": [true]}', "input 'x': True is not a number, which FP32 requires"),
        ('{"instances": [null]}', "input 'x': None is not a number, which FP32 requires"),
        ('{"instances": [1e39]}', "input 'x': a number is too large for FP32"),
        ('{"instances": [16777217]}', "input 'x': 16777217 cannot be converted to FP32 without loss of precision"),
        ('{"instances": [[1], [1, 2]]}', "input 'x': ragged data: expected 1 elements in dimension 2, got a list of 2"),
    ],
)
def test_what_is_wrong_is_said_as_tensorflow_serving_says_it(body: str, text: str) -> None:
    service = half_plus_two()
    assert text in refused(Site(service), body)
    assert not service.requests


@pytest.mark.parametrize(
    ("body", "text"),
    [
        ('{"instances": [[1, 2]]}', "instances is a plain list, but expecting list of objects as multiple input tensors"),
        ('{"inputs": [[1, 2]]}', "inputs is a plain value/list, but expecting an object as multiple input tensors"),
        ('{"instances": [{"a": [1, 2]}]}', "keys must be equal to: a,b"),
        ('{"instances": [{"a": [1, 2], "b": [1.0, 2]}]}', "input 'b': 1.0 is not an integer, which INT32 requires"),
        ('{"instances": [{"a": [1, 2], "b": [1, 2147483648]}]}', "input 'b': a number is out of range for INT32"),
    ],
)
def test_what_is_wrong_with_several_inputs(body: str, text: str) -> None:
    assert text in refused(Site(two_inputs()), body, "/v1/models/two:predict")


@pytest.mark.parametrize(
    ("path", "status", "text"),
    [
        ("/v1/models/nobody:predict", 404, "Servable not found for request: Latest(nobody)"),
        ("/v1/models/half/versions/3:predict", 404, "Servable not found for request: Specific(half, 3)"),
        ("/v1/models/half/labels/x:predict", 400, "Unrecognized servable version label: x"),
        ("/v1/models/half/versions/x:predict", 400, "Malformed request: POST /v1/models/half/versions/x:predict"),
        ("/v1/models/half", 400, "Malformed request: POST /v1/models/half"),
        ("/v1/foo?a=b", 400, "Malformed request: POST /v1/foo"),
    ],
)
def test_where_there_is_nothing(path: str, status: int, text: str) -> None:
    reply = Site(half_plus_two()).post(path, '{"instances": [1]}')
    assert reply.status == status
    assert reply.body.decode() == f'{{\n    "error": "{text}"\n}}'
    assert reply.headers["content-type"] == "application/json"


@pytest.mark.parametrize("method", ["GET", "PUT", "DELETE", "PATCH"])
def test_predict_is_posted(method: str) -> None:
    reply = Site(half_plus_two()).get(PREDICT, method)
    assert (reply.status, reply.error) == (400, f"Malformed request: {method} {PREDICT}")


def test_explain_is_left_to_others() -> None:
    assert "no such path" in refused(Site(half_plus_two()), "{}", "/v1/models/half:explain", 404)


# Values


def test_nan_and_infinities_are_bare_tokens_both_ways() -> None:
    site = Site(identity(DType.FP32))
    body = site.post("/v1/models/m:predict", '{"instances": [NaN, Infinity, -Infinity, 0.1]}').body
    assert b"[NaN, Infinity, -Infinity, 0.1]" in body
    (first, *rest) = json.loads(body)["predictions"]
    assert math.isnan(first)
    assert rest == [math.inf, -math.inf, 0.1]


@pytest.mark.parametrize(
    ("dtype", "values"),
    [
        (DType.BOOL, [True, False]),
        (DType.UINT8, [0, 255]),
        (DType.INT64, [-(2**63), 2**63 - 1]),
        (DType.UINT64, [2**64 - 1]),
        (DType.FP16, [0.5, -2.0]),
        (DType.BF16, [0.5, 3.0]),
        (DType.FP32, [0.1, 16777216.0, 1e-13, -1.5e14, 0.0]),
        (DType.FP64, [0.1, 1e308, 9007199254740992.0]),
    ],
)
def test_values_come_back_as_they_were_written(dtype: DType, values: list[Any]) -> None:
    found = answered(Site(identity(dtype)), json.dumps({"instances": values}), "/v1/models/m:predict")
    assert found == {"predictions": values}


def test_strings_are_text_and_bytes_are_base64() -> None:
    body = '{"instances": ["Zürich", {"b64": "/wA="}, {"b64": "/wA"}, {"b64": "YWJj"}]}'
    service = identity(DType.BYTES)
    found = answered(Site(service), body, "/v1/models/m:predict")
    given = [bytes(each) for each in elements_of(service.requests[0].inputs[0].data)]
    assert given == ["Zürich".encode(), b"\xff\0", b"\xff\0", b"abc"]
    assert found == {"predictions": ["Zürich", {"b64": "/wA="}, {"b64": "/wA="}, "abc"]}, "what is no text cannot be JSON"
    named = answered(Site(identity(DType.BYTES, output="y_bytes")), '{"instances": ["abc"]}', "/v1/models/m:predict")
    assert named == {"predictions": [{"b64": "YWJj"}]}, "such a name says that it is bytes"


@pytest.mark.parametrize(
    "value", ['{"b64": "a"}', '{"b64": "ab!="}', '{"b64": 1}', '{"b64": "YQ==", "x": 1}', "1", '["a"]', '"\\ud800"']
)
def test_what_is_no_text_and_no_base64_is_refused(value: str) -> None:
    assert Site(identity(DType.BYTES)).post("/v1/models/m:predict", f'{{"instances": [{value}]}}').status == 400


def test_a_scalar_needs_no_list() -> None:
    site = Site(Computing([("x", DType.FP32, ())], [("y", DType.FP32, ())], lambda x: x + 1, batched=False))
    assert answered(site, '{"inputs": 1.5}', "/v1/models/m:predict") == {"outputs": 2.5}
    text = Site(Computing([("x", DType.BYTES, ())], [("y", DType.BYTES, ())], lambda x: x, batched=False))
    assert answered(text, '{"inputs": {"b64": "YWJj"}}', "/v1/models/m:predict") == {"outputs": "abc"}


@given(st.floats(width=32, allow_nan=False, allow_infinity=False))
def test_a_float_is_written_short_and_means_the_same_float(value: float) -> None:
    (found,) = shortest(np.array([value], np.float32)).tolist()
    assert struct.pack("<f", found) == struct.pack("<f", value)
    if 1e-14 < abs(value) < 1e15:
        assert float(f"{found:.9g}") == found, "nine digits are enough for any float"


def test_rows_elsewhere_than_first_are_rows_all_the_same() -> None:
    """An axis of time before the rows, as recurrent networks have it."""
    service = identity(DType.FP32, (-1, -1, 2))
    signature = service.signature
    service.signature = msgspec.structs.replace(
        signature,
        inputs=tuple(msgspec.structs.replace(spec, rows=1) for spec in signature.inputs),
        outputs=tuple(msgspec.structs.replace(spec, rows=1) for spec in signature.outputs),
    )
    rows = [[[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]], [[7.0, 8.0], [9.0, 10.0], [11.0, 12.0]]]
    assert answered(Site(service), json.dumps({"instances": rows}), "/v1/models/m:predict") == {"predictions": rows}
    assert service.requests[0].inputs[0].shape == (3, 2, 2)
    assert service.requests[0].ticket.rows == 2


def test_outputs_without_a_row_for_each_can_be_had_in_columns() -> None:
    outputs = [("y", DType.FP32, (-1,)), ("n", DType.INT64, (-1,))]
    site = Site(Computing([("x", DType.FP32, (-1,))], outputs, lambda x: (x, np.array([7]))))
    text = refused(site, '{"instances": [1, 2]}', "/v1/models/m:predict")
    assert text.startswith("Tensor name: n has inconsistent batch size: 1 expecting: 2")
    assert answered(site, '{"inputs": [1, 2]}', "/v1/models/m:predict") == {"outputs": {"y": [1.0, 2.0], "n": [7]}}


def test_what_all_rows_share_is_sent_in_columns() -> None:
    service = two_inputs()
    a, b = service.signature.inputs
    service.signature = msgspec.structs.replace(service.signature, inputs=(a, msgspec.structs.replace(b, rows=None)))
    rows = '{"instances": [{"a": [1, 2], "b": [1, 2]}]}'
    assert "input 'b' is one for all rows of a request" in refused(Site(service), rows, "/v1/models/two:predict")


def test_an_input_that_may_be_left_out() -> None:
    service = two_inputs()
    a, b = service.signature.inputs
    service.signature = msgspec.structs.replace(
        service.signature, inputs=(a, TensorSpec(b.name, b.dtype, (1, 2), default=struct.pack("<ii", 1, 2)))
    )
    site = Site(service)
    assert answered(site, '{"instances": [{"a": [1, 2]}]}', "/v1/models/two:predict")["predictions"][0]["s"] == [2.0, 4.0]
    assert answered(site, '{"inputs": {"a": [[1, 2]]}}', "/v1/models/two:predict")["outputs"]["s"] == [[2.0, 4.0]]


# Status and metadata


def test_the_status_is_that_of_both_protocols() -> None:
    """http_rest_api_handler_test.cc, GetStatus; KServe's `name` and `ready` stand beside it."""
    up = {"state": "AVAILABLE", "status": {"error_code": "OK", "error_message": ""}}
    second = half_plus_two()
    second.version = "10"
    site = Site(half_plus_two(), second)
    found = site.get("/v1/models/half").json()
    assert found == {"name": "half", "ready": True, "model_version_status": [{"version": "10", **up}, {"version": "1", **up}]}
    only = site.get("/v1/models/half/versions/1").json()
    assert only["model_version_status"] == [{"version": "1", **up}]
    site.catalog.route("half", "", {"stable": "1"})
    assert site.get("/v1/models/half/labels/stable").json() == only
    assert b'\n "model_version_status": [\n  {\n   "version": "1",' in site.get("/v1/models/half/versions/1").body


def test_versions_that_come_and_go_have_their_states() -> None:
    """get_model_status_impl.cc; a load that failed ends the version and says why."""
    found = Site(served(half_plus_two(), ready=False), repository=COMING_AND_GOING).get("/v1/models/half").json()
    assert [(each["version"], each["state"]) for each in found["model_version_status"]] == list(STATES.items())
    ended = found["model_version_status"][1]["status"]
    assert ended == {"error_code": "UNKNOWN", "error_message": "it is broken"}
    assert found["ready"] is False


@pytest.mark.parametrize(
    ("path", "status", "text"),
    [  # get_model_status_impl.cc
        ("/v1/models/nobody", 404, "Could not find any versions of model nobody"),
        ("/v1/models/half/versions/9", 404, "Could not find version 9 of model half"),
        ("/v1/models/half/labels/x", 400, "Unrecognized servable version label: x"),
        ("/v1/models/nobody/metadata", 404, "Servable not found for request: Latest(nobody)"),
        ("/v1", 400, "Malformed request: GET /v1"),
    ],
)
def test_the_status_of_nothing(path: str, status: int, text: str) -> None:
    reply = Site(half_plus_two()).get(path)
    assert (reply.status, reply.error) == (status, text)


def test_metadata_has_the_signature() -> None:
    """The form is that of TensorFlow Serving's documentation of its REST API, "Model Metadata API"."""
    found = Site(half_plus_two()).get("/v1/models/half/versions/1/metadata").json()
    shape = {"dim": [{"size": "-1", "name": ""}], "unknown_rank": False}
    assert found == {
        "model_spec": {"name": "half", "signature_name": "", "version": "1"},
        "metadata": {
            "signature_def": {
                "signature_def": {
                    "serving_default": {
                        "inputs": {"x": {"dtype": "DT_FLOAT", "tensor_shape": shape, "name": "x:0"}},
                        "outputs": {"y": {"dtype": "DT_FLOAT", "tensor_shape": shape, "name": "y:0"}},
                        "method_name": "tensorflow/serving/predict",
                    }
                }
            }
        },
    }


def test_kserves_list_and_liveness() -> None:
    site = Site(half_plus_two(), two_inputs())
    assert site.get("/v1/models").json() == {"models": ["half", "two"]}
    assert site.get("/").json()["status"] == "alive"


# Classify and regress

CLASSES = [("classes", DType.BYTES, (-1, -1)), ("scores", DType.FP32, (-1, -1))]


def classes(*outputs: str, names: tuple[str, ...] = ("classes", "scores")) -> Computing:
    """Two classes: how much there is of x, and how little."""
    chosen = [each for each in CLASSES if each[0] in names]

    def answer(x: Any) -> Any:
        scores = np.stack([x.sum(1), -x.sum(1)], 1)
        found = {"classes": [["much", "little"]] * len(x), "scores": scores}
        return [found[name] for name, _, _ in chosen] if len(chosen) > 1 else found[chosen[0][0]]

    return Computing([("x", DType.FP32, (-1, 2))], chosen, answer)


@pytest.mark.parametrize(
    ("names", "results"),
    [  # classifier.cc: either output may be missing, and leaves its half empty
        (("classes", "scores"), [[["much", 3.5], ["little", -3.5]]]),
        (("scores",), [[["", 3.5], ["", -3.5]]]),
        (("classes",), [[["much", 0.0], ["little", 0.0]]]),
    ],
)
def test_classify_by_the_outputs_that_tensorflow_serving_knows(names: tuple[str, ...], results: Any) -> None:
    site = Site(classes(names=names))
    assert answered(site, '{"examples": [{"x": [1.5, 2.0]}]}', "/v1/models/m:classify") == {"results": results}


def test_classify_by_the_one_table_of_scores_numbers_the_classes_the_best_first() -> None:
    model = Computing([("x", DType.FP32, (-1, 3))], [("p", DType.FP32, (-1, 3))], lambda x: x)
    body = '{"examples": [{"x": [0.2, 0.5, 0.3]}, {"x": [1, 0, 0]}]}'
    assert answered(Site(model), body, "/v1/models/m:classify") == {
        "results": [[["1", 0.5], ["2", 0.3], ["0", 0.2]], [["0", 1.0], ["1", 0.0], ["2", 0.0]]]
    }


@pytest.mark.parametrize("tail", [(), (1,), (-1,)])
def test_regress_gives_a_value_for_each_example(tail: tuple[int, ...]) -> None:
    """http_rest_api_handler_test.cc, Regress: half of 80 and 2."""
    model = Computing(
        [("x", DType.FP32, (-1,))], [("y", DType.FP32, (-1, *tail))], lambda x: (x / 2 + 2).reshape(-1, *([1] * len(tail)))
    )
    body = '{"signature_name": "serving_default", "examples": [{"x": 80.0}, {"x": [1.0]}]}'
    assert answered(Site(model), body, "/v1/models/m:regress") == {"results": [42.0, 2.5]}


def test_the_context_has_what_examples_lack() -> None:
    inputs = [("a", DType.INT64, (-1,)), ("b", DType.BYTES, (-1, -1))]
    model = Computing(inputs, [("y", DType.FP32, (-1,))], lambda a, b: a + [len(b"".join(row)) for row in b])
    body = '{"context": {"a": 10}, "examples": [{"b": ["x", {"b64": "eXo="}]}, {"a": true, "b": ["q", ""]}]}'
    assert answered(Site(model), body, "/v1/models/m:regress") == {"results": [13.0, 2.0]}


def test_a_model_that_takes_whole_examples_gets_them() -> None:
    """As TensorFlow Serving hands them to every signature for classify and regress; context first (util.cc)."""
    model = Computing([("inputs", DType.BYTES, (-1,))], [("scores", DType.FP32, (-1, 1))], lambda x: np.ones((len(x), 1)))
    site = Site(model)
    body = '{"context": {"c": [1.5]}, "examples": [{"x": [7]}]}'
    assert answered(site, body, "/v1/models/m:classify") == {"results": [[["", 1.0]]]}
    (element,) = elements_of(model.requests[0].inputs[0].data)
    context = bytes.fromhex("0a0f0a0d0a016312081206") + b"\n\x04" + struct.pack("<f", 1.5)
    example = bytes.fromhex("0a0c0a0a0a017812051a030a0107")
    assert bytes(element) == context + example


@pytest.mark.parametrize(
    ("body", "text"),
    [  # quoted from json_tensor.cc, but for the last four
        ("{}", "key 'examples' is expected and was not found"),
        ('{"examples": {}}', "Expecting 'examples' value to be a list/array"),
        ('{"examples": []}', "'examples' value is an empty array"),
        ('{"examples": [1]}', "Example must be JSON object but got JSON Number"),
        ('{"context": [], "examples": [{}]}', "Example must be JSON object but got JSON Array"),
        ('{"examples": [{"x": [null]}]}', "Feature: x has element with unexpected JSON type: Null"),
        ('{"examples": [{"x": [[1.0]]}]}', "Feature: x has element with unexpected JSON type: Array"),
        ('{"examples": [{"x": [1.0, 1]}]}', "Unexpected element type in feature: x expecting type: float"),
        ('{"examples": [{"x": [18446744073709551615]}]}', "Feature: x has uint64 element. Only int64 is supported."),
        ('{"examples": [{"x": [1e39]}]}', "to float without loss of precision."),
        ('{"examples": [{"x": {"b64": "!"}}]}', "Feature: x: it holds no base64"),
        ('{"signature_name": "x", "examples": [{}]}', "No signature was found with the name: x"),
        ('{"examples": [{"z": [1, 2]}]}', "example 0 has no feature 'x', which is an input of model 'm'"),
        ('{"examples": [{"x": ["a", "b"]}]}', "feature 'x' of example 0 is a bytes_list, which FP32 cannot be made of"),
        ('{"examples": [{"x": [1, 2]}, {"x": [1]}]}', "has 1 values in example 1 and 2 in example 0"),
        ('{"examples": [{"x": [1, 2, 3]}]}', "feature 'x' has 3 values; a row of shape [2] has 2"),
    ],
)
def test_what_is_wrong_with_examples(body: str, text: str) -> None:
    assert text in refused(Site(classes()), body, "/v1/models/m:classify")


def test_examples_are_counted_before_they_are_read() -> None:
    body = json.dumps({"examples": [{"x": 1}] * 65})
    text = refused(Site(classes()), body, "/v1/models/m:classify")
    assert text == "inference request batch-size must be <= 64 for 'm', got 65"
    unbatched = Computing([("x", DType.FP32, (-1,))], [("y", DType.FP32, (-1,))], lambda x: x, batched=False)
    assert len(answered(Site(unbatched), body, "/v1/models/m:regress")["results"]) == 65


def test_a_context_is_not_spread_without_end() -> None:
    model = Computing([("x", DType.FP32, (-1, -1))], [("y", DType.FP32, (-1, 1))], lambda x: x[:, :1])
    body = json.dumps({"context": {"x": [1] * 70_000}, "examples": [{}] * 60})
    assert "has 4200000 values" in refused(Site(model), body, "/v1/models/m:regress")


@pytest.mark.parametrize("verb", ["classify", "regress"])
def test_a_model_that_fits_neither_says_what_would(verb: str) -> None:
    for model in (identity(DType.INT64), two_inputs()):
        text = refused(Site(model), '{"examples": [{"x": [1]}]}', f"/v1/models/{model.model}:{verb}", 501)
        assert text.startswith(f"model '{model.model}' takes predict only: {verb} needs ")


# The rest of a request


def test_headers_say_what_a_request_asks_for_besides() -> None:
    service = half_plus_two()
    site = Site(service)
    body = '{"instances": [1]}'
    site.post(PREDICT, body, **{"X-Request-Deadline-Ms": "250", "X-Request-Priority": "2", "X-Tenant-Id": "shop"})
    ticket = service.requests[0].ticket
    assert (ticket.answer_by, ticket.priority, ticket.tenant) == (100.25, 2, "shop")
    assert "x-request-deadline-ms" in site.post(PREDICT, body, **{"X-Request-Deadline-Ms": "soon"}).error


def test_a_model_that_answers_in_parts_is_refused() -> None:
    service = EchoService(msgspec.structs.replace(PLAIN, streams=True))
    model = served(service)
    assert "answers in parts" in refused(Site(model), '{"instances": [[1, 2]]}', "/v1/models/m:predict", 501)
    assert model.stats.failures[FailureKind.UNSUPPORTED] == 1


def test_json_that_would_block_the_server_is_refused() -> None:
    site = Site(half_plus_two(), limits=HttpLimits(max_json_bytes=100))
    assert "at most 100 are accepted" in refused(site, '{"instances": [1]}' + " " * 100, status=413)


def test_a_client_that_leaves_takes_its_request_back() -> None:
    service = EchoService(echo_signature(("x", DType.FP32, (-1,))))
    site = Site(service)
    site._wire.feed(b"POST /v1/models/m:predict HTTP/1.1\r\nhost: h\r\ncontent-length: 17\r\n\r\n" + b'{"instances":[1]}')
    site._wire.lose()
    assert service.cancelled == service.requests


class Home:
    """Loads "half" within two seconds."""

    def __init__(self) -> None:
        self.catalog = Catalog()
        self.catalog.waiting = Waiting(self, longest_s=5.0)
        self.app = app_over(self.catalog)

    def may_come(self, name: str, version: str = "") -> bool:
        return name == "half" and version in ("", "1")

    async def demand(self, name: str, version: str = "") -> None:
        await pass_time(2.0)
        self.catalog.add(served(half_plus_two()))


@pytest.mark.looptime(idle_step=0.1, idle_timeout=1.0)
async def test_requests_wait_for_a_model_that_is_loaded_on_demand() -> None:
    home = Home()
    body = b'{"instances": [1]}'
    asked = [post(PREDICT, body), post("/v1/models/half/versions/1%3Apredict", body), request("/v1/models/half/metadata")]
    clients = [Wire(home.app).feed(each) for each in asked]
    late = Wire(home.app).feed(post(PREDICT, body, **{"X-Request-Deadline-Ms": "1000"}))
    for path, status in (("/v1/models/half", 503), ("/v1/models/nobody", 404), ("/v1/models/half/metadata", None)):
        replies = Wire(home.app).feed(request(path)).replies
        assert [reply.status for reply in replies] == ([] if status is None else [status])
    await pass_time(1.99)
    assert not any(client.replies for client in clients)
    assert late.take()[0].status == 504
    await pass_time(0.02)
    assert [client.take()[0].status for client in clients] == [200, 200, 200]


numbers = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3)
values = st.recursive(
    numbers | st.fixed_dictionaries({"b64": numbers}),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["x", "a", "b", "b64", "\ud800"]), inner, max_size=3)
    ),
    max_leaves=8,
)
asked = st.dictionaries(
    st.sampled_from(["instances", "inputs", "examples", "context", "signature_name"]),
    values | st.just("serving_default"),
    max_size=3,
)
MODELS = [
    half_plus_two(),
    two_inputs(),
    classes(),
    identity(DType.BYTES),
    *(Computing([("x", dtype, (-1, -1))], [("y", dtype, (-1, -1))], lambda x: x, model=dtype.value) for dtype in DType),
]


@settings(max_examples=75, deadline=None)
@given(
    asked.map(lambda made: json.dumps(made).encode()) | st.binary(max_size=20),
    st.sampled_from([model.model for model in MODELS]),
    st.sampled_from(["predict", "classify", "regress"]),
)
def test_no_body_is_too_much(body: bytes, model: str, verb: str) -> None:
    reply = Site(*MODELS).post(f"/v1/models/{model}:{verb}", body)
    assert reply.status in (200, 400, 501), reply.body
    assert isinstance(json.loads(reply.body), dict)

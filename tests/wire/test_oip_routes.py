"""Every route of the inference port but infer: the JSON that clients parse, /predict, wrong methods and paths."""

from types import SimpleNamespace
from typing import Any

import msgspec
import pytest

from dlproxy import __version__
from dlproxy.config import ModelConfig
from dlproxy.config.pipelines import PIPELINE, StepConfig
from dlproxy.fleet.repository.triton_config import read_triton_json
from dlproxy.fleet.repository.triton_ensemble import as_steps
from dlproxy.message import Cached, DType
from dlproxy.telemetry.stats import AnsweredBatch
from dlproxy.tensors import join_elements

from .fixtures import EchoService, Reply, Wire, app_of, echo_signature, post, request, served

SIGNATURE = echo_signature(("image", DType.FP32, (-1, 3, -1)), ("text", DType.BYTES, (-1, 1)))
ONE = echo_signature(("x", DType.FP32, (-1, 2)))
UNBATCHED = echo_signature(("x", DType.INT32, (2, 2)), batched=False)


def ask(data: bytes, *, ready: bool = True) -> Reply:
    """The answer of a server with the models m (versions 1 and 2) and plain."""
    models = [
        served(EchoService(SIGNATURE), ready=ready),
        served(EchoService(SIGNATURE, version="2"), ready=ready),
        served(EchoService(UNBATCHED, model="plain", version="7"), max_batch=1),
    ]
    (reply,) = Wire(app_of(*models)).feed(data).replies
    assert reply.headers["content-type"] == "application/json"
    return reply


# Server


@pytest.mark.parametrize("path", ["/v2", "/v2/", "/v2?verbose=1"])
def test_server_metadata(path: str) -> None:
    found = ask(request(path)).json()
    assert (found["name"], found["version"]) == ("dlproxy", __version__)
    assert {"binary_tensor_data", "model_configuration", "statistics", "parameters"} <= set(found["extensions"])


def test_live_and_ready_say_it_under_both_keys_that_clients_read() -> None:
    assert ask(request("/v2/health/live")).json()["live"] is True
    ready = ask(request("/v2/health/ready"))
    assert (ready.status, ready.json()) == (200, {"ready": True, "live": True})


def test_a_server_whose_model_is_down_is_live_and_not_ready() -> None:
    assert ask(request("/v2/health/live"), ready=False).status == 200
    ready = ask(request("/v2/health/ready"), ready=False)
    assert (ready.status, ready.json()["ready"]) == (503, False)


def test_the_front_page_says_what_there_is() -> None:
    found = ask(request("/")).json()
    assert found["name"] == "dlproxy"
    assert "plain" in found["models"]


# Models


@pytest.mark.parametrize(("path", "ready", "status"), [("m", True, 200), ("m/versions/1", False, 503), ("plain", False, 200)])
def test_model_ready(path: str, ready: bool, status: int) -> None:
    reply = ask(request(f"/v2/models/{path}/ready"), ready=ready)
    assert (reply.status, reply.json()) == (status, {"name": path.partition("/")[0], "ready": status == 200})


@pytest.mark.parametrize("path", ["m", "m/versions/1"])
def test_model_metadata(path: str) -> None:
    assert ask(request(f"/v2/models/{path}")).json() == {
        "name": "m",
        "versions": ["1", "2"],
        "platform": "fake",
        "inputs": [
            {"name": "image", "datatype": "FP32", "shape": [-1, 3, -1]},
            {"name": "text", "datatype": "BYTES", "shape": [-1, 1]},
        ],
        "outputs": [
            {"name": "out_image", "datatype": "FP32", "shape": [-1, 3, -1]},
            {"name": "out_text", "datatype": "BYTES", "shape": [-1, 1]},
        ],
    }


def test_model_config_leaves_the_batch_dimension_out() -> None:
    config = ask(request("/v2/models/m/config")).json()
    assert (config["name"], config["max_batch_size"]) == ("m", 8)
    assert config["input"] == [
        {"name": "image", "data_type": "TYPE_FP32", "dims": [3, -1]},
        {"name": "text", "data_type": "TYPE_STRING", "dims": [1]},
    ]
    assert "dynamic_batching" in config


@pytest.mark.parametrize(
    ("platform", "backend"),
    [
        ("onnxruntime_onnx", "onnxruntime"),
        ("pytorch_libtorch", "pytorch"),
        ("pytorch_export", "pytorch"),
        ("tensorflow_savedmodel", "tensorflow"),
        ("python", "python"),
    ],
)
def test_model_config_names_the_backend_and_how_long_a_batch_may_wait_now(platform: str, backend: str) -> None:
    model = served(EchoService(msgspec.structs.replace(ONE, platform=platform)))
    waits_s = [0.0]
    control: Any = SimpleNamespace(state=lambda: {"knobs": {"max_wait_s": waits_s[0]}})
    model.control = control
    for waits_s[0], expected in ((0.0, 0), (0.002, 2000)):
        config = Wire(app_of(model)).feed(request("/v2/models/m/config")).replies[0].json()
        assert (config["platform"], config["backend"]) == ("" if platform == backend else platform, backend)
        assert config["dynamic_batching"] == {"max_queue_delay_microseconds": expected}


def test_model_config_of_a_model_that_does_not_batch() -> None:
    config = ask(request("/v2/models/plain/config")).json()
    assert config["max_batch_size"] == 0
    assert config["input"] == [{"name": "x", "data_type": "TYPE_INT32", "dims": [2, 2]}]
    assert "dynamic_batching" not in config


TWO = {
    "det": StepConfig(model="det", inputs={"x": "x"}),
    "read": StepConfig(model="rec-2:3", inputs={"b": "det.boxes.1", "x": "x"}),
}


def as_ensemble(steps: dict[str, StepConfig], outputs: dict[str, str]) -> dict[str, Any]:
    """The configuration of a pipeline that takes x and gives these."""
    model = served(EchoService(ONE))
    model.pipeline = ModelConfig(path=PIPELINE, inputs={"x": "FP32[-1,2]"}, outputs=outputs, steps=steps)
    config: dict[str, Any] = Wire(app_of(model)).feed(request("/v2/models/m/config")).replies[0].json()
    return config


def test_a_pipeline_of_models_is_an_ensemble_for_clients_of_triton() -> None:
    config = as_ensemble(TWO, {"out": "read.y", "boxes": "det.boxes.1"})
    assert (config["platform"], config["backend"]) == ("ensemble", "")
    assert config["ensemble_scheduling"] == {
        "step": [
            {
                "model_name": "det",
                "model_version": -1,
                "input_map": {"x": "x"},
                "output_map": {"boxes.1": "boxes"},
            },
            {
                "model_name": "rec-2",
                "model_version": 3,
                "input_map": {"b": "boxes", "x": "x"},
                "output_map": {"y": "out"},
            },
        ]
    }
    config.pop("dynamic_batching")
    read = read_triton_json(config, "the answer").ensemble_scheduling
    assert read is not None
    steps, outputs = as_steps(read, ["x"], ["out", "boxes"], [])
    assert [(step.model, step.inputs) for step in steps.values()] == [(step.model, step.inputs) for step in TWO.values()]
    assert outputs == {"out": "rec_2.y", "boxes": "det.boxes.1"}


@pytest.mark.parametrize(
    ("change", "outputs"),
    [
        ({"call": "a.py:b", "model": ""}, {"out": "read.y"}),
        ({"when": "det.any"}, {"out": "read.y"}),
        ({"each": True}, {"out": "read.y"}),
        ({"need": 1}, {"out": "read.y"}),
        ({"model": "rec:stable"}, {"out": "read.y"}),
        ({}, {"out": "read.y | det.y"}),
        ({}, {"out": "read.y", "again": "read.y"}),
        ({}, {"out": "read.y", "given": "x"}),
    ],
)
def test_what_no_ensemble_does_is_not_told_as_one(change: dict[str, Any], outputs: dict[str, str]) -> None:
    steps = {**TWO, "read": msgspec.structs.replace(TWO["read"], **change)}
    assert "ensemble_scheduling" not in as_ensemble(steps, outputs)


@pytest.mark.parametrize(
    ("path", "versions"),
    [("/v2/models/stats", ["1", "2", "7"]), ("/v2/models/m/stats", ["1", "2"]), ("/v2/models/m/versions/1/stats", ["1"])],
)
def test_statistics_have_what_perf_analyzer_reads(path: str, versions: list[str]) -> None:
    found = ask(request(path)).json()["model_stats"]
    assert [model["version"] for model in found] == versions
    for model in found:
        assert {"name", "last_inference", "inference_count", "execution_count", "batch_stats"} <= set(model)
        stats = model["inference_stats"]
        for part in ("success", "fail", "queue", "compute_input", "compute_infer", "compute_output", "cache_hit", "cache_miss"):
            assert stats[part] == {"count": 0, "ns": 0}


def test_statistics_count_what_was_served() -> None:
    service = EchoService(ONE)
    model = served(service)
    model.stats.batch_answered(AnsweredBatch(3, [0.001, 0.002], after_s=0.005, batch_s=0.0005, compute_s=0.004, split_s=0.0001))
    found = Wire(app_of(model)).feed(request("/v2/models/m/stats")).replies[0].json()["model_stats"][0]
    assert (found["inference_count"], found["execution_count"]) == (3, 1)
    assert found["inference_stats"]["success"] == {"count": 2, "ns": 13_000_000}
    assert found["inference_stats"]["queue"] == {"count": 2, "ns": 3_000_000}
    assert found["batch_stats"] == [
        {
            "batch_size": 3,
            "compute_input": {"count": 1, "ns": 500_000},
            "compute_infer": {"count": 1, "ns": 4_000_000},
            "compute_output": {"count": 1, "ns": 100_000},
        }
    ]


def test_a_model_that_streams_has_statistics_of_each_response_and_says_that_it_is_decoupled() -> None:
    model = served(EchoService(msgspec.structs.replace(ONE, streams=True)))
    streams = model.stats.streaming()
    streams.sent(0, 2, compute_s=0.001, split_s=0.0001, after_s=0.0)
    streams.place(1).ended, streams.place(1).left, streams.place(1).failed = 3, 2, 1
    wire = Wire(app_of(model)).feed(request("/v2/models/m/stats"), request("/v2/models/m/config"))
    stats, config = (reply.json() for reply in wire.replies)
    none = {"count": 0, "ns": 0}
    assert stats["model_stats"][0]["response_stats"] == {
        "0": {
            "compute_infer": {"count": 2, "ns": 2_000_000},
            "compute_output": {"count": 2, "ns": 200_000},
            "success": {"count": 2, "ns": 2_200_000},
            "fail": none,
            "empty_response": none,
            "cancel": none,
        },
        "1": {
            "compute_infer": none,
            "compute_output": none,
            "success": none,
            "fail": {"count": 1, "ns": 0},
            "empty_response": {"count": 3, "ns": 0},
            "cancel": {"count": 2, "ns": 0},
        },
    }
    assert config["model_transaction_policy"] == {"decoupled": True}


@pytest.mark.parametrize("body", [b"", b"{}", b'{"ready":false}', b'{"ready":true}'])
def test_repository_index(body: bytes) -> None:
    ready = {"name": "plain", "version": "7", "state": "READY"}
    down = [{"name": "m", "version": version, "state": "UNAVAILABLE", "reason": "no live instance"} for version in "12"]
    told = ask(post("/v2/repository/index", body), ready=False).json()
    assert told == ([ready] if b"true" in body else [*down, ready])


# /predict


def predict(signature: Any, body: bytes | str, path: str = "/predict/m", **model: Any) -> Reply:
    service = EchoService(signature)
    wire = Wire(app_of(served(service, **model))).feed(post(path, body.encode() if isinstance(body, str) else body))
    service.answer_all()
    return wire.replies[0]


@pytest.mark.parametrize(
    "body", ['{"inputs":{"x":[[1,2],[3,4]]}}', '{"inputs":[[1,2],[3,4]]}', '{"more":1,"inputs":[[1.0,2],[3,4]]}']
)
@pytest.mark.parametrize("path", ["/predict/m", "/predict/m/versions/1"])
def test_predict_takes_an_object_or_the_bare_list(body: str, path: str) -> None:
    reply = predict(ONE, body, path)
    assert reply.status == 200
    assert reply.json() == {"model": "m", "version": "1", "outputs": {"out_x": [[1.0, 2.0], [3.0, 4.0]]}}


def test_predict_takes_several_inputs_by_name_in_any_order() -> None:
    reply = predict(SIGNATURE, '{"inputs":{"text":[["é"]],"image":[[[1],[2],[3]]]}}')
    assert reply.json()["outputs"] == {"out_image": [[[1.0], [2.0], [3.0]]], "out_text": [["é"]]}


@pytest.mark.parametrize("dtype", [DType.FP16, DType.BF16])
def test_predict_takes_and_gives_half_floats_as_numbers(dtype: DType) -> None:
    reply = predict(echo_signature(("x", dtype, (-1, 2))), '{"inputs":[[1.5,-2]]}')
    assert reply.json()["outputs"] == {"out_x": [[1.5, -2.0]]}


@pytest.mark.parametrize(
    ("signature", "body", "says"),
    [
        (ONE, "", '{"inputs": …}'),
        (ONE, "[1,2]", '{"inputs": …}'),
        (ONE, "{}", "inputs"),
        (ONE, b'{"inputs":"\xff"}', "utf-8"),
        (ONE, '{"inputs":null}', "must be a list"),
        (ONE, '{"inputs":5}', "must be a list"),
        (ONE, '{"inputs":[]}', "[0]"),
        (ONE, '{"inputs":[1,2]}', "has 1 dimensions, but the model expects 2"),
        (ONE, '{"inputs":[[1,2,3]]}', "Expected [-1,2], got [1,3]"),
        (ONE, '{"inputs":[[1,2],[3]]}', "ragged"),
        (ONE, '{"inputs":[[1,"2"]]}', "is not a number"),
        (ONE, '{"inputs":{}}', "expected 1 inputs but got 0"),
        (ONE, '{"inputs":{"y":[[1,2]]}}', "'y'"),
        (ONE, '{"inputs":{"x":[[1,2]],"y":[[1,2]]}}', "'y'"),
        (ONE, '{"inputs":' + "[" * 100_000 + "]" * 100_000 + "}", "recursion"),
        (ONE, '{"inputs":[[NaN,1]]}', "malformed"),
        (ONE, f'{{"inputs":{[[1, 2]] * 9}}}', "batch-size must be <= 8"),
        (SIGNATURE, '{"inputs":[[1,2]]}', "'inputs' must be an object: model 'm' has inputs 'image', 'text'"),
        (echo_signature(batched=False), '{"inputs":[1]}', "'m' has no inputs"),
        (echo_signature(("x", DType.FP16, (-1, 2))), '{"inputs":[[1,70000]]}', "too large for FP16"),
        (echo_signature(("x", DType.BF16, (-1, 2))), '{"inputs":[[1,3.4e38]]}', "too large for BF16"),
        (echo_signature(("x", DType.UINT8, (-1, 2))), '{"inputs":[[1,256]]}', "out of range for UINT8"),
    ],
)
def test_predict_says_what_is_wrong(signature: Any, body: bytes | str, says: str) -> None:
    reply = predict(signature, body)
    assert reply.status == 400
    assert says.lower() in reply.error.lower()  # msgspec's versions write "utf-8" and "UTF-8"


def test_predict_answers_also_where_the_output_is_no_text() -> None:
    class Binary(EchoService):
        def echo(self, request: Any) -> Any:
            response = super().echo(request)
            response.outputs[0].data = join_elements([b"\xff"])
            return response

    service = Binary(echo_signature(("x", DType.BYTES, (-1, 1))))
    wire = Wire(app_of(served(service))).feed(post("/predict/m", b'{"inputs":[["a"]]}'))
    service.answer_all()
    assert wire.replies[0].status == 500
    assert "UTF-8" in wire.replies[0].error


def test_answers_say_where_the_time_went() -> None:
    service = EchoService(ONE)
    wire = Wire(app_of(served(service), server_timing=True)).feed(post("/predict/m", b'{"inputs":[[1,2]]}'))
    service.answer_all()
    assert wire.replies[0].headers["server-timing"] == "queue;dur=1.000, batch;dur=2.000, compute;dur=3.000"


@pytest.mark.parametrize("timed", [False, True])
@pytest.mark.parametrize("cache", ["", "hit", "joined"])
@pytest.mark.parametrize(
    ("path", "body"),
    [("infer", b'{"inputs":[{"name":"x","shape":[1,2],"datatype":"FP32","data":[1,2]}]}'), ("predict", b'{"inputs":[[1,2]]}')],
)
def test_a_variant_is_named_beside_all_else_and_in_no_other_answer(path: str, body: bytes, cache: Cached, timed: bool) -> None:
    service = EchoService(ONE)
    wire = Wire(app_of(served(service), server_timing=timed))
    for variant, header in (("", None), ("m-int8", "m-int8"), ("", None), ("ü/%\r\n", "%C3%BC%2F%25%0D%0A"), ("", None)):
        service.variant, service.cache = variant, cache
        wire.feed(post({"infer": "/v2/models/m/infer", "predict": "/predict/m"}[path], body))
        service.answer_all()
        (reply,) = wire.take()
        assert reply.headers.get("x-dlproxy-variant") == header
        assert reply.headers.get("x-dlproxy-cache", "") == cache
        assert ("server-timing" in reply.headers) == timed
        assert (reply.json().get("model_name") or reply.json()["model"]) == "m"


# Methods and paths

GETS = [
    *("/", "/v2", "/v2/health/live", "/v2/health/ready", "/v2/models/stats"),
    *("/v2/models/m", "/v2/models/m/ready", "/v2/models/m/config", "/v2/models/m/stats", "/v2/models/m/versions/1/stats"),
]
POSTS = ["/v2/repository/index", "/v2/models/m/infer", "/v2/models/m/versions/1/infer", "/predict/m", "/predict/m/versions/1"]


@pytest.mark.parametrize("path", GETS)
def test_head_answers_like_get_without_the_body(path: str) -> None:
    head, get = ask(request(path, "HEAD")), ask(request(path))
    assert head.body == b""
    assert (head.status, head.headers) == (get.status, get.headers)
    assert get.body


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE"])
@pytest.mark.parametrize("path", GETS)
def test_another_method_than_get_is_405_with_allow(path: str, method: str) -> None:
    reply = ask(request(path, method))
    assert (reply.status, reply.headers["allow"]) == (405, "GET, HEAD")
    assert method in reply.error
    assert "Method Not Allowed" in reply.error


@pytest.mark.parametrize("method", ["GET", "PUT", "DELETE", "OPTIONS"])
@pytest.mark.parametrize("path", POSTS)
def test_another_method_than_post_is_405_with_allow(path: str, method: str) -> None:
    reply = ask(request(path, method))
    assert (reply.status, reply.headers["allow"]) == (405, "POST")


@pytest.mark.parametrize(
    "path",
    [
        *(
            "/v1",
            "/v2/v2",
            "//v2",
            "/V2",
            "/v2/health",
            "/v2/health/live//",
            "/v2/models",
            "/v2/models/",
            "/v2/models/m//",
            "*",
        ),
        *("/v2/models/m/versions", "/v2/models/m/versions/", "/v2/models/m/versions/1/x"),
        *(
            "/v2/models//infer",
            "/v2/models/m/infer//",
            "/v2/models/m%2Finfer/x",
            "/v2/models/m/n/infer",
            "/predict",
            "/predict/",
            "/predict/m/n",
            "/%2F",
        ),
        *("/v2/%4Dodels/m", "/v2%2Fhealth/live", "/v2/models%2Fm", "/../v2", "/v2/../v2", "/v2/./health/live", "/v2%00"),
        *("/v2;a", "/v2/models/m/versions/-1", "/v2/models/m/versions/1.0", "/v2/models/m/versions/+1", "/~x", "/favicon.ico"),
    ],
)
@pytest.mark.parametrize("method", ["GET", "POST"])
def test_a_path_that_is_no_route_is_404(path: str, method: str) -> None:
    reply = ask(request(path, method))
    assert reply.status == 404
    assert "Not Found" in reply.error


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("%4D", "M"),
        ("m%2Finfer", "m/infer"),
        ("m%20", "m "),
        ("..", ".."),
        ("'\"<>", "'\"<>"),
        ("%E9", "\\xe9"),
        ("%25", "%"),
        ("+", "+"),
    ],
)
def test_a_name_that_is_no_model_is_404_and_only_quoted_in_json(path: str, name: str) -> None:
    reply = ask(request(f"/v2/models/{path}"))
    assert reply.status == 404
    assert f"'{name}' is not found" in reply.error


def test_names_are_matched_as_they_are_not_as_patterns() -> None:
    service = EchoService(ONE, model="a.b+c")
    wire = Wire(app_of(served(service)))
    body = msgspec.json.encode({"inputs": [[1, 2]]})
    wire.feed(post("/predict/a.b+c", body), post("/predict/aXb+c", body), request("/v2/models/a.b+c?x=/y"))
    service.answer_all()
    assert [reply.status for reply in wire.replies] == [200, 404, 200]

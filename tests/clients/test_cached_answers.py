"""The result cache of a real server, as clients meet it: one answer through every door, and what they say and hear of it."""

import json
import re
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

import grpc
import numpy as np
import pytest
import tritonclient.http as triton

from dlproxy import AsyncClient, Client, InferenceError
from dlproxy.protos.oip import SERVICE, oip
from dlproxy.protos.tfs import PREDICTION, tfs
from tests.clients.server import HANG_S, ServerProcess, write_config

MODEL = '''
import time


class Counting:
    """y is twice x; run says how often it has been asked. Slow where x begins with 9, and fails where it begins with -1."""

    inputs, outputs = {"x": "FP32[N,2]"}, {"y": "FP32[N,2]", "run": "INT64[N,1]"}
    runs = 0

    def predict(self, batch):
        x = batch["x"]
        if x[0, 0] == -1:
            raise ValueError("not this one")
        if x[0, 0] == 9:
            time.sleep(0.3)
        Counting.runs += 1
        run = x[:, :1].astype("int64")
        run[:] = Counting.runs
        return {"y": 2 * x, "run": run}
'''
X = [1.5, 2.0]
Told = tuple[str, list[float], int]  # what the cache had, y, run


class CachingServer(ServerProcess):
    """m remembers, rows does so row by row, brief for no time at all; with TensorFlow Serving's ports."""

    def __init__(self, folder: Path) -> None:
        (folder / "counting.py").write_text(MODEL)
        counting = {"path": f"{folder / 'counting.py'}:Counting", "run": "thread", "instances": 1, "batching": "off"}
        models = {
            "m": {**counting, "cache": "on"},
            "brief": {**counting, "cache": "on", "cache_ttl_s": 1e-6},
            "off": counting,
            "perhaps": {**counting, "cache": "auto"},
            "rows": {"path": "sleep:base=10us", "run": "inline", "cache": "on", "cache_rows": True},
        }
        config = write_config(folder / "dlproxy.toml", models, tfs=True, tfs_grpc_port=0, tfs_http_port=0)
        super().__init__("--config", config)
        found = re.search(r"^TF Serving \S+:(\d+) \(gRPC\), http://\S+:(\d+)/v1/models$", self.report, re.MULTILINE)
        assert found, self.report
        self.tfs_grpc_port, self.tfs_http_port = int(found[1]), int(found[2])

    def post(self, path: str, body: Any, *, port: int = 0, control: str = "") -> tuple[Any, Any]:
        """The headers and the JSON of the answer. `control`: a Cache-Control header."""
        url, data = f"http://127.0.0.1:{port or self.http_port}{path}", json.dumps(body).encode()
        with urlopen(Request(url, data, {"Cache-Control": control} if control else {}), timeout=HANG_S) as reply:
            return reply.headers, json.load(reply)

    def infer(self, x: list[float], model: str = "m", control: str = "") -> Told:
        """As JSON over /v2."""
        tensor = {"name": "x", "datatype": "FP32", "shape": [1, 2], "data": x}
        told, answer = self.post(f"/v2/models/{model}/infer", {"id": "json", "inputs": [tensor]}, control=control)
        y, run = (output["data"] for output in answer["outputs"])
        assert answer["id"] == "json"
        return told["x-dlproxy-cache"] or "", y, run[0]

    def forget(self) -> int:
        with urlopen(Request(f"http://127.0.0.1:{self.control_port}/cache/clear", b""), timeout=HANG_S) as reply:
            forgotten: int = json.load(reply)["forgotten"]
            return forgotten


@pytest.fixture(scope="module")
def process(tmp_path_factory: pytest.TempPathFactory) -> Iterator[CachingServer]:
    server = CachingServer(tmp_path_factory.mktemp("cached"))
    with server:
        yield server


@pytest.fixture
def server(process: CachingServer) -> CachingServer:
    """Which remembers nothing of other tests."""
    process.forget()
    return process


# Every door


def called(port: int, method: str, message: Any, answer: Any, control: str = "") -> tuple[str, Any]:
    """What the trailing metadata says, and the answer."""
    metadata = [("cache-control", control)] if control else []
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        reply, call = channel.unary_unary(method).with_call(message.SerializeToString(), timeout=HANG_S, metadata=metadata)
    return str(dict(call.trailing_metadata()).get("x-dlproxy-cache", "")), answer.FromString(reply)


def typed_request(x: list[float], *outputs: str) -> Any:
    message = oip.ModelInferRequest(model_name="m", id="typed")
    message.inputs.add(name="x", datatype="FP32", shape=[1, 2]).contents.fp32_contents.extend(x)
    for name in outputs:
        message.outputs.add(name=name)
    return message


def by_typed_grpc(server: CachingServer, control: str = "") -> Told:
    cache, answer = called(server.grpc_port, f"{SERVICE}/ModelInfer", typed_request(X), oip.ModelInferResponse, control)
    y, run = answer.raw_output_contents or [None, None]
    assert answer.id == "typed"
    if y is None:
        return cache, list(answer.outputs[0].contents.fp32_contents), answer.outputs[1].contents.int64_contents[0]
    return cache, np.frombuffer(y, np.float32).tolist(), int(np.frombuffer(run, np.int64)[0])


def by_our_client(scheme: str) -> Callable[[CachingServer], Told]:
    def ask(server: CachingServer) -> Told:
        address = server.address if scheme == "http" else server.grpc_address
        with Client(f"{scheme}://{address}") as client:
            answer = client.infer("m", np.array([X], np.float32))
        return answer.cache, answer["y"][0].tolist(), int(answer["run"][0, 0])

    return ask


def by_tritonclient(server: CachingServer) -> Told:
    x = triton.InferInput("x", [1, 2], "FP32")
    x.set_data_from_numpy(np.array([X], np.float32), binary_data=True)
    wanted = [triton.InferRequestedOutput("y", binary_data=True), triton.InferRequestedOutput("run", binary_data=False)]
    with triton.InferenceServerClient(server.address) as client:
        answer = client.infer("m", [x], outputs=wanted, request_id="triton")
    assert answer.get_response()["id"] == "triton"
    return "hit", answer.as_numpy("y")[0].tolist(), int(answer.as_numpy("run")[0, 0])  # it keeps headers to itself


def by_predict(server: CachingServer, control: str = "") -> Told:
    told, answer = server.post("/predict/m", {"inputs": {"x": [X]}}, control=control)
    return told["x-dlproxy-cache"], answer["outputs"]["y"][0], answer["outputs"]["run"][0][0]


def by_generate(server: CachingServer, control: str = "") -> Told:
    body = {"x": X, "temperature": 0.5, "id": "generated"}
    told, answer = server.post("/v2/models/m/generate", body, control=control)
    assert answer["id"] == "generated"
    return told["x-dlproxy-cache"], answer["y"], answer["run"]


def by_tfs_rest(server: CachingServer, control: str = "") -> Told:
    body = {"instances": [{"x": X}]}
    told, answer = server.post("/v1/models/m:predict", body, port=server.tfs_http_port, control=control)
    return told["x-dlproxy-cache"], answer["predictions"][0]["y"], answer["predictions"][0]["run"][0]


def by_tfs_columns(server: CachingServer) -> Told:
    told, answer = server.post("/v1/models/m:predict", {"inputs": {"x": [X]}})
    return told["x-dlproxy-cache"], answer["outputs"]["y"][0], answer["outputs"]["run"][0][0]


def by_tfs_grpc(server: CachingServer, control: str = "") -> Told:
    message = tfs.PredictRequest()
    message.model_spec.name = "m"
    tensor = message.inputs["x"]
    tensor.dtype, tensor.tensor_content = 1, np.array(X, np.float32).tobytes()
    for size in (1, 2):
        tensor.tensor_shape.dim.add(size=size)
    cache, answer = called(server.tfs_grpc_port, f"{PREDICTION}/Predict", message, tfs.PredictResponse, control)
    return cache, list(answer.outputs["y"].float_val), answer.outputs["run"].int64_val[0]


DOORS: dict[str, Callable[[CachingServer], Told]] = {
    "json": lambda server: server.infer(X),
    "http client": by_our_client("http"),
    "tritonclient": by_tritonclient,
    "grpc client": by_our_client("grpc"),
    "typed grpc": by_typed_grpc,
    "predict": by_predict,
    "generate": by_generate,
    "tfs rest": by_tfs_rest,
    "tfs columns": by_tfs_columns,
    "tfs grpc": by_tfs_grpc,
}


@pytest.mark.parametrize("first", ["json", "http client", "typed grpc", "tfs grpc", "generate"])
def test_an_answer_that_one_door_gave_is_a_hit_at_every_other(server: CachingServer, first: str) -> None:
    cache, y, run = DOORS[first](server)
    assert (cache, y) == ("miss", [3.0, 4.0])
    assert {name: ask(server) for name, ask in DOORS.items()} == dict.fromkeys(DOORS, ("hit", [3.0, 4.0], run))


def test_other_outputs_are_another_answer_and_all_of_them_by_name_the_same(server: CachingServer) -> None:
    def ask(*outputs: str) -> tuple[str, list[str]]:
        cache, answer = called(server.grpc_port, f"{SERVICE}/ModelInfer", typed_request(X, *outputs), oip.ModelInferResponse)
        return cache, [output.name for output in answer.outputs]

    assert ask() == ("miss", ["y", "run"])
    assert ask("y", "run") == ("hit", ["y", "run"])
    assert ask("run") == ("miss", ["run"])
    assert ask("run", "y") == ("miss", ["run", "y"])
    assert [ask("run"), ask()] == [("hit", ["run"]), ("hit", ["y", "run"])]


def test_classes_are_made_of_what_is_remembered(server: CachingServer) -> None:
    run = server.infer(X)[2]
    y = {"name": "y", "parameters": {"classification": 1}}
    tensor = {"name": "x", "datatype": "FP32", "shape": [1, 2], "data": X}
    body = {"inputs": [tensor], "outputs": [y, {"name": "run"}]}
    told, answer = server.post("/v2/models/m/infer", body)
    assert told["x-dlproxy-cache"] == "hit"
    assert [output["data"] for output in answer["outputs"]] == [["4.000000:1"], [run]]


def test_many_who_ask_the_same_at_once_have_one_run_and_each_its_own_id(server: CachingServer) -> None:
    def ask(number: int) -> tuple[str, str, int]:
        tensor = {"name": "x", "datatype": "FP32", "shape": [1, 2], "data": [9.0, 1.0]}
        told, answer = server.post("/v2/models/m/infer", {"id": f"request {number}", "inputs": [tensor]})
        return told["x-dlproxy-cache"], answer["id"], answer["outputs"][1]["data"][0]

    with ThreadPoolExecutor(16) as pool:
        answers = list(pool.map(ask, range(16)))
    assert [answer[1] for answer in answers] == [f"request {number}" for number in range(16)]
    assert len({run for _, _, run in answers}) == 1
    caches = [cache for cache, _, _ in answers]
    assert caches.count("miss") == 1
    assert "joined" in caches


# What clients say, and hear


@pytest.mark.parametrize(
    ("directives", "cache", "afterwards"),
    [
        ("no-store", "bypass", "the old one"),
        ("no-cache", "miss", "the new one"),
        ("max-age=0", "miss", "the new one"),
        ("Max-Age=1000", "hit", "the old one"),
        ('no-transform, max-age="1000"', "hit", "the old one"),
        ("no-cache, no-store", "bypass", "the old one"),
        ("only-if-cached", "hit", "the old one"),
    ],
)
def test_cache_control_of_requests(server: CachingServer, directives: str, cache: str, afterwards: str) -> None:
    old = server.infer(X)[2]
    found, y, new = server.infer(X, control=directives)
    assert (found, y) == (cache, [3.0, 4.0])
    assert (new == old) is (cache == "hit")
    assert server.infer(X) == ("hit", [3.0, 4.0], {"the old one": old, "the new one": new}[afterwards])


@pytest.mark.parametrize(("control", "cache"), [("no-store", "bypass"), ("no-cache", "miss"), ("max-age=3600", "hit")])
@pytest.mark.parametrize("scheme", ["http", "grpc"])
def test_our_client_says_it_for_single_calls(server: CachingServer, scheme: str, control: str, cache: str) -> None:
    with Client(f"{scheme}://{server.address if scheme == 'http' else server.grpc_address}") as client:
        old = client.infer("m", [X])
        assert old.cache == "miss"
        again = client.infer("m", [X], cache_control=control)
        assert again.cache == cache
        assert (int(again["run"][0, 0]) > int(old["run"][0, 0])) is (cache != "hit")
        with pytest.raises(InferenceError, match="cache_control is 'nocache'; it must be no-cache, no-store or max-age="):
            client.infer("m", [X], cache_control="nocache")
        assert client.infer("off", [X]).cache == ""


@pytest.mark.parametrize("scheme", ["http", "grpc"])
async def test_a_stream_of_one_part_is_answered_from_memory(server: CachingServer, scheme: str) -> None:
    async with AsyncClient(f"{scheme}://{server.address if scheme == 'http' else server.grpc_address}") as client:
        first = await client.infer("m", [X])
        (part,) = [part async for part in client.stream("m", [X])]
        assert int(part["run"][0, 0]) == int(first["run"][0, 0])


def test_every_protocol_takes_it(server: CachingServer) -> None:
    for ask in (by_typed_grpc, by_tfs_grpc, by_tfs_rest, by_predict, by_generate):
        server.forget()
        run = server.infer(X)[2]
        assert ask(server, "no-cache") == ("miss", [3.0, 4.0], run + 1)
        assert ask(server, "no-store") == ("bypass", [3.0, 4.0], run + 2)
        assert ask(server, "max-age=100") == ("hit", [3.0, 4.0], run + 1)


def test_a_hit_has_no_times_of_a_queue_and_no_other_answer_speaks_of_a_cache(server: CachingServer) -> None:
    missed, _ = server.post("/predict/m", {"inputs": [X]})
    hit, _ = server.post("/predict/m", {"inputs": [X]})
    assert missed["server-timing"].startswith("queue;dur=")
    assert hit["server-timing"] == "cache;desc=hit"
    plain, _ = server.post("/predict/off", {"inputs": [X]})
    assert plain["x-dlproxy-cache"] is None
    assert called(server.grpc_port, f"{SERVICE}/ServerLive", oip.ServerLiveRequest(), oip.ServerLiveResponse)[0] == ""


def test_what_is_too_old_is_computed_anew(server: CachingServer) -> None:
    runs = [server.infer(X, "brief") for _ in range(3)]
    assert [cache for cache, _, _ in runs] == ["miss"] * 3
    assert len({run for _, _, run in runs}) == 3
    assert server.metric("dlproxy_cache_expired", model="brief") >= 2


def test_failures_are_told_to_each_and_never_remembered(server: CachingServer) -> None:
    with Client(f"http://{server.address}") as client:
        for _ in range(2):
            with pytest.raises(InferenceError, match="not this one"):
                client.infer("m", [[-1.0, 0.0]])
    assert server.forget() == 0


def test_metrics_and_statistics_count_alike(server: CachingServer) -> None:
    def counts() -> tuple[float, ...]:
        names = ("nv_cache_num_hits_per_model", "nv_cache_num_misses_per_model")
        results = [server.metric("dlproxy_cache_requests", model="m", result=result) for result in ("hit", "miss", "bypass")]
        return *[server.metric(name, model="m") for name in names], *results

    before = counts()
    server.infer(X)
    server.infer(X)
    server.infer(X)
    server.infer(X, control="no-store")
    assert [now - then for now, then in zip(counts(), before, strict=True)] == [2, 1, 2, 1, 1]
    told = server.stats("m")["inference_stats"]
    assert (told["cache_hit"]["count"], told["cache_miss"]["count"]) == counts()[:2]
    assert told["success"]["count"] > told["compute_infer"]["count"]
    assert server.metric("dlproxy_cache_entries", model="m") == 1
    assert 1000 < server.metric("dlproxy_cache_bytes", model="m") < 3000
    assert server.metric("dlproxy_cache_budget_bytes", model="m") > 2**20
    assert server.metric("nv_cache_hit_duration_per_model", model="m") > 0


def test_the_configuration_says_that_a_model_remembers(server: CachingServer) -> None:
    for model, expected in (("m", {"enable": True}), ("off", None)):
        with urlopen(f"http://{server.address}/v2/models/{model}/config", timeout=HANG_S) as reply:
            assert json.load(reply).get("response_cache") == expected
        asked = oip.ModelConfigRequest(name=model)
        _, told = called(server.grpc_port, f"{SERVICE}/ModelConfig", asked, oip.ModelConfigResponse)
        assert told.config.response_cache.enable is bool(expected)


@pytest.mark.parametrize("scheme", ["http", "grpc"])
def test_rows_that_are_known_are_told_as_a_part(server: CachingServer, scheme: str) -> None:
    with Client(f"{scheme}://{server.address if scheme == 'http' else server.grpc_address}") as client:

        def ask(*numbers: float) -> tuple[str, list[float]]:
            answer = client.infer("rows", np.array([numbers], np.float32).T)
            return answer.cache, answer["y"][:, 0].tolist()

        assert ask(1.0, 2.0) == ("miss", [1.0, 2.0])
        assert ask(3.0, 2.0, 4.0, 1.0) == ("partial", [3.0, 2.0, 4.0, 1.0])
        assert ask(4.0, 3.0, 1.0) == ("hit", [4.0, 3.0, 1.0])
        assert ask(2.0) == ("hit", [2.0])
    assert server.metric("dlproxy_cache_known_rows", model="rows") >= 5


def test_auto_finds_a_model_whose_answers_differ_and_remembers_none(server: CachingServer) -> None:
    assert [server.infer(X, "perhaps")[0] for _ in range(3)] == ["", "", ""], "it is off at first"
    with urlopen(f"http://127.0.0.1:{server.control_port}/cache/perhaps", timeout=HANG_S) as reply:
        (state,) = json.load(reply)
    assert (state["state"], state["entries"], state["hit_ratio"]) == ("off: equal inputs gave different answers", 0, None)

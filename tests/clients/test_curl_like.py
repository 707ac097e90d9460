"""What people type: a POST with curl, a look at the metrics, a health check. Nothing but the standard library's client."""

import gzip
import json
import zlib
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests import models
from tests.clients.server import ServerProcess, asked, write_config


def _post(url: str, body: object) -> tuple[int, Any, Any]:
    told = asked(url, body)
    return told.status, told.headers, told.json


@pytest.fixture(scope="module")
def image() -> list[Any]:
    with np.load(models.HELDOUT) as heldout:
        nested: list[Any] = heldout["images"][:1].tolist()
        return nested


def test_predict_takes_a_nested_list(server: ServerProcess, image: list[Any]) -> None:
    status, headers, reply = _post(f"http://{server.address}/predict/digits", {"inputs": image})
    assert status == 200
    assert headers["content-type"] == "application/json"
    assert (reply["model"], reply["version"]) == ("digits", "1")
    probabilities = reply["outputs"]["probabilities"]
    assert np.shape(probabilities) == (1, 10)
    assert abs(sum(probabilities[0]) - 1) < 1e-5


def test_predict_takes_inputs_by_name(server: ServerProcess) -> None:
    inputs = {"a": [[1, 2, 3, 4]], "b": [[1, 1, 1, 1]]}
    _, _, reply = _post(f"http://{server.address}/predict/simple", {"inputs": inputs})
    assert reply["outputs"] == {"sum": [[2, 3, 4, 5]], "diff": [[0, 1, 2, 3]]}


def test_predict_takes_a_version(server: ServerProcess) -> None:
    inputs = {"a": [[1, 2, 3, 4]], "b": [[1, 1, 1, 1]]}
    assert _post(f"http://{server.address}/predict/simple/versions/3", {"inputs": inputs})[0] == 200
    assert _post(f"http://{server.address}/predict/simple/versions/1", {"inputs": inputs})[0] == 404


@pytest.mark.parametrize(
    ("path", "body", "status", "text"),
    [
        ("/predict/digits", b"{", 400, "not a predict request"),
        ("/predict/digits", {"input": []}, 400, "not a predict request"),
        ("/predict/digits", {"inputs": [[1, 2], [3]]}, 400, "ragged"),
        ("/predict/digits", {"inputs": "image"}, 400, "must be a list"),
        ("/predict/digits", {"inputs": {"picture": [[1]]}}, 400, "unexpected inference input 'picture'"),
        ("/predict/simple", {"inputs": [[1, 2, 3, 4]]}, 400, "must be an object"),
        ("/predict/nobody", {"inputs": []}, 404, "'nobody' is not found"),
        ("/predictions/digits", {"inputs": []}, 404, "Not Found"),
    ],
)
def test_what_is_wrong_is_said(server: ServerProcess, path: str, body: object, status: int, text: str) -> None:
    got, _, reply = _post(f"http://{server.address}{path}", body)
    assert got == status
    assert text in reply["error"]


def test_predict_is_a_post(server: ServerProcess) -> None:
    status, headers, body = asked(f"http://{server.address}/predict/digits")
    assert status == 405
    assert headers["allow"] == "POST"
    assert b"Method Not Allowed" in body


def test_server_timing_tells_where_the_time_went(server: ServerProcess, image: list[Any]) -> None:
    _, headers, _ = _post(f"http://{server.address}/predict/digits", {"inputs": image})
    parts = dict(part.strip().split(";dur=") for part in headers["server-timing"].split(","))
    assert parts.keys() == {"queue", "batch", "compute"}
    assert all(float(duration_ms) >= 0 for duration_ms in parts.values())
    assert float(parts["compute"]) > 0


def test_server_timing_can_be_turned_off(tmp_path: Any, image: list[Any]) -> None:
    config = write_config(tmp_path / "dlproxy.toml", {"digits": {"path": models.DIGITS}}, server_timing=False)
    with ServerProcess("--config", config) as quiet:
        status, headers, _ = _post(f"http://{quiet.address}/predict/digits", {"inputs": image})
        assert status == 200
        assert "server-timing" not in headers


def test_root_says_what_to_try(server: ServerProcess) -> None:
    status, _, body = asked(f"http://{server.address}/")
    assert status == 200
    assert "digits" in json.loads(body)["models"]


def test_metrics_are_prometheus_text(server: ServerProcess, image: list[Any]) -> None:
    _post(f"http://{server.address}/predict/digits", {"inputs": image})
    status, headers, body = asked(f"http://127.0.0.1:{server.control_port}/metrics")
    assert status == 200
    assert headers["content-type"].startswith("text/plain")
    families = {family.name: family for family in text_string_to_metric_families(body.decode())}
    labels = {"model": "digits", "version": "1"}
    for name in ("nv_inference_request_success", "nv_inference_count", "nv_inference_exec_count"):
        (sample,) = [sample for sample in families[name].samples if sample.labels == labels]
        assert sample.value >= 1
    buckets = [
        sample.value
        for sample in families["dlproxy_phase_seconds"].samples
        if sample.name.endswith("_bucket") and sample.labels.items() >= {**labels, "phase": "request"}.items()
    ]
    assert buckets == sorted(buckets)
    assert buckets[-1] >= 1
    assert "process_resident_memory_bytes" in families


def test_failures_are_counted_by_reason(server: ServerProcess) -> None:
    for reason in ("REJECTED", "CANCELED", "BACKEND", "OTHER"):
        assert server.metric("nv_inference_request_failure", model="digits", reason=reason) >= 0


def test_healthz_names_the_models(server: ServerProcess) -> None:
    status, _, body = asked(f"http://127.0.0.1:{server.control_port}/healthz")
    assert status == 200
    health = json.loads(body)
    assert health["ready"] is True
    assert health["models"]["digits"] is True


def test_control_port_serves_no_inference(server: ServerProcess) -> None:
    assert asked(f"http://127.0.0.1:{server.control_port}/v2/models/digits")[0] == 404
    assert asked(f"http://{server.address}/metrics")[0] == 404


@pytest.mark.parametrize(("accept", "unpack"), [("gzip, deflate, br", gzip.decompress), ("deflate", zlib.decompress)])
def test_what_libraries_accept_unasked_they_understand(
    server: ServerProcess, accept: str, unpack: Callable[[bytes], bytes]
) -> None:
    values = list(range(20_000))
    _, headers, body = asked(f"http://{server.address}/predict/wide", {"inputs": [values]}, **{"Accept-Encoding": accept})
    assert headers["content-encoding"] == accept.partition(",")[0]
    assert headers["vary"] == "accept-encoding"
    assert json.loads(unpack(body))["outputs"] == {"y": [values]}
    assert len(body) < len(json.dumps(values)) / 2

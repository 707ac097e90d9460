"""`dlproxy logs` on a real server: what is logged from then on, by whom it may be changed, and mistakes in one line."""

import json
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests import models
from tests.cli.on_a_server import Succeeds, fixtures
from tests.clients.server import ServerProcess, asked


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """lookup fails for indexes above 7."""
    lookup = models.save(models.lookup(), tmp_path_factory.mktemp("logs") / "lookup.onnx")
    with ServerProcess(lookup, "--log-format", "json") as process:
        yield process


logs, complaint = fixtures("logs")


def logged(server: ServerProcess) -> list[dict[str, Any]]:
    return [json.loads(line) for line in server.errors().splitlines()]


def ask(server: ServerProcess, inputs: dict[str, Any], **headers: str) -> int:
    return asked(f"http://{server.address}/predict/lookup", {"inputs": inputs}, **headers).status


def test_levels_change_at_run_time_and_lines_name_the_request(server: ServerProcess, logs: Succeeds) -> None:
    assert logs() == ["logger  level", "all     info"]
    assert ask(server, {"no": [1]}, **{"x-request-id": "quiet"}) == 400
    assert logs("debug", "dlproxy.wire") == ["logger        level", "all           info", "dlproxy.wire  debug"]
    assert ask(server, {"no": [1]}, **{"x-request-id": "loud"}) == 400
    assert logs("default", "dlproxy.wire") == logs()
    assert ask(server, {"no": [1]}, **{"x-request-id": "quiet again"}) == 400
    lines = [line for line in logged(server) if "is answered 400" in line["message"]]
    assert [(line["level"], line["id"]) for line in lines] == [("DEBUG", "loud")]
    assert logs("error") == ["logger  level", "all     error"]
    assert json.loads("\n".join(logs("default", "--json"))) == {"level": "info", "loggers": {}}


def test_a_failed_batch_names_its_requests(server: ServerProcess) -> None:
    parent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    assert ask(server, {"index": [99]}, **{"x-request-id": "bad-1", "traceparent": parent}) == 500
    (line,) = [line for line in logged(server) if "a batch failed" in line["message"]]
    assert (line["id"], line["trace_id"]) == ("bad-1", parent[3:35])


def test_mistakes_are_one_line(server: ServerProcess, complaint: Callable[..., str]) -> None:
    assert complaint("loud") == "dlproxy: there is no level 'loud'; there are debug, info, warning, error, and default"
    assert "did you mean 'dlproxy.serve'?" in complaint("debug", "dlproxy.serv")
    assert "is an inference port" in complaint(control=f"http://{server.address}")
    assert "is dlproxy running there?" in complaint("debug", control="http://127.0.0.1:9")


@pytest.mark.parametrize("body", [b"", b"[]", b'{"level": 3}', b'{"level": "info", "logger": 1}', b'{"level": "info", "x": 1}'])
def test_what_is_no_change_is_told(server: ServerProcess, body: bytes) -> None:
    told = asked(f"http://127.0.0.1:{server.control_port}/log", body, method="PATCH")
    assert told.status == 400
    assert told.json["error"]

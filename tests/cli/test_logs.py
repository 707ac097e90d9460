"""What the server logs: lines of text or of JSON, as much as was asked for, a line for each request if they are wanted."""

import json
import logging
import sys
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import pytest

from dlproxy.cli.logs import JsonLines, TextLines
from tests import models
from tests.clients.server import HANG_S, ServerProcess, write_config

BODY = json.dumps({"inputs": [[[[0] * 8] * 8]]}).encode()


def _post(server: ServerProcess, target: str, body: bytes = BODY) -> bytes:
    with urlopen(Request(f"http://{server.address}{target}", body), timeout=HANG_S) as reply:
        answer: bytes = reply.read()
    return answer


def test_a_record_as_json_is_one_line_with_its_exception() -> None:
    try:
        raise KeyError("two\nlines")
    except KeyError:
        record = logging.LogRecord("dlproxy.x", logging.ERROR, "x.py", 1, "model %s\nfailed", ("m\udce9",), sys.exc_info())
    line = JsonLines().format(record)
    assert "\n" not in line
    said = json.loads(line)
    assert list(said) == ["time", "level", "logger", "message", "exception"]
    assert (said["level"], said["logger"], said["message"]) == ("ERROR", "dlproxy.x", "model m\udce9\nfailed")
    assert said["time"].endswith("+00:00")
    assert said["exception"].startswith("Traceback")
    assert "KeyError" in said["exception"]
    assert "exception" not in json.loads(JsonLines().format(logging.makeLogRecord({"msg": "fine", "exc_info": None})))


@pytest.mark.parametrize(
    ("level", "line"), [("INFO", "as it is"), ("WARNING", "\x1b[33mas it is\x1b[0m"), ("ERROR", "\x1b[31mas it is\x1b[0m")]
)
def test_a_terminal_shows_from_afar_what_is_no_mere_information(level: str, line: str) -> None:
    record = logging.makeLogRecord({"msg": "as it is", "levelno": getattr(logging, level)})
    assert TextLines("%(message)s", colours=True).format(record) == line
    assert TextLines("%(message)s").format(record) == "as it is"


def test_json_logs_with_a_line_for_each_request() -> None:
    with ServerProcess(models.DIGITS, "--log-format=json", "--access-log") as server:
        answer = _post(server, "/predict/digits")
        with pytest.raises(HTTPError):
            _post(server, "/v2/models/nope/infer")
        assert server.stop() == 0
        lines = [json.loads(line) for line in server.errors().splitlines()]
    for line in lines:
        assert {"time", "level", "logger", "message"} <= set(line)
    good, bad = [line for line in lines if line["logger"] == "dlproxy.access"]
    assert (good["method"], good["target"], good["status"], good["model"]) == ("POST", "/predict/digits", 200, "digits")
    assert good["bytes"] == len(answer)
    assert 0.0 < good["seconds"] < HANG_S
    assert (bad["status"], bad["model"]) == (404, "nope")
    assert {"draining", "drained"} <= {line["message"].split()[0].strip(":") for line in lines}


def test_quiet_says_nothing_but_problems_and_what_was_asked_for(tmp_path: Path) -> None:
    config = write_config(tmp_path / "dlproxy.toml", {"digits": {"path": models.DIGITS}}, access_log=1)
    (tmp_path / "dlproxy.toml").write_text(config.read_text().replace("access_log = 1", "access_log = true"))
    with ServerProcess("--config", config, "-v") as server:
        with pytest.raises(HTTPError):
            _post(server, "/predict/digits", b"{")
        _post(server, "/predict/digits")
        server.stop()
        errors = server.errors()
    assert " INFO dlproxy.access: POST /predict/digits status=400 " in errors
    assert "is answered 400: not a predict request" in errors, "at -v the reason is logged"
    assert " DEBUG " in errors

"""`dlproxy evaluate` as one runs it: a server of its own, Ctrl-C, and what can be mended in one line with exit code 2."""

import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from dlproxy.cli import main
from tests.clients.server import HANG_S, ServerProcess, environment
from tests.lab.load.fake import silent_port

MODEL = "sleep:base=2ms,row=0.1ms"
HEADINGS = ("1. Response time", "2. Throughput", "3. Utilisation", "4. Scalability", "5. Robustness")


def _started(*arguments: str) -> "subprocess.Popen[str]":
    command = [sys.executable, "-m", "dlproxy", "evaluate", *arguments]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment())


def test_a_small_budget_gives_all_five_groups(tmp_path: Path) -> None:
    files = tmp_path / "found.json", tmp_path / "found.html"
    with ServerProcess(f"m={MODEL}") as server:
        budget = f"{5.0 + 3.0 * server.start_s:.1f}s"  # in which it starts its own, however long that takes here
    with _started(MODEL, "--slo", "p99=500ms", "--budget", budget, "--json", str(files[0]), "--html", str(files[1])) as command:
        output, errors = command.communicate(timeout=2 * HANG_S)
    assert command.returncode == 0, errors
    assert all(heading in output for heading in HEADINGS)
    assert output.count("This means:") == 5
    found: dict[str, Any] = json.loads(files[0].read_bytes())
    assert found["objective_ms"] == 500.0
    assert found["ready_s"] > 0.0
    assert found["full"]["rate_rps"] > 0.0
    assert [point["n"] for point in found["clients"]["points"]][:1] == [1]
    unsaid = {"calm", "busy"} - {name for name in ("calm", "busy") if found[name]} - set(found["missing"])
    assert not unsaid
    assert files[1].read_text("utf-8").count("<section") >= 5


def test_ctrl_c_prints_what_was_found_and_leaves_no_server() -> None:
    with _started(MODEL, "--budget", "60s") as command:
        with pytest.raises(subprocess.TimeoutExpired):
            command.wait(3.0)  # it may still start, or have measured something
        command.send_signal(signal.SIGINT)
        output, errors = command.communicate(timeout=HANG_S)
    assert command.returncode == 130, errors
    assert "Traceback" not in errors
    assert not output or "interrupted: stopped early" in output


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["nosuch.onnx"], "model file nosuch.onnx does not exist"),
        ([], "no model given"),
        ([MODEL, "--slo", "p99=20"], "slo 'p99=20' is not understood"),
        ([MODEL, "--budget", "1s"], "--budget 1s is out of range: give 5s or more"),
        ([MODEL, "--budget", "soon"], "--budget soon is not a duration"),
        ([MODEL, "--url", "http://127.0.0.1:1"], "--url names a server that runs"),
        ([MODEL, "--control", "http://127.0.0.1:1"], "give its --url, too"),
        ([MODEL, "--json", "/no/such/folder/file"], "cannot write /no/such/folder/file"),
        (["--config", "/no/such/file.toml"], "/no/such/file.toml cannot be read"),
    ],
)
def test_what_can_be_mended_is_said(arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["evaluate", *arguments]) == 2
    assert said in capsys.readouterr().err


def test_a_configuration_with_a_unix_socket_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "dlproxy.toml"
    file.write_text('[server]\nuds = "/tmp/s"\n[models.m]\npath = "sleep:base=1ms"\n')
    assert main(["evaluate", "--config", str(file)]) == 2
    assert "load is sent over TCP only" in capsys.readouterr().err


def test_no_server_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    with silent_port() as port:
        assert main(["evaluate", "--url", f"127.0.0.1:{port}"]) == 2
    assert "is the server running there?" in capsys.readouterr().err

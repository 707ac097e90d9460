"""`dlproxy init`, `check` and `completion`: what a newcomer tries before anything is served."""

import shutil
import socket
import subprocess
from pathlib import Path

import pytest

from dlproxy.cli import USER_ERROR, main
from dlproxy.cli.check import _apart
from dlproxy.cli.completion import SHELLS
from dlproxy.cli.terminal import OK
from dlproxy.config import AutopilotConfig, Config, ServerConfig
from tests import models
from tests.clients.server import write_config

PORTS = {"http_port": 0, "grpc_port": 0, "control_port": 0, "calibration_folder": "", "graph_folder": ""}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    shutil.copy(models.DIGITS, tmp_path / "digits.onnx")
    return tmp_path


def test_what_init_writes_is_what_check_finds_good(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "conf").mkdir()
    for arguments in ((), ("digits.onnx", "new.one:2=digits.onnx", "--slo=p99=50ms", "--out=conf/two.toml")):
        assert main(["init", *arguments]) == OK
    capsys.readouterr()
    for file, seen in (("dlproxy.toml", "model digits version 1"), ("conf/two.toml", "model new.one version 2")):
        assert main(["check", "--config", file, "--http-port=0", "--grpc-port=0", "--control-port=0"]) == OK
        out, problems = capsys.readouterr()
        assert not problems
        assert seen in out
        assert out.endswith("nothing stands against it\n")
    assert "p99=50ms" in out


def test_init_writes_over_nothing_and_says_what_is_missing(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "dlproxy.toml").write_text("# mine")
    assert main(["init"]) == USER_ERROR
    assert "dlproxy.toml is there already; name another file (--out)" in capsys.readouterr().err
    assert (folder / "dlproxy.toml").read_text() == "# mine"
    (folder / "digits.onnx").unlink()
    assert main(["init", "--out=new.toml"]) == USER_ERROR
    assert "there is no model in this folder" in capsys.readouterr().err
    assert not (folder / "new.toml").exists()


def test_check_says_everything_that_stands_against_it_and_leaves_nothing(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "bad.onnx").write_text("no model")
    store = folder / "store"
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        settings = {name: {"path": str(folder / f"{name}.onnx")} for name in ("bad", "digits")}
        server = {**PORTS, "http_port": port, "store": str(store), "event_log": str(folder / "events")}
        write_config(folder / "dlproxy.toml", settings, **server)
        assert main(["check"]) == USER_ERROR, "the file that lies here"
    out, problems = capsys.readouterr()
    assert [f"cannot listen on 127.0.0.1:{port}" in problems, "bad.onnx is not a model" in problems] == [True, True]
    assert len(problems.splitlines()) == 2
    assert "model digits version 1" in out
    assert "nothing stands" not in out
    assert not store.exists()
    assert not (folder / "events").exists()


def test_what_check_loads_writes_nothing_that_others_see() -> None:
    server = ServerConfig(store="folder", event_log="events", audit_log="audit", drain_s=5.0)
    seen = _apart(Config(server=server, autopilot=AutopilotConfig(mode="on", record="seen")))
    assert seen == Config(server=ServerConfig(drain_s=5.0), autopilot=AutopilotConfig(mode="on"))


@pytest.mark.parametrize("shell", SHELLS)
def test_a_shell_is_told_of_every_command(shell: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["completion", shell]) == OK
    script = capsys.readouterr().out
    assert all(word in script for word in ("serve", "check", "autopilot", "slo"))
    if shell == "bash":
        asked = f"{script}\nCOMP_WORDS=(dlproxy ser); COMP_CWORD=1; _shtab_dlproxy dlproxy ser dlproxy; echo ${{COMPREPLY[@]}}"
        assert subprocess.run(["bash", "-c", asked], capture_output=True, text=True, check=True).stdout == "serve\n"

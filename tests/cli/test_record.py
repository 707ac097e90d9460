"""`dlproxy record` and `dlproxy replay` on real servers: what the dashboard showed is shown again, without a server."""

import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Timer

import pytest

from dlproxy.cli import main
from dlproxy.cli.terminal import OK, USER_ERROR
from dlproxy.lab.recording.recording import Whole, load
from tests.cli.on_a_server import only_line
from tests.clients.server import HANG_S, ServerProcess, asked, write_config

OK_STATUS, BAD_REQUEST, FORBIDDEN = 200, 400, 403


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_config(tmp_path_factory.mktemp("record") / "dlproxy.toml", {"sleeper": {"path": "sleep:base=1ms"}})


@contextmanager
def replayed(path: Path, *arguments: str) -> Iterator[str]:
    """The address at which a recording is shown; it ends with Ctrl-C."""
    command = [sys.executable, "-m", "dlproxy", "replay", str(path), "--port", "0", *arguments]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        guard = Timer(HANG_S, process.kill)
        guard.start()
        try:
            yield process.stdout.readline().split()[1]
            process.send_signal(signal.SIGINT)
            assert (process.wait(HANG_S), process.communicate()[1]) == (OK, "")
        finally:
            process.kill()
            guard.cancel()


def test_what_was_recorded_is_shown_again(config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "sale.jsonl"
    with ServerProcess("--config", config) as server:
        assert asked(f"http://{server.address}/predict/sleeper", {"inputs": [[1.0]]}).status == OK_STATUS
        control = f"http://127.0.0.1:{server.control_port}"
        assert main(["record", str(path), "--for", "2s", "--control", control]) == OK
    assert capsys.readouterr().out.splitlines()[1].endswith(f"dlproxy replay {path}")
    found = load(path)
    assert isinstance(found.frames[0], Whole)
    assert len(found.frames) >= 2
    assert [request["model"] for request in found.requests] == ["sleeper"]
    with replayed(path, "--speed", "30") as address:
        assert asked(f"{address}dashboard/feed", Accept="application/json").json["models"].keys() == {"sleeper/1"}
        assert b"replay.js" in asked(f"{address}dashboard/static/main.js").body
        assert asked(f"{address}dashboard/replay", {"playing": False, "at": 0}).status == OK_STATUS
        now = asked(f"{address}dashboard/feed", Accept="application/json").json
        assert (now["at"], now["server"]["replay"]["playing"]) == (found.frames[0].at, False)
        history = asked(f"{address}dashboard/history?model=sleeper&version=1").json
        assert history["at"] == [found.frames[0].at]
        assert asked(f"{address}dashboard/replay", {"at": found.frames[-1].at}).status == OK_STATUS
        assert asked(f"{address}why?kind=all").json == found.requests
        for wrong in ({"speed": 0}, {"spee": 1}, {"at": "x"}):
            assert asked(f"{address}dashboard/replay", wrong).status == BAD_REQUEST, wrong
        assert asked(f"{address}dashboard/history?model=sleeper&seconds=x").status == BAD_REQUEST
        elsewhere = asked(f"{address}dashboard/replay", {"playing": True}, Origin="http://elsewhere.example")
        assert elsewhere.status == FORBIDDEN
        assert "there is no server to ask" in asked(f"{address}models/sleeper").json["error"]


def test_a_server_that_goes_away_is_waited_for(config: Path, tmp_path: Path) -> None:
    path, command = tmp_path / "away.jsonl", [sys.executable, "-m", "dlproxy", "record"]
    with ServerProcess("--config", config) as server:
        control = f"http://127.0.0.1:{server.control_port}"
        recorder = subprocess.Popen([*command, str(path), "--control", control], stdout=subprocess.PIPE, text=True)
        assert recorder.stdout is not None
        assert "Ctrl-C ends it" in recorder.stdout.readline()
        server.kill()
    recorder.send_signal(signal.SIGINT)
    said, _ = recorder.communicate(timeout=HANG_S)
    assert recorder.returncode == OK
    assert "dlproxy replay" in said


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["record", "a.jsonl", "--control", "http://127.0.0.1:1"], "is dlproxy running there?"),
        (["record", "a.jsonl", "--for", "soon"], "--for soon is not a duration"),
        (["replay", "none.jsonl"], "cannot read none.jsonl"),
    ],
)
def test_mistakes_are_one_line(
    arguments: list[str], words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == USER_ERROR
    assert words in only_line(capsys)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("speed", ["0", "x", "nan", "1e9"])
def test_a_speed_is_a_number(speed: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["replay", "a.jsonl", "--speed", speed])
    assert f"'{speed}' is not a number from 0.1 to 1000" in capsys.readouterr().err

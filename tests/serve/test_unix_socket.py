"""Serving on a Unix socket: the answers are the same, a stale file is replaced, a live one is not, and none is left behind."""

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from dlproxy import Client
from dlproxy.cli import USER_ERROR, main
from dlproxy.serve.unix_socket import UnixSocket
from tests import models
from tests.clients.server import HANG_S, environment


@pytest.fixture
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)  # whose own path may be longer than a socket's may be
    return Path("dlproxy.sock")


def _stale(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))


def _ask(path: Path, data: bytes) -> bytes:
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(HANG_S)
        connection.connect(str(path))
        connection.sendall(data)
        answer = b""
        while piece := connection.recv(65536):
            answer += piece
    return answer


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=lambda number: number.name)
def test_a_server_answers_on_its_socket_and_takes_it_away(path: Path, number: signal.Signals) -> None:
    _stale(path)
    command = [sys.executable, "-m", "dlproxy", "serve", str(models.DIGITS), "--uds", str(path), "--control-port=0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment()) as server:
        try:
            assert server.stdout is not None
            report = ""
            while not report.endswith("ready; Ctrl-C stops\n"):
                line = server.stdout.readline()
                assert line, report
                report += line
            assert f"inference  {path.resolve()} " in report
            answer = _ask(path, b"GET /v2/models/digits/ready HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n")
            assert answer.startswith(b"HTTP/1.1 200 OK\r\n")
            with Client(f"unix:{path}") as client:
                assert client.ready("digits")
            assert main(["serve", str(models.DIGITS), "--uds", str(path), "--control-port=0"]) == USER_ERROR
            assert path.exists(), "another's socket was taken away"
            server.send_signal(number)
            _, errors = server.communicate(timeout=HANG_S)
        finally:
            server.kill()
    assert server.returncode == 0, errors
    assert not path.exists()


@pytest.mark.parametrize(
    ("make", "clue"),
    [
        (lambda path: path.write_text("mine"), "a file that is not a socket is in the way"),
        (lambda path: path.mkdir(), "a file that is not a socket is in the way"),
    ],
)
def test_what_is_no_socket_is_left_alone(path: Path, make: object, clue: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert callable(make)
    make(path)
    assert main(["serve", str(models.DIGITS), "--uds", str(path), "--control-port=0"]) == USER_ERROR
    assert f"cannot listen on {path}: {clue}" in capsys.readouterr().err
    assert path.exists()


@pytest.mark.parametrize("name", ["no/such/folder.sock", "x" * 200])
def test_where_none_can_be_is_said_in_one_line(path: Path, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["serve", str(models.DIGITS), "--uds", name, "--control-port=0"]) == USER_ERROR
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"dlproxy: cannot listen on {name}: ")


def test_a_start_that_fails_leaves_no_file(path: Path) -> None:
    assert main(["serve", "nowhere.onnx", "--uds", str(path), "--control-port=0"]) == USER_ERROR
    assert not path.exists()


def test_a_file_that_has_become_anothers_is_left_to_it(path: Path) -> None:
    first = UnixSocket(str(path))
    os.unlink(path)
    second = UnixSocket(str(path))
    first.remove()
    assert path.exists()
    second.remove()
    second.remove()
    assert not path.exists()
    for each in (first, second):
        each.listener.close()

"""Runs commands of operators on a server's control port, and reads what commands complain of."""

from collections.abc import Callable
from typing import Any

import pytest

from dlproxy.cli import main
from dlproxy.cli.terminal import USER_ERROR
from tests.clients.server import ServerProcess

Succeeds = Callable[..., list[str]]


def fixtures(command: str) -> tuple[Any, Any]:
    """Of a module that has a `server`: one that runs `dlproxy COMMAND ...` and succeeds, and one that complains."""

    @pytest.fixture
    def run(server: ServerProcess, capsys: pytest.CaptureFixture[str]) -> Succeeds:
        return succeeds(command, server, capsys)

    @pytest.fixture
    def complaint(server: ServerProcess, capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
        return complains(command, server, capsys)

    return run, complaint


def succeeds(command: str, server: ServerProcess, capsys: pytest.CaptureFixture[str]) -> Succeeds:
    """Runs `dlproxy COMMAND ...`, which succeeds; the lines of its output."""

    def run(*arguments: str) -> list[str]:
        code = main([command, *arguments, "--control", f"http://127.0.0.1:{server.control_port}"])
        captured = capsys.readouterr()
        assert (code, captured.err) == (0, "")
        return captured.out.splitlines()

    return run


def complains(command: str, server: ServerProcess, capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Runs one that does not; the only line that it says."""

    def run(*arguments: str, control: str = f"http://127.0.0.1:{server.control_port}") -> str:
        assert main([command, *arguments, "--control", control]) == USER_ERROR
        return only_line(capsys)

    return run


def only_line(capsys: pytest.CaptureFixture[str]) -> str:
    """That a command said, which is a complaint."""
    captured = capsys.readouterr()
    assert captured.out == ""
    lines = captured.err.splitlines()
    assert len(lines) == 1, captured.err
    assert lines[0].startswith("dlproxy: ")
    return lines[0]

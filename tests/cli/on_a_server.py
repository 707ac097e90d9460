"""Runs commands of operators on a server's control port. For fixtures."""

from collections.abc import Callable

import pytest

from dlproxy.cli import main
from dlproxy.cli.terminal import USER_ERROR
from tests.clients.server import ServerProcess


def succeeds(command: str, server: ServerProcess, capsys: pytest.CaptureFixture[str]) -> Callable[..., list[str]]:
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
        captured = capsys.readouterr()
        assert captured.out == ""
        (line,) = captured.err.splitlines()
        assert line.startswith("dlproxy: ")
        return line

    return run

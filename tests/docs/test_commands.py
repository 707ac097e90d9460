"""The commands of the documentation, run: those that need no server here, and page by page all of them by `make prove-docs`.

There, in a network namespace of its own, each stands as a reader types it, ports and all. Programs between them run, too, and
settings are what --config names. Not aware of: what commands print.
"""

import json
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping
from contextlib import closing
from pathlib import Path
from types import MappingProxyType

import pytest

from tests.clients.server import environment
from tests.docs import given
from tests.docs.given import ELSEWHERE
from tests.docs.pages import PAGES, SHELL, Block, blocks, commands

WHOLE = bool(os.environ.get("DLPROXY_DOCS"))
LONGEST_S = 900.0
ASKS = re.compile(r"127\.0\.0\.1:80|dlproxy (autopilot|cache|gateways|logs|models(?! keygen| sign| verify| encrypt)|why)\b")
"""Needs a server."""
QUICK = re.compile(r"dlproxy (keys|monitor|models (keygen|sign|verify|encrypt)|learn list)\b")
NOT_RUN: Mapping[str, str] = MappingProxyType(
    {
        r"make \w+": "these are tested by themselves",
        r"pip install": "installs from the network",
        r"\. \.venv": "there may be no such environment",
        r"docker|helm|cd deploy|\./generate\.sh|MODELS=": "needs Docker or a cluster; `make prove-deploy` looks at the files",
        r"grpcurl|grpc-health-probe": "programs that a test machine need not have; tests/wire/grpc asks the same",
        r".*\bexample\.org": "an address of the reader's",
        r".*\bgpu1:|.*10\.0\.0\.1:": "other machines",
        r"python examples/": "needs models from packages; `make bench-pipelines` and `make bench-sequences` run them",
        r"dlproxy serve --ray": "a cluster; `make prove-ray`",
        r"dlproxy place": "nodes on other machines; tests/lab/tune/placement",
        r".*/srv/": "a folder of the reader's machine",
    }
)
"""Commands that do not run here, by how they begin, and why."""
BEFORE = {
    "docs/why.md": [
        "curl -s http://127.0.0.1:8000/predict/digits -H 'x-request-id: order-7' -H 'x-request-deadline-ms: 0.001' "
        '-d \'{"inputs": [[[[0,0,0,0,0,0,0,0],[0,0,0,0,0,0,0,0],[0,0,0,0,0,0,0,0],[0,0,0,0,0,0,0,0],'
        "[0,0,0,0,0,0,0,0],[0,0,0,0,0,0,0,0],[0,0,0,0,0,0,0,0],[0,0,0,0,0,0,0,0]]]]}'"
    ],
}
"""What has happened before a page begins."""


def _runs(command: str) -> bool:
    return not any(re.match(pattern, command) for pattern in NOT_RUN) and bool(WHOLE or QUICK.match(command))


def _typed(page: str) -> list[str]:
    return [command for block in blocks(page, *SHELL) for command in commands(block)]


@pytest.mark.parametrize("page", [page for page in PAGES if any(map(_runs, _typed(page)))])
def test_commands_run(page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    given.files(tmp_path, page)
    (tmp_path / "bin").mkdir()
    _program(tmp_path / "bin" / "dlproxy", f'exec {sys.executable} -m dlproxy "$@"')
    _program(tmp_path / "bin" / "python", f'exec {sys.executable} "$@"')
    reader = Reader(page, tmp_path)
    with closing(reader):
        for command in BEFORE.get(page, ()) if WHOLE else ():
            reader.type(command, "given")
        for block in blocks(page):
            reader.take(block)


@pytest.mark.parametrize("pattern", NOT_RUN)
def test_what_is_not_run_is_in_a_page(pattern: str) -> None:
    assert any(re.match(pattern, command) for page in PAGES for command in _typed(page))


class Reader:
    """Does what a page says, from above to below, with the server of the page or, before it starts one, with a given one."""

    def __init__(self, page: str, folder: Path) -> None:
        self._folder = folder
        self._environment = {name: value for name, value in environment().items() if name != "DLPROXY_DOCS"} | {
            "PATH": f"{folder / 'bin'}:{os.environ['PATH']}"
        }
        self._names = given.names(page, folder)
        self._answer = ""
        """Of the last block's last command, if that was curl: what a page may show next."""
        self._server: subprocess.Popen[str] | None = None

    def take(self, block: Block) -> None:
        """Carry out a block, or keep it as the file that commands name."""
        if block.language == "toml":
            name = "ours" if block.code.startswith("kind") else "dlproxy"
            (self._folder / f"{name}.toml").write_text(block.code, "utf-8")
        elif block.language == "python" and WHOLE and block.page not in ELSEWHERE:
            self._be_served(block.code)
            exec(compile("\n" * block.line + given.replaced(block.code), block.page, "exec"), self._names)
        elif block.language in SHELL:
            self._answer = ""
            for command in filter(_runs, commands(block)):
                self.type(command, block.where)
        elif block.language == "json" and self._answer:
            assert json.loads(self._answer) == json.loads(block.code), block.where
            self._answer = ""

    def type(self, command: str, where: str) -> None:
        """Run it to its end, or a server until the next one or the end of the page."""
        if command.startswith("dlproxy serve"):
            self.close()
            self._server = self._started(command, where)
            return
        self._be_served(command)
        done = subprocess.run(
            ["bash", "-c", _shorter(command)],
            cwd=self._folder,
            env=self._environment,
            capture_output=True,
            text=True,
            timeout=LONGEST_S,
        )
        assert done.returncode == 0, f"{where}: {command}\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}"
        self._answer = done.stdout if command.startswith("curl") else ""

    def _be_served(self, text: str) -> None:
        if self._server is None and ASKS.search(text):
            self._server = self._started("dlproxy serve --config given.toml", "given")

    def _started(self, command: str, where: str) -> "subprocess.Popen[str]":
        errors = self._folder / "errors.txt"
        with errors.open("w") as file:
            started = subprocess.Popen(
                ["bash", "-c", f"exec {command}"],
                cwd=self._folder,
                env=self._environment,
                stdout=subprocess.PIPE,
                stderr=file,
                text=True,
            )
        assert started.stdout is not None
        guard = threading.Timer(LONGEST_S, started.kill)
        guard.start()
        ready = any(line.startswith("ready") for line in started.stdout)
        guard.cancel()
        if not ready:
            _ended(started)
            raise AssertionError(f"{where}: {command}\nwas not ready:\n{errors.read_text('utf-8')[-2000:]}")
        return started

    def close(self) -> None:
        """End the page's server, if there is one: on Ctrl-C, as its reader would."""
        if self._server is not None:
            self._server.send_signal(signal.SIGINT)
            _ended(self._server)
            self._server = None


def _ended(process: "subprocess.Popen[str]") -> None:
    try:
        process.communicate(timeout=LONGEST_S)
    finally:
        process.kill()
        process.wait()


def _shorter(command: str) -> str:
    """The same with less of what is only patience: one seed, half a minute of search."""
    if re.match(r"(nice )?dlproxy learn train", command):
        return f"{command} --seeds 1"
    if re.match("dlproxy (evaluate|tune)", command):
        return re.sub(" --budget [0-9]+m", "", command) + " --budget 30s"
    return command


def _program(path: Path, script: str) -> None:
    path.write_text(f"#!/bin/sh\n{script}\n", "utf-8")
    path.chmod(0o755)

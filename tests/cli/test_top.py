"""`dlproxy top`: the table at any width, once as text, and in a terminal with its keys; mistakes are one line."""

import json
import os
import pty
import re
import select
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from time import monotonic, time_ns
from typing import Any

import pytest
from rich.console import Console

from dlproxy.cli.terminal import INTERRUPTED, OK
from dlproxy.cli.top import SORTS, cells, lines, view
from tests import models
from tests.cli.on_a_server import Succeeds, fixtures
from tests.clients.server import ServerProcess, asked

HANG_S = 60.0


def model(name: str, **more: Any) -> dict[str, Any]:
    """Of the feed: one that does nothing."""
    return {"name": name, "version": "1", "state": "up", "reason": "", "rate": 0.0, "queued": 0, "batch_goal": 8, **more}


def told(*models: dict[str, Any], **server: Any) -> dict[str, Any]:
    facts = {"version": "1.2.3", "started_at": time_ns() / 1e9 - 90, "cores": 2, "cpu": 0.5, "memory_bytes": 2**27}
    facts |= {"connections": 3, "ready": True, **server}
    return {"server": facts, "models": {f"{one['name']}/1": one for one in models}}


MET = {"seconds": 0.02, "share": 0.99, "met": 0.998, "budget_left": 0.8}
BUSY = model(
    "digits", rate=1234.5, p50_s=0.00085, p99_s=0.0123, batch_rows=12.34, queued=7, utilisation=0.71, objective=MET, alarm=""
)
SLOW = model("slow", rate=3.0, p99_s=1.5, objective={**MET, "met": 0.9}, alarm="p99 is 3 times as usual" * 9)
BROKEN = {"name": "bad\x1b[2J", "version": "1", "state": "failed", "reason": "no such file\n"}


@pytest.mark.parametrize(
    ("one", "row"),
    [
        (BUSY, ("digits/1", "up", "1,234", "850 µs", "12.3 ms", "12.3 of 8", "7", "71%", "99.80% in 20 ms", "")),
        (model("idle"), ("idle/1", "up", "0", "", "", "- of 8", "0", "", "", "")),
        (model("new", objective={**MET, "met": None}), ("new/1", "up", "0", "", "", "- of 8", "0", "", "in 20 ms", "")),
        (BROKEN, ("bad\\x1b[2J/1", "failed", "", "", "", "", "", "", "", "no such file\\n")),
    ],
)
def test_a_row(one: dict[str, Any], row: tuple[str, ...]) -> None:
    assert cells(one) == row


def screen(told: dict[str, Any], *, width: int, height: int = 24, sort: str = "rate", problem: str = "") -> list[str]:
    console = Console(record=True, width=width, height=height, file=open(os.devnull, "w"))  # noqa: SIM115 - as below
    with console.file:
        console.print(view(told, sort, problem, (width, height)))
    return [line.rstrip() for line in console.export_text().splitlines()]


@pytest.mark.parametrize(
    ("width", "headings"),
    [
        (200, "model state req/s p50 p99 batch queue used objective trouble"),
        (100, "model state req/s p50 p99 batch queue used objective trouble"),
        (80, "model req/s p99 queue used objective trouble"),
        (50, "model req/s p99 used trouble"),
        (30, "model req/s p99"),
    ],
)
def test_columns_give_way_where_there_is_no_room_and_numbers_stay_whole(width: int, headings: str) -> None:
    shown = screen(told(BUSY, SLOW, model("idle")), width=width)
    assert all(len(line) <= width for line in shown)
    assert shown[1].split() == headings.split()
    for number in ("1,234", "12.3 ms", "71%" if "used" in headings else ""):
        assert number in shown[2]
    assert "1.5 s" in shown[3]
    assert ("p99 is 3 tim" in shown[3]) is ("trouble" in headings)


def test_who_has_most_to_say_comes_first() -> None:
    many = told(*(model(f"m{number:02}", rate=float(number), p99_s=1.0 / (number + 1)) for number in range(40)))
    shown = screen(many, width=100, height=12)
    assert len(shown) <= 12
    assert shown[2].startswith("m39/1")
    assert shown[-1].endswith("32 models more")
    assert screen(many, width=100, sort="p99")[2].startswith("m00/1")
    assert [line.split()[0] for line in list(lines(many, "name"))[2:5]] == ["m00/1", "m01/1", "m02/1"]
    assert screen(many, width=100, problem="cannot reach it")[1] == "cannot reach it"


def test_no_models_are_no_table() -> None:
    assert list(lines(told(ready=False), "rate"))[1:] == ["no models"]
    assert "not ready   0 models" in screen(told(ready=False), width=100)[0]
    assert all(SORTS[sort](BROKEN) is not None for sort in SORTS), "what could not be loaded has no numbers"


# With a server


@pytest.fixture(scope="module")
def server() -> Iterator[ServerProcess]:
    with ServerProcess(models.DIGITS) as process:
        yield process


top, complaint = fixtures("top")


def test_once_as_text_and_as_json(server: ServerProcess, top: Succeeds) -> None:
    head, headings, row = top("--once")
    assert re.match(r"dlproxy \S+   up \d+\.\d s   ready   1 model   \d\.\d\d of \d+ cores   \d+(\.\d)? MiB   0 conn", head)
    assert headings.startswith("model     state  req/s")
    assert re.fullmatch(r"digits/1  up +0 +- +- +- of \d+ +0 +0% +- +-", row)
    assert top()[1:] == [headings, row], "as there is no terminal"
    assert json.loads("\n".join(top("--json")))["models"]["digits/1"]["state"] == "up"


def test_mistakes_are_one_line(server: ServerProcess, complaint: Callable[..., str]) -> None:
    assert "is dlproxy running there?" in complaint(control="http://127.0.0.1:9")
    assert "is an inference port" in complaint("--once", control=f"http://{server.address}")


class Terminal:
    """`dlproxy top` on a terminal of its own."""

    def __init__(self, *arguments: str) -> None:
        self._ours, theirs = pty.openpty()
        os.set_blocking(self._ours, False)
        command = [sys.executable, "-m", "dlproxy", "top", *arguments]
        environment = {**os.environ, "TERM": "xterm", "COLUMNS": "120", "LINES": "20"}
        self.process = subprocess.Popen(
            command, stdin=theirs, stdout=theirs, stderr=subprocess.PIPE, env=environment, start_new_session=True
        )
        os.close(theirs)
        self.seen = ""

    def __enter__(self) -> "Terminal":
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.communicate()
        os.close(self._ours)

    def wait(self, text: str) -> None:
        """Until it is on the screen. `text`: a regular expression."""
        end = monotonic() + HANG_S
        while not re.search(text, self.seen):
            assert monotonic() < end, self.seen
            if select.select([self._ours], [], [], 1.0)[0]:
                self.seen += os.read(self._ours, 1 << 16).decode()

    def press(self, key: str) -> None:
        self.seen = ""
        os.write(self._ours, key.encode())

    def end(self) -> tuple[int, str]:
        """Its exit code, and what it complained of."""
        _, errors = self.process.communicate(timeout=HANG_S)
        return self.process.returncode, errors.decode()


def test_keys_in_a_terminal(server: ServerProcess) -> None:
    with Terminal("--control", f"http://127.0.0.1:{server.control_port}") as terminal:
        terminal.wait("sorted by rate")
        assert asked(f"http://{server.address}/predict/digits", {"inputs": {"image": [[[[0.0] * 8] * 8]]}}).status == 200
        terminal.wait(r"\d (ms|µs)")
        terminal.press("s")
        terminal.wait("sorted by p99")
        terminal.press("x")
        terminal.press("q")
        assert terminal.end() == (OK, "")


def test_a_server_that_goes_is_waited_for_and_ctrl_c_is_a_line() -> None:
    with ServerProcess(models.DIGITS) as server:
        terminal = Terminal("--control", f"http://127.0.0.1:{server.control_port}")
        terminal.wait("digits/1")
    with terminal:
        terminal.wait("it is asked again every second")
        terminal.process.send_signal(signal.SIGINT)
        assert terminal.end() == (INTERRUPTED, "dlproxy: interrupted\n")

"""Models whose text no encoder takes (a file's name that is no UTF-8): told escaped, wherever they run; nothing hangs."""

from collections.abc import Iterator
from pathlib import Path
from time import monotonic
from typing import Any

import pytest

from dlproxy.instance.process.instance import ProcessInstance
from dlproxy.instance.runtime import ModelError
from dlproxy.instance.runtime.specs import PythonSpec
from tests.clients.server import HANG_S, ServerProcess, asked, write_config

RUNS = ("inline", "thread", "process")
NAME = 'b"caf\\xe9.jpg".decode("utf-8", "surrogateescape")'
MODEL = f"""
NAME = {NAME}


class Wordless(Exception):
    def __str__(self):
        raise RuntimeError(NAME)


class Element:
    def __str__(self):
        raise LookupError(NAME)

    __bytes__ = encode = __str__


class Bad:
    inputs = {{"x": "FP32[-1,1]"}}
    outputs = {{"y": "BYTES[-1,1]"}}

    def predict(self, batch):
        import numpy as np

        mood = int(batch["x"][0, 0])
        if mood == 1:
            raise ValueError("cannot read " + NAME)
        if mood == 2:
            raise Wordless
        if mood == 3:
            raise SystemExit(NAME)
        made = {{4: NAME, 5: Element(), 6: 7.5}}.get(mood, "fine")
        return {{"y": np.array([[made]] * len(batch["x"]), object)}}
"""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    folder = tmp_path_factory.mktemp("foreign")
    (folder / "bad.py").write_text(MODEL)
    config = write_config(folder / "c.toml", {run: {"path": f"{folder / 'bad.py'}:Bad", "run": run} for run in RUNS})
    with ServerProcess("--config", config) as process:
        yield process


def ask(server: ServerProcess, run: str, mood: int) -> tuple[int, Any]:
    told = asked(f"http://{server.address}/predict/{run}", {"inputs": [[mood]]}, within_s=10.0)
    return told.status, told.json


@pytest.mark.parametrize("run", RUNS)
@pytest.mark.parametrize(
    ("mood", "clue"), [(1, "cannot read caf\\udce9.jpg"), (2, "Wordless"), (3, "caf\\udce9.jpg"), (4, ""), (5, ""), (6, "")]
)
def test_it_is_told_at_once_and_the_model_goes_on(server: ServerProcess, run: str, mood: int, clue: str) -> None:
    pid = worker(server, run)
    status, said = ask(server, run, mood)
    assert status == 500
    assert said["error"]
    assert clue in said["error"]
    assert "crash" not in said["error"]
    assert ask(server, run, 0) == (200, {"model": run, "version": "1", "outputs": {"y": [["fine"]]}})
    assert worker(server, run) == pid


def worker(server: ServerProcess, run: str) -> object:
    return [(instance["pid"], instance["restarts"]) for instance in server.instances(run)]


def test_the_drain_is_prompt_afterwards(tmp_path: Path) -> None:
    (tmp_path / "bad.py").write_text(MODEL)
    config = write_config(tmp_path / "c.toml", {"thread": {"path": f"{tmp_path / 'bad.py'}:Bad", "run": "thread"}})
    with ServerProcess("--config", config) as process:
        for mood in range(1, 7):
            assert ask(process, "thread", mood)[0] == 500
        began_at = monotonic()
        assert process.stop() == 0
        assert monotonic() - began_at < HANG_S / 4


HEAD = "class Bad:\n    def predict(self, b): ...\n"
DECLARES = "    inputs, outputs = {'x': 'FP32[-1,1]'}, {'y': 'FP32[-1,1]'}\n"


@pytest.mark.parametrize(
    ("code", "clue"),
    [
        (f"{HEAD}{DECLARES}    def __init__(self):\n        raise OSError({NAME})", r"caf\\udce9\.jpg"),
        (f"{HEAD}{DECLARES}    inputs = {{{NAME}: 'FP32[-1,1]'}}", r"caf\\udce9\.jpg.*cannot be a tensor's name"),
        (f"{HEAD}{DECLARES}    outputs = {{{NAME}: 'FP32[-1,1]'}}", r"caf\\udce9\.jpg.*cannot be a tensor's name"),
        (f"raise ImportError({NAME})", r"caf\\udce9\.jpg"),
    ],
)
async def test_a_worker_that_cannot_load_says_why(tmp_path: Path, code: str, clue: str) -> None:
    (tmp_path / "bad.py").write_text(code)
    spec = PythonSpec("dlproxy.instance.runtime.formats:open_runtime", {"path": f"{tmp_path / 'bad.py'}:Bad"})
    with pytest.raises(ModelError, match=clue):
        await ProcessInstance("p", spec).start()


async def test_a_path_that_no_message_can_hold_is_refused() -> None:
    spec = PythonSpec("dlproxy.instance.runtime.formats:open_runtime", {"path": "/models/caf\udce9.py:Bad"})
    with pytest.raises(ModelError, match=r"caf.+udce9.py:Bad.*UTF-8"):
        await ProcessInstance("p", spec).start()

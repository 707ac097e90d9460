"""ONNX Runtime reports to nobody unless it is told to, wherever dlproxy comes to import it."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from dlproxy.instance.runtime import TELEMETRY_OFF
from dlproxy.message import DType
from tests import models

NAME, OFF = TELEMETRY_OFF
SAY = f"import os, sys; print(os.environ.get({NAME!r}), 'onnxruntime' in sys.modules)"
USER = """\
import os

import onnxruntime

SEEN = os.environ.get("ORT_DISABLE_TELEMETRY")


class Model:
    inputs = {"x": "FP32[-1,1]"}
    outputs = {"y": "FP32[-1,1]"}

    def load(self):
        open(__file__ + ".seen", "w").write(str(SEEN))

    def predict(self, batch):
        return {"y": batch["x"]}
"""
OPEN = "from dlproxy.instance.runtime.formats import open_runtime; open_runtime({path!r})"
START = """\
import asyncio
from dlproxy.config import ModelConfig
from dlproxy.fleet.start import start_fleet


async def main():
    fleet = await start_fleet("m", ModelConfig(path={path!r}, run="process"))
    await fleet.stop()


asyncio.run(main())
"""


def _run(code: str, home: Path, setting: str | None) -> str:
    environment = {name: value for name, value in os.environ.items() if name != NAME}
    if setting is not None:
        environment[NAME] = setting
    home.mkdir(exist_ok=True)
    done = subprocess.run(
        [sys.executable, "-c", code], env={**environment, "HOME": str(home)}, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize(
    ("how", "setting", "seen"),
    [
        *(("onnx", setting, seen) for setting, seen in ((None, OFF), ("0", "0"), ("", ""), ("1", "1"))),
        *((how, setting, seen) for how in ("python", "worker") for setting, seen in ((None, OFF), ("0", "0"))),
    ],
)
def test_it_is_off_before_the_engine_is_imported_unless_the_operator_says_otherwise(
    tmp_path: Path, how: str, setting: str | None, seen: str
) -> None:
    if how == "onnx":
        path = str(models.save(models.identity(DType.FP32), tmp_path / "m.onnx"))
        assert _run(f"{OPEN.format(path=path)}; {SAY}", tmp_path / "home", setting).split() == [*seen.split(), "True"]
        return
    (tmp_path / "user.py").write_text(USER)
    path = f"{tmp_path / 'user.py'}:Model"
    _run((OPEN if how == "python" else START).format(path=path), tmp_path / "home", setting)
    assert (tmp_path / "user.py.seen").read_text() == seen


def test_nothing_is_left_in_the_home_folder(tmp_path: Path) -> None:
    _run(OPEN.format(path=str(models.save(models.identity(DType.FP32), tmp_path / "m.onnx"))), tmp_path / "home", None)
    assert list((tmp_path / "home").rglob("*")) == []


def test_importing_dlproxy_changes_no_environment(tmp_path: Path) -> None:
    code = f"import dlproxy, dlproxy.serve.assemble, dlproxy.config; dlproxy.Proxy; {SAY}"
    assert _run(code, tmp_path / "home", None).split() == ["None", "False"]

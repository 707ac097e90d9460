"""A model's file is replaced while it is served: a worker that restarts brings nothing else under the same version."""

import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from time import monotonic

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from tests.clients.server import HANG_S, ServerProcess, write_config

CLASS = """\
from {helper} import gain


class Net:
    inputs = {{"x": "FP32[-1,1]"}}
    outputs = {{"y": "FP32[-1,1]"}}

    def predict(self, batch):
        return {{"y": batch["x"] * {factor} * gain}}
"""


def _python(folder: Path, factor: int, changed: str) -> str:
    helper_name = "gain_of_replaced_models"
    own, beside = (factor, 1) if changed == "net.py" else (1, factor)
    (folder / "net.py").write_text(CLASS.format(helper=helper_name, factor=own))
    (folder / f"{helper_name}.py").write_text(f"gain = {beside}\n")
    return f"{folder / 'net.py'}:Net"


def _onnx(folder: Path, factor: int, changed: str) -> str:
    weights = numpy_helper.from_array(np.full((1,), factor, np.float32).repeat(1000)[:1], "w")
    shape = ["N", 1]
    made = helper.make_model(
        helper.make_graph(
            [helper.make_node("Mul", ["x", "w"], ["y"])],
            "g",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
            [helper.make_tensor_value_info("y", TensorProto.FLOAT, shape)],
            [weights],
        ),
        opset_imports=[helper.make_opsetid("", 17)],
    )
    made.ir_version = 8
    outside = changed == "net.bin"
    (folder / "net.bin").unlink(missing_ok=True)
    onnx.save(made, folder / "net.onnx", save_as_external_data=outside, location="net.bin", size_threshold=0)
    return str(folder / "net.onnx")


@pytest.mark.parametrize(
    ("make", "changed"),
    [(_python, "net.py"), (_python, "gain_of_replaced_models.py"), (_onnx, "net.onnx"), (_onnx, "net.bin")],
)
def test_a_worker_that_would_load_something_else_does_not_come_up(
    make: Callable[[Path, int, str], str], changed: str, tmp_path: Path
) -> None:
    for name, factor in (("old", 2), ("new", 3), ("served", 2)):
        (tmp_path / name).mkdir()
        path = make(tmp_path / name, factor, changed)
    config = write_config(tmp_path / "dlproxy.toml", {"m": {"path": path, "run": "process", "instances": 2}})
    with ServerProcess("--config", config) as server:
        _put(tmp_path / "new" / changed, tmp_path / "served")
        survivor, victim = (one["pid"] for one in server.instances("m"))
        os.kill(victim, signal.SIGKILL)
        _until(lambda: "has changed since" in str(server.instances("m")[1]["last_problem"]))
        assert f"{tmp_path / 'served' / changed} has changed since this model was loaded" in server.errors()
        assert [one["pid"] for one in server.instances("m") if one["state"] == "up"] == [survivor]
        assert {_ask(server) for _ in range(20)} == {2.0}
        _put(tmp_path / "old" / changed, tmp_path / "served")
        _until(lambda: [one["state"] for one in server.instances("m")] == ["up", "up"])
        os.kill(survivor, signal.SIGKILL)  # the one that came back answers alone
        assert {_ask(server) for _ in range(20)} == {2.0}


def test_touching_the_file_is_no_change(tmp_path: Path) -> None:
    path = _python(tmp_path, 2, "net.py")
    config = write_config(tmp_path / "dlproxy.toml", {"m": {"path": path, "instances": 1}})
    with ServerProcess("--config", config) as server:
        for _ in range(2):
            _put(tmp_path / "net.py", tmp_path)
            (pid,) = (one["pid"] for one in server.instances("m"))
            os.kill(pid, signal.SIGKILL)
            _until(lambda: [one["state"] for one in server.instances("m") if one["pid"] not in (None, pid)] == ["up"])  # noqa: B023
        assert _ask(server) == 2.0


def _put(source: Path, folder: Path) -> None:
    """Under another inode, at once, as a deployment would."""
    shutil.copy(source, folder / "arriving")
    os.replace(folder / "arriving", folder / source.name)


def _ask(server: ServerProcess) -> float:
    return float(np.ravel(server.ask("/predict/m", {"inputs": [[1.0]]})["outputs"]["y"])[0])


def _until(condition: Callable[[], bool]) -> None:
    """Each look is a request to the server, which paces the loop."""
    deadline = monotonic() + HANG_S
    while not condition():
        assert monotonic() < deadline, "it did not come to that"

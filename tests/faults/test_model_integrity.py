"""Servers that serve signed models alone, encrypted or not: from a configuration, the control port and a repository."""

import base64
import json
import os
import shutil
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from dlproxy.cli import USER_ERROR, main
from tests.cli.on_a_server import only_line
from tests.clients.server import HANG_S, ServerProcess
from tests.faults.nodes import answer, operate, states, until
from tests.faults.test_repositories import put, settled
from tests.faults.test_rollouts_under_load import adds
from tests.instance.integrity.keys import Keys, flipped

SECRET = "what nobody may read"
CLASS = f"""
import numpy as np
from pathlib import Path


class Adds:  # {SECRET}
    inputs = outputs = {{"x": "FP32[-1,1]"}}
    outputs = {{"y": "FP32[-1,1]"}}

    def load(self):
        self.number = np.load(Path(__file__).with_name("number.npy"))

    def predict(self, batch):
        return {{"y": batch["x"] + self.number}}
"""
KEY_VARIABLE = "THE_MASTER_KEY"

linux = pytest.mark.skipif(sys.platform != "linux", reason="memory that can be opened by a path")


def _class(folder: Path, number: int) -> str:
    import numpy as np

    folder.mkdir(parents=True)
    (folder / "adds.py").write_text(CLASS)
    np.save(folder / "number.npy", np.array([number], np.float32))
    return f"{folder}/adds.py:Adds"


class Scene:
    """Keys, and a configuration that asks for them, in a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.keys = Keys(folder / "keys")
        (folder / "models").mkdir()
        (folder / "cache").mkdir()

    def config(self, models: dict[str, dict[str, Any]], **integrity: str) -> Path:
        section = {"trusted": '["keys/signer.pub"]', "master_key": '"file:keys/master.key"', **integrity}
        lines = ["[server]", 'grpc = "off"', f'calibration_folder = "{self.folder}/cache"', "[integrity]"]
        lines += [f"{name} = {value}" for name, value in section.items() if value]
        for name, settings in models.items():
            lines += [f"[models.{name}]", *(f"{knob} = {json.dumps(value)}" for knob, value in settings.items())]
        path = self.folder / "dlproxy.toml"
        path.write_text("\n".join(lines) + "\n")
        return path

    def onnx(self, number: int, *, signed: bool = True) -> Path:
        file = adds(number, self.folder / "models")
        if signed:
            self.keys.sign(file)
        return file

    def sealed_class(self, number: int) -> str:
        """Encrypted, then signed, of which nothing lies there in plain."""
        plain = self.folder / f"plain{number}"
        _class(plain, number)
        target = self.keys.encrypt(plain, self.folder / "models" / f"sealed{number}")
        shutil.rmtree(plain)
        self.keys.sign(target)
        return f"{target}/adds.py:Adds"


@pytest.fixture
def scene(tmp_path: Path) -> Scene:
    return Scene(tmp_path)


def _start_error(config: Path, capsys: pytest.CaptureFixture[str]) -> str:
    """The one line that a server says which does not start."""
    assert main(["serve", "--config", str(config), "--http-port=0", "--control-port=0", "--quiet"]) == USER_ERROR
    return only_line(capsys)


def _workers(server: ServerProcess) -> list[int]:
    return [int(pid) for pid in os.listdir("/proc") if pid.isdecimal() and _status(pid).get("PPid") == str(server.process.pid)]


def _seen_of(pid: int) -> bytes:
    """What `ps` shows of a process: its arguments and, to its user, its environment."""
    return Path(f"/proc/{pid}/cmdline").read_bytes() + Path(f"/proc/{pid}/environ").read_bytes()


def _status(pid: str) -> dict[str, str]:
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return {}
    return {name: value.strip() for name, _, value in (line.partition(":") for line in lines)}


async def test_from_a_configuration_and_the_control_port(scene: Scene) -> None:
    config = scene.config({"m": {"path": str(scene.onnx(1))}, "asleep": {"path": "sleep:base=1ms"}})
    strange = scene.onnx(2, signed=False)
    with ServerProcess("--config", config) as server:
        assert await answer(server, "/v2/models/m/infer") == 1
        refused = await operate(server, "m", "load", status=400, path=str(strange), version="2")
        assert "is not signed, which [integrity] trusted asks for" in refused["error"]
        scene.keys.sign(strange, strange=True)
        refused = await operate(server, "m", "load", status=400, path=str(strange), version="2")
        assert "which is not trusted" in refused["error"]
        scene.keys.sign(strange)
        flipped(strange, -2)
        refused = await operate(server, "m", "load", status=400, path=str(strange), version="2")
        assert "has been changed, or exchanged for another" in refused["error"]
        assert await answer(server, "/v2/models/m/infer") == 1
        flipped(strange, -2)
        scene.keys.sign(strange, model="other")
        refused = await operate(server, "m", "load", status=400, path=str(strange), version="2")
        assert "is the manifest of model 'other', and must not be served as 'm'" in refused["error"]
        scene.keys.sign(strange, model="m", version="2")
        await operate(server, "m", "load", path=str(strange), version="2")
        assert await answer(server, "/v2/models/m/infer") == 2


def test_a_server_does_not_start_with_what_it_must_not_load(scene: Scene, capsys: pytest.CaptureFixture[str]) -> None:
    model = scene.onnx(1, signed=False)
    config = scene.config({"m": {"path": str(model)}})
    assert f"{model} is not signed, which [integrity] trusted asks for" in _start_error(config, capsys)
    assert "cannot be checked for a signature" in _start_error(scene.config({"m": {"path": "json:JSONDecoder"}}), capsys)
    config = scene.config({"m": {"path": str(model)}}, trusted='["keys/signer.key"]')
    assert "it is a private key, which does not belong where models are served" in _start_error(config, capsys)
    config = scene.config({"m": {"path": str(model)}}, trusted='["nobody.pub"]')
    assert f"[integrity] trusted: {scene.folder}/nobody.pub cannot be read: No such file" in _start_error(config, capsys)
    config = scene.config({"m": {"path": str(model)}}, master_key='"env:NO_SUCH_VARIABLE"')
    assert "the environment variable NO_SUCH_VARIABLE is not set" in _start_error(config, capsys)
    config = scene.config({"m": {"path": scene.sealed_class(3)}}, master_key="")
    assert "is encrypted: say in [integrity] master_key where the key is" in _start_error(config, capsys)
    config = scene.config({"m": {"path": f"{scene.folder}/models/sealed3/adds.py:Adds"}}, master_key='"file:keys/other.key"')
    assert "was encrypted under another master key" in _start_error(config, capsys)


async def test_a_repository(scene: Scene) -> None:
    repository = scene.folder / "models"
    flat = put(repository, "flat.onnx", 6)
    scene.keys.sign(flat)
    first = put(repository, "m/1/model.onnx", 1)
    scene.keys.sign(first.parent)
    put(repository, "unsigned/1/model.onnx", 7)
    with ServerProcess("--config", scene.config({}), "--repository", settled(repository)) as server:
        assert await answer(server, "/v2/models/m/infer") == 1
        assert await answer(server, "/v2/models/flat/infer") == 6
        assert "is not signed" in (await states(server))["unsigned", "1"]["reason"]
        second = put(scene.folder / "made", "2/model.onnx", 2)
        scene.keys.sign(second.parent)
        flipped(second, -2)
        second.parent.rename(repository / "m" / "2")
        refused = lambda told: "has been changed" in told.get(("m", "2"), {}).get("reason", "")  # noqa: E731
        await until(refused, server, within_s=HANG_S)
        assert await answer(server, "/v2/models/m/infer") == 1
        scene.keys.sign(repository / "unsigned" / "1")
        await until(lambda told: told["unsigned", "1"]["phase"] == "serving", server, within_s=HANG_S)
        flipped(repository / "m" / "2" / "model.onnx", -2)
        await until(lambda told: told.get(("m", "2"), {}).get("phase") == "serving", server, within_s=HANG_S)
        assert await answer(server, "/v2/models/m/infer") == 2


@pytest.fixture
def variable(scene: Scene) -> Iterator[str]:
    """The environment variable with the master key, and its value."""
    value = scene.keys.master.read_text().strip()
    os.environ[KEY_VARIABLE] = value
    yield value
    del os.environ[KEY_VARIABLE]


@linux
async def test_worker_processes_load_encrypted_models_and_nobody_sees_the_key(
    scene: Scene, variable: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    temporary = scene.folder / "temporary"
    temporary.mkdir()
    monkeypatch.setenv("TMPDIR", str(temporary))
    monkeypatch.setenv("XDG_CACHE_HOME", str(scene.folder / "cache"))
    onnx = scene.keys.encrypt(scene.onnx(5, signed=False), scene.folder / "models" / "sealed.onnx")
    scene.keys.sign(onnx)
    models = {
        "m": {"path": scene.sealed_class(4), "run": "process", "instances": 2},
        "here": {"path": str(onnx)},
    }
    with ServerProcess("--config", scene.config(models, master_key=f'"env:{KEY_VARIABLE}"')) as server:
        assert await answer(server, "/v2/models/m/infer") == 4
        assert await answer(server, "/v2/models/here/infer") == 5
        workers = _workers(server)
        assert len(workers) == 2
        for pid in workers:
            seen = _seen_of(pid)
            assert variable.encode() not in seen
            assert f"{KEY_VARIABLE}=\0".encode() in seen
        assert f"{KEY_VARIABLE}={variable}".encode() in _seen_of(server.process.pid)  # which is why a file is better
        os.kill(workers[0], signal.SIGKILL)
        await until(
            lambda told: (
                told["m", "1"]["instances"][0]["restarts"] + told["m", "1"]["instances"][1]["restarts"] > 0
                and all(one["state"] == "up" for one in told["m", "1"]["instances"])
            ),
            server,
            within_s=HANG_S,
        )
        assert await answer(server, "/v2/models/m/infer") == 4
        said = server.errors() + server.report
    left = [path for path in temporary.rglob("*") if path.is_file()]
    written = [*(scene.folder / "cache").rglob("*"), *left]
    contents = [said.encode(), *(path.read_bytes() for path in written if path.is_file())]
    for data in contents:
        for secret in (SECRET.encode(), variable.encode(), base64.b64decode(variable)):
            assert secret not in data
    assert left == []


@linux
async def test_a_worker_that_starts_anew_refuses_what_has_changed(scene: Scene) -> None:
    path = scene.sealed_class(4)
    with ServerProcess("--config", scene.config({"m": {"path": path, "run": "process"}})) as server:
        assert await answer(server, "/v2/models/m/infer") == 4
        flipped(scene.folder / "models" / "sealed4" / "number.npy", -1)
        os.kill(_workers(server)[0], signal.SIGKILL)
        problem = lambda told: told["m", "1"]["instances"][0].get("last_problem") or ""  # noqa: E731
        await until(lambda told: "has changed" in problem(told) or "has been changed" in problem(told), server, within_s=HANG_S)
        flipped(scene.folder / "models" / "sealed4" / "number.npy", -1)
        await until(lambda told: told["m", "1"]["ready"], server, within_s=HANG_S)
        assert await answer(server, "/v2/models/m/infer") == 4

"""`dlproxy infer`: inputs however they are given, answers however they are wanted, and what is said when something is wrong."""

import io
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from dlproxy.cli import USER_ERROR, main
from dlproxy.cli.terminal import FAILED, INTERRUPTED
from dlproxy.message import DType
from tests import models
from tests.cli.on_a_server import only_line
from tests.clients.server import HANG_S, ServerProcess, environment, write_config

COUNTER = """
from pathlib import Path

class Counter:
    inputs, outputs = {"x": "FP32[-1]"}, {"y": "FP32[-1]"}
    streams = True

    def predict(self, batch):
        for step in range(3):
            yield {"y": batch["x"] + step}

class Broken:
    inputs, outputs = {"x": "FP32[-1]"}, {"y": "FP32[-1]"}

    def predict(self, batch):
        if batch["x"].max() > 100:
            raise ValueError("too much")
        return {"y": batch["x"]}

class Blob:
    inputs, outputs = {"b": "BYTES[-1]"}, {"same": "BYTES[-1]"}

    def predict(self, batch):
        return {"same": batch["b"]}
"""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    folder: Path = tmp_path_factory.mktemp("models")
    (folder / "counter.py").write_text(COUNTER)
    settings = {
        "digits": {"path": models.DIGITS, "threads": 1},
        "simple": {"path": models.save(models.two_in_two_out(), folder / "simple.onnx"), "threads": 1},
        "text": {"path": models.save(models.identity(DType.BYTES, ("N", 2)), folder / "text.onnx"), "threads": 1},
        "word": {"path": models.save(models.identity(DType.BYTES, ("N", 1)), folder / "word.onnx"), "threads": 1},
        "counter": {"path": f"{folder / 'counter.py'}:Counter"},
        "blob": {"path": f"{folder / 'counter.py'}:Blob"},
        "broken": {"path": f"{folder / 'counter.py'}:Broken"},
    }
    with ServerProcess("--config", write_config(folder / "dlproxy.toml", settings)) as process:
        yield process


@pytest.fixture
def url(server: ServerProcess) -> str:
    return f"http://{server.address}"


def _said(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> str:
    """What `dlproxy infer ARGUMENTS` prints, which must go well."""
    code = main(["infer", *map(str, arguments)])
    captured = capsys.readouterr()
    assert (code, captured.err) == (0, "")
    return captured.out


def _json(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> list[object]:
    return [json.loads(line) for line in _said(capsys, *arguments, "--format", "json").splitlines()]


def _complaint(capsys: pytest.CaptureFixture[str], *arguments: str | Path, code: int = USER_ERROR) -> str:
    assert main(["infer", *map(str, arguments)]) == code
    return only_line(capsys)


# Inputs


def test_inputs_as_json_and_outputs_as_text(url: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert _said(capsys, url, "simple", "a=[[1,2,3,4]]", "b=[[1,1,1,1]]") == (
        "sum  int32 [1,4]\n[[2, 3, 4, 5]]\ndiff  int32 [1,4]\n[[0, 1, 2, 3]]\n"
    )


def test_files_of_every_kind(url: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    a = np.arange(4, dtype=np.int32).reshape(1, 4)
    np.save(tmp_path / "a.npy", a)
    np.savez(tmp_path / "both.npz", a=a, b=a)
    (tmp_path / "b.json").write_text("[[0, 1, 2, 3]]")
    (tmp_path / "both.json").write_text(json.dumps({"a": a.tolist(), "b": a.tolist()}))
    (tmp_path / "b.bin").write_bytes(a.tobytes())
    expected = [{"sum": [[0, 2, 4, 6]], "diff": [[0, 0, 0, 0]]}]
    for given in (
        [f"a=@{tmp_path}/a.npy", f"b=@{tmp_path}/b.json"],
        [f"a=@{tmp_path}/both.npz", f"b=@{tmp_path}/b.bin"],
        [f"@{tmp_path}/both.npz"],
        [f"@{tmp_path}/both.json"],
        [json.dumps({"a": a.tolist(), "b": a.tolist()})],
    ):
        assert _json(capsys, url, "simple", *given) == expected, given


@pytest.mark.parametrize("form", ["npy", "npz", "json"])
def test_the_standard_input(url: str, form: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    image, data = np.zeros((1, 1, 8, 8), np.float32), io.BytesIO()
    if form == "json":
        data.write(json.dumps(image.tolist()).encode())
    elif form == "npz":
        np.savez(data, image=image)
    else:
        np.save(data, image)
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(data.getvalue())))
    assert "probabilities  float32 [1,10]" in _said(capsys, url, "digits", "@-")


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ('[["a", "ü"]]', [["a", "ü"]]),
        ('x=[["a=b", "@c"]]', [["a=b", "@c"]]),
    ],
)
def test_strings(url: str, given: str, expected: object, capsys: pytest.CaptureFixture[str]) -> None:
    name = "x=" if given.startswith("x=") else ""
    word = given.removeprefix(name)
    ((output, values),) = _json(capsys, url, "text", word)[0].items()  # type: ignore[attr-defined]
    assert (bool(output), values) == (True, expected)


def test_text_and_bytes_of_a_file_are_one_element(url: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "image.jpg").write_bytes(b"\xff\xd8\xff\x00")
    assert _json(capsys, url, "blob", f"@{tmp_path}/image.jpg") == [{"same": [{"b64": "/9j/AA=="}]}]
    assert "b'\\xff\\xd8" in _said(capsys, url, "blob", f"b=@{tmp_path}/image.jpg")
    assert "ends in a zero byte" in _complaint(capsys, url, "blob", f"@{tmp_path}/image.jpg", "-o", tmp_path / "out.npz")
    ((_, values),) = _json(capsys, url, "word", "hello there")[0].items()  # type: ignore[attr-defined]
    assert values == [["hello there"]]
    assert "hello" in _said(capsys, url, "word", "hello")


def test_one_number_has_the_dimensions_of_the_input(url: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert _json(capsys, url, "broken", "x=3") == [{"y": [3.0]}]


# Outputs


def test_parts_of_an_answer(url: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert _json(capsys, url, "counter", "[1]") == [{"y": [1.0]}, {"y": [2.0]}, {"y": [3.0]}]
    assert _said(capsys, url, "counter", "[1]").split("\n\n")[2] == "y  float32 [1]\n[3.]\n"
    said = _said(capsys, url, "counter", "[1]", "-o", tmp_path / "out.npz")
    assert said == f"{tmp_path}/out.npz: y float32 [1], 3 parts\n"
    with np.load(tmp_path / "out.npz") as saved:
        assert {name: saved[name].tolist() for name in saved.files} == {"y.0": [1.0], "y.1": [2.0], "y.2": [3.0]}


@pytest.mark.parametrize("suffix", ["npy", "npz", "json"])
def test_answers_in_files(url: str, suffix: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / f"out.{suffix}"
    _said(capsys, url, "broken", "[1, 2]", "-o", path)
    if suffix == "json":
        assert json.loads(path.read_text()) == {"y": [1.0, 2.0]}
    else:
        saved = np.load(path)
        assert (saved["y"] if suffix == "npz" else saved).tolist() == [1.0, 2.0]


def test_npy_on_the_standard_output(url: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "dlproxy", "infer", url, "broken", "[1, 2]", "--format", "npy"],
        capture_output=True,
        timeout=HANG_S,
        env=environment(),
        check=True,
    )
    assert np.load(io.BytesIO(done.stdout)).tolist() == [1.0, 2.0]


# What is wrong


@pytest.mark.parametrize(
    ("arguments", "clue"),
    [
        (["digts", "[1]"], "serves no model 'digts'; did you mean digits?"),
        (["zzz", "[1]"], "serves no model 'zzz'; choose from "),
        (["digits", "[1]", "--version", "9"], "serves 'digits', but not in this version"),
        ([], "name a model; http://"),
        (["digits"], "digits takes image (FP32 [-1,1,8,8]); give its inputs like image=@image.npy"),
        (["simple", "[[1,2,3,4]]"], "simple takes a (INT32 [-1,4]), b (INT32 [-1,4]); say which input"),
        (["simple", "a=[[1,2,3,4]]"], "expected 2 inputs but got 1"),
        (["simple", "a=[[1]]", "a=[[2]]"], "input 'a' is given twice"),
        (["digits", "imge=[1]"], "has no input 'imge'; did you mean 'image'?"),
        (
            ["digits", "[[1,2],[3,4]]"],
            "dlproxy: unexpected shape for input 'image' for model 'digits'. Expected [-1,1,8,8], got [2,2]",
        ),
        (["digits", "image=[[1,2"], "image: '[[1,2' is not complete JSON"),
        (["digits", "image=hello"], "input 'image' is FP32; 'hello' is none"),
        (["digits", "image=@nowhere.npy"], "nowhere.npy cannot be read: no such file"),
        (["digits", "[1]", "-o", "out.txt"], "out.txt says no format"),
        (["digits", "[1]", "-o", "/nowhere/out.npz"], "there is no folder /nowhere"),
        (["simple", "a=[[1,2,3,4]]", "b=[[1,2,3,4]]", "--format", "npy"], "npy holds one array"),
        (["digits", "[1]", "--timeout", "soon"], "--timeout soon is not a duration"),
        (["digits", "[1]", "--header", "novalue"], "has no colon"),
        (["digits", "[1]", "--header", "te: x"], "header 'te' cannot be sent"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_mistakes_are_told_in_one_line(url: str, arguments: list[str], clue: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert clue in _complaint(capsys, url, *arguments)


def test_raw_bytes_that_do_not_fit(url: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "image.raw").write_bytes(bytes(100))
    assert "100 bytes do not make FP32 [-1,1,8,8]" in _complaint(capsys, url, "digits", f"@{tmp_path}/image.raw")
    (tmp_path / "image.npy").write_bytes(b"\x93NUMPY and no more")
    assert "cannot be read" in _complaint(capsys, url, "digits", f"@{tmp_path}/image.npy")


def test_a_model_that_fails_is_no_mistake_of_the_user(url: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert "too much" in _complaint(capsys, url, "broken", "[1000]", code=FAILED)


def test_nobody_listens(capsys: pytest.CaptureFixture[str]) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}"
        assert f"cannot reach {url}: connection refused; is a server running there?" in _complaint(capsys, url, "m", "[1]")
    assert "'ftp://h' is no address of a server" in _complaint(capsys, "ftp://h", "m", "[1]")


def test_a_server_that_does_not_answer_in_time(capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        assert "no answer within 0.1 s" in _complaint(capsys, url, "m", "[1]", "--timeout", "100ms", code=FAILED)


def test_an_interrupt_ends_it_without_a_traceback() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        process = subprocess.Popen(
            [sys.executable, "-m", "dlproxy", "infer", f"http://127.0.0.1:{silent.getsockname()[1]}", "m", "[1]"],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=environment(),
        )
        silent.settimeout(HANG_S)
        connection, _ = silent.accept()
        with connection:
            connection.recv(1)
            os.kill(process.pid, signal.SIGINT)
            out, err = process.communicate(timeout=HANG_S)
    assert (process.returncode, out, err) == (INTERRUPTED, "", "")

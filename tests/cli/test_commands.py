"""The command line: quick to help, and whatever is wrong is said in one line that names the remedy; exit code 2."""

import gc
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from dlproxy import __version__
from dlproxy.cli import USER_ERROR, main, serve, whole_parser
from dlproxy.cli.terminal import INTERRUPTED
from dlproxy.message import DType, TensorSpec
from tests import models
from tests.cli.on_a_server import only_line
from tests.clients.server import HANG_S, ServerProcess, environment, write_config


def _python(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *arguments], capture_output=True, text=True, timeout=HANG_S, env=environment(), check=False
    )


def _main(*arguments: str) -> int:
    """`main`, which if it serves against expectation is ended by a signal."""
    guard = threading.Timer(HANG_S / 4, os.kill, (os.getpid(), signal.SIGTERM))
    guard.start()
    try:
        return main(arguments)
    finally:
        guard.cancel()
        guard.join()


def _complaint(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> str:
    """What `dlproxy serve ARGUMENTS` says when it refuses to start."""
    assert _main("serve", *map(str, arguments), "--http-port=0", "--control-port=0") == USER_ERROR
    return only_line(capsys)


# Help


def test_help_names_the_commands_and_imports_nothing_heavy() -> None:
    code = (
        "import sys\n"
        "from dlproxy.cli import main\n"
        "try: main(['--help'])\n"
        "except SystemExit as end: assert end.code == 0\n"
        "heavy = {'numpy', 'onnxruntime', 'uvicorn', 'starlette', 'asyncio', 'msgspec'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    done = _python("-c", code)
    assert done.returncode == 0, done.stderr
    assert re.search(r"\bserve\b", done.stdout)
    assert re.search(r"\bdemo\b", done.stdout)


def test_importing_the_package_imports_nothing_heavy() -> None:
    done = _python("-c", "import sys, dlproxy; assert not {'numpy', 'onnxruntime', 'msgspec'} & set(sys.modules)")
    assert done.returncode == 0, done.stderr


def test_the_module_is_the_command() -> None:
    done = _python("-m", "dlproxy", "--version")
    assert (done.returncode, done.stdout) == (0, f"dlproxy {__version__}\n")


@pytest.mark.parametrize("arguments", [[], ["sevre"], ["serve", "--bogus"], ["serve", "--http-port", "eighty"]])
def test_arguments_that_make_no_sense_exit_with_2(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == USER_ERROR
    assert "usage: dlproxy" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "usage", "complaint"),
    [
        (["sevre"], "dlproxy", "there is no command 'sevre'; did you mean serve?"),
        (
            ["zzz"],
            "dlproxy",
            "there is no command 'zzz'; choose from serve, init, migrate, check, models, infer, keys, autopilot, cache, top, "
            "gateways, logs, why, demo, casestudy, bench, evaluate, simulate, tune, compress, cascade, split, learn, monitor, "
            "place, report, record, replay, completion",
        ),
        (["--verison"], "dlproxy", "unexpected argument --verison; did you mean --version?"),
        (
            ["serve", "m.onnx", "--http-prot", "80"],
            "dlproxy serve",
            "unexpected argument --http-prot; did you mean --http-port?",
        ),
        (["serve", "--http-prot=80", "m.onnx"], "dlproxy serve", "unexpected argument --http-prot; did you mean --http-port?"),
        (["serve", "--control", "80"], "dlproxy serve", "unexpected argument --control; did you mean --control-port?"),
        (["serve", "--log-format", "jsn"], "dlproxy serve", "there is no format 'jsn'; did you mean json?"),
        (["bench", "http://h", "--modle", "m"], "dlproxy bench", "unexpected argument --modle; did you mean --model?"),
        (["models", "shwo", "m"], "dlproxy models", "there is no action 'shwo'; did you mean show?"),
        (["models", "set", "m", "a=1", "--jsn"], "dlproxy models set", "unexpected argument --jsn; did you mean --json?"),
        (["demo", "fast"], "dlproxy demo", "unexpected argument fast"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_what_is_mistyped_is_answered_with_what_was_probably_meant(
    arguments: list[str], usage: str, complaint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == USER_ERROR
    said = capsys.readouterr().err.splitlines()
    assert said[0].startswith(f"usage: {usage} ")
    assert said[-1] == f"{usage}: error: {complaint}"


def test_ctrl_c_while_arguments_are_read_is_no_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    def press(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("dlproxy.cli.parser.Parser.parse", press)
    assert main(["serve"]) == INTERRUPTED


# serve refuses


def _truncated(folder: Path) -> Path:
    path = folder / "cut.onnx"
    path.write_bytes(models.DIGITS.read_bytes()[:1000])
    return path


def _text(folder: Path) -> Path:
    path = folder / "notes.onnx"
    path.write_text("dear diary")
    return path


def _pointer(folder: Path) -> Path:
    path = folder / "large.onnx"
    path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n")
    return path


@pytest.mark.parametrize(
    ("make", "clues"),
    [
        pytest.param(lambda folder: folder / "nowhere.onnx", ["nowhere.onnx", "does not exist"], id="missing"),
        pytest.param(lambda folder: folder, ["is a directory", "dlproxy takes"], id="directory"),
        pytest.param(_truncated, ["cut.onnx", "is not a model that ONNX Runtime"], id="truncated"),
        pytest.param(_text, ["notes.onnx", "is not a model that ONNX Runtime"], id="text"),
        pytest.param(_pointer, ["large.onnx is a pointer of Git LFS", "git lfs pull"], id="pointer"),
        pytest.param(
            lambda folder: models.save(models.without_inputs(), folder / "none.onnx"), ["declares no inputs"], id="no inputs"
        ),
    ],
)
def test_a_model_that_cannot_be_served_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], make: Callable[[Path], Path], clues: list[str]
) -> None:
    complaint = _complaint(capsys, f"m={make(tmp_path)}")
    assert not [clue for clue in clues if clue not in complaint], complaint


@pytest.mark.parametrize(
    ("arguments", "clues"),
    [
        ([], ["no model given", "dlproxy serve MODEL.onnx"]),
        (["--slo", "fast", models.DIGITS], ["slo 'fast'", "p99=20ms"]),
        ([models.DIGITS, models.DIGITS], ["two models are named 'digits'", "NAME=PATH"]),
        ([f"a={models.DIGITS}", f"a={models.DIGITS}"], ["two models are named 'a'"]),
        ([f"a\nb={models.DIGITS}"], ["'a\\nb' cannot be a model's name", "printable text without a slash", "NAME=PATH"]),
        ([f"caf\udce9={models.DIGITS}"], ["'caf\\udce9' cannot be a model's name"]),
        ([f"a/b={models.DIGITS}"], ["model file a/b=", "does not exist"]),
        ([f" a={models.DIGITS}"], ["' a' cannot be a model's name"]),
        ([f"..={models.DIGITS}"], ["'..' cannot be a model's name"]),
        (["--repository", "models", "--repository-mode", "often"], ["--repository-mode", "'often' is not one of", "explicit"]),
        (["--repository-mode", "none", models.DIGITS], ["repository_mode = 'none' has no effect: it needs a repository"]),
        (["--config", "nowhere.toml"], ["nowhere.toml", "cannot be read"]),
        (["--ray=ray://head:10001", models.DIGITS], ["--ray: ray_address = 'ray://head:10001'", "such as 10.0.0.1:6379"]),
        (["--ray", "10.0.0.1:6379", models.DIGITS], ["model file 10.0.0.1:6379 does not exist", "--ray=10.0.0.1:6379"]),
        (["--host", "no.such.host.invalid", models.DIGITS], ["cannot listen on no.such.host.invalid"]),
    ],
)
def test_arguments_that_cannot_be_used_are_answered_in_one_line(
    capsys: pytest.CaptureFixture[str], arguments: list[str | Path], clues: list[str]
) -> None:
    complaint = _complaint(capsys, *arguments)
    assert not [clue for clue in clues if clue not in complaint], complaint


def test_ray_is_for_the_models_that_do_not_say_where_they_run(tmp_path: Path) -> None:
    config = tmp_path / "dlproxy.toml"
    config.write_text(f"[models.here]\npath = '{models.DIGITS}'\nrun = 'thread'\n[models.there]\npath = 'http://other/m'\n")
    for option, address in (("--ray", "auto"), ("--ray=local", "local"), ("--ray=10.0.0.1:6379", "10.0.0.1:6379")):
        args = whole_parser().parse(["serve", option, f"a={models.DIGITS}", "--config", str(config)])
        runs = {name: (model.run, model.ray_address) for name, model in serve.configured(args).served()}
        assert runs == {"here": ("thread", "auto"), "there": ("auto", "auto"), "a": ("ray", address)}


@pytest.mark.parametrize("option", ["--http-port", "--control-port"])
@pytest.mark.parametrize("port", ["70000", "-1"])
def test_a_port_out_of_range_is_named(capsys: pytest.CaptureFixture[str], option: str, port: str) -> None:
    assert _main("serve", str(models.DIGITS), f"{option}={port}") == USER_ERROR
    (line,) = capsys.readouterr().err.splitlines()
    assert option in line
    assert "65535" in line or "0" in line


@pytest.mark.parametrize("option", ["--http-port", "--control-port"])
def test_a_port_in_use_is_named(capsys: pytest.CaptureFixture[str], option: str) -> None:
    other = {"--http-port": "--control-port=0", "--control-port": "--http-port=0"}[option]
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert _main("serve", str(models.DIGITS), f"{option}={port}", other) == USER_ERROR
    (line,) = capsys.readouterr().err.splitlines()
    assert f"cannot listen on 127.0.0.1:{port}" in line
    assert f"{option} 0 picks a free port" in line


def test_one_port_for_both_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "dlproxy.toml").write_text("[server]\ncontrol_port = 8000\n")
    for arguments in (["--port=8123", "--control-port=8123"], ["--config", str(tmp_path / "dlproxy.toml")]):
        assert _main("serve", str(models.DIGITS), *arguments) == USER_ERROR
        (line,) = capsys.readouterr().err.splitlines()
        assert re.search(r"--http-port and --control-port are both (8123|8000); give each a port of its own", line)


@pytest.mark.parametrize("command", ["serve", "simulate"])
def test_an_objective_that_no_model_would_get_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], command: str
) -> None:
    config = write_config(tmp_path / "dlproxy.toml", {"m": {"path": "sleep:base=1ms"}})
    load = ["--rate=1"] if command == "simulate" else []
    assert _main(command, "--config", str(config), "--slo=p99=20ms", *load) == USER_ERROR
    (line,) = capsys.readouterr().err.splitlines()
    assert "--slo is for models given on the command line, and there are none" in line


def test_a_socket_and_a_port_contradict_each_other(capsys: pytest.CaptureFixture[str]) -> None:
    assert "either --uds or --http-port" in _complaint(capsys, models.DIGITS, "--uds=/no/matter.sock")


def test_an_event_log_that_cannot_be_written_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("in the way")
    assert "cannot record to" in _complaint(capsys, models.DIGITS, "--event-log", tmp_path / "file")


def test_mistakes_in_the_file_are_named_with_their_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "dlproxy.toml"
    for text, clue in (
        ("[server\n", "line 1"),
        ("[server]\nhttp_prot = 1\n", "dlproxy.toml:2: unknown key 'http_prot'"),
        (f"[models.a]\npath = '{models.DIGITS}'\nslo = 'fast'\n", "dlproxy.toml:3: slo 'fast'"),
        (
            f"[models.a]\npath = '{models.DIGITS}'\nbalancer = 'pequal'\n",
            "dlproxy.toml:3: models.a.balancer: 'pequal' is not one of its values",
        ),
        (f"[tenants.a]\nrows_per_s = 1e-9\n[models.a]\npath = '{models.DIGITS}'\n", "tenants.a: rows_per_s is 1e-09"),
    ):
        path.write_text(text, "utf-8")
        assert clue in _complaint(capsys, "--config", path)


def test_cores_that_do_not_suffice_are_named_and_nothing_is_left_running(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sleeper = {"path": "sleep:base=1ms", "run": "thread", "instances": 3}
    server = {"arbiter": "auto", "cores": 2, "reserved_cores": 2, "event_log": str(tmp_path / "log")}
    path = write_config(tmp_path / "dlproxy.toml", {"a": sleeper, "b": sleeper}, **server)
    before = set(threading.enumerate())
    complaint = _complaint(capsys, "--config", path)
    assert "a batch of model a takes 1 cores, but of 2 cores 2 are reserved" in complaint
    gc.collect()
    assert set(threading.enumerate()) <= before
    for log in (tmp_path / "log").iterdir():
        assert log.read_bytes(), "a recording that was begun is closed"


CLASSES = """
class Base:
    inputs = outputs = {"x": "FP32[-1]"}

class MyModel(Base):
    def __init__(self, size): ...
    def predict(self, batch): return batch

class Loads(Base):
    def load(self): open("/no/where")
    def predict(self, batch): return batch
"""


@pytest.mark.parametrize(
    ("path", "complaint"),
    [
        ("modle.py:MyModel", "model file modle.py does not exist; did you mean model.py?"),
        ("modle:MyModel", "there is no module modle in {folder} or among the installed packages; did you mean model?"),
        ("model.py:MyModle", "model.py has no class MyModle; did you mean MyModel?"),
        ("model:MyModel", "model:MyModel: MyModel() wants size; dlproxy calls it without arguments"),
        ("model:Base", "model:Base: Base has no method predict(self, batch) that gives a dict of arrays"),
        (
            "model.py:Loads",
            "model.py:Loads: Loads.load() raised FileNotFoundError: [Errno 2] No such file or directory: '/no/where' "
            "(model.py, line 10)",
        ),
    ],
)
def test_a_class_that_cannot_be_served_is_told_in_a_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], path: str, complaint: str
) -> None:
    (tmp_path / "model.py").write_text(CLASSES)
    monkeypatch.chdir(tmp_path)
    assert _complaint(capsys, path) == f"dlproxy: {complaint.format(folder=tmp_path)}"


def test_the_second_of_two_models_that_is_broken_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "notes.onnx" in _complaint(capsys, models.DIGITS, _text(tmp_path))


def test_a_refusal_shows_no_traceback_to_the_shell(tmp_path: Path) -> None:
    done = _python("-m", "dlproxy", "serve", str(_truncated(tmp_path)), "--http-port=0", "--control-port=0")
    assert done.returncode == USER_ERROR
    assert done.stdout == ""
    assert len(done.stderr.splitlines()) == 1, done.stderr


# serve reports


def test_the_report_says_what_was_found_and_where_to_ask(tmp_path: Path) -> None:
    settings = {
        "digits": {"path": models.DIGITS, "slo": "rate>=5, p95=1us", "slo_by_priority.1": "p99=1s", "threads": 1},
        "rows": {"path": models.save(models.softmax_over_rows(), tmp_path / "s.onnx"), "threads": 1},
        "text": {"path": models.save(models.identity(DType.BYTES), tmp_path / "t.onnx"), "run": "thread", "instances": 2},
    }
    odd = tmp_path / "run=3"
    odd.mkdir()
    shutil.copy(models.DIGITS, odd / "copied.onnx")
    config = write_config(tmp_path / "dlproxy.toml", settings)
    with ServerProcess("--config", config, f"again={odd / 'copied.onnx'}", odd / "copied.onnx") as server:
        report = server.report
        assert re.search(r"^model digits version 1$", report, re.MULTILINE)
        assert re.search(r"^model again version 1$", report, re.MULTILINE)
        assert re.search(r"^model copied version 1$", report, re.MULTILINE)
        assert re.search(r"inputs +image FP32 \[N,1,8,8\]", report)
        assert re.search(r"outputs +probabilities FP32 \[N,10\]", report)
        assert re.search(r"inline on the event loop, 1 thread each, [\d.]+ [mµ]s a row, up to \d+ rows? a batch", report)
        assert re.search(r"target +p95=1us, rate>=5; priority 1: p99=1s$", report, re.MULTILINE)
        assert re.search(r"warning +p95=1us cannot be met: one row alone takes .*; the nearest that can is p95=", report)
        assert re.search(r"warning .*a row's answer depends on its neighbours", report)
        assert re.search(r"one request at a time", report)
        assert re.search(r"on 2 threads", report)
        assert re.search(rf"inference +http://127\.0\.0\.1:{server.http_port}/v2", report)
        assert re.search(rf"metrics +http://127\.0\.0\.1:{server.control_port}/metrics", report)
        assert report.endswith("ready; Ctrl-C stops\n")
        assert server.stop() == 0
        assert "Traceback" not in server.errors()


def test_ready_is_true_of_both_ports() -> None:
    with ServerProcess(models.DIGITS) as server:
        for port in (server.control_port, server.http_port):
            socket.create_connection(("127.0.0.1", port), timeout=HANG_S).close()
        assert server.metric("dlproxy_model_ready", model="digits") == 1


def test_a_reader_that_leaves_early_as_head_does_is_no_error() -> None:
    code = "from dlproxy.cli.terminal import say\nfor line in range(100_000): say('a line of some length')\n"
    reader = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment()
    )
    assert reader.stdout is not None
    assert reader.stderr is not None
    with reader:
        assert reader.stdout.readline() == "a line of some length\n"
        reader.stdout.close()
        assert reader.stderr.read() == ""
        assert reader.wait(HANG_S) == 0


def test_an_option_holds_over_the_environment_and_the_environment_over_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "c.toml").write_text(
        "[server]\nhttp_port = 1\ncontrol_port = 1\ndrain_s = 1\n[models.m]\npath = 'a.onnx'\n[tenants.a]\nweight = 2\n"
    )
    monkeypatch.setenv("DLPROXY_CONFIG", str(tmp_path / "c.toml"))
    monkeypatch.setenv("DLPROXY_HTTP_PORT", "2")
    monkeypatch.setenv("DLPROXY_CONTROL_PORT", "2")
    monkeypatch.setenv("DLPROXY_HOTS", "0.0.0.0")
    monkeypatch.setenv("DLPROXY_AUTOPILOT", "advise")
    config = serve.configured(whole_parser().parse_args(["serve", "--http-port", "3", "--autopilot", "on"]))
    assert config.autopilot.mode == "on"
    assert (config.server.http_port, config.server.control_port, config.server.drain_s) == (3, 2, 1.0)
    assert [name for name, _ in config.served()] == ["m"]
    warnings = capsys.readouterr().err
    assert "DLPROXY_HOTS sets nothing; did you mean 'DLPROXY_HOST'?" in warnings
    assert "tenants.a: weight = 2 has no effect" in warnings


def test_options_that_set_knobs_have_the_knobs_words(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["serve", "--help"])
    text = " ".join(capsys.readouterr().out.split())
    assert serve.AS_KNOB not in text
    for words in ("--http-port PORT, --port PORT port for inference; 0 picks a free one (default 8000)", "replay; empty: off"):
        assert words in text


def test_a_wrong_variable_is_a_mistake_of_the_user(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("DLPROXY_HTTP_PORT", "70000")
    assert "DLPROXY_HTTP_PORT: " in _complaint(capsys, models.DIGITS)


@pytest.mark.parametrize(
    ("shape", "axes", "rows", "sizes"),
    [
        ((-1, -1, 3, -1), (), 0, "N,A,3,B"),
        ((-1, -1, -1), ("batch", "", "A"), 0, "batch,B,A"),
        ((-1, -1), (), None, "A,B"),
        ((2, -1), (), 1, "2,N"),
        ((), (), 0, ""),
    ],
)
def test_open_sizes_are_told_apart(shape: tuple[int, ...], axes: tuple[str, ...], rows: int | None, sizes: str) -> None:
    assert ",".join(TensorSpec("x", DType.FP32, shape, axes=axes, rows=rows).sizes) == sizes

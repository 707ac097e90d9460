"""`dlproxy models` on a real server: what it shows, what it changes, and that every mistake is one line and exit code 2."""

import json
import re
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import msgspec
import pytest

from dlproxy.cli import USER_ERROR, control_port, main
from dlproxy.cli.terminal import INTERRUPTED
from dlproxy.cli.told import CandidateState, ModelState, ScalingState, SequencesState, StreamsState, VariantsState
from tests.cli.on_a_server import Succeeds, fixtures
from tests.clients.server import HANG_S, ServerProcess, environment, write_config


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """many, on threads, whose number can change, and quick, on the event loop."""
    models = {
        "many": {"path": "sleep:base=1ms", "run": "thread", "slo": "p99=50ms"},
        "quick": {"path": "sleep:base=10us", "run": "inline"},
    }
    with ServerProcess("--config", write_config(tmp_path_factory.mktemp("models") / "dlproxy.toml", models)) as process:
        yield process


models, complaint = fixtures("models")


def test_all_models_stand_in_a_table(models: Succeeds) -> None:
    headings, many, quick = models()
    assert re.split(r"  +", headings) == [
        *("model", "version", "state", "requests", "up", "run", "queued rows", "batch limit", "objective")
    ]
    assert re.fullmatch(r"many +1 +ready +default +1/1 +thread +0 +\d+ +p99=50ms", many)
    assert re.fullmatch(r"quick +1 +ready +default +1/1 +inline +0 +\d+ +-", quick)
    assert many.index("thread") == quick.index("inline") == headings.index("run"), "columns are aligned"
    assert models("list") == models()


def test_one_model_is_shown_with_its_instances_and_knobs(models: Succeeds) -> None:
    lines = models("show", "many")
    assert lines[0] == "model many version 1, ready"
    instance = next(line for line in lines if line.startswith("many-0"))
    assert re.fullmatch(r"many-0 +up +[\d.]+ (s|min) +0 +closed +0/1 +- +-", instance)
    assert any(re.fullmatch(r'slo +"p99=50ms"', line) for line in lines)
    assert any(re.fullmatch(r"hedge +false", line) for line in lines)


def test_json_is_what_the_server_says(models: Succeeds) -> None:
    every = json.loads("\n".join(models("--json")))
    assert [model["name"] for model in every] == ["many", "quick"]
    one = json.loads("\n".join(models("show", "quick", "--json")))
    assert (one["name"], one["arbitrated"], one["instances"][0]["state"]) == ("quick", False, "up")
    assert json.loads("\n".join(models("--json", "set", "quick", "max_batch=7")))["knobs"]["max_batch"] == 7


def test_instances_grow_and_shrink(models: Succeeds) -> None:
    assert models("scale", "many", "3") == ["many: 3 of 3 instances up"]
    assert "3/3" in models()[1]
    assert models("scale", "many", "0") == ["many: 0 of 0 instances up"]
    assert models("show", "many")[0] == "model many version 1, not ready"
    assert models("scale", "many", "1") == ["many: 1 of 1 instances up"]


def test_knobs_change(models: Succeeds) -> None:
    changes = ["max_batch=32", "slo=p99=30ms", "hedge=true", "discipline=sjf", "max_wait_s=0.5"]
    told = ["max_batch = 32", 'slo = "p99=30ms"', "hedge = true", 'discipline = "sjf"', "max_wait_s = 0.5"]
    assert models("set", "quick", *changes) == [f"quick: {line}" for line in told]
    assert models("set", "quick", "slo=", "max_wait_s=0") == ['quick: slo = ""', "quick: max_wait_s = 0.0"]


@pytest.mark.parametrize(
    ("arguments", "clues"),
    [
        (["show", "mayn"], ["serves no model 'mayn'", "did you mean 'many'?"]),
        (["show", "zzz"], ["serves no model 'zzz'", "it serves many, quick"]),
        (["show", "a/b?c"], ["serves no model 'a/b?c'"]),
        (["scale", "zzz", "2"], ["serves no model 'zzz'"]),
        (["set", "zzz", "hedge=true"], ["serves no model 'zzz'"]),
        (["scale", "many", "-1"], ["instances -1 is out of range", "0 to 256"]),
        (["scale", "many", "257"], ["instances 257 is out of range", "0 to 256"]),
        (["scale", "quick", "2"], ["model quick runs on the event loop", "run = 'thread'"]),
        (["set", "many", "max_bach=3"], ["'max_bach' cannot be changed", "did you mean 'max_batch'?"]),
        (["set", "many", "hedge=yes"], ["hedge: expected `bool`, got `str`"]),
        (["set", "many", "hedge"], ["'hedge' has no value", "max_batch=32"]),
        (["set", "many", "hedge=true", "hedge=false"], ["hedge is given twice"]),
        (["set", "many", "slo=\udcff"], ["'slo=\\udcff' contains characters that no knob has"]),
        (["show", "\udcff"], ["serves no model"]),
    ],
)
def test_what_cannot_be_done_is_said_in_one_line(complaint: Callable[..., str], arguments: list[str], clues: list[str]) -> None:
    line = complaint(*arguments)
    assert not [clue for clue in clues if clue not in line], line


@pytest.mark.parametrize("arguments", [["scale", "many", "two"], ["scale", "many"], ["set", "many"], ["sacle", "many", "2"]])
def test_arguments_that_make_no_sense_show_the_usage(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["models", *arguments])
    assert caught.value.code == USER_ERROR
    assert "usage: dlproxy models" in capsys.readouterr().err


# The wrong server, or none


@pytest.mark.parametrize("arguments", [[], ["show", "many"], ["scale", "many", "2"], ["set", "many", "hedge=true"]])
def test_the_inference_port_is_recognised(server: ServerProcess, complaint: Callable[..., str], arguments: list[str]) -> None:
    line = complaint(*arguments, control=f"http://127.0.0.1:{server.http_port}")
    assert f"127.0.0.1:{server.http_port} is an inference port" in line
    assert "--control" in line


@pytest.mark.parametrize(
    ("control", "clue"),
    [
        ("ftp://127.0.0.1", "cannot be used"),
        ("http://127.0.0.1:8002/models", "cannot be used"),
        ("http://:8002", "cannot be used"),
        ("http://127.0.0.1:99999", "is not understood"),
        ("http://127.0.0.1:eighty", "is not understood"),
        ("http://[::1:8002", "is not understood"),
        ("http://no.such.host.invalid:8002", "cannot reach http://no.such.host.invalid:8002"),
    ],
)
def test_an_address_that_cannot_be_used_is_named(complaint: Callable[..., str], control: str, clue: str) -> None:
    assert clue in complaint(control=control)


def test_a_server_that_is_down_is_named(complaint: Callable[..., str]) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))  # and does not listen
        address = f"127.0.0.1:{unused.getsockname()[1]}"
        assert f"cannot reach http://{address}: connection refused; is dlproxy running there?" in complaint(control=address)


@contextmanager
def answering(*answers: bytes) -> Iterator[str]:
    """Its address. Each connection gets the next answer; after the last of them, and with b"", it is left to wait."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        open_until = threading.Event()

        def serve() -> None:
            for answer in answers:
                connection, _ = listener.accept()
                with connection:
                    connection.recv(65536)
                    connection.sendall(answer)
                    if not answer:
                        open_until.wait(HANG_S)

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            open_until.set()
            thread.join()


def http_answer(status: str, body: Any) -> bytes:
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    return f"HTTP/1.1 {status}\r\ncontent-length: {len(data)}\r\n\r\n".encode() + data


@pytest.mark.parametrize(
    ("answers", "clue"),
    [
        ([b"SSH-2.0-OpenSSH_9.6\r\n"], "did not answer with complete HTTP; is the port right?"),
        ([http_answer("200 OK", b"<html>")], "is not understood: JSON is malformed"),
        ([http_answer("200 OK", {"models": []})], "is not understood: Object missing required field `name`"),
        ([http_answer("200 OK", [{"name": "m"}])], "is not understood: Object missing required field `version`"),
        ([http_answer("404 Not Found", b"")] * 2, "is not a dlproxy control port"),
        ([http_answer("200 OK", b"[]")[:-1]], "did not answer with complete HTTP"),
    ],
)
def test_what_is_no_control_port_is_recognised(complaint: Callable[..., str], answers: list[bytes], clue: str) -> None:
    with answering(*answers) as address:
        assert clue in complaint(control=address)


def test_a_refusal_without_words_is_told_by_its_status(complaint: Callable[..., str]) -> None:
    with answering(http_answer("500 Internal Server Error", {})) as address:
        assert "answered 500" in complaint("scale", "m", "2", control=address)


def test_a_server_that_is_silent_is_given_up(complaint: Callable[..., str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(control_port, "PATIENCE_S", 0.05)
    monkeypatch.setattr(control_port, "ACTION_PATIENCE_S", 0.1)
    with answering(b"") as address:
        assert "did not answer within 0.1 s" in complaint("scale", "m", "2", control=address)


def test_a_model_that_is_down_is_shown_with_the_reason(capsys: pytest.CaptureFixture[str]) -> None:
    waiting = {
        "name": "m-0",
        "state": "waiting",
        "for_s": 130,
        "again_in_s": 2.5,
        "restarts": 7,
        "last_problem": "killed\nby\tX",
    }
    lost = {"name": "m-1", "state": "lost", "for_s": 200_000, "address": "gpu1:8000", "circuit": None}
    model = {"name": "m", "version": "3", "ready": False, "run": "upstream", "instances": [waiting, lost]}
    with answering(http_answer("200 OK", model)) as address:
        assert main(["models", "show", "m", "--control", address]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "model m version 3, not ready"
    assert re.fullmatch(r"m-0 +waiting, starts in 2\.5 s +2 min +7 +- +0/0 +- +killed by X", lines[7])
    assert re.fullmatch(r"m-1 +lost +2 d +0 +- +0/0 +gpu1:8000 +-", lines[8])


def test_ctrl_c_ends_the_waiting_and_says_that_the_server_goes_on() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        address = f"127.0.0.1:{listener.getsockname()[1]}"
        command = [sys.executable, "-m", "dlproxy", "models", "scale", "m", "2", "--control", address]
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment()) as process:
            connection, _ = listener.accept()
            connection.recv(65536)
            process.send_signal(signal.SIGINT)
            try:
                out, err = process.communicate(timeout=HANG_S)
            finally:
                process.kill()
            connection.close()
    assert (process.returncode, out) == (INTERRUPTED, "")
    assert err == "dlproxy: interrupted; the server carries on: see dlproxy models show m\n"


@pytest.mark.parametrize(
    ("scaling", "said"),
    [
        (ScalingState(2, 1, 4, "load needs 1.4 instances", False, False), "2 of 1 to 4 instances: load needs 1.4 instances"),
        (ScalingState(1, 1, 4, "", False, False), "1 of 1 to 4 instances"),
        (ScalingState(3, 3, 3, "held", True, False), "held at 3, until min_instances or max_instances is set"),
        (ScalingState(0, 1, 4, "nothing came for 60 s", False, True), "asleep: the next request wakes it"),
    ],
)
def test_a_model_that_scales_says_why_it_has_so_many_instances(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], scaling: ScalingState, said: str
) -> None:
    told = msgspec.to_builtins(ModelState("m", "1", True, autoscale=scaling))
    monkeypatch.setattr(control_port.ControlPort, "model", lambda *_: told)
    assert main(["models", "show", "m"]) == 0
    assert f"  scaling  {said}" in capsys.readouterr().out.splitlines()


@pytest.mark.parametrize(
    ("lowest", "for_s", "said"),
    [
        ("m", None, "m"),
        ("m", 240.0, "m; for 4 min: it would have had time"),
        ("small", 3.0, "m: priority 1 to 7, small: priority 8; for 3.0 s: it would have had time"),
    ],
)
def test_a_model_with_variants_says_who_answers_and_why(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], lowest: str, for_s: float | None, said: str
) -> None:
    assignment = {**dict.fromkeys(map(str, range(1, 8)), "m"), "8": lowest}
    candidates = [
        CandidateState("small", 0.97, True, "", 12),
        CandidateState("odd", 0.0, False, "it is not served here", 0),
        CandidateState("idle", 0.5, False, "", 0),
    ]
    state = VariantsState(assignment, for_s, "it would have had time", 2, 5, 0.99, candidates)
    told = msgspec.to_builtins(ModelState("m", "1", True, variants=state))
    monkeypatch.setattr(control_port.ControlPort, "model", lambda *_: told)
    assert main(["models", "show", "m"]) == 0
    lines = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    assert f"answers {said}" in lines
    assert {"small 0.97 12 up", "odd - 0 it is not served here", "idle 0.5 0 no instance is up"} <= set(lines)


def test_a_model_that_streams_says_how_many_answers_are_under_way(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    told = msgspec.to_builtins(ModelState("m", "1", True, streams=StreamsState(3, 40)))
    monkeypatch.setattr(control_port.ControlPort, "model", lambda *_: told)
    assert main(["models", "show", "m"]) == 0
    assert "  streams  3 open, 40 parts sent" in capsys.readouterr().out.splitlines()


def test_a_model_that_keeps_sequences_says_how_many(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    told = msgspec.to_builtins(ModelState("m", "1", True, sequences=SequencesState("oldest", 3, 100, 60.0, 2, 9, 4, 1, 1, 5)))
    monkeypatch.setattr(control_port.ControlPort, "model", lambda *_: told)
    assert main(["models", "show", "m"]) == 0
    assert (
        "  state    of 3 sequences, at most 100, kept for 60.0 s, 2 requests wait for others of theirs; "
        "so far 9 started, 4 ended, 1 idle, 1 broken, 5 refused"
    ) in capsys.readouterr().out.splitlines()

"""The demo as a newcomer runs it: in a process of its own, with a real server and real digits."""

import json
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from urllib.request import ProxyHandler, build_opener

import pytest

urlopen = build_opener(ProxyHandler({})).open  # whatever proxy the machine uses, this server is local


@contextmanager
def _demo(*options: str) -> Iterator["subprocess.Popen[str]"]:
    command = [sys.executable, "-m", "dlproxy", "demo", *options]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        yield process
    finally:
        if process.poll() is None:
            process.kill()
        process.communicate()


def _accuracy(output: str) -> float:
    found = re.search(r"^accuracy +([\d.]+)%  \d+ of 360 held-out images$", output, re.MULTILINE)
    assert found is not None, output
    return float(found[1])


def test_demo_classifies_the_heldout_digits_and_ends() -> None:
    with _demo("--seconds", "1", "--concurrency", "16", "--exit") as demo:
        output, errors = demo.communicate(timeout=60)
    assert demo.returncode == 0, errors
    assert _accuracy(output) >= 98.0
    assert re.search(r"^errors +0$", output, re.MULTILINE)
    assert re.search(r"read as \d, [\d.]+% sure", output)


def test_demo_serves_on_beside_a_taken_port_until_ctrl_c() -> None:
    with _taken(8000), _demo("--seconds", "0.5") as demo:
        assert demo.stdout is not None
        output = ""
        for line in demo.stdout:
            output += line
            if line.startswith("serving"):
                break
        curl = re.search(r"^curl -sw '\\n' (http://\S+) -d '(.+)'$", output, re.MULTILINE)
        assert curl is not None, output
        with urlopen(curl[1], data=curl[2].encode(), timeout=30) as reply:
            probabilities = json.load(reply)["outputs"]["probabilities"][0]
        demo.send_signal(signal.SIGINT)
        _, errors = demo.communicate(timeout=30)
    said = re.search(r"send the digit (\d) with curl", output)
    assert said is not None
    assert probabilities[int(said[1])] > 0.9
    assert demo.returncode == 0
    assert "Traceback" not in errors


def test_ctrl_c_during_the_load_shows_what_came_back_until_then() -> None:
    with _demo("--seconds", "60") as demo:
        assert demo.stdout is not None
        output = ""
        for line in demo.stdout:
            output += line
            if line.startswith("sending"):
                break
        with suppress(subprocess.TimeoutExpired):
            demo.wait(1.0)  # so that there are answers
        demo.send_signal(signal.SIGINT)
        rest, errors = demo.communicate(timeout=30)
    assert demo.returncode == 130, errors
    assert "Traceback" not in errors
    assert re.search(r"^requests/s +[\d,]+  [\d,]+ answered in [01]\.\d s$", rest, re.MULTILINE), rest
    assert "curl" not in rest


@contextmanager
def _taken(port: int) -> Iterator[None]:
    """The port is in use, by us or by whoever came first."""
    try:
        listener = socket.create_server(("127.0.0.1", port))
    except OSError:
        yield
        return
    with listener:
        yield


@pytest.mark.parametrize("options", [["--seconds", "0"], ["--seconds", "nan"], ["--concurrency", "0"]])
def test_demo_refuses_what_makes_no_load(options: list[str]) -> None:
    with _demo(*options) as demo:
        _, errors = demo.communicate(timeout=60)
    assert demo.returncode == 2
    assert "Traceback" not in errors
    assert options[0] in errors

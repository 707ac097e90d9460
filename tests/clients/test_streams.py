"""Streams of a whole server, as an ordinary HTTP client sees them: parts as they come, drains, models that go."""

import http.client
import json
import signal
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from textwrap import dedent
from typing import Any

import pytest

from tests.clients.server import HANG_S, ServerProcess, write_config

MODEL = dedent("""
    import time
    from pathlib import Path

    import numpy as np


    class Ticker:
        inputs, outputs = {"n": "INT64[-1]"}, {"item": "INT64[-1]"}
        streams = True

        def predict(self, batch):
            try:
                for item in range(max(int(batch["n"][0]), 1)):
                    if item:
                        time.sleep(0.05)
                    yield {"item": np.array([item])}
            except GeneratorExit:
                Path(__file__).with_name("closed").touch()
                raise
""")


@pytest.fixture
def server(tmp_path: Path) -> Iterator[ServerProcess]:
    (tmp_path / "ticker.py").write_text(MODEL)
    settings = {"path": f"{tmp_path / 'ticker.py'}:Ticker", "run": "thread", "batching": "off", "instances": 2}
    config = write_config(tmp_path / "dlproxy.toml", {"m": settings}, drain_s=1.0, calibration_folder=tmp_path / "found")
    with ServerProcess("--config", config) as process:
        (tmp_path / "closed").unlink(missing_ok=True)  # by warm-up, which reads no answer to its end
        yield process


class Reader:
    """One stream of /predict, line by line."""

    def __init__(self, server: ServerProcess, items: int) -> None:
        self.connection = http.client.HTTPConnection("127.0.0.1", server.http_port, timeout=HANG_S)
        self.connection.request("POST", "/predict/m", json.dumps({"inputs": [items]}))
        self.reply = self.connection.getresponse()
        assert self.reply.status == 200

    def __enter__(self) -> "Reader":
        return self

    def __exit__(self, *_: object) -> None:
        self.reply.close()
        self.connection.close()

    def line(self) -> Any:
        return json.loads(self.reply.readline())


def test_a_client_reads_each_part_before_the_next_is_there(server: ServerProcess) -> None:
    with Reader(server, 3) as reader:
        assert [reader.line()["outputs"]["item"] for _ in range(3)] == [[0], [1], [2]]
        assert reader.reply.read() == b""
        reader.connection.request("POST", "/v2/models/m/generate", b'{"n": 1}')
        assert json.load(reader.connection.getresponse()) == {"model_name": "m", "model_version": "1", "item": 0}
        assert server.metric("dlproxy_stream_parts", model="m") == 4


def test_a_drain_waits_for_a_stream_that_ends_in_time(server: ServerProcess) -> None:
    with Reader(server, 8) as reader:
        reader.line()
        server.send_signal(signal.SIGTERM)
        assert [reader.line()["outputs"]["item"] for _ in range(7)][-1] == [7]
        assert reader.reply.read() == b""
        assert server.wait() == 0


def test_a_drain_breaks_off_a_stream_that_goes_on_and_the_client_notices(server: ServerProcess, tmp_path: Path) -> None:
    with Reader(server, 10**6) as reader:
        reader.line()
        server.send_signal(signal.SIGTERM)
        with pytest.raises((ConnectionError, http.client.IncompleteRead)):
            reader.reply.read()
        assert server.wait() == 0
        assert (tmp_path / "closed").exists()


def test_a_model_that_is_unloaded_says_so_in_its_last_line(server: ServerProcess, tmp_path: Path) -> None:
    with Reader(server, 10**6) as reader:
        with closing(http.client.HTTPConnection("127.0.0.1", server.control_port, timeout=HANG_S)) as control:
            control.request("POST", "/models/m/unload")
            assert control.getresponse().status == 200
        *items, last = map(json.loads, reader.reply.read().splitlines())
        assert [item["outputs"]["item"] for item in items] == [[number] for number in range(len(items))]
        assert last["error"].startswith("the answer breaks off: model 'm' version 1 is being unloaded")
        assert (tmp_path / "closed").exists()

"""SIGTERM and SIGINT under load: whoever was heard is answered, connections end cleanly, a second signal cuts."""

import asyncio
import json
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from tests import models
from tests.clients.raw import Connect, RawConnection, RawReply, binary_infer, binary_output, post
from tests.clients.server import HANG_S, ServerProcess, write_config

CLIENTS = 64
LOADS_LONG = """
import sys
from threading import Event

class M:
    inputs = outputs = {"x": "FP32[batch,1]"}

    def __init__(self):
        print("loading", file=sys.stderr, flush=True)
        Event().wait(1.5)

    def predict(self, batch):
        return batch
"""


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("signals")
    slow = models.save(models.slow(layers=20), folder / "slow.onnx")
    settings = {"digits": {"path": models.DIGITS, "threads": 1}, "slow": {"path": slow, "threads": 1, "instances": 1}}
    return write_config(folder / "dlproxy.toml", settings, calibration_folder=folder / "found")  # once for all of them


@pytest.fixture
def server(config: Path) -> Iterator[ServerProcess]:
    with ServerProcess("--config", config) as process:
        yield process


class Load:
    """CLIENTS connections that each ask again as soon as they are answered, until the server says that it closes."""

    def __init__(self) -> None:
        self.connections: list[RawConnection] = []
        self.last: dict[RawConnection, RawReply] = {}
        self.statuses: set[int] = set()
        self.answered = 0
        self.warm = asyncio.Event()
        self._request = binary_infer("digits", "image", "FP32", np.zeros((1, 1, 8, 8), np.float32))

    async def start(self, connect: Connect, port: int) -> None:
        self.connections = [await connect(port, self._on_reply) for _ in range(CLIENTS)]
        for connection in self.connections:
            connection.send(self._request)

    def _on_reply(self, connection: RawConnection, reply: RawReply) -> None:
        self.last[connection] = reply
        self.statuses.add(reply.status)
        self.answered += 1
        if self.answered > 20 * CLIENTS:
            self.warm.set()
        if not reply.closes:
            connection.send(self._request)


async def _all_ended(connections: list[RawConnection]) -> None:
    await asyncio.wait_for(asyncio.gather(*(connection.ended for connection in connections)), HANG_S)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=lambda number: number.name)
async def test_under_load_every_request_is_answered_before_the_end(
    server: ServerProcess, connect: Connect, number: signal.Signals
) -> None:
    load = Load()
    await load.start(connect, server.http_port)
    await asyncio.wait_for(load.warm.wait(), HANG_S)
    idle = await connect(server.http_port)
    server.send_signal(number)
    await _all_ended([*load.connections, idle])

    assert load.statuses == {200}
    for connection in load.connections:
        assert connection.sent == connection.received, "a request was lost"
        assert not connection.was_reset
        assert not connection.partial
        assert load.last[connection].closes, "the connection ended without saying so"
    assert not idle.was_reset
    assert server.wait() == 0
    errors = server.errors()
    assert "Traceback" not in errors
    assert re.search(rf"draining: {CLIENTS + 1} open connections have up to 30 s", errors), errors
    drained = re.search(r"drained in [\d.]+ s: (\d+) requests answered, 0 failed, 0 cut", errors)
    assert drained is not None, errors
    assert int(drained[1]) > 0


async def test_a_terminal_that_closes_says_so_more_than_once_and_cuts_nothing(config: Path, connect: Connect) -> None:
    with ServerProcess(f"slow={config.parent / 'slow.onnx'}") as server:
        await _closes_twice(server, connect)


async def _closes_twice(server: ServerProcess, connect: Connect) -> None:
    connections = [await connect(server.http_port) for _ in range(4)]
    for connection in connections:
        connection.send(binary_infer("slow", "x", "FP32", np.ones((1, 1), np.float32)))
    idle = await connect(server.http_port)
    server.send_signal(signal.SIGHUP)
    await asyncio.wait_for(idle.ended, HANG_S)  # the drain is under way
    server.send_signal(signal.SIGHUP)
    await _all_ended(connections)
    assert [connection.received for connection in connections] == [1] * 4
    assert server.wait() == 0


async def test_without_a_terminal_the_models_become_those_of_the_file(tmp_path: Path, connect: Connect) -> None:
    file = write_config(tmp_path / "dlproxy.toml", {"a": {"path": "sleep:base=1ms"}, "b": {"path": "sleep:base=1ms"}})
    infer = {name: binary_infer(name, "x", "FP32", np.zeros((1, 1), np.float32)) for name in "abc"}
    with ServerProcess("--config", file) as server:
        connection = await connect(server.http_port)

        async def hung_up(models: dict[str, dict[str, object]] | str, said: str) -> None:
            file.write_text(models) if isinstance(models, str) else write_config(file, models)
            server.send_signal(signal.SIGHUP)
            await asyncio.to_thread(server.await_in_errors, said)

        await hung_up({"b": {"path": "sleep:base=2ms"}, "c": {"path": "sleep:base=1ms"}}, "the models are as configured now")
        assert [(await connection.ask(infer[name])).status for name in "abc"] == [404, 200, 200]
        await hung_up("[models.b]\npath = 'sleep:base=1ms'\nmax_bach = 3\n", "did you mean 'max_batch'?")
        await hung_up({"c": {"path": "gone.onnx"}}, "gone.onnx does not exist")
        assert [(await connection.ask(infer[name])).status for name in "bc"] == [404, 200], (
            "what cannot be loaded is not replaced"
        )
        assert server.stop() == 0


async def test_of_a_repository_in_mode_explicit_nothing_is_loaded_for_that(tmp_path: Path, connect: Connect) -> None:
    (tmp_path / "models").mkdir()
    models.save(models.slow(layers=1), tmp_path / "models" / "m.onnx")
    file = write_config(tmp_path / "dlproxy.toml", {}, repository=tmp_path / "models", repository_mode="explicit")
    with ServerProcess("--config", file) as server:
        server.send_signal(signal.SIGHUP)
        await asyncio.to_thread(server.await_in_errors, "the models are as configured now")
        index = await (await connect(server.http_port)).ask(post("/v2/repository/index", b"{}"))
        assert [entry["state"] for entry in index.json()] == ["UNAVAILABLE"]
        assert server.stop() == 0


async def test_a_load_that_hangs_does_not_keep_the_server_from_ending(tmp_path: Path, connect: Connect) -> None:
    (tmp_path / "hangs.py").write_text(LOADS_LONG.replace("1.5", "600"))
    with ServerProcess("m=sleep:base=1ms") as server:
        load = {"path": f"{tmp_path / 'hangs.py'}:M", "config": {"run": "thread", "load_timeout_s": 0.3}}
        reply = await (await connect(server.control_port)).ask(post("/models/h/load", json.dumps(load).encode()))
        assert (reply.status, "did not load within 0.3 s" in reply.body.decode()) == (400, True)
        infer = binary_infer("m", "x", "FP32", np.zeros((1, 1), np.float32))
        assert (await (await connect(server.http_port)).ask(infer)).status == 200
        assert server.stop() == 0


async def test_under_nohup_a_terminal_that_closes_is_ignored(connect: Connect) -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # the child inherits it
    try:
        server = ServerProcess(models.DIGITS)
    finally:
        signal.signal(signal.SIGHUP, before)
    with server:
        server.send_signal(signal.SIGHUP)
        connection = await connect(server.http_port)
        reply = await connection.ask(binary_infer("digits", "image", "FP32", np.zeros((1, 1, 8, 8), np.float32)))
        assert reply.status == 200
        assert server.stop() == 0
        assert server.errors().count("draining:") == 1


async def test_what_is_queued_and_pipelined_behind_a_slow_model_is_answered(server: ServerProcess, connect: Connect) -> None:
    connections = [await connect(server.http_port) for _ in range(12)]
    for number, connection in enumerate(connections):
        connection.send(binary_infer("slow", "x", "FP32", np.array([[number]], np.float32)))
        connection.send(binary_infer("slow", "x", "FP32", np.array([[100 + number]], np.float32)))
    await connections[0].replies.get()  # so all of them have been read: the server reads while the model runs
    server.send_signal(signal.SIGTERM)
    await _all_ended(connections)

    for number, connection in enumerate(connections):
        replies = [connection.replies.get_nowait() for _ in range(connection.replies.qsize())]
        values = [binary_output(reply, np.float32).tolist() for reply in replies]
        assert values == ([[100 + number]] if number == 0 else [[number], [100 + number]])
        assert not connection.was_reset
    assert replies[-1].closes, "the last to be answered was not told that its connection ends"
    assert server.wait() == 0


async def test_a_request_on_its_way_when_the_signal_comes_is_still_taken(server: ServerProcess, connect: Connect) -> None:
    kept_alive, busy = await connect(server.http_port), await connect(server.http_port)
    request = binary_infer("digits", "image", "FP32", np.zeros((1, 1, 8, 8), np.float32))
    await kept_alive.ask(request)
    busy.send(binary_infer("slow", "x", "FP32", np.ones((8, 1), np.float32)))
    half = len(request) // 2
    kept_alive.send(request[:half])
    server.send_signal(signal.SIGTERM)
    while True:  # the listening socket closes: the signal has been heard
        try:
            probe = await connect(server.http_port)
        except ConnectionError:  # refused, or reset in the backlog
            break
        probe.close()
        await probe.ended
    kept_alive.transport.write(request[half:])
    reply = await asyncio.wait_for(kept_alive.replies.get(), HANG_S)
    assert (reply.status, reply.closes) == (200, True)
    assert (await asyncio.wait_for(busy.replies.get(), HANG_S)).status == 200
    await _all_ended([kept_alive, busy])
    assert server.wait() == 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=lambda number: number.name)
async def test_a_second_signal_cuts_what_is_under_way(server: ServerProcess, connect: Connect, number: signal.Signals) -> None:
    first, *others = [await connect(server.http_port) for _ in range(CLIENTS)]
    for connection in (first, *others):
        connection.send(binary_infer("slow", "x", "FP32", np.ones((8, 1), np.float32)))  # seconds of work in all
    idle = await connect(server.http_port)
    server.send_signal(signal.SIGTERM)
    await asyncio.wait_for(idle.ended, HANG_S)  # the drain is under way
    server.send_signal(number)
    await _all_ended([first, *others])
    assert sum(connection.received for connection in (first, *others)) < CLIENTS
    assert server.wait() == 130
    cut = re.search(r"stopped by a second signal: (\d+) requests were cut", server.errors())
    assert cut is not None
    assert int(cut[1]) + sum(connection.received for connection in (first, *others)) <= CLIENTS
    assert int(cut[1]) > 0
    assert "Traceback" not in server.errors()


@pytest.mark.parametrize(("signals", "code"), [(1, 0), (2, 130)])
def test_a_signal_while_models_load_ends_the_start(tmp_path: Path, signals: int, code: int) -> None:
    (tmp_path / "m.py").write_text(LOADS_LONG if signals == 1 else LOADS_LONG.replace("1.5", "600"), "utf-8")
    config = write_config(tmp_path / "dlproxy.toml", {"m": {"path": f"{tmp_path / 'm.py'}:M", "run": "thread"}})
    command = [sys.executable, "-m", "dlproxy", "serve", "--config", config, "--http-port", "0", "--control-port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as server:
        assert server.stderr is not None
        said = ""
        for word in ("loading", "stopped before the server was ready")[:signals]:
            while word not in said:
                assert server.poll() is None
                said += server.stderr.readline()
            server.send_signal(signal.SIGINT)
        out, errors = server.communicate(timeout=HANG_S)
    assert server.returncode == code
    assert out == ""
    assert "stopped before the server was ready" in said + errors
    assert "Traceback" not in said + errors

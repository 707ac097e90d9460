"""Several gateways behind one port: killed, replaced and drained under load, and shown as one server."""

import asyncio
import os
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from tests import models
from tests.clients.raw import Connect, RawConnection, RawReply, binary_infer, json_infer
from tests.clients.server import HANG_S, ServerProcess, asked, write_config

CLIENTS = 40
REQUEST = binary_infer("digits", "image", "FP32", np.zeros((1, 1, 8, 8), np.float32))


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    folder = tmp_path_factory.mktemp("gateways")
    config = write_config(folder / "dlproxy.toml", {"digits": {"path": models.DIGITS, "threads": 1}}, tenant_header="x-tenant")
    config.write_text(config.read_text() + "[tenants.few]\nrequests_per_s = 20\nburst_s = 0.5\nconcurrent = 4\n")
    with ServerProcess("--config", config, "--gateways", "2") as process:
        yield process


class Load:
    """CLIENTS that each ask again as soon as they are answered, on a new connection when the server closes theirs."""

    def __init__(self, connect: Connect, port: int) -> None:
        self.answered = 0
        self.cut = 0
        self.statuses: Counter[int] = Counter()
        self.connections: list[RawConnection] = []
        self._connect, self._port = connect, port
        self._ends = False
        self._aim, self._reached = 0, asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []

    async def __aenter__(self) -> "Load":
        self._tasks = [asyncio.create_task(self._client()) for _ in range(CLIENTS)]
        await self.goes_on()
        return self

    async def __aexit__(self, *_: object) -> None:
        self._ends = True
        await asyncio.wait_for(asyncio.gather(*self._tasks), HANG_S)

    async def goes_on(self) -> None:
        """So many more are answered."""
        self._aim, self._reached = self.answered + 10 * CLIENTS, asyncio.Event()
        await asyncio.wait_for(self._reached.wait(), HANG_S)

    async def _client(self) -> None:
        while not self._ends:
            connection = await self._connect(self._port)
            self.connections.append(connection)
            while not self._ends:
                reply = await self._reply(connection)
                if reply is None:
                    self.cut += 1
                    break
                self.statuses[reply.status] += 1
                self.answered += 1
                if self.answered >= self._aim:
                    self._reached.set()
                if reply.closes:
                    break
            self.connections.remove(connection)
            connection.close()

    async def _reply(self, connection: RawConnection) -> RawReply | None:
        connection.send(REQUEST)
        asking = asyncio.ensure_future(connection.replies.get())
        await asyncio.wait((asking, connection.ended), return_when=asyncio.FIRST_COMPLETED)
        if asking.done():
            return asking.result()
        asking.cancel()
        return None


def gateways(server: ServerProcess) -> list[dict[str, int]]:
    found: list[dict[str, int]] = server.control("/gateways")
    return found


def connected_to(pid: int, port: int) -> int:
    """Connections of clients that this process holds, as the kernel knows."""
    held = {os.readlink(path) for path in Path(f"/proc/{pid}/fd").iterdir() if path.is_symlink()}
    lines = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    own = [line for line in lines if line[1].endswith(f":{port:04X}") and line[3] == "01"]
    return sum(f"socket:[{line[9]}]" in held for line in own)


def is_there(pid: int) -> bool:
    return Path(f"/proc/{pid}").exists()


async def told(server: ServerProcess, path: str, data: object = None) -> object:
    return await asyncio.to_thread(server.control, path, data)


def test_what_all_did_is_one_sum(server: ServerProcess, connect: Connect) -> None:
    async def ask() -> None:
        for _ in range(30):  # the kernel shares them out
            connection = await connect(server.http_port)
            assert (await connection.ask(REQUEST)).status == 200
            connection.close()

    before = server.metric("nv_inference_request_success", model="digits")
    asyncio.run(ask())
    assert server.metric("nv_inference_request_success", model="digits") == before + 30
    page = asked(f"http://127.0.0.1:{server.control_port}/metrics").body.decode()
    assert page.count('nv_inference_request_success{model="digits"') == 1
    instances = server.instances("digits")
    assert [one["name"] for one in instances] == ["0:digits-0", "1:digits-0"]
    assert server.control("/healthz") == {"ready": True, "models": {"digits": True}}
    feed = asked(f"http://127.0.0.1:{server.control_port}/dashboard/feed", accept="application/json").json
    assert feed["server"]["gateways"] == 2
    assert len(feed["models"]["digits/1"]["instances"]) == 2
    assert asked(f"http://127.0.0.1:{server.control_port}/").headers["content-type"].startswith("text/html")


async def test_a_gateway_that_is_killed_loses_its_own_connections_alone(server: ServerProcess, connect: Connect) -> None:
    async with Load(connect, server.http_port) as load:
        victim, other = gateways(server)
        lost = connected_to(victim["pid"], server.http_port)
        assert 0 < lost < CLIENTS
        assert connected_to(other["pid"], server.http_port) == CLIENTS - lost
        counted = server.metric("nv_inference_request_success", model="digits")
        os.kill(victim["pid"], signal.SIGKILL)
        await load.goes_on()
        assert load.cut <= lost
        assert server.metric("nv_inference_request_success", model="digits") > counted
        await asyncio.to_thread(server.await_in_errors, "gateway 0: serves again")
        await load.goes_on()
    assert load.cut == lost
    assert set(load.statuses) == {200}
    first, second = gateways(server)
    assert first["restarts"] == 1
    assert second["restarts"] == 0
    assert second["pid"] == other["pid"]
    assert "its process was killed by SIGKILL" in server.errors()


async def test_a_rolling_restart_loses_nothing(server: ServerProcess, connect: Connect) -> None:
    before = [one["pid"] for one in gateways(server)]
    counted = server.metric("nv_inference_request_success", model="digits")
    async with Load(connect, server.http_port) as load:
        after = await told(server, "/gateways/restart", {})
        assert isinstance(after, list)
        assert not {one["pid"] for one in after} & set(before)
        await load.goes_on()
    assert load.cut == 0
    assert set(load.statuses) == {200}
    assert not any(map(is_there, before))
    assert server.metric("nv_inference_request_success", model="digits") == counted + load.answered


async def test_a_model_that_is_loaded_is_there_for_whoever_comes_next(server: ServerProcess, connect: Connect) -> None:
    loaded = await told(server, "/models/more/load", {"path": "sleep:base=1ms"})
    assert isinstance(loaded, list)
    assert [one["ready"] for one in loaded] == [True]
    request = json_infer("more", "x", "FP32", [[1.0]])
    for _ in range(12):
        connection = await connect(server.http_port)
        assert (await connection.ask(request)).status == 200
        connection.close()
    os.kill(gateways(server)[1]["pid"], signal.SIGKILL)  # the one that comes in its place knows of it, too
    await asyncio.to_thread(server.await_in_errors, "gateway 1: serves again")
    for _ in range(12):
        connection = await connect(server.http_port)
        assert (await connection.ask(request)).status == 200
        connection.close()
    bad = asked(f"http://127.0.0.1:{server.control_port}/models/bad/load", {"path": "nowhere.onnx"})
    assert bad.status == 400
    assert "nowhere.onnx" in bad.json["error"]
    await told(server, "/models/more/unload", {})
    for _ in range(12):
        connection = await connect(server.http_port)
        assert (await connection.ask(request)).status == 404
        connection.close()


async def test_a_tenant_s_quota_holds_over_all(server: ServerProcess, connect: Connect) -> None:
    """20 a second and a burst of 10: 4 s of asking for more let in 80, and each gateway's own burst."""
    loop = asyncio.get_running_loop()
    request = REQUEST.replace(b"host: test", b"host: test\r\nx-tenant: few", 1)
    connections = [await connect(server.http_port) for _ in range(4)]
    admitted, ends_at = 0, loop.time() + 4.0

    async def ask(connection: RawConnection) -> None:
        nonlocal admitted
        while loop.time() < ends_at:
            reply = await connection.ask(request)
            assert reply.status in (200, 429)
            admitted += reply.status == 200

    began_at = loop.time()
    await asyncio.gather(*map(ask, connections))
    seconds = loop.time() - began_at
    assert 0.9 * 20 * seconds <= admitted <= 20 * seconds + 2 * 10 + 4


WHO = """
import os, time
import numpy as np

class M:
    inputs = {"x": "FP32[batch,1]"}
    outputs = {"pid": "INT64[batch,1]"}

    def predict(self, x):
        time.sleep(0.05)
        return {"pid": np.full((len(x), 1), os.getpid(), np.int64)}
"""
WHO_RUNS = json_infer("who", "x", "FP32", [[1.0]])


async def test_worker_processes_are_whoever_s_needs_them(tmp_path: Path, connect: Connect) -> None:
    (tmp_path / "who.py").write_text(WHO)
    settings = {"path": f"{tmp_path / 'who.py'}:M", "run": "process", "instances": 2, "max_batch": 1}
    config = write_config(tmp_path / "dlproxy.toml", {"who": settings})
    with ServerProcess("--config", config, "--gateways", "2", "--grpc", "off") as server:
        connections = [await connect(server.http_port) for _ in range(24)]

        async def workers() -> Counter[int]:
            """Who runs what all connections ask for at a time."""
            replies = await asyncio.gather(*(connection.ask(WHO_RUNS) for connection in connections))
            assert {reply.status for reply in replies} == {200}
            return Counter(reply.json()["outputs"][0]["data"][0] for reply in replies)

        both = await workers()
        assert len(both) == 2
        assert min(both.values()) >= 10  # neither was idle while the other had more to do
        os.kill(min(both), signal.SIGKILL)
        after = await workers()
        assert max(both) in after
        first, second = gateways(server)
        for connection in connections:
            connection.send(WHO_RUNS)
        os.kill(first["pid"], signal.SIGKILL)  # while its batches run
        await asyncio.to_thread(server.await_in_errors, "gateway 0: serves again")
        ended = [connection for connection in connections if connection.ended.done()]
        connections = [connection for connection in connections if not connection.ended.done()]
        assert ended
        for connection in connections:
            assert (await asyncio.wait_for(connection.replies.get(), HANG_S)).status == 200
        assert second["pid"] == gateways(server)[1]["pid"]
        assert len(await workers()) == 2  # what the dead one had leased is free
        assert {one["pid"] for one in server.instances("who")} == set(await workers())
        assert "Traceback" not in server.errors()


def test_a_port_that_is_taken_and_a_model_that_is_none_are_said_once(server: ServerProcess) -> None:
    for arguments, words in (
        ((f"m={models.DIGITS}", "--http-port", str(server.http_port)), "is another server running?"),
        (("m=nowhere.onnx", "--http-port", "0"), "nowhere.onnx"),
    ):
        command = [sys.executable, "-m", "dlproxy", "serve", *arguments, "--control-port", "0", "--grpc", "off"]
        done = subprocess.run([*command, "--gateways", "2"], capture_output=True, text=True, timeout=HANG_S, check=False)
        assert done.returncode == 2
        assert done.stderr.count(words) == 1
        assert "Traceback" not in done.stderr


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL], ids=lambda number: number.name)
async def test_when_the_keeper_ends_its_gateways_finish_what_is_under_way(number: signal.Signals, connect: Connect) -> None:
    with ServerProcess("m=sleep:base=100ms", "--gateways", "2", "--grpc", "off") as server:
        pids = [one["pid"] for one in gateways(server)]
        connections = [await connect(server.http_port) for _ in range(8)]
        for connection in connections:
            connection.send(json_infer("m", "x", "FP32", [[1.0]]))
        await asyncio.wait_for(connections[0].replies.get(), HANG_S)
        connections[0].send(json_infer("m", "x", "FP32", [[1.0]]))
        server.send_signal(number)
        replies = [await asyncio.wait_for(connection.replies.get(), HANG_S) for connection in connections]
        assert {reply.status for reply in replies} == {200}
        await asyncio.wait_for(asyncio.gather(*(connection.ended for connection in connections)), HANG_S)
        assert await asyncio.to_thread(server.wait) == (0 if number == signal.SIGTERM else -9)
        async with asyncio.timeout(HANG_S):
            while any(map(is_there, pids)):
                await asyncio.to_thread(os.sched_yield)

"""What a server says of itself while its only worker dies, cannot be started again, and comes back: over real HTTP."""

import http.client
import json
import os
import signal
from contextlib import closing
from pathlib import Path
from time import monotonic
from typing import Any

import pytest

from dlproxy.policy.events import InstanceLost, InstanceUp
from dlproxy.telemetry.event_log import Note, read, replay
from tests.clients.server import HANG_S, ServerProcess

FALSE_WITHIN_S = 0.1  # the promise; measured 16 ms on two busy cores
LOOKS = 20  # that one has meanwhile where the machine is busier than that: a look takes milliseconds, or as much longer
MODEL = '''
from pathlib import Path

HERE = Path(__file__).parent


class Fragile:
    """Loads at the first time, fails at the second, and at the third waits for the gate."""

    inputs = {"x": "FP32[-1,1]"}
    outputs = {"y": "FP32[-1,1]"}

    def load(self):
        with (HERE / "loads").open("a") as loads:
            loads.write("x")
        times = (HERE / "loads").stat().st_size
        if times == 2:
            raise OSError("the disk is full")
        if times == 3:
            (HERE / "gate").read_bytes()

    def predict(self, batch):
        return {"y": batch["x"]}
'''


class Asked:
    """Both ports of a server over connections that are kept."""

    def __init__(self, server: ServerProcess) -> None:
        self._inference = http.client.HTTPConnection("127.0.0.1", server.http_port, timeout=HANG_S)
        self._control = http.client.HTTPConnection("127.0.0.1", server.control_port, timeout=HANG_S)

    def ready(self) -> list[bool]:
        """As the three places say that are asked for it."""
        return [
            self._get(connection, path)[0] == 200
            for connection, path in (
                (self._inference, "/v2/health/ready"),
                (self._inference, "/v2/models/fragile/ready"),
                (self._control, "/healthz"),
            )
        ]

    def instance(self) -> dict[str, Any]:
        (instance,) = self._get(self._control, "/models/fragile")[1]["instances"]
        found: dict[str, Any] = instance
        return found

    def close(self) -> None:
        self._inference.close()
        self._control.close()

    def _get(self, connection: http.client.HTTPConnection, path: str) -> tuple[int, Any]:
        connection.request("GET", path)
        reply = connection.getresponse()
        return reply.status, json.load(reply)


@pytest.mark.alone
def test_a_server_says_at_every_moment_what_its_worker_is(tmp_path: Path) -> None:
    (tmp_path / "model.py").write_text(MODEL, "utf-8")
    os.mkfifo(tmp_path / "gate")
    with (
        ServerProcess(f"fragile={tmp_path / 'model.py'}:Fragile", "--event-log", tmp_path / "log") as server,
        closing(Asked(server)) as asked,
    ):
        assert asked.ready() == [True] * 3
        first = asked.instance()
        assert (first["state"], first["restarts"], first["last_problem"]) == ("up", 0, None)

        killed_at = monotonic()
        os.kill(first["pid"], signal.SIGKILL)
        looks = 0
        while any(asked.ready()):
            looks += 1
            assert looks < LOOKS or monotonic() < killed_at + FALSE_WITHIN_S

        with (tmp_path / "gate").open("wb"):  # returns when the third load has begun
            starting = asked.instance()
            assert (starting["state"], starting["restarts"]) == ("starting", 0)
            assert "the disk is full" in starting["last_problem"]
            assert starting["pid"] not in (None, first["pid"])
            assert asked.ready() == [False] * 3
            assert server.metric("dlproxy_model_ready", model="fragile") == 0
            assert server.metric("dlproxy_instances", model="fragile", state="starting") == 1
            assert server.metric("dlproxy_instances", model="fragile", state="up") == 0
            for change, times in (("up", 1), ("lost", 1), ("failed_to_start", 1), ("retired", 0)):
                assert server.metric("dlproxy_instance_changes_total", model="fragile", change=change) == times

        while not all(asked.ready()):
            assert monotonic() < killed_at + HANG_S
        back = asked.instance()
        assert (back["state"], back["restarts"], back["pid"]) == ("up", 1, starting["pid"])
        assert server.metric("dlproxy_instances", model="fragile", state="up") == 1
        assert server.metric("dlproxy_instance_changes_total", model="fragile", change="up") == 2
        assert server.stop() == 0
    _is_all_in(tmp_path / "log" / "fragile-1.dlog")


def _is_all_in(log: Path) -> None:
    entries = list(read(log)[1])
    kept = [entry.event for entry in entries if isinstance(entry.event, InstanceUp | InstanceLost | Note)]
    first, lost, *notes, back, end = kept
    assert (first, back) == (InstanceUp("fragile-0"), InstanceUp("fragile-0"))
    assert isinstance(lost, InstanceLost)
    assert "killed by SIGKILL" in lost.reason
    changes = ["waiting", "starting", "failed_to_start", "waiting", "starting"]
    assert [note.change for note in notes if isinstance(note, Note)] == changes
    assert any(isinstance(note, Note) and "the disk is full" in note.reason for note in notes)
    assert isinstance(end, InstanceLost)
    assert end.reason == "the server is shutting down"
    times = [entry.at for entry in entries]
    assert times == sorted(times)
    assert replay(log).first_difference is None

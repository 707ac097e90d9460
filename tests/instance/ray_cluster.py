"""A real Ray cluster of several node processes on this machine, in a process of its own: `with LocalCluster() as cluster`.

Used by the tests of Ray and by benchmarks/ray. As a program: a line of JSON per node, then orders from its standard input.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any, Self

STORE_BYTES = 80 * 2**20
STOP_S = 20.0


class LocalCluster:
    """`nodes` node processes of so many `cpus` each, the first of which is the head and has `head_cpus`."""

    def __init__(self, nodes: int = 2, cpus: int = 2, head_cpus: int | None = None, **resources: float) -> None:
        self._cpus = [cpus if head_cpus is None else head_cpus, *[cpus] * (nodes - 1)]
        self._resources = resources
        self.address = ""
        self.nodes: list[dict[str, Any]] = []

    def __enter__(self) -> Self:
        self._folder = tempfile.mkdtemp(prefix="dlp-ray-")
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.instance.ray_cluster"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={**os.environ, "RAY_USAGE_STATS_ENABLED": "0", "RAY_TMPDIR": self._folder, "PYTHONWARNINGS": "ignore"},
            cwd=Path(__file__).parents[2],
            start_new_session=True,
            text=True,
        )
        for cpus in self._cpus:
            self.add(cpus, **self._resources)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        try:
            self._process.wait(STOP_S)
        finally:
            self._process.stdout.close()
            for node in self.nodes:
                _kill(node["pid"])
            _kill(self._process.pid)
            self._process.wait()
            shutil.rmtree(self._folder, ignore_errors=True)

    def add(self, cpus: int, **resources: float) -> dict[str, Any]:
        """One more node: its name, its process."""
        node: dict[str, Any] = self._ask("add", cpus=cpus, resources=resources)
        self.address = node["address"]
        self.nodes.append(node)
        return node

    def kill(self, node: dict[str, Any]) -> None:
        """As if its machine had been switched off: all its processes, at once."""
        for pid in _descendants(node["pid"]):
            _kill(pid)
        self.nodes.remove(node)

    def drain(self, node: dict[str, Any], within_s: float) -> None:
        """A notice that it will be gone then, as a cloud gives for a spot machine."""
        assert self._ask("drain", name=node["name"], within_s=within_s)["accepted"]

    def actors(self) -> list[dict[str, Any]]:
        """Those that live: the node and the process of each."""
        found: list[dict[str, Any]] = self._ask("actors")["actors"]
        return found

    def wanted(self) -> list[dict[str, float]]:
        """What Ray's autoscaler is told that somebody waits for."""
        found: list[dict[str, float]] = self._ask("wanted")["demands"]
        return found

    def groups(self) -> int:
        """Placement groups that there are."""
        count: int = self._ask("groups")["count"]
        return count

    def _ask(self, what: str, **more: Any) -> Any:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps({"what": what, **more}) + "\n")
        self._process.stdin.flush()
        return json.loads(self._process.stdout.readline())


def _kill(pid: int) -> None:
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


def _descendants(pid: int) -> list[int]:
    found, at = [pid], 0
    while at < len(found):
        tasks = Path(f"/proc/{found[at]}/task")
        if tasks.exists():
            for children in tasks.glob("*/children"):
                found += map(int, children.read_text().split())
        at += 1
    return found


def main() -> None:
    """Carries out orders until its standard input closes."""
    import ray
    from ray._private.state import state
    from ray._raylet import GcsClient
    from ray.autoscaler.v2.sdk import get_cluster_resource_state
    from ray.cluster_utils import Cluster

    answers, sys.stdout = sys.stdout, sys.stderr
    cluster = Cluster()
    for line in sys.stdin:
        order = json.loads(line)
        answer: dict[str, Any] = {}
        if order["what"] == "add":
            known = {node.node_id for node in cluster.list_all_nodes()}
            cluster.add_node(
                num_cpus=order["cpus"],
                resources=order["resources"],
                object_store_memory=STORE_BYTES,
                include_dashboard=False,
                include_log_monitor=False,
            )
            (node,) = [node for node in cluster.list_all_nodes() if node.node_id not in known]
            pid = node.all_processes["raylet"][0].process.pid
            answer = {"address": cluster.address, "name": node.node_id, "pid": pid}
            if not ray.is_initialized():
                ray.init(address=cluster.address, log_to_driver=False, logging_level="ERROR", namespace="tests")
        elif order["what"] == "drain":
            deadline_ms = int((datetime.now(UTC).timestamp() + order["within_s"]) * 1000) if order["within_s"] else 0
            reason = 2  # DRAIN_NODE_REASON_PREEMPTION
            client = GcsClient(address=cluster.address)
            accepted, _ = client.drain_node(order["name"], reason, "spot notice", deadline_ms)
            answer = {"accepted": accepted}
        elif order["what"] == "actors":
            alive = [actor for actor in state.actor_table(None).values() if actor["State"] == "ALIVE"]
            answer = {"actors": [{"node": actor["Address"]["NodeID"], "pid": actor["Pid"]} for actor in alive]}
        elif order["what"] == "wanted":
            pending = get_cluster_resource_state(GcsClient(address=cluster.address)).pending_resource_requests
            answer = {"demands": [dict(one.request.resources_bundle) for one in pending]}
        elif order["what"] == "groups":
            answer = {"count": sum(group["state"] != "REMOVED" for group in state.placement_group_table().values())}
        print(json.dumps(answer), file=answers, flush=True)
    ray.shutdown()
    cluster.shutdown()


if __name__ == "__main__":
    main()

"""Workers on a Ray cluster, as actors; and how it is found or started.

Called by synchronous.py and asynchronous.py. Not Ray Train: it would set up the group that synchronous.py sets up, and needs
pandas and pyarrow for it. Not aware of: what workers do.
"""

import logging
import socket
from typing import Any

import ray
from ray.exceptions import RayError

from dlproxy.lab.learn.experiment import LearnError
from dlproxy.lab.learn.parallel.synchronous import Task

REACHED_S = 5.0


def connected(address: str, *, cores: int) -> None:
    """With the cluster; "local" starts one with so many cores, which ends with this process. Raises LearnError."""
    if ray.is_initialized():
        return
    if address not in ("local", "auto"):
        _check(address)
    how: dict[str, Any] = {"num_cpus": cores, "include_dashboard": False} if address == "local" else {}
    try:
        ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR, **how)
    except (ConnectionError, RuntimeError, ValueError, OSError) as error:
        raise LearnError(f"no Ray cluster at '{address}': {str(error).splitlines()[0]}") from None


def _check(address: str) -> None:
    """That somebody listens there: Ray itself would try for minutes. Raises LearnError."""
    host, _, port = address.rpartition(":")
    if not host or not port.isdecimal() or int(port) > 65535:
        raise LearnError(f"'{address}' is no address of a Ray cluster; write it like 10.0.0.1:6379, or auto or local")
    try:
        socket.create_connection((host, int(port)), REACHED_S).close()
    except OSError as error:
        raise LearnError(f"no Ray cluster at '{address}': {(error.strerror or str(error)).lower()}") from None


def address() -> str:
    """Of this machine, for the other nodes."""
    found: str = ray.util.get_node_ip_address()
    return found


class _Worker:
    """In the actor's process."""

    def work(self, task: Task) -> None:
        from dlproxy.lab.learn.parallel.worker import work

        work(task)


class Actor:
    """A worker as an actor that has a core for each of its threads."""

    def __init__(self, task: Task) -> None:
        self._name = f"worker {task.rank + 1} of {task.size}"
        self._actor: Any = ray.remote(_Worker).options(num_cpus=task.threads, max_restarts=0).remote()
        self._done = self._actor.work.remote(task)

    def ended(self) -> str:
        done, _ = ray.wait([self._done], timeout=0)
        if not done:
            return ""
        try:
            ray.get(self._done)
        except RayError as error:
            return f"{self._name} ended: {str(error).strip().splitlines()[-1]}"
        return f"{self._name} ended"

    def stop(self) -> None:
        ray.kill(self._actor)

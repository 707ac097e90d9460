"""`dlproxy place` on real servers: a node is killed, and its models are served elsewhere; clients of the others notice nothing.

Nor do they when the command ends.
"""

import asyncio
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from dlproxy.cli import main
from dlproxy.cli.terminal import INTERRUPTED, OK
from tests.clients.server import HANG_S, ServerProcess, environment
from tests.faults.nodes import light_load, node, serving, states
from tests.faults.test_rollouts_under_load import adds


class Following:
    """`dlproxy place --follow`, until it is interrupted."""

    def __init__(self, config: Path) -> None:
        command = [sys.executable, "-m", "dlproxy", "place", "--config", str(config), "--follow"]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment())
        self._guard = threading.Timer(HANG_S, self.process.kill)
        self._guard.start()

    def until(self, start: str) -> list[str]:
        """The lines that it writes up to the one that starts so."""
        assert self.process.stdout is not None
        lines = []
        for line in self.process.stdout:
            lines.append(line.rstrip())
            if line.startswith(start):
                return lines
        raise AssertionError(f"it ended without {start!r}: {lines}")

    def stop(self) -> int:
        self.process.send_signal(signal.SIGINT)
        self.process.communicate()
        self._guard.cancel()
        return self.process.returncode


@contextmanager
def _cluster(folder: Path) -> Iterator[tuple[dict[str, ServerProcess], Path]]:
    """Three nodes with nothing on them, two of them in one domain, and the file that says what shall be."""
    with ExitStack() as stack:
        nodes = {name: stack.enter_context(node(folder, name, folder / f"store-{name}")) for name in "abc"}
        lines = ["[place]", "every_s = 0.2", "patience_s = 1.0"]
        for name, server in nodes.items():
            domain = "west" if name == "c" else "east"
            lines += [f"[nodes.{name}]", f'control = "http://127.0.0.1:{server.control_port}"', f'domain = "{domain}"']
            lines += ["has = { npu = 1 }"]
        for name, number, replicas in (("m", 1, 2), ("other", 2, 1)):
            lines += [f"[models.{name}]", f'path = "{adds(number, folder)}"', f"replicas = {replicas}", "takes = { npu = 0.5 }"]
        config = folder / "cluster.toml"
        config.write_text("\n".join(lines), "utf-8")
        yield nodes, config


async def _where(nodes: dict[str, ServerProcess], model: str) -> set[str]:
    return {name for name, server in nodes.items() if (model, "1") in serving(await states(server))}


async def test_a_killed_node_s_models_are_served_elsewhere(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with _cluster(tmp_path) as (nodes, config):
        assert main(["place", "--config", str(config)]) == OK
        assert "loaded m on c" in capsys.readouterr().out.splitlines()
        there = await _where(nodes, "m")
        assert len(there) == 2
        assert "c" in there  # in both domains
        assert main(["place", "--config", str(config)]) == OK
        assert "load" not in capsys.readouterr().out  # nothing is left to do
        (lost,) = there - {"c"}
        follows = Following(config)
        try:
            async with light_load(nodes["c"]):
                nodes.pop(lost).kill()
                said = await asyncio.to_thread(follows.until, "loaded m on ")
                assert any(f"node {lost} does not answer" in line for line in said)
                assert await _where(nodes, "m") == {"a", "b", "c"} - {lost}
                assert follows.stop() == INTERRUPTED
                assert await _where(nodes, "other")
            assert (await states(nodes["c"]))["m", "1"]["busy_s"] > 0.0  # by which load is measured
        finally:
            follows.process.kill()

"""What is tried for how long, what an interruption leaves, and what the system tells of a server's processes."""

import os
import subprocess
import sys

import pytest

from dlproxy.cores import allowed_cores
from dlproxy.lab.evaluate import server
from dlproxy.lab.evaluate.run import PARTS, Asked, evaluate
from dlproxy.lab.evaluate.scalability import doubled, levels
from dlproxy.lab.load.generator import Progress
from dlproxy.lab.load.run import Interrupt
from dlproxy.lab.load.settings import Settings
from tests.lab.load.fake import FakeServer


@pytest.mark.parametrize(
    ("most", "counts"), [(1, [1]), (2, [1, 2]), (3, [1, 2, 3]), (4, [1, 2, 4]), (6, [1, 2, 4, 6]), (16, [1, 2, 4, 8, 16])]
)
def test_counts_double_up_to_the_most(most: int, counts: list[int]) -> None:
    assert doubled(most) == counts


def test_more_time_gives_more_levels_of_clients() -> None:
    tried = [levels(seconds, 1.0) for seconds in (0.0, 1.0, 3.5, 5.0, 8.0, 60.0)]
    assert [len(one) for one in tried] == [2, 2, 3, 4, 7, 9]
    assert all(one[0] == 1 and one[-1] >= 64 for one in tried)


@pytest.mark.skipif(not server.PROC.joinpath("self", "stat").exists(), reason="no /proc")
def test_cpu_time_counts_the_children_of_a_process() -> None:
    burn = "import time\nwhile time.process_time() < 0.3: pass\n"
    code = f"import subprocess, sys\nsubprocess.run([sys.executable, '-c', {burn!r}])\nprint('done', flush=True)\ninput()"
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as parent:
        assert parent.stdout is not None
        parent.stdout.readline()
        spent_s = server.cpu_s(parent.pid, None, "m")
        assert server.waited_s(parent.pid) is not None
        parent.communicate(b"\n")
    assert spent_s is not None
    assert 0.3 <= spent_s < 30.0
    assert server.cpu_s(None, None, "m") is None


@pytest.mark.skipif(not server.can_confine(), reason="no affinity")
def test_processes_started_inside_are_confined_and_we_are_not() -> None:
    before = allowed_cores()
    with server.confined(1):
        inside = subprocess.check_output([sys.executable, "-c", "import os; print(len(os.sched_getaffinity(0)))"])
    assert int(inside) == 1
    assert sorted(os.sched_getaffinity(0)) == before


class Pressing:
    """Shows nothing, and has Ctrl-C pressed when a part begins."""

    def __init__(self, interrupt: Interrupt, at: str) -> None:
        self.parts: list[str] = []
        self._interrupt, self._at = interrupt, at

    def part(self, name: str) -> None:
        self.parts.append(name)
        self._interrupt.pressed = name == self._at

    def watch(self, progress: Progress) -> bool:
        return True


def _asked(server: FakeServer, budget_s: float) -> Asked:
    return Asked(
        settings=Settings(url=server.url, model="m"),
        serve=None,
        control_url=None,
        objective_s=None,
        budget_s=budget_s,
        faults=True,
        connect=lambda url: pytest.fail("there is no control port"),
        reload=lambda name: None,
    )


def test_what_was_found_before_ctrl_c_is_kept() -> None:
    interrupt = Interrupt()
    shown = Pressing(interrupt, "calm")
    with FakeServer() as server:
        found = evaluate(_asked(server, 8.0), interrupt, shown)
    assert shown.parts == ["load", "clients", "peak", "calm"]
    assert found.interrupted
    assert found.full is not None
    assert found.full.rate_rps > 0.0
    assert found.trials
    assert found.calm is None
    assert "5 times the p99 of one client" in found.objective_from


def test_time_that_is_up_is_said_of_each_part() -> None:
    interrupt = Interrupt()
    shown = Pressing(interrupt, "never")
    with FakeServer() as server:
        found = evaluate(_asked(server, 0.0), interrupt, shown)
    assert shown.parts == list(PARTS)
    assert set(found.missing) == {"ready", *PARTS}
    assert found.base_rps is None

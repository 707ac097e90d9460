"""A server that nobody asks leaves its cores alone."""

from pathlib import Path
from threading import Event

from tests import models
from tests.clients.server import ServerProcess

WATCHED_S = 2.0
MOST_WAKES = 6 * WATCHED_S  # a second: two looks at the inference port's timeouts, one new Date for the control port; to spare


def _wakes(pid: int) -> int:
    status = Path(f"/proc/{pid}/task/{pid}/status").read_text()
    return int(status.partition("\nvoluntary_ctxt_switches:")[2].split()[0])


def test_its_loop_wakes_a_few_times_a_second() -> None:
    with ServerProcess(models.DIGITS) as server:
        Event().wait(1.0)  # what it still tidies up after the start
        before = _wakes(server.process.pid)
        Event().wait(WATCHED_S)
        assert _wakes(server.process.pid) - before <= MOST_WAKES
        assert server.metric("dlproxy_model_ready", model="digits") == 1.0

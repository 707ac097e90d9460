"""Other processes on the same cores, told from threads that wait for each other."""

import pytest

from dlproxy.telemetry.host import Host
from dlproxy.telemetry.journal import Journal


@pytest.mark.parametrize(
    ("waited_s", "ran_s", "told"),
    [
        (0.0, 0.3, False),
        (0.05, 0.3, False),
        (0.8, 0.6, True),
        (0.8, 1.95, False),  # it has both cores itself
        (1.5, 1.5, True),
    ],
)
def test_it_is_told_when_others_have_the_cores(waited_s: float, ran_s: float, told: bool) -> None:
    now, waited, ran = 10.0, {"1": 3.0}, 1.0
    journal = Journal(lambda: now)
    host = Host(journal, cores=2, waited=lambda: waited, computed=lambda: ran)
    now, waited, ran = 11.0, {"1": 3.0 + waited_s, "2": 99.0}, 1.0 + ran_s  # a thread that is new has waited before
    host.look()
    found = list(journal.since(0.0))
    assert [(one.kind, one.began_at, one.ended_at) for one in found] == ([("host", 10.0, 11.0)] if told else [])
    host.look()
    assert list(journal.since(0.0)) == found, "nothing has happened since"

"""A steady load on a small server while something happens to it; what each fault sends, and that it ends."""

import threading
from time import monotonic

import pytest

from dlproxy.lab.evaluate.faults import Fault, Garbage, KilledWorker, SlowClients
from dlproxy.lab.evaluate.robustness import suffer
from dlproxy.lab.load.run import Interrupt, LoadTest
from dlproxy.lab.load.settings import Settings
from tests.lab.load.fake import Asked, FakeServer, http

OBJECTIVE_S = 5.0  # far more than a busy machine needs


def _test(server: FakeServer) -> LoadTest:
    return LoadTest(Settings(url=server.url, model="m", objective_s=OBJECTIVE_S))


class Refusing(Fault):
    """Has a server refuse everything until it ends."""

    def __init__(self, server: FakeServer) -> None:
        super().__init__()
        self._server = server

    def _work(self) -> None:
        self._server.infer = lambda asked: asked.reply(http({"error": "no"}, "503 Service Unavailable"))
        self.begun_at = monotonic()
        self._ending.wait()
        self._server.infer = Asked.reply
        self.note = "refused all"


def test_what_is_refused_during_a_fault_is_not_kept_and_comes_back() -> None:
    with FakeServer() as server:
        fault = Refusing(server)
        report = suffer(
            _test(server),
            "refusing",
            fault,
            rps=100.0,
            reference_rps=0.0,
            seconds=4.0,
            interrupt=Interrupt(),
            watch=lambda progress: True,
        )
    assert report.effect is not None
    assert report.note == "refused all"
    assert report.kept is not None
    assert report.kept < 0.5
    assert report.effect.before_rps > 50.0
    assert report.timeline
    assert report.from_s < report.to_s
    assert report.reference_rps == report.effect.before_rps


def test_a_fault_that_never_begins_is_not_measured() -> None:
    with FakeServer() as server:
        report = suffer(
            _test(server),
            "killed worker",
            KilledWorker((2**30,)),  # no process has this number
            rps=50.0,
            reference_rps=0.0,
            seconds=1.0,
            interrupt=Interrupt(),
            watch=lambda progress: True,
        )
    assert report.effect is None
    assert "it ended early" in report.reason


@pytest.mark.parametrize("kind", [SlowClients, Garbage])
def test_faults_begin_work_and_end(kind: type[SlowClients] | type[Garbage]) -> None:
    with FakeServer() as server:
        test = _test(server)
        fault = SlowClients(test, 100.0, 1.0) if kind is SlowClients else Garbage(test, 100.0)
        fault.begin()
        for _ in range(1000):
            if fault.begun_at is not None and (len(server.asked) > 3 or kind is Garbage):
                break
            threading.Event().wait(0.01)
        fault.end()
        fault.close()
    assert fault.begun_at is not None
    assert fault.note.startswith("200 connections" if kind is SlowClients else "1")

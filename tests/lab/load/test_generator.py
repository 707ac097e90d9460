"""Both loops in this process against a server in a thread: nothing is lost, latency counts from when a request was due."""

from collections import Counter
from collections.abc import Iterator
from itertools import repeat
from socket import AF_INET
from time import monotonic
from typing import Any

import numpy as np
import pytest

from dlproxy.lab.load import generator
from dlproxy.lab.load.arrivals import make_arrivals
from dlproxy.lab.load.generator import ClosedLoop, Load, OpenLoop, Outcome, Progress
from tests.lab.load.fake import OK, Asked, FakeServer, http

ASK = b"POST /v2/models/m/infer HTTP/1.1\r\ncontent-length: 2\r\n\r\n{}"


def _options(connections: int, drain_s: float) -> dict[str, Any]:
    return {"connections": connections, "drain_s": drain_s, "objective_s": 0.5}


def _closed(server: FakeServer, connections: int = 4, drain_s: float = 1.0) -> Load:
    return ClosedLoop(
        (AF_INET, ("127.0.0.1", server.port)), repeat(ASK), lambda progress: None, **_options(connections, drain_s)
    )


def _open(server: FakeServer, rate: float, until_s: float, connections: int = 256, drain_s: float = 1.0) -> Load:
    stream = make_arrivals("poisson", rate=rate, seed=1)
    address = (AF_INET, ("127.0.0.1", server.port))
    instants: Iterator[float] = (at for chunk in stream.chunks(until_s) for at in chunk.tolist())
    return OpenLoop(instants, rate, address, repeat(ASK), lambda progress: None, **_options(connections, drain_s))


def _run(load: Load, seconds: float, warmup_s: float = 0.0) -> Outcome:
    load.connect()
    outcome = load.run(monotonic() + 0.01, warmup_s, seconds)
    tally = outcome.tally
    assert tally.sent == tally.ok + sum(tally.errors.values())
    return outcome


def _arrived(rate: float, start_s: float, until_s: float) -> int:
    stream = make_arrivals("poisson", rate=rate, seed=1)
    return sum(int(np.count_nonzero(chunk >= start_s)) for chunk in stream.chunks(until_s))


def test_a_closed_loop_keeps_its_connections_busy_and_counts_everything() -> None:
    with FakeServer(lambda asked: asked.reply(after_s=0.01)) as server:
        outcome = _run(_closed(server), 0.5)
    tally = outcome.tally
    assert tally.errors == {}
    assert tally.sent == len(server.asked)
    assert 0.3 * 4 * 50 < tally.sent <= 4 * 51
    assert outcome.connections == 4
    assert tally.latency_ms["p50"] >= 9.0


def test_an_open_loop_sends_what_the_stream_says_and_warms_up_uncounted() -> None:
    with FakeServer() as server:
        # it ends 0.4 s after the last request is due, which may leave late on a busy machine
        outcome = _run(_open(server, 200.0, 0.6), 0.8, warmup_s=0.2)
    assert outcome.tally.sent == outcome.tally.ok == _arrived(200.0, 0.2, 0.6)
    assert len(server.asked) == _arrived(200.0, 0.0, 0.6)
    assert outcome.lateness.count == outcome.tally.sent
    assert outcome.behind == 0


def test_a_stall_of_a_second_shows_at_the_p99_of_an_open_loop() -> None:
    """No coordinated omission: what was due while the server stood still counts from when it was due."""
    stall_from = monotonic() + 0.5

    def stall(asked: Asked) -> None:
        asked.reply(after_s=max(stall_from + 1.0 - asked.at, 0.0) if asked.at >= stall_from else 0.0)

    with FakeServer(stall) as server:
        outcome = _run(_open(server, 200.0, 3.0, connections=1024), 3.0)
    tally = outcome.tally
    assert tally.errors == {}
    assert tally.sent == _arrived(200.0, 0.0, 3.0)
    assert tally.latency_ms["p99"] > 800.0
    assert tally.latency_ms["p50"] < 0.5 * tally.latency_ms["p99"], "a third of the requests fell into the stall"


def test_requests_that_wait_for_a_connection_count_from_when_they_were_due() -> None:
    with FakeServer(lambda asked: asked.reply(after_s=0.05)) as server:
        outcome = _run(_open(server, 100.0, 0.6, connections=2, drain_s=10.0), 0.6)
    assert outcome.limited
    assert outcome.connections == 2
    assert outcome.tally.errors == {}
    assert outcome.tally.sent == _arrived(100.0, 0.0, 0.6)
    assert outcome.behind > 15  # two connections carry 40 a second
    assert outcome.tally.latency_ms["max"] > 300.0


def test_what_could_not_be_sent_and_what_was_not_answered_are_errors() -> None:
    with FakeServer(lambda asked: None) as server:
        outcome = _run(_open(server, 100.0, 0.5, connections=3, drain_s=0.2), 0.5)
    kinds = outcome.tally.errors
    assert kinds["no answer"] == 3
    assert kinds["never sent: every connection was busy"] == _arrived(100.0, 0.0, 0.5) - 3


@pytest.mark.parametrize(
    "make", [lambda server: _closed(server), lambda server: _open(server, 300.0, 0.5)], ids=["closed", "open"]
)
def test_errors_are_counted_by_kind_and_the_rest_goes_on(make: Any) -> None:
    answers = [
        (OK, False),
        (http({"error": "full"}, "503 Service Unavailable"), False),
        (b"", True),
        (b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nshort", True),
        (b"hello\r\n\r\n", True),
        (http({"error": "bad"}, "500 Internal Server Error", "connection: close"), True),
    ]

    def infer(asked: Asked) -> None:
        data, close = answers[len(server.asked) % len(answers)]
        asked.reply(data, close=close)

    with FakeServer(infer) as server:
        outcome = _run(make(server), 0.5)
    kinds = Counter(outcome.tally.errors)
    assert set(kinds) == {
        "503 Service Unavailable",
        "connection closed by the server",
        "connection closed by the server in the middle of an answer",
        "not HTTP",
        "500 Internal Server Error",
    }
    assert outcome.tally.ok >= 2
    assert outcome.said["503 Service Unavailable"] == '{"error": "full"}'
    assert not outcome.gave_up


def test_a_server_that_closes_after_each_answer_is_served_on_new_connections() -> None:
    with FakeServer(lambda asked: asked.reply(http(b"{}", "200 OK", "connection: close"), close=True)) as server:
        outcome = _run(_closed(server), 0.3)
    assert outcome.tally.errors == {}
    assert outcome.tally.ok > 10


def test_a_dead_server_ends_the_run_early(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(generator, "GIVE_UP_S", 0.3)
    told: list[Progress] = []

    def infer(asked: Asked) -> None:
        asked.reply()
        if len(server.asked) == 50:
            server.die()

    with FakeServer(infer) as server:
        load = _closed(server)
        load._tell = told.append
        outcome = _run(load, 60.0)
    assert outcome.gave_up
    assert outcome.tally.duration_s < 20.0
    assert outcome.tally.ok >= 46
    assert outcome.tally.errors["connection refused"] >= 4
    assert told[-1].failed > 0


def test_being_stopped_cuts_the_run_and_waits_a_little_for_answers() -> None:
    with FakeServer(lambda asked: asked.reply(after_s=0.05)) as server:
        load = _open(server, 100.0, 60.0)

        def tell(progress: Progress) -> None:
            if progress.ok >= 20:
                load.stop()

        load._tell = tell
        outcome = _run(load, 60.0)
    assert 20 <= outcome.tally.ok < 100
    assert outcome.tally.errors == {}
    assert outcome.tally.duration_s < 10.0

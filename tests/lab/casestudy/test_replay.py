"""A day sent to a small server over real sockets: each request at its time, with its priority, and what became of it."""

from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import repeat
from threading import Thread
from typing import ClassVar

import numpy as np
import pytest

from dlproxy.lab.casestudy.replay import FAILED, NONE, REFUSED, Door, Item, busiest_rps, replay
from dlproxy.lab.load.generator import Progress


class _Answers(BaseHTTPRequestHandler):
    """The number that it is sent. refuse: 503, lie: something that is no number, light: by a variant, break: nothing."""

    protocol_version = "HTTP/1.1"
    seen: ClassVar[list[tuple[str, str]]] = []

    def do_POST(self) -> None:
        said = self.rfile.read(int(self.headers["Content-Length"])).decode()
        self.seen.append((said, self.headers["x-request-priority"]))
        if said == "break":
            self.close_connection = True
            return
        self.send_response(503 if said == "refuse" else 200)
        if said == "light":
            self.send_header("x-dlproxy-variant", "light")
        content = {"lie": b"no number", "light": b"7", "refuse": b"full"}.get(said, said.encode())
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, form: str, *values: object) -> None:
        """Nothing on stderr."""


@pytest.fixture
def door() -> Iterator[Door]:
    _Answers.seen = []
    with ThreadingHTTPServer(("127.0.0.1", 0), _Answers) as server:
        thread = Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        head = b"POST /classify HTTP/1.1\r\nHost: here\r\n"
        yield Door((server.address_family, server.server_address), head, int)
        server.shutdown()
        thread.join()


def _on(progress: Progress) -> bool:
    return True


def test_each_request_has_its_answer_or_why_there_is_none(door: Door) -> None:
    contents = ["3", "refuse", "lie", "light", "break", "12"]
    at_s = np.linspace(0.0, 0.1, len(contents))
    sent = ((Item(said.encode(), 0), number) for number, said in enumerate(contents))
    found = replay(door, at_s, sent, 0.2, _on)
    assert found.answer.tolist() == [3, REFUSED, FAILED, 7, FAILED, 12]
    assert np.isnan(found.latency_s).tolist() == [False, True, False, False, True, False]
    assert np.nanmax(found.latency_s) < 5.0
    assert found.variants == {"light": 1}
    assert found.errors["503 Service Unavailable"] == 1
    assert found.said["503 Service Unavailable"] == "full"
    assert sorted(_Answers.seen) == sorted((said, str(number)) for number, said in enumerate(contents))


def test_a_day_that_is_stopped_leaves_the_rest_without_an_answer(door: Door) -> None:
    at_s = np.array([0.0, 0.01, 50.0])
    found = replay(door, at_s, ((Item(said, 0), 1) for said in (b"1", b"2", b"3")), 60.0, lambda progress: progress.ok < 2)
    assert found.answer.tolist() == [1, 2, NONE]


def test_what_a_server_can_do_is_counted(door: Door) -> None:
    rate, latencies = busiest_rps(door, repeat(Item(b"5", 0)), clients=2, seconds=0.3)
    assert rate > 0.0
    assert latencies.count == pytest.approx(rate * 0.3, abs=10)

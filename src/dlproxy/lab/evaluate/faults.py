"""Faults that a server is given while it serves: too many requests, clients that do not read, garbage, a killed worker.

Called by robustness.py, one at a time. Each works on a thread of its own, so that the steady load is watched meanwhile.
Not aware of: what a fault does to the server's answers.
"""

import os
import re
import signal
import socket
import threading
from collections import Counter
from contextlib import ExitStack, suppress
from time import monotonic
from typing import Any

from dlproxy.lab.load.generator import Progress
from dlproxy.lab.load.run import Interrupt, LoadTest
from dlproxy.lab.load.settings import LoadError

OVERLOAD = 3.0  # times the peak, together with the steady load
SLOW_CONNECTIONS = 200
UNREAD = 0.1  # requests whose answers nobody reads, as a part of the steady load
GARBAGE = 0.1  # of the steady load
MOST_GARBAGE_RPS = 300.0
PATIENCE_S = 2.0
DRAIN_S = 1.0


class Fault:
    """Begins, lasts until `end`, and is cleared away by `close`. `begun_at`: None until it has.

    `good`: samples of what the fault itself got in time, as recovery.Samples. `at_once`: all of it happens when it begins.
    """

    at_once = False

    def __init__(self) -> None:
        self.begun_at: float | None = None
        self.good: list[tuple[float, float]] = []
        self.note = ""
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def begin(self) -> None:
        self._thread.start()

    @property
    def failed(self) -> bool:
        """Whether it ended without having begun."""
        return self.begun_at is None and self._thread.ident is not None and not self._thread.is_alive()

    def end(self) -> None:
        self._ending.set()

    def close(self) -> None:
        """Wait for the end of all that it does."""
        self._ending.set()
        if self._thread.ident is not None:
            self._thread.join()

    def _run(self) -> None:
        try:
            self._work()
        except (LoadError, OSError) as error:
            self.note = f"it ended early: {error}"
        except KeyboardInterrupt:  # as a load is told that it is not wanted any more
            self.note = "it was interrupted"

    def _work(self) -> None:
        raise NotImplementedError


class Overload(Fault):
    """So many requests more per second than the steady load that both together are three times the peak."""

    def __init__(self, test: LoadTest, rps: float, seconds: float, objective_s: float, interrupt: Interrupt) -> None:
        super().__init__()
        self._test, self._rps, self._seconds = test, rps, seconds
        self._objective_s, self._interrupt = objective_s, interrupt

    def _work(self) -> None:
        changes: dict[str, Any] = {"concurrency": None, "rate": self._rps, "arrivals": "poisson", "duration_s": self._seconds}
        result = self._test.run(
            self._interrupt,
            self._watch,
            **changes,
            objective_s=self._objective_s,
            warmup_s=0.0,
            drain_s=min(2.0 * self._objective_s, DRAIN_S),
        )
        failed = max(result.errors, key=lambda kind: result.errors[kind]) if result.errors else ""
        refused = f", {result.failed:,} failed (mostly {failed})" if failed else ""
        self.note = f"{result.sent:,} requests more in {self._seconds:.1f} s{refused}"

    def _watch(self, progress: Progress) -> bool:
        if progress.ok + progress.failed + progress.under_way:
            now = monotonic()
            self.begun_at = self.begun_at or now
            self.good.append((now, progress.ok - progress.late + progress.failed))
        return True


class SlowClients(Fault):
    """Half of the connections have begun a request and never end it, the others read no answer to what they ask."""

    def __init__(self, test: LoadTest, steady_rps: float, seconds: float) -> None:
        super().__init__()
        self._address, self._request = test.target.address, test.first_request
        self._each = max(round(UNREAD * steady_rps * seconds / (SLOW_CONNECTIONS / 2)), 1)

    def _work(self) -> None:
        family, where = self._address
        with ExitStack() as opened:
            self.begun_at = monotonic()
            open_ones = 0
            for number in range(SLOW_CONNECTIONS):
                with suppress(OSError):
                    sock = opened.enter_context(socket.socket(family, socket.SOCK_STREAM))
                    sock.settimeout(PATIENCE_S)
                    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
                    sock.connect(where)
                    sock.setblocking(False)
                    open_ones += 1
                    sock.send(self._request * self._each if number % 2 else self._request[: len(self._request) // 3])
            self.note = f"{open_ones} connections: half end no request, half read none of their answers"
            self._ending.wait()


class Garbage(Fault):
    """Requests that no server should answer: not HTTP, not JSON, of a wrong shape, for a model that is not there, cut short."""

    def __init__(self, test: LoadTest, steady_rps: float) -> None:
        super().__init__()
        self._address, self._rps = test.target.address, min(GARBAGE * steady_rps, MOST_GARBAGE_RPS)
        path, host = test.target.infer_path(test.model.name), test.target.host_header
        self._kinds = [
            b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03 not HTTP\r\n\r\n",
            _post(path, host, b'{"inputs": ['),
            _post(path, host, b'{"inputs": []}'),
            _post(path, host, b'{"inputs": [{"name": "no such input", "datatype": "FP32", "shape": [-3], "data": ["x"]}]}'),
            _post(f"{path}-not", host, b"{}"),
            _post(path, host, b"{}", "Inference-Header-Content-Length: 99999"),
            _post(path, host, b"{}", f"X-Long: {'x' * 100_000}"),
        ]

    def _work(self) -> None:
        self.begun_at = monotonic()
        answers: Counter[str] = Counter()
        sent = 0
        while not self._ending.is_set():
            answers[self._ask(self._kinds[sent % len(self._kinds)])] += 1
            sent += 1
            self._ending.wait(max(self.begun_at + sent / self._rps - monotonic(), 0.0))
        said = ", ".join(f"{times:,} {answer}" for answer, times in answers.most_common(6))
        self.note = f"{sent:,} requests that make no sense in {monotonic() - self.begun_at:.1f} s; answers: {said}"

    def _ask(self, request: bytes) -> str:
        family, where = self._address
        try:
            with socket.socket(family, socket.SOCK_STREAM) as sock:
                sock.settimeout(PATIENCE_S)
                sock.connect(where)
                sock.sendall(request)
                status = re.match(rb"HTTP/1\.\d (\d{3})", sock.recv(1 << 16))
        except TimeoutError:
            return "none in time"
        except OSError:
            return "closed"
        return status[1].decode() if status else "closed"


class KilledWorker(Fault):
    """kill -9 of one worker process."""

    at_once = True

    def __init__(self, pids: tuple[int, ...]) -> None:
        super().__init__()
        self._pids = pids

    def _work(self) -> None:
        now = monotonic()
        os.kill(self._pids[0], signal.SIGKILL)
        self.begun_at = now
        self.note = f"kill -9 of one of {len(self._pids)} worker process{'es' * (len(self._pids) > 1)}"


def _post(path: str, host: str, body: bytes, *headers: str) -> bytes:
    lines = [f"POST {path} HTTP/1.1", f"Host: {host}", *headers, f"Content-Length: {len(body)}", "", ""]
    return "\r\n".join(lines).encode("latin-1") + body

"""One of three upstream dlproxys killed and brought back under load: what do the clients of the one in front notice?

Called by __main__.py. The clients run in this process and judge each answer.
"""

import asyncio
import contextlib
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from time import perf_counter

from benchmarks.harness.checks import Findings
from benchmarks.harness.live import Live, Served
from benchmarks.harness.processes import Child, free_ports
from benchmarks.harness.servers import answers_ready
from benchmarks.harness.turns import spread
from benchmarks.instances.crowd import Crowd, questions_for
from benchmarks.instances.watch import Watch, until
from benchmarks.models import build_mlp

TITLE = "One of three upstreams killed and brought back under load"
ABOUT = """\
Three `dlproxy serve` with the MLP 784-256-128-10 and one in front of them (`path = "http://…,http://…,http://…"`, nothing
else set), 64 keep-alive clients in closed loop that check every answer. Three times one of the upstreams is killed
(SIGKILL) and, two seconds later, started again on its port; two seconds after it gets batches again it is the next one's
turn. Success: right answers / requests. Noticed: until the front counts two instances."""

MODEL = "mlp"
UPSTREAMS, CLIENTS = 3, 64
CALM_S, AWAY_S = 2.0, 2.0
GOAL = 99.9


def run(live: Live) -> Findings:
    """Each of the three in turn."""
    findings = Findings(TITLE)
    path = build_mlp(live.directory / f"{MODEL}.onnx")
    questions = questions_for(MODEL, path, CLIENTS)
    with contextlib.ExitStack() as stack:
        upstreams = [stack.enter_context(_upstream(live, path)) for _ in range(UPSTREAMS)]
        addresses = ",".join(f"http://127.0.0.1:{upstream.port}/v2/models/{MODEL}" for upstream in upstreams)
        served = stack.enter_context(live.serve(f'[models.{MODEL}]\npath = "{addresses}"\n'))
        crowd = Crowd(served.url, questions, CLIENTS)
        noticed, back = asyncio.run(_kill_each(served, crowd, upstreams))
    tally = crowd.tally
    success = 100.0 * tally.answered / tally.asked
    findings.at_least(
        "success", GOAL, success, unit=" %", digits=4, note=f"of {tally.asked:,}; the slowest took {tally.slowest_s:.2f} s"
    )
    findings.none("requests lost", tally.lost)
    findings.none("answered twice, or with another's answer", tally.unasked + tally.wrong)
    findings.details.append(f"- failures: {tally.words}")
    findings.details.append(f"- noticed after {spread(noticed)} s, up again {spread(back)} s after the upstream was ready")
    return findings


class _Upstream:
    """A dlproxy that can be killed and started again on its port."""

    def __init__(self, live: Live, path: Path) -> None:
        self.port, control_port = free_ports(2)
        self._live = live
        self._command = [sys.executable, "-m", "dlproxy", "serve", f"{MODEL}={path}", "--http-port", str(self.port)]
        self._command += ["--control-port", str(control_port)]
        self._child: Child | None = None

    def start(self) -> None:
        """Returns when it is ready."""
        self._child = self._live.children.start("upstream", self._command)
        self._child.wait_until(lambda: answers_ready(self.port))

    def kill(self) -> None:
        assert self._child is not None
        self._child.process.send_signal(signal.SIGKILL)
        self.stop()

    def stop(self) -> None:
        """End it, if it runs."""
        if self._child is not None:
            self._live.children.stop(self._child)
            self._child = None


@contextlib.contextmanager
def _upstream(live: Live, path: Path) -> Iterator[_Upstream]:
    upstream = _Upstream(live, path)
    try:
        upstream.start()
        yield upstream
    finally:
        upstream.stop()


async def _kill_each(served: Served, crowd: Crowd, upstreams: list[_Upstream]) -> tuple[list[float], list[float]]:
    """Seconds from each kill until the front knows, and from each new start until it sends batches there again."""
    noticed, back = [], []
    async with crowd, Watch(served, MODEL, UPSTREAMS) as watch:
        for upstream in upstreams:
            await asyncio.sleep(CALM_S)
            killed_at = perf_counter()
            upstream.kill()
            noticed.append(await until(watch.complete, killed_at, holds=False))
            await asyncio.sleep(AWAY_S)
            await asyncio.to_thread(upstream.start)
            back.append(await until(watch.complete, perf_counter()))
        await asyncio.sleep(CALM_S)
    return noticed, back

"""Worker processes killed under load, again and again: is every request answered once, and how soon is the model back.

Called by __main__.py. The clients run in this process and judge each answer.
"""

import asyncio
import os
import signal
from time import perf_counter

from benchmarks.harness.checks import Findings
from benchmarks.harness.live import Live, Served
from benchmarks.harness.turns import spread
from benchmarks.instances.crowd import Crowd, questions_for
from benchmarks.instances.watch import Watch, children_of, until
from benchmarks.models import build_mlp

TITLE = "SIGKILL of a worker in mid-batch, 20 times, at 64 connections"
ABOUT = """\
`dlproxy serve` with an MLP 784-2048-2048-10 in worker processes of one thread (`run = "process"`), two of them and then
one alone; 64 keep-alive clients in closed loop, each request with its own number and one of 64 inputs, so that an answer
shows whose it is; outputs are compared with ONNX Runtime's. The worker that has lived longest is killed 1.5 s after all
are up again, until 20 kills have hit a batch, as the server's log says. Lost: no answer, or a connection that closed.
Ready again: since the kill, asked every 5 ms; with two instances, which never are unready, until both are up."""

MODEL = "mlp"
WIDTHS = (784, 2048, 2048, 10)
KILLS, CLIENTS, PAUSE_S = 20, 64, 1.5
BACK_S, UNREADY_S = 2.0, 0.1
IN_A_BATCH = "while it ran a batch"  # what the server's log says of a worker that was lost


def run(live: Live) -> Findings:
    """Two instances, then one."""
    findings = Findings(TITLE)
    path = build_mlp(live.directory / f"{MODEL}.onnx", WIDTHS)
    questions = questions_for(MODEL, path, CLIENTS)
    for count in (2, 1):
        toml = f'[models.{MODEL}]\npath = "{path}"\nrun = "process"\ninstances = {count}\nthreads = 1\n'
        with live.serve(toml) as served:
            crowd = Crowd(served.url, questions, CLIENTS)
            down, back = asyncio.run(_kill(served, crowd, count))
        label = f"{count} instance{'s' * (count > 1)}: "
        tally = crowd.tally
        findings.none(f"{label}requests lost", tally.lost, f"of {tally.asked:,}; the slowest took {tally.slowest_s:.2f} s")
        findings.none(f"{label}answered twice, or with another's answer", tally.unasked + tally.wrong)
        findings.none(f"{label}failed", tally.failures)
        findings.details.append(f"- {label}failures: {tally.words}")
        findings.none(f"{label}asked and not accounted for", abs(tally.asked - tally.ended))
        if count == 1:
            findings.at_most(
                f"{label}readiness false after a kill", UNREADY_S, max(down), unit=" s", digits=3, note=spread(down, 3)
            )
        note = f"{spread(back)}; {len(back)} kills"
        findings.at_most(f"{label}ready again, the slowest time", BACK_S, max(back), unit=" s", note=note)
    return findings


async def _kill(served: Served, crowd: Crowd, count: int) -> tuple[list[float], list[float]]:
    """Seconds from each kill until it shows, and until all is well again."""
    down, back = [], []
    async with crowd, Watch(served, MODEL, count) as watch:
        well = watch.ready if count == 1 else watch.complete
        while served.child.log_path.read_text().count(IN_A_BATCH) < KILLS:
            await asyncio.sleep(PAUSE_S)
            oldest, *_ = children_of(served.child.process.pid)
            killed_at = perf_counter()
            os.kill(oldest, signal.SIGKILL)
            down.append(await until(well, killed_at, holds=False))
            back.append(await until(well, killed_at))
    return down, back

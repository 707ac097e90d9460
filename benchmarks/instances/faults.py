"""Inputs that end, hang or bloat a worker process, in batches with others: who gets which error, and how soon all is well.

Called by __main__.py; the model is faulty.py. The clients run in this process and judge each answer.
"""

import asyncio
import re
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter

import numpy as np

from benchmarks.harness.checks import Findings
from benchmarks.harness.live import Live, Served
from benchmarks.instances import faulty
from benchmarks.instances.crowd import Answer, Crowd, Question, Tally, ask_for, ask_once
from benchmarks.instances.watch import POLL_S, Watch, until

TITLE = "One bad input among many clients of a Python model"
BATCH_TIMEOUT_S, MEMORY_LIMIT_MB, MAX_WAIT_S = 1.0, 512, 0.02
ABOUT = f"""\
`benchmarks/instances/faulty.py:Faulty`, a class that takes 10 ms a batch, in worker processes (the default for Python
classes); `batch_timeout_s = {BATCH_TIMEOUT_S}`, `memory_limit_mb = {MEMORY_LIMIT_MB}`, `max_wait_s = {MAX_WAIT_S}`, so
that clients meet in a batch. 32 keep-alive clients in closed loop, whose answers are checked; then one more request whose
value makes the worker do the worst, with one instance and with two, each time on a new server. Its batch: how many
requests the worker had at hand when it came to it first. Ready again: from the answer to the bad request until every
instance is up."""

MODEL = "faulty"
CLIENTS, BEFORE_S, AFTER_S = 32, 0.5, 0.5
BACK_S = 2.0


@dataclass(frozen=True)
class Fault:
    """`says`: what must occur in the error's text."""

    name: str
    code: int
    says: str


FAULTS = (
    Fault("os._exit", faulty.EXIT, f"exit status {faulty.EXIT_STATUS}"),
    Fault("segfault", faulty.SEGFAULT, "SIGSEGV"),
    Fault("hang", faulty.HANG, "batch_timeout_s"),
    Fault("memory hog", faulty.HOG, "memory_limit"),
    Fault("exception", faulty.RAISE, "this item is bad"),
)


@dataclass
class Course:
    """What came of one bad request: when it was answered, since when all is well, and for how long the server was unready."""

    answer: Answer
    answered_s: float
    back_s: float
    unready_s: float


def run(live: Live) -> Findings:
    """Every fault, with one instance and with two."""
    findings = Findings(TITLE, details=["The errors, as the client gets them:", ""])
    for count in (1, 2):
        for fault in FAULTS:
            with live.serve(_toml(count)) as served:
                crowd = Crowd(served.url, [_question(faulty.OK, number) for number in range(CLIENTS)], CLIENTS)
                course = asyncio.run(_commit(served, crowd, _question(fault.code, 0), count))
                log = served.child.log_path.read_text(errors="replace")
            _judge(findings, fault, f"{fault.name}, {count} instance{'s' * (count > 1)}", course, crowd.tally, log)
    return findings


def _toml(count: int) -> str:
    lines = [f"[models.{MODEL}]", f'path = "{Path(faulty.__file__)}:Faulty"', f"instances = {count}", "threads = 1"]
    lines += [f"batch_timeout_s = {BATCH_TIMEOUT_S}", f"memory_limit_mb = {MEMORY_LIMIT_MB}", f"max_wait_s = {MAX_WAIT_S}"]
    return "\n".join([*lines, ""])


def _question(code: int, number: int) -> Question:
    item = np.array([[code, 100.0 + number]], np.float32)
    return ask_for(MODEL, item, 2 * item)


async def _commit(served: Served, crowd: Crowd, bad: Question, count: int) -> Course:
    async with crowd, Watch(served, MODEL, count) as watch:
        await asyncio.sleep(BEFORE_S)
        asked_at = perf_counter()
        asking = asyncio.create_task(ask_once(served.url, bad))
        unready_s = await _unready_while(asking, watch)
        answered_at = perf_counter()
        back_s = await until(watch.complete, answered_at)
        await asyncio.sleep(AFTER_S)
    return Course(asking.result(), answered_at - asked_at, back_s, unready_s)


async def _unready_while(task: "asyncio.Task[Answer]", watch: Watch) -> float:
    """Seconds for which the server was not ready until the task has ended."""
    unready_s, before = 0.0, perf_counter()
    while not task.done():
        ready = await watch.ready()
        await asyncio.sleep(POLL_S)
        now = perf_counter()
        unready_s += 0.0 if ready else now - before
        before = now
    return unready_s


def _judge(findings: Findings, fault: Fault, label: str, course: Course, tally: Tally, log: str) -> None:
    answer = course.answer
    sizes = [int(size) for size in re.findall(rf"fault {fault.code} in a batch of (\d+)", log)]
    says = answer.status >= 400 and fault.says in answer.text
    spoilt = tally.lost + tally.wrong + tally.unasked + tally.failures
    findings.at_least(f"{label}: has its own error", 1, float(says), digits=0, note=f"after {course.answered_s:.2f} s")
    findings.at_least(f"{label}: requests in its batch", 2, sizes[0] if sizes else 0, digits=0, note=f"ran {len(sizes)} times")
    findings.none(f"{label}: others that were not answered rightly", spoilt, f"of {tally.asked:,}")
    note = f"unready for {course.unready_s:.2f} s before" if course.unready_s else "never unready"
    findings.at_most(f"{label}: ready again", BACK_S, course.back_s, unit=" s", note=note)
    findings.details.append(f"- {label}: {answer.status}, `{answer.text}`")
    findings.details += [f"  - {number} neighbours: `{text}`" for text, number in tally.failed.most_common(3)]

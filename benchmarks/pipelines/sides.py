"""A pipeline and classes that do the same: each a server of its own, checked to answer alike, then loaded in turn.

Called by ocr.py and embedding.py. Everything shares all cores with the clients.
"""

import contextlib
import json
import os
import statistics
import sys
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple
from urllib.request import urlopen

import msgspec
from msgspec import Struct
from numpy.typing import NDArray

from benchmarks.harness.checks import Findings
from benchmarks.harness.live import Live, Served
from benchmarks.harness.processes import Children, Cores
from benchmarks.harness.turns import in_turn, spread
from benchmarks.harness.wrk import Figures
from benchmarks.real.comparison import run_program
from dlproxy import Client
from dlproxy.lab.load.payload import encode, whole_request
from dlproxy.message import DType
from dlproxy.tensors import from_values

NOT_PINNED = Cores(None, None)
CLIENTS = 8
WARM_UP_S = 1.0
SPARE_S = 120.0
READY_S = 120.0
GOAL = 1.5  # times the rate of one class

Answer = Mapping[str, NDArray[Any]]


class Side(Struct):
    """`toml`: what it serves, of which `model` is asked. The lists: of each round; CPU time is a request's."""

    name: str
    model: str
    toml: str
    rates: list[float] = []
    p50_ms: list[float] = []
    cpu_s: list[float] = []
    resident_mb: list[float] = []


class Stage(Struct):
    """Where everything runs, and for how long."""

    children: Children
    folder: Path
    seconds: int
    repeats: int


def sides_of(pipeline: str, model: str, class_file: Path, name: str) -> list[Side]:
    """The pipeline, and the class on a thread, as it is served when nothing is said, and as a pool of processes."""
    path, cores = f'path = "{class_file.name}:{name}', os.cpu_count() or 1
    return [
        Side("the pipeline", model, pipeline),
        Side("one class on a thread", "class", f'[models.class]\n{path}"\nrun = "thread"'),
        Side("one class as it is served by default", "default", f'[models.default]\n{path}"'),
        Side(
            f"{cores} processes of the class, one thread each",
            "pool",
            f'[models.pool]\n{path}OfOneThread"\nrun = "process"\ninstances = {cores}',
        ),
    ]


def compare(
    stage: Stage,
    findings: Findings,
    folder: Path,
    sides: Sequence[Side],
    inputs: Mapping[str, Sequence[NDArray[Any]]],
    differs: Callable[[Answer, Answer], str],
) -> None:
    """The first of the sides by each other. `inputs`: what requests are made of; BYTES. `differs`: how one answer differs from
    another, empty where it does not.
    """
    live = Live(stage.children, NOT_PINNED, folder, READY_S)
    questions = [dict(zip(inputs, values, strict=True)) for values in zip(*inputs.values(), strict=True)]
    with ExitStack() as running:
        servers = [running.enter_context(live.serve(side.toml)) for side in sides]
        _check_alike(sides, servers, questions, findings, differs)
        for number in range(-1, stage.repeats):
            for side, server in in_turn([*zip(sides, servers, strict=True)], max(number, 0)):
                _round(stage, side, server, questions, folder, counts=number >= 0)
    ours, *others = sides
    for side in others:
        ratios = [mine / its for mine, its in zip(ours.rates, side.rates, strict=True)]
        goal = GOAL if side is others[0] else 0.0
        findings.at_least(f"rate by that of {side.name}", goal, statistics.median(ratios), note=spread(ratios))
    for side in sides:
        rate, ms, cpu, mb = map(statistics.median, (side.rates, side.p50_ms, side.cpu_s, side.resident_mb))
        words = f"{rate:,.1f} requests/s, p50 {ms:,.0f} ms, {cpu * 1e3:,.1f} ms of CPU a request, {mb:,.0f} MB"
        findings.details.append(f"- {side.name}: {words}")


def _check_alike(
    sides: Sequence[Side],
    servers: Sequence[Served],
    questions: Sequence[dict[str, NDArray[Any]]],
    findings: Findings,
    differs: Callable[[Answer, Answer], str],
) -> None:
    """Every question once alone and again beside seven others: the first side beside the second."""
    answers = []
    for side, server in zip(sides[:2], servers[:2], strict=True):
        with Client(server.url) as client, ThreadPoolExecutor(CLIENTS) as pool:

            def ask(question: dict[str, NDArray[Any]], client: Client = client, model: str = side.model) -> Answer:
                return client.infer(model, question)

            answers.append([*map(ask, questions), *pool.map(ask, questions)])
    wrong = [found for mine, its in zip(*answers, strict=True) if (found := differs(mine, its))]
    findings.none(f"of {len(answers[0])} answers, those that differ from the class's", len(wrong), "; ".join(wrong[:3]))


def _round(
    stage: Stage,
    side: Side,
    server: Served,
    questions: Sequence[dict[str, NDArray[Any]]],
    folder: Path,
    *,
    counts: bool,
) -> None:
    path = folder / f"{side.model}.requests"
    if not path.exists():
        path.write_bytes(msgspec.msgpack.encode([_request(side.model, question) for question in questions]))
    command = [sys.executable, "-m", "benchmarks.real.client", server.url.rpartition(":")[2], str(path)]
    command += ["--connections", str(CLIENTS), "--seconds", str(stage.seconds), "--warm-up", str(WARM_UP_S)]
    server.child.wait_until_idle()
    before, answered_before = spent(server.child.process.pid), _answered(server.url, side.model)
    figures: Figures = run_program(stage.children, "client", command, stage.seconds + SPARE_S)
    answered = _answered(server.url, side.model) - answered_before  # before and after the time that counts, too
    after = spent(server.child.process.pid)
    cpu_s = (after.cpu_s - before.cpu_s) / answered
    print(f"  {side.name}: {figures.requests_per_s:,.1f}/s, {cpu_s * 1e3:,.1f} ms of CPU", flush=True)
    if counts:
        side.rates.append(figures.requests_per_s)
        side.p50_ms.append(figures.p50_ms)
        side.cpu_s.append(cpu_s)
        side.resident_mb.append(after.resident_bytes / 1e6)


def _answered(url: str, model: str) -> int:
    with urlopen(f"{url}/v2/models/{model}/stats") as reply:
        return int(json.load(reply)["model_stats"][0]["inference_stats"]["success"]["count"])


class Spent(NamedTuple):
    """By a process and all that it started, worker processes among them; 0 where nothing tells."""

    cpu_s: float
    resident_bytes: int


def spent(pid: int) -> Spent:
    found: dict[int, tuple[int, float, int]] = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            fields = path.read_text().rpartition(")")[2].split()
            cpu_s = (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
            found[int(path.parent.name)] = int(fields[1]), cpu_s, int(fields[21]) * os.sysconf("SC_PAGE_SIZE")
    family = {pid}
    while more := {child for child, (parent, *_) in found.items() if parent in family} - family:
        family |= more
    return Spent(*map(sum, zip(*(found[each][1:] for each in family if each in found), strict=True)))


def _request(model: str, question: Mapping[str, NDArray[Any]]) -> bytes:
    tensors = [from_values(name, DType.BYTES, array) for name, array in question.items()]
    return whole_request(f"/v2/models/{model}/infer", "127.0.0.1", encode("binary", tensors, None))

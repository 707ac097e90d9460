"""A step to three times what MiniLM can do, with its quickest accepted variant behind it and without, in turns.

Called by __main__.py, once part `recipes` has made the variant. One client asks over an open loop, with real sentences whose
answers it judges. Not aware of: how the variant was made, pages.
"""

import asyncio
import statistics
from collections.abc import Sequence
from contextlib import suppress
from math import ceil, prod, sqrt
from pathlib import Path
from urllib.request import urlopen

import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

from benchmarks.compress.models import Made
from benchmarks.compress.recipes import LABELS, READY_S, original
from benchmarks.harness.checks import Findings
from benchmarks.harness.live import Live, Served
from benchmarks.harness.processes import BenchmarkError, Children, choose_cores, on_own_core
from benchmarks.harness.turns import in_turn, spread
from dlproxy import AsyncClient, InferenceError
from dlproxy.compress import CompressError
from dlproxy.compress.manifest import Candidate, Report, read_report

TITLE = "Overload"
MODEL = "minilm"
STEPS = ((0.5, 10.0), (3.0, 15.0), (0.5, 20.0))  # times the model's own capacity, seconds
SETTLED_S = 1.0  # from the beginning of the step: what was queued before it has gone
CLIENTS, CAPACITY_S, WARM_UP_S = 8, 6.0, 3.0  # closed loop
CONNECTIONS, ANSWER_S = 1000, 10.0
SHARE, BACK_S, SWITCH_EACH_S = 0.85, 5.0, 10.0
SURELY = 2.58  # standard deviations: 99 %
DIFFERENCE = 0.001  # of accuracies, beside what is chance
Array = NDArray[np.generic]


class Answer(Struct):
    """One request. `due_at`, `at`: seconds from the beginning. `by`: whose answer it is; empty if there is none. `right`: the
    class.
    """

    due_at: float
    at: float
    by: str
    right: bool


class Round(Struct):
    """One run of all steps. `goodput`: answers within the objective per second of the step. `back_s`: after its end, until
    of the requests of each second variants answer the fewer. `answers`: how many there were, and right, by who gave them.
    """

    variants: bool
    goodput: float
    in_time_before: float
    in_time_after: float
    back_s: float
    switches: float
    answers: dict[str, tuple[int, int]]

    @property
    def seconds(self) -> float:
        return sum(seconds for _, seconds in STEPS)


class Overload(Struct):
    """`ratio`: how many times as quick the report says that the variant is, batch 1. `capacities`: requests/s in a closed loop.
    `declared`: accuracies by name.
    """

    variant: str
    ratio: float
    objective_s: float
    declared: dict[str, float]
    capacities: dict[str, float]
    rounds: list[Round]


def measure(made: Made, out: Path, children: Children, folder: Path, objective_s: float, repeats: int) -> Overload:
    """`out`: what part `recipes` left of this model. Raises BenchmarkError."""
    try:
        report = read_report(out / "report.json")
    except CompressError as error:
        raise BenchmarkError(f"run --part recipes --models {MODEL} first: {error}") from error
    chosen = quickest(report)
    assert chosen.measured is not None
    variant = chosen.artifact.partition("/")[0]
    accuracy = chosen.measured.accuracy
    declared = {MODEL: accuracy.original, variant: accuracy.candidate}
    live = Live(children, cores := choose_cores(), folder, READY_S)
    found = Overload(variant, chosen.measured.speeds[0].ratio, objective_s, declared, {}, [])
    crowd = Crowd(made.held_out, objective_s)
    paths = {MODEL: original(made, out), variant: out / chosen.artifact}
    with on_own_core(cores):
        _rounds(live, crowd, found, paths, repeats)
    return found


def _rounds(live: Live, crowd: "Crowd", found: Overload, paths: dict[str, Path], repeats: int) -> None:
    variant, declared, objective_s = found.variant, found.declared, found.objective_s
    with live.serve(toml(paths, declared, "", objective_s)) as served:
        for name in (MODEL, variant) * 2:  # the first time, ways to run may still be tried on what comes
            rate = asyncio.run(crowd.capacity(served, name))
            found.capacities[name] = max(found.capacities.get(name, 0.0), rate)
            print(f"  {name}: {rate:,.1f} requests/s in a closed loop", flush=True)
    for number in range(repeats):
        for on in in_turn((True, False), number):
            with live.serve(toml(paths, declared, variant if on else "", objective_s)) as served:
                found.rounds.append(asyncio.run(_round(crowd, served, found.capacities[MODEL], on, number)))
                print(f"  {found.rounds[-1]}", flush=True)


def quickest(report: Report) -> Candidate:
    """Of what was accepted. Raises BenchmarkError."""
    kept = [one for one in report.candidates if one.artifact and one.measured is not None]
    if not kept:
        raise BenchmarkError(f"nothing was accepted of {report.run.source}: there is no variant to serve")
    return max(kept, key=lambda one: prod(speed.ratio for speed in one.measured.speeds) if one.measured else 0.0)


def toml(paths: dict[str, Path], declared: dict[str, float], variant: str, objective_s: float) -> str:
    """`variant`: that may answer for the model, if any."""
    lines = []
    for name, path in paths.items():
        lines += [f'[models."{name}"]', f'path = "{path}"', f"accuracy = {declared[name]:.6f}"]
        lines += [f'slo = "p99={objective_s * 1e3:g}ms"']
        lines += [f'variants = ["{variant}"]'] if variant and name == MODEL else []
    return "\n".join(lines)


class Crowd:
    """Clients that ask held-out examples, each its own."""

    def __init__(self, held_out: Path, objective_s: float) -> None:
        with np.load(held_out) as arrays:
            self._inputs = {name: arrays[name] for name in arrays.files if name != LABELS}
            self._labels = arrays[LABELS]
        self._objective_s = objective_s
        self._next = 0

    def client(self, served: Served, deadline: bool) -> AsyncClient:
        """`deadline`: the server is told that an answer after the objective is of no use."""
        headers = {"x-request-deadline-ms": f"{self._objective_s * 1e3:g}"} if deadline else {}
        return AsyncClient(served.url, timeout_s=ANSWER_S, connections=CONNECTIONS, retry_budget=0.0, headers=headers)

    async def capacity(self, served: Served, model: str) -> float:
        """Answers per second to clients that wait for them."""
        loop = asyncio.get_running_loop()
        answers: list[Answer] = []
        async with self.client(served, deadline=False) as client:
            began_at = loop.time()

            async def asking() -> None:
                while loop.time() < began_at + WARM_UP_S + CAPACITY_S:
                    answers.append(await self._ask(client, model, began_at, loop.time() - began_at))

            await asyncio.gather(*(asking() for _ in range(CLIENTS)))
        counted = [answer for answer in answers if answer.by and WARM_UP_S <= answer.at < WARM_UP_S + CAPACITY_S]
        return len(counted) / CAPACITY_S

    async def ask_at(self, served: Served, due: Sequence[float]) -> list[Answer]:
        """The model, at these seconds from now, whatever the answers do."""
        loop = asyncio.get_running_loop()
        async with self.client(served, deadline=True) as client, asyncio.TaskGroup() as asking:
            began_at = loop.time()
            tasks = []
            for due_at in due:
                if (wait_s := began_at + due_at - loop.time()) > 0:
                    await asyncio.sleep(wait_s)
                tasks.append(asking.create_task(self._ask(client, MODEL, began_at, due_at)))
        return [task.result() for task in tasks]

    async def _ask(self, client: AsyncClient, model: str, began_at: float, due_at: float) -> Answer:
        row = self._next % len(self._labels)
        self._next += 1
        by, right = "", False
        with suppress(InferenceError):
            answer = await client.infer(model, {name: array[row : row + 1] for name, array in self._inputs.items()})
            by = answer.variant or model
            right = bool(next(iter(answer.values())).argmax() == self._labels[row])
        return Answer(due_at, asyncio.get_running_loop().time() - began_at, by, right)


async def _round(crowd: Crowd, served: Served, capacity: float, on: bool, seed: int) -> Round:
    before = _switches(served)
    answers = await crowd.ask_at(served, arrivals(capacity, seed))
    return judged_round(answers, crowd._objective_s, on, _switches(served) - before)


def arrivals(capacity: float, seed: int) -> list[float]:
    """Instants of Poisson arrivals at the rates of STEPS."""
    random = np.random.default_rng(seed)
    due: list[float] = []
    start = 0.0
    for times, seconds in STEPS:
        due += np.sort(start + random.random(random.poisson(times * capacity * seconds)) * seconds).tolist()
        start += seconds
    return due


def judged_round(answers: Sequence[Answer], objective_s: float, on: bool, switches: float) -> Round:
    """What the answers of one round come to."""
    begin, end = STEPS[0][1], STEPS[0][1] + STEPS[1][1]
    good = [answer.due_at for answer in answers if answer.by and answer.at - answer.due_at <= objective_s]

    def in_time(since: float, until: float) -> tuple[int, int]:
        asked = sum(since <= answer.due_at < until for answer in answers)
        return sum(since <= due_at < until for due_at in good), asked

    before, asked_before = in_time(SETTLED_S, begin)
    after, asked_after = in_time(end + BACK_S, end + STEPS[2][1])
    lent = [0] * ceil(STEPS[2][1])  # by second: answers of variants less the model's own
    for answer in answers:
        if answer.due_at >= end and answer.by:
            lent[int(answer.due_at - end)] += 1 if answer.by != MODEL else -1
    by: dict[str, tuple[int, int]] = {}
    for answer in answers:
        if answer.by:
            given, right = by.get(answer.by, (0, 0))
            by[answer.by] = given + 1, right + answer.right
    return Round(
        variants=on,
        goodput=in_time(begin + SETTLED_S, end)[0] / (end - begin - SETTLED_S),
        in_time_before=before / max(asked_before, 1),
        in_time_after=after / max(asked_after, 1),
        back_s=max((second + 1.0 for second, more in enumerate(lent) if more > 0), default=0.0),
        switches=switches,
        answers=by,
    )


def _switches(served: Served) -> float:
    """Counted by the server since it started."""
    with urlopen(f"{served.control_url}/metrics", timeout=ANSWER_S) as reply:
        lines = reply.read().decode().splitlines()
    return sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith("dlproxy_variant_switches_total{"))


def judged(found: Overload) -> Findings:
    """Rounds with and without are compared in the order in which they took turns."""
    findings = Findings(TITLE)
    on, off = ([one for one in found.rounds if one.variants is kind] for kind in (True, False))
    ratios = [mine.goodput / its.goodput for mine, its in zip(on, off, strict=False)]
    findings.at_least(
        f"goodput of the step, with {found.variant} by without: {SHARE} of its speed, {found.ratio:.2f} times",
        SHARE * found.ratio,
        statistics.median(ratios),
        note=spread(ratios),
    )
    back = [one.back_s for one in on]
    findings.at_most("back after the step", BACK_S, max(back), unit=" s", digits=0, note=spread(back, 0))
    each = max(one.switches / one.seconds * SWITCH_EACH_S for one in on)
    findings.at_most(
        f"switches in {SWITCH_EACH_S:.0f} s", 1.0, each, note=f"at most {max(one.switches for one in on):.0f} a run"
    )
    findings.at_least("in time before the step", 0.99, min(one.in_time_before for one in on), digits=3)
    findings.at_least("in time from 5 s after it", 0.99, min(one.in_time_after for one in on), digits=3)
    for name, declared in found.declared.items():
        given, right = (sum(one.answers.get(name, (0, 0))[place] for one in on) for place in (0, 1))
        chance = SURELY * sqrt(declared * (1.0 - declared) / max(given, 1))
        gap = abs(right / max(given, 1) - declared)
        what = f"accuracy of the answers that {name} gave, off the declared {declared:.2%}"
        findings.at_most(what, chance + DIFFERENCE, gap, digits=4, note=f"{right:,} of {given:,} right")
    findings.details += [
        f"- {'with' if one.variants else 'without'}: {one.goodput:,.0f}/s in time; answers by "
        + ", ".join(f"{name} {given:,}" for name, (given, _) in sorted(one.answers.items()))
        + (f"; {one.switches:.0f} switches" if one.variants else "")
        for one in found.rounds
    ]
    rates = ", ".join(f"{name} {rate:,.0f}/s" for name, rate in found.capacities.items())
    findings.details.append(f"- closed loop of {CLIENTS}, each alone: {rates}")
    return findings

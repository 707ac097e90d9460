"""Live: mixed service times and two classes of deadlines under every queue discipline, in real time.

Called by __main__.py. The same requests as in scheduling.py's kind, through the production driver and one thread.
"""

import asyncio
from math import inf

from benchmarks.known_results.checks import Check
from benchmarks.pressure.in_process import Fleet, Outcome, Planned, Sleeper
from benchmarks.pressure.scheduling import CLASSES_S, CV, LOAD, mixed
from dlproxy.policy.knobs import LaneKnobs
from dlproxy.policy.queueing import DISCIPLINES
from dlproxy.serve.event_loop import loop_factory

TITLE = "Deadlines met at load 0.8, live"
ABOUT = """\
As in the simulation: Poisson arrivals, log-normal service times of CV 4, cut at 200 ms, every other request due within 50
ms, the rest within 500 ms; the same requests for each discipline. One instance that sleeps, requests run alone. Early
drop and admission by deadline are at work in every run. Mean of two lists of requests; the goal is that no discipline
beats EDF."""

ROW_S = 10e-6
MEAN_S = 1e-3
OVERSHOOT_S = 1e-4  # of a sleep and the hand-over to the thread, measured: the list asks for that much less load
REQUESTS = 10_000
RUNS = 2
KNOBS = LaneKnobs(max_batch=1, max_queue_rows=10**9)


def run(seed: int, requests: int = REQUESTS) -> list[Check]:
    """Each discipline with the same lists."""
    lists = [_plan(seed + number, requests) for number in range(RUNS)]
    outcomes = {name: [_send(name, plan) for plan in lists] for name in DISCIPLINES}
    met = {
        name: sum(outcome.within([planned.left_s for planned in plan]) for outcome, plan in zip(found, lists, strict=True))
        / RUNS
        for name, found in outcomes.items()
    }
    best_other = max(share for name, share in met.items() if name != "edf")
    checks = [
        Check(
            group=TITLE,
            result=f"deadlines met, {name}",
            expected=None,
            low=100.0 * best_other if name == "edf" else -inf,
            high=100.0,
            measured=100.0 * share,
            unit=" %",
            digits=2,
        )
        for name, share in met.items()
    ]
    used = [outcome.busy_s / outcome.seconds for outcome in outcomes["edf"]]
    load = Check(
        group=TITLE, result="load, as measured under EDF", expected=LOAD, low=0.65, high=0.9, measured=sum(used) / RUNS
    )
    return [*checks, load]


def _plan(seed: int, requests: int) -> list[Planned]:
    due, rows = mixed(seed, requests, mean_s=MEAN_S, row_s=ROW_S, load=LOAD * MEAN_S / (MEAN_S + OVERSHOOT_S), cv=CV)
    return [
        Planned(due_at, size, CLASSES_S[number % 2])
        for number, (due_at, size) in enumerate(zip(due.tolist(), rows.tolist(), strict=True))
    ]


def _send(discipline: str, plan: list[Planned]) -> Outcome:
    async def real_time() -> Outcome:
        knobs = LaneKnobs(max_batch=KNOBS.max_batch, max_queue_rows=KNOBS.max_queue_rows, discipline=discipline)
        fleet = Fleet(knobs, [(1, ROW_S + OVERSHOOT_S), (1000, 1000 * ROW_S + OVERSHOOT_S)], {"sleeper": Sleeper(0.0, ROW_S)})
        outcome = await fleet.send(plan)
        await fleet.stop()
        return outcome

    with asyncio.Runner(loop_factory=loop_factory()) as runner:
        return runner.run(real_time())

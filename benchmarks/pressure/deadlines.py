"""Live: mixed service times and two classes of deadlines under every queue discipline, in real time.

Called by __main__.py. The same requests as in scheduling.py's kind, through the production driver and one thread.
"""

import asyncio
from math import inf

from benchmarks.harness.checks import Check
from benchmarks.pressure.in_process import Fleet, Outcome, Planned, Sleeper
from benchmarks.pressure.scheduling import CLASSES_S, CV, LOAD, MOST_S, mixed
from dlproxy.policy.knobs import LaneKnobs
from dlproxy.policy.queueing import DISCIPLINES
from dlproxy.serve.event_loop import loop_factory

TITLE = "Deadlines met at load 0.8, live"
ABOUT = """\
As in the simulation, everything five times as slow, so that hand-overs to a thread and sleeping too long (0.1 to 0.2 ms) are
small beside the work: Poisson arrivals, log-normal service times of mean 5 ms and CV 4, cut at 1 s, every other request due
within 250 ms, the rest within 2.5 s; the same requests for each discipline. One instance that sleeps, requests run alone. What
a request takes beside its sleep is measured first and counts as load. Early drop and admission by deadline are at work in
every run. The goal is that no discipline beats EDF."""

SLOWER = 5.0  # than the simulation
ROW_S = 50e-6
MEAN_S = 5e-3
CALIBRATION = 400  # requests of a row, all due at once, that show what a request costs beside its sleep
REQUESTS = 2_800
RUNS = 1
KNOBS = LaneKnobs(max_batch=1, max_queue_rows=10**9)


def run(seed: int, requests: int = REQUESTS) -> list[Check]:
    """Each discipline with the same lists."""
    beside_s = _beside_the_sleep_s()
    lists = [_plan(seed + number, requests, beside_s) for number in range(RUNS)]
    outcomes = {name: [_send(name, plan, beside_s) for plan in lists] for name in DISCIPLINES}
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
        group=TITLE, result="load without hand-overs, as measured under EDF", low=0.4, high=0.9, measured=sum(used) / RUNS
    )
    return [*checks, load]


def _beside_the_sleep_s() -> float:
    """Seconds that a request takes beside what it sleeps: hand-overs to the thread and back, and sleeping too long."""
    outcome = _send("fcfs", [Planned(0.0, 1, inf)] * CALIBRATION, 0.0)
    latencies_s = [latency_s for latency_s in outcome.latencies_s if latency_s is not None]
    return max(latencies_s) / CALIBRATION - ROW_S


def _plan(seed: int, requests: int, beside_s: float) -> list[Planned]:
    due, rows = mixed(
        seed, requests, mean_s=MEAN_S, row_s=ROW_S, load=LOAD * MEAN_S / (MEAN_S + beside_s), cv=CV, most_s=SLOWER * MOST_S
    )
    return [
        Planned(due_at, size, SLOWER * CLASSES_S[number % 2])
        for number, (due_at, size) in enumerate(zip(due.tolist(), rows.tolist(), strict=True))
    ]


def _send(discipline: str, plan: list[Planned], beside_s: float) -> Outcome:
    async def real_time() -> Outcome:
        knobs = LaneKnobs(max_batch=KNOBS.max_batch, max_queue_rows=KNOBS.max_queue_rows, discipline=discipline)
        fleet = Fleet(knobs, [(1, ROW_S + beside_s), (1000, 1000 * ROW_S + beside_s)], {"sleeper": Sleeper(0.0, ROW_S)})
        outcome = await fleet.send(plan)
        await fleet.stop()
        return outcome

    with asyncio.Runner(loop_factory=loop_factory()) as runner:
        return runner.run(real_time())

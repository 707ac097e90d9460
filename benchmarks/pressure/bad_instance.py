"""One of eleven instances of a lane turns slow, or fails at once: live (threads) and simulated, with the default knobs.

Called by __main__.py. The production Driver, Lane and ThreadInstance in this process; requests come at 1,000 a second.
"""

import asyncio
from math import inf

from benchmarks.harness.checks import Check
from benchmarks.known_results.simulating import MODEL, Latencies, calls
from benchmarks.pressure.in_process import LEAD_S, Fleet, Outcome, Planned, Sleeper
from dlproxy.lab.simulate.engine import SimulatedModel, Simulation
from dlproxy.lab.simulate.faults import Fault, plan_fault
from dlproxy.lab.simulate.service_times import Fitted
from dlproxy.policy.balancing import make_balancer
from dlproxy.policy.knobs import LaneKnobs
from dlproxy.policy.lane import Lane
from dlproxy.serve.event_loop import loop_factory

TITLE = "One bad instance of eleven, in a lane with the default knobs"
ABOUT = """\
Buoyant's case (`make bench-known`, "One slow backend of eleven") inside of one lane: 11 instances whose batches take 167
ms, 1,000 requests/s for a minute; from second 15 to 45 one of them takes 2 s, or fails every batch at once. Success:
answered within 1 s. Simulated: service times log-normal with a deviation of 5 ms. Live: the production driver and one
thread per instance, which sleeps. An instance runs one batch at a time, so requests that are lost to the slow one come by
the batch: 15 or so at a time."""

INSTANCES, RATE, SECONDS = 11, 1000.0, 60.0
NORMAL_S, DEVIATION_S, SLOW_S, AT_ONCE_S = 0.167, 0.005, 2.0, 0.0005
FAULT_FROM_S, FAULT_FOR_S = 15.0, 30.0
TIMEOUT_S = 1.0
GOAL = 0.999
KNOBS = LaneKnobs(max_batch=256, max_queue_rows=8192)
PRIOR = ((1, NORMAL_S), (64, NORMAL_S))
BAD = "instance-3"


def run(seed: int) -> list[Check]:
    """Both faults, simulated and live."""
    checks = []
    for kind in ("slow", "fail"):
        word = {"slow": "slow", "fail": "fast-failing"}[kind]
        checks.append(_check(f"{word}, simulated: success within 1 s", simulate(kind, seed)))
        with asyncio.Runner(loop_factory=loop_factory()) as runner:
            outcome = runner.run(live(kind))
        success = outcome.within([TIMEOUT_S] * len(outcome.latencies_s))
        checks.append(_check(f"{word}, live: success within 1 s", success, outcome.words))
    return checks


def simulate(kind: str, seed: int) -> float:
    """The minute in virtual time; the share that was answered within TIMEOUT_S."""
    tally = Latencies()
    simulation = Simulation(tally, balancer=make_balancer("round-robin"))
    names = [f"instance-{number}" for number in range(INSTANCES)]
    times = Fitted(NORMAL_S, 0.0, cv=DEVIATION_S / NORMAL_S, seed=seed)
    simulation.add("node", [SimulatedModel(MODEL, Lane(KNOBS, PRIOR), times, names)])
    fault = {"at_s": FAULT_FROM_S, "for_s": FAULT_FOR_S, "factor": SLOW_S / NORMAL_S, "after_s": AT_ONCE_S}
    plan_fault(simulation, Fault(kind="slow" if kind == "slow" else "fail", node="node", instance=BAD, **fault))
    simulation.run(calls([number / RATE for number in range(int(RATE * SECONDS))]))
    return tally.share_within(TIMEOUT_S)


async def live(kind: str) -> Outcome:
    """The minute in real time, with real threads."""
    runtimes = {f"instance-{number}": Sleeper(NORMAL_S, 0.0) for number in range(INSTANCES)}
    fleet = Fleet(KNOBS, PRIOR, dict(runtimes))
    loop, bad = asyncio.get_running_loop(), runtimes[BAD]

    def turn(seconds: float, *, error: bool) -> None:
        bad.base_s, bad.error = seconds, error

    worse = SLOW_S if kind == "slow" else AT_ONCE_S
    loop.call_later(LEAD_S + FAULT_FROM_S, lambda: turn(worse, error=kind != "slow"))
    loop.call_later(LEAD_S + FAULT_FROM_S + FAULT_FOR_S, lambda: turn(NORMAL_S, error=False))
    outcome = await fleet.send([Planned(number / RATE, 1, inf) for number in range(int(RATE * SECONDS))])
    await fleet.stop()
    return outcome


def _check(result: str, success: float, note: str = "") -> Check:
    return Check(result, 100.0 * GOAL, 100.0, 100.0 * success, TITLE, unit=" %", digits=3, note=note)

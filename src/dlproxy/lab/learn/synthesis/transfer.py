"""What is chosen on made-up load, measured on real: the knobs of a simulated model, and how many cores it is given.

Called by training.py. Not aware of: where the loads come from.
"""

from functools import lru_cache, partial

import numpy as np
from msgspec import Struct

from dlproxy.config import ModelConfig
from dlproxy.lab.learn.synthesis.fits import Numbers
from dlproxy.lab.load.arrivals import Arrivals
from dlproxy.lab.simulate.run import Scenario, plan_model, simulate

BATCHES = (1, 4, 64)
WAITS_S = (0.0, 0.1)
KNOBS_ON = 2  # cores, for as many instances or one of as many threads
CORES = tuple(range(1, 9))
ENOUGH = 0.99  # of the answers in time: what cores are for


class Choice(Struct, frozen=True):
    """Of knobs."""

    batch: int
    wait_s: float
    instances: int
    threads: int


class Served(Struct, frozen=True):
    """The share that was answered in time, and the 99th percentile of the answers' latency."""

    in_time: float
    p99_s: float


class Machine(Struct, frozen=True):
    """A model that takes `service` for a batch on one thread, and shall answer within `slo_s`."""

    service: str = "base=60ms,row=100ms,cv=0.1"
    slo_s: float = 0.8


def serve(machine: Machine, instants: Numbers, choice: Choice, cores: int) -> Served:
    """In virtual time."""
    config = ModelConfig(
        path="m.onnx",
        slo=f"p99={machine.slo_s * 1e3:g}ms",
        run="thread",
        max_batch=choice.batch,
        max_wait_s=choice.wait_s,
        instances=choice.instances,
        threads=choice.threads,
    )
    plan = plan_model("m", config, machine.service)
    plan.timed_on = 1
    length_s = float(instants[-1])
    arrivals = Arrivals("made", len(instants) / length_s, lambda: iter([instants]), length_s)
    scenario = Scenario(
        models={"m": plan}, arrivals=arrivals, duration_s=length_s + 1e-6, cores=cores, objective_s=machine.slo_s
    )
    result = simulate(scenario)
    if result.interrupted:  # half a simulation is no figure
        raise KeyboardInterrupt
    return Served(result.goodput_rps * result.duration_s / result.sent, result.latency_ms["p99"] / 1e3)


def choices() -> list[Choice]:
    ways = [(1, KNOBS_ON), (KNOBS_ON, 1)]
    return [Choice(batch, wait_s, *way) for way in ways for batch in BATCHES for wait_s in WAITS_S]


def tune(machine: Machine, instants: Numbers) -> Choice:
    """The knobs with which most is answered in time; of equals those of the lower latency."""
    return _tuned(machine, instants.tobytes())


@lru_cache
def _tuned(machine: Machine, instants: bytes) -> Choice:
    load = np.frombuffer(instants)
    served = {choice: serve(machine, load, choice, KNOBS_ON) for choice in choices()}
    return max(served, key=lambda choice: (round(served[choice].in_time, 4), -served[choice].p99_s))


def cores_for(machine: Machine, instants: Numbers) -> int:
    """The fewest cores, an instance on each, with which ENOUGH is answered in time; the most there are, if none do."""
    return next((cores for cores in CORES if on_cores(machine, instants, cores).in_time >= ENOUGH), CORES[-1])


def on_cores(machine: Machine, instants: Numbers, cores: int) -> Served:
    return serve(machine, instants, Choice(64, 0.0, cores, 1), cores)


def transferred(machine: Machine, made: Numbers, known: Numbers, real: Numbers) -> dict[str, float]:
    """On `real`, what was chosen on `made` beside what was chosen on `known`, the recorded load that `made` is like.

    `tuned`: answers in time, as a share of those of the other; `tuned_p99`: likewise. `cores`: how many `made` asks for, and
    `cores_in_time`: the share that they answer in time.
    """
    there, chosen = partial(serve, machine, real, cores=KNOBS_ON), tune(machine, made)
    ours, theirs = there(choice=chosen), there(choice=tune(machine, known))
    cores = cores_for(machine, made)
    return {
        "tuned": ours.in_time / theirs.in_time,
        "tuned_p99": ours.p99_s / theirs.p99_s,
        "cores": float(cores),
        "cores_in_time": on_cores(machine, real, cores).in_time,
    }

"""Padding off and on in the production lane, on a transformer's cost as a GPU has it and as a CPU has it.

Lengths are log-normal, 40 tokens in the middle. The table of docs/internals/batching.md comes from runs of a minute.
"""

from functools import cache
from math import inf

import numpy as np
import pytest

from dlproxy.lab.report.result import Result, Tally, make_result
from dlproxy.lab.simulate.engine import Call, SimulatedModel, Simulation
from dlproxy.lab.simulate.service_times import Fitted
from dlproxy.policy.balancing import make_balancer
from dlproxy.policy.knobs import LaneKnobs
from dlproxy.policy.lane import Lane

GPU = (8e-3, 1.5e-6)  # seconds of a batch, and of each token in it
CPU = (0.2e-3, 60e-6)
SECONDS, REQUESTS = 8.0, 48_000  # that a run lasts or takes, whichever comes first


@cache
def run(cost: tuple[float, float], rate: float, max_padding: float) -> Result:
    """Requests at this rate on one instance, whose batches vary by 5 %."""
    base_s, token_s = cost
    random = np.random.default_rng(1)
    seconds = min(SECONDS, REQUESTS / rate)
    count = int(rate * seconds)
    due = np.cumsum(random.exponential(1 / rate, count)).tolist()
    lengths = np.clip(random.lognormal(np.log(40), 0.9, count), 3, 512).astype(int).tolist()
    prior = [(rows, length, base_s + token_s * rows * length) for rows in (1, 4, 16) for length in (16, 64, 256)]
    lane = Lane(LaneKnobs(max_batch=256, max_queue_rows=1 << 20, max_padding=max_padding), prior)
    tally = Tally(0.0, seconds)
    simulation = Simulation(tally, balancer=make_balancer("peak-ewma"))
    simulation.add("a", [SimulatedModel("m", lane, Fitted(base_s, token_s, cv=0.05, seed=1), ["m-0"])])
    simulation.run(Call("m", 1, inf, at, length) for at, length in zip(due, lengths, strict=True))
    return make_result(tally, kind="simulation", started="", target="m", setup={})


@pytest.mark.parametrize(("cost", "rate"), [(GPU, 100), (GPU, 1000), (GPU, 12000), (CPU, 100), (CPU, 200), (CPU, 400)])
def test_the_rule_is_as_good_as_the_better_one(cost: tuple[float, float], rate: float) -> None:
    """Within 2 % in requests a second and 5 % in p99, without a word of which machine it is."""
    off, on = run(cost, rate, 0.0), run(cost, rate, 0.5)
    assert on.rate_rps > 0.98 * off.rate_rps
    assert on.latency_ms["p99"] < 1.05 * off.latency_ms["p99"]


def test_where_batches_have_a_price_padding_carries_more_and_keeps_the_queue_short() -> None:
    assert run(GPU, 1000, 0.5).latency_ms["p99"] < 0.1 * run(GPU, 1000, 0.0).latency_ms["p99"]
    assert run(GPU, 12000, 0.5).rate_rps > 1.1 * run(GPU, 12000, 0.0).rate_rps


def test_a_lower_bound_of_padding_gives_some_of_that_away() -> None:
    """What LaneKnobs.max_padding is in production, beside less of it and more."""
    less, kept, more = (run(GPU, 1000, bound).latency_ms["p99"] for bound in (0.1, 0.5, 0.9))
    assert less > 2.0 * kept
    assert more > 0.6 * kept

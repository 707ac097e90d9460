"""The solved batching problem: closed forms where there are some, and the structure that the literature proves."""

import numpy as np
import pytest
from msgspec.structs import replace

from dlproxy.lab.learn.agent.oracle import Chain, Problem, at_load, evaluate, greedy, iterate, solve, threshold


@pytest.mark.parametrize("load", [0.3, 0.6, 0.8])
def test_single_requests_queue_as_in_the_textbook(load: float) -> None:
    one = {"rate": load, "base": 0.4, "row": 0.6, "most": 1}
    known = {True: load / (1.0 - load), False: load + load**2 / (2.0 * (1.0 - load))}  # M/M/1; M/D/1 (Pollaczek, Khinchine)
    for exponential, waiting in known.items():
        cost, policy = solve(Problem(**one, exponential=exponential))
        assert cost == pytest.approx(waiting, rel=1e-6)
        assert threshold(policy) == 1
        powered, _ = solve(Problem(**one, exponential=exponential, power=2.0))
        assert powered == pytest.approx(waiting + 2.0 * load, rel=1e-6)


@pytest.mark.parametrize("power", [0.0, 5.0, 20.0])
@pytest.mark.parametrize(("load", "fixed"), [(0.2, 0.9), (0.5, 0.6), (0.7, 0.9)])
def test_the_best_policy_waits_up_to_a_threshold_and_two_ways_find_its_cost(load: float, fixed: float, power: float) -> None:
    problem = replace(at_load(load, fixed, power), waiting=50)
    cost, policy = solve(problem)
    at = threshold(policy)
    assert not policy[:at].any()
    assert policy[at:].all()
    assert (np.diff(policy[at : problem.most + 1]) >= 0).all()
    assert iterate(problem) == pytest.approx(cost, rel=1e-4)
    assert cost <= evaluate(Chain(problem), greedy(problem))[0] + 1e-9
    assert evaluate(Chain(problem), policy)[0] == pytest.approx(cost)


def test_what_a_busy_instance_costs_makes_it_wait_for_more() -> None:
    thresholds = [threshold(solve(replace(at_load(0.3, 0.9, power), waiting=50))[1]) for power in (0.0, 5.0, 20.0, 80.0)]
    assert thresholds == sorted(thresholds)
    assert thresholds[0] < thresholds[-1]


def test_where_a_batch_costs_no_more_than_its_rows_nobody_waits() -> None:
    assert threshold(solve(at_load(0.5, 0.0, 0.0))[1]) == 1


def test_probabilities_add_up_and_every_decision_takes_time() -> None:
    chain = Chain(at_load(0.9, 0.5, 1.0))
    assert chain.probabilities.sum(2) == pytest.approx(np.ones(chain.times.shape))
    assert (chain.probabilities >= 0.0).all()
    assert (chain.times > 0.0).all()

"""The batching problem of one instance as a semi-Markov decision process, solved exactly: what an agent can be measured by.

Called by batching.py and benchmarks/learn. Not aware of: agents, lanes.
"""

from math import log

import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

MOST_WAITING = 200

Policy = NDArray[np.int64]
"""For each number of requests that wait: how many are served now, 0: none until the next one comes."""


class Problem(Struct, frozen=True, kw_only=True):
    """Poisson arrivals of `rate`; a batch of b takes base + row * b, or on average so (`exponential`). Every request in the
    system costs 1 per unit of time, a busy instance `power`, one that finds the queue full `lost`.
    """

    rate: float
    base: float
    row: float
    most: int = 16
    power: float = 0.0
    lost: float = 1000.0
    waiting: int = MOST_WAITING
    exponential: bool = False

    def seconds(self, rows: int) -> float:
        return self.base + self.row * rows


def at_load(load: float, fixed: float, power: float, *, most: int = 16) -> Problem:
    """`load`: of what full batches can do; `fixed`: part of a single request's time that does not grow with the batch."""
    row = 1.0 - fixed
    return Problem(rate=load * most / (fixed + row * most), base=fixed, row=row, most=most, power=power)


class Chain:
    """Of each state and action: expected time and cost until the next decision, and where it leads.

    Times [actions, states], costs the same, probabilities [actions, states, states]. What is not possible waits.
    """

    def __init__(self, problem: Problem) -> None:
        states, actions = problem.waiting + 1, problem.most + 1
        self.times = np.full((actions, states), 1.0 / problem.rate)
        self.costs = np.tile(np.arange(states) / problem.rate, (actions, 1))
        self.costs[:, -1] += problem.lost
        self.probabilities = np.zeros((actions, states, states))
        for state in range(states):
            self.probabilities[:, state, min(state + 1, states - 1)] = 1.0
            for rows in range(1, min(problem.most, state) + 1):
                self._serve(problem, state, rows)

    def _serve(self, problem: Problem, state: int, rows: int) -> None:
        seconds = problem.seconds(rows)
        square = (2.0 if problem.exponential else 1.0) * seconds**2
        self.times[rows, state] = seconds
        self.costs[rows, state] = state * seconds + problem.rate * square / 2.0 + problem.power * seconds
        left, room = state - rows, problem.waiting - state + rows
        arrivals = _arrivals(problem.rate * seconds, room, exponential=problem.exponential)
        self.probabilities[rows, state] = 0.0
        self.probabilities[rows, state, left : left + room] = arrivals[:-1]
        self.probabilities[rows, state, -1] += arrivals[-1]
        expected = float(np.arange(room) @ arrivals[:-1]) + room * arrivals[-1]
        self.costs[rows, state] += problem.lost * max(problem.rate * seconds - expected, 0.0)


def _arrivals(mean: float, room: int, *, exponential: bool) -> NDArray[np.float64]:
    """Probabilities of 0, 1, ... room - 1 arrivals during a service, and of room or more."""
    if exponential:
        found = (mean / (1.0 + mean)) ** np.arange(room) / (1.0 + mean)
    else:
        logs = np.concatenate([[0.0], np.cumsum(np.log(np.arange(1, room)))])[:room]
        found = np.exp(np.arange(room) * log(mean) - mean - logs) if room else np.zeros(0)
    return np.append(found, max(1.0 - float(found.sum()), 0.0))


def evaluate(chain: Chain, policy: Policy) -> tuple[float, NDArray[np.floating]]:
    """Cost per unit of time in the long run, and relative values: h + g t = c + P h with h(0) = 0."""
    states = np.arange(len(policy))
    times, costs = chain.times[policy, states], chain.costs[policy, states]
    equations = np.eye(len(policy)) - chain.probabilities[policy, states]
    equations[:, 0] = times  # in place of h(0)
    solution = np.linalg.solve(equations, costs)
    cost = float(solution[0])
    solution[0] = 0.0
    return cost, solution


def solve(problem: Problem) -> tuple[float, Policy]:
    """The least cost per unit of time, and a policy that has it, by policy iteration (Puterman, "Markov Decision Processes",
    1994, 11.4; the problem: Xu et al., "SMDP-based dynamic batching for efficient inference", arXiv 2301.12865).
    """
    chain = Chain(problem)
    policy = np.minimum(np.arange(problem.waiting + 1), problem.most)
    while True:
        cost, values = evaluate(chain, policy)
        tests = chain.costs - cost * chain.times + chain.probabilities @ values
        here = tests[policy, np.arange(len(policy))]
        better = tests.min(0) < here - 1e-9 * np.maximum(np.abs(here), 1.0)
        if not better.any():
            return cost, policy
        policy = np.where(better, tests.argmin(0), policy)


def iterate(problem: Problem, *, precision: float = 1e-6, most: int = 200_000) -> float:
    """The least cost by relative value iteration on the equivalent problem in discrete time (Schweitzer's transformation)."""
    chain = Chain(problem)
    states = np.arange(problem.waiting + 1)
    stays = chain.probabilities[:, states, states]
    step = 0.9 * float((chain.times / np.maximum(1.0 - stays, 1e-9)).min())
    ratio = step / chain.times
    values = np.zeros(len(states))
    for _ in range(most):
        after = (chain.costs / chain.times + (ratio * (chain.probabilities @ values - values) + values) / step).min(0)
        change = after - values / step
        values = (after - after[0]) * step
        if change.max() - change.min() < precision * max(abs(change.max()), 1.0):
            return float((change.max() + change.min()) / 2.0)
    raise ValueError(f"no convergence to {precision:g} in {most} iterations")


def greedy(problem: Problem) -> Policy:
    """Whatever waits is served at once."""
    return np.minimum(np.arange(problem.waiting + 1), problem.most)


def threshold(policy: Policy) -> int:
    """The least number that waits from which on something is served; one more than can wait if nothing ever is."""
    served = np.flatnonzero(policy)
    return int(served[0]) if served.size else len(policy)

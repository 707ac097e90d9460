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
        here = np.arange(states)
        self.probabilities[:, here, np.minimum(here + 1, states - 1)] = 1.0
        for rows in range(1, problem.most + 1):
            self._serve(problem, rows)

    def _serve(self, problem: Problem, rows: int) -> None:
        """A batch of so many, wherever as many wait."""
        seconds, most = problem.seconds(rows), problem.waiting
        square = (2.0 if problem.exponential else 1.0) * seconds**2
        states = np.arange(rows, most + 1)
        self.times[rows, rows:] = seconds
        self.costs[rows, rows:] = states * seconds + problem.rate * square / 2.0 + problem.power * seconds
        self.probabilities[rows, rows:] = 0.0
        arrivals = _arrivals(problem.rate * seconds, most + 1, exponential=problem.exponential)
        seen, expected = np.cumsum(arrivals), np.cumsum(arrivals * np.arange(most + 1))
        for state in range(rows, most + 1):
            left = state - rows
            room = most - left  # so many more may come
            self.probabilities[rows, state, left:most] = arrivals[:room]
            more = max(1.0 - seen[room - 1], 0.0)
            self.probabilities[rows, state, most] = more
            lost = problem.rate * seconds - expected[room - 1] - room * more
            self.costs[rows, state] += problem.lost * max(lost, 0.0)


def _arrivals(mean: float, count: int, *, exponential: bool) -> NDArray[np.float64]:
    """Probabilities of 0 to count - 1 arrivals during a service."""
    numbers = np.arange(count)
    if exponential:
        return np.asarray((mean / (1.0 + mean)) ** numbers / (1.0 + mean))
    logs = np.concatenate([[0.0], np.cumsum(np.log(np.arange(1, count)))])
    return np.asarray(np.exp(numbers * log(mean) - mean - logs))


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


def solve(problem: Problem, chain: Chain | None = None) -> tuple[float, Policy]:
    """The least cost per unit of time, and a policy that has it, by policy iteration (Puterman, "Markov Decision Processes",
    1994, 11.4; the problem: Xu et al., "SMDP-based dynamic batching for efficient inference", arXiv 2301.12865).
    """
    chain = chain or Chain(problem)
    policy = greedy(problem)
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

"""A contextual bandit over at most twenty configurations: LinUCB on one linear model of what they bring under which load.

A KnobPolicy, made by make_knob_policy. It draws nothing at random: the same windows give the same proposals.
Not aware of: whether its proposals are tried, and how.
"""

from collections.abc import Iterator, Sequence
from math import inf, log2, sqrt
from typing import TypeVar

from dlproxy.policy.tuning.protocol import Knobs, Proposal, Space, cores_of
from dlproxy.policy.tuning.window import Window

MOST_ARMS = 20
OPTIMISM = 0.3  # standard deviations of an estimate that count in favour of what is little known
RIDGE = 0.1  # weight of the prior: that everything is as good as can be
FORGET = 0.98  # weight of an observation when the next has come: what batches cost changes
LATENCY = 0.01  # of the reward is lost for each objective that the p99 is long
LONGEST = 10.0  # objectives: a longer p99 costs no more
PAYS = 0.005  # of the reward: not worth a trial
ASIDE_S = 30.0  # in which nothing that was proposed in vain is proposed again

Features = list[float]
Item = TypeVar("Item")


class Bandit:
    """Li, Chu, Langford and Schapire, "A contextual-bandit approach to personalized news article recommendation", WWW 2010,
    with features of load and arm together, and forgetting (Russac, Vernade and Cappé, "Weighted linear bandits for
    non-stationary environments", NeurIPS 2019). It explores while the objective is missed, or where more than it counts.
    """

    def __init__(self) -> None:
        self._model = _Ridge(len(features({"instances": 1, "threads": 1, "max_batch": 1}, (0.0, 0.0))))
        self._space: Space | None = None
        self._observed_at = -inf
        self._first_rate = 0.0
        self._proposed: Knobs | None = None  # and nothing has come of it yet
        self._aside: list[tuple[float, Knobs]] = []  # until when

    def act(self, window: Window, knobs: Knobs, space: Space, now: float) -> Proposal | None:
        self._space = space
        self._aside = [(until, arm) for until, arm in self._aside if now < until]
        if self._proposed is not None:
            self._aside.append((now + ASIDE_S, self._proposed))
            self._proposed = None
        if not window.arrived:
            return None
        if now >= self._observed_at + window.seconds:  # windows overlap, and what is in two would count twice
            self._observed_at = now
            self._observe(knobs, window, space)
        met = window.missed <= space.tolerated * window.ended and space.prefers != "rate"
        if met and space.prefers != "cores":
            return None
        load = load_of(window)
        here, _ = self._model.estimate(features(knobs, load))
        best, best_hope, best_mean = None, -inf, here
        for arm in arms(knobs, space):
            if arm == knobs or (met and cores_of(arm) >= cores_of(knobs)) or any(arm == other for _, other in self._aside):
                continue
            mean, deviation = self._model.estimate(features(arm, load))
            hope = mean + OPTIMISM * deviation
            possible = hope if space.prefers == "rate" else min(hope, 0.0)
            if possible > here + PAYS and hope > best_hope:
                best, best_hope, best_mean = arm, hope, mean
        self._proposed = best
        if best is None:
            return None
        gain = max(best_mean - here, 0.0)
        reason = (
            "by what was seen, it does better under such load" if gain > PAYS else "little is known of it, and it may be better"
        )
        return Proposal(knobs=best, reason=reason, gain=gain, harmless=met)

    def learn(self, knobs: Knobs, window: Window, *, kept: bool) -> None:
        self._proposed = None
        if self._space is not None and window.ended:
            self._observe(knobs, window, self._space)

    def _observe(self, knobs: Knobs, window: Window, space: Space) -> None:
        if space.prefers == "rate" and not self._first_rate:
            self._first_rate = window.in_time / window.seconds
        self._model.observe(features(knobs, load_of(window)), reward(knobs, window, space, self._first_rate))


def arms(knobs: Knobs, space: Space) -> Iterator[Knobs]:
    """At most MOST_ARMS: ways of running with a few bounds of batches each, without waiting. What is pinned stays."""
    pinned = {name: knobs[name] for name in space.pinned if name in knobs}
    here = int(knobs["instances"]), int(knobs["threads"])
    ways = [way for way in space.ways if pinned.get("instances", way[0]) == way[0] and pinned.get("threads", way[1]) == way[1]]
    ways = _spread(ways or [here], MOST_ARMS)
    batches = [int(pinned["max_batch"])] if "max_batch" in pinned else _powers(space.max_batch)
    for instances, threads in ways:
        for batch in _spread(batches, min(max(MOST_ARMS // len(ways), 1), 4)):
            free = {"instances": instances, "threads": threads, "max_batch": batch, "max_wait_s": 0.0}
            yield {**knobs, **free, **pinned}


def _powers(most: int) -> list[int]:
    """The largest first."""
    powers = [2**exponent for exponent in range(most.bit_length()) if 2**exponent < most]
    return [max(most, 1), *reversed(powers)]


def _spread(items: Sequence[Item], most: int) -> list[Item]:
    """So many of them, at equal distances, the first and the last among them."""
    if len(items) <= most:
        return list(items)
    return [items[round(number * (len(items) - 1) / max(most - 1, 1))] for number in range(most)]


def load_of(window: Window) -> tuple[float, float]:
    """Rows a second and dispersion, on a scale of about one."""
    rows = window.rows / window.answered if window.answered else 1.0
    rate = window.arrived / window.seconds * max(rows, 1.0)
    return (log2(max(rate, 1.0)) - 8.0) / 8.0, log2(max(window.dispersion, 1.0)) / 8.0


def features(knobs: Knobs, load: tuple[float, float]) -> Features:
    """Of an arm under a load: each, squares of what can be too much, and all that matters together."""
    instances, threads, batch = log2(int(knobs["instances"])), log2(int(knobs["threads"])), log2(int(knobs["max_batch"]))
    arm = instances / 3.0, threads / 3.0, batch / 8.0
    both = [one * other for one in arm for other in load]
    return [1.0, *load, *arm, *[one * one for one in arm], arm[0] * arm[1], *both]


def reward(knobs: Knobs, window: Window, space: Space, first_rate: float = 0.0) -> float:
    """0 is the best that can be. By rate: doublings of the answers in time per second since the first."""
    if space.prefers == "rate":
        return log2(max(window.in_time / window.seconds, 1e-3) / max(first_rate, 1e-3))
    share = window.in_time / max(window.ended, 1)
    price = LATENCY * cores_of(knobs) / space.cores if space.prefers == "cores" else 0.0
    return share - 1.0 - LATENCY * min(window.p99_s / space.objective_s, LONGEST) - price


class _Ridge:
    """Linear regression towards 0, whose observations lose weight as others come."""

    def __init__(self, size: int) -> None:
        self._squares = [[RIDGE if row == column else 0.0 for column in range(size)] for row in range(size)]
        self._products = [0.0] * size
        self._solved: tuple[list[Features], Features] | None = None

    def observe(self, x: Features, y: float) -> None:
        for number, (value, row) in enumerate(zip(x, self._squares, strict=True)):
            row[:] = [FORGET * old + value * other for old, other in zip(row, x, strict=True)]
            row[number] += (1.0 - FORGET) * RIDGE
            self._products[number] = FORGET * self._products[number] + value * y
        self._solved = None

    def estimate(self, x: Features) -> tuple[float, float]:
        """Mean and standard deviation, in units of the noise, for these features."""
        if self._solved is None:
            root = _cholesky(self._squares)
            self._solved = root, _forward(root, self._products)
        root, products = self._solved
        scaled = _forward(root, x)
        return _dot(scaled, products), sqrt(_dot(scaled, scaled))


def _cholesky(matrix: list[Features]) -> list[Features]:
    """The lower triangle L with L L' = matrix."""
    root: list[Features] = []
    for number, line in enumerate(matrix):
        row: Features = []
        for column in range(number):
            row.append((line[column] - _dot(row, root[column][:column])) / root[column][column])
        row.append(sqrt(max(line[number] - _dot(row, row), 1e-12)))
        root.append(row)
    return root


def _forward(root: list[Features], x: Features) -> Features:
    """The solution of L z = x."""
    solution: Features = []
    for row, value in zip(root, x, strict=True):
        solution.append((value - _dot(solution, row[:-1])) / row[-1])
    return solution


def _dot(one: Features, other: Features) -> float:
    return sum([a * b for a, b in zip(one, other, strict=True)])

"""What of a goal cannot be met, whatever is tuned, by what is known of the model; and the nearest that can.

Called when a model is loaded and when its goal changes. Pure. Not aware of: load, which changes all of it for the worse.
"""

from collections.abc import Sequence
from math import inf, log, sqrt

from dlproxy.config.goals import Goal
from dlproxy.policy.batching import SLO_SHARE
from dlproxy.policy.cost import LatencyModel, Point
from dlproxy.policy.fitting import SIGMAS


def unmet(goal: Goal, prior: Sequence[Point], instances: int, max_batch: int, accuracy: float = 0.0) -> list[str]:
    """A sentence for each clause that cannot be met, or not be judged, with the nearest that can.

    `prior`: calibrated batches, as LatencyModel takes them; without, nothing is said of speed. `instances`: the most that there
    may be. `accuracy`: as measured, 0 if it was not.
    """
    found = []
    if prior:
        least_s = _nearest_latency(goal, prior)
        if goal.latency_s is not None and least_s > goal.latency_s:
            asked, single_s = Goal(goal.latency_s, goal.quantile), _single_s(prior)
            goal = Goal(least_s, goal.quantile, goal.least_rate, goal.prefers, goal.least_accuracy)
            found.append(
                f"{asked} cannot be met: one row alone takes {_milliseconds(single_s)}; "
                f"the nearest that can is {Goal(least_s, goal.quantile)}"
            )
        capacity = capacity_of(goal, prior, instances, max_batch)
        if goal.least_rate > capacity:
            keeping = "" if goal.latency_s is None else f" that keep {Goal(goal.latency_s, goal.quantile)}"
            on = f"{instances} instance{'s' * (instances > 1)}"
            found.append(
                f"{Goal(least_rate=goal.least_rate)} cannot be met: batches{keeping} give at most {capacity:.3g} requests of "
                f"one row a second on {on}; the nearest that can is {Goal(least_rate=_two_digits(capacity, up=False))}"
            )
    if accuracy < goal.least_accuracy:
        measured = (
            f"met: that of this model is {accuracy:g}"
            if accuracy
            else "judged: the accuracy of this model has not been measured"
        )
        found.append(f"{Goal(least_accuracy=goal.least_accuracy)} cannot be {measured}")
    return found


def capacity_of(goal: Goal, prior: Sequence[Point], instances: int, max_batch: int) -> float:
    """Requests of one row per second that so many instances answer in the largest batches that the goal's latency allows."""
    model, length = LatencyModel(prior), _length(prior)
    budget_s = inf if goal.latency_s is None else SLO_SHARE * goal.latency_s
    rows = model.rows_within(budget_s, most=max_batch, length=length)
    return max([instances * size / model.mean(size, length) for size in (1, rows)])


def _nearest_latency(goal: Goal, prior: Sequence[Point]) -> float:
    """The goal's, if the mean of one row is within it, which is all that is sure before anything has been served; else the
    quantile that the goal names, as far as warm-up shows the spread.
    """
    single_s = _single_s(prior)
    if goal.latency_s is not None and single_s <= goal.latency_s:
        return goal.latency_s
    spread_s = LatencyModel(prior).quantile(1, SIGMAS * max(_deviates(goal.quantile) / _deviates(0.99), 0.0), _length(prior))
    return _two_digits(max(single_s, spread_s), up=True)


def _single_s(prior: Sequence[Point]) -> float:
    """Of the smallest calibrated batch, of the length that took the least."""
    rows = min([point[0] for point in prior])
    return min([point[-1] for point in prior if point[0] == rows])


def _length(prior: Sequence[Point]) -> int:
    """The shortest that was calibrated."""
    return min([int(point[1]) or 1 if len(point) > 2 else 1 for point in prior])


def _deviates(quantile: float) -> float:
    """Of the normal distribution, for quantiles from a half (Abramowitz and Stegun 26.2.23: within 0.00045)."""
    if quantile <= 0.5:
        return 0.0
    t = sqrt(-2.0 * log(1.0 - quantile))
    return t - (2.515517 + t * (0.802853 + t * 0.010328)) / (1.0 + t * (1.432788 + t * (0.189269 + t * 0.001308)))


def _two_digits(value: float, *, up: bool) -> float:
    """Rounded to two significant digits, in this direction."""
    number, _, power = f"{value:.1e}".partition("e")
    digits, exponent = int(number.replace(".", "")), int(power) - 1
    rounded = float(f"{digits}e{exponent}")
    if up and rounded < value:
        digits += 1
    elif not up and rounded > value:
        digits, exponent = (digits - 1, exponent) if digits > 10 else (99, exponent - 1)
    return float(f"{digits}e{exponent}")


def _milliseconds(seconds: float) -> str:
    return f"{seconds * 1e3:.3g} ms"

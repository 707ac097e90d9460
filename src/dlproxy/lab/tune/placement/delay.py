"""Mean response time of a copy that batches what waits, and that time as a convex curve of straight pieces.

Called by evaluate.py. Not aware of: models, nodes, copies.
"""

from typing import NamedTuple

import numpy as np

from dlproxy.lab.tune.placement.problem import Floats

POINTS = 128  # rates at which the formula is read
LEAST_LOAD = 0.01  # of the usable rate, the first of them: below it a row waits for nobody
TOLERANCE = 0.02  # the pieces lie above the formula by at most this share of it


class Curve(NamedTuple):
    """Rows in the system as a function of the rate: pieces of `widths` rows/s in which a further row/s adds `slopes` seconds.

    The sum of widths is the usable rate; slopes rise.
    """

    widths: Floats
    slopes: Floats


def mean_response_s(rate: Floats, *, base_s: float, row_s: float, limit: int) -> Floats:
    """Mean seconds from arrival to answer at `rate` rows/s: Poisson, one server, all that waits is the next batch.

    Without a limit: Inoue, "Queueing Analysis of GPU-Based Inference Servers with Dynamic Batching" (2021), phi_0 and phi_1.
    A limit of b rows adds wait only where it binds: as if a share rho^b of the rows saw the M/D/1 queue of a server that
    takes L(b) / b seconds a row instead of row_s. The share is ours, found by simulation: within 12 % up to rho = 0.7,
    17 % at 0.8 (tests/lab/tune/test_delay.py). Batches of one row are M/D/1 itself (Pollaczek-Khinchine).
    """
    if limit == 1:
        return base_s + row_s + _md1_wait_s(rate * (base_s + row_s), base_s + row_s)
    load = rate * row_s
    phi_0 = (row_s + base_s) / (2.0 * (1.0 - load)) * (1.0 + 2.0 * rate * base_s + (1.0 - rate * base_s) / (1.0 + load))
    phi_1 = 1.5 * base_s / (1.0 - load) + row_s / 2.0 * (load + 2.0) / (1.0 - load * load)
    full_s = (base_s + row_s * limit) / limit
    rho = rate * full_s
    held_up: Floats = rho**limit * (_md1_wait_s(rho, full_s) - _md1_wait_s(load, row_s))
    return np.minimum(phi_0, phi_1) + held_up


def _md1_wait_s(load: Floats, service_s: float) -> Floats:
    wait_s: Floats = load * service_s / (2.0 * (1.0 - load))
    return wait_s


def curve(usable: float, *, base_s: float, row_s: float, limit: int) -> Curve:
    """rate * mean response up to the `usable` rate, made convex: the lower hull of its points, in as few pieces as will do."""
    rates = np.concatenate(([0.0], usable * np.linspace(LEAST_LOAD, 1.0, POINTS)))
    inside = rates * mean_response_s(rates, base_s=base_s, row_s=row_s, limit=limit)
    hull = _lower_hull(rates, inside)
    inside = np.interp(rates, rates[hull], inside[hull])
    corners = [0]
    while corners[-1] < POINTS:
        corners.append(_furthest(rates, inside, corners[-1]))
    widths = np.diff(rates[corners])
    return Curve(widths, np.diff(inside[corners]) / widths)


def _lower_hull(x: Floats, y: Floats) -> list[int]:
    """Andrew's monotone chain: indices of the points that no chord passes below."""
    hull: list[int] = []
    for i in range(len(x)):
        while len(hull) > 1:
            a, b = hull[-2], hull[-1]
            if (y[b] - y[a]) * (x[i] - x[a]) < (y[i] - y[a]) * (x[b] - x[a]):
                break
            hull.pop()
        hull.append(i)
    return hull


def _furthest(x: Floats, y: Floats, start: int) -> int:
    """The last point to which a chord from `start` stays within TOLERANCE."""
    for end in range(start + 2, len(x)):
        between = slice(start + 1, end)
        chord = y[start] + (y[end] - y[start]) * (x[between] - x[start]) / (x[end] - x[start])
        if (chord > (1.0 + TOLERANCE) * y[between]).any():
            return end - 1
    return len(x) - 1

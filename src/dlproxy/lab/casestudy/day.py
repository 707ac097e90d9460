"""A day of requests, seeded and pressed into a minute or two: when who uploads which picture, and how urgent that is.

Called by run.py. Not aware of: servers, what pictures show.
"""

from enum import IntEnum
from itertools import islice
from math import pi

import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

from dlproxy.lab.load.payload import picks

LOAD = 0.4  # the day's mean rate by what the shop's server can do: its busiest hour takes 0.6 of that, its sale 2.4 times that
SWING = 0.5  # of the mean: the busiest hour has three times the rate of the quietest
BUSIEST = 0.6  # of the day
SALE = (0.8, 0.9)  # of the day, when the rate is the mean's but for the sale
SALE_FACTOR = 6.0
SHARES = (0.15, 0.7, 0.15)  # of the requests, by kind
KNOWN_SHARE = 0.3  # of checkouts' and visitors' requests are for pictures that were sent before; all others are new
KNOWN, OF_BOTS = 400, 24  # pictures that are sent again and again
ZIPF = 1.0  # of their popularity
_GRID = 10_000

Floats = NDArray[np.float64]


class Kind(IntEnum):
    """Who asks."""

    CHECKOUT = 0
    VISITOR = 1
    BOT = 2


PRIORITIES = {Kind.CHECKOUT: 1, Kind.VISITOR: 4, Kind.BOT: 8}


class Day(Struct, frozen=True, kw_only=True):
    """`at_s` [n], not decreasing, in seconds of the pressed day; `kind` and `picture` [n]: numbers below `pictures`.

    `mean_rps`: of the day without its sale.
    """

    length_s: float
    mean_rps: float
    seed: int
    at_s: Floats
    kind: NDArray[np.int64]
    picture: NDArray[np.int64]
    pictures: int

    @property
    def sale_s(self) -> tuple[float, float]:
        return SALE[0] * self.length_s, SALE[1] * self.length_s

    @property
    def calm(self) -> NDArray[np.bool_]:
        """[n]: which requests are from before the sale."""
        return np.asarray(self.at_s < self.sale_s[0])

    @property
    def in_sale(self) -> NDArray[np.bool_]:
        """[n]"""
        return np.asarray((self.at_s >= self.sale_s[0]) & (self.at_s < self.sale_s[1]))


def rate_at(at: Floats, mean_rps: float) -> Floats:
    """Requests per second at these parts of a day (0 to 1)."""
    cycle = 1.0 + SWING * np.cos(2.0 * pi * (at - BUSIEST))
    return np.asarray(mean_rps * cycle * np.where((at >= SALE[0]) & (at < SALE[1]), SALE_FACTOR, 1.0))


def make_day(*, mean_rps: float, length_s: float, seed: int) -> Day:
    """Poisson arrivals of that rate: uniform in operational time, carried over to the clock's (Cinlar's inversion)."""
    random = np.random.default_rng((seed, 1))
    clock = np.linspace(0.0, 1.0, _GRID + 1)
    middles = (clock[1:] + clock[:-1]) / 2
    reached = np.concatenate(([0.0], np.cumsum(rate_at(middles, mean_rps)))) * length_s / _GRID
    count = int(random.poisson(reached[-1]))
    at_s = np.interp(np.sort(random.uniform(0.0, reached[-1], count)), reached, clock * length_s)
    kind = random.choice(len(SHARES), count, p=SHARES)
    again = (kind == Kind.BOT) | (random.random(count) < KNOWN_SHARE)
    known = np.fromiter(islice(picks(KNOWN, ZIPF, (seed, 2)), count), np.int64, count)
    of_bots = random.integers(0, OF_BOTS, count)
    picture = np.where(kind == Kind.BOT, of_bots, known)
    picture[~again] = KNOWN + np.arange(np.count_nonzero(~again))
    return Day(
        length_s=length_s,
        mean_rps=mean_rps,
        seed=seed,
        at_s=at_s,
        kind=kind.astype(np.int64),
        picture=picture,
        pictures=KNOWN + int(np.count_nonzero(~again)),
    )

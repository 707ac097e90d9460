"""Made-up days: a daily pattern, weekends, drift, bursts at usual and at other times, noise. They are nobody's.

Called by training.py and benchmarks. Not aware of: forecasts.
"""

from collections.abc import Iterator
from math import pi

import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

Floats = NDArray[np.float64]
DAY_S = 86400
JITTER_S = 5.0  # standard deviation of the time at which a usual burst comes


class Habits(Struct, frozen=True, kw_only=True):
    """Of one site. `rate`: per second on average; `peak`: over the trough; `weekend`: of a weekday's; `drift`: growth a day.

    `bursts`: a day, of `factor` times the rate for `lasting_s`, of which a share `usual` comes every day at the same time; each
    takes `swell_s` to come up. `noise`: of the rate's logarithm, over `noise_s`; `mixed`: CV of the rate of each second.
    """

    rate: float
    peak: float
    weekend: float
    drift: float
    bursts: int
    factor: float
    lasting_s: float
    usual: float
    swell_s: float
    noise: float
    noise_s: float
    mixed: float
    first_day: int


def habits(random: np.random.Generator, *, other: bool = False) -> Habits:
    """Of a site drawn at random. `other`: from ranges that those without do not reach: quieter or busier, with more bursts."""

    def between(low: float, high: float) -> float:
        return float(random.uniform(low, high))

    rate = float(np.exp(between(np.log(2.0), np.log(50.0))))
    if other:
        rate = between(0.5, 2.0) if random.random() < 0.5 else between(50.0, 150.0)
    return Habits(
        rate=rate,
        peak=between(4.0, 6.0) if other else between(1.5, 4.0),
        weekend=between(0.4, 1.0),
        drift=between(-0.05, 0.05),
        bursts=int(random.integers(40, 60) if other else random.integers(12, 40)),
        factor=between(4.0, 6.0) if other else between(1.5, 4.0),
        lasting_s=between(30.0, 180.0),
        usual=between(0.2, 0.8),
        swell_s=between(10.0, 60.0) if random.random() < 0.5 else 0.0,
        noise=between(0.05, 0.3),
        noise_s=between(20.0, 600.0),
        mixed=between(0.0, 0.5),
        first_day=int(random.integers(0, 7)),
    )


def counts(site: Habits, days: int, random: np.random.Generator) -> Floats:
    """Arrivals by the second."""
    seconds = np.arange(days * DAY_S)
    swing = (site.peak - 1.0) / (site.peak + 1.0)
    day = seconds // DAY_S
    rate = site.rate * (1.0 - swing * np.cos(2 * pi * seconds / DAY_S)) * (1.0 + site.drift) ** day
    rate *= np.where((day + site.first_day) % 7 >= 5, site.weekend, 1.0)
    knots = random.normal(0.0, site.noise, int(len(seconds) / site.noise_s) + 2)
    rate *= np.exp(np.interp(seconds / site.noise_s, np.arange(len(knots)), knots))
    for start, length in _bursts(site, days, random):
        shape = np.full(length, site.factor)
        swell = min(int(site.swell_s), length)
        shape[:swell] = np.linspace(1.0, site.factor, swell, endpoint=False)
        shape = shape[: max(len(rate) - start, 0)]
        rate[start : start + length] *= shape
    if site.mixed:
        rate *= random.gamma(1.0 / site.mixed**2, site.mixed**2, len(rate))
    return random.poisson(rate).astype(np.float64)


def _bursts(site: Habits, days: int, random: np.random.Generator) -> Iterator[tuple[int, int]]:
    """When each begins and how long it lasts, in seconds."""
    usual = random.integers(0, DAY_S, round(site.bursts * site.usual))
    for day in range(days):
        others = random.integers(0, DAY_S, site.bursts - len(usual)).astype(np.float64)
        for start in [*(usual + random.normal(0.0, JITTER_S, len(usual))), *others]:
            yield max(day * DAY_S + int(start), 0), max(int(random.exponential(site.lasting_s)), 10)

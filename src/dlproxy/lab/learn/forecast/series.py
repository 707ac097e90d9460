"""Arrivals as counts per second, and what of them a forecast sees and must say. As policy/forecast.py has it, for many at once.

Called by the rest of this package and benchmarks. Not aware of: how a forecast is made.
"""

from collections.abc import Iterator, Sequence

import numpy as np
from msgspec import Struct
from msgspec.structs import replace
from numpy.typing import NDArray

from dlproxy.lab.load.arrivals import Arrivals
from dlproxy.policy.forecast import AROUND, Form

Floats = NDArray[np.float64]
Places = NDArray[np.int64]


class Examples(Struct, frozen=True):
    """`at` [N]: seconds, when a forecast is made. `window` [N, length, 2]: rates and bursts before. `season` [N, 1 + horizons].

    `rate`, `burst` [N, horizons]: of the steps that begin a horizon later. `scale` [N]: the site's mean rate.
    """

    at: Places
    window: Floats
    season: Floats
    rate: Floats
    burst: Floats
    scale: Floats

    def __len__(self) -> int:
        return len(self.at)

    @property
    def level(self) -> Floats:
        """[N, 1]: the window's mean rate, as if there had been an arrival more."""
        return np.asarray(self.window[:, :, 0].mean(1, keepdims=True))


class Block(Struct, frozen=True):
    """Seconds of which the targets lie within."""

    start: int
    end: int


class Split(Struct, frozen=True):
    """Blocks in the order of time, with a gap between."""

    train: Block
    validation: Block
    test: Block


class Site:
    """The arrivals of one place, by the second. `counts` [T]."""

    def __init__(self, counts: Floats, form: Form) -> None:
        self.counts = counts
        self.form = form
        self._sums = np.concatenate(([0.0], np.cumsum(counts)))
        self._squares = np.concatenate(([0.0], np.cumsum(counts**2)))

    def mean(self, first: Places, seconds: int) -> Floats:
        """Rates of the seconds that begin there."""
        return np.asarray((self._sums[first + seconds] - self._sums[first]) / seconds)

    def burst(self, first: Places) -> Floats:
        """Variance over mean of the seconds of steps that begin there; 0 without arrivals."""
        step = int(self.form.step_s)
        mean = self.mean(first, step)
        squares = (self._squares[first + step] - self._squares[first]) - step * mean**2
        return np.divide(squares, mean * max(step - 1, 1), out=np.zeros_like(mean), where=mean > 0.0)

    def places(self, block: Block, every: int = 1) -> Places:
        """Seconds at which forecasts can be made whose targets lie in the block, so many seconds apart."""
        form = self.form
        step, before = int(form.step_s), int(form.step_s) * form.length
        first = max(block.start - int(form.horizons_s[0]), before)
        last = min(block.end, len(self.counts)) - int(form.horizons_s[-1]) - step
        return np.arange(-(-first // every) * every, last + 1, every)

    def examples(self, at: Places) -> Examples:
        """Of these instants."""
        form = self.form
        step = int(form.step_s)
        steps = at[:, None] + step * np.arange(-form.length, 0)[None]
        targets = at[:, None] + np.array([int(horizon_s) for horizon_s in form.horizons_s])[None]
        return Examples(
            at=at,
            window=np.stack([self.mean(steps, step), self.burst(steps)], -1),
            season=self.season(at, int(form.season_s)),
            rate=self.mean(targets, step),
            burst=self.burst(targets),
            scale=np.full(len(at), max(float(self.counts.mean()), 1e-9)),
        )

    def season(self, at: Places, season: int) -> Floats:
        """Mean rates so many seconds before: of the window, and around each horizon; -1 where that is not known."""
        form = self.form
        step = int(form.step_s)
        spans = [(-form.length, 0)]
        spans += [(int(one // step) - AROUND, int(one // step) + AROUND + 1) for one in form.horizons_s]
        first = at - season
        known = first >= step * form.length
        columns = [self.mean(np.where(known, first + step * low, 0), step * (high - low)) for low, high in spans]
        return np.where(known[:, None], np.stack(columns, -1), -1.0)


def site_of(arrivals: Arrivals, form: Form) -> Site:
    """Of arrivals that end."""
    instants = np.concatenate(list(arrivals.chunks(float("inf"))))
    return Site(np.bincount(instants.astype(np.int64)).astype(np.float64), form)


def joined(parts: Sequence[Examples]) -> Examples:
    return Examples(*[np.concatenate([getattr(part, name) for part in parts]) for name in Examples.__struct_fields__])


def some(examples: Examples, chosen: NDArray[np.generic]) -> Examples:
    """Those of these places, or where this mask is true."""
    return replace(examples, **{name: getattr(examples, name)[chosen] for name in Examples.__struct_fields__})


def blocked(seconds: int, *, origins: int, test: float, gap: int) -> Iterator[Split]:
    """So many origins, of which the last tests on the end: each on a share `test` of all seconds, as much for validation."""
    length = int(seconds * test)
    for origin in range(origins):
        end = seconds - (origins - 1 - origin) * length
        validation = end - 2 * length - gap
        yield Split(Block(0, validation - gap), Block(validation, validation + length), Block(end - length, end))

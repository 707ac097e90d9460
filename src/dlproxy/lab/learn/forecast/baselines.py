"""What a network must beat: last value, seasonal naive, Holt-Winters, linear autoregression; each tuned on validation.

Called by training.py. Not aware of: networks, where the arrivals come from.
"""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import product
from statistics import NormalDist
from typing import Literal

import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

from dlproxy.lab.learn.forecast.backtest import pinball
from dlproxy.lab.learn.forecast.series import Examples, Places, Site, joined
from dlproxy.policy.forecast import DAY_S, DAY_STEP_S, Form, HoltWinters

Floats = NDArray[np.float64]
Channel = Literal["rate", "burst"]
Space = Literal["plain", "level", "log"]
SPACES: tuple[Space, ...] = ("plain", "level", "log")
SEASONS_S = (60, 90, 120, 180, 240, 300)  # tried where no day has gone by
PADS_S = (0, 10, 60)
MEANS = (1, 2, 3, 6, 12, 24)  # steps whose mean is the last value
ALPHAS = (1.0, 100.0, 10000.0)
LAGS = (24, 1 << 16)  # steps that the linear autoregression sees
SMOOTHING = tuple(product((0.1, 0.3, 0.6), (0.0, 0.05)))  # weights of level and trend


class Part(Struct, frozen=True):
    """Instants at several sites, and what was there; `examples` in the same order."""

    pieces: list[tuple[Site, Places]]
    examples: Examples

    @property
    def form(self) -> Form:
        return self.pieces[0][0].form


def part_of(pieces: Sequence[tuple[Site, Places]]) -> Part:
    return Part(list(pieces), joined([site.examples(at) for site, at in pieces]))


class Guess(Struct, frozen=True):
    """A way to forecast. `point` [N, horizons]; where it has `deviations`, it knows its quantiles itself: as a normal one's."""

    name: str
    point: Callable[[Part], Floats]
    space: Space = "plain"
    deviations: Callable[[Part], Floats] | None = None


class Baseline:
    """One guess with the quantiles of its errors on the training blocks, added in the guess's space."""

    def __init__(self, guess: Guess, channel: Channel, levels: Sequence[float], train: Part) -> None:
        self.guess = guess
        self._levels = levels
        self._errors: Floats | None = None
        if guess.deviations is None:
            level = train.examples.level
            errors = _to(getattr(train.examples, channel), level, guess.space) - _to(guess.point(train), level, guess.space)
            self._errors = np.quantile(errors, levels, axis=0).T  # [horizons, levels]

    def quantiles(self, part: Part) -> Floats:
        """[N, horizons, levels]."""
        point = self.guess.point(part)
        if self._errors is None:
            assert self.guess.deviations is not None
            z = np.array([NormalDist().inv_cdf(level) for level in self._levels])
            return np.maximum(point[..., None] + z * self.guess.deviations(part)[..., None], 0.0)
        level = part.examples.level
        moved = _to(point, level, self.guess.space)[..., None] + self._errors
        return np.maximum(_back(moved, level[..., None], self.guess.space), 0.0)


def _to(values: Floats, level: Floats, space: Space) -> Floats:
    return np.log1p(np.maximum(values, 0.0)) if space == "log" else values / (level + 0.1) if space == "level" else values


def _back(values: Floats, level: Floats, space: Space) -> Floats:
    return np.expm1(values) if space == "log" else values * (level + 0.1) if space == "level" else values


def tuned(guesses: Sequence[Guess], channel: Channel, levels: Sequence[float], train: Part, validation: Part) -> Baseline:
    """The one that loses least on the validation blocks, all horizons and levels taken together."""
    found = [Baseline(guess, channel, levels, train) for guess in guesses]
    if len(found) == 1:
        return found[0]
    return min(found, key=lambda one: float(losses(one.quantiles(validation), validation, channel, levels).mean()))


def losses(quantiles: Floats, part: Part, channel: Channel, levels: Sequence[float]) -> Floats:
    """[N, horizons, levels]: pinball losses as shares of the site's mean rate, or of the mean burstiness."""
    target: Floats = getattr(part.examples, channel)
    scale = part.examples.scale[:, None, None] if channel == "rate" else max(float(target.mean()), 1e-9)
    return pinball(target, quantiles, levels) / scale


def baselines(channel: Channel, levels: Sequence[float], train: Part, validation: Part) -> dict[str, Baseline]:
    """All of them by name, tuned."""
    days = max(len(site.counts) for site, _ in train.pieces) > 2 * DAY_S
    families = {
        "always the same": list(_constant()),
        "last value": list(_last_values(channel)),
        "seasonal naive": list(_seasonal(channel, days=days)),
    }
    if channel == "rate":
        families["Holt-Winters"] = list(_smoothed("as served: trend", HoltWinters))
        if days:
            families["Holt-Winters, daily"] = list(_smoothed("as served: daily", partial(HoltWinters, DAY_S, DAY_STEP_S)))
        families["Holt-Winters, tuned"] = list(_all_smoothed(train.form))
    families["linear AR"] = [ridge(channel, *how, train) for how in product(SPACES, ALPHAS, LAGS)]
    return {name: tuned(guesses, channel, levels, train, validation) for name, guesses in families.items()}


# Points


def _constant() -> Iterator[Guess]:
    """The quantiles of the training blocks, whatever has just been: what there is to learn lies beyond them."""
    yield Guess("", lambda part: np.zeros_like(part.examples.rate))


def _last_values(channel: Channel) -> Iterator[Guess]:
    column = 0 if channel == "rate" else 1
    for steps, space in product(MEANS, SPACES):

        def point(part: Part, steps: int = steps) -> Floats:
            last = part.examples.window[:, -steps:, column].mean(1)
            return np.repeat(last[:, None], len(part.form.horizons_s), 1)

        yield Guess(f"mean of the last {steps}, {space}", point, space)


def _seasonal(channel: Channel, *, days: bool) -> Iterator[Guess]:
    seasons = (DAY_S,) if days else SEASONS_S
    pads = PADS_S if channel == "rate" else (0,)
    for season, pad, space, scaled in product(seasons, pads, SPACES, (False, True) if channel == "rate" else (False,)):

        def point(part: Part, season: int = int(season), pad: int = pad, scaled: bool = scaled) -> Floats:
            return np.concatenate([_season_ago(site, at, channel, season, pad, scaled=scaled) for site, at in part.pieces])

        yield Guess(f"{season:g} s ago, {pad} s around, {space}{', to level' if scaled else ''}", point, space)


def _season_ago(site: Site, at: Places, channel: Channel, season: int, pad: int, *, scaled: bool) -> Floats:
    """The same step a season ago; where that is not known, the last one."""
    form = site.form
    step, before = int(form.step_s), int(form.step_s) * form.length
    columns = []
    for horizon_s in form.horizons_s:
        first = at + int(horizon_s) - season - pad
        known = first - before >= 0
        first = np.where(known, first, at - step)
        if channel == "burst":
            columns.append(site.burst(first))
            continue
        value = np.where(known, site.mean(np.where(known, first, 0), step + 2 * pad), site.mean(at - step, step))
        if scaled:
            then = site.mean(np.where(known, at - before - season, at - before), before)
            value = value * np.where(known, (site.mean(at - before, before) + 0.1) / (then + 0.1), 1.0)
        columns.append(value)
    return np.stack(columns, -1)


def _smoothed(name: str, make: Callable[[], HoltWinters], *, spaces: Sequence[Space] = ()) -> Iterator[Guess]:
    """With its own quantiles, as it is served, and with those of its errors in these spaces."""
    runs: list[tuple[Part, Floats]] = []  # a run through days takes its time

    def run(part: Part) -> Floats:
        for known, found in runs:
            if known is part:
                return found
        runs.append((part, np.concatenate([_run(make(), site, at) for site, at in part.pieces])))
        return runs[-1][1]

    yield Guess(name, lambda part: run(part)[..., 0], deviations=lambda part: run(part)[..., 1])
    for space in spaces:
        yield Guess(f"{name}, {space}", lambda part: run(part)[..., 0], space)


def _all_smoothed(form: Form) -> Iterator[Guess]:
    for level, trend in SMOOTHING:
        make = partial(HoltWinters, step_s=form.step_s, level=level, trend=trend)
        yield from _smoothed(f"level {level:g}, trend {trend:g}", make, spaces=SPACES)


def _run(forecast: HoltWinters, site: Site, at: Places) -> Floats:
    """[N, horizons, 2]: mean and deviation, from samples of every second, or step where these end there."""
    found = np.zeros((len(at), len(site.form.horizons_s), 2))
    step = int(site.form.step_s)
    every = step if not (at % step).any() else 1
    samples = site.mean(np.arange(0, len(site.counts) - every + 1, every), every).tolist()
    second = 0
    for place, until in enumerate(at.tolist()):
        while second < until:
            forecast.observe(samples[second // every], second + every / 2)
            second += every
        for number, horizon_s in enumerate(site.form.horizons_s):
            found[place, number] = forecast.expected(until + horizon_s)
    return found


# Linear autoregression


def ridge(channel: Channel, space: Space, alpha: float, lags: int, train: Part) -> Guess:
    """Least squares with an L2 penalty on the window, what was a season ago, and 1 (Hoerl & Kennard 1970)."""
    features = _features(train.examples, space, lags)
    mean, deviation = features.mean(0), features.std(0) + 1e-9
    x = np.column_stack([(features - mean) / deviation, np.ones(len(features))])
    y = _to(getattr(train.examples, channel), train.examples.level, space)
    penalty = alpha * np.eye(x.shape[1])
    penalty[-1, -1] = 0.0
    weights = np.linalg.solve(x.T @ x + penalty, x.T @ y)

    def point(part: Part) -> Floats:
        given = (_features(part.examples, space, lags) - mean) / deviation
        said = np.column_stack([given, np.ones(len(given))]) @ weights
        return np.maximum(_back(said, part.examples.level, space), 0.0)

    return Guess(f"alpha {alpha:g}, {space}, {lags} lags", point, space)


def _features(examples: Examples, space: Space, lags: int) -> Floats:
    rates, bursts = examples.window[:, -lags:, 0], examples.window[:, -lags:, 1]
    known = examples.season[:, :1] >= 0.0
    season = np.where(known, examples.season, examples.level)
    return np.column_stack([_to(rates, examples.level, space), np.log1p(bursts), _to(season, examples.level, space), known])

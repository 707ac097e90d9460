"""When requests arrive: open-loop arrival processes, seeded, as chunks of instants in seconds from the start.

Called by lab/load (live) and lab/simulate (virtual time), so that both see the same requests. Not aware of: clocks, payloads.
"""

import csv
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from math import exp, inf
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

Instants = NDArray[np.float64]
Gaps = Callable[[int], Instants]  # so many inter-arrival times with mean 1

CHUNK = 8192  # arrivals drawn at a time
LEAST_CV, MOST_CV = 1e-3, 100.0


class ArrivalsError(ValueError):
    """An arrival process or trace that cannot be used; the message says what is wrong and what would be right."""


class Arrivals:
    """A stream of arrival instants, at `rate` per second on average. Iterating twice gives the same stream twice.

    `label` describes it in reports. `duration_s`: None for an endless process, the length of a trace otherwise.
    """

    def __init__(
        self, label: str, rate: float, draw: Callable[[], Iterator[Instants]], duration_s: float | None = None
    ) -> None:
        self.label = label
        self.rate = rate
        self.duration_s = duration_s
        self._draw = draw

    def chunks(self, until_s: float) -> Iterator[Instants]:
        """Non-decreasing instants below `until_s`, some thousand at a time."""
        for chunk in self._draw():
            if chunk.size and chunk[-1] >= until_s:
                yield chunk[chunk < until_s]
                return
            yield chunk


def make_arrivals(spec: str, *, rate: float, seed: int) -> Arrivals:
    """An arrival process of this mean rate (per second) from its description. Raises ArrivalsError.

    constant: evenly spaced. poisson: exponential gaps. gamma:cv=4.47 : gaps of this coefficient of variation.
    mmpp:high=5,share=0.1,dwell=1 : Poisson whose rate is `high` times as large for a `share` of the time, in spells of
    `dwell` seconds on average. daily:peak=3,period=86400,cv=1 : the rate swings, its peak is `peak` times its mean.
    """
    if not 0.0 < rate < inf:
        raise ArrivalsError(f"rate {rate:g} is out of range: give a positive number of requests per second")
    kind, _, text = spec.partition(":")
    if kind not in _KINDS:
        raise ArrivalsError(f"there is no arrival process '{kind}'; choose from {', '.join(_KINDS)}")
    defaults, build = _KINDS[kind]
    options = dict(defaults)
    for part in filter(None, text.split(",")):
        name, _, value = part.partition("=")
        if name not in options:
            known = f"the options of {kind} are {', '.join(options)}" if options else f"{kind} has no options"
            raise ArrivalsError(f"arrivals '{spec}': there is no option '{name}'; {known}")
        try:
            options[name] = float(value)
        except ValueError:
            raise ArrivalsError(f"arrivals '{spec}': {name} takes a number, not '{value}'") from None
        if not 0.0 < options[name] < inf:
            raise ArrivalsError(f"arrivals '{spec}': {name} must be a number above 0")
    return Arrivals(spec, rate, build(rate, seed, options))


def read_trace(path: Path, *, speed: float = 1.0) -> Arrivals:
    """Arrivals of a recorded trace, from 0 on, `speed` times as fast. Raises ArrivalsError.

    CSV or plain lines; the first column (or the one headed TIMESTAMP, timestamp or time) holds seconds or ISO 8601 times.
    """
    if not 0.0 < speed < inf:
        raise ArrivalsError(f"speed {speed:g} is out of range: 2 replays twice as fast, 0.5 half as fast")
    instants = np.sort(np.array(_trace_seconds(path), dtype=np.float64))
    instants = (instants - instants[0]) / speed
    length_s = float(instants[-1])
    if length_s <= 0.0:
        raise ArrivalsError(
            f"{path}: all of its {instants.size} arrivals are at the same time; a trace needs at least two times"
        )
    label = path.name if speed == 1.0 else f"{path.name} at {speed:g} times its speed"

    def draw() -> Iterator[Instants]:
        for start in range(0, instants.size, CHUNK):
            yield instants[start : start + CHUNK]

    return Arrivals(label, instants.size / length_s, draw, duration_s=length_s)


def _trace_seconds(path: Path) -> list[float]:
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            return _seconds_of(csv.reader(file), path)
    except OSError as error:
        raise ArrivalsError(f"trace {path} cannot be read: {error.strerror}") from None
    except (UnicodeDecodeError, csv.Error) as error:
        raise ArrivalsError(f"trace {path} is not text of comma-separated values: {error}") from None


def _seconds_of(rows: Iterator[list[str]], path: Path) -> list[float]:
    seconds: list[float] = []
    column = 0
    for number, row in enumerate(rows, start=1):
        if not row or not "".join(row).strip():
            continue
        if number == 1 and _seconds(row[0]) is None:
            names = [name.strip().lower() for name in row]
            column = next((names.index(name) for name in ("timestamp", "time") if name in names), 0)
            continue
        at = _seconds(row[column]) if column < len(row) else None
        if at is None:
            what = row[column][:40] if column < len(row) else "nothing"
            raise ArrivalsError(
                f"trace {path}, line {number}: {what!r} is not a time; give seconds, or a date such as 2023-11-16 18:17:03.98"
            )
        seconds.append(at)
    if not seconds:
        raise ArrivalsError(f"trace {path} holds no arrivals")
    return seconds


def _seconds(text: str) -> float | None:
    text = text.strip()
    try:
        value = float(text)
    except ValueError:
        try:
            when = datetime.fromisoformat(text)
        except ValueError:
            return None
        # without a zone it is UTC, on every machine: local time would jump where daylight saving begins
        return (when if when.tzinfo else when.replace(tzinfo=UTC)).timestamp()
    return value if abs(value) < inf else None


def _renewal(gaps: Callable[[np.random.Generator], Gaps], rate: float, seed: int) -> Callable[[], Iterator[Instants]]:
    """Instants whose gaps are independent, each `1 / rate` on average."""

    def draw() -> Iterator[Instants]:
        next_gaps = gaps(np.random.default_rng(seed))
        at = 0.0
        while True:
            chunk = at + np.cumsum(next_gaps(CHUNK)) / rate
            at = float(chunk[-1])
            yield chunk

    return draw


def _constant(rate: float, seed: int, options: dict[str, float]) -> Callable[[], Iterator[Instants]]:
    def draw() -> Iterator[Instants]:
        start = 0
        while True:
            yield np.arange(start, start + CHUNK, dtype=np.float64) / rate
            start += CHUNK

    return draw


def _poisson(rate: float, seed: int, options: dict[str, float]) -> Callable[[], Iterator[Instants]]:
    return _renewal(lambda random: random.standard_exponential, rate, seed)


def _gamma(rate: float, seed: int, options: dict[str, float]) -> Callable[[], Iterator[Instants]]:
    return _renewal(_gamma_gaps(options["cv"]), rate, seed)


def _gamma_gaps(cv: float) -> Callable[[np.random.Generator], Gaps]:
    if not LEAST_CV <= cv <= MOST_CV:
        raise ArrivalsError(
            f"arrivals: cv {cv:g} is out of range: {LEAST_CV:g} (nearly even) to {MOST_CV:g} (rare large bursts)"
        )
    shape = 1.0 / cv**2
    return lambda random: lambda count: random.gamma(shape, 1.0 / shape, count)


def _mmpp(rate: float, seed: int, options: dict[str, float]) -> Callable[[], Iterator[Instants]]:
    high, share, dwell_s = options["high"], options["share"], options["dwell"]
    if share >= 1.0:
        raise ArrivalsError("arrivals mmpp: share is the part of the time with the high rate: below 1")
    low_rate = rate / (1.0 + share * (high - 1.0))
    spells = ((low_rate, dwell_s * (1.0 - share) / share), (low_rate * high, dwell_s))

    def draw() -> Iterator[Instants]:
        random = np.random.default_rng(seed)
        at = 0.0
        is_high = random.random() < share  # as after a long time; always low first would be too few arrivals in a short run
        while True:
            spell_rate, mean_s = spells[is_high]
            end = at + random.exponential(mean_s)
            while at < end:  # in pieces, so that a long spell is no huge array
                length_s = min(end - at, CHUNK / spell_rate)
                yield at + np.sort(random.uniform(0.0, length_s, random.poisson(spell_rate * length_s)))
                at = end if length_s == end - at else at + length_s
            is_high = not is_high

    return draw


def _daily(rate: float, seed: int, options: dict[str, float]) -> Callable[[], Iterator[Instants]]:
    """rate(t) = rate * exp(k sin(2 pi t / period)) / I0(k): arrivals in operational time, carried over to the clock's."""
    period_s = options["period"]
    swing = _swing(options["peak"])
    clock = np.linspace(0.0, period_s, 4097)
    speed = np.exp(swing * np.sin(2 * np.pi * clock / period_s))
    operational = np.concatenate(([0.0], np.cumsum((speed[1:] + speed[:-1]) / 2)))
    operational *= period_s / operational[-1]  # one period takes one period, so the mean rate is the one asked for
    steady = _renewal(_gamma_gaps(options["cv"]), rate, seed)

    def draw() -> Iterator[Instants]:
        for chunk in steady():
            periods, rest = np.divmod(chunk, period_s)
            yield periods * period_s + np.interp(rest, operational, clock)

    return draw


def _swing(peak: float) -> float:
    """The k for which the peak is `peak` times the mean: exp(k) / I0(k), which grows with k."""
    if not 1.0 < peak <= 20.0:
        raise ArrivalsError(f"arrivals daily: peak is the highest rate over the mean: above 1 and up to 20, not {peak:g}")
    low, high = 0.0, 500.0
    for _ in range(80):
        middle = (low + high) / 2
        low, high = (middle, high) if exp(middle) / float(np.i0(middle)) < peak else (low, middle)
    return low


_Build = Callable[[float, int, dict[str, float]], Callable[[], Iterator[Instants]]]
_KINDS: dict[str, tuple[dict[str, float], _Build]] = {
    "constant": ({}, _constant),
    "poisson": ({}, _poisson),
    "gamma": ({"cv": 4.47}, _gamma),
    "mmpp": ({"high": 5.0, "share": 0.1, "dwell": 1.0}, _mmpp),
    "daily": ({"peak": 3.0, "period": 86400.0, "cv": 1.0}, _daily),
}

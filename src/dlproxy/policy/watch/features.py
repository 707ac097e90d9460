"""What a window of telemetry says, in numbers that hardly depend on the model: logarithms, shares, times against earlier ones.

Made by watcher.py. Not aware of: which values are usual, alarms.
"""

from collections.abc import Callable, Hashable, Mapping
from math import exp, log
from types import MappingProxyType

from msgspec import Struct

from dlproxy.policy.tuning.window import Costs, Window, fitted

FEWEST = 5  # requests or look-ups that a share or a quantile is made of
FEWEST_BATCHES = 20  # of a size and a way of running, before what they take is known
FADES = 300  # windows in which a size occurs: what it took before counts less and less
KEPT = 1.0 - 1.0 / FADES
BEYOND = 4.0  # times the largest or below the smallest known size: no line is drawn further

Features = tuple[float | None, ...]
"""A value for each of NAMES; None where the window does not tell."""


class Feature(Struct, frozen=True):
    """`what` in words, and how a value is told. `side`: 1 if only more than usual is bad, -1 if only less, 0 either. `floor`: a
    spread below which no model's own is believed.
    """

    what: str
    told: Callable[[float], str]
    side: int
    floor: float


def _rate(value: float) -> str:
    return f"{exp(value):.3g}/s"


def _time(value: float) -> str:
    return f"{exp(value) * 1e3:.3g} ms" if value < 0.0 else f"{exp(value):.3g} s"


def _times(value: float) -> str:
    return f"{exp(value):.0%}"


def _plain(value: float) -> str:
    return f"{exp(value):.3g}"


def _share(value: float) -> str:
    return f"{value * value:.1%}"


def _part(value: float) -> str:
    return f"{value:.0%}"


FEATURES: Mapping[str, Feature] = MappingProxyType(
    {
        "rate": Feature("requests", _rate, 1, 0.1),
        "in_flight": Feature("rows under way", _plain, 1, 0.15),
        "p50": Feature("median latency", _time, 1, 0.1),
        "p99": Feature("p99 latency", _time, 1, 0.15),
        "cost": Feature("time of batches against the known", _times, 1, 0.04),
        "refused": Feature("refused requests", _share, 1, 0.03),
        "late": Feature("late answers", _share, 1, 0.03),
        "failed": Feature("failed requests", _share, 1, 0.03),
        "dispersion": Feature("variance of arrivals by their mean", _plain, 1, 0.3),
        "rows": Feature("rows of a request", _plain, 0, 0.05),
        "batch": Feature("rows of a batch", _plain, 0, 0.15),
        "hits": Feature("answers from the cache", _part, -1, 0.03),
    }
)
NAMES = tuple(FEATURES)


class Seen(Struct, frozen=True):
    """A window, `way`: how the model ran (its instances and threads), and of its cache, if it has one, hits and look-ups."""

    window: Window
    way: Hashable = None
    hits: int = 0
    look_ups: int = 0


class KnownCosts:
    """What batches of each size took in each way of running, as long as nothing was unusual."""

    def __init__(self) -> None:
        self._known: dict[Hashable, dict[int, tuple[float, float]]] = {}  # by way and size: batches, seconds together

    def learn(self, costs: Costs, way: Hashable) -> None:
        """These were as usual."""
        known = self._known.setdefault(way, {})
        for rows, (batches, seconds) in costs.items():
            before, before_s = known.get(rows, (0.0, 0.0))
            known[rows] = before * KEPT + batches, before_s * KEPT + seconds

    def against(self, costs: Costs, way: Hashable) -> float | None:
        """log of the seconds that they took over those that they would have; of sizes that are known, or near to such."""
        known = {rows: cost for rows, cost in self._known.get(way, {}).items() if cost[0] >= FEWEST_BATCHES}
        if not known:
            return None
        smallest, largest = min(known), max(known)
        base_s, row_s = fitted({rows: (round(batches), seconds) for rows, (batches, seconds) in known.items()})
        drawn = largest >= 2 * smallest  # else nothing tells how much is per row
        took_s = expected_s = 0.0
        for rows, (batches, seconds) in costs.items():
            if rows in known:
                expected_s += batches * known[rows][1] / known[rows][0]
            elif drawn and smallest / BEYOND <= rows <= largest * BEYOND:
                expected_s += batches * (base_s + row_s * rows)
            else:
                continue
            took_s += seconds
        return log(took_s / expected_s) if took_s > 0.0 and expected_s > 0.0 else None


def features(seen: Seen, known: KnownCosts) -> Features:
    """In the order of NAMES; all are finite."""
    window = seen.window
    answered, ended, batches = window.answered, window.ended, sum([count for count, _ in window.costs.values()])
    batched = sum([rows * count for rows, (count, _) in window.costs.items()])
    few = answered < FEWEST
    return (
        log((window.arrived + 0.5) / window.seconds),
        log(window.in_flight + 0.1),
        None if few or window.p50_s <= 0.0 else log(window.p50_s),
        None if few or window.p99_s <= 0.0 else log(window.p99_s),
        known.against(window.costs, seen.way),
        _root(window.refused, ended),
        _root(answered - window.in_time, ended),
        _root(window.failed, ended),
        log(window.dispersion) if window.dispersion > 0.0 else None,
        None if few or window.rows <= 0 else log(window.rows / answered),
        None if not batches else log(batched / batches),
        None if seen.look_ups < FEWEST else seen.hits / seen.look_ups,
    )


def _root(part: int, whole: int) -> float | None:
    """Of the share: its spread hardly depends on how large it is."""
    return None if whole < FEWEST else max(part / whole, 0.0) ** 0.5

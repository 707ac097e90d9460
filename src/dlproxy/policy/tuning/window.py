"""Telemetry windows: what one model did in a stretch of time, made of counters that only grow, live and simulated alike.

Read by whatever turns knobs. Not aware of: who counts, what the knobs are.
"""

from collections.abc import Iterable, Mapping, Sequence
from math import inf

from msgspec import Struct, field

Costs = Mapping[int, tuple[int, float]]
"""Batches of each size in rows: how many there were, and the seconds that they took together."""


class Counts(Struct, kw_only=True):
    """What happened so far. `arrived` to `failed` are requests: `in_time` of those answered met the objective, `refused` got no
    answer for lack of time or room, `failed` through the model's fault.
    """

    arrived: int = 0
    answered: int = 0
    in_time: int = 0
    refused: int = 0
    failed: int = 0
    rows: int = 0
    costs: dict[int, tuple[int, float]] = field(default_factory=dict)

    def batch(self, rows: int, seconds: float) -> None:
        """One batch of so many rows took so long."""
        batches, sum_s = self.costs.get(rows, (0, 0.0))
        self.costs[rows] = batches + 1, sum_s + seconds


class Window(Struct, frozen=True, kw_only=True):
    """The `seconds` until `at` (monotonic). Requests as in Counts; `p50_s`, `p99_s`: latencies of those that were answered, 0
    if none was. `in_flight`: rows that waited or ran, on average. `dispersion`: variance of the arrivals between two looks by
    their mean: 1 for Poisson, the squared coefficient of variation of the gaps if these are independent; 0 if too few came.
    `up`: instances that took batches at the end of it.
    """

    at: float
    seconds: float
    arrived: int = 0
    answered: int = 0
    in_time: int = 0
    refused: int = 0
    failed: int = 0
    rows: int = 0
    p50_s: float = 0.0
    p99_s: float = 0.0
    in_flight: float = 0.0
    dispersion: float = 0.0
    up: int = 1
    costs: Costs = {}

    @property
    def ended(self) -> int:
        """Requests of which it is known what became of them."""
        return self.answered + self.refused + self.failed

    @property
    def missed(self) -> int:
        """Those of them that were not answered in time, but for the model's own faults."""
        return self.answered - self.in_time + self.refused

    @property
    def busy(self) -> float:
        """Instances that ran a batch, on average."""
        busy_s = sum([seconds for _, seconds in self.costs.values()])
        return busy_s / self.seconds


def joined(windows: Sequence[Window]) -> Window:
    """Windows that follow one another, as one. Quantiles are the mean of theirs, weighed by answers."""
    seconds = sum([window.seconds for window in windows])
    answered = sum([window.answered for window in windows])

    def total(name: str) -> int:
        return sum([getattr(window, name) for window in windows])

    def mean(name: str) -> float:
        weighed = [float(getattr(window, name)) * window.answered for window in windows]
        return sum(weighed) / max(answered, 1)

    return Window(
        at=windows[-1].at,
        seconds=seconds,
        arrived=total("arrived"),
        answered=answered,
        in_time=total("in_time"),
        refused=total("refused"),
        failed=total("failed"),
        rows=total("rows"),
        p50_s=mean("p50_s"),
        p99_s=mean("p99_s"),
        in_flight=sum([window.in_flight * window.seconds for window in windows]) / max(seconds, 1e-9),
        dispersion=_mean_above_0([window.dispersion for window in windows]),
        up=windows[-1].up,
        costs=added([window.costs for window in windows]),
    )


def outline(windows: Iterable[Window]) -> Window:
    """The counts of windows that follow one another, without what their batches cost and how long answers took."""
    at = seconds = dispersion = 0.0
    arrived = answered = in_time = refused = failed = number = 0
    for window in windows:
        at, number = window.at, number + 1
        seconds += window.seconds
        dispersion += window.dispersion
        arrived += window.arrived
        answered += window.answered
        in_time += window.in_time
        refused += window.refused
        failed += window.failed
    return Window(
        at=at,
        seconds=seconds,
        arrived=arrived,
        answered=answered,
        in_time=in_time,
        refused=refused,
        failed=failed,
        dispersion=dispersion / max(number, 1),
    )


def _mean_above_0(values: Iterable[float]) -> float:
    known = [value for value in values if value > 0.0]
    return sum(known) / len(known) if known else 0.0


def added(all_costs: Iterable[Costs]) -> Costs:
    """All of them together."""
    total: dict[int, tuple[int, float]] = {}
    for costs in all_costs:
        for rows, (batches, seconds) in costs.items():
            before = total.get(rows, (0, 0.0))
            total[rows] = before[0] + batches, before[1] + seconds
    return total


class WindowMeter:
    """Makes windows: `look` some times in each, then `window`."""

    def __init__(self, at: float) -> None:
        self._at = at
        self._before = Counts()
        self._in_flight = 0.0
        self._arrivals: list[int] = []
        self._arrived: int | None = None

    def look(self, arrived: int, in_flight: float) -> None:
        """Requests that had arrived up to this moment, and rows that wait or run at it. At equal intervals."""
        if self._arrived is not None:
            self._arrivals.append(arrived - self._arrived)
        self._arrived = arrived
        self._in_flight += in_flight

    def window(self, at: float, counts: Counts, latencies_s: Iterable[float], *, up: int) -> Window:
        """What happened since the last one. `latencies_s`: of answers in it, or of a sample of them."""
        before, looks = self._before, max(len(self._arrivals), 1)
        timed = sorted(latencies_s)
        window = Window(
            at=at,
            seconds=max(at - self._at, 1e-9),
            arrived=max(counts.arrived - before.arrived, 0),  # parts of a request that was split count while they wait
            answered=counts.answered - before.answered,
            in_time=counts.in_time - before.in_time,
            refused=counts.refused - before.refused,
            failed=counts.failed - before.failed,
            rows=counts.rows - before.rows,
            p50_s=timed[len(timed) // 2] if timed else 0.0,
            p99_s=timed[len(timed) * 99 // 100] if timed else 0.0,
            in_flight=self._in_flight / looks,
            dispersion=_dispersion(self._arrivals),
            up=up,
            costs=_difference(before.costs, counts.costs),
        )
        self._at, self._in_flight, self._arrivals = at, 0.0, []
        self._before = Counts(
            arrived=counts.arrived,
            answered=counts.answered,
            in_time=counts.in_time,
            refused=counts.refused,
            failed=counts.failed,
            rows=counts.rows,
            costs=dict(counts.costs),
        )
        return window


def _dispersion(arrivals: Sequence[int]) -> float:
    if len(arrivals) < 2:
        return 0.0
    mean = sum(arrivals) / len(arrivals)
    if mean == 0.0:
        return 0.0
    return sum([(count - mean) ** 2 for count in arrivals]) / (len(arrivals) - 1) / mean


def _difference(before: Costs, after: Costs) -> Costs:
    found = {}
    for rows, (batches, seconds) in after.items():
        old = before.get(rows, (0, 0.0))
        if batches > old[0]:
            found[rows] = batches - old[0], seconds - old[1]
    return found


def fitted(costs: Costs) -> tuple[float, float]:
    """(base_s, row_s) of the line through what batches of these sizes took on average; (inf, inf) if none ran.

    Weighed by batches; of one size alone it is half base, half rows: nothing tells.
    """
    weight = sum([batches for batches, _ in costs.values()])
    if not weight:
        return inf, inf
    mean_rows = sum([rows * batches for rows, (batches, _) in costs.items()]) / weight
    mean_s = sum([seconds for _, seconds in costs.values()]) / weight
    spread = sum([batches * (rows - mean_rows) ** 2 for rows, (batches, _) in costs.items()])
    if spread <= 0.05 * weight * mean_rows:
        return mean_s / 2, mean_s / 2 / mean_rows
    together = sum([(rows - mean_rows) * (seconds - batches * mean_s) for rows, (batches, seconds) in costs.items()])
    row_s = min(max(together / spread, 0.0), mean_s / mean_rows)
    return mean_s - row_s * mean_rows, row_s

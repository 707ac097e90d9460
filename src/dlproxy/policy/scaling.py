"""How many instances a model wants, from samples of its load. Pure; asked about once a second.

Called by fleet/autoscale.py and lab/simulate/autoscale.py. Not aware of: how instances start, what else runs on the cores.
"""

from collections import deque
from collections.abc import Callable, Iterable
from math import ceil, inf, sqrt
from typing import Literal, Protocol

from msgspec import Struct

from dlproxy.message import FailureKind
from dlproxy.policy.forecast import DAY_S, DAY_STEP_S, Forecast, HoltWinters

MISSED = (FailureKind.QUEUE_FULL, FailureKind.OVERLOADED, FailureKind.DEADLINE, FailureKind.LATE)  # more instances would help
ROOM = 2.0  # batches that an instance has time for within the objective: one that runs, and one that waits (policy/batching.py)
CERTAIN = 1 / 3  # of a queue: in an hour at six tenths of an instance's capacity, three times the target come by chance

Signal = Literal["in-flight", "utilisation"]


class Load(Struct, frozen=True, kw_only=True):
    """What one model had to do since the last sample. `instances`: that are wanted now, those that start included.

    `in_flight`: rows that waited or ran, on average. `arrived`: rows per second; `missed`: those that got no answer within the
    objective. `busy`: instances that ran a batch, on average. `batch`: rows that batches aim at; with them one instance does
    `capacity` rows a second. `start_s`: how long the last instance took to start.
    """

    at: float
    instances: int
    in_flight: float
    arrived: float
    missed: float
    busy: float
    batch: float
    capacity: float
    start_s: float = 0.0


class Bounds(Struct, frozen=True):
    """`most` is never exceeded. `least` holds unless nothing has come for `zero_after_s` seconds (0: always)."""

    least: int
    most: int
    zero_after_s: float = 0.0

    def around(self, count: int) -> int:
        """The nearest number that they allow while there is load."""
        return min(max(count, self.least), self.most)


class Advice(Struct, frozen=True):
    """So many instances; the reason matters where it is another number than before."""

    count: int
    reason: str = ""


class ScalePolicy(Protocol):
    """Remembers what it was told."""

    def decide(self, load: Load, bounds: Bounds) -> Advice:
        """Called at every sample, in the order of time."""
        ...


class Static(Struct):
    """Always the same number: what autoscaling is compared with."""

    count: int

    def decide(self, load: Load, bounds: Bounds) -> Advice:
        return Advice(bounds.around(self.count))


class Rule(Struct, frozen=True, kw_only=True):
    """An autoscaler's parameters. Means over `stable_s` decide; over `panic_s` if they ask for `panic_at` times the instances.

    One instance is right for `target` rows in flight (0: `share` of two batches); `by_rate`: and `share` of its capacity. Steps
    are at most by `most_up` or `most_down`, wanted for `_delay_s`, not within `dead_band`. `most_missed`: of an hour's rows may
    miss the objective. A number that did not suffice is for `remember_s`, or in a burst for `remember_burst_s`, only tried at
    fewer arrivals.
    """

    signal: Signal = "in-flight"
    target: float = 0.0
    share: float = 0.7
    by_rate: bool = True
    stable_s: float = 60.0
    panic_s: float = 3.0
    panic_at: float = 1.5
    panic_whole: bool = False  # whether whole instances are compared
    most_up: float = 1000.0
    most_down: float = 2.0
    dead_band: float = 0.1
    up_delay_s: float = 0.0
    down_delay_s: float = 120.0
    most_missed: float = 0.01
    remember_s: float = 21600.0
    remember_burst_s: float = 1800.0


# knative/serving config/core/configmaps/autoscaler.yaml: target 100 of which 70 %, windows of 60 s and 10 %, panic at 200 %
KNATIVE = Rule(
    target=70.0,
    by_rate=False,
    panic_s=6.0,
    panic_at=2.0,
    panic_whole=True,
    dead_band=0.0,
    down_delay_s=0.0,
    most_missed=1.0,
    remember_s=0.0,
    remember_burst_s=0.0,
)
# docs.ray.io AutoscalingConfig: target_ongoing_requests 2, look_back_period_s 30, upscale_delay_s 30, downscale_delay_s 600
RAY_SERVE = Rule(
    target=2.0,
    by_rate=False,
    stable_s=30.0,
    panic_at=inf,
    most_up=inf,
    most_down=inf,
    dead_band=0.0,
    up_delay_s=30.0,
    down_delay_s=600.0,
    most_missed=1.0,
    remember_s=0.0,
    remember_burst_s=0.0,
)


class Windowed:
    """Knative's shape: a long window decides, and a short one in a burst, after which nothing shrinks for the long one's time.

    Batches make it differ: a second instance halves more than the rows in flight, so that alone it would go again and come
    again. Hence `by_rate` and `remember_s`, which look at arrivals: these do not depend on how many instances there are.
    Instances that the `forecast` of arrivals needs when they are up, if they start now, are needed now.
    """

    def __init__(self, rule: Rule, forecast: Forecast | None = None) -> None:
        self._rule = rule
        self._forecast = forecast
        self._seen: deque[Load] = deque()
        self._hour: deque[list[float]] = deque()  # minutes, with what arrived and missed in them
        self._panic_until = -inf
        self._since: dict[bool, float] = {}  # when it began to want more (True) or fewer
        self._too_few: dict[
            int, tuple[float, float]
        ] = {}  # a number that did not suffice: for which rate, and how long that counts
        self._used_at: float | None = None
        self._began_at = -inf  # the present number of instances, but for their start

    def decide(self, load: Load, bounds: Bounds) -> Advice:
        if self._forecast is not None:
            self._forecast.observe(load.arrived, load.at)
        if load.in_flight or load.arrived or self._used_at is None:
            self._used_at = load.at
        idle_s = load.at - self._used_at
        if bounds.zero_after_s and (idle_s >= bounds.zero_after_s or (idle_s and not load.instances)):
            self._seen.clear()
            return Advice(0, f"nothing came for {idle_s:.0f} s")
        self._seen.append(load)
        self._count(load)
        while self._seen[0].at <= load.at - self._rule.stable_s:
            self._seen.popleft()
        wanted = self._wanted(load, bounds)
        if wanted.count != load.instances:
            self._began_at = load.at + load.start_s
        if wanted.count > load.instances and load.instances:
            rule = self._rule
            until = load.at + (rule.remember_burst_s if load.at < self._panic_until else rule.remember_s)
            before = self._too_few.get(load.instances, (0.0, 0.0))
            self._too_few[load.instances] = (self._rate(sure=True), max(until, before[1]))
        return wanted

    def _count(self, load: Load) -> None:
        minute, hour = load.at // 60.0, self._hour
        if not hour or hour[-1][0] != minute:
            hour.append([minute, 0.0, 0.0])
        hour[-1][1] += load.arrived
        hour[-1][2] += load.missed
        while hour[0][0] <= minute - 60.0:
            hour.popleft()

    def _needed(self, seconds: float, *, sure: bool = False) -> float:
        """Instances that the load of the last seconds is right for, as a fraction.

        `sure`: chance arrivals are left out; queues grow by chance too, so of them only a part counts beside arrivals.
        """
        rule, last = self._rule, self._seen[-1]
        seen = [load for load in self._seen if load.at > last.at - seconds]
        if rule.signal == "utilisation":
            return _mean(load.busy for load in seen) / rule.share
        needed = _mean(load.in_flight for load in seen) / (rule.target or rule.share * ROOM * last.batch)
        if rule.by_rate and last.capacity:
            rate = self._rate(seconds, sure=sure)
            if self._forecast is not None and not sure:
                rate = max(rate, self._forecast.load_at(last.at + last.start_s))
            by_rate = rate / (rule.share * last.capacity)
            needed = max(needed * CERTAIN if sure else needed, by_rate)
        return needed

    def _rate(self, seconds: float = inf, *, sure: bool = False) -> float:
        """Rows per second that arrived in the last seconds, at least so many if `sure`."""
        rates = [load.arrived for load in self._seen if load.at > self._seen[-1].at - seconds]
        rate = _mean(rates)
        return max(rate - 2.0 * sqrt(rate / len(rates)), rate / 2.0) if sure else rate

    def _wanted(self, load: Load, bounds: Bounds) -> Advice:
        rule, at, count = self._rule, load.at, load.instances
        if not bounds.least <= count <= bounds.most:
            return Advice(bounds.around(count), f"it may have {bounds.least} to {bounds.most}")
        stable, burst = self._needed(rule.stable_s), self._needed(rule.panic_s, sure=True)
        up = ceil(rule.most_up * max(count, 1)) if rule.most_up < inf else bounds.most
        if (ceil(burst) if rule.panic_whole else burst) >= rule.panic_at * max(count, 1):
            self._panic_until = at + rule.stable_s
        if at < self._panic_until:
            self._since.clear()
            return Advice(max(count, min(ceil(burst), up, bounds.most)), f"a burst needs {burst:.1f} instances")
        wanted = count
        if at - self._seen[0].at < rule.stable_s / 3.0:
            return Advice(count)  # too little is known yet
        if stable > count * (1.0 + rule.dead_band):
            wanted = min(ceil(stable), up, bounds.most)
        elif self._misses(at):
            return Advice(min(count + 1, bounds.most), f"more than {rule.most_missed:.0%} missed the objective")
        elif ceil(stable * (1.0 + rule.dead_band)) < count and self._within_budget():
            wanted = max(ceil(stable * (1.0 + rule.dead_band)), self._floor(at), bounds.least)
            wanted = min(max(wanted, int(count / rule.most_down)), count)
        return Advice(self._delayed(wanted, count, at), f"load needs {stable:.1f} instances")

    def _misses(self, at: float) -> bool:
        """Too many rows missed the objective since there have been as many instances as there are."""
        rule = self._rule
        seen = [load for load in self._seen if load.at > self._began_at]
        if len(seen) < 2 or seen[-1].at - seen[0].at < rule.stable_s / 3.0:
            return False
        missed = sum([load.missed for load in seen])
        return missed - 2.0 * sqrt(missed) > rule.most_missed * sum([load.arrived for load in seen])  # two may be chance

    def _within_budget(self) -> bool:
        """So few rows of the last hour missed the objective that fewer instances may be tried."""
        arrived, missed = (sum([each[place] for each in self._hour]) for place in (1, 2))
        return missed <= self._rule.most_missed * arrived

    def _delayed(self, wanted: int, count: int, at: float) -> int:
        """The number, once more or fewer has been wanted for long enough."""
        if wanted == count:
            self._since.clear()
            return count
        more = wanted > count
        self._since.pop(not more, None)
        delay_s = self._rule.up_delay_s if more else self._rule.down_delay_s
        if at - self._since.setdefault(more, at) < delay_s:
            return count
        self._since.clear()
        return wanted

    def _floor(self, at: float) -> int:
        """No fewer: less did not suffice for about as many arrivals, and not long ago."""
        rate = self._rate()
        less = 1.0 - self._rule.dead_band
        tried = self._too_few.items()
        self._too_few = {count: (was, until) for count, (was, until) in tried if at < until}
        return 1 + max((count for count, (was, _) in self._too_few.items() if rate > less * was), default=0)


def _mean(values: Iterable[float]) -> float:
    listed = list(values)
    return sum(listed) / len(listed)


def make_policy(rule: Rule, forecast: str | Callable[[], Forecast] = "off") -> ScalePolicy:
    """With a forecast of arrivals: "off", "trend", "daily" with a season of a day, or what makes another one."""
    if forecast == "off":
        return Windowed(rule)
    if callable(forecast):
        return Windowed(rule, forecast())
    return Windowed(rule, HoltWinters(DAY_S, DAY_STEP_S) if forecast == "daily" else HoltWinters())


class Meter:
    """Makes samples of counters that only grow, live and simulated alike."""

    def __init__(self, at: float) -> None:
        self._at = at
        self._arrived = self._missed = self._busy_s = 0.0
        self._sum = 0.0
        self._times = 0

    def look(self, in_flight: float) -> None:
        """Rows that wait or run at this moment, some times for each sample."""
        self._sum += in_flight
        self._times += 1

    def load(
        self,
        at: float,
        *,
        arrived: float,
        missed: float,
        busy_s: float,
        instances: int,
        batch: float,
        capacity: float,
        start_s: float,
    ) -> Load:
        """The sample up to now. `arrived`, `missed`, `busy_s`: all so far. The rest is as Load has it."""
        seconds = max(at - self._at, 1e-9)
        load = Load(
            at=at,
            instances=instances,
            in_flight=self._sum / max(self._times, 1),
            arrived=max(arrived - self._arrived, 0.0) / seconds,
            missed=(missed - self._missed) / seconds,
            busy=(busy_s - self._busy_s) / seconds,
            batch=batch,
            capacity=capacity,
            start_s=start_s,
        )
        self._at, self._arrived, self._missed, self._busy_s, self._sum, self._times = at, arrived, missed, busy_s, 0.0, 0
        return load

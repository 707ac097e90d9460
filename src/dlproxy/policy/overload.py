"""Overload: is there a queue that does not go away (CoDel), and how many requests may be under way (Gradient2)?

Called by policy/lane.py and policy/admission.py at dispatch and after a batch; they do the refusing.
Not aware of: deadlines, tenants, which tickets are shed.
"""

from math import inf, sqrt

INTERVAL_S = 0.1  # longer than most round trips (RFC 8289, section 4.2); folly's Codel.cpp has the same
SHED_TARGETS = 2.0  # shed what waited longer than this many targets (folly's slough timeout)

TOLERANCE = 1.5  # latency may be this many times its long average before the limit falls (Gradient2Limit's rttTolerance)
SMOOTHING = 0.2  # share of the new value in each update (Gradient2Limit)
WINDOW_S = 0.1  # between updates (Envoy's adaptive concurrency filter; concurrency-limits waits a second)
LONG_WINDOW = 600  # updates that the long average spans (Gradient2Limit): a time constant of 30 s
WARM_UP = 10  # updates whose plain mean begins the long average (Gradient2Limit), and begins it anew
RELIEF = 0.95  # the long average shrinks so per update while it is more than twice the latency (Gradient2Limit)
LEAST_GRADIENT = 0.5  # one update never asks for less than half, however slow an outlier was (Gradient2Limit)


class CoDel:
    """Tells a queue that stands from one that merely absorbs a burst, by the least queueing delay of an interval.

    Source: Nichols and Jacobson, "Controlling Queue Delay", ACM Queue 2012; what is shed is folly's rule (Codel.cpp): no
    growing drop rate, but whatever waited longer than two targets, for as long as the overload lasts.

    Use at dispatch: take tickets, `observe` the delay of the one among them that waited LEAST (those about to be shed count),
    shed what waited longer than `shed_above_s`, fill the batch up again (else a third of the throughput is lost), and so on.
    The least, because a batch that empties the queue ends with a ticket that hardly waited, however long its first one waited
    for the instance: that wait is the price of batching, not overload. The rule supposes an order close to that of arrival:
    a few urgent tickets that never wait hide the queue behind them. Batches that run again are not to be observed.

    `target_s` should be at least half of the longest batch, and no less than a batch may wait to fill. During a batch,
    tickets wait for as long as it takes; to shed them for that leaves the next batch half empty (simulated at 1.5 times the
    capacity, batches of 30 ms: 9 % of the throughput lost at a target of 5 ms, none at 15 ms). `interval_s` should be
    no less than the longest batch, or intervals pass without a dispatch and look idle.
    """

    def __init__(self, target_s: float, interval_s: float = INTERVAL_S) -> None:
        self.configure(target_s=target_s, interval_s=interval_s)
        self._overloaded = False
        self._least_s = inf
        self._opened_at = self._seen_at = -inf

    def configure(self, *, target_s: float, interval_s: float = INTERVAL_S) -> None:
        """New values; the interval under way is judged by them."""
        assert target_s > 0.0
        assert interval_s > 0.0
        self._target_s = target_s
        self._interval_s = interval_s

    def observe(self, queued_s: float, now: float) -> None:
        """A batch was taken; of its tickets the one that waited least waited `queued_s`.

        An interval ends with the first batch after it, which counts too.
        """
        if now - queued_s - self._seen_at > self._interval_s:  # for a whole interval nothing is known to have waited
            self._overloaded = False
            self._opened_at, self._least_s = now, queued_s
        else:
            self._least_s = min(self._least_s, queued_s)
            if now - self._opened_at >= self._interval_s:
                self._overloaded = self._least_s > self._target_s
                self._opened_at, self._least_s = now, queued_s
        self._seen_at = now

    def shed_above_s(self, now: float) -> float:
        """Tickets that waited longer are to be shed; +inf while there is no overload, or none was seen for an interval."""
        if self._overloaded and now - self._seen_at <= self._interval_s:
            return SHED_TARGETS * self._target_s
        return inf


class Gradient2:
    """How many requests without a deadline may be under way, found from how latency answers to it.

    Each update, by a share of 0.2: to limit + sqrt(limit) while latency is at most 1.5 times its long average, else to
    limit * 1.5 * average / latency, half the limit at least. A limit of which less than half is used does not change.
    Source: Gradient2Limit of Netflix's concurrency-limits; headroom by sqrt(limit) as in Envoy's adaptive concurrency.

    Two rules differ. Gradient2's average takes in the queueing that its own limit allows, so under lasting overload both
    climb without end: 50 servers of 50 ms at twice their capacity went from 81 requests and 84 ms to 1900 and 1.9 s in three
    minutes of simulation. Here the average follows a rise only while the limit is less than half used, and it starts anew if
    latency stays too high for ten updates at the least limit: then the queue is not the limit's doing, the service slowed.
    And no headroom is added to a falling limit, else it would come to rest above the least and never find that out.
    So at lasting overload latency is at most 1.5 times that at the least limit (if the service was slower for a while, 1.5
    times that of then, until load falls: the average cannot see below the queue that stands).

    What batching means here: latency grows with the batch, so a rise of load looks like overload, and the limit falls to
    `least`. That costs nothing if `least` is 2 * instances * max_batch (Triton's rule: every instance runs full batches while
    the next ones gather). What the limit finds above that are instances that do more at a time than they are known for.
    """

    def __init__(self, *, least: int, most: int = 4096) -> None:
        self._most = most
        self._limit = 0.0
        self._long_s = 0.0
        self._updates = 0  # up to WARM_UP
        self._stuck = 0  # updates in a row with the limit at its least and the latency too high
        self._stuck_s = 0.0
        self._opened_at = -inf
        self._batches = 0
        self._latency_s = 0.0
        self._in_flight = 0
        self.configure(least=least)

    def configure(self, *, least: int) -> None:
        """A new least limit, which holds at once, above `most` too."""
        assert least >= 1
        self._least = float(least)
        self._limit = max(self._limit, self._least)

    @property
    def limit(self) -> int:
        return int(self._limit)

    def observe(self, latency_s: float, in_flight: int, now: float) -> None:
        """A batch ended well: the mean latency of its requests, queueing included, and the requests that were under way,
        its own still among them. Batches that failed do not count: errors are quick and would look like room."""
        if not self._batches:
            self._opened_at = now
        self._batches += 1
        self._latency_s += latency_s
        self._in_flight = max(self._in_flight, in_flight)
        if now - self._opened_at >= WINDOW_S:
            self._update(max(self._latency_s / self._batches, 1e-9), self._in_flight)
            self._batches = self._in_flight = 0
            self._latency_s = 0.0

    def _update(self, latency_s: float, in_flight: int) -> None:
        spare = in_flight < self._limit / 2
        self._learn(latency_s, spare=spare)
        if spare:
            return
        gradient = max(TOLERANCE * self._long_s / latency_s, LEAST_GRADIENT)
        wanted = self._limit * gradient if gradient < 1.0 else self._limit + sqrt(self._limit)
        self._limit += SMOOTHING * (min(wanted, self._most) - self._limit)
        self._limit = max(self._limit, self._least)

    def _learn(self, latency_s: float, *, spare: bool) -> None:
        if self._updates < WARM_UP:
            self._updates += 1
            self._long_s += (latency_s - self._long_s) / self._updates
            return
        if spare or latency_s < self._long_s:
            self._long_s += (latency_s - self._long_s) * 2.0 / (LONG_WINDOW + 1)
            if self._long_s > 2.0 * latency_s:
                self._long_s *= RELIEF
        at_least = self._limit <= self._least and latency_s > TOLERANCE * self._long_s and not spare
        self._stuck = self._stuck + 1 if at_least else 0
        self._stuck_s = self._stuck_s + latency_s if at_least else 0.0
        if self._stuck == WARM_UP:
            self._long_s = self._stuck_s / WARM_UP
            self._stuck, self._stuck_s = 0, 0.0

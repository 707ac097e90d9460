"""Whether a model's answers are worth keeping: on where clients ask for the same again and get the same, off elsewhere.

Asked by serve/ for every request of a model with `cache = "auto"`. Not aware of: keys' bytes, clocks, the cache itself.
"""

from collections import OrderedDict
from collections.abc import Callable
from math import sqrt
from typing import Generic, TypeVar

from dlproxy.policy.caching.cache import Key

A = TypeVar("A")

STRETCH = 128  # requests that are watched one after another while it is off
REST, LONGEST_REST = 3_968, 8_064  # requests between two stretches: one of 32 is watched, one of 64 where nothing came again
PATIENCE = 4  # stretches in a row in which nothing came again, until that is believed
REMEMBERED = 4_096  # keys, some 0.7 MB: those of the last 130,000 to 260,000 requests
PROBES, LEAST = (
    32,
    64,
)  # answers that are kept to be compared: the last ones, and for keys that go round those of the least keys
SURE = 8  # pairs of answers to the same key that must have been equal
WINDOW = 2_048  # look-ups between two judgements while it is on; the first after the cache was empty is not judged
FADE = 0.5  # weight of what a stretch has shown, when the next one is judged
DOUBT = 2.0  # standard deviations that the hit ratio may be better or worse than it was seen to be
ON, OFF = 0.04, 0.02  # of all requests: hit ratios that are worth it, and that no longer are
MARGIN = 2.0  # times what look-ups cost must hits save before it is turned on, and just as much while it is on
RECHECK = 1_000  # hits, of which one is run all the same, to compare
LOOKUP_S = 5e-6  # until it is measured
NEWEST = 0.1  # weight of the newest measurement
SOON, MOST_RELAPSES = 16, 4  # windows


class _Ratio:
    """A share that fades: `hits` of `seen`."""

    def __init__(self) -> None:
        self.hits = self.seen = 0.0

    def bound(self, doubts: float) -> float:
        """The share, so many standard deviations higher."""
        ratio = self.hits / self.seen
        return ratio + doubts * sqrt(ratio * (1.0 - ratio) / self.seen)

    def fade(self) -> None:
        """What comes now counts for more."""
        self.hits *= FADE
        self.seen *= FADE


class Auto(Generic[A]):
    """Turns `on` itself. It must pay and be safe: hits x seconds of a run against the seconds of a look-up, and equal answers.

    Off: `watches` is False for 31 of 32 requests or more, which is all that those cost. Of the others keys are remembered, and
    some answers. It turns on where of them 4 % (less two standard deviations) were asked for before, that saves twice what it
    would cost to look up all, and 8 pairs of answers were equal. One pair that is not keeps it off for good.
    On: it turns off where hits (and two standard deviations) are below 2 %, or save less than look-ups cost. Each time that
    it does so soon after it was turned on, the stretches are twice as far apart.
    """

    def __init__(self, same: Callable[[A, A], bool]) -> None:
        """`same`: whether two answers to one key are equal, as far as batches of different sizes let them be."""
        self.on = False
        self.stable = True
        self.compared_equal = 0
        self.lookup_s = LOOKUP_S
        self.run_s: float | None = None  # of compute that a hit saves; nothing is turned on before it was measured
        self._same = same
        self._ratio = _Ratio()
        self._rest, self._left = 0, STRETCH
        self._windows = self._relapses = self._barren = 0
        self._to_recheck = RECHECK
        self._seen: OrderedDict[Key, None] = OrderedDict()
        self._probes: OrderedDict[Key, A] = OrderedDict()
        self._least: dict[Key, A] = {}

    # What is measured

    def ran(self, run_s: float) -> None:
        """What a request took of its batch."""
        self.run_s = run_s if self.run_s is None else self.run_s + NEWEST * (run_s - self.run_s)

    def cost(self, lookup_s: float) -> None:
        """What the cache took for one request: its key, the look-up, and keeping the answer."""
        self.lookup_s += NEWEST * (lookup_s - self.lookup_s)

    def compared(self, *, same: bool) -> None:
        if same:
            self.compared_equal += 1
        else:
            self.stable = self.on = False
            self._forget()

    # While it is off

    def watches(self) -> bool:
        """Whether to make the key of this request, and to call `sampled`."""
        if self._rest:
            self._rest -= 1
            return False
        return self.stable

    def sampled(self, key: Key) -> None:
        """A request that is watched. Hand in its answer, too, if it has one."""
        seen = self._seen
        if key in seen:
            seen.move_to_end(key)
            self._ratio.hits += 1
        else:
            seen[key] = None
            if len(seen) > REMEMBERED:
                seen.popitem(last=False)
        self._ratio.seen += 1
        self._left -= 1
        if not self._left:
            self._end_stretch()

    def answered(self, key: Key, answer: A) -> None:
        if self.on or not self.stable:
            return
        probes, least = self._probes, self._least
        before = probes.get(key, least.get(key))
        if before is None:
            probes[key] = least[key] = answer
            if len(probes) > PROBES:
                probes.popitem(last=False)
            if len(least) > LEAST:
                del least[max(least)]
        else:
            self.compared(same=self._same(before, answer))

    def _end_stretch(self) -> None:
        ratio = self._ratio
        if self.run_s is not None and self.compared_equal >= SURE:
            least = ratio.bound(-DOUBT)
            if least >= ON and least * self.run_s >= MARGIN * self.lookup_s:
                self._turn(on=True)
                return
        self._barren = 0 if ratio.hits else self._barren + 1
        if self._barren == PATIENCE:
            self._least.clear()  # nothing comes again now; what will may have larger keys
        self._rest, self._left = (REST if self._barren < PATIENCE else LONGEST_REST) << self._relapses, STRETCH
        ratio.fade()

    # While it is on

    def looked_up(self, *, hit: bool) -> None:
        """A request: a hit, or one that joined another on its way, or a miss."""
        ratio = self._ratio
        ratio.seen += 1
        if hit:
            ratio.hits += 1
        self._left -= 1
        if not self._left:
            self._end_window()

    def rechecks(self) -> bool:
        """Whether this hit is to be run all the same; call `compared` with what comes of it."""
        self._to_recheck -= 1
        if self._to_recheck:
            return False
        self._to_recheck = RECHECK
        return True

    def _end_window(self) -> None:
        most, run_s = self._ratio.bound(DOUBT), self.run_s or 0.0
        self._ratio, self._left = _Ratio(), WINDOW
        self._windows += 1
        if self._windows > 1 and (most < OFF or most * run_s < self.lookup_s):
            self._relapses = min(self._relapses + 1, MOST_RELAPSES) if self._windows < SOON else 0
            self._turn(on=False)

    def _turn(self, *, on: bool) -> None:
        self.on = on
        self._ratio = _Ratio()
        self._rest, self._left = REST << self._relapses, WINDOW if on else STRETCH
        self._windows = self.compared_equal = self._barren = 0
        self._to_recheck = RECHECK
        self._forget()

    def _forget(self) -> None:
        self._seen.clear()
        self._probes.clear()
        self._least.clear()

"""Watches one model: makes features of its windows, has a detector score them, and raises an alarm that says what is unusual.

Called by autopilot/watching.py on a server and by lab/learn/anomalies. Not aware of: what becomes of an alarm.
"""

from collections import deque
from collections.abc import Sequence

from dlproxy.policy.watch.detectors import Detector
from dlproxy.policy.watch.features import FEATURES, NAMES, Features, KnownCosts, Seen, features
from dlproxy.policy.watch.usual import Usual

WINDOW_S = 2.0  # of a window
AMONG, ENOUGH = 4, 3  # so many of the last windows must be unusual
CALM = 15  # windows in a row that must not be, before an alarm ends
TOLD = 3  # features that an alarm names
FAR = 3.0  # spreads off the usual: worth naming


class Alarm:
    """With hysteresis: on when ENOUGH of the last AMONG scores reach 1, off when CALM in a row do not."""

    def __init__(self) -> None:
        self.on = False
        self._last: deque[bool] = deque(maxlen=AMONG)
        self._calm = 0

    def hear(self, score: float) -> bool:
        """Whether it is on now."""
        unusual = score >= 1.0
        self._last.append(unusual)
        self._calm = 0 if unusual else self._calm + 1
        if self.on:
            self.on = self._calm < CALM
            if not self.on:
                self._last.clear()
        else:
            self.on = sum(self._last) >= ENOUGH
        return self.on


class Watcher:
    """`unusual`: while there is an alarm, what was unusual when it began; else empty. Nothing is learnt meanwhile."""

    def __init__(self, detector: Detector) -> None:
        self.unusual = ""
        self.score = 0.0
        """Of the last window: 1 and more is unusual."""
        self.detector = detector
        self._forget()

    def look(self, seen: Seen, now: float) -> bool:
        """Called every WINDOW_S; whether an alarm has begun or ended. One in which nobody asked tells nothing."""
        window = seen.window
        idle = not window.arrived and not window.in_flight
        found = features(seen, self._costs)
        if not self._usual.known:
            if not idle:
                self._learn(found, seen)
            return False
        off = self._usual.off(found)
        self.score = 0.0 if idle else self.detector.observe(off, now)
        before, after = self._alarm.on, self._alarm.hear(self.score)
        if after and not before:
            self.unusual = self._words(found, off)
        elif before and not after:
            self.unusual = ""
        if self.score < 1.0 and not after and not idle:
            self._learn(found, seen)
        return before != after

    def accept(self) -> bool:
        """What is unusual is usual from now on; whether there was an alarm, which ends."""
        if not self.unusual:
            return False
        self._forget()
        return True

    def _forget(self) -> None:
        self._usual, self._costs, self._alarm = Usual(), KnownCosts(), Alarm()
        self.detector.forget()
        self.unusual, self.score = "", 0.0

    def _learn(self, found: Features, seen: Seen) -> None:
        self._usual.learn(found)
        if seen.window.costs:
            self._costs.learn(seen.window.costs, seen.way)

    def _words(self, found: Features, off: Sequence[float]) -> str:
        """The features that are the furthest off on the side that is bad, with what is usual and what is."""
        sides = [FEATURES[name].side for name in NAMES]
        far = [value * side if side else abs(value) for value, side in zip(off, sides, strict=True)]
        order = sorted(range(len(NAMES)), key=lambda place: -far[place])
        named = [place for place in order if far[place] >= FAR][:TOLD] or order[:1]
        told = []
        for place in named:
            value, centre, feature = found[place], self._usual.centres[place], FEATURES[NAMES[place]]
            if value is not None and centre is not None:
                told.append(f"{feature.what} {feature.told(value)}, usually {feature.told(centre)}")
        return "; ".join(told) or "its telemetry as a whole"

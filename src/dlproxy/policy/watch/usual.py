"""What is usual for one model: centre and spread of each feature, robust at first, then adapting slowly.

Held by watcher.py. Not aware of: what counts as unusual.
"""

from statistics import median

from dlproxy.policy.watch.features import FEATURES, NAMES, Features

FIRST = 60  # windows that tell what is usual, before anything can be unusual
ADAPTS = 300  # windows: what is usual follows what is seen at this pace
FARTHEST = 10.0  # spreads: more is not told apart
STEP = 3.0  # spreads: what lies further off draws no harder
OUTER = 3.29  # of a normal distribution the middle 90 % are so many standard deviations wide
FEWEST = 10  # values of a feature that say anything


class Usual:
    """`centres`, `spreads`: by feature; None until enough was seen of it."""

    def __init__(self) -> None:
        self.centres: list[float | None] = [None] * len(NAMES)
        self.spreads = [FEATURES[name].floor for name in NAMES]
        self._first: list[list[float]] = [[] for _ in NAMES]
        self._seen = 0

    @property
    def known(self) -> bool:
        return self._seen >= FIRST

    def learn(self, features: Features) -> None:
        """A window in which nothing was unusual."""
        self._seen += 1
        for place, value in enumerate(features):
            if value is None:
                continue
            centre = self.centres[place]
            if centre is None:
                self._begin(place, value)
                continue
            spread = self.spreads[place]
            off = min(max(value - centre, -STEP * spread), STEP * spread)
            self.centres[place] = centre + off / ADAPTS
            floor = FEATURES[NAMES[place]].floor
            self.spreads[place] = max(spread + (1.2533 * abs(off) - spread) / ADAPTS, floor)  # of a normal one: sqrt(pi / 2)

    def _begin(self, place: int, value: float) -> None:
        first = self._first[place]
        first.append(value)
        if not self.known or len(first) < FEWEST:
            return
        centre = median(first)
        first.sort()
        edge = len(first) // 20
        spread = (first[-1 - edge] - first[edge]) / OUTER
        self.centres[place], self.spreads[place] = centre, max(spread, self.spreads[place])
        self._first[place] = []

    def off(self, features: Features) -> tuple[float, ...]:
        """How many spreads each is from its centre, at most FARTHEST; 0 where either is not known."""
        return tuple(
            [
                0.0 if value is None or centre is None else min(max((value - centre) / spread, -FARTHEST), FARTHEST)
                for value, centre, spread in zip(features, self.centres, self.spreads, strict=True)
            ]
        )

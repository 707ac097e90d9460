"""Whether what a learnt policy sees lies within what it was trained on: load, costs and knobs, as features.py has them.

Pure. Called by autopilot/learnt.py for every decision. Not aware of: networks, what is done about it.
"""

from collections.abc import Sequence

MARGIN = 0.25  # of a feature, which are about one: so far beyond what it was trained on it is trusted
NEWEST = 0.02  # weight of a decision: some fifty are remembered
STRANGE, FAMILIAR = 0.5, 0.25  # of them lay outside: it is said; and then it may be said anew

Bounds = Sequence[tuple[float, float]]


class Familiarity:
    """`bounds`: least and most of each feature in training."""

    def __init__(self, names: Sequence[str], bounds: Bounds) -> None:
        self._names = names
        self._bounds = bounds
        self._outside = [0.0] * len(bounds)  # how often, lately
        self._said = False
        self.strange = 0.0
        """Share of the last decisions in which anything lay outside."""

    def see(self, state: Sequence[float]) -> str:
        """In words what it was not trained for, once it is more than a moment; else empty."""
        anything = False
        for number, (value, (least, most)) in enumerate(zip(state, self._bounds, strict=True)):
            outside = not least - MARGIN <= value <= most + MARGIN
            anything = anything or outside
            self._outside[number] += NEWEST * (outside - self._outside[number])
        self.strange += NEWEST * (anything - self.strange)
        if self.strange < FAMILIAR:
            self._said = False
        if self._said or self.strange < STRANGE:
            return ""
        self._said = True
        first = max(range(len(state)), key=lambda number: self._outside[number])
        least, most = self._bounds[first]
        what = f"{self._names[first]} is {state[first]:.3g}, and was {least:.3g} to {most:.3g}"
        return f"it sees loads that it was not trained for ({what}): train it again on what is recorded here"

"""The learnt policy of knobs: a network scores moves.py's moves by what features.py sees; the best one is proposed.

The network is a function here (autopilot/ runs it, lab/learn/agent trains it), so this is pure. It has the rules' advice before
it and may do as they say, as they say not, or nothing. Not aware of: whether proposals are tried.
"""

from collections.abc import Callable, Sequence

from msgspec import Struct

from dlproxy.policy.tuning.features import features, outcomes
from dlproxy.policy.tuning.moves import MOVES, Move, moved
from dlproxy.policy.tuning.protocol import Knobs, Proposal, Space, cores_of
from dlproxy.policy.tuning.rules import PAYS, Rules
from dlproxy.policy.tuning.window import Window

Scores = Callable[[tuple[float, ...]], Sequence[float]]
"""Features to one number for each of MOVES: the higher, the better."""


class Sight(Struct, frozen=True, kw_only=True):
    """What it decides on. `options`: for each of MOVES what it would make of the knobs, or None; leaving them is always one."""

    state: tuple[float, ...]
    options: tuple[Proposal | None, ...]

    @property
    def possible(self) -> list[bool]:
        return [option is not None or move is Move.LEAVE for move, option in zip(MOVES, self.options, strict=True)]


class Eyes:
    """Makes sights of windows, and remembers what batches cost. `advised`: whether the rules' advice is seen."""

    def __init__(self, *, advised: bool = True) -> None:
        self.rules = Rules()
        self._advised = advised

    def see(self, window: Window, knobs: Knobs, space: Space, now: float) -> Sight:
        advice = self.rules.act(window, knobs, space, now)  # asked in any case: it observes what batches cost
        if not self._advised:
            advice = None
        book = self.rules.book
        missing = window.missed > space.tolerated * window.ended
        allowed = advice is not None and moved(knobs, Move.ADVISED, space, advised=advice.knobs) is not None
        options: list[Proposal | None] = [None, advice if allowed else None]
        known = outcomes(window, knobs, space, book)
        for move, outcome in zip(MOVES[2:], known, strict=True):
            if outcome.after is None:
                options.append(None)
                continue
            gain = outcome.gain if window.arrived and outcome.gain > PAYS else 0.0
            harmless = not missing and cores_of(outcome.after) < cores_of(knobs)
            options.append(Proposal(knobs=outcome.after, reason=f"learnt: {move}", gain=gain, harmless=harmless))
        return Sight(state=features(window, knobs, space, book, advice, known), options=tuple(options))

    def learn(self, knobs: Knobs, window: Window, *, kept: bool) -> None:
        self.rules.learn(knobs, window, kept=kept)


class Agent:
    """A KnobPolicy."""

    def __init__(self, scores: Scores, *, advised: bool = True) -> None:
        self._scores = scores
        self._eyes = Eyes(advised=advised)

    def act(self, window: Window, knobs: Knobs, space: Space, now: float) -> Proposal | None:
        sight = self._eyes.see(window, knobs, space, now)
        return sight.options[best(self._scores(sight.state), sight.possible)]

    def learn(self, knobs: Knobs, window: Window, *, kept: bool) -> None:
        self._eyes.learn(knobs, window, kept=kept)


def best(scores: Sequence[float], possible: Sequence[bool]) -> int:
    """The index of the highest score, of equal ones the first; that of leaving the knobs where it is not possible, as in
    training. Raises ValueError.
    """
    if len(scores) != len(possible) or any(score != score for score in scores):
        raise ValueError(f"{len(possible)} scores are needed, all of them numbers, not {list(scores)}")
    found = max(range(len(scores)), key=lambda number: (scores[number], -number))
    return found if possible[found] else MOVES.index(Move.LEAVE)

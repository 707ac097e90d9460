"""Hill climbing: one knob, one step at a time, onwards where it helps, back where it does not. The search that people know.

A KnobPolicy, made by make_knob_policy; the pilot undoes what did not help. Not aware of: whether and how proposals are tried.
"""

from math import inf

from dlproxy.policy.tuning.protocol import Knobs, Proposal, Space, cores_of
from dlproxy.policy.tuning.window import Window

STEPS = {
    "more instances": ("instances", True),
    "larger batches": ("max_batch", True),
    "less waiting": ("max_wait_s", False),
    "more threads": ("threads", True),
    "smaller batches": ("max_batch", False),
    "fewer instances": ("instances", False),
    "fewer threads": ("threads", False),
    "more waiting": ("max_wait_s", True),
}
"""In words: what is turned, and whether upwards."""
SHORTEST_S = 0.001  # of waiting, but for none
LONGEST_S = 1.0
REST_S = 60.0  # after a round in which no step helped


class Climb:
    """Climbs while the objective is missed, or where the rate counts. Where cores count, it frees some while it is met."""

    def __init__(self) -> None:
        self._step = 0
        self._failed = 0  # steps in a row
        self._rest_until = -inf
        self._proposed = False  # and nothing has come of it yet

    def act(self, window: Window, knobs: Knobs, space: Space, now: float) -> Proposal | None:
        if self._proposed:
            self._move_on()
        if not window.arrived or now < self._rest_until:
            return None
        missing = window.missed > space.tolerated * window.ended
        climbs = missing or space.prefers == "rate"
        if not climbs and space.prefers != "cores":
            return None
        while self._failed < len(STEPS):
            step = list(STEPS)[self._step]
            option = stepped(knobs, space, step)
            frees = option is not None and cores_of(option) < cores_of(knobs)
            if option is not None and (climbs or frees):
                self._proposed = True
                return Proposal(knobs=option, reason=f"one step: {step}", harmless=frees and not climbs)
            self._move_on()
        self._failed, self._rest_until = 0, now + REST_S
        return None

    def learn(self, knobs: Knobs, window: Window, *, kept: bool) -> None:
        if kept:
            self._failed, self._proposed = 0, False
        else:
            self._move_on()

    def _move_on(self) -> None:
        self._step = (self._step + 1) % len(STEPS)
        self._failed += 1
        self._proposed = False


def stepped(knobs: Knobs, space: Space, step: str) -> Knobs | None:
    """These knobs with one of them a step further, or None if there is no such step."""
    name, up = STEPS[step]
    if name in ("instances", "threads"):
        way = None if space.pinned & {"instances", "threads"} else _way(knobs, space, name, up=up)
        return None if way is None else {**knobs, "instances": way[0], "threads": way[1]}
    before = knobs[name]
    after = _batch(int(before), space, up=up) if name == "max_batch" else _wait(float(before), space, up=up)
    return None if after == before or name in space.pinned else {**knobs, name: after}


def _way(knobs: Knobs, space: Space, name: str, *, up: bool) -> tuple[int, int] | None:
    """With the next number of instances, or threads, and as many of the other, or the most that fit beside more of the one."""
    here = int(knobs["instances"]), int(knobs["threads"])
    one, other = (0, 1) if name == "instances" else (1, 0)
    if not up:
        fewer = [way for way in space.ways if way[other] == here[other] and way[one] < here[one]]
        return max(fewer, default=None)
    more = [way for way in space.ways if way[other] <= here[other] and way[one] > here[one]]
    return min(more, key=lambda way: (-way[other], way[one]), default=None)


def _batch(rows: int, space: Space, *, up: bool) -> int:
    return max(min(2 * rows if up else rows // 2, space.max_batch), 1)


def _wait(seconds: float, space: Space, *, up: bool) -> float:
    if up:
        longer_s = max(2.0 * seconds, SHORTEST_S)
        return longer_s if longer_s <= min(space.objective_s / 2.0, LONGEST_S) else seconds
    return seconds / 2.0 if seconds >= 2.0 * SHORTEST_S else 0.0

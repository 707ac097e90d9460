"""Which variant of a model answers which class of priority: as little is degraded as the load allows, the least urgent first.

Pure; asked every TICK_S by serve/variants.py with what happened since. Not aware of: clocks, lanes, how a request gets to a
variant. Degrading by load instead of refusing is Proteus' (Ahmad et al., ASPLOS 2024); variants by name INFaaS' (ATC 2021).
"""

from collections import deque
from collections.abc import Sequence
from math import exp, inf, sqrt
from typing import Literal

from msgspec import Struct, structs

from dlproxy.policy.queueing import LOWEST_LEVEL
from dlproxy.policy.tuning.pilot import Decision

TICK_S = 0.25
OVERLOADED = 0.95  # of what can be done: more is overload
ROOM = 0.85  # what an assignment that is chosen then may come to
CALM, CALM_S = 0.75, 2.0  # what one that goes back may come to, and for how long before it holds
DWELL_S = 10.0  # between two switches
FLAPPING_S, MOST_CALM_S = 30.0, 60.0  # overload so soon after going back doubles CALM_S, up to this
SPANS = (1, 4, 16)  # ticks that arrivals are counted over: a step shows in one, what is barely too much in many
SURELY = 2.0  # standard deviations by which arrivals must be too many for it to be no chance
JUMP = 1.3  # times the load of the tick before: it began within this one, and the next tells how high it is
FEW, SHARE = 3, 0.05  # requests within a second, and their share of all, that find no time: so many are no chance
LEAST_LOAD = 0.4  # below which what is missed is missed for other reasons, unless a whole batch waits
STALL = 3  # ticks of the last second in which some must miss it where the load is no more than CALM: fewer a stall explains
FORGET_S, MOST_DOUBT = 30.0, 4.0  # capacities that turned out to be less are believed again after a while
SETTLE_S, MEASURED_S = 1.0, 4.0  # after a switch: what is older than it has gone; its effect shows

LEVELS = range(1, LOWEST_LEVEL + 1)


class Candidate(Struct, frozen=True):
    """One that may answer: the model itself, which comes first, or a variant. `capacity`: rows per second that it answers in
    time if it has the cores to itself, 0 if it never is in time. `others`: those that it answers for others now. `accuracy`: 0
    if it is not known. `up`: it has an instance.
    """

    name: str
    accuracy: float = 0.0
    capacity: float = 0.0
    others: float = 0.0
    up: bool = True


class Window(Struct, frozen=True):
    """What happened in one tick. `rows`: that arrived, by level of priority (the first, of level 0, is unused), of so many
    requests. `missed`: requests that were refused for want of time or room, or answered too late; `spilled`: that a variant got
    instead. `crowded`: a whole batch waits. `shared`: the candidates compute on the same cores; else each beside the others.
    """

    seconds: float
    rows: Sequence[float]
    requests: int
    missed: int
    spilled: int
    candidates: Sequence[Candidate]
    crowded: bool = False
    shared: bool = True


class Aim(Struct, frozen=True):
    """What holds for the model. `least_accuracy`: of any that answers in its place; `in_time`: it has a latency to keep,
    without which a full queue alone is overload; `pin`: who answers everything, "auto" for whoever should.
    """

    least_accuracy: float = 0.0
    in_time: bool = True
    pin: str = "auto"


class Governor:
    """Of one model. `assignment`: who answers requests of each level (index 0 is unused), never a better one for a less urgent
    level.
    """

    def __init__(self, model: str, aim: Aim) -> None:
        self.aim = aim
        self.assignment = [model] * (LOWEST_LEVEL + 1)
        self._model = model
        self._ticks: deque[tuple[float, Window]] = deque(maxlen=SPANS[-1])
        self._doubts: dict[str, float] = {}  # times that a candidate can do less than is said of it
        self._order: list[Candidate] = []
        self._switched_at = self._restored_at = -inf
        self._calm_since = inf
        self._calm_s = CALM_S
        self._waits = False  # one tick, for how high the load is
        self._unmeasured: tuple[Decision, float] | None = None  # and the share that was missed before

    # What it is asked

    def look(self, window: Window, now: float, *, held: bool = False) -> Decision | None:
        """The switch that holds from now on, if any. `held`: nothing is decided, but that who has gone has gone."""
        self._ticks.append((now, window))
        self._forget(window.seconds)
        self._order = order_of(window.candidates, self.aim.least_accuracy)
        names = [candidate.name for candidate in self._order]
        pin = self.aim.pin
        wanted = self.assignment if pin == "auto" else [pin] * len(self.assignment)
        wanted = [name if name in names else self._model for name in wanted]
        if wanted != self.assignment:
            why = "its operator says so" if pin != "auto" else "a variant is not served any more, or may not answer"
            return self._switch("assigns", wanted, why, now)
        if held or pin != "auto" or len(names) == 1:
            self._calm_since = inf
            return None
        return self._judge(now)

    def measured(self, now: float) -> tuple[Decision, Decision] | None:
        """The last switch, and the same with what it did, once that can be told."""
        if self._unmeasured is None or now < self._unmeasured[0].at + MEASURED_S:
            return None
        (decision, before), self._unmeasured = self._unmeasured, None
        since = [window for at, window in self._ticks if at > decision.at + SETTLE_S + TICK_S / 2]
        words = f"{_missed_share(since):.1%} of the requests miss the objective, {before:.1%} before"
        return decision, structs.replace(decision, measured=words)

    def cheaper(self, name: str) -> str:
        """Who is to be asked for a request that this candidate has no time or room for; empty: nobody."""
        if self.aim.pin != "auto" or not self._order:
            return ""
        choices = self._choices()
        places = [place for place in choices if self._order[place].name == name]
        later = [place for place in choices if places and place > places[0] and self._capacity(self._order[place])]
        return self._order[later[0]].name if later else ""

    # What it decides

    def _judge(self, now: float) -> Decision | None:
        now_held = self._ranks()
        overload = self._overload(now, now_held)
        if overload is not None:
            self._calm_since = inf
            rates, reason = overload
            self._waits = not self._waits and self._rises(now_held)
            ranks = self._least(rates, ROOM)
            moves = self._load(ranks, rates) < self._load(now_held, rates)
            if self._waits or not moves or now - self._switched_at < DWELL_S:
                return None
            flaps = now - self._restored_at < FLAPPING_S
            self._calm_s = min(2.0 * self._calm_s, MOST_CALM_S) if flaps else CALM_S
            return self._switch("degrades", self._named(ranks), reason, now, self._load(ranks, rates))
        rates = self._rates(2)
        ranks = self._least(rates, CALM)
        if ranks >= now_held or self._load(ranks, rates) > CALM:
            self._calm_since = inf
            return None
        self._calm_since = min(self._calm_since, now)
        if now - self._calm_since < self._calm_s or now - self._switched_at < DWELL_S:
            return None
        self._restored_at = now
        reason = f"it would have had time for everything for {now - self._calm_since:.1f} s"
        return self._switch("restores", self._named(ranks), reason, now, self._load(ranks, rates))

    def _rises(self, ranks: list[int]) -> bool:
        """An assignment that is too weak holds for DWELL_S: better late by a tick."""
        load, two = self._load(ranks, self._rates(1)), self._load(ranks, self._rates(2))
        return load > JUMP * (2.0 * two - load)

    def _overload(self, now: float, ranks: list[int]) -> tuple[list[float], str] | None:
        """The arrivals, in rows per second by level, that are too many, and in words why they are."""
        if self.aim.in_time:
            for span in SPANS:
                rates, load = self._rates(span), self._load(ranks, self._rates(span))
                requests = sum([window.requests for _, window in list(self._ticks)[-span:]])
                if requests and load * (1.0 - SURELY / sqrt(requests)) > OVERLOADED:
                    return rates, f"the load is {_times(load)} what can be answered in time"
        recent = [window for at, window in list(self._ticks)[-SPANS[1] :] if at > self._switched_at + SETTLE_S]
        missed = sum([window.missed + window.spilled for window in recent])
        if missed < max(FEW, SHARE * sum([window.requests for window in recent])):
            return None
        rates = max(self._rates(1), self._rates(SPANS[1]), key=lambda rates: self._load(ranks, rates))
        load = self._load(ranks, rates)
        if load <= CALM and sum([window.missed + window.spilled > 0 for window in recent]) < STALL:
            return None
        if load < LEAST_LOAD and not recent[-1].crowded:
            return None
        self._doubt(ranks, rates, load)
        return rates, f"{missed} requests within a second found no time or room"

    def _least(self, rates: Sequence[float], most: float) -> list[int]:
        """The least degradation whose load is at most that, or as little as can be: of all such assignments the one that is
        best for the most urgent level, of those the one that is best for the next, and so on.
        """
        choices = self._choices()
        ranks = [choices[-1]] * len(self.assignment)
        ranks[0] = choices[0]
        most = max(most, self._load(ranks, rates))
        first = 0
        for level in LEVELS:
            for place in range(first, len(choices)):
                ranks[level], first = choices[place], place
                if self._load(ranks, rates) <= most:
                    break
        return ranks

    def _choices(self) -> list[int]:
        """The places in the order that an assignment may name: the model's own, and each that can do more than all before."""
        choices = [0]
        for place, candidate in enumerate(self._order[1:], 1):
            if candidate.up and self._capacity(candidate) > self._capacity(self._order[choices[-1]]):
                choices.append(place)
        return choices

    # What an assignment comes to

    def _load(self, ranks: Sequence[int], rates: Sequence[float]) -> float:
        """Of what can be done: 1 is all of it. Of candidates that compute beside each other, each takes what those before it in
        the order have no room for.
        """
        order = self._order
        asked = [candidate.others for candidate in order]
        for level in LEVELS:
            if rates[level]:
                place = ranks[level] if order[ranks[level]].up else 0
                if not self._capacity(order[place]):
                    return inf
                asked[place] += rates[level]
        able = [self._capacity(candidate) for candidate in order]
        if self._ticks[-1][1].shared:
            return sum([rate / capacity for rate, capacity in zip(asked, able, strict=True) if capacity])
        tails = [(sum(asked[place:]), sum(able[place:])) for place in range(len(order))]
        return max([rate / capacity for rate, capacity in tails if capacity], default=0.0)

    def _capacity(self, candidate: Candidate) -> float:
        return candidate.capacity / self._doubts.get(candidate.name, 1.0)

    def _rates(self, span: int) -> list[float]:
        """Rows per second by level, over so many ticks."""
        windows = [window for _, window in list(self._ticks)[-span:]]
        seconds = sum([window.seconds for window in windows])
        return [sum(rows) / seconds for rows in zip(*[window.rows for window in windows], strict=True)]

    def _doubt(self, ranks: Sequence[int], rates: Sequence[float], load: float) -> None:
        """Those who answer now can do less than is said of them, so much less that this load is all that they can do."""
        if not 0.0 < load < 1.0:
            return
        for place in {ranks[level] for level in LEVELS if rates[level]}:
            name = self._order[place].name
            self._doubts[name] = min(self._doubts.get(name, 1.0) / load, MOST_DOUBT)

    def _forget(self, seconds: float) -> None:
        keep = exp(-seconds / FORGET_S)
        self._doubts = {name: 1.0 + (doubt - 1.0) * keep for name, doubt in self._doubts.items()}

    # Switches

    def _ranks(self) -> list[int]:
        places = {candidate.name: place for place, candidate in enumerate(self._order)}
        return [places[name] for name in self.assignment]

    def _named(self, ranks: Sequence[int]) -> list[str]:
        return [self._order[place].name for place in ranks]

    def _switch(
        self,
        kind: Literal["degrades", "restores", "assigns"],
        wanted: list[str],
        reason: str,
        now: float,
        load: float | None = None,
    ) -> Decision:
        changes = changes_between(self.assignment, wanted)
        self.assignment = wanted
        self._switched_at, self._calm_since = now, inf
        expected = "" if load is None else f"a load of {load:.2f}"
        decision = Decision(at=now, kind=kind, reason=reason, changes=changes, expected=expected)
        self._unmeasured = decision, _missed_share([self._ticks[-1][1]])
        return decision


def order_of(candidates: Sequence[Candidate], least_accuracy: float) -> list[Candidate]:
    """The model itself, and its variants that may answer, the most accurate first, those of unknown accuracy last."""
    allowed = [candidate for candidate in candidates[1:] if candidate.accuracy >= least_accuracy]
    return [candidates[0], *sorted(allowed, key=lambda candidate: -candidate.accuracy)]


def changes_between(before: Sequence[str], after: Sequence[str]) -> dict[str, tuple[str, str]]:
    """Who answered and who answers, by the levels of priority where that differs: "priority 4 to 8"."""
    changes: dict[str, tuple[str, str]] = {}
    first = 1
    for level in LEVELS:
        pair = before[level], after[level]
        if level < LOWEST_LEVEL and pair == (before[level + 1], after[level + 1]):
            continue
        if pair[0] != pair[1]:
            changes[f"priority {first}" if first == level else f"priority {first} to {level}"] = pair
        first = level + 1
    return changes


def _missed_share(windows: Sequence[Window]) -> float:
    requests = sum([window.requests for window in windows])
    return min(sum([window.missed for window in windows]) / requests, 1.0) if requests else 0.0


def _times(load: float) -> str:
    return "more than" if load == inf else f"{load:.2f} times"

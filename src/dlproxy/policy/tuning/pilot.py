"""The guard rails around a KnobPolicy: one change at a time, on trial in turns with what was before, kept only if it helps.

Pure: told of every window, answers with what is to be done. Hosted by autopilot/ on a server and by lab/simulate.
Not aware of: how knobs are turned, where windows come from.
"""

from collections import deque
from collections.abc import Mapping
from copy import copy, deepcopy
from math import inf, sqrt
from typing import Literal

from msgspec import Struct, structs

from dlproxy.policy.tuning.evidence import Evidence
from dlproxy.policy.tuning.protocol import KnobPolicy, Knobs, Point, Proposal, Space, Value, Watcher, point_of
from dlproxy.policy.tuning.window import Window, joined, outline

TICK_S = 0.5  # a window; the shortest slice of a trial
OBJECTIVES = 2.0  # times the objective: for so long what waits from before is felt, and not counted; then comes a slice
MOST_PAIRS = (
    3  # of slices, each twice as long as the one before, after which a trial ends, if MOST_ENDED requests have been seen
)
MOST_ENDED = 300
LONGEST_S = 40.0  # of either side, however few requests came
RECENT_S = 5.0  # that the policy decides on
LEAST_ENDED = 30  # requests of which the end must be known, before anything is changed
DWELL_S = 20.0  # after a change, while the objective is met
CALM_S = 2.0  # between two questions to the policy, while nothing is the matter
URGENT_S = 0.5  # the same while it is missed
PROBATION_S = 10.0  # in which a change that was kept may still turn out worse
AGAIN_S = 60.0  # until what did not help is tried again; then twice as long, and so on
SAFE_S = 120.0  # of safe mode, after two changes in a row that did harm; then twice as long, and so on
MOST_S = 3600.0  # of either
SHIFTED = 1.3  # times as many requests, or as few: another load, for which all may be tried anew
MUCH = 3.0  # times what may miss the objective
LEAST_CLUSTER = 4.0  # requests that miss the objective do so in batches
SURELY = 4.0  # standard deviations of a number of arrivals that are no chance
LATE = 3.0  # ticks: a window that took longer was measured by a loop that stood still, or by a clock that jumped

Act = Literal["prepare", "apply", "finish"]
Done = Literal["tries", "keeps", "undoes", "advises", "holds", "safe mode", "gives up", "degrades", "restores", "assigns"]
Kind = Done | Literal["shadows", "compares", "hands back", "promotes", "demotes", "notices"]  # who may propose


class Order(Struct, frozen=True):
    """prepare: have ready what these knobs need beside the present ones, then call `ready` or `not_ready` with them. apply:
    they hold from now on. finish: they hold, and what only others need may go.
    """

    act: Act
    knobs: Knobs


class Decision(Struct, frozen=True, kw_only=True):
    """One entry of the log. `changes`: knobs with their values before and after. `expected`, `measured`: in words."""

    at: float
    kind: Kind
    reason: str
    changes: Mapping[str, tuple[Value, Value]] = {}
    expected: str = ""
    measured: str = ""


class _Trial:
    def __init__(self, proposal: Proposal, evidence: Evidence, began_at: float, slice_s: float) -> None:
        self.proposal = proposal
        self.evidence = evidence
        self.slice_s = slice_s
        self.prepared = False
        self.pairs = 0  # that are complete
        self.new = False  # which side holds now
        self.since = began_at
        self.windows: list[Window] = []  # under the new knobs


class Pilot:
    """Of one model. `advise`: it says what it would do, and does nothing. `log` has what it decided last."""

    def __init__(self, policy: KnobPolicy, space: Space, knobs: Knobs, now: float, *, advise: bool = False) -> None:
        self.knobs = dict(knobs)
        """That hold outside of trials."""
        self.space = space
        self.log: deque[Decision] = deque(maxlen=1000)
        self.paused = False
        self._why_paused = ""
        self._policy = policy
        self._advise = advise
        self._recent: deque[Window] = deque()
        self._unsettled_until = -inf  # the load was another a moment ago
        self._trial: _Trial | None = None
        self._hold_until = now
        self._changed_at = self._asked_at = -inf
        self._safe_until = -inf
        self._safe_s = SAFE_S
        self._harmed = 0  # changes in a row that did harm
        self._refused: dict[Point, tuple[float, float]] = {}  # until when, and for how long the last time
        self._kept: tuple[Knobs, float, Evidence, float] | None = None  # before, when, what was seen, arrivals a second
        self._rate = 0.0  # of requests, when it began to hold
        self._why = ""

    @property
    def trying(self) -> bool:
        return self._trial is not None

    @property
    def holding(self) -> Knobs:
        """Now, those on trial included."""
        trial = self._trial
        return trial.proposal.knobs if trial is not None and trial.new else self.knobs

    @property
    def state(self) -> str:
        """In words, for whoever asks what it is doing."""
        if self.paused:
            return self._why_paused
        if self._trial is not None:
            return f"tries {_words(self._changes(self._trial.proposal.knobs))}"
        return self._why or "the objective is met"

    # What it is told

    def look(self, window: Window, now: float) -> Order | None:
        """Called about every TICK_S with what happened since the last time."""
        strange = self._strange(window)
        if strange:
            self._recent.clear()
            return self._hold(strange, now)
        if isinstance(self._policy, Watcher) and not self.paused:
            self._policy.watch(window, self.holding, now)
        if self._recent and _is_another(window, outline(self._recent)):
            self._recent.clear()  # what was before tells nothing of what comes
            self._unsettled_until = now + self._transient_s
        if now >= self._unsettled_until:
            self._recent.append(window)
        while self._recent and self._recent[0].at <= now - RECENT_S:
            self._recent.popleft()
        if self.paused or not self._recent:
            return None
        if self._trial is not None:
            return self._go_on(self._trial, window, now)
        return self._on_probation(now) or self._begin(now)

    def fork(self, policy: KnobPolicy) -> "Pilot":
        """Another that is where this one is, under `policy`: told the same, it shows what would be asked and done."""
        other = copy(self)
        other._policy = policy
        other._recent, other._refused, other.log = self._recent.copy(), self._refused.copy(), deque()
        other._trial = deepcopy(self._trial)
        return other

    def ready(self, knobs: Knobs, now: float) -> Order | None:
        """What these knobs need is prepared."""
        trial = self._trial
        if trial is None or trial.prepared or point_of(trial.proposal.knobs) != point_of(knobs):
            return None  # an earlier trial has ended meanwhile
        trial.prepared, trial.new, trial.since = True, True, now
        return Order("apply", trial.proposal.knobs)

    def not_ready(self, knobs: Knobs, reason: str, now: float) -> Order | None:
        """It cannot be had."""
        trial = self._trial
        if trial is None or trial.prepared or point_of(trial.proposal.knobs) != point_of(knobs):
            return None
        self._trial = None
        self._refuse(trial.proposal.knobs, now)
        self._note("gives up", reason, now, self._changes(trial.proposal.knobs))
        return Order("finish", self.knobs)

    def configure(self, space: Space, knobs: Knobs, now: float) -> Order | None:
        """Somebody else has turned knobs, or pinned some, or bounds are others now. What is on trial ends."""
        self.space, self.knobs = space, dict(knobs)
        self._kept = None
        self._refused.clear()
        return self._hold("its operator has changed something", now)

    def pause(self, now: float, reason: str = "paused") -> Order | None:
        """Decide nothing until `resume`."""
        order = self._hold(reason, now)
        self.paused, self._why_paused = True, reason
        return order

    def resume(self) -> None:
        self.paused = False

    # Trials

    @property
    def _transient_s(self) -> float:
        return max(TICK_S, OBJECTIVES * min(self.space.objective_s, 10.0))

    def _begin(self, now: float) -> Order | None:
        seen = outline(self._recent)
        rate = seen.arrived / seen.seconds
        if self._rate and _differs(seen, self._rate):
            self._another_load(rate, now)
        missing = seen.missed > self.space.tolerated * seen.ended
        dwell_s, every_s = (URGENT_S, 0.0) if missing else (DWELL_S, CALM_S)
        if seen.ended < LEAST_ENDED or now < max(
            self._hold_until, self._safe_until, self._changed_at + dwell_s, self._asked_at + every_s
        ):
            return None
        self._asked_at = now
        window = joined(self._recent)
        closed = frozenset([point for point, (until, _) in self._refused.items() if until > now])
        proposal = self._policy.act(window, self.knobs, structs.replace(self.space, closed=closed), now)
        if proposal is not None and not proposal.gain and proposal.harmless and (missing or seen.seconds < RECENT_S - TICK_S):
            proposal = None  # which can wait until it is clear that nothing else is the matter
        if proposal is None or not self._may(proposal, now):
            self._why = "it knows nothing better" if missing else ""
            return None
        changes = self._changes(proposal.knobs)
        expected = f"{proposal.gain:.1%} of the requests fewer miss the objective" if proposal.gain else ""
        self._rate = rate
        if self._advise:
            self._refuse(proposal.knobs, now)
            self._note("advises", proposal.reason, now, changes, expected)
            return None
        trial = self._trial = _Trial(proposal, Evidence(by_rate=self.space.prefers == "rate"), now, self._transient_s)
        trial.evidence.add(window, new=False)
        self._note("tries", proposal.reason, now, changes, expected)
        return Order("prepare", proposal.knobs)

    def _go_on(self, trial: _Trial, window: Window, now: float) -> Order | None:
        if not trial.prepared:
            return None
        if now < trial.since + trial.slice_s + TICK_S / 2:
            return None  # what waits was queued under the other knobs, and the lane learns what batches cost under these
        trial.evidence.add(window, new=trial.new)
        if trial.new:
            trial.windows.append(window)
        if now < trial.since + 2.0 * trial.slice_s - TICK_S / 2:
            return None
        evidence, harmless = trial.evidence, trial.proposal.harmless
        verdict = evidence.verdict()
        as_expected = trial.proposal.gain > 0.0 and evidence.confirms(trial.proposal.gain)
        if verdict == "better" or as_expected or (harmless and verdict == "alike"):
            return self._keep(trial, now)
        if verdict == "worse" or (trial.pairs and evidence.is_futile(harmless=harmless)):
            return self._undo(trial, now, harm=verdict == "worse")
        if verdict == "alike" or _is_enough(trial):
            return self._keep(trial, now) if harmless or evidence.is_likely else self._undo(trial, now, harm=False)
        if harmless and not trial.proposal.gain and evidence.old.share > MUCH * self.space.tolerated:
            return self._hold("the objective is missed", now)  # something else matters more
        promising = not harmless and evidence.difference > evidence.error
        if trial.new and promising and evidence.new.ended < 2 * evidence.old.ended:
            return None  # on trial for longer: going back would only miss more
        if not trial.new:
            trial.pairs += 1
            trial.slice_s *= 2.0
        trial.new, trial.since = not trial.new, now
        return Order("apply", trial.proposal.knobs if trial.new else self.knobs)

    def _keep(self, trial: _Trial, now: float) -> Order:
        before, knobs = self.knobs, dict(trial.proposal.knobs)
        self._trial = None
        self._policy.learn(knobs, joined(trial.windows), kept=True)
        self._note("keeps", trial.proposal.reason, now, self._changes(knobs), measured=trial.evidence.words())
        self.knobs = knobs
        self._kept = before, now, trial.evidence, self._rate
        self._refuse(before, now)  # until the load is another: nothing goes to and fro
        self._changed(now)
        return Order("finish", knobs)

    def _undo(self, trial: _Trial, now: float, *, harm: bool) -> Order:
        self._trial = None
        knobs = trial.proposal.knobs
        if trial.windows:
            self._policy.learn(knobs, joined(trial.windows), kept=False)
        reason = "it did harm" if harm else "it did not help"
        self._note("undoes", reason, now, self._changes(knobs), measured=trial.evidence.words())
        self._refuse(knobs, now)
        self._changed(now)
        if harm:
            self._did_harm(now)
        return Order("finish", self.knobs)

    def _on_probation(self, now: float) -> Order | None:
        """What was kept a moment ago does worse than what was before, under about the same load."""
        if self._kept is None:
            return None
        before, since, evidence, rate = self._kept
        if now > since + PROBATION_S:
            self._kept, self._harmed = None, 0
            return None
        seen = [window for window in self._recent if window.at > since + TICK_S]
        if len(seen) < 4:
            return None
        window = joined(seen)
        if _differs(window, rate):
            return None
        after = Evidence(by_rate=False)
        after.old = evidence.old
        after.add(window, new=True)
        if after.verdict() != "worse":
            return None
        changes = {name: (value, before[name]) for name, value in self.knobs.items() if before.get(name, value) != value}
        self._note("undoes", "after some seconds it did harm", now, changes, measured=after.words())
        self._refuse(self.knobs, now)
        self.knobs, self._kept = dict(before), None
        self._did_harm(now)
        self._changed(now)
        return Order("finish", self.knobs)

    # Holding still

    def _hold(self, reason: str, now: float) -> Order | None:
        """Nothing is tried now; what is on trial ends without blame."""
        self._why = reason
        self._hold_until = max(self._hold_until, now + RECENT_S)
        trial, self._trial = self._trial, None
        if trial is None:
            return None
        self._note("holds", reason, now, self._changes(trial.proposal.knobs))
        return Order("finish", self.knobs)

    def _strange(self, window: Window) -> str:
        """Why this window is not to be believed."""
        if not 0.0 < window.seconds < LATE * TICK_S + (0.0 if self._trial is None else TICK_S):
            return f"a window of {TICK_S:g} s took {window.seconds:.3g} s: the clock jumped or the loop stood still"
        if window.up < int(self._now_held("instances")):
            return f"{window.up} of {self._now_held('instances')} instances are up"
        if not window.ended and not window.arrived and window.in_flight > 0.0:
            return "requests are under way, and no counter moves"
        return ""

    def _now_held(self, name: str) -> Value:
        return min(int(self.holding.get(name, 1)), int(self.knobs.get(name, 1)))

    def _changed(self, now: float) -> None:
        self._changed_at = now
        self._recent.clear()

    def _did_harm(self, now: float) -> None:
        self._harmed += 1
        self._kept = None  # the end of its probation would forget this
        if self._harmed >= 2:
            self._harmed = 0
            self._safe_until = now + self._safe_s
            self._note("safe mode", f"two changes in a row did harm: nothing is tried for {self._safe_s:g} s", now)
            self._safe_s = min(self._safe_s * 2.0, MOST_S)

    def _another_load(self, rate: float, now: float) -> None:
        self._rate = rate
        self._refused.clear()
        self._kept = None

    # What may be tried

    def _may(self, proposal: Proposal, now: float) -> bool:
        if not self.space.allows(proposal.knobs, self.knobs) or not self._changes(proposal.knobs):
            return False
        return proposal.again or self._refused.get(point_of(proposal.knobs), (-inf, 0.0))[0] <= now

    def _refuse(self, knobs: Knobs, now: float) -> None:
        key = point_of(knobs)
        again_s = min(2.0 * self._refused.get(key, (0.0, AGAIN_S / 2.0))[1], MOST_S)
        self._refused[key] = now + again_s, again_s

    def _changes(self, knobs: Knobs) -> dict[str, tuple[Value, Value]]:
        return {name: (self.knobs[name], value) for name, value in knobs.items() if self.knobs.get(name) != value}

    def _note(
        self,
        kind: Kind,
        reason: str,
        now: float,
        changes: Mapping[str, tuple[Value, Value]] | None = None,
        expected: str = "",
        measured: str = "",
    ) -> None:
        self.log.append(Decision(at=now, kind=kind, reason=reason, changes=changes or {}, expected=expected, measured=measured))


def _is_enough(trial: _Trial) -> bool:
    """More would hardly tell more."""
    new = trial.evidence.new
    return new.seconds >= LONGEST_S or (trial.pairs >= MOST_PAIRS and new.ended >= MOST_ENDED)


def _is_another(window: Window, before: Window) -> bool:
    """More come than before, or fewer, or another part of them misses the objective."""
    if _differs(window, before.arrived / before.seconds):
        return True
    expected = before.missed / max(before.ended, 1) * window.ended
    chance = sqrt(max(window.dispersion, LEAST_CLUSTER) * max(expected, window.missed, 1.0))
    return abs(window.missed - expected) > SURELY * chance


def _differs(window: Window, rate: float) -> bool:
    """Whether another load than this many requests per second has come, by more than chance."""
    expected = rate * window.seconds
    if 1.0 / SHIFTED < max(window.arrived, 1e-9) / max(expected, 1e-9) < SHIFTED:
        return False
    chance = sqrt(max(window.dispersion, 1.0) * max(expected, window.arrived, 1.0))
    return abs(window.arrived - expected) > SURELY * chance


def _words(changes: Mapping[str, tuple[Value, Value]]) -> str:
    return ", ".join(f"{name} = {after} instead of {before}" for name, (before, after) in changes.items())

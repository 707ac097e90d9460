"""A host of the pilot whose clock, load, instances and policy do whatever Hypothesis wants, and who checks every order.

Called by test_pilot.py, which runs it as a test.
"""

from collections.abc import Mapping
from math import inf, isfinite, nan
from typing import Any

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from msgspec.structs import replace

from dlproxy.policy.tuning.pilot import AGAIN_S, RECENT_S, SAFE_S, TICK_S, Decision, Order, Pilot
from dlproxy.policy.tuning.protocol import Knobs, Proposal, Space
from dlproxy.policy.tuning.window import Window
from tests.policy.tuning.lanes import KNOBS, SPACE, window

ENDS = ("keeps", "undoes", "gives up", "holds")
LONGEST_TRIAL_S = 300.0
HARM = ("it did harm", "after some seconds it did harm")

sane = st.fixed_dictionaries(
    {
        "max_batch": st.sampled_from([1, 8, 64]),
        "max_wait_s": st.sampled_from([0.0, 0.005]),
        "way": st.sampled_from(SPACE.ways),
    }
).map(
    lambda drawn: {
        "max_batch": drawn["max_batch"],
        "max_wait_s": drawn["max_wait_s"],
        "instances": drawn["way"][0],
        "threads": drawn["way"][1],
    }
)
nonsense = st.one_of(
    st.fixed_dictionaries({}),
    st.sampled_from(
        [
            {"no_such_knob": 3},
            {"max_batch": 0},
            {"max_batch": 10**9},
            {"max_batch": "many"},
            {"max_batch": 2.5},
            {"max_batch": nan},
            {"max_wait_s": -1.0},
            {"max_wait_s": inf},
            {"max_wait_s": nan},
            {"instances": 3},
            {"instances": 0},
            {"threads": 64},
            {"instances": "two", "threads": "all"},
        ]
    ),
)
pins = st.frozensets(st.sampled_from(["max_batch", "max_wait_s", "instances", "threads"]), max_size=2)
shares = st.sampled_from([0, 0, 1, 20, 50])  # of a hundred requests


class Fickle:
    """A policy that proposes what it was last given, whatever it learns."""

    def __init__(self) -> None:
        self.wants: Proposal | None = None
        self.learned: list[tuple[Knobs, bool]] = []

    def act(self, window: Window, knobs: Knobs, space: Space, now: float) -> Proposal | None:
        return self.wants

    def learn(self, knobs: Knobs, window: Window, *, kept: bool) -> None:
        assert window.seconds > 0.0
        self.learned.append((knobs, kept))


class Host(RuleBasedStateMachine):
    """`held`: knobs as they are turned. `trial`: those that are prepared or tried."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 100.0
        self.policy = Fickle()
        self.held: Knobs = dict(KNOBS)
        self.operator: Knobs = dict(KNOBS)
        self.trial: Knobs | None = None
        self.prepared = False
        self.load, self.missed_old, self.missed_new = 100, 0, 0
        self.steady_since = -inf
        self.refused: list[tuple[float, Knobs]] = []
        self.seen: list[Decision] = []
        self.knobs_of: dict[int, Knobs] = {}  # that were on trial, by where they stand in the log

    @initialize(
        pinned=pins, prefers=st.sampled_from(["", "cores", "rate"]), advise=st.sampled_from([False, False, False, True])
    )
    def begin(self, pinned: frozenset[str], prefers: str, advise: bool) -> None:
        self.space = replace(SPACE, pinned=pinned, prefers=prefers)
        self.advise = advise
        self.pilot = Pilot(self.policy, self.space, KNOBS, self.now, advise=advise)

    # What happens

    @rule(knobs=sane, harmless=st.booleans())
    def wants(self, knobs: Knobs, harmless: bool) -> None:
        self.policy.wants = Proposal(knobs=knobs, reason="it may", harmless=harmless, gain=0.0 if harmless else 0.1)

    @rule(knobs=sane, more=nonsense, whole=st.booleans())
    def wants_nonsense(self, knobs: Knobs, more: Mapping[str, Any], whole: bool) -> None:
        self.policy.wants = Proposal(knobs={**(knobs if whole else {}), **more}, reason="why not")

    @rule()
    def wants_nothing(self) -> None:
        self.policy.wants = None

    @rule(old=shares, new=shares)
    def fares(self, old: int, new: int) -> None:
        self.missed_old, self.missed_new = old, new

    @rule(load=st.sampled_from([5, 100, 1000]))
    def load_changes(self, load: int) -> None:
        if load != self.load:
            self.load, self.steady_since = load, self.now
            self.refused.clear()

    @rule(ticks=st.integers(1, 50))
    def goes_on(self, ticks: int) -> None:
        for _ in range(ticks):
            self.now += TICK_S
            new = self.trial is not None and self.held == self.trial
            share = self.missed_new if new else self.missed_old
            self.told(self.pilot.look(window(self.now, arrived=self.load, missed=share * self.load // 100), self.now))

    @rule(knobs=sane, old=shares, new=shares, harmless=st.booleans(), ticks=st.sampled_from([0, 1, 5, 60]))
    def goes_through(self, knobs: Knobs, old: int, new: int, harmless: bool, ticks: int) -> None:
        """A trial begins, if it may, and goes on for a while."""
        self.fares(old, new)
        self.wants(knobs, harmless)
        for _ in range(50):
            if self.trial is None:
                self.goes_on(1)
        for _ in range(ticks):
            if self.trial is not None and not self.prepared:
                self.ready()
            self.goes_on(1)

    @rule(ticks=st.integers(100, 400))
    def goes_on_for_minutes(self, ticks: int) -> None:
        self.goes_on(ticks)

    @rule(seconds=st.sampled_from([0.0, 4.0, 3600.0]))
    def clock_jumps(self, seconds: float) -> None:
        self.now += seconds
        self.told(self.pilot.look(window(self.now, seconds=seconds or -0.5), self.now))

    @rule()
    def instances_crash(self) -> None:
        self.now += TICK_S
        self.told(self.pilot.look(window(self.now, up=0), self.now))

    @rule()
    def counters_stand_still(self) -> None:
        self.now += TICK_S
        self.told(self.pilot.look(Window(at=self.now, seconds=TICK_S, in_flight=3.0, up=4), self.now))

    @precondition(lambda self: self.trial is not None and not self.prepared)
    @rule()
    def ready(self) -> None:
        self.prepared, self.prepared_at = True, self.now
        assert self.trial is not None
        self.told(self.pilot.ready(self.trial, self.now))
        assert self.held == self.trial

    @precondition(lambda self: self.trial is not None and not self.prepared)
    @rule(ticks=st.integers(0, 50))
    def cannot_be_had(self, ticks: int) -> None:
        assert self.trial is not None
        self.told(self.pilot.not_ready(self.trial, "no memory", self.now))
        assert self.trial is None
        self.goes_on(ticks)

    @precondition(lambda self: self.trial is None or self.prepared)
    @rule(knobs=sane)
    def is_ready_too_late(self, knobs: Knobs) -> None:
        assert self.pilot.ready(knobs, self.now) is None
        assert self.pilot.not_ready(knobs, "too late", self.now) is None

    @rule(ticks=st.integers(0, 200))
    def pauses(self, ticks: int) -> None:
        self.told(self.pilot.pause(self.now))
        assert self.trial is None
        self.goes_on(ticks)
        assert self.trial is None
        self.pilot.resume()

    @rule(pinned=pins, knobs=sane)
    def operator_turns(self, pinned: frozenset[str], knobs: Knobs) -> None:
        self.space = replace(self.space, pinned=pinned)
        self.operator = dict(knobs)
        self.refused.clear()
        before = self.trial
        order = self.pilot.configure(self.space, knobs, self.now)
        assert (order is None) == (before is None)
        self.held = dict(knobs)  # it was the host who was asked to
        self.told(order)

    # What is checked

    def told(self, order: Order | None) -> None:
        """Carries it out, as a host does."""
        if order is not None:
            assert not self.advise
            if order.act == "prepare":
                assert self.trial is None, "two trials at once"
                assert not self.pilot.paused
                self.trial, self.prepared = order.knobs, False
                self.not_again(order.knobs)
            elif order.act == "apply":
                assert self.trial is not None
                assert self.prepared, "nothing is applied that is not ready"
                assert order.knobs in (self.trial, self.pilot.knobs)
                self.held = dict(order.knobs)
            else:
                assert order.knobs == self.pilot.knobs
                assert self.seen != list(self.pilot.log), "no entry says why"
                self.held = dict(order.knobs)
        self.read_log()
        if order is not None and order.act == "finish":
            self.trial = None
        if self.trial is not None and self.prepared:
            assert self.now < self.prepared_at + LONGEST_TRIAL_S, "it never ends"

    def not_again(self, knobs: Knobs) -> None:
        for until, refused in self.refused:
            assert knobs != refused or self.now >= until, f"tried again {until - self.now:g} s too soon"

    def read_log(self) -> None:
        log = list(self.pilot.log)
        for entry in log[len(self.seen) :]:
            assert entry.at == self.now
            assert entry.reason
            before = self.seen[-1] if self.seen else None
            self.seen.append(entry)
            if entry.kind == "tries":
                assert entry.changes
                assert not self.safe(), "tried in safe mode"
                self.began_at = entry.at
            if entry.kind in ("undoes", "gives up") and self.trial is not None and self.began_at > self.steady_since + RECENT_S:
                self.refused.append((self.now + AGAIN_S, self.trial))
            if entry.kind == "safe mode":
                assert before is not None
                assert before.reason in HARM
        harmful = [entry.reason in HARM for entry in log if entry.kind in ("keeps", "undoes", "safe mode")]
        assert not (len(harmful) >= 2 and all(harmful[-2:])), "no safe mode after two harmful changes in a row"

    def safe(self) -> bool:
        return any(entry.kind == "safe mode" and self.now < entry.at + SAFE_S for entry in self.seen)

    @invariant()
    def trials_are_known(self) -> None:
        if hasattr(self, "pilot"):
            assert self.pilot.trying == (self.trial is not None)
            began = sum([entry.kind == "tries" for entry in self.seen])
            ended = sum([entry.kind in ENDS and entry.reason != HARM[1] for entry in self.seen])
            assert began == ended + self.pilot.trying

    @invariant()
    def knobs_are_as_they_may_be(self) -> None:
        if not hasattr(self, "pilot"):
            return
        if self.trial is None:
            assert self.held == self.pilot.knobs
        for knobs in (self.held, self.pilot.knobs, self.trial or self.held):
            assert knobs.keys() == KNOBS.keys()
            assert all(knobs[name] == self.operator[name] for name in self.space.pinned), "a pinned knob was turned"
            assert (knobs["instances"], knobs["threads"]) in self.space.ways
            assert isinstance(knobs["max_batch"], int)
            assert 1 <= knobs["max_batch"] <= self.space.max_batch
            assert isfinite(float(knobs["max_wait_s"]))
            assert float(knobs["max_wait_s"]) >= 0.0

"""One model under its pilot: makes windows, has the pilot look at them, and carries out its orders.

Held by host.py, which calls `look` every LOOK_S. Not aware of: how knobs are turned and instances run (Tuned knows).
"""

import asyncio
import logging
from collections import deque
from collections.abc import Awaitable, Callable
from functools import partial
from math import inf
from typing import Any, Literal

from msgspec import Struct, structs

from dlproxy.autopilot.explain import Explanation, explained
from dlproxy.autopilot.records import Records
from dlproxy.autopilot.telemetry import Telemetry
from dlproxy.message import text_of
from dlproxy.policy.tuning.duel import Duel, Side
from dlproxy.policy.tuning.pilot import LEAST_ENDED, PROBATION_S, TICK_S, Decision, Order, Pilot
from dlproxy.policy.tuning.protocol import KnobPolicy, Knobs, Space
from dlproxy.policy.tuning.window import Window
from dlproxy.telemetry.stats import ModelStats

LOOK_S = 0.1
LOOKS = round(TICK_S / LOOK_S)  # in a window
CORES_EVERY = 20  # windows: what a container may use can change while it runs, and to ask takes 0.1 ms
KEPT = 1000  # decisions
RECENT = 10  # windows that an explanation is made of

Mode = Literal["off", "advise", "on"]

_OF_LITTLE_USE = ("the objective is met", "its operator has changed something")  # once nobody asks the model any more
_VERBS = {"holds": "stops trying", "safe mode": "is in safe mode", "degrades": "degrades to", "restores": "goes back to"}
_VERBS |= {"shadows": "listens to a challenger", "compares": "compares", "promotes": "promotes", "demotes": "turns down"}

log = logging.getLogger(__name__)


class Tuned(Struct, frozen=True, eq=False):
    """What a flight needs of its model. `mode` to `up` tell what is the case now; `space`: or in words why there is
    nothing to tune. `prepare` has what knobs need made `ready`, and raises what stands against that; `apply` makes them hold at
    once; `let_go` drops what only others need. `turn_cores`: of each batch, if batches take turns on the cores, else 0;
    `weight`: of its answers beside other models'; `weigh` gives it a share of the turns.
    """

    name: str
    version: str
    stats: ModelStats
    mode: Callable[[], Mode]
    space: Callable[[], Space | str]
    knobs: Callable[[], Knobs]
    cores: Callable[[], int]
    instances: Callable[[], int]
    up: Callable[[], int]
    open_requests: Callable[[], int]
    rows_under_way: Callable[[], int]
    ready: Callable[[Knobs], bool]
    prepare: Callable[[Knobs], Awaitable[None]]
    apply: Callable[[Knobs], None]
    let_go: Callable[[], Awaitable[None]]
    turn_cores: Callable[[], float] = lambda: 0.0
    weight: Callable[[], float] = lambda: 1.0
    weigh: Callable[[float], None] = lambda share: None


class Flight:
    """`pilot` is None while nothing is tuned; `paused`: until somebody resumes it, whatever its model does meanwhile;
    `unusual`: what is with its model, for as long as nothing is to be decided because of that.
    """

    def __init__(
        self,
        tuned: Tuned,
        make_policy: Callable[[], KnobPolicy],
        clock: Callable[[], float],
        records: Records | None = None,
    ) -> None:
        self.tuned = tuned
        self._records = records
        self.pilot: Pilot | None = None
        self.mode: Mode = "off"
        self.paused = False
        self.unusual = ""
        self.log: deque[Decision] = deque(maxlen=KEPT)
        self._why_paused = self._why_not = ""
        self._make_policy = make_policy
        self._clock = clock
        self._policy = make_policy()
        self._telemetry: Telemetry | None = None
        self._windows: deque[Window] = deque(maxlen=RECENT)
        self._looks = self._seen = 0
        self._windows.clear()
        self._told: Decision | None = None  # the last one that is in the log
        self._tasks: set[asyncio.Task[None]] = set()
        self._preparing: asyncio.Task[None] | None = None
        self._applying = self._stopped = self._advises = False
        self._drop_at = inf  # when what only other ways need is let go of
        self.renew()

    # What happens to it

    def renew(self) -> None:
        """Its model, or what is wanted of it, is another than before."""
        if self._applying or self._stopped:
            return
        tuned, now = self.tuned, self._clock()
        self.mode, space = tuned.mode(), tuned.space()
        self._why_not = "off" if self.mode == "off" else space if isinstance(space, str) else ""
        if self.mode == "off" or isinstance(space, str):
            self._end(now)
            return
        pilot = self.pilot
        if pilot is not None and self._advises == (self.mode == "advise"):
            assert self._telemetry is not None
            self._telemetry.aim(space.objective_s)
            self._carry_out(pilot.configure(space, tuned.knobs(), now), now)
            return
        self._end(now)
        self._policy = self._make_policy()
        self._advises = self.mode == "advise"
        if isinstance(self._policy, Duel):
            self._policy.advises = self._advises
        self.pilot = Pilot(self._policy, space, tuned.knobs(), now, advise=self._advises)
        self._told = None
        self._looks = 0
        self._telemetry = Telemetry(
            tuned.stats, tuned.open_requests, tuned.rows_under_way, objective_s=space.objective_s, at=now
        )
        if self.paused or self.unusual:
            self.pilot.pause(now, self._unusual() if self.unusual else "paused")

    def challenge(self, challenger: Side | None) -> None:
        """Its policy has to hold its own against another one from now on."""
        if isinstance(self._policy, Duel):
            self._policy.challenge(challenger)

    def hold(self) -> None:
        """Somebody else is about to change something: what is on trial ends before that."""
        pilot = self.pilot
        if pilot is not None and pilot.trying and not self._applying:
            now = self._clock()
            self._carry_out(pilot.configure(pilot.space, pilot.knobs, now), now)

    def pause(self, reason: str = "paused") -> None:
        self.paused, self._why_paused = True, reason
        if self.pilot is not None:
            now = self._clock()
            self._carry_out(self.pilot.pause(now), now)

    def resume(self) -> None:
        self.paused = False
        pilot, now = self.pilot, self._clock()
        if pilot is not None and not self.unusual:
            pilot.resume()
            self._carry_out(pilot.configure(pilot.space, self.tuned.knobs(), now), now)

    def freeze(self, unusual: str) -> None:
        """While this is unusual with its model, what is on trial ends and nothing is decided; empty: no more."""
        self.unusual = unusual
        self.tuned.stats.stirred += 1
        pilot, now = self.pilot, self._clock()
        if pilot is None or self.paused:
            return
        if unusual:
            self._carry_out(pilot.pause(now, self._unusual()), now)
        else:
            pilot.resume()

    def _unusual(self) -> str:
        return f"something is unusual: {self.unusual}"

    def look(self, now: float, *, rests: bool = False) -> Window | None:
        """`rests`: nothing is to be decided now. The window, if one is complete."""
        pilot, telemetry = self.pilot, self._telemetry
        if pilot is None or telemetry is None:
            return None
        telemetry.look()
        self._looks += 1
        if self._looks < LOOKS:
            return None
        self._looks = 0
        if len(pilot.space.ways) == 1:  # others choose their number
            pilot.knobs["instances"] = max(self.tuned.instances(), 1)
        window = telemetry.window(now, up=self.tuned.up())
        self._windows.append(window)
        self._seen += 1
        if self._seen % CORES_EVERY == 0:
            pilot.space = structs.replace(pilot.space, cores=self.tuned.cores())
        if self._records is not None and self._records.window(window, pilot.holding, pilot.space):
            self._start(partial(asyncio.to_thread, self._records.write))
        if not rests:
            self._carry_out(pilot.look(window, now), now)
        if now >= self._drop_at and not pilot.trying:
            self._drop_at = inf
            self._start(self.tuned.let_go)
        return window

    def fail(self, error: Exception) -> None:
        """Deciding, or carrying it out, has raised this: nothing is decided any more until somebody says so."""
        log.error("model %s: the autopilot has failed, and pauses itself", self.tuned.name, exc_info=error)
        self.paused, self._why_paused = True, f"paused itself: {text_of(error)}"
        pilot = self.pilot
        if pilot is None:
            return
        pilot.pause(self._clock())
        try:
            self._tell()
            self._finish(pilot.knobs)
        except Exception as also:
            log.error("model %s: the autopilot could not go back to what held before", self.tuned.name, exc_info=also)

    def stop(self) -> None:
        """The model goes: nothing is turned any more."""
        self._stopped = True
        for task in self._tasks:
            task.cancel()
        if self._records is not None:
            self._records.write()
        self._ground()

    # Orders

    def _carry_out(self, order: Order | None, now: float) -> None:
        self._tell()
        if order is None:
            return
        if order.act == "prepare":
            self._preparing = self._start(partial(self._prepare, order.knobs))
        elif order.act == "apply":
            self._apply(order.knobs)
        else:
            self._finish(order.knobs)

    def _apply(self, knobs: Knobs) -> None:
        self._applying = True
        try:
            self.tuned.apply(knobs)
        finally:
            self._applying = False

    def _finish(self, knobs: Knobs) -> None:
        """What was kept may still turn out worse: what ran before stays at hand until that is decided."""
        if self._preparing is not None:
            self._preparing.cancel()
            self._preparing = None
        kept = self._told is not None and self._told.kind == "keeps"
        self._drop_at = self._clock() + (PROBATION_S + TICK_S if kept else 0.0)
        if self.tuned.ready(knobs):
            self._apply(knobs)
        else:
            self._start(partial(self._go_back, knobs))

    async def _go_back(self, knobs: Knobs) -> None:
        await self.tuned.prepare(knobs)
        if self.pilot is not None and not self.pilot.trying:
            self._apply(knobs)

    async def _prepare(self, knobs: Knobs) -> None:
        reason = ""
        try:
            await self.tuned.prepare(knobs)
        except Exception as error:  # whatever loading a model raises
            reason = text_of(error) or type(error).__name__
        pilot, now = self.pilot, self._clock()
        if pilot is None:
            return
        self._preparing = None
        try:
            self._carry_out(pilot.not_ready(knobs, reason, now) if reason else pilot.ready(knobs, now), now)
        except Exception as error:
            self.fail(error)

    def _start(self, work: Callable[[], Awaitable[None]]) -> asyncio.Task[None]:
        async def until_done() -> None:
            try:
                await work()
            except Exception as error:
                log.error("model %s: the autopilot could not clear up", self.tuned.name, exc_info=error)

        task = asyncio.get_running_loop().create_task(until_done(), name=f"dlproxy-autopilot-{self.tuned.name}")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    def _end(self, now: float) -> None:
        """No pilot from now on; what it has kept stays."""
        pilot = self.pilot
        if pilot is not None:
            self._carry_out(pilot.pause(now), now)
            self._start(self.tuned.let_go)
        self._ground()

    def _ground(self) -> None:
        self.pilot = None
        if self._telemetry is not None:
            self._telemetry.stop()
            self._telemetry = None

    # What it says

    def _tell(self) -> None:
        """Log what the pilot has decided since the last time."""
        pilot = self.pilot
        assert pilot is not None
        new: list[Decision] = []
        for decision in reversed(pilot.log):
            if decision is self._told:
                break
            new.append(decision)
        for decision in reversed(new):
            self._told = decision
            self.note(decision)
        while isinstance(self._policy, Duel) and self._policy.log:
            self.note(self._policy.log.popleft())

    def note(self, decision: Decision, instead_of: Decision | None = None) -> None:
        """For the log. Also what others have decided for the model, and then what they have seen of its effect."""
        if instead_of is None:
            self.log.append(decision)
            if self._records is not None:
                self._records.decision(decision)
            self.tuned.stats.decisions[decision.kind] += 1
            self.tuned.stats.stirred += 1
        else:
            for place, known in enumerate(self.log):
                if known is instead_of:
                    self.log[place] = decision
        log.info("model %s: autopilot %s", self.tuned.name, in_words(decision))

    @property
    def state(self) -> str:
        """In words."""
        if self.pilot is None:
            return self._why_not
        if self.paused:
            return self._why_paused
        if self.unusual:
            return f"holds: {self._unusual()}"
        said = self.pilot.state
        few = sum([window.ended for window in self._windows]) < LEAST_ENDED
        return "too few requests come to tell" if few and said in _OF_LITTLE_USE else said

    def explanation(self) -> Explanation | None:
        """What it knows and would do now; None while nothing is tuned."""
        if self.pilot is None or not self._windows:
            return None
        try:
            return explained(self._policy, self.pilot, list(self._windows), self._clock())
        except Exception as error:
            log.warning("model %s: what the autopilot knows cannot be told: %s", self.tuned.name, text_of(error))
            return None

    def brief(self, newest: int = 0) -> dict[str, Any]:
        """JSON: the least of `shown` that tells how it is, and so many of the newest decisions."""
        pilot = self.pilot
        return {
            "mode": self.mode,
            "phase": self.state,
            "trying": pilot is not None and pilot.trying,
            "pins": sorted(pilot.space.pinned) if pilot is not None else [],
            "unusual": self.unusual,
            "decisions": [_decision(decision, self._clock()) for decision in list(self.log)[max(len(self.log) - newest, 0) :]],
        }

    def shown(self, *, most: int) -> dict[str, Any]:
        """JSON: what it does, and what it decided last."""
        tuned, now = self.tuned, self._clock()
        space = tuned.space() if self.pilot is None else self.pilot.space
        bounds = None if isinstance(space, str) else space
        return {
            "name": tuned.name,
            "version": tuned.version,
            "mode": self.mode,
            "policy": self._policy.state if isinstance(self._policy, Duel) else "",
            "state": self.state,
            "paused": self.paused,
            "unusual": self.unusual,
            "objective_s": bounds and bounds.objective_s,
            "tolerated": bounds and bounds.tolerated,
            "prefers": bounds.prefers if bounds else "",
            "knobs": dict(tuned.knobs()),
            "pinned": sorted(bounds.pinned) if bounds else [],
            "ways": [list(way) for way in bounds.ways] if bounds else [],
            "decisions": [_decision(decision, now) for decision in list(self.log)[-most:]],
        }


def in_words(decision: Decision) -> str:
    """One entry of the log."""
    changes = ", ".join(f"{name} = {after} instead of {before}" for name, (before, after) in decision.changes.items())
    what = " ".join(filter(None, (_VERBS.get(decision.kind, decision.kind), changes)))
    rest = [decision.reason]
    if decision.expected:
        rest.append(f"expected: {decision.expected}")
    if decision.measured:
        rest.append(f"measured: {decision.measured}")
    return f"{what}: {'; '.join(rest)}"


def _decision(decision: Decision, now: float) -> dict[str, Any]:
    return {
        "ago_s": round(now - decision.at, 3),
        "kind": decision.kind,
        "reason": decision.reason,
        "changes": {name: {"before": before, "after": after} for name, (before, after) in decision.changes.items()},
        "expected": decision.expected,
        "measured": decision.measured,
        "text": in_words(decision),
    }

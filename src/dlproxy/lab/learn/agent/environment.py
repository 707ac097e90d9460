"""A Gymnasium environment around the production lane in virtual time: windows of telemetry are seen, knobs are turned.

`dlproxy.lab.learn.ProxyEnv`. Used by training.py, and by whoever tries other agents. Not aware of: how agents learn.
"""

from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces
from msgspec import Struct
from numpy.typing import NDArray

from dlproxy.lab.learn.agent.scenarios import Draw, randomised
from dlproxy.lab.simulate.autopilot import SimulatedPilot
from dlproxy.lab.simulate.scenario import Stage, both
from dlproxy.policy.tuning.agent import Eyes, Sight
from dlproxy.policy.tuning.features import MOST, NAMES
from dlproxy.policy.tuning.moves import MOVES, Move
from dlproxy.policy.tuning.pilot import RECENT_S, TICK_S
from dlproxy.policy.tuning.protocol import Knobs, Proposal, Space, cores_of
from dlproxy.policy.tuning.window import Window, joined

State = NDArray[np.float32]
LONGEST_OBJECTIVES = 4.0  # a longer p99 costs no more


class Weights(Struct, frozen=True):
    """Of the objectives: answers in time, the p99 in objectives, cores in use, changes. All but the first cost."""

    goodput: float = 1.0
    p99: float = 0.02
    cores: float = 0.0
    change: float = 0.02


class ProxyEnv(gymnasium.Env[State, np.int64]):
    """Observed are features of policy/tuning/features.py; an action is the index of one of MOVES, and one that is not possible
    leaves the knobs. `guarded`: behind the production pilot, a step lasts until it asks again (half a second to a minute);
    else a move holds at once and a step is a second. `multiplier`: Lagrange's, of misses beyond what is tolerated.
    """

    metadata: dict[str, Any] = {"render_modes": []}  # noqa: RUF012  gymnasium has it so

    def __init__(
        self,
        draw: Draw = randomised,
        *,
        numbers: tuple[int, int] = (0, 1_000_000),
        guarded: bool = False,
        advised: bool = True,
        phase_s: float = 30.0,
        weights: Weights = Weights(),  # noqa: B008  frozen
    ) -> None:
        self.observation_space = spaces.Box(-MOST, MOST, (len(NAMES),), np.float32)
        self.action_space = spaces.Discrete(len(MOVES))
        self.multiplier = 1.0
        self._draw = draw
        self._numbers = numbers
        self._guarded = guarded
        self._advised = advised
        self._phase_s = phase_s
        self._weights = weights

    def set_multiplier(self, value: float) -> None:
        """For environments that run in a row."""
        self.multiplier = value

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[State, dict[str, Any]]:
        """Another scenario, of those that are drawn; `options={"number": N}`: that one."""
        super().reset(seed=seed)
        drawn = int(self.np_random.integers(*self._numbers))
        number = drawn if options is None else int(options.get("number", drawn))
        scenario = self._draw(number)
        self._number, self._until, self._now = number, 2.0 * self._phase_s, 0.0
        self._stage = Stage(scenario, number)
        self._stage.shift_at(self._phase_s)
        self._calls = both(scenario, number, self._phase_s)
        self._next = next(self._calls, None)
        self._eyes = Eyes(advised=self._advised)
        self._recent: list[Window] = []
        self._seen = _Seen()
        self._chosen = _Chosen(self._eyes)
        self._pilot, host = self._stage.fly(self._chosen, self._until + TICK_S, _Host)
        assert isinstance(host, _Host)
        self._host = host
        self._sight = self._until_asked()
        self._settle()
        return self._observed()

    def step(self, action: np.int64) -> tuple[State, float, bool, bool, dict[str, Any]]:
        """Raises gymnasium's errors for actions that are none."""
        option = self._sight.options[int(action)]
        if self._guarded:
            self._carry_out(option)
        elif option is not None:
            self._turn(option.knobs)
        self._sight = self._until_asked()
        reward = self._settle(turned=option is not None)
        state, info = self._observed()
        return state, reward, False, self._now >= self._until, info

    # Time

    def _until_asked(self) -> Sight:
        """Goes on until a decision is wanted, or the end."""
        ticks = 0
        while self._now < self._until:
            window = self._tick()
            ticks += 1
            if self._guarded:
                probe = _Asked()
                if not self._pilot.trying:
                    self._pilot.fork(probe).look(window, self._now)
                if probe.asked is not None:
                    self._pending = window
                    return self._eyes.see(*probe.asked)
                self._host.carry_out(self._pilot.look(window, self._now), self._now)
            else:
                self._recent = [*self._recent[-int(RECENT_S / TICK_S) + 1 :], window]
                if ticks * TICK_S >= 1.0:
                    break
        self._pending = None
        seen = joined(self._recent) if self._recent else self._host.last
        return self._eyes.see(seen, self._pilot.knobs, self._pilot.space, self._now)

    def _tick(self) -> Window:
        """The next window."""
        until, simulation = self._now + TICK_S, self._stage.simulation
        self._host.heard = False
        while self._next is not None and self._next.due_at <= until:
            simulation.heap.run_until(self._next.due_at)
            simulation.send(self._next, self._next.due_at)
            self._next = next(self._calls, None)
        while not self._host.heard:  # looks of a tenth of a second add up to a little more or less
            simulation.heap.run_until(until)
            until += 1e-6
        self._now = self._host.last.at
        self._seen.add(self._host.last, self._stage.scenario.objective_s, self._cores())
        return self._host.last

    def _cores(self) -> float:
        return cores_of(self._pilot.knobs) / max(self._pilot.space.cores, 1)

    # Decisions

    def _carry_out(self, option: Proposal | None) -> None:
        """The pilot asks again what it asked, and this is the answer."""
        self._chosen.answer = option
        if self._pending is not None:
            self._host.carry_out(self._pilot.look(self._pending, self._now), self._now)

    def _turn(self, knobs: Knobs) -> None:
        before, self._pilot.knobs = self._pilot.knobs, dict(knobs)
        same = all(knobs[name] == before[name] for name in ("instances", "threads"))
        instant = self._now if same else self._now + self._stage.scenario.start_s
        self._stage.simulation.heap.at(instant, self._host.turn_to, knobs)
        self._recent = []

    def _observed(self) -> tuple[State, dict[str, Any]]:
        info = {
            "mask": np.array(self._sight.possible, np.bool_),
            "scenario": self._number,
            "now": self._now,
            "in_time": self._seen.in_time,
            "ended": self._seen.ended,
            "knobs": dict(self._pilot.knobs),
        }
        return np.array(self._sight.state, np.float32), info

    def _settle(self, *, turned: bool = False) -> float:
        """The reward of what happened since the last time: a sum over seconds, weighed, less the constraint's price."""
        seen, weights = self._seen, self._weights
        beyond = seen.missed_s - self._pilot.space.tolerated * seen.seconds
        reward = -weights.goodput * seen.missed_s - weights.p99 * seen.p99_s - weights.cores * seen.cores_s
        reward -= (self.multiplier * beyond if beyond > 0.0 else 0.0) + weights.change * turned
        self._beyond, self._seconds = beyond, seen.seconds
        seen.begin()
        return float(reward)

    @property
    def excess(self) -> tuple[float, float]:
        """Of the last step: share of misses beyond what is tolerated times seconds, and its seconds."""
        return self._beyond, self._seconds


class _Seen:
    """Sums since the last step, and counts since the episode began."""

    def __init__(self) -> None:
        self.in_time = self.ended = 0
        self.begin()

    def begin(self) -> None:
        self.seconds = self.missed_s = self.p99_s = self.cores_s = 0.0

    def add(self, window: Window, objective_s: float, cores: float) -> None:
        self.in_time += window.in_time
        self.ended += window.ended
        self.seconds += window.seconds
        self.missed_s += window.seconds * (1.0 - window.in_time / window.ended if window.ended else float(window.arrived > 0))
        self.p99_s += window.seconds * min(window.p99_s / objective_s, LONGEST_OBJECTIVES)
        self.cores_s += window.seconds * cores


class _Host(SimulatedPilot):
    """Keeps a window for the environment, which decides when the pilot hears of it."""

    heard = False
    last: Window

    def told(self, window: Window, now: float) -> None:
        self.last, self.heard = window, True

    def turn_to(self, knobs: Knobs, now: float) -> None:
        self.turn(knobs, now)


class _Chosen:
    """The policy that the pilot sees: the environment's last action."""

    def __init__(self, eyes: Eyes) -> None:
        self.answer: Proposal | None = None
        self._eyes = eyes

    def act(self, window: Window, knobs: Knobs, space: Space, now: float) -> Proposal | None:
        return self.answer

    def learn(self, knobs: Knobs, window: Window, *, kept: bool) -> None:
        self._eyes.learn(knobs, window, kept=kept)


class _Asked:
    """Says nothing and keeps what it was asked."""

    def __init__(self) -> None:
        self.asked: tuple[Window, Knobs, Space, float] | None = None

    def act(self, window: Window, knobs: Knobs, space: Space, now: float) -> None:
        self.asked = window, knobs, space, now

    def learn(self, knobs: Knobs, window: Window, *, kept: bool) -> None:
        pass

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
Course = NDArray[np.float64]
"""After each tick, since the beginning: share of requests that missed the objective, p99 in objectives, part of the cores, each
times seconds."""
ADVISED = np.int64(MOVES.index(Move.ADVISED))
ROUNDING_S = 1e-6  # looks of a tenth of a second add up to a little more or less than a tick
LONGEST_OBJECTIVES = 4.0  # a longer p99 costs no more


class Weights(Struct, frozen=True):
    """Of the objectives: answers in time, the p99 in objectives, cores in use, changes. All but the first cost."""

    goodput: float = 1.0
    p99: float = 0.02
    cores: float = 0.0
    change: float = 0.02


class ProxyEnv(gymnasium.Env[State, np.int64]):  # type: ignore[misc]
    """Observed are features of policy/tuning/features.py; an action is the index of one of MOVES, and one that is not possible
    leaves the knobs. `guarded`: behind the production pilot, a step lasts until it asks again (half a second to a minute);
    else a move holds at once and a step is a second. `versus`: less the rules' reward in the same scenario up to then,
    which changes no preference among policies and takes most of the noise out (common random numbers).
    `multiplier`: Lagrange's, of misses beyond what is tolerated.
    """

    metadata: dict[str, Any] = {"render_modes": []}  # noqa: RUF012  gymnasium has it so

    def __init__(
        self,
        draw: Draw = randomised,
        *,
        numbers: tuple[int, int] = (0, 1_000_000),
        guarded: bool = False,
        advised: bool = True,
        versus: bool = False,
        phase_s: float = 30.0,
        weights: Weights = Weights(),  # noqa: B008  frozen
    ) -> None:
        self.observation_space = spaces.Box(-MOST, MOST, (len(NAMES),), np.float32)
        self.action_space = spaces.Discrete(len(MOVES))
        self.multiplier = 1.0
        self.baselines: dict[int, Course] = {}
        """Courses under the rules, by scenario. May be shared among environments."""
        self._versus = versus
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
        self._pending: Window | None = None
        self._in_time = self._ended = self._settled = 0
        self.course = [np.zeros(3)]
        self._baseline = self._under_the_rules(number) if self._versus else None
        self._chosen = _Chosen(self._eyes)
        self.pilot, host = self._stage.fly(self._chosen, self._until + TICK_S, _Host)
        assert isinstance(host, _Host)
        self._host = host
        self._sight = self._until_asked()
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
        over = self._now >= self._until
        if over and self._baseline is not None:
            seconds, rules_s = TICK_S * (len(self.course) - 1), float(self._baseline[-1][0])
            info["gain_s"] = rules_s - float(self.course[-1][0])
            tolerable_s = max(self.pilot.space.tolerated * seconds, rules_s)
            info["excess"] = (float(self.course[-1][0]) - tolerable_s) / seconds
        return state, reward, False, over, info

    # Time

    def _until_asked(self) -> Sight:
        """Goes on until a decision is wanted, or the end."""
        ticks = 0
        while self._now < self._until:
            window = self._tick()
            ticks += 1
            if self._guarded:
                probe = _Asked()
                if not self.pilot.trying:
                    self.pilot.fork(probe).look(window, self._now)
                if probe.asked is not None:
                    self._pending = window
                    return self._eyes.see(*probe.asked)
                self._host.carry_out(self.pilot.look(window, self._now), self._now)
            else:
                self._recent = [*self._recent[-int(RECENT_S / TICK_S) + 1 :], window]
                if ticks * TICK_S >= 1.0:
                    break
        self._pending = None
        seen = joined(self._recent) if self._recent else self._host.last
        return self._eyes.see(seen, self.pilot.knobs, self.pilot.space, self._now)

    def _tick(self) -> Window:
        """The next window."""
        until, heap = self._host.last_at + TICK_S + ROUNDING_S, self._stage.simulation.heap
        while self._next is not None and self._next.due_at <= until:
            heap.run_until(self._next.due_at)
            self._stage.simulation.send(self._next, self._next.due_at)
            self._next = next(self._calls, None)
        heap.run_until(until)
        self._now, self._host.last_at = until, self._host.last.at
        window, cores = self._host.last, cores_of(self.pilot.knobs) / max(self.pilot.space.cores, 1)
        missed = 1.0 - window.in_time / window.ended if window.ended else float(window.arrived > 0)
        p99 = min(window.p99_s / self._stage.scenario.objective_s, LONGEST_OBJECTIVES)
        self._in_time += window.in_time
        self._ended += window.ended
        self.course.append(self.course[-1] + TICK_S * np.array([missed, p99, cores]))
        return window

    # Decisions

    def _carry_out(self, option: Proposal | None) -> None:
        """The pilot asks again what it asked, and this is the answer."""
        self._chosen.answer = option
        if self._pending is not None:
            self._host.carry_out(self.pilot.look(self._pending, self._now), self._now)

    def _turn(self, knobs: Knobs) -> None:
        before, self.pilot.knobs = self.pilot.knobs, dict(knobs)
        same = all(knobs[name] == before[name] for name in ("instances", "threads"))
        instant = self._now if same else self._now + self._stage.scenario.start_s
        self._stage.simulation.heap.at(instant, self._host.turn_to, knobs)
        self._recent = []

    def _observed(self) -> tuple[State, dict[str, Any]]:
        info = {
            "mask": np.array(self._sight.possible, np.bool_),
            "scenario": self._number,
            "now": self._now,
            "in_time": self._in_time,
            "ended": self._ended,
            "knobs": dict(self.pilot.knobs),
        }
        return np.array(self._sight.state, np.float32), info

    def _settle(self, *, turned: bool = False) -> float:
        """The reward of what happened since the last time."""
        weights, since = self._weights, self._settled
        cost = self.course[-1] - self.course[since]
        if self._baseline is not None:
            now, before = min(len(self.course), len(self._baseline)) - 1, min(since, len(self._baseline) - 1)
            cost = cost - (self._baseline[now] - self._baseline[before])
        else:
            cost[0] -= self.pilot.space.tolerated * TICK_S * (len(self.course) - 1 - since) * self._priced
        self._settled = len(self.course) - 1
        price = np.array([weights.goodput + self.multiplier, weights.p99, weights.cores])
        return -float(price @ cost) - weights.change * turned

    @property
    def _priced(self) -> float:
        return self.multiplier / max(self._weights.goodput + self.multiplier, 1e-9)

    def _under_the_rules(self, number: int) -> Course:
        if number not in self.baselines:
            other = ProxyEnv(self._draw, guarded=self._guarded, phase_s=self._phase_s)
            other.reset(options={"number": number})
            ended = False
            while not ended:
                ended = other.step(ADVISED)[3]
            self.baselines[number] = np.array(other.course)
        return self.baselines[number]


class _Host(SimulatedPilot):
    """Keeps a window for the environment, which decides when the pilot hears of it."""

    last: Window
    last_at = 0.0

    def told(self, window: Window, now: float) -> None:
        self.last = window

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

"""The batching problem as an environment, and agents trained on it: one network for many loads, models and costs of running.

A kind of experiment (experiment.py): its figures say how near an agent comes to the optimum of oracle.py. Not aware of: lanes.
"""

from collections.abc import Callable, Sequence
from functools import lru_cache
from math import log2
from typing import Any, Literal

import gymnasium
import numpy as np
import torch
from gymnasium import spaces
from msgspec import Struct
from numpy.typing import NDArray
from stable_baselines3 import DQN, PPO
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.vec_env import DummyVecEnv
from torch import nn

from dlproxy.lab.learn.agent.network import export, scores_of
from dlproxy.lab.learn.agent.oracle import Chain, Policy, Problem, at_load, evaluate, greedy, solve
from dlproxy.lab.learn.experiment import Experiment, Place, Run, settings

MOST = 16  # rows of a batch
LOADS, FIXED, POWERS = (0.1, 0.9), (0.2, 0.95), (0.0, 20.0)  # drawn from for training
HELD_OUT = tuple((load, fixed, power) for load in (0.2, 0.45, 0.7) for fixed in (0.3, 0.75) for power in (1.0, 5.0, 15.0))
"""(load, fixed part, power) that no training draws exactly, on a grid over what it draws from."""
SIZES = (1, 2, 4, 8, 12, MOST)
EPISODE = 100  # decisions
NEWEST = 0.3  # weight of the newest episode in what a unit of time costs
MOST_REWARD = 10.0
DISCOUNT = 0.97  # rewards are differences from the average, which what was decided twenty batches ago hardly changes
CHECKED = 32  # problems on which parameters are compared
KNOWN = ("filled", "waiting", "empty", "load", "rate", "fixed", "power")

State = NDArray[np.float32]
Drawn = tuple[float, float, float]
"""Load, fixed part of a single request's time, power."""


def state_of(problem: Problem, waiting: int) -> State:
    """What an agent sees: how many wait, and the problem."""
    load = problem.rate * problem.seconds(problem.most) / problem.most
    filled, doubled = min(waiting, 2 * problem.most) / problem.most, log2(1 + waiting) / 4.0
    known = (load, log2(problem.rate), problem.base / problem.seconds(1), log2(1.0 + problem.power) / 2.0)
    return np.array((filled, doubled, float(waiting == 0), *known), np.float32)


class BatchingEnv(gymnasium.Env[State, np.int64]):  # type: ignore[misc]
    """A decision each time that the instance is free and something comes or waits: 0 waits for the next request, the others
    serve SIZES or what there is. An episode is one problem. The reward is the expected time until the next decision less its
    expected cost, in units of what a unit of time has cost so far: so the average cost is minimised (SMART; Das et al.,
    "Solving semi-Markov decision problems using average reward reinforcement learning", Management Science 1999).
    """

    metadata: dict[str, Any] = {"render_modes": []}  # noqa: RUF012  gymnasium has it so

    def __init__(self, problems: Sequence[Drawn], rates: dict[Drawn, float] | None = None, *, shaped: bool = False) -> None:
        self.observation_space = spaces.Box(-16.0, 16.0, (len(KNOWN),), np.float32)
        self.action_space = spaces.Discrete(len(SIZES) + 1)
        self._problems = problems
        self._shaped = shaped  # rewards, by a potential: a help to DQN, and none to PPO, which then waits for nothing
        self._rates: dict[Drawn, float] = {} if rates is None else rates  # cost of a unit of time, shared among environments

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[State, dict[str, Any]]:
        super().reset(seed=seed)
        self._drawn = self._problems[int(self.np_random.integers(len(self._problems)))]
        self._problem = at_load(*self._drawn, most=MOST)
        self._rates.setdefault(self._drawn, _guess(self._problem))
        self._waiting = self._decided = 0
        self._cost = self._time = 0.0
        return state_of(self._problem, self._waiting), {}

    def step(self, action: np.int64) -> tuple[State, float, bool, bool, dict[str, Any]]:
        problem = self._problem
        rows = served(self._waiting, int(action))
        if rows:
            seconds = problem.seconds(rows)
            cost = self._waiting * seconds + problem.rate * seconds**2 / 2.0 + problem.power * seconds
            after = self._waiting - rows + int(self.np_random.poisson(problem.rate * seconds))
        else:
            seconds = 1.0 / problem.rate
            cost, after = self._waiting * seconds, self._waiting + 1
        cost += problem.lost * max(after - problem.waiting, 0)
        before, self._waiting = self._waiting, min(after, problem.waiting)
        self._cost, self._time, self._decided = self._cost + cost, self._time + seconds, self._decided + 1
        if self._shaped:
            cost += DISCOUNT * drained(problem, self._waiting) - drained(problem, before)
        reward = (seconds - cost / self._rates[self._drawn]) / problem.seconds(MOST)
        over = self._decided >= EPISODE
        if over:
            self._rates[self._drawn] += NEWEST * (self._cost / self._time - self._rates[self._drawn])
        return state_of(problem, self._waiting), float(np.clip(reward, -MOST_REWARD, MOST_REWARD)), False, over, {}


def drained(problem: Problem, waiting: int) -> float:
    """What those that wait will cost until they are gone, if batches are full and nothing is random: a potential, which tells
    early what a long queue costs and changes no best policy (Ng, Harada and Russell, "Policy invariance under reward
    transformations", ICML 1999).
    """
    return waiting**2 / (2.0 * (problem.most / problem.seconds(problem.most) - problem.rate))


def served(waiting: int, action: int) -> int:
    """Rows of the batch; 0: none, as nothing is wanted or waits."""
    return min(SIZES[action - 1], waiting) if action else 0


def _guess(problem: Problem) -> float:
    """What a unit of time may cost, by the best of a few sizes of batches as if each were a queue of single services."""
    costs = []
    for rows in SIZES:
        seconds = problem.seconds(rows)
        load = problem.rate * seconds / rows
        if load < 1.0:
            queue = rows * load**2 / (2.0 * (1.0 - load))
            costs.append((rows - 1) / 2.0 + queue + problem.rate * seconds + problem.power * load)
    return min(costs)


def problems(count: int, seed: int) -> list[Drawn]:
    """Drawn for training."""
    random = np.random.default_rng((77, seed))
    return [tuple(float(random.uniform(*bounds)) for bounds in (LOADS, FIXED, POWERS)) for _ in range(count)]  # type: ignore[misc]


class Settings(Struct, forbid_unknown_fields=True, kw_only=True):
    """`problems`: that it learns from, drawn at random."""

    algorithm: Literal["dqn", "ppo"] = "dqn"
    steps: int = 150_000
    chunk: int = 15_000
    problems: int = 64
    hidden: tuple[int, ...] = (64, 64)
    environments: int = 8


def train(experiment: Experiment, place: Place) -> Run:
    """One seed. Raises LearnError."""
    wanted: Settings = settings(experiment, Settings)
    torch.set_num_threads(place.threads)
    drawn, rates = problems(wanted.problems, place.seed), dict[Drawn, float]()
    envs = DummyVecEnv(
        [lambda: BatchingEnv(drawn, rates, shaped=wanted.algorithm == "dqn") for _ in range(wanted.environments)]
    )
    envs.seed(place.seed)
    kind: type[BaseAlgorithm] = DQN if wanted.algorithm == "dqn" else PPO
    algorithm = kind("MlpPolicy", envs, **_options(wanted), seed=place.seed, device="cpu")
    best = _Best(drawn[:CHECKED], wanted.chunk, place.tell)
    algorithm.learn(wanted.steps, callback=best)
    best.restore(algorithm)
    export(scores_of(algorithm), place.folder / "model.onnx", KNOWN, [f"serve {size}" for size in (0, *SIZES)])
    found = [of_optimum(algorithm, held) for held in HELD_OUT]
    seen = [of_optimum(algorithm, one) for one in drawn[:CHECKED]]
    at_once = [optimum / greedily for optimum, greedily in map(least, HELD_OUT)]
    figures = {
        "of_optimum": float(np.mean(found)),
        "worst": min(found),
        "seen_of_optimum": float(np.mean(seen)),
        "at_once": float(np.mean(at_once)),
        "at_once_worst": min(at_once),
    }
    return Run(seed=place.seed, figures=figures, curves={"of the optimum": best.curve})


class _Best(BaseCallback):  # type: ignore[misc]
    """Keeps the parameters that did best on problems that it learns from."""

    def __init__(self, checked: Sequence[Drawn], every: int, tell: Callable[[str], None]) -> None:
        super().__init__()
        self.curve: list[float] = []
        self._checked = checked
        self._every = every
        self._tell = tell
        self._kept: dict[str, torch.Tensor] = {}

    def _on_step(self) -> bool:
        if self.num_timesteps >= self._every * (len(self.curve) + 1):
            found = float(np.mean([of_optimum(self.model, drawn) for drawn in self._checked]))
            if not self.curve or found > max(self.curve):
                self._kept = {name: value.clone() for name, value in self.model.policy.state_dict().items()}
            self.curve.append(found)
            self._tell(f"  {self.num_timesteps} steps: {found:.3f} of the optimum")
        return True

    def restore(self, algorithm: BaseAlgorithm) -> None:
        if self._kept:
            algorithm.policy.load_state_dict(self._kept)


def _options(wanted: Settings) -> dict[str, Any]:
    if wanted.algorithm == "dqn":
        return {
            "policy_kwargs": {"net_arch": list(wanted.hidden), "activation_fn": nn.ReLU},
            "gamma": DISCOUNT,
            "learning_rate": lambda left: 1e-3 * left,
            "buffer_size": 100_000,
            "learning_starts": 1_000,
            "train_freq": 1,
            "gradient_steps": 2,
            "batch_size": 256,
            "target_update_interval": 1_000,
            "exploration_fraction": 0.3,
            "exploration_initial_eps": 0.15,  # more would spoil what a unit of time costs, and with it what is learnt
            "exploration_final_eps": 0.02,
        }
    sizes = {"pi": list(wanted.hidden), "vf": list(wanted.hidden)}
    return {
        "policy_kwargs": {"net_arch": sizes, "activation_fn": nn.ReLU},
        "gamma": DISCOUNT,
        "learning_rate": lambda left: 1e-3 * left,
        "n_steps": 128,
        "batch_size": 256,
        "n_epochs": 8,
        "gae_lambda": 0.9,
        "ent_coef": 0.005,
    }


def policy_of(algorithm: BaseAlgorithm, problem: Problem) -> Policy:
    """What the agent does for each number that waits, without exploring."""
    states = np.array([state_of(problem, waiting) for waiting in range(problem.waiting + 1)])
    actions = algorithm.predict(states, deterministic=True)[0]
    return np.array([served(waiting, int(action)) for waiting, action in enumerate(actions)])


@lru_cache(maxsize=1024)
def least(drawn: Drawn) -> tuple[float, float]:
    """Costs of a unit of time: the optimum, and where whatever waits is served at once."""
    problem = at_load(*drawn, most=MOST)
    chain = Chain(problem)
    return solve(problem, chain)[0], evaluate(chain, greedy(problem))[0]


def of_optimum(algorithm: BaseAlgorithm, drawn: Drawn) -> float:
    """The least cost by the agent's, both exact: 1 is optimal."""
    problem = at_load(*drawn, most=MOST)
    return least(drawn)[0] / evaluate(Chain(problem), policy_of(algorithm, problem))[0]

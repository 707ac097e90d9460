"""Trains the agent that turns knobs: DQN or PPO behind the production pilot, from the rules on, and exports its network.

A kind of experiment (experiment.py): one seed. Interrupted, the same command goes on from the last checkpoint.
Not aware of: who serves the network.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import msgspec
import numpy as np
import torch
from msgspec import Struct
from stable_baselines3 import DQN, PPO
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.vec_env import DummyVecEnv
from torch import nn

from dlproxy.lab.learn.agent.environment import ADVISED, Course, ProxyEnv, State
from dlproxy.lab.learn.agent.network import Cautious, export, scores_of
from dlproxy.lab.learn.agent.performance import PerformanceModel, fit, record
from dlproxy.lab.learn.agent.recorded import recorded
from dlproxy.lab.learn.agent.scenarios import Draw, plain, randomised
from dlproxy.lab.learn.experiment import Experiment, Place, Run, settings
from dlproxy.policy.tuning.agent import best
from dlproxy.policy.tuning.moves import MOVES

VALIDATION, TEST, RECORDED = 500_000, 600_000, 700_000  # numbers of scenarios from which on they are kept apart
CAUTIONS = (0.0, 0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 6.4, 1e3)  # the last one is the rules
HARM = 0.5  # seconds' worth of requests of one scenario that a caution may lose at most, of those that it is chosen on
SURE = 30.0  # makes probabilities of what was predicted, for PPO
PENALTY = 0.2  # of what the rules do not advise, before anything is known
EXPLORE = 0.1  # of DQN's moves are drawn at random: two of an episode
AHEAD_S = 10.0  # seconds for which a move is taken to last by the performance model
MOST_MULTIPLIER, MULTIPLIER_STEP = 10.0, 0.05


class Settings(Struct, forbid_unknown_fields=True, kw_only=True):
    """`scenarios`: that it learns from. `start`: "rules" by imitation, "model" beyond that by what the performance model says,
    "none". `recorded`: scenarios that this is learnt from. `kept`: scenarios each for choosing a caution, and for telling.
    `records`: folder of a server ([autopilot] record) whose models and loads it learns from, instead of random ones.
    """

    algorithm: Literal["dqn", "ppo"] = "dqn"
    steps: int = 10_000
    chunk: int = 1_000
    scenarios: int = 150
    phase_s: float = 30.0
    randomised: bool = True
    advised: bool = True
    start: Literal["none", "rules", "model"] = "model"
    recorded: int = 30
    kept: int = 24
    hidden: tuple[int, ...] = (64, 64)
    records: str = ""
    environments: int = 2
    discount: float = 0.97
    learning_rate: float = 3e-4


class Progress(Struct):
    """What a run that goes on needs beside the algorithm's own checkpoint."""

    steps: int = 0
    multiplier: float = 1.0
    gains: list[float] = []
    excess: list[float] = []


def train(experiment: Experiment, place: Place) -> Run:
    """One seed. Raises LearnError."""
    wanted: Settings = settings(experiment, Settings)
    torch.set_num_threads(place.threads)
    torch.manual_seed(place.seed)
    draw = recorded(Path(wanted.records)) if wanted.records else randomised if wanted.randomised else plain
    model = _performance(wanted, draw, place) if wanted.start == "model" else None
    baselines = _read_courses(place.folder / "rules.npz")
    algorithm, progress = _begun(wanted, draw, place, model, baselines)
    while progress.steps < wanted.steps:
        watch = _Watch()
        algorithm.learn(min(wanted.chunk, wanted.steps - progress.steps), callback=watch, reset_num_timesteps=False)
        progress.steps = int(algorithm.num_timesteps)
        progress.gains.append(float(np.mean(watch.gains or [0.0])))
        progress.excess.append(float(np.mean(watch.excess or [0.0])))
        step = MULTIPLIER_STEP * len(watch.excess) * progress.excess[-1]
        progress.multiplier = float(np.clip(progress.multiplier + step, 0.0, MOST_MULTIPLIER))
        algorithm.get_env().env_method("set_multiplier", progress.multiplier)
        _save(algorithm, progress, baselines, place.folder)
        place.tell(f"  {progress.steps} of {wanted.steps} steps: {progress.gains[-1]:+.2f} beside the rules")
    return _finished(wanted, draw if wanted.records else randomised, scores_of(algorithm), progress, place)


def _finished(wanted: Settings, draw: Draw, scores: nn.Module, progress: Progress, place: Place) -> Run:
    chosen = range(VALIDATION, VALIDATION + wanted.kept)
    cautions = CAUTIONS if wanted.advised else (0.0,)
    known: dict[int, Course] = {}
    seen: list[State] = []
    trials = {caution: gains(Cautious(scores, caution), chosen, wanted, known, draw, seen) for caution in cautions}
    harmless = [caution for caution in cautions if min(trials[caution]) >= -HARM] or [cautions[-1]]
    caution = max(harmless, key=lambda one: (np.mean(trials[one]), one))
    place.tell(f"  caution {caution:g}: " + ", ".join(f"{one:g} {np.mean(found):+.3f}" for one, found in trials.items()))
    final = Cautious(scores, caution)
    bounds = np.stack([np.min(seen, 0), np.max(seen, 0)], 1).tolist()
    more = {"dlproxy.seen": json.dumps(bounds), "dlproxy.advised": "yes" if wanted.advised else "no"}
    export(final, place.folder / "model.onnx", more=more)
    told = gains(final, range(TEST, TEST + wanted.kept), wanted, known, draw, seen)
    figures = {
        "gain_s": float(np.mean(told)),
        "worst_s": min(told),
        "no_worse": float(np.mean(np.array(told) >= 0.0)),
        "caution": min(caution, 1e3),
        "multiplier": progress.multiplier,
    }
    return Run(seed=place.seed, figures=figures, curves={"gain": progress.gains})


def gains(
    scores: nn.Module, numbers: range, wanted: Settings, known: dict[int, Course], draw: Draw, seen: list[State]
) -> list[float]:
    """In each scenario: seconds' worth of requests that met the objective more than under the rules, whose courses are kept in
    `known`. States that are seen go to `seen`.
    """
    env = ProxyEnv(draw, guarded=True, advised=wanted.advised, versus=True, phase_s=wanted.phase_s)
    env.baselines = known
    found = []
    for number in numbers:
        state, info = env.reset(options={"number": number})
        ended = False
        while not ended:
            seen.append(state)
            with torch.no_grad():
                values = scores(torch.from_numpy(state)[None])[0].tolist()
            state, _, _, ended, info = env.step(np.int64(best(values, info["mask"].tolist())))
        found.append(float(env.baselines[number][-1][0] - env.course[-1][0]))
    return found


# Where it begins


def _performance(wanted: Settings, draw: Draw, place: Place) -> PerformanceModel:
    path = place.folder / "performance.pt"
    if path.exists():
        model = PerformanceModel()
        model.load_state_dict(torch.load(path, weights_only=True))
        model.eval()
        return model
    first = RECORDED + place.seed * wanted.recorded
    data = record(draw, range(first, first + wanted.recorded), phase_s=wanted.phase_s, seed=place.seed)
    model = fit(data, seed=place.seed)
    torch.save(model.state_dict(), path)
    return model


def _begun(
    wanted: Settings, draw: Draw, place: Place, model: PerformanceModel | None, baselines: dict[int, Course]
) -> tuple[BaseAlgorithm, Progress]:
    """As the last checkpoint has it, or anew."""

    def make() -> ProxyEnv:
        env = ProxyEnv(
            draw,
            numbers=(0, wanted.scenarios),
            guarded=True,
            advised=wanted.advised,
            versus=True,
            phase_s=wanted.phase_s,
        )
        env.baselines = baselines
        return env

    envs = DummyVecEnv([make for _ in range(wanted.environments)])
    kind: type[BaseAlgorithm] = DQN if wanted.algorithm == "dqn" else PPO
    saved, replay = place.folder / "checkpoint.zip", place.folder / "replay.pkl"
    if saved.exists():
        progress = msgspec.json.decode((place.folder / "progress.json").read_bytes(), type=Progress)
        algorithm = kind.load(saved, env=envs, device="cpu")
        if replay.exists():
            algorithm.load_replay_buffer(replay)
        envs.env_method("set_multiplier", progress.multiplier)
        return algorithm, progress
    envs.seed(place.seed)
    algorithm = kind("MlpPolicy", envs, **_options(wanted), seed=place.seed, device="cpu")
    if wanted.start != "none":
        _imitate(algorithm, draw, wanted, model, place.seed)
    return algorithm, Progress()


def _options(wanted: Settings) -> dict[str, Any]:
    common = {"gamma": wanted.discount, "learning_rate": wanted.learning_rate}
    if wanted.algorithm == "dqn":
        return common | {
            "policy_kwargs": {"net_arch": list(wanted.hidden), "activation_fn": nn.ReLU},
            "buffer_size": 50_000,
            "learning_starts": 500 if wanted.start == "none" else 200,
            "train_freq": 4,
            "gradient_steps": 4,
            "target_update_interval": 500,
            "exploration_fraction": 1.0,
            "exploration_initial_eps": EXPLORE,
            "exploration_final_eps": EXPLORE,
            "batch_size": 64,
        }
    sizes = {"pi": list(wanted.hidden), "vf": list(wanted.hidden)}
    return common | {
        "policy_kwargs": {"net_arch": sizes, "activation_fn": nn.ReLU},
        "n_steps": 256,
        "batch_size": 128,
        "n_epochs": 5,
        "ent_coef": 0.003,
    }


def _imitate(algorithm: BaseAlgorithm, draw: Draw, wanted: Settings, model: PerformanceModel | None, seed: int) -> None:
    """At first it does as the rules advise, wherever they are: behaviour cloning on states that they come to."""
    data = record(draw, range(RECORDED, RECORDED + 10), phase_s=wanted.phase_s, seed=seed)
    states = torch.from_numpy(data.states)
    scores = scores_of(algorithm)
    wish = torch.full((len(states), len(MOVES)), -PENALTY)
    if model is not None:
        wish = (AHEAD_S * model.gains(states)).clamp(-2.0, -PENALTY / 2.0)
    wish[:, int(ADVISED)] = 0.0
    optimiser = torch.optim.Adam(scores.parameters(), lr=1e-3)
    for _ in range(20):
        for part in torch.randperm(len(states)).split(64):
            found = scores(states[part])
            loss = nn.functional.mse_loss(found, wish[part])
            if wanted.algorithm == "ppo":
                loss = nn.functional.cross_entropy(found, (SURE * wish[part]).softmax(1))
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
    if isinstance(algorithm, DQN):
        algorithm.q_net_target.load_state_dict(algorithm.q_net.state_dict())


# What is kept


class _Watch:
    """A callback of stable-baselines3: what episodes brought that ended."""

    def __init__(self) -> None:
        self.gains: list[float] = []
        self.excess: list[float] = []

    def __call__(self, names: dict[str, Any], _: dict[str, Any]) -> bool:
        for info in names["infos"]:
            if "gain_s" in info:
                self.gains.append(info["gain_s"])
                self.excess.append(info["excess"])
        return True


def _save(algorithm: BaseAlgorithm, progress: Progress, baselines: dict[int, Course], folder: Path) -> None:
    """The checkpoint last: what it stands on is there by then."""
    courses: dict[str, Any] = {str(number): course for number, course in baselines.items()}
    _whole(folder / "rules.npz", lambda path: np.savez(path, **courses))
    if isinstance(algorithm, DQN):
        _whole(folder / "replay.pkl", algorithm.save_replay_buffer)
    _whole(folder / "progress.json", lambda path: path.write_bytes(msgspec.json.encode(progress)))
    _whole(folder / "checkpoint.zip", algorithm.save)


def _whole(path: Path, write: Callable[[Path], object]) -> None:
    """Written beside it and then put in its place, so that a run that is killed leaves no half of it."""
    part = path.with_name(f"part-{path.name}")
    write(part)
    part.replace(path)


def _read_courses(path: Path) -> dict[int, Course]:
    if not path.exists():
        return {}
    with np.load(path) as found:
        return {int(number): found[number] for number in found.files}

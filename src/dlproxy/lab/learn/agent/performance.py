"""A performance model: what a move will bring, learnt from recorded windows and the moves between them.

Several networks, each of another sample of the data: where they disagree there was little to learn from, and the worse is
believed. Used by training.py. Not aware of: agents.
"""

from collections.abc import Sequence

import numpy as np
import torch
from msgspec import Struct
from numpy.typing import NDArray
from torch import nn

from dlproxy.lab.learn.agent.environment import ADVISED, ProxyEnv
from dlproxy.lab.learn.agent.network import network
from dlproxy.lab.learn.agent.scenarios import Draw
from dlproxy.policy.tuning.features import NAMES
from dlproxy.policy.tuning.moves import MOVES

MEMBERS = 5
DOUBT = 2.0  # standard deviations among the members that count against a move
AHEAD = 3  # steps of a second over which a move is judged: its batches are queued before it
SOME = 0.5  # of the recorded moves are drawn at random, the others are the rules'

Array = NDArray[np.float32]


class Recorded(Struct, frozen=True):
    """`states` [N, features], `moves` [N], `outcomes` [N, 2]: share that missed the objective and p99 in objectives, since."""

    states: Array
    moves: NDArray[np.int64]
    outcomes: Array

    def __len__(self) -> int:
        return len(self.moves)


def record(draw: Draw, numbers: Sequence[int], *, phase_s: float, seed: int) -> Recorded:
    """Windows of these scenarios under the rules with random moves among theirs, each with what came of it."""
    random = np.random.default_rng(seed)
    env = ProxyEnv(draw, phase_s=phase_s)
    states, moves, outcomes = [], [], []
    for number in numbers:
        state, info = env.reset(options={"number": number})
        seen, ended = [], False
        while not ended:
            possible = np.flatnonzero(info["mask"])
            move = int(random.choice(possible)) if random.random() < SOME else int(ADVISED)
            seen.append((state, move, len(env.course) - 1))
            state, _, _, ended, info = env.step(np.int64(move))
        course = np.array(env.course)
        marks = [mark for *_, mark in seen] + [len(course) - 1]
        for place, (before, move, mark) in enumerate(seen[: len(seen) - AHEAD + 1]):
            until = marks[place + AHEAD]
            states.append(before)
            moves.append(move)
            outcomes.append((course[until] - course[mark])[:2] / (0.5 * (until - mark)))
    return Recorded(np.array(states, np.float32), np.array(moves), np.array(outcomes, np.float32))


class PerformanceModel(nn.Module):  # type: ignore[misc]
    """[N, features] to the predicted outcomes of every move: [members, N, moves, 2]."""

    def __init__(self, hidden: Sequence[int] = (64, 64)) -> None:
        super().__init__()
        self.members = nn.ModuleList([network(hidden, len(NAMES), 2 * len(MOVES)) for _ in range(MEMBERS)])

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        return torch.stack([member(states).reshape(len(states), len(MOVES), 2) for member in self.members])

    def gains(self, states: torch.Tensor) -> torch.Tensor:
        """[N, moves]: by how much less will miss the objective than as the rules advise, at the least; 0 for theirs."""
        with torch.no_grad():
            missed = self(states)[..., 0]
        gains = missed[:, :, int(ADVISED), None] - missed
        least: torch.Tensor = gains.mean(0) - DOUBT * gains.std(0)
        least[:, int(ADVISED)] = 0.0
        return least

    def error(self, data: Recorded) -> tuple[float, float]:
        """Mean absolute errors: of the share that misses the objective, and of the p99 in objectives."""
        with torch.no_grad():
            found = self(torch.from_numpy(data.states)).mean(0)[torch.arange(len(data)), torch.from_numpy(data.moves)]
        errors = (found - torch.from_numpy(data.outcomes)).abs().mean(0)
        return float(errors[0]), float(errors[1])


def fit(data: Recorded, *, seed: int, epochs: int = 30, batch: int = 32) -> PerformanceModel:
    """Each member on a sample with replacement (Breiman, "Bagging predictors", 1996), by Adam on squared errors."""
    torch.manual_seed(seed)
    random = np.random.default_rng(seed)
    model = PerformanceModel()
    states, moves, outcomes = (torch.from_numpy(array) for array in (data.states, data.moves, data.outcomes))
    for member in model.members:
        sample = torch.from_numpy(random.integers(len(data), size=len(data)))
        optimiser = torch.optim.Adam(member.parameters(), lr=1e-3, weight_decay=1e-5)
        for _ in range(epochs):
            order = sample[torch.from_numpy(random.permutation(len(sample)))]
            for part in order.split(batch):
                found = member(states[part]).reshape(len(part), len(MOVES), 2)[torch.arange(len(part)), moves[part]]
                loss = nn.functional.mse_loss(found, outcomes[part])
                optimiser.zero_grad()
                loss.backward()
                optimiser.step()
    model.eval()
    return model

"""The network that scores moves, and its way out: an ONNX file that says which features and moves it knows.

Used by training.py and performance.py. Not aware of: how it is trained, who serves it.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

import onnx
import torch
from stable_baselines3 import DQN
from stable_baselines3.common.base_class import BaseAlgorithm
from torch import nn

from dlproxy.lab.learn.agent.environment import ADVISED
from dlproxy.policy.tuning.features import NAMES
from dlproxy.policy.tuning.moves import MOVES

INPUT, OUTPUT = "state", "scores"
MOVE_NAMES = tuple([move.name for move in MOVES])


def network(hidden: Sequence[int], inputs: int = len(NAMES), outputs: int = len(MOVES)) -> nn.Sequential:
    """[N, inputs] to [N, outputs], with as many hidden layers as there are sizes."""
    layers: list[nn.Module] = []
    for size in hidden:
        layers += [nn.Linear(inputs, size), nn.ReLU()]
        inputs = size
    return nn.Sequential(*layers, nn.Linear(inputs, outputs))


class Cautious(nn.Module):  # type: ignore[misc]
    """Departs from the rules only for what scores more than `caution` higher than what they advise."""

    def __init__(self, scores: nn.Module, caution: float) -> None:
        super().__init__()
        self.scores = scores
        bonus = torch.zeros(len(MOVES))
        bonus[int(ADVISED)] = caution
        self.register_buffer("bonus", bonus)

    def forward(self, state: torch.Tensor) -> torch.Tensor:
        scores: torch.Tensor = self.scores(state) + self.bonus
        return scores


def scores_of(algorithm: BaseAlgorithm) -> nn.Module:
    """What an algorithm of stable-baselines3 has learnt, the very parameters: Q-values, or logits."""
    if isinstance(algorithm, DQN):
        return algorithm.q_net.q_net
    return nn.Sequential(*algorithm.policy.mlp_extractor.policy_net, algorithm.policy.action_net)


def export(
    scores: nn.Module,
    path: Path,
    features: Sequence[str] = NAMES,
    moves: Sequence[str] = MOVE_NAMES,
    more: Mapping[str, str] = {},
) -> None:
    """FP32 [N, features] `state` to FP32 [N, moves] `scores`, with the names of both, and `more`, in the metadata."""
    example = torch.zeros(2, len(features))
    program = torch.onnx.export(
        scores.eval(),
        (example,),
        input_names=[INPUT],
        output_names=[OUTPUT],
        dynamic_shapes=({0: torch.export.Dim("N")},),
        dynamo=True,
        verbose=False,
    )
    assert program is not None
    model = program.model_proto
    for key, value in {"dlproxy.features": ",".join(features), "dlproxy.moves": ",".join(moves), **more}.items():
        found = model.metadata_props.add()
        found.key, found.value = key, value
    onnx.save(model, path)

"""A small network from what a batch is to quantiles of its time, trained by pinball loss. Called by training.py.

Not aware of: where the times come from, what the quantiles are for.
"""

from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from dlproxy.lab.learn.networks.export import export
from dlproxy.lab.learn.service.fitted import QUANTILES
from dlproxy.lab.learn.service.times import Numbers, Times

WIDTH = 32
BATCH = 128
RATE = 3e-3
PATIENCE = 15  # epochs without gain


class Quantiles(nn.Module):  # type: ignore[misc]
    """Features FP32 [N, names] to seconds FP32 [N, QUANTILES], of which none is below the one before.

    It works in logarithms, of the features too: what grows by a power of rows or length is a line there, which is learnt by a
    layer of its own and goes on beyond what was seen.
    """

    def __init__(self, known: Times) -> None:
        super().__init__()
        features = _logs(torch.tensor(known.features, dtype=torch.float32))
        logs = np.log(known.seconds)
        self.register_buffer("middle", features.mean(dim=0))
        self.register_buffer("spread", features.std(dim=0).clamp(min=1e-6))
        self.at, self.by = float(logs.mean()), max(float(logs.std()), 1e-6)
        count = len(known.names)
        self.line = nn.Linear(count, 1)
        self.curve = nn.Sequential(
            nn.Linear(count, WIDTH), nn.Tanh(), nn.Linear(WIDTH, WIDTH), nn.Tanh(), nn.Linear(WIDTH, len(QUANTILES))
        )

    def logs(self, features: Tensor) -> Tensor:
        """Of the seconds."""
        scaled = (_logs(features) - self.middle) / self.spread
        first, *steps = self.curve(scaled).split(1, dim=1)
        found = [first + self.line(scaled)]
        for step in steps:
            found.append(found[-1] + nn.functional.softplus(step - 2.0))
        return torch.cat(found, dim=1) * self.by + self.at

    def forward(self, features: Tensor) -> Tensor:
        return self.logs(features).exp()


def train(known: Times, chosen: Times, *, epochs: int, seed: int) -> tuple[Quantiles, list[float]]:
    """With the weights that are best on `chosen`; and the loss there, epoch by epoch, until it has not fallen for PATIENCE."""
    torch.manual_seed(seed)
    random = torch.Generator().manual_seed(seed)
    network = Quantiles(known)
    by = torch.optim.Adam(network.parameters(), RATE)
    features, logs = _tensors(known)
    there = _tensors(chosen)
    losses: list[float] = []
    best = {name: value.clone() for name, value in network.state_dict().items()}
    for _ in range(epochs):
        for places in torch.randperm(len(logs), generator=random).split(BATCH):
            by.zero_grad()
            _pinball(network.logs(features[places]), logs[places]).backward()
            by.step()
        with torch.no_grad():
            losses.append(float(_pinball(network.logs(there[0]), there[1])))
        if losses[-1] <= min(losses):
            best = {name: value.clone() for name, value in network.state_dict().items()}
        elif len(losses) - losses.index(min(losses)) > PATIENCE:
            break
    network.load_state_dict(best)
    return network.eval(), losses


def predict(network: Quantiles, times: Times) -> Numbers:
    """[batches, QUANTILES], seconds."""
    with torch.no_grad():
        found: Numbers = network(torch.tensor(times.features, dtype=torch.float32)).double().numpy()
    return found


def save(network: Quantiles, known: Times, path: Path) -> None:
    """ONNX: `features` FP32 [N, names] to `quantiles` FP32 [N, QUANTILES]. Raises LearnError."""
    export(network, path, [_tensors(known.part(0.0, 0.1))[0]], inputs=["features"], outputs=["quantiles"])


def _logs(features: Tensor) -> Tensor:
    return features.sign() * features.abs().log1p()


def _tensors(times: Times) -> tuple[Tensor, Tensor]:
    return torch.tensor(times.features, dtype=torch.float32), torch.tensor(np.log(times.seconds), dtype=torch.float32)


def _pinball(predicted: Tensor, logs: Tensor) -> Tensor:
    over = logs[:, None] - predicted
    levels = torch.tensor(QUANTILES)
    return torch.maximum(levels * over, (levels - 1.0) * over).mean()

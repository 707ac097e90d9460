"""Networks for scikit-learn's digits, 8x8 grey values of 0 to 16, as `networks.py:digits_cnn`: a function of that name builds
each, with its weights if they lie beside this file (as NAME.pt).

Copied to where the weights are. Not aware of: training (digits.py).
"""

from pathlib import Path

import torch
from torch import Tensor, nn

INK = 1.0 / 16.0
CLASSES = 10


class DigitsCnn(nn.Module):
    """[n, 1, 8, 8] to scores [n, 10]; wide enough for its convolutions to take the time."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(1, 64, 3, padding=1), nn.Conv2d(64, 128, 3, padding=1)
        self.third = nn.Conv2d(128, 128, 3, padding=1)
        self.normal = nn.ModuleList([nn.BatchNorm2d(64), nn.BatchNorm2d(128), nn.BatchNorm2d(128)])
        self.pool = nn.MaxPool2d(2)
        self.scores = nn.Linear(128 * 4, CLASSES)

    def forward(self, image: Tensor) -> Tensor:
        found = torch.relu(self.normal[0](self.first(image * INK)))
        found = self.pool(torch.relu(self.normal[1](self.second(found))))
        found = self.pool(torch.relu(self.normal[2](self.third(found))))
        return self.scores(torch.flatten(found, 1))


class DigitsLstm(nn.Module):
    """[n, 8, 8], row by row from the top, to scores [n, 10]."""

    def __init__(self) -> None:
        super().__init__()
        self.reader = nn.LSTM(8, 256, batch_first=True)
        self.scores = nn.Linear(256, CLASSES)

    def forward(self, lines: Tensor) -> Tensor:
        read, _ = self.reader(lines * INK)
        return self.scores(read[:, -1])


class DigitsMlp(nn.Module):
    """[n, 64] to scores [n, 10]."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(64, 1024), nn.ReLU(), nn.Linear(1024, 1024), nn.ReLU(), nn.Linear(1024, CLASSES))

    def forward(self, pixels: Tensor) -> Tensor:
        return self.layers(pixels * INK)


def digits_cnn() -> nn.Module:
    return _with_weights(DigitsCnn(), "digits_cnn")


def digits_lstm() -> nn.Module:
    return _with_weights(DigitsLstm(), "digits_lstm")


def digits_mlp() -> nn.Module:
    return _with_weights(DigitsMlp(), "digits_mlp")


def _with_weights(network: nn.Module, name: str) -> nn.Module:
    path = Path(__file__).with_name(f"{name}.pt")
    if path.exists():
        network.load_state_dict(torch.load(path, weights_only=True))
    return network.eval()

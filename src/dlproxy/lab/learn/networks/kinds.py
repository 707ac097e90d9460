"""The reference networks: what each is made of, and in which shape it wants its examples.

Called by training.py and by other parts that want one of them. Not aware of: data sets, how they are trained.
"""

from collections.abc import Callable, Sequence
from itertools import pairwise
from math import prod
from types import MappingProxyType
from typing import Any

import torch
from msgspec import Struct
from torch import nn

from dlproxy.lab.learn.experiment import LearnError

Shape = tuple[int, ...]


class Make(Struct, frozen=True, kw_only=True):
    """`shape`: of one example, as the kind wants it. `sizes`: see NETWORKS. `outputs`: how many numbers it answers with."""

    shape: Shape
    sizes: Sequence[int]
    outputs: int
    dropout: float = 0.0


class Kind(Struct, frozen=True):
    """`view`: flat, image or series. `least`: how many sizes it needs. `sizes`: what they are, in words."""

    view: str
    sizes: str
    least: int
    make: Callable[[Make], nn.Module]


def mlp(make: Make) -> nn.Module:
    """[n, columns] to [n, outputs]."""
    return _dense([prod(make.shape), *make.sizes, make.outputs], make.dropout)


def cnn(make: Make) -> nn.Module:
    """[n, channels, height, width] to [n, outputs]: 3 x 3 convolutions, normalised; from the second on every other is pooled.

    As VGG (Simonyan and Zisserman 2015) has them, small, with batch normalisation (Ioffe and Szegedy 2015).
    """
    channels, height, width = make.shape
    layers: list[nn.Module] = []
    for number, size in enumerate(make.sizes, 1):
        layers += [nn.Conv2d(channels, size, 3, padding=1), nn.BatchNorm2d(size), nn.ReLU()]
        channels = size
        if (number % 2 == 0 or number == len(make.sizes)) and min(height, width) >= 2:
            layers.append(nn.MaxPool2d(2))
            height, width = height // 2, width // 2
    head = [nn.Flatten(), nn.Dropout(make.dropout), nn.Linear(channels * height * width, make.outputs)]
    return nn.Sequential(*layers, *head)


class Block(nn.Module):  # type: ignore[misc]
    """Two 3 x 3 convolutions beside a way around them (He et al. 2016); `stride` 2 halves height and width."""

    def __init__(self, channels: int, size: int, stride: int) -> None:
        super().__init__()
        first = nn.Conv2d(channels, size, 3, stride, padding=1, bias=False)
        second = nn.Conv2d(size, size, 3, padding=1, bias=False)
        self.bends = nn.Sequential(first, nn.BatchNorm2d(size), nn.ReLU(), second, nn.BatchNorm2d(size))
        same = stride == 1 and channels == size
        around = nn.Conv2d(channels, size, 1, stride, bias=False)
        self.around = nn.Identity() if same else nn.Sequential(around, nn.BatchNorm2d(size))

    def forward(self, given: Any) -> Any:
        return torch.relu(self.bends(given) + self.around(given))


def residual(make: Make) -> nn.Module:
    """[n, channels, height, width], of any height and width, to [n, outputs]: two blocks a stage; each stage sees half of the
    height and width that the one before it did, and the first half of the image's.
    """
    channels = make.sizes[0]
    layers: list[nn.Module] = [nn.Conv2d(make.shape[0], channels, 3, 2, padding=1, bias=False), nn.BatchNorm2d(channels)]
    layers.append(nn.ReLU())
    for number, size in enumerate(make.sizes):
        layers += [Block(channels, size, 2 if number else 1), Block(size, size, 1)]
        channels = size
    head = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(make.dropout), nn.Linear(channels, make.outputs)]
    return nn.Sequential(*layers, *head).to(memory_format=torch.channels_last)  # a third quicker to train


class Recurrent(nn.Module):  # type: ignore[misc]
    """[n, steps, channels] to [n, outputs], from what is known after the last step."""

    def __init__(self, make: Make, kind: type[nn.Module]) -> None:
        super().__init__()
        if len(set(make.sizes)) > 1:
            raise LearnError(f"sizes {list(make.sizes)}: the layers of a recurrent network are of one size")
        dropout = make.dropout if len(make.sizes) > 1 else 0.0
        self.reads = kind(make.shape[-1], make.sizes[0], len(make.sizes), batch_first=True, dropout=dropout)
        self.answers = nn.Sequential(nn.Dropout(make.dropout), nn.Linear(make.sizes[0], make.outputs))

    def forward(self, series: Any) -> Any:
        read, _ = self.reads(series)
        return self.answers(read[:, -1])


class Autoencoder(nn.Module):  # type: ignore[misc]
    """[n, columns] to the same, through a code of `sizes[-1]` numbers; its decoder is the encoder turned around."""

    def __init__(self, make: Make) -> None:
        super().__init__()
        sizes = [prod(make.shape), *make.sizes]
        self.encoder = _dense(sizes, make.dropout)
        self.decoder = _dense(sizes[::-1], make.dropout)

    def forward(self, given: Any) -> Any:
        return self.decoder(self.encoder(given))


class Generator(nn.Module):  # type: ignore[misc]
    """`noise` [n, sizes[0]] and `label` int64 [n] to [n, columns] of 0 to 1 (Mirza and Osindero 2014: conditional)."""

    def __init__(self, make: Make, classes: int) -> None:
        super().__init__()
        self.classes = classes
        noise, *hidden = make.sizes
        self.makes = _dense([noise + classes, *hidden, prod(make.shape)], make.dropout)

    def forward(self, noise: Any, label: Any) -> Any:
        return torch.sigmoid(self.makes(torch.cat([noise, _one_hot(label, self.classes)], 1)))


class Critic(nn.Module):  # type: ignore[misc]
    """[n, columns] and the label that it has, or shall have, to a score [n, 1]: above 0 it seems real."""

    def __init__(self, make: Make, classes: int) -> None:
        super().__init__()
        self.classes = classes
        self.judges = _dense([prod(make.shape) + classes, *make.sizes[:0:-1], 1], make.dropout, nn.LeakyReLU(0.2))

    def forward(self, given: Any, label: Any) -> Any:
        return self.judges(torch.cat([given, _one_hot(label, self.classes)], 1))


def _one_hot(label: Any, classes: int) -> Any:
    return (label.unsqueeze(1) == torch.arange(classes)).float()


def _dense(sizes: Sequence[int], dropout: float, bends: nn.Module | None = None) -> nn.Sequential:
    layers: list[nn.Module] = []
    for number, (before, after) in enumerate(pairwise(sizes), 1):
        layers.append(nn.Linear(before, after))
        if number < len(sizes) - 1:
            layers += [bends or nn.ReLU(), *([nn.Dropout(dropout)] if dropout else [])]
    return nn.Sequential(*layers)


NETWORKS = MappingProxyType(
    {
        "mlp": Kind("flat", "the units of each hidden layer", 0, mlp),
        "cnn": Kind("image", "the channels of each convolution", 1, cnn),
        "residual": Kind("image", "the channels of each stage", 1, residual),
        "rnn": Kind("series", "the units of each layer", 1, lambda make: Recurrent(make, nn.RNN)),
        "lstm": Kind("series", "the units of each layer", 1, lambda make: Recurrent(make, nn.LSTM)),
        "autoencoder": Kind("flat", "the units of each layer of the encoder; the last is the code", 1, Autoencoder),
        "gan": Kind(
            "flat", "how much noise, and the units of each hidden layer", 2, lambda make: Generator(make, make.outputs)
        ),
    }
)

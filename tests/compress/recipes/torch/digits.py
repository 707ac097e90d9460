"""Small networks that read scikit-learn's digits, as a user would give them, and what candidates answer to those kept back."""

from functools import cache
from pathlib import Path

import numpy as np
from sklearn.datasets import load_digits

from dlproxy.compress.data import Array, Dataset
from dlproxy.compress.recipe import Context, Source
from dlproxy.compress.recipes.torch.export import answers, export
from dlproxy.compress.recipes.torch.modules import Trainable, made_by
from dlproxy.compress.recipes.torch.training import Plan, fit, reproducible

FILE = """
import os
import torch
from torch import nn


class Cnn(nn.Sequential):
    def __init__(self, width=16):
        super().__init__(
            nn.Conv2d(1, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU(), nn.MaxPool2d(2),
            nn.Conv2d(width, width, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(width * 16, 10), nn.Softmax(1),
        )

    def forward(self, image):
        return super().forward(image.reshape(-1, 1, 8, 8))


class Lstm(nn.Module):
    def __init__(self):
        super().__init__()
        self.rows, self.out = nn.LSTM(8, 32, batch_first=True), nn.Linear(32, 10)

    def forward(self, image):
        return self.out(self.rows(image)[0][:, -1])


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.num_heads, self.head_dim = 4, 8
        self.query, self.key, self.value, self.out = (nn.Linear(32, 32) for _ in range(4))

    def forward(self, x):
        q, k, v = (
            layer(x).unflatten(2, (self.num_heads, self.head_dim)).transpose(1, 2)
            for layer in (self.query, self.key, self.value)
        )
        mixed = torch.softmax(q @ k.transpose(2, 3) / self.head_dim**0.5, 3) @ v
        return self.out(mixed.transpose(1, 2).flatten(2))


class Transformer(nn.Module):
    def __init__(self):
        super().__init__()
        self.put, self.attention, self.norm = nn.Linear(8, 32), Attention(), nn.LayerNorm(32)
        self.wide, self.narrow, self.out = nn.Linear(32, 64), nn.Linear(64, 32), nn.Linear(32, 10)

    def forward(self, image):
        x = self.put(image)
        x = x + self.attention(self.norm(x))
        return self.out((x + self.narrow(torch.relu(self.wide(x)))).mean(1))


class Layer(nn.Module):
    def __init__(self):
        super().__init__()
        self.attention, self.wide, self.narrow = Attention(), nn.Linear(32, 64), nn.Linear(64, 32)
        self.first, self.second = nn.LayerNorm(32), nn.LayerNorm(32)

    def forward(self, x):
        x = self.first(x + self.attention(x))
        return self.second(x + self.narrow(nn.functional.gelu(self.wide(x))))


class Deep(nn.Module):
    def __init__(self):
        super().__init__()
        self.put, self.norm, self.out = nn.Linear(8, 32), nn.LayerNorm(32), nn.Linear(32, 10)
        self.place, self.layers = nn.Parameter(torch.zeros(8, 32)), nn.ModuleList([Layer() for _ in range(4)])

    def forward(self, image):
        x = self.norm(self.put(image) + self.place)
        for layer in self.layers:
            x = layer(x)
        return self.out(x.mean(1))


class Block(nn.Sequential):
    def __init__(self):
        super().__init__(nn.Conv2d(12, 12, 3, padding=1), nn.BatchNorm2d(12), nn.ReLU(), nn.Conv2d(12, 12, 3, padding=1))

    def forward(self, image):
        return torch.relu(image + super().forward(image))


class Resnet(nn.Sequential):
    def __init__(self):
        down = nn.Conv2d(12, 12, 3, padding=1, stride=2)
        blocks = [Block(), Block(), down, nn.ReLU(), Block(), Block()]
        super().__init__(nn.Conv2d(1, 12, 3, padding=1), nn.ReLU(), *blocks, nn.Flatten(), nn.Linear(12 * 16, 10))

    def forward(self, image):
        return super().forward(image.reshape(-1, 1, 8, 8))


class Fixed(nn.Module):
    def __init__(self):
        super().__init__()
        self.hidden, self.out = nn.Linear(64, 32), nn.Linear(16, 10)

    def forward(self, image):
        return self.out(torch.relu(self.hidden(image.reshape(-1, 64))).view(-1, 2, 16).mean(1))


def loaded(module):
    weights = os.path.join(os.path.dirname(__file__), type(module).__name__ + ".pth")
    if os.path.exists(weights):
        module.load_state_dict(torch.load(weights, weights_only=True))
    return module


def cnn():
    return loaded(Cnn())


def lstm():
    return loaded(Lstm())


def transformer():
    return loaded(Transformer())


def deep():
    return loaded(Deep())


def resnet():
    return loaded(Resnet())


def fixed():
    return loaded(Fixed())


def student():
    return Cnn(6)
"""


@cache
def digits() -> tuple[Dataset, Dataset]:
    """To learn from, as many as take no time, and kept back."""
    read = load_digits()
    images = (read.images / 16).astype(np.float32)
    all_of_them = Dataset({"image": images}, read.target)
    return all_of_them.rows(slice(0, 640)), all_of_them.rows(slice(640, 1040))


def trained(folder: Path, name: str, *, epochs: int) -> Source:
    """A network that has learnt the digits, as its file and as ONNX."""
    import torch

    file = folder / "networks.py"
    file.write_text(FILE, "utf-8")
    training, _ = digits()
    tensors = [torch.from_numpy(training.inputs["image"])]
    taught = torch.full((len(training), 10), 0.1 if name == "cnn" else 0.0)  # no answers to learn from, only their form
    context = Context(folder=folder, training=training, metric="accuracy")
    with reproducible(seed=context.seed, threads=context.threads):
        module = made_by(f"{file}:{name}")
        of = Trainable(module, ["image"], ["output"], tensors, taught)
        assert training.labels is not None
        fit(module, of, torch.from_numpy(training.labels), Plan(epochs=epochs, lr=5e-3, soft=0), context)
    torch.save(module.state_dict(), folder / f"{type(module).__name__}.pth")
    path = folder / f"{name}.onnx"
    export(module, path, [tensors[0][:4]], inputs=["image"], outputs=["output"])
    return Source(path, f"{file}:{name}")


def answered(path: Path) -> Array:
    """The file's answers to the images that were kept back, in batches of other sizes than it was made with."""
    import torch

    found: Array = answers(path, {"image": torch.from_numpy(digits()[1].inputs["image"])}, rows=50)[0]
    return found


def accuracy(path: Path) -> float:
    """Of the images that were kept back."""
    return float((answered(path).argmax(1) == digits()[1].labels).mean())

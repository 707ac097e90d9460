"""A conditional GAN, judged by what its images are good for: never by its loss, which says how well two networks fight.

Called by training.py. Not aware of: experiments beside this one.
"""

import struct
import zlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.nn import functional as F  # noqa: N812 # as everybody calls it

from dlproxy.lab.learn.experiment import LearnError, Place, Run
from dlproxy.lab.learn.networks import data as sets
from dlproxy.lab.learn.networks.augment import augment
from dlproxy.lab.learn.networks.data import Data
from dlproxy.lab.learn.networks.export import export
from dlproxy.lab.learn.networks.fit import Curves, How, answers, fit
from dlproxy.lab.learn.networks.kinds import Critic, Generator, Make, mlp

if TYPE_CHECKING:
    from dlproxy.lab.learn.networks.training import Settings

_BETAS = (0.5, 0.999)  # of Adam, as Radford et al. 2016 found for GANs
_JUDGE = How(epochs=30, rate=2e-3, schedule="cosine", l2=1e-5)
_EACH = 8  # images of each class in the picture
_SHRUNK = 0.05  # the share of the Gaussians' covariance that is the same in all directions


class Drawn(nn.Module):  # type: ignore[misc]
    """A generator as it is served: `noise` [n, d] and `label` int64 [n] to `image` [n, *shape], in the data's unit."""

    def __init__(self, generator: Generator, most: float, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.generator, self.most, self.shape = generator, most, shape

    def forward(self, noise: Any, label: Any) -> Any:
        return self.generator(noise, label).reshape(-1, *self.shape) * self.most


def train(data: Data, wanted: "Settings", place: Place) -> Run:
    """Within a seeded block. Beside the model: samples.png, a row for each class. Raises LearnError."""
    if data.kind != "image":
        raise LearnError(f"a network 'gan' draws images, and {data.name} has none")
    learnt, held = sets.held_out(data)
    learnt = sets.few(data, learnt, wanted.examples, seed=place.seed)
    scale = sets.scale(data, learnt)
    images, labels = _flat(data, learnt, scale), torch.from_numpy(data.targets[learnt])
    make = Make(shape=tuple(images.shape[1:]), sizes=wanted.sizes, outputs=data.classes, dropout=wanted.dropout)
    generator = Generator(make, data.classes)
    curves = _fight(generator, images, labels, wanted, augment(wanted.augment, data.kind, data.inputs.shape[1:]))
    noise = wanted.sizes[0]
    rows = [torch.randn(64, noise), torch.arange(64) % data.classes]
    drawn = Drawn(generator.eval(), float(scale.deviation[0]), data.inputs.shape[1:])
    export(drawn, place.folder / "model.onnx", rows, inputs=["noise", "label"], outputs=["image"])
    with torch.no_grad():
        shown = generator(torch.randn(data.classes * _EACH, noise), torch.arange(data.classes).repeat_interleave(_EACH))
        made = generator(torch.randn(len(labels), noise), labels)
    picture(shown.reshape(data.classes, _EACH, *data.inputs.shape[-2:]).numpy(), place.folder / "samples.png")
    real, answer = _flat(data, held, scale), torch.from_numpy(data.targets[held])
    teacher = _taught(images, labels, data.classes)
    figures = {"taught by real images": _accuracy(teacher, real, answer)}
    for name, some in (("", made), (", Gaussians", gaussians(images, labels))):
        figures |= {f"{what}{name}": value for what, value in judged(some, labels, real, answer, teacher).items()}
    return Run(seed=place.seed, figures=figures, curves=curves)


def judged(made: Any, labels: Any, real: Any, answer: Any, teacher: nn.Module) -> dict[str, float]:
    """Of images [n, pixels] that shall be of these labels, beside real ones that nobody has learnt from.

    taught by it: how many real ones a network gets right that has seen these alone. recognised: how many of these `teacher`,
    which knows real ones, sees as what they shall be. told apart: how many of both a network tells apart that it has not seen:
    0.5 is what chance gives, and nothing better can be had (Lopez-Paz and Oquab 2017).
    """
    classes = int(labels.max()) + 1
    some = torch.randperm(len(made))[: len(real)]
    both = torch.cat([real, made[some]])
    origin = torch.cat([torch.zeros(len(real), dtype=torch.int64), torch.ones(len(some), dtype=torch.int64)])
    halves = torch.randperm(len(both)).chunk(2)
    told = [
        _accuracy(_taught(both[one], origin[one], 2), both[other], origin[other]) for one, other in (halves, reversed(halves))
    ]
    return {
        "taught by it": _accuracy(_taught(made, labels, classes), real, answer),
        "recognised": _accuracy(teacher, made, labels),
        "told apart": sum(told) / 2,
    }


def gaussians(images: Any, labels: Any) -> Any:
    """What has to be beaten: one normal distribution for each class, of its mean and covariance, cut to 0 to 1."""
    made = torch.empty_like(images)
    for label in labels.unique():
        of_it = labels == label
        some = images[of_it]
        covariance = torch.cov(some.T)
        even = torch.eye(len(covariance)) * covariance.diagonal().mean()
        root = torch.linalg.cholesky((1 - _SHRUNK) * covariance + _SHRUNK * even)
        made[of_it] = some.mean(0) + torch.randn(some.shape) @ root.T
    return made.clamp(0.0, 1.0)


def picture(images: NDArray[np.float32], path: Path, times: int = 4) -> None:
    """[rows, columns, height, width] of 0 (paper) to 1 (ink) as a PNG, each pixel so many times as large."""
    rows, columns, height, width = images.shape
    framed = np.zeros((rows, columns, height + 1, width + 1), np.float32)
    framed[:, :, :height, :width] = images
    page = framed.transpose(0, 2, 1, 3).reshape(rows * (height + 1), columns * (width + 1)).repeat(times, 0).repeat(times, 1)
    grey = (255 - (page.clip(0, 1) * 255).round()).astype(np.uint8)
    lines = b"".join(b"\0" + line.tobytes() for line in grey)
    head = struct.pack(">IIBBBBB", grey.shape[1], grey.shape[0], 8, 0, 0, 0, 0)
    parts = ((b"IHDR", head), (b"IDAT", zlib.compress(lines, 9)), (b"IEND", b""))
    chunks = [struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body)) for name, body in parts]
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(chunks))


def _fight(generator: Generator, images: Any, labels: Any, wanted: "Settings", change: Any) -> Curves:
    """Goodfellow et al. 2014, with the generator's loss that does not saturate."""
    make = Make(shape=tuple(images.shape[1:]), sizes=wanted.sizes, outputs=1, dropout=wanted.dropout)
    critic = Critic(make, generator.classes)
    optimisers = [torch.optim.Adam(one.parameters(), wanted.rate, betas=_BETAS) for one in (generator, critic)]
    size = len(labels) if wanted.batch == "all" else wanted.batch
    curves: Curves = {"generator": [], "critic": []}
    for _ in range(wanted.epochs):
        lost = np.zeros(2)
        for chosen in torch.randperm(len(labels)).split(size):
            real = images[chosen] if change is None else change(images[chosen], labels[chosen])
            made = generator(torch.randn(len(chosen), wanted.sizes[0]), labels[chosen])
            judges = F.softplus(-critic(real, labels[chosen])) + F.softplus(critic(made.detach(), labels[chosen]))
            _step(optimisers[1], judges.mean())
            fools = F.softplus(-critic(made, labels[chosen]))
            _step(optimisers[0], fools.mean())
            lost += len(chosen) * np.array([float(fools.detach().mean()), float(judges.detach().mean())])
        for name, value in zip(curves, lost / len(labels), strict=True):
            curves[name].append(float(value))
    return curves


def _step(optimiser: Any, loss: Any) -> None:
    optimiser.zero_grad()
    loss.backward()
    optimiser.step()


def _taught(images: Any, labels: Any, classes: int) -> nn.Module:
    network = mlp(Make(shape=tuple(images.shape[1:]), sizes=[128], outputs=classes, dropout=0.2))
    fit(network, images, labels, F.cross_entropy, _JUDGE)
    return network


def _accuracy(network: nn.Module, images: Any, labels: Any) -> float:
    return float((answers(network, images).argmax(1) == labels).float().mean())


def _flat(data: Data, places: sets.Places, scale: sets.Scale) -> Any:
    return torch.from_numpy((data.inputs[places] - scale.mean) / scale.deviation).flatten(1)

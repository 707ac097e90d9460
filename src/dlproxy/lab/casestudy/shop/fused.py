"""A network of two inputs, a picture and words: which category the picture shows, and whether both are of the same product.

Called by advertisement.py. Not aware of: where pictures and words come from.
"""

from math import isqrt
from pathlib import Path
from typing import Any

import numpy as np
import torch
from msgspec import Struct, structs
from numpy.typing import NDArray
from torch import nn
from torch.nn import functional as F  # noqa: N812 # as everybody calls it

from dlproxy.compress.recipes.torch.training import reproducible
from dlproxy.lab.casestudy.shop.catalogue import Catalogue
from dlproxy.lab.learn.networks.augment import Changes, images
from dlproxy.lab.learn.networks.export import export
from dlproxy.lab.learn.networks.fit import How, answers, fit
from dlproxy.lab.learn.networks.kinds import Make, residual

SIZES, WIDTH = (24, 48, 96), 64  # channels of the picture's stages; of what picture and words are compared in
COARSE, FINE = 16, 6  # epochs, of which the latter are at half of the rate
HOW = How(batch=64, rate=4e-3, schedule="cosine", epochs=COARSE)
TOLD = 0.5  # share of a batch that keeps its words
CHANGES = Changes(flip=0.5, shift=2, zoom=0.1, brightness=0.1)


class Told(Struct, frozen=True, eq=False):
    """`image`: float32 [n, 3, side, side]. `words`: int64 [n, length], 0 where there is none. `targets`: int64 [n, 2], the
    picture's product and whether both belong together.
    """

    image: NDArray[np.float32]
    words: NDArray[np.int64]
    targets: NDArray[np.int64]


class Fused(nn.Module):  # type: ignore[misc] # torch is not read
    """`image` and `words` to scores of the products and one of belonging together, [n, products + 1]."""

    def __init__(self, vocabulary: int, products: int) -> None:
        super().__init__()
        self.sees = residual(Make(shape=(3, 1, 1), sizes=SIZES, outputs=WIDTH))
        self.reads = nn.Embedding(vocabulary, WIDTH, padding_idx=0)
        self.says = nn.Linear(3 * WIDTH, products)
        self.compares = nn.Sequential(nn.Linear(3 * WIDTH, WIDTH), nn.ReLU(), nn.Linear(WIDTH, 1))

    def forward(self, image: Any, words: Any) -> Any:
        seen = self.sees(image)
        read = self.reads(words).sum(1) / (words > 0).sum(1, keepdim=True).clamp(min=1)
        both = torch.cat([seen, read, seen * read], 1)
        return torch.cat([self.says(both), self.compares(both)], 1)


class Packed(nn.Module):  # type: ignore[misc]
    """The same for rows of pixels and then words, all floats, as `fit` takes them."""

    def __init__(self, network: Fused, length: int) -> None:
        super().__init__()
        self.network, self.length = network, length

    def forward(self, rows: Any) -> Any:
        return self.network(*parted(rows, self.length))


class Served(nn.Module):  # type: ignore[misc]
    """To `probabilities` [n, categories] and `matches` [n, 1], of 0 to 1."""

    def __init__(self, network: Fused, of_category: Any) -> None:
        super().__init__()
        self.network = network
        self.register_buffer("of_category", of_category)

    def forward(self, image: Any, words: Any) -> tuple[Any, Any]:
        found = self.network(image, words)
        return found[:, :-1].softmax(-1) @ self.of_category, torch.sigmoid(found[:, -1:])


def trained(learnt: Told, held_out: Told, path: Path, *, vocabulary: int, threads: int, seed: int = 1) -> dict[str, float]:
    """Writes `path`; shares of held-out rows whose category, and whose belonging together, is told right."""
    length = learnt.words.shape[1]
    with reproducible(seed=seed, threads=threads):
        of_category = torch.from_numpy(Catalogue.packaged().of_category())
        network = Fused(vocabulary, len(of_category))
        packed = Packed(network, length)
        targets = torch.from_numpy(learnt.targets)
        for halved, how in ((True, HOW), (False, structs.replace(HOW, epochs=FINE, rate=HOW.rate / 2))):
            fit(packed, _rows(learnt, halved=halved), targets, _lost, how, augment=lambda rows, _: _changed(rows, length))
        scores = answers(packed, _rows(held_out, halved=False))
        category = scores[:, :-1].softmax(-1) @ of_category
        given = [torch.from_numpy(held_out.image[:8]), torch.from_numpy(held_out.words[:8])]
        export(
            Served(network, of_category).eval(), path, given, inputs=["image", "words"], outputs=["probabilities", "matches"]
        )
    right = category.argmax(1) == of_category.argmax(1)[held_out.targets[:, 0]]
    matches = (scores[:, -1] > 0) == torch.from_numpy(held_out.targets[:, 1] > 0)
    return {"accuracy, category": float(right.float().mean()), "accuracy, matches": float(matches.float().mean())}


def parted(rows: Any, length: int) -> tuple[Any, Any]:
    """The pictures and the words."""
    side = isqrt((rows.shape[1] - length) // 3)
    return rows[:, :-length].reshape(-1, 3, side, side), rows[:, -length:].long()


def _rows(told: Told, *, halved: bool) -> Any:
    image = torch.from_numpy(told.image)
    seen = F.avg_pool2d(image, 2) if halved else image
    return torch.cat([seen.flatten(1), torch.from_numpy(told.words).float()], 1)


def _changed(rows: Any, length: int) -> Any:
    """Images augmented, and some without their words, so that it learns to see as well."""
    image, _ = parted(rows, length)
    told = torch.rand(len(rows), 1) < TOLD
    return torch.cat([images(image, CHANGES).flatten(1), rows[:, -length:] * told], 1)


def _lost(found: Any, targets: Any) -> Any:
    return F.cross_entropy(found[:, :-1], targets[:, 0]) + F.binary_cross_entropy_with_logits(
        found[:, -1], targets[:, 1].float()
    )

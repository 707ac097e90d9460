"""Uploads as the models' examples: the pixels that they see, made by the steps that serve them, and what is right of each.

Called by the shop's training. Needs Pillow. Not aware of: networks.
"""

from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

from dlproxy.lab.casestudy.shop.catalogue import Catalogue
from dlproxy.steps.image import Decode, Normalise, Resize

SIDE = 64  # pixels, of what models see
_PART = 250  # uploads that a process takes at once


class Examples(Struct, frozen=True, eq=False):
    """`image`: float32 [n, 3, SIDE, SIDE] of 0 to 1. `label`: int64 [n], the category. `held_out`: bool [n], for judging alone.
    `unseen`: bool [n], those of drawings that nothing is learnt from. `product`: int64 [n].
    """

    image: NDArray[np.float32]
    label: NDArray[np.int64]
    held_out: NDArray[np.bool_]
    unseen: NDArray[np.bool_]
    product: NDArray[np.int64]

    def save(self, path: Path) -> None:
        """As `dlproxy learn` reads it. What is learnt are products: of categories alone it takes far longer."""
        np.savez(path, x=self.image, label=self.product, held_out=self.held_out)


def examples(learnt: int, held_out: int, *, seed: int, processes: int = 1) -> Examples:
    """So many uploads to learn from, then so many to judge by."""
    shop = Catalogue.packaged()
    drawn = [*shop.drawn(learnt, seed=seed, held_out=False), *shop.drawn(held_out, seed=seed, held_out=True)]
    parts = [drawn[at : at + _PART] for at in range(0, len(drawn), _PART)]
    if processes > 1:
        with ProcessPoolExecutor(processes) as pool:
            found = list(pool.map(_taken, parts))
    else:
        found = list(map(_taken, parts))
    product = np.array([product for product, _ in drawn], np.int64)
    return Examples(
        image=np.concatenate(found),
        label=np.array(shop.categories, np.int64)[product],
        held_out=np.arange(len(drawn)) >= learnt,
        unseen=np.array([shop.unseen(product) == shop.style(product, shot) for product, shot in drawn], np.bool_),
        product=product,
    )


def _taken(drawn: Sequence[tuple[int, int]]) -> NDArray[np.float32]:
    shop = Catalogue.packaged()
    return pixels([shop.upload(product, shot=shot) for product, shot in drawn])


def pixels(jpegs: Sequence[bytes]) -> NDArray[np.float32]:
    """What models see: float32 [n, 3, SIDE, SIDE] of 0 to 1."""
    decode, resize, normalise = Decode(), Resize(size=SIDE), Normalise()
    small = [resize(decode(np.frombuffer(jpeg, np.uint8))["image"])["image"] for jpeg in jpegs]
    seen: NDArray[np.float32] = normalise(np.stack(small))["image"]
    return seen

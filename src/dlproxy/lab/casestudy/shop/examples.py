"""Uploads as the models' examples: the pixels that they see, made by the steps that serve them, and what is right of each.

Called by the shop's training. Needs Pillow. Not aware of: networks.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

from dlproxy.lab.casestudy.shop.catalogue import Catalogue, Upload
from dlproxy.steps.image import Decode, Normalise, Resize

SIDE = 64  # pixels, of what models see


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
        """As `dlproxy learn` reads it."""
        np.savez(path, x=self.image, label=self.label, held_out=self.held_out)


def examples(learnt: int, held_out: int, *, seed: int) -> Examples:
    """So many uploads to learn from, then so many to judge by."""
    shop = Catalogue.packaged()
    uploads = [*shop.uploads(learnt, seed=seed, held_out=False), *shop.uploads(held_out, seed=seed, held_out=True)]
    return Examples(
        image=pixels([upload.jpeg for upload in uploads]),
        label=np.array([upload.category for upload in uploads], np.int64),
        held_out=np.arange(len(uploads)) >= learnt,
        unseen=np.array([_unseen(shop, upload) for upload in uploads], np.bool_),
        product=np.array([upload.product for upload in uploads], np.int64),
    )


def pixels(jpegs: Sequence[bytes]) -> NDArray[np.float32]:
    """What models see: float32 [n, 3, SIDE, SIDE] of 0 to 1."""
    decode, resize, normalise = Decode(), Resize(size=SIDE), Normalise()
    small = [resize(decode(np.frombuffer(jpeg, np.uint8))["image"])["image"] for jpeg in jpegs]
    seen: NDArray[np.float32] = normalise(np.stack(small))["image"]
    return seen


def _unseen(shop: Catalogue, upload: Upload) -> bool:
    return shop.unseen(upload.product) == shop.style(upload.product, upload.shot)

"""The shop's goods, drawn in several styles, and what sellers upload of them: JPEGs that follow from a product and a shot.

Called by the study and by the shop's training. Needs Pillow. Not aware of: models, load.
"""

from collections.abc import Sequence
from functools import cache
from pathlib import Path

import msgspec
import numpy as np
from msgspec import Struct
from numpy.random import Generator
from numpy.typing import NDArray
from PIL import Image

from dlproxy.lab.casestudy.shop.photograph import photograph

ATLAS, INDEX = (Path(__file__).with_name(name) for name in ("atlas.webp", "products.json"))
SIDE = 72  # pixels of a drawing
ACROSS = 4  # products in a row of the atlas, each with its styles side by side
STYLES = ("noto", "twemoji", "fluent-flat", "fluent-3d")
CATEGORIES = (
    "clothing", "shoes", "accessories", "electronics", "music", "sport", "toys", "tools", "office", "household", "groceries",
    "sweets", "drinks", "garden",
)  # fmt: skip
STEEPNESS = 1.0  # of popularity: the second product is asked for half as often as the first (Zipf)
_SHOTS = 1 << 20  # of each kind that uploads are drawn from


class Product(Struct, frozen=True):
    """`words`: of its name, then what else people call it, one each. `category`: of CATEGORIES."""

    name: str
    words: tuple[str, ...]
    category: str


class Upload(Struct, frozen=True):
    """`product`, `category`: their numbers in the catalogue and in CATEGORIES."""

    jpeg: bytes
    product: int
    category: int
    shot: int


class Catalogue:
    """Shots with an even number are there to learn from; odd ones are held out, and they alone may show the fifth of all
    drawings that nothing is learnt from (`unseen`).
    """

    def __init__(self, products: Sequence[Product], atlas: Image.Image) -> None:
        """`atlas`: RGBA, drawings of SIDE x SIDE, as drawings.py lays them."""
        self.products = tuple(products)
        self.categories = tuple(CATEGORIES.index(product.category) for product in self.products)
        self._atlas = atlas

    @staticmethod
    @cache
    def packaged() -> "Catalogue":
        """The one that comes with dlproxy."""
        products = msgspec.json.decode(INDEX.read_bytes(), type=list[Product])
        with Image.open(ATLAS) as atlas:
            return Catalogue(products, atlas.convert("RGBA"))

    def of_category(self) -> NDArray[np.float32]:
        """[products, categories]: 1 where a product is of a category."""
        found = np.zeros((len(self.products), len(CATEGORIES)), np.float32)
        found[np.arange(len(self.products)), self.categories] = 1.0
        return found

    def drawing(self, product: int, style: int) -> Image.Image:
        """RGBA, SIDE x SIDE."""
        left, top = (product % ACROSS * len(STYLES) + style) * SIDE, product // ACROSS * SIDE
        return self._atlas.crop((left, top, left + SIDE, top + SIDE))

    def unseen(self, product: int) -> int | None:
        """The style of this product that held-out shots alone show; every fifth product has none."""
        return product % 5 if product % 5 < len(STYLES) else None

    def style(self, product: int, shot: int) -> int:
        """The one that this shot shows."""
        random, unseen = np.random.default_rng([product, shot, 1]), self.unseen(product)
        if shot % 2 or unseen is None:
            return int(random.integers(len(STYLES)))
        return (unseen + 1 + int(random.integers(len(STYLES) - 1))) % len(STYLES)

    def upload(self, product: int, *, shot: int, size: int = 0) -> bytes:
        """A JPEG, the same for the same numbers (and build of Pillow). `size`: of its sides; 0: 96 to 256 by chance."""
        random = np.random.default_rng([product, shot])
        drawing = self.drawing(product, self.style(product, shot))
        other = self.drawing(int(random.integers(len(self.products))), int(random.integers(len(STYLES))))
        return photograph(drawing, other, random, size)

    def drawn(self, n: int, *, seed: int, held_out: bool) -> list[tuple[int, int]]:
        """Products that are drawn alike often, each with a shot of one kind."""
        random = np.random.default_rng([seed, held_out])
        chosen = random.integers(len(self.products), size=n).tolist()
        shots = (2 * random.integers(_SHOTS, size=n) + held_out).tolist()
        return list(zip(chosen, shots, strict=True))

    def uploads(self, n: int, *, seed: int, held_out: bool) -> list[Upload]:
        """Of what `drawn` draws."""
        return [
            Upload(self.upload(product, shot=shot), product, self.categories[product], shot)
            for product, shot in self.drawn(n, seed=seed, held_out=held_out)
        ]

    def popularity(self, random: Generator, n: int) -> NDArray[np.int64]:
        """Products that `n` customers ask for, by Zipf's law; which are the popular ones is drawn, too."""
        shares = 1.0 / np.arange(1, len(self.products) + 1) ** STEEPNESS
        order = random.permutation(len(self.products))
        return order[random.choice(len(order), n, p=shares / shares.sum())]

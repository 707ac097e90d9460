"""Advertisements: a picture and a few words, which may be of another product; and the network of two inputs that judges them.

`python -m dlproxy.lab.casestudy.shop.advertisement FOLDER` makes its model again. Not aware of: the study, load.
"""

import json
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from msgspec import Struct
from numpy.random import Generator
from numpy.typing import NDArray

from dlproxy.lab.casestudy.shop.catalogue import Catalogue

_MODELS = Path(__file__).with_name("models")
MODEL, TOKENIZER, FIGURES = (_MODELS / name for name in ("advertisement.onnx", "tokenizer.json", "advertisement.json"))
LENGTH = 12  # tokens that the model takes; text.tokenize pads to it by multiple_of
FEWEST, MOST = 2, 6  # words
MATCHING, SAME_CATEGORY = 0.5, 0.5  # shares: of all; of those whose words are of another product


class Advertisement(Struct, frozen=True):
    """`product`, `category`: the picture's. `matches`: the words are of the same product."""

    jpeg: bytes
    text: str
    product: int
    category: int
    matches: bool


def advertisements(n: int, *, seed: int, held_out: bool) -> list[Advertisement]:
    """Of uploads of one kind (catalogue.py): half with words of their product, a quarter with another's of its category."""
    shop = Catalogue.packaged()
    random = np.random.default_rng([seed, held_out, 2])
    found = []
    for upload in shop.uploads(n, seed=seed, held_out=held_out):
        matches = bool(random.random() < MATCHING)
        about = upload.product if matches else _another(shop, upload.product, random)
        text = _words(shop.products[about].words, random)
        found.append(Advertisement(upload.jpeg, text, upload.product, upload.category, matches))
    return found


def known_words() -> list[str]:
    """All that products have."""
    return sorted({word for product in Catalogue.packaged().products for word in product.words})


def tokenizer() -> str:
    """A tokenizer.json of all words that are known: [PAD] is 0, [UNK] 1."""
    vocabulary = {word: number for number, word in enumerate(["[PAD]", "[UNK]", *known_words()])}
    special = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    return json.dumps(
        {
            "version": "1.0",
            "truncation": None,
            "padding": None,
            "added_tokens": [{"id": number, "content": name, **special} for number, name in enumerate(("[PAD]", "[UNK]"))],
            "normalizer": {"type": "Lowercase"},
            "pre_tokenizer": {"type": "Whitespace"},
            "post_processor": None,
            "decoder": None,
            "model": {"type": "WordLevel", "vocab": vocabulary, "unk_token": "[UNK]"},
        },
        ensure_ascii=False,
    )


def tokens(texts: Sequence[str], file: Path = TOKENIZER) -> NDArray[np.int64]:
    """As text.tokenize makes them: [n, LENGTH]."""
    from dlproxy.steps.tokens import Tokenize

    step = Tokenize(file=str(file), max_length=LENGTH, multiple_of=LENGTH, max_texts=max(len(texts), 1))
    found: NDArray[np.int64] = step(np.array([text.encode() for text in texts], object))["input_ids"]
    return found


def _another(shop: Catalogue, product: int, random: Generator) -> int:
    alike = random.random() < SAME_CATEGORY
    others = [
        other
        for other, category in enumerate(shop.categories)
        if other != product and (not alike or category == shop.categories[product])
    ]
    return others[int(random.integers(len(others)))]


def _words(words: Sequence[str], random: Generator) -> str:
    """The first word of its name, or the second, and some of the others."""
    count = min(int(random.integers(FEWEST, MOST + 1)), len(words))
    chosen = random.permutation(len(words))[:count].tolist()
    named = {int(random.integers(min(2, len(words))))}
    return " ".join(words[at] for at in sorted(named | set(chosen)))


def train(folder: Path, *, learnt: int = 8_000, held_out: int = 2_000, threads: int = 2) -> dict[str, float]:
    """Into `folder`: advertisement.onnx, tokenizer.json, and the figures of held-out advertisements, which it returns, as
    advertisement.json. Needs dlproxy[learn,steps].
    """
    from dlproxy.lab.casestudy.shop.examples import pixels
    from dlproxy.lab.casestudy.shop.fused import Told, trained

    folder.mkdir(parents=True, exist_ok=True)
    (folder / TOKENIZER.name).write_text(tokenizer(), "utf-8")

    def told(count: int, *, apart: bool) -> Told:
        of = advertisements(count, seed=3, held_out=apart)
        words = tokens([one.text for one in of], folder / TOKENIZER.name)
        targets = np.array([[one.product, one.matches] for one in of], np.int64)
        return Told(pixels([one.jpeg for one in of]), words, targets)

    path, size = folder / MODEL.name, 2 + len(known_words())
    figures = trained(told(learnt, apart=False), told(held_out, apart=True), path, vocabulary=size, threads=threads)
    (folder / FIGURES.name).write_text(json.dumps(figures, indent=1) + "\n", "utf-8")
    return figures


if __name__ == "__main__":
    sys.stdout.write(f"{train(Path(sys.argv[1]))}\n")

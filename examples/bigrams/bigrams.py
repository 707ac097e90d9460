"""A model as a Python class that answers in parts: it goes on with a word, each letter the one that most often comes next.

Serve it: dlproxy serve examples/bigrams/bigrams.py:Bigrams
Ask it:   curl http://127.0.0.1:8000/predict/bigrams -d '{"inputs": ["sh", "w"]}'
"""

from collections import Counter
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

WORDS = "a and are as at be by for from had have he her his in is it not of on or she that the this to was with you"
LETTERS = 4


class Bigrams:
    """`letters` has a column for each letter that was added, empty after the end of a word; `text` is the whole word."""

    inputs = {"start": "TEXT[-1]"}
    outputs = {"letters": "TEXT[-1,-1]", "text": "TEXT[-1]"}

    def load(self) -> None:
        """Learn from the words which letter, or end, most often comes next."""
        seen: dict[str, Counter[str]] = {}
        for word in WORDS.split():
            for letter, following in pairwise([*word, ""]):
                seen.setdefault(letter, Counter())[following] += 1
        self.following = {letter: counts.most_common(1)[0][0] for letter, counts in seen.items()}

    def predict(self, batch: dict[str, NDArray[Any]]) -> Iterator[dict[str, NDArray[Any]]]:
        """A part for each step: every row's next letter, which becomes a column, and its text so far, which is replaced."""
        texts = batch["start"].tolist()
        for _ in range(LETTERS):
            letters = [self.following.get(text[-1:], "") for text in texts]
            texts = [text + letter for text, letter in zip(texts, letters, strict=True)]
            yield {"letters": np.array(letters, object)[:, np.newaxis], "text": np.array(texts, object)}

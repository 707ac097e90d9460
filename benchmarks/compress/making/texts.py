"""Sentences of docstrings, by what they are about: the package that they stand in.

Of packages installed where this runs, and of Python's own. Sentences that stand in two packages are left out.
"""

import ast
import re
import sysconfig
from collections.abc import Iterator
from pathlib import Path

import numpy as np

SUBJECTS = ("scipy/stats", "scipy/signal", "scipy/spatial", "scipy/sparse", "sklearn/metrics", "PIL", "email", "asyncio")
FEWEST_WORDS, MOST_WORDS = 8, 60
LETTERS = 0.85  # of a sentence, spaces among them: what has fewer is code, a table or a formula


def sentences(most: int, random: np.random.Generator) -> list[tuple[str, int]]:
    """(text, number of its subject), mixed, at most so many of each subject."""
    found: dict[str, set[int]] = {}
    for number, subject in enumerate(SUBJECTS):
        for path in sorted(_folder(subject).rglob("*.py")):
            if "tests" not in path.parts:
                for text in _sentences(path.read_text("utf-8", errors="replace")):
                    found.setdefault(text, set()).add(number)
    texts = [sorted(text for text, subjects in found.items() if subjects == {number}) for number in range(len(SUBJECTS))]
    chosen = [(str(text), number) for number, own in enumerate(texts) for text in random.permutation(own)[:most]]
    return [chosen[place] for place in random.permutation(len(chosen))]


def _folder(subject: str) -> Path:
    places = (Path(sysconfig.get_path(kind)) / subject for kind in ("purelib", "stdlib"))
    return next(place for place in places if place.is_dir())


def _sentences(code: str) -> Iterator[str]:
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            for paragraph in re.split(r"\n\s*\n", ast.get_docstring(node) or ""):
                if ">>>" not in paragraph and "---" not in paragraph:
                    yield from filter(_is_prose, re.split(r"(?<=[.!?])\s+(?=[A-Z])", " ".join(paragraph.split())))


def _is_prose(text: str) -> bool:
    letters = sum(letter.isalpha() or letter == " " for letter in text)
    return FEWEST_WORDS <= len(text.split()) <= MOST_WORDS and letters >= LETTERS * len(text)

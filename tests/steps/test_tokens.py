"""Tokens of texts by a tokenizer.json: padded to the longest, cut off, as the file says."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from tokenizers.processors import TemplateProcessing

from dlproxy.config import ConfigError
from tests.steps.running import made, run, texts

WORDS = ["[UNK]", "[CLS]", "[SEP]", "a", "red", "fox", "blue", "[PAD]"]
UNK, CLS, SEP, A, RED, FOX, BLUE, PAD = range(len(WORDS))


@pytest.fixture
def tokenizer() -> Tokenizer:
    made = Tokenizer(WordLevel({word: number for number, word in enumerate(WORDS)}, "[UNK]"))
    made.pre_tokenizer = Whitespace()
    made.post_processor = TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", CLS), ("[SEP]", SEP)]
    )
    return made


def _step(tokenizer: Tokenizer, folder: Path, **options: Any) -> Any:
    tokenizer.save(str(folder / "tokenizer.json"))
    return made("text.tokenize", file=str(folder / "tokenizer.json"), **options)


def test_as_long_as_the_longest(tokenizer: Tokenizer, tmp_path: Path) -> None:
    step = _step(tokenizer, tmp_path)
    found = run(step, text=texts("a red fox", "grün", ""))
    assert found["input_ids"].tolist() == [[CLS, A, RED, FOX, SEP], [CLS, UNK, SEP, PAD, PAD], [CLS, SEP, PAD, PAD, PAD]]
    assert found["attention_mask"].tolist() == [[1, 1, 1, 1, 1], [1, 1, 1, 0, 0], [1, 1, 0, 0, 0]]
    assert not found["token_type_ids"].any()
    assert run(step, text=texts("blue"))["input_ids"].tolist() == [[CLS, BLUE, SEP]]
    assert run(step, text=texts())["input_ids"].shape == (0, 0)


def test_pairs(tokenizer: Tokenizer, tmp_path: Path) -> None:
    found = run(_step(tokenizer, tmp_path, type="INT32"), text=texts("a", "red fox"), pair=texts("blue", "fox"))
    assert found["input_ids"].tolist() == [[CLS, A, SEP, BLUE, SEP, PAD], [CLS, RED, FOX, SEP, FOX, SEP]]
    assert found["token_type_ids"].tolist() == [[0, 0, 0, 1, 1, 0], [0, 0, 0, 0, 1, 1]]


def test_lengths(tokenizer: Tokenizer, tmp_path: Path) -> None:
    step = _step(tokenizer, tmp_path, max_length=4, multiple_of=3, special_tokens=False)
    assert step(text=texts("a red fox a red fox"))["input_ids"].tolist() == [[A, RED, FOX, A, PAD, PAD]]


def test_what_the_file_says_of_padding_and_cutting(tokenizer: Tokenizer, tmp_path: Path) -> None:
    tokenizer.enable_padding(direction="left", pad_id=UNK, pad_type_id=1, length=100)
    tokenizer.enable_truncation(50, direction="left")
    found = run(_step(tokenizer, tmp_path, max_length=4), text=texts("a", "a red fox"))
    assert found["input_ids"].tolist() == [[UNK, CLS, A, SEP], [CLS, RED, FOX, SEP]]
    assert found["attention_mask"].tolist() == [[0, 1, 1, 1], [1, 1, 1, 1]]
    assert found["token_type_ids"].tolist() == [[1, 0, 0, 0], [0, 0, 0, 0]]


def test_called_by_several_threads(tokenizer: Tokenizer, tmp_path: Path) -> None:
    step = _step(tokenizer, tmp_path)
    rows = [texts(*["red fox"] * count) for count in range(1, 40)]
    with ThreadPoolExecutor(4) as pool:
        for given, found in zip(rows, pool.map(lambda text: step(text=text), rows), strict=True):
            np.testing.assert_array_equal(found["input_ids"], [[CLS, RED, FOX, SEP]] * len(given))


def test_no_room_for_special_tokens(tokenizer: Tokenizer, tmp_path: Path) -> None:
    assert _step(tokenizer, tmp_path, max_length=3)(text=texts("a red fox"))["input_ids"].tolist() == [[CLS, A, SEP]]
    with pytest.raises(ConfigError, match=r"max_length: the special tokens of two texts are 3"):
        _step(tokenizer, tmp_path, max_length=2)


def test_what_does_not_fit_is_named(tokenizer: Tokenizer, tmp_path: Path) -> None:
    step = _step(tokenizer, tmp_path, max_bytes=10, max_texts=3)
    for inputs, message in (
        ({"text": texts("a", b"\xff")}, "text 1 of text is not UTF-8"),
        ({"text": texts("a" * 11)}, "text 0 of text has 11 bytes, and max_bytes is 10"),
        ({"text": np.zeros(2)}, "text holds float, and the step takes BYTES"),
        ({"text": b"\0" * 11}, "text 0 of text has 11 bytes"),
        ({"text": texts(*["a"] * 4)}, "text has 4 texts, and max_texts is 3"),
        ({"text": texts("a"), "pair": texts()}, "text has 1 elements, and pair has 0"),
    ):
        with pytest.raises(ValueError, match=message):
            step(**inputs)

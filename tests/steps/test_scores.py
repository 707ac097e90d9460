"""Scores of classes: probabilities, the best of them; tokens' vectors as one."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from tests.steps.running import made, run, texts

SCORES = arrays(np.float32, st.tuples(st.integers(0, 4), st.integers(1, 6)), elements=st.integers(-3, 3).map(float))


@given(SCORES)
def test_probabilities(scores: Any) -> None:
    shares = run(made("softmax", temperature=2.0), scores=scores)["probabilities"]
    powers = np.exp(scores.astype(np.float64) / 2)
    np.testing.assert_allclose(shares, powers / powers.sum(axis=1, keepdims=True), rtol=1e-5)


def test_large_and_impossible_scores() -> None:
    shares = run(made("softmax"), scores=np.array([[1e30, -np.inf], [-1e30, -1e30]]))["probabilities"]
    assert shares.tolist() == [[1, 0], [0.5, 0.5]]


@given(SCORES, st.integers(1, 8))
def test_the_best(scores: Any, k: int) -> None:
    best = run(made("top_k", k=k), scores=scores)
    for row, values, indices in zip(scores.tolist(), best["scores"].tolist(), best["indices"].tolist(), strict=True):
        assert indices == sorted(range(len(row)), key=lambda index: -row[index])[:k]
        assert values == [row[index] for index in indices]
    assert run(made("argmax"), scores=scores)["index"].tolist() == [indices[0] for indices in best["indices"].tolist()]


@pytest.mark.parametrize("ties", [False, True])
def test_the_best_of_many(ties: bool) -> None:
    scores = np.random.default_rng(0).permutation(9000).reshape(2, 3, 1500) // (4 if ties else 1)
    best = made("top_k", k=7)(scores=scores)
    np.testing.assert_array_equal(best["indices"], np.argsort(-scores, axis=-1, kind="stable")[..., :7])


def test_labels(tmp_path: Path) -> None:
    (tmp_path / "labels.txt").write_text("cat\ndog\nÆsop's crow\n", "utf-8")
    step = made("top_k", k=2, labels_file=str(tmp_path / "labels.txt"))
    best = run(step, scores=np.array([[0.1, 0.2, 0.7], [np.nan, 0.5, 0.2]], np.float16))
    assert best["labels"].tolist() == [["Æsop's crow".encode(), b"dog"], [b"dog", "Æsop's crow".encode()]]
    with pytest.raises(ValueError, match="scores has 4 classes, and labels_file has 3 lines"):
        step(scores=np.zeros((1, 4)))


MASK = np.array([[1, 1, 0], [0, 1, 1], [0, 0, 0]])
HIDDEN = np.array([[[3, 0], [1, -4], [9, 9]], [[9, 9], [0, 5], [0, 7]], [[9, 9], [9, 9], [9, 9]]], np.float32)


@pytest.mark.parametrize(
    ("how", "pooled"),
    [("mean", [[2, -2], [0, 6], [0, 0]]), ("max", [[3, 0], [0, 7], [0, 0]]), ("cls", [[3, 0], [0, 5], [9, 9]])],
)
def test_pooled(how: str, pooled: list[list[float]]) -> None:
    assert run(made("text.pool", how=how, normalise=False), hidden=HIDDEN, mask=MASK)["embedding"].tolist() == pooled


def test_pooled_without_a_mask_and_at_length_one() -> None:
    embedding = run(made("text.pool"), hidden=HIDDEN[1:])["embedding"]
    expected = HIDDEN[1:].mean(axis=1)
    np.testing.assert_allclose(embedding, expected / np.linalg.norm(expected, axis=1, keepdims=True), rtol=1e-6)


def test_what_masked_tokens_hold_has_no_effect() -> None:
    spoilt = HIDDEN.copy()
    spoilt[MASK == 0] = np.nan
    for how in ("mean", "max"):
        step = made("text.pool", how=how)
        np.testing.assert_array_equal(step(hidden=spoilt, mask=MASK)["embedding"], step(hidden=HIDDEN, mask=MASK)["embedding"])


@pytest.mark.parametrize(
    ("name", "inputs", "message"),
    [
        ("softmax", {"scores": np.array(1.0)}, r"scores is \[\], and the step takes at least 1 dimensions"),
        ("softmax", {"scores": np.zeros((2, 0))}, "there are no classes"),
        ("argmax", {"scores": texts("a")}, "scores holds object, and the step takes numbers"),
        ("top_k", {"scores": [np.zeros(2)]}, "scores is a list of 1 arrays, .* say each = true"),
        ("text.pool", {"hidden": np.zeros((1, 2))}, r"hidden is \[1, 2\], and the step takes 3 dimensions"),
        ("text.pool", {"hidden": np.zeros((1, 0, 2))}, "there are no tokens"),
        ("text.pool", {"hidden": np.zeros((1, 2, 2)), "mask": np.ones((1, 3))}, r"mask is \[1, 3\], and hidden is \[1, 2, 2\]"),
    ],
)
def test_what_does_not_fit_is_named(name: str, inputs: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        made(name)(**inputs)

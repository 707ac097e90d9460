"""Several models' answers as one: whatever the order, with as many as have answered; a head that is fitted; confidence."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.optimize import minimize

from dlproxy.steps.stacking import Head, fit
from tests.steps.running import made, run

FEW = st.floats(0, 1, width=16).map(np.float32)
MODELS = st.tuples(st.integers(1, 5), st.integers(0, 3), st.integers(1, 4)).flatmap(
    lambda shape: arrays(np.float32, shape, elements=FEW)
)


def _named(stacked: Any) -> dict[str, Any]:
    return {f"model_{number}": scores for number, scores in enumerate(stacked)}


@settings(max_examples=30)
@given(MODELS)
def test_average(stacked: Any) -> None:
    np.testing.assert_allclose(run(made("combine.average"), **_named(stacked))["scores"], stacked.mean(axis=0), atol=1e-6)


def test_weights_of_those_that_have_answered() -> None:
    step = made("combine.weighted", weights={"a": 1, "b": 2, "c": 1})
    a, b, c = np.eye(3)
    assert run(step, a=a[None], b=b[None], c=c[None])["scores"].tolist() == [[0.25, 0.5, 0.25]]
    assert step(c=c[None], a=a[None])["scores"].tolist() == [[0.5, 0, 0.5]]
    with pytest.raises(ValueError, match="there is no weight for 'd'; weights has a, b, c"):
        step(d=a[None])
    with pytest.raises(ValueError, match="the weights of a are all 0"):
        made("combine.weighted", weights={"a": 0, "b": 1})(a=a)


@settings(max_examples=50)
@given(MODELS, st.sampled_from(["hard", "soft"]), st.data())
def test_votes_in_any_order(stacked: Any, how: str, data: st.DataObject) -> None:
    named = _named(stacked)
    weights = data.draw(st.fixed_dictionaries({name: st.sampled_from([1.0, 2.0, 0.3]) for name in named}))
    step = made("combine.vote", how=how, weights=weights)
    first, other = (run(step, **dict(order)) for order in (named.items(), data.draw(st.permutations(list(named.items())))))
    np.testing.assert_array_equal(first["index"], other["index"])
    np.testing.assert_array_equal(first["votes"], other["votes"])


@settings(max_examples=50)
@given(MODELS)
def test_hard_votes_by_counting(stacked: Any) -> None:
    found = run(made("combine.vote"), **_named(stacked))
    for row, index in enumerate(found["index"].tolist()):
        votes = [scores[row].tolist().index(max(scores[row])) for scores in stacked]
        score = stacked[:, row].astype(float).sum(axis=0)
        best = max(range(stacked.shape[2]), key=lambda number: (votes.count(number), score[number], -number))
        assert (votes.count(index), score[index]) == pytest.approx((votes.count(best), score[best]))
        assert found["votes"][row, index] == pytest.approx(votes.count(best) / len(stacked))


def test_equally_many_votes() -> None:
    step = made("combine.vote")
    assert step(a=np.array([[0.6, 0.4]]), b=np.array([[0.1, 0.9]]))["index"].tolist() == [1]
    assert step(a=np.array([[0.6, 0.4]]), b=np.array([[0.4, 0.6]]))["index"].tolist() == [0]
    assert step(a=np.array([[0.2, 0.8]]), b=np.array([[0.9, 0.1]]), c=np.array([[0.4, 0.6]]))["index"].tolist() == [1]
    soft = made("combine.vote", how="soft")
    assert soft(a=np.array([[0.2, 0.8]]), b=np.array([[0.9, 0.1]]), c=np.array([[0.45, 0.55]]))["index"].tolist() == [0]


def _examples(seed: int, count: int = 300) -> tuple[dict[str, Any], Any]:
    """Two models that know different things of four classes: which half, and which of its two."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 4, count)
    half, odd = np.eye(2)[labels // 2], np.eye(2)[labels % 2]
    return {"half": half + rng.normal(0, 0.3, half.shape), "odd": 50 * (odd + rng.normal(0, 0.3, odd.shape)) + 7}, labels


def test_a_head_learns_whom_to_believe(tmp_path: Path) -> None:
    fit(*_examples(0)).save(tmp_path / "head.npz")
    step = made("combine.stack", file=str(tmp_path / "head.npz"))
    outputs, labels = _examples(1)
    shares = run(step, **{name: given.astype(np.float32) for name, given in outputs.items()})["probabilities"]
    np.testing.assert_allclose(shares.sum(axis=1), 1, rtol=1e-5)
    assert (shares.argmax(axis=1) == labels).mean() > 0.95
    assert step.outputs == {"probabilities": "FP32[-1,4]"}
    alone = run(step, half=outputs["half"].astype(np.float32))["probabilities"]
    assert (alone.argmax(axis=1) // 2 == labels // 2).mean() > 0.95
    with pytest.raises(ValueError, match="the head was not fitted to 'whole', but to half, odd"):
        step(whole=outputs["half"])
    with pytest.raises(ValueError, match="half, odd have different numbers of rows"):
        step(half=np.zeros((2, 2)), odd=np.zeros((1, 2)))
    with pytest.raises(ValueError, match=r"odd is \[2, 3\], and the head was fitted to \[rows, 2\]"):
        step(odd=np.zeros((2, 3)))


def test_a_head_is_the_best_there_is() -> None:
    outputs, labels = _examples(2, count=120)
    head = fit(outputs, labels, penalty=0.5)
    features = np.hstack(list(outputs.values()))
    spread = features.std(axis=0)
    rows = np.column_stack([(features - features.mean(axis=0)) / spread, np.ones(len(features))])

    def objective(flat: Any) -> float:
        scores = rows @ flat.reshape(rows.shape[1], -1)
        sums = np.log(np.exp(scores - scores.max(axis=1, keepdims=True)).sum(axis=1)) + scores.max(axis=1)
        return float((sums - scores[np.arange(len(labels)), labels]).sum() + 0.25 * (flat**2).sum())

    ours = np.vstack([head.weights * spread[:, None], head.bias[None]]).ravel()
    best = minimize(objective, np.zeros(ours.size), method="L-BFGS-B")
    assert objective(ours) <= best.fun + 1e-4
    np.testing.assert_allclose(ours, best.x, atol=0.01)


@pytest.mark.parametrize(
    ("outputs", "labels", "message"),
    [
        ({}, [0], "at least one model"),
        ({"a": [[1.0]]}, [-1], "a whole number from 0"),
        ({"a": [[1.0]]}, [0, 1], r"a is \[1, 1\], and must be finite numbers \[2, width\]"),
        ({"a": [[np.nan]]}, [0], "must be finite"),
    ],
)
def test_what_no_head_is_fitted_to(outputs: Any, labels: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        fit(outputs, labels)


def test_a_head_of_alike_columns_and_one_class() -> None:
    head = fit({"a": np.ones((5, 2))}, [0] * 5)
    assert isinstance(head, Head)
    assert np.isfinite(head.weights).all()
    assert head.logits({"a": np.zeros((2, 2), np.float32)}).shape == (2, 1)


@pytest.mark.parametrize(
    ("by", "confidence"),
    [("probability", [0.5, 1, 0.25, np.nan]), ("margin", [0.25, 1, 0, np.nan]), ("entropy", [0.25, 1, 0, np.nan])],
)
def test_confidence(by: str, confidence: list[float]) -> None:
    shares = np.array([[0.5, 0.25, 0.125, 0.125], [0, 1, 0, 0], [0.25] * 4, [np.nan] * 4], np.float32)
    shares[0] = [0.5, 0.25, 0.25, 0] if by == "entropy" else shares[0]
    found = run(made("combine.confidence", by=by, threshold=0.2 if by != "probability" else 0.4), model=shares)
    np.testing.assert_allclose(found["confidence"], confidence, atol=1e-6)
    assert found["sure"].tolist() == [True, True, False, False]
    assert found["unsure"].tolist() == [False, False, True, True]


def test_confidence_of_several_is_that_of_their_mean() -> None:
    found = run(made("combine.confidence", threshold=0.7), a=np.array([[0.9, 0.1]]), b=np.array([[0.1, 0.9]]))
    assert found["confidence"].tolist() == [0.5]


@pytest.mark.parametrize("name", ["combine.average", "combine.vote"])
def test_what_does_not_fit_is_named(name: str) -> None:
    with pytest.raises(ValueError, match=r"b is \[2, 4\], and a is \[2, 3\]: they must be alike"):
        made(name)(a=np.zeros((2, 3)), b=np.zeros((2, 4)))
    with pytest.raises(ValueError, match="there is no answer to combine"):
        made(name)()


def test_no_confidence_in_one_class() -> None:
    with pytest.raises(ValueError, match="between two classes or more"):
        made("combine.confidence", threshold=0.5)(a=np.ones((2, 1)))

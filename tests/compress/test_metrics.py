"""Metrics are what their names say, the one that suits is chosen, and both models are compared example by example."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from dlproxy.compress import CompressError
from dlproxy.compress.metrics import WHAT, Metric, choose, compare, score

Array = NDArray[Any]
RNG = np.random.default_rng(0)
ROWS = 400
truth = RNG.integers(0, 4, ROWS)
scores = np.eye(4)[truth] + RNG.normal(0.0, 0.3, (ROWS, 4))
probabilities = np.exp(scores) / np.exp(scores).sum(1, keepdims=True)
values = RNG.normal(5.0, 2.0, ROWS)


def wrong(outputs: Array, rows: Any) -> Array:
    """The same, but for some rows whose scores are turned round."""
    changed = outputs.copy()
    changed[rows] = -changed[rows]
    return changed


def compared(name: str, labels: Array | None, original: Array, candidate: Array) -> Any:
    metric = choose(name, labels=labels, outputs={"y": original})
    return compare(metric, labels=labels, original={"y": original}, candidate={"y": candidate})


@pytest.mark.parametrize(
    ("labels", "outputs", "name", "why"),
    [
        (truth, {"y": scores}, "accuracy", "whole numbers"),
        (truth % 2, {"y": scores[:, :1]}, "accuracy", "whole numbers"),
        (truth, {"y": scores[:, :1]}, "r2", "one number for each example"),
        (values, {"y": values[:, None]}, "r2", "not whole numbers"),
        (None, {"y": probabilities}, "agreement", "sums to 1"),
        (None, {"logits": scores}, "agreement", "is called like scores of classes"),
        (None, {"y": truth}, "agreement", "whole numbers"),
        (None, {"y": scores}, "cosine", "does not look like scores of classes"),
        (None, {"embedding": scores, "logits": scores}, "cosine", "'embedding'"),
    ],
)
def test_the_metric_that_suits(labels: Array | None, outputs: dict[str, Array], name: str, why: str) -> None:
    found = choose("", labels=labels, outputs=outputs)
    assert (found.name, found.output) == (name, next(iter(outputs)))
    assert why in found.why


def test_the_output_that_is_named_is_judged() -> None:
    outputs = {"embedding": scores, "classes": truth}
    assert choose("", labels=None, outputs=outputs, output="classes") == Metric(
        "agreement", "classes", "there are no labels, and 'classes' is whole numbers"
    )
    assert choose("accuracy", labels=truth, outputs=outputs) == Metric("accuracy", "embedding")


@pytest.mark.parametrize(
    ("labels", "outputs"),
    [
        (truth, scores),
        (truth, truth),
        (truth, truth[:, None]),
        (truth % 2, (truth % 2 - 0.5)[:, None]),
        (truth % 2, truth % 2 * 0.8 + 0.1),
        (truth % 2 * 2 - 1, truth % 2 - 0.5),
        (truth.reshape(-1, 4), np.eye(4)[truth].reshape(-1, 4, 4)),
    ],
)
def test_classes_are_read_as_outputs_have_them(labels: Array, outputs: Array) -> None:
    right = score(
        choose("accuracy", labels=labels, outputs={"y": outputs}),
        labels=labels,
        original={"y": outputs},
        outputs={"y": outputs},
    )
    assert right == (1.0 if outputs is not scores else float((scores.argmax(1) == truth).mean()))


def test_accuracy_of_both_what_is_lost_and_the_class_that_loses_most() -> None:
    perfect = np.eye(4)[truth]
    of_2 = np.flatnonzero(truth == 2)[:20]
    found = compared("accuracy", truth, perfect, wrong(perfect, of_2))
    assert (found.original, found.candidate, found.loss, found.agreement) == (1.0, 0.95, pytest.approx(0.05), 0.95)
    assert found.low < 0.05 < found.high < 0.08
    assert found.worst_class == ("2", pytest.approx(20 / (truth == 2).sum()))
    same = compared("accuracy", truth, perfect, perfect)
    assert (same.loss, same.agreement, same.worst_class) == (0.0, 1.0, None)
    assert same.high == pytest.approx(3 / ROWS, rel=0.01)


def test_what_is_compared_is_each_example_with_itself() -> None:
    """Both are wrong half of the time, on the same examples: that the metric varies says nothing of the loss."""
    half = wrong(np.eye(4)[truth], slice(0, ROWS, 2))
    one_less = wrong(half, slice(1, 41, 2))
    found = compared("accuracy", truth, half, one_less)
    assert found.loss == pytest.approx(0.05)
    assert found.high - found.low < 0.04


def test_f1_is_the_mean_over_classes() -> None:
    labels = np.array([0] * 300 + [1] * 60 + [2] * 40)
    perfect = np.eye(4)[labels]
    candidate = np.concatenate([labels[:-20], [1] * 20])
    found = compared("f1", labels, perfect, np.eye(4)[candidate])
    assert found.original == 1.0
    assert found.candidate == pytest.approx((1.0 + 2 * 60 / (60 + 80) + 2 * 20 / (20 + 40)) / 3)
    assert found.low < found.loss < found.high
    assert found.worst_class == ("2", 0.5)


def test_what_the_rarest_class_may_lose_weighs_in_f1() -> None:
    labels = np.array([0] * 380 + [1] * 20)
    same = np.eye(2)[labels]
    assert compared("f1", labels, same, same).high == pytest.approx(3 / 20 / 2, rel=0.01)
    assert compared("accuracy", labels, same, same).high == pytest.approx(3 / 400, rel=0.01)


def test_r2_is_the_share_of_variance() -> None:
    original, candidate = values + RNG.normal(0.0, 0.2, ROWS), values + RNG.normal(0.0, 0.5, ROWS)
    found = compared("r2", values, original[:, None], candidate[:, None])
    for value, outputs in ((found.original, original), (found.candidate, candidate)):
        assert value == pytest.approx(1.0 - ((outputs - values) ** 2).mean() / values.var())
    assert found.low < found.loss < found.high
    assert found.worst_class is None
    two = np.stack([values, -values], axis=1)
    assert compared("r2", two, two, two).candidate == 1.0


def test_cosine_is_to_the_originals_outputs() -> None:
    halves = np.tile([[1.0, 0.0], [0.0, 0.0]], (ROWS // 2, 1))
    turned = np.tile([[0.6, 0.8], [0.0, 0.0]], (ROWS // 2, 1))
    found = compared("cosine", None, halves, turned)
    assert (found.original, found.candidate, found.agreement) == (1.0, pytest.approx(0.8), 0.5)
    assert compared("cosine", None, halves, halves + [[0.0, 0.0], [0.0, 1.0]] * (ROWS // 2)).candidate == 0.5
    assert compared("cosine", None, scores, 2.0 * scores).candidate == pytest.approx(1.0)


def test_agreement_needs_no_labels() -> None:
    found = compared("agreement", None, probabilities, wrong(probabilities, slice(0, 40)))
    assert (found.original, found.candidate, found.loss) == (1.0, 0.9, pytest.approx(0.1))


OWN = """
import numpy as np
def each(truth, outputs): return np.abs(outputs.argmax(1) - truth) < 1
def whole(truth, outputs): return (outputs.argmax(1) == truth).mean()
def shape(truth, outputs): return np.zeros((2, 2))
def large(truth, outputs):
    outputs[:] = 0
    return 37.5
def nan(truth, outputs): return float("nan")
def words(truth, outputs): return "good"
def bad(truth, outputs):
    raise ZeroDivisionError("oh")
number = 3
"""


def test_a_metric_of_ones_own(tmp_path: Path) -> None:
    file = tmp_path / "own.py"
    file.write_text(OWN)
    perfect = np.eye(4)[truth]
    candidate = wrong(perfect, slice(0, 40))
    built_in = compared("accuracy", truth, perfect, candidate)
    each = compared(f"{file}:each", truth, perfect, candidate)
    assert (each.original, each.candidate, each.low, each.high) == (1.0, 0.9, built_in.low, built_in.high)
    assert each.metric == f"{file}:each"
    whole = compared(f"{file}:whole", truth, perfect, candidate)
    assert whole.loss == pytest.approx(0.1)
    assert (whole.low, whole.high) == pytest.approx((built_in.low, built_in.high), abs=0.01)


@pytest.mark.parametrize(
    ("name", "clue"),
    [
        ("shape", r"gave FP64\[2,2\]; it gives a score of all, or one for each of 400 examples"),
        ("large", "gave 37.5: scores are numbers of at most 1"),
        ("nan", "gave nan"),
        ("words", "could not convert"),
        ("bad", r"raised ZeroDivisionError: oh \(own.py, line 12\)"),
        ("number", "has no function number"),
        ("nosuch", "has no function nosuch"),
    ],
)
def test_a_metric_of_ones_own_that_is_none(tmp_path: Path, name: str, clue: str) -> None:
    (tmp_path / "own.py").write_text(OWN)
    with pytest.raises(CompressError, match=clue):
        choose(f"{tmp_path}/own.py:{name}", labels=truth, outputs={"y": scores})
    with pytest.raises(CompressError, match="does not exist"):
        choose(f"{tmp_path}/other.py:{name}", labels=truth, outputs={"y": scores})


@pytest.mark.parametrize(
    ("name", "labels", "outputs", "clue"),
    [
        ("acuracy", truth, scores, "no metric 'acuracy': give one of accuracy, f1"),
        ("accuracy", None, scores, "accuracy needs labels"),
        ("accuracy", values, scores, "needs whole numbers"),
        ("accuracy", truth + 1, scores, "labels go from 1 to 4, the scores of 'y' are of the classes 0 to 3"),
        ("accuracy", truth, scores[:, :1], "labels go from 0 to 3, the scores of 'y' are of the classes 0 to 1"),
        ("accuracy", truth, scores.T, r"is FP64\[4,400\], which has no row for each example"),
        ("accuracy", np.stack([truth, truth], 1), scores, r"labels are INT64\[400,2\], output 'y' is FP64\[400,4\]"),
        ("f1", truth.reshape(-1, 4), scores.reshape(-1, 4, 4), "f1 is of one class for each example"),
        ("r2", values, scores, "1 labels for each example, and 4 outputs"),
        ("r2", np.ones(ROWS), scores[:, 0], "all the same"),
        ("cosine", None, np.array(1.0), "has no row for each example"),
        ("cosine", None, np.array(["a"] * ROWS, object), "of which no metric is known"),
        ("cosine", None, scores + np.inf, "infinite"),
        ("agreement", None, np.where(scores > 1.5, np.nan, scores), "the original's output 'y' is NaN for"),
    ],
)
def test_what_does_not_fit(name: str, labels: Array | None, outputs: Array, clue: str) -> None:
    with pytest.raises(CompressError, match=clue):
        choose(name, labels=labels, outputs={"y": outputs})


@pytest.mark.parametrize("name", WHAT)
def test_a_candidate_that_gives_something_else(name: str) -> None:
    labels = {"r2": scores, "accuracy": truth, "f1": truth}.get(name)
    metric = choose(name, labels=labels, outputs={"y": scores})
    for outputs, clue in (
        ({"z": scores}, "no output 'y' any more; it has z"),
        ({"y": scores[:, :3]}, r"its output 'y' is FP64\[400,3\], the original's FP64\[400,4\]"),
        ({"y": np.where(np.arange(ROWS)[:, None] < 3, np.nan, scores)}, "its output 'y' is NaN for 3 of 400 held-out examples"),
    ):
        with pytest.raises(CompressError, match=clue):
            compare(metric, labels=labels, original={"y": scores}, candidate=outputs)


def test_an_output_that_is_not_what_is_labelled() -> None:
    with pytest.raises(CompressError, match="of the outputs embedding, logits another one can be named"):
        choose("", labels=truth, outputs={"embedding": scores[:, :3], "logits": scores})


def test_an_output_that_the_model_does_not_have() -> None:
    with pytest.raises(CompressError, match="no output 'z'; it has y"):
        choose("", labels=truth, outputs={"y": scores}, output="z")

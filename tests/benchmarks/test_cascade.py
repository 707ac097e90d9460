"""The cheap model of benchmarks/pipelines/cascade.py computes what was fitted, and its findings are those of the answers."""

import numpy as np
import onnxruntime
import pytest

from benchmarks.pipelines.cascade import CASCADE, CHEAP, DEAR, IDS, MASK, Side, _bag, _model, _rarity, _table, judged

VOCABULARY, CLASSES = 40, 3


def test_the_model_of_words_is_the_regression_on_their_bag() -> None:
    random = np.random.default_rng(3)
    lengths = random.integers(1, 9, 30)
    inputs = {
        IDS: random.integers(0, VOCABULARY, (30, 8)),
        MASK: (np.arange(8) < lengths[:, None]).astype(np.int64),
    }
    weights = random.normal(size=(VOCABULARY, CLASSES)).astype(np.float32)
    bias = random.normal(size=CLASSES).astype(np.float32)
    rarity = _rarity(inputs, VOCABULARY)
    scores = _bag(inputs, rarity) @ weights + bias
    expected = np.exp(scores) / np.exp(scores).sum(axis=1, keepdims=True)
    made = _model([], [], None, _table(weights, rarity), bias)
    session = onnxruntime.InferenceSession(made.SerializeToString(), providers=["CPUExecutionProvider"])
    np.testing.assert_allclose(session.run(None, inputs)[0], expected, atol=1e-5)


@pytest.mark.parametrize(("rate", "right", "verdicts"), [(20.0, 90, "pass pass pass"), (14.0, 80, "MISS pass MISS")])
def test_findings(rate: float, right: int, verdicts: str) -> None:
    sides = {
        name: Side([rates] * 3, np.arange(100) < correct)
        for name, rates, correct in ((DEAR, 10.0, 90), (CASCADE, rate, right), (CHEAP, 400.0, 70))
    }
    accuracy = {"examples": 100, "loss": 0.0, "high": 0.003}
    report = {"cascade": accuracy, "alone": accuracy, "gains": [{"ratio": 2.5}, {"ratio": 2.4}], "threshold": 0.5}
    found = judged(report | {"by": "margin", "escalated": 0.3}, sides)
    assert " ".join(check.verdict for check in found.checks) == verdicts

"""`find` on models that are known: what it takes, what it refuses and why, and the pipeline that it writes."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from msgspec.structs import replace
from onnx import helper

from dlproxy.compress import CompressError, cascade
from dlproxy.compress.cascade import Asked, configuration, find
from dlproxy.compress.gate import Bar
from dlproxy.config import load
from dlproxy.message import DType
from tests import models
from tests.compress import fakes, graphs

COARSE = np.round(graphs.WEIGHTS / 0.5) * np.float32(0.5)
Change = Callable[[models.Model], None]


@pytest.fixture(autouse=True)
def _here(monkeypatch: pytest.MonkeyPatch) -> None:
    """Work is done in this process: that it can be done in another one is shown by tests of the command."""
    monkeypatch.setattr(cascade, "run", lambda work, _limits, tell, *args: work(tell, *args))


@pytest.fixture
def asked(tmp_path: Path) -> Asked:
    """A cheap model that is wrong where two classes are close, a dear one that is right, 2,000 examples."""
    examples = graphs.dataset(2000)
    assert examples.labels is not None
    fakes.saved_data(tmp_path / "data.npz", **examples.inputs, label=examples.labels)
    cheap = graphs.saved(graphs.classifier(weights=COARSE), tmp_path, "cheap")
    dear = graphs.saved(graphs.classifier(60), tmp_path, "dear")
    bar = Bar(most_loss=0.01)
    return Asked(cheap=("cheap", cheap), dear=("dear", dear), data=tmp_path / "data.npz", bar=bar, rows=8, race_s=0.05)


def changed(made: models.Model, change: Change, path: Path) -> None:
    change(made)
    models.save(made, path)


def softened(made: models.Model) -> None:
    """Probabilities in place of scores, under the same name."""
    made.graph.node[-1].output[0] = "raw"
    made.graph.node.append(helper.make_node("Softmax", ["raw"], ["logits"]))


def test_a_cascade_is_taken_where_it_pays_and_stays_right(asked: Asked, tmp_path: Path) -> None:
    found = find(asked, folder=tmp_path, tell=lambda line: None)
    report = found.report
    assert report.verdict.status == "accepted", report.verdict.reasons
    assert report.cascade.high <= 0.01 < report.alone.loss
    assert 0.02 < report.escalated < 0.8
    assert all(gain.ratio == pytest.approx(1 / (1 / speed.ratio + report.escalated)) for gain, speed in both(report))
    (tmp_path / "served").mkdir()
    config = tmp_path / "served" / "dlproxy.toml"
    config.write_text(configuration(found, config.parent, "quick"), "utf-8")
    served = load(config).models
    assert {name: versions[0].path for name, versions in served.items()} == {
        "cheap": str(config.parent / "../cheap.onnx"),
        "dear": str(config.parent / "../dear.onnx"),
        "quick": "pipeline",
    }
    pipeline = served["quick"][0]
    assert pipeline.inputs == {"x": "FP32[-1,16]"}
    assert pipeline.outputs == {"logits": "dear.logits | cheap.logits"}
    assert list(pipeline.steps) == ["cheap", "probabilities", "sure", "dear"]
    assert pipeline.steps["sure"].options == {"threshold": report.threshold, "by": "margin"}
    assert (pipeline.steps["dear"].each, pipeline.steps["dear"].when) == (True, "sure.unsure")


def both(report: cascade.Report) -> Any:
    return zip(report.gains, report.speeds, strict=True)


def test_probabilities_are_taken_as_they_are(asked: Asked, tmp_path: Path) -> None:
    changed(graphs.classifier(weights=COARSE), softened, asked.cheap[1])
    found = find(replace(asked, by="entropy"), folder=tmp_path, tell=lambda line: None)
    assert found.probabilities
    assert found.report.notes == [
        "cheap gives probabilities and dear does not: of the cascade's answers only the order of classes counts"
    ]
    assert 'inputs = {cheap = "cheap.logits"}\noptions = {threshold' in configuration(found, tmp_path, "quick")


def test_what_is_learned_is_what_the_step_does(asked: Asked, tmp_path: Path) -> None:
    """By the pipeline's own steps the rows that are escalated are those that the report counted."""
    from dlproxy.instance.runtime.formats import open_runtime
    from dlproxy.steps.combine import Confidence
    from dlproxy.steps.scores import Softmax

    report = find(asked, folder=tmp_path, tell=lambda line: None).report
    assert report.threshold is not None
    (logits,) = open_runtime(str(asked.cheap[1]), threads=1, max_batch=2000).run([graphs.dataset(2000).inputs["x"]])
    sure = Confidence(threshold=report.threshold, by=report.by)(cheap=Softmax()(logits)["probabilities"])["sure"]
    assert 1.0 - sure.mean() == pytest.approx(report.escalated, abs=0.03)


@pytest.mark.parametrize(
    ("cheap", "dear", "bar", "why"),
    [
        (graphs.classifier(), graphs.classifier(60), Bar(most_loss=0.01), "cheap alone loses no accuracy"),
        (graphs.classifier(60, weights=COARSE), graphs.classifier(), Bar(most_loss=0.01), "times the throughput at batch 1"),
        (graphs.classifier(weights=-COARSE), graphs.classifier(60), Bar(most_loss=0.01), "no threshold loses less and pays"),
        (graphs.classifier(weights=COARSE), graphs.classifier(60), Bar(most_loss=0.001), "2,000 examples cannot show that"),
    ],
)
def test_what_does_not_pay_or_is_not_shown_is_refused(
    cheap: models.Model, dear: models.Model, bar: Bar, why: str, asked: Asked, tmp_path: Path
) -> None:
    models.save(cheap, asked.cheap[1])
    models.save(dear, asked.dear[1])
    report = find(replace(asked, bar=bar), folder=tmp_path, tell=lambda line: None).report
    assert report.verdict.status == "refused"
    assert why in "; ".join(report.verdict.reasons)


def test_without_labels_the_dear_model_is_right(asked: Asked, tmp_path: Path) -> None:
    fakes.saved_data(asked.data, **graphs.dataset(2000).inputs)
    probable = graphs.classifier(60)
    changed(probable, softened, asked.dear[1])
    report = find(asked, folder=tmp_path, tell=lambda line: None).report
    assert (report.metric.name, report.cascade.original) == ("agreement", 1.0)


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"metric": "f1"}, "judged by accuracy or agreement, not by f1"),
        ({"metric": "recall"}, "there is no metric 'recall'"),
        ({"output": "probs"}, "the model has no output 'probs'"),
    ],
)
def test_what_cannot_be_judged_is_refused(change: dict[str, Any], why: str, asked: Asked, tmp_path: Path) -> None:
    with pytest.raises(CompressError, match=why):
        find(replace(asked, **change), folder=tmp_path, tell=lambda line: None)


@pytest.mark.parametrize(
    ("cheap", "why"),
    [
        (graphs.classifier(weights=COARSE[:, :3]), r"FP32\[2000,3\].*takes scores of the same classes"),
        (graphs.of_other_inputs(DType.FP64), r"'x' is FP64\[-1,16\] of cheap and FP32\[-1,16\] of dear"),
        (graphs.without_numbers(), "its output 'logits' is NaN for 2,000 of 2,000"),
    ],
)
def test_models_that_do_not_fit_together_are_refused(cheap: models.Model, why: str, asked: Asked, tmp_path: Path) -> None:
    models.save(cheap, asked.cheap[1])
    with pytest.raises(CompressError, match=why):
        find(asked, folder=tmp_path, tell=lambda line: None)


def test_a_handful_of_examples_is_refused(asked: Asked, tmp_path: Path) -> None:
    fakes.saved_data(asked.data, **graphs.dataset(20).inputs)
    with pytest.raises(CompressError, match="20 examples are too few"):
        find(asked, folder=tmp_path, tell=lambda line: None)

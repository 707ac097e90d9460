"""The benchmark of compression without a search: what it serves, what it makes of answers, its verdicts and its page."""

from math import inf
from pathlib import Path

import numpy as np
import pytest

from benchmarks.compress import __main__ as program
from benchmarks.compress import models, overload, recipes
from benchmarks.compress.making.texts import _sentences
from benchmarks.compress.models import MODELS, Made
from benchmarks.compress.overload import MODEL, Answer, Overload, Round, arrivals, judged_round
from benchmarks.compress.recipes import LARGE, ORIGINAL, Compressed, Served
from benchmarks.harness.checks import Check, Findings
from benchmarks.harness.live import Live
from benchmarks.harness.processes import BenchmarkError, Children, Cores
from dlproxy.compress.gate import Accuracy, Bar, Footprint, Measured, Speed, Verdict
from dlproxy.compress.manifest import Candidate, Examples, Machine, Report, Run
from dlproxy.compress.metrics import Metric
from dlproxy.lab import demo

BEFORE, STEP = (seconds for _, seconds in overload.STEPS[:2])
END = BEFORE + STEP


def _verdicts(findings: Findings) -> dict[str, str]:
    return {check.result: check.verdict for check in findings.checks}


def _candidate(recipe: str, ratio: float, loss: float, artifact: str = "") -> Candidate:
    accuracy = Accuracy("accuracy", 360, 0.9, 0.9 - loss, loss, loss, loss, 1.0)
    speeds = tuple(Speed(rows, 1.0, 1.0 / ratio, ratio, ratio, ratio) for rows in (1, 32))
    measured = Measured(accuracy, speeds, Footprint(1, 1.0, 1), Footprint(1, 1.0, 1))
    verdict = Verdict("accepted" if artifact else "refused", ["because"])
    return Candidate(recipe=recipe, measured=measured, verdict=verdict, artifact=artifact)


def _report(*candidates: Candidate) -> Report:
    run = Run(
        source="digits.onnx",
        files={},
        data=Examples(name="a", sha256="b", training=1, held_out=1),
        metric=Metric("accuracy", "probabilities"),
        bar=Bar(),
        seed=0,
        machine=Machine(processor="a processor", cores=2, threads=1),
        dlproxy="0",
        onnxruntime="0",
    )
    return Report(run=run, candidates=list(candidates))


# Models


def test_sentences_are_prose_of_docstrings() -> None:
    code = '''
"""The first sentence of a module has many plain words. A short one.

>>> print("An example in a docstring is code and no sentence of prose")
"""
class A:
    def f(self):
        """Another sentence that is long enough
        goes over two lines."""
        return "A string that is no docstring has as many words in it."
'''
    assert list(_sentences(code)) == [
        "The first sentence of a module has many plain words.",
        "Another sentence that is long enough goes over two lines.",
    ]


def test_a_model_is_made_once_and_what_is_lacking_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    model = MODELS["digits-cnn"]
    with Children(tmp_path) as children:
        monkeypatch.setattr(models.importlib.util, "find_spec", lambda name: None)
        with pytest.raises(BenchmarkError, match="torch, onnxscript, sklearn"):
            models.obtain(model, children, tmp_path)
        (tmp_path / model.name).mkdir()
        (tmp_path / model.name / models.STAMP).write_text(models._version(model))
        assert models.obtain(model, children, tmp_path).reference.endswith("digits-cnn/networks.py:digits_cnn")


# Recipes


def test_what_was_accepted_is_asked_beside_its_original(tmp_path: Path) -> None:
    with np.load(demo.DIGITS / "heldout.npz") as held_out:
        images, labels = held_out["images"][:70].astype(np.float32), held_out["labels"][:70].astype(np.int64)
    made = Made(MODELS["digits-cnn"], tmp_path)
    np.savez(made.held_out, image=images, labels=labels)
    out = tmp_path / "out"
    for path in (made.onnx, out / "digits-same" / "model.onnx"):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes((demo.DIGITS / "digits.onnx").read_bytes())
    report = _report(_candidate("same", 1.0, 0.0, "digits-same/model.onnx"), _candidate("slow", 0.5, 0.0))
    with Children(tmp_path) as children:
        served = recipes._serve(made, report, out, Live(children, Cores(None, None), tmp_path))
    assert [one.name for one in served] == [ORIGINAL, "digits-same"]
    assert served[0].accuracy == served[1].accuracy > 0.95
    assert served[1].reported == pytest.approx(0.9)
    assert served[0].ratios == [1.0, 1.0]
    assert served[0].examples == 70
    assert all(one.alike == 1.0 and one.alone_s > 0.0 and one.batch_s > 0.0 for one in served)


def _compressed(*, ratio: float = 2.5, gap: float = 0.0, tried: tuple[Candidate, ...] = ()) -> Compressed:
    served = [
        Served(ORIGINAL, 10, 0.9, 0.9, 1000, 0.010, 0.1, [1.0, 1.0], 1.0),
        Served("minilm-x", 5, 0.89, 0.89 + gap, 1000, 0.010 / ratio, 0.1 / ratio, [ratio, ratio], 1.0),
    ]
    return Compressed("minilm", "dlproxy compress minilm", 1.0, 0.01, [recipes._tried(one) for one in tried], served)


def test_verdicts_on_recipes() -> None:
    kinds = [_candidate(name, 2.0, 0.0, "a") for name in ("int8-dynamic", "int8-static", "prune-channels", "qat", "distil")]
    bad = [_candidate("slower", 0.7, 0.0), _candidate("loses", 2.0, 0.05)]
    good = _verdicts(recipes.judged([_compressed(tried=(*kinds, *bad))]))
    assert set(good.values()) == {"pass"}
    without = _verdicts(recipes.judged([_compressed(ratio=1.9, gap=0.02, tried=(Candidate(recipe="qat", failure="no"),))]))
    assert set(without.values()) == {"MISS"}
    assert len(without) == len(good)


# Overload


def test_arrivals_follow_the_steps() -> None:
    due = np.array(arrivals(100.0, 0))
    counts = np.histogram(due, [0.0, BEFORE, END, END + overload.STEPS[2][1]])[0]
    np.testing.assert_allclose(counts, [500, 4500, 1000], rtol=0.1)
    assert (np.diff(due) >= 0).all()


def test_a_round_counts_what_came_in_time_and_whose_it_was() -> None:
    answers = [Answer(5.0, 5.1, MODEL, True), Answer(6.0, 6.3, MODEL, True)]  # before; the second too late
    answers += [Answer(BEFORE + 2.0 + i, BEFORE + 2.1 + i, "small", i > 0) for i in range(4)]
    answers += [Answer(BEFORE + 3.0, BEFORE + 3.0, "", False)]  # refused
    answers += [Answer(END - 0.1, END + 0.5, "small", True), Answer(END + 0.2, END + 0.3, "small", True)]
    answers += [Answer(END + 8.0, END + 8.1, MODEL, False)]
    found = judged_round(answers, 0.2, True, 2.0)
    assert found.goodput == pytest.approx(4 / (STEP - overload.SETTLED_S))
    assert (found.in_time_before, found.in_time_after) == (0.5, 1.0)
    assert found.back_s == 1.0
    assert found.answers == {MODEL: (3, 2), "small": (6, 5)}


@pytest.mark.parametrize(
    ("goodput", "back_s", "switches", "right", "verdict"), [(180, 2, 4, 870, "pass"), (100, 6, 5, 700, "MISS")]
)
def test_verdicts_on_overload(goodput: float, back_s: float, switches: float, right: int, verdict: str) -> None:
    share = 1.0 if verdict == "pass" else 0.9
    on = Round(True, goodput, share, share, back_s, switches, {MODEL: (1000, right + 10), "small": (1000, right)})
    off = Round(False, 100.0, 1.0, 0.5, 0.0, 0.0, {MODEL: (1000, 880)})
    found = Overload("small", 2.0, 0.15, {MODEL: 0.88, "small": 0.87}, {MODEL: 100.0, "small": 200.0}, [on, off])
    assert set(_verdicts(overload.judged(found)).values()) == {verdict}


def test_the_quickest_accepted_one_stands_in() -> None:
    report = _report(
        _candidate("a", 1.5, 0.0, "m-a/model.onnx"), _candidate("b", 2.0, 0.0, "m-b/model.onnx"), _candidate("c", 9.0, 0.0)
    )
    assert overload.quickest(report).recipe == "b"
    with pytest.raises(BenchmarkError, match="nothing was accepted"):
        overload.quickest(_report())


# The page


def test_parts_that_were_run_apart_make_one_page(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(program, "PAGE", tmp_path / "RESULTS.md")
    kept = program.Kept({"minilm": _compressed(tried=(_candidate("slower", 0.7, 0.0),))}, how={"minilm": "yesterday"})
    kept.starts = [Check("a start", 2.0, inf, 3.0, "starts", unit=" x")]
    program._keep(kept, tmp_path / "kept.json")
    assert program.main(["--show", "--write", "--json", str(tmp_path / "kept.json")]) == 1
    page = (tmp_path / "RESULTS.md").read_text()
    assert "- minilm: yesterday" in page
    assert f"L({LARGE}), ms" in page
    assert "| slower | refused | 0.70 / 0.70 |" in page
    assert "| a start |  | >= 2.00 x | 3.00 x | pass |" in page
    assert "## Overload" not in page
    kept.overload = Overload("x", 2.0, 0.1, {MODEL: 0.9}, {}, [Round(on, 9.0, 1.0, 1.0, 0.0, 0.0, {}) for on in (True, False)])
    assert "## Overload" in program.page(kept)

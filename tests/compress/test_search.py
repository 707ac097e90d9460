"""A search over recipes that are known: what it takes and refuses and why, where recipes start from, and how it ends."""

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dlproxy.compress import CompressError
from dlproxy.compress.gate import Accuracy, Bar, Footprint, Measured, Speed
from dlproxy.compress.manifest import Candidate
from dlproxy.compress.recipe import Recipe
from dlproxy.compress.search import Asked, Found, better, choose, front, peek, search
from tests.compress import fakes, graphs

DETOURS = 80
QUICK, QUICKEST = (graphs.classifier(number).SerializeToString() for number in (10, 0))
WRONG = graphs.classifier(weights=np.ascontiguousarray(graphs.WEIGHTS[:, ::-1])).SerializeToString()


def _asked(folder: Path, *, labels: bool = True, **more: Any) -> Asked:
    """Of the classifier by detours, and 700 examples."""
    model = folder / "digits.onnx"
    if not model.exists():
        graphs.saved(graphs.classifier(DETOURS), folder, "digits")
        given = graphs.dataset(700)
        fakes.saved_data(folder / "labelled.npz", **given.inputs, label=given.labels)
        fakes.saved_data(folder / "bare.npz", **given.inputs)
    chosen = {
        "model": str(model),
        "data": folder / ("labelled.npz" if labels else "bare.npz"),
        "recipes": (),
        "budget_s": 900.0,
    }
    return Asked(**{**chosen, "batch": 8, "race_s": 0.2, **more})


def _search(folder: Path, *recipes: Recipe, lines: list[str] | None = None, **more: Any) -> Found:
    work = folder / f"work-{len(list(folder.iterdir()))}"
    work.mkdir()
    asked = _asked(folder, recipes=[recipe.name for recipe in recipes], **more)
    return search(asked, table=fakes.table(*recipes), folder=work, tell=[].append if lines is None else lines.append)


def _digest(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


class Whole:
    """One search over many recipes."""

    def __init__(self, folder: Path) -> None:
        asked = _asked(folder)
        self.before = _digest(Path(asked.model))
        self.lines: list[str] = []
        self.found = _search(
            folder,
            fakes.Does(name="fuse", do=fakes.refuses),
            fakes.Writes(name="wrong", model=WRONG),
            fakes.Writes(name="absent", model=QUICK, needs=("no_such_package",)),
            fakes.Writes(name="clean", model=QUICK),
            fakes.Does(name="trained", do=fakes.refuses, trains=True),
            fakes.Writes(name="quicker", model=QUICKEST, random=True),
            lines=self.lines,
        )
        self.after = _digest(Path(asked.model))

    def __getitem__(self, name: str) -> Candidate:
        (found,) = [one for one in self.found.report.candidates if one.recipe == name]
        return found


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Whole:
    return Whole(tmp_path_factory.mktemp("whole"))


def test_each_recipe_is_judged_by_what_it_made(whole: Whole) -> None:
    assert [(one.recipe, one.status) for one in whole.found.report.candidates] == [
        ("fuse", "failed"),
        ("wrong", "refused"),
        ("absent", "failed"),
        ("clean", "accepted"),
        ("trained", "failed"),
        ("clean+quicker", "accepted"),
        ("quicker", "accepted"),
    ]


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("fuse", "does nothing here: there is nothing to fuse"),
        ("wrong", " of accuracy, 1 % is allowed"),
        ("absent", "needs no_such_package: pip install 'dlproxy[compress]'"),
    ],
)
def test_what_is_not_taken_is_told_why(whole: Whole, name: str, said: str) -> None:
    assert said in "; ".join(whole[name].reasons)


def test_what_was_measured_stands_in_the_report(whole: Whole) -> None:
    measured = whole["clean"].measured
    assert measured is not None
    assert measured.accuracy.original == measured.accuracy.candidate == whole.found.accuracy
    assert measured.accuracy.agreement == 1.0
    assert [speed.rows for speed in measured.speeds] == [1, 8]
    assert measured.candidate.file_bytes < measured.original.file_bytes
    run = whole.found.report.run
    assert (run.data.training + run.data.held_out, run.metric.name, run.machine.threads) == (700, "accuracy", 1)
    assert run.files["digits.onnx"].sha256 == whole.before


def test_recipes_go_on_from_what_answers_alike_and_training_ones_do_not(whole: Whole) -> None:
    steps = {one.recipe: [(step.name, step.settings["from"]) for step in one.steps] for one in whole.found.report.candidates}
    assert steps["clean"] == [("clean", "original")]
    assert steps["clean+quicker"] == [("clean", "original"), ("quicker", "clean")]
    assert steps["quicker"] == [("quicker", "original")]
    assert "clean: answers as the original does; other recipes go on from it" in whole.lines


def test_what_is_accepted_was_made_twice(whole: Whole) -> None:
    assert whole["clean"].notes == ["as it was told", "made twice with seed 0, with the same bytes"]
    assert whole["clean+quicker"].notes[-1] == "made twice with seed 0, and the bytes differ"


def test_artifacts_are_there_and_what_was_refused_takes_no_room(whole: Whole) -> None:
    assert set(whole.found.artifacts) == {"clean", "clean+quicker", "quicker"}
    assert set(whole.found.front) <= set(whole.found.artifacts)
    folder = next(iter(whole.found.artifacts.values())).parents[1]
    assert {path.name.partition("-")[2] for path in folder.iterdir()} == {"original", *whole.found.artifacts}


def test_what_was_trained_is_made_quicker_like_any_other(tmp_path: Path) -> None:
    trained = fakes.Writes(name="trained", model=QUICK, trains=True)
    found = _search(tmp_path, trained, fakes.Writes(name="quicker", model=QUICKEST))
    candidates = {one.recipe: one for one in found.report.candidates}
    assert list(candidates) == ["trained", "quicker", "trained+quicker"]
    assert candidates["trained+quicker"].status == "accepted", candidates["trained+quicker"].reasons
    assert [step.name for step in candidates["trained+quicker"].steps] == ["trained", "quicker"]
    assert "trained+quicker" in found.artifacts


def test_the_original_is_as_it_was(whole: Whole) -> None:
    assert whole.before == whole.after


def test_whatever_a_recipe_does_the_original_and_the_search_live(tmp_path: Path) -> None:
    original = Path(_asked(tmp_path).model)
    before = _digest(original)
    bad = (fakes.allocates, fakes.dies, fakes.spoils, fakes.writes_what_is_no_model)
    recipes = [fakes.Does(name=do.__name__, do=do) for do in bad]
    found = _search(tmp_path, *recipes)
    reasons = ["; ".join(one.reasons) for one in found.report.candidates]
    assert reasons[0].startswith("ran out of memory: it needs more than the ")
    assert reasons[1] == "was killed by the system, probably for lack of memory (SIGKILL)"
    assert reasons[2] == "says that it made a file, and there is none in its folder"
    assert "model.onnx is not a model that ONNX Runtime " in reasons[3]
    assert (found.artifacts, found.front, _digest(original)) == ({}, [], before)


def test_a_model_with_branches_and_loops_is_compressed_like_others(tmp_path: Path) -> None:
    path = graphs.saved(graphs.looping(), tmp_path, "looping")
    found = _search(tmp_path, fakes.Does(name="fuse", do=fakes.refuses), model=str(path), labels=False, metric="agreement")
    assert [one.failure for one in found.report.candidates] == ["does nothing here: there is nothing to fuse"]


def test_when_time_is_up_the_rest_is_not_tried(tmp_path: Path) -> None:
    found = _search(tmp_path, fakes.Writes(name="clean", model=QUICK), budget_s=0.01)
    assert [one.failure for one in found.report.candidates] == ["not tried: the time was up (--budget)"]


def test_without_labels_nothing_learns_from_them(tmp_path: Path) -> None:
    found = _search(tmp_path, fakes.Writes(name="trained", model=QUICK, trains=True), labels=False)
    assert [one.failure for one in found.report.candidates] == ["learns from labels, and the data has none"]
    assert found.report.run.metric.name == "agreement"


def _arrays(**arrays: Any) -> dict[str, Any]:
    return arrays


@pytest.mark.parametrize(
    ("more", "arrays", "said"),
    [
        ({"metric": "accuracy", "labels": False}, {}, "accuracy needs labels"),
        ({"output": "scores"}, {}, "the model has no output 'scores'; it has logits"),
        ({}, _arrays(x=np.zeros((700, 5), np.float32)), r"'x' is FP32\[700,5\], the model takes FP32\[-1,16\]"),
        ({}, _arrays(x=np.zeros((1, 16), np.float32)), "1 held-out examples are too few|0 held-out examples are too few"),
        ({"held_out": 0.999}, {}, "1 examples are too few to calibrate with"),
        ({"bar": Bar(most_loss=0.001)}, {}, "held-out examples are too few to judge by"),
    ],
)
def test_data_that_will_not_do_is_refused_in_words(more: Any, arrays: Any, said: str, tmp_path: Path) -> None:
    asked = _asked(tmp_path)
    if arrays:
        more = {**more, "data": fakes.saved_data(tmp_path / "other.npz", **arrays)}
    with pytest.raises(CompressError, match=said):
        _search(tmp_path, **more)
    assert Path(asked.model).exists()


@pytest.mark.parametrize(
    ("made", "said"),
    [
        (b"no model", "is not a model that ONNX Runtime .* can load"),
        (graphs.of_custom_operators().SerializeToString(), "of.the.house"),
        (graphs.of_other_inputs(rows=8).SerializeToString(), "whose first axis does not count examples"),
        (None, "model file .* does not exist"),
    ],
)
def test_models_that_will_not_do_are_refused_in_words(made: bytes | None, said: str, tmp_path: Path) -> None:
    path = tmp_path / "odd.onnx"
    if made is not None:
        path.write_bytes(made)
    with pytest.raises(CompressError, match=said):
        _search(tmp_path, model=str(path))


def test_recipes_are_chosen_by_name_or_by_whether_they_train() -> None:
    table = fakes.table(
        fakes.Writes(name="clean", model=b""),
        fakes.Writes(name="prune", model=b"", trains=True),
        fakes.Writes(name="absent", model=b"", needs=("no_such_package",)),
    )
    assert choose(table) == ["clean", "absent"]
    assert choose(table, every=True) == ["clean", "prune", "absent"]
    assert choose(table, ["prune", "clean", "prune"]) == ["prune", "clean"]
    with pytest.raises(CompressError, match="there is no recipe 'quantise': give some of clean, prune, absent"):
        choose(table, ["quantise"])
    with pytest.raises(CompressError, match="absent needs no_such_package: pip install"):
        choose(table, ["absent"])


def _measured(accuracy: float, ratio: float, size: int) -> Measured:
    return Measured(
        Accuracy("accuracy", 300, 0.9, accuracy, 0.9 - accuracy, 0.0, 0.01, 1.0),
        (Speed(1, 1.0, 1 / ratio, ratio, ratio, ratio), Speed(8, 1.0, 1 / ratio, ratio, ratio, ratio)),
        Footprint(1000, 1.0, 1000),
        Footprint(size, 1.0, 1000),
    )


def test_the_front_holds_what_nothing_else_outdoes() -> None:
    measured = {
        "worse": _measured(0.88, 1.9, 500),
        "best": _measured(0.9, 2.0, 500),
        "same": _measured(0.9, 2.0, 500),
        "small": _measured(0.89, 1.5, 100),
        "quick": _measured(0.89, 3.0, 500),
    }
    assert front(measured) == ["best", "quick", "small"]


@pytest.mark.parametrize(
    ("candidate", "expected"),
    [((0.9, 2.0, 500), False), ((0.9, 2.01, 495), False), ((0.9, 2.2, 500), True), ((0.9, 1.0, 400), True)],
)
def test_better_is_quicker_or_smaller_by_more_than_noise(candidate: tuple[float, float, int], expected: bool) -> None:
    assert better(_measured(*candidate), _measured(0.9, 2.0, 500)) is expected


def test_a_peek_takes_a_few_rows_of_what_is_no_label(tmp_path: Path) -> None:
    file = fakes.saved_data(tmp_path / "data.npz", a=np.arange(20), word=np.arange(20), label=np.arange(20))
    seen = peek(file)
    assert seen is not None
    assert {name: array.tolist() for name, array in seen.inputs.items()} == {name: list(range(8)) for name in ("a", "word")}
    assert (named := peek(tmp_path, "word")) is not None
    assert set(named.inputs) == {"a", "label"}
    assert peek(tmp_path / "nosuch.npz") is None

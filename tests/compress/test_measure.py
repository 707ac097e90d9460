"""What is measured of a model: its answers by batches, whether it can stand for another, its speed beside it, what it takes."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
import pytest

from dlproxy.compress import CompressError
from dlproxy.compress.data import Array
from dlproxy.compress.gate import Footprint
from dlproxy.compress.measure import (
    Answers,
    Batch,
    Examined,
    Original,
    Served,
    Task,
    Unfit,
    alike,
    answers,
    differs,
    examine,
    file_bytes,
    race,
    unlike,
)
from dlproxy.instance.runtime.formats import open_runtime
from dlproxy.message import DType
from tests import models
from tests.compress import graphs


def _quiet(line: str) -> None:
    """Progress is for people."""


def _answers(made: models.Model, folder: Path, *, rows: int = 32, examples: int = 70, name: str = "model") -> Answers:
    task = Task(inputs=graphs.dataset(examples).inputs, rows=rows)
    served = Served(graphs.saved(made, folder, name), task)
    served.look(task)
    return answers(served, task)


def _unfit(original: models.Model, candidate: models.Model, folder: Path) -> str:
    """What is said of them before and after they are asked."""
    ours, theirs = _answers(original, folder), _answers(candidate, folder, name="candidate")
    whole = Original.of(folder, Examined(Footprint(1, 1.0, 1), ours))
    return differs(ours.signature, theirs.signature) or unlike(whole, theirs)


class _Clock:
    """Stands in for perf_counter, and moves on when a runtime runs."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


class _Paced(Served):
    """Each time it is asked takes as long as the next of these seconds."""

    def __init__(self, clock: _Clock, seconds: Sequence[float], *, apart: str = "") -> None:
        self._clock, self._seconds, self.apart = clock, seconds, apart
        self.runs = 0

    def ask(self, batch: Batch) -> list[Array]:
        self._clock.now += self._seconds[self.runs % len(self._seconds)]
        self.runs += 1
        return []


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> _Clock:
    clock = _Clock()
    monkeypatch.setattr("dlproxy.compress.measure.perf_counter", clock)
    return clock


@pytest.mark.parametrize("rows", [1, 7, 32, 500])
def test_answers_do_not_depend_on_the_batch(tmp_path: Path, rows: int) -> None:
    found = _answers(graphs.classifier(), tmp_path, rows=rows)
    expected = graphs.dataset(70).inputs["x"] @ graphs.WEIGHTS
    np.testing.assert_allclose(found.outputs["logits"], expected, rtol=1e-5, atol=1e-5)


def test_a_model_of_one_row_at_a_time_is_asked_row_by_row(tmp_path: Path) -> None:
    found = _answers(graphs.of_other_inputs(rows=1), tmp_path)
    assert found.outputs["logits"].shape == (70, graphs.CLASSES)


@pytest.mark.alone
def test_rows_that_depend_on_one_another_are_asked_one_by_one(tmp_path: Path) -> None:
    path = graphs.saved(graphs.scaled_together(), tmp_path)
    task = Task(inputs=graphs.dataset(40).inputs, rows=8, race_s=0.1)
    found = examine(_quiet, path, task)
    assert isinstance(found, Examined)
    assert found.apart == "the model quantises by the range of the whole batch (DynamicQuantizeLinear)"
    runtime = open_runtime(str(path))
    alone = np.concatenate([runtime.run([task.inputs["x"][row : row + 1]])[0] for row in range(40)])
    np.testing.assert_array_equal(found.answers.outputs["logits"], alone)
    beside = examine(_quiet, path, task, Original.of(path, found))
    assert isinstance(beside, Examined)
    single, eight = beside.speeds
    assert eight.original_s > 4 * single.original_s, "a batch takes as long as its rows"


def test_an_answer_for_the_whole_batch_is_refused(tmp_path: Path) -> None:
    made = graphs.classifier()
    made.graph.node[-1].output[0] = "all"
    made.graph.node.append(onnx.helper.make_node("ReduceMax", ["all"], ["logits"], keepdims=0, axes=[0]))
    made.graph.output[0].CopyFrom(models.value("logits", DType.FP32, (graphs.CLASSES,)))
    with pytest.raises(CompressError, match=r"gives FP32\[128\] as 'logits', which has not one row for each example"):
        _answers(made, tmp_path)


def test_what_answers_alike_can_stand_for_it(tmp_path: Path) -> None:
    assert _unfit(graphs.classifier(detours=1), graphs.classifier(), tmp_path) == ""
    assert _unfit(graphs.without_numbers(), graphs.without_numbers(), tmp_path) == ""
    assert _unfit(graphs.of_other_inputs(rows=1), graphs.classifier(), tmp_path) == "", "it takes more than is asked for"


@pytest.mark.parametrize(
    ("candidate", "said"),
    [
        (graphs.renamed("scores"), "its outputs are scores; the original's are logits"),
        (graphs.of_other_inputs(rows=1), "its 'x' is FP32[1,16]; the original's is FP32[-1,16]"),
        (graphs.without_numbers(), "its 'logits' holds 280 values that are infinite or no number"),
        (
            graphs.classifier(weights=graphs.WEIGHTS[:, :3]),
            "its 'logits' is of shape (70, 3) for the examples; the original's of (70, 4)",
        ),
    ],
)
def test_what_cannot_stand_for_it_is_told(candidate: models.Model, said: str, tmp_path: Path) -> None:
    if "70, 3" in said:
        candidate.graph.output[0].CopyFrom(models.value("logits", DType.FP32, ("N", "K")))
    assert _unfit(graphs.classifier(), candidate, tmp_path) == said


def test_another_type_of_input_cannot_stand_for_it(tmp_path: Path) -> None:
    ours, theirs = (
        open_runtime(str(graphs.saved(graphs.of_other_inputs(dtype), tmp_path))).signature for dtype in (DType.FP32, DType.FP64)
    )
    assert differs(ours, theirs) == "its 'x' is FP64[-1,16]; the original's is FP32[-1,16]"


def test_alike_is_as_far_as_rounding_goes(tmp_path: Path) -> None:
    original = _answers(graphs.classifier(), tmp_path)
    assert alike(original, _answers(graphs.classifier(detours=2), tmp_path))
    coarse = graphs.WEIGHTS.astype(np.float16).astype(np.float32)
    assert not alike(original, _answers(graphs.classifier(weights=coarse), tmp_path))
    nothing = _answers(graphs.without_numbers(), tmp_path)
    assert alike(nothing, nothing)
    assert not alike(original, nothing)


def test_a_race_is_run_in_turns_and_slow_moments_slow_both(clock: _Clock) -> None:
    slow, quick = _Paced(clock, [0.02] * 15 + [0.2] * 6), _Paced(clock, [0.01] * 15 + [0.1] * 6)
    batches = [graphs.dataset(4).inputs] * 3
    found = race(slow, quick, batches, seconds=4.0, seed=0)
    assert (found.rows, found.ratio) == (4, pytest.approx(2.0))
    assert found.low > 1.5
    assert slow.runs == quick.runs


def test_rows_that_run_one_by_one_take_as_long_as_the_usual_row(clock: _Clock) -> None:
    whole, single = _Paced(clock, [0.01]), _Paced(clock, [0.002] * 9 + [0.3], apart="they meet")
    found = race(whole, single, [graphs.dataset(4).inputs], seconds=1.0, seed=0)
    assert (found.candidate_s, found.ratio) == (pytest.approx(4 * 0.002), pytest.approx(1.25))


@pytest.mark.parametrize(
    ("seconds", "allowed", "most_s"),
    [
        ([0.001], 1.0, 1.0),  # as steady as can be: it ends long before
        ([0.001, 0.003, 0.002, 0.0012, 0.0027], 2.0, 3.0),  # never narrow: it ends with its time
        ([5.0], 4.0, 100.0),  # a run takes longer than all the time: 6 rounds, and no more
    ],
)
def test_a_race_ends(clock: _Clock, seconds: list[float], allowed: float, most_s: float) -> None:
    rng = np.random.default_rng(1)
    mixed = [float(second) for second in rng.permutation(seconds * 40)]
    found = race(_Paced(clock, mixed), _Paced(clock, seconds), [graphs.dataset(1).inputs], seconds=allowed, seed=0)
    assert found.low <= found.ratio <= found.high
    assert clock.now < most_s


def test_a_model_is_examined_beside_its_original(tmp_path: Path) -> None:
    task = Task(inputs=graphs.dataset(70).inputs, rows=8, race_s=0.2)
    slow, quick = (graphs.saved(graphs.classifier(number), tmp_path, f"of-{number}") for number in (60, 0))
    original = examine(_quiet, slow, task)
    assert isinstance(original, Examined)
    assert original.speeds == ()
    lines: list[str] = []
    found = examine(lines.append, quick, task, Original.of(slow, original))
    assert isinstance(found, Examined)
    assert [speed.rows for speed in found.speeds] == [1, 8]
    assert all(speed.ratio > 1.15 for speed in found.speeds), found.speeds
    assert alike(original.answers, found.answers)
    assert found.footprint.file_bytes == quick.stat().st_size < original.footprint.file_bytes
    assert 0 < found.footprint.load_s < original.footprint.load_s
    assert lines == ["loading", "answering 70 examples", "racing the original, 1 a batch", "racing the original, 8 a batch"]


def test_what_is_unfit_does_not_race(tmp_path: Path) -> None:
    task = Task(inputs=graphs.dataset(70).inputs, rows=8, race_s=0.2)
    path, other = (
        graphs.saved(made, tmp_path, made.graph.output[0].name) for made in (graphs.classifier(), graphs.renamed("z"))
    )
    original = examine(_quiet, path, task)
    assert isinstance(original, Examined)
    found = examine(_quiet, other, task, Original.of(path, original))
    assert found == Unfit("its outputs are z; the original's are logits")


def test_weights_in_files_beside_a_model_count(tmp_path: Path) -> None:
    made, alone = graphs.classifier(detours=1), graphs.saved(graphs.classifier(detours=1), tmp_path)
    path = tmp_path / "split" / "model.onnx"
    path.parent.mkdir()
    onnx.save(made, path, save_as_external_data=True, location="weights.bin", size_threshold=0)
    assert file_bytes(path) == path.stat().st_size + (path.parent / "weights.bin").stat().st_size
    assert file_bytes(path) == pytest.approx(file_bytes(alone), rel=0.2)

"""The models of the tuner's benchmark answer row by row, and its lines say what was found."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnxruntime
import pytest

from benchmarks.models import SMALL_RESNET_IMAGE_SIDE, TOKEN_WIDTH, TOKENS, build_small_resnet, build_transformer
from benchmarks.tune.__main__ import Line, as_table, parse_options, verdict
from benchmarks.tune.python_model import WIDTH, Scorer


@pytest.mark.parametrize(
    ("build", "shape"),
    [
        (build_small_resnet, (3, SMALL_RESNET_IMAGE_SIDE, SMALL_RESNET_IMAGE_SIDE)),
        (build_transformer, (TOKENS, TOKEN_WIDTH)),
    ],
)
def test_a_row_s_answer_is_its_own(build: Callable[[Path], Path], shape: tuple[int, ...], tmp_path: Path) -> None:
    session = onnxruntime.InferenceSession(build(tmp_path / "m.onnx"), providers=["CPUExecutionProvider"])
    rows = np.random.default_rng(1).standard_normal((3, *shape), np.float32)
    together = session.run(None, {"input": rows})[0]
    alone = np.concatenate([session.run(None, {"input": rows[number : number + 1]})[0] for number in range(3)])
    assert np.isfinite(together).all()
    assert together == pytest.approx(alone, rel=1e-3, abs=1e-4)
    assert together.std() > 1e-3


def test_the_python_model_scores_each_row() -> None:
    rows = np.random.default_rng(1).standard_normal((4, WIDTH)).astype(np.float32)
    scores = Scorer().predict({"input": rows})["output"]
    assert scores.shape == (4,)
    assert Scorer().predict({"input": rows[2:3]})["output"] == pytest.approx(scores[2:3], rel=1e-4)


def test_the_verdict_counts_models_whose_worst_seed_reached_the_goal() -> None:
    lines = [Line("a", 0.02, 100.0, 1000, [0.96, 1.0], [80, 90]), Line("b", 0.02, 100.0, 1000, [0.90, 1.0], [80, 90])]
    assert verdict(lines).startswith("1 of 2 models")
    assert "| a | 20 ms | 100 /s | 1,000 | 90 (9.0%) | 96.0%, 98.0% |" in as_table(lines)


def test_an_unknown_model_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert parse_options(["--models", "cnn,mlp"]).models == ["mlp", "cnn"]
    with pytest.raises(SystemExit):
        parse_options(["--models", "cnm"])
    assert "there is no cnm" in capsys.readouterr().err

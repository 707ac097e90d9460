"""The shop's models made again, of so few uploads that only the way is shown."""

from pathlib import Path

import onnxruntime
import pytest

pytest.importorskip("torch")
pytest.importorskip("sklearn")

from dlproxy.lab.casestudy.shop import advertisement
from dlproxy.lab.casestudy.shop.train import train

pytestmark = pytest.mark.extras


def test_what_is_trained_leaves_as_a_file_with_its_figures(tmp_path: Path) -> None:
    told: list[str] = []
    figures = train(tmp_path, tell=told.append, names=["partner-a"], learnt=150, held_out=40)
    assert set(figures) == {"partner-a", "together", "cascade"}
    assert figures["together"] == figures["partner-a"]
    assert (tmp_path / "partner-a.onnx").stat().st_size > 100_000
    assert "150 uploads to learn from and 40 held out" in told[0]


def test_an_advertisements_network_takes_a_picture_and_words(tmp_path: Path) -> None:
    figures = advertisement.train(tmp_path, learnt=96, held_out=30, threads=1)
    assert set(figures) == {"accuracy, category", "accuracy, matches"}
    session = onnxruntime.InferenceSession(str(tmp_path / "advertisement.onnx"), providers=["CPUExecutionProvider"])
    assert {one.name: one.shape[1:] for one in session.get_inputs()} == {"image": [3, 64, 64], "words": [12]}
    assert [one.shape[1:] for one in session.get_outputs()] == [[14], [1]]

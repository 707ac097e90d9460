"""The network of gaps: what it makes has the trace's lengths and some of its order, and dlproxy serves it as it is."""

from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from dlproxy import Model, Proxy  # noqa: E402
from dlproxy.lab.learn.experiment import Experiment  # noqa: E402
from dlproxy.lab.learn.synthesis import gan, training, transfer  # noqa: E402
from dlproxy.lab.learn.synthesis.likeness import Load  # noqa: E402
from dlproxy.lab.learn.synthesis.training import network  # noqa: E402

from .loads import gaps, place  # noqa: E402

pytestmark = pytest.mark.extras

SPELLS = "mmpp:high=30,share=0.3,dwell=10"


def test_gaps_are_as_long_as_the_traces_and_the_best_stage_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gan, "MADE", (256, 16))
    seen = gaps(SPELLS, 1500)
    judged: list[float] = []

    def judge(source: gan.Trained) -> float:
        made = Load(source.instants(100.0, np.random.default_rng(1)))
        judged.append(float(np.abs(made.gaps - Load(np.cumsum(seen)).gaps).mean()))
        return judged[-1]

    source, curves = gan.train(seen, seen, steps=20, seed=1, judge=judge)
    assert curves["distance"] == judged
    assert len(curves["critic"]) == 10
    made = np.diff(source.instants(1500.0, np.random.default_rng(2)))
    np.testing.assert_allclose(np.quantile(made, [0.2, 0.5, 0.8]), np.quantile(seen, [0.2, 0.5, 0.8]), rtol=0.35)
    assert judge(source) == pytest.approx(min(curves["distance"]), abs=1e-6)


def test_noise_has_variance_1_and_lasts_as_long_as_its_kind() -> None:
    noise = gan._noise(8, 6000, torch.Generator().manual_seed(1))
    np.testing.assert_allclose(noise.var(dim=(0, 2)), 1.0, atol=0.25)
    lag = [float((row[:, 16:] * row[:, :-16]).mean()) for row in noise.transpose(0, 1)]
    assert abs(lag[0]) < 0.05
    assert lag[2] == pytest.approx(0.5, abs=0.1)
    assert lag[3] > 0.6


async def test_the_exported_network_answers_as_in_torch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transfer, "CORES", (1,))
    monkeypatch.setattr(transfer, "BATCHES", (4,))
    monkeypatch.setattr(transfer, "WAITS_S", (0.0,))
    monkeypatch.setattr(training, "DRAWS", 1)
    kept: list[gan.Trained] = []
    save = gan.Trained.save

    def keep(source: gan.Trained, path: Path) -> None:
        kept.append(source)
        save(source, path)

    monkeypatch.setattr(gan.Trained, "save", keep)
    where, _ = place(tmp_path)
    run = network(Experiment(kind="synthesis", about="", settings={"steps": 3}, name="mine"), where)
    assert run.figures["ks"] < 0.3
    noise = gan._noise(3, gan.PIECE, torch.Generator().manual_seed(5))
    with torch.no_grad():
        expected = kept[0].network(noise).numpy()
    async with Proxy([Model(tmp_path / "model.onnx", name="gaps")]) as proxy:
        answer = (await proxy.infer("gaps", {"noise": noise.numpy()}))["gaps"]
    np.testing.assert_allclose(answer, expected, rtol=0, atol=1e-4 * np.abs(expected).max())

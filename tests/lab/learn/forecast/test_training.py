"""The kind "forecast", at a tiny budget: it learns what a constant does not know, and is served as it was trained."""

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from msgspec.structs import replace

from dlproxy import Model, Proxy
from dlproxy.fleet.forecasts import forecast_of
from dlproxy.lab.learn.experiment import Experiment, LearnError, Place, find

pytestmark = pytest.mark.extras

FORM = {"step_s": 5.0, "length": 12, "horizons_s": [2.0, 10.0, 60.0], "quantiles": [0.5, 0.9, 0.99]}
TINY = {"source": "days", "form": FORM, "fit": {"hidden": 8, "epochs": 3}}
SITES = {"sites": 2, "others": 1, "days": 3, "examples": 500}


def place(folder: Path) -> Place:
    return Place(folder=folder, seed=1, threads=1, tell=lambda text: None)


class Trained(NamedTuple):
    """`net`: what was exported to `folder`/model.onnx."""

    folder: Path
    figures: dict[str, float]
    net: Any


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    from dlproxy.lab.learn.forecast import baselines, training

    folder, nets, export = tmp_path_factory.mktemp("forecast"), [], training.export

    def kept(net: Any, path: Path) -> None:
        nets.append(net)
        export(net, path)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training, "export", kept)
        patch.setattr(baselines, "SMOOTHING", baselines.SMOOTHING[:1])
        run = training.train(Experiment(kind="forecast", about="", settings=TINY | {"arrivals": SITES}), place(folder))
    assert len(run.curves["validation"]) == 3
    return Trained(folder, run.figures, nets[0])


def test_a_network_is_better_than_a_constant(trained: Trained) -> None:
    figures = trained.figures
    for horizon in ("2 s", "10 s", "60 s"):
        assert figures[f"days: LSTM, {horizon}"] < 0.9 * figures[f"days: always the same, {horizon}"]


def test_what_was_lost_is_kept_example_by_example(trained: Trained) -> None:
    from dlproxy.lab.learn.forecast.training import load

    scores = load(trained.folder / "scores.npz")
    assert {name.split("/")[0] for name in scores} == {"days", "other days"}
    tested = scores["days/rate/LSTM"]
    assert float(tested.losses[:, 1].mean()) == pytest.approx(trained.figures["days: LSTM, 10 s"], rel=1e-5)
    assert tested.coverage.shape == (3, 3)
    assert (np.diff(tested.coverage) >= 0.0).all()


async def test_the_network_is_served_as_it_was_trained(trained: Trained) -> None:
    import torch

    random = np.random.default_rng(1)
    window = random.gamma(1.0, 20.0, (7, 12, 2)).astype(np.float32)
    window[0] = 0.0
    season = np.where(random.random((7, 1)) < 0.5, -1.0, random.gamma(1.0, 20.0, (7, 4))).astype(np.float32)
    with torch.no_grad():
        rate, burst = trained.net(torch.from_numpy(window), torch.from_numpy(season))
    assert (np.diff(rate.numpy()) >= 0.0).all()
    assert (rate.numpy() >= 0.0).all()
    async with Proxy([Model(trained.folder / "model.onnx", name="forecast", threads=1)]) as proxy:
        whole = await proxy.infer("forecast", {"window": window, "season": season})
        one = await proxy.infer("forecast", {"window": window[:1], "season": season[:1]})
    for answer, many in ((whole, slice(7)), (one, slice(1))):
        np.testing.assert_allclose(answer["rate"], rate.numpy()[many], rtol=1e-4, atol=1e-4)
        np.testing.assert_allclose(answer["burstiness"], burst.numpy()[many], rtol=1e-4, atol=1e-4)


def test_the_knob_takes_it(trained: Trained) -> None:
    make = forecast_of("m", str(trained.folder / "model.onnx"))
    assert callable(make)
    learnt = make()
    for second in range(1, 301):
        learnt.observe(20.0 + second % 2, float(second))
    assert 15.0 < learnt.load_at(310.0) < 60.0


def test_a_trace_is_asked_for_and_must_be_long_enough(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from dlproxy.lab.learn.forecast.training import TRACE, train

    experiment = find("forecast-trace")
    monkeypatch.delenv(TRACE, raising=False)
    with pytest.raises(LearnError, match=f"set {TRACE}=FILE"):
        train(experiment, place(tmp_path))
    monkeypatch.setenv(TRACE, str(tmp_path / "none.csv"))
    with pytest.raises(LearnError, match=r"none\.csv cannot be read"):
        train(experiment, place(tmp_path))
    (tmp_path / "short.csv").write_text("\n".join(map(str, range(100))))
    monkeypatch.setenv(TRACE, str(tmp_path / "short.csv"))
    with pytest.raises(LearnError, match="100 seconds are too few"):
        train(experiment, place(tmp_path))


def test_a_trace_is_learnt_from_at_each_origin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from dlproxy.lab.learn.forecast import training

    exported: list[str] = []
    monkeypatch.setattr(training, "export", lambda net, path: exported.append(path.name))
    instants = np.sort(np.random.default_rng(1).random(2000) * 1000.0)
    (tmp_path / "trace.csv").write_text("\n".join(map(str, instants.tolist())))
    settings = {"source": "trace", "form": FORM, "fit": {"hidden": 4, "epochs": 1}}
    settings["arrivals"] = {"trace": str(tmp_path / "trace.csv"), "origins": 2}
    run = training.train(replace(find("forecast-trace"), settings=settings), place(tmp_path))
    best = min(value for name, value in run.figures.items() if name.endswith(", 60 s"))
    assert run.figures["trace: always the same, 60 s"] < 1.25 * best  # there is nothing but chance in it
    assert exported == ["early.onnx", "model.onnx"]

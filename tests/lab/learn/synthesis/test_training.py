"""A trace goes in; figures, a load that can be replayed, and options to paste come out."""

from pathlib import Path

import numpy as np
import pytest
from msgspec import structs

from dlproxy.lab.learn import train as frame
from dlproxy.lab.learn.experiment import Experiment, LearnError, find
from dlproxy.lab.learn.synthesis import training, transfer
from dlproxy.lab.learn.synthesis.fits import Gamma
from dlproxy.lab.learn.synthesis.training import FITS, fit, load_of, stand_in
from dlproxy.lab.learn.synthesis.transfer import Choice, Machine, cores_for, serve, tune
from dlproxy.lab.load.arrivals import make_arrivals, read_trace
from dlproxy.lab.simulate.run import simulate

from .loads import gaps, place

QUICK = Machine("base=20ms,row=20ms", 0.2)


@pytest.fixture(autouse=True)
def few_choices(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transfer, "BATCHES", (16,))
    monkeypatch.setattr(transfer, "WAITS_S", (0.0,))
    monkeypatch.setattr(transfer, "CORES", (1, 2, 4))
    transfer._tuned.cache_clear()


def trace(folder: Path, spec: str = "gamma:cv=2", count: int = 1000) -> Path:
    path = folder / "trace.csv"
    path.write_text("TIMESTAMP\n" + "".join([f"{at:.6f}\n" for at in np.cumsum(gaps(spec, count))]), "utf-8")
    return path


def experiment(path: Path, **others: object) -> Experiment:
    settings = {"trace": str(path), "model": "gamma", "service": QUICK.service, "slo_s": QUICK.slo_s, **others}
    return Experiment(kind="fit", about="", seeds=2, settings=settings, name="mine")


def test_a_fit_leaves_a_load_that_can_be_replayed_and_says_what_to_paste(tmp_path: Path) -> None:
    told: list[str] = []
    result = frame.train(experiment(trace(tmp_path)), tmp_path / "out", threads=1, tell=told.append)
    made = read_trace(tmp_path / "out" / "synthetic.csv")
    assert made.rate == pytest.approx(5.0, rel=0.25)
    (said,) = {line.partition("bench: ")[2] for line in told if "--arrivals" in line}
    _, rate, _, spec = said.split()
    assert make_arrivals(spec, rate=float(rate), seed=1).label.startswith("gamma:cv=")
    assert float(spec.partition("=")[2]) == pytest.approx(2.0, rel=0.1)
    figures = {name: mean for name, (mean, _) in result.figures().items()}
    assert figures["ks"] < 0.15
    assert figures["tuned"] == pytest.approx(1.0, abs=0.05)
    assert 1 <= figures["cores"] <= 4
    other_seed = (tmp_path / "out" / "seed-2" / "synthetic.csv").read_text()
    assert other_seed != (tmp_path / "out" / "seed-1" / "synthetic.csv").read_text()


@pytest.mark.parametrize("model", sorted(FITS))
def test_every_model_is_fitted_and_judged(model: str, tmp_path: Path) -> None:
    where, _ = place(tmp_path)
    run = fit(experiment(trace(tmp_path, "mmpp:high=10,share=0.2,dwell=3"), model=model), where)
    assert {"ks", "dispersion", "tuned", "cores_in_time"} <= set(run.figures)
    assert all(np.isfinite(value) for value in run.figures.values())
    assert ("block" in run.figures) is (model == "blocks")


def test_what_is_held_out_is_the_end_and_what_is_chosen_by_comes_before_it(tmp_path: Path) -> None:
    where, _ = place(tmp_path)
    path = trace(tmp_path)
    parts = load_of(training.About(trace=str(path), held_out=0.5), where)
    whole = np.concatenate(list(read_trace(path).chunks(np.inf)))
    assert len(parts.known) + len(parts.real) == len(whole)
    np.testing.assert_allclose(parts.real, whole[len(parts.known) :] - whole[-1] / 2)
    np.testing.assert_allclose(np.diff(parts.known)[: len(parts.fitted) - 1], np.diff(parts.fitted))
    assert len(parts.fitted) + len(parts.chosen) == len(parts.known)


def test_without_a_trace_a_made_up_load_stands_in_and_it_is_said(tmp_path: Path) -> None:
    where, told = place(tmp_path)
    parts = load_of(training.About(), where)
    assert len(parts.known) + len(parts.real) == len(stand_in())
    assert "no trace is named" in told[0]
    assert [find(name).kind for name in ("load-gan", "load-blocks", "load-mmpp", "load-gamma")] == ["synthesis", *["fit"] * 3]


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"model": "fourier"}, "there is no model 'fourier'; there are poisson,"),
        ({"trace": "nowhere.csv"}, "nowhere.csv cannot be read"),
        ({"held_out": 0.95}, "held_out must be a share between"),
        ({"tracee": ""}, "tracee"),
    ],
)
def test_a_mistake_is_named(change: dict[str, object], says: str, tmp_path: Path) -> None:
    where, _ = place(tmp_path)
    with pytest.raises(LearnError, match=says):
        fit(experiment(trace(tmp_path), **change), where)


def test_too_short_a_trace_is_refused(tmp_path: Path) -> None:
    where, _ = place(tmp_path)
    with pytest.raises(LearnError, match="900 arrivals are too few"):
        fit(experiment(trace(tmp_path, count=900)), where)


def test_cores_and_knobs_are_those_that_the_load_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    calm, hectic = (Gamma(shape, 0.1).instants(40.0, np.random.default_rng(1)) for shape in (1.0, 0.05))
    assert cores_for(QUICK, calm) < cores_for(QUICK, hectic)
    monkeypatch.setattr(transfer, "BATCHES", (1, 16))
    busy = Gamma(1.0, 1 / 60).instants(20.0, np.random.default_rng(1))
    assert tune(QUICK, busy).batch == 16
    one, many = (serve(QUICK, busy, Choice(batch, 0.0, 2, 1), 2) for batch in (1, 16))
    assert one.in_time < many.in_time


def test_an_interrupted_simulation_is_no_figure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transfer, "simulate", lambda scenario: structs.replace(simulate(scenario), interrupted=True))
    with pytest.raises(KeyboardInterrupt):
        serve(QUICK, np.array([0.1, 0.2, 0.3]), Choice(1, 0.0, 1, 1), 1)

"""`dlproxy tune` as users meet it: a whole tuning of a model that only takes time, interruptions, and what is refused."""

import signal
import tomllib
from functools import partial
from pathlib import Path

import pytest

from dlproxy.cli import main
from dlproxy.cli import tune as command
from dlproxy.config import load
from dlproxy.lab.load.run import Interrupt
from dlproxy.lab.tune.search import trials, tune
from dlproxy.lab.tune.search.predict import Predictor
from dlproxy.lab.tune.search.problem import TuneError
from dlproxy.lab.tune.search.state import State
from dlproxy.lab.tune.search.tune import Tuning
from tests.lab.tune.search.fixtures import Silent, problem

pytest.importorskip("optuna")

ONE_LAYOUT = '[models.m]\npath = "sleep:base=5ms,row=1ms"\nrun = "thread"\ninstances = 1\nthreads = 1\n'


def _config(folder: Path, text: str = ONE_LAYOUT) -> list[str]:
    (folder / "dlproxy.toml").write_text(text)
    return ["--config", str(folder / "dlproxy.toml"), "--out", str(folder / "tuned.toml")]


def test_a_whole_tuning_with_ctrl_c_in_its_midst_and_resumed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    class Pressing(command._Bar):
        steps = 0

        def step(self, text: str = "") -> None:
            super().step(text)
            Pressing.steps += 1
            if Pressing.steps == 6:
                signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(tune, "Predictor", partial(Predictor, requests=300))
    monkeypatch.setattr(trials, "LEAST_REQUESTS", 40)
    monkeypatch.setattr(trials, "ROUNDS", ((2, 1.0), (2, 1.0)))
    asked = ["tune", *_config(tmp_path), "--slo", "p99=200ms", "--rate", "40", "--budget", "10s"]
    page = tmp_path / "page.html"
    with monkeypatch.context() as patch:
        patch.setattr(command, "_Bar", Pressing)
        assert main(asked) == 130
    assert "go on with --resume" in capsys.readouterr().out
    assert load(tmp_path / "tuned.toml").models["m"]
    assert "interrupted" in (tmp_path / "tuned.toml").read_text()
    kept = (tmp_path / "tuned.toml.state").read_bytes()
    assert kept.count(b'"simulated"') == 5
    assert main([*asked, "--rate", "50", "--resume"]) == 2
    assert "its load is poisson at 40.0, not poisson at 50.0" in capsys.readouterr().err
    assert main([*asked, "--resume", "--html", str(page)]) == 0
    said = capsys.readouterr().out
    assert "tuning of m for p99 = 200 ms, 40 requests/s" in said
    assert "chosen:" in said
    assert "p99      predicted" in said
    [tuned] = load(tmp_path / "tuned.toml").models["m"]
    assert (tuned.slo, tuned.run, tuned.instances) == ("p99=200ms", "thread", 1)
    text = (tmp_path / "tuned.toml").read_text()
    assert {"max_batch", "max_wait_s", "codel_target_s"} <= tomllib.loads(text)["models"]["m"].keys()
    assert "# Simulated: p99" in text
    assert "<svg" in page.read_text()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["dlproxy.toml", "page.html", "tuned.toml"]


def test_ctrl_c_before_anything_is_known(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    class Pressing(command._Bar):
        def stage(self, text: str, total: int) -> None:
            super().stage(text, total)
            signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(command, "_Bar", Pressing)
    assert main(["tune", *_config(tmp_path), "--slo", "p99=200ms", "--rate", "40"]) == 130
    assert "interrupted before anything was found" in capsys.readouterr().err
    assert not (tmp_path / "tuned.toml").exists()


@pytest.mark.parametrize(
    ("objective_s", "rate", "said"),
    [
        (0.003, 10.0, r"p99 = 3 ms cannot be met: one row alone takes .*the nearest objective .* at 10 /s is about p99="),
        (0.050, 4000.0, r"cannot be met at 4,000 /s on 2 cores: up to .*/s it can; 4,000 /s are more than it can compute"),
    ],
)
def test_an_objective_that_cannot_be_met_is_answered_with_the_nearest(
    objective_s: float, rate: float, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tune, "Predictor", partial(Predictor, requests=300))
    with Interrupt() as interrupt, pytest.raises(TuneError, match=said):
        Tuning(problem(rate, objective_s), State(None, {}), budget_s=1.0, show=Silent(), interrupt=interrupt).run()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ([], "no model given; try: dlproxy tune MODEL.onnx"),
        (["nope.onnx", "--slo", "p99=20ms"], "model file nope.onnx does not exist"),
        (["sleep:base=1ms"], "no objective given; try --slo p99=20ms"),
        (["sleep:base=1ms", "--slo", "20"], "slo '20' is not understood; write it like p99=20ms"),
        (["sleep:base=1ms", "--slo", "p99=20ms", "--rte", "5"], "unexpected argument --rte; did you mean --rate?"),
        (["sleep:base=1ms", "--slo", "p99=20ms", "--rate", "-1"], "rate -1 is out of range"),
        (["sleep:base=1ms", "--slo", "p99=20ms", "--arrivals", "poison"], "there is no arrival process 'poison'"),
        (["sleep:base=1ms", "--slo", "p99=20ms", "--budget", "1s"], "--budget 1s is out of range: give 10s or more"),
        (["sleep:base=1ms", "--slo", "p99=20ms", "--budget", "soon"], "--budget soon is not a duration"),
        (["sleep:base=1ms", "--slo", "p99=20ms", "--rate", "5", "--trace", "t"], "--rate and --trace both say when"),
        (["sleep:base=1ms", "--slo", "p99=20ms", "--trace", "t.csv"], "trace t.csv cannot be read"),
        (["sleep:base=1ms", "--slo", "p99=20ms", "--log", "e.dlog"], "there is no such event log"),
        (["sleep:base=1ms", "--slo", "p99=20ms", "--resume"], "there is nothing to resume"),
        (["sleep:base=1ms", "--slo", "p99=20ms", "--out", "nowhere/t.toml"], "cannot write nowhere/t.toml"),
        (["http://host/m", "--slo", "p99=20ms"], "runs on another server"),
        (["b", "--config", "two.toml", "--slo", "p99=20ms"], "two.toml has no model 'b'; choose from one, two"),
        (["--config", "two.toml", "--slo", "p99=20ms"], "name one of one, two"),
    ],
)
def test_mistakes_are_named(
    options: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "two.toml").write_text('[models.one]\npath = "sleep:base=1ms"\n[models.two]\npath = "sleep:base=2ms"\n')
    try:
        code = main(["tune", *options])
    except SystemExit as exit_:
        code = int(str(exit_.code))
    assert code == 2
    assert said in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["two.toml"]


def test_the_busiest_stretch_of_a_long_trace_is_kept() -> None:
    assert command.busiest([0.0, 5.0, 5.1, 5.2, 9.0], 3) == [5.0, 5.1, 5.2]
    assert command.busiest([0.0, 1.0], 3) == [0.0, 1.0]

"""Tiny budgets that must still show something, going on after a kill, and networks that leave as they were trained."""

from pathlib import Path

import msgspec
import numpy as np
import pytest

torch = pytest.importorskip("torch")
onnx = pytest.importorskip("onnx")
pytest.importorskip("stable_baselines3")

from dlproxy import Model, Proxy  # noqa: E402
from dlproxy.lab.learn.agent.batching import BatchingEnv, problems, served  # noqa: E402
from dlproxy.lab.learn.agent.environment import ADVISED  # noqa: E402
from dlproxy.lab.learn.agent.network import Cautious, export, network  # noqa: E402
from dlproxy.lab.learn.agent.performance import fit, record  # noqa: E402
from dlproxy.lab.learn.agent.scenarios import randomised  # noqa: E402
from dlproxy.lab.learn.agent.training import Progress  # noqa: E402
from dlproxy.lab.learn.experiment import Experiment, Place, find  # noqa: E402
from dlproxy.lab.learn.train import train  # noqa: E402
from dlproxy.policy.tuning.features import NAMES  # noqa: E402
from dlproxy.policy.tuning.moves import MOVES  # noqa: E402

pytestmark = [pytest.mark.extras, pytest.mark.filterwarnings("ignore")]
TINY = {"steps": 48, "chunk": 24, "scenarios": 2, "recorded": 2, "kept": 1, "phase_s": 4.0}


def test_a_run_that_was_interrupted_goes_on_where_it_was(tmp_path: Path) -> None:
    begun = Experiment(kind="agent", about="", seeds=1, settings=TINY)
    told: list[str] = []

    def killed(text: str) -> None:
        told.append(text)
        if "steps" in text:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(begun, tmp_path, threads=1, tell=killed)
    kept = msgspec.json.decode((tmp_path / "seed-1" / "progress.json").read_bytes(), type=Progress)
    assert kept.steps > 0
    result = train(begun, tmp_path, threads=1, tell=told.append)
    assert len(result.runs[0].curves["gain"]) >= len(kept.gains)
    assert result.runs[0].figures["worst_s"] <= result.runs[0].figures["gain_s"]
    assert (tmp_path / "model.onnx").exists()


async def test_the_exported_network_answers_through_dlproxy_as_the_trained_one_and_says_what_it_knows(tmp_path: Path) -> None:
    torch.manual_seed(1)
    scores = Cautious(network((16, 16)), 0.5)
    export(scores, tmp_path / "model.onnx")
    states = np.random.default_rng(1).normal(size=(5, len(NAMES))).astype(np.float32)
    async with Proxy([Model(tmp_path / "model.onnx", name="agent")]) as proxy:
        (found,) = (await proxy.infer("agent", {"state": states})).values()
    with torch.no_grad():
        np.testing.assert_allclose(found, scores(torch.from_numpy(states)).numpy(), rtol=0, atol=1e-4)
    known = {pair.key: pair.value for pair in onnx.load(tmp_path / "model.onnx").metadata_props}
    assert known["dlproxy.features"].split(",") == list(NAMES)
    assert known["dlproxy.moves"].split(",") == [move.name for move in MOVES]


def test_caution_keeps_to_the_rules() -> None:
    torch.manual_seed(1)
    states, scores = torch.randn(200, len(NAMES)), network((16,))
    departed = [int((Cautious(scores, caution)(states).argmax(1) != int(ADVISED)).sum()) for caution in (0.0, 0.2, 1e3)]
    assert departed[0] > departed[1] > departed[2] == 0


def test_the_performance_model_tells_moves_apart_and_doubts_what_it_has_not_seen() -> None:
    data = record(randomised, range(4), phase_s=10.0, seed=1)
    model = fit(data, seed=1, epochs=40)
    missed = np.abs(data.outcomes[:, 0] - data.outcomes[:, 0].mean()).mean()
    assert model.error(data)[0] < 0.7 * missed
    states = torch.from_numpy(data.states)
    with torch.no_grad():
        near, far = model(states)[..., 0].std(0).mean(), model(states.flip(1) * 2.0)[..., 0].std(0).mean()
    assert far > near
    assert (model.gains(states)[:, int(ADVISED)] == 0.0).all()


def test_a_little_training_comes_near_the_optimum_of_batching(tmp_path: Path) -> None:
    begun = Experiment(
        kind="batching",
        about="",
        seeds=1,
        settings={"steps": 4_000, "chunk": 2_000, "problems": 4, "hidden": [32], "algorithm": "ppo"},
    )
    run = train(begun, tmp_path, threads=1, tell=lambda text: None).runs[0]
    assert 0.6 < run.figures["of_optimum"] <= 1.0 + 1e-9
    assert run.figures["at_once"] <= 1.0 + 1e-9
    assert (tmp_path / "model.onnx").exists()


def test_the_batching_environment_is_one_of_gymnasiums() -> None:
    from gymnasium.utils.env_checker import check_env

    check_env(BatchingEnv(problems(3, 1)), skip_render_check=True)
    assert [served(10, action) for action in range(7)] == [0, 1, 2, 4, 8, 10, 10]


@pytest.mark.parametrize("name", ["agent-dqn", "agent-ppo", "batching-dqn", "batching-ppo"])
def test_experiments_are_read(name: str, tmp_path: Path) -> None:
    experiment = find(name)
    assert experiment.about
    place = Place(folder=tmp_path, seed=1, threads=1, tell=print)
    assert place.seed <= experiment.seeds == 5

"""A guard as it leaves: before a network it refuses what is no digit and lets digits through; of users' own data, too."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("sklearn")

from dlproxy.lab.learn.experiment import Experiment, LearnError, Place, Run  # noqa: E402
from dlproxy.lab.learn.robust import deceived, guarded  # noqa: E402
from dlproxy.steps.guard import Profile, fit  # noqa: E402
from tests.clients.server import ServerProcess, asked  # noqa: E402
from tests.lab.learn.making import Made, answered, body, make  # noqa: E402

pytestmark = pytest.mark.extras

HOW = {"batch": 32, "epochs": 3, "rate": 0.01}
SMALL = {"network": "mlp", "sizes": [16], "how": HOW, "hardened": HOW, "epsilons": [3.0], "restarts": 1, "steps": 10}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    with pytest.MonkeyPatch.context() as patch:
        found = deceived.find
        patch.setattr(deceived, "find", lambda name: Experiment(kind="robust", about=found(name).about, settings=SMALL))
        return make("digits-guard", tmp_path_factory.mktemp("guard"), guarded, deceived)


@pytest.fixture(scope="module")
def server(made: Made) -> Iterator[ServerProcess]:
    with ServerProcess("--config", made.folder / "dlproxy.toml") as process:
        yield process


def test_digits_pass_and_get_the_networks_answer(made: Made, server: ServerProcess) -> None:
    profile = Profile.load(made.folder / "guard.npz")
    with np.load(made.folder / "heldout.npz") as kept:
        rows, scores = kept["image"], profile.scores(kept["image"])
    usual = rows[scores <= profile.threshold]
    assert made.run.figures["false alarms"] == pytest.approx(1 - len(usual) / len(rows))
    assert made.run.figures["false alarms"] < 0.05
    found = answered(server.ask("/v2/models/guarded/infer", body("image", usual[:50])))
    with torch.no_grad():
        expected = made.modules["model.onnx"](torch.from_numpy(usual[:50])).numpy()
    np.testing.assert_allclose(found["probabilities"], expected, atol=1e-4)
    np.testing.assert_allclose(found["score"], profile.scores(usual[:50]), atol=1e-4)


def test_what_is_no_digit_is_refused_with_its_score(made: Made, server: ServerProcess) -> None:
    profile = Profile.load(made.folder / "guard.npz")
    with np.load(made.folder / "heldout.npz") as kept:
        rows = kept["image"][profile.scores(kept["image"]) <= profile.threshold][:4]
    rows[2] = 16.0 - rows[2]
    told = asked(f"http://{server.address}/v2/models/guarded/infer", body("image", rows))
    assert told.status == 400
    score = profile.scores(rows)[2]
    assert f"row 2 is unlike the data that the model was trained on: its score is {score:.3g}" in told.json["error"]
    assert f"and the threshold {profile.threshold:.3g}; 1 of 4 rows are above it" in told.json["error"]
    assert "stage 'guard'" in told.json["error"]


def test_what_it_finds(made: Made) -> None:
    figures = made.run.figures
    assert all(figures[f"finds {name}"] > 0.95 for name in ("noise", "shuffled", "inverted")), figures
    assert figures["finds photographs"] > max(0.5, figures["unsure, finds photographs"]), figures
    assert figures["wrong by pgd 3"] >= figures["wrong by fgsm 3"] > figures["wrong"]
    assert figures["wrong and passed, pgd that knows 3"] >= figures["wrong and passed, pgd 3"]


def test_the_guard_that_is_attacked_is_the_one_that_serves() -> None:
    chance = np.random.default_rng(1)
    rows = chance.normal(3.0, 2.0, (200, 1, 2, 3)).astype(np.float32)
    profile = fit(rows, np.arange(200) % 2, held_out=rows, rate=0.2)
    excess = deceived.excess(profile)(torch.from_numpy(rows)).numpy()
    over = profile.scores(rows) - 0.999 * profile.threshold
    np.testing.assert_allclose(excess, np.maximum(over, 0.0), atol=1e-4)


def _trained(folder: Path, **settings: Any) -> Run:
    experiment = Experiment(kind="guard", about="mine", settings=settings)
    return guarded.train(experiment, Place(folder=folder, seed=1, threads=1, tell=str))


@pytest.mark.parametrize("labelled", [True, False])
def test_a_guard_of_a_file_of_ones_own(labelled: bool, tmp_path: Path) -> None:
    chance = np.random.default_rng(2)
    labels = chance.integers(0, 2, 600)
    rows = chance.normal(0.0, 1.0, (600, 3)) @ chance.normal(0.0, 1.0, (3, 6)) + 10.0 * labelled * labels[:, None]
    np.savez(tmp_path / "mine.npz", x=rows, **({"label": labels} if labelled else {}))
    figures = _trained(tmp_path, data=str(tmp_path / "mine.npz"), rate=0.05).figures
    assert figures["false alarms"] < 0.12
    assert figures["finds shuffled"] > 0.9
    assert ("finds unseen classes" in figures) is labelled
    assert Profile.load(tmp_path / "guard.npz").row == (6,)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"data": "digit"}, "there is no data 'digit'; there are digits, .*, and files that end in .npz"),
        ({"data": "nowhere.npz"}, "nowhere.npz cannot be read"),
        ({"data": "wine", "rate": 0.001}, "a rate of 0.001 takes 999 rows of held_out"),
        ({"data": "wine", "rate": 0.1, "model": "digits-robust"}, "digits-robust is of digits, and the guard of wine"),
        ({"data": "wine", "rate": 0.0}, r"Expected `float` > 0.0 - at `\$.rate`"),
    ],
)
def test_what_no_guard_is_made_of(settings: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(LearnError, match=message):
        _trained(tmp_path, **settings)

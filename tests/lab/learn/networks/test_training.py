"""Each experiment of ours, on a small budget: what was measured of the network is what dlproxy's answers are worth."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from msgspec import structs

torch = pytest.importorskip("torch")
pytest.importorskip("sklearn")

from dlproxy import Model, Proxy  # noqa: E402
from dlproxy.lab.learn.experiment import Experiment, LearnError, Place, Run, ours  # noqa: E402
from dlproxy.lab.learn.networks import export as exporting  # noqa: E402
from dlproxy.lab.learn.networks import gan, training  # noqa: E402
from dlproxy.lab.learn.networks.data import load  # noqa: E402
from dlproxy.lab.learn.networks.fit import How  # noqa: E402

pytestmark = pytest.mark.extras

OURS = {one.name: one for one in ours() if one.kind == "network"}
SMALL = {"epochs": 3, "examples": 600, "folds": 0, "rate": 5e-3, "batch": 32}
# What so little training must show, and what chance gives where it is less: accuracy, or the share that is explained
SHOWN = {
    "digits-mlp": 0.6, "digits-cnn": 0.85, "digits-rnn": 0.25, "digits-lstm": 0.25, "digits-autoencoder": 0.2,
    "digits-gan": 0.0, "cancer-mlp": 0.85, "wine-mlp": 0.7, "diabetes-mlp": 0.1, "loads-lstm": 0.3,
}  # fmt: skip


class Made:
    """A run, its model's file, and the module that was exported."""

    def __init__(self, folder: Path, run: Run, module: Any, inputs: list[str]) -> None:
        self.path = folder / "model.onnx"
        self.folder = folder
        self.run = run
        self.module = module
        self.inputs = inputs


def make(experiment: Experiment, folder: Path) -> Made:
    kept: list[Any] = []

    def export(module: Any, path: Path, examples: Any, *, inputs: Any, outputs: Any) -> None:
        kept.append((module, inputs))
        exporting.export(module, path, examples, inputs=inputs, outputs=outputs)

    folder.mkdir()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training, "export", export)
        patch.setattr(gan, "export", export)
        patch.setattr(gan, "_JUDGE", How(epochs=2))
        run = training.train(experiment, Place(folder=folder, seed=1, threads=1, tell=lambda text: None))
    return Made(folder, run, *kept[0])


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Made]:
    folder = tmp_path_factory.mktemp("networks")
    return {
        name: make(structs.replace(one, settings=one.settings | SMALL), folder / name) for name, one in sorted(OURS.items())
    }


@asynccontextmanager
async def served(made: dict[str, Made]) -> AsyncIterator[Proxy]:
    async with Proxy([Model(one.path, name=name) for name, one in made.items()]) as proxy:
        yield proxy


async def test_every_network_answers_through_dlproxy_as_in_torch(made: dict[str, Made]) -> None:
    assert set(made) == set(SHOWN)
    async with served(made) as proxy:
        for name, one in made.items():
            if name == "digits-gan":
                torch.manual_seed(1)
                rows = {"noise": torch.randn(20, 32).numpy(), "label": np.arange(20) % 10}
            else:
                with np.load(one.folder / "heldout.npz") as kept:
                    rows = {one.inputs[0]: kept[one.inputs[0]]}
            (got,) = (await proxy.infer(name, rows)).values()
            with torch.no_grad():
                expected = one.module(*[torch.from_numpy(array) for array in rows.values()]).numpy()
            largest = max(1.0, float(np.abs(expected).max()))
            np.testing.assert_allclose(got, expected, rtol=0, atol=1e-4 * largest, err_msg=name)
            alone = (await proxy.infer(name, {key: array[:1] for key, array in rows.items()})).popitem()[1]
            np.testing.assert_allclose(alone, expected[:1], rtol=0, atol=1e-4 * largest, err_msg=name)
            if name == "digits-gan":
                assert (got.shape, got.min() >= 0.0, got.max() <= 16.0) == ((20, 1, 8, 8), True, True)
            elif "accuracy" in one.run.figures:
                with np.load(one.folder / "heldout.npz") as kept:
                    assert float((got.argmax(1) == kept["label"]).mean()) == one.run.figures["accuracy"], name


def test_a_little_training_shows_what_it_must(made: dict[str, Made]) -> None:
    for name, one in made.items():
        figures = one.run.figures
        figure = figures.get("accuracy", figures.get("explained", figures.get("told apart")))
        assert figure is not None
        assert figure > SHOWN[name], f"{name}: {figures}"
        losses = one.run.curves.get("training loss", one.run.curves.get("critic"))
        assert losses is not None
        assert len(losses) == SMALL["epochs"]
    assert (made["digits-gan"].folder / "samples.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"


def test_with_folds_every_example_is_measured_once_and_the_first_folds_network_leaves(tmp_path: Path) -> None:
    small = {"folds": 3, "epochs": 2, "patience": 1, "validation": 0.2}
    one = make(structs.replace(OURS["cancer-mlp"], settings=OURS["cancer-mlp"].settings | small), tmp_path / "folds")
    assert set(one.run.figures) == {f"{name}{of}" for name in ("accuracy", "cross-entropy") for of in ("", ", held-out fifth")}
    assert one.run.figures["accuracy"] * 569 == pytest.approx(round(one.run.figures["accuracy"] * 569))
    assert set(one.run.curves) == {"training loss", "validation loss"}
    with np.load(one.folder / "heldout.npz") as kept:
        assert len(kept["features"]) == 190


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"data": "digit"}, "mine: settings: there is no data 'digit'; there are digits, cancer, wine, diabetes, loads"),
        (
            {"network": "transformer"},
            "there is no network 'transformer'; there are mlp, cnn, residual, rnn, lstm, autoencoder, gan",
        ),
        ({"network": "cnn"}, "a network 'cnn' needs 1 sizes or more: the channels of each convolution"),
        ({"network": "cnn", "sizes": [4], "data": "wine"}, "a network 'cnn' takes images, and wine has none"),
        ({"network": "lstm", "sizes": [4], "data": "wine"}, "a network 'lstm' takes series, and wine has none"),
        ({"network": "gan", "sizes": [4, 4], "data": "wine"}, "a network 'gan' draws images, and wine has none"),
        ({"network": "gan", "sizes": [4, 4], "folds": 5, "l2": 0.1}, "by Adam and a loss of their own: leave out l2, folds"),
        ({"network": "lstm", "sizes": [4, 8]}, r"sizes \[4, 8\]: the layers of a recurrent network are of one size"),
        ({"folds": 1000}, r"Expected `int` <= 20 - at `\$.folds`"),
        ({"examples": 5}, "1437 examples of digits are too few to set 0.00348 of them aside"),
        ({"coarse": 1}, "coarse is for a network that takes images of any size: residual"),
        ({"data": "nowhere.npz"}, "nowhere.npz cannot be read"),
        ({"folds": 1}, "folds = 1 leaves nothing to learn from"),
        ({"patience": 3}, "patience needs examples to end by: give validation"),
        ({"optimiser": "adagrad"}, r"Invalid enum value 'adagrad' - at `\$.optimiser`"),
        ({"epoch": 3}, "unknown field `epoch`"),
        ({"rate": 0}, r"Expected `float` > 0.0 - at `\$.rate`"),
        ({"batch": 0}, r"Expected `int` >= 1 - at `\$.batch`"),
        ({"dropout": 1.0}, r"Expected `float` < 1.0 - at `\$.dropout`"),
        ({"augment": {"flop": 1}}, r"unknown field `flop` - at `\$.augment`"),
        ({"augment": {"stretch": 0.1}}, "stretch changes nothing of images"),
        ({"loss": "cross-entropy", "data": "diabetes"}, "cross-entropy is a loss of classes"),
    ],
)
def test_settings_that_make_no_sense_are_answered_in_a_line(settings: dict[str, Any], message: str, tmp_path: Path) -> None:
    base = {"data": "digits", "network": "mlp", "epochs": 1}
    experiment = Experiment(kind="network", about="", settings=base | settings, name="mine")
    with pytest.raises(LearnError, match=message) as raised:
        training.train(experiment, Place(folder=tmp_path, seed=1, threads=1, tell=lambda text: None))
    assert "\n" not in str(raised.value)


def test_squared_error_of_classes_is_briers() -> None:
    scores, targets = torch.tensor([[0.0, 0.0], [50.0, 0.0]]), torch.tensor([0, 1])
    assert float(training._brier(scores, targets)) == pytest.approx((0.25 + 1.0) / 2)


def test_what_is_measured_of_values_is_in_their_unit() -> None:
    data = load("diabetes")
    places = np.arange(len(data))
    mean = np.full((len(data), 1), data.targets.mean(), np.float32)
    figures = training.measured(data, places, mean)
    assert figures["rmse"] == pytest.approx(float(data.targets.std()), rel=1e-4)
    assert figures["explained"] == pytest.approx(0.0, abs=1e-4)
    assert training.measured(data, places, data.targets[:, None]) == {"rmse": 0.0, "explained": 1.0}


def of_a_file(path: Path, **changed: Any) -> str:
    digits = load("digits")
    arrays = {"x": digits.inputs[:400], "label": 2 * digits.targets[:400], "held_out": np.arange(400) >= 300}
    np.savez(path, **{name: array for name, array in (arrays | changed).items() if array is not None})
    return str(path)


def test_a_residual_network_learns_a_file_of_ones_own_from_coarse_images_first(tmp_path: Path) -> None:
    asked = {
        "network": "residual",
        "sizes": [8, 16],
        "coarse": 4,
        "epochs": 4,
        "rate": 1e-2,
        "data": of_a_file(tmp_path / "a.npz"),
    }
    run = make(Experiment(kind="network", about="", settings=asked), tmp_path / "made").run
    assert len(run.curves["training loss"]) == 8
    assert run.figures["accuracy"] > 0.6
    with np.load(tmp_path / "made" / "heldout.npz") as kept:
        assert np.array_equal(kept["label"], load("digits").targets[300:400])


@pytest.mark.parametrize(
    ("changed", "settings", "message"),
    [
        ({"label": None}, {}, "has one class: give it an array label"),
        ({"label": np.zeros(9, np.int64)}, {}, "x, label and held_out are not of as many rows"),
        ({}, {"folds": 2}, "says itself what is held out, so it is not split into folds"),
    ],
)
def test_a_file_that_cannot_be_learnt_so(
    changed: dict[str, Any], settings: dict[str, Any], message: str, tmp_path: Path
) -> None:
    asked = {"network": "mlp", "data": of_a_file(tmp_path / "b.npz", **changed)} | settings
    with pytest.raises(LearnError, match=message):
        make(Experiment(kind="network", about="", settings=asked), tmp_path / "made")

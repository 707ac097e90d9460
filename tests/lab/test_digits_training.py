"""The digits training script makes a sound model, and the packaged model is one that it could have made."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime as ort
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("sklearn")

pytestmark = pytest.mark.extras

ROOT = Path(__file__).resolve().parents[2]
PACKAGED = ROOT / "src" / "dlproxy" / "lab" / "digits"
SHORT_EPOCHS = 10
MAX_MODEL_BYTES = 300_000


def _load_script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("digits_train", ROOT / "examples" / "digits" / "train.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    # Dataclasses look their own module up by name.
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def _open(model: Path) -> ort.InferenceSession:
    return ort.InferenceSession(str(model), providers=["CPUExecutionProvider"])


def _probabilities(session: ort.InferenceSession, images: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
    return np.asarray(session.run(["probabilities"], {"image": images.astype(np.float32)})[0], dtype=np.float32)


def _accuracy(session: ort.InferenceSession, images: npt.NDArray[np.uint8], labels: npt.NDArray[np.uint8]) -> float:
    return float(np.mean(_probabilities(session, images).argmax(axis=1) == labels))


def _distinct(images: npt.NDArray[np.uint8]) -> set[bytes]:
    return {image.tobytes() for image in images}


@pytest.fixture(scope="module")
def script() -> ModuleType:
    return _load_script()


@pytest.fixture(scope="module")
def split(script: ModuleType) -> Any:
    return script.load_split()


@pytest.fixture(scope="module")
def short_run(script: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Any:
    return script.train_and_export(tmp_path_factory.mktemp("digits"), epochs=SHORT_EPOCHS, seed=1)


@pytest.fixture(scope="module", params=["short run", "packaged"])
def model_path(request: pytest.FixtureRequest, short_run: Any) -> Path:
    path: Path = short_run.model_path if request.param == "short run" else PACKAGED / "digits.onnx"
    return path


def test_model_has_the_stated_signature(model_path: Path) -> None:
    session = _open(model_path)
    inputs = [(tensor.name, tensor.type, tensor.shape) for tensor in session.get_inputs()]
    outputs = [(tensor.name, tensor.type, tensor.shape) for tensor in session.get_outputs()]
    assert inputs == [("image", "tensor(float)", ["N", 1, 8, 8])]
    assert outputs == [("probabilities", "tensor(float)", ["N", 10])]


def test_model_is_one_small_file(model_path: Path) -> None:
    assert model_path.stat().st_size <= MAX_MODEL_BYTES
    assert [path.name for path in model_path.parent.iterdir() if path.name.startswith("digits.onnx")] == ["digits.onnx"]


def test_batch_agrees_with_singles(model_path: Path, split: Any) -> None:
    session, images = _open(model_path), split.heldout_images[:64]
    together = _probabilities(session, images)
    singly = np.concatenate([_probabilities(session, images[i : i + 1]) for i in range(len(images))])
    np.testing.assert_allclose(together, singly, rtol=0, atol=1e-4)
    np.testing.assert_allclose(together.sum(axis=1), 1.0, rtol=0, atol=1e-5)


def test_exported_model_agrees_with_torch(short_run: Any, split: Any) -> None:
    with torch.no_grad():
        expected = short_run.network(torch.from_numpy(split.heldout_images).float()).numpy()
    actual = _probabilities(_open(short_run.model_path), split.heldout_images)
    np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-4)


def test_short_training_reaches_90_percent(short_run: Any, split: Any) -> None:
    accuracy = _accuracy(_open(short_run.model_path), split.heldout_images, split.heldout_labels)
    assert accuracy >= 0.90
    assert short_run.heldout_accuracy == pytest.approx(accuracy)


def test_training_is_deterministic_by_seed(script: ModuleType, split: Any) -> None:
    def weights(seed: int) -> Any:
        network = script.train_network(split.train_images[:128], split.train_labels[:128], epochs=1, seed=seed)
        return torch.nn.utils.parameters_to_vector(network.parameters()).detach()

    assert torch.equal(weights(3), weights(3))
    assert not torch.equal(weights(3), weights(4))


def test_split_is_stratified_and_disjoint(split: Any) -> None:
    assert len(split.train_images) == 1437
    assert len(split.heldout_images) == 360
    assert _distinct(split.train_images).isdisjoint(_distinct(split.heldout_images))
    counts = np.bincount(split.heldout_labels, minlength=10)
    assert counts.min() >= 34
    assert counts.max() <= 38


def test_packaged_heldout_images_were_not_trained_on(split: Any) -> None:
    with np.load(PACKAGED / "heldout.npz") as heldout:
        images, labels = heldout["images"], heldout["labels"]
    assert images.shape == (360, 1, 8, 8)
    assert images.dtype == np.uint8
    assert images.max() == 16
    assert labels.shape == (360,)
    assert labels.dtype == np.uint8
    assert _distinct(images).isdisjoint(_distinct(split.train_images))
    np.testing.assert_array_equal(images, split.heldout_images)
    np.testing.assert_array_equal(labels, split.heldout_labels)


def test_packaged_model_reaches_98_percent_and_its_card_says_so() -> None:
    with np.load(PACKAGED / "heldout.npz") as heldout:
        accuracy = _accuracy(_open(PACKAGED / "digits.onnx"), heldout["images"], heldout["labels"])
    assert accuracy >= 0.98
    assert f"{accuracy:.2%}" in (PACKAGED / "README.md").read_text(encoding="utf-8")

"""What reference networks have to beat: methods of scikit-learn on the same examples. Called by networks.py."""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from sklearn.decomposition import PCA
from sklearn.ensemble import RandomForestClassifier
from sklearn.linear_model import LogisticRegression, RidgeCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVC

from dlproxy.lab.learn.networks import data as sets
from dlproxy.lab.learn.networks.data import Data, Places
from dlproxy.lab.learn.networks.training import Settings

LAGS = (1, 2, 4, 8, 16)
Answers = Callable[[NDArray[np.float32], NDArray[np.generic], NDArray[np.float32], int], NDArray[np.float64]]


def _vectors(learnt: NDArray[np.float32], labels: NDArray[np.generic], held: NDArray[np.float32], _seed: int) -> NDArray:
    return SVC(C=10, gamma=0.001).fit(_flat(learnt), labels).predict(_flat(held))


def _logistic(learnt: NDArray[np.float32], labels: NDArray[np.generic], held: NDArray[np.float32], _seed: int) -> NDArray:
    return make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000)).fit(learnt, labels).predict(held)


def _ridge(learnt: NDArray[np.float32], labels: NDArray[np.generic], held: NDArray[np.float32], _seed: int) -> NDArray:
    strengths = np.logspace(-3, 3, 13)
    return make_pipeline(StandardScaler(), RidgeCV(strengths)).fit(learnt, labels).predict(held)


def _components(count: int) -> Answers:
    def answers(
        learnt: NDArray[np.float32], _labels: NDArray[np.generic], held: NDArray[np.float32], _seed: int
    ) -> NDArray[np.float64]:
        found = PCA(count).fit(_flat(learnt))
        return found.inverse_transform(found.transform(_flat(held))).reshape(held.shape)

    return answers


def _forest(learnt: NDArray[np.float32], labels: NDArray[np.generic], held: NDArray[np.float32], seed: int) -> NDArray:
    forest = RandomForestClassifier(random_state=seed).fit(_statistics(learnt), labels)
    return forest.predict(_statistics(held))


def _statistics(windows: NDArray[np.float32]) -> NDArray[np.float64]:
    """Of counts [n, seconds, 1]: how they scatter, and how alike they are some seconds apart."""
    counts = windows[:, :, 0].astype(np.float64)
    centred = counts - counts.mean(1, keepdims=True)
    scatter = np.maximum(np.square(centred).mean(1), 1e-9)
    alike = [(centred[:, lag:] * centred[:, :-lag]).mean(1) / scatter for lag in LAGS]
    return np.column_stack([scatter, counts.max(1), counts.min(1), *alike])


def _flat(inputs: NDArray[np.float32]) -> NDArray[np.float32]:
    return inputs.reshape(len(inputs), -1)


def baseline(data: Data, wanted: Settings) -> tuple[str, Answers]:
    """Its name, and what it answers."""
    if wanted.network == "autoencoder":
        return f"{wanted.sizes[-1]} principal components", _components(wanted.sizes[-1])
    known: dict[str, tuple[str, Answers]] = {
        "digits": ("support vectors (radial basis)", _vectors),
        "loads": ("a random forest on scatter and autocorrelation", _forest),
        "diabetes": ("ridge regression", _ridge),
    }
    return known.get(data.name, ("logistic regression", _logistic))


def figure(data: Data, wanted: Settings, answers: Answers, seed: int) -> float:
    """Accuracy, or the share of the variance that is explained, on what this seed's network is measured on."""
    parts: list[tuple[Places, Places]] = sets.folds(data, wanted.folds, seed=seed) if wanted.folds else [sets.held_out(data)]
    found = [answers(data.inputs[learnt], data.targets[learnt], data.inputs[held], seed) for learnt, held in parts]
    order = np.concatenate([held for _, held in parts])
    got = np.concatenate(found)
    if data.classes and wanted.network != "autoencoder":
        return float((got == data.targets[order]).mean())
    truth = data.inputs[order] if wanted.network == "autoencoder" else data.targets[order]
    return 1.0 - float(np.square(got - truth).mean() / np.square(truth - truth.mean(0)).mean())

"""A stacking head: softmax regression on the outputs of several models (Wolpert, Stacked generalization, 1992).

Fitted by whoever has the models' outputs for labelled examples that they were not trained on; used by the step combine.stack.
Not aware of: requests, models.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

from dlproxy.config.values import ConfigError
from dlproxy.steps.values import Floats, shape

ROUNDS = 5000
SMALL = 1e-7  # no element of the gradient is larger once the fit is done

Outputs = Mapping[str, Floats]


class Head(Struct, frozen=True):
    """`weights`: [features, classes]; a model's features are its outputs, less their means, in the order of `widths`."""

    widths: dict[str, int]
    means: Floats
    weights: Floats
    bias: Floats

    def logits(self, outputs: Outputs) -> Floats:
        """[rows, classes]. A model that is missing counts as its mean. Raises ValueError."""
        summed: NDArray[Any] = self.bias
        at = used = 0
        if len({len(given) for given in outputs.values()}) > 1:
            raise ValueError(f"{', '.join(outputs)} have different numbers of rows")
        for name, width in self.widths.items():
            if name in outputs:
                given = outputs[name]
                if given.ndim != 2 or given.shape[1] != width:
                    raise ValueError(f"{name} is {shape(given)}, and the head was fitted to [rows, {width}]")
                summed = summed + (given - self.means[at : at + width]) @ self.weights[at : at + width]
                used += 1
            at += width
        if used < len(outputs):
            unknown = next(name for name in outputs if name not in self.widths)
            raise ValueError(f"the head was not fitted to '{unknown}', but to {', '.join(self.widths)}")
        return summed

    def save(self, path: str | Path) -> None:
        names, widths = list(self.widths), list(self.widths.values())
        np.savez(path, names=names, widths=widths, means=self.means, weights=self.weights, bias=self.bias)

    @classmethod
    def load(cls, path: str | Path) -> "Head":
        """Raises ConfigError for what is no head."""
        try:
            with open(path, "rb") as opened, np.load(opened, allow_pickle=False) as file:
                widths = dict(zip(file["names"].tolist(), map(int, file["widths"]), strict=True))
                head = cls(widths, *(file[name].astype(np.float32) for name in ("means", "weights", "bias")))
        except (OSError, ValueError, KeyError, TypeError, BadZipFile) as error:
            raise ConfigError(f"options.file: {path} cannot be read as a stacking head: {error}", "steps") from None
        features = sum(widths.values())
        if head.means.shape != (features,) or head.bias.ndim != 1 or head.weights.shape != (features, len(head.bias)):
            raise ConfigError(f"options.file: the arrays of {path} do not fit together", "steps")
        return head


def fit(outputs: Mapping[str, Any], labels: Any, *, penalty: float = 1.0) -> Head:
    """The head whose probabilities of the labels are highest. `outputs`: by model, [examples, width]; `labels`: whole numbers
    from 0, [examples]. `penalty`: of the squared weights of standardised outputs, beside the sum over all examples.

    By accelerated gradient steps with restarts (O'Donoghue and Candès, 2015), in the metric of the curvature's upper bound
    (Böhning, 1992), which needs no step size. Raises ValueError.
    """
    widths, features, classes = _examples(outputs, np.asarray(labels), penalty)
    means, spread = features.mean(axis=0), features.std(axis=0)
    spread[spread < 1e-12] = 1.0
    rows = np.column_stack([(features - means) / spread, np.ones(len(features))])
    wanted = np.eye(int(classes.max()) + 1)[classes]
    share = penalty / len(rows)
    inverse = np.linalg.inv(rows.T @ rows / (2 * len(rows)) + share * np.eye(rows.shape[1]))
    weights = ahead = np.zeros((rows.shape[1], wanted.shape[1]))
    momentum = 1.0
    for _ in range(ROUNDS):
        gradient = rows.T @ (_softmax(rows @ ahead) - wanted) / len(rows) + share * ahead
        if np.abs(gradient).max() < SMALL:
            break
        new = ahead - inverse @ gradient
        if ((new - weights) * gradient).sum() > 0.0:
            momentum = 1.0  # the way goes uphill
        following = (1.0 + (1.0 + 4.0 * momentum**2) ** 0.5) / 2.0
        weights, ahead, momentum = new, new + (momentum - 1.0) / following * (new - weights), following
    scaled = ahead[:-1] / spread[:, None]
    return Head(widths, means.astype(np.float32), scaled.astype(np.float32), ahead[-1].astype(np.float32))


def _examples(
    outputs: Mapping[str, Any], labels: NDArray[Any], penalty: float
) -> tuple[dict[str, int], NDArray[np.float64], NDArray[np.int64]]:
    if not outputs or labels.ndim != 1 or not len(labels) or labels.dtype.kind not in "iu" or labels.min() < 0:
        raise ValueError("a head is fitted to outputs of at least one model, and to a whole number from 0 for each example")
    if penalty <= 0.0:
        raise ValueError(f"penalty is {penalty}, and must be above 0")
    arrays = {name: np.asarray(given, np.float64) for name, given in outputs.items()}
    for name, given in arrays.items():
        if given.ndim != 2 or len(given) != len(labels) or not np.isfinite(given).all():
            raise ValueError(f"{name} is {shape(given)}, and must be finite numbers [{len(labels)}, width]")
    return {name: given.shape[1] for name, given in arrays.items()}, np.hstack(list(arrays.values())), labels.astype(np.int64)


def _softmax(scores: NDArray[np.float64]) -> NDArray[np.float64]:
    powers = np.exp(scores - scores.max(axis=1, keepdims=True))
    result: NDArray[np.float64] = powers / powers.sum(axis=1, keepdims=True)
    return result

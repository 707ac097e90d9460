"""How right outputs are: metrics by name, which of them suits, and original and candidate compared on the same examples.

Called by search.py and by recipes that look for what costs accuracy. Not aware of: how outputs were computed.
"""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

from dlproxy.compress import CompressError
from dlproxy.compress.gate import Accuracy
from dlproxy.compress.statistics import Floats, loss_bounds
from dlproxy.config import python_place
from dlproxy.instance.runtime import ModelError
from dlproxy.instance.runtime.classes import imported, located
from dlproxy.instance.runtime.declared import described

Array = NDArray[np.generic]

WHAT = {
    "accuracy": "the share of examples whose class is right, which labels tell",
    "f1": "the mean over classes of F1, which labels tell",
    "r2": "the share of the labels' variance that is explained (R squared)",
    "agreement": "without labels: the share of examples to which the original gives the same class",
    "cosine": "without labels: the mean cosine similarity to the original's outputs",
}
OF_CLASSES = ("accuracy", "f1", "agreement")
OF_LABELS = ("accuracy", "f1", "r2")
ALIKE = 0.01  # of the largest output: closer ones are alike
SUMS_TO_1 = 1e-3
LEAST_OF_CLASS = 5  # examples, of fewer nothing is said
_CLASS_WORDS = ("logit", "prob", "score", "class", "softmax")


class Metric(Struct, frozen=True):
    """`name`: one of WHAT, or file.py:function. `output`: the one that is judged. `why`: it was chosen, if nobody named it."""

    name: str
    output: str
    why: str = ""


class _Compared(Struct):
    """Of all examples: the metric of both, what each example lost and the most it can weigh (statistics.py), and whether both
    answer it alike; and to draw from: how many examples are of each kind, and the loss of so many of each.
    """

    original: float
    candidate: float
    lost: Floats
    alike: NDArray[np.bool_]
    counts: NDArray[np.integer]
    loss: Callable[[Floats], Floats]
    weight: float = 1.0


def check(name: str) -> None:
    """Raises CompressError if there is no such metric; empty: one is chosen."""
    if name and name not in WHAT and not _is_function(name):
        raise CompressError(f"there is no metric '{name}': give one of {', '.join(WHAT)}, or your own as file.py:function")


def choose(name: str, *, labels: Array | None, outputs: Mapping[str, Array], output: str = "") -> Metric:
    """The metric of this name, or one that suits if it is empty. `outputs`: the original's for the examples that `labels` are
    of. Raises CompressError for what does not fit together.
    """
    if output and output not in outputs:
        raise CompressError(f"the model has no output '{output}'; it has {', '.join(outputs)}")
    output = output or next(iter(outputs))
    judged, why = outputs[output], ""
    if not name:
        name, why = _suitable(labels, judged, output)
    check(name)
    if name in OF_LABELS and labels is None:
        raise CompressError(f"{name} needs labels; without them there are agreement and cosine, or a function of your own")
    metric = Metric(name, output, why)
    try:
        _compared(metric, labels, outputs, outputs)
    except CompressError as error:
        other = f"; of the outputs {', '.join(outputs)} another one can be named" if len(outputs) > 1 else ""
        raise CompressError(f"{error}{other}") from error
    return metric


def _suitable(labels: Array | None, judged: Array, output: str) -> tuple[str, str]:
    if labels is not None and labels.dtype.kind == "f":
        return "r2", "labels are not whole numbers"
    if labels is not None and _single(judged) and judged.dtype.kind == "f" and len(np.unique(labels)) > 2:
        return "r2", f"'{output}' is one number for each example"
    if labels is not None:
        return "accuracy", "labels are whole numbers"
    if judged.dtype.kind != "f":
        return "agreement", f"there are no labels, and '{output}' is whole numbers"
    rows = np.asarray(judged, np.float64)
    if not _single(judged) and (rows >= 0.0).all() and (np.abs(rows.sum(-1) - 1.0) < SUMS_TO_1).all():
        return "agreement", f"there are no labels, and '{output}' looks like probabilities of classes: it sums to 1"
    if not _single(judged) and any(word in output.lower() for word in _CLASS_WORDS):
        return "agreement", f"there are no labels, and '{output}' is called like scores of classes"
    return "cosine", f"there are no labels, and '{output}' does not look like scores of classes"


def score(metric: Metric, *, labels: Array | None, original: Mapping[str, Array], outputs: Mapping[str, Array]) -> float:
    """How right the outputs are; the most is 1. Raises CompressError, also for NaN."""
    return _compared(metric, labels, original, outputs).candidate


def compare(
    metric: Metric, *, labels: Array | None, original: Mapping[str, Array], candidate: Mapping[str, Array], seed: int = 0
) -> Accuracy:
    """Both on the same examples: outputs by name, examples on axis 0. Raises CompressError, also for NaN."""
    found = _compared(metric, labels, original, candidate)
    low, high = loss_bounds(found.counts, found.loss, found.lost, seed=seed, weight=found.weight)
    return Accuracy(
        metric.name,
        len(found.lost),
        found.original,
        found.candidate,
        found.original - found.candidate,
        low,
        high,
        float(found.alike.mean()),
        _worst_class(labels, found.lost) if metric.name in OF_CLASSES else None,
    )


def losses(metric: Metric, *, labels: Array | None, original: Mapping[str, Array], candidate: Mapping[str, Array]) -> Floats:
    """What each example loses: their mean is the loss, of metrics that are a mean over examples. Raises CompressError."""
    return _compared(metric, labels, original, candidate).lost


def _compared(metric: Metric, labels: Array | None, original: Mapping[str, Array], candidate: Mapping[str, Array]) -> _Compared:
    if metric.output not in candidate:
        raise CompressError(f"it has no output '{metric.output}' any more; it has {', '.join(candidate)}")
    ours, theirs = original[metric.output], candidate[metric.output]
    if ours.shape != theirs.shape:
        raise CompressError(f"its output '{metric.output}' is {described(theirs)}, the original's {described(ours)}")
    if not ours.ndim or (labels is not None and len(labels) != len(ours)):
        raise CompressError(f"output '{metric.output}' is {described(ours)}, which has no row for each example")
    for whose, array in (("the original's", ours), ("its", theirs)):
        if array.dtype.kind not in "biuf":
            raise CompressError(f"output '{metric.output}' is {described(array)}, of which no metric is known")
        if array.dtype.kind == "f" and (lost := np.isnan(array).reshape(len(array), -1).any(axis=1)).any():
            raise CompressError(
                f"{whose} output '{metric.output}' is NaN for {lost.sum():,} of {len(array):,} held-out examples"
            )
    if metric.name in OF_CLASSES:
        return _of_classes(metric, labels, ours, theirs)
    if metric.name not in WHAT:
        return _of_function(metric.name, ours if labels is None else labels, ours, theirs)
    flat = [np.asarray(array, np.float64).reshape(len(array), -1) for array in (ours, theirs)]
    if not all(np.isfinite(array).all() for array in flat):
        raise CompressError(f"output '{metric.output}' is infinite for some held-out examples")
    return _cosine(*flat) if metric.name == "cosine" else _r2(np.asarray(labels, np.float64), *flat)


# Classes


def _of_classes(metric: Metric, labels: Array | None, ours: Array, theirs: Array) -> _Compared:
    read = _reader(ours, metric.output)
    classes = read(ours), read(theirs)
    truth = classes[0] if labels is None or metric.name == "agreement" else _as_classes(labels, ours, classes[0], metric)
    each = [(one == truth).reshape(len(truth), -1).mean(axis=1) for one in classes]
    alike = (classes[0] == classes[1]).reshape(len(truth), -1).all(axis=1)
    if metric.name != "f1":
        return _mean(each[0], each[1], alike)
    if truth.ndim != 1:
        raise CompressError("f1 is of one class for each example: take accuracy for labels of parts")
    return _f1(truth, *classes, each[0] - each[1], alike)


def _reader(ours: Array, output: str) -> Callable[[Array], NDArray[np.integer]]:
    """Which class an output means: itself if it is whole numbers, the place of the highest score, or of a single score
    whether it is above the middle: 0.5 if all of the original's are probabilities, else 0.
    """
    if ours.dtype.kind != "f":
        return lambda array: array.reshape(_single_shape(array)).astype(np.int64)
    if _single(ours):
        middle = 0.5 if ours.min() >= 0.0 and ours.max() <= 1.0 else 0.0
        return lambda array: (array.reshape(_single_shape(array)).astype(np.float64) > middle).astype(np.int64)
    return lambda array: np.argmax(array, axis=-1)


def _single(array: Array) -> bool:
    return array.ndim < 2 or array.shape[-1] == 1


def _single_shape(array: Array) -> tuple[int, ...]:
    return array.shape[:-1] if array.ndim > 1 and array.shape[-1] == 1 else array.shape


def _as_classes(labels: Array, ours: Array, classes: Array, metric: Metric) -> NDArray[np.integer]:
    """Labels as the output has classes."""
    if labels.dtype.kind == "f":
        raise CompressError(f"{metric.name} needs whole numbers as labels, of classes from 0; of these r2 can be had")
    if labels.shape != classes.shape:
        raise CompressError(
            f"labels are {described(labels)}, output '{metric.output}' is {described(ours)}: {metric.name} takes a label for "
            "each place, of all its axes but the last, which holds the scores of classes"
        )
    known = labels.astype(np.int64)
    if ours.dtype.kind != "f":
        return known
    least, most = int(known.min()), int(known.max())
    count = 2 if _single(ours) else ours.shape[-1]
    if count == 2 and least == -1 and _single(ours):
        least, known = 0, (known > 0).astype(np.int64)
    if least < 0 or most >= count:
        raise CompressError(
            f"labels go from {least} to {most}, the scores of '{metric.output}' are of the classes 0 to {count - 1}"
        )
    return known


def _f1(truth: Array, ours: Array, theirs: Array, lost: Floats, alike: NDArray[np.bool_]) -> _Compared:
    """Macro F1 over the labels that occur: the mean of 2 tp / (predicted + actual). Examples of the rarest weigh most."""
    kinds, counts = np.unique(np.stack([truth, ours, theirs]), axis=1, return_counts=True)
    classes, times = np.unique(truth, return_counts=True)
    actual, *predicted = ((row[:, None] == classes).astype(np.float64) for row in kinds)

    def values(drawn: Floats) -> list[Floats]:
        found = []
        for one in predicted:
            either = drawn @ (one + actual)
            f1 = np.divide(2.0 * (drawn @ (one * actual)), either, out=np.zeros_like(either), where=either > 0.0)
            found.append(f1.sum(axis=1) / (either > 0.0).sum(axis=1))
        return found

    original, candidate = (float(value[0]) for value in values(counts[None].astype(np.float64)))
    weight = len(truth) / (len(classes) * int(times.min()))
    return _Compared(original, candidate, lost, alike, counts, lambda drawn: np.subtract(*values(drawn)), weight)


def _worst_class(labels: Array | None, lost: Floats) -> tuple[str, float] | None:
    if labels is None or labels.ndim != 1 or labels.dtype.kind == "f":
        return None
    classes, which, counts = np.unique(labels, return_inverse=True, return_counts=True)
    losses = np.where(counts >= LEAST_OF_CLASS, np.bincount(which, lost) / counts, 0.0)
    worst = int(np.argmax(losses))
    return (str(classes[worst]), float(losses[worst])) if losses[worst] > 0.0 else None


# Numbers


def _mean(ours: Floats, theirs: Floats, alike: NDArray[np.bool_]) -> _Compared:
    """Of a score for each example."""
    lost = ours - theirs
    values, counts = np.unique(lost, return_counts=True)
    examples = len(lost)
    return _Compared(float(ours.mean()), float(theirs.mean()), lost, alike, counts, lambda drawn: drawn @ values / examples)


def _cosine(ours: Floats, theirs: Floats) -> _Compared:
    lengths = np.linalg.norm(ours, axis=1) * np.linalg.norm(theirs, axis=1)
    both_zero = np.asarray(~(ours.any(axis=1) | theirs.any(axis=1)), np.float64)
    similar = np.divide((ours * theirs).sum(axis=1), lengths, out=both_zero, where=lengths > 0.0)
    return _mean(np.ones(len(ours)), np.minimum(similar, 1.0), _near(ours, theirs))


def _r2(labels: Floats, ours: Floats, theirs: Floats) -> _Compared:
    """1 - mean squared error / variance, both summed over what there is of an example."""
    truth = labels.reshape(len(labels), -1)
    if truth.shape != ours.shape:
        raise CompressError(f"there are {truth.shape[1]} labels for each example, and {ours.shape[1]} outputs")
    truth_about_0 = truth - truth.mean(axis=0)
    errors = [((one - truth) ** 2).sum(axis=1) for one in (ours, theirs)]
    squares = (truth_about_0**2).sum(axis=1)
    variance = float(squares.mean())
    if variance <= 0.0:
        raise CompressError("the labels are all the same: r2 is of labels that differ")

    def loss(drawn: Floats) -> NDArray[Any]:
        shares = drawn / len(truth)
        spread = shares @ squares - ((shares @ truth_about_0) ** 2).sum(axis=1)
        worse = shares @ (errors[1] - errors[0])
        return np.where(spread > 1e-12 * variance, worse / np.maximum(spread, 1e-12 * variance), np.inf)

    original, candidate = (1.0 - float(one.mean()) / variance for one in errors)
    lost = (errors[1] - errors[0]) / variance
    return _Compared(original, candidate, lost, _near(ours, theirs), np.ones(len(truth), np.int64), loss)


def _near(ours: Floats, theirs: Floats) -> NDArray[np.bool_]:
    with np.errstate(invalid="ignore"):  # infinities less infinities are not alike
        return np.asarray((np.abs(ours - theirs) <= ALIKE * np.abs(ours).max()).all(axis=1))


# A user's own


def _is_function(name: str) -> bool:
    return ":" in name and python_place(name) is not None


def _of_function(name: str, truth: Array, ours: Array, theirs: Array) -> _Compared:
    """Of one score for each example, else the function is asked again for each resample."""
    function = _Function(name)
    found = [function(truth, array) for array in (ours, theirs)]
    alike = _near(*(np.asarray(array, np.float64).reshape(len(array), -1) for array in (ours, theirs)))
    if found[0].shape == found[1].shape == (len(ours),):
        return _mean(found[0], found[1], alike)
    if found[0].ndim or found[1].ndim:
        raise CompressError(
            f"{name} gave {described(found[0])}; it gives a score of all, or one for each of {len(ours)} examples"
        )

    def loss(drawn: Floats) -> Floats:
        rows = [np.repeat(np.arange(len(ours)), counts) for counts in drawn.astype(np.int64)]
        return np.array([function(truth[row], ours[row]) - function(truth[row], theirs[row]) for row in rows])

    lost = np.full(len(ours), float(found[0] - found[1]))
    return _Compared(float(found[0]), float(found[1]), lost, alike, np.ones(len(ours), np.int64), loss)


class _Function:
    """file.py:function, which gets labels (without any, the original's outputs) and outputs. Raises CompressError."""

    def __init__(self, name: str) -> None:
        self._name = name
        place, _, attribute = name.rpartition(":")
        try:
            self._call: Any = getattr(imported(place), attribute, None)
        except ModelError as error:
            raise CompressError(f"metric {name}: {error}") from None
        if not callable(self._call):
            raise CompressError(f"metric {name}: {place} has no function {attribute}")

    def __call__(self, truth: Array, outputs: Array) -> Floats:
        try:
            found = np.asarray(self._call(truth.copy(), outputs.copy()), np.float64)  # which it may write to
        except Exception as error:
            raise CompressError(f"metric {self._name} raised {located(error, self._name.rpartition(':')[0])}") from error
        if not np.isfinite(found).all() or (found > 1.0).any():
            raise CompressError(f"metric {self._name} gave {found.max():g}: scores are numbers of at most 1, which is perfect")
        return found

"""Steps that make one answer of several models' answers to the same rows, and say how sure it is.

Named in the table of steps. Each input is a model's scores [rows, classes], under any name; one that has not answered in time
is left out. Not aware of: models, deadlines.
"""

from collections.abc import Mapping
from math import inf, log
from typing import Annotated, Any, Literal

import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

from dlproxy.config.traits import knob
from dlproxy.config.values import ConfigError
from dlproxy.steps.options import checked
from dlproxy.steps.scores import softmax
from dlproxy.steps.stacking import Head
from dlproxy.steps.values import Floats, scores_of, shape

Arrays = dict[str, NDArray[Any]]


def _side_by_side(answers: Mapping[str, Any]) -> Floats:
    """[models, ..., classes]."""
    if not answers:
        raise ValueError("there is no answer to combine")
    found = {name: scores_of(name, answer) for name, answer in answers.items()}
    first = next(iter(found))
    for name, scores in found.items():
        if scores.shape != found[first].shape:
            raise ValueError(f"{name} is {shape(scores)}, and {first} is {shape(found[first])}: they must be alike")
    return np.stack(list(found.values()))


def _weights_of(names: Mapping[str, Any], weights: Mapping[str, float]) -> Floats:
    """Of these models, with 1 as their sum; all alike, where no weights are given."""
    unknown = next((name for name in names if weights and name not in weights), None)
    if unknown is not None:
        raise ValueError(f"there is no weight for '{unknown}'; weights has {', '.join(weights)}")
    given = np.array([weights.get(name, 1.0) for name in names])
    if given.sum() <= 0.0:
        raise ValueError(f"the weights of {', '.join(names)} are all 0, and the others have not answered")
    shares: Floats = (given / given.sum()).astype(np.float32)
    return shares


def _mean(answers: Mapping[str, Any], weights: Mapping[str, float]) -> Floats:
    stacked = _side_by_side(answers)
    return np.asarray(np.tensordot(_weights_of(answers, weights), stacked, axes=1), np.float32)


def _check_weights(weights: Mapping[str, float]) -> None:
    if not all(0.0 <= weight < inf for weight in weights.values()) or (weights and not any(weights.values())):
        raise ConfigError("options.weights: none may be below 0 or infinite, and one must be above 0", "steps")


class Average:
    """The mean of the models' scores, all alike."""

    class Options(Struct, frozen=True):
        pass

    outputs = {"scores": "FP32[-1,-1]"}

    def __init__(self, **options: Any) -> None:
        checked(self.Options, options)

    def __call__(self, /, **models: Any) -> Arrays:
        """Any number of models, under any names: numbers [rows, classes] of each."""
        return {"scores": _mean(models, {})}


class Weighted:
    """The mean of the models' scores, by weights; those of the models that have answered are made to sum to 1."""

    class Options(Struct, frozen=True):
        weights: Annotated[dict[str, float], knob("by the name of the input; 0 or more")]

    outputs = {"scores": "FP32[-1,-1]"}

    def __init__(self, **options: Any) -> None:
        self._weights = checked(self.Options, options).weights
        if not self._weights:
            raise ConfigError("options.weights: give one for each input, such as {small = 1, large = 3}", "steps")
        _check_weights(self._weights)

    def __call__(self, /, **models: Any) -> Arrays:
        """Any number of models, under any names: numbers [rows, classes] of each."""
        return {"scores": _mean(models, self._weights)}


class Vote:
    """The class that most models give the highest score; of equally many votes, the one with the higher mean score, then the
    first. Soft votes are the scores themselves.
    """

    class Options(Struct, frozen=True):
        how: Annotated[Literal["hard", "soft"], knob("one vote a model, or as many as its scores say")] = "hard"
        weights: Annotated[
            dict[str, float], knob("of the models' votes, by the name of the input; without any, all alike")
        ] = {}

    outputs = {"index": "INT64[-1]", "votes": "FP32[-1,-1]"}

    def __init__(self, **options: Any) -> None:
        self._options = checked(self.Options, options)
        _check_weights(self._options.weights)

    def __call__(self, /, **models: Any) -> Arrays:
        """Any number of models, under any names: numbers [rows, classes] of each. Gives votes by class, too."""
        stacked = _side_by_side(models)
        weights = _weights_of(models, self._options.weights).reshape(-1, *[1] * (stacked.ndim - 1))
        scores = _summed(weights * stacked)
        if self._options.how == "soft":
            return {"index": scores.argmax(axis=-1).astype(np.int64, copy=False), "votes": scores.astype(np.float32)}
        ballots = np.zeros_like(stacked)
        np.put_along_axis(ballots, stacked.argmax(axis=-1, keepdims=True), 1, axis=-1)
        votes = _summed(weights * ballots)
        most = votes >= votes.max(axis=-1, keepdims=True) - 1e-6  # of weights that are not exact
        index = np.where(most, scores, -np.inf).argmax(axis=-1).astype(np.int64, copy=False)
        return {"index": index, "votes": votes.astype(np.float32)}


def _summed(stacked: Floats) -> NDArray[np.float64]:
    """Over the models, to the same bit in whatever order they come."""
    summed: NDArray[np.float64] = np.sort(stacked.astype(np.float64), axis=0).sum(axis=0)
    return summed


class Stack:
    """Probabilities by a head that was fitted to the models' outputs (dlproxy.steps.stacking.fit). A model that has not
    answered counts as it does on average.
    """

    class Options(Struct, frozen=True):
        file: Annotated[str, knob("the .npz file of the head")]

    outputs = {"probabilities": "FP32[-1,-1]"}

    def __init__(self, **options: Any) -> None:
        self._head = Head.load(checked(self.Options, options).file)
        self.outputs = {"probabilities": f"FP32[-1,{len(self._head.bias)}]"}

    def __call__(self, /, **models: Any) -> Arrays:
        """Models under the names that the head was fitted to: numbers [rows, width] of each."""
        if not models:
            raise ValueError("there is no answer to combine")
        return {"probabilities": softmax(self._head.logits({name: scores_of(name, given) for name, given in models.items()}))}


class Confidence:
    """How sure a model is of each row, and whether that is enough: for cascades, whose dear model answers only where the cheap
    one is unsure. Of several models, the mean of their probabilities.
    """

    class Options(Struct, frozen=True):
        threshold: Annotated[float, knob("sure is what has at least this confidence")]
        by: Annotated[
            Literal["probability", "margin", "entropy"],
            knob(
                "the highest probability; how far it is above the next; or 1 - the entropy, as a share of the largest possible"
            ),
        ] = "probability"

    outputs = {"sure": "BOOL[-1]", "unsure": "BOOL[-1]", "confidence": "FP32[-1]"}

    def __init__(self, **options: Any) -> None:
        self._options = checked(self.Options, options)

    def __call__(self, /, **models: Any) -> Arrays:
        """Any number of models, under any names: probabilities [rows, classes] of each, as of softmax. NaN is unsure."""
        mean = scores_of(*next(iter(models.items()))) if len(models) == 1 else _mean(models, {})  # 20 times as quick
        confidence = self._confidence(mean)
        sure = confidence >= np.float64(self._options.threshold)  # not rounded to FP32, which may be lower
        return {"sure": sure, "unsure": ~sure, "confidence": confidence}

    def _confidence(self, mean: Floats) -> Floats:
        if mean.shape[-1] < 2:
            raise ValueError(f"the scores are {shape(mean)}; confidence is between two classes or more")
        if self._options.by == "margin":
            highest = np.partition(mean, -2, axis=-1)
            margin: Floats = highest[..., -1] - highest[..., -2]
            return margin
        if self._options.by == "entropy":
            with np.errstate(invalid="ignore", divide="ignore"):
                parts = np.where(mean == 0, 0, mean * np.log(mean))
            mean = 1 + parts.sum(axis=-1, keepdims=True) / log(mean.shape[-1])
        return np.asarray(mean.max(axis=-1), np.float32)

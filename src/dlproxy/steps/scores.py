"""Steps on what models give: scores of classes as probabilities, the best of them, and the vectors of tokens as one.

Named in the table of steps. Not aware of: which model they come from.
"""

from typing import Annotated, Any, Literal

import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

from dlproxy.config.traits import knob
from dlproxy.steps.options import checked, lines_of
from dlproxy.steps.values import Floats, numbers_of, scores_of, shape

Arrays = dict[str, NDArray[Any]]
_FEW = 1 << 12  # numbers that are sorted as quickly as a part of them is found


def softmax(scores: Floats) -> Floats:
    """Along the last axis; what is -inf gets 0."""
    with np.errstate(invalid="ignore"):
        powers = np.exp(scores - scores.max(axis=-1, keepdims=True))
        shares: Floats = powers / powers.sum(axis=-1, keepdims=True)
    return shares


class Softmax:
    """Probabilities of scores (logits), along the last axis."""

    class Options(Struct, frozen=True):
        temperature: Annotated[float, knob("scores are divided by it: above 1 makes the probabilities more alike", gt=0)] = 1.0

    outputs = {"probabilities": "FP32[-1,-1]"}

    def __init__(self, **options: Any) -> None:
        self._temperature = np.float32(checked(self.Options, options).temperature)

    def __call__(self, scores: Any) -> Arrays:
        """scores: numbers [..., classes]."""
        return {"probabilities": softmax(scores_of("scores", scores) / self._temperature)}


class TopK:
    """The k classes with the highest scores, the best first; of equal ones the first, NaN last."""

    class Options(Struct, frozen=True):
        k: Annotated[int, knob("how many; all, if there are not so many", ge=1)] = 5
        labels_file: Annotated[
            str,
            knob("names of the classes, one on each line, as for the model's `class_names`; without it there are no labels"),
        ] = ""

    outputs = {"scores": "FP32[-1,-1]", "indices": "INT64[-1,-1]", "labels": "BYTES[-1,-1]"}

    def __init__(self, **options: Any) -> None:
        given = checked(self.Options, options)
        self._k = given.k
        names = [name.encode() for name in lines_of(given.labels_file, "labels_file")] if given.labels_file else []
        self._labels = np.array(names, object)
        if not given.labels_file:
            self.outputs = {name: kind for name, kind in TopK.outputs.items() if name != "labels"}

    def __call__(self, scores: Any) -> Arrays:
        """scores: numbers [..., classes]."""
        values = scores_of("scores", scores)
        indices = _highest(values, self._k)
        best: Arrays = {"scores": np.take_along_axis(values, indices, -1), "indices": indices.astype(np.int64, copy=False)}
        if "labels" in self.outputs:
            if values.shape[-1] > len(self._labels):
                raise ValueError(f"scores has {values.shape[-1]} classes, and labels_file has {len(self._labels)} lines")
            best["labels"] = self._labels[indices]
        return best


def _highest(values: Floats, k: int) -> NDArray[np.intp]:
    """[..., k], of equal values the first first. Of many, only the k are put in order, if no others are as high as the last."""
    falling = -values
    if values.size > _FEW and k < values.shape[-1]:
        among = falling <= np.partition(falling, k - 1, axis=-1)[..., k - 1 : k]
        if (among.sum(axis=-1) == k).all():
            found = np.nonzero(among)[-1].reshape(*values.shape[:-1], k)
            order = np.argsort(np.take_along_axis(falling, found, -1), axis=-1, kind="stable")
            return np.take_along_axis(found, order, -1)
    return np.argsort(falling, axis=-1, kind="stable")[..., :k]


class ArgMax:
    """The class with the highest score; of equal ones the first."""

    class Options(Struct, frozen=True):
        pass

    outputs = {"index": "INT64[-1]"}

    def __init__(self, **options: Any) -> None:
        checked(self.Options, options)

    def __call__(self, scores: Any) -> Arrays:
        """scores: numbers [..., classes]."""
        return {"index": scores_of("scores", scores).argmax(axis=-1).astype(np.int64, copy=False)}


class Pool:
    """One vector of the vectors of all tokens, as sentence embeddings are made."""

    class Options(Struct, frozen=True):
        how: Annotated[
            Literal["mean", "cls", "max"],
            knob("the mean of the tokens' vectors, the first token's, or the largest in each place"),
        ] = "mean"
        normalise: Annotated[bool, knob("give the vector the length 1, as cosine similarity wants it")] = True

    outputs = {"embedding": "FP32[-1,-1]"}

    def __init__(self, **options: Any) -> None:
        self._options = checked(self.Options, options)

    def __call__(self, hidden: Any, mask: Any = None) -> Arrays:
        """hidden: numbers [rows, tokens, width]. mask: which tokens count, [rows, tokens]; without it, all do."""
        vectors = numbers_of("hidden", hidden, rank=3)
        counts = np.ones(vectors.shape[:2], bool) if mask is None else numbers_of("mask", mask, rank=2) != 0
        if counts.shape != vectors.shape[:2]:
            raise ValueError(f"mask is {shape(counts)}, and hidden is {shape(vectors)}")
        if not vectors.shape[1]:
            raise ValueError(f"hidden is {shape(vectors)}: there are no tokens")
        pooled = self._pooled(vectors, counts)
        if self._options.normalise:
            pooled = pooled / np.maximum(np.linalg.norm(pooled, axis=1, keepdims=True), np.float32(1e-12))
        return {"embedding": np.ascontiguousarray(pooled, np.float32)}

    def _pooled(self, vectors: Floats, counts: NDArray[np.bool_]) -> Any:
        """[rows, width]; rows without a token that counts are 0."""
        if self._options.how == "cls":
            first = counts.argmax(axis=1)  # padding may stand on the left
            return vectors[np.arange(len(vectors)), first]
        if self._options.how == "max":
            highest = np.where(counts[..., None], vectors, -np.inf).max(axis=1)
            return np.where(counts.any(axis=1, keepdims=True), highest, 0)
        weights = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
        return np.matmul(weights.astype(np.float32)[:, None, :], np.where(counts[..., None], vectors, 0))[:, 0]

"""A step that tells how far inputs are from those that a model was trained on, and refuses what is too far; what it knows is
fitted by `fit`, in numpy, to a small file.

Named in the table of steps. Not aware of: models, requests.
"""

from math import ceil
from pathlib import Path
from typing import Annotated, Any
from zipfile import BadZipFile

import numpy as np
from msgspec import Struct, structs
from numpy.typing import NDArray

from dlproxy.config.traits import knob
from dlproxy.config.values import ConfigError
from dlproxy.message import invalid
from dlproxy.steps.options import checked
from dlproxy.steps.values import Floats, numbers_of, shape

Doubles = NDArray[np.float64]
LEAST_NOISE = 1e-6  # of the mean variance of a feature: what no training row varies in may vary a little


class Profile(Struct, frozen=True):
    """What is usual: a Gaussian about each class's mean, all of one covariance (probabilistic PCA: Tipping and Bishop, 1999):
    `variances` [kept] along the principal components `axes` [features, kept], and `noise` in each other direction.

    `means`: [classes, features]. `row`: the shape of a row. `threshold`: of scores, above which `rate` of usual rows are.
    """

    row: tuple[int, ...]
    means: Doubles
    axes: Doubles
    variances: Doubles
    noise: float
    threshold: float
    rate: float

    def scores(self, rows: NDArray[Any]) -> Floats:
        """[rows], of [rows, ...]: the Mahalanobis distance to the nearest class (Lee et al., 2018), over the root of the number
        of features: about 1 for what is usual; infinite for what is not finite.
        """
        flat = rows.reshape(len(rows), self.means.shape[1]).astype(np.float64)
        nearest = np.full(len(flat), np.inf)
        with np.errstate(invalid="ignore", over="ignore"):
            for mean in self.means:
                centred = flat - mean
                within = centred @ self.axes
                beside = centred - within @ self.axes.T
                squares = (within**2 / self.variances).sum(axis=1) + (beside**2).sum(axis=1) / self.noise
                nearest = np.fmin(nearest, squares)  # of NaN and a number, the number
            return np.sqrt(nearest / flat.shape[1]).astype(np.float32)

    def save(self, path: str | Path) -> None:
        arrays: dict[str, Any] = {name: getattr(self, name) for name in self.__struct_fields__}
        np.savez(path, **arrays)

    @classmethod
    def load(cls, path: str | Path) -> "Profile":
        """Raises ConfigError for what is no profile."""
        try:
            with open(path, "rb") as opened, np.load(opened, allow_pickle=False) as file:
                means, axes, variances = (file[name].astype(np.float64) for name in ("means", "axes", "variances"))
                noise, threshold, rate = (float(file[name]) for name in ("noise", "threshold", "rate"))
                row = tuple(map(int, file["row"]))
        except (OSError, ValueError, KeyError, TypeError, BadZipFile) as error:
            raise ConfigError(f"options.file: {path} cannot be read as a guard's profile: {error}", "steps") from None
        features = int(np.prod(row))
        fits = means.shape[1:] == (features,) and len(means) and axes.shape == (features, *variances.shape)
        if not fits or variances.ndim != 1 or not noise > 0.0 or not (variances > 0.0).all():
            raise ConfigError(f"options.file: the arrays of {path} do not fit together", "steps")
        return cls(row, means, axes, variances, noise, threshold, rate)


def fit(rows: Any, labels: Any = None, *, held_out: Any, rate: float = 0.01, share: float = 0.95) -> Profile:
    """What is usual of `rows`, [rows, ...], with whole numbers from 0 as `labels`, or of one class. Its components have this
    share of the variance. The threshold is such that of rows like `held_out`, which it is not fitted to, `rate` at most are
    above it in the mean, whatever their distribution (split conformal: Bates et al., 2023). Raises ValueError.
    """
    rows, held_out = _finite("rows", rows), _finite("held_out", held_out)
    if rows.shape[1:] != held_out.shape[1:]:
        raise ValueError(f"rows are {shape(rows)}, and held_out {shape(held_out)}: each row must be of one shape")
    if not 0.0 < rate < 1.0 or not 0.0 < share < 1.0:
        raise ValueError(f"rate is {rate} and share {share}; both are above 0 and below 1")
    at = ceil((len(held_out) + 1) * (1.0 - rate) - 1e-9)
    if at > len(held_out):
        raise ValueError(f"a rate of {rate:g} takes {ceil(1 / rate) - 1} rows of held_out, and there are {len(held_out)}")
    profile = structs.replace(_fitted(rows, labels, share), rate=rate)
    return structs.replace(profile, threshold=float(np.sort(profile.scores(held_out))[at - 1]))


def _finite(name: str, given: Any) -> NDArray[Any]:
    rows = numbers_of(name, given)
    if rows.ndim < 2 or not rows.size or not np.isfinite(rows).all():
        raise ValueError(f"{name} is {shape(rows)}, and must be finite numbers [rows, ...]")
    return rows


def _fitted(rows: NDArray[Any], labels: Any, share: float) -> Profile:
    flat = rows.reshape(len(rows), -1).astype(np.float64)
    classes = np.zeros(len(flat), np.int64) if labels is None else np.asarray(labels)
    if classes.shape != (len(flat),) or classes.dtype.kind not in "iu":
        raise ValueError(f"labels is {classes.dtype}{shape(classes)}, and must be whole numbers [{len(flat)}]")
    known, which = np.unique(classes, return_inverse=True)
    if len(flat) <= len(known):
        raise ValueError(f"{len(flat)} rows of {len(known)} classes say nothing of how much rows of a class vary")
    means = np.stack([flat[which == number].mean(axis=0) for number in range(len(known))])
    centred = flat - means[which]
    variances, axes = np.linalg.eigh(centred.T @ centred / (len(flat) - len(known)))
    variances, axes = variances[::-1].clip(0.0), axes[:, ::-1]
    if not variances.any():
        raise ValueError("all rows of a class are the same: nothing can be said of others")
    kept = int(np.searchsorted(np.cumsum(variances) / variances.sum(), share)) + 1
    least = LEAST_NOISE * float(variances.mean())
    noise = max(float(variances[kept:].mean()) if kept < len(variances) else 0.0, least)
    return Profile(rows.shape[1:], means, axes[:, :kept].copy(), variances[:kept].clip(least), noise, 0.0, 0.0)


class Guard:
    """Rows as they came, if they are like those that the guard was fitted to. One row that is not has the whole request
    refused, with its score and the threshold; with refuse = false every row passes, and `unusual` says which are not like them.
    """

    class Options(Struct, frozen=True):
        file: Annotated[str, knob("the .npz file of what is usual, by `dlproxy learn train` or dlproxy.steps.guard.fit")]
        threshold: Annotated[float, knob("the highest score that is usual; 0: what the file says", ge=0)] = 0.0
        refuse: Annotated[bool, knob("refuse a request with unusual rows, or only say which they are")] = True

    outputs = {"x": "FP32[-1,-1]", "score": "FP32[-1]", "unusual": "BOOL[-1]"}

    def __init__(self, **options: Any) -> None:
        given = checked(self.Options, options)
        self._refuse = given.refuse
        self._profile = Profile.load(given.file)
        self._threshold = np.float64(given.threshold or self._profile.threshold)
        self.outputs = {**Guard.outputs, "x": f"FP32[-1,{','.join(map(str, self._profile.row))}]"}

    def __call__(self, x: Any) -> dict[str, NDArray[Any]]:
        """x: numbers [rows, ...], as the model takes them. Infinite numbers and NaN are unusual."""
        rows = numbers_of("x", x)
        if rows.shape[1:] != self._profile.row:
            raise ValueError(f"x is {shape(rows)}, and the guard was fitted to {self.outputs['x'].removeprefix('FP32')}")
        scores = self._profile.scores(rows)
        unusual = ~(scores <= self._threshold)
        if self._refuse and unusual.any():
            worst = int(scores.argmax())
            more = f"; {unusual.sum()} of {len(rows)} rows are above it" if len(rows) > 1 else ""
            raise invalid(
                f"row {worst} is unlike the data that the model was trained on: its score is {scores[worst]:.3g}, "
                f"and the threshold {self._threshold:.3g}{more}"
            )
        return {"x": rows, "score": scores, "unusual": unusual}

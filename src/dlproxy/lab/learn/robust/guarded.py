"""An experiment of kind guard: what tells inputs unlike those of a data set, its false alarms, and what it finds and misses.

Called by lab/learn/train.py. What it learns is steps/guard.py's. Not aware of: pipelines.
"""

from collections.abc import Callable
from typing import Annotated

import numpy as np
from msgspec import Meta, Struct
from numpy.typing import NDArray

from dlproxy.lab.learn.experiment import Experiment, LearnError, Place, Run, settings
from dlproxy.lab.learn.networks import data as sets
from dlproxy.lab.learn.networks.data import Data, Places
from dlproxy.steps.guard import Profile, fit

Share = Annotated[float, Meta(gt=0, lt=1)]
Rows = NDArray[np.float32]


class Settings(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`data`: of ours, or a file .npz with `x` [rows, ...] and perhaps `label` [rows], whole numbers. `rate`: of false alarms;
    `share`: see steps/guard.py; `held`: the share of the training part that the threshold is set by. `model`: an experiment of
    kind robust, whose plain network is guarded and attacked.
    """

    data: str
    rate: Share = 0.01
    share: Share = 0.95
    held: Share = 0.25
    model: str = ""


def train(experiment: Experiment, place: Place) -> Run:
    """One seed, which says which fifth is held out: guard.npz, and with a model model.onnx and dlproxy.toml.

    Raises LearnError.
    """
    wanted: Settings = settings(experiment, Settings)
    data = sets.load(wanted.data)
    learnt, held_out = sets.fold(data, place.seed)
    taught, kept = sets.split(data, learnt, wanted.held, seed=place.seed)
    try:
        profile = profile_of(data, taught, kept, wanted)
    except ValueError as error:
        raise LearnError(f"{experiment.name}: {error}") from error
    profile.save(place.folder / "guard.npz")
    chance = np.random.default_rng(place.seed)
    rows = data.inputs[held_out]
    figures = {"false alarms": alarms(profile, rows), "threshold": profile.threshold}
    for name, strange in strangers(rows, chance).items():
        figures[f"finds {name}"] = alarms(profile, strange)
    if data.classes > 1:
        figures["finds unseen classes"] = _unseen(data, wanted, place.seed)
    if wanted.model:
        from dlproxy.lab.learn.robust.deceived import deceived

        figures |= deceived(wanted.model, data, taught, kept, held_out, profile, place)
    return Run(seed=place.seed, figures=figures)


def profile_of(data: Data, taught: Places, kept: Places, wanted: Settings) -> Profile:
    """Raises ValueError."""
    labels = data.targets[taught] if data.classes else None
    return fit(data.inputs[taught], labels, held_out=data.inputs[kept], rate=wanted.rate, share=wanted.share)


def alarms(profile: Profile, rows: Rows) -> float:
    """The share of rows that would be refused."""
    return float((profile.scores(rows) > profile.threshold).mean())


def strangers(rows: Rows, chance: np.random.Generator) -> dict[str, Rows]:
    """What is not such data, by what was done to it; each of as many rows. Images are also mirrored, turned and moved."""
    low, high = rows.min(axis=0), rows.max(axis=0)
    flat = rows.reshape(len(rows), -1)
    found = {
        "noise": chance.uniform(rows.min(), rows.max(), rows.shape)
        if rows.ndim == 4
        else chance.uniform(low, high, rows.shape),
        "shuffled": chance.permuted(flat, axis=1).reshape(rows.shape),
        "inverted": low.min() + high.max() - rows if rows.ndim == 4 else low + high - rows,
    }
    if rows.ndim == 4:
        changes: dict[str, Callable[[Rows], Rows]] = {
            "mirrored": lambda given: given[..., ::-1],
            "turned by 90 degrees": lambda given: np.rot90(given, axes=(2, 3)),
            "moved by a pixel": lambda given: np.roll(given, 1, axis=3),
        }
        found |= {name: change(rows) for name, change in changes.items() if name[0] != "t" or rows.shape[2] == rows.shape[3]}
    if rows.shape[1:] == (1, 8, 8):
        found["photographs"] = photographs(len(rows), chance)
    return {name: np.ascontiguousarray(each, np.float32) for name, each in found.items()}


def photographs(count: int, chance: np.random.Generator) -> Rows:
    """Squares of the two photographs that come with scikit-learn, in grey, as images of 8 x 8 of 0 to 16."""
    from sklearn.datasets import load_sample_images

    grey = [image.mean(axis=2) / 255.0 * 16.0 for image in load_sample_images().images]
    found = np.empty((count, 1, 8, 8), np.float32)
    for number in range(count):
        image = grey[number % len(grey)]
        size = 8 * int(chance.integers(1, 9))
        top, left = (int(chance.integers(0, length - size + 1)) for length in image.shape)
        square = image[top : top + size, left : left + size]
        found[number, 0] = square.reshape(8, size // 8, 8, size // 8).mean(axis=(1, 3))
    return found


def _unseen(data: Data, wanted: Settings, seed: int) -> float:
    """A guard of half of the classes, asked of the others."""
    known = np.flatnonzero(data.targets < data.classes // 2)
    other = np.flatnonzero(data.targets >= data.classes // 2)
    taught, kept = sets.split(data, known, wanted.held, seed=seed)
    return alarms(profile_of(data, taught, kept, wanted), data.inputs[other])

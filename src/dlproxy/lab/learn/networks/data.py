"""Data that ships with scikit-learn, and simulated load, split so that nothing is measured on what was learnt from.

Called by training.py and by other parts that learn from the same data. Not aware of: networks, torch.
"""

from collections.abc import Callable
from functools import cache
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

from dlproxy.lab.learn.experiment import LearnError
from dlproxy.lab.load.arrivals import make_arrivals

HELD_OUT = 0.2  # of all examples, by no choice of ours: see `held_out`
STREAMS, MINUTES, SECONDS, PER_SECOND = 15, 25, 64, 20.0  # a stream of each process has so many windows of a minute or so
PROCESSES = ("poisson", "gamma:cv=2", "mmpp:high=4,share=0.2,dwell=4", "daily:peak=3,period=40")

Floats = NDArray[np.float32]
Places = NDArray[np.intp]  # of examples


class Data(Struct, frozen=True, kw_only=True):
    """`inputs`: [n, ...], as they are. `targets`: int64 [n], classes from 0; or float32 [n], values. `classes`: 0 for values.
    `kind`: image [n, channels, height, width], series [n, steps, channels] or table [n, columns]. `apart`: bool [n], those
    that are held out because the data says so.
    """

    name: str
    kind: str
    inputs: Floats
    targets: NDArray[Any]
    classes: int
    apart: NDArray[np.bool_] | None = None

    def __len__(self) -> int:
        return len(self.targets)


class Scale(Struct, frozen=True):
    """`(inputs - mean) / deviation` is what a network sees; arrays of one example's shape, or of one number."""

    mean: Floats
    deviation: Floats


def unknown(name: str) -> str:
    """What is wrong with it as a name of data; empty if nothing is."""
    if name in DATA or name.endswith(".npz"):
        return ""
    return f"there is no data '{name}'; there are {', '.join(DATA)}, and files that end in .npz"


@cache
def load(name: str) -> Data:
    """Of DATA, or of a file with `x`, and perhaps `label` (whole numbers, which become 0, 1 and so on) and `held_out` (bool);
    the same arrays each time, so nobody writes to them. Raises LearnError.
    """
    if wrong := unknown(name):
        raise LearnError(f"settings: {wrong}")
    if name in DATA:
        return DATA[name](name)
    try:
        with np.load(Path(name), allow_pickle=False) as file:
            inputs = np.asarray(file["x"], np.float32)
            labels = np.asarray(file["label"], np.int64) if "label" in file else np.zeros(len(inputs), np.int64)
            apart = np.asarray(file["held_out"], np.bool_) if "held_out" in file else None
    except (OSError, ValueError, KeyError) as error:
        raise LearnError(f"settings: data: {name} cannot be read: {error}") from error
    known, targets = np.unique(labels, return_inverse=True)
    if any(array.shape != (len(inputs),) for array in (labels, labels if apart is None else apart)):
        raise LearnError(f"settings: data: {name}: x, label and held_out are not of as many rows")
    kind = "image" if inputs.ndim == 4 else "table"
    return Data(name=Path(name).stem, kind=kind, inputs=inputs, targets=targets, classes=len(known), apart=apart)


def held_out(data: Data) -> tuple[Places, Places]:
    """Examples to learn from, and those by which nothing is ever chosen, always the same: what the data sets apart, or a fifth
    of each class (or of all).
    """
    if data.apart is not None:
        return np.flatnonzero(~data.apart), np.flatnonzero(data.apart)
    return split(data, np.arange(len(data)), HELD_OUT, seed=0)


def split(data: Data, places: Places, share: float, *, seed: int) -> tuple[Places, Places]:
    """These places without a share of them, and the share: of each class alike. Raises LearnError if they are too few."""
    from sklearn.model_selection import train_test_split

    classes = data.targets[places] if data.classes else None
    try:
        kept, taken = train_test_split(places, test_size=share, stratify=classes, random_state=seed)
    except ValueError as error:
        raise LearnError(
            f"{len(places)} examples of {data.name} are too few to set {share:.3g} of them aside: {error}"
        ) from error
    return np.sort(kept), np.sort(taken)


def few(data: Data, places: Places, count: int, *, seed: int) -> Places:
    """So many of these places, of each class alike; all of them if there are no more, or `count` is 0. Raises LearnError."""
    return split(data, places, count / len(places), seed=seed)[1] if 0 < count < len(places) else places


def folds(data: Data, count: int, *, seed: int) -> list[tuple[Places, Places]]:
    """So many times: examples to learn from, and the fold that is held out, each example once; of each class alike.

    Raises LearnError of data that sets examples apart.
    """
    if data.apart is not None:
        raise LearnError(f"{data.name} says itself what is held out, so it is not split into folds: leave out folds")
    from sklearn.model_selection import KFold, StratifiedKFold

    kind = StratifiedKFold if data.classes else KFold
    found = kind(count, shuffle=True, random_state=seed).split(data.inputs.reshape(len(data), -1), data.targets)
    return [(learnt, held) for learnt, held in found]


def fold(data: Data, seed: int, count: int = 5) -> tuple[Places, Places]:
    """One of them for each seed from 1 on, so that seeds differ in what is held out, too; after all of them, other folds."""
    return folds(data, count, seed=(seed - 1) // count)[(seed - 1) % count]


def scale(data: Data, learnt: Places) -> Scale:
    """By the examples learnt from alone. Images keep their black at 0, so that what is shifted in is as black as paper."""
    inputs = data.inputs[learnt]
    if data.kind == "image":
        return Scale(np.zeros(1, np.float32), inputs.max().reshape(1))
    return scale_of(inputs.reshape(-1, inputs.shape[-1]))


def scale_of(rows: Floats) -> Scale:
    """Mean and deviation over axis 0; what does not vary stays as it is."""
    deviation = np.atleast_1d(rows.std(0))
    return Scale(np.atleast_1d(rows.mean(0)), np.where(deviation > 0.0, deviation, np.float32(1.0)))


def _digits(name: str) -> Data:
    from sklearn.datasets import load_digits

    found = load_digits()
    images = found.images.astype(np.float32)[:, np.newaxis]
    return Data(name=name, kind="image", inputs=images, targets=found.target.astype(np.int64), classes=10)


def _table(loader: str) -> Callable[[str], Data]:
    def read(name: str) -> Data:
        from sklearn import datasets

        found = getattr(datasets, loader)()
        classes = len(getattr(found, "target_names", ()))
        targets = found.target.astype(np.int64 if classes else np.float32)
        return Data(name=name, kind="table", inputs=found.data.astype(np.float32), targets=targets, classes=classes)

    return read


def _loads(name: str) -> Data:
    """Requests in each second of a minute, over their mean; the class is the process that they were drawn from. Simulated."""
    random = np.random.default_rng(0)
    windows = []
    for process in PROCESSES * STREAMS:
        rate = PER_SECOND * 2.0 ** random.uniform(-1, 1)
        arrivals = make_arrivals(process, rate=rate, seed=int(random.integers(2**31)))
        instants = np.concatenate(list(arrivals.chunks(SECONDS * MINUTES)))
        counts, _ = np.histogram(instants, np.arange(SECONDS * MINUTES + 1))
        windows.append((counts / rate).reshape(MINUTES, SECONDS, 1).astype(np.float32))
    targets = np.tile(np.arange(len(PROCESSES)), STREAMS).repeat(MINUTES)
    return Data(name=name, kind="series", inputs=np.concatenate(windows), targets=targets, classes=len(PROCESSES))


DATA = MappingProxyType(
    {
        "digits": _digits,
        "cancer": _table("load_breast_cancer"),
        "wine": _table("load_wine"),
        "diabetes": _table("load_diabetes"),
        "loads": _loads,
    }
)

"""Examples that a model is calibrated, trained and judged by: arrays by the names of its inputs, and what is right of each.

Read from .npz files. Not aware of: models, metrics.
"""

import hashlib
from collections.abc import Callable, Sequence
from math import ceil
from pathlib import Path

import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

from dlproxy import tensors
from dlproxy.compress import CompressError
from dlproxy.instance.runtime.content import digest_of
from dlproxy.instance.runtime.declared import described, fits, written
from dlproxy.message import DType, InferenceError, TensorSpec, text_of

Array = NDArray[np.generic]

LABELS = ("label", "labels", "y", "target")
LEAST_TRAINING = 16  # examples to calibrate with
LEAST_HELD_OUT = 30  # fewer show nothing: not even that a tenth is not lost
LEAST_OF_CLASS = 2  # where most labels occur once, they are no classes
MOST_SHARED = 0.5  # of the held-out examples


class Dataset(Struct, frozen=True, eq=False):
    """`inputs`: by name, all with as many rows on their first axis. `labels`: as many, or None where there are none."""

    inputs: dict[str, Array]
    labels: Array | None = None

    def __len__(self) -> int:
        return len(next(iter(self.inputs.values())))

    def rows(self, chosen: Sequence[int] | NDArray[np.integer | np.bool_] | slice) -> "Dataset":
        """Some of the examples, in this order."""
        labels = None if self.labels is None else self.labels[chosen]
        return Dataset({name: array[chosen] for name, array in self.inputs.items()}, labels)

    @property
    def are_classes(self) -> bool:
        """Whether the labels are the number of a class each."""
        labels = self.labels
        if labels is None or labels.ndim != 1 or labels.dtype.kind not in "iu":
            return False
        return len(np.unique(labels)) * LEAST_OF_CLASS <= len(labels)


Tell = Callable[[str], None]


def read(path: Path, *, inputs: Sequence[TensorSpec], labels: str = "", tell: Tell = lambda line: None) -> Dataset:
    """An .npz file, or a folder of them one after the other, with an array for each of a model's inputs, examples on axis 0.

    Of a model with one input the array may have any name. `labels`: the name of theirs, else one of LABELS. `tell` hears of
    arrays that were converted. Raises CompressError.
    """
    parts = [_Reading(file, inputs, labels, tell) for file in _files(path)]
    datasets = [part.dataset() for part in parts]
    first = datasets[0]
    for part, dataset in zip(parts, datasets, strict=True):
        if dataset.inputs.keys() != first.inputs.keys() or (dataset.labels is None) != (first.labels is None):
            raise CompressError(f"{part.file} holds other arrays than {parts[0].file}: files of a folder are parts of one set")
    if len(datasets) == 1:
        return first
    joined = {name: _joined(name, [dataset.inputs[name] for dataset in datasets], path) for name in first.inputs}
    known = [dataset.labels for dataset in datasets if dataset.labels is not None]
    return Dataset(joined, _joined("the labels", known, path) if known else None)


def digest(path: Path) -> str:
    """SHA-256 of what `read` reads, in hex. Raises CompressError."""
    files = _files(path)
    try:
        found = [digest_of(str(file)) for file in files]
    except OSError as error:
        raise CompressError(f"{path} cannot be read: {error.strerror}") from None
    return found[0].hex() if path.is_file() else hashlib.sha256(b"".join(found)).hexdigest()


def _files(path: Path) -> list[Path]:
    if not path.exists():
        raise CompressError(f"{path} does not exist: give an .npz file, or a folder of them")
    if not path.is_dir():
        return [path]
    files = sorted(path.glob("*.npz"))
    if not files:
        raise CompressError(f"the folder {path} holds no .npz file")
    return files


def _joined(name: str, arrays: Sequence[Array], path: Path) -> Array:
    if len({(array.shape[1:], array.dtype) for array in arrays}) > 1:
        kinds = " and ".join(sorted({described(array[:0]).replace("[0", "[N") for array in arrays}))
        raise CompressError(f"{name} in the files of {path} are {kinds}: pad or cut them to one shape, of one type")
    return np.concatenate(arrays)


class _Reading:
    """One file. Methods raise CompressError."""

    def __init__(self, file: Path, inputs: Sequence[TensorSpec], labels: str, tell: Tell) -> None:
        self.file = file
        self._specs = {spec.name: spec for spec in inputs}
        self._labels = labels
        self._tell = tell

    def dataset(self) -> Dataset:
        arrays = _arrays(self.file)
        name = self._name_of_labels(arrays)
        labels = self._checked_labels(arrays.pop(name)) if name else None
        found = {name: self._input(name, array) for name, array in self._by_input(arrays).items()}
        lengths = {name: len(array) for name, array in found.items()} | ({} if labels is None else {name: len(labels)})
        if len(set(lengths.values())) > 1:
            said = ", ".join(f"{name} {length:,}" for name, length in lengths.items())
            raise CompressError(f"{self.file}: arrays have different numbers of examples on their first axis: {said}")
        if not lengths or not min(lengths.values()):
            raise CompressError(f"{self.file} holds no examples")
        return Dataset(found, labels)

    def _name_of_labels(self, arrays: dict[str, Array]) -> str:
        if self._labels:
            if self._labels not in arrays or self._labels in self._specs:
                raise CompressError(f"{self.file} has no labels named '{self._labels}'; it holds {_names(arrays)}")
            return self._labels
        return next((name for name in LABELS if name in arrays and name not in self._specs), "")

    def _by_input(self, arrays: dict[str, Array]) -> dict[str, Array]:
        if len(self._specs) == len(arrays) == 1:
            return dict(zip(self._specs, arrays.values(), strict=True))
        missing = [name for name, spec in self._specs.items() if name not in arrays and spec.default is None]
        unknown = [name for name in arrays if name not in self._specs]
        if missing or unknown:
            takes = ", ".join(f"{name} {written(spec)}" for name, spec in self._specs.items())
            said = [f"lacks {', '.join(missing)}"] if missing else []
            said += [f"also has {', '.join(unknown)}"] if unknown else []
            raise CompressError(
                f"{self.file} {' and '.join(said)}; the model takes {takes} (and labels are called {LABELS[1]})"
            )
        return arrays

    def _input(self, name: str, array: Array) -> Array:
        spec = self._specs[name]
        if spec.shape[:1] not in ((-1,), (1,)) or spec.rows not in (0, None):
            raise CompressError(f"input '{name}' of the model is {written(spec)}, whose first axis does not count examples")
        if not array.ndim or not fits((spec.shape[0], *array.shape[1:]), spec.shape):
            raise CompressError(f"{self.file}: '{name}' is {described(array)}, the model takes {written(spec)}")
        array = self._finite(name, array)
        if array.dtype == tensors.NUMPY[spec.dtype] and spec.dtype is not DType.BF16:
            return array
        try:
            values = array.astype(object) if spec.dtype is DType.BYTES else array
            tensor = tensors.from_values(name, spec.dtype, values)
        except InferenceError as error:
            raise CompressError(f"{self.file}: {error}") from None
        self._tell(
            f"{self.file.name}: '{name}' is {array.dtype} and was converted to {spec.dtype.value}, which the model takes"
        )
        return tensors.to_array(spec.dtype, array.shape, tensor.data, text=spec.text)

    def _checked_labels(self, array: Array) -> Array:
        if array.dtype.kind not in "biuf":
            raise CompressError(f"{self.file}: labels are {array.dtype}, and must be numbers: of a class from 0, or values")
        if not array.ndim:
            raise CompressError(f"{self.file}: labels are a single number, and must be one for each example")
        array = self._finite("labels", array)
        if array.ndim == 2 and array.shape[1] == 1:
            array = array[:, 0]
        return array.astype(np.float64 if array.dtype.kind == "f" else np.int64)

    def _finite(self, name: str, array: Array) -> Array:
        if array.dtype.kind == "f" and not (fine := np.isfinite(array)).all():
            bad = np.unique(np.argwhere(~fine)[:, 0])
            raise CompressError(f"{self.file}: '{name}' has NaN or infinity in {len(bad):,} examples, first in number {bad[0]}")
        return array


def _arrays(file: Path) -> dict[str, Array]:
    if not file.is_file():
        raise CompressError(f"{file} is not a file")
    try:
        with file.open("rb") as stream:  # numpy leaves open what it cannot read
            loaded = np.load(stream, allow_pickle=False)
            if isinstance(loaded, np.ndarray):
                raise CompressError(f"{file} holds a single array without a name: write it by numpy.savez, as .npz")
            return {name: loaded[name] for name in loaded.files}
    except CompressError:
        raise
    except Exception as error:  # whatever a damaged archive makes zipfile, zlib and numpy raise
        if "allow_pickle" in str(error):
            raise CompressError(f"{file} is no .npz of plain numbers: it holds Python objects or is another format") from None
        raise CompressError(f"{file} cannot be read as .npz: {text_of(error)}") from None


def _names(arrays: dict[str, Array]) -> str:
    return ", ".join(arrays) or "no arrays"


def split(dataset: Dataset, *, held_out: float | Dataset, seed: int, least: int = LEAST_HELD_OUT) -> tuple[Dataset, Dataset]:
    """(to learn from, to judge by): a share at random, of each class alike where labels are classes, or a set of its own.

    `least`: examples to judge by, statistics.examples_needed. Raises CompressError for fewer, and says how many are needed.
    """
    if isinstance(held_out, Dataset):
        training, judging = dataset, held_out
        _are_apart(training, judging)
    else:
        if not 0.0 < held_out < 1.0:
            raise CompressError(f"{held_out:g} is no share of the examples to hold out: give one between 0 and 1, such as 0.3")
        chosen = _drawn(dataset, held_out, seed)
        training, judging = dataset.rows(~chosen), dataset.rows(chosen)
    if len(judging) < least:
        whole = "" if isinstance(held_out, Dataset) else f", of {ceil(least / held_out - 1e-9):,} in all or a larger share"
        raise CompressError(
            f"{len(judging):,} held-out examples are too few to judge by: to show what is lost at most, there must be "
            f"{least:,}{whole}; give more, or allow more to be lost"
        )
    if len(training) < LEAST_TRAINING:
        raise CompressError(
            f"{len(training)} examples are too few to calibrate with: give {LEAST_TRAINING} beside those held out"
        )
    return training, judging


def _drawn(dataset: Dataset, share: float, seed: int) -> NDArray[np.bool_]:
    """Which are held out: every 1/share-th, of the examples in random order, within it by class."""
    rng = np.random.default_rng(seed)
    order = rng.permutation(len(dataset))
    if dataset.are_classes:
        labels = np.asarray(dataset.labels)
        order = order[np.argsort(labels[order], kind="stable")]
    marks = np.floor(np.arange(len(dataset) + 1) * share + rng.random())
    chosen = np.zeros(len(dataset), np.bool_)
    chosen[order[np.diff(marks) > 0]] = True
    return chosen


def _are_apart(training: Dataset, judging: Dataset) -> None:
    if (training.labels is None) != (judging.labels is None):
        raise CompressError("of the examples to learn from and those held out only one set has labels: give both or neither")
    seen = set(_fingerprints(training))
    shared = sum(one in seen for one in _fingerprints(judging))
    if shared > MOST_SHARED * len(judging):
        raise CompressError(
            f"{shared:,} of {len(judging):,} held-out examples are among those to learn from: who learned them by heart would "
            "seem right; give others"
        )


def _fingerprints(dataset: Dataset) -> list[bytes]:
    """Of each example's inputs."""
    found = []
    for row in range(len(dataset)):
        digest = hashlib.blake2b(digest_size=16)
        for array in dataset.inputs.values():
            digest.update(repr(array[row].tolist()).encode() if array.dtype == object else array[row].tobytes())
        found.append(digest.digest())
    return found

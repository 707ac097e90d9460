"""What a recipe is: it makes one candidate of a model, in a process of its own, and says what it did.

The table of recipes is recipes/__init__.py; search.py runs them. Not aware of: whether a candidate is any good (gate.py).
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

from msgspec import Struct

from dlproxy.compress import CompressError
from dlproxy.compress.data import Dataset


class RecipeError(CompressError):
    """This recipe does nothing for this model; the message says why. Others may."""


class Source(Struct, frozen=True):
    """The original. `onnx`: as an ONNX file, whatever it came as (sources.py). `torch`: where its module comes from, as
    file.py:make (a function without arguments that returns a torch.nn.Module) or a .pt2 file; empty if it is ONNX alone, of
    which a module is made by those recipes that train.
    """

    onnx: Path
    torch: str = ""


class Context(Struct, frozen=True, kw_only=True):
    """`folder`: a recipe writes there and nowhere else. `training`: what it may calibrate with and learn from; the examples by
    which candidates are judged are never among them. `metric`: by name, as metrics.py has it. `most_batch`: rows of the larger
    of the two batches that speed is judged by. `tell`: takes a line about progress.
    """

    folder: Path
    training: Dataset
    metric: str
    seed: int = 0
    threads: int = 1
    most_batch: int = 32
    options: dict[str, Any] = {}
    tell: Callable[[str], None] = lambda line: None


class Step(Struct, frozen=True):
    """One thing that was done, so that it can be done again: `by` which package in which version, with which settings."""

    name: str
    by: str
    settings: dict[str, Any] = {}


class Made(Struct, frozen=True):
    """A candidate: an ONNX file with the original's inputs and outputs. `notes`: what a reader of the report should know."""

    path: Path
    steps: list[Step]
    notes: list[str] = []


class Recipe(Protocol):
    """`name`: as users write it. `what`: it does, in a line of the help. `needs`: packages that must be importable.
    `trains`: it learns from labels. `options`: what its users may set, by name.
    """

    name: str
    what: str
    needs: tuple[str, ...]
    trains: bool
    options: tuple[str, ...]

    def make(self, source: Source, context: Context) -> Made:
        """The same of the same seed. Raises RecipeError."""
        ...

"""Recipes for tests: one that writes a model it was given, and ones that misbehave."""

import os
import signal
from collections.abc import Callable
from pathlib import Path

import numpy as np
from msgspec import Struct

from dlproxy.compress.recipe import Context, Made, Recipe, RecipeError, Source, Step

DOC_STRING = b"\x32"  # field 6 of onnx.proto's ModelProto


class Writes(Struct, frozen=True, kw_only=True):
    """Whatever the source is, its candidate is this model; at `random`, with bytes that no seed repeats."""

    name: str
    model: bytes
    what: str = "writes a model"
    needs: tuple[str, ...] = ()
    trains: bool = False
    options: tuple[str, ...] = ("depth", "kind")
    random: bool = False

    def make(self, source: Source, context: Context) -> Made:
        context.tell("writing")
        path = context.folder / "made.onnx"
        remark = os.urandom(8).hex().encode() if self.random else b"%16d" % context.seed
        settings = {"from": source.onnx.parent.name.partition("-")[2], **context.options}
        path.write_bytes(self.model + DOC_STRING + bytes([len(remark)]) + remark)
        return Made(path, [Step(self.name, "tests 1", settings)], ["as it was told"])


class Does(Struct, frozen=True, kw_only=True):
    """What this function does."""

    name: str
    do: Callable[[Source, Context], Made]
    what: str = "does something"
    needs: tuple[str, ...] = ()
    trains: bool = False
    options: tuple[str, ...] = ()

    def make(self, source: Source, context: Context) -> Made:
        return self.do(source, context)


def refuses(source: Source, context: Context) -> Made:
    raise RecipeError("there is nothing to fuse")


def allocates(source: Source, context: Context) -> Made:
    np.ones((1 << 50,), np.uint8)
    raise AssertionError("no machine has so much memory")


def dies(source: Source, context: Context) -> Made:
    (context.folder / "half.onnx").write_bytes(b"half")
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError("it lives")


def interrupts(source: Source, context: Context) -> Made:
    """As Ctrl-C in the terminal would."""
    (context.folder / "half.onnx").write_bytes(b"half")
    os.kill(os.getppid(), signal.SIGINT)
    signal.pause()
    raise AssertionError("nobody ended it")


def spoils(source: Source, context: Context) -> Made:
    """Writes over what it was given."""
    source.onnx.write_bytes(b"spoilt")
    return Made(source.onnx, [])


def writes_what_is_no_model(source: Source, context: Context) -> Made:
    (context.folder / "model.onnx").write_bytes(b"no model")
    return Made(context.folder / "model.onnx", [])


def table(*recipes: Recipe) -> dict[str, Recipe]:
    return {recipe.name: recipe for recipe in recipes}


def saved_data(path: Path, **arrays: "np.ndarray[tuple[int, ...], np.dtype[np.generic]]") -> Path:
    np.savez(path, **arrays)  # type: ignore[arg-type]
    return path

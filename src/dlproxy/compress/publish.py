"""Writes what a search found into a folder, whole or not at all: artifacts with their records, the report, and dlproxy.toml.

Called by cli/compress.py. Not aware of: how anything was found, what the page looks like.
"""

import json
import os
import re
import shutil
import tempfile
from pathlib import Path
from typing import Any

from msgspec.structs import replace

from dlproxy.compress import CompressError
from dlproxy.compress.manifest import Candidate, files_of, read_report, write_record, write_report
from dlproxy.compress.search import ABOVE, Found
from dlproxy.instance.runtime import ModelError

REPORT, PAGE, CONFIGURATION = "report.json", "report.html", "dlproxy.toml"
MODEL, ORIGINAL = "model.onnx", "original"


def check(out: Path) -> None:
    """Raises CompressError for a folder that holds anything but an earlier result, which is replaced."""
    if not out.exists() and not out.is_symlink():
        return
    if not out.is_dir():
        raise CompressError(f"{out} is not a folder: give the name of a new one (--out)")
    there = {entry.name for entry in out.iterdir()}
    if not there:
        return
    if REPORT not in there:
        raise CompressError(f"{out} is not empty, and holds no earlier result: give the name of a new folder (--out)")
    artifacts = {one.artifact.partition("/")[0] for one in read_report(out / REPORT).candidates}
    if others := sorted(there - {REPORT, PAGE, CONFIGURATION, ORIGINAL, *artifacts}):
        raise CompressError(f"{out} holds {', '.join(others)} beside an earlier result: give the name of a new folder (--out)")


def publish(found: Found, out: Path, *, name: str, model: str, page: str, key: Any = None) -> None:
    """`name`, `model`: of the original, as it is served. `page`: the report for people. `key`: a private key to sign with.

    Raises CompressError, and leaves what was there.
    """
    check(out)
    out = out.resolve()
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}-") as beside:
            made = Path(beside) / "new"
            made.mkdir()
            _write(found, made, name=name, model=model, page=page, key=key, out=out)
            _exchange(made, out, Path(beside) / "old")
    except (OSError, ModelError) as error:
        raise CompressError(f"cannot write {out}: {getattr(error, 'strerror', None) or error}") from error


def _exchange(made: Path, out: Path, old: Path) -> None:
    if out.exists():
        os.replace(out, old)
    try:
        os.replace(made, out)
    except BaseException:
        if old.exists():
            os.replace(old, out)
        raise


def _write(found: Found, folder: Path, *, name: str, model: str, page: str, key: Any, out: Path) -> None:
    from dlproxy.instance.integrity.writing import sign

    candidates = []
    for one in found.report.candidates:
        if one.recipe not in found.artifacts:
            candidates.append(one)
            continue
        artifact = folder / variant_name(name, one.recipe) / MODEL
        _copy(found.artifacts[one.recipe], artifact)
        record = write_record(artifact, found.report.run, one)
        if key is not None:
            sign(str(artifact), key, beside=[record])
        candidates.append(replace(one, artifact=f"{artifact.parent.name}/{MODEL}"))
    write_report(replace(found.report, candidates=candidates), folder / REPORT)
    (folder / PAGE).write_bytes(page.encode("utf-8", errors="replace"))
    if found.artifacts:
        path = os.path.relpath(Path(model).resolve(), out) if Path(model).exists() else f"{ORIGINAL}/{MODEL}"
        if not Path(model).exists():  # a function that makes it, which no server calls
            _copy(found.original, folder / path)
        (folder / CONFIGURATION).write_text(configuration(found, candidates, name, path), "utf-8")


def variant_name(name: str, recipe: str) -> str:
    """By all that was done."""
    return f"{name}-{recipe.replace(ABOVE, '-')}"


def _copy(model: Path, to: Path) -> None:
    """With the files that hold its weights, which it names relative to its folder."""
    for name in files_of(model):
        file = to if name == model.name else to.parent / name
        file.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(model.parent / name, file)


def configuration(found: Found, candidates: list[Candidate], name: str, path: str) -> str:
    """dlproxy.toml that serves the original, with those of its artifacts as variants which no other outdoes."""
    by_recipe = {one.recipe: one for one in candidates}
    chosen = [by_recipe[recipe] for recipe in found.front]
    values = [found.accuracy, *(one.measured.accuracy.candidate for one in chosen if one.measured)]
    shares = all(0.0 < value <= 1.0 for value in values)  # what the knob can say
    names = [variant_name(name, one.recipe) for one in chosen]
    variants = f"variants = [{', '.join(map(json.dumps, names))}]\n"
    tables = [(name, path, values[0], variants)]
    tables += [(each, one.artifact, value, "") for each, one, value in zip(names, chosen, values[1:], strict=True)]
    return "\n".join(
        f"[models.{toml_key(each)}]\npath = {json.dumps(place, ensure_ascii=False)}\n"
        + (f"accuracy = {value:.6f}\n" if shares else "")
        + more
        for each, place, value, more in tables
    )


def toml_key(name: str) -> str:
    """A name as part of a table's heading."""
    return name if re.fullmatch(r"[A-Za-z0-9_-]+", name) else json.dumps(name, ensure_ascii=False)

"""Tries recipes on a model, each from the original and from what made it quicker without a change, and judges what they make.

Called by cli/compress.py with what a user asks for. Not aware of: what recipes do, where results are written (publish.py).
"""

import importlib.util
import re
import shutil
import tomllib
from collections.abc import Collection, Mapping, Sequence
from importlib.metadata import version
from math import ceil, isfinite, prod
from pathlib import Path
from time import monotonic
from typing import Any

import numpy as np
from msgspec import Struct
from msgspec.structs import replace

from dlproxy import __version__
from dlproxy.compress import CompressError, data, metrics
from dlproxy.compress.child import Limits, Tell, WorkError, run
from dlproxy.compress.data import Dataset
from dlproxy.compress.gate import Accuracy, Bar, Measured, Verdict, judge
from dlproxy.compress.manifest import Candidate, Examples, Machine, Report, Run, files_of, this_machine
from dlproxy.compress.measure import Examined, Original, Task, Unfit, alike, examine
from dlproxy.compress.recipe import Context, Made, Recipe, RecipeError, Source
from dlproxy.compress.statistics import examples_needed
from dlproxy.cores import spare_bytes, usable_cores
from dlproxy.instance.runtime.content import model_files
from dlproxy.instance.runtime.formats import open_runtime
from dlproxy.message import Signature

HELD_OUT = 0.3  # of the examples, unless more are needed to show how little is lost
MOST_HELD_OUT = 0.9
SPARE = 0.9  # of the memory that is free, for a piece of work
LEAST_EXAMINE_S = 300.0  # what was made is judged, even if the time is nearly up
PEEK = 8
BETTER = 1.03  # than what it went on from: less is noise, or not worth an artifact
ABOVE = "+"  # between the recipes that a candidate went through


class Asked(Struct, frozen=True, kw_only=True):
    """`model`: a path or reference as sources.py takes it. `held_out`: other data, a share, or 0 for what `bar` asks for.
    `batch`: rows of the larger of two batches. `cores`: those that measuring may use, by number; empty for all.
    `race_s`: about, for each candidate at each batch size. `options`: of recipes, by their names.
    """

    model: str
    data: Path
    recipes: Sequence[str]
    bar: Bar = Bar()
    labels: str = ""
    held_out: Path | float = 0.0
    metric: str = ""
    output: str = ""
    batch: int = 32
    threads: int = 1
    cores: tuple[int, ...] = ()
    budget_s: float = 600.0
    race_s: float = 5.0
    seed: int = 0
    options: Mapping[str, Mapping[str, Any]] = {}


class Found(Struct, frozen=True):
    """`artifacts`: files of what was accepted, by the candidate's name, in the folder of the search. `front`: of those, what
    nothing else of them beats, the most accurate first. `original`: as ONNX; `accuracy`: its own. `interrupted`: by Ctrl-C.
    """

    report: Report
    artifacts: dict[str, Path]
    front: list[str]
    original: Path
    accuracy: float
    interrupted: bool = False


class _Start(Struct):
    """What recipes start from: the original, or a candidate that answers as it does. `gain`: how much quicker."""

    source: Source
    name: str = ""
    made: Made | None = None
    measured: Measured | None = None
    gain: float = 1.0


class _Kept(Struct):
    """An accepted candidate, how it was made, and how long that took."""

    recipe: Recipe
    start: _Start
    made: Made
    seconds: float


def choose(table: Mapping[str, Recipe], named: Sequence[str] = (), *, every: bool = False) -> list[str]:
    """Those that are named, in that order; else `every` one, or those that do not train. Raises CompressError."""
    unknown = [name for name in named if name not in table]
    if unknown:
        raise CompressError(f"there is no recipe '{unknown[0]}': give some of {', '.join(table)}")
    for name in named:
        if lacking := missing(table[name]):
            raise CompressError(f"{name} {lacking}")
    return list(dict.fromkeys(named)) or [name for name, recipe in table.items() if every or not recipe.trains]


def options(table: Mapping[str, Recipe], given: Sequence[str], chosen: Collection[str]) -> dict[str, dict[str, Any]]:
    """By recipe, of RECIPE.OPTION=VALUE each, where values are as TOML has them, or text. Raises CompressError."""
    found: dict[str, dict[str, Any]] = {}
    for text in given:
        match = re.fullmatch(r"([\w-]+)\.(\w+)=(.*)", text, re.DOTALL)
        if match is None:
            raise CompressError(f"--set {text}: write it like prune-channels.ratio=0.3")
        name, option, value = match.groups()
        if name not in chosen:
            choose(table, [name])
            raise CompressError(f"--set {text}: {name} is not among the recipes to try")
        known = table[name].options
        if option not in known:
            raise CompressError(f"--set {text}: {name} has no such option; it has {', '.join(known) or 'none'}")
        try:
            found.setdefault(name, {})[option] = tomllib.loads(f"value = {value}")["value"]
        except tomllib.TOMLDecodeError:
            found.setdefault(name, {})[option] = value
    return found


def missing(recipe: Recipe) -> str:
    """What it needs and is not installed, in words; empty if that is nothing."""
    packages = [name for name in recipe.needs if importlib.util.find_spec(name) is None]
    extra = "compress,train" if recipe.trains else "compress"
    return f"needs {', '.join(packages)}: pip install 'dlproxy[{extra}]'" if packages else ""


def search(asked: Asked, *, table: Mapping[str, Recipe], folder: Path, tell: Tell) -> Found:
    """Try them all, or as many as there is time for. Writes into `folder` only. `tell`: a line for each event.

    KeyboardInterrupt ends it with what was found so far, or if that is nothing, goes on up. Raises CompressError.
    """
    return _Search(asked, table, folder, tell).run()


class _Search:
    def __init__(self, asked: Asked, table: Mapping[str, Recipe], folder: Path, tell: Tell) -> None:
        self._asked, self._table, self._folder, self._tell = asked, table, folder, tell
        self._began_at = monotonic()
        self._candidates: list[Candidate] = []
        self._kept: dict[str, _Kept] = {}
        self._gone_on: list[str] = []  # recipes that did not start from the original, in which some find more to do
        self._number = 0
        metrics.check(asked.metric)
        source, signature = run(
            _prepare, self._limits(), tell, asked.model, self._new_folder("original"), asked.data, asked.labels
        )
        self._training, self._held_out = self._data(signature)
        self._task = Task(
            inputs=self._held_out.inputs, rows=asked.batch, threads=asked.threads, race_s=asked.race_s, seed=asked.seed
        )
        self._original = self._examined_original(source)
        self._metric = metrics.choose(
            asked.metric, labels=self._held_out.labels, outputs=self._original.answers.outputs, output=asked.output
        )
        tell(f"judged by {self._metric.name} of '{self._metric.output}'" + (f": {why}" if (why := self._metric.why) else ""))
        self._compared = self._compare(self._original).original
        self._start = self._best = _Start(source)

    def run(self) -> Found:
        interrupted, untried = False, list(self._asked.recipes)
        try:
            while untried:
                self._try(untried[0])
                untried.pop(0)
            for name in self._gone_on:
                if self._left_s > 0.0:
                    self._add(self._candidate(name, self._table[name], self._start))
            self._combine()
            for name in self._kept:
                self._make_again(name)
        except KeyboardInterrupt:
            interrupted = True
        measured = {one.recipe: one.measured for one in self._candidates if one.recipe in self._kept and one.measured}
        return Found(
            Report(run=self._run(), candidates=self._candidates, interrupted=bool(untried)),
            {name: kept.made.path for name, kept in self._kept.items()},
            front(measured),
            self._start.source.onnx,
            self._compared,
            interrupted,
        )

    def _try(self, name: str) -> None:
        """From what answers as the original does but quicker, if there is such a candidate."""
        recipe = self._table[name]
        if lacking := missing(recipe):
            self._add(Candidate(recipe=name, failure=lacking))
        elif recipe.trains and self._training.labels is None:
            self._add(Candidate(recipe=name, failure="learns from labels, and the data has none"))
        elif self._left_s <= 0.0:
            self._add(Candidate(recipe=name, failure="not tried: the time was up (--budget)"))
        else:
            start = self._start if recipe.trains else self._best
            if start is not self._start:
                self._gone_on.append(name)
            self._add(self._candidate(name, recipe, start))

    def _combine(self) -> None:
        """What was trained and accepted is a model like any other: what else was accepted is tried on it, too."""
        trained = {name: kept for name, kept in self._kept.items() if kept.recipe.trains}
        others = {kept.recipe.name: kept.recipe for kept in self._kept.values() if not kept.recipe.trains}
        measured = {one.recipe: one.measured for one in self._candidates}
        for name, kept in trained.items():
            source = Source(kept.made.path)
            start = _Start(source, name, kept.made, measured[name])
            for other, recipe in others.items():
                if self._left_s > 0.0:
                    self._add(self._candidate(other, recipe, start))

    def _candidate(self, name: str, recipe: Recipe, start: _Start) -> Candidate:
        full = f"{start.name}{ABOVE}{name}" if start.name else name
        folder = self._new_folder(full)
        try:
            began_at = monotonic()
            made = self._make(full, recipe, start, folder)
            took_s = monotonic() - began_at
            steps = [*(start.made.steps if start.made else ()), *made.steps]
            whole = replace(made, steps=steps)
            found = run(
                examine,
                self._limits(LEAST_EXAMINE_S, measuring=True),
                self._told(full),
                made.path,
                self._task,
                self._as_original,
            )
            if isinstance(found, Unfit):
                verdict = Verdict("refused", [found.why])
                return Candidate(recipe=full, steps=steps, notes=made.notes, verdict=verdict)
            measured = Measured(self._compare(found), found.speeds, self._original.footprint, found.footprint)
            verdict = self._judged(measured, start)
            if verdict.status == "accepted":
                self._kept[full] = _Kept(recipe, start, made, took_s)
            if not recipe.trains:
                self._go_on_from(full, whole, found, measured)
            notes = [*made.notes, *self._on_rows(found)]
            return Candidate(recipe=full, steps=steps, notes=notes, measured=measured, verdict=verdict)
        except RecipeError as error:
            return Candidate(recipe=full, failure=f"does nothing here: {error}")
        except CompressError as error:
            hint = "" if self._left_s > 0.0 else " (--budget)"
            return Candidate(recipe=full, failure=f"{error}{hint}")
        finally:
            if full not in self._kept and self._best.name != full:
                shutil.rmtree(folder, ignore_errors=True)

    def _on_rows(self, found: Examined) -> list[str]:
        if not found.apart or self._original.apart:
            return []
        return [f"measured row by row, as dlproxy serves it: {found.apart}"]

    def _judged(self, measured: Measured, start: _Start) -> Verdict:
        verdict = judge(measured, self._asked.bar)
        if verdict.status == "accepted" and start.measured is not None and not better(measured, start.measured):
            return Verdict("refused", [f"neither quicker nor smaller than {start.name} alone, from which it went on"])
        return verdict

    def _go_on_from(self, name: str, made: Made, found: Examined, measured: Measured) -> None:
        """If it answers as the original does, and is quicker, or smaller and no slower."""
        gain, best = _gain(measured), self._best
        size = measured.candidate.file_bytes
        before = best.measured.candidate.file_bytes if best.measured else measured.original.file_bytes
        quicker = gain > BETTER * best.gain and any(speed.low > 1.0 for speed in measured.speeds)
        smaller = size * BETTER < before and gain * BETTER > best.gain
        slower = any(speed.high < 1.0 for speed in measured.speeds)
        if slower or not (quicker or smaller) or not alike(self._original.answers, found.answers):
            return
        self._best = _Start(replace(self._start.source, onnx=made.path), name, made, measured, gain)
        self._tell(f"{name}: answers as the original does; other recipes go on from it")

    def _make(self, name: str, recipe: Recipe, start: _Start, folder: Path) -> Made:
        settings = {
            "folder": folder,
            "training": self._training,
            "metric": self._metric.name,
            "seed": self._asked.seed,
            "threads": usable_cores(),
            "most_batch": self._asked.batch,
            "options": self._asked.options.get(recipe.name, {}),
        }
        made = run(_made, self._limits(), self._told(name), recipe, start.source, settings)
        if not made.path.resolve().is_relative_to(folder.resolve()) or not made.path.is_file():
            raise WorkError("says that it made a file, and there is none in its folder")
        return made

    def _make_again(self, name: str) -> None:
        """The same seed shall give the same bytes: where there is time to see whether it does, the report says so."""
        kept = self._kept[name]
        seed = f"seed {self._asked.seed}"
        if kept.seconds > self._left_s:
            note = f"not made a second time: there was no time to see whether {seed} gives the same bytes again"
        else:
            folder = self._new_folder(name)
            try:
                made = self._make(name, kept.recipe, kept.start, folder)
                same = files_of(kept.made.path) == files_of(made.path)
                note = f"made twice with {seed}, " + ("with the same bytes" if same else "and the bytes differ")
            except CompressError as error:
                note = f"made a second time with {seed}, it {error}"
            finally:
                shutil.rmtree(folder, ignore_errors=True)
        self._tell(f"{name}: {note}")
        noted = [replace(one, notes=[*one.notes, note]) if one.recipe == name else one for one in self._candidates]
        self._candidates = noted

    def _add(self, candidate: Candidate) -> None:
        self._candidates.append(candidate)
        self._tell(f"{candidate.recipe}: {candidate.status}: {'; '.join(candidate.reasons)}")

    def _compare(self, found: Examined) -> Accuracy:
        return metrics.compare(
            self._metric,
            labels=self._held_out.labels,
            original=self._original.answers.outputs,
            candidate=found.answers.outputs,
            seed=self._asked.seed,
        )

    def _data(self, signature: Signature) -> tuple[Dataset, Dataset]:
        asked = self._asked
        whole = data.read(asked.data, inputs=signature.inputs, labels=asked.labels, tell=self._tell)
        least = examples_needed(asked.bar.most_loss)
        held_out: Dataset | float
        if isinstance(asked.held_out, Path):
            held_out = data.read(asked.held_out, inputs=signature.inputs, labels=asked.labels, tell=self._tell)
        else:
            held_out = asked.held_out or min(max(HELD_OUT, ceil(1.1 * least) / len(whole)), MOST_HELD_OUT)
        return data.split(whole, held_out=held_out, seed=asked.seed, least=least)

    def _examined_original(self, source: Source) -> Examined:
        try:
            limits = self._limits(LEAST_EXAMINE_S, measuring=True)
            found = run(examine, limits, self._told("original"), source.onnx, self._task)
        except CompressError as error:
            raise CompressError(f"the original {error}") from None
        assert isinstance(found, Examined), "it is compared with nothing"
        self._as_original = Original.of(source.onnx, found)
        return found

    def _run(self) -> Run:
        asked = self._asked
        apart = asked.held_out if isinstance(asked.held_out, Path) else None
        digests = [data.digest(path) for path in (asked.data, apart) if path is not None]
        return Run(
            source=Path(asked.model).name,
            files=files_of(self._start.source.onnx),
            data=Examples(
                name=" and ".join(path.name for path in (asked.data, apart) if path is not None),
                sha256=" and ".join(digests),
                training=len(self._training),
                held_out=len(self._held_out),
            ),
            metric=self._metric,
            bar=asked.bar,
            seed=asked.seed,
            machine=self._machine(),
            dlproxy=__version__,
            onnxruntime=version("onnxruntime"),
        )

    def _machine(self) -> Machine:
        machine = this_machine(self._asked.threads)
        return replace(machine, cores=len(self._asked.cores)) if self._asked.cores else machine

    @property
    def _left_s(self) -> float:
        return self._began_at + self._asked.budget_s - monotonic()

    def _new_folder(self, name: str) -> Path:
        self._number += 1
        folder = self._folder / f"{self._number}-{name}"
        folder.mkdir()
        return folder

    def _limits(self, least_s: float = 1.0, *, measuring: bool = False) -> Limits:
        """Of the next piece of work. `measuring`: it gets what the model would be served with, else all there is."""
        spare = spare_bytes()
        return Limits(
            folder=self._folder,
            seconds=max(self._left_s, least_s),
            memory_bytes=int(spare * SPARE) if isfinite(spare) else 0,
            threads=self._asked.threads if measuring else usable_cores(),
            cores=self._asked.cores if measuring else (),
        )

    def _told(self, name: str) -> Tell:
        return lambda line: self._tell(f"{name}: {line}")


def front(measured: Mapping[str, Measured]) -> list[str]:
    """Of those, what no other is at least as accurate, quick and small as: the most accurate first, then the quickest."""
    names = sorted(measured, key=lambda name: (-measured[name].accuracy.candidate, -_gain(measured[name])))
    left: list[str] = []
    for name in names:
        if not any(_matches(measured[other], measured[name]) for other in left):
            left.append(name)
    return left


def better(measured: Measured, start: Measured) -> bool:
    """Whether it is quicker or smaller than what it went on from."""
    return (
        _gain(measured) > BETTER * _gain(start)
        or measured.candidate.file_bytes * BETTER < start.candidate.file_bytes
        or measured.candidate.memory_bytes * BETTER < start.candidate.memory_bytes
    )


def _matches(one: Measured, other: Measured) -> bool:
    ratios = zip(one.speeds, other.speeds, strict=True)
    return (
        one.accuracy.candidate >= other.accuracy.candidate
        and all(mine.ratio >= theirs.ratio for mine, theirs in ratios)
        and one.candidate.file_bytes <= other.candidate.file_bytes
    )


def _gain(measured: Measured) -> float:
    """How many times as quick: the geometric mean over batch sizes."""
    return prod(speed.ratio for speed in measured.speeds) ** (1 / len(measured.speeds))


def _prepare(tell: Tell, model: str, folder: Path, examples: Path, labels: str) -> tuple[Source, Signature]:
    """A copy, so that whatever a recipe does, it does not do it to the original; and what it takes and gives."""
    place = Path(model)
    if place.suffix.lower() != ".onnx" or place.is_dir():
        from dlproxy.compress.sources import to_onnx

        source = to_onnx(model, folder, peek(examples, labels))
        tell(f"{model}: converted to ONNX")
        return source, open_runtime(str(source.onnx)).signature
    signature = open_runtime(model).signature
    for file in model_files(model):
        copy = folder / Path(file).relative_to(place.parent)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, copy)
    return Source(folder / place.name), signature


def peek(path: Path, labels: str = "") -> Dataset | None:
    """A few examples as they stand there, for who does not know yet what the model takes; None if they cannot be read."""
    files = sorted(path.glob("*.npz")) if path.is_dir() else [path]
    names = [labels] if labels else data.LABELS
    try:
        with np.load(files[0], allow_pickle=False) as arrays:
            return Dataset({name: arrays[name][:PEEK] for name in arrays.files if name not in names})
    except Exception:  # of whatever type: data.py, which reads them next, says what is wrong
        return None


def _made(tell: Tell, recipe: Recipe, source: Source, settings: dict[str, Any]) -> Made:
    return recipe.make(source, Context(**settings, tell=tell))

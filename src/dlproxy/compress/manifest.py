"""What is known of a compression, in JSON: the report of a run, and beside each artifact that was accepted its record.

Written by search.py and `dlproxy compress`, read by whoever serves an artifact as a variant. Not aware of: signatures, which
`instance/integrity` puts over artifact and record.
"""

import logging
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from reprlib import repr as brief
from typing import Any, Literal, TypeVar

import msgspec
from msgspec import Struct

from dlproxy import __version__
from dlproxy.compress import CompressError
from dlproxy.compress.gate import Bar, Measured, Verdict
from dlproxy.compress.metrics import Metric
from dlproxy.compress.recipe import Step
from dlproxy.cores import processor_model, usable_cores
from dlproxy.instance.integrity.files import verified
from dlproxy.instance.integrity.manifest import Listed
from dlproxy.instance.runtime import ModelError
from dlproxy.instance.runtime.content import digest_of, model_files

RECORD = "dlproxy compression 1"
REPORT = "dlproxy compression report 1"
SUFFIX = ".json"  # behind the artifact's name
MOST_BYTES = 1 << 24
READABLE = 0o644

log = logging.getLogger(__name__)


class Machine(Struct, frozen=True, kw_only=True):
    """Where it was measured. `threads`: of each session."""

    processor: str
    cores: int
    threads: int


class Examples(Struct, frozen=True, kw_only=True):
    """`sha256`: of the files, by data.digest. How many were learned from, and judged by."""

    name: str
    sha256: str
    training: int
    held_out: int


class Run(Struct, frozen=True, kw_only=True):
    """What all candidates of a run have in common. `source`: the original's name; `files`: by name, what it consists of."""

    source: str
    files: dict[str, Listed]
    data: Examples
    metric: Metric
    bar: Bar
    seed: int
    machine: Machine
    dlproxy: str
    onnxruntime: str


class Candidate(Struct, frozen=True, kw_only=True):
    """One recipe's. `failure`: why there is nothing to judge. `artifact`: its file's name, if it was accepted and kept."""

    recipe: str
    options: dict[str, Any] = {}
    steps: list[Step] = []
    notes: list[str] = []
    measured: Measured | None = None
    verdict: Verdict | None = None
    failure: str = ""
    artifact: str = ""

    @property
    def status(self) -> Literal["accepted", "refused", "failed"]:
        return "failed" if self.verdict is None else self.verdict.status

    @property
    def reasons(self) -> list[str]:
        return [self.failure] if self.verdict is None else self.verdict.reasons


class Record(Struct, frozen=True, kw_only=True):
    """Of one artifact, beside it. `files`: by name, what it consists of."""

    format: str = RECORD
    run: Run
    candidate: Candidate
    files: dict[str, Listed]


class Report(Struct, frozen=True, kw_only=True):
    """Of a run. `interrupted`: there are recipes that were not tried."""

    format: str = REPORT
    run: Run
    candidates: list[Candidate]
    interrupted: bool = False


T = TypeVar("T", Record, Report)


def this_machine(threads: int) -> Machine:
    return Machine(processor=processor_model(), cores=usable_cores(), threads=threads)


def files_of(model: Path) -> dict[str, Listed]:
    """A model's files by their names relative to its folder, with those that hold an ONNX model's weights. Raises OSError."""
    folder = model.parent
    return {
        os.path.relpath(file, folder): Listed(os.stat(file).st_size, digest_of(file).hex()) for file in model_files(str(model))
    }


def record_path(artifact: Path) -> Path:
    """Where an artifact's record is."""
    return artifact.with_name(artifact.name + SUFFIX)


def write_record(artifact: Path, run: Run, candidate: Candidate) -> Path:
    """Beside the artifact, which is there. What is signed later is both. Raises OSError."""
    named = msgspec.structs.replace(candidate, artifact=artifact.name)
    target = record_path(artifact)
    _write(Record(run=run, candidate=named, files=files_of(artifact)), target)
    return target


def write_report(report: Report, target: Path) -> None:
    """Raises OSError."""
    _write(report, target)


def _write(what: Struct, target: Path) -> None:
    """Whole or not at all."""
    with tempfile.NamedTemporaryFile(dir=target.parent, prefix=f".{target.name}-", delete=False) as written:
        written.write(msgspec.json.format(msgspec.json.encode(what), indent=1) + b"\n")
    os.chmod(written.name, READABLE)
    os.replace(written.name, target)


def read_manifest(path: Path) -> Record:
    """An artifact's record, as it is written; whether the artifact is still that one is not looked at. Raises CompressError."""
    return _read(path, Record, RECORD)


def read_report(path: Path) -> Report:
    """Raises CompressError."""
    return _read(path, Report, REPORT)


def _read(path: Path, kind: type[T], form: str) -> T:
    try:
        if path.stat().st_size > MOST_BYTES:
            raise CompressError(f"{path} is too large for what dlproxy compress writes")
        data = path.read_bytes()
    except OSError as error:
        raise CompressError(f"{path} cannot be read: {error.strerror}") from None
    try:
        found = msgspec.json.decode(data, type=dict[str, Any]).get("format")
        if found != form:
            raise CompressError(f"{path} has the format {brief(found)}; this dlproxy {__version__} reads {form!r}")
        return msgspec.json.decode(data, type=kind)
    except (msgspec.DecodeError, UnicodeError, RecursionError) as error:
        raise CompressError(f"{path} is not what dlproxy compress writes: {error}") from None


def declared(model: Path, signers: Sequence[bytes] = ()) -> Record | None:
    """The record of the model in this file, if it has one that is about it and was accepted; else None, and if there is one,
    the log says why. `signers`: public keys of which one must have signed both, if there are any. Reads the whole model: not
    for the event loop.
    """
    path = record_path(model) if model.is_file() else model
    if path == model or not path.is_file():
        return None
    try:
        if signers and path.name not in verified(model, signers).files:
            raise CompressError("it is not among what was signed with the model")
        record = read_manifest(path)
        if record.files != files_of(model):
            raise CompressError("it is about another file, as its SHA-256 tells")
        if record.candidate.status != "accepted" or record.candidate.measured is None:
            raise CompressError("it is of a candidate that was not accepted")
    except (CompressError, ModelError, OSError) as error:
        log.warning("%s says nothing about %s: %s", path, model, error)
        return None
    return record


def declared_accuracy(model: Path, signers: Sequence[bytes] = ()) -> float | None:
    """What was measured of it on held-out examples, as `declared` finds it."""
    record = declared(model, signers)
    return None if record is None or record.candidate.measured is None else record.candidate.measured.accuracy.candidate

"""A record is about the file that it lies beside, and about no other; what is signed is both."""

import logging
from pathlib import Path

import pytest
from msgspec.structs import replace

from dlproxy.compress import CompressError
from dlproxy.compress.gate import Bar
from dlproxy.compress.manifest import (
    MOST_BYTES,
    Candidate,
    declared,
    declared_accuracy,
    files_of,
    read_manifest,
    read_report,
    record_path,
    this_machine,
    write_record,
    write_report,
)
from dlproxy.instance.integrity.files import verified
from dlproxy.instance.integrity.settings import read_signers
from dlproxy.instance.runtime import ModelError
from tests.compress.findings import candidate, measured, report, run
from tests.instance.integrity.keys import Keys, save_with_weights_beside

ACCEPTED = candidate("int8-dynamic", measured())


@pytest.fixture
def artifact(tmp_path: Path) -> Path:
    """A model with weights in a second file."""
    return save_with_weights_beside(tmp_path)


def test_a_record_comes_back_as_it_was_written(artifact: Path) -> None:
    path = write_record(artifact, run(), ACCEPTED)
    assert path.name == "m.onnx.json" == record_path(artifact).name
    record = read_manifest(path)
    assert record.candidate == replace(ACCEPTED, artifact="m.onnx")
    assert record.run == run()
    assert record.files == files_of(artifact)
    assert record.files.keys() == {"m.onnx", "weights.bin"}
    assert declared(artifact) == record
    assert declared_accuracy(artifact) == 0.929
    assert [file.name for file in path.parent.iterdir() if file.name.startswith(".")] == []


def test_a_report_comes_back_as_it_was_written(tmp_path: Path) -> None:
    whole = report(interrupted=True)
    write_report(whole, tmp_path / "report.json")
    assert read_report(tmp_path / "report.json") == whole
    assert [one.status for one in whole.candidates] == ["accepted", "refused", "refused", "failed"]
    assert whole.candidates[3].reasons == ["ran out of memory"]


@pytest.mark.parametrize("changed", ["m.onnx", "weights.bin"])
def test_of_another_file_nothing_is_declared(artifact: Path, changed: str, caplog: pytest.LogCaptureFixture) -> None:
    assert declared_accuracy(artifact) is None
    assert not caplog.records, "to have no record is no fault"
    write_record(artifact, run(), ACCEPTED)
    with (artifact.parent / changed).open("ab") as stream:
        stream.write(b"\x00\x00")
    with caplog.at_level(logging.WARNING):
        assert declared_accuracy(artifact) is None
    assert "about another file" in caplog.text


@pytest.mark.parametrize(
    ("other", "clue"),
    [
        (candidate("int8-dynamic", measured(speeds=())), "not accepted"),
        (Candidate(recipe="qat", failure="no memory"), "not accepted"),
        ("{", "is not what dlproxy compress writes"),
        ("[]", "is not what dlproxy compress writes"),
        ('{"format": "dlproxy compression 2"}', "has the format 'dlproxy compression 2'; this dlproxy"),
        ('{"format": "dlproxy compression 1"}', "is not what dlproxy compress writes"),
        ("\udcff", "is not what dlproxy compress writes"),
        ("[" * 100_000, "is not what dlproxy compress writes"),
        ("x" * (MOST_BYTES + 1), "too large"),
    ],
    ids=range(9),
)
def test_what_is_no_record_of_an_accepted_model(
    artifact: Path, other: Candidate | str, clue: str, caplog: pytest.LogCaptureFixture
) -> None:
    if isinstance(other, Candidate):
        write_record(artifact, run(), other)
    else:
        record_path(artifact).write_text(other, "utf-8", "surrogateescape")
        with pytest.raises(CompressError, match=clue):
            read_manifest(record_path(artifact))
    with caplog.at_level(logging.WARNING):
        assert declared_accuracy(artifact) is None
    assert clue in caplog.text


@pytest.mark.parametrize("path", ["", ".", "/", "my_module:MyModel", "http://127.0.0.1:1/v2/models/m"])
def test_a_path_that_is_no_file_declares_nothing(path: str) -> None:
    assert declared_accuracy(Path(path)) is None


def test_a_record_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(CompressError, match="cannot be read: No such file"):
        read_manifest(tmp_path / "m.onnx.json")


def test_signing_covers_artifact_and_record(artifact: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    keys = Keys(tmp_path / "keys")
    signers = read_signers([str(keys.public)])
    record = write_record(artifact, run(), ACCEPTED)
    with caplog.at_level(logging.WARNING):
        assert declared_accuracy(artifact, signers) is None
        assert "not signed" in caplog.text
        keys.sign(artifact)
        assert declared_accuracy(artifact, signers) is None
        assert "not among what was signed" in caplog.text
        keys.sign(artifact, beside=[record])
        assert verified(artifact, signers).files.keys() == {"m.onnx", "weights.bin", "m.onnx.json"}
        assert declared_accuracy(artifact, signers) == 0.929
        write_record(artifact, run(bar=Bar(most_loss=0.5)), ACCEPTED)
        assert declared_accuracy(artifact) == 0.929
        assert declared_accuracy(artifact, signers) is None
    assert "has been changed" in caplog.text
    with pytest.raises(ModelError, match="changed"):
        verified(artifact, signers)


def test_this_machine() -> None:
    found = this_machine(3)
    assert found.processor
    assert found.cores >= 1
    assert found.threads == 3

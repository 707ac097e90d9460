"""The file of a recording: what was written is read, also when the end was cut off; anything else is said to be none."""

import json
from pathlib import Path

import pytest

from dlproxy.lab.recording.recording import Delta, Recording, RecordingError, Whole, Writer, load
from dlproxy.lab.report.result import ResultError

WHOLE = {"at": 10.0, "server": {}, "models": {}, "events": []}


def written(path: Path) -> Path:
    writer = Writer(path, "http://here:8002")
    writer.frame("whole", json.dumps(WHOLE).encode())
    writer.frame("delta", b'{"at":11.0,"models":{"m/1":{"rate":2.5}}}')
    assert writer.frames == 2
    writer.close([{"id": "7"}])
    return path


def test_what_was_written_is_read(tmp_path: Path) -> None:
    frames = [Whole(WHOLE), Delta({"at": 11.0, "models": {"m/1": {"rate": 2.5}}})]
    assert load(written(tmp_path / "a.jsonl")) == Recording("http://here:8002", frames, [{"id": "7"}])


def test_a_line_that_was_cut_short_is_left_out(tmp_path: Path) -> None:
    path = written(tmp_path / "a.jsonl")
    path.write_bytes(path.read_bytes()[:-20])
    found = load(path)
    assert (len(found.frames), found.requests) == (2, [])


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "no recording of this version"),
        (b"garbage\n", "is no recording"),
        (b"\xff\xfe\n", "is no recording"),
        (b'{"type":"recording","where":"x","format":99}\n', "no recording of this version"),
        (b'{"type":"recording","where":"x","format":1}\n', "nothing to show"),
        (b'{"type":"recording","where":"x","format":1}\n{"type":"delta","told":{"at":1.0}}\n', "nothing to show"),
        (b'{"type":"recording","where":"x","format":1}\n{"type":"whole","told":{}}\n', "is no recording"),
        (b'{"type":"recording","where":"x","format":1}\n{"type":"whole","told":{"at":[]}}\n', "is no recording"),
    ],
)
def test_what_is_no_recording_is_said_to_be_none(content: bytes, words: str, tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(content)
    with pytest.raises(RecordingError, match=words):
        load(path)


def test_a_file_that_cannot_be_opened_is_named(tmp_path: Path) -> None:
    with pytest.raises(ResultError, match="cannot write"):
        Writer(tmp_path / "none" / "a.jsonl", "")
    with pytest.raises(RecordingError, match="cannot read"):
        load(tmp_path / "none.jsonl")

"""The audit log's file: who may read it, what becomes of it when it is large, and of records when the disk is full."""

import errno
import json
import logging
import multiprocessing
import os
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from dlproxy.telemetry.audit_file import AuditFile
from dlproxy.telemetry.event_log import LogError


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "audit.jsonl"


@pytest.fixture
def opened(path: Path) -> Iterator[Callable[..., AuditFile]]:
    files: list[AuditFile] = []

    def make(most_bytes: int = 1 << 20, keep: int = 3) -> AuditFile:
        files.append(AuditFile(path, most_bytes, keep))
        return files[-1]

    yield make
    for file in files:
        file.close()


def write(file: AuditFile, **told: str) -> None:
    file.handle(logging.makeLogRecord({"created": 0.25, "request": told}))


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_line_for_each_record_readable_for_its_owner_alone(path: Path, opened: Callable[..., AuditFile]) -> None:
    path.touch(0o644)
    file = opened()
    write(file, who="ann", outcome="two\nlines\x1b\u2028")
    assert path.read_bytes().count(b"\n") == 1
    assert lines(path) == [{"time": "1970-01-01T00:00:00.250Z", "who": "ann", "outcome": "two\nlines\x1b\u2028"}]
    assert b"\x1b" not in path.read_bytes()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_a_large_file_is_put_aside_and_the_oldest_goes(path: Path, opened: Callable[..., AuditFile]) -> None:
    file = opened(most_bytes=200, keep=2)
    for number in range(20):
        write(file, who=f"{number:02}", filler="x" * 60)
    names = ["audit.jsonl.2", "audit.jsonl.1", "audit.jsonl"]
    assert sorted(entry.name for entry in path.parent.iterdir()) == sorted(names)
    kept = [line["who"] for name in names for line in lines(path.with_name(name))]
    assert kept == [f"{number:02}" for number in range(20)][-len(kept) :]
    assert all(path.with_name(name).stat().st_size <= 200 for name in names)
    assert all(stat.S_IMODE(path.with_name(name).stat().st_mode) == 0o600 for name in names)


def test_none_is_kept_if_none_shall_be(path: Path, opened: Callable[..., AuditFile]) -> None:
    file = opened(most_bytes=100, keep=0)
    for number in range(5):
        write(file, who=str(number), filler="x" * 40)
    assert [entry.name for entry in path.parent.iterdir()] == ["audit.jsonl"]
    assert [line["who"] for line in lines(path)] == ["4"]


def test_a_file_that_was_moved_away_is_begun_anew(path: Path, opened: Callable[..., AuditFile]) -> None:
    file = opened()
    write(file, who="1")
    path.rename(path.with_suffix(".old"))
    write(file, who="2")
    path.unlink()
    write(file, who="3")
    assert [line["who"] for line in lines(path)] == ["3"]


def _writer(path: Path, name: str) -> None:
    file = AuditFile(path, 20_000, 100)
    for number in range(300):
        write(file, who=name, number=str(number), filler="x" * 100)
    file.close()


def test_several_processes_may_write_to_it(path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    writers = [context.Process(target=_writer, args=(path, name)) for name in ("a", "b", "c")]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join(60)
        assert writer.exitcode == 0
    found = [line for file in path.parent.iterdir() for line in lines(file)]
    assert sorted((line["who"], int(line["number"])) for line in found) == [(name, n) for name in "abc" for n in range(300)]
    assert len(list(path.parent.iterdir())) > 2


def test_a_full_disk_is_told_once_and_then_how_many_are_missing(
    path: Path, opened: Callable[..., AuditFile], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    file, room, write_for_real = opened(), [1.0], os.write

    def os_write(number: int, data: bytes) -> int:
        if not room[0]:
            raise OSError(errno.ENOSPC, "No space left on device")
        return write_for_real(number, data[: int(len(data) * room[0])])

    monkeypatch.setattr("os.write", os_write)
    write(file, who="1")
    room[0] = 0.5
    write(file, who="2")
    room[0] = 0.0
    for _ in range(100):
        write(file, who="3")
    room[0] = 1.0
    write(file, who="4")
    assert [(record.levelname, "101" in record.getMessage()) for record in caplog.records] == [
        ("ERROR", False),
        ("WARNING", True),
    ]
    whole, torn, missing, last = path.read_text().splitlines()
    assert json.loads(whole)["who"] == "1"
    assert not torn.endswith("}")
    assert json.loads(missing)["outcome"] == "101 records could not be written"
    assert json.loads(last)["who"] == "4"


def test_what_cannot_be_written_is_said_at_the_start(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "none" / "audit.jsonl", tmp_path, tmp_path / "pipe"):
        with pytest.raises(LogError, match="cannot be written"):
            AuditFile(path, 100, 1)
